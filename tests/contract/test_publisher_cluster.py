"""Publishers on a cluster whose slots move and whose masters go; the verbs are in test_publisher.py."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter

import hiredis
import pytest
from moving import Move, channels_at, moved_back, slot, until
from redis.crc import key_slot

from backchannel import Hub, Listener
from backchannel.broker.redis.keys import Keys
from backchannel.contracts import Target
from backchannel.errors import BrokerUnavailable, BrokerUnusable

pytestmark = pytest.mark.timeout(90)

NAME = "outside"

also_old = pytest.mark.parametrize("cluster", ["new", "old"], indirect=True)
"""With topics of shards; and with Redis 6.2, which has none."""


@pytest.fixture
async def hubs():
    """Start nodes of one hub: ``await hubs(url)``."""
    made = []

    async def start(url):
        hub = Hub(broker=url, name=NAME, authenticate=lambda request: request.query.get("user"))
        hub.rule("kept:{name}", history=100_000)
        hub.add("/ws/{channel}", Listener)
        made.append(hub)
        await hub.start()
        return hub

    yield start
    for hub in made:
        await hub.stop()


def channel_at(cluster, port, prefix="kept:"):
    return channels_at(cluster, port, 1, prefix, NAME)[0]


def slot_of(channel):
    return slot(channel, hub=NAME)


def state_of(channel):
    keys = Keys(NAME, 0)
    return keys.of_history(keys.topic(Target("channel", channel)))[0]


def fact(cluster, port, name):
    lines = cluster.ask(port, "INFO").decode().splitlines()
    return next(line.partition(":")[2] for line in lines if line.startswith(f"{name}:"))


class Traffic:
    """Publishes to a channel with history, one after the other from each sender, until it is told to stop.

    Attributes:
        sent: what was confirmed, by its position.
        failed: what was not, with why.
    """

    def __init__(self, channel, *senders):
        self.channel = channel
        self.sent, self.failed = {}, {}
        self.is_over = False
        self.tasks = [
            asyncio.ensure_future(self._publish(name, sender))
            for name, sender in enumerate(senders)
        ]

    async def _publish(self, name, sender):
        number = 0
        while not self.is_over:
            text = f"{name} {number}"
            try:
                position = (await sender.broadcast(self.channel, text)).position
            except BrokerUnavailable as error:
                self.failed[text] = str(error)
            else:
                assert position not in self.sent
                self.sent[position] = text
            number += 1

    async def some_more(self, count=60):
        goal = len(self.sent) + count
        await until(lambda: len(self.sent) >= goal or self._problem, 40)
        assert not self._problem

    @property
    def _problem(self):
        return [task.exception() for task in self.tasks if task.done()]

    async def stop(self):
        self.is_over = True
        await asyncio.gather(*self.tasks)

    def check(self, heard, start):
        """Check that what one heard from a position on is all there was, once and in its order."""
        assert {position.epoch for position in self.sent} == {start.epoch}
        assert [self.sent[position] for position in sorted(self.sent)] == heard
        count = len(heard)
        assert [position.offset - start.offset for position in sorted(self.sent)] == list(
            range(1, count + 1)
        )


# ── slots that move ───────────────────────────────────────────────────────────────────────────


@also_old
async def test_a_slot_that_moves_under_traffic_loses_and_doubles_nothing(cluster, hubs, make):
    node, publisher = await hubs(cluster.url), make(cluster.url, timeout=10.0)
    source, target = cluster.masters[0], cluster.spare[0]
    channel = channel_at(cluster, source)
    start = (await publisher.broadcast(channel, "start")).position
    with moved_back(cluster, slot_of(channel), source, target) as move:
        async with node.test_client(f"/ws/{channel}") as here:
            traffic = Traffic(channel, publisher, node, make(cluster.url, timeout=10.0))
            await traffic.some_more()
            await asyncio.to_thread(move.begin)
            await traffic.some_more()
            await asyncio.to_thread(move.move_keys, 1)  # one of two: scripts find them nowhere
            await asyncio.sleep(0.2)  # time is the subject: all are turned back meanwhile
            await asyncio.to_thread(move.move_keys)
            await traffic.some_more()  # each is asked for where its keys are
            await asyncio.to_thread(move.finish)
            await traffic.some_more()
            await traffic.stop()
            assert traffic.failed == {}
            heard = [await here.receive() for _ in traffic.sent]
            traffic.check(heard, start)
            history = await publisher.channel(channel).history(since=start, limit=100_000)
            assert [one.message for one in history] == heard
            assert not history.lost


async def test_connections_that_are_cut_while_a_slot_moves_double_nothing(cluster, hubs, make):
    node, publisher = await hubs(cluster.url), make(cluster.url, timeout=10.0)
    source, target = cluster.masters[0], cluster.spare[0]
    channel = channel_at(cluster, source)

    def cut():
        for port in (source, target):
            cluster.ask(port, "CLIENT", "KILL", "TYPE", "normal")

    with moved_back(cluster, slot_of(channel), source, target) as move:
        async with node.test_client(f"/ws/{channel}") as here:
            start = (await publisher.broadcast(channel, "start")).position
            traffic = Traffic(channel, publisher, make(cluster.url, timeout=10.0))
            for step in (move.begin, move.move_keys, move.finish):
                await traffic.some_more()
                await asyncio.to_thread(cut)
                await asyncio.to_thread(step)
                await asyncio.to_thread(cut)
            await traffic.some_more()
            await traffic.stop()
            end = (await publisher.broadcast(channel, "end")).position
            assert all("may have been published, or not" in why for why in traffic.failed.values())
            heard = [await here.receive() for _ in range(end.offset - start.offset + 1)]
            assert (heard[0], heard[-1], end.epoch) == ("start", "end", start.epoch)
            assert [text for text, count in Counter(heard).items() if count > 1] == []
            for position, text in traffic.sent.items():
                assert heard[position.offset - start.offset] == text
            assert set(heard[1:-1]) - set(traffic.sent.values()) <= set(traffic.failed)


@pytest.mark.parametrize("first", ["publishes", "reads"])
async def test_a_channel_that_nobody_is_in_keeps_its_epoch_where_its_slot_moved(
    cluster, hubs, make, first
):
    """No node says so: a publisher finds out that it was no failover."""
    await hubs(cluster.url)
    source, target = cluster.masters[0], cluster.spare[0]
    channel = channel_at(cluster, source)
    before = (await make(cluster.url).broadcast(channel, "0")).position
    with moved_back(cluster, slot_of(channel), source, target) as move:
        await move.whole()
        publisher = make(cluster.url)  # which has seen nothing of it
        if first == "reads":
            history = await publisher.channel(channel).history(since=before)
            assert (history.lost, history.position) == (False, before)
        after = (await publisher.broadcast(channel, "1")).position
        assert after == before._replace(offset=before.offset + 1)
        assert (await publisher.broadcast(channel, "2")).position.offset == after.offset + 1


async def test_it_keeps_it_where_masters_that_were_started_with_data_were_so_before_its_newest(
    new_cluster, hubs, make
):
    cluster = new_cluster(spare=1)
    await hubs(cluster.url)
    source, target = cluster.masters[0], cluster.spare[0]
    channel = channel_at(cluster, source)
    publisher = make(cluster.url, timeout=10.0)
    await publisher.broadcast(channel, "saved")
    cluster.ask(source, "SAVE")
    await asyncio.to_thread(cluster.restart, source)
    await until(lambda: int(fact(cluster, source, "uptime_in_seconds")) > 3, 20)
    before = (await publisher.broadcast(channel, "0")).position
    await Move(cluster, slot_of(channel), source, target).whole()
    after = (await publisher.broadcast(channel, "1")).position
    assert after == before._replace(offset=before.offset + 1)


async def test_it_begins_an_epoch_where_a_master_came_back_without_what_followed_its_move(
    new_cluster, hubs, make
):
    """What it saved says that the channel came whole from where it was before, and that is so."""
    cluster = new_cluster(spare=1)
    await hubs(cluster.url)
    source, target = cluster.masters[0], cluster.spare[0]
    channel = channel_at(cluster, source)
    publisher = make(cluster.url, timeout=10.0)
    first = (await publisher.broadcast(channel, "0")).position
    await Move(cluster, slot_of(channel), source, target).whole()
    cluster.ask(target, "SAVE")
    lost = (await publisher.broadcast(channel, "1")).position
    assert lost == first._replace(offset=2)
    await asyncio.to_thread(cluster.restart, target)
    run = cluster.ask(target, "HGET", state_of(channel), "run").decode()
    assert run == fact(cluster, source, "master_replid")
    assert (await publisher.broadcast(channel, "2")).position.epoch != first.epoch
    assert (await publisher.channel(channel).history(since=lost)).lost


@also_old
async def test_what_is_kept_where_its_key_is_already_is_heard_where_its_slot_is(
    cluster, hubs, make
):
    node, publisher = await hubs(cluster.url), make(cluster.url)
    source, target = cluster.masters[0], cluster.spare[0]
    channel = channel_at(cluster, source)
    with moved_back(cluster, slot_of(channel), source, target) as move:
        async with node.test_client(f"/ws/{channel}") as here:
            await node.broadcast(channel, "first")
            await asyncio.to_thread(move.begin)
            await asyncio.to_thread(move.move_keys)
            sent = await publisher.broadcast(channel, "early")
            assert (sent.reached, sent.position.offset) == (None, 2)
            assert [await here.receive() for _ in range(2)] == ["first", "early"]
            history = await publisher.channel(channel).history(limit=1)
            assert [one.message for one in history] == ["early"]
            await asyncio.to_thread(move.finish)
            assert (await publisher.broadcast(channel, "late")).position.offset == 3
            assert await here.receive() == "late"


async def test_a_channel_that_is_new_while_its_slot_moves_waits_until_it_has(cluster, hubs, make):
    """The master that is to have it can't tell a new channel from half of one."""
    await hubs(cluster.url)
    publisher = make(cluster.url, timeout=10.0)
    source, target = cluster.masters[0], cluster.spare[0]
    channel = channel_at(cluster, source)
    with moved_back(cluster, slot_of(channel), source, target) as move:
        await asyncio.to_thread(move.begin)
        sending = asyncio.ensure_future(publisher.broadcast(channel, "1"))
        cluster.ask(target, "CONFIG", "RESETSTAT")
        await until(lambda: b"errorstat_TRYAGAIN" in cluster.ask(target, "INFO", "errorstats"))
        assert not sending.done()
        await asyncio.to_thread(move.finish)
        assert (await sending).position.offset == 1


