"""The application of the chaos runs: one node of it, between an engine and clients that resume.

    uvicorn node:hub --port 8000 --ws backchannel.transport.uvicorn:Protocol

Raw clients have no positions on the wire. So each message has an id of its own, and who comes back
names the last one it had and the epoch it was in: history tells where that stands, or that it is
not there any more.
"""

from __future__ import annotations

import os

from backchannel import Connection, Hub, Listener, event
from backchannel.errors import BrokerUnavailable

hub = Hub(
    broker=os.environ["BROKER"],
    name="chaos",
    authenticate=lambda request: request.query.get("user"),
    broker_timeout=1.5,
    ping_interval=1.0,
    ping_timeout=2.0,
    max_outbox=128 * 1024,
)
hub.rule("room:{name}", history=3000)
hub.rule("short:{name}", history=15)  # so short that much is lost, and it is to be told
ALL = 3000


@hub.endpoint("/ws")
class Device(Listener):
    def on_lost(self, ws: Connection, channel: str | None) -> None:
        if channel is not None and hub.rules.keeping(channel):  # of the others nothing is promised
            ws.send({"lost": channel})

    # What waits is spawned: a connection that is busy would be told of a loss only later.

    @event("enter")
    def enter(self, ws: Connection, message: dict) -> None:
        ws.spawn(self._enter(ws, message["channel"], message["last"], message["epoch"]))

    @event("say")
    def say(self, ws: Connection, message: dict) -> None:
        ws.spawn(self._say(ws, message))

    @event("count")
    def count(self, ws: Connection, message: dict) -> None:
        ws.spawn(self._count(ws, message["channels"]))

    async def _enter(
        self, ws: Connection, channel: str, last: str | None, epoch: str | None
    ) -> None:
        if channel.startswith("plain:"):
            ws.send({"entered": channel} if await ws.subscribe(channel) else {"refused": channel})
            return
        try:
            page = await hub.channel(channel).history(limit=ALL, reader=ws)
        except BrokerUnavailable as error:
            ws.send({"refused": channel, "why": str(error)})
            return
        since, lost = page.position, last is not None
        if epoch == page.position.epoch:
            found = [kept.position for kept in page if f'"id":"{last}"' in kept.message[:80]]
            if last is not None and last.startswith("@"):  # it had all up to this offset
                since, lost = page.position._replace(offset=int(last[1:])), False
            elif found:
                since, lost = found[0], False
        entering = ws.subscribe(channel, since=since)
        if not await entering:
            ws.send({"refused": channel, "why": f"{entering.lost} {entering.position}"})
            return
        ws.send({
            "entered": channel, "lost": lost or entering.lost, "since": str(since),
            "position": str(entering.position), "gap": entering.lost,
        })  # fmt: skip

    async def _say(self, ws: Connection, message: dict) -> None:
        what = {"id": message["id"], "channel": message["channel"], "pad": "x" * message["size"]}
        audience = {
            key: [hub.user(user) for user in message[key]]
            for key in ("to", "exclude")
            if message[key] is not None
        }
        try:
            sent = await hub.broadcast(message["channel"], what, **audience)
        except BrokerUnavailable as error:
            ws.send({"failed": message["id"], "never": "was not published" in str(error)})
        else:
            position = None if sent.position is None else str(sent.position)
            ws.send({"accepted": message["id"], "position": position})

    async def _count(self, ws: Connection, channels: list[str]) -> None:
        try:
            counts = {
                name: [await hub.channel(name).count(), sorted(await hub.channel(name).users())]
                for name in channels
            }
        except BrokerUnavailable:
            counts = {}
        ws.send({"counts": counts, "broker": hub.health.broker})
