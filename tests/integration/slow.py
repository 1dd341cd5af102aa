"""An application with an endpoint for each way to deal with clients that read too slowly."""

from __future__ import annotations

import logging

from backchannel import CloseReason, Connection, Hub, Listener

hub = Hub(max_outbox=200_000, ping_interval=600)


class Ticks(Listener):
    """Sends numbered messages to channels, as the first client tells it."""

    def on_open(self, ws: Connection) -> None:
        ws.subscribe("other")
        ws.send("welcome")

    def on_message(self, ws: Connection, message: dict) -> str:
        for number in range(message["first"], message["first"] + message["count"]):
            for channel in (ws.channel, "other"):
                hub.broadcast(channel, f"{number} {channel} ".ljust(message["size"], "x"))
        return "done"

    def on_close(self, ws: Connection, reason: CloseReason) -> None:
        print(f"ENDED {reason.code} by {reason.by}", flush=True)  # noqa: T201 - the test reads it


for policy in ("close", "drop_oldest", "drop_newest", "latest"):
    hub.add(f"/ws/{policy}/{{channel}}", Ticks, slow_client=policy, share_channels=True)


class Raising(logging.Filter):
    """A filter with a bug, which shows at the slow client of one endpoint."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if "/ws/buggy/" in message and ("4001" in message or "dropped" in message):
            raise RuntimeError("a bug in a filter of the log")
        return True


logging.getLogger("backchannel.connection").addFilter(Raising())
logging.getLogger("backchannel.connection").setLevel(logging.INFO)
hub.add("/ws/buggy/{channel}", Ticks, share_channels=True)
hub.add("/ws/buggy/dropping/{channel}", Ticks, slow_client="drop_oldest", share_channels=True)
