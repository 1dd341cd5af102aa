"""What an engine has lost, or can't give back: told once, never in silence, and nothing twice."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from shared import until
from speaking import Speaker

from backchannel import Hub, Listener, event, watch
from backchannel.broker.redis import RedisBroker, parcel
from backchannel.contracts import Publication, Target
from backchannel.errors import BrokerUnavailable
from backchannel.history import REMEMBERED, Retention
from backchannel.publisher import AsyncPublisher
from backchannel.testing.recording import RecordingNode, frames

CARS = Target("channel", "cars")
KEPT = Retention(1000, 3600.0)
UNSURE = "may have been published, or not"


@pytest.fixture
def engine(new_redis_server):
    """An engine of this test's own, which may come back with what it had saved."""
    server = new_redis_server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(engine):
    """What the cable leads to."""
    return engine


@pytest.fixture
async def broker_node(engine):
    """Start nodes that keep what they hear: ``await broker_node()``."""
    started = []

    async def start():
        node = RecordingNode(RedisBroker(engine.url, "losses"))
        await node.broker.start()
        started.append(node)
        return node

    yield start
    for node in started:
        await node.broker.stop()


class Room(Listener):
    def on_lost(self, ws, channel):
        ws.send({"lost": channel})

    async def on_message(self, ws, message: dict):
        entering = ws.subscribe(message["enter"], since=message.get("since"))
        ws.send({"in": await entering, "lost": entering.lost})


@pytest.fixture
async def hubs(engine):
    """Two nodes of one application."""
    both = []
    for _ in range(2):
        hub = Hub(broker=engine.url, name="losses")
        hub.rule("kept:{name}", history=100, publish=lambda ws: True, subscribe=lambda ws: True)
        hub.add("/ws/{channel}", Room)
        await hub.start()
        both.append(hub)
    yield both
    for hub in both:
        await hub.stop()


async def come_back(engine, *nodes):
    """Kill the engine and start it with what it saved last, if it did; wait until nodes know."""
    before = [node.interruptions for node in nodes]
    engine.stop()
    engine.start()
    await until(
        lambda: all(now.interruptions > was for now, was in zip(nodes, before, strict=True))
    )


async def restart(engine, *hubs):
    """Kill the engine and start it again; wait until hubs are back."""
    links = [hub._broker._route.engine.link for hub in hubs]
    engine.stop()
    engine.start()

    def is_back(hub, link):
        now = hub._broker._route.engine.link
        return now is not None and now is not link

    await until(lambda: all(map(is_back, hubs, links)))


# ── a second attempt ──────────────────────────────────────────────────────────────────────────


async def test_a_retry_after_the_engine_came_back_with_older_data_is_not_published_again(
    engine, broker_node
):
    node = await broker_node()
    await node.listen(CARS)
    for text in "ab":
        await node.publish(CARS, text, KEPT)
    with engine.client as client:
        client.save()
    await node.publish(CARS, "pay 100", KEPT, key="session:7")
    await come_back(engine, node)
    await node.publish(CARS, "c", KEPT)
    with pytest.raises(BrokerUnavailable, match=UNSURE) as caught:
        await node.publish(CARS, "pay 100", KEPT, key="session:7", again=True)
    assert caught.value.unsure
    await node.publish(CARS, "d", KEPT)
    assert await node.texts(5) == ["a", "b", "pay 100", "c", "d"]


@pytest.mark.parametrize("since", ["nothing", "a look", "a publication"])
async def test_a_retry_after_the_engine_came_back_empty_is_not_published_again(
    engine, broker_node, since
):
    node = await broker_node()
    await node.listen(CARS)
    await node.publish(CARS, "pay 100", KEPT, key="session:7")
    await come_back(engine, node)
    if since == "a look":
        await node.broker.history("cars", None, 0)
    elif since == "a publication":
        await node.publish(CARS, "c", KEPT)
    with pytest.raises(BrokerUnavailable, match=UNSURE):
        await node.publish(CARS, "pay 100", KEPT, key="session:7", again=True)
    await node.publish(CARS, "d", KEPT)
    heard = await node.texts(3 if since == "a publication" else 2)
    assert heard == ["pay 100", *["c"] * (since == "a publication"), "d"]


