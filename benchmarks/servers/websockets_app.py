"""The peer: `websockets` with its own broadcast().

Best configuration: its asyncio server on uvloop, no compression.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from http.cookies import SimpleCookie

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

channels: defaultdict[str, set[ServerConnection]] = defaultdict(set)
users: dict[ServerConnection, str] = {}


async def fanout(websocket: ServerConnection) -> None:
    channel = websocket.request.path
    channels[channel].add(websocket)
    try:
        async for message in websocket:
            broadcast(channels[channel], message)
    finally:
        channels[channel].discard(websocket)


async def multi(websocket: ServerConnection) -> None:
    names = websocket.request.path.partition("=")[2].split(",")
    for name in names:
        channels[name].add(websocket)
    try:
        async for message in websocket:
            broadcast(channels[message[:4]], message)
    finally:
        for name in names:
            channels[name].discard(websocket)


async def room(websocket: ServerConnection) -> None:
    channel = websocket.request.path
    users[websocket] = SimpleCookie(websocket.request.headers.get("Cookie"))["user"].value
    channels[channel].add(websocket)
    try:
        async for message in websocket:
            await websocket.send(message)
    finally:
        channels[channel].discard(websocket)
        del users[websocket]


async def handler(websocket: ServerConnection) -> None:
    path = websocket.request.path
    if path.startswith("/ws/fanout/"):
        await fanout(websocket)
    elif path.startswith("/ws/multi?"):
        await multi(websocket)
    elif path.startswith("/ws/room/"):
        await room(websocket)
    else:
        async for message in websocket:
            await websocket.send(message)


async def main(port: int) -> None:
    async with serve(handler, "127.0.0.1", port, compression=None, backlog=4096) as server:
        await server.serve_forever()


uvloop.run(main(int(sys.argv[1])))
