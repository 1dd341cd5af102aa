"""Serves the load programs and the tests of vanished peers, and says how it is.

    python server.py --port 0 --loop uvloop --settings '{"ping_interval": 1}'

It prints ``LISTENING port``, and a line ``STATS {…}`` for each SIGUSR1, or for a SIGUSR2 a short one
that costs next to nothing. By signal, since a request would itself be a connection, a descriptor
and a few objects among those that are counted.
"""

# ruff: noqa: T201 - what it prints is what it is for
from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import gc
import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn

from backchannel import CloseReason, Connection, Hub, Listener, event, fanout, lanes
from backchannel.transport.uvicorn import Protocol

PAGE = os.sysconf("SC_PAGE_SIZE")
PADDING = "x" * 3000  # more than compression begins at


class Told:
    """What callbacks were told, counted."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.slow: list[str] = []
        self.says_ends = False

    def opened(self, ws: Connection) -> None:
        self.counts["on_open"] += 1

    def closed(self, ws: Connection, reason: CloseReason) -> None:
        self.counts["on_close"] += 1
        self.counts[f"{reason.code} {reason.by}"] += 1
        tag = ws.query.get("tag", "")
        if reason.code == 4001:
            self.slow.append(tag)
        if self.says_ends:
            print(f"ENDED {tag} {reason.code} {reason.by} {time.monotonic():.6f}", flush=True)


told = Told()
numbers: collections.Counter[str] = collections.Counter()


class Fan(Listener):
    """All that anybody says goes to everybody."""

    def on_open(self, ws: Connection) -> None:
        told.opened(ws)
        ws.send("welcome")

    def on_message(self, ws: Connection, message: str) -> None:
        ws.broadcast(message)

    def on_close(self, ws: Connection, reason: CloseReason) -> None:
        told.closed(ws, reason)


class Counted(Listener):
    """Counts what opens and what closes."""

    def on_first_open(self, hub: Hub) -> None:
        told.counts["on_first_open"] += 1

    def on_last_close(self, hub: Hub) -> None:
        told.counts["on_last_close"] += 1

    def on_channel_open(self, channel: str) -> None:
        told.counts["on_channel_open"] += 1

    def on_channel_close(self, channel: str) -> None:
        told.counts["on_channel_close"] += 1

    def on_subscribe(self, ws: Connection, channel: str) -> None:
        told.counts["on_subscribe"] += 1

    def on_unsubscribe(self, ws: Connection, channel: str) -> None:
        told.counts["on_unsubscribe"] += 1


def say(ws: Connection, channel: str, *, size: int = 0) -> None:
    """Send a channel the next of its numbered messages."""
    numbers[channel] += 1
    padding = PADDING[:size]
    ws.hub.broadcast(channel, {"in": channel, "n": numbers[channel], "padding": padding})


class Plain(Counted):
    """Talks without ever waiting."""

    def on_open(self, ws: Connection) -> None:
        told.opened(ws)
        ws.send({"you": ws.id})

    def on_close(self, ws: Connection, reason: CloseReason) -> None:
        told.closed(ws, reason)

    @event("say")
    def say(self, ws: Connection, message: dict[str, Any]) -> None:
        say(ws, message["channel"], size=message["size"])

    @event("others")
    def others(self, ws: Connection, message: dict[str, Any]) -> None:
        ws.broadcast({"in": ws.channel, "not": ws.id}, exclude=ws)

    @event("whisper")
    def whisper(self, ws: Connection, message: dict[str, Any]) -> None:
        members = [one.id for one in hub.roster.everyone if message["channel"] in one.channels]
        for chosen in random.sample(members, min(2, len(members))):
            hub.broadcast(message["channel"], {"private": chosen}, to=chosen)
        hub.user(ws.user or "nobody").send({"user": ws.user})

    @event("wait")
    def wait(self, ws: Connection) -> dict[str, Any]:
        return {"private": ws.id}

    @event("join")
    def join(self, ws: Connection, message: dict[str, Any]) -> None:
        ws.subscribe(message["channel"])
        ws.send({"joined": message["channel"]})

    @event("leave")
    def leave(self, ws: Connection, message: dict[str, Any]) -> None:
        ws.unsubscribe(message["channel"])  # perhaps not at once: another may be waiting at it

    def on_unsubscribe(self, ws: Connection, channel: str) -> None:
        super().on_unsubscribe(ws, channel)
        ws.send({"left": channel})

    @event("stream")
    def stream(self, ws: Connection) -> None:
        ws.spawn(trickle(ws))

    @event("end me")
    def end_me(self, ws: Connection) -> None:
        ws.send({"private": ws.id})
        ws.close(4100, "as you wish")

    @event("end another")
    def end_another(self, ws: Connection) -> None:
        everyone = list(hub.roster.everyone)
        hub.connection(random.choice(everyone).id).close(4101, "by lot")


class Waiting(Counted):
    """Does the same with callbacks that wait, for a time and for each other."""

    async def on_open(self, ws: Connection) -> None:
        told.opened(ws)
        await asyncio.sleep(0)
        ws.send({"you": ws.id})

    async def on_close(self, ws: Connection, reason: CloseReason) -> None:
        await asyncio.sleep(random.random() * 0.01)
        told.closed(ws, reason)

    async def on_channel_open(self, channel: str) -> None:
        await asyncio.sleep(0)
        super().on_channel_open(channel)

    async def on_unsubscribe(self, ws: Connection, channel: str) -> None:
        await asyncio.sleep(0)
        super().on_unsubscribe(ws, channel)

    @event("say")
    async def say(self, ws: Connection, message: dict[str, Any]) -> None:
        if random.random() < 0.5:
            await asyncio.sleep(0)
        say(ws, message["channel"], size=message["size"])

    @event("others")
    async def others(self, ws: Connection, message: dict[str, Any]) -> None:
        ws.broadcast({"in": ws.channel, "not": ws.id}, exclude=ws)

    @event("whisper")
    async def whisper(self, ws: Connection, message: dict[str, Any]) -> None:
        members = [one.id for one in hub.roster.everyone if message["channel"] in one.channels]
        for chosen in random.sample(members, min(2, len(members))):
            await hub.broadcast(message["channel"], {"private": chosen}, to=chosen)
        hub.user(ws.user or "nobody").send({"user": ws.user})

    @event("wait")
    async def wait(self, ws: Connection) -> dict[str, Any]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.random() * 0.1):
                await asyncio.sleep(random.random() * 0.1)
        return {"private": ws.id}

    @event("join")
    async def join(self, ws: Connection, message: dict[str, Any]) -> dict[str, Any]:
        await ws.subscribe(message["channel"])
        return {"joined": message["channel"]}

    @event("leave")
    async def leave(self, ws: Connection, message: dict[str, Any]) -> dict[str, Any]:
        await ws.unsubscribe(message["channel"])
        return {"left": message["channel"]}

    @event("stream")
    async def stream(self, ws: Connection) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(trickle(ws))
            group.create_task(trickle(ws))

    @event("end me")
    async def end_me(self, ws: Connection) -> None:
        ws.send({"private": ws.id})
        await ws.close(4100, "as you wish")
        await asyncio.sleep(0.01)

    @event("end another")
    async def end_another(self, ws: Connection) -> None:
        everyone = list(hub.roster.everyone)
        await hub.connection(random.choice(everyone).id).close(4101, "by lot")


async def trickle(ws: Connection) -> None:
    for _ in range(5):
        ws.send({"private": ws.id})
        await asyncio.sleep(random.random() * 0.05)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--loop", default="auto")
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--attended", action="store_true", help="end when the input does")
    parser.add_argument("--slices", action="store_true", help="write little in one turn")
    parser.add_argument("--say-ends", action="store_true", help="print ENDED for each on_close")
    return parser.parse_args()


asked = arguments()
told.says_ends = asked.say_ends
if asked.slices:  # what is rare becomes common: that something happens while a turn is written
    fanout.SLICE, lanes.BATCH = 0.0, 4  # type: ignore[misc]
hub = Hub(authenticate=lambda request: request.query.get("user"), **asked.settings)
hub.add("/fan/{channel}", Fan, share_channels=True)
hub.add("/plain/{channel}", Plain, share_channels=True)
hub.add("/waiting/{channel}", Waiting, share_channels=True)
hub.add("/lossy/{channel}", Waiting, share_channels=True, slow_client="drop_oldest")


def stats(server: uvicorn.Server) -> dict[str, Any]:
    """Return what must be the same again once everybody has gone, and some figures."""
    gc.collect()
    objects: collections.Counter[str] = collections.Counter()
    for one in gc.get_objects():
        kind = type(one)
        if str(kind.__module__).startswith(("backchannel", "uvicorn")) or "Transport" in str(kind):
            objects[kind.__qualname__] += 1
    sending, beat = hub.fanout, hub.heartbeat
    return {
        "counts": {
            "connections": hub.health.connections,
            "channels": len(hub.channels()),
            "dispatches": len(hub.dispatches),
            "tasks": len(asyncio.all_tasks()),
            "runtime's tasks": len(hub.runtime._tasks) + len(hub.runtime._spawned),
            "descriptors": len(list(Path("/proc/self/fd").iterdir())),
            "heartbeats": sum(len(slot) for slot in beat._slots),
            "lanes": len(sending.lanes),
            "due": len(sending._due),
            "rounds": int(sending._round is not None),
            "server's connections": len(server.server_state.connections),
            "server's tasks": len(server.server_state.tasks),
        },
        "objects": dict(objects),
        "told": dict(told.counts),
        "problems": hub.health.problems,
        "latencies": [ws.latency for ws in list(hub.roster.everyone)[:10]],
        **figures(),
        "loop": type(asyncio.get_running_loop()).__module__,
        "python": sys.version.split()[0],
    }


def figures() -> dict[str, Any]:
    """Return what costs next to nothing to ask for."""
    return {
        "slow": told.slow,
        "rss": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE,
        "cpu": time.process_time(),
    }


def tell() -> None:
    print("STATS", json.dumps(stats(server)), flush=True)


def tell_figures() -> None:
    print("STATS", json.dumps(figures()), flush=True)


class Server(uvicorn.Server):
    """Says when it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, tell_figures)
        if asked.attended:  # whoever started it may have been killed
            asyncio.get_running_loop().add_reader(0, setattr, self, "should_exit", True)
        print("LISTENING", self.servers[0].sockets[0].getsockname()[1], flush=True)


config = uvicorn.Config(
    hub, host=asked.host, port=asked.port, loop=asked.loop, ws=Protocol, log_level="warning"
)
server = Server(config)

if __name__ == "__main__":
    server.run()
