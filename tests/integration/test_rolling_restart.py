"""Three nodes are restarted one after the other under traffic: who resumes misses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal

import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from backchannel import Hub
from backchannel.client import Publication, connect, returning

from cable import Cable  # isort: skip # found by conftest.py

PATIENCE = 20.0
CLIENTS = 12
SPEAKERS = 3
PAUSE = 0.1
"""Seconds between two publications of a v1 client. All together they publish fewer than the 1,000
in which a hub looks for an earlier attempt, in the time in which a client comes back: of those it
could not say whether it was published, and says that."""
GONE = (ConnectionClosed, InvalidHandshake, OSError, EOFError)


class Nodes:
    """Three servers, of which one or the other may be away."""

    def __init__(self, make, transport, engine):
        self._make = make
        self._options = ("--transport", transport, "--drain", "0.7")
        self._env = {"BROKER": engine.url}
        self.servers = [self._start() for _ in range(3)]
        self._turns = itertools.count()

    def _start(self):
        return self._make(*self._options, env=self._env)

    @property
    def port(self):
        """The next node's, whether or not it takes connections."""
        return self.servers[next(self._turns) % 3].port

    async def restart(self, number):
        old = self.servers[number]
        old.process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(old.process.wait) == 0
        assert "Traceback" not in old.printed()
        self.servers[number] = await asyncio.to_thread(self._start)

    @contextlib.asynccontextmanager
    async def connect(self, path):
        """Connect to a node that takes connections, as a balancer would."""
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(PATIENCE):
                while True:
                    server = self.servers[next(self._turns) % 3]
                    try:
                        client = await stack.enter_async_context(server.connect(path))
                        break
                    except GONE:
                        await asyncio.sleep(0.02)  # and the next one
            yield client


class Reader:
    """A client that comes back with the last message it had."""

    def __init__(self, nodes):
        self._nodes = nodes
        self.had = ["start"]
        self.visits = 0

    async def read_until(self, last):
        while self.had[-1] != last:
            with contextlib.suppress(*GONE):
                await self._visit(last)

    async def _visit(self, last):
        async with self._nodes.connect("/back/cars") as client:
            self.visits += 1
            await client.send(json.dumps({"after": self.had[-1]}))
            while self.had[-1] != last:
                message = await client.recv()
                if message[:1] == "{":
                    assert json.loads(message) == {"in": True, "lost": False}
                else:
                    self.had.append(message)


async def speak(nodes, name, is_over):
    """Say one thing after the other, again where the node was gone before it said "done"."""
    said = (f"{name} {number}" for number in itertools.count())
    text, confirmed = next(said), []
    while not is_over.is_set():
        with contextlib.suppress(*GONE):
            async with nodes.connect("/back/cars") as client:
                while not is_over.is_set():
                    await client.send(json.dumps({"say": text}))
                    assert await client.recv() == f"done {text}"
                    confirmed.append(text)
                    text = next(said)
    return confirmed


@pytest.mark.timeout(180)
@pytest.mark.parametrize("transport", ["native", "portable"])
async def test_a_rolling_restart_loses_nothing_for_those_who_resume(
    run, transport, new_redis_server
):
    engine = new_redis_server()
    engine.start()
    nodes = Nodes(run, transport, engine)
    outside = Hub(broker=engine.url, name="deployed")
    outside.rule("room:{name}", history=10_000)
    await outside.start()
    await outside.broadcast("room:cars", "start")
    readers = [Reader(nodes) for _ in range(CLIENTS)]
    reading = [asyncio.create_task(one.read_until("the end")) for one in readers]
    is_over = asyncio.Event()
    speaking = [asyncio.create_task(speak(nodes, f"s{n}", is_over)) for n in range(SPEAKERS)]
    for number in range(3):
        await nodes.restart(number)
    is_over.set()
    confirmed = await asyncio.gather(*speaking)
    await outside.broadcast("room:cars", "the end")
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*reading)
    kept = await outside.channel("room:cars").history(limit=10_000)
    wanted = [one.message for one in kept]
    await outside.stop()
    assert len(wanted) > 100
    for reader in readers:
        assert reader.had == wanted
        assert reader.visits > 1
    for name, said in enumerate(confirmed):
        heard = [text for text in wanted if text.startswith(f"s{name} ")]
        # What a node had taken when it was told to go was said and confirmed: nothing is there twice.
        assert heard == said