async def test_half_a_channel_is_waited_for_only_so_long(cluster, hubs, make):
    node, publisher = await hubs(cluster.url), make(cluster.url, timeout=1.0)
    source, target = cluster.masters[0], cluster.spare[0]
    channel = channel_at(cluster, source)
    with moved_back(cluster, slot_of(channel), source, target) as move:
        await node.broadcast(channel, "0")
        await asyncio.to_thread(move.begin)
        await asyncio.to_thread(move.move_keys, 1)
        with pytest.raises(BrokerUnavailable, match=r"is away: .* has no whole slot for it"):
            await asyncio.wait_for(publisher.broadcast(channel, "1"), 3)
        await asyncio.to_thread(move.finish)
        assert (await publisher.broadcast(channel, "2")).position.offset == 2


@also_old
async def test_users_are_reached_and_asked_where_their_slots_are(cluster, hubs, make, monkeypatch):
    monkeypatch.setattr("backchannel.publisher.roaming.FRESH", 0.0)
    node, publisher = await hubs(cluster.url), make(cluster.url)
    source, target = cluster.masters[0], cluster.spare[0]
    user = next(f"u{n}" for n in range(1000) if slot(f"u{n}", "u", NAME) <= 5461)
    with moved_back(cluster, slot(user, "u", NAME), source, target) as move:
        async with node.test_client(f"/ws/x?user={user}") as here:
            assert (await publisher.user(user).send("before")).reached == 1
            await move.whole()
            await until(lambda: not node._broker._route._unheard)
            await until(lambda: str(target) in node._broker._route.owner_of(move.slot).shown)
            await until(lambda: not node._broker._route._unheard)
            assert (await publisher.user(user).send("after")).reached == 1
            assert [one.id for one in await publisher.user(user).connections()] == [here.id]
            assert [await here.receive() for _ in range(2)] == ["before", "after"]


