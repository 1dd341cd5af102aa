"""Clients that want too much, on real servers: they are ended or refused, and others are served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

NATIVE = (
    "--ws backchannel.transport.uvicorn:Protocol --http backchannel.transport.uvicorn:HttpProtocol"
)
COMMANDS = {
    "portable-asyncio": "--ws websockets-sansio --loop asyncio",
    "portable-uvloop": "--ws websockets-sansio --loop uvloop",
    "native-asyncio": f"{NATIVE} --loop asyncio",
    "native-uvloop": f"{NATIVE} --loop uvloop",
}
NATIVE_ONLY = pytest.mark.parametrize("serving", ["native-asyncio", "native-uvloop"], indirect=True)
PATIENCE = 15.0


@pytest.fixture(params=COMMANDS)
def serving(start, request):
    """Start the server with some settings: ``serving(max_messages_per_second=5)``."""

    def start_with(**settings):
        # uvicorn itself would believe what 127.0.0.1 says in X-Forwarded-For.
        command = (
            f"uvicorn limited:hub --port {{port}} --no-proxy-headers {COMMANDS[request.param]}"
        )
        return start(request.param, command, env={"SETTINGS": json.dumps(settings)})

    return start_with


async def status(server, path="/ws/echo", **options):
    """Shake hands and close; return 101 or the response that refuses."""
    try:
        async with server.connect(path, **options):
            return 101
    except InvalidStatus as refused:
        return refused.response


async def flood(client, data):
    """Write the same bytes until the close frame comes; return its code.

    On the native transport one that goes on and on is cut off in the end.
    """

    async def write():
        while True:
            await client.write(data)
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    code = await client.close_code()
    if client.server.kind != "native":
        writing.cancel()
    done, _ = await asyncio.wait({writing}, timeout=PATIENCE)
    assert done
    assert writing.cancelled() or isinstance(writing.exception(), OSError)
    return code


@contextlib.asynccontextmanager
async def served(server):
    """Another client all the while: it is answered, and without much delay."""
    loop, slowest = asyncio.get_running_loop(), 0.0

    async def ask():
        nonlocal slowest
        async with server.connect("/ws/echo") as client:
            while True:
                began = loop.time()
                await client.send("?")
                await client.recv()
                slowest = max(slowest, loop.time() - began)
                await asyncio.sleep(0.1)  # no faster than the limits allow

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0.3)
    yield
    await asyncio.sleep(0.3)
    assert not asking.done(), asking.exception()
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    # uvicorn parses a quarter of a megabyte of a flood at a time, which takes its while.
    assert 0 < slowest < (3 if server.kind == "native" else PATIENCE)


def frames(*payloads, opcode=1):
    """Return masked frames; the mask is zero, and each payload is short."""
    return b"".join(bytes([0x80 | opcode, 0x80 | len(p), 0, 0, 0, 0]) + p for p in payloads)


async def test_a_flood_of_messages_ends_with_4003_and_others_are_served(serving, make_raw):
    server = serving(max_messages_per_second=50)
    async with served(server):
        for _ in range(2):
            async with make_raw(server, "/ws/silent") as client:
                await client.opened()
                assert await flood(client, frames(*[b"x" * 20] * 500)) == 4003
    lines = re.findall(r"closed <Connection.*4003: .* went over max_m.*=50.*", server.printed())
    assert len(lines) == 1  # for two connections: it is one offender


async def test_a_client_that_goes_a_little_too_far_gets_its_close_and_answers_it(serving):
    server = serving(max_messages_per_second=5)
    async with server.connect("/ws/echo") as client:
        with pytest.raises(ConnectionClosed) as ended:  # noqa: PT012
            for _ in range(20):
                await client.send("x")
            while True:
                await client.recv()
    assert ended.value.rcvd.code == 4003
    assert ended.value.sent.code == 4003


async def test_a_flood_of_bytes_ends_with_4006_and_others_are_served(serving, make_raw):
    server = serving(max_bytes_per_second=100_000, max_message=100_000)
    async with served(server), make_raw(server, "/ws/silent") as client:
        await client.opened()
        await client.send("x" * 100_000)  # the largest that may be
        assert await flood(client, frames(*[b"x" * 120] * 500)) == 4006
    assert "went over max_bytes_per_second=100000" in server.printed()


async def test_a_burst_within_the_limits_is_no_flood(serving):
    server = serving(max_messages_per_second=100, max_bytes_per_second=20_000)
    async with server.connect("/ws/echo") as client:
        for number in range(100):
            await client.send(f"{number}".ljust(100))
        for number in range(100):
            assert int(await client.recv()) == number


@NATIVE_ONLY
@pytest.mark.parametrize("opcode", [9, 10], ids=["pings", "pongs"])
async def test_a_flood_of_control_frames_ends_with_4003(serving, make_raw, opcode):
    server = serving(max_messages_per_second=50)
    async with served(server), make_raw(server, "/ws/silent") as client:
        await client.opened()
        assert await flood(client, frames(*[b"x"] * 500, opcode=opcode)) == 4003


@NATIVE_ONLY
async def test_an_answer_to_our_ping_is_not_counted(serving):
    server = serving(max_messages_per_second=0.001, ping_interval=0.1)
    async with server.connect("/ws/echo") as client:
        await asyncio.sleep(1)  # real time is the subject: some pings
        await client.send("the only one")
        assert await client.recv() == "the only one"


@NATIVE_ONLY
async def test_what_never_becomes_a_message_counts_as_bytes(serving, make_raw):
    server = serving(max_bytes_per_second=20_000, max_message=1000)
    async with served(server), make_raw(server, "/ws/silent") as client:
        await client.opened()
        await client.write(bytes([0x01, 0x80, 0, 0, 0, 0]))  # a text begins, and never ends
        empty = bytes([0x00, 0x80, 0, 0, 0, 0])
        assert await flood(client, empty * 1000) == 4006


async def test_a_flood_of_handshakes_gets_429_and_a_time_to_come_back(serving):
    server = serving(max_handshakes_per_second=4)
    async with served(server):
        answers = await asyncio.gather(*(status(server) for _ in range(30)))
        refused = [answer for answer in answers if answer != 101]
        assert 2 <= answers.count(101) < 15
        assert {answer.status_code for answer in refused} == {429}
        assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
        assert "Too many handshakes from your address" in refused[0].body.decode()
        await asyncio.sleep(1)  # as it was told
        assert await status(server) == 101
    lines = re.findall("refused a handshake with 429: 127.0.0.1 went over .*", server.printed())
    assert lines == [
        "refused a handshake with 429: 127.0.0.1 went over max_handshakes_per_second=4"
    ]


async def test_an_address_with_enough_connections_gets_429_until_one_goes(serving):
    server = serving(max_connections_per_address=2)
    async with server.connect("/ws/echo") as first, server.connect("/ws/echo") as second:
        assert (await status(server)).status_code == 429
        for client in (first, second):
            await client.send("still served")
            assert await client.recv() == "still served"
        await first.close()
        assert await status(server) == 101
    for _ in range(5):
        assert (await status(server, "/ws/none")).status_code in {403, 404}
        assert await status(server) == 101


async def test_behind_a_trusted_proxy_the_forwarded_address_counts(serving):
    server = serving(max_connections_per_address=1, trusted_proxies=["127.0.0.1"])

    def forwarded(value):
        return {"additional_headers": {"X-Forwarded-For": value}}

    async with (
        server.connect("/ws/echo", **forwarded("192.0.2.1")),
        server.connect("/ws/echo", **forwarded("192.0.2.2")),
        server.connect("/ws/echo", **forwarded("2001:db8::1")),
    ):
        for value in ("192.0.2.1", "192.0.2.9, 192.0.2.1", "2001:db8::2"):
            assert (await status(server, **forwarded(value))).status_code == 429, value
        assert await status(server, **forwarded("192.0.2.1, 192.0.2.3")) == 101


async def test_a_forwarded_address_is_ignored_where_no_proxy_is_trusted(serving):
    server = serving(max_connections_per_address=1)
    one = {"additional_headers": {"X-Forwarded-For": "192.0.2.1"}}
    other = {"additional_headers": {"X-Forwarded-For": "192.0.2.2"}}
    async with server.connect("/ws/echo", **one):
        assert (await status(server, **other)).status_code == 429


async def test_the_newest_connection_of_a_user_wins(serving):
    server = serving(max_connections_per_user=1)
    async with (
        server.connect("/ws/echo?user=bob") as stranger,
        server.connect("/ws/echo?user=ana") as old,
        server.connect("/ws/idle?user=ana") as new,
    ):
        with pytest.raises(ConnectionClosed) as ended:
            await asyncio.wait_for(old.recv(), PATIENCE)
        assert ended.value.rcvd.code == 4005
        for client in (stranger, new):
            await client.send("hello")
            assert await client.recv() == "hello"


async def test_an_idle_client_is_closed_with_4008_whatever_it_pings(serving, make_raw):
    server = serving()
    async with make_raw(server, "/ws/idle") as client, server.connect("/ws/echo") as other:
        await client.opened()

        async def ping():
            while True:
                await client.send(b"", 9)
                await asyncio.sleep(0.05)

        pinging = asyncio.create_task(ping())
        assert await client.close_code() == 4008
        pinging.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await pinging
        await other.send("not idle there")
        assert await other.recv() == "not idle there"
