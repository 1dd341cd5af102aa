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

BEYOND: Final = 2**53
"""An offset that no publication has."""

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
            ``position`` is that of the newest. Or some can't be read; then it has the others.
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
        last = max(page.entries[-1][0] if page.entries else 0, page.unreadable) or page.top.offset
        return cls(kept, Position(page.top.epoch, last), lost=page.lost or page.unreadable > 0)

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
        unreadable: offset of the last that can't be read, of those between ``since`` and the first
            entry; 0 where there is none. Of the newest, of those between them too.
    """

    top: Position
    entries: tuple[tuple[int, T], ...] = ()
    lost: bool = False
    unreadable: int = 0


class Follower(Generic[T]):
    """Follows one channel.

    Args:
        since: the last position that was had; None begins with the newest, or with as many of the
            newest as the first page has.

    Attributes:
        position: the last one that was had or, after a loss, the one to begin again from.
        asks: what comes next is to be found in history, after ``since``.
    """

    __slots__ = ("_doubts", "_fell", "_last", "_strange", "_waiting", "asks", "position")

    def __init__(self, since: Position | None):
        self.position = since
        self.asks = True
        self._doubts = False  # something old was heard: what history has may be another one
        self._fell = False  # it is
        self._last: int | None = None  # the hash of what was had at the position, if it was
        self._strange: frozenset[str] = frozenset()  # epochs that history did not know of
        self._waiting: deque[tuple[Position, T]] = deque(maxlen=WAITING)

    @property
    def since(self) -> Position | None:
        """After which position history is to be asked; None is for the newest.

        Mostly ``position``. Where that may be another publication's by now, the one before it, to
        look; where it is, a later one than there can be, so that a new epoch begins.
        """
        position = self.position
        if position is None:
            return None
        if self._fell:
            return Position(position.epoch, BEYOND)
        if self._doubts and self._last is not None:
            return Position(position.epoch, position.offset - 1)
        return position

    def hear(self, at: Position, item: T) -> bool:
        """Take what was just published.

        Args:
            at: its position.
            item: it, hashable.

        Returns:
            True where it is the next one, to be handed on now. False where it was had already, or
            waits until history was asked, which ``asks`` tells.
        """
        if not self.asks:
            epoch, offset = self.position or ("", 0)
            if at[0] == epoch and at[1] == offset + 1:
                self.position = at
                self._last = hash(item)
                return True
            self.asks = True
            if at[0] == epoch and at[1] <= offset:
                self.asks = self._doubts = self._is_strange(at, item)
                return False
        self._waiting.append((at, item))
        return False

    def _is_strange(self, at: Position, item: T) -> bool:
        """Tell of something old that it is not just what was had last, heard twice."""
        return self.position != at or self._last != hash(item)

    def interrupt(self) -> None:
        """Take note that some may not have been heard."""
        self.asks = True

    def learn(self, page: Page[T]) -> tuple[list[tuple[Position, T]], bool]:
        """Take what history has after ``since``, asked for after ``asks`` became True.

        Returns:
            What is to be handed on now, in order, and whether some before it are lost. ``asks``
            stays True where there is more to be asked for.
        """
        is_blind = self._doubts and self._can_not_look(page)
        looked = self._doubts and not page.lost and self._look_at(page)
        if self._fell and not page.lost:
            return [], False  # until history was asked after what can't be there
        before, last = self.position, self._last
        ready, lost = self._take_page(page)
        lost = lost or is_blind
        position = self.position or page.top
        self.asks = self._doubts or (not page.lost and position.offset < page.top.offset)
        waiting, self._waiting = self._waiting, deque(maxlen=WAITING)
        epoch = page.top.epoch
        known, self._strange = self._strange, frozenset(at.epoch for at, _ in waiting) - {epoch}
        for at, item in waiting:
            if self.asks or at.epoch != epoch or at > (self.position or page.top):
                # Of an epoch that history does not know when asked a second time: it has ended.
                if (at.epoch == epoch or at.epoch not in known) and self.hear(at, item):
                    ready.append((at, item))
            elif before and before.epoch == epoch and at <= before and not (looked or last is None):
                # It was old when it was heard; others the page has, or they were heard twice.
                self.asks = self._doubts = at != before or hash(item) != last
        return ready, lost

    def _can_not_look(self, page: Page[T]) -> bool:
        """Tell whether what history has at the position can't be read: it may be another one."""
        position = self.position
        return (
            position is not None and self._last is not None and page.unreadable == position.offset
        )

    def _look_at(self, page: Page[T]) -> bool:
        """Tell whether history has at the position what was had there, as far as can be known."""
        position = self.position
        if position is None or self._last is None or self._can_not_look(page):
            self._doubts = False  # there is nothing to look at
            return True
        offset, item = page.entries[0] if page.entries else (page.top.offset + 1, None)
        if offset > position.offset:
            return False  # it was asked before there was a doubt
        self._doubts, self._fell = False, offset < position.offset or hash(item) != self._last
        return True

    def _take_page(self, page: Page[T]) -> tuple[list[tuple[Position, T]], bool]:
        """Move on to the end of a page; return what is new of it, and whether some are lost."""
        before = self.position
        had = 0 if before is None else before.offset
        epoch = page.top.epoch
        if page.lost:
            # Of what is in doubt, or known to be another one, nothing was heard for sure.
            lost = self._doubts or self._fell or not self._heard_all_to(page.top)
            if lost:
                start = self._heard_up_to(page.top)
                if self._doubts and not self._fell and epoch == (before or start).epoch:
                    # That may have been heard twice, and what was had is not to come again.
                    start = Position(epoch, min(max(start.offset, had), page.top.offset))
                self.position, self._last = start, None
            self._doubts = self._fell = False
            return [], lost
        ready = [(Position(epoch, at), item) for at, item in page.entries if at > had]
        if page.unreadable > had:
            self.position, self._last = Position(epoch, page.unreadable), None
        if ready and ready[-1][0].offset > page.unreadable:
            self.position, self._last = ready[-1][0], hash(ready[-1][1])
        if before is None:
            self.position = page.top
        return ready, page.unreadable > had

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
