"""The peer: plain Starlette with the ConnectionManager that FastAPI's documentation teaches.

Best configuration: uvicorn's newest WebSocket implementation, uvloop, no compression.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


class ConnectionManager:
    """Who is in which channel."""

    def __init__(self) -> None:
        self.channels: defaultdict[str, set[WebSocket]] = defaultdict(set)

    async def connect(self, websocket: WebSocket, channel: str) -> None:
        await websocket.accept()
        self.channels[channel].add(websocket)

    def disconnect(self, websocket: WebSocket, channel: str) -> None:
        self.channels[channel].discard(websocket)

    async def broadcast(self, channel: str, message: str) -> None:
        for websocket in list(self.channels[channel]):
            await websocket.send_text(message)


manager = ConnectionManager()


class Chat(msgspec.Struct):
    """What a client says."""

    user: str
    text: str


async def fanout(websocket: WebSocket) -> None:
    channel = websocket.path_params["channel"]
    await manager.connect(websocket, channel)
    try:
        while True:
            await manager.broadcast(channel, await websocket.receive_text())
    except WebSocketDisconnect:
        manager.disconnect(websocket, channel)


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


async def echo_json(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_json(await websocket.receive_json())
    except WebSocketDisconnect:
        pass


async def echo_struct(websocket: WebSocket) -> None:
    """Do by hand, and with the fastest library, what Backchannel does for a typed listener."""
    decode, encode = msgspec.json.Decoder(Chat).decode, msgspec.json.Encoder().encode
    await websocket.accept()
    try:
        while True:
            message = decode(await websocket.receive_text())
            await websocket.send_text(encode(message).decode())
    except WebSocketDisconnect:
        pass


async def room(websocket: WebSocket) -> None:
    websocket.state.user = websocket.cookies.get("user")
    channel = websocket.path_params["channel"]
    await manager.connect(websocket, channel)
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        manager.disconnect(websocket, channel)


app = Starlette(
    routes=[
        WebSocketRoute("/ws/fanout/{channel}", fanout),
        WebSocketRoute("/ws/echo", echo),
        WebSocketRoute("/ws/json", echo_json),
        WebSocketRoute("/ws/json-struct", echo_struct),
        WebSocketRoute("/ws/room/{channel}", room),
    ]
)
