"""Apps of several frameworks, each with a login of its own, for test_sessions.py."""

from __future__ import annotations

import os
from typing import Any

from a2wsgi import WSGIMiddleware
from cachelib.file import FileSystemCache
from flask import Flask
from flask import request as flask_request
from flask import session as flask_session
from flask_session import Session as FlaskSession
from litestar import Litestar, Request, asgi, get, post
from litestar.middleware.session.client_side import CookieBackendConfig
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar.stores.memory import MemoryStore
from litestar.types import Receive, Scope, Send
from quart import Quart
from quart import request as quart_request
from quart import session as quart_session
from telling import Chat

from backchannel import Hub
from backchannel.session.flask import FlaskSessions
from backchannel.session.litestar import LitestarSessions
from backchannel.session.quart import QuartSessions


def make_hub(**settings: Any) -> Hub:
    hub = Hub(authenticate=lambda request: request.session.get("user"), **settings)
    hub.add("/ws/chat/{channel}", Chat)
    return hub


def make_flask(name: str, **config: Any) -> Any:
    app = Flask(name)
    app.config.update(SECRET_KEY=f"the secret of {name}", **config)
    if config:
        FlaskSession(app)
    hub = make_hub(session=FlaskSessions(app))

    @app.post("/login")
    def login() -> dict[str, Any]:
        flask_session["user"] = flask_request.args["user"]
        return {"sid": FlaskSessions.remember(flask_session)}

    @app.post("/logout")
    def logout() -> dict[str, Any]:
        flask_session.clear()
        sent = hub.session(flask_request.args["sid"]).close(4004, "signed out")
        return {"closed": sent.result(timeout=5).reached}

    @app.get("/note")
    def note() -> dict[str, Any]:
        return {"note": flask_session.get("note")}

    @app.post("/note")
    def write() -> dict[str, Any]:
        flask_session["note"] = flask_request.args["text"]
        return {}

    return hub.wrap(WSGIMiddleware(app))


def make_quart() -> Any:
    app = Quart(__name__)
    app.secret_key = "the secret of quart"
    hub = make_hub(session=QuartSessions(app))

    @app.post("/login")
    async def login() -> dict[str, Any]:
        quart_session["user"] = quart_request.args["user"]
        return {}

    @app.get("/note")
    async def note() -> dict[str, Any]:
        return {"note": quart_session.get("note")}

    return hub.wrap(app)


def make_litestar(config: Any, bridge: Any) -> Any:
    hub = make_hub(session=bridge)

    @post("/login")
    async def login(request: Request[Any, Any, Any], user: str) -> dict[str, Any]:
        request.session["user"] = user
        return {"sid": await hub.remember(request)}

    @post("/logout")
    async def logout(request: Request[Any, Any, Any], sid: str) -> dict[str, Any]:
        request.clear_session()
        sent = await hub.session(sid).close(4004, "signed out")
        return {"closed": sent.reached}

    @get("/note")
    async def note(request: Request[Any, Any, Any]) -> dict[str, Any]:
        return {"note": request.session.get("note")}

    @post("/note")
    async def write(request: Request[Any, Any, Any], text: str) -> dict[str, Any]:
        request.session["note"] = text
        return {}

    @asgi("/live", is_mount=True, copy_scope=True)
    async def live(scope: Scope, receive: Receive, send: Send) -> None:
        await hub(scope, receive, send)

    return Litestar(
        [login, logout, note, write, live],
        middleware=[config.middleware],
        stores={"sessions": MemoryStore()},
    )


flask_cookie = make_flask("cookie")
flask_server = make_flask(
    "server",
    SESSION_TYPE="cachelib",
    SESSION_CACHELIB=FileSystemCache(os.environ["CACHE"], threshold=1000),
)
quart = make_quart()
litestar_cookie = make_litestar(CookieBackendConfig(secret=b"0123456789abcdef"), None)
_server_side = ServerSideSessionConfig()
litestar_server = make_litestar(_server_side, LitestarSessions(_server_side))
