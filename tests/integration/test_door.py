"""uvicorn's door to the native transport, and its options, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

HERE = Path(__file__).parent
DOOR = "uvicorn door:app --port {port} --ws backchannel.transport.uvicorn:Protocol"
PATIENT = " --http backchannel.transport.uvicorn:HttpProtocol"
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])

HUB = """
import json, os
from backchannel import Hub

hub = Hub(**json.loads(os.environ["SETTINGS"]))

@hub.endpoint("/ws/echo")
def echo(ws, message: str):
    return message

@hub.endpoint("/ws/hangs")
class Hangs(__import__("backchannel").Listener):
    async def on_handshake(self, request):
        await __import__("asyncio").Event().wait()

@hub.endpoint("/ws/busy")
class Busy(__import__("backchannel").Listener):
    def on_handshake(self, request):
        __import__("time").sleep(0.005)
"""


async def ask(client, message="?"):
    await client.send(message)
    return json.loads(await client.recv())


async def is_native(server, path="/ws/where"):
    async with server.connect(path) as client:
        return (await ask(client))["native"]


# ── uvicorn's options ─────────────────────────────────────────────────────────────────────────


@LOOPS
@pytest.mark.parametrize("options", ["", " --timeout-graceful-shutdown 3"])
async def test_graceful_shutdown_closes_all_with_1012_and_ends(start, make_raw, loop, options):
    server = start(f"native-{loop}", f"{DOOR} --loop {loop}{options}")
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(server.connect(path))
            for path in ["/ws/echo", "/own/served", "/ws/where"] * 5
        ]
        mute = await stack.enter_async_context(make_raw(server, "/ws/echo"))
        await mute.opened()
        before = time.monotonic()
        server.process.signal(signal.SIGTERM)
        for client in clients:
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.rcvd.code == 1012
        opcode, payload = await mute.frame()  # and does not answer
        assert (opcode, struct.unpack("!H", payload[:2])[0]) == (8, 1012)
        await asyncio.to_thread(server.process.wait)
        assert time.monotonic() - before < 5
    assert "Traceback" not in server.printed()


async def test_limit_concurrency_counts_what_was_taken_over(start, make_raw):
    """As uvicorn counts: the connection that asks is one of them."""
    server = start("native", f"{DOOR}{PATIENT} --limit-concurrency 4")
    async with AsyncExitStack() as stack:
        for _ in range(3):
            client = await stack.enter_async_context(make_raw(server, "/ws/echo"))
            await client.opened()
        for path in ("/ws/echo", "/own/echo"):
            with pytest.raises(InvalidStatus) as caught:
                await server.connect(path).__aenter__()
            assert caught.value.response.status_code == 503
        assert (await server.get("/health")).status_code == 503
        client.abort()
        while (answer := await server.get("/health")).status_code == 503:
            pass
        assert answer.json()["connections"] == 2
        assert (await is_native(server)) is not None


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ("", ["203.0.113.7", 0]),
        (" --forwarded-allow-ips 192.0.2.1", None),
        (" --no-proxy-headers", None),
        (" --proxy-headers --forwarded-allow-ips *", ["203.0.113.7", 0]),
    ],
)
async def test_proxy_headers(start, options, seen):
    server = start("native", DOOR + options)
    headers = {"X-Forwarded-For": "203.0.113.7"}
    async with server.connect("/ws/where", additional_headers=headers) as client:
        told = await ask(client)
        assert told == {"client": seen or list(client.local_address), "native": True}


async def test_root_path(start):
    """The proxy cuts /behind off; uvicorn is told so and puts it back."""
    server = start("native", f"{DOOR} --root-path /behind")
    assert await is_native(server)


async def test_a_unix_socket_with_all_of_it(process, tmp_path):
    path = tmp_path / "socket"
    command = f"{DOOR.replace('--port {port}', f'--uds {path}')}{PATIENT}"
    process(*command.split())
    while not path.exists():  # noqa: ASYNC110 - nothing tells when it is there
        await asyncio.sleep(0.02)
    async with unix_connect(str(path), uri="ws://localhost/ws/where") as client:
        assert await ask(client) == {"client": None, "native": True}


async def test_other_websocket_routes_are_uvicorns(start):
    server = start("native", DOOR + PATIENT)
    async with server.connect("/own/echo", compression="deflate") as client:
        for word in ("a", "b" * 5000):
            await client.send(word)
            assert await client.recv() == f"own {word}"
        assert client.protocol.extensions
        assert await is_native(server)


async def test_serve_behind_a_frameworks_route_is_native(start):
    server = start("native", DOOR)
    assert await is_native(server, "/own/served")


async def test_what_middleware_and_the_command_line_add_to_the_101_arrives(start):
    server = start("native", f"{DOOR} --header x-own:yes")
    assert await is_native(server, "/ws/where")
    async with server.connect("/ws/where") as client:
        headers = client.response.headers
    assert headers.get_all("set-cookie") == ["a=1", "b=2"]
    assert headers.get_all("x-own") == ["yes"]
    assert len(headers.get_all("server")) == 1


async def test_serve_says_which_variable_of_its_channel_it_was_not_given(start):
    server = start("native", DOOR)
    with pytest.raises(InvalidStatus):
        async with server.connect("/own/nameless/7"):
            pass
    server.process.wait_for_output(
        re.escape("channel='room:{room}') needs params={'room': …}: what")
    )


@pytest.mark.parametrize("path", ["/ws/slow", "/own/echo?wait=1"])
@pytest.mark.parametrize("size", [3, 50_000])
async def test_what_a_client_sends_before_the_101_is_read(start, make_raw, path, size):
    """A client must not send so early; one that does loses nothing, however much it is."""
    server = start("native", DOOR + PATIENT)
    prefix = b"own " if "own" in path else b""
    async with make_raw(server, path) as client:
        await client.send("x" * size)
        for number in range(3):
            await client.send(f"{number}".ljust(size, "x"))
        await server.request("POST", "/open-gate")
        await client.opened()
        assert await client.frame() == (1, prefix + b"x" * size)
        for number in range(3):
            wanted = f"{number}".ljust(size, "x").encode()
            assert await client.frame() == (1, prefix + wanted)


@pytest.mark.parametrize("http", ["HttpProtocol", "H11Protocol"])
@pytest.mark.parametrize("path", ["/ws/echo", "/own/echo"])
async def test_what_comes_in_one_packet_with_the_request_is_read(start, dial, path, http):
    """uvicorn's own HTTP protocols forget it."""
    server = start("native", f"{DOOR} --http backchannel.transport.uvicorn:{http}")
    request = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    client = await dial(server, request.encode() + b"\x81\x83\0\0\0\0one")
    await client.opened()
    assert await client.frame() == (1, b"own one" if "own" in path else b"one")


