"""Several applications in one process, as alike as can be, for test_applications.py.

Two FastAPI apps with hubs of their own below /one and /two, and two at the hosts left.localhost and
right.localhost; another keeps its sessions with starsessions; Django has django.localhost.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Host, Mount
from starsessions import InMemoryStore, load_session
from starsessions import SessionMiddleware as ServerSide
from telling import Chat

from backchannel import Hub


def make_app(name: str, path: str) -> FastAPI:
    """An app like the other one, but for its name, its secret, and the path of its cookie."""
    hub = Hub(authenticate=lambda request: request.session.get("user"))
    hub.add("/ws/chat/{channel}", Chat)
    app = FastAPI()
    app.add_middleware(SessionMiddleware, secret_key=f"the secret of {name}", path=path)
    app.mount("/live", hub)

    @app.post("/login")
    async def login(request: Request, user: str) -> dict[str, Any]:
        request.session.update(user=user, app=name)
        return {"sid": await hub.remember(request)}

    @app.post("/logout")
    async def logout(request: Request, sid: str) -> dict[str, Any]:
        request.session.clear()
        sent = await hub.session(sid).close(4004, "signed out")
        return {"closed": sent.reached}

    @app.post("/tell")
    async def tell(channel: str, user: str) -> dict[str, Any]:
        """Use every audience there is, and say how many each reached."""
        reached = [
            (await sent).reached
            for sent in (
                hub.broadcast(channel, f"channel of {name}"),
                hub.user(user).send(f"user of {name}"),
                hub.everyone.send(f"everyone of {name}"),
            )
        ]
        return {"reached": reached}

    return app


def make_server_side() -> FastAPI:
    """An app that keeps its sessions on the server."""
    hub = Hub(authenticate=lambda request: request.session.get("user"), session_check=0.05)
    hub.add("/ws/chat/{channel}", Chat)
    app = FastAPI()
    app.add_middleware(
        ServerSide, store=InMemoryStore(), lifetime=3600, rolling=True, cookie_https_only=False
    )
    app.mount("/live", hub)

    @app.post("/login")
    async def login(request: Request, user: str) -> dict[str, Any]:
        await load_session(request)
        request.session["user"] = user
        return {"sid": await hub.remember(request)}

    @app.post("/logout")
    async def logout(request: Request) -> dict[str, Any]:
        await load_session(request)
        request.session.clear()
        return {}

    @app.get("/me")
    async def me(request: Request) -> JSONResponse:
        await load_session(request)
        return JSONResponse(json.loads(json.dumps(request.session)))

    @app.post("/note")
    async def note(request: Request, text: str) -> dict[str, Any]:
        await load_session(request)
        request.session["note"] = text
        return {}

    return app


def make_django() -> Any:
    """The Django example."""
    from serve import application

    return application


one, two = make_app("one", "/one"), make_app("two", "/two")
app = Starlette(
    routes=[
        Mount("/one", one),
        Mount("/two", two),
        Mount("/server", make_server_side()),
        Host("django.localhost", make_django()),
        Host("left.localhost", make_app("left", "/")),
        Host("right.localhost", make_app("right", "/")),
    ]
)