async def test_an_inbox_whose_slot_goes_hears_no_more_and_nobody_waits(cluster, hubs, make, caplog):
    """One node never answers, so that it waits; the slot of its inbox is moved meanwhile."""
    node = await hubs(cluster.url)
    publisher = make(cluster.url, timeout=30.0)
    topic = Keys(NAME, 0).heard(Target("channel", "cars"))
    reader, writer = await asyncio.open_connection("127.0.0.1", cluster.owner(topic))
    writer.write(b"SSUBSCRIBE %b\r\n" % topic)
    await reader.readuntil(b":1\r\n")
    counting = asyncio.ensure_future(publisher.channel("cars").count())
    await reader.readuntil(b"smessage")
    inboxes = {
        inbox: port
        for port in (*cluster.masters, *cluster.spare)
        for inbox in cluster.ask(port, "PUBSUB", "SHARDCHANNELS", f"backchannel:{NAME}:{{n:*")
    }
    (inbox,) = (one for one in inboxes if node.node.encode() not in one)
    source = inboxes[inbox]
    with moved_back(cluster, key_slot(inbox), source, cluster.spare[0]) as move:
        await move.whole()
        assert await asyncio.wait_for(counting, 5) == 0
        assert "1 nodes that have someone of channel did not answer" in caplog.text
        writer.close()
        await writer.wait_closed()
        assert await publisher.everyone.count() == 0  # no connection is out of step
        assert await publisher.channel("boats").count() == 0


