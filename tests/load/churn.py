#!/usr/bin/env python3
"""Clients come, talk and die in every way there is; then everything must be as it was.

    python tests/load/churn.py                  # 10 minutes
    python tests/load/churn.py --seconds 6 --clients 40

A client connects to an endpoint that waits, one that does not, or one that drops messages; it
talks, whispers, enters and leaves channels, starts streams, and ends by a close frame, FIN, RST,
silence, or because the server ended it. It checks each message that it gets: is it mine, is it of
a channel that I am in, is it the next one?
"""

# ruff: noqa: T201 - what it prints is what it is for
from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import socket
import statistics
import struct
import sys
import time
from typing import Any

from tools import Frames, ServedElsewhere, allow_files, frame, mib, request, serving

CHANNELS = [f"channel {number}" for number in range(12)]
USERS = [f"user {number}" for number in range(20)]
ENDPOINTS = ("plain", "waiting", "waiting", "lossy")
SAYINGS = (
    ["say"] * 6 + ["others"] * 2 + ["whisper"] * 2 + ["wait"] * 3 + ["join"] * 3 + ["leave"] * 2
    + ["stream"]
)  # fmt: skip
DEATHS = ("close", "close", "fin", "rst", "silence", "end me", "end another", "half close")
INTERVAL, TIMEOUT = 0.6, 0.6
SETTINGS = {"ping_interval": INTERVAL, "ping_timeout": TIMEOUT, "slow_callback": 60.0}
NOTICE = 10.0
"""Seconds in which the server has to end whoever is silent: both, with room for a busy machine."""


class Tally:
    """What happened at the clients."""

    def __init__(self) -> None:
        self.deaths: collections.Counter[str] = collections.Counter()
        self.got: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []

    def blame(self, text: str) -> None:
        if len(self.wrong) < 20:
            self.wrong.append(text)


