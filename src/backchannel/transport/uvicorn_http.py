"""uvicorn's HTTP protocols, which do not wait for ever for a request, nor read all at once.

uvicorn has no limit for how long a client takes to send its request line and headers, so that a
slow one, or thousands that say nothing at all, hold their connections for good.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar, Final, cast

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from backchannel.transport.pace import Door, door_of

__all__ = ["Patience", "PatientH11", "PatientHttp"]

LAST_REQUEST: Final = 0.5
"""Seconds that a request may still be on its way to a server that ends, from one it let in."""

_TIMEOUT = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 25\r\nconnection: close\r\n\r\nThe request came too late"
)


class Patience(asyncio.Protocol):
    """What is added to one of uvicorn's HTTP protocols.

    Attributes:
        header_timeout: seconds a client has for the request line and headers of each request,
            from the connection or from their first byte on.
        owns_process: the process is there for this server alone, so that its garbage collector
            may be told to wait while newcomers do.
    """

    header_timeout: ClassVar[float] = 10.0
    owns_process: ClassVar[bool] = False

    # uvicorn's own attributes
    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    logger: logging.Logger
    server_state: ServerState
    cycle: Any

    _door: Door
    _has_spoken = False
    _leaves = False
    _unread = 0  # pieces of its request that wait for their turn: for us, and not it for them

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the client's time."""
        super().connection_made(transport)
        self._door = door_of(
            self.server_state, self.loop, self.header_timeout, owns_process=self.owns_process
        )
        self._door.let_in(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._door.deadlines.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read at once what belongs to a request that is served, a new one when it has its turn."""
        deadlines = self._door.deadlines
        if self.cycle is None or self.cycle.response_complete:
            deadlines.add(self)
        if self in deadlines:
            self._has_spoken = True
            self._unread += 1
            self._door.turns.take(self._read, data)
        else:
            super().data_received(data)

    def _read(self, data: bytes) -> None:
        self._unread -= 1
        if self.transport.is_closing():
            return
        protocol, before = self.transport.get_protocol(), self.cycle
        if protocol is not self:  # what waited behind the upgrade
            cast("asyncio.Protocol", protocol).data_received(data)
            return
        super().data_received(data)
        protocol = self.transport.get_protocol()
        if protocol is not self:
            self._give_way(cast("asyncio.Protocol", protocol), data)
        elif self.cycle is not before:
            self._door.deadlines.discard(self)
            if self._leaves:
                self._hang_up()

    def _give_way(self, upgraded: asyncio.Protocol, data: bytes) -> None:
        """Leave the connection to the WebSocket protocol, and nothing behind."""
        self._door.deadlines.discard(self)
        vars(self).pop("parser", None)  # it and this object hold each other
        # uvicorn forgets what came in one packet with the request.
        if self.cycle is None and (rest := data.partition(b"\r\n\r\n")[2]):
            upgraded.data_received(rest)
        if self._leaves:
            self.loop.call_later(LAST_REQUEST, _end, self.transport)

    def shutdown(self) -> None:
        """Hang up, as uvicorn asks at its end; whose request is on its way is answered first.

        A client that was let in a moment ago would else see its connection end without a word.
        """
        if self in self._door.deadlines:
            self._leaves = True
            self.loop.call_later(LAST_REQUEST, self._leave)
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        cast("Any", super()).shutdown()

    def _leave(self) -> None:
        if self in self._door.deadlines:
            self._hang_up()

    def too_late(self) -> None:
        """Hang up on a client that does not come to the point."""
        if self.transport.is_closing():
            return
        if self._unread:
            self._door.deadlines.add(self)
            return
        if self._has_spoken:
            self.transport.write(_TIMEOUT)
        self.transport.close()


def _end(transport: asyncio.Transport) -> None:
    """End a WebSocket that came at the very end, unless it was refused; a hub may have it now."""
    if not transport.is_closing():
        cast("Any", transport.get_protocol()).shutdown()


class PatientH11(Patience, H11Protocol):
    """uvicorn's ``h11`` protocol with patience."""


def _best() -> type[Patience]:
    """Return what uvicorn's ``auto`` is, with patience."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: PLC0415
    except ImportError:  # a Python without httptools
        return PatientH11

    class PatientHttpTools(Patience, HttpToolsProtocol):
        """uvicorn's ``httptools`` protocol with patience."""

    return PatientHttpTools


PatientHttp: type[Patience] = _best()
