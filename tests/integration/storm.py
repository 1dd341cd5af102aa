"""Serves the storm, and is one: `python storm.py PORT COUNT` connects so many clients at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys

from backchannel import Connection, Hub

hub = Hub(slow_callback=10.0)


@hub.endpoint("/ws/echo")
def echo(ws: Connection, message: str) -> str:
    return message


@hub.endpoint("/ws/chat/{channel}")
def chat(ws: Connection, message: str) -> None:
    ws.broadcast(message)


def allow_files(wanted: int) -> int:
    """Raise the limit of open files as far as that goes; returns what it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


allow_files(20_000)

REQUEST = (
    "GET /ws/echo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    "Sec-WebSocket-Version: 13\r\nCookie: session=abcdefghijklmnopqrstuvwxyz0123456789\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\n\r\n"
)


class Newcomer(asyncio.Protocol):
    def __init__(self, request: bytes, news: Storm):
        self.request, self.news, self.got = request, news, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.got += data
        if b"\r\n\r\n" in self.got:
            self.news.arrived += self.got.startswith(b"HTTP/1.1 101")
            self.news.done()

    def connection_lost(self, exc: Exception | None) -> None:
        self.news.done()


class Storm:
    def __init__(self, count: int):
        self.count, self.ended, self.arrived = count, 0, 0
        self.over = asyncio.Event()

    def done(self) -> None:
        self.ended += 1
        if self.ended >= self.count:
            self.over.set()


async def storm(port: int, count: int) -> None:
    """Connect, say how many were let in, and stay until the input ends."""
    loop, news = asyncio.get_running_loop(), Storm(count)
    request = REQUEST.format(port=port).encode()

    async def come() -> None:
        try:
            await loop.create_connection(lambda: Newcomer(request, news), "127.0.0.1", port)
        except OSError:
            news.done()

    await asyncio.gather(*(come() for _ in range(count)))
    await news.over.wait()
    print(f"ARRIVED {news.arrived}", flush=True)  # noqa: T201 - the test reads it
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    os.nice(5)  # the clients whose messages are timed come first
    asyncio.run(storm(int(sys.argv[1]), int(sys.argv[2])))
