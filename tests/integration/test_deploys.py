"""Deploys: health, going away calmly, brokers that will not do; with real servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from backchannel.wire import frames

PATIENCE = 15.0


async def read(client):
    message = await asyncio.wait_for(client.recv(), PATIENCE)
    return json.loads(message) if message[:1] == "{" else message


async def close_of(client):
    """Return the close code, and what came before it."""
    came = []
    try:
        while True:
            came.append(await read(client))
    except ConnectionClosed as closed:
        return (closed.rcvd.code if closed.rcvd else 1006), came


# ── brokers that will not do ──────────────────────────────────────────────────────────────────


@pytest.fixture
async def old_engine(redis_server):
    """A real engine that says it is of another version: what passes is changed on its way."""
    port = int(redis_server.url.rpartition(":")[2].partition("/")[0])
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        there, away = await asyncio.open_connection("127.0.0.1", port)

        async def back():
            while data := await there.read(1 << 16):
                writer.write(re.sub(rb"valkey_version:\d", b"valkey_version:6", data))
            writer.close()

        returning = asyncio.create_task(back())
        while data := await reader.read(1 << 16):
            away.write(data)
        away.close()
        await returning

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    server.close()
    if tasks:
        await asyncio.wait(tasks)


@pytest.fixture
def http_port():
    """Where a server listens that is none of an engine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def broken(request, new_redis_server, free_port):
    """A broker's URL, and what is to be said of it."""
    if request.param == "password":
        engine = new_redis_server()
        engine.start()
        with engine.client as client:
            client.config_set("requirepass", "right")
        host = engine.url.removeprefix("redis://")
        return f"redis://:secret@{host}", rf"redis://:…@{host} refuses this password: .*"
    if request.param == "other":
        engine = request.getfixturevalue("redis_server")
        with engine.client as client:
            client.set("backchannel:deployed:about", "what another program wrote")
        url = engine.url
        return url, rf"{url} has data of something else under this hub's name: .*Hub\(name=…\).*"
    if request.param == "http":
        url = f"redis://127.0.0.1:{request.getfixturevalue('http_port')}/0"
        return (
            url,
            rf"{url} can't be reached: .* neither Redis nor Valkey, .*: it says b.<!DOCTYPE.*",
        )
    if request.param == "old":
        url = request.getfixturevalue("old_engine")
        return url, rf"{url} is Valkey 6\.[\d.]+: 7\.2 or newer is needed"
    if request.param == "unreachable":
        return (
            f"redis://:secret@127.0.0.1:{free_port}/0",
            rf"redis://:…@127\.0\.0\.1:{free_port}/0 can't be reached: .*Errno 111.*?",
        )
    return (
        "http://:secret@localhost",
        r"Hub\(broker='http://:…@localhost'\): .*deployed\.py:\d+\)",
    )


ALL = ["wrong", "unreachable", "password", "old", "other", "http"]
IS_IT_RIGHT = "is the broker running, and is this its URL?"


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["alone", "workers"])
@pytest.mark.parametrize("broken", ALL, indirect=True)
async def test_run_says_in_one_line_what_is_wrong_with_the_broker(
    process, broken, options, free_port
):
    url, said = broken
    started = process(
        "backchannel", "run", "deployed.py", "--port", free_port, *options, env={"BROKER": url}
    )
    assert await asyncio.to_thread(started.wait) == 1
    (line,) = started.output().splitlines()
    assert re.fullmatch(f"Error: {said}(; {re.escape(IS_IT_RIGHT)})?", line), line
    assert (IS_IT_RIGHT in line) == ("can't be reached" in line)
    assert "secret" not in line
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", free_port)).close()


async def test_nothing_listens_while_the_broker_is_tried(process, free_port):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        started = process(
            "backchannel", "run", "deployed.py", "--port", free_port, env={"BROKER": url}
        )
        accepted, _ = await asyncio.to_thread(silent.accept)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", free_port)).close()
        assert await asyncio.to_thread(started.wait) == 1
        accepted.close()
    assert started.output() == f"Error: {url} did not answer in 5 s; {IS_IT_RIGHT}\n"


