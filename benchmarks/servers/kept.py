"""What a session needs whose client is away: `kept.py PORT PID [ENGINE'S URL]`.

Clients come, are told the token of a session, and lose their connection, a hundred at a time; so
the memory of the connections is used again and again, and what grows is what is kept.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path

import uvloop
from comeback_clients import V1, Crew
from redis.asyncio import Redis

PORT, PID, URL = [*sys.argv[1:], None][:3]
AT_A_TIME = 100
WARM_UP, TIMES = 10, 60


def resident_bytes() -> int:
    """Return the server's memory."""
    pages = int(Path(f"/proc/{PID}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def open_files() -> int:
    """Count the server's files; its connections are most of them."""
    return sum(1 for _ in Path(f"/proc/{PID}/fd").iterdir())


async def come_and_go(times: int) -> None:
    """Let clients come, and go without a word; wait until the server has noticed."""
    usual = open_files()
    for _ in range(times):
        crew = Crew(int(PORT))
        clients = [V1(crew, number % 50) for number in range(AT_A_TIME)]
        crew.expect(AT_A_TIME)
        for client in clients:
            client.begin()
        await crew.all_settled(30)
        crew.is_over = True
        for client in clients:
            client.transport.abort()
        async with asyncio.timeout(30):
            while open_files() > usual:  # noqa: ASYNC110 - the server can't tell
                await asyncio.sleep(0.01)


async def kept_in(redis: Redis) -> tuple[list[bytes], int]:
    """Return the engine's keys of sessions, and its memory."""
    keys = [key async for key in redis.scan_iter(match="*{r:*", count=1000)]
    return keys, (await redis.info("memory"))["used_memory"]


async def alone() -> dict:
    """Weigh a server that keeps the sessions itself."""
    await come_and_go(WARM_UP)
    before = resident_bytes()
    await come_and_go(TIMES)
    return {"bytes": resident_bytes() - before, "count": TIMES * AT_A_TIME}


async def in_engine(url: str) -> dict:
    """Weigh the engine."""
    async with Redis.from_url(url) as redis:
        await come_and_go(WARM_UP)
        few, before = await kept_in(redis)
        await come_and_go(TIMES)
        keys, after = await kept_in(redis)
        if (count := len(keys) - len(few)) < TIMES * AT_A_TIME * 0.99:
            raise SystemExit(f"{count} of {TIMES * AT_A_TIME} sessions are in the engine")
        sizes = [await redis.memory_usage(key) for key in keys[:100]]
        each = sum(sizes) / len(sizes)
        return {"bytes": after - before, "count": count, "record_bytes": each}


print(json.dumps(uvloop.run(alone() if URL is None else in_engine(URL))))