async def test_scripts_that_a_master_forgot_are_loaded_again(cluster, hubs, make):
    await hubs(cluster.url)
    publisher = make(cluster.url)
    for number in range(2):
        for port in cluster.masters:
            channel = channel_at(cluster, port)
            assert (await publisher.broadcast(channel, "x")).position.offset == number + 1
            cluster.ask(port, "SCRIPT", "FLUSH")
            assert len(await publisher.channel(channel).history()) == number + 1
            cluster.ask(port, "SCRIPT", "FLUSH")


# ── masters that go ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def replicated(request, new_cluster):
    """A cluster of its own, with replicas, of which masters may be killed; "old" is Redis 6.2."""
    return new_cluster(replicas=True, old=3 if getattr(request, "param", "") == "old" else 0)


@pytest.mark.parametrize(
    ("replicated", "how"),
    [("new", signal.SIGKILL), ("new", signal.SIGSTOP), ("old", signal.SIGKILL)],
    ids=["dies", "hangs", "old dies"],
    indirect=["replicated"],
)
async def test_a_master_that_goes_is_followed_by_its_replica_under_traffic(
    replicated, hubs, make, how
):
    node, publisher = await hubs(replicated.url), make(replicated.url, timeout=30.0)
    dies, stays = replicated.masters[:2]
    lost, kept = channel_at(replicated, dies), channel_at(replicated, stays)
    async with (
        node.test_client(f"/ws/{lost}") as at_lost,
        node.test_client(f"/ws/{kept}") as at_kept,
    ):
        before = (await publisher.broadcast(lost, "before")).position
        start = (await publisher.broadcast(kept, "before")).position
        traffic = Traffic(lost, publisher), Traffic(kept, publisher)
        for each in traffic:
            await each.some_more()
        replicated.running[dies].send_signal(how)
        if how == signal.SIGSTOP:  # what it was sent is answered by nobody
            follows = replicated.replicas[dies]
            await until(lambda: fact(replicated, follows, "role") == "master", 30)
            replicated.kill(dies)
        for each in traffic:
            await each.some_more()
            await each.stop()
        there, here = traffic
        assert here.failed == {}  # the cluster refuses all for a while, and that is waited for
        assert await at_kept.receive() == "before"
        here.check([await at_kept.receive() for _ in here.sent], start)

        assert all("may have been published, or not" in why for why in there.failed.values())
        await until(lambda: "3 masters" in node.health.broker, 30)
        end = (await publisher.broadcast(lost, "end")).position
        assert end.epoch != before.epoch  # what the replica did not have may be lost
        heard = []
        while (text := await at_lost.receive()) != "end":
            heard.append(text)
        assert [text for text, count in Counter(heard).items() if count > 1] == []
        assert (await publisher.channel(lost).history(since=before)).lost


