"""A messenger on several nodes: people with devices, rooms, whispers, blocks, kicks and sign-outs."""

from __future__ import annotations

import os

from backchannel import Connection, Hub, Listener, event

hub = Hub(
    broker=os.environ["BROKER"],
    name="messenger",
    authenticate=lambda request: request.query.get("user"),
    broker_timeout=float(os.environ.get("BROKER_TIMEOUT", "5")),
)
hub.rule("room:{name}", history=1000)
blocked: dict[str, list[str]] = {"ana": ["mallory", "oscar"]}


@hub.endpoint("/ws/{room}", channel="room:{room}")
class Device(Listener):
    def on_open(self, ws: Connection) -> None:
        ws.meta["device"] = ws.query.get("device", "")
        ws.send({"id": ws.id, "node": hub.node})

    @event("say")
    def say(self, ws: Connection, message: dict) -> None:
        """To the room, but for those whom the sender has blocked."""
        left_out = [hub.user(user) for user in blocked.get(ws.user or "", [])]
        ws.broadcast({"from": ws.user, "text": message["text"]}, exclude=left_out)

    @event("tell")
    async def tell(self, ws: Connection, message: dict) -> dict:
        """To a user, on all her devices."""
        sent = await hub.user(message["user"]).send({"from": ws.user, "text": message["text"]})
        return {"reached": sent.reached}

    @event("sync")
    async def sync(self, ws: Connection, message: dict) -> dict:
        """To the sender's other devices."""
        sent = await hub.user(ws.user).send({"sync": message["text"]}, exclude=ws)
        return {"reached": sent.reached}

    @event("ack")
    async def ack(self, ws: Connection, message: dict) -> dict:
        """To exactly one socket."""
        sent = await hub.connection(message["id"]).send({"ack": message["text"]})
        return {"reached": sent.reached}

    @event("whisper")
    def whisper(self, ws: Connection, message: dict) -> None:
        """To some in this room, wherever they are."""
        to = [hub.user(user) for user in message["to"]]
        ws.broadcast({"whisper": message["text"]}, to=[*to, ws])

    @event("devices")
    async def devices(self, ws: Connection, message: dict) -> list:
        infos = await hub.user(message["user"]).connections()
        return sorted([info.meta["device"], info.node, info.id] for info in infos)

    @event("who")
    async def who(self, ws: Connection, message: dict) -> dict:
        room = hub.channel(ws.channel)
        return {"users": sorted(await room.users()), "count": await room.count()}

    @event("kick")
    async def kick(self, ws: Connection, message: dict) -> dict:
        """Out of a channel, on all devices."""
        out = await hub.user(message["user"]).unsubscribe(message["channel"])
        return {"kicked": out.reached}

    @event("invite")
    async def invite(self, ws: Connection, message: dict) -> dict:
        done = await hub.user(message["user"]).subscribe(message["channel"])
        return {"invited": done.reached}

    @event("sign out")
    async def sign_out(self, ws: Connection, message: dict) -> None:
        """Everywhere."""
        hub.user(ws.user).send("goodbye")
        hub.user(ws.user).close(4004, "signed out")
