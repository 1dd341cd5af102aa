"""Following a channel by positions: each publication once and in order, or told that some are lost.

Who follows hears first and reads history second, and joins the two by offset. Pure: what is heard
and what history says is handed in, in whatever order it comes.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar, overload

if TYPE_CHECKING:
    from backchannel.contracts import Publication

__all__ = ["REMEMBERED", "Follower", "History", "Kept", "Page", "Position", "Retention"]

T = TypeVar("T")

WAITING: Final = 1000
"""Publications that are kept while history is asked; history has those that come after them."""

REMEMBERED: Final = 3600.0
"""Seconds that a channel's newest position is known after all that was kept of it has expired: who
comes back until then, and has missed nothing, is not told of a loss."""

_TEXT: Final = re.compile(r"([0-9A-Za-z_-]{1,64})\.(0|[1-9][0-9]{0,17})")


class Position(NamedTuple):
    """A place in a channel's history. As text, ``str(position)``, it may be given to clients.

    Args:
        epoch: names one unbroken history; a new one begins when some of the old may be lost.
        offset: counts the channel's publications, without gaps within an epoch.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read what ``str(position)`` made.

        Raises:
            TypeError: no str.
            ValueError: it is no position.
        """
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a position is a str, such as '5f3a09c2.17', not {text!r}")
        if (found := _TEXT.fullmatch(text)) is None:
            raise ValueError(f"{text[:80]!r} is no position, such as '5f3a09c2.17'")
        return cls(found[1], int(found[2]))

    @classmethod
    def of(cls, value: Position | str) -> Position:
        """Return a position that may be given as text; raises as ``parse`` does."""
        return value if isinstance(value, Position) else cls.parse(value)


class Retention(NamedTuple):
    """What is kept of a channel.

    Args:
        size: publications, the newest ones.
        ttl: seconds that each is kept.
    """

    size: int
    ttl: float


class Kept(NamedTuple):
    """A publication in a channel's history.

    Args:
        position: where it stands.
        message: what was sent: a str as a text frame has it, JSON for what was no str; or bytes.
    """

    position: Position
    message: str | bytes


@dataclass(frozen=True, slots=True)
class History(Sequence[Kept]):
    """Publications of a channel, oldest first.

    Args:
        kept: they.
        position: of the last one that was looked at, to go on from, also where it was not for the
            reader.
        lost: some between ``since`` and the newest are not there any more; then it is empty, and
            ``position`` is that of the newest.
    """

    kept: tuple[Kept, ...]
    position: Position
    lost: bool

    @classmethod
    def of(cls, page: Page[Publication], may_read: Callable[[Publication], bool]) -> History:
        """Return what of a page is to be read by someone.

        Args:
            page: it.
            may_read: tells of a publication that was for some only whether it is.
        """
        kept = tuple(
            Kept(Position(page.top.epoch, offset), publication.frame)
            for offset, publication in page.entries
            if (publication.to is None and not publication.exclude) or may_read(publication)
        )
        last = page.entries[-1][0] if page.entries else page.top.offset
        return cls(kept, Position(page.top.epoch, last), lost=page.lost)

    @overload
    def __getitem__(self, index: int) -> Kept: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Kept]: ...

    def __getitem__(self, index: int | slice) -> Kept | Sequence[Kept]:
        return self.kept[index]

    def __len__(self) -> int:
        return len(self.kept)


class Page(NamedTuple, Generic[T]):
    """What history has after a position, or the newest of it, read in one step.

    Args:
        top: position of the channel's newest publication; offset 0 where there was none yet.
        entries: (offset, what was published), oldest first, without gaps.
        lost: True where what was asked for is not all there: it is too old, of another epoch, or
            later than the newest. Then there are no entries.
    """

    top: Position
    entries: tuple[tuple[int, T], ...] = ()
    lost: bool = False


class Follower(Generic[T]):
    """Follows one channel.

    Args:
        since: the last position that was had; None begins with the newest, or with as many of the
            newest as the first page has.

    Attributes:
        position: the last one that was had or, after a loss, the one to begin again from.
        asks: what comes next is to be found in history, after ``position``.
    """

    __slots__ = ("_strange", "_waiting", "asks", "position")

    def __init__(self, since: Position | None):
        self.position = since
        self.asks = True
        self._strange: frozenset[str] = frozenset()  # epochs that history did not know of
        self._waiting: deque[tuple[Position, T]] = deque(maxlen=WAITING)

    def hear(self, at: Position, item: T) -> bool:
        """Take what was just published.

        Args:
            at: its position.
            item: it.

        Returns:
            True where it is the next one, to be handed on now. False where it was had already, or
            waits until history was asked, which ``asks`` tells.
        """
        if not self.asks:
            epoch, offset = self.position or ("", 0)
            if at[0] == epoch and at[1] <= offset + 1:
                if at[1] <= offset:
                    return False
                self.position = at
                return True
            self.asks = True
        self._waiting.append((at, item))
        return False

    def interrupt(self) -> None:
        """Take note that some may not have been heard."""
        self.asks = True

    def learn(self, page: Page[T]) -> tuple[list[tuple[Position, T]], bool]:
        """Take what history has after ``position``, asked for after ``asks`` became True.

        Returns:
            What is to be handed on now, in order, and whether some before it are lost. ``asks``
            stays True where there is more to be asked for.
        """
        epoch = page.top.epoch
        ready: list[tuple[Position, T]] = []
        if not page.lost:
            ready += [(Position(epoch, offset), item) for offset, item in page.entries]
        lost = page.lost and not self._heard_all_to(page.top)
        if lost:
            self.position = self._heard_up_to(page.top)
        elif self.position is None:
            self.position = page.top
        elif ready:
            self.position = ready[-1][0]
        self.asks = not page.lost and self.position.offset < page.top.offset
        waiting, self._waiting = self._waiting, deque(maxlen=WAITING)
        known, self._strange = self._strange, frozenset(at.epoch for at, _ in waiting) - {epoch}
        for at, item in waiting:
            # Of an epoch that history does not know when asked a second time: it has ended.
            if (at.epoch == epoch or at.epoch not in known) and self.hear(at, item):
                ready.append((at, item))
        return ready, lost

    def _heard_all_to(self, top: Position) -> bool:
        """Tell whether all from the position to the newest was heard meanwhile."""
        position = self.position
        if position is None or position.epoch != top.epoch or position.offset > top.offset:
            return False
        return self._heard_up_to(top).offset <= position.offset

    def _heard_up_to(self, top: Position) -> Position:
        """Return from where on all up to the newest was heard meanwhile; else the newest."""
        first = last = None
        for at, _ in reversed(self._waiting):
            if at.epoch == top.epoch:
                if first is not None and at.offset != first - 1:
                    break
                first, last = at.offset, last or at.offset
        if first is None or last is None or not first - 1 <= top.offset <= last:
            return top
        return Position(top.epoch, first - 1)
