"""Presence on several nodes with a real engine, and what becomes of it when something goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import signal
from collections import Counter, defaultdict

import pytest
from shared import until

from backchannel import Hub, Listener
from backchannel.broker.redis import RedisBroker
from backchannel.broker.redis.link import _MORE
from backchannel.errors import BrokerUnavailable
from backchannel.testing.broker import RecordingNode

LEASE, MOMENT = 1.0, 0.3


class Told:
    """What on_join and on_leave are told, on whatever node."""

    def __init__(self):
        self.queue = asyncio.Queue()
        self.all = []

    def add_to(self, hub, joined=None):
        hub.on_join(joined or (lambda channel, user: self.put(f"{user} joined", channel)))
        hub.on_leave(lambda channel, user: self.put(f"{user} left", channel))

    def put(self, what, channel):
        self.all.append((what, channel))
        self.queue.put_nowait(what)

    async def next(self, count=1, seconds=10):
        async with asyncio.timeout(seconds):
            return sorted([await self.queue.get() for _ in range(count)])

    async def nothing_until(self, client, word):
        """Check that nothing is told before another user joins."""
        async with client(word):
            assert await self.next() == [f"{word} joined"]
        assert await self.next() == [f"{word} left"]


@pytest.fixture
def told():
    return Told()


@pytest.fixture
async def node(told):
    """Start nodes of one application: ``await node(url)``."""
    hubs = []

    async def start(url, joined=None, **settings):
        hub = Hub(
            broker=url,
            name="presence",
            authenticate=lambda request: request.query.get("user"),
            **{
                "broker_timeout": 1.0,
                "presence_lease": LEASE,
                "presence_moment": MOMENT,
                **settings,
            },
        )
        hub.rule("room:{name}", presence=True)
        hub.rule("quiet:{name}", presence="settled")
        hub.add("/ws/{channel}", Listener)
        told.add_to(hub, joined)
        hubs.append(hub)
        await hub.start()
        return hub

    yield start
    for hub in hubs:
        assert hub.health.problems == ()
        await hub.stop()


def visit(hub, user, room="room:a"):
    return hub.test_client(f"/ws/{room}?user={user}")


def is_away(hub):
    return "away" in hub.health.broker


def is_back(hub):
    return "connected" in hub.health.broker


def cut(broker):
    """Lose the connection to the engine; return what it was."""
    link = broker._route.engine.link
    link.close()
    return link


async def until_anew(broker, link):
    """Wait for another connection than one that was cut."""
    await until(lambda: broker._route.engine.link not in {None, link})


async def test_two_devices_on_two_nodes_are_one_user(node, redis_server, told):
    one, two = await node(redis_server.url), await node(redis_server.url)
    async with visit(one, "ana") as phone:
        assert await told.next() == ["ana joined"]
        async with visit(two, "ana") as laptop:
            for hub in (one, two):
                (ana,) = await hub.channel("room:a").users()
                assert {(d.id, d.node) for d in ana.devices} == {
                    (phone.id, one.node),
                    (laptop.id, two.node),
                }
                assert await hub.channel("room:a").count() == 2
                assert await hub.channel("room:a").count_users() == 1
        (ana,) = await two.channel("room:a").users()
        assert [device.node for device in ana.devices] == [one.node]
    assert await told.next() == ["ana left"]
    assert await two.channel("room:a").users() == []


async def test_a_user_is_online_on_all_nodes_together(redis_server):
    """Told once, when the first device comes to any node and when the last one has gone."""
    heard = asyncio.Queue()
    hubs = []
    for number in range(2):
        hub = Hub(
            broker=redis_server.url,
            name="online",
            authenticate=lambda request: request.query.get("user"),
            presence_moment=0.2,
            presence_lease=1,
        )
        hub.add("/ws/{channel}", Listener)
        hub.on_user_online(lambda user, n=number: heard.put_nowait((n, user, "online")))
        hub.on_user_offline(lambda user, n=number: heard.put_nowait((n, user, "offline")))
        await hub.start()
        hubs.append(hub)
    one, two = hubs

    async def next_word():
        async with asyncio.timeout(10):
            return (await heard.get())[1:]

    async with visit(one, "ana"):
        assert await next_word() == ("ana", "online")
        async with visit(two, "ana"), visit(two, "bob"):
            assert await next_word() == ("bob", "online")
        assert await next_word() == ("bob", "offline")
    async with visit(two, "ana"):  # back within the moment, at another node
        pass
    assert await next_word() == ("ana", "offline")
    async with visit(two, "eve"):
        assert await next_word() == ("eve", "online")
        await two.stop()
        assert await next_word() == ("eve", "offline")
    assert heard.empty()
    await one.stop()


async def test_who_comes_back_at_another_node_within_the_moment_never_left(
    node, redis_server, told
):
    hubs = [await node(redis_server.url) for _ in range(3)]
    for hub in hubs * 3:
        async with visit(hub, "ana"):
            pass
    assert await told.next(2) == ["ana joined", "ana left"]
    assert told.queue.empty()


async def test_a_node_that_only_watches_tells_what_another_left_behind(node, redis_server, told):
    one, two = await node(redis_server.url), await node(redis_server.url)
    async with visit(one, "ana"), visit(two, "bob"):
        assert await told.next(2) == ["ana joined", "bob joined"]
        await one.stop()
        assert await told.next() == ["ana left"]
        assert await two.channel("room:a").users() == ["bob"]


async def test_the_last_node_to_stop_leaves_it_to_the_next_one_to_start(node, redis_server, told):
    one = await node(redis_server.url)
    async with visit(one, "ana"):
        assert await told.next() == ["ana joined"]
        await one.stop()
    await node(redis_server.url)
    assert await told.next() == ["ana left"]
    assert told.queue.empty()


async def test_a_lost_connection_is_neither_a_leave_nor_a_join(node, redis_server, told):
    one, two = await node(redis_server.url), await node(redis_server.url)
    async with visit(one, "ana"), visit(two, "bob"):
        assert await told.next(2) == ["ana joined", "bob joined"]
        for _ in range(3):
            link = cut(one._broker)
            async with visit(one, "eve"):  # meanwhile
                await until_anew(one._broker, link)
                assert await one.channel("room:a").count_users() == 3
                assert await told.next() == ["eve joined"]
            assert await told.next() == ["eve left"]
        assert sorted(await two.channel("room:a").users()) == ["ana", "bob"]
        assert told.queue.empty()


async def test_who_went_while_the_engine_was_away_has_left(node, redis_server, told):
    one, two = await node(redis_server.url), await node(redis_server.url)
    async with visit(two, "bob"):
        async with visit(one, "ana"):
            assert await told.next(2) == ["ana joined", "bob joined"]
            link = cut(one._broker)
        await until_anew(one._broker, link)
        assert await told.next() == ["ana left"]
        assert await one.channel("room:a").users() == ["bob"]


async def test_while_the_engine_is_away_who_is_there_is_not_known(node, redis_server, told):
    hub = await node(redis_server.url)
    async with visit(hub, "ana"):
        await told.next()
        redis_server.stop()
        asking = asyncio.ensure_future(hub.channel("room:a").users())  # before it is noticed
        with pytest.raises(BrokerUnavailable):
            await asking
        await until(lambda: is_away(hub))
        with pytest.raises(BrokerUnavailable, match="is away"):
            await hub.channel("room:a").users()
        with pytest.raises(BrokerUnavailable, match="is away"):
            await hub.channel("room:a").count_users()
        redis_server.start()
        await until(lambda: is_back(hub))
        assert await hub.channel("room:a").users() == ["ana"]


async def test_an_engine_that_lost_its_data_ends_with_the_right_members(node, redis_server, told):
    one, two = await node(redis_server.url), await node(redis_server.url)
    async with contextlib.AsyncExitStack() as stack:
        for hub, user in ((one, "ana"), (two, "ana"), (one, "bob"), (two, "cleo")):
            await stack.enter_async_context(visit(hub, user))
        leaving = await stack.enter_async_context(visit(one, "dora"))
        moving = await stack.enter_async_context(visit(one, "finn"))
        assert len(await told.next(5)) == 5
        redis_server.stop()
        await until(lambda: is_away(one) and is_away(two))
        await leaving.close()
        await moving.close()
        for hub, user in ((one, "eve"), (two, "finn")):
            await stack.enter_async_context(visit(hub, user))
        redis_server.start()
        await until(lambda: is_back(one) and is_back(two))
        # finn joins again where the node that finn has come to is the first one back.
        events = await told.next(2)
        if "finn joined" in events:
            events = sorted([*events, *await told.next()])
            events.remove("finn joined")
        assert events == ["dora left", "eve joined"]
        for hub in (one, two):
            users = await hub.channel("room:a").users()
            assert sorted(users) == ["ana", "bob", "cleo", "eve", "finn"]
            assert {user: len(user.devices) for user in users}["ana"] == 2
        await told.nothing_until(lambda user: visit(one, user), "zoe")


async def test_an_engine_that_hung_for_longer_than_a_lease_has_lost_nobody(
    node, redis_server, told
):
    one = await node(redis_server.url, broker_timeout=20)
    two = await node(redis_server.url, broker_timeout=20)
    async with visit(one, "ana"), visit(two, "bob"):
        assert await told.next(2) == ["ana joined", "bob joined"]
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(2 * LEASE)
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        assert sorted(await one.channel("room:a").users()) == ["ana", "bob"]
        await told.nothing_until(lambda user: visit(one, user), "zoe")
        assert sorted(await two.channel("room:a").users()) == ["ana", "bob"]


async def test_a_node_that_was_cut_off_for_longer_than_its_lease_comes_back(
    node, redis_server, told
):
    one, two = await node(redis_server.url), await node(redis_server.url)
    async with visit(one, "ana"), visit(one, "cleo"), visit(two, "bob"), visit(two, "cleo"):
        assert await told.next(3) == ["ana joined", "bob joined", "cleo joined"]
        engine = one._broker._route.engine
        door, engine._door = engine._door, Wall()
        engine.link.close()
        assert await told.next() == ["ana left"]
        users = await two.channel("room:a").users()
        assert {user: len(user.devices) for user in users} == {"bob": 1, "cleo": 1}
        engine._door = door
        assert await told.next() == ["ana joined"]
        users = await two.channel("room:a").users()
        assert {user: len(user.devices) for user in users} == {"ana": 1, "bob": 1, "cleo": 2}
        await told.nothing_until(lambda user: visit(one, user), "zoe")


async def test_who_was_told_to_have_left_is_told_to_be_back_though_its_node_has_to_enroll_twice(
    node, redis_server, cable, told
):
    """It has its new fencing number by then, but has not heard of it."""
    one, _ = await node(cable.url), await node(redis_server.url)
    async with visit(one, "ana"):
        assert await told.next() == ["ana joined"]
        key = "backchannel:presence:{p}:"
        with redis_server.client as engine:
            await until(lambda: not engine.exists(f"{key}due:{one.node}"))  # that it is told
            cable.cut()
            assert await told.next() == ["ana left"]
            cable.mend()
            cable.last_words = b"\r\nenroll\r\n"
            await until(lambda: engine.hexists(f"{key}fences", one.node))
        cable.cut()
        cable.mend()
        assert await told.next() == ["ana joined"]
    assert await told.next() == ["ana left"]


async def test_who_joined_since_is_not_told_again_where_older_data_does_not_know_its_node(
    node, redis_server, told
):
    one = await node(redis_server.url)
    async with visit(one, "ana"):
        assert await told.next() == ["ana joined"]
        with redis_server.client as client:
            older = {key: client.dump(key) for key in client.scan_iter()}
        two = await node(redis_server.url)
        async with visit(two, "bob"):
            assert await told.next() == ["bob joined"]
            await go_back_to(older, redis_server, two, one)
            await told.nothing_until(functools.partial(visit, one), "eve")
        assert await told.next() == ["bob left"]
    assert await told.next() == ["ana left"]


async def test_an_engine_that_refuses_is_told_of_once_and_asked_again(
    node, redis_server, told, caplog
):
    hub = await node(redis_server.url)
    async with visit(hub, "ana"):
        assert await told.next() == ["ana joined"]
        with redis_server.client as engine:
            engine.config_set("maxmemory", 1)
            try:
                for _ in range(2):
                    with pytest.raises(BrokerUnavailable, match=r"refuses to keep presence: OOM"):
                        await hub.channel("room:a").users()
                async with visit(hub, "bob"):
                    engine.config_set("maxmemory", 0)
                    assert await told.next() == ["bob joined"]
            finally:
                engine.config_set("maxmemory", 0)
        assert await told.next() == ["bob left"]
        assert await hub.channel("room:a").users() == ["ana"]
    assert caplog.text.count("refuses to keep presence") == 1


class Wall:
    """Where a door was."""

    async def open(self, *_):
        raise BrokerUnavailable("there is no way")


async def test_callbacks_that_a_node_could_not_call_are_called_by_another(node, redis_server, told):
    begun = asyncio.Event()

    async def never_ends(channel, user):
        begun.set()
        await asyncio.Event().wait()

    one = await node(redis_server.url, never_ends)
    two = await node(redis_server.url)
    async with visit(one, "ana"):
        await asyncio.wait_for(begun.wait(), 5)
        await one.stop()
        assert await told.next(2) == ["ana joined", "ana left"]
    assert [what for what, _ in told.all] == ["ana joined", "ana left"]
    assert await two.channel("room:a").users() == []


# ── brokers alone ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def broker_node(redis_server):
    """Start a node of the broker alone, which keeps what it is told."""
    nodes = []

    async def start(lease=LEASE, moment=MOMENT):
        node = RecordingNode(RedisBroker(redis_server.url, "test", lease=lease, moment=moment))
        node.keeps_presence = True
        node.settling = {"quiet"}
        await node.broker.start()
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        assert node.problems == []
        await node.broker.stop()


async def die(node):
    """Be heard of no more, as when a process is killed."""
    roll = node.broker._roll
    roll._working.cancel()
    await asyncio.wait({roll._working})
    roll._fence = 0
    node.broker._route.engine.link.close()


async def wake(node):
    """Be heard of again, as a process that was stopped and goes on."""
    await until(lambda: node.broker._route.engine.link is not None)
    node.broker._roll._working = None
    node.broker._roll._stir()


async def until_listed(node, *users, channel="cars"):
    """Wait until a node lists some users, and no others."""
    async with asyncio.timeout(10):
        while set(await node.broker.members(channel)) != set(users):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_node_that_stopped_until_after_its_lease_has_lost_nobody(broker_node):
    """Nobody of it is listed from the end of its lease until it wakes; nobody is told of that."""
    stops, watches = [await broker_node(moment=30) for _ in range(2)]
    stops.come("cars", "ana")
    assert await stops.next_told() == ("cars", "ana", True)
    await die(stops)
    await until_listed(watches)
    assert await watches.broker.count_members("cars") == 0
    assert await watches.broker.members("cars", told=True) == {"ana": []}
    await wake(stops)
    await until_listed(watches, "ana")
    assert await watches.broker.members("cars") == {"ana": [b"phone"]}
    assert await watches.broker.count_members("cars") == 1
    assert await watches.broker.members("cars", told=True) == {"ana": [b"phone"]}
    stops.come("boats", "bob")
    assert await stops.next_told() == ("boats", "bob", True)
    for node in (stops, watches):
        await node.broker.count_members("cars")  # so that all would have been told by now
        assert node.told.empty()


async def test_who_comes_to_another_node_after_the_lease_of_a_dead_one_has_not_left(broker_node):
    dead, alive = [await broker_node(moment=30) for _ in range(2)]
    for user in ("ana", "bob"):
        dead.come("cars", user)
        assert await dead.next_told() == ("cars", user, True)
    await die(dead)
    await until_listed(alive)
    alive.come("cars", "ana")
    assert await alive.broker.members("cars") == {"ana": [b"phone"]}
    assert await alive.broker.count_members("cars") == 1
    assert set(await alive.broker.members("cars", told=True)) == {"ana", "bob"}
    alive.go("cars", "ana")
    assert await alive.broker.members("cars") == {"ana": []}
    assert alive.told.empty()


async def test_who_was_on_a_node_that_died_has_left_the_moment_after_its_lease(
    broker_node, redis_server
):
    """By the engine's clock, counted from the end of the lease, whenever that was found out."""
    dead, alive = [await broker_node(moment=0.5) for _ in range(2)]
    dead.come("cars", "ana")
    assert await dead.next_told() == ("cars", "ana", True)
    await die(dead)
    key = alive.broker._roll._key
    with redis_server.client as engine:
        ends = engine.zscore(key + b"nodes", dead.id)
        await until_listed(alive)
        ((_, told_at),) = engine.zrange(key + b"leaving", 0, -1, withscores=True)
        assert ends + 500 == told_at
        assert await alive.next_told() == ("cars", "ana", False)
        seconds, micros = engine.time()
        assert told_at <= seconds * 1000 + micros / 1000
    assert await alive.broker.members("cars", told=True) == {}


