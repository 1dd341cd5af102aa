"""The Django example: Django's own login page, sessions and users, met in the socket."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import httpx
import pytest
from clients import ended, read
from websockets.exceptions import InvalidStatus

PROJECT = Path(__file__).parents[2] / "examples" / "django_project"
TRANSPORTS = {
    "portable": "uvicorn serve:application --port {port} --ws websockets-sansio",
    "native": "uvicorn serve:application --port {port} --ws backchannel.transport.uvicorn:Protocol",
}
ENGINES = ["db", "cached_db", "cache", "file", "signed_cookies"]
SERVER_SIDE = [engine for engine in ENGINES if engine != "signed_cookies"]


@pytest.fixture(params=TRANSPORTS)
def transport(request):
    return request.param


@pytest.fixture
def serve(start_once, tmp_path_factory, transport):
    """Return the server of the project with a session engine, started once."""

    def find(engine="db"):
        folder = tmp_path_factory.getbasetemp() / f"django-{transport}-{engine}"
        folder.mkdir(exist_ok=True)
        env = (
            ("DJANGO_SETTINGS_MODULE", "quick_settings"),
            ("DATABASE", str(folder / "db.sqlite3")),
            ("CACHE", str(folder / "cache")),
            ("SESSION_ENGINE", f"django.contrib.sessions.backends.{engine}"),
            ("PYTHONPATH", os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])),
        )
        return start_once(f"django-{transport}-{engine}", TRANSPORTS[transport], env=env)

    return find


class Browser:
    """An HTTP client that keeps cookies, and opens sockets with them."""

    def __init__(self, server):
        self.server = server
        self.http = httpx.AsyncClient(
            base_url=server.http, trust_env=False, timeout=30, verify=False
        )

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.http.aclose()

    async def post(self, path, **form):
        form["csrfmiddlewaretoken"] = self.token
        return await self.http.post(path, data=form, follow_redirects=True)

    async def login(self, name, password="chat"):
        page = await self.http.get("/accounts/login/")
        self.token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.text)[1]
        answer = await self.post("/accounts/login/", username=name, password=password)
        if found := re.search(r'csrfmiddlewaretoken" value="(\w+)"', answer.text):
            self.token = found[1]
        return answer

    async def logout(self):
        return await self.post("/accounts/logout/")

    def connect(self, path="/ws/chat/lobby"):
        cookies = "; ".join(f"{c.name}={c.value}" for c in self.http.cookies.jar)
        headers = {"Cookie": cookies} if cookies else {}
        return self.server.connect(path, additional_headers=headers)


@contextlib.asynccontextmanager
async def signed_in(server, name="ana"):
    async with Browser(server) as browser:
        answer = await browser.login(name)
        assert "Lobby" in answer.text
        yield browser


@pytest.mark.parametrize("engine", ENGINES)
async def test_the_socket_knows_who_signed_in_by_djangos_login_page(serve, engine):
    async with signed_in(serve(engine)) as ana, ana.connect("/ws/chat/one") as socket:
        assert await read(socket) == "Welcome to one, ana."


@pytest.mark.parametrize(
    "cookie", ["", "sessionid=", "sessionid=forgedforgedforgedforgedforged12", "SESSIONID=x"]
)
async def test_without_a_session_nobody_gets_in(serve, cookie):
    server = serve()
    with pytest.raises(InvalidStatus) as refused:
        async with server.connect("/ws/chat/lobby", additional_headers={"Cookie": cookie}):
            pass
    assert refused.value.response.status_code == 401


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_truncated_cookie_lets_nobody_in(serve, engine):
    server = serve(engine)
    async with signed_in(server) as ana:
        value = ana.http.cookies["sessionid"]
        for forged in (value[:-1], value[1:], value + "x", f'"{value[:-2]}"'):
            with pytest.raises(InvalidStatus) as refused:
                async with server.connect(
                    "/ws/chat/lobby", additional_headers={"Cookie": f"sessionid={forged}"}
                ):
                    pass
            assert refused.value.response.status_code == 401


@pytest.mark.parametrize("engine", SERVER_SIDE)
async def test_what_the_socket_writes_http_reads_and_the_other_way_round(serve, engine):
    async with signed_in(serve(engine)) as ana, ana.connect("/ws/chat/two") as socket:
        await read(socket)
        await socket.send("/color teal")
        assert await read(socket) == "Your colour is teal."
        assert (await ana.http.get("/color")).json() == {"color": "teal"}
        await ana.post("/color", color="plum")
        await socket.send("hello")
        assert await read(socket) == "ana (plum): hello"
        assert (await ana.http.get("/")).status_code == 200  # still signed in


@pytest.mark.parametrize("engine", SERVER_SIDE)
async def test_signing_out_closes_her_sockets_in_every_tab_and_nobody_elses(serve, engine):
    server = serve(engine)
    async with (
        signed_in(server) as ana,
        signed_in(server, "bob") as bob,
        ana.connect("/ws/chat/three") as tab,
        ana.connect("/ws/chat/three") as other_tab,
        bob.connect("/ws/chat/three") as bobs,
    ):
        await read(bobs)
        answer = await ana.logout()
        assert "Sign in" in answer.text
        assert await ended(tab) == (4004, "signed out")
        assert await ended(other_tab) == (4004, "signed out")
        await bobs.send("still here")
        while "still here" not in (message := await read(bobs)):
            assert message == "ana left"
        with pytest.raises(InvalidStatus) as refused:
            async with ana.connect():
                pass
        assert refused.value.response.status_code == 401


async def test_a_cookie_of_before_the_logout_is_worthless(serve):
    server = serve()
    async with signed_in(server) as ana:
        before = ana.http.cookies["sessionid"]
        await ana.logout()
        with pytest.raises(InvalidStatus) as refused:
            async with server.connect(
                "/ws/chat/lobby", additional_headers={"Cookie": f"sessionid={before}"}
            ):
                pass
        assert refused.value.response.status_code == 401


async def test_a_view_in_a_thread_reaches_the_room(serve):
    async with signed_in(serve()) as ana, ana.connect() as socket:
        await read(socket)
        answer = await ana.post("/announce", text="lunch")
        assert answer.json()["reached"] >= 1
        while (message := await read(socket)) != "Announcement: lunch":
            assert "ana" in message  # those of other tests come and go
