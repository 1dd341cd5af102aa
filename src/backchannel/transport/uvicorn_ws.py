"""uvicorn's WebSocket protocol, which gives its socket away when it is asked to.

HTTP, middleware and the handshake run through ASGI as always. When the hub has accepted, it takes
the socket over through an extension of the scope: nothing of uvicorn's stays but an entry in its
list of connections. Other WebSocket routes of the same app are served as before.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote

from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from backchannel.observe import without_credentials
from backchannel.transport.native import EXTENSION, Taken
from backchannel.wire import deflate
from backchannel.wire.opening import Opening, read_opening, switching

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from uvicorn._types import ASGISendEvent, WebSocketAcceptEvent, WebSocketScope

__all__ = ["NativeProtocol"]

_ENOUGH: Final = 64 * 1024
"""Bytes that a client may send before its handshake is answered; more is not read until then."""


_UNREADABLE: Final = b"This request for a WebSocket can't be read: "


class _Given:
    """Stands where uvicorn looks whether it has to close the socket when the app returns."""

    def cancel(self) -> None:
        """Do nothing."""


_GIVEN: Final = cast("TimerHandle", _Given())


class NativeProtocol(WebSocketsSansIOProtocol):
    """A connection in its handshake, and a Giver of its socket."""

    _early: bytearray | None = None
    _is_promised = False
    _agreed: str | None = None  # on which extension
    _key = _offers = ""  # of the client
    _unseen: bytes | None = None  # a request that the websockets library has not seen

    def data_received(self, data: bytes) -> None:
        """Keep what comes before the answer: who reads it is not settled until then."""
        if not self.handshake_initiated:
            if (opening := read_opening(data)) is None:
                super().data_received(data)
                if not self.handshake_initiated:  # though it is all there
                    self._refuse_unread()
            elif self._is_welcome():
                self._unseen = data
                self._ask_app(opening)
            return
        if self.handshake_complete:
            super().data_received(data)
            return
        if self._early is None:
            self._early = bytearray()
        self._early += data
        if len(self._early) > _ENOUGH:
            self.transport.pause_reading()

    def handle_connect(self, event: Request) -> None:
        """Take what the websockets library has read."""
        if self._is_welcome():
            self._key = next(iter(event.headers.get_all("Sec-WebSocket-Key")), "")
            self._offers = ", ".join(event.headers.get_all("Sec-WebSocket-Extensions"))
            super().handle_connect(event)

    def _is_welcome(self) -> bool:
        """Answer 503 above ``--limit-concurrency``, as uvicorn does for plain HTTP only."""
        limit = self.config.limit_concurrency
        if limit is None or (len(self.connections) < limit and len(self.tasks) < limit):
            return True
        self.logger.warning("Exceeded concurrency limit.")
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        self.conn.send_response(self.conn.reject(503, "Service Unavailable"))
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()
        return False

    def _ask_app(self, opening: Opening) -> None:
        """Begin to serve a request without the websockets library, as uvicorn does with it.

        What the library does for a handshake takes a fifth of the time of one.
        """
        self.handshake_initiated = True
        self.conn.accept_called = True  # else it logs a refusal as if it had been plain HTTP
        self._key, self._offers = opening.key, opening.offers
        path, _, query = opening.target.partition(b"?")
        scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": self.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": self.scheme,
            "server": self.server,
            "client": self.client,
            "root_path": self.root_path,
            "path": self.root_path + unquote(path.decode("ascii")),
            "raw_path": self.root_path.encode("ascii") + path,
            "query_string": query,
            "headers": opening.headers,
            "subprotocols": opening.subprotocols,
            "state": self.app_state.copy(),
            "extensions": {"websocket.http.response": {}},
        }
        self.scope = cast("WebSocketScope", scope)
        self.queue.put_nowait({"type": "websocket.connect"})
        task = self.loop.create_task(self.run_asgi())
        task.add_done_callback(self.on_task_complete)
        self.tasks.add(task)

    async def run_asgi(self) -> None:
        """Offer the takeover in the scope."""
        scope = cast("dict[str, Any]", self.scope)
        scope["extensions"][EXTENSION] = self
        await super().run_asgi()

    async def send(self, message: ASGISendEvent) -> None:
        """Read what came early, once the app has accepted for itself."""
        if not self.handshake_complete and self.scope["query_string"]:
            self._hide_credentials()
        if message["type"] == "websocket.accept" and self._is_asked:
            if self._is_promised:
                self._switch(message)
                return
            if self.transport.is_closing():
                return
            self._tell_library()
        await super().send(message)
        if self.handshake_complete and self._early and not self._is_promised:
            super().data_received(self._take_early())

    @property
    def _is_asked(self) -> bool:
        return not (self.disconnected or self.handshake_complete or self.initial_response)

    def _tell_library(self) -> None:
        """Let the websockets library read the request: the app keeps the connection."""
        if self._unseen is None:
            return
        self.conn.receive_data(self._unseen)
        self._unseen = None
        for event in self.conn.events_received():
            self.request = cast("Request", event)
            self.response = self.conn.accept(self.request)
            if self.response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
                return
        self._refuse_unread()
        raise RuntimeError("the websockets library does not accept what was taken for usual")

    def _refuse_unread(self) -> None:
        """Answer 400, and hang up: the library says nothing of a request that it can't read."""
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        why = self.conn.handshake_exc
        # Without its cause, which quotes the header: that may be a credential.
        self.logger.warning("a WebSocket's request can't be read: %r", why)
        body = _UNREADABLE + f"{why.__cause__ or why}\n".encode() if why else _UNREADABLE
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()

    def _switch(self, message: WebSocketAcceptEvent) -> None:
        """Write the 101; the library need not know, since the socket is given away next."""
        if self.logger.isEnabledFor(logging.INFO):
            client, path = get_client_addr(self.scope), get_path_with_query_string(self.scope)
            self.logger.info('%s - "WebSocket %s" [accepted]', client, path)
        headers = [
            (name.lower(), value)
            for name, value in (*self.default_headers, *message.get("headers", ()))
        ]
        if self._agreed is not None:
            headers.append((b"Sec-WebSocket-Extensions", self._agreed.encode()))
        if subprotocol := message.get("subprotocol"):
            headers.append((b"Sec-WebSocket-Protocol", subprotocol.encode("latin-1")))
        answer = switching(self._key, headers)
        if not self.transport.is_closing():
            self.handshake_complete = True
            self.transport.write(answer)

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
        if window is not None and self.config.ws_per_message_deflate:
            self._agreed = deflate.negotiate(self._offers, window)
        return self._agreed is not None

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
