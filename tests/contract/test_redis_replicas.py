"""An engine that becomes a replica, as at a failover behind a name that stays: nothing is said there."""

from __future__ import annotations

import logging
import random

import pytest
from shared import until

from backchannel import Hub, Listener
from backchannel.broker.redis import engine
from backchannel.errors import BrokerUnavailable


class Pair:
    """Two engines, and the name of the one that is the master: a cable, whose other end moves."""

    def __init__(self, first, second, cable):
        self.first, self.second, self.cable = first, second, cable
        self.url = cable.url
        self.port_of_the_second = int(second.url.rpartition(":")[2].partition("/")[0])

    def demote(self):
        """Make the first one the replica of the second, and cut nobody off."""
        with self.first.client as client:
            client.replicaof("127.0.0.1", self.port_of_the_second)

    def lead_to_the_second(self):
        """Let the name lead to the master, for who connects from now on."""
        self.cable.port = self.port_of_the_second


def is_back(hub):
    return hub.health.ready and hub.health.broker.startswith("connected")


@pytest.fixture(params=["new", "old"])
def engines(request, new_redis_server, tmp_path):
    """Two engines of this test's own; as "old" of Redis 6.2."""
    servers = [new_redis_server(), new_redis_server()]
    if request.param == "old":
        program, kind = request.getfixturevalue("oldest_program"), type(servers[0])
        folders = tmp_path / "first", tmp_path / "second"
        for folder in folders:
            folder.mkdir()
        servers = [kind(program, folder) for folder in folders]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.stop()


@pytest.fixture
def redis_server(engines):
    """What the cable leads to."""
    return engines[0]


@pytest.fixture
def pair(engines, cable):
    return Pair(*engines, cable)


@pytest.fixture
async def hubs():
    made = []

    async def start(url, **settings):
        hub = Hub(
            broker=url,
            name="replicas",
            authenticate=lambda request: request.query.get("user"),
            **settings,
        )
        hub.rule("kept:{name}", history=100)
        hub.add("/ws/{channel}", Listener)
        made.append(hub)
        await hub.start()
        return hub

    yield start
    for hub in made:
        await hub.stop()


@pytest.fixture
def short_beat(monkeypatch):
    monkeypatch.setattr(engine, "BEAT", 0.05)


@pytest.fixture
def long_beat(monkeypatch):
    monkeypatch.setattr(engine, "BEAT", 3600)


# ── a node ────────────────────────────────────────────────────────────────────────────────────


async def test_a_node_leaves_an_engine_that_has_become_a_replica(short_beat, pair, hubs, caplog):
    one = await hubs(pair.url)
    async with one.test_client("/ws/cars?user=ana") as here:
        pair.demote()
        role = f"it is a replica of 127.0.0.1:{pair.second._port}"
        await until(lambda: "away" in one.health.broker)
        assert one.health.broker == f"{pair.url} is away: {role}; 0 publications wait"
        assert not one.health.ready
        waiting = one.broadcast("cars", "waits")
        await until(lambda: "still away" in caplog.text)
        assert one.health.broker == f"{pair.url} is away: {role}; 1 publications wait"

        pair.lead_to_the_second()
        await until(lambda: is_back(one))
        await waiting
        assert await here.receive() == "waits"
        two = await hubs(pair.url)
        async with two.test_client("/ws/cars?user=bob") as there:
            await one.broadcast("cars", "from one")
            await two.broadcast("cars", "from two")
            for client in (here, there):
                assert await client.receive() == "from one"
                assert await client.receive() == "from two"
            assert (await two.user("ana").send("x")).reached == 1
    told = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert told == [
        f"{pair.url} is lost: {role} by now; connections stay open",
        f"still away: {pair.url} can't be used: {role}",
    ]


