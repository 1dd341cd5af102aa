"""Signs of life for all connections of a hub from one timer: a wheel of slots, a tick apart."""

from __future__ import annotations

import asyncio
import math
from typing import Final, Protocol

__all__ = ["Beating", "Heartbeat"]

_SLOTS: Final = 1000
"""How finely time is divided at most; whoever ends is looked for in all of them."""

_LONGEST: Final = 86_400.0
"""Seconds that stand for what never comes, such as the interval of one who wants no pings."""


class Beating(Protocol):
    """A connection that is asked for a sign of life."""

    def beat(self) -> float | None:
        """Do what is due; return the seconds until the next time, None for never."""
        ...


class Heartbeat:
    """Calls ``beat`` of each connection when it is due, at most a tick later.

    Args:
        interval: seconds between two pings of one connection.
        timeout: seconds it has to answer.

    Attributes:
        tick: seconds between two looks at who is due.
    """

    __slots__ = ("_at", "_slots", "_timer", "interval", "tick", "timeout")

    def __init__(self, interval: float, timeout: float):
        self.interval = min(interval, _LONGEST)
        self.timeout = min(timeout, _LONGEST)
        longest = max(self.interval, self.timeout)
        self.tick = max(min(1.0, interval / 10, timeout / 10), longest / _SLOTS)
        slots = math.ceil(longest / self.tick) + 2
        self._slots: list[dict[Beating, None]] = [{} for _ in range(slots)]
        self._at = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Beating) -> None:
        """Ping a connection for the first time one interval from now."""
        self._put(connection, self.interval)

    def discard(self, connection: Beating) -> None:
        """Forget a connection that has ended; whoever holds a slot would keep it alive."""
        for slot in self._slots:
            slot.pop(connection, None)

    def _put(self, connection: Beating, seconds: float) -> None:
        slot = (self._at + max(1, math.ceil(seconds / self.tick - 0.01))) % len(self._slots)
        self._slots[slot][connection] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.tick, self._turn)

    def _turn(self) -> None:
        self._timer = None
        self._at = (self._at + 1) % len(self._slots)
        due, self._slots[self._at] = self._slots[self._at], {}
        for connection in due:
            if (seconds := connection.beat()) is not None:
                self._put(connection, seconds)
        if self._timer is None and any(self._slots):
            self._timer = asyncio.get_running_loop().call_later(self.tick, self._turn)
