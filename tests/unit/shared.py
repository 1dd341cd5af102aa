"""What several tests of the hub and of brokers share besides fixtures."""

from __future__ import annotations

import asyncio
import logging

from backchannel import Listener
from backchannel.request import Request


class WebSession(dict):
    """A session with an id, as a framework that keeps it on the server has."""

    def __init__(self, key):
        super().__init__()
        self.session_key = key


class Room(Listener):
    """Does nothing; its connections are sent to."""


async def until(is_so, seconds=10):
    """Wait for what nothing tells of."""
    async with asyncio.timeout(seconds):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def heard(room):
    """Return who of the fixture `room` has heard what, and forget it."""
    got = {name: client.received() for name, client in room.items()}
    return {name: frames for name, frames in got.items() if frames}


def to_all(names, message="hi"):
    return {name: [message] for name in names.split()}


def lines_of(caplog, level=logging.ERROR, name="backchannel"):
    """Return the lines that were logged, from a level on."""
    return [
        r.getMessage() for r in caplog.records if r.levelno >= level and r.name.startswith(name)
    ]


async def turns(count=10):
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


def request_with(cookies):
    """Return a handshake with these cookies."""
    header = "; ".join(f"{name}={value}" for name, value in cookies.items())
    scope = {"type": "websocket", "path": "/ws", "headers": [(b"cookie", header.encode())]}
    return Request(scope, path="/ws", params={})
