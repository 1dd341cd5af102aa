"""Ports for servers that the tests start."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Final

PORTS: Final = range(20_000, 32_768)
"""Below those that Linux gives a connection that asks for none, which may be while a server starts."""

BUS: Final = 10_000
"""An old engine of a cluster talks to the others at a port so much above its own."""


def free_port() -> int:
    """Return a port at which nobody listens."""
    return free_ports(1)[0]


def free_ports(count: int, *, with_bus: bool = False) -> list[int]:
    """Return ports at which nobody listens.

    Args:
        count: how many.
        with_bus: nor at those above them, of the bus.
    """
    ports = PORTS[:-BUS] if with_bus else PORTS
    found: list[int] = []
    # Not by the seed that all processes of a run of the tests have in common.
    for port in random.SystemRandom().sample(ports, len(ports)):
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for each in (port, port + BUS) if with_bus else (port,):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", each))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"{count} free ports are not to be had among {ports}")