async def test_nothing_is_left_behind_of_who_was_on_a_node_that_died(broker_node, redis_server):
    dead, alive = [await broker_node() for _ in range(2)]
    for channel in ("cars", "quiet"):
        for user in ("ana", "bob"):
            dead.come(channel, user)
    alive.come("cars", "bob")
    await dead.broker.count_members("cars")
    await die(dead)
    await until_listed(alive, "bob")
    alive.come("cars", "ana")
    for user in ("ana", "bob"):
        alive.go("cars", user)
    await alive.broker.count_members("cars")
    mine = alive.broker._roll._key
    kept = {mine + word for word in (b"nodes", b"fences", b"given", b"number", b"heard", b"epoch")}
    kept.add(mine + b"fence")
    with redis_server.client as engine:
        await until(lambda: {one for one in engine.scan_iter() if mine in one} <= kept)


# ── joins that wait ───────────────────────────────────────────────────────────────────────────


async def test_a_join_that_waits_is_told_though_its_node_died(broker_node):
    """Once, by another one; and so is the leave that follows."""
    dead, alive = [await broker_node() for _ in range(2)]
    dead.come("quiet", "ana")
    assert await dead.broker.count_members("quiet") == 1
    await die(dead)
    assert await alive.next_told() == ("quiet", "ana", True)
    assert await alive.next_told() == ("quiet", "ana", False)
    assert alive.told.empty()
    assert dead.told.empty()


