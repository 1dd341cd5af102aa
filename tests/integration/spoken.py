"""What a client that was written from docs/protocol.md alone talks to."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from backchannel import Connection, Hub, Listener, Reject, event
from backchannel.auth import Identity


def someone(request):
    """Return who the URL says; ``?user=ana``, for 60 seconds."""
    return until(request.query["user"], 60) if "user" in request.query else None


def until(user: str, seconds: float) -> Identity:
    return Identity(user, {}, datetime.now(UTC) + timedelta(seconds=seconds))


async def words(channel: str, ws: Connection, name: str):
    """Return all that was said, and the position of the last of it."""
    kept = await hub.channel(channel).history(limit=100)
    return {"words": [one.message for one in kept], "for": ws.user}, kept.position


hub = Hub(ping_interval=5, presence_moment=0.1, authenticate=someone)
hub.rule(
    "room:{name}",
    history=100,
    presence=True,
    subscribe=lambda ws, name: name != "secret",
    publish=lambda ws, channel: channel in ws.channels,
)
hub.rule("short:{name}", history=2, subscribe=lambda ws: True, publish=lambda ws: True)
hub.rule("plain:{name}", subscribe=lambda ws: True)
hub.rule(
    "words:{name}",
    history=100,
    snapshot=words,
    subscribe=lambda ws: True,
    publish=lambda ws: True,
)


@hub.endpoint("/ws/{channel}")
class Room(Listener):
    durable = ("name",)

    def on_message(self, ws: Connection, message: str | bytes) -> str | bytes:
        return message

    @event("add")
    def add(self, ws: Connection, message: dict) -> int:
        ws.state.name = "kept"
        return message["a"] + message["b"]

    @event("ask")
    async def ask(self, ws: Connection) -> dict:
        return {"color": await ws.call("color", {"of": "sky"}), "name": ws.state.get("name")}

    @event("broadcast")
    def broadcast(self, ws: Connection, message: dict) -> None:
        ws.broadcast(message["what"], channel=message["channel"])

    @event("wait")
    async def wait(self, ws: Connection) -> None:
        """Wait until that is cancelled."""
        ws.send("waiting")
        try:
            await asyncio.Event().wait()
        finally:
            ws.send("cancelled")

    @event("hurry")
    async def hurry(self, ws: Connection) -> str:
        try:
            return await ws.call("color", timeout=0.1)
        except TimeoutError:
            return "too late"

    def on_renew(self, ws: Connection, token: str) -> Identity:
        """Take "ana for 3600": a newer token, as it were."""
        user, _, seconds = token.partition(" for ")
        if not seconds:
            raise Reject("that is no token")
        return until(user, float(seconds))
