"""The peer: aiohttp's server.

Best configuration: its C parts, uvloop, no compression, no access log, a message encoded once.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict

import uvloop
from aiohttp import WSMsgType, web

channels: defaultdict[str, set[web.WebSocketResponse]] = defaultdict(set)


async def accept(request: web.Request) -> web.WebSocketResponse:
    websocket = web.WebSocketResponse(compress=False)
    await websocket.prepare(request)
    return websocket


async def fanout(request: web.Request) -> web.WebSocketResponse:
    websocket = await accept(request)
    members = channels[request.match_info["channel"]]
    members.add(websocket)
    async for message in websocket:
        data = message.data.encode()
        for member in list(members):
            await member.send_frame(data, WSMsgType.TEXT)
    members.discard(websocket)
    return websocket


async def echo(request: web.Request) -> web.WebSocketResponse:
    websocket = await accept(request)
    async for message in websocket:
        await websocket.send_str(message.data)
    return websocket


async def room(request: web.Request) -> web.WebSocketResponse:
    websocket = await accept(request)
    members = channels[request.match_info["channel"]]
    members.add(websocket)
    websocket["user"] = request.cookies["user"]
    async for message in websocket:
        await websocket.send_str(message.data)
    members.discard(websocket)
    return websocket


app = web.Application()
app.router.add_get("/ws/fanout/{channel}", fanout)
app.router.add_get("/ws/echo", echo)
app.router.add_get("/ws/room/{channel}", room)
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None, backlog=4096)