async def test_a_master_that_was_a_replica_for_a_while_is_in_another_run(
    replicated, hubs, make, monkeypatch
):
    """The connection to it is still there, and what it was greeted with holds no more."""
    monkeypatch.setattr("backchannel.publisher.doorway.FRESH", 0.0)
    await hubs(replicated.url)
    publisher = make(replicated.url, timeout=10.0)
    master = replicated.masters[0]
    channel, replica = channel_at(replicated, master), replicated.replicas[master]
    before = (await publisher.broadcast(channel, "0")).position
    for down, up in ((master, replica), (replica, master)):
        replicated.ask(up, "CLUSTER", "FAILOVER")
        for port, role in ((up, "master"), (down, "slave")):
            await until(lambda port=port, role=role: fact(replicated, port, "role") == role, 20)
        await until(lambda at=down: fact(replicated, at, "master_link_status") == "up", 20)
    after = (await publisher.broadcast(channel, "1")).position
    assert after.epoch != before.epoch
    run = replicated.ask(master, "HGET", state_of(channel), "run").decode()
    assert run == fact(replicated, master, "master_replid")


async def test_nodes_answer_where_a_master_has_handed_over(replicated, hubs, make, monkeypatch):
    """It goes on answering as a replica: that nobody hears."""
    monkeypatch.setattr("backchannel.publisher.doorway.FRESH", 0.0)
    node, publisher = await hubs(replicated.url), make(replicated.url, timeout=10.0)
    master = replicated.masters[0]
    channel, replica = channel_at(replicated, master, ""), replicated.replicas[master]
    async with node.test_client(f"/ws/{channel}") as here:
        assert await publisher.channel(channel).count() == 1
        replicated.ask(replica, "CLUSTER", "FAILOVER")
        await until(lambda: known(node) == {replica, *replicated.masters[1:]}, 20)
        await until(lambda: not node._broker._route._unheard and "3 masters" in node.health.broker)
        assert (await publisher.broadcast(channel, "x")).reached is None
        assert await here.receive() == "x"
        assert await publisher.channel(channel).count() == 1


async def test_after_a_failover_nodes_say_that_a_slot_moved_and_without_them_an_epoch_begins(
    replicated, hubs, make
):
    """Who has taken another's place may have lost what came after a slot: a publisher can't tell."""
    node, publisher = await hubs(replicated.url), make(replicated.url, timeout=10.0)
    source, replica = replicated.masters[0], replicated.replicas[replicated.masters[1]]
    replicated.ask(replica, "CLUSTER", "FAILOVER")
    await until(lambda: fact(replicated, replica, "role") == "master", 20)
    replicated.masters[1] = replica
    await until(lambda: len(node._broker._route.masters) == 3 and replica in known(node), 20)
    here, elsewhere = channels_at(replicated, source, 2, "kept:", NAME)
    async with node.test_client(f"/ws/{here}") as client:
        before = {
            name: (await publisher.broadcast(name, "0")).position for name in (here, elsewhere)
        }
        for name in before:
            await Move(replicated, slot_of(name), source, replica).whole()
        after = (await publisher.broadcast(here, "1")).position
        assert after == before[here]._replace(offset=before[here].offset + 1)
        assert [await client.receive() for _ in range(2)] == ["0", "1"]
        assert (await publisher.broadcast(elsewhere, "1")).position.epoch != before[elsewhere].epoch
        assert (await node.channel(elsewhere).history(since=before[elsewhere])).lost


