"""The web session of each framework, in its own app with its own login."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

TRANSPORTS = {
    "portable": "uvicorn login_apps:{app} --port {{port}} --ws websockets-sansio",
    "native": "uvicorn login_apps:{app} --port {{port}} "
    "--ws backchannel.transport.uvicorn:Protocol",
}
MOUNTS = {
    "flask_cookie": "",
    "flask_server": "",
    "quart": "",
    "litestar_cookie": "/live",
    "litestar_server": "/live",
}
SERVER_SIDE = ["flask_server", "litestar_server"]


@pytest.fixture(params=TRANSPORTS)
def serve(request, start_once, tmp_path_factory):
    def find(app):
        name = f"{app}-{request.param}"
        env = (("CACHE", str(tmp_path_factory.getbasetemp() / f"cache-{name}")),)
        return start_once(name, TRANSPORTS[request.param].format(app=app), env=env)

    return find


@dataclass
class Browser:
    """An HTTP client that keeps cookies, and opens sockets with them."""

    server: object
    mount: str
    http: httpx.AsyncClient

    async def post(self, path, **query):
        answer = await self.http.post(path, params=query)
        assert answer.is_success, answer.text
        return answer.json()

    async def note(self):
        return (await self.http.get("/note")).json()["note"]

    def connect(self, cookie=None):
        if cookie is None:
            cookie = "; ".join(f"{c.name}={c.value}" for c in self.http.cookies.jar)
        headers = {"Cookie": cookie} if cookie else {}
        return self.server.connect(f"{self.mount}/ws/chat/cars", additional_headers=headers)


@pytest.fixture
async def browse(serve):
    clients = []

    async def come(app, user=None):
        server = serve(app)
        http = httpx.AsyncClient(base_url=server.http, trust_env=False, timeout=30)
        clients.append(http)
        browser = Browser(server, MOUNTS[app], http)
        if user:
            browser.sid = (await browser.post("/login", user=user)).get("sid")
        return browser

    yield come
    for http in clients:
        await http.aclose()


async def read(socket):
    message = await asyncio.wait_for(socket.recv(), 10)
    return json.loads(message) if message[:1] == "{" else message


@pytest.mark.parametrize("app", MOUNTS)
async def test_the_socket_knows_who_signed_in(browse, app):
    ana, bob, nobody = await browse(app, "ana"), await browse(app, "bob"), await browse(app)
    async with ana.connect() as one, bob.connect() as two, nobody.connect() as three:
        assert (await read(one))["user"] == "ana"
        assert (await read(two))["user"] == "bob"
        told = await read(three)
        assert (told["user"], told["session"], told["id"]) == (None, {}, None)


@pytest.mark.parametrize("app", MOUNTS)
async def test_a_forged_or_truncated_cookie_is_no_session(browse, app):
    ana = await browse(app, "ana")
    (cookie,) = ana.http.cookies.jar
    for value in (cookie.value[:-6], cookie.value[6:], "", "null", "x" * 40):
        async with ana.connect(f"{cookie.name}={value}") as socket:
            told = await read(socket)
            assert (told["user"], told["session"]) == (None, {})


@pytest.mark.parametrize("app", [app for app in MOUNTS if app not in SERVER_SIDE])
async def test_a_session_in_a_cookie_is_read_only_and_says_why(browse, app):
    async with (await browse(app, "ana")).connect() as socket:
        await read(socket)
        await socket.send("write hello")
        assert "lives in a cookie" in (await read(socket))["refused"]


async def test_who_planted_a_flask_sessions_id_before_the_login_has_nothing_of_it(browse):
    ana = await browse("flask_server")
    await ana.post("/note", text="before")
    (planted,) = ana.http.cookies.jar
    sid = (await ana.post("/login", user="ana"))["sid"]
    assert await ana.note() == "before"
    async with ana.connect(f"{planted.name}={planted.value}") as socket:
        assert (await read(socket))["user"] is None
    async with ana.connect() as socket:
        told = await read(socket)
        assert (told["user"], told["id"]) == ("ana", sid)


@pytest.mark.parametrize("app", SERVER_SIDE)
async def test_what_the_socket_writes_http_reads_and_the_other_way_round(browse, app):
    ana = await browse(app, "ana")
    async with ana.connect() as socket:
        assert (await read(socket))["id"] == ana.sid
        await socket.send("write by the socket")
        assert await read(socket) == {"saved": True}
        assert await ana.note() == "by the socket"
        await ana.post("/note", text="by http")
        await socket.send("refresh")
        told = await read(socket)
        assert (told["exists"], told["session"]["note"]) == (True, "by http")
        assert told["session"]["user"] == "ana"


@pytest.mark.parametrize("app", ["flask_cookie", *SERVER_SIDE])
async def test_signing_out_closes_the_sockets_of_this_session(browse, app):
    ana, bob = await browse(app, "ana"), await browse(app, "bob")
    async with ana.connect() as socket, bob.connect() as other:
        assert (await read(socket))["id"] == ana.sid
        await read(other)
        assert (await ana.post("/logout", sid=ana.sid))["closed"] == 1
        with pytest.raises(ConnectionClosed) as closed:
            await read(socket)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4004, "signed out")
        await other.send("refresh")
        assert (await read(other))["session"]["user"] == "bob"


@pytest.mark.parametrize("app", SERVER_SIDE)
async def test_a_session_that_was_deleted_is_empty_and_can_not_be_written(browse, app):
    ana = await browse(app, "ana")
    async with ana.connect() as socket:
        await read(socket)
        await ana.post("/logout", sid="another")
        await socket.send("refresh")
        assert await read(socket) == {"exists": False, "session": {}}
        await socket.send("write ghost")
        assert await read(socket) == {"saved": False}