class Client(asyncio.Protocol):
    """One client, which believes nothing."""

    def __init__(self, tally: Tally, endpoint: str, *, deflate: bool):
        self.tally, self.endpoint, self.deflate = tally, endpoint, deflate
        self.home, self.user = random.choice(CHANNELS), random.choice(USERS)
        self.id = ""
        self.is_silent = False
        self.joined = {self.home}
        self.leaving: set[str] = set()
        self.last: dict[str, int] = {}
        self.frames = Frames()
        self.head: bytearray | None = bytearray()
        self.over = asyncio.Event()
        self.welcome = asyncio.Event()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        path = f"/{self.endpoint}/{self.home}?user={self.user}".replace(" ", "%20")
        self.transport.write(request(path, deflate=self.deflate))

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()
        self.welcome.set()

    def data_received(self, data: bytes) -> None:
        if self.head is not None:
            self.head += data
            if b"\r\n\r\n" not in self.head:
                return
            head, _, data = bytes(self.head).partition(b"\r\n\r\n")
            self.head = None
            if b" 101 " not in head:
                self.tally.blame(f"refused: {head!r}")
                self.transport.abort()
                return
        for opcode, payload in self.frames.feed(data):
            if opcode == 9:
                self.write(payload, 10)
            elif opcode == 8:
                self.write(payload[:2], 8)
                self.transport.close()
                return
            elif opcode == 1:
                self.check(json.loads(payload))
            else:
                self.tally.blame(f"a frame of kind {opcode}")

    def check(self, message: dict[str, Any]) -> None:
        kind = next(iter(message))
        self.tally.got[kind] += 1
        if kind == "you":
            self.id = message["you"]
            self.welcome.set()
        elif not self.id:
            self.tally.blame(f"before its welcome: {message}")
        elif kind == "private" and message["private"] != self.id:
            self.tally.blame(f"{self.id} got what is private to {message['private']}")
        elif kind == "user" and message["user"] != self.user:
            self.tally.blame(f"{self.user} got what is for {message['user']}")
        elif message.get("not") == self.id:
            self.tally.blame(f"{self.id} got what it was excluded from")
        elif kind == "in":
            self.check_channel(message["in"], message.get("n"))
        elif kind == "left":
            self.joined.discard(message["left"])
            self.leaving.discard(message["left"])
            self.last.pop(message["left"], None)

    def check_channel(self, name: str, number: int | None) -> None:
        if name not in self.joined:
            self.tally.blame(f"{self.endpoint} {self.id} got a message of {name!r}, not its own")
        if number is None:
            return
        before = self.last.get(name)
        self.last[name] = number
        if before is None:
            return
        if number <= before or (number != before + 1 and self.endpoint != "lossy"):
            self.tally.blame(f"{self.endpoint} {self.id}: {name!r} {number} after {before}")

    def write(self, payload: bytes, opcode: int = 1) -> None:
        if not self.is_silent and not self.transport.is_closing():
            self.transport.write(frame(payload, opcode))

    def ask(self, kind: str, **more: Any) -> None:
        self.write(json.dumps({"type": kind, **more}).encode())

    def talk(self) -> None:
        kind = random.choice(SAYINGS)
        channel = random.choice([*self.joined, self.home])
        if kind == "join":
            channel = random.choice(CHANNELS)
            if channel in self.joined:
                return  # that it left may not be known yet: what is checked would be blurred
            self.joined.add(channel)
        elif kind == "leave":
            if channel == self.home or channel in self.leaving:
                return
            self.leaving.add(channel)
        size = random.choice([0, 0, 0, 100, 3000])
        self.ask(kind, channel=channel, size=size)

    async def live(self, lifetime: float, until: float) -> None:
        """Talk until it is time; then die."""
        await self.welcome.wait()
        end = min(until, time.monotonic() + random.expovariate(1 / lifetime))
        while not self.over.is_set() and time.monotonic() < end:
            self.talk()
            await asyncio.sleep(random.random() * 0.1)
        if self.over.is_set():
            self.tally.deaths["ended by the server"] += 1
            return
        how = random.choice(DEATHS)
        self.tally.deaths[how] += 1
        await self.die(how)

    async def die(self, how: str) -> None:
        if how == "close":
            self.write(struct.pack("!H", 1000), 8)
        elif how == "fin":
            self.transport.close()
        elif how == "half close":
            self.is_silent = True
            self.transport.write_eof()
        elif how == "rst":
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        elif how == "silence":
            await self.fall_silent()
        else:
            self.ask(how)
            if how == "end another":
                await asyncio.sleep(0.05)
                self.write(struct.pack("!H", 1000), 8)
        try:
            await asyncio.wait_for(self.over.wait(), NOTICE)
        except TimeoutError:
            self.tally.blame(f"{self.endpoint} {self.id}: after {how!r} the server kept it")
            self.transport.abort()

    async def fall_silent(self) -> None:
        """Read and write nothing; the server has to notice, which is seen when reading again."""
        self.is_silent = True
        self.transport.pause_reading()
        await asyncio.sleep((INTERVAL + TIMEOUT) * 1.5)
        if not self.transport.is_closing():
            self.transport.resume_reading()


async def one_after_another(port: int, tally: Tally, until: float, lifetime: float) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(random.random() * lifetime)
    while time.monotonic() < until:
        client = Client(tally, random.choice(ENDPOINTS), deflate=random.random() < 0.3)
        await loop.create_connection(lambda: client, "127.0.0.1", port)  # noqa: B023 - at once
        if random.random() < 0.05:
            await asyncio.sleep(random.random() * 0.01)
            client.transport.abort()  # perhaps in its handshake, perhaps not
        await client.live(lifetime, until)


async def churn(asked: argparse.Namespace, server: ServedElsewhere, tally: Tally) -> list[Any]:
    """Let them come and go; returns the server's stats, one for each tenth of a minute."""
    until = time.monotonic() + asked.seconds
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: tally.blame(f"the client itself failed: {context}")
    )
    living = [
        asyncio.create_task(one_after_another(server.port, tally, until, asked.lifetime))
        for _ in range(asked.clients)
    ]
    samples: list[Any] = []
    everybody = asyncio.gather(*living)
    while not everybody.done():
        await asyncio.wait({everybody}, timeout=min(6.0, asked.seconds / 4))
        samples.append(await asyncio.to_thread(server.stats))
        if asked.loud and len(samples) % 10 == 0:
            now = samples[-1]
            print(f"{len(samples) * 6:4} s {mib(now['rss'])} {now['counts']}", flush=True)
    await everybody
    return samples


