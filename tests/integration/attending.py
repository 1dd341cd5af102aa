"""One of several nodes: who is in a room, and what is told of it, for whoever watches."""

from __future__ import annotations

import os

from backchannel import Hub, Listener, event

hub = Hub(
    broker=os.environ["BROKER"],
    name="attending",
    authenticate=lambda request: request.query.get("user"),
    presence_lease=float(os.environ["LEASE"]),
    presence_moment=float(os.environ["MOMENT"]),
)
hub.rule("room:{name}", presence=True)


@hub.on_join
def joined(channel: str, user: str) -> None:
    hub.broadcast("watch", {"joined": user, "by": hub.node})


@hub.on_leave
async def left(channel: str, user: str) -> None:
    hub.broadcast("watch", {"left": user, "by": hub.node})


@hub.endpoint("/ws/room/{room}", channel="room:{room}")
class Room(Listener):
    def on_open(self, ws) -> None:
        ws.send({"node": hub.node})

    @event("who")
    async def who(self, ws, message: dict) -> dict:
        users = await hub.channel(ws.channel).users()
        return {user: [device.node for device in user.devices] for user in users}


@hub.endpoint("/ws/watch", channel="watch")
class Watch(Listener):
    def on_open(self, ws) -> None:
        ws.send({"node": hub.node})

    @event("who")
    async def who(self, ws, message: dict) -> dict:
        room = hub.channel(message["channel"])
        users = await room.users()
        return {user: [device.node for device in user.devices] for user in users}