# ── clients of v1, which do by themselves what is done by hand above ──────────────────────────


async def has_run(engine, seconds):
    """Wait until an engine's run of data is as old as anything that is tried again.

    Else it could have been in an earlier run, all of which is lost, and be published twice.
    """
    with engine.client as client:
        while client.info("server")["uptime_in_seconds"] < seconds:  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # nothing tells when; it is the age itself


class Balancer(Cable):
    """Leads each connection to the next node, also to those that are going or gone."""

    def __init__(self, nodes):
        super().__init__(None)
        self._nodes = nodes

    async def _serve(self, reader, writer):
        self.port = self._nodes.port
        await super()._serve(reader, writer)


class Speaker:
    """A client of v1 that publishes, delivers and reads until it is over."""

    CHANNEL = "spoken:cars"

    def __init__(self, url, name):
        self.name, self.had, self.lost, self.openings = name, [], [], []
        self.confirmed, self.delivered = [], 0
        self.client = connect(url, on_state=self._became, on_lost=self.lost.append)

    def _became(self, state):
        if state == "open":
            self.openings.append((self.client.id, self.client.resumed))

    async def live(self, is_over, entered, said):
        async with self.client as client:
            events = await client.subscribe(self.CHANNEL).ready()
            reading = asyncio.create_task(self._read(events))
            entered.release()
            for number in itertools.count():
                text = f"{self.name} {number}"
                self.confirmed.append((await client.publish(self.CHANNEL, text), text))
                await client.deliver("count")
                self.delivered += 1
                if is_over.is_set():
                    break
                await asyncio.sleep(PAUSE)
            said.release()
            await reading
            self.counted = await client.call("counted")

    async def _read(self, events):
        async for event in events:
            self.had.append(event)
            if event.data == "the end":
                break


@pytest.mark.timeout(180)
@pytest.mark.parametrize("transport", ["native", "portable"])
async def test_a_rolling_restart_costs_clients_of_v1_nothing(
    run, transport, new_redis_server, monkeypatch
):
    monkeypatch.setattr(returning, "FIRST", 0.05)
    monkeypatch.setattr(returning, "LONGEST", 0.5)  # the balancer also leads to nodes that are gone
    engine = new_redis_server()
    engine.start()
    nodes = Nodes(run, transport, engine)
    outside = Hub(broker=engine.url, name="deployed")
    outside.rule("spoken:{name}", history=10_000)
    await outside.start()
    is_over, entered, said = asyncio.Event(), asyncio.Semaphore(0), asyncio.Semaphore(0)
    await has_run(engine, 7)
    async with Balancer(nodes) as balancer, asyncio.TaskGroup() as tasks:
        speakers = [Speaker(balancer.url("/spoken"), f"s{n}") for n in range(CLIENTS)]
        living = [tasks.create_task(one.live(is_over, entered, said)) for one in speakers]
        for _ in speakers:
            await entered.acquire()
        since = (await outside.broadcast(Speaker.CHANNEL, "the beginning")).position
        for number in range(3):
            await nodes.restart(number)
        is_over.set()
        for _ in speakers:
            await said.acquire()
        await outside.broadcast(Speaker.CHANNEL, "the end")
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait(living)
    kept = await outside.channel(Speaker.CHANNEL).history(limit=10_000)
    await outside.stop()
    wanted = [(str(one.position), one.message) for one in kept]
    check_all(speakers, wanted, since)


def check_all(speakers, wanted, since):
    """See that each had everything once and in order, and that nothing else was ever known."""
    assert len(wanted) > 100
    for one in speakers:
        assert one.lost == []
        assert {type(event) for event in one.had} == {Publication}
        had = [(event.position, event.data) for event in one.had]
        assert had == wanted[len(wanted) - len(had) :]
        assert str(since) in {position for position, _ in had}  # and all that came after it
        mine = [said for said in wanted if said[1].startswith(f"{one.name} ")]
        assert [text for _, text in one.confirmed] == [text for _, text in mine]
        # An ack that is said again, since the first one was lost, may have no position any more.
        assert {said for said in one.confirmed if said[0] is not None} <= set(mine)
        (first, *others) = one.openings
        assert first[1] is False
        assert others, "it was at no node that was restarted"
        assert all(opening == (first[0], True) for opening in others)
        assert one.counted == {"count": one.delivered, "resumed": True}
