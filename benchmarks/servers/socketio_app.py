"""The peer: python-socketio.

Best configuration: WebSocket only, on uvicorn with uvloop, JSON by msgspec, no compression. As one
of several nodes with its Redis manager, on redis-py with hiredis, and one event of a client at a
time: else it sends what a client said in another order.
"""
# ruff: noqa: ARG001 (a callback takes what it is given)

from __future__ import annotations

import os
from http.cookies import SimpleCookie
from types import SimpleNamespace
from urllib.parse import parse_qs

import msgspec
import socketio

json = SimpleNamespace(
    dumps=lambda value, **_: msgspec.json.encode(value).decode(),
    loads=lambda text, **_: msgspec.json.decode(text),
)
broker = os.environ.get("BROKER")
manager = socketio.AsyncRedisManager(broker, json=json) if broker else None
sio = socketio.AsyncServer(
    async_mode="asgi", transports=["websocket"], json=json, http_compression=False,
    logger=False, engineio_logger=False, max_http_buffer_size=1 << 20,
    client_manager=manager, async_handlers=not broker,
)  # fmt: skip
app = socketio.ASGIApp(sio)
places: dict[str, str] = {}


@sio.event
async def connect(sid, environ):
    path = parse_qs(environ["QUERY_STRING"])["path"][0]
    if path.startswith("/ws/room/"):
        user = SimpleCookie(environ["HTTP_COOKIE"])["user"].value
        await sio.save_session(sid, {"user": user})
    if path != "/ws/echo":
        await sio.enter_room(sid, path)
    places[sid] = path


@sio.event
async def disconnect(sid, reason):
    places.pop(sid, None)


@sio.event
async def m(sid, message):
    path = places[sid]
    await sio.emit("m", message, to=path if path.startswith("/ws/fanout/") else sid)
