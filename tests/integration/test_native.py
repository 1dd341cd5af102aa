"""The native transport's hazards, each with a real server on it; the rest is in test_servers and its neighbours."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import struct

import pytest
import trustme
from websockets.asyncio.client import connect, unix_connect

COMMAND = "uvicorn native:hub --port {port} --ws backchannel.transport.uvicorn:Protocol"
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
HUGE = json.dumps({"max_outbox": 1 << 28, "max_message": 1 << 24})


def number_of(message):
    return int(message.split(" ", 1)[0])


@LOOPS
async def test_order_holds_when_the_kernel_takes_only_part(start, make_raw, loop):
    """Small and large by all paths, to a client that reads late: direct writes, then buffered."""
    server = start(f"native-{loop}", f"{COMMAND} --loop {loop}", env={"SETTINGS": HUGE})
    rng = random.Random(7)
    sizes = [rng.choice([10, 100, 70_000, 300_000]) for _ in range(120)]
    async with make_raw(server, "/ws/flood/one", receive_buffer=4096) as client:
        await client.opened()
        await client.send(json.dumps({"sizes": sizes}))
        await client.send(json.dumps({"sizes": [5]}))
        for number, size in enumerate(sizes):
            opcode, payload = await client.frame()
            assert (opcode, number_of(payload.decode()), len(payload)) == (1, number, size)
            if number % 20 == 0:
                await asyncio.sleep(0.01)  # real time is the subject: a reader that falls behind
        assert number_of((await client.frame())[1].decode()) == 0


@LOOPS
async def test_a_client_that_never_reads_is_dropped_and_its_socket_with_it(start, make_raw, loop):
    server = start(f"native-{loop}", f"{COMMAND} --loop {loop}")
    async with (
        make_raw(server, "/ws/flood/all", receive_buffer=4096) as sleeper,
        make_raw(server, "/ws/flood/all") as other,
    ):
        await sleeper.opened()
        await other.opened()
        for _ in range(60):
            await other.send(json.dumps({"sizes": [1, 200_000]}))
            numbers = [number_of((await other.frame())[1].decode()) for _ in range(2)]
            assert numbers == [0, 1]  # the one that reads gets everything
        assert await sleeper.close_code() == 1006  # what the kernel had, then the end


@LOOPS
async def test_tls(start, tmp_path, loop):
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "pem")
    options = f"--ssl-certfile {tmp_path / 'pem'} --loop {loop}"
    server = start(f"native-{loop}", f"{COMMAND} {options}", env={"SETTINGS": HUGE})
    context = ssl.create_default_context()
    authority.configure_trust(context)
    url = f"wss://127.0.0.1:{server.port}/ws/flood/tls"
    async with connect(url, ssl=context, proxy=None, max_size=None) as client:
        sizes = [10, 1_000_000, 3, 70_000] * 10
        await client.send(json.dumps({"sizes": sizes}))
        got = [await client.recv() for _ in sizes]
    assert [(number_of(text), len(text)) for text in got] == list(enumerate(sizes))


async def test_a_unix_socket(process, tmp_path):
    path = tmp_path / "socket"
    options = ["native:hub", "--uds", path, "--ws", "backchannel.transport.uvicorn:Protocol"]
    process("uvicorn", *options)
    while not path.exists():  # noqa: ASYNC110 - nothing tells when it is there
        await asyncio.sleep(0.02)
    async with unix_connect(str(path), uri="ws://localhost/ws/echo") as client:
        for message in ("hello", b"\x00\xff", "x" * 500_000):
            await client.send(message)
            assert await client.recv() == message


@LOOPS
async def test_frames_that_came_before_the_101_are_read(start, make_raw, loop):
    """A client must not send so early; one that does loses nothing."""
    server = start(f"native-{loop}", f"{COMMAND} --loop {loop}")
    async with make_raw(server, "/ws/slow") as client:
        # In one packet with the handshake uvicorn would drop it; on_handshake waits for longer.
        await asyncio.sleep(0.1)
        await client.send("too early")
        await client.opened()
        assert await client.frame() == (1, b"too early")


@LOOPS
async def test_a_client_that_goes_while_its_handshake_is_answered_is_no_error(
    start, make_raw, loop
):
    server = start(f"native-{loop}", f"{COMMAND} --loop {loop}")
    async with make_raw(server, "/ws/gone") as client:
        with pytest.raises((EOFError, ConnectionError)):
            await client.opened()
    async with server.connect("/ws/echo") as client:
        await client.send("alive")
        assert await client.recv() == "alive"
    assert '"WebSocket /ws/gone" [accepted]' in server.printed()
    assert "ERROR" not in server.printed(), server.printed()


async def test_a_peer_that_is_gone_does_not_end_a_process_with_sigpipe_at_its_default(
    start, make_raw
):
    server = start("native", COMMAND, env={"RESET_SIGPIPE": "1"})
    async with make_raw(server, "/ws/flood/pipe") as stays:
        await stays.opened()
        for _ in range(20):
            leaves = make_raw(server, "/ws/flood/pipe")
            await leaves.__aenter__()
            await leaves.opened()
            await stays.send(json.dumps({"sizes": [1, 50_000]}))
            leaves.abort()
            for _ in range(2):
                await stays.frame()
    async with server.connect("/ws/echo") as client:
        await client.send("alive")
        assert await client.recv() == "alive"


async def test_what_is_written_to_a_new_connection_never_reaches_an_old_one(start, make_raw):
    """Descriptors are used again at once: a thousand come, go, and get their own words only."""
    server = start("native", COMMAND)

    async def one(worker):
        for number in range(120):
            async with make_raw(server, "/ws/echo") as client:
                await client.opened()
                word = f"{worker}/{number}".encode()
                await client.send(word)
                assert await client.frame() == (2, word)
                if number % 2:
                    client.abort()
                else:
                    await client.send(b"lost " + word)  # answered to nobody, or to itself

    await asyncio.gather(*(one(worker) for worker in range(8)))


async def test_a_close_the_client_does_not_answer_ends_all_the_same(start, make_raw):
    server = start("native", COMMAND, env={"SETTINGS": json.dumps({"close_timeout": 0.3})})
    async with make_raw(server, "/ws/echo") as client:
        await client.opened()
        server.process.popen.terminate()
        opcode, payload = await client.frame()
        assert (opcode, struct.unpack("!H", payload[:2])[0]) == (8, 1012)
        with pytest.raises((EOFError, ConnectionError)):
            await client.frame()


async def test_a_client_is_not_given_up_while_the_hub_itself_does_not_read(start):
    settings = json.dumps({"ping_interval": 0.2, "ping_timeout": 0.2})
    server = start("native", COMMAND, env={"SETTINGS": settings})
    async with server.connect("/ws/busy") as client:
        words = ["first", *map(str, range(200))]  # more than may wait: reading stops
        for word in words:
            await client.send(word)
        assert [await client.recv() for _ in words] == words