async def test_who_is_seen_off_with_a_node_that_died_before_the_join_was_due_is_not_told_of(
    broker_node,
):
    dead, alive = [await broker_node(lease=0.3, moment=1.0) for _ in range(2)]
    dead.come("quiet", "ana")
    assert await dead.broker.count_members("quiet") == 1
    await die(dead)
    await until_listed(alive, channel="quiet")
    assert await alive.broker.members("quiet", told=True) == {}
    alive.come("cars", "bob")
    assert await alive.next_told() == ("cars", "bob", True)
    alive.go("cars", "bob")
    assert await alive.next_told() == ("cars", "bob", False)
    alive.come("quiet", "ana")
    assert await alive.next_told() == ("quiet", "ana", True)
    assert alive.told.empty()
    assert dead.told.empty()


async def test_who_comes_from_a_node_that_died_while_the_join_waits_is_told_of_once(broker_node):
    dead, alive = [await broker_node(lease=0.3, moment=1.0) for _ in range(2)]
    dead.come("quiet", "ana")
    assert await dead.broker.count_members("quiet") == 1
    await die(dead)
    await until_listed(alive, channel="quiet")
    alive.come("quiet", "ana")
    assert await alive.next_told() == ("quiet", "ana", True)
    alive.go("quiet", "ana")
    assert await alive.next_told() == ("quiet", "ana", False)
    assert alive.told.empty()
    assert dead.told.empty()


