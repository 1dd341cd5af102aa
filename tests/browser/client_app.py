"""A hub for the browser's client: what its tests talk to."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

from backchannel import Hub, Listener, Reject, event

hub = Hub(
    broker=os.environ.get("BROKER"),
    authenticate=lambda request: request.query.get("user"),
    presence_moment=0.1,
)
asks = Counter()
"""How often somebody asked to be let in by the gate, by its name."""
hub.page("/", str(Path(__file__).with_name("client_page.html")))


def not_secret(ws, name):
    return Reject(403, "not for you") if name == "secret" else True


def anyone(ws, name):
    return True


def fourth(ws, name):
    asks[name] += 1
    return asks[name] > 3


async def state(channel, name):
    history = await hub.channel(channel).history()
    return {"state": name}, history.position


hub.rule("room:{name}", subscribe=not_secret, publish=anyone, history=5000, presence=True)
hub.rule("state:{name}", subscribe=anyone, publish=anyone, history=100, snapshot=state)
hub.rule("gate:{name}", subscribe=fourth, publish=anyone)
hub.rule("url:{name}", history=1000)


@hub.endpoint("/ws/main")
class Main(Listener):
    def on_open(self, ws):
        ws.state.asked = 0

    def on_message(self, ws, message):
        ws.send(message)

    @event("add")
    def add(self, ws, message: dict):
        return message["a"] + message["b"]

    @event("wait")
    async def wait(self, ws, message):
        await asyncio.Event().wait()

    @event("ask")
    async def ask(self, ws, message: dict):
        return await ws.call("double", message["n"], timeout=5)

    @event("asks")
    def asks(self, ws, message: dict):
        return asks[message["name"]]

    @event("admit")
    async def admit(self, ws, message: dict):
        while not await ws.subscribe(message["channel"]):
            continue

    @event("leave")
    def leave(self, ws, message):
        ws.close(4004, "signed out")


@hub.endpoint("/ws/url/{name}", channel="url:{name}")
class ByUrl(Listener):
    def on_message(self, ws, message):
        ws.broadcast(message)
