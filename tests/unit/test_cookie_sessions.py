"""A session that lives in a cookie ends at a known time, and its sockets with it."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import httpx
import pytest
from django.core import signing
from flask import Flask
from flask import session as flask_session
from quart import Quart
from quart import session as quart_session
from shared import request_with
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starsessions import CookieStore, SessionAutoloadMiddleware
from starsessions import SessionMiddleware as StarsessionsMiddleware

from backchannel import Hub, Listener
from backchannel.session.django import _end_of_signed
from backchannel.session.flask import FlaskSessions
from backchannel.session.quart import QuartSessions
from backchannel.session.scope import in_scope
from backchannel.session.web import Session

AGE = 60


class Room(Listener):
    def on_message(self, ws, message: str):
        return message


def starlette_app(add, hub=None):
    """An app with a login at /login, with sessions as ``add`` adds them."""

    async def login(request):
        request.session["user"] = "ana"
        return PlainTextResponse("")

    app = Starlette(routes=[Route("/login", login), Mount("/live", hub or Hub())])
    add(app)
    return app


async def cookies_of(app):
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="https://testserver"
    ) as http:
        await http.get("/login")
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in http.cookies.jar)


async def seen(app, cookie):
    """Return the session that a hub finds which is mounted in the app."""
    scopes = []

    async def find(scope, receive, send):
        scopes.append(scope)

    app.router.routes.append(Mount("/find", find))
    scope = {
        "type": "websocket", "path": "/find/ws", "root_path": "", "query_string": b"",
        "headers": [(b"cookie", cookie.encode())],
    }  # fmt: skip
    await app(scope, None, None)
    app.router.routes.pop()
    return await in_scope(scopes[0])


def plain(app):
    app.add_middleware(SessionMiddleware, secret_key="the secret", max_age=AGE)


def positional(app):
    app.add_middleware(SessionMiddleware, "the secret", "my_session", AGE)


def in_starsessions(app):
    app.add_middleware(SessionAutoloadMiddleware)
    store = CookieStore("the secret")
    app.add_middleware(StarsessionsMiddleware, store=store, lifetime=AGE)


@pytest.mark.parametrize("add", [plain, positional, in_starsessions])
async def test_the_end_of_starlettes_cookie_is_known(add):
    app = starlette_app(add)
    session = await seen(app, await cookies_of(app))
    assert session["user"] == "ana"
    assert session.ends_at == pytest.approx(time.time() + AGE, abs=3)


async def test_of_two_cookies_the_one_that_ends_first_counts(monkeypatch):
    app = starlette_app(plain)
    now = await cookies_of(app)
    signed_at = time.time() - 30
    with monkeypatch.context() as patch:
        patch.setattr("itsdangerous.timed.time.time", lambda: signed_at)
        before = await cookies_of(app)
    for cookies in (f"{before}; {now}", f"{now}; {before}"):
        session = await seen(app, cookies)
        assert session.ends_at == int(signed_at) + AGE + 1


async def test_a_cookie_for_as_long_as_the_browser_runs_has_no_known_end():
    def endless(app):
        app.add_middleware(SessionMiddleware, secret_key="the secret", max_age=None)

    app = starlette_app(endless)
    assert (await seen(app, await cookies_of(app))).ends_at is None


async def test_sessions_of_other_middleware_have_no_known_end():
    assert (await in_scope({"session": {"user": "ana"}, "headers": []})).ends_at is None


async def test_the_end_of_flasks_and_quarts_cookie_is_known():
    flask, quart = Flask("cookie"), Quart("cookie")
    for app in (flask, quart):
        app.config.update(SECRET_KEY="the secret", PERMANENT_SESSION_LIFETIME=AGE)

    @flask.get("/login")
    def login():
        flask_session.permanent = True
        flask_session["user"] = "ana"
        return ""

    @quart.get("/login")
    async def quart_login():
        quart_session["user"] = "ana"
        return ""

    client = flask.test_client()
    await asyncio.to_thread(client.get, "/login")
    value = client.get_cookie("session").value
    quart_client = quart.test_client()
    await quart_client.get("/login")
    (cookie,) = quart_client.cookie_jar
    for sessions, request in (
        (FlaskSessions(flask), request_with({"session": value})),
        (QuartSessions(quart), request_with({"session": cookie.value})),
    ):
        session = await sessions.find(request)
        assert session["user"] == "ana"
        assert session.ends_at == pytest.approx(time.time() + AGE, abs=3)


def test_the_end_of_djangos_cookie_is_known():
    class Engine:
        def __init__(self, key):
            self.key = key

        def get_session_cookie_age(self):
            return AGE

    key = signing.TimestampSigner(key="the secret", fallback_keys=[]).sign_object({"user": "ana"})
    assert _end_of_signed(Engine, key) == pytest.approx(time.time() + AGE, abs=3)


# ── what follows ──────────────────────────────────────────────────────────────────────────────


async def hub_with(ends_at, **settings):
    class Found:
        async def find(self, request):
            return Session({"user": "ana"}, ends_at=ends_at)

    hub = Hub(session=Found(), **settings)
    hub.add("/ws", Room)
    return hub


async def test_its_sockets_end_with_it_and_not_before():
    end = time.time() + 0.3
    hub = await hub_with(end)
    async with hub.test_client("/ws") as client:
        with pytest.raises(Exception, match="closed with 4007 session expired"):
            await client.receive(timeout=10)
        assert time.time() >= end
    await hub.stop()


@pytest.mark.parametrize(
    ("token", "session", "text"),
    [(0.2, 60, "token expired"), (60, 0.2, "session expired"), (None, 0.2, "session expired")],
)
async def test_whichever_ends_first_ends_the_connection(token, session, text):
    now = time.time()
    identity = SimpleNamespace(id="ana", expires_at=None if token is None else now + token)
    hub = await hub_with(now + session, authenticate=lambda request: identity)
    async with hub.test_client("/ws") as client:
        with pytest.raises(Exception, match=f"closed with 4007 {text}"):
            await client.receive(timeout=10)
    await hub.stop()


async def test_a_newer_token_does_not_outlive_the_session():
    now = time.time()
    identity = SimpleNamespace(id="ana", expires_at=now + 60)
    hub = await hub_with(now + 0.3, authenticate=lambda request: identity)
    async with hub.test_client("/ws") as client:
        client.connection.renew(SimpleNamespace(id="ana", expires_at=now + 120))
        with pytest.raises(Exception, match="closed with 4007 session expired"):
            await client.receive(timeout=10)
    await hub.stop()


async def test_behind_the_real_middleware_a_socket_ends_when_its_cookie_does():
    """Real time is the subject."""
    hub = Hub(authenticate=lambda request: request.session.get("user"), require_user=True)
    hub.add("/ws", Room)
    app = starlette_app(
        lambda app: app.add_middleware(SessionMiddleware, secret_key="the secret", max_age=1), hub
    )
    cookie = await cookies_of(app)

    async def handshake():
        """Return how the socket ended, or that it was refused."""
        events, closed, has_closed = [], {}, asyncio.Event()
        first = iter([{"type": "websocket.connect"}])

        async def receive():
            if (event := next(first, None)) is None:
                await has_closed.wait()
                return {"type": "websocket.disconnect", "code": closed["code"]}
            return event

        async def send(event):
            events.append(event["type"])
            if event["type"] == "websocket.close":
                closed.update(event)
                has_closed.set()

        scope = {
            "type": "websocket", "path": "/live/ws", "root_path": "", "query_string": b"",
            "headers": [(b"cookie", cookie.encode())],
        }  # fmt: skip
        await asyncio.wait_for(app(scope, receive, send), 10)
        return events[0], closed.get("code"), closed.get("reason")

    assert await handshake() == ("websocket.accept", 4007, "session expired")
    assert (await handshake())[0] == "websocket.close"  # and the cookie opens nothing any more
    await hub.stop()