async def test_who_is_away_when_the_join_is_due_is_told_of_when_back(broker_node, redis_server):
    one, two = [await broker_node(lease=60, moment=30) for _ in range(2)]
    one.come("quiet", "ana")
    one.go("quiet", "ana")
    one.come("quiet", "bob")
    await one.broker.count_members("quiet")
    joining = one.broker._roll._key + b"joining"
    with redis_server.client as engine:
        waits = dict(engine.zrange(joining, 0, -1, withscores=True))
        assert sorted(due > 0 for due in waits.values()) == [True]  # ana came and went in one turn
        one.come("quiet", "ana")
        await one.broker.count_members("quiet")
        one.go("quiet", "ana")
        await one.broker.count_members("quiet")
        waits = engine.zrange(joining, 0, -1, withscores=True)
        (ana, due), _ = waits
        assert due < 0
        engine.zadd(joining, {ana: -1})  # as if it had been due for long
        await two.broker.count_members("quiet")
        assert all(node.told.empty() for node in (one, two))
        two.come("quiet", "ana")
        assert await two.next_told() == ("quiet", "ana", True)
        await one.broker.count_members("quiet")
        assert all(node.told.empty() for node in (one, two))


async def test_a_join_that_waits_is_told_though_the_engine_lost_its_data_meanwhile(
    broker_node, redis_server
):
    """And one that was told is not told again."""
    one, two = [await broker_node(moment=2.0) for _ in range(2)]
    one.come("quiet", "ana")
    await one.broker.count_members("quiet")
    two.come("quiet", "ana", b"laptop")
    await two.broker.count_members("quiet")
    one.come("quiet", "was")
    await one.broker.count_members("quiet")
    one.go("quiet", "was")
    await one.broker.count_members("quiet")
    await lose_data(redis_server, one, two)
    assert await either_told(one, two) == ("quiet", "ana", True)
    await one.broker.count_members("quiet")
    await two.broker.count_members("quiet")
    await lose_data(redis_server, one, two)
    one.come("quiet", "bob")
    assert await either_told(one, two) == ("quiet", "bob", True)
    for node in (one, two):
        node.go("quiet", "ana")
    assert await either_told(one, two) == ("quiet", "ana", False)
    assert all(node.told.empty() for node in (one, two))


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_join_is_not_told_again_where_the_engine_lost_its_data_and_then_the_connection(
    broker_node, redis_server, leaves
):
    """Before its node has announced anybody."""
    node = await broker_node()
    node.come("cars", "ana")
    assert await node.next_told() == ("cars", "ana", True)
    devices = node.devices

    def cut_then(channel, user):
        node.devices = devices
        cut(node.broker)
        return devices(channel, user)

    with redis_server.client as engine:
        engine.flushall()
    node.devices = cut_then
    cut(node.broker)
    await until(lambda: node.devices is not cut_then)
    if leaves:
        del node.here["cars", "ana"]
        node.broker.announce("cars", "ana")
    node.come("cars", "bob")
    told = [await node.next_told() for _ in range(1 + leaves)]
    assert told == [("cars", "bob", True), ("cars", "ana", False)][: 1 + leaves]
    assert node.told.empty()


