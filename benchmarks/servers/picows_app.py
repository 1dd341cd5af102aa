"""The peer: picows, a frame parser in Cython on the event loop's transport.

Best configuration: uvloop, a message framed in place and not copied for each receiver.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from http.cookies import SimpleCookie

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

HEADER = 14  # what picows needs in front of a message to frame it in place
channels: defaultdict[str, set[WSTransport]] = defaultdict(set)


class Echo(WSListener):
    """The sender gets it back."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            transport.send(WSMsgType.TEXT, frame.get_payload_as_memoryview())
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()


class Fanout(WSListener):
    """Everyone gets every message."""

    def __init__(self, channel: str) -> None:
        self.members = channels[channel]

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.members.add(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            buffer = bytearray(HEADER) + frame.get_payload_as_memoryview()
            for member in self.members:
                member.send_reuse_external_bytearray(WSMsgType.TEXT, buffer, HEADER)
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.members.discard(transport)


class Room(Echo):
    """Users in rooms who hardly say anything."""

    def __init__(self, channel: str, user: str) -> None:
        self.members = channels[channel]
        self.user = user

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.members.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.members.discard(transport)


def listener_for(request) -> WSListener:
    path = request.path.decode()
    if path.startswith("/ws/fanout/"):
        return Fanout(path)
    if path.startswith("/ws/room/"):
        return Room(path, SimpleCookie(request.headers.get("Cookie"))["user"].value)
    return Echo()


async def main(port: int) -> None:
    server = await ws_create_server(listener_for, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


uvloop.run(main(int(sys.argv[1])))