def settled(server: ServedElsewhere, before: Any = None) -> Any:
    """Return the stats once they are as before, or nobody is left; or when that takes too long."""
    end = time.monotonic() + NOTICE
    while True:
        now = server.stats()
        is_over = not differences(before, now) if before else not any(
            now["counts"][name] for name in ("dispatches", "heartbeats", "server's connections")
        ) and not any("Transport" in name for name in now["objects"])  # fmt: skip
        if is_over or time.monotonic() > end:
            return now
        time.sleep(0.1)


def differences(before: Any, after: Any) -> list[str]:
    """Return what is not as it was."""
    wrong = []
    for part in ("counts", "objects"):
        for name in sorted({*before[part], *after[part]}):
            was, now = before[part].get(name, 0), after[part].get(name, 0)
            if was != now:
                wrong.append(f"{name}: {was} before, {now} after")
    told = after["told"]
    for come, gone in (
        ("on_open", "on_close"),
        ("on_first_open", "on_last_close"),
        ("on_channel_open", "on_channel_close"),
        ("on_subscribe", "on_unsubscribe"),
    ):
        if told.get(come, 0) != told.get(gone, 0):
            wrong.append(f"{told.get(come, 0)} × {come}, {told.get(gone, 0)} × {gone}")
    return wrong + [f"the hub reports: {problem}" for problem in after["problems"]]


def growth(samples: list[Any], seconds: float) -> tuple[float, float]:
    """Return the server's memory around the end of the first minute, and in the last one."""
    share = max(1, round(len(samples) * min(60.0, seconds / 4) / seconds))
    sizes = [sample["rss"] for sample in samples]
    return statistics.median(sizes[share : 2 * share]), statistics.median(sizes[-share:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=150, help="at a time")
    parser.add_argument("--lifetime", type=float, default=2.0, help="mean seconds of a client")
    parser.add_argument("--loop", default="uvloop", choices=["uvloop", "asyncio"])
    parser.add_argument("--slices", action="store_true", help="the server writes little at a time")
    parser.add_argument("--growth", type=float, default=2.0, help="MiB that may come to it")
    parser.add_argument("--seed", type=int)
    asked = parser.parse_args()
    asked.loud = asked.seconds > 60
    seed = random.randrange(2**32) if asked.seed is None else asked.seed
    random.seed(seed)
    allow_files(10_000)
    tally = Tally()
    with serving(asked.loop, SETTINGS, *(["--slices"] if asked.slices else [])) as server:
        first = Tally()  # what is made once and stays is made here
        asyncio.run(
            churn(
                argparse.Namespace(**{**vars(asked), "seconds": 1.0, "loud": False}), server, first
            )
        )
        before = settled(server)
        samples = asyncio.run(churn(asked, server, tally))
        after = settled(server, before)
    early, late = growth(samples, asked.seconds)
    wrong = [*first.wrong, *tally.wrong, *differences(before, after), *server.errors]
    if asked.seconds >= 120 and late - early > asked.growth * 2**20:
        wrong.append(f"memory grew from {mib(early)} to {mib(late)}")
    told = after["told"]
    print(f"{asked.seconds:g} s on {after['loop']}, Python {after['python']}, seed {seed}")
    print(f"lived and died: {told['on_open']}, by {dict(tally.deaths)}")
    print(f"as the server saw it: { {k: n for k, n in sorted(told.items()) if k[0].isdigit()} }")
    print(f"told: { {k: n for k, n in sorted(told.items()) if k[0] == 'o'} }")
    print(f"messages that clients checked: {tally.got.total()}, {dict(tally.got)}")
    print(f"most at a time: {max(sample['counts']['connections'] for sample in samples)}")
    print(f"server's CPU: {after['cpu']:.0f} s")
    print(f"memory: {mib(before['rss'])} before, {mib(early)} early, {mib(late)} late, "
          f"{mib(after['rss'])} after")  # fmt: skip
    print(f"counts before and after: {after['counts']}")
    print("\n".join(["WRONG:", *wrong]) if wrong else "OK: everything is as it was")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
