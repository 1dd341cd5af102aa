"""The native transport on a pair of sockets, where the order of events can be chosen."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from shared import until
from taken import take_over

from backchannel import Listener, fanout
from backchannel.observe import TRACE

MEMBERS = 200  # more than are written to between two looks at the clock


@contextlib.asynccontextmanager
async def clients(hub, path, count):
    """The clients' ends of so many connections."""
    with contextlib.ExitStack() as stack:
        ends = []
        for _ in range(count):
            ours, theirs = socket.socketpair()
            ends.append(stack.enter_context(ours))
            ours.setblocking(False)
            await take_over(hub, path, theirs)
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


async def test_who_sends_more_than_its_callback_takes_is_not_read_until_it_does(hub):
    """What has been read is bounded; the rest waits in the kernel, and then at the client."""
    go, seen = asyncio.Event(), []

    class Slow(Listener):
        async def on_message(self, ws, message):
            seen.append(message)
            await go.wait()

    hub.add("/ws/slow", Slow)
    async with clients(hub, "/ws/slow", 1) as (end,):
        sent, waited = 0, 0
        while waited < 50 and sent < 20_000:  # turns of the event loop in which nothing is taken
            try:
                end.send(b"\x81\xfe\x03\xe8\0\0\0\0" + b"%-1000d" % sent)
            except BlockingIOError:
                waited += 1
                await asyncio.sleep(0)
            else:
                sent, waited = sent + 1, 0
                if sent % 16 == 0:
                    await asyncio.sleep(0)
        assert 64 < sent < 2_000  # 64 wait, with one read's more, and what sockets hold
        assert seen == ["0".ljust(1000)]
        go.set()
        await until(lambda: len(seen) == sent)
        assert seen == [str(number).ljust(1000) for number in range(sent)]


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