@pytest.mark.parametrize("broken", ALL[1:], indirect=True)
async def test_uvicorn_does_not_start_with_such_a_broker(process, broken, free_port):
    url, said = broken
    started = process("uvicorn", "deployed:hub", "--port", free_port, env={"BROKER": url})
    assert await asyncio.to_thread(started.wait) == 3
    printed = started.output()
    assert re.search(rf"^ERROR: +{said}$", printed, re.MULTILINE), printed
    assert "Application startup failed" in printed
    assert "Traceback" not in printed
    assert "secret" not in printed


# ── health ────────────────────────────────────────────────────────────────────────────────────


async def test_run_tells_whether_it_lives_and_is_ready(run, new_redis_server):
    engine = new_redis_server()
    engine.start()
    server = run(env={"BROKER": engine.url})
    alive = await server.get("/healthz")
    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert alive.headers["content-type"] == "application/json"
    assert alive.headers["cache-control"] == "no-store"
    assert await server.until_ready_is(200) == {"status": "ready"}
    assert (await server.request("HEAD", "/readyz")).content == b""
    assert (await server.request("POST", "/readyz")).status_code == 405
    engine.stop()
    because = await server.until_ready_is(503)
    assert because == {"status": "not ready", "because": ["the broker is away"]}
    assert (await server.get("/healthz")).status_code == 200
    engine.start()
    await server.until_ready_is(200)


APPS = """
from fastapi import FastAPI, WebSocket
from fastapi.responses import PlainTextResponse
from backchannel import Hub

hub = Hub(health_pages={enabled})
inner = FastAPI()

@inner.get("/healthz")
def own():
    return PlainTextResponse("the app's own")

@inner.websocket("/ws/own")
async def own_socket(socket: WebSocket):
    await socket.accept()
    async for _ in socket.iter_text():
        pass

@hub.endpoint("/ws/echo")
def echo(ws, message: str):
    return message

wrapped = hub.wrap(inner)
mounted = FastAPI()
mounted.mount("/live", hub)
"""


@pytest.fixture
def apps(tmp_path):
    def write(*, enabled):
        (tmp_path / "apps.py").write_text(APPS.format(enabled=enabled))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("app", "enabled", "path", "wanted"),
    [
        ("wrapped", False, "/healthz", (200, "the app's own")),
        ("wrapped", False, "/readyz", (404, None)),
        ("wrapped", True, "/healthz", (200, '{"status":"ok"}')),
        ("wrapped", True, "/readyz", (200, '{"status":"ready"}')),
        ("mounted", False, "/live/readyz", (404, None)),
        ("mounted", True, "/live/readyz", (200, '{"status":"ready"}')),
        ("mounted", True, "/readyz", (404, None)),
        ("hub", False, "/readyz", (404, None)),
        ("hub", True, "/readyz", (200, '{"status":"ready"}')),
    ],
)
async def test_other_servers_have_the_pages_where_they_are_enabled(
    start, apps, app, enabled, path, wanted
):
    server = start("uvicorn", f"uvicorn apps:{app} --port {{port}}", cwd=apps(enabled=enabled))
    answer = await server.get(path)
    status, text = wanted
    assert answer.status_code == status
    assert text in {None, answer.text}


async def test_run_never_takes_a_page_of_the_app(run, apps):
    server = run(target=str(apps(enabled=False) / "apps.py:wrapped"))
    assert (await server.get("/healthz")).text == "the app's own"
    assert (await server.get("/readyz")).json() == {"status": "ready"}
    assert (await server.get("/nothing")).status_code == 404