async def test_a_retry_of_what_never_arrived_is_published_where_the_engine_lost_nothing(
    engine, broker_node
):
    """It can't have been published before the session began, and the engine is older than that."""
    node = await broker_node()
    await node.listen(CARS)
    await node.broker.history("cars", None, 0)  # as a node does that has somebody in the channel
    await asyncio.sleep(2.5)  # time is the subject: the engine tells its age in seconds
    receipt = await node.publish(CARS, "pay 100", KEPT, key="session:7", again=True, age=0.5)
    assert receipt.position.offset == 1
    again = await node.publish(CARS, "pay 100", KEPT, key="session:7", again=True, age=0.5)
    assert again.position == receipt.position
    assert await node.texts(1) == ["pay 100"]
    assert node.heard.empty()


async def test_a_client_whose_publish_never_arrived_in_a_new_channel_says_it_again(engine, hubs):
    one, other = hubs
    await asyncio.sleep(2.5)  # time is the subject: the engine tells its age in seconds
    async with Speaker(one, "/ws/kept:a") as ana:
        while (await ana.hear())["type"] != "subscribed":
            pass
        await ana.drop()
        hello = {"resume": ana.greeting["resume"], "positions": {}}
        async with Speaker(other, "/ws/kept:a", hello=hello) as again:
            assert again.greeting["resumed"]
            await again.say("publish", id=1, again=True, channel="kept:a", data="once")
            while (answer := await again.hear())["type"] not in {"ack", "error"}:
                pass
            assert answer["type"] == "ack", answer
    assert [kept.message for kept in await one.channel("kept:a").history()] == ["once"]


async def test_a_client_that_says_it_again_after_the_engine_lost_it_is_told_unsure(engine, hubs):
    one, _ = hubs
    async with one.test_client("/ws/kept:a") as member, Speaker(one, "/ws/kept:b") as ana:
        await ana.say("publish", id=1, channel="kept:a", data="once")
        assert await member.receive() == "once"
        while (await ana.hear())["type"] != "ack":
            pass
        ana.ws.talk.pending.add(1)  # the acknowledgement is lost, as is what tells of it
        one.resumes.changed(ana.ws)
        await restart(engine, one)
        await one.resumes.finish(5)
        await ana.drop()
        hello = {"resume": ana.greeting["resume"], "positions": {}}
        async with Speaker(one, "/ws/kept:b", hello=hello) as again:
            assert again.greeting["resumed"]
            await again.say("publish", id=1, again=True, channel="kept:a", data="once")
            while (answer := await again.hear())["type"] not in {"ack", "error"}:
                pass
            assert answer.get("code") == "unsure", answer


async def test_a_publishers_retry_after_the_engine_came_back_is_not_published_again(
    engine, hubs, cable
):
    """What has been published since goes back to the first publication, of what there is."""
    async with (
        AsyncPublisher(cable.url, "losses", timeout=10.0) as publisher,
        hubs[0].test_client("/ws/kept:a") as member,
    ):
        await publisher.broadcast("kept:a", "0")
        cable.is_deaf = True
        paying = asyncio.ensure_future(publisher.broadcast("kept:a", "pay 100"))
        assert [await member.receive() for _ in range(2)] == ["0", "pay 100"]
        cable.cut()
        await restart(engine, *hubs)
        await hubs[0].broadcast("kept:a", "c")
        cable.mend()
        with pytest.raises(BrokerUnavailable, match=UNSURE):
            await paying
        await hubs[0].broadcast("kept:a", "d")
        heard = [await member.receive() for _ in range(4)]
        assert [text for text in heard if len(text) == 1] == ["c", "d"]


# ── what can't be written ─────────────────────────────────────────────────────────────────────