async def test_a_leave_that_was_told_is_not_told_again_though_the_engine_lost_its_data_since(
    broker_node, redis_server
):
    node = await broker_node(moment=0.1)
    for channel in ("cars", "quiet"):
        node.come(channel, "ana")
        assert await node.next_told() == (channel, "ana", True)
        node.go(channel, "ana")
        assert await node.next_told() == (channel, "ana", False)
        await lose_data(redis_server, node)
    with redis_server.client as engine:
        assert engine.zcard(node.broker._roll._key + b"leaving") == 0
    assert node.told.empty()


async def test_who_left_is_told_of_though_the_engine_lost_its_data_twice_since(
    broker_node, redis_server
):
    node = await broker_node(moment=0.1)
    node.come("cars", "ana")
    assert await node.next_told() == ("cars", "ana", True)
    with redis_server.client as engine:
        engine.flushall()
    link = cut(node.broker)
    node.go("cars", "ana")
    await until_anew(node.broker, link)
    await node.broker.count_members("cars")
    await asyncio.sleep(0.3)  # time is the subject: more than the moment, less than a lease
    await node.broker.count_members("cars")
    await lose_data(redis_server, node)
    assert await node.next_told() == ("cars", "ana", False)
    assert node.told.empty()


async def lose_data(redis_server, *nodes):
    """Let an engine lose all, and its nodes come back to it."""
    links = [node.broker._route.engine.link for node in nodes]
    with redis_server.client as client:
        client.flushall()
    for node, link in zip(nodes, links, strict=True):
        cut(node.broker)
        await until_anew(node.broker, link)
        await node.broker.count_members("quiet")


