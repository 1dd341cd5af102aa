"""A hub inside the apps of others: mounted, wrapped, behind their own doors."""

from __future__ import annotations

import asyncio
import json
import re
import signal

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from backchannel.cli.doctor import diagnose

UVICORN = {
    "portable": "uvicorn frameworks:{app} --port {{port}} --ws websockets-sansio",
    "native": "uvicorn frameworks:{app} --port {{port}} "
    "--ws backchannel.transport.uvicorn:Protocol "
    "--http backchannel.transport.uvicorn:HttpProtocol",
}


@pytest.fixture(params=UVICORN)
def transport(request):
    return request.param


@pytest.fixture
def serving(start_once, transport):
    """Return the server of an app, started once: ``serving("fastapi")``."""

    def find(app, options=""):
        return start_once(f"{transport}-{app}", UVICORN[transport].format(app=app) + options)

    return find


async def talk(server, path, *messages, answers=None):
    """Send messages and return the answers, as many as messages by default."""
    async with server.connect(path) as client:
        for message in messages:
            await client.send(message)
        count = len(messages) if answers is None else answers
        return [await asyncio.wait_for(client.recv(), 10) for _ in range(count)]


MOUNTS = {
    "fastapi": "/live",
    "without_lifespan": "/live",
    "starlette_root": "",
    "starlette_prefix": "/live",
    "starlette_nested": "/v1/deep/live",
    "litestar": "/live",
    "bare": "",
    "with_lifespan": "",
    "no_lifespan": "",
}


@pytest.fixture(params=MOUNTS)
def mounted(request, serving):
    return serving(request.param), MOUNTS[request.param]


async def test_endpoints_below_the_mount(mounted):
    server, mount = mounted
    assert await talk(server, f"{mount}/ws/echo", "a", "b") == ["a", "b"]
    (told,) = await talk(server, f"{mount}/ws/where/caf%C3%A9%2Fx", answers=1)
    told = json.loads(told)
    assert (told["channel"], told["path"]) == ("where:café/x", "/ws/where/café/x")
    with pytest.raises(InvalidStatus) as caught:
        await talk(server, f"{mount}/ws/nothing", "a")
    assert caught.value.response.status_code in {403, 404, 500}


@pytest.mark.parametrize("app", sorted(set(MOUNTS) - {"with_lifespan", "no_lifespan"}))
async def test_near_misses_are_named_with_the_mount(serving, app):
    server, mount = serving(app), MOUNTS[app]
    with pytest.raises(InvalidStatus) as caught:
        await talk(server, f"{mount}/ws/eccho", "a")
    assert caught.value.response.status_code == 404
    seen = [caught.value.response.body.decode(), (await server.get(f"{mount}/ws/eccho")).text]
    for text in seen:
        assert f"Nothing is served at {mount}/ws/eccho." in text
        assert f" {mount}/ws/echo" in text.partition("nearest")[2]


async def test_the_doctor_says_of_a_frameworks_bare_403_that_there_is_no_route(serving):
    diagnosis = await diagnose(f"ws://127.0.0.1:{serving('fastapi').port}/ws/nothing/here")
    assert "without a word" in diagnosis.title
    assert "Compare /ws/nothing/here with the application's routes" in diagnosis.advice[0]


async def test_page_below_the_mount(mounted):
    server, mount = mounted
    for path in (f"{mount}/", f"{mount}/more/page.html"):
        answer = await server.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "A page of the hub" in answer.text
    assert (await server.request("HEAD", f"{mount}/")).text == ""
    answer = await server.get(f"{mount}/ws/echo")
    assert answer.status_code == 426
    assert answer.text.startswith(f"{mount}/ws/echo speaks WebSocket")


@pytest.mark.parametrize("app", sorted(set(MOUNTS) - {"bare", "without_lifespan"}))
async def test_the_frameworks_own_routes_work_beside(serving, app):
    server = serving(app)
    prefix = "/v1" if app == "starlette_nested" else ""
    assert (await server.get(f"{prefix}/api")).text.strip('"') == "api"
    if app == "no_lifespan":
        return  # it has no WebSockets of its own
    async with server.connect(f"{prefix}/ws/own") as client:
        await client.send("words")
        assert await client.recv() == "own words"
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
        assert caught.value.rcvd.code == 4200


