#!/usr/bin/env python3
"""Some clients never read; the others get every message in order and keep their rate.

    python tests/load/slow_readers.py           # 1,000 clients, 50 of them slow, 60 s
    python tests/load/slow_readers.py --clients 100 --slow 5 --seconds 3

One client publishes, the next message as soon as it has got back the one four before it, so that
the server is always busy. First without slow readers; then with them, each replaced by a new one
as soon as the server has ended it, so that there are as many until the end; then without them
again, since the machine may not be the same machine for a minute.
"""

# ruff: noqa: T201 - what it prints is what it is for
from __future__ import annotations

import argparse
import itertools
import os
import select
import socket
import sys
import time
from typing import Any

from tools import ServedElsewhere, allow_files, frame, mib, request, serving

SIZE = 1000
"""Bytes of a message."""

IN_FLIGHT = 4
MEMORY = 24 * 2**20
"""Bytes that the server may take besides what waits for slow readers."""

FRAME = 4 + SIZE
WELCOME = b"\x81\x07welcome"
PADDING = b"x" * (SIZE - 10)


Figures = dict[str, float]


class Reader:
    """A client that reads, and checks that each message is the next one."""

    __slots__ = ("buffer", "error", "next", "socket")

    def __init__(self, port: int, path: str):
        self.socket = connect(port, path)
        self.socket.setblocking(False)
        self.buffer = b""
        self.next = -1
        self.error = ""

    def read(self, scratch: memoryview) -> None:
        """Take what has come."""
        try:
            size = self.socket.recv_into(scratch)
        except BlockingIOError:
            return
        except OSError as error:
            self.error = f"after {self.next}: {error}"
            return
        if not size:
            self.error = f"closed after message {self.next}"
            return
        data = self.buffer + scratch[:size].tobytes() if self.buffer else scratch[:size].tobytes()
        start, end = 0, len(data)
        while end - start >= FRAME:
            number = int(data[start + 4 : start + 14])
            if self.next >= 0 and number != self.next:
                self.error = f"message {number} instead of {self.next}"
            self.next = number + 1
            start += FRAME
        self.buffer = data[start:]


class Crowd:
    """The clients that read."""

    def __init__(self, port: int, count: int):
        self.epoll = select.epoll()
        self.readers = [Reader(port, "/fan/all?tag=reader") for _ in range(count)]
        self.by_descriptor = {one.socket.fileno(): one for one in self.readers}
        for descriptor in self.by_descriptor:
            self.epoll.register(descriptor, select.EPOLLIN)
        self.scratch = memoryview(bytearray(1 << 18))
        self.published = 0
        self.publisher = self.readers[0]

    def step(self, *, publish: bool) -> None:
        """Read what has come, and let the publisher go on."""
        publisher = self.publisher
        if publish and self.published - max(publisher.next, 0) < IN_FLIGHT:
            self.publish()
        for descriptor, _ in self.epoll.poll(0.05):
            self.by_descriptor[descriptor].read(self.scratch)

    def publish(self) -> None:
        wanted = max(self.publisher.next, 0) + IN_FLIGHT
        data = [frame(b"%010d" % n + PADDING) for n in range(self.published, wanted)]
        # What was asked for is small: it always fits.
        assert self.publisher.socket.send(b"".join(data)) == len(data) * (FRAME + 4)
        self.published = wanted

    def drain(self) -> None:
        """Read until everybody has everything; give up after a while without progress."""
        end = time.monotonic() + 10
        while any(one.next != self.published and not one.error for one in self.readers):
            if time.monotonic() > end:
                return
            self.step(publish=False)

    def errors(self) -> list[str]:
        wrong = [one.error for one in self.readers if one.error]
        late = [one.next for one in self.readers if one.next != self.published and not one.error]
        if late:
            wrong.append(f"{len(late)} have not got message {self.published - 1}")
        return wrong

    def close(self) -> None:
        for one in self.readers:
            one.socket.close()
        self.epoll.close()


class Sleepers:
    """The clients that never read, each known by a tag."""

    def __init__(self, port: int, server: ServedElsewhere):
        self.port, self.server = port, server
        self.sockets: dict[str, socket.socket] = {}
        self.tags = (f"slow{number}" for number in itertools.count())
        self.made = self.ended = 0

    def come(self, count: int) -> None:
        for _ in range(count):
            tag = next(self.tags)
            self.sockets[tag] = connect(self.port, f"/fan/all?tag={tag}", buffer=4096)
            self.made += 1

    def replace_ended(self, *, by_new_ones: bool) -> Any:
        """Drop those that the server has ended; returns the server's figures."""
        figures = self.server.figures()
        ended = [tag for tag in figures["slow"] if tag in self.sockets]
        for tag in ended:
            self.sockets.pop(tag).close()
        self.ended += len(ended)
        if by_new_ones:
            self.come(len(ended))
        return figures

    def close(self) -> None:
        for one in self.sockets.values():
            one.close()
        self.sockets.clear()


