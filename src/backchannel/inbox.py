"""What waits for its turn at one connection: messages, changes of channels, work to go on with."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from backchannel.change import Change
from backchannel.messages import Frame

if TYPE_CHECKING:
    from backchannel.callbacks import Callback

__all__ = ["Call", "Inbox", "Item", "Rest", "nothing"]

FULL: Final = 64
"""Items that may wait for a running callback before the transport stops reading."""

ROOM: Final = 16
"""Items left when it reads again."""

FULL_SIZE: Final = 256 * 1024
"""Bytes, or characters, of messages that may wait before it stops; one message always may."""

ROOM_SIZE: Final = FULL_SIZE // 4
"""What is left of them when it reads again."""


class Rest(msgspec.Struct, eq=False):
    """What is left of a piece of work once it has to wait; it has not begun.

    A Struct, as Call and Frame are: a message may need one of each, and Structs are made fastest.

    Args:
        begin: does it.
        give_up: what to do instead when the connection has ended; None where it must be done.
        size: bytes, or characters, of the message that it is for.
    """

    begin: Callable[[], Coroutine[Any, Any, Any]]
    give_up: Callable[[], object] | None = None
    size: int = 0


class Call(msgspec.Struct, eq=False):
    """An async callback for a message; its coroutine has not begun.

    Args:
        callback: it.
        coroutine: what calling it gave.
    """

    callback: Callback
    coroutine: Coroutine[Any, Any, Any]

    def give_up(self) -> None:
        """Drop it: its connection has ended."""
        self.coroutine.close()


Item = Frame | Change | Rest | Call


class Inbox:
    """A queue in which what a callback wants for its own connection comes before what came in."""

    __slots__ = ("_items", "_loop", "_news", "_room", "_size", "_wishes")

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._items: deque[Item] = deque()
        self._size = 0
        self._wishes: deque[Change] = deque()
        self._room: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._items or self._wishes)

    @property
    def is_full(self) -> bool:
        """So much waits that nothing more should be read for now."""
        return self.has(FULL, FULL_SIZE)

    def has(self, many: int, much: int) -> bool:
        """Tell whether so many items wait, or so many bytes of them."""
        return len(self._items) >= many or self._size >= much

    def put(self, item: Frame | Change | Rest) -> None:
        """Add what came in."""
        self._items.append(item)
        self._size += _size_of(item)
        self._tell(item)

    def put_first(self, rest: Item) -> None:
        """Add what is left of what was begun, before all else."""
        self._items.appendleft(rest)
        self._size += _size_of(rest)

    def wish(self, change: Change) -> None:
        """Add what a callback wants for its own connection."""
        self._wishes.append(change)
        self._tell(change)

    def take(self) -> Item:
        """Take what comes next.

        Raises:
            IndexError: nothing waits.
        """
        if self._wishes:
            return self._wishes.popleft()
        item = self._items.popleft()
        self._size -= _size_of(item)
        self._look_for_room()
        return item

    def take_change(self) -> Change | None:
        """Take the first change out of its turn; None when there is none."""
        boxes: Iterable[deque[Any]] = (self._wishes, self._items)
        for box in boxes:
            for item in box:
                if isinstance(item, Change) and item.is_waiting:
                    box.remove(item)
                    self._look_for_room()
                    return item
        return None

    def give_up(self, *, keep_messages: bool = False) -> None:
        """Give up all that has not begun, but for what must be done in any case.

        Args:
            keep_messages: True keeps what the client had sent.
        """
        waiting = [*self._wishes, *self._items]
        self._wishes.clear()
        self._items.clear()
        self._size = 0
        for item in waiting:
            if isinstance(item, Change) and not item.has_begun:
                item.settle(result=False)
            elif isinstance(item, Rest | Call) and item.give_up is not None and not keep_messages:
                item.give_up()
            elif keep_messages or not isinstance(item, str | bytes):
                self._items.append(item)
                self._size += _size_of(item)
        _settle(self._room)

    async def room(self) -> None:
        """Wait until less waits, or ``let_in`` is called."""
        if self._room is None or self._room.done():
            self._room = self._loop.create_future()
        await asyncio.shield(self._room)

    def let_in(self) -> None:
        """Let those who wait for room look again whether they have to."""
        _settle(self._room)

    def news(self) -> asyncio.Future[None]:
        """Return a future that is done when another change comes in."""
        if self._news is None or self._news.done():
            self._news = self._loop.create_future()
        return self._news

    def _look_for_room(self) -> None:
        if self._room is not None and not self.has(ROOM + 1, ROOM_SIZE + 1):
            _settle(self._room)

    def _tell(self, item: Frame | Change | Rest) -> None:
        if isinstance(item, Change):
            _settle(self._news)


def _size_of(item: Item) -> int:
    if isinstance(item, str | bytes):
        return len(item)
    return item.size if isinstance(item, Rest) else 0


def _settle(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def nothing() -> None:
    """Do nothing: what has not begun leaves nothing behind."""
