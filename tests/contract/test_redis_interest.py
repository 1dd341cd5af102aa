"""What a node hears, says and asks of its engine: no more than it needs; counted at the engine."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from shared import until

from backchannel import Hub, Listener
from backchannel.broker.redis.engine import BACK_OFF

PREFIX = "backchannel:interest:"


@pytest.fixture
async def node():
    """Start nodes of one application: ``await node(url)``."""
    hubs = []

    async def start(url, **settings):
        hub = Hub(
            broker=url,
            name="interest",
            authenticate=lambda request: request.query.get("user"),
            **settings,
        )
        hub.rule("kept:{name}", history=100)
        hub.add("/ws/{channel}", Listener)
        hubs.append(hub)
        await hub.start()
        return hub

    yield start
    for hub in hubs:
        await hub.stop()


def heard(engine, *, but=()):
    """Return how many nodes hear each topic of a channel, user, session or connection."""
    topics = [name for name in engine.pubsub_channels(f"{PREFIX}*") if name[-1:] == b"}"]
    counts = {name.decode().removeprefix(PREFIX): n for name, n in engine.pubsub_numsub(*topics)}
    return {name: n for name, n in counts.items() if name[1] not in "en" and name not in but}


async def test_a_node_hears_only_what_it_has_someone_of(node, redis_server):
    one, other = await node(redis_server.url), await node(redis_server.url)
    with redis_server.client as engine:
        assert heard(engine) == {}
        session = {"session": {"cart": 1}}
        async with one.test_client("/ws/cars?user=ana", **session) as ana:
            sessions = {name for name in heard(engine) if name.startswith("{s:")}
            assert heard(engine, but=sessions) == {"{c:cars}": 1, "{u:ana}": 1}
            async with (
                other.test_client("/ws/cars?user=ana"),
                one.test_client("/ws/kept:boats?user=bob"),
            ):
                assert heard(engine, but=sessions) == {
                    "{c:cars}": 2, "{u:ana}": 2, "{c:kept:boats}": 1, "{u:bob}": 1,
                }  # fmt: skip
                await ana.connection.subscribe("boats")
                assert heard(engine)["{c:boats}"] == 1
                await ana.connection.unsubscribe("boats")
                await until(lambda: "{c:boats}" not in heard(engine))
            await until(lambda: heard(engine, but=sessions) == {"{c:cars}": 1, "{u:ana}": 1})
        await until(lambda: heard(engine) == {})


class Tap:
    """A way to the engine at which everything is kept that it says, and each attempt is counted."""

    def __init__(self, port):
        self.port = port
        self.said = bytearray()
        self.attempts = 0
        self.is_dead = False
        self.writers = []
        self.serving = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.cut()
        if self.serving:
            await asyncio.wait(self.serving)

    async def _serve(self, reader, writer):
        self.serving.add(asyncio.current_task())
        self.attempts += 1
        if self.is_dead:
            writer.transport.abort()
            return
        there, away = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers += [writer, away]
        await asyncio.gather(self._carry(reader, away), self._carry(there, writer, self.said))

    async def _carry(self, reader, writer, kept=None):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if kept is not None:
                    kept += data
                writer.write(data)
        writer.transport.abort()

    def cut(self):
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


@pytest.fixture
async def tap(redis_server):
    async with Tap(int(redis_server.url.rpartition(":")[2].partition("/")[0])) as made:
        yield made


async def test_a_busy_channel_costs_a_node_without_members_no_byte(node, redis_server, tap):
    busy, idle = await node(redis_server.url), await node(tap.url)
    async with (
        busy.test_client("/ws/cars?user=ana") as member,
        busy.test_client("/ws/kept:cars?user=ana") as reader,
        idle.test_client("/ws/cars?user=bob") as leaver,
        idle.test_client("/ws/boats?user=bob") as other,
    ):
        await busy.broadcast("cars", "to both")
        assert await leaver.receive() == "to both"
        await leaver.close()
        with redis_server.client as engine:
            await until(lambda: heard(engine)["{c:cars}"] == 1)
        await idle._broker._route.answered()  # all that was asked before
        tap.said.clear()
        for number in range(50):
            for sent in (
                busy.broadcast("cars", f"{number}"),
                busy.broadcast("kept:cars", f"{number}"),
                busy.user("ana").send(f"{number}"),
            ):
                await sent
        for client, count in ((member, 101), (reader, 100)):
            for _ in range(count):
                await client.receive()
        await busy.broadcast("boats", "for this one")
        assert await other.receive() == "for this one"
        # What it was told meanwhile: that, and that the engine lives, now and then.
        said = bytes(tap.said).replace(b"+PONG\r\n", b"")
        topic = PREFIX.encode() + b"{c:boats}"
        assert said == (
            b">3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$13\r\nTfor this one\r\n" % (len(topic), topic)
        )


@pytest.mark.parametrize("channel", ["cars", "kept:cars"])
async def test_what_a_turn_publishes_leaves_in_one_write(node, redis_server, channel):
    hub = await node(redis_server.url)
    transport = hub._broker._route.engine.link._transport
    writes, write = [], transport.write

    def note(data):
        writes.append(bytes(data))
        write(data)

    transport.write = note
    try:
        async with hub.test_client(f"/ws/{channel}") as client:
            await hub._broker._route.answered()
            writes.clear()
            sent = [hub.broadcast(channel, f"{number}") for number in range(50)]
            assert [await client.receive() for _ in range(50)] == [str(n) for n in range(50)]
            for one in sent:
                await one
            said = [data for data in writes if b"PING" not in data]
    finally:
        transport.write = write
    assert len(said) == 1
    topic = f"{PREFIX}{{c:{channel}}}\r\n".encode()
    assert said[0].count(topic) == 50


async def test_a_node_asks_an_engine_that_is_away_less_and_less_often(node, tap):
    hub = await node(tap.url)
    tap.is_dead = True
    tap.cut()
    await until(lambda: tap.attempts > 1)
    before = tap.attempts
    await asyncio.sleep(2)  # time is the subject
    # By full jitter from 0.05 s, doubled each time: seven or so; without doubling it is eighty.
    assert 3 <= tap.attempts - before <= 25
    tap.is_dead = False
    before = tap.attempts
    await until(lambda: hub.health.ready, BACK_OFF[1] + 2)
    assert tap.attempts == before + 1
