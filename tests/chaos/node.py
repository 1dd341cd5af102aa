"""The application of the chaos runs: one node of it, between an engine and clients that resume.

    uvicorn node:hub --port 8000 --ws backchannel.transport.uvicorn:Protocol

Raw clients have no positions on the wire. So each message has an id of its own, and who comes back
names the last one it had and the epoch it was in: history tells where that stands, or that it is
not there any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import time

from people import DIRECT, audience

from backchannel import Connection, Hub, Listener, event
from backchannel.errors import BrokerUnavailable, CallFailed
from backchannel.request import Request
from backchannel.session.web import Session


class Sessions:
    """Sessions of a framework that believes who they are said to be."""

    async def find(self, request: Request) -> Session:
        return Session({}, id=request.query.get("session"))


hub = Hub(
    broker=os.environ["BROKER"],
    name="chaos",
    authenticate=lambda request: request.query.get("user"),
    broker_timeout=1.5,
    ping_interval=1.0,
    ping_timeout=2.0,
    max_outbox=128 * 1024,
    session=Sessions(),
    presence_lease=float(os.environ["LEASE"]),
    presence_moment=0.3,
)
OPEN = {"subscribe": lambda ws: True, "publish": lambda ws: True}
hub.rule("room:{name}", history=3000, presence=True, **OPEN)
hub.rule("room:b", history=3000, presence="settled", **OPEN)
hub.rule("short:{name}", history=15, **OPEN)  # so short that much is lost, and it is to be told
hub.rule("plain:{name}", **OPEN)
ALL = 3000


def note(joined: bool, channel: str, user: str) -> None:
    """Write what was told where it stays, whatever becomes of this node."""
    with open(os.environ["TOLD"], "a", encoding="utf-8") as file:  # noqa: PTH123
        file.write(json.dumps([os.getpid(), joined, channel, user]) + "\n")


@hub.on_join
async def joined(channel: str, user: str) -> None:
    note(True, channel, user)
    await asyncio.sleep(random.uniform(0, 0.05))  # so that nodes die in the midst of it


@hub.on_leave
async def left(channel: str, user: str) -> None:
    note(False, channel, user)
    await asyncio.sleep(random.uniform(0, 0.05))


@hub.endpoint("/ws")
class Device(Listener):
    def on_open(self, ws: Connection) -> None:
        ws.send({"hello": ws.id})

    def on_lost(self, ws: Connection, channel: str | None) -> None:
        if channel is not None and hub.rules.keeping(channel):  # of the others nothing is promised
            ws.send({"lost": channel})

    # What waits is spawned: a connection that is busy would be told of a loss only later.

    @event("enter")
    def enter(self, ws: Connection, message: dict) -> None:
        ws.spawn(self._enter(ws, message["channel"], message["last"], message["epoch"]))

    @event("say")
    def say(self, ws: Connection, message: dict) -> None:
        ws.spawn(self._say_and_tell(ws, message))

    @event("count")
    def count(self, ws: Connection, message: dict) -> None:
        ws.spawn(self._count_and_tell(ws, message["channels"]))

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

    async def _say_and_tell(self, ws: Connection, message: dict) -> None:
        ws.send(await say(message))

    async def _count_and_tell(self, ws: Connection, channels: list[str]) -> None:
        ws.send(await count(channels))


async def say(message: dict) -> dict:
    """Say something to a channel or past all of them; return what became of it."""
    what = {"id": message["id"], "channel": message["channel"], "pad": "x" * message["size"]}
    some = {
        key: [audience(hub, address) for address in message[key]]
        for key in ("to", "exclude")
        if message[key] is not None
    }
    try:
        if message["channel"] == DIRECT:
            (whom,) = some.pop("to")
            sent = await whom.send(what, **some)
        else:
            sent = await hub.broadcast(message["channel"], what, **some)
    except BrokerUnavailable as error:
        return {"failed": message["id"], "never": "was not published" in str(error)}
    position = None if sent.position is None else str(sent.position)
    return {"accepted": message["id"], "position": position, "reached": sent.reached}


async def count(channels: list[str]) -> dict:
    """Return what this node says of some channels; nothing of them while the broker is away."""
    try:
        counts = {name: await counted(name) for name in channels}
    except BrokerUnavailable:
        counts = {}
    return {"counts": counts, "broker": hub.health.broker}


async def counted(name: str) -> list:
    channel = hub.channel(name)
    return [await channel.count(), await channel.count_users(), sorted(await channel.users())]


# ── for clients that speak v1 ─────────────────────────────────────────────────────────────────


def did(what: str, id_: str) -> None:
    """Write what was done where it stays, whatever becomes of this node."""
    with open(os.environ["DID"], "a", encoding="utf-8") as file:  # noqa: PTH123
        file.write(json.dumps([os.getpid(), what, id_, time.monotonic()]) + "\n")


@hub.endpoint("/v1")
class Speaker(Listener):
    durable = ("last",)

    def on_open(self, ws: Connection) -> None:
        ws.send({"hello": ws.id})

    @event("do")
    async def do(self, ws: Connection, message: dict) -> None:
        # Connections end in the midst of it: then it is cancelled, and not done.
        await asyncio.sleep(random.uniform(0, 0.05))
        did("did", message["id"])
        ws.state.last = message["number"]
        ws.spawn(self._ask(ws, message["id"]))

    async def _ask(self, ws: Connection, id_: str) -> None:
        did("asked", id_)
        with contextlib.suppress(CallFailed, TimeoutError):
            try:
                assert await ws.call("echo", id_, timeout=5) == id_
            finally:
                did("answered", id_)

    @event("tell")
    def tell(self, ws: Connection) -> dict:
        return {"last": ws.state.get("last", 0)}

    @event("say")
    async def say(self, ws: Connection, message: dict) -> dict:
        return await say(message)

    @event("count")
    async def count(self, ws: Connection, message: dict) -> dict:
        return await count(message["channels"])