async def either_told(*nodes):
    """Return what one of some nodes is told next."""
    tasks = [asyncio.ensure_future(node.next_told(10)) for node in nodes]
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.wait(tasks)
    (task,) = done
    return task.result()


async def test_callbacks_on_all_nodes_are_told_of_who_stays_and_of_nobody_else(
    node, redis_server, told
):
    hubs = [await node(redis_server.url, presence_moment=1.5) for _ in range(3)]
    for hub in hubs:
        async with visit(hub, "ana", "quiet:a"), visit(hub, "bob", "quiet:a"):
            assert sorted(await hub.channel("quiet:a").users()) == ["ana", "bob"]
    async with visit(hubs[1], "ana", "quiet:a"), visit(hubs[2], "ana", "quiet:a"):
        assert await told.next() == ["ana joined"]
        await hubs[1].stop()
    assert await told.next() == ["ana left"]
    assert await hubs[0].channel("quiet:a").users() == []
    assert told.queue.empty()


async def test_many_that_a_dead_node_held_are_gone_with_its_lease(broker_node):
    dead, alive = await broker_node(), await broker_node()
    both = {f"user {number}" for number in range(0, 5000, 2)}
    for number in range(5000):
        dead.come("cars", f"user {number}")
    for user in both:
        alive.come("cars", user)
    assert await dead.broker.count_members("cars") == 5000
    assert await alive.broker.count_members("cars") == 5000
    await die(dead)
    left = Counter()
    joined = alive.told.qsize() + dead.told.qsize()
    async with asyncio.timeout(LEASE + 5):
        while len(left) < 2500:
            _, user, is_join = await alive.told.get()
            if not is_join:
                left[user] += 1
    assert joined == 5000
    assert set(left.values()) == {1}
    assert not both & set(left)
    assert set(await alive.broker.members("cars")) == both
    assert all(devices == [b"phone"] for devices in (await alive.broker.members("cars")).values())


async def test_nobody_of_a_dead_node_is_counted_once_its_lease_is_over(broker_node, redis_server):
    """To the millisecond, by the engine's clock, though they are removed bit by bit."""
    dead, too, alive = [await broker_node() for _ in range(3)]
    everybody = {f"user {number}" for number in range(6000)}
    staying = {f"user {number}" for number in range(0, 6000, 5)}
    for user in everybody:
        dead.come("cars", user)
    for user in sorted(everybody)[:1000]:
        too.come("cars", user)  # who has devices at two nodes that die is as dead
    for user in staying:
        alive.come("cars", user)
    for node in (dead, too, alive):
        assert await node.broker.count_members("cars") == 6000
    with redis_server.client as engine:

        def now():
            seconds, micros = engine.time()
            return seconds * 1000 + micros // 1000

        nodes = alive.broker._roll._key + b"nodes"
        for node in (dead, too):
            await die(node)

        def leases():  # they begin anew where the machine was too busy for anybody to be heard
            return [engine.zscore(nodes, node.id) or 0 for node in (dead, too)]

        was_seen = False
        while not was_seen or engine.zcard(nodes) > 1:
            before = now()
            count, members = await asyncio.gather(
                alive.broker.count_members("cars"), alive.broker.members("cars")
            )
            ends = leases()
            if now() <= min(ends):
                assert (count, len(members)) == (6000, 6000)
            elif before > max(ends):
                was_seen = True
                assert (count, set(members)) == (len(staying), staying)
    assert {len(devices) for devices in members.values()} == {1}


