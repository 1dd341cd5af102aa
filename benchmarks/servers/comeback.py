"""Thousands of clients whose node is gone come back to another one at once; see ``--help``.

They are in rooms into which 200 others, who stay at that other node, publish all the while by the
clock. These are a process of their own with more of the core, so that what their deliveries take
is not the time that the thousands need.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import uvloop
from comeback_clients import DIALECTS, Crew, publication

ROOMS = 50
OTHERS = 200
RATE = 100  # publications a second, in all rooms together
STEADY = 2.0  # seconds of it before the storm
PATIENCE = 120.0  # seconds until all are back
AT_A_TIME = 64


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dialect", choices=DIALECTS)
    parser.add_argument(
        "how",
        choices=("kill", "jitter", "cut", "others"),
        help="kill the first node, and come back at once; or after 0 to 500 ms; or cut all of its "
        "connections, and come back after a second; or be the others",
    )
    parser.add_argument("--nodes", type=int, nargs="+", help="port and process id of both")
    parser.add_argument("--engine", type=int, help="process id of the engine")
    parser.add_argument("--clients", type=int, default=5000)
    return parser.parse_args()


def cpu_seconds(pid: int) -> float:
    """Return a process's CPU time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def arrive(crew: Crew, clients: list) -> None:
    """Connect clients, some at a time."""
    for start in range(0, len(clients), AT_A_TIME):
        some = clients[start : start + AT_A_TIME]
        crew.expect(len(some))
        for client in some:
            client.begin()
        await crew.all_settled(30)


# ── the others ────────────────────────────────────────────────────────────────────────────────


async def be_the_others(dialect: str, port: int) -> None:
    """Publish from one line of the standard input to the next, then say how long it took."""
    with contextlib.suppress(PermissionError):  # what the storm's clients take is not measured
        os.nice(-10)
    crew = Crew(port)
    clients = [DIALECTS[dialect](crew, number % ROOMS) for number in range(OTHERS)]
    await arrive(crew, clients)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    crew.heard = []
    sent = [0] * ROOMS
    publishing = asyncio.create_task(publish(clients, sent))
    began, ended = map(int, (await asyncio.to_thread(sys.stdin.readline)).split())
    publishing.cancel()
    await all_have(crew, clients, sent)
    storm = sorted(took for due, took in crew.heard if began <= due < ended)
    before = sorted(took for due, took in crew.heard if due < began)
    done = {"sent": sent, "missed": crew.missed, "doubled": crew.doubled}
    done |= {"p50_us": share(storm, 0.5), "p99_us": share(storm, 0.99), "max_us": share(storm, 1)}
    print(json.dumps(done | {"p99_before_us": share(before, 0.99), "timed": len(storm)}))


def share(values: list[int], part: float) -> float:
    """Return the microseconds that so many took at most."""
    return values[min(len(values) - 1, int(len(values) * part))] / 1000


async def publish(clients: list, sent: list[int]) -> None:
    """Publish by the clock: the first client of each room in turn."""
    began = time.monotonic_ns()
    for turn in range(10**9):
        due = began + turn * 10**9 // RATE
        if (wait := due - time.monotonic_ns()) > 0:
            await asyncio.sleep(wait / 1e9)
        room = turn % ROOMS
        sent[room] += 1
        clients[room].publish(publication(room, sent[room], due))


async def all_have(crew: Crew, clients: list, sent: list[int]) -> None:
    """Wait until everyone has the last publication of its room, but who began anew after it."""
    deadline = time.monotonic() + 30
    while late := sum(c.number != sent[c.room] and not c.is_new for c in clients):
        crew.check()
        if time.monotonic() > deadline:
            crew.fail(f"{late} clients have not the last publication of their rooms")
        await asyncio.sleep(0.05)


# ── those that come back ──────────────────────────────────────────────────────────────────────


async def storm(options: argparse.Namespace) -> None:
    """Let them arrive at the first node, take it from them, and wait until all are whole."""
    port, pid, other_port, other_pid = options.nodes
    crew = Crew(port)
    clients = [DIALECTS[options.dialect](crew, n % ROOMS) for n in range(options.clients)]
    others = await asyncio.create_subprocess_exec(
        sys.executable, __file__, options.dialect, "others", "--nodes", str(other_port),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        await arrive(crew, clients)
        await hear(others, b"ready\n")
        others.stdin.write(b"go\n")
        await asyncio.sleep(STEADY)
        crew.check()
        done = await come_back(options, crew, clients, pid, other_port, other_pid)
        others.stdin.write(f"{done.pop('began')} {done.pop('ended')}\n".encode())
        told = json.loads(await hear(others))
        await all_have(crew, clients, told.pop("sent"))
    finally:
        crew.is_over = True
        if others.returncode is None:
            others.kill()
        await others.wait()
    done |= told | {"missed": crew.missed + told["missed"], "lost": crew.lost}
    done |= {"doubled": crew.doubled + told["doubled"], "deliveries_in_all": crew.deliveries}
    print(json.dumps(done))


async def hear(others: asyncio.subprocess.Process, wanted: bytes | None = None) -> bytes:
    """Return a line that the others say."""
    line = await others.stdout.readline()
    if not line or wanted not in {None, line}:
        raise SystemExit(f"the others failed: {line!r}")
    return line


async def come_back(options, crew, clients, pid, port, other_pid) -> dict:
    """Take their node from them; return what it took until they were whole at the other one."""
    crew.comes_back, crew.port = True, port
    crew.spread = 0.5 if options.how == "jitter" else 0.0
    crew.pause = 1.0 if options.how == "cut" else 0.0
    crew.expect(len(clients))
    cpu = [time.process_time(), cpu_seconds(other_pid), cpu_seconds(options.engine)]
    began = time.monotonic_ns()
    if options.how == "cut":
        for client in clients:
            client.transport.abort()
    else:
        os.kill(pid, signal.SIGKILL)
    await crew.all_settled(PATIENCE)
    after = [time.process_time(), cpu_seconds(other_pid), cpu_seconds(options.engine)]
    cpu = [late - early for early, late in zip(cpu, after, strict=True)]
    whole = sorted(client.whole - began for client in clients)
    return {
        "dialect": options.dialect, "clients": len(clients),
        "began": began, "ended": began + whole[-1],
        "seconds": whole[-1] / 1e9, "half_s": whole[len(whole) // 2] / 1e9,
        "not_resumed": crew.not_resumed, "retries": crew.retries,
        "loadgen_cpu_s": cpu[0], "server_cpu_s": cpu[1], "engine_cpu_s": cpu[2],
    }  # fmt: skip


if __name__ == "__main__":
    chosen = read_arguments()
    if chosen.how == "others":
        uvloop.run(be_the_others(chosen.dialect, chosen.nodes[0]))
    else:
        uvloop.run(storm(chosen))
