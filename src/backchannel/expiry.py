"""Connections whose token ends at a known time, ended by one timer for all of them.

That time is the wall clock's, as tokens have it, and the event loop's timers are not: they stand
still while a machine sleeps, and know nothing of a clock that is set. So the clock is looked at
again at least every ``LONGEST_NAP`` seconds, and nobody is ended before it says so.
"""

from __future__ import annotations

import asyncio
import heapq
from time import time
from typing import Final, Protocol

__all__ = ["LONGEST_NAP", "Expiring", "Expiry"]

LONGEST_NAP: Final = 30.0
"""Seconds after which the clock is looked at again, while anyone is waited for."""

_AT_ONCE: Final = 100
"""How many are ended in one turn of the event loop: many tokens may end in the same second."""


class Expiring(Protocol):
    """A connection that is ended at a time."""

    def expire(self) -> None:
        """End it."""
        ...


class _Entry:
    """A place in the queue; ``who`` is None when nobody waits there any more."""

    __slots__ = ("at", "who")

    def __init__(self, at: float, who: Expiring):
        self.at = at
        self.who: Expiring | None = who

    def __lt__(self, other: _Entry) -> bool:
        return self.at < other.at


class Expiry:
    """Calls ``expire`` of each connection when its time has come."""

    __slots__ = ("_entries", "_queue", "_timer")

    def __init__(self) -> None:
        self._queue: list[_Entry] = []
        self._entries: dict[Expiring, _Entry] = {}
        self._timer: asyncio.TimerHandle | None = None

    def set(self, who: Expiring, at: float | None) -> None:
        """End a connection at a time, whatever was said of it before.

        Args:
            who: the connection.
            at: seconds since the epoch; None is never.
        """
        self.discard(who)
        if at is None:
            return
        entry = self._entries[who] = _Entry(at, who)
        heapq.heappush(self._queue, entry)
        if self._queue[0] is entry:
            self._wait()

    def discard(self, who: Expiring) -> None:
        """Forget a connection; one that nobody waits for is no error."""
        entry = self._entries.pop(who, None)
        if entry is None:
            return
        entry.who = None
        if len(self._queue) > 2 * len(self._entries) + 100 or not self._entries:
            self._queue = list(self._entries.values())
            heapq.heapify(self._queue)
            if not self._queue and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        seconds = min(max(self._queue[0].at - time(), 0.0), LONGEST_NAP)
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        now = time()
        for _ in range(_AT_ONCE):
            if not self._queue or self._queue[0].at > now:
                break
            who = heapq.heappop(self._queue).who
            if who is not None:
                del self._entries[who]
                who.expire()
        if self._entries:
            self._wait()
        else:
            self._queue.clear()
