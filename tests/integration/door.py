"""A FastAPI app with a hub, for what is special about uvicorn's door to the native transport."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
from collections import Counter
from typing import Any

from fastapi import FastAPI, WebSocket

from backchannel import Connection, Hub, Listener, Request

logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")

hub = Hub(**json.loads(os.environ.get("SETTINGS", "{}")))
app = FastAPI(lifespan=hub.lifespan)


class Adding:
    """A middleware that adds headers to the 101, two of one name."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def add(event: Any) -> None:
            if event["type"] == "websocket.accept":
                cookies = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
                event = {**event, "headers": [*event.get("headers", ()), *cookies]}
            await send(event)

        await self.app(scope, receive, add if scope["type"] == "websocket" else send)


app.add_middleware(Adding)


@hub.endpoint("/ws/echo")
def echo(ws: Connection, message: str | bytes) -> str | bytes:
    return message


@hub.endpoint("/ws/where")
def where(ws: Connection, message: str) -> dict[str, Any]:
    return {"client": ws.client, "native": type(ws._link).__name__ == "NativeSocket"}


@hub.endpoint("/ws/hangs")
class Hangs(Listener):
    async def on_handshake(self, request: Request) -> None:
        await asyncio.Event().wait()


@hub.endpoint("/ws/slow")
class Slow(Listener):
    """Answers its handshake when /open-gate was asked for."""

    async def on_handshake(self, request: Request) -> None:
        waiting.set()
        await gate.wait()

    def on_message(self, ws: Connection, message: str) -> str:
        return message


waiting, gate = asyncio.Event(), asyncio.Event()


@app.websocket("/own/echo")
async def own(websocket: WebSocket) -> None:
    if "wait" in websocket.query_params:
        waiting.set()
        await gate.wait()
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(f"own {text}")


@app.websocket("/own/served")
async def served(websocket: WebSocket) -> None:
    await hub.serve(websocket, where)


@app.websocket("/own/nameless/{room}")
async def nameless(websocket: WebSocket) -> None:
    await hub.serve(websocket, where, channel="room:{room}")


@app.post("/open-gate")
async def open_gate() -> None:
    await waiting.wait()
    gate.set()


@app.get("/objects")
async def objects(names: str) -> dict[str, int]:
    """Count what lives, without collecting garbage first: cycles are not excused."""
    gc.disable()
    counts = Counter(type(one).__name__ for one in gc.get_objects())
    return {name: counts[name] for name in names.split(",")}


@app.get("/health")
async def health() -> dict[str, Any]:
    return {"problems": hub.health.problems, "connections": hub.health.connections}


app.mount("/", hub)