def connect(port: int, path: str, buffer: int = 0) -> socket.socket:
    """Open a connection and read the handshake and the welcome, and not a byte more."""
    sock = socket.socket()
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(30)
    sock.connect(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(request(path))
    end = b"\r\n\r\n" + WELCOME
    while end not in (seen := sock.recv(2000, socket.MSG_PEEK)):
        assert seen, "refused"
    assert sock.recv(seen.index(end) + len(end)).startswith(b"HTTP/1.1 101 ")
    return sock


def phase(crowd: Crowd, server: ServedElsewhere, seconds: float, sleepers: Sleepers) -> Figures:
    """Publish for a while; returns deliveries a second, CPU µs of each, and the most memory."""
    first, began = server.figures(), time.monotonic()
    published, most = crowd.publisher.next, first["rss"]
    look = began + 0.1
    while (now := time.monotonic()) < began + seconds:
        crowd.step(publish=True)
        if now > look:
            most = max(most, sleepers.replace_ended(by_new_ones=True)["rss"])
            look = now + 0.1
    last = server.figures()
    messages = max(1, crowd.publisher.next - published)
    deliveries = messages * len(crowd.readers)
    seconds = time.monotonic() - began
    return {
        "messages": messages,
        "rate": deliveries / seconds,
        "cpu": (last["cpu"] - first["cpu"]) / deliveries * 1e6,
        "rss": max(most, last["rss"]),
    }


def until_all_have_ended(crowd: Crowd, sleepers: Sleepers, patience: float) -> None:
    """Publish until the server has ended the last slow readers too."""
    end = time.monotonic() + patience
    look = 0.0
    while sleepers.sockets and (now := time.monotonic()) < end:
        crowd.step(publish=True)
        if now > look:
            sleepers.replace_ended(by_new_ones=False)
            look = now + 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--slow", type=int, default=50, help="how many of them never read")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--outbox", type=int, default=2**20, help="the server's max_outbox")
    parser.add_argument("--ratio", type=float, default=0.85, help="of its rate that must be kept")
    parser.add_argument("--loop", default="uvloop", choices=["uvloop", "asyncio"])
    asked = parser.parse_args()
    allow_files(10_000)
    # No pings: a slow reader answers none, and 4002 might come before its 4001.
    settings = {"max_outbox": asked.outbox, "ping_interval": 3600, "slow_callback": 60.0}
    short = max(1.0, asked.seconds / 4)
    with serving(asked.loop, settings) as server:
        crowd = Crowd(server.port, asked.clients - asked.slow)
        sleepers = Sleepers(server.port, server)
        phase(crowd, server, short / 4, sleepers)  # everything is warm
        before = phase(crowd, server, short, sleepers)
        sleepers.come(asked.slow)
        during = phase(crowd, server, asked.seconds, sleepers)
        until_all_have_ended(crowd, sleepers, 60)
        after = phase(crowd, server, short, sleepers)
        crowd.drain()
        stats = server.stats()
        wrong = crowd.errors()
        crowd.close()
        sleepers.close()
    rate = (before["rate"] + after["rate"]) / 2
    ratio = during["rate"] / rate
    turn = IN_FLIGHT * FRAME
    bound = asked.slow * (asked.outbox + turn) + MEMORY
    grown = during["rss"] - before["rss"]
    if ratio < asked.ratio:
        wrong.append(f"the others had only {ratio:.2f} of their rate")
    if grown > bound:
        wrong.append(f"memory grew by {mib(grown)}, more than {mib(bound)}")
    told = {name: n for name, n in stats["told"].items() if name[0].isdigit()}
    if told != {"4001 server": sleepers.made} or sleepers.made < asked.slow:
        wrong.append(f"of {sleepers.made} slow readers on_close was told {told}")
    wrong += server.errors
    print(f"{asked.clients} clients, {asked.slow} of them slow, {asked.seconds:g} s on "
          f"{stats['loop']}, Python {stats['python']}, {os.cpu_count()} CPUs")  # fmt: skip
    print(f"messages of {SIZE} B to {asked.clients - asked.slow} who read, all of them in order: "
          f"{crowd.published}")  # fmt: skip
    for name, one in (("before", before), ("with slow readers", during), ("after", after)):
        print(f"{name:18} {one['rate']:9,.0f} deliveries/s {one['cpu']:6.2f} µs of CPU each, "
              f"memory {mib(one['rss'])}")  # fmt: skip
    print(f"rate kept: {ratio:.3f} (at least {asked.ratio})")
    print(f"memory grown: {mib(grown)} (at most {mib(bound)}: {asked.slow} × (max_outbox + a "
          f"turn) + {mib(MEMORY)})")  # fmt: skip
    print(f"slow readers: {sleepers.made} came one after another, on_close was told {told}")
    print("\n".join(["WRONG:", *wrong]) if wrong else "OK")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