async def test_a_node_tries_a_replica_less_and_less_often(short_beat, pair, hubs, monkeypatch):
    waits = []
    one = await hubs(pair.url)
    monkeypatch.setattr(random, "uniform", lambda _, most: waits.append(most) or 0.0)
    pair.demote()
    await until(lambda: len(waits) >= 8)
    assert waits[:8] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert "it is a replica of" in one.health.broker


async def test_what_a_replica_refuses_makes_a_node_look_and_is_published_later(
    long_beat, pair, hubs
):
    one = await hubs(pair.url)
    async with one.test_client("/ws/kept:cars") as here:
        before = (await one.broadcast("kept:cars", "before")).position
        assert await here.receive() == "before"
        pair.demote()
        sent = [one.broadcast("kept:cars", str(number)) for number in range(20)]
        await until(lambda: "it is a replica of" in one.health.broker)
        pair.lead_to_the_second()
        positions = [(await each).position for each in sent]
        heard = [await here.receive() for _ in sent]
        assert heard == [str(number) for number in range(20)]
        assert [each.offset for each in positions] == list(range(1, 21))
        assert {each.epoch for each in positions} != {before.epoch}
        assert len(await one.channel("kept:cars").history()) == 20


async def test_what_a_replica_refused_does_not_wait_for_ever(long_beat, pair, hubs):
    one = await hubs(pair.url, broker_timeout=0.3)
    pair.demote()
    with pytest.raises(BrokerUnavailable, match="is away: this was not published"):
        await one.broadcast("kept:cars", "x")


async def test_a_ticket_that_a_replica_refuses_makes_a_node_look(long_beat, pair, hubs):
    one = await hubs(pair.url)
    pair.demote()
    with pytest.raises(BrokerUnavailable):
        await one.ticket("ana")
    await until(lambda: "it is a replica of" in one.health.broker)
    pair.lead_to_the_second()
    await until(lambda: is_back(one))
    assert await one.ticket("ana")


async def test_a_node_does_not_start_at_a_replica(pair, hubs):
    pair.demote()
    with pytest.raises(BrokerUnavailable, match="can't be used: it is a replica of 127"):
        await hubs(pair.url)


async def test_an_engine_that_does_not_tell_its_role_any_more_is_kept(
    short_beat, pair, hubs, caplog
):
    with pair.first.client as client:
        client.execute_command("ACL", "SETUSER", "ana", "on", ">word", "~*", "&*", "+@all")
        one = await hubs(pair.url.replace("//", "//ana:word@"))
        client.execute_command("ACL", "SETUSER", "ana", "-info")
        await until(lambda: (log := client.acl_log()) and log[0]["count"] > 2)
    async with one.test_client("/ws/cars") as here:
        await one.broadcast("cars", "heard")
        assert await here.receive() == "heard"
    assert caplog.records == []


# ── publishers ────────────────────────────────────────────────────────────────────────────────


async def test_publishers_leave_an_engine_that_has_become_a_replica(
    short_beat, pair, hubs, make, monkeypatch
):
    monkeypatch.setattr("backchannel.publisher.doorway.FRESH", 0.0)
    one, publisher = await hubs(pair.url), make(pair.url, "replicas", timeout=10)
    async with one.test_client("/ws/kept:cars?user=ana") as client:
        assert (await publisher.user("ana").send("before")).reached == 1
        assert await client.receive() == "before"
        pair.demote()
        await until(lambda: "away" in one.health.broker)
        pair.lead_to_the_second()
        await until(lambda: is_back(one))
        assert (await publisher.user("ana").send("after")).reached == 1
        assert await client.receive() == "after"
        assert (await publisher.broadcast("kept:cars", "kept")).position.offset == 1
        assert await client.receive() == "kept"
        assert await publisher.everyone.count() == 1


async def test_publishers_say_that_the_engine_is_a_replica(pair, make):
    publisher = make(pair.url, "replicas", timeout=0.5)
    pair.demote()
    with pytest.raises(BrokerUnavailable, match="is away: it is a replica of 127"):
        await publisher.broadcast("cars", "x")
