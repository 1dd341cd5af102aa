"""Connections of the native transport on a pair of sockets, as if a server had given them away."""

from __future__ import annotations

import asyncio

from backchannel.transport.native import EXTENSION, Taken


class Given:
    """A server that gives its socket away."""

    def __init__(self, transport, deflates):
        self.transport = transport
        self.deflates = deflates

    def prepare(self, window):
        return self.deflates

    def take_over(self):
        return Taken(self.transport, [], b"", set())


async def take_over(hub, path, sock, *subprotocols, deflates=False):
    """Let a hub take over the server's end of a pair of sockets."""
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, sock)
    scope = {
        "type": "websocket", "path": path, "root_path": "", "query_string": b"",
        "headers": [(b"host", b"test")], "client": ("127.0.0.1", 1), "scheme": "ws",
        "server": ("127.0.0.1", 2), "subprotocols": [*subprotocols], "http_version": "1.1",
        "extensions": {EXTENSION: Given(transport, deflates)},
    }  # fmt: skip

    async def receive():
        return {"type": "websocket.connect"}

    async def send(event):
        assert event["type"] == "websocket.accept"

    await hub(scope, receive, send)