async def test_where_the_entry_can_not_be_written_nothing_is(engine, broker_node):
    node = await broker_node()
    await node.listen(CARS)
    first = (await node.publish(CARS, "a", KEPT)).position
    entries = "backchannel:losses:{c:cars}:entries"
    with engine.client as client:
        kept = client.dump(entries)
        client.set(entries, "of somebody else")
        with pytest.raises(BrokerUnavailable, match="WRONGTYPE"):
            await node.publish(CARS, "refused", KEPT)
        client.restore(entries, 0, kept, replace=True)
    second = (await node.publish(CARS, "b", KEPT)).position
    assert second == (first.epoch, 2)
    assert await node.texts(2) == ["a", "b"]
    assert frames(await node.broker.history("cars", None, 10)) == ["a", "b"]


async def test_a_state_that_fell_behind_its_entries_begins_a_new_epoch(engine, broker_node):
    """Else every publication would be refused, or some of them take the place of others."""
    node = await broker_node()
    await node.listen(CARS)
    had = [(await node.publish(CARS, text, KEPT)).position for text in "abcde"]
    with engine.client as client:
        client.hset("backchannel:losses:{c:cars}:state", "top", 3)
    new = (await node.publish(CARS, "f", KEPT)).position
    assert new.epoch != had[0].epoch
    assert (await node.broker.history("cars", had[-1], 10)).lost
    assert (await node.publish(CARS, "g", KEPT)).position == (new.epoch, new.offset + 1)
    assert await node.texts(7) == list("abcdefg")


# ── what can't be read ────────────────────────────────────────────────────────────────────────


async def publish_strange(hub, channel, monkeypatch):
    """Publish what a newer node might, by a letter that this version does not know."""
    with monkeypatch.context() as patch:
        patch.setattr(parcel, "pack", lambda *_: b"Z of a newer version")
        return (await hub.broadcast(channel, "?")).position


async def test_one_entry_that_can_not_be_read_is_a_loss_and_all_else_goes_on(
    hubs, monkeypatch, caplog
):
    one, other = hubs
    async with one.test_client("/ws/kept:a") as member, one.test_client("/ws/lobby") as late:
        first = (await other.broadcast("kept:a", "0")).position
        assert await member.receive() == "0"
        await publish_strange(other, "kept:a", monkeypatch)
        for text in "ABC":
            await other.broadcast("kept:a", text)
        assert await member.receive_json() == {"lost": "kept:a"}
        assert [await member.receive() for _ in range(3)] == list("ABC")

        kept = await one.channel("kept:a").history()
        assert ([each.message for each in kept], kept.lost) == (["0", "A", "B", "C"], True)
        kept = await other.channel("kept:a").history(since=first)
        assert ([each.message for each in kept], kept.lost) == (["A", "B", "C"], True)
        assert str(kept.position) == f"{first.epoch}.5"

        await late.send({"enter": "kept:a", "since": str(first)})
        assert [await late.receive() for _ in range(3)] == list("ABC")
        assert await late.receive_json() == {"in": True, "lost": True}
        await other.broadcast("kept:a", "D")
        assert (await member.receive(), await late.receive()) == ("D", "D")
    said = [r for r in caplog.records if "a stranger wrote to" in r.getMessage()]
    assert len(said) == 2  # once by each node


async def test_a_newest_entry_that_is_spoilt_wedges_nobody(engine, hubs):
    one, other = hubs
    async with one.test_client("/ws/kept:a") as member, one.test_client("/ws/lobby") as late:
        at = (await other.broadcast("kept:a", "0")).position
        state, entries = (f"backchannel:losses:{{c:kept:a}}:{key}" for key in ("state", "entries"))
        with engine.client as client:
            client.hset(state, "top", 2)
            now = client.time()[0]
            fields = {"parcel": b"\xff garbage", "time": now, "id": "x:1"}
            client.xadd(entries, fields, id="2-1")
        kept = await other.channel("kept:a").history()
        assert ([each.message for each in kept], kept.lost) == (["0"], True)
        assert kept.position == (at.epoch, 2)
        await late.send({"enter": "kept:a", "since": str(at)})
        assert await late.receive_json() == {"in": True, "lost": True}
        await other.broadcast("kept:a", "after")
        assert await late.receive() == "after"
        heard = [await member.receive() for _ in range(3)]
        assert heard == ["0", '{"lost":"kept:a"}', "after"]