@pytest.mark.parametrize(
    ("options", "native"),
    [("", True), ("--transport native", True), ("--transport portable", False)],
)
@pytest.mark.parametrize("reload", ["", "--reload"])
async def test_backchannel_run_is_native_unless_told_otherwise(
    process, make_server, options, native, reload
):
    command = f"run door.py {options} {reload} --port 0"
    started = process("backchannel", *command.split(), cwd=HERE)
    port = started.wait_for_output(r"ws://localhost:(\d+)")[1]
    started.wait_for_output("Ctrl-C to stop")
    assert await is_native(make_server("run", started, int(port))) == native
    assert "WARNING" not in started.output()


# ── nothing of uvicorn's stays ────────────────────────────────────────────────────────────────

UVICORNS = ("NativeProtocol", "PatientHttpTools", "PatientH11", "HttpToolsProtocol", "H11Protocol",
            "ServerProtocol", "StreamReader", "FlowControl", "Queue", "Task", "coroutine",
            "generator", "Headers")  # fmt: skip


@LOOPS
@pytest.mark.parametrize("http", ["", PATIENT])
async def test_after_the_takeover_nothing_of_uvicorns_lives(start, loop, http):
    """Without the help of the garbage collector, so that it has nothing to do."""
    server = start(f"native-{loop}", f"{DOOR}{http} --loop {loop}")

    async def count():
        return (await server.get("/objects", names=",".join((*UVICORNS, "NativeSocket")))).json()

    async with AsyncExitStack() as stack:

        async def come(number):
            for _ in range(number):
                client = await stack.enter_async_context(server.connect("/ws/echo"))
                await client.send("x")
                await client.recv()

        await come(1)
        await count()
        before = await count()
        await come(20)
        after = await count()
    assert after["NativeSocket"] - before["NativeSocket"] == 20
    left = {name: after[name] - before[name] for name in UVICORNS}
    if not http:
        # uvicorn's own and its parser hold each other; ours lets go.
        left = {name: count for name, count in left.items() if name != "HttpToolsProtocol"}
        left.pop("FlowControl")
    assert {name for name, count in left.items() if count > 2} == set()


# ── clients that do not come to the point ─────────────────────────────────────────────────────


async def hung_up(client):
    """Read to the end; returns what came and the seconds it took."""
    loop, began, got = asyncio.get_running_loop(), time.monotonic(), b""
    while data := await asyncio.wait_for(loop.sock_recv(client.socket, 65536), 10):
        got += data
    return got, time.monotonic() - began


