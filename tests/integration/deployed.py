"""A hub as it is deployed: what is said in a channel, work that takes its time, messages that end it."""

from __future__ import annotations

import asyncio
import os

from backchannel import Connection, Hub, Listener, Reject, event

hub = Hub(broker=os.environ.get("BROKER"), name="deployed", slow_callback=60)
hub.rule("room:{name}", history=10_000)
hub.rule(
    "spoken:{name}", history=10_000, subscribe=lambda ws: True, publish=lambda ws: True
)  # by clients of v1


@hub.endpoint("/ws/{name}", channel="room:{name}")
class Room(Listener):
    def on_open(self, ws: Connection) -> None:
        ws.send({"node": hub.node, "pid": os.getpid()})

    async def on_message(self, ws: Connection, message: str) -> None:
        """Say something; "slow 2 …" takes so many seconds for it."""
        if message.startswith("slow "):
            ws.send("begun")
            await asyncio.sleep(float(message.split()[1]))
        await ws.broadcast(message)
        ws.send(f"done {message}")


@hub.endpoint("/back/{name}")
class Back(Listener):
    """Whoever comes back says what was the last message, and says more."""

    async def on_message(self, ws: Connection, message: dict) -> None:
        if "after" in message:
            await self.come_back(ws, message["after"])
        else:
            await hub.broadcast(f"room:{ws.params['name']}", message["say"])
            ws.send(f"done {message['say']}")

    async def come_back(self, ws: Connection, after: str) -> None:
        channel = f"room:{ws.params['name']}"
        kept = await hub.channel(channel).history(limit=10_000)
        position = next((one.position for one in kept if one.message == after), None)
        if position is None:
            raise Reject(f"{after!r} was never said")
        entering = ws.subscribe(channel, since=position)
        ws.send({"in": await entering, "lost": entering.lost})


@hub.endpoint("/spoken")
class Spoken(Listener):
    """Counts what a session was told, whatever node it is at."""

    durable = ("count",)

    def on_open(self, ws: Connection) -> None:
        ws.state.count = ws.state.get("count", 0)

    def on_message(self, ws: Connection, message: str) -> None:
        ws.state.count += 1

    @event("counted")
    def counted(self, ws: Connection) -> dict:
        return {"count": ws.state.count, "resumed": ws.resumed}
