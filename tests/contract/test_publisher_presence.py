"""Who is in a channel, told to a publisher as to the hub; and rules that it has asked again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter

import pytest
from moving import moved_back, until
from redis.crc import key_slot

from backchannel import Hub, Listener, User
from backchannel.errors import BrokerUnavailable

NAME, LEASE = "outside", 1.5
KEY = f"backchannel:{NAME}:{{p}}:"

everywhere = pytest.mark.parametrize(
    "url", ["redis_server", "oldest_redis", "cluster", "old_cluster"], indirect=True
)
"""With one engine and one of Redis 6.2, with a cluster, and with one that has no topics of shards."""


class Guests:
    """Who may be where."""

    def __init__(self):
        self.banned = set()

    def may_enter(self, ws, channel):
        return (ws.user, channel) not in self.banned


@pytest.fixture
def url(request):
    """Return where the engine is, or the cluster."""
    engine = request.getfixturevalue(getattr(request, "param", "redis_server"))
    if getattr(request, "param", "") == "oldest_redis":
        with engine.client as client:
            client.flushall()
    return engine.url


@pytest.fixture
def guests():
    return Guests()


@pytest.fixture
async def node(url, guests):
    """Start nodes of one hub: ``await node()``."""
    hubs = []

    async def start(at=url, **settings):
        hub = Hub(
            broker=at,
            name=NAME,
            authenticate=lambda request: request.query.get("user"),
            **{"broker_timeout": 2.0, "presence_lease": LEASE, "presence_moment": 0.5, **settings},
        )
        hub.rule("room:{name}", presence=True, subscribe=guests.may_enter)
        hub.add("/ws/{channel}", Listener)
        hubs.append(hub)
        await hub.start()
        return hub

    yield start
    for hub in hubs:
        await hub.stop()


def visit(hub, user, room="room:a"):
    return hub.test_client(f"/ws/{room}?user={user}")


async def until_it_says(ask, expected):
    """Ask until the answer is as expected: nothing tells."""
    async with asyncio.timeout(10):
        while await ask() != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def known(hub, count, room="room:a"):
    """Wait until so many users are known to be in a room."""
    await until_it_says(hub.channel(room).count_users, count)


async def crash(hub):
    """Be heard of no more, as when a process is killed."""
    roll = hub._broker._roll
    roll._working.cancel()
    await asyncio.wait({roll._working})
    roll._fence = 0


# ── who is there ──────────────────────────────────────────────────────────────────────────────


@everywhere
async def test_users_and_their_devices_are_what_the_hub_says(node, make, url):
    one, two = await node(), await node()
    here, there = one.channel("room:a"), make(url).channel("room:a")
    assert (await there.users(), await there.count_users()) == ([], 0)
    async with visit(one, "ana") as phone, visit(two, "bob"), visit(two, "ana") as desk:
        await until(lambda: desk.connection.is_open)
        await known(one, 2)
        await two.channel("room:a").users()  # both have said what they have
        users = await there.users()
        assert users == await here.users() == ["ana", "bob"]
        assert [type(user) for user in users] == [User, User]
        by_id = {device.id: device for device in users[0].devices}
        assert by_id == {device.id: device for device in (await here.users())[0].devices}
        assert set(by_id) == {phone.id, desk.id}
        assert by_id[phone.id] == one.info(phone.connection)
        assert await there.count_users() == await here.count_users() == 2
        assert await there.count() == 3
    assert await make(url).channel("room:b").users() == []


@everywhere
async def test_who_is_away_for_a_moment_is_there_as_at_the_hub(node, make, url):
    hub = await node(presence_moment=2.0)
    here, there = hub.channel("room:a"), make(url).channel("room:a")
    async with visit(hub, "ana"):
        await known(hub, 1)
    assert await here.users() == await there.users() == ["ana"]
    assert [user.devices for user in await there.users()] == [[]]
    assert await there.count_users() == 1
    await known(hub, 0)
    assert (await there.users(), await there.count_users()) == ([], 0)


@everywhere
async def test_where_no_rule_says_presence_the_nodes_are_asked(node, make, url):
    one, two = await node(), await node()
    publisher = make(url)
    async with visit(one, "ana", "cars"), visit(two, "ana", "cars"), visit(two, "bob", "cars"):
        for whom in (publisher.channel("cars"), publisher.everyone):
            users = await whom.users()
            assert sorted(users) == ["ana", "bob"]
            assert {type(user) for user in users} == {User}
            with pytest.raises(AttributeError, match="presence=True"):
                _ = users[0].devices
            assert await whom.count_users() == 2
        assert await publisher.user("ana").users() == ["ana"]
        assert await publisher.user("ana").count_users() == 1
        assert await publisher.channel("boats").count_users() == 0


async def test_a_hub_that_ignores_case_has_one_channel(node, make, url):
    hub = await node(casefold_channels=True)
    async with visit(hub, "ana", "ROOM:A"):
        await known(hub, 1)
        assert await make(url).channel("Room:A").users() == ["ana"]
        assert await make(url).channel("rOOM:a").count_users() == 1


async def test_no_node_is_asked_where_a_rule_says_presence(node, make, redis_server):
    hub = await node()
    there = make(redis_server.url).channel("room:a")
    async with visit(hub, "ana"):
        await known(hub, 1)
        with redis_server.client as engine:
            engine.config_resetstat()
            for _ in range(3):
                assert await there.users() == ["ana"]
                assert await there.count_users() == 1
            assert "cmdstat_publish" not in engine.info("commandstats")


async def test_a_later_rule_is_known_after_a_moment(node, make, url, monkeypatch):
    monkeypatch.setattr("backchannel.publisher.plan.FRESH", 0.05)
    hub = await node()
    there = make(url).channel("late")
    async with visit(hub, "ana", "late"):
        with pytest.raises(AttributeError):
            _ = (await there.users())[0].devices
        hub.rule("late", presence=True)
        async with visit(hub, "bob", "late"):
            await until_it_says(there.users, ["bob"])
            assert len((await there.users())[0].devices) == 1


# ── who looks is no node ──────────────────────────────────────────────────────────────────────


async def test_who_looks_changes_nothing(node, make, redis_server):
    hub = await node(presence_lease=60)
    there = make(redis_server.url, timeout=5.0).channel("room:a")
    async with visit(hub, "ana"), visit(hub, "bob"):
        await known(hub, 2)
        await crash(hub)
        with redis_server.client as engine:
            # As if it had died with something to tell, beside one whose lease is over.
            engine.zadd(f"{KEY}nodes", {"dead": 1})
            engine.zadd(f"{KEY}leaving", {b"\x92\xa6room:a\xa3eve": 1})
            engine.hset(f"{KEY}fences", "dead", 1)
            before = {key: engine.dump(key) for key in engine.scan_iter()}
            assert await there.users() == ["ana", "bob"]
            assert await there.count_users() == 2
            engine.zadd(f"{KEY}nodes", {hub.node: 2})  # nobody lives any more
            assert await there.users() == []
            assert await there.count_users() == 0
            del before[f"{KEY}nodes".encode()]
            after = {key: engine.dump(key) for key in engine.scan_iter()}
            assert after.keys() - before.keys() == {f"{KEY}nodes".encode()}
            assert {key: after[key] for key in before} == before
            assert set(engine.zrange(f"{KEY}nodes", 0, -1)) == {b"dead", hub.node.encode()}


async def test_what_is_told_is_told_to_nodes_alone_however_often_somebody_looks(node, make, url):
    told = []
    hubs = [await node(), await node()]
    for hub in hubs:
        hub.on_join(lambda channel, user: told.append((user, "joined")))
        hub.on_leave(lambda channel, user: told.append((user, "left")))
    there = make(url).channel("room:a")
    is_over = False

    async def look():
        while not is_over:
            assert await there.count_users() <= 20
            assert len(await there.users()) <= 20

    looking = [asyncio.ensure_future(look()) for _ in range(4)]
    async with contextlib.AsyncExitStack() as stack:
        for number in range(20):
            await stack.enter_async_context(visit(random.choice(hubs), f"u{number}"))
        await until(lambda: len(told) >= 20)
    await until(lambda: len(told) >= 40)
    is_over = True
    await asyncio.gather(*looking)
    assert set(Counter(told).values()) == {1}
    assert (await there.users(), await there.count_users()) == ([], 0)


# ── when something dies ───────────────────────────────────────────────────────────────────────


async def test_what_a_dead_node_held_is_gone_with_its_lease(node, make, url):
    dies, stays = await node(), await node()
    there = make(url, timeout=5.0).channel("room:a")
    async with visit(dies, "ana"), visit(dies, "cleo"), visit(stays, "bob"), visit(stays, "cleo"):
        await known(stays, 3)
        await crash(dies)
        async with asyncio.timeout(10):
            while await there.count_users() == 3:
                assert len(await there.users()) >= 2
        users = await there.users()
        assert sorted(users) == ["bob", "cleo"]
        assert [[device.node for device in user.devices] for user in users] == [[stays.node]] * 2


@pytest.mark.parametrize("how", ["crash", "stop"])
async def test_nobody_is_there_where_no_node_is(node, make, url, how):
    """Who was away for a moment when the last node stopped is seen off by nobody."""
    hub = await node()
    there = make(url, timeout=5.0).channel("room:a")
    async with visit(hub, "ana"):
        await known(hub, 1)
        assert await there.users() == ["ana"]
        await (crash(hub) if how == "crash" else hub.stop())
        await until_it_says(there.count_users, 0)
        assert await there.users() == []


async def test_silence_is_waited_for_once(node, make, url):
    hub = await node()
    there = make(url, timeout=5.0).channel("room:a")
    async with visit(hub, "ana"):
        await known(hub, 1)
        await crash(hub)
        await asyncio.sleep(LEASE + 0.1)  # time is the subject
        assert await there.count_users() == 0
        async with asyncio.timeout(1):
            for _ in range(20):
                assert (await there.users(), await there.count_users()) == ([], 0)


async def test_an_engine_that_hung_for_longer_than_a_lease_has_lost_nobody(
    node, make, redis_server
):
    """Who looks may be the first that it hears when it goes on."""
    one, two = await node(broker_timeout=20), await node(broker_timeout=20)
    there = make(redis_server.url, timeout=10.0).channel("room:a")
    async with visit(one, "ana"), visit(two, "bob"):
        await known(two, 2)
        assert sorted(await there.users()) == ["ana", "bob"]
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            looking = [asyncio.ensure_future(there.users()) for _ in range(4)]
            counting = [asyncio.ensure_future(there.count_users()) for _ in range(4)]
            await asyncio.sleep(2 * LEASE)
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        assert [sorted(users) for users in await asyncio.gather(*looking)] == [["ana", "bob"]] * 4
        assert await asyncio.gather(*counting) == [2] * 4


async def test_an_engine_that_is_away_is_told_and_found_again(node, make, redis_server):
    hub = await node()
    publisher = make(redis_server.url, timeout=1.0)
    there = publisher.channel("room:a")
    async with visit(hub, "ana"):
        await known(hub, 1)
        assert await there.users() == ["ana"]
        redis_server.stop()
        for call in (there.users, there.count_users, there.recheck):
            with pytest.raises(BrokerUnavailable, match="is away") as caught:
                await asyncio.wait_for(call(), 3)
            if call is not there.recheck:
                assert "published" not in str(caught.value)  # it only looks
        redis_server.start()  # without its data, and its scripts
        await until(lambda: "connected" in hub.health.broker)
        await known(hub, 1)
        assert await there.users() == ["ana"]
        assert await there.count_users() == 1


@pytest.mark.parametrize("cluster", ["new", "old"], indirect=True)
async def test_a_slot_that_moves_is_waited_for_until_it_is_whole(cluster, node, make):
    hub = await node(cluster.url, broker_timeout=0.5)
    there = make(cluster.url, timeout=1.0).channel("room:a")
    patient = make(cluster.url, timeout=20.0).channel("room:a")
    which, source = key_slot(KEY.encode()), cluster.owner(KEY.encode())
    with moved_back(cluster, which, source, cluster.spare[0]) as move:
        async with visit(hub, "ana"):
            await known(hub, 1)
            assert await there.users() == await patient.users() == ["ana"]
            await asyncio.to_thread(move.begin)
            await asyncio.to_thread(move.move_keys, 2)
            for call in (there.users, there.count_users):
                with pytest.raises(BrokerUnavailable, match="no whole slot"):
                    await call()
            looking = asyncio.ensure_future(patient.users())
            await asyncio.to_thread(move.move_keys)  # all are there: it is asked for nowhere
            with pytest.raises(BrokerUnavailable, match="no whole slot"):
                await there.users()
            assert not looking.done()
            await asyncio.to_thread(move.finish)
            assert await looking == ["ana"]
            assert await there.count_users() == 1


# ── rules that are asked again ────────────────────────────────────────────────────────────────


@everywhere
async def test_who_has_lost_access_is_taken_out_on_all_nodes(node, make, url, guests):
    one, two = await node(), await node()
    publisher = make(url)
    async with (
        visit(one, "ana", "cars") as phone,
        visit(two, "ana", "cars") as desk,
        visit(two, "bob", "cars") as bob,
        visit(two, "eve", "room:a") as eve,
    ):
        await publisher.everyone.subscribe("room:a")
        assert await publisher.channel("room:a").recheck() == []
        guests.banned |= {("ana", "room:a"), ("eve", "room:a")}
        assert await publisher.channel("cars").recheck() == []  # nobody's rule
        lost = await publisher.user("ana").recheck()
        assert {info.id: info for info in lost} == {
            phone.id: one.info(phone.connection),
            desk.id: two.info(desk.connection),
        }
        assert await publisher.user("ana").recheck() == []
        assert bob.connection.channels == {"cars", "room:a"}
        for client in (phone, desk):
            assert client.connection.channels == {"cars"}
        assert [info.id for info in await publisher.everyone.recheck()] == [eve.id]
        await until(lambda: not eve.connection.is_open)
