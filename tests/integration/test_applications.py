"""Several applications in one process, with the same names for everything, never mix.

This is what the system that Backchannel takes its idea from got wrong.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import httpx
import pytest
from clients import ended, read
from websockets.asyncio.client import connect

PROJECT = Path(__file__).parents[2] / "examples" / "django_project"
TRANSPORTS = {
    "portable": "uvicorn applications:app --port {port} --ws websockets-sansio",
    "native": "uvicorn applications:app --port {port} --ws backchannel.transport.uvicorn:Protocol",
}


@pytest.fixture(params=TRANSPORTS)
def server(request, start_once, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / f"applications-{request.param}"
    folder.mkdir(exist_ok=True)
    env = (
        ("DJANGO_SETTINGS_MODULE", "quick_settings"),
        ("DATABASE", str(folder / "db.sqlite3")),
        ("PYTHONPATH", os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])),
    )
    return start_once(f"applications-{request.param}", TRANSPORTS[request.param], env=env)


class Browser:
    """One browser: one jar of cookies for all applications, sent as browsers send them."""

    def __init__(self, server):
        self.server = server
        self.http = httpx.AsyncClient(trust_env=False, timeout=30, verify=False)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.http.aclose()

    def url(self, path, host="127.0.0.1"):
        return f"http://{host}:{self.server.port}{path}"

    async def post(self, path, **query):
        answer = await self.http.post(self.url(path), params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def get(self, path):
        return (await self.http.get(self.url(path))).json()

    def cookies(self, path, host="127.0.0.1"):
        """Return the Cookie header for a URL."""
        request = httpx.Request("GET", self.url(path, host))
        self.http.cookies.set_cookie_header(request)
        return request.headers.get("cookie", "")

    @contextlib.asynccontextmanager
    async def socket(self, app, channel="cars"):
        path = f"/{app}/live/ws/chat/{channel}"
        headers = {"Cookie": self.cookies(path)}
        async with self.server.connect(path, additional_headers=headers) as socket:
            yield socket


async def test_each_listener_sees_its_own_applications_session(server):
    async with Browser(server) as first, Browser(server) as second:
        sids = {
            (browser, app): (await browser.post(f"/{app}/login", user=user))["sid"]
            for browser, app, user in [
                (first, "one", "ana"), (first, "two", "bob"),
                (second, "one", "bob"), (second, "two", "ana"),
            ]
        }  # fmt: skip
        for browser, app, user in [
            (first, "one", "ana"), (first, "two", "bob"),
            (second, "one", "bob"), (second, "two", "ana"),
        ]:  # fmt: skip
            async with browser.socket(app) as socket:
                told = await read(socket)
                assert told["user"] == user
                assert told["session"]["app"] == app
                assert told["id"] == sids[browser, app]


async def test_each_broadcast_stays_in_its_own_application(server):
    async with Browser(server) as ana, Browser(server) as bob:
        for browser, user in ((ana, "ana"), (bob, "bob")):
            await browser.post("/one/login", user=user)
            await browser.post("/two/login", user=user)
        async with (
            ana.socket("one") as ana_one, bob.socket("one") as bob_one,
            ana.socket("two") as ana_two, bob.socket("two") as bob_two,
        ):  # fmt: skip
            for socket in (ana_one, bob_one, ana_two, bob_two):
                await read(socket)
            told = await ana.post("/one/tell", channel="cars", user="ana")
            assert told["reached"] == [2, 1, 2]
            told = await ana.post("/two/tell", channel="cars", user="bob")
            assert told["reached"] == [2, 1, 2]
            await bob_two.send("hello")
            assert [await read(ana_one) for _ in range(3)] == [
                "channel of one", "user of one", "everyone of one"
            ]  # fmt: skip
            assert [await read(bob_one) for _ in range(2)] == ["channel of one", "everyone of one"]
            assert [await read(ana_two) for _ in range(3)] == [
                "channel of two", "everyone of two", "hello"
            ]  # fmt: skip
            assert [await read(bob_two) for _ in range(4)] == [
                "channel of two", "user of two", "everyone of two", "hello"
            ]  # fmt: skip


async def test_a_cookie_of_one_application_is_worthless_at_the_other(server):
    async with Browser(server) as browser:
        await browser.post("/one/login", user="ana")
        cookie = browser.cookies("/one/")
        assert cookie.startswith("session=")
        path = "/two/live/ws/chat/cars"
        async with server.connect(path, additional_headers={"Cookie": cookie}) as socket:
            assert await read(socket) == {"user": None, "session": {}, "id": None}


async def test_signing_out_of_one_application_leaves_the_other_alone(server):
    async with Browser(server) as browser:
        sid = (await browser.post("/one/login", user="ana"))["sid"]
        await browser.post("/two/login", user="ana")
        async with browser.socket("one") as socket_one, browser.socket("two") as socket_two:
            await read(socket_two)
            assert (await browser.post("/two/logout", sid=sid))["closed"] == 0
            assert (await browser.post("/one/logout", sid=sid))["closed"] == 1
            assert await ended(socket_one) == (4004, "signed out")
            await socket_two.send("still here")
            assert await read(socket_two) == "still here"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value[:-4],
        lambda value: value[4:],
        lambda value: value.replace(".", "", 1),
        lambda value: "",
        lambda value: '"' + value[:-2] + '"',
    ],
)
async def test_a_forged_or_truncated_cookie_is_no_session(server, spoil):
    async with Browser(server) as browser:
        await browser.post("/one/login", user="ana")
        name, _, value = browser.cookies("/one/").partition("=")
        headers = {"Cookie": f"{name}={spoil(value)}"}
        async with server.connect("/one/live/ws/chat/cars", additional_headers=headers) as socket:
            assert await read(socket) == {"user": None, "session": {}, "id": None}


async def test_a_session_in_a_cookie_is_read_only_and_says_why(server):
    async with Browser(server) as browser:
        await browser.post("/one/login", user="ana")
        async with browser.socket("one") as socket:
            await read(socket)
            await socket.send("write hello")
            assert "lives in a cookie" in (await read(socket))["refused"]


async def test_starsessions_are_asked_written_and_end_their_sockets(server):
    async with Browser(server) as browser, Browser(server) as stranger:
        sid = (await browser.post("/server/login", user="ana"))["sid"]
        await stranger.post("/server/login", user="bob")
        async with browser.socket("server") as socket, stranger.socket("server") as other:
            assert await read(socket) == {"user": "ana", "session": {"user": "ana"}, "id": sid}
            await socket.send("write from the socket")
            assert await read(socket) == {"saved": True}
            assert (await browser.get("/server/me"))["note"] == "from the socket"
            await browser.post("/server/note", text="from http")
            await socket.send("refresh")
            assert (await read(socket))["session"]["note"] == "from http"
            await browser.post("/server/logout")
            assert await ended(socket) == (4004, "session ended")
            await read(other)
            await other.send("still here")
            assert await read(other) == "still here"


async def test_fastapi_and_django_in_one_process(server):
    async with Browser(server) as browser:
        login = browser.url("/accounts/login/", "django.localhost")
        local = httpx.AsyncHTTPTransport(verify=False)
        async with httpx.AsyncClient(transport=_ToLoopback(local), timeout=30) as http:
            page = await http.get(login)
            token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.text)[1]
            form = {"username": "ana", "password": "chat", "csrfmiddlewaretoken": token}
            answer = await http.post(login, data=form, follow_redirects=True)
            assert "Lobby" in answer.text
            cookie = "; ".join(f"{c.name}={c.value}" for c in http.cookies.jar)
        await browser.post("/one/login", user="bob")
        path = f"ws://django.localhost:{server.port}/ws/chat/cars"
        async with (
            connect(
                path, host="127.0.0.1", port=server.port, proxy=None,
                additional_headers={"Cookie": cookie},
            ) as django,
            browser.socket("one") as fastapi,
        ):  # fmt: skip
            assert await read(django) == "Welcome to cars, ana."
            assert (await read(fastapi))["user"] == "bob"
            assert (await browser.post("/one/tell", channel="cars", user="1"))["reached"] == [
                1, 0, 1
            ]  # fmt: skip
            await django.send("hello")
            assert await read(django) == "ana (black): hello"
            assert [await read(fastapi) for _ in range(2)] == ["channel of one", "everyone of one"]


class _ToLoopback(httpx.AsyncBaseTransport):
    """Send requests for any host to this machine, with the Host that they are for."""

    def __init__(self, transport):
        self._transport = transport

    async def handle_async_request(self, request):
        url = request.url.copy_with(host="127.0.0.1")
        here = httpx.Request(request.method, url, headers=request.headers, stream=request.stream)
        return await self._transport.handle_async_request(here)

    async def aclose(self):
        await self._transport.aclose()
