"""What a client that was written from docs/protocol.md alone talks to."""

from __future__ import annotations

from backchannel import Connection, Hub, Listener, event

hub = Hub(ping_interval=5, presence_moment=0.1)
hub.rule(
    "room:{name}",
    history=100,
    presence=True,
    subscribe=lambda ws, name: name != "secret",
    publish=lambda ws, channel: channel in ws.channels,
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
