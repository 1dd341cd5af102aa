"""The native transport on a pair of sockets, where the order of events can be chosen."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from backchannel import Listener, fanout
from backchannel.observe import TRACE
from backchannel.transport.native import EXTENSION, Taken

MEMBERS = 200  # more than are written to between two looks at the clock


class Given:
    """A server that gives its socket away."""

    def __init__(self, transport):
        self.transport = transport

    def prepare(self, window):
        return False

    def take_over(self):
        return Taken(self.transport, [], b"", set())


@contextlib.asynccontextmanager
async def clients(hub, path, count):
    """The clients' ends of so many connections."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        ends = []
        for _ in range(count):
            ours, theirs = socket.socketpair()
            ends.append(stack.enter_context(ours))
            ours.setblocking(False)
            transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, theirs)
            scope = {
                "type": "websocket", "path": path, "root_path": "", "query_string": b"",
                "headers": [(b"host", b"test")], "client": ("127.0.0.1", 1), "scheme": "ws",
                "server": ("127.0.0.1", 2), "subprotocols": [], "http_version": "1.1",
                "extensions": {EXTENSION: Given(transport)},
            }  # fmt: skip

            async def receive():
                return {"type": "websocket.connect"}

            async def send(event):
                assert event["type"] == "websocket.accept"

            await hub(scope, receive, send)
        yield ends


async def read(end):
    """Read to the end; returns payloads of frames, all of them short."""
    data, loop = b"", asyncio.get_running_loop()
    while chunk := await asyncio.wait_for(loop.sock_recv(end, 4096), 5):
        data += chunk
    payloads = []
    while data:
        payloads.append(data[2 : 2 + data[1]])
        data = data[2 + data[1] :]
    return payloads


@pytest.mark.parametrize("code", [1000, 4001, 4002])
async def test_what_comes_before_the_end_has_no_gap_however_long_writing_takes(
    hub, monkeypatch, code
):
    """The end comes while what was sent before is being written, a slice to a turn."""
    monkeypatch.setattr(fanout, "SLICE", 0.0)
    hub.add("/ws/{channel}", Listener)
    async with clients(hub, "/ws/all", MEMBERS) as ends:
        members = list(hub.roster.everyone)
        hub.broadcast("all", "1")
        await asyncio.sleep(0)  # the first slice is written
        hub.broadcast("all", "2")
        for ws in members[-3:]:
            ws.close(code)
        for end in ends[-3:]:
            if code == 1000:
                end.send(b"\x88\x80\0\0\0\0")  # it answers, so that nobody waits for that
            assert await read(end) == [b"1", b"2", code.to_bytes(2)]


@pytest.mark.parametrize("said", [b"", (1000).to_bytes(2), (4001).to_bytes(2)])
async def test_a_client_that_closes_and_goes_on_reading_gets_all_and_its_answer(hub, said):
    """Whatever code it gives, none at all too, which is told as 1005."""
    hub.add("/ws/{channel}", Listener)
    async with clients(hub, "/ws/all", 1) as (end,):
        hub.broadcast("all", b"x" * 900_000)  # more than the sockets hold, less than max_outbox
        end.send(bytes([0x88, 0x80 | len(said), 0, 0, 0, 0]) + said)
        await asyncio.sleep(0.05)  # it comes meanwhile; nothing tells
        data, loop = b"", asyncio.get_running_loop()
        while chunk := await asyncio.wait_for(loop.sock_recv(end, 1 << 20), 5):
            data += chunk
        answer = bytes([0x88, len(said)]) + said
        assert (len(data), data[-len(answer) :]) == (10 + 900_000 + len(answer), answer)


def text(message):
    return bytes([0x81, 0x80 | len(message), 0, 0, 0, 0]) + message


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_messages_are_logged_a_second_after_that_was_turned_on(
    hub, caplog, monkeypatch, kind
):
    """Also where nothing but answers is sent, which leave before a turn ends."""

    async def answer(ws, message: str):
        return message

    hub.add("/ws/echo", answer if kind == "async def" else lambda ws, message: message)
    loop = asyncio.get_running_loop()
    async with clients(hub, "/ws/echo", 1) as (end,):
        for message in (b"before", b"after"):
            end.send(text(message))
            await asyncio.wait_for(loop.sock_recv(end, 4096), 5)
            caplog.set_level("DEBUG", "backchannel.connection")
            monkeypatch.setattr(TRACE, "until", 0.0)  # as if the second were over
    told = [line for line in caplog.messages if " send " in line]
    assert len(told) == 1
    assert told[0].endswith("send 'after'")
