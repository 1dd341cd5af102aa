"""Clients that come back: each says which message it had last, and goes on from there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from typing import Any

from ledger import Had, Ledger, Place, Said
from people import DIRECT, Crowd, Who
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

PAUSE = (0.02, 0.2)
"""Seconds between two messages of one client."""


class Known:
    """What a client knows of a channel.

    Attributes:
        last: the id of the last message it had, or ``@offset`` where it had none of this epoch.
        epoch: of that; None where it may have missed some since.
        draft: what came since it asked to enter, None for a loss; None once it is in.
    """

    def __init__(self) -> None:
        self.last: str | None = None
        self.epoch: str | None = None
        self.draft: list[str | None] | None = None
        self.is_in = False


class Client:
    """One device of a user, which talks, and goes on after whatever happens to it.

    Args:
        who: its name, and whose it is.
        channels: what it enters.
        ports: of the nodes.
        crowd: whom it says something to.
        ledger: told what it says and has.
        rng: decides what it does.

    Attributes:
        id: of its connection, while it has one.
        at_home: it is not set while it stays away.
    """

    def __init__(
        self, who: Who, channels: list[str], ports: list[int], crowd: Crowd, ledger: Ledger,
        rng: random.Random,
    ):  # fmt: skip
        self.who, self.channels, self.ports, self.crowd = who, channels, ports, crowd
        self.ledger, self.rng = ledger, rng
        self.known = {channel: Known() for channel in channels}
        self.socket: ClientConnection | None = None
        self.is_over = False
        self.talks = True
        self.refused: dict[str, str] = {}
        self.reads, self.at_home = asyncio.Event(), asyncio.Event()
        self.reads.set()
        self.at_home.set()
        self.id: str | None = None
        self.counts: asyncio.Future[dict[str, Any]] | None = None
        self.numbers = self.times = 0

    @property
    def is_in(self) -> bool:
        """It is connected and in all of its channels."""
        return self.socket is not None and all(known.is_in for known in self.known.values())

    async def live(self) -> None:
        """Connect, and again, until it is over."""
        while not self.is_over:
            await self.at_home.wait()
            with contextlib.suppress(OSError, WebSocketException, TimeoutError, EOFError):
                await self._connection()
            self._gone()
            self.ledger.figures["connections ended"] += not self.is_over
            await asyncio.sleep(self.rng.uniform(0.01, 0.3))

    async def _connection(self) -> None:
        port = self.rng.choice(self.ports)
        door = socket.socket()
        # It takes little that it does not read, so that the rest waits in the server.
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        door.setblocking(False)
        try:
            async with asyncio.timeout(2):
                await asyncio.get_running_loop().sock_connect(door, ("127.0.0.1", port))
            opening = connect(
                f"ws://127.0.0.1:{port}/ws?user={self.who.user}&session={self.who.session}",
                sock=door, proxy=None, open_timeout=2, close_timeout=1, ping_interval=1, ping_timeout=2, compression=None,
            )  # fmt: skip
            async with opening as self.socket:
                self.ledger.figures["connections"] += 1
                self.times += 1
                self._note(DIRECT, Had("entered"))
                for channel in self.channels:
                    await self._enter(channel)
                talking = asyncio.create_task(self._talk())
                try:
                    while True:
                        await self.reads.wait()
                        await self._take(json.loads(await self.socket.recv()))
                finally:
                    talking.cancel()
        finally:
            door.close()

    def _gone(self) -> None:
        self.socket = self.id = None
        for channel, known in self.known.items():
            known.is_in = False
            self._drop_draft(channel)
        if self.counts is not None and not self.counts.done():
            self.counts.set_result({})

    def _drop_draft(self, channel: str) -> None:
        known = self.known[channel]
        for id_ in known.draft or ():
            if id_ is not None:
                self._note(channel, Had("draft", id_))
        known.draft = None

    async def send(self, **message: Any) -> None:
        if self.socket is not None:
            await self.socket.send(json.dumps(message))

    async def _enter(self, channel: str) -> None:
        known = self.known[channel]
        known.draft = []
        await self.send(type="enter", channel=channel, last=known.last, epoch=known.epoch)

    # ── what comes ────────────────────────────────────────────────────────────────────────────

    def _note(self, channel: str, had: Had) -> None:
        self.ledger.note(self.who, channel, had)

    async def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"id": id_, "channel": channel}:
                self._got(channel, id_)
            case {"hello": id_}:
                self.id = id_
                self._note(DIRECT, Had("named", id_))
            case {"accepted": id_, "position": position, "reached": reached}:
                place = None if position is None else Place.read(position)
                self.ledger.accepted(id_, place, reached)
            case {"failed": id_, "never": never}:
                self.ledger.failed(id_, never=never)
            case {"entered": channel}:
                self._entered(channel, message)
            case {"refused": channel}:
                self.refused = message
                self.ledger.figures["refused to enter"] += 1
                asyncio.get_running_loop().call_later(0.3, self._enter_again, channel, self.socket)
            case {"lost": channel}:
                self._lost(channel)
            case {"counts": _} if self.counts is not None and not self.counts.done():
                self.counts.set_result(message)

    def _enter_again(self, channel: str, socket_: ClientConnection | None) -> None:
        if self.socket is socket_ and socket_ is not None:
            self._entering = asyncio.ensure_future(self._try_again(channel))

    async def _try_again(self, channel: str) -> None:
        self._drop_draft(channel)
        with contextlib.suppress(WebSocketException):
            await self._enter(channel)

    def _got(self, channel: str, id_: str) -> None:
        if channel == DIRECT:
            self._note(channel, Had("got", id_))
            return
        known = self.known[channel]
        if known.draft is not None:
            known.draft.append(id_)
        else:
            known.last = id_
            self._note(channel, Had("got", id_))

    def _lost(self, channel: str) -> None:
        known = self.known[channel]
        if known.draft is not None:
            known.draft.append(None)
        else:
            known.epoch = None
            self._note(channel, Had("lost"))

    def _entered(self, channel: str, message: dict[str, Any]) -> None:
        known = self.known[channel]
        draft, known.draft, known.is_in = known.draft, None, True
        if "since" not in message:
            self._note(channel, Had("entered"))
        else:
            since, position = Place.read(message["since"]), Place.read(message["position"])
            at = None if message["gap"] else since
            self._note(channel, Had("entered", lost=message["lost"], at=at))
            known.epoch = position.epoch
            known.last = f"@{position.offset}"
        for id_ in draft or ():
            if id_ is None:
                self._lost(channel)
            else:
                self._got(channel, id_)
        self._note(channel, Had("caught up"))

    # ── what it says ──────────────────────────────────────────────────────────────────────────

    async def _talk(self) -> None:
        with contextlib.suppress(WebSocketException):
            while not self.is_over:
                await asyncio.sleep(self.rng.uniform(*PAUSE))
                if self.talks:
                    channel = self.rng.choice([*self.channels, DIRECT])
                    await self.say(channel, *self.crowd.choose(channel))

    async def say(
        self, channel: str, to: list[str] | None = None, exclude: list[str] | None = None,
        *, size: int = 0,
    ) -> str:  # fmt: skip
        """Say something in a channel, or to someone past all channels; return its id."""
        self.numbers += 1
        said = Said(
            f"{self.who.name}-{self.numbers}", channel, f"{self.who.name}/{self.times}",
            self.numbers, to, exclude,
        )  # fmt: skip
        self.ledger.say(said)
        self.ledger.figures["said"] += 1
        await self.send(
            type="say", id=said.id, channel=channel, to=said.to, exclude=said.exclude, size=size
        )
        return said.id

    async def ask_counts(self, channels: list[str]) -> dict[str, Any]:
        """Return what its node says of some channels."""
        self.counts = asyncio.get_running_loop().create_future()
        await self.send(type="count", channels=channels)
        async with asyncio.timeout(5):
            return await self.counts

    # ── what befalls it ───────────────────────────────────────────────────────────────────────

    def hang_up(self) -> None:
        """Be gone at once, without a word."""
        if self.socket is not None:
            self.socket.transport.abort()