async def test_a_publisher_reads_what_can_be_read(engine, hubs, monkeypatch):
    first = (await hubs[0].broadcast("kept:a", "0")).position
    await publish_strange(hubs[0], "kept:a", monkeypatch)
    await hubs[0].broadcast("kept:a", "1")
    async with AsyncPublisher(engine.url, "losses") as publisher:
        for since, texts in ((None, ["0", "1"]), (first, ["1"])):
            kept = await publisher.channel("kept:a").history(since=since)
            assert ([each.message for each in kept], kept.lost) == (texts, True)


# ── offsets that count anew ───────────────────────────────────────────────────────────────────


async def test_an_engine_that_counts_anew_within_one_run_is_noticed_by_what_it_publishes(
    engine, hubs
):
    one, other = hubs
    async with one.test_client("/ws/kept:a") as member:
        keys = [f"backchannel:losses:{{c:kept:a}}:{key}" for key in ("state", "entries")]
        with engine.client as client:
            for number in range(5):
                if number == 3:
                    older = [(key, client.dump(key)) for key in keys]
                had = (await other.broadcast("kept:a", str(number))).position
            assert [await member.receive() for _ in range(5)] == list("01234")
            for key, data in older:
                client.restore(key, 0, data, replace=True)
        for text in "ABC":
            await other.broadcast("kept:a", text)
        assert await member.receive_json() == {"lost": "kept:a"}
        last = (await other.broadcast("kept:a", "D")).position
        while await member.receive() != "D":
            pass
        assert last.epoch != had.epoch
        assert (await one.channel("kept:a").history(since=had)).lost


# ── where nothing comes ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def short_looks(monkeypatch):
    """Look often, where it is the looking that is tested."""
    monkeypatch.setattr(watch, "LOOK", 0.1)


async def test_a_last_publication_that_was_dropped_on_its_way_is_found(short_looks, hubs):
    one, other = hubs
    async with one.test_client("/ws/kept:a") as member, one.test_client("/ws/kept:b") as second:
        await other.broadcast("kept:a", "0")
        await other.broadcast("kept:b", "0")
        assert (await member.receive(), await second.receive()) == ("0", "0")
        link = one._broker._route.engine.link
        hear, link._hear = link._hear, lambda *_: None
        await other.broadcast("kept:a", "dropped")
        await one._broker.tops(["kept:a"])  # what came before this answer was dropped
        link._hear = hear
        assert await member.receive() == "dropped"
        await other.broadcast("kept:a", "next")
        assert await member.receive() == "next"
        assert second.received() == []


@pytest.fixture
async def refused(engine, monkeypatch):
    """A node of its own user, which the engine can be told to refuse histories."""
    monkeypatch.setattr(watch, "BACK_OFF", (0.05, 0.2))
    with engine.client as client:
        client.execute_command("ACL", "SETUSER", "node", "on", ">pw", "~*", "&*", "+@all")
    hub = Hub(broker=engine.url.replace("redis://", "redis://node:pw@"), name="losses")
    hub.rule("kept:{name}", history=100, publish=lambda ws: True, subscribe=lambda ws: True)
    hub.add("/ws/{channel}", Room)
    await hub.start()

    def refuse(sign):
        with engine.client as client:
            client.execute_command("ACL", "SETUSER", "node", sign + "evalsha")

    hub.refuse_histories = lambda: refuse("-")
    hub.give_histories = lambda: refuse("+")
    yield hub
    await hub.stop()


def unread(caplog):
    return [one.getMessage() for one in caplog.records if "can't be read" in one.getMessage()]


