"""One app of each framework that tells what it makes of a Cookie header, for test_cookies.py.

``/put?user=…`` signs in, ``/see`` shows the session and the cookies, and a socket at ``/ws/see``
(below ``/live`` where the hub is mounted) shows what a listener has of both.
"""

from __future__ import annotations

import os
from typing import Any

import django
from a2wsgi import WSGIMiddleware
from cachelib.file import FileSystemCache
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import JsonResponse
from django.urls import path
from flask import Flask
from flask import request as flask_request
from flask import session as flask_session
from flask_session import Session as FlaskSession
from litestar import Litestar, asgi, get
from litestar import Request as LitestarRequest
from litestar.middleware.session.client_side import CookieBackendConfig
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar.stores.memory import MemoryStore
from litestar.types import Receive, Scope, Send
from quart import Quart
from quart import request as quart_request
from quart import session as quart_session
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starsessions import InMemoryStore, load_session
from starsessions import SessionMiddleware as ServerSide

from backchannel import Connection, Hub
from backchannel.session.django import DjangoSessions
from backchannel.session.flask import FlaskSessions
from backchannel.session.litestar import LitestarSessions
from backchannel.session.quart import QuartSessions


def make_hub(**settings: Any) -> Hub:
    hub = Hub(**settings)

    @hub.endpoint("/ws/see")
    def see(ws: Connection, message: str) -> dict[str, Any]:
        return {
            "user": ws.session.get("user"),
            "cookies": dict(ws.cookies),
            "all": {name: ws.cookies.getlist(name) for name in ws.cookies},
        }

    return hub


def seen(session: Any, cookies: Any) -> dict[str, Any]:
    return {"user": session.get("user"), "cookies": {name: cookies[name] for name in cookies}}


# ── Starlette ─────────────────────────────────────────────────────────────────────────────────


def make_starlette(middleware: Middleware) -> Starlette:
    async def put(request: Request) -> JSONResponse:
        if "session_handler" in request.scope:
            await load_session(request)
        request.session["user"] = request.query_params["user"]
        return JSONResponse({})

    async def see(request: Request) -> JSONResponse:
        if "session_handler" in request.scope:
            await load_session(request)
        return JSONResponse(seen(request.session, request.cookies))

    routes = [Route("/put", put), Route("/see", see), Mount("/live", make_hub())]
    return Starlette(routes=routes, middleware=[middleware])


starlette = make_starlette(Middleware(SessionMiddleware, secret_key="the secret"))
starsessions = make_starlette(
    Middleware(ServerSide, store=InMemoryStore(), lifetime=3600, cookie_https_only=False)
)


# ── Django ────────────────────────────────────────────────────────────────────────────────────


def django_put(request: Any) -> JsonResponse:
    request.session["user"] = request.GET["user"]
    return JsonResponse({})


def django_see(request: Any) -> JsonResponse:
    return JsonResponse(seen(request.session, request.COOKIES))


urlpatterns = [path("put", django_put), path("see", django_see)]


def make_django() -> Any:
    settings.configure(
        SECRET_KEY="the secret",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
        SESSION_ENGINE="django.contrib.sessions.backends.file",
        SESSION_FILE_PATH=os.environ["CACHE"],
        SESSION_COOKIE_NAME="session",
        USE_TZ=True,
        TIME_ZONE="UTC",
    )
    django.setup()
    return make_hub(session=DjangoSessions()).wrap(get_asgi_application())


# ── Flask and Quart ───────────────────────────────────────────────────────────────────────────


def make_flask(**config: Any) -> Any:
    app = Flask("cookies")
    app.config.update(SECRET_KEY="the secret", **config)
    if config:
        FlaskSession(app)

    @app.get("/put")
    def put() -> dict[str, Any]:
        flask_session["user"] = flask_request.args["user"]
        return {}

    @app.get("/see")
    def see() -> dict[str, Any]:
        return seen(flask_session, flask_request.cookies)

    return make_hub(session=FlaskSessions(app)).wrap(WSGIMiddleware(app))


def make_quart() -> Any:
    app = Quart("cookies")
    app.secret_key = "the secret"

    @app.get("/put")
    async def put() -> dict[str, Any]:
        quart_session["user"] = quart_request.args["user"]
        return {}

    @app.get("/see")
    async def see() -> dict[str, Any]:
        return seen(quart_session, quart_request.cookies)

    return make_hub(session=QuartSessions(app)).wrap(app)


# ── Litestar ──────────────────────────────────────────────────────────────────────────────────


def make_litestar(config: Any, bridge: Any) -> Litestar:
    hub = make_hub(session=bridge)

    @get("/put")
    async def put(request: LitestarRequest[Any, Any, Any], user: str) -> dict[str, Any]:
        request.session["user"] = user
        return {}

    @get("/see")
    async def see(request: LitestarRequest[Any, Any, Any]) -> dict[str, Any]:
        return seen(request.session, request.cookies)

    @asgi("/live", is_mount=True, copy_scope=True)
    async def live(scope: Scope, receive: Receive, send: Send) -> None:
        await hub(scope, receive, send)

    return Litestar(
        [put, see, live], middleware=[config.middleware], stores={"sessions": MemoryStore()}
    )


# ── all in one server, by the host ────────────────────────────────────────────────────────────

server_side = ServerSideSessionConfig()
APPS = {
    "starlette": starlette,
    "starsessions": starsessions,
    "django": make_django(),
    "flask": make_flask(),
    "flask-session": make_flask(
        SESSION_TYPE="cachelib",
        SESSION_CACHELIB=FileSystemCache(os.environ["CACHE"] + "/flask", threshold=1000),
    ),
    "quart": make_quart(),
    "litestar": make_litestar(CookieBackendConfig(secret=b"0123456789abcdef"), None),
    "litestar-server": make_litestar(server_side, LitestarSessions(server_side)),
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Hand over to the app that the host names; each starts at its first use."""
    if scope["type"] == "lifespan":
        return
    host = dict(scope["headers"])[b"host"].decode().partition(".")[0]
    await APPS[host](scope, receive, send)
