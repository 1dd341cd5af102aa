"""uvicorn's door to the native transport: ``--ws backchannel.transport.uvicorn:Protocol``.

HTTP, middleware and the handshake run through ASGI as always. When the hub has accepted, it takes
the socket over through an extension of the scope: nothing of uvicorn's stays but an entry in its
list of connections. Other WebSocket routes of the same app are served as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from backchannel.transport.native import EXTENSION, Taken

if TYPE_CHECKING:
    from websockets.http11 import Request

    from backchannel.messages import Frame

__all__ = ["Protocol"]


class Protocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, which gives its socket away when it is asked to."""

    def handle_connect(self, event: Request) -> None:
        """Offer the takeover in the scope."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            scope: dict[str, Any] = dict(self.scope)
            scope["extensions"][EXTENSION] = self

    def prepare(self) -> None:
        """Agree on no compression, before the 101 is sent: the native transport has none."""
        self.response.headers.pop("Sec-WebSocket-Extensions", None)

    def take_over(self) -> Taken:
        """Give the socket away, in the turn that sent the 101."""
        self.stop_keepalive()
        # What keeps run_asgi from closing the transport when the app returns.
        self.close_timer = self.loop.call_later(0, _nothing)
        self.connections.discard(self)
        if self.read_paused:
            self.transport.resume_reading()
        early: list[Frame] = []
        while not self.queue.empty():
            event: Any = self.queue.get_nowait()
            if event["type"] == "websocket.receive":
                early.append(event["text"] if "text" in event else event["bytes"])
        connections: set[Any] = self.connections
        return Taken(self.transport, early, bytes(self.conn.reader.buffer), connections)


def _nothing() -> None:
    """Do nothing."""
