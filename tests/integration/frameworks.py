"""Apps of several frameworks with a hub in each, for test_frameworks.py."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from fastapi import Depends, FastAPI, WebSocket, WebSocketException
from litestar import Litestar, get
from litestar import asgi as litestar_asgi
from litestar import websocket as litestar_websocket
from litestar.connection import WebSocket as LitestarWebSocket
from litestar.types import Receive, Scope, Send
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute

from backchannel import Connection, Hub, Listener


def say(text: str) -> None:
    """Tell the test, which reads what the server prints."""
    sys.stderr.write(f"SAID {text}\n")


def make_hub(**settings: Any) -> Hub:
    hub = Hub(**settings)

    @hub.endpoint("/ws/echo")
    def echo(ws: Connection, message: str) -> str:
        return message

    @hub.endpoint("/ws/where/{channel}", channel="where:{channel}")
    class Where(Listener):
        def on_open(self, ws: Connection) -> None:
            ws.send({"channel": ws.channel, "path": ws._facts.path, "app": type(ws.app).__name__})

        def on_message(self, ws: Connection, message: str) -> None:
            ws.broadcast(message)

        def on_close(self, ws: Connection, reason: Any) -> None:
            say(f"closed {reason.code} {reason.by}")

    hub.page("/", "page.html")
    hub.page("/more/page.html", "page.html")
    return hub


class Chat(Listener):
    """DESIGN's listener behind FastAPI's own door."""

    def on_open(self, ws: Connection) -> None:
        ws.send({"user": ws.user, "channel": ws.channel, "params": dict(ws.params)})

    def on_message(self, ws: Connection, message: str) -> None:
        ws.broadcast(message)

    def on_close(self, ws: Connection, reason: Any) -> None:
        say(f"left {reason.code} {reason.by}")


async def current_user(name: str = "") -> Any:
    if not name:
        raise WebSocketException(1008, "who are you?")
    return SimpleNamespace(id=name)


# ── FastAPI ───────────────────────────────────────────────────────────────────────────────────

fastapi_hub = make_hub()
fastapi = FastAPI(lifespan=fastapi_hub.lifespan)
fastapi.mount("/live", fastapi_hub)


@fastapi.websocket("/ws/chat/{channel}")
async def chat(websocket: WebSocket, channel: str, user: Any = Depends(current_user)) -> None:  # noqa: B008 - as FastAPI wants it
    await fastapi_hub.serve(websocket, Chat, user=user.id, params={"channel": channel})


@fastapi.websocket("/ws/accepted/{channel}")
async def accepted(websocket: WebSocket, channel: str, user: Any = Depends(current_user)) -> None:  # noqa: B008 - as FastAPI wants it
    await websocket.accept()
    await websocket.send_text("hello from the route")
    await fastapi_hub.serve(
        websocket, Chat, user=user.id, params={"channel": channel}, channel="accepted:{channel}"
    )
    say("the route went on")


@fastapi.websocket("/ws/own")
async def own(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(f"own {await websocket.receive_text()}")
    await websocket.close(4200)


@fastapi.get("/api")
async def api() -> str:
    return "api"


@fastapi.post("/announce/{channel}")
async def announce(channel: str) -> int | None:
    return fastapi_hub.broadcast(channel, "announced").reached


@fastapi.post("/announce-in-thread/{channel}")
def announce_in_thread(channel: str) -> int | None:
    return fastapi_hub.broadcast(channel, "announced").result(5).reached


without_lifespan_hub = make_hub()
without_lifespan = FastAPI()
without_lifespan.mount("/live", without_lifespan_hub)


# ── Starlette ─────────────────────────────────────────────────────────────────────────────────


async def homepage(request: Request) -> PlainTextResponse:
    return PlainTextResponse("api")


async def own_socket(websocket: Any) -> None:
    await own(websocket)


def starlette_at(path: str) -> Starlette:
    hub = make_hub()
    routes = [Route("/api", homepage), WebSocketRoute("/ws/own", own_socket), Mount(path, hub)]
    return Starlette(routes=routes, lifespan=hub.lifespan)


starlette_root = starlette_at("/")
starlette_prefix = starlette_at("/live")
starlette_nested = Starlette(routes=[Mount("/v1", starlette_at("/deep/live"))])
bare = make_hub()


# ── wrapped ───────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def talkative(app: object) -> AsyncIterator[dict[str, str]]:
    say("inner started")
    yield {"note": "from the lifespan"}
    say("inner stopped")


async def state(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.state.note)


with_lifespan = make_hub().wrap(
    Starlette(
        routes=[
            Route("/api", homepage),
            Route("/state", state),
            WebSocketRoute("/ws/own", own_socket),
        ],
        lifespan=talkative,
    )
)


async def django_like(scope: Any, receive: Any, send: Any) -> None:
    """Speak HTTP only, and raise at all else, as Django does."""
    if scope["type"] != "http":
        raise ValueError(f"can only handle HTTP connections, not {scope['type']}.")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"api"})


no_lifespan = make_hub().wrap(django_like)


@contextlib.asynccontextmanager
async def failing(app: object) -> AsyncIterator[None]:
    raise RuntimeError("no database")
    yield


fails_to_start = make_hub().wrap(Starlette(lifespan=failing))


# ── Litestar ──────────────────────────────────────────────────────────────────────────────────

litestar_hub = make_hub()


@litestar_asgi("/live", is_mount=True, copy_scope=True)
async def live(scope: Scope, receive: Receive, send: Send) -> None:
    await litestar_hub(scope, receive, send)


@litestar_websocket("/ws/own")
async def litestar_own(socket: LitestarWebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    await socket.send_text(f"own {await socket.receive_text()}")
    await socket.close(4200)


@litestar_websocket("/ws/chat/{channel:str}")
async def litestar_chat(socket: LitestarWebSocket[Any, Any, Any], channel: str) -> None:
    await litestar_hub.serve(socket, Chat, user="lit", params={"channel": channel})


@get("/api")
async def litestar_api() -> str:
    return "api"


litestar = Litestar(
    [live, litestar_own, litestar_chat, litestar_api], lifespan=[litestar_hub.lifespan]
)
