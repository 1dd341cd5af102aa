"""What all connections of one uvicorn share before their handshake is done: time and turns.

A client may take so long to send its request, and the requests of one turn of the event loop may
take so long to read; what is left waits for the next turn, so that a storm of newcomers does not
hold up those who are connected.
"""

from __future__ import annotations

import asyncio
import gc
import math
from collections import deque
from collections.abc import Callable, Sized
from time import perf_counter
from typing import Final, Protocol
from weakref import WeakKeyDictionary

__all__ = ["CROWD", "SLICE", "Deadlines", "Door", "Truce", "Turns", "door_of"]

SLICE: Final = 0.001
"""Seconds of one turn of the event loop that requests may take to be read; their tasks come on
top, and take about as long."""

CROWD: Final = 32
"""Connections that have not sent their request yet; from more on, a crowd comes in."""

RUSH: Final = 50
"""Newcomers within a lull, however soon each is read; from more on, a crowd comes in."""

_LULL: Final = 1.0
"""Seconds without a crowd, after which it is in."""


class Late(Protocol):
    """A connection that has a deadline."""

    def too_late(self) -> None:
        """End, since the deadline has passed."""
        ...


class Deadlines:
    """The same time for each connection, with one timer for all: the first that is due sets it.

    Args:
        loop: the server's event loop.
        seconds: how long each has.
    """

    __slots__ = ("_due", "_loop", "_seconds", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float):
        self._loop = loop
        self._seconds = seconds
        self._due: dict[Late, float] = {}  # in the order of their deadlines
        self._timer: asyncio.TimerHandle | None = None

    def __contains__(self, connection: Late) -> bool:
        return connection in self._due

    def __len__(self) -> int:
        return len(self._due)

    def add(self, connection: Late) -> None:
        """Give a connection its time, from now on; one that has a deadline keeps it."""
        if connection not in self._due:
            self._due[connection] = self._loop.time() + self._seconds
            if self._timer is None:
                self._timer = self._loop.call_later(self._seconds, self._look)

    def discard(self, connection: Late) -> None:
        """Forget a connection: it was in time, or is gone."""
        self._due.pop(connection, None)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._due:
            connection, due = next(iter(self._due.items()))
            if due > now:
                self._timer = self._loop.call_at(due, self._look)
                return
            del self._due[connection]
            connection.too_late()


class Turns:
    """Reads requests in the order they came, in slices: no turn is held up longer than that.

    Args:
        loop: the server's event loop.
        slice: seconds of one turn.
    """

    __slots__ = ("_is_due", "_loop", "_slice", "_spent", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, slice: float = SLICE):  # noqa: A002 - it is one
        self._loop = loop
        self._slice = slice
        self._spent = 0.0
        self._is_due = False
        self._waiting: deque[tuple[Callable[[bytes], None], bytes]] = deque()

    def take(self, read: Callable[[bytes], None], data: bytes) -> None:
        """Call ``read(data)``, now or in one of the next turns."""
        if self._waiting or self._spent >= self._slice:
            self._waiting.append((read, data))
        else:
            self._read(read, data)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        self._is_due = False
        self._spent = 0.0
        try:
            while self._waiting and self._spent < self._slice:
                self._read(*self._waiting.popleft())
        finally:
            if self._waiting:
                self._is_due = True
                self._loop.call_soon(self._next)

    def _read(self, read: Callable[[bytes], None], data: bytes) -> None:
        began = perf_counter()
        try:
            read(data)
        finally:
            self._spent += perf_counter() - began


class Truce:
    """No full garbage collection while a crowd comes in, for a while.

    A full one walks all that lives: it holds up everyone for a tenth of a second and more when
    there are ten thousand connections, and comes again and again while their number grows. The
    collections of young objects go on.

    Args:
        loop: the server's event loop.
        newcomers: who has not sent a request yet.
        patience: seconds that a full collection is put off at most; then it has as long.
    """

    __slots__ = (
        "_before", "_began", "_came", "_counts_from", "_loop", "_newcomers", "_patience", "_seen",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, newcomers: Sized, patience: float = 30.0):
        self._loop = loop
        self._newcomers = newcomers
        self._patience = patience
        self._before: tuple[int, int, int] | None = None
        self._began = -math.inf
        self._seen = 0.0
        self._came = 0
        self._counts_from = -math.inf

    def keep(self) -> None:
        """Take note of a newcomer; put the full collection off when there is a crowd of them."""
        now = self._loop.time()
        if now - self._counts_from > _LULL:
            self._counts_from, self._came = now, 0
        self._came += 1
        if self._came <= RUSH and len(self._newcomers) <= CROWD:
            return
        self._seen = now
        if self._before is None and now - self._began > 2 * self._patience:
            self._began = now
            self._before = gc.get_threshold()
            gc.set_threshold(*self._before[:2], 1_000_000)
            self._loop.call_later(_LULL, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if len(self._newcomers) > CROWD:
            self._seen = now
        if now - self._seen < _LULL and now - self._began < self._patience:
            self._loop.call_later(_LULL, self._look)
        elif self._before is not None:
            if now - self._began < self._patience:
                self._began = -math.inf  # the next crowd has a whole one
            gc.set_threshold(*self._before)
            self._before = None


class Door:
    """What the connections of one server share.

    Args:
        loop: the server's event loop.
        seconds: how long a client may take to send its request.
        owns_process: the process is there for this server alone; so is its garbage collector.
    """

    __slots__ = ("deadlines", "truce", "turns")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, *, owns_process: bool):
        self.deadlines = Deadlines(loop, seconds)
        self.turns = Turns(loop)
        self.truce = Truce(loop, self.deadlines) if owns_process else None

    def let_in(self, connection: Late) -> None:
        """Start the time of a connection that has just come."""
        self.deadlines.add(connection)
        if self.truce is not None:
            self.truce.keep()


_doors: WeakKeyDictionary[object, Door] = WeakKeyDictionary()


def door_of(
    server: object, loop: asyncio.AbstractEventLoop, seconds: float, *, owns_process: bool = False
) -> Door:
    """Return the door of a server, the same for all its connections.

    Args:
        server: what stands for one server: uvicorn's ServerState.
        loop: its event loop.
        seconds: how long a client may take to send its request.
        owns_process: the process is there for this server alone.
    """
    door = _doors.get(server)
    if door is None:
        door = _doors[server] = Door(loop, seconds, owns_process=owns_process)
    return door
