"""What was received and waits for the application: bounded, in bytes, for all streams together."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final, Generic, TypeVar

__all__ = ["LOG", "Ended", "Stream", "Unread"]

LOG: Final = logging.getLogger("backchannel.client")

T = TypeVar("T")


class Ended(Exception):  # noqa: N818 - no error: a sign
    """A stream has nothing more."""


class Unread:
    """How much waits in all streams of a client, and when the client may read on.

    Args:
        limit: bytes that may wait; the frame that goes over it is kept too.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.used = 0
        self.taken = 0
        self.is_lifted = False
        self._room: asyncio.Future[None] | None = None

    def add(self, size: int) -> None:
        """Count what begins to wait."""
        self.used += size

    def take(self, size: int) -> None:
        """Count what was taken, or thrown away."""
        self.used -= size
        self.taken += 1
        if self.used <= self.limit:
            self._go_on()

    def lift(self) -> None:
        """Hold nothing up any more: nobody will read what comes."""
        self.is_lifted = True
        self._go_on()

    @property
    def is_full(self) -> bool:
        """More waits than may."""
        return self.used > self.limit and not self.is_lifted

    async def room(self, seconds: float) -> bool:
        """Wait until there is room again.

        Returns:
            False where nothing at all was taken for so many seconds.
        """
        while self.is_full:
            taken = self.taken
            self._room = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(seconds):
                    await self._room
            except TimeoutError:
                if self.taken == taken:
                    return False
            finally:
                self._room = None
        return True

    def _go_on(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)


class Stream(Generic[T]):
    """What waits for one reader, or several: each item goes to one of them.

    Until somebody has asked for it, it keeps the newest and drops the oldest; from then on it drops
    nothing, and the client stops reading from its socket while too much waits.

    Args:
        name: what it is called in the log.
        unread: where it counts.
        loose: bytes that it may have while nobody has asked for it.

    Attributes:
        is_wanted: somebody has asked for it.
        dropped: items that were dropped before that.
    """

    def __init__(self, name: str, unread: Unread, loose: int):
        self.name = name
        self.is_wanted = False
        self.dropped = 0
        self._unread, self._loose = unread, loose
        self._items: deque[tuple[T, int]] = deque()
        self._size = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._end: BaseException | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_ended(self) -> bool:
        """Nothing is added any more."""
        return self._end is not None

    def put(self, item: T, size: int) -> None:
        """Add an item of so many bytes; does nothing where the stream has ended."""
        if self._end is not None:
            return
        self._items.append((item, size))
        self._size += size
        self._unread.add(size)
        while not self.is_wanted and self._size > self._loose and len(self._items) > 1:
            self._pop()
            self.dropped += 1
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing follows what is there; readers then get the error, or Ended."""
        if self._end is None:
            self._end = error or Ended()
            self._unread.take(self._size)  # it grows no more, and need hold nothing up
            while self._waiting:
                self._wake()

    def clear(self) -> None:
        """Forget what waits."""
        while self._items:
            self._pop()

    async def get(self) -> T:
        """Return the next item when there is one; who is cancelled meanwhile has taken none.

        Raises:
            Ended: there is none any more; or what ``end`` was told.
        """
        self.is_wanted = True
        while not self._items:
            if self._end is not None:
                raise self._end.with_traceback(None)
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            try:
                await waiting
            except asyncio.CancelledError:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)
                elif self._items:
                    self._wake()  # it was told of an item that it does not take
                raise
        return self._pop()

    def _pop(self) -> T:
        item, size = self._items.popleft()
        self._size -= size
        if self._end is None:
            self._unread.take(size)
        return item

    def _wake(self) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return
