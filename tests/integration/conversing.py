"""An application for clients that speak v1: everything of the protocol, on one endpoint."""

from __future__ import annotations

import os

from backchannel import Hub, Listener, Reject, event

hub = Hub(
    broker=os.environ.get("ENGINE"),
    name="conversing",
    authenticate=lambda request: (
        request.headers.get("authorization", "").removeprefix("Bearer ") or None
    ),
)


def anyone(ws) -> bool:
    return True


def state(ws, channel):
    return {"of": channel}, hub.counted[channel]


hub.counted = {}
hub.rule("chat:{room}", subscribe=anyone, publish=anyone, history=5000, presence=True)
hub.rule("plain:{room}", subscribe=anyone, publish=anyone)
hub.rule("short:{room}", subscribe=anyone, publish=anyone, history=3)
hub.rule("secret:{room}", subscribe=lambda ws: Reject("not for you"), publish=lambda ws: False)


@hub.endpoint("/ws/{room}", channel="chat:{room}")
class Conversing(Listener):
    """Answers, asks back, and counts what it was told."""

    durable = ("count",)

    def on_handshake(self, request):
        if "no" in request.query:
            return Reject(int(request.query["no"]), "not like this")
        return None

    def on_open(self, ws) -> None:
        if not ws.resumed:
            ws.state.count = 0

    def on_message(self, ws, message: str | bytes):
        """Echo; but text that counts is only counted."""
        if message == "count":
            ws.state.count += 1
            return None
        if message == "close":
            ws.close(4100, "as you wish")
            return None
        return message

    @event("add")
    def add(self, ws, message: dict):
        return message["a"] + message["b"]

    @event("counted")
    def counted(self, ws):
        return ws.state.count

    @event("ask")
    async def ask(self, ws, message: dict):
        ws.spawn(self.ask_back(ws, message["about"]))

    async def ask_back(self, ws, about) -> None:
        ws.send({"answered": await ws.call("confirm", about, timeout=5)})

    @event("raise")
    def fail(self, ws):
        raise ZeroDivisionError
