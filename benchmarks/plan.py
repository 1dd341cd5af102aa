"""What is measured: one entry for each server and for each scenario."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A server under test. `{port}` in its command becomes the port it must listen on."""

    label: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Scenario:
    """A load, as arguments of loadgen.c."""

    title: str
    unit: str
    arguments: tuple[str, ...]

    @property
    def count_key(self) -> str:
        """Loadgen's name for the number of units in the measured time."""
        return {"delivery": "deliveries", "message": "messages"}[self.unit]


def uvicorn(app: str, ws: str = "websockets-sansio") -> tuple[str, ...]:
    """One uvicorn process, its settings the same for everything that runs on it."""
    options = (
        f"--host 127.0.0.1 --port {{port}} --ws {ws} --ws-per-message-deflate false "
        "--loop uvloop --no-access-log --log-level warning"
    )
    return (sys.executable, "-m", "uvicorn", app, *options.split())


def fanout(in_flight: int) -> Scenario:
    """One sender, a thousand receivers."""
    plural = "message" if in_flight == 1 else "messages"
    load = f"fanout --path /ws/fanout/bench --clients 1000 --size 64 --inflight {in_flight}"
    title = f"Fan-out 1 → 1,000, 64 bytes, {in_flight} {plural} in flight"
    return Scenario(title, "delivery", tuple(load.split()))


def echo(path: str, listener: str) -> Scenario:
    """A hundred clients, each of which waits for its answer."""
    load = f"echo --path {path} --clients 100 --size 64 --inflight 1"
    return Scenario(f"Echo, 100 clients, 64 bytes, {listener}", "message", tuple(load.split()))


# Starlette's handlers are always `async def`: both echo scenarios run the same code of it.
BASELINE = "starlette"
PEERS = {
    "backchannel-native": Peer(
        "Backchannel, native transport (uvicorn)",
        uvicorn("backchannel_app:hub", "backchannel.transport.uvicorn:Protocol"),
    ),
    "backchannel-asgi": Peer(
        "Backchannel, portable ASGI transport (uvicorn)", uvicorn("backchannel_app:hub")
    ),
    BASELINE: Peer("Starlette (uvicorn)", uvicorn("starlette_app:app")),
}
# "fanout" and "echo" on the command line stand for all whose names begin so.
SCENARIOS = {
    "fanout-1": fanout(1),
    "fanout-16": fanout(16),
    "fanout-64": fanout(64),
    "echo-sync": echo("/ws/echo", "`def` listener"),
    "echo-async": echo("/ws/echo-async", "`async def` listener"),
}
