"""Clients that come back at once and read what they missed: `catch_up.py PORT PID`.

They count bytes: 100 messages of 64 bytes, each with a header of two.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import uvloop
from websockets.asyncio.client import connect

PORT, PID = sys.argv[1:]
CLIENTS, MISSED = 1000, 100
WANTED = MISSED * (64 + 2)


class Client(asyncio.Protocol):
    """One that has a connection already and asks for what came after a position."""

    def __init__(self, since: str) -> None:
        loop = asyncio.get_running_loop()
        self.opened, self.done = loop.create_future(), loop.create_future()
        self.since = since.encode()
        self.got = 0

    def connection_made(self, transport) -> None:
        self.transport = transport
        transport.write(
            b"GET /ws/resume HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            if not data.startswith(b"HTTP/1.1 101") or not data.endswith(b"\r\n\r\n"):
                self.opened.set_exception(RuntimeError(f"the handshake got {data!r}"))
                return
            self.opened.set_result(None)
            return
        self.got += len(data)
        if self.got == WANTED:
            self.done.set_result(None)
        elif self.got > WANTED and not self.done.done():
            self.done.set_exception(RuntimeError(f"{self.got} bytes came instead of {WANTED}"))

    def ask(self) -> None:
        """Ask; the mask of its frame is zeros."""
        self.transport.write(bytes([0x81, 0x80 | len(self.since), 0, 0, 0, 0]) + self.since)

    def connection_lost(self, exc) -> None:
        for waiting in (self.opened, self.done):
            if not waiting.done():
                waiting.set_exception(RuntimeError(f"the connection was lost: {exc}"))
                waiting.exception()


def cpu_seconds() -> float:
    """Return the server's CPU time."""
    fields = Path(f"/proc/{PID}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def main() -> None:
    """Publish, open the connections, let all of them ask, and wait until each has all."""
    loop = asyncio.get_running_loop()
    async with connect(f"ws://127.0.0.1:{PORT}/ws/resume", compression=None) as ws:
        await ws.send(f"fill {MISSED}")
        since = str(await ws.recv())
        clients = []
        for _ in range(CLIENTS):
            _, client = await loop.create_connection(lambda: Client(since), "127.0.0.1", int(PORT))
            await client.opened
            clients.append(client)
        began, cpu = time.perf_counter(), cpu_seconds()
        for client in clients:
            client.ask()
        async with asyncio.timeout(60):
            await asyncio.gather(*[client.done for client in clients])
        seconds = time.perf_counter() - began
    count = CLIENTS * MISSED
    print(json.dumps({"cpu_s": cpu_seconds() - cpu, "seconds": seconds, "count": count}))


uvloop.run(main())