async def test_counting_a_huge_room_costs_the_engine_no_more_than_a_small_one(
    broker_node, redis_server
):
    """In its own CPU time; asking who is there does cost more, so that the measure is one."""
    node = await broker_node()
    for room, size in (("small", 10), ("huge", 10_000)):
        for number in range(size):
            node.come(room, f"user {number}")
        assert await node.broker.count_members(room) == size
    with redis_server.client as engine:

        async def cost(ask, times):
            before = engine.info("cpu")
            for _ in range(times):
                await ask()
            after = engine.info("cpu")
            kinds = ("used_cpu_user", "used_cpu_sys")
            return sum(after[kind] - before[kind] for kind in kinds) / times

        async def least(ask, times):
            return min([await cost(ask, times) for _ in range(5)])

        small, huge = [
            await least(functools.partial(node.broker.count_members, room), 100)
            for room in ("small", "huge")
        ]
        everybody = await least(functools.partial(node.broker.members, "huge"), 2)
    assert huge < 4 * small
    assert everybody > 20 * small


async def test_counting_users_leaves_nothing_behind(broker_node, redis_server):
    one, two = await broker_node(), await broker_node()
    for node in (one, two):
        for user in ("ana", "bob"):
            node.come("cars", user)
        await node.broker.count_members("cars")
    for node in (one, two):
        for user in ("ana", "bob"):
            node.go("cars", user)
        await node.broker.count_members("cars")
    left = 0
    async with asyncio.timeout(10):
        while left < 2:
            told = [node.told.get_nowait() for node in (one, two) if not node.told.empty()]
            left += sum(not joined for *_, joined in told)
            await asyncio.sleep(0.01)
    with redis_server.client as engine:
        assert [key for key in engine.scan_iter() if key.endswith(b":cars")] == []


async def test_a_node_that_nobody_is_left_to_find_is_found_by_the_next_one(broker_node):
    dead = await broker_node()
    dead.come("cars", "ana")
    await dead.next_told()
    await die(dead)
    await asyncio.sleep(LEASE + 0.1)
    new = await broker_node()
    assert await new.broker.members("cars") == {}
    assert await new.next_told() == ("cars", "ana", False)


async def test_what_a_node_says_with_an_old_number_is_refused(broker_node):
    one, two = await broker_node(), await broker_node()
    one.come("cars", "ana")
    assert await one.next_told() == ("cars", "ana", True)
    old = one.broker._roll._fence
    link, key = two.broker._route.engine.link, two.broker._roll._key
    await link.call("ZADD", key + b"nodes", 1, one.id)  # as if it had been silent for long
    assert await two.next_told() == ("cars", "ana", False)
    assert await one.next_told() == ("cars", "ana", True)  # announced anew
    assert one.broker._roll._fence > old
    assert await two.broker.members("cars") == {"ana": [b"phone"]}


async def test_a_reply_that_was_lost_loses_no_join(broker_node, redis_server):
    node = await broker_node()
    node.come("cars", "ana")
    assert await node.next_told() == ("cars", "ana", True)
    roll, link = node.broker._roll, node.broker._route.engine.link
    node.come("cars", "bob")
    link._reader = Deaf()
    with redis_server.client as engine:  # until it has arrived
        bob = "backchannel:test:{p}:in:cars", "bob"
        await until(lambda: engine.hexists(*bob))
    link.close()
    assert await node.next_told() == ("cars", "bob", True)
    assert await node.broker.members("cars") == {"ana": [b"phone"], "bob": [b"phone"]}
    node.come("cars", "cleo")
    assert await node.next_told() == ("cars", "cleo", True)
    assert roll._open == {}


async def test_what_is_heard_too_late_is_not_told_since_another_node_has_told_it(broker_node):
    """As by a process that was stopped while the answer was on its way, for longer than a lease."""
    late, other = [await broker_node(moment=30) for _ in range(2)]
    link = late.broker._route.engine.link
    reader, link._reader = link._reader, (held := Held())
    late.come("cars", "ana")
    assert await other.next_told() == ("cars", "ana", True)
    link._reader = reader
    link.data_received(b"".join(held.all))
    assert await late.broker.members("cars") == {"ana": [b"phone"]}
    late.come("cars", "bob")
    assert await late.next_told() == ("cars", "bob", True)
    assert other.told.empty()


class Deaf:
    """A reader that has read nothing."""

    def feed(self, data):
        pass

    def gets(self):
        return _MORE

    def has_data(self):
        return False


class Held(Deaf):
    """A reader that reads later."""

    def __init__(self):
        self.all = []

    def feed(self, data):
        self.all.append(data)


