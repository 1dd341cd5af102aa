"""Clients that come back with their session, all at once, and get what they missed meanwhile.

`recover.py DIALECT PORT PID`. 1,000 of them, in 50 rooms, miss 100 publications of 64 bytes each;
the time counts from when they connect again, and the server's CPU time has their handshakes in it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop
from comeback import ROOMS, all_have, arrive, cpu_seconds
from comeback_clients import DIALECTS, Crew, publication

CLIENTS, MISSED = 1000, 100
AWAY = 10.0  # seconds in which all is published
PATIENCE = 60.0


async def main() -> None:
    """Let them come, go, miss something, and come back."""
    dialect, port, pid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    crew, others = Crew(port), Crew(port)
    clients = [DIALECTS[dialect](crew, n % ROOMS) for n in range(CLIENTS)]
    publishers = [DIALECTS[dialect](others, room) for room in range(ROOMS)]
    await arrive(crew, clients)
    await arrive(others, publishers)
    await publish(publishers, 1)
    await all_have(crew, clients, [1] * ROOMS)
    crew.comes_back, crew.pause = True, AWAY
    crew.expect(len(clients))
    back = time.monotonic() + AWAY
    for client in clients:
        client.transport.abort()
    for number in range(2, MISSED + 2):
        await publish(publishers, number)
    await all_have(others, publishers, [MISSED + 1] * ROOMS)
    if (left := back - time.monotonic()) < 0.2:
        raise SystemExit(f"publishing took {AWAY - left:.1f} s")
    await asyncio.sleep(left - 0.1)
    cpu = cpu_seconds(pid)
    await crew.all_settled(PATIENCE)
    await all_have(crew, clients, [MISSED + 1] * ROOMS)
    done = {"cpu_s": cpu_seconds(pid) - cpu, "count": CLIENTS * MISSED}
    done["seconds"] = max(client.whole for client in clients) / 1e9 - back
    crew.is_over = others.is_over = True
    done |= {key: getattr(crew, key) for key in ("not_resumed", "missed", "doubled", "lost")}
    print(json.dumps(done))


async def publish(publishers: list, number: int) -> None:
    """Publish to each room; now and then let what came be read."""
    for client in publishers:
        client.publish(publication(client.room, number, time.monotonic_ns()))
    await asyncio.sleep(0.005)


uvloop.run(main())
