"""Clusters with a master older than Redis 7.0: no topics of shards, and all agree on that.

That slots move and masters go is in test_cluster.py, the verbs of publishers in test_publisher.py.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from moving import channels_at, moved_back, slot, until
from redis import Redis

from backchannel import Hub, Listener
from backchannel.broker.redis.keys import Keys
from backchannel.contracts import Target
from backchannel.errors import BrokerUnusable

pytestmark = pytest.mark.timeout(90)

ABOUT = "backchannel:chat:about"


@pytest.fixture
async def hubs():
    """Start nodes of one application: ``await hubs(url)``."""
    made = []

    async def start(url):
        hub = Hub(broker=url, name="chat", authenticate=lambda request: request.query.get("user"))
        hub.rule("kept:{name}", history=1000)
        hub.add("/ws/{channel}", Listener)
        made.append(hub)
        await hub.start()
        return hub

    yield start
    for hub in made:
        await hub.stop()


def topic(channel):
    return Keys("chat", 0).topic(Target("channel", channel))


def listeners(cluster, port, channel):
    """Return how many hear a classic topic at a node."""
    return cluster.ask(port, "PUBSUB", "NUMSUB", topic(channel))[1]


def is_sharded(hub):
    return hub._broker._route.is_sharded


async def everything_works(one, two, publisher, channels):
    """Check that nodes hear each other and a publisher, and count each other."""
    for channel in channels:
        url = f"/ws/{channel}?user=ana"
        async with one.test_client(url) as here, two.test_client(url) as there:
            for number, sender in enumerate((one, two, publisher)):
                await sender.broadcast(channel, str(number))
                assert (await sender.user("ana").send("you")).reached == 2
                assert await sender.channel(channel).count() == 2
                for client in (here, there):
                    assert {await client.receive() for _ in range(2)} == {str(number), "you"}


# ── which topics there are ────────────────────────────────────────────────────────────────────


async def test_nodes_agree_while_engines_are_upgraded_under_them(new_cluster, hubs, make):
    """Who starts when the last old master has gone has the topics that the others have."""
    cluster = new_cluster(old=1, replicas=True)
    old, follows = cluster.masters[0], cluster.replicas[cluster.masters[0]]
    channels = [channels_at(cluster, port, 1, "kept:")[0] for port in cluster.masters]
    one, two = await hubs(cluster.url), await hubs(cluster.url)
    await everything_works(one, two, make(cluster.url, "chat"), channels)
    cluster.ask(follows, "CLUSTER", "FAILOVER")
    await until(lambda: b"role:master" in cluster.ask(follows, "INFO", "replication"), 20)
    cluster.kill(old)
    cluster.masters[0] = follows
    known = {follows, *cluster.masters[1:]}
    await until(lambda: {at[1] for at in (m.address for m in one._broker._route.masters)} == known)
    await until(lambda: one.health.ready and not one._broker._route._unheard)
    three = await hubs(cluster.url)
    assert [is_sharded(hub) for hub in (one, two, three)] == [False] * 3
    await two.stop()
    await everything_works(one, three, make(cluster.url, "chat"), channels)

    for hub in (one, three):
        await hub.stop()
    cluster.ask(cluster.owner(ABOUT.encode()), "DEL", ABOUT)
    one, two = await hubs(cluster.url), await hubs(cluster.url)
    assert is_sharded(one)
    assert is_sharded(two)
    await everything_works(one, two, make(cluster.url, "chat"), channels)


async def test_what_nodes_wrote_says_which_they_use(old_cluster, cluster, hubs):
    await hubs(old_cluster.url)
    found = old_cluster.ask(old_cluster.owner(ABOUT.encode()), "GET", ABOUT)
    assert found.startswith(b'classic {"backchannel":')
    await hubs(cluster.url)
    found = cluster.ask(cluster.owner(ABOUT.encode()), "GET", ABOUT)
    assert found.startswith(b'{"backchannel":')


@pytest.mark.parametrize("kind", ["old_cluster", "cluster"])
async def test_nobody_waits_for_who_listens_to_a_pattern(kind, request, hubs, make):
    """At each master; with topics of shards there are no patterns."""
    cluster = request.getfixturevalue(kind)
    one, two = await hubs(cluster.url), await hubs(cluster.url)
    channels = [channels_at(cluster, port, 1)[0] for port in cluster.masters]
    with contextlib.ExitStack() as stack:
        for port in cluster.masters:
            client = stack.enter_context(Redis(port=port))
            everything = stack.enter_context(client.pubsub())
            everything.psubscribe("*")
            assert everything.get_message(timeout=5)["type"] == "psubscribe"
        async with asyncio.timeout(4):  # one that is waited for takes five seconds
            await everything_works(one, two, make(cluster.url, "chat"), channels)


# ── slots that move ───────────────────────────────────────────────────────────────────────────


async def test_what_is_heard_where_a_slot_was_is_not_heard_twice(old_cluster, hubs):
    """All masters say it, and none ends what is heard there."""
    one, two = await hubs(old_cluster.url), await hubs(old_cluster.url)
    source, target = old_cluster.masters[0], old_cluster.spare[0]
    (channel,) = channels_at(old_cluster, source, 1)
    shards = one._broker._route
    with moved_back(old_cluster, slot(channel), source, target) as move:
        async with one.test_client(f"/ws/{channel}") as here:
            assert listeners(old_cluster, source, channel) == 1
            await move.whole()
            await until(lambda: listeners(old_cluster, target, channel) == 1)
            await until(lambda: listeners(old_cluster, source, channel) == 0)
            # As a connection to where it was that is lost and comes back just then:
            await shards.at(("127.0.0.1", source)).engine.link.call("SUBSCRIBE", topic(channel))
            await two.broadcast(channel, "once")
            await until(lambda: listeners(old_cluster, source, channel) == 0)
            await two.broadcast(channel, "end")
            assert [await here.receive() for _ in range(2)] == ["once", "end"]


async def test_a_master_that_does_not_know_yet_is_not_believed(old_cluster, hubs, monkeypatch):
    """Of what moved some learn late: who has the slots by what they say knows better."""
    hub = await hubs(old_cluster.url)
    shards = hub._broker._route
    look, before, asked = shards._survey.look, list(shards._table), []
    first, second, *rest = shards._served

    async def late(informant, lanes):
        asked.append(informant)
        if informant is not None:
            return await look(informant, lanes)
        return sorted([first._replace(address=second.address), second, *rest])

    monkeypatch.setattr(shards._survey, "look", late)
    await until(lambda: len(asked) >= 4)
    assert asked[:2] == [None, shards.at(second.address)]
    assert shards._table == before


# ── what will not do ──────────────────────────────────────────────────────────────────────────


async def test_nodes_that_use_topics_of_shards_are_not_joined_without(old_cluster, hubs, make):
    """Neither would hear the other."""
    running = await hubs(old_cluster.url)
    at = old_cluster.owner(ABOUT.encode())
    found = old_cluster.ask(at, "GET", ABOUT).removeprefix(b"classic ")
    old_cluster.ask(at, "SET", ABOUT, found)
    words = rf"the hub's nodes use topics of shards, and this one can't.* delete '{ABOUT}'"
    with pytest.raises(BrokerUnusable, match=words):
        await hubs(old_cluster.url)
    publisher = make(old_cluster.url, "chat")
    words = r"is Redis 6\.2\.5: 7\.0 or newer is needed, since the hub's nodes use topics of shards"
    for call in (publisher.broadcast("cars", "x"), publisher.channel("cars").count()):
        with pytest.raises(BrokerUnusable, match=words):
            await call
    running.rule("new:{name}", history=1)
    await until(lambda: "use topics of shards" in str(running.health.problems))


async def test_a_node_with_topics_of_shards_says_when_others_have_none(cluster, hubs):
    running = await hubs(cluster.url)
    at = cluster.owner(ABOUT.encode())
    found = cluster.ask(at, "GET", ABOUT)
    cluster.ask(at, "SET", ABOUT, b"classic " + found)
    running.rule("new:{name}", history=1)
    await until(lambda: "use classic topics by now" in str(running.health.problems))
    late = await hubs(cluster.url)
    assert is_sharded(late) is False


async def test_an_old_engine_that_is_no_cluster_is_told_with_what_to_write(oldest_redis, make):
    url = oldest_redis.url.replace("redis:", "redis+cluster:")
    words = "is no node of a cluster: write redis://host:port"
    with pytest.raises(BrokerUnusable, match=words):
        await Hub(broker=url).start()
    with pytest.raises(BrokerUnusable, match=words):
        await make(url).broadcast("cars", "x")