@pytest.fixture
def dial(make_raw):
    """Connect, and send packets as they are: ``await dial(server, b"GET …")``."""
    clients = []

    async def dial(server, *packets):
        client = make_raw(server, "/")
        clients.append(client)
        await asyncio.get_running_loop().sock_connect(client.socket, ("127.0.0.1", server.port))
        for packet in packets:
            await client.write(packet)
        return client

    yield dial
    for client in clients:
        client.vanish()


@pytest.fixture(params=["httptools", "h11"])
def impatient(request, process, make_server, tmp_path):
    """`backchannel run` with a short handshake_timeout, on each of uvicorn's HTTP protocols."""
    (tmp_path / "hub.py").write_text(HUB)
    if request.param == "h11":
        (tmp_path / "httptools.py").write_text("raise ImportError('no httptools here')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    env = {"SETTINGS": json.dumps({"handshake_timeout": 0.5}), "PYTHONPATH": path}
    started = process("backchannel", "run", "hub.py", "--port", "0", cwd=tmp_path, env=env)
    port = started.wait_for_output(r"ws://localhost:(\d+)")[1]
    started.wait_for_output("Ctrl-C to stop")
    return make_server("native", started, int(port))


async def test_a_client_that_says_nothing_is_hung_up_on(impatient, dial):
    client = await dial(impatient)
    got, seconds = await hung_up(client)
    assert got == b""
    assert 0.3 < seconds < 3


async def test_a_request_for_a_websocket_with_a_body_is_answered_at_once(impatient, dial):
    head = (
        b"GET /ws/echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    client = await dial(impatient, head + b"Content-Length: 5\r\n\r\n")
    got, _ = await hung_up(client)
    assert got.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"body" in got


async def test_a_request_that_dribbles_in_is_hung_up_on(impatient, dial):
    client = await dial(impatient, b"GET /ws/echo HTTP/1.1\r\n")

    async def dribble():
        while True:
            await client.write(b"X-A: b\r\n")
            await asyncio.sleep(0.05)  # real time is the subject

    dribbling = asyncio.create_task(dribble())
    got, seconds = await hung_up(client)
    dribbling.cancel()
    assert got.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert 0.3 < seconds < 3


@pytest.mark.parametrize("start_of_it", [b"GET /ws", b"\r\n"], ids=["a part", "an empty line"])
async def test_a_second_request_that_does_not_end_is_hung_up_on(impatient, dial, start_of_it):
    client = await dial(impatient, b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n")
    await client.read_until(b"\r\n\r\n")
    while b"Nothing is served" not in client.buffer:
        await client._more()
    await client.write(start_of_it)
    got, seconds = await hung_up(client)
    if not got.startswith(b"HTTP/1.1 400"):  # h11 takes no empty line
        assert got.startswith(b"HTTP/1.1 408")
        assert seconds > 0.3
    assert seconds < 3


async def test_a_request_that_was_sent_in_time_is_never_too_late(impatient, dial):
    """Three hundred at once take longer to serve than one has to ask: they wait, and all come in."""
    asking = (
        b"GET /ws/busy HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    clients = [await dial(impatient) for _ in range(300)]
    for client in clients:
        await client.write(asking)
    answers = [await client.read_until(b"\r\n") for client in clients]
    assert answers == [b"HTTP/1.1 101 Switching Protocols"] * 300


async def test_hundreds_that_say_little_are_hung_up_on_and_the_others_served(impatient, dial):
    silent = [await dial(impatient, b"G") for _ in range(200)]
    async with impatient.connect("/ws/echo") as client:
        ends = asyncio.gather(*(hung_up(one) for one in silent))
        while not ends.done():
            await client.send("still served")
            assert await client.recv() == "still served"
        assert all(got.startswith(b"HTTP/1.1 408") for got, _ in await ends)


async def test_a_request_in_time_is_served_however_long_its_connection_lasts(impatient, dial):
    async with impatient.connect("/ws/echo") as client:
        slow = await dial(impatient, b"GET /nothing HTTP/1.1\r\n")
        await asyncio.sleep(0.2)  # real time is the subject
        await slow.write(b"Host: a\r\n\r\n")
        assert (await slow.read_until(b"\r\n")) == b"HTTP/1.1 404 Not Found"
        got, seconds = await hung_up(slow)
        assert b"408" not in got
        assert seconds > 1  # uvicorn's own keep-alive, 5 s
        await client.send("after that")
        assert await client.recv() == "after that"


async def test_a_handshake_that_hangs_is_answered_in_time(impatient):
    before = time.monotonic()
    with pytest.raises(InvalidStatus) as caught:
        await impatient.connect("/ws/hangs").__aenter__()
    assert caught.value.response.status_code == 503
    assert 0.3 < time.monotonic() - before < 3


async def test_a_client_that_vanishes_in_its_handshake_leaves_nothing(impatient, make_raw):
    for _ in range(50):
        async with make_raw(impatient, "/ws/hangs") as client:
            client.abort()
    async with impatient.connect("/ws/echo") as client:
        await client.send("alive")
        assert await client.recv() == "alive"
    assert impatient.process.end() in {0, -signal.SIGTERM}


# ── workers ───────────────────────────────────────────────────────────────────────────────────

ALONE = r"ERROR backchannel\.hub: this is one of 2 worker processes"
WORKERS = {
    "native": f"{DOOR} --workers 2",
    "uvicorn": "uvicorn door:app --port {port} --workers 2",
    "hypercorn": "hypercorn door:app --bind 127.0.0.1:{port} --workers 2",
    "granian": "granian --interface asgi door:app --port {port} --workers 2",
    "gunicorn": "gunicorn door:app --bind 127.0.0.1:{port} -w 2 -k uvicorn_worker.UvicornWorker",
}


@pytest.mark.parametrize("name", WORKERS)
async def test_workers_without_a_broker_are_told(start, name):
    if name == "gunicorn":
        pytest.importorskip("uvicorn_worker", reason="no gunicorn: pip install uvicorn-worker")
    if name == "granian" and sys.version_info >= (3, 14):
        pytest.skip("granian spawns its workers there, and they can't know")
    server = start(name, WORKERS[name])
    deadline = time.monotonic() + 15
    while len(re.findall(ALONE, server.printed())) < 2:
        assert time.monotonic() < deadline, server.printed()
        await asyncio.sleep(0.05)  # nothing tells when a file grows
    (problem,) = (await server.get("/health")).json()["problems"]
    assert "each has its own channels" in problem
    assert "Hub(broker=" in problem
    assert len(re.findall(ALONE, server.printed())) == 2


@pytest.mark.parametrize(
    "command",
    [
        f"{DOOR} --reload",
        f"{DOOR} --workers 1",
        "hypercorn door:app --bind 127.0.0.1:{port} --workers 1",
        "granian --interface asgi door:app --port {port} --workers 1",
    ],
)
async def test_one_process_is_not_told(start, command):
    server = start("alone", command)
    assert (await server.get("/health")).json()["problems"] == []


async def test_reloading_is_not_mistaken_for_workers_whatever_the_environment_says(start):
    server = start("alone", f"{DOOR} --reload", env={"WEB_CONCURRENCY": "4"})
    assert (await server.get("/health")).json()["problems"] == []


# ── another uvicorn ───────────────────────────────────────────────────────────────────────────

BREAK = """
import sys
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets import websockets_sansio_impl as module
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol as ws

original = ws.__init__
def without_close_timer(self, *arguments, **options):
    original(self, *arguments, **options)
    del self.close_timer, self.conn

def closes(run_asgi):
    async def run(self):
        await run_asgi(self)
        self.transport.close()
    return run

{how}
import uvicorn
uvicorn.main()
"""
BREAKS = {
    "a method is gone": "del ws.run_asgi",
    "a method is called otherwise": "ws.run = ws.run_asgi; del ws.run_asgi",
    "an attribute is gone": "ws.__init__ = without_close_timer",
    "the socket is closed when the app returns": "ws.run_asgi = closes(ws.run_asgi)",
    "the class is gone": "module.Other = module.WebSocketsSansIOProtocol; "
    "import uvicorn.protocols.websockets.auto; del module.WebSocketsSansIOProtocol",
    "HTTP asks otherwise": "HttpToolsProtocol.data_received = lambda self, data: None",
}


@pytest.mark.parametrize("how", BREAKS)
async def test_another_uvicorn_is_noticed_and_its_own_classes_serve(start, tmp_path, how):
    script = tmp_path / "broken_uvicorn.py"
    script.write_text(BREAK.format(how=BREAKS[how]))
    command = DOOR.replace("uvicorn", str(script), 1) + PATIENT + f" --app-dir {HERE}"
    server = start("portable", command)
    if how == "the class is gone":  # the others break what uvicorn itself needs, too
        assert not await is_native(server)
    (line,) = re.findall(".*native transport needs it.*", server.process.output())
    assert re.search(r"uvicorn \d+\.\d+\.\d+ is not as", line)
    assert "0.54 to 0.54" in line


def test_this_uvicorn_is_in_the_tested_range():
    code = (
        "import uvicorn, backchannel.transport.uvicorn as door;"
        "assert door.IS_NATIVE;"
        "version = '.'.join(uvicorn.__version__.split('.')[:2]);"
        "assert door.TESTED[0] <= version <= door.TESTED[1], version"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