async def test_a_gap_whose_reading_is_refused_is_filled_when_it_no_longer_is(hubs, refused, caplog):
    """Though nothing is published any more."""
    _, other = hubs
    async with refused.test_client("/ws/kept:a") as member:
        await other.broadcast("kept:a", "0")
        assert await member.receive() == "0"
        link = refused._broker._route.engine.link
        hear, link._hear = link._hear, lambda *_: None
        await other.broadcast("kept:a", "dropped")
        await refused._broker.tops(["kept:a"])  # what came before this answer was dropped
        link._hear = hear
        refused.refuse_histories()
        await other.broadcast("kept:a", "last")
        await until(lambda: "NOPERM" in refused.health.broker)
        assert "the history of 'kept:a' can't be read" in refused.health.broker
        assert refused.health.ready
        assert len(unread(caplog)) == 1
        assert member.received() == []
        refused.give_histories()
        assert [await member.receive() for _ in range(2)] == ["dropped", "last"]
        await until(lambda: "NOPERM" not in refused.health.broker)
        assert refused.health.broker.startswith("connected to ")
        assert len(unread(caplog)) == 1
        assert "has been read" in caplog.records[-1].getMessage()
        assert refused.health.problems == ()


async def test_many_gaps_that_can_not_be_read_do_not_flood_the_engine(
    hubs, refused, caplog, monkeypatch
):
    _, other = hubs
    count = 3 * watch.ATTEMPTS
    names = [f"kept:{number}" for number in range(count)]
    asked, history = [], refused._broker.history

    async def reading(channel, *args, **named):
        asked.append(channel)
        return await history(channel, *args, **named)

    async with refused.test_client("/ws/kept:0") as member:
        for name in names:
            await member.connection.subscribe(name)
        monkeypatch.setattr(refused._broker, "history", reading)
        refused.refuse_histories()
        refused.cluster.interrupted()
        assert await member.receive_json() == {"lost": None}  # of its user, or of everyone
        await until(lambda: len(set(asked)) == count)
        del asked[:]
        await until(lambda: len(set(asked)) == count)  # each has its turn
        assert len(asked) <= count + watch.ATTEMPTS
        assert len(unread(caplog)) == 1
        refused.give_histories()
        await until(lambda: not any(one.asks for one in refused.cluster._followers.values()))
        await other.broadcast(names[-1], "next")
        assert await member.receive() == "next"


async def test_nobody_asks_for_a_history_whose_readers_have_gone(hubs, refused):
    async with refused.test_client("/ws/kept:a"):
        refused.refuse_histories()
        refused.cluster.interrupted()
        await until(lambda: "NOPERM" in refused.health.broker)
    await until(lambda: "NOPERM" not in refused.health.broker)
    await until(lambda: not refused.cluster._unread._waiting)


async def test_who_enters_while_the_history_can_not_be_read_is_told_when_it_can(hubs, refused):
    _, other = hubs
    refused.refuse_histories()
    async with refused.test_client("/ws/kept:a") as member:
        await until(lambda: "NOPERM" in refused.health.broker)
        refused.give_histories()
        assert await member.receive_json() == {"lost": "kept:a"}
        await other.broadcast("kept:a", "next")
        assert await member.receive() == "next"


async def test_looking_reads_no_history_where_nothing_was_missed(short_looks, hubs, monkeypatch):
    one, other = hubs
    async with one.test_client("/ws/kept:a") as member:
        read, looked = [], asyncio.Queue()
        history, tops = one._broker.history, one._broker.tops

        async def reading(*args, **named):
            read.append(args)
            return await history(*args, **named)

        async def looking(channels):
            found = await tops(channels)
            looked.put_nowait(found)
            return found

        monkeypatch.setattr(one._broker, "history", reading)
        monkeypatch.setattr(one._broker, "tops", looking)
        for number in range(5):
            position = (await other.broadcast("kept:a", str(number))).position
            assert await member.receive() == str(number)
        async with asyncio.timeout(10):
            while await looked.get() != {"kept:a": position}:
                pass
            await looked.get()
        assert read == []


async def test_nothing_is_remembered_of_channels_that_nobody_is_in_any_more(short_looks, hubs):
    one, _ = hubs
    remembered = one.cluster._watch._seen
    async with one.test_client("/ws/kept:stays"):
        async with one.test_client("/ws/kept:goes"):
            await until(lambda: remembered.keys() == {"kept:stays", "kept:goes"})
        await until(lambda: remembered.keys() == {"kept:stays"})
    await until(lambda: not remembered)


