"""Clients that speak v1 by ``backchannel.client``, and go on by what that promises."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import random
import time
from typing import Any

from deeds import Came, Deeds
from ledger import Had, Ledger, Place, Said
from people import DIRECT, Crowd, Who
from roads import Road

from backchannel.client import (
    Client,
    ClientError,
    Join,
    Leave,
    Lost,
    OutcomeUnknown,
    Publication,
    ServerError,
    Unsubscribed,
    connect,
    returning,
)

PAUSE = (0.02, 0.2)
"""Seconds between two messages of one client."""

logging.getLogger("backchannel.client").setLevel(logging.ERROR)  # losses are told
returning.LONGEST = 1.0  # seconds: as patient as clients are, nothing would calm down in a run


class Speaker:
    """One device of a user that speaks v1; to a run the same as ``clients.Client``.

    Args:
        who: its name, and whose it is.
        channels: what it enters.
        ports: of the nodes.
        crowd: whom it says something to.
        ledger: told what it says and has.
        deeds: told what else it says, and how its sessions go on.
        rng: decides what it does.

    Attributes:
        road: between it and the nodes.
        opened: how many connections it had.
        resumed: the last one went on with a session.
        told: how often it was told of somebody's joining (True) and leaving.
    """

    def __init__(
        self, who: Who, channels: list[str], ports: list[int], crowd: Crowd, ledger: Ledger,
        deeds: Deeds, rng: random.Random,
    ):  # fmt: skip
        self.who, self.channels, self.crowd = who, channels, crowd
        self.ledger, self.deeds, self.rng = ledger, deeds, rng
        self.road = Road(ports, rng)
        self.client: Client | None = None
        self.talks = True
        self.refused: dict[str, str] = {}
        self.reads, self.at_home = asyncio.Event(), Home(self.road)
        self.reads.set()
        self.opened = self.numbers = self.times = self.sessions = 0
        self.told: collections.Counter[tuple[str, str, bool]] = collections.Counter()
        self._over = asyncio.Event()
        self._positions: dict[str, str | None] = {}
        self._in: dict[str, Any] = {}
        self._last_id = ""
        self._acknowledged, self._since = 0, 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._bug: BaseException | None = None

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    @is_over.setter
    def is_over(self, value: bool) -> None:
        assert value
        self._over.set()

    @property
    def id(self) -> str | None:
        """Of its connection, while it has one."""
        return self.client.id if self.socket else None

    @property
    def socket(self) -> bool:
        """It is connected."""
        return self.client is not None and self.client.state == "open"

    @property
    def is_in(self) -> bool:
        """It is connected and in all of its channels."""
        return self.socket and all(
            name in self._in and self._in[name].is_in for name in self.channels
        )

    async def live(self) -> None:
        """Stay connected until it is over."""
        await self.road.lay()
        url = f"ws://127.0.0.1:{self.road.port}/v1?user={self.who.user}&session={self.who.session}"
        try:
            async with self._connected(url) as self.client:
                self.client.answer("echo")(lambda data: data)
                self._opened()
                async with asyncio.TaskGroup() as group:
                    some = [group.create_task(self._follow(name)) for name in self.channels]
                    some += [group.create_task(self._listen()), group.create_task(self._talk())]
                    await self._over.wait()
                    for task in (*some, *self._tasks):
                        task.cancel()
                if self._bug is not None:
                    raise self._bug
        finally:
            for task in self._tasks:
                task.cancel()
            await self.road.take_away()

    # ── its connections ───────────────────────────────────────────────────────────────────────

    def _connected(self, url: str) -> contextlib.AbstractAsyncContextManager[Any]:
        """Connect a client, which tells ``_changed`` of its states."""
        return connect(
            url, proxy=None, first_seconds=None, patience=2.0, queue_seconds=20.0,
            max_unread=1 << 16, on_state=self._changed,
        )  # fmt: skip

    def _changed(self, state: str) -> None:
        if state == "open":
            self.ledger.figures["connections"] += 1
            self.ledger.figures["connections of v1"] += 1
            if self.client is not None:  # else it is the first
                self._opened()
        elif state == "waiting":
            self.ledger.figures["connections ended"] += not self.is_over

    def _opened(self) -> None:
        """Take note of how its session goes on."""
        client = self.client
        assert client is not None
        if self._last_id:
            kind = "resumed" if client.resumed else "begun anew"
            self.ledger.figures[f"sessions {kind}"] += 1
        before, acknowledged = self._last_id, self._acknowledged
        self._last_id = client.id
        if not client.resumed:
            self._acknowledged = 0
            self.sessions += 1
            self.times += 1
        self.opened += 1
        self._start(self._compare(before, client.id, acknowledged, resumed=client.resumed))

    async def _compare(self, before: str, id_: str, acknowledged: int, *, resumed: bool) -> None:
        """See whether what was durable has come back."""
        assert self.client is not None
        last, since = None, self._since
        with contextlib.suppress(ClientError):
            last = (await self.client.call("tell", timeout=5))["last"]
        self.deeds.came.append(
            Came(self.who.name, resumed, before, id_, acknowledged, since, last, time.monotonic())
        )

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug = error
            self._over.set()

    # ── what comes ────────────────────────────────────────────────────────────────────────────

    def _note(self, channel: str, had: Had) -> None:
        self.ledger.note(self.who, channel, had)

    async def _listen(self) -> None:
        """Read what comes past all channels."""
        assert self.client is not None
        async for message in self.client:
            await self.reads.wait()
            if "hello" in message:
                self._note(DIRECT, Had("entered"))
                self._note(DIRECT, Had("named", message["hello"]))
            else:
                self._note(message["channel"] and DIRECT, Had("got", message["id"]))

    async def _follow(self, channel: str) -> None:
        """Be in a channel, and again where the server says no or puts it out."""
        assert self.client is not None
        self._note(channel, Had("entered"))
        self._note(channel, Had("caught up"))
        while True:
            subscription = self.client.subscribe(channel, since=self._positions.get(channel))
            self._in[channel] = subscription
            try:
                async for event in subscription:
                    await self.reads.wait()
                    self._happened(channel, event)
            except ServerError as error:
                self.refused = {channel: str(error)}
                self.ledger.figures["refused to enter"] += 1
            await asyncio.sleep(0.3)

    def _happened(self, channel: str, event: Any) -> None:
        match event:
            case Publication(data=data, position=position):
                if position is not None:
                    self._positions[channel] = position
                    self.ledger.place(data["id"], Place.read(position))
                self._note(data["channel"] and channel, Had("got", data["id"]))
            case Lost(position=position):
                self._positions[channel] = position
                if channel.startswith("plain:"):  # it may have moved to another node
                    self._note(channel, Had("entered"))
                self._note(channel, Had("lost"))
            case Join(user=user) | Leave(user=user):
                self.told[channel, user, isinstance(event, Join)] += 1
            case Unsubscribed():
                self.ledger.figures["put out"] += 1

    # ── what it says ──────────────────────────────────────────────────────────────────────────

    async def _talk(self) -> None:
        while not self.is_over:
            await asyncio.sleep(self.rng.uniform(*PAUSE))
            if not self.talks:
                continue
            if self.rng.random() < 0.2:
                self._start(self._deliver())
                continue
            channel = self.rng.choice([*self.channels, DIRECT])
            self._say(channel, *self.crowd.choose(channel))

    async def say(
        self, channel: str, to: list[str] | None = None, exclude: list[str] | None = None,
        *, size: int = 0,
    ) -> str:  # fmt: skip
        """Say something in a channel, or to someone past all channels; return its id."""
        return self._say(channel, to, exclude, size=size)

    def _say(
        self, channel: str, to: list[str] | None, exclude: list[str] | None, *, size: int = 0
    ) -> str:
        self.numbers += 1
        id_ = f"{self.who.name}-{self.numbers}"
        is_published = channel != DIRECT and to is None and exclude is None
        # Calls are not sent again, and so have no order among what is.
        by = f"{self.who.name}/{self.times}" if is_published else f"{id_} alone"
        said = Said(id_, channel, by, self.numbers, to, exclude, again=is_published)
        self.ledger.say(said)
        self.ledger.figures["said"] += 1
        self._start(self._publish(said, size) if is_published else self._ask(said, size))
        return id_

    async def _publish(self, said: Said, size: int) -> None:
        assert self.client is not None
        what = {"id": said.id, "channel": said.channel, "pad": "x" * size}
        try:
            position = await self.client.publish(said.channel, what)
        except ServerError as error:
            if error.code not in {"unavailable", "too_many"}:
                raise
            self.ledger.failed(said.id, never=True)
        except (ClientError, asyncio.CancelledError) as error:
            self._failed(said, error)
        else:
            place = None if position is None else Place.read(position)
            self.ledger.accepted(said.id, place, None)

    async def _ask(self, said: Said, size: int) -> None:
        """Let the listener say it."""
        assert self.client is not None
        message = {
            "id": said.id, "channel": said.channel, "to": said.to, "exclude": said.exclude,
            "size": size,
        }  # fmt: skip
        try:
            answer = await self.client.call("say", message, timeout=10)
        except (ClientError, asyncio.CancelledError) as error:
            self._failed(said, error)
            return
        if "failed" in answer:
            self.ledger.failed(said.id, never=answer["never"])
        else:
            place = None if answer["position"] is None else Place.read(answer["position"])
            self.ledger.accepted(said.id, place, answer["reached"])

    def _failed(self, said: Said, error: BaseException) -> None:
        kind = type(error).__name__
        self.ledger.figures[f"{kind} of v1"] += 1
        never = kind in {"QueueFull", "QueueExpired"}
        self.ledger.failed(said.id, never=never)
        if isinstance(error, OutcomeUnknown):
            self.times += 1

    async def _deliver(self) -> None:
        """Let the listener do something, and know that it did."""
        assert self.client is not None
        self.numbers += 1
        number, session = self.numbers, self.sessions
        id_ = f"{self.who.name}-{number}"
        self.deeds.said[id_] = "sent"
        self.ledger.figures["messages to listeners"] += 1
        try:
            await self.client.deliver({"type": "do", "id": id_, "number": number})
        except (ServerError, asyncio.CancelledError, ClientError) as error:
            never = type(error).__name__ in {"QueueFull", "QueueExpired"}
            is_refused = isinstance(error, ServerError) and error.code == "too_many"
            self.deeds.said[id_] = "never" if never or is_refused else "unknown"
        else:
            self.deeds.said[id_] = "acknowledged"
            self.ledger.figures["messages acknowledged"] += 1
            if session == self.sessions and number > self._acknowledged:
                self._acknowledged, self._since = number, time.monotonic()

    async def ask_counts(self, channels: list[str]) -> dict[str, Any]:
        """Return what its node says of some channels; nothing where it can't be asked."""
        assert self.client is not None
        with contextlib.suppress(ClientError):
            counts: dict[str, Any] = await self.client.call(
                "count", {"channels": channels}, timeout=5
            )
            return counts
        return {"counts": {}}

    # ── what befalls it ───────────────────────────────────────────────────────────────────────

    def hang_up(self) -> None:
        """Lose the connection."""
        self.road.cut()


class Home(asyncio.Event):
    """Set while a client is at home, and gets through to its nodes."""

    def __init__(self, road: Road):
        super().__init__()
        self._road = road
        self.set()

    def set(self) -> None:
        self._road.is_closed = False
        super().set()

    def clear(self) -> None:
        self._road.is_closed = True
        super().clear()
