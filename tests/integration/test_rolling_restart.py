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

PATIENCE = 20.0
CLIENTS = 12
SPEAKERS = 3
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


@pytest.fixture
def run(process, make_server):
    def start(*arguments, env):
        started = process("backchannel", "run", "deployed.py", "--port", "0", *arguments, env=env)
        port = started.wait_for_output(r"ws://localhost:(\d+)")[1]
        started.wait_for_output("Ctrl-C to stop")
        return make_server("uvicorn-run", started, int(port))

    return start


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