# ── going away ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("transport", ["native", "portable"])
async def test_sigterm_drains(run, transport):
    server = run("--drain", "3", "--transport", transport)
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(server.connect(f"/ws/{n}")) for n in range(30)]
        for client in clients:
            await read(client)
        await clients[0].send("slow 1.5 work")
        assert await read(clients[0]) == "begun"

        async def ended(client):
            return *(await close_of(client)), time.monotonic()

        began = time.monotonic()
        closes = asyncio.gather(*(ended(client) for client in clients))
        server.process.signal(signal.SIGTERM)
        answer = await server.until_ready_is(503)
        assert time.monotonic() - began < 1
        assert answer == {"status": "not ready", "because": ["stopping"]}
        assert (await server.get("/healthz")).status_code == 200
        with pytest.raises(InvalidStatus) as refused:
            await stack.enter_async_context(server.connect("/ws/new"))
        response = refused.value.response
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        closed = await closes
    assert {code for code, _, _ in closed} == {1012}
    assert closed[0][1] == ["slow 1.5 work", "done slow 1.5 work"]
    moments = sorted(when - began for _, _, when in closed)
    assert moments[-1] - moments[0] > 0.5, "all at once"
    assert moments[-1] < 5
    assert await asyncio.to_thread(server.process.wait) == 0
    assert not re.search("ERROR|WARNING|Traceback", server.printed()), server.printed()


@pytest.mark.parametrize("drain", ["0", "0.6"])
@pytest.mark.parametrize("transport", ["native", "portable"])
async def test_a_calm_sigterm_alarms_nobody(run, make_raw, transport, drain):
    """Also where some are out of reach: they neither answer the close nor hang up."""
    server = run("--drain", drain, "--transport", transport)
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        idle = await enter(server.connect("/ws/idle"))
        speaker = await enter(server.connect("/ws/v1", subprotocols=["backchannel.v1.json"]))
        await speaker.send('{"type": "hello"}')
        assert (await read(speaker))["type"] == "hello"
        talker = await enter(server.connect("/ws/deaf"))
        for client in (idle, talker):
            assert "pid" in await read(client)
        silent = await enter(make_raw(server, "/ws/silent"))
        deaf = await enter(make_raw(server, "/ws/deaf", receive_buffer=4096))
        for client in (silent, deaf):
            await client.opened()
        for _ in range(5):  # more than fits into what the operating system buffers
            await talker.send("x" * 900_000)
            await talker.recv()
            await talker.recv()
        http = await enter(httpx.AsyncClient(trust_env=False))
        assert (await http.get(server.http + "/healthz")).status_code == 200  # and stays connected
        await idle.send("slow 0.1 work")
        assert await read(idle) == "begun"
        closes = asyncio.gather(*(close_of(client) for client in (idle, speaker, talker)))
        server.process.signal(signal.SIGTERM)
        (code, came), *others = await closes
        assert {code, *(code for code, _ in others)} == {1012}
        assert came == ["slow 0.1 work", "done slow 0.1 work"] * (drain != "0")
        assert await silent.close_code() == 1012
        began = time.monotonic()
        assert await asyncio.to_thread(server.process.wait) == 0
        assert time.monotonic() - began < 3
    assert not re.search("WARNING|ERROR|CRITICAL|Traceback", server.printed()), server.printed()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_hurries(run, second):
    server = run("--drain", "600")
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(server.connect(f"/ws/{n}")) for n in range(5)]
        for client in clients:
            await read(client)
        server.process.signal(signal.SIGTERM)
        await server.until_ready_is(503)
        server.process.signal(second)
        codes = await asyncio.gather(*(close_of(client) for client in clients))
        assert {code for code, _ in codes} == {1012}
    assert await asyncio.to_thread(server.process.wait) == 0
    assert "Traceback" not in server.printed()


