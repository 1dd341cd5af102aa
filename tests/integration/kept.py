"""An application that keeps history, for clients that missed much of it."""

from __future__ import annotations

from backchannel import Connection, Hub, Listener

hub = Hub()
hub.rule("all:{name}", history=2000, replay=2000)
hub.rule("since:{name}", history=2000)


@hub.endpoint("/ws/{channel}")
class Kept(Listener):
    """Publishes what it is told, and lets in whoever says since when."""

    async def on_message(self, ws: Connection, message: dict) -> dict:
        if "since" in message:
            entering = ws.subscribe(message["channel"], since=message["since"])
            return {"in": await entering, "lost": entering.lost}
        position = None
        for number in range(message["count"]):
            sent = hub.broadcast(message["channel"], f"{number} ".ljust(message["size"], "x"))
            position = position or str(sent.position)
        return {"first": position}
