"""A cluster whose slots move and whose masters go: nothing lost in silence, nothing told twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest
from moving import channels_at, moved_back, slot, until
from redis.crc import key_slot
from redis.exceptions import AuthenticationError
from speaking import Speaker

from backchannel import Hub, Listener
from backchannel.broker.redis.door import Door
from backchannel.errors import BrokerUnavailable, BrokerUnusable, BrokerUrlError
from backchannel.stores import TicketHolder

pytestmark = pytest.mark.timeout(90)

also_old = pytest.mark.parametrize("cluster", ["new", "old"], indirect=True)
"""With topics of shards; and with Redis 6.2, which has none."""


class Room(Listener):
    async def on_message(self, ws, message: dict):
        entering = ws.subscribe(message["channel"], since=message["since"])
        ws.send({"in": await entering, "lost": entering.lost})


@pytest.fixture
async def hubs():
    """Start nodes of one application: ``await hubs(url)``."""
    made = []

    async def start(url, **settings):
        hub = Hub(
            broker=url,
            name="chat",
            authenticate=lambda request: request.query.get("user"),
            **settings,
        )
        hub.rule("kept:{name}", history=100_000)
        hub.rule("room:{name}", presence=True)
        hub.add("/ws/{channel}", Room)
        made.append(hub)
        await hub.start()
        return hub

    yield start
    for hub in made:
        await hub.stop()


class Traffic:
    """Publishes numbers to a channel from several nodes until it is told to stop."""

    def __init__(self, channel, *hubs):
        self.channel, self.hubs = channel, hubs
        self.confirmed = {hub: [] for hub in hubs}
        self.failed = []
        self.is_over = False
        self.tasks = [asyncio.ensure_future(self._publish(hub)) for hub in hubs]

    async def _publish(self, hub):
        number = 0
        while not self.is_over:
            burst = [hub.broadcast(self.channel, f"{hub.node} {number + n}") for n in range(20)]
            for n, one in enumerate(burst):
                try:
                    await one
                    self.confirmed[hub].append(number + n)
                except BrokerUnavailable as error:
                    self.failed.append((f"{hub.node} {number + n}", str(error)))
            number += 20

    async def some_more(self, count=200):
        goal = {hub: len(done) + count for hub, done in self.confirmed.items()}
        await until(lambda: all(len(self.confirmed[hub]) >= goal[hub] for hub in goal), 30)

    async def stop(self):
        self.is_over = True
        await asyncio.gather(*self.tasks)

    @property
    def count(self):
        return sum(len(done) for done in self.confirmed.values())

    def check(self, heard):
        """Check that what one heard is all there was: once, and of each node in its order."""
        of = {hub.node: [] for hub in self.hubs}
        for text in heard:
            node, number = text.split()
            of[node].append(int(number))
        for hub in self.hubs:
            assert of[hub.node] == self.confirmed[hub]


# ── slots that move ───────────────────────────────────────────────────────────────────────────


@also_old
async def test_a_slot_that_moves_under_traffic_loses_and_doubles_nothing(cluster, hubs):
    one, two = await hubs(cluster.url), await hubs(cluster.url)
    source, target = cluster.masters[0], cluster.spare[0]
    (channel,) = channels_at(cluster, source, 1, "kept:")
    start = (await one.broadcast(channel, "start")).position
    with moved_back(cluster, slot(channel), source, target) as move:
        async with one.test_client(f"/ws/{channel}") as here, two.test_client("/ws/x") as later:
            traffic = Traffic(channel, one, two)
            await traffic.some_more()
            await asyncio.to_thread(move.begin)
            await traffic.some_more()
            await asyncio.to_thread(move.move_keys, 1)  # one of two: scripts find them nowhere
            await asyncio.sleep(0.2)  # time is the subject: all are turned back meanwhile
            await asyncio.to_thread(move.move_keys)
            await traffic.some_more()  # each is asked for where its keys are
            heard = [await here.receive() for _ in range(traffic.count)]  # also before its end
            await asyncio.to_thread(move.finish)
            await traffic.some_more()
            await traffic.stop()
            assert traffic.failed == []
            heard += [await here.receive() for _ in range(traffic.count - len(heard))]
            traffic.check(heard)
            await later.send({"channel": channel, "since": str(start)})
            traffic.check([await later.receive() for _ in range(traffic.count)])
            assert await later.receive_json() == {"in": True, "lost": False}
            end = (await two.broadcast(channel, "end")).position
            assert end == start._replace(offset=start.offset + traffic.count + 1)
            assert await here.receive() == await later.receive() == "end"


@also_old
async def test_connections_that_are_cut_while_a_slot_moves_lose_and_double_nothing(cluster, hubs):
    one, two = await hubs(cluster.url), await hubs(cluster.url)
    source, target = cluster.masters[0], cluster.spare[0]
    (channel,) = channels_at(cluster, source, 1, "kept:")

    def cut():
        for port in (source, target):
            cluster.ask(port, "CLIENT", "KILL", "TYPE", "pubsub")

    with moved_back(cluster, slot(channel), source, target) as move:
        async with one.test_client(f"/ws/{channel}") as here:
            traffic = Traffic(channel, one, two)
            for step in (move.begin, move.move_keys, move.finish):
                await traffic.some_more()
                await asyncio.to_thread(cut)
                await asyncio.to_thread(step)
                await asyncio.to_thread(cut)
            await traffic.some_more()
            await traffic.stop()
            assert traffic.failed == []
            traffic.check([await here.receive() for _ in range(traffic.count)])


@also_old
async def test_what_is_not_kept_goes_on_where_its_slot_is(cluster, hubs):
    one, two = await hubs(cluster.url), await hubs(cluster.url)
    source, target = cluster.masters[0], cluster.spare[0]
    (channel,) = channels_at(cluster, source, 1)
    with moved_back(cluster, slot(channel), source, target) as move:
        async with one.test_client(f"/ws/{channel}") as here:
            await two.broadcast(channel, "before")
            assert await here.receive() == "before"
            await move.whole()
            await until(lambda: heard_at(one, channel, target))
            sent = [two.broadcast(channel, str(n)) for n in range(50)]
            for one_ in sent:
                await one_
            assert [await here.receive() for _ in range(50)] == [str(n) for n in range(50)]


def heard_at(hub, name, port, kind="c"):
    lane = hub._broker._route._table[slot(name, kind)]
    return str(port) in lane.shown and not hub._broker._route._unheard


@also_old
async def test_users_are_heard_and_questions_answered_where_their_slots_are(cluster, hubs):
    one, two = await hubs(cluster.url), await hubs(cluster.url)
    source, target = cluster.masters[0], cluster.spare[0]
    user = next(f"u{n}" for n in range(1000) if slot(f"u{n}", "u") <= 5461)
    with moved_back(cluster, slot(user, "u"), source, target) as move:
        async with one.test_client(f"/ws/x?user={user}") as here:
            assert (await two.user(user).send("before")).reached == 1
            await move.whole()
            sent = [two.user(user).send(str(n)) for n in range(20)]  # at once: it may not know yet
            for one_ in sent:
                await one_
            await until(lambda: all(heard_at(hub, user, target, "u") for hub in (one, two)))
            assert (await two.user(user).send("after")).reached == 1
            assert [info.id for info in await two.user(user).connections()] == [here.connection.id]
            two.user(user).send("goodbye")
            assert (await two.user(user).close(4100, "over")).reached == 1
            heard = [await here.receive()]
            while heard[-1] != "goodbye":
                heard.append(await here.receive())
            assert (heard[0], heard[-2]) == ("before", "after")
            await until(lambda: here.closed is not None)
            assert here.closed.code == 4100


@also_old
async def test_presence_waits_while_its_slot_moves_and_tells_nothing_twice(cluster, hubs):
    told = []
    hub = await hubs(cluster.url, broker_timeout=0.5)
    hub.on_join(lambda channel, user: told.append(f"{user} joined"))
    hub.on_leave(lambda channel, user: told.append(f"{user} left"))
    which = key_slot(b"backchannel:chat:{p}:")
    source = cluster.owner(b"backchannel:chat:{p}:")
    with moved_back(cluster, which, source, cluster.spare[0]) as move:
        async with hub.test_client("/ws/room:a?user=ana"):
            assert list(await hub.channel("room:a").users()) == ["ana"]
            await asyncio.to_thread(move.begin)
            await asyncio.to_thread(move.move_keys, 2)
            with pytest.raises(BrokerUnavailable):
                await hub.channel("room:a").users()
            async with hub.test_client("/ws/room:a?user=bob"):
                await asyncio.to_thread(move.finish)
                await until(lambda: told[-1:] == ["bob joined"])
                assert sorted(await hub.channel("room:a").users()) == ["ana", "bob"]
            await until(lambda: told[-1:] == ["bob left"])
    await until(lambda: told[-1:] == ["ana left"])
    assert told == ["ana joined", "bob joined", "bob left", "ana left"]


@also_old
async def test_a_session_goes_on_at_another_node(cluster, hubs):
    """Wherever in the cluster its key, its connection's topic and its channel's history are."""
    one, two = await hubs(cluster.url), await hubs(cluster.url)
    for number in range(8):  # so many keys are at all masters
        url = f"/ws/kept:{number}"
        async with Speaker(one, url) as ana:
            at = (await ana.hear("subscribed"))["position"]
            await ana.drop()
            await two.broadcast(f"kept:{number}", "meanwhile")
            hello = {"resume": ana.greeting["resume"], "positions": {f"kept:{number}": at}}
            async with Speaker(two, url, hello=hello) as again:
                assert again.greeting["resumed"] is True
                assert (await again.hear("publication"))["data"] == "meanwhile"
                await again.hear("subscribed")
                sent = await one.connection(ana.greeting["connection"]).send("you")
                assert sent.reached == 1
                assert (await again.hear("message"))["data"] == "you"


async def test_tickets_and_the_notice_follow_their_slots(cluster, hubs):
    one, two = await hubs(cluster.url), await hubs(cluster.url)
    keys = one._broker._keys
    about = keys.about
    source = cluster.owner(about)
    with moved_back(cluster, key_slot(about), source, cluster.spare[0]) as move:
        await move.whole()
        one.rule("new:{name}", history=3)
        await until(lambda: b"new:" in cluster.ask(cluster.spare[0], "GET", about))
    name = next(bytes([n]) for n in range(256) if key_slot(keys.ticket(bytes([n]))) <= 5461)
    source, target = cluster.masters[0], cluster.spare[0]
    with moved_back(cluster, key_slot(keys.ticket(name)), source, target) as move:
        await asyncio.to_thread(move.begin)
        await one._broker.tickets.put(name, TicketHolder("ana"), 30)  # a new key is put there
        assert cluster.ask(source, "DBSIZE") >= 0
        assert (await two._broker.tickets.take(name)).id == "ana"
        assert await one._broker.tickets.take(name) is None
        await asyncio.to_thread(move.finish)
        await one._broker.tickets.put(name, TicketHolder("bob"), 30)
        assert (await two._broker.tickets.take(name)).id == "bob"


async def test_only_channels_whose_slots_moved_are_read_again(cluster, hubs, monkeypatch):
    hub = await hubs(cluster.url)
    source, target = cluster.masters[0], cluster.spare[0]
    moved, stays = channels_at(cluster, source, 2, "kept:")
    read = []
    history = hub._broker.history
    with moved_back(cluster, slot(moved), source, target) as move:
        async with hub.test_client(f"/ws/{moved}"), hub.test_client(f"/ws/{stays}"):
            monkeypatch.setattr(
                hub._broker,
                "history",
                lambda name, *a, **k: read.append(name) or history(name, *a, **k),
            )
            await move.whole()
            await until(lambda: heard_at(hub, moved, target) and read)
            assert set(read) == {moved}


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
async def test_a_master_that_goes_is_followed_by_its_replica_under_traffic(replicated, hubs, how):
    one, two = await hubs(replicated.url), await hubs(replicated.url)
    dies, stays = replicated.masters[:2]
    (lost,) = channels_at(replicated, dies, 1, "kept:")
    (kept,) = channels_at(replicated, stays, 1, "kept:")
    async with one.test_client(f"/ws/{lost}") as at_lost, one.test_client(f"/ws/{kept}") as at_kept:
        before = (await two.broadcast(lost, "before")).position
        assert await at_lost.receive() == "before"
        traffic = Traffic(kept, one, two), Traffic(lost, one, two)
        for each in traffic:
            await each.some_more(100)
        os.kill(replicated.running[dies].pid, how)
        if how == signal.SIGKILL:
            await until(lambda: not is_whole(one))
            assert f"redis://127.0.0.1:{dies}, of redis+cluster://" in one.health.broker
            assert one.health.ready  # most of it is there
        follows = replicated.replicas[dies]
        await until(lambda: heard_at(one, lost, follows) and heard_at(two, lost, follows), 30)
        await until(lambda: is_whole(one) and is_whole(two))
        for each in traffic:
            await each.some_more(100)
            await each.stop()

        at_kept_, at_lost_ = traffic
        assert at_kept_.failed == []  # of a master that stayed nothing failed
        at_kept_.check([await at_kept.receive() for _ in range(at_kept_.count)])
        assert all("published" in why for _, why in at_lost_.failed)

        end = (await two.broadcast(lost, "end")).position
        heard = []
        while (text := await at_lost.receive()) != "end":
            heard.append(text)
        assert len(heard) == len(set(heard))
        for hub in (one, two):  # one order, and none that was confirmed is missing, but for those
            numbers = [int(n) for node, n in (t.split() for t in heard) if node == hub.node]
            assert numbers == sorted(numbers)
        assert end.epoch != before.epoch  # what the replica did not have may be lost
        assert (await one.channel(lost).history(since=before)).lost


def is_whole(hub):
    return hub.health.broker.startswith("connected to redis+cluster://")


@pytest.mark.parametrize("replicated", ["new", "old"], indirect=True)
async def test_a_master_that_hands_over_is_followed(replicated, hubs):
    one, two = await hubs(replicated.url), await hubs(replicated.url)
    master = replicated.masters[0]
    (channel,) = channels_at(replicated, master, 1)
    async with one.test_client(f"/ws/{channel}") as here:
        await asyncio.to_thread(replicated.ask, replicated.replicas[master], "CLUSTER", "FAILOVER")
        await until(lambda: heard_at(one, channel, replicated.replicas[master]), 20)
        await until(lambda: is_whole(one) and is_whole(two))
        await two.broadcast(channel, "after")
        assert await here.receive() == "after"


async def test_while_a_master_is_away_only_what_is_there_waits(new_cluster, hubs):
    cluster = new_cluster(full_coverage=False)
    hub = await hubs(cluster.url, broker_timeout=0.4)
    first, second, third = (channels_at(cluster, port, 1)[0] for port in cluster.masters)
    async with hub.test_client(f"/ws/{second}") as here:
        await asyncio.to_thread(cluster.kill, cluster.masters[0])
        await until(lambda: not is_whole(hub))
        with pytest.raises(BrokerUnavailable, match=f"{cluster.masters[0]} is away: this was"):
            await hub.broadcast(first, "lost")
        await hub.broadcast(second, "heard")
        assert await here.receive() == "heard"
        assert hub.health.ready
        await asyncio.to_thread(cluster.kill, cluster.masters[2])
        await until(lambda: not hub.health.ready)
        with pytest.raises(BrokerUnavailable):
            await hub.broadcast(third, "lost")


# ── what will not do ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis+cluster://", "'' is no host and port"),
        ("redis+cluster://host:port", "port"),
        ("redis+cluster://a:1,,b:2", "'' is no host and port"),
        ("redis+cluster://a:1/3", "a cluster has no database but 0"),
        ("rediss+cluster://a:1/chat", "a cluster has no database but 0"),
    ],
)
def test_what_is_no_url_of_a_cluster_is_refused(url, words):
    with pytest.raises(BrokerUrlError, match=words) as raised:
        Hub(broker=url)
    assert "it looks like redis+cluster://10.0.0.1:6379,10.0.0.2:6379" in str(raised.value)


async def test_an_engine_that_is_no_cluster_is_told_with_what_to_write(redis_server):
    url = redis_server.url.replace("redis:", "redis+cluster:")
    with pytest.raises(BrokerUnusable, match="is no node of a cluster: write redis://host:port"):
        await Hub(broker=url).start()


async def test_a_cluster_that_is_taken_for_one_engine_is_told_with_what_to_write(cluster):
    with pytest.raises(BrokerUnusable, match=r"node of a cluster: write redis\+cluster://host"):
        await Hub(broker=f"redis://127.0.0.1:{cluster.masters[0]}").start()


async def test_nodes_that_do_not_answer_are_named_and_one_that_does_is_enough(
    cluster, hubs, free_port
):
    with pytest.raises(BrokerUnavailable, match=f"no node of .* answers: .*{free_port}"):
        await Hub(broker=f"redis+cluster://127.0.0.1:{free_port}").start()
    hub = await hubs(f"redis+cluster://127.0.0.1:{free_port},127.0.0.1:{cluster.spare[0]}")
    assert "3 masters" in hub.health.broker


async def test_slots_that_nobody_serves_are_told(new_cluster):
    cluster = new_cluster(masters=1, share=100)
    with pytest.raises(BrokerUnavailable, match="not all of the 16384 slots have a master"):
        await Hub(broker=cluster.url).start()


async def test_a_password_is_for_all_nodes_and_not_shown(cluster, hubs):
    try:
        for port in cluster.masters:
            cluster.ask(port, "CONFIG", "SET", "requirepass", "opensesame")
        with pytest.raises(BrokerUnusable, match="wants a password"):
            await Hub(broker=cluster.url).start()
        hub = await hubs(cluster.url.replace("//", "//default:opensesame@"))
        for port in cluster.masters:
            await hub.broadcast(channels_at(cluster, port, 1, password="opensesame")[0], "hello")
        assert "opensesame" not in hub.health.broker
    finally:
        for port in cluster.masters:
            with contextlib.suppress(AuthenticationError):
                cluster.ask(port, "CONFIG", "SET", "requirepass", "", password="opensesame")


async def test_a_cluster_that_is_too_old_is_told_its_version():
    """None so old can be had: this one says what an old one says."""
    info = b"redis_version:6.0.16\r\nredis_mode:cluster\r\n"
    replies = [b"%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n", b"$%d\r\n%b\r\n" % (len(info), info)]
    replies += [b"$13\r\nrole:master\r\n\r\n"]
    ended = asyncio.Event()

    async def serve(reader, writer):
        for reply in replies:
            await reader.read(1000)
            writer.write(reply)
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    words = r"is Redis 6\.0\.16: 6\.2 or newer is needed"
    with pytest.raises(BrokerUnusable, match=words):
        await Hub(broker=f"redis+cluster://127.0.0.1:{port}").start()
    server.close()
    await ended.wait()


async def test_topics_that_are_left_and_lost_at_the_same_time_confuse_no_replies(cluster):
    """What confirms that a topic is left looks like what is said unasked when its slot goes."""
    source, target = cluster.masters[0], cluster.spare[0]
    topic = next(b"{%d}" % n for n in range(1000) if key_slot(b"{%d}" % n) <= 5461)
    dropped = []
    door = Door(cluster.url).of_node(("127.0.0.1", source))
    link, *_ = await door.open(lambda *_: None, 5)
    link.dropped = dropped.append
    with moved_back(cluster, key_slot(topic), source, target) as move:
        for _ in range(3):  # left, heard again, and left
            await link.call("SSUBSCRIBE", topic)
            link.leave(topic)
            assert await link.call("ECHO", "1") == b"1"
        await link.call("SSUBSCRIBE", topic)
        await move.whole()
        await until(lambda: dropped == [topic])
        link.leave(topic)  # it is told MOVED
        link.leave(b"{other}")  # it may be there or not, and was never heard
        assert await link.call("ECHO", "2") == b"2"
        assert await link.call("ECHO", "3") == b"3"
    assert dropped == [topic]
    link.close()
    await link.lost