@pytest.mark.parametrize("deaths", [False, True])
@pytest.mark.parametrize("seed", range(2))
async def test_whatever_happens_the_end_is_right_and_all_is_told_once(broker_node, seed, deaths):
    """Users come and go, nodes lose their connections and die, at random."""
    dice = random.Random(seed)
    nodes = [await broker_node() for _ in range(3)]
    dead = []
    channels = ("cars", "boats", "quiet")
    pairs = [(channel, user) for channel in channels for user in ("ana", "bob", "cleo")]
    for _ in range(150):
        node, pair = dice.choice(nodes), dice.choice(pairs)
        node.go(*pair) if pair in node.here else node.come(*pair)
        if dice.random() < 0.04 and (link := node.broker._route.engine.link) is not None:
            link.close()
        if deaths and dice.random() < 0.03 and node.broker._route.engine.link is not None:
            nodes.remove(node)
            dead.append(node)
            await die(node)
            node.here.clear()
            nodes.append(await broker_node())
        if dice.random() < 0.3:
            await asyncio.sleep(dice.random() * 0.05)
    await asyncio.sleep(LEASE + MOMENT + 0.5)
    wanted = {pair for node in nodes for pair in node.here}
    await until(lambda: all(node.broker._route.engine.link is not None for node in nodes))
    for channel in channels:
        members = await nodes[0].broker.members(channel)
        assert set(members) == {user for name, user in wanted if name == channel}, seed
        assert members == await nodes[0].broker.members(channel, told=True), seed
        for user, devices in members.items():
            assert len(devices) == sum((channel, user) in node.here for node in nodes), seed
    balance = defaultdict(int)
    for node in nodes + dead:
        while not node.told.empty():
            channel, user, joined = node.told.get_nowait()
            balance[channel, user] += 1 if joined else -1
    if not deaths:  # what a node was told just before it died may be told again
        assert {pair for pair, count in balance.items() if count} == wanted, seed
        assert set(balance.values()) <= {0, 1}, seed


async def test_whoever_comes_or_goes_after_an_engine_came_back_with_older_data_is_told_of(
    node, redis_server, told
):
    """Its numbers begin anew with those that the node was told already."""
    one = await node(redis_server.url)
    async with visit(one, "ana"):
        assert await told.next() == ["ana joined"]
        with redis_server.client as client:
            older = {key: client.dump(key) for key in client.scan_iter()}
        for user in ("bob", "cleo"):
            async with visit(one, user):
                assert await told.next() == [f"{user} joined"]
            assert await told.next() == [f"{user} left"]
        await go_back_to(older, redis_server, one)
        async with visit(one, "dan"):
            assert await told.next() == ["dan joined"]
        assert await told.next() == ["dan left"]
    assert await told.next() == ["ana left"]


async def test_who_was_there_has_not_joined_where_the_engine_came_back_with_older_data(
    node, redis_server, told
):
    one, two = await node(redis_server.url), await node(redis_server.url)
    async with visit(one, "ana"):
        assert await told.next() == ["ana joined"]
        with redis_server.client as client:
            older = {key: client.dump(key) for key in client.scan_iter()}
        async with visit(two, "bob"), visit(one, "cleo"):
            assert await told.next(2) == ["bob joined", "cleo joined"]
            await go_back_to(older, redis_server, one, two)
            await told.nothing_until(functools.partial(visit, one), "eve")
            for hub in (one, two):
                assert sorted(await hub.channel("room:a").users()) == ["ana", "bob", "cleo"]
        assert await told.next(2) == ["bob left", "cleo left"]
    assert await told.next() == ["ana left"]


async def go_back_to(older, redis_server, *hubs):
    """Give the engine what it had before, as a failover to a replica that was late does."""
    links = [hub._broker._route.engine.link for hub in hubs]
    with redis_server.client as client:
        client.flushall()
        for key, data in older.items():
            client.restore(key, 0, data)
    for hub, link in zip(hubs, links, strict=True):
        cut(hub._broker)
        await until_anew(hub._broker, link)
        await until(lambda hub=hub: is_back(hub))


async def test_what_was_told_at_a_start_is_not_told_at_the_next_ones(redis_server, told, node):
    """Who left just before a lone node stopped is told by the next one, once."""
    hub = await node(redis_server.url)
    async with hub.test_client("/ws/room:a?user=ana"):
        assert await told.next() == ["ana joined"]
    await hub.stop()
    await asyncio.sleep(MOMENT + 0.2)  # time is the subject
    for start in range(1, 4):
        hub = await node(redis_server.url)
        assert await hub.channel("room:a").count_users() == 0
        async with hub.test_client("/ws/room:a?user=bob"):
            pass  # whose join comes after all that was to be told
        while told.all.count(("bob left", "room:a")) < start:
            await told.next()
        await hub.stop()
    with redis_server.client as client:
        assert client.keys("*due:*") == []
    assert Counter(what for what, _ in told.all) == {
        "ana joined": 1, "ana left": 1, "bob joined": 3, "bob left": 3
    }  # fmt: skip