async def test_what_was_accepted_reaches_a_broker_that_was_away(run, new_redis_server):
    """What waits for the engine when the signal comes is published once that is back."""
    engine = new_redis_server()
    engine.start()
    server = run("--drain", "10", env={"BROKER": engine.url})
    async with server.connect("/ws/cars") as client:
        await read(client)
        engine.stop()
        await server.until_ready_is(503)
        await client.send("accepted")
        server.process.signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            while "stopping" not in (await server.get("/readyz")).json()["because"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        engine.start()
        code, came = await close_of(client)
        assert code == 1012
        # The engine lost its data, so that the node has first to ask from where on it goes on: the
        # connections' end does not wait for that.
        assert "done accepted" in came
        assert set(came) <= {"accepted", "done accepted"}
        with engine.client as db:
            (kept,) = [key for key in db.keys("*") if db.type(key) in {b"zset", b"list", b"stream"}]
            assert b"accepted" in str(db.dump(kept)).encode()
    assert await asyncio.to_thread(server.process.wait) == 0


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPGRADE = (
    b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.mark.parametrize("transport", ["native", "portable"])
async def test_a_request_of_who_was_let_in_at_the_end_is_answered(run, apps, transport):
    target = str(apps(enabled=False) / "apps.py:wrapped")
    server = run("--drain", "0", "--transport", transport, target=target)
    async with contextlib.AsyncExitStack() as stack:

        async def let_in():
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            stack.callback(writer.close)
            return reader, writer

        asks = [HEALTH, HEALTH[9:], UPGRADE % b"/ws/echo", UPGRADE % b"/ws/own"]
        late = [await let_in() for _ in asks]
        late[1][1].write(HEALTH[:9])
        silent, _ = await let_in()
        served, ask = await let_in()
        ask.write(HEALTH)
        assert await served.readline() == b"HTTP/1.1 200 OK\r\n"  # so that all these are let in
        server.process.signal(signal.SIGTERM)
        await served.read()  # to its end: uvicorn hangs up
        for (_, writer), request in zip(late, asks, strict=True):
            writer.write(request)
        answers = [await asyncio.wait_for(reader.read(), PATIENCE) for reader, _ in late]
        statuses = [int(answer.split(b" ", 2)[1]) for answer in answers]
        assert statuses == [200, 200, 503, 101]
        assert answers[0].endswith(b"the app's own")
        assert answers[3].endswith(frames.close_frame(1012, ""))
        assert await silent.read() == b""
    assert await asyncio.to_thread(server.process.wait) == 0
    assert not re.search("WARNING|ERROR|CRITICAL|Traceback", server.printed()), server.printed()


ENDING = """
from backchannel import Hub, Listener

hub = Hub()

@hub.endpoint("/ws/end")
class Ending(Listener):
    def on_close(self, ws, reason):
        print("ended with", reason.code, reason.text, "by", reason.by)
"""
NATIVE = (
    "uvicorn ending:hub --port {port} --ws backchannel.transport.uvicorn:Protocol"
    " --http backchannel.transport.uvicorn:HttpProtocol"
)


async def test_who_becomes_a_websocket_at_the_very_end_is_told_of_that_end(start, tmp_path):
    """By the hub that has it by then, and not past it by uvicorn's protocol, which gave it away."""
    (tmp_path / "ending.py").write_text(ENDING)
    server = start("uvicorn-native", NATIVE, cwd=tmp_path)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    served, ask = await asyncio.open_connection("127.0.0.1", server.port)
    ask.write(HEALTH)
    assert (await served.readline()).startswith(b"HTTP/1.1 ")  # so that both are let in
    server.process.signal(signal.SIGTERM)
    await served.read()  # to its end: uvicorn hangs up
    writer.write(UPGRADE % b"/ws/end")
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    assert answer.startswith(b"HTTP/1.1 101 ")
    said = frames.close_frame(1012, "server is restarting")
    assert await asyncio.wait_for(reader.readexactly(len(said)), PATIENCE) == said
    writer.write(b"\x88\x80\0\0\0\0")
    assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
    for each in (writer, ask):
        each.close()
    assert await asyncio.to_thread(server.process.wait) is not None
    assert "ended with 1012 server is restarting by server" in server.printed()


async def test_http_is_served_while_it_drains(run, apps):
    folder = apps(enabled=False)
    server = run("--drain", "600", target=str(folder / "apps.py:wrapped"))
    async with server.connect("/ws/echo"), httpx.AsyncClient(trust_env=False) as http:
        server.process.signal(signal.SIGTERM)
        await server.until_ready_is(503)
        assert (await http.get(server.http + "/healthz")).text == "the app's own"
        server.process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.process.wait) == 0