@pytest.mark.parametrize(
    ("app", "path"),
    [("bare", "/ws/where/x"), ("fastapi", "/live/ws/where/x"), ("starlette_root", "/ws/where/x")],
)
async def test_behind_uvicorns_root_path(serving, app, path):
    """The proxy cuts /behind off; uvicorn is told so and puts it back."""
    server = serving(app, " --root-path /behind")
    (told,) = await talk(server, path, answers=1)
    assert json.loads(told)["path"] == "/ws/where/x"
    page = path.replace("ws/where/x", "")
    assert "A page of the hub" in (await server.get(page)).text
    missing = (await server.get(path.replace("where/x", "eccho"))).text
    prefix = "/behind" + path.removesuffix("/ws/where/x")
    assert f"Nothing is served at {prefix}/ws/eccho." in missing
    assert f" {prefix}/ws/echo" in missing.partition("nearest")[2]


@pytest.mark.parametrize("path", ["/ws/where/x", "/behind/ws/where/x"])
@pytest.mark.parametrize(
    "command",
    [
        "hypercorn frameworks:bare --bind 127.0.0.1:{port} --root-path /behind",
        "granian --interface asgi frameworks:bare --port {port} --url-path-prefix /behind",
    ],
    ids=["hypercorn", "granian"],
)
async def test_behind_the_root_path_of_others(start_once, command, path):
    """They leave the path as it came, cut by the proxy or not."""
    server = start_once(command.partition(" ")[0] + "-behind", command)
    (told,) = await talk(server, path, answers=1)
    assert json.loads(told)["path"] == "/ws/where/x"


# ── FastAPI's own door ────────────────────────────────────────────────────────────────────────


async def test_serve_behind_a_route_with_dependencies(serving):
    server = serving("fastapi")
    async with (
        server.connect("/ws/chat/cars?name=ana") as ana,
        server.connect("/ws/chat/cars?name=bob") as bob,
        server.connect("/ws/chat/boats?name=cem") as cem,
    ):
        for client, name, channel in (
            (ana, "ana", "cars"),
            (bob, "bob", "cars"),
            (cem, "cem", "boats"),
        ):
            told = json.loads(await client.recv())
            assert told == {"user": name, "channel": channel, "params": {"channel": channel}}
        await ana.send("hello")
        assert [await ana.recv(), await bob.recv()] == ["hello", "hello"]
        assert (await server.request("POST", "/announce/cars")).json() == 2
        assert (await server.request("POST", "/announce-in-thread/boats")).json() == 1
        assert [await ana.recv(), await bob.recv(), await cem.recv()] == ["announced"] * 3
        await cem.close(4321, "enough")
        server.process.wait_for_output("SAID left 4321 client")


async def test_a_dependency_that_refuses(serving):
    with pytest.raises(InvalidStatus) as caught:
        await talk(serving("fastapi"), "/ws/chat/cars", answers=1)
    assert caught.value.response.status_code == 403


async def test_serve_after_the_route_accepted(serving):
    server = serving("fastapi")
    async with server.connect("/ws/accepted/cars?name=ana") as ana:
        assert await ana.recv() == "hello from the route"
        told = json.loads(await ana.recv())
        assert (told["user"], told["channel"]) == ("ana", "accepted:cars")
        await ana.send("hello")
        assert await ana.recv() == "hello"
    server.process.wait_for_output("SAID the route went on")


async def test_serve_inside_litestar(serving):
    (told,) = await talk(serving("litestar"), "/ws/chat/cars", answers=1)
    assert json.loads(told) == {"user": "lit", "channel": "cars", "params": {"channel": "cars"}}


# ── start and stop ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "app",
    ["fastapi", "without_lifespan", "starlette_root", "litestar", "with_lifespan", "no_lifespan"],
)
async def test_stop_ends_every_connection(start, transport, app):
    server = start(f"{transport}-{app}-stops", UVICORN[transport].format(app=app))
    path = MOUNTS[app] + "/ws/where/x"
    async with server.connect(path) as client:
        await client.recv()
        server.process.signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
        assert caught.value.rcvd.code == 1012
    await asyncio.to_thread(server.process.wait)
    printed = server.printed()
    assert printed.count("SAID closed 1012 server") == 1
    assert "Traceback" not in printed
    assert not re.search("ERROR", printed)


async def test_wrapped_apps_lifespan_runs_around_and_its_state_reaches_it(start):
    server = start("uvicorn-lifespan", UVICORN["native"].format(app="with_lifespan"))
    assert server.printed().count("SAID inner started") == 1
    assert (await server.get("/state")).text == "from the lifespan"
    assert "SAID inner stopped" not in server.printed()
    assert server.process.end() in {0, -signal.SIGTERM}
    assert server.printed().count("SAID inner stopped") == 1


def test_wrapped_app_that_fails_to_start_keeps_the_server_from_starting(process):
    server = process("uvicorn", "frameworks:fails_to_start", "--port", "0")
    assert server.wait() == 3
    assert "RuntimeError: no database" in server.output()
