"""Apps whose sessions are kept in Redis, each with a login of its own, for test_redis_sessions.py."""

from __future__ import annotations

import os
from typing import Any

from a2wsgi import WSGIMiddleware
from flask import Flask
from flask import session as flask_session
from flask_session import Session as FlaskSession
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starsessions import SessionAutoloadMiddleware, SessionMiddleware
from starsessions.stores.redis import RedisStore

from backchannel import Connection, Hub, Listener
from backchannel.auth import session_user
from backchannel.session import touch
from backchannel.session.flask import FlaskSessions
from backchannel.session.server import ServerSessions

URL = os.environ["REDIS"]
AGE = 3
touch.TOUCH_EVERY = 0.3  # what is a minute elsewhere: a test has no time


class Room(Listener):
    """Says who it is, and whether the session is still there."""

    async def on_message(self, ws: Connection, message: str) -> Any:
        if message == "refresh":
            return {"exists": await ws.session.refresh(), "user": ws.user}
        return {"user": ws.user}


def make_hub(sessions: Any = None) -> Hub:
    hub = Hub(session=sessions, authenticate=session_user("user"), session_check=0.2)
    hub.add("/ws", Room)
    return hub


def make_flask() -> Any:
    app = Flask("redis")
    app.config.update(
        SESSION_TYPE="redis",
        SESSION_REDIS=Redis.from_url(URL),
        PERMANENT_SESSION_LIFETIME=AGE,
    )
    FlaskSession(app)

    @app.post("/login")
    def login() -> str:
        flask_session["user"] = "ana"
        return ""

    return make_hub(FlaskSessions(app)).wrap(WSGIMiddleware(app))


async def login(request: Request) -> PlainTextResponse:
    request.session["user"] = "ana"
    return PlainTextResponse("")


def make_starlette(hub: Hub) -> Starlette:
    routes = [Route("/login", login, methods=["POST"]), Mount("/", hub)]
    return Starlette(routes=routes, lifespan=hub.lifespan)


starsessions = make_starlette(make_hub())
starsessions.add_middleware(SessionAutoloadMiddleware, paths=["/login"])
starsessions.add_middleware(
    SessionMiddleware, store=RedisStore(connection=AsyncRedis.from_url(URL)), lifetime=AGE,
    rolling=True, cookie_https_only=False,
)  # fmt: skip
_own = ServerSessions(secret="s" * 32, store=URL, max_age=AGE, user="user")
own = make_starlette(make_hub(_own))
own.add_middleware(_own.wrap)
flask = make_flask()