async def test_a_channel_stays_known_while_somebody_is_in_it(
    short_looks, engine, hubs, monkeypatch
):
    """However long it is quiet; else the next publication would begin a new epoch."""
    monkeypatch.setattr(watch, "RENEW", 0.3)
    one, _ = hubs
    state = "backchannel:losses:{c:kept:a}:state"
    async with one.test_client("/ws/kept:a") as member:
        before = (await one.broadcast("kept:a", "0")).position
        assert await member.receive() == "0"
        with engine.client as client:
            for _ in range(3):
                client.expire(state, 60)
                async with asyncio.timeout(10):
                    while client.ttl(state) <= 3600:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
        assert (await one.broadcast("kept:a", "1")).position == (before.epoch, 2)
        assert await member.receive() == "1"


@pytest.mark.parametrize("ttl", [1, 3600])
async def test_a_position_that_was_handed_out_stays_known_longer_than_what_is_kept(
    engine, broker_node, ttl
):
    """Else who comes back with it would be told that something is lost, where nothing is."""
    node = await broker_node()
    publishing = node.broker.publish(Publication(CARS, "x"), Retention(10, ttl))
    assert (await publishing).position.offset == 1
    state = "backchannel:losses:{c:cars}:state"
    with engine.client as client:
        times = {key.decode(): client.ttl(key) for key in client.scan_iter("*{c:cars}*")}
    until_gone = times.pop(state)
    assert [ttl - 1 <= seconds <= ttl for seconds in times.values()] == [True]
    assert until_gone - ttl >= REMEMBERED - 1


async def test_a_position_that_was_read_stays_known(engine, hubs):
    state = "backchannel:losses:{c:kept:a}:state"
    position = (await hubs[0].broadcast("kept:a", "0")).position
    with engine.client as client:
        client.expire(state, 60)
        assert not (await hubs[0].channel("kept:a").history(since=position)).lost
        assert 7100 < client.ttl(state) <= 7200
        client.expire(state, 90_000)  # as where another version keeps it for longer
        await hubs[0].channel("kept:a").history()
        assert client.ttl(state) > 80_000


async def test_where_the_engine_forgot_a_quiet_channel_its_members_are_told(
    short_looks, engine, hubs
):
    async with hubs[0].test_client("/ws/kept:a") as member:
        await hubs[0].broadcast("kept:a", "0")
        assert await member.receive() == "0"
        with engine.client as client:
            client.delete(
                *(f"backchannel:losses:{{c:kept:a}}:{key}" for key in ("state", "entries"))
            )
        assert await member.receive_json() == {"lost": "kept:a"}


async def test_who_has_lost_some_is_told_the_position_to_start_again_from(engine):
    hub = Hub(broker=engine.url, name="positions")
    hub.rule("kept:{name}", history=100)
    told = asyncio.Queue()

    @hub.endpoint("/ws/{channel}")
    class Told(Listener):
        async def on_lost(self, ws, channel, position=None):
            told.put_nowait((channel, position))

    await hub.start()
    try:
        async with asyncio.timeout(20), hub.test_client("/ws/kept:a"):
            before = (await hub.broadcast("kept:a", "0")).position
            await restart(engine, hub)
            first, second = await told.get(), await told.get()
            assert first == (None, None)
            channel, position = second
            assert (channel, position.offset) == ("kept:a", 0)
            assert position.epoch != before.epoch
            await hub.broadcast("kept:a", "1")
            kept = await hub.channel("kept:a").history(since=str(position))
            assert ([each.message for each in kept], kept.lost) == (["1"], False)
    finally:
        await hub.stop()