def known(node):
    return {lane.address[1] for lane in node._broker._route.masters}


async def test_a_replica_says_who_the_masters_are(replicated, hubs, make):
    await hubs(replicated.url)
    url = f"redis+cluster://127.0.0.1:{replicated.replicas[replicated.masters[0]]}"
    publisher = make(url)
    for port in replicated.masters:
        assert (await publisher.broadcast(channel_at(replicated, port), "x")).position.offset == 1


# ── what will not do ──────────────────────────────────────────────────────────────────────────


async def test_nodes_that_do_not_answer_are_named_and_one_that_does_is_enough(
    cluster, hubs, make, free_port
):
    nobody = f"127.0.0.1:{free_port}"
    publisher = make(f"redis+cluster://{nobody},localhost:{free_port}", timeout=0.5)
    words = rf"is away: no node of it answers: {nobody}: .*; localhost:{free_port}: "
    with pytest.raises(BrokerUnavailable, match=words):
        await asyncio.wait_for(publisher.broadcast("cars", "x"), 2)
    await hubs(cluster.url)
    publisher = make(f"redis+cluster://{nobody},127.0.0.1:{cluster.spare[0]}")
    assert (await publisher.broadcast("cars", "x")).reached == 0


async def test_an_engine_that_is_no_cluster_is_told_with_what_to_write(redis_server, make):
    publisher = make(redis_server.url.replace("redis:", "redis+cluster:"))
    with pytest.raises(BrokerUnusable, match="is no node of a cluster: write redis://host:port"):
        await publisher.broadcast("cars", "x")


async def test_a_cluster_that_is_taken_for_one_engine_is_told_with_what_to_write(
    cluster, hubs, make
):
    await hubs(cluster.url)
    for port in cluster.masters:  # of which one has what publishers read first
        publisher = make(f"redis://127.0.0.1:{port}")
        for call in (publisher.broadcast("cars", "x"), publisher.everyone.count()):
            with pytest.raises(BrokerUnusable, match=r"of a cluster: write redis\+cluster://host"):
                await call


async def test_slots_that_nobody_serves_are_told(new_cluster, make):
    cluster = new_cluster(masters=1, share=100)
    with pytest.raises(BrokerUnavailable, match=r"is away: its slot \d+ has no master"):
        await make(cluster.url, timeout=0.5).broadcast("cars", "x")


async def test_a_password_is_for_all_nodes_and_not_shown(new_cluster, hubs, make):
    cluster = new_cluster()
    await hubs(cluster.url)
    channels = [channel_at(cluster, port) for port in cluster.masters]
    for port in cluster.masters:
        cluster.ask(port, "CONFIG", "SET", "requirepass", "opensesame")
    for user in ("", ":secret@"):
        with pytest.raises(BrokerUnusable, match="password") as refused:
            await make(cluster.url.replace("//", f"//{user}")).broadcast("cars", "x")
        assert "secret" not in str(refused.value)
    publisher = make(cluster.url.replace("//", "//default:opensesame@"))
    for channel in channels:
        assert (await publisher.broadcast(channel, "x")).position.offset == 1
    assert "opensesame" not in repr(publisher)


async def test_a_cluster_that_is_too_old_is_told_its_version(make):
    """None so old can be had: this one says what an old one says."""
    info = b"redis_version:6.0.16\r\nredis_mode:cluster\r\n"

    async def serve(reader, writer):
        commands = hiredis.Reader()
        while data := await reader.read(1000):
            commands.feed(data)
            while command := commands.gets():
                is_info = command[0] == b"INFO"
                writer.write(b"$%d\r\n%b\r\n" % (len(info), info) if is_info else b"+OK\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        words = rf"redis://127.0.0.1:{port} is Redis 6\.0\.16: 6\.2 or newer is needed"
        with pytest.raises(BrokerUnusable, match=words):
            await make(f"redis+cluster://127.0.0.1:{port}").broadcast("cars", "x")
