"""The native transport on a pair of sockets, where the order of events can be chosen."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tracemalloc
import zlib

import pytest
from shared import turns, until
from taken import take_over

from backchannel import Listener, fanout
from backchannel.dialect import NAME
from backchannel.observe import TRACE
from backchannel.wire import frames

MEMBERS = 200  # more than are written to between two looks at the clock


@contextlib.asynccontextmanager
async def clients(hub, path, count, *subprotocols, deflates=False):
    """The clients' ends of so many connections."""
    with contextlib.ExitStack() as stack:
        ends = []
        for _ in range(count):
            ours, theirs = socket.socketpair()
            ends.append(stack.enter_context(ours))
            ours.setblocking(False)
            await take_over(hub, path, theirs, *subprotocols, deflates=deflates)
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


@pytest.mark.parametrize(
    ("size", "least", "most"),
    [
        (1000, 64, 2_000),  # 64 wait, with one read's more, and what sockets hold
        (30_000, 9, 64),  # 256 KiB
    ],
)
async def test_who_sends_more_than_its_callback_takes_is_not_read_until_it_does(
    hub, size, least, most
):
    """What has been read is bounded; the rest waits in the kernel, and then at the client."""
    go, seen = asyncio.Event(), []

    class Slow(Listener):
        async def on_message(self, ws, message):
            seen.append(message)
            await go.wait()

    hub.add("/ws/slow", Slow)
    async with clients(hub, "/ws/slow", 1) as (end,):
        sent, waited, left = 0, 0, b""
        while waited < 50 and sent < 20_000:  # turns of the event loop in which nothing is taken
            head = b"\x81\xfe" + size.to_bytes(2) + bytes(4)
            left = left or head + b"%-*d" % (size, sent)
            try:
                left = left[end.send(left) :]
            except BlockingIOError:
                waited += 1
                await asyncio.sleep(0)
            else:
                sent, waited = sent + (not left), 0
                if sent % 16 == 0:
                    await asyncio.sleep(0)
        assert least < sent < most
        assert seen == ["0".ljust(size)]
        go.set()
        await asyncio.get_running_loop().sock_sendall(end, left)
        sent += bool(left)
        await until(lambda: len(seen) == sent)
        assert seen == [str(number).ljust(size) for number in range(sent)]


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


async def read_bytes(end, count):
    """Read so many bytes."""
    data, loop = b"", asyncio.get_running_loop()
    while len(data) < count:
        data += await asyncio.wait_for(loop.sock_recv(end, 1 << 20), 5)
    return data