async def test_a_first_attempt_that_comes_after_the_second_one_is_not_published(
    engine, hubs, cable
):
    """A node whose engine was away has it still, when its client has long said it elsewhere."""
    await asyncio.sleep(2.5)  # time is the subject: the engine tells its age in seconds
    away = Hub(broker=cable.url, name="losses", broker_timeout=30.0)
    away.rule("kept:{name}", history=100, publish=lambda ws: True, subscribe=lambda ws: True)
    away.add("/ws/{channel}", Room)
    await away.start()
    async with Speaker(away, "/ws/kept:b") as ana:
        while (await ana.hear())["type"] != "subscribed":
            pass
        await ana.say("publish", id=1, channel="kept:a", data="1")
        await ana.hear("ack")
        cable.cut()
        await until(lambda: away._broker._route.engine.link is None)
        for number in (2, 3):
            await ana.say("publish", id=number, channel="kept:a", data=str(number))
        await until(lambda: "2 publications wait" in away.health.broker)
        await ana.drop()
        hello = {"resume": ana.greeting["resume"], "positions": {}}
        async with Speaker(hubs[0], "/ws/kept:b", hello=hello) as again:
            assert again.greeting["resumed"]
            for number in (2, 3):
                await again.say(
                    "publish", id=number, again=True, channel="kept:a", data=str(number)
                )
            await again.say("publish", id=4, channel="kept:a", data="4")
            acknowledged = 0
            while acknowledged < 3:
                told = await again.hear()
                assert told["type"] != "error", told
                acknowledged += told["type"] == "ack"
            cable.mend()
            await until(lambda: away.health.ready)
            await away.broadcast("kept:a", "5")  # behind what waited there
            await again.say("publish", id=5, channel="kept:a", data="6")
            while (await again.hear())["type"] != "ack":
                pass
    said = [one.message for one in await hubs[1].channel("kept:a").history()]
    assert [text.strip('"') for text in said] == ["1", "2", "3", "4", "5", "6"]
    await away.stop()


async def test_what_is_sent_again_does_not_come_behind_what_was_sent_later(hubs, cable):
    """Its node refused it, and its client's connection was lost, so that nobody heard of that."""
    await asyncio.sleep(2.5)  # time is the subject: the engine tells its age in seconds
    async with contextlib.AsyncExitStack() as stack:
        cables = (cable, await stack.enter_async_context(type(cable)(cable.port)))
        first, second = [
            Hub(broker=one.url, name="losses", broker_timeout=30.0, max_unsent=most)
            for one, most in zip(cables, (3000, 1 << 20), strict=True)
        ]
        for hub in (first, second):
            hub.rule("kept:{name}", history=100, publish=lambda ws: True, subscribe=lambda ws: True)
            hub.add("/ws/{channel}", Room)
            await hub.start()
            stack.push_async_callback(hub.stop)
        async with Speaker(first, "/ws/kept:b") as ana:
            while (await ana.hear())["type"] != "subscribed":
                pass
            await until(lambda: first.resumes._writing is None)
            cable.cut()
            await until(lambda: not first.health.ready)
            said = {1: "small", 2: "x" * 2800, 3: "also small"}
            for number, text in said.items():
                await ana.say("publish", id=number, channel="kept:a", data=text)
            while (refused := await ana.hear())["type"] != "error":
                pass
            assert (refused["id"], refused["code"]) == (2, "unavailable")
            await ana.drop()
            hello = {"resume": ana.greeting["resume"], "positions": {}}
            async with Speaker(second, "/ws/kept:b", hello=hello) as again:
                while (await again.hear())["type"] != "subscribed":
                    pass
                assert again.greeting["resumed"]
                cables[1].cut()
                await until(lambda: not second.health.ready)
                for number in (2, 3):
                    await again.say(
                        "publish", id=number, again=True, channel="kept:a", data=said[number]
                    )
                cable.mend()
                await until(lambda: first.health.ready)
                await first.broadcast("kept:a", "behind what waited there")
                cables[1].mend()
                told = {}
                while len(told) < 2:
                    if "id" in (frame := await again.hear()):
                        told[frame["id"]] = frame.get("code", frame["type"])
                assert told == {2: "unavailable", 3: "ack"}
                await again.say("publish", id=4, channel="kept:a", data="latest")
                while (await again.hear())["type"] != "ack":
                    pass
    kept = [one.message.strip('"') for one in await hubs[1].channel("kept:a").history()]
    assert kept == ["small", "also small", "behind what waited there", "latest"]


