"""Before a native socket whose client may send only so much: counts bytes, and stops reading."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from backchannel.guard import Metered

if TYPE_CHECKING:
    from backchannel.dispatch import Dispatch
    from backchannel.transport.native import NativeSocket, Taken

__all__ = ["Meter", "begin"]

_AFTERWARDS: Final = 64 * 1024
"""Bytes that are read once the connection has ended: its client's answer may be among them."""


class Meter(asyncio.Protocol):
    """The transport's protocol in the place of a socket, to which it passes on all that it lets by.

    Bytes are counted before anything reads them, so that what never becomes a message counts too.
    Who goes on sending after the end is not read any more: it has to wait, and its close frame
    reaches it, which cutting it off at once would prevent.

    Args:
        socket: the connection's socket.
        dispatch: the connection's dispatch.
        transport: the socket's transport.
    """

    __slots__ = ("_dispatch", "_left", "_socket", "_transport")

    def __init__(self, socket: NativeSocket, dispatch: Metered, transport: asyncio.Transport):
        self._socket = socket
        self._dispatch = dispatch
        self._transport = transport
        self._left = _AFTERWARDS

    def data_received(self, data: bytes) -> None:
        """Count what came, and pass it on."""
        self._dispatch.take_bytes(len(data))
        if self._dispatch.ws.reason is not None:
            self._left -= len(data)
            if self._left < 0:
                self._transport.pause_reading()  # until close_timeout ends it
                return
        self._socket.data_received(data)

    def eof_received(self) -> None:
        """Pass it on."""
        self._socket.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self._socket.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        self._socket.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._socket.resume_writing()


def begin(socket: NativeSocket, dispatch: Dispatch, taken: Taken) -> None:
    """Start a connection's life, with a meter before its socket where there is something to count.

    Args:
        socket: its socket.
        dispatch: its dispatch.
        taken: what the server gave away.
    """
    socket.begin(dispatch, taken)
    if isinstance(dispatch, Metered) and dispatch.is_rated:
        taken.transport.set_protocol(Meter(socket, dispatch, taken.transport))