def answering(kind, answer):
    """Return a listener's function that answers so, as ``def`` or ``async def``."""

    def plain(ws, message: str):
        return answer(ws)

    async def waiting(ws, message: str):
        return answer(ws)

    return plain if kind == "def" else waiting


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    "said", ["", "x", "x" * 125, "x" * 126, "x" * 70_000, "grüße", b"bytes", ["JSON"]]
)
async def test_an_answer_is_the_frame_that_sending_it_makes(hub, kind, said):
    """Short texts have a way of their own, alone in what was read and not."""
    expected = frames.message_frame('["JSON"]' if isinstance(said, list) else said)
    hub.add("/ws/returns", answering(kind, lambda ws: said))
    hub.add("/ws/sends", answering(kind, lambda ws: ws.send(said)))
    for path in ("/ws/returns", "/ws/sends"):
        async with clients(hub, path, 1) as (end,):
            for count in (1, 3):
                end.send(count * text(b"?"))
                assert await read_bytes(end, count * len(expected)) == count * expected


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_an_answer_comes_after_what_its_callback_sent(hub, kind):
    def answer(ws):
        ws.send("1")
        ws.broadcast("2", channel="all")
        ws.send("3")
        return "4"

    hub.add("/ws/{channel}", answering(kind, answer))
    async with clients(hub, "/ws/all", 1) as (end,):
        for count in (1, 3):
            end.send(count * text(b"?"))
            expected = count * b"\x81\x011\x81\x012\x81\x013\x81\x014"
            assert await read_bytes(end, len(expected)) == expected


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_an_answer_comes_after_all_that_on_open_sent(hub, kind):
    """Much of that is sent bit by bit, while messages are handled already."""

    class Talks(Listener):
        def on_open(self, ws):
            for _ in range(20):
                ws.send("x" * 30_000)

        on_message = staticmethod(answering(kind, lambda ws: "answer"))

    hub.add("/ws/talks", Talks)
    async with clients(hub, "/ws/talks", 1) as (end,):
        end.send(text(b"?"))
        await asyncio.sleep(0)
        answer = b"\x81\x06answer"
        data = await read_bytes(end, 20 * 30_004 + len(answer))
        assert data.index(b"answer") == len(data) - 6


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_an_answer_of_who_closed_is_not_sent(hub, kind):
    def answer(ws):
        ws.close(4000)
        return "too late"

    hub.add("/ws/closes", answering(kind, answer))
    async with clients(hub, "/ws/closes", 1) as (end,):
        end.send(2 * text(b"?"))
        assert await read_bytes(end, 4) == b"\x88\x02\x0f\xa0"
        end.send(b"\x88\x80\0\0\0\0")
        assert await read(end) == []


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_an_answer_that_is_no_utf_8_is_told_on_error(hub, kind, caplog):
    """The log has where it failed, and not what it was, which may be what a terminal can't show."""
    told = []

    class Wrong(Listener):
        on_message = staticmethod(answering(kind, lambda ws: "secret \ud800"))

        def on_error(self, ws, error):
            told.append(type(error).__name__)

    hub.add("/ws/wrong", Wrong)
    async with clients(hub, "/ws/wrong", 1) as (end,):
        end.send(text(b"?"))
        await until(lambda: told)
    assert told == ["UnsendableMessage"]
    assert "raised UnsendableMessage" in caplog.text
    assert "secret" not in caplog.text


async def test_reading_pauses_although_each_read_ends_with_what_needs_no_turn(hub):
    """As a ping of the dialect, which is answered at once."""
    go, seen = asyncio.Event(), []

    class Slow(Listener):
        async def on_message(self, ws, message):
            seen.append(message)
            await go.wait()

    hub.add("/ws/slow", Slow)
    async with clients(hub, "/ws/slow", 1, NAME) as (end,):
        end.send(text(b'{"type":"hello","v":1}'))
        data = b'{"type":"message","data":"%s"}' % (b"x" * 60_000)
        frame = b"\x81\xfe" + len(data).to_bytes(2) + bytes(4) + data + text(b'{"type":"ping"}')
        sent, waited, left = 0, 0, b""
        while waited < 50 and sent < 200:
            left = left or frame
            try:
                left = left[end.send(left) :]
            except BlockingIOError:
                waited += 1
                await asyncio.sleep(0)
            else:
                sent, waited = sent + (not left), 0
                await asyncio.sleep(0)
        assert 5 < sent < 40
        go.set()
        await asyncio.get_running_loop().sock_sendall(end, left)
        await until(lambda: len(seen) == sent + bool(left))


@pytest.mark.parametrize("rest", [b"", b"\x81"])  # the beginning of a frame that comes later
async def test_what_one_read_brought_is_inflated_only_when_there_is_room_for_it(hub, rest):
    go, seen = asyncio.Event(), []

    class Slow(Listener):
        async def on_message(self, ws, message):
            seen.append(message)
            await go.wait()

    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(bytes(200_000)) + packer.flush(zlib.Z_SYNC_FLUSH)
    data = data[:-4]
    frame = b"\xc2\xfe" + len(data).to_bytes(2) + bytes(4) + data
    hub.add("/ws/slow", Slow)
    async with clients(hub, "/ws/slow", 1, deflates=True) as (end,):
        tracemalloc.start()
        end.send(50 * frame + b"\x89\x80\0\0\0\0" + frame + rest)
        await until(lambda: seen)
        await turns()
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
        tracemalloc.stop()
        assert len(seen) == 1
        go.set()
        end.send((text(b"last") if not rest else text(b"last")[1:]) + text(b"one more"))
        await until(lambda: len(seen) == 53)
        assert seen == 51 * [bytes(200_000)] + ["last", "one more"]
        answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(end, 99), 5)
        assert answer == b"\x8a\0"  # its ping's