async def test_what_is_sent_again_and_did_not_get_out_may_have_been_published_before(engine):
    """This attempt was not, and that is all that its node knows."""
    node = RecordingNode(RedisBroker(engine.url, "losses", timeout=0.3))
    await node.broker.start()
    try:
        engine.stop()
        await until(lambda: not node.broker.is_connected)
        with pytest.raises(BrokerUnavailable, match="may have been published, or not") as caught:
            await node.publish(CARS, "pay 100", KEPT, key="session:7", again=True)
        assert caught.value.unsure
        with pytest.raises(BrokerUnavailable, match=r"was not published$") as caught:
            await node.publish(CARS, "pay 100", KEPT, key="session:8")
        assert not caught.value.unsure
    finally:
        await node.broker.stop()


# ── sessions of v1 ────────────────────────────────────────────────────────────────────────────


class Shop(Listener):
    done: list[str]  # of all nodes

    @event("order")
    def order(self, ws, message: dict):
        self.done.append(message["what"])


@pytest.fixture
async def shops(engine):
    """Two nodes of one shop, and what was done there."""
    kind = type("Shop", (Shop,), {"done": []})
    both = [Hub(broker=engine.url, name="losses") for _ in range(2)]
    for hub in both:
        hub.rule("{name}", publish=lambda ws: True)
        hub.add("/ws", kind)
        await hub.start()
    yield (*both, kind.done)
    for hub in both:
        await hub.stop()


def order(what):
    return {"type": "order", "what": what}


async def kept(hub):
    """Wait until all sessions are kept."""
    await until(lambda: not hub.resumes._todo)
    await hub.resumes.finish(5)


@contextlib.asynccontextmanager
async def back(hub, speaker):
    """Come back with a speaker's session, and go again."""
    hello = {"resume": speaker.greeting["resume"], "positions": {}}
    async with Speaker(hub, "/ws", hello=hello) as again:
        assert again.greeting["resumed"]
        yield again
        await again.drop()


async def answer(speaker, kind, id_, **fields):
    """Return what becomes of a frame that is sent again."""
    await speaker.say(kind, id=id_, again=True, **fields)
    told = await speaker.hear()
    assert told["id"] == id_
    return told.get("code", told["type"])


@pytest.fixture
async def lost_since(engine, shops):
    """A client whose session the engine has only as it was before the order ``late``."""
    one, other, _ = shops
    async with Speaker(one, "/ws") as ana:
        await ana.say("message", id=1, data=order("early"))
        await ana.hear("ack")
        await kept(one)
        with engine.client as client:
            client.save()
        await ana.say("message", id=2, data=order("late"))
        await ana.hear("ack")
        await ana.drop()
        await kept(one)
        await restart(engine, one, other)
        yield ana


@pytest.mark.parametrize("where", [0, 1])
async def test_what_may_have_been_done_is_not_done_again_after_the_engine_lost_it(
    shops, lost_since, where
):
    async with back(shops[where], lost_since) as again:
        assert await answer(again, "message", 1, data=order("early")) == "ack"  # that is known
        assert await answer(again, "message", 2, data=order("late")) == "unsure"
        assert await answer(again, "publish", 3, channel="unkept", data=1) == "unsure"
    assert shops[2] == ["early", "late"]


async def test_it_is_unsure_until_the_client_says_something_new(shops, lost_since):
    one, other, done = shops
    async with back(one, lost_since) as again:
        pass  # and is lost at once
    async with back(other, again) as third:
        assert await answer(third, "message", 2, data=order("late")) == "unsure"
        assert await answer(third, "message", 4, data=order("later")) == "unsure"
        await third.say("message", id=5, data=order("new"))
        await third.hear("ack")
    async with back(one, third) as fourth:
        assert await answer(fourth, "message", 4, data=order("later")) == "unsure"
        assert await answer(fourth, "message", 5, data=order("new")) == "ack"
        assert await answer(fourth, "message", 6, data=order("last")) == "ack"
    assert done == ["early", "late", "new", "last"]


async def test_a_session_whose_client_stays_while_the_engine_comes_back_is_sure(engine, shops):
    one, other, done = shops
    async with Speaker(one, "/ws") as ana:
        with engine.client as client:
            client.save()
        await restart(engine, one, other)
        await kept(one)
        await ana.drop()
        async with back(one, ana) as again:
            assert await answer(again, "message", 1, data=order("it")) == "ack"
    assert done == ["it"]
