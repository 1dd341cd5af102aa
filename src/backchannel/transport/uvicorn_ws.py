"""uvicorn's WebSocket protocol, which gives its socket away when it is asked to.

HTTP, middleware and the handshake run through ASGI as always. When the hub has accepted, it takes
the socket over through an extension of the scope: nothing of uvicorn's stays but an entry in its
list of connections. Other WebSocket routes of the same app are served as before.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.http11 import MAX_NUM_HEADERS, Request
from websockets.protocol import State

from backchannel.observe import without_credentials
from backchannel.transport.native import EXTENSION, Taken
from backchannel.wire import deflate

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from uvicorn._types import ASGISendEvent, WebSocketAcceptEvent

__all__ = ["NativeProtocol"]

_ORDINARY: Final = 8192
"""Bytes of a request in which no line can be over a limit of the websockets library."""

_BODY: Final = {"content-length", "transfer-encoding"}

_ENOUGH: Final = 64 * 1024
"""Bytes that a client may send before its handshake is answered; more is not read until then."""


def _request(data: bytes) -> Request | None:
    """Read a request that uvicorn has read and checked already; None where that is not all.

    uvicorn writes it anew for the websockets library to read it again, which takes a tenth of the
    time of a handshake.
    """
    if not data.startswith(b"GET /") or not data.endswith(b"\r\n\r\n") or len(data) > _ORDINARY:
        return None
    first, *lines = data[:-4].decode("latin-1").split("\r\n")
    path, _, protocol = first[4:].partition(" ")
    if protocol != "HTTP/1.1" or len(lines) > MAX_NUM_HEADERS or not path.isascii():
        return None
    headers = Headers()
    for line in lines:
        name, separator, value = line.partition(": ")
        if not separator or name in _BODY:
            return None
        headers.set_insecure(name, value.strip(" \t"))
    return Request(path, headers)


class _Given:
    """Stands where uvicorn looks whether it has to close the socket when the app returns."""

    def cancel(self) -> None:
        """Do nothing."""


_GIVEN: Final = cast("TimerHandle", _Given())


class NativeProtocol(WebSocketsSansIOProtocol):
    """A connection in its handshake, and a Giver of its socket."""

    _early: bytearray | None = None
    _is_promised = False
    _is_behind = False  # websockets' parser has not seen the request

    def handle_connect(self, event: Request) -> None:
        """Answer 503 above ``--limit-concurrency``, as uvicorn does for plain HTTP only."""
        limit = self.config.limit_concurrency
        if limit is None or (len(self.connections) < limit and len(self.tasks) < limit):
            super().handle_connect(event)
            return
        self.logger.warning("Exceeded concurrency limit.")
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        self.conn.send_response(self.conn.reject(503, "Service Unavailable"))
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()

    async def run_asgi(self) -> None:
        """Offer the takeover in the scope."""
        scope = cast("dict[str, Any]", self.scope)
        scope["extensions"][EXTENSION] = self
        await super().run_asgi()

    def data_received(self, data: bytes) -> None:
        """Keep what comes before the answer: who reads it is not settled until then."""
        if not self.handshake_initiated:
            if (request := _request(data)) is None:
                super().data_received(data)
            else:
                self._is_behind = True
                self.handle_connect(request)
            return
        if self.handshake_complete:
            super().data_received(data)
            return
        if self._early is None:
            self._early = bytearray()
        self._early += data
        if len(self._early) > _ENOUGH:
            self.transport.pause_reading()

    async def send(self, message: ASGISendEvent) -> None:
        """Read what came early, once the app has accepted for itself."""
        if not self.handshake_complete and self.scope["query_string"]:
            self._hide_credentials()
        if self._is_promised and message["type"] == "websocket.accept" and not self.disconnected:
            self._switch(message)
            return
        await super().send(message)
        if self._is_promised or not self.handshake_complete:
            return
        if self._is_behind and self.conn.state is State.OPEN:
            self._is_behind = False
            self.conn.parser.close()
            self.conn.parser = self.conn.parse()  # of frames, since it is open
            next(self.conn.parser)
        if self._early:
            super().data_received(self._take_early())

    def _switch(self, message: WebSocketAcceptEvent) -> None:
        """Write the 101; the library need not know, since the socket is given away next."""
        if self.logger.isEnabledFor(logging.INFO):
            client, path = get_client_addr(self.scope), get_path_with_query_string(self.scope)
            self.logger.info('%s - "WebSocket %s" [accepted]', client, path)
        headers = self.response.headers
        del headers["Date"]
        for name, value in [*self.default_headers, *message.get("headers", ())]:
            headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        if subprotocol := message.get("subprotocol"):
            headers["Sec-WebSocket-Protocol"] = subprotocol
        if not self.transport.is_closing():
            self.handshake_complete = True
            self.transport.write(self.response.serialize())

    def _hide_credentials(self) -> None:
        """Keep tickets and tokens out of the line that uvicorn writes of this handshake.

        A ticket is used up by then, unless the handshake was refused for its origin. The app has
        a scope of its own, with the query as it came.
        """
        came = self.scope["query_string"].decode("ascii")
        if (shown := without_credentials(came)) != came:
            self.scope = {**self.scope, "query_string": shown.encode("ascii")}

    def prepare(self, window: int | None) -> bool:
        """Agree on our compression instead of the server's own, before the 101 is sent."""
        self._is_promised = True
        self.conn.extensions = []
        self.response.headers.pop("Sec-WebSocket-Extensions", None)
        if window is None or not self.config.ws_per_message_deflate:
            return False
        offers = ", ".join(self.request.headers.get_all("Sec-WebSocket-Extensions"))
        agreed = deflate.negotiate(offers, window)
        if agreed is not None:
            self.response.headers["Sec-WebSocket-Extensions"] = agreed
        return agreed is not None

    def take_over(self) -> Taken:
        """Give the socket away, in the turn that sent the 101, and let go of all else."""
        self.stop_keepalive()
        self.handshake_complete = True  # also where the client has just gone, which is no error
        self.close_timer = _GIVEN
        self.connections.discard(self)
        scope = cast("dict[str, Any]", self.scope)
        scope["extensions"].pop(EXTENSION, None)
        self.conn.parser.close()  # it and the connection hold each other
        early = self._take_early()
        return Taken(self.transport, [], early, cast("set[Any]", self.connections))

    def _take_early(self) -> bytes:
        early, self._early = bytes(self._early or b""), None
        if len(early) > _ENOUGH:
            self.transport.resume_reading()
        return early
