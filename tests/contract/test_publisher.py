"""Publishing without running a hub, blocking and async: what a hub's own audiences do, from outside."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvloop
from moving import until
from redis import Redis
from shared import WebSession

from backchannel import AsyncPublisher, Hub, Listener, Publisher, UnsendableMessage
from backchannel.errors import BrokerUnavailable, BrokerUnusable
from backchannel.history import Position
from backchannel.testing import ConnectionClosed

NAME = "outside"

everywhere = pytest.mark.parametrize(
    "url", ["redis_server", "cluster", "old_cluster"], indirect=True
)
"""With one engine, with a cluster, and with one that has no topics of shards."""


class Room(Listener):
    """Lets everyone into everything but the vault."""

    def on_subscribe(self, ws, channel):
        return channel != "vault"


@pytest.fixture
def url(request):
    """Return where the engine is, or the cluster."""
    return request.getfixturevalue(getattr(request, "param", "redis_server")).url


@pytest.fixture
async def hubs(url):
    """Two nodes of one hub."""
    both = [new_hub(url) for _ in range(2)]
    for hub in both:
        await hub.start()
    yield both
    for hub in both:
        await hub.stop()


def new_hub(url, **settings):
    hub = Hub(
        broker=url,
        name=NAME,
        broker_timeout=2.0,
        authenticate=lambda request: request.query.get("user"),
        **settings,
    )
    hub.rule("kept:{name}", history=1000)
    hub.rule("last:{name}", history=1)
    hub.add("/ws/{channel}", Room)
    return hub


@pytest.fixture
def publisher(make, url):
    return make(url)


async def read(client, count):
    return [await client.receive() for _ in range(count)]


# ── the verbs ─────────────────────────────────────────────────────────────────────────────────


@everywhere
async def test_a_channel_is_reached_on_all_nodes(hubs, publisher):
    async with hubs[0].test_client("/ws/cars") as ana, hubs[1].test_client("/ws/cars") as bob:
        sent = await publisher.broadcast("cars", {"price": 5})
        assert (sent.reached, sent.position) == (None, None)
        await publisher.channel("cars").send("text")
        await publisher.broadcast("cars", b"\x00bytes")
        await publisher.everyone.send("end")
        for client in (ana, bob):
            assert await read(client, 4) == ['{"price":5}', "text", b"\x00bytes", "end"]
    assert (await publisher.broadcast("boats", "nobody is there")).reached == 0


@everywhere
async def test_users_connections_and_everyone_are_reached_and_counted(hubs, publisher):
    one, other = hubs
    async with (
        one.test_client("/ws/cars?user=ana") as phone,
        other.test_client("/ws/boats?user=ana") as desk,
        other.test_client("/ws/boats?user=bob") as bob,
    ):
        assert (await publisher.user("ana").send("to ana")).reached == 2
        assert (await publisher.connection(desk.id).send("to the desk")).reached == 1
        assert (await publisher.everyone.send("to all")).reached == 3
        left_out = [publisher.user("bob"), phone.id]
        assert (await publisher.everyone.send("not you", exclude=left_out)).reached == 1
        for nobody in (publisher.user("eve"), publisher.connection("x"), publisher.session("s")):
            assert (await nobody.send("hello")).reached == 0
        await publisher.everyone.send("end")
        assert await read(phone, 3) == ["to ana", "to all", "end"]
        assert await read(desk, 5) == ["to ana", "to the desk", "to all", "not you", "end"]
        assert await read(bob, 2) == ["to all", "end"]


@everywhere
async def test_a_session_is_reached_by_its_id(hubs, publisher):
    async with (
        hubs[0].test_client("/ws/cars", session=WebSession("s1")) as one,
        hubs[1].test_client("/ws/cars", session=WebSession("s1")) as other,
        hubs[1].test_client("/ws/cars", session=WebSession("s2")) as another,
    ):
        session = publisher.session("s1")
        assert (await session.send("to the session")).reached == 2
        assert await session.count() == 2
        await publisher.broadcast("cars", "to the others", exclude=session)
        for client in (one, other):
            assert await client.receive() == "to the session"
        assert await another.receive() == "to the others"


@everywhere
async def test_a_whisper_reaches_those_of_the_channel_alone(hubs, publisher):
    one, other = hubs
    async with (
        one.test_client("/ws/cars?user=ana") as ana,
        other.test_client("/ws/cars?user=bob") as bob,
        other.test_client("/ws/boats?user=ana") as elsewhere,
    ):
        (info,) = await publisher.user("bob").connections()
        await publisher.broadcast("cars", "psst", to=[publisher.user("ana")])
        await publisher.broadcast("cars", "to bob", to=info)
        await publisher.broadcast("cars", "to bob too", to=bob.id, exclude=[publisher.user("ana")])
        await publisher.broadcast("cars", "to nobody", to=[])
        await publisher.channel("cars").send("not to ana", exclude=publisher.user("ana"))
        await publisher.everyone.send("end")
        assert await read(ana, 2) == ["psst", "end"]
        assert await read(bob, 4) == ["to bob", "to bob too", "not to ana", "end"]
        assert await elsewhere.receive() == "end"


@everywhere
async def test_who_is_there_is_asked_of_all_nodes(hubs, publisher):
    one, other = hubs
    async with (
        one.test_client("/ws/cars?user=ana") as phone,
        other.test_client("/ws/cars?user=ana") as desk,
        other.test_client("/ws/cars?user=bob") as bob,
    ):
        phone.connection.meta["device"] = "phone"
        assert await publisher.channel("cars").count() == 3
        assert await publisher.user("ana").count() == 2
        assert await publisher.user("eve").count() == 0
        assert sorted(await publisher.channel("cars").users()) == ["ana", "bob"]
        assert await publisher.channel("boats").users() == []
        found = {info.id: info for info in await publisher.everyone.connections()}
        assert set(found) == {phone.id, desk.id, bob.id}
        assert found[phone.id] == one.info(phone.connection)


@everywhere
async def test_connections_are_closed_and_moved_elsewhere(hubs, publisher):
    one, other = hubs
    async with (
        one.test_client("/ws/cars?user=ana") as phone,
        other.test_client("/ws/cars?user=ana") as desk,
        other.test_client("/ws/cars?user=bob") as bob,
    ):
        assert (await publisher.user("ana").subscribe("boats")).reached == 2
        assert (await publisher.user("ana").subscribe("vault")).reached == 0
        assert await publisher.channel("boats").count() == 2
        assert (await publisher.connection(phone.id).unsubscribe("boats")).reached == 1
        assert await publisher.channel("boats").users() == ["ana"]
        await publisher.user("ana").send("goodbye")
        assert (await publisher.user("ana").close(4100, "moved")).reached == 2
        for client in (phone, desk):
            assert await client.receive() == "goodbye"
            with pytest.raises(ConnectionClosed, match="4100 moved"):
                await client.receive()
        assert bob.connection.is_open


# ── history ───────────────────────────────────────────────────────────────────────────────────


@everywhere
async def test_positions_go_on_where_the_hubs_own_are(hubs, publisher):
    async with hubs[1].test_client("/ws/kept:a") as client:
        positions = []
        for number in range(10):
            sender = (hubs[0], publisher)[number % 2]
            positions.append((await sender.broadcast("kept:a", str(number))).position)
        epoch = positions[0].epoch
        assert positions == [Position(epoch, number) for number in range(1, 11)]
        assert await read(client, 10) == [str(number) for number in range(10)]
    kept = await hubs[0].channel("kept:a").history()
    assert [one.position for one in kept] == positions
    assert [one.message for one in kept] == [str(number) for number in range(10)]


@everywhere
async def test_an_addressed_publication_is_kept_with_its_audience(hubs, publisher):
    await publisher.broadcast("kept:a", "for ana", to=publisher.user("ana"))
    sent = await publisher.channel("kept:a").send("for all")
    assert (sent.position.offset, sent.reached) == (2, 0)
    assert [one.message for one in await hubs[0].channel("kept:a").history()] == ["for all"]
    async with hubs[0].test_client("/ws/x?user=ana") as client:
        kept = await hubs[0].channel("kept:a").history(reader=client.connection)
        assert [one.message for one in kept] == ["for ana", "for all"]


@everywhere
async def test_history_is_read_as_the_hub_reads_it_for_nobody_in_particular(hubs, publisher):
    for number in range(10):
        await hubs[number % 2].broadcast("kept:a", {"n": number})
    await hubs[0].broadcast("kept:a", "for ana", to=hubs[0].user("ana"))
    await hubs[0].broadcast("kept:a", b"bytes")
    here, there = hubs[0].channel("kept:a"), publisher.channel("kept:a")
    whole = await there.history()
    assert whole == await here.history()
    assert [one.message for one in whole][-3:] == ['{"n":8}', '{"n":9}', b"bytes"]
    assert len(await there.history(limit=2)) == 1  # ana's was looked at
    page = await there.history(since=whole[2].position, limit=3)
    assert page == await here.history(since=whole[2].position, limit=3)
    assert [one.message for one in page] == ['{"n":3}', '{"n":4}', '{"n":5}']
    assert (await there.history(since=str(page.position), limit=1))[0].message == '{"n":6}'
    lost = await there.history(since="long-ago.1")
    assert (lost.lost, list(lost), lost.position.offset) == (True, [], 12)


@everywhere
async def test_a_channel_that_nothing_is_kept_of_has_an_empty_history(hubs, publisher):
    await hubs[0].broadcast("cars", "gone")
    for whom in (hubs[0], publisher):
        history = await whom.channel("cars").history()
        assert (list(history), history.lost, history.position.offset) == ([], False, 0)


async def test_history_is_read_also_where_the_engine_forgot_its_scripts(
    hubs, publisher, redis_server
):
    await publisher.broadcast("kept:a", "1")
    await publisher.channel("kept:a").history()
    with redis_server.client as engine:
        engine.script_flush()
    assert [one.message for one in await publisher.channel("kept:a").history()] == ["1"]
    with redis_server.client as engine:
        engine.script_flush()
    assert (await publisher.broadcast("kept:a", "2")).position.offset == 2


async def test_a_history_whose_reading_was_not_answered_is_read_again(
    hubs, make, cable, redis_server
):
    publisher = make(cable.url, timeout=5.0)
    await publisher.broadcast("kept:a", "1")
    await publisher.channel("kept:a").history()
    cable.is_deaf = True
    with redis_server.client as engine:
        engine.config_resetstat()
        reading = asyncio.ensure_future(publisher.channel("kept:a").history())
        async with asyncio.timeout(5):
            while "cmdstat_evalsha" not in engine.info("commandstats"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # nothing tells
    cable.cut()
    cable.mend()
    assert [one.message for one in await reading] == ["1"]


@everywhere
async def test_what_a_later_rule_keeps_is_kept_after_a_moment(hubs, publisher, monkeypatch):
    monkeypatch.setattr("backchannel.publisher.plan.FRESH", 0.05)
    assert (await publisher.broadcast("late", "0")).position is None
    hubs[0].rule("late", history=10)
    async with asyncio.timeout(10):
        while (await publisher.broadcast("late", "1")).position is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # nothing tells a publisher


@everywhere
async def test_a_hub_that_ignores_case_is_met_as_its_own_calls_do(url, publisher):
    hub = new_hub(url, casefold_channels=True)
    async with hub.test_client("/ws/KEPT:A?user=ana") as client:
        assert (await publisher.broadcast("Kept:a", "1")).position.offset == 1
        assert [one.message for one in await publisher.channel("KEPT:a").history()] == ["1"]
        assert await publisher.channel("KEPT:a").count() == 1
        whom = publisher.channel("kepT:A")
        assert (await publisher.user("ana").send("2", exclude=whom)).reached == 0
        assert (await publisher.user("ana").subscribe("BOATS")).reached == 1
        await publisher.broadcast("boatS", "3")
        assert await read(client, 2) == ["1", "3"]
    await hub.stop()


# ── bad input ─────────────────────────────────────────────────────────────────────────────────

WRONG = {
    "NaN": lambda p: p.broadcast("cars", math.nan),
    "an object": lambda p: p.user("ana").send([{"a": object()}]),
    "a lone surrogate": lambda p: p.everyone.send("\ud800"),
    "no channel": lambda p: p.broadcast("", "x"),
    "a channel of ours": lambda p: p.channel("$x"),
    "a channel that is none": lambda p: p.channel(5),
    "to None": lambda p: p.broadcast("cars", "x", to=None),
    "exclude None": lambda p: p.user("ana").send("x", exclude=None),
    "to a mapping": lambda p: p.broadcast("cars", "x", to={"a": 1}),
    "to a number": lambda p: p.broadcast("cars", "x", to=[5]),
    "user None": lambda p: p.user(None),
    "user empty": lambda p: p.user(""),
    "session None": lambda p: p.session(None),
    "session empty": lambda p: p.session(""),
    "connection 5": lambda p: p.connection(5),
    "a code": lambda p: p.everyone.close(1005),
    "a reason": lambda p: p.everyone.close(1000, "x" * 124),
    "subscribe": lambda p: p.everyone.subscribe("\x00"),
    "unsubscribe": lambda p: p.everyone.unsubscribe(None),
    "since": lambda p: p.channel("cars").history(since="tomorrow"),
    "since 5": lambda p: p.channel("cars").history(since=5),
    "limit 0": lambda p: p.channel("cars").history(limit=0),
    "limit True": lambda p: p.channel("cars").history(limit=True),
}


async def caught(call, sender):
    try:
        done = call(sender)
        if inspect.isawaitable(done):
            await done
    except Exception as error:  # noqa: BLE001 - it is what is compared
        return type(error), str(error)
    return None


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_is_wrong_is_refused_in_the_hubs_own_words(hubs, publisher, wrong):
    expected = await caught(WRONG[wrong], hubs[0])
    assert expected is not None
    assert await caught(WRONG[wrong], publisher) == expected


@everywhere
async def test_what_belongs_to_another_is_refused(hubs, publisher, url):
    other = AsyncPublisher(url, NAME)
    async with hubs[0].test_client("/ws/cars") as client:
        for foreign in (other.user("ana"), hubs[0].user("ana"), client.connection):
            with pytest.raises(ValueError, match="belongs to another hub"):
                await publisher.broadcast("cars", "x", to=[foreign])


@pytest.mark.parametrize("kind", [Publisher, AsyncPublisher])
@pytest.mark.parametrize(
    ("args", "options", "error", "said"),
    [
        (("nonsense",), {}, ValueError, r"Publisher\('nonsense'\): .*redis://localhost:6379/0"),
        (("redis://:secret@h/x",), {}, ValueError, "number of a database"),
        ((None,), {}, TypeError, "takes a URL"),
        (("redis+sentinel://:secret@h",), {}, ValueError, r"Publisher\('redis.*sentinels call"),
        (("redis://h/x?password=secret",), {}, ValueError, "number of a database"),
        (("redis://h", "a b"), {}, ValueError, r"Publisher\(hub=…\)"),
        (("redis://h", None), {}, ValueError, r"Publisher\(hub=…\)"),
        (("redis://h",), {"timeout": "5"}, TypeError, r"Publisher\(timeout=…\)"),
        (("redis://h",), {"timeout": 0}, ValueError, r"Publisher\(timeout=…\)"),
        (("redis://h",), {"timeout": math.nan}, ValueError, r"Publisher\(timeout=…\)"),
        (("redis://h",), {"max_connections": 0}, ValueError, r"Publisher\(max_connections=…\)"),
        (("redis://h",), {"max_connections": True}, TypeError, r"Publisher\(max_connections=…\)"),
    ],
)
def test_a_publisher_that_can_not_work_is_refused_when_it_is_made(kind, args, options, error, said):
    with pytest.raises(error, match=said) as refused:
        kind(*args, **options)
    assert kind.__name__ in str(refused.value)
    assert "secret" not in str(refused.value)


@everywhere
async def test_a_hub_that_the_engine_does_not_know_is_a_clear_error(hubs, make, url):
    stranger = make(url, "outsiide")
    for call in (stranger.broadcast("cars", "x"), stranger.user("ana").count()):
        with pytest.raises(BrokerUnusable, match=r"knows no hub 'outsiide': none of its nodes"):
            await call


@pytest.mark.parametrize("found", [b"garbage", b'{"backchannel": 99}', None])
async def test_what_no_hub_wrote_is_a_clear_error(publisher, redis_server, found):
    key = f"backchannel:{NAME}:about"
    with redis_server.client as engine:
        if found is None:
            engine.rpush(key, "a list")
        else:
            engine.set(key, found)
    with pytest.raises(BrokerUnusable, match=NAME):
        await publisher.broadcast("cars", "x")


@everywhere
async def test_what_is_too_large_is_so_for_publishers_too(url, publisher):
    hub = new_hub(url, max_publication=1000)
    await hub.start()
    await publisher.broadcast("cars", "x" * 1000)
    with pytest.raises(UnsendableMessage, match="may have max_publication=1000"):
        await publisher.broadcast("cars", "x" * 1001)
    await hub.stop()


async def test_a_wrong_password_says_so_and_does_not_show_it(hubs, make, redis_server):
    with redis_server.client as engine:
        engine.config_set("requirepass", "hush")
        try:
            host = redis_server.url.removeprefix("redis://")
            for url in (redis_server.url, f"redis://:secret@{host}"):
                publisher = make(url)
                with pytest.raises(BrokerUnusable, match="password") as refused:
                    await publisher.broadcast("cars", "x")
                assert "secret" not in str(refused.value) + repr(publisher)
            assert (await make(f"redis://:hush@{host}").broadcast("cars", "x")).reached == 0
        finally:
            engine.config_set("requirepass", "")


# ── an engine that goes and comes back ────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", ["broadcast", "kept", "send", "count", "close", "history"])
async def test_while_the_engine_is_away_each_call_says_so_in_time(make, free_port, verb):
    publisher = make(f"redis://127.0.0.1:{free_port}/0", timeout=0.5)
    call = {
        "broadcast": lambda: publisher.broadcast("cars", "x"),
        "kept": lambda: publisher.broadcast("kept:a", "x"),
        "send": lambda: publisher.user("ana").send("x"),
        "count": publisher.everyone.count,
        "close": publisher.everyone.close,
        "history": publisher.channel("kept:a").history,
    }[verb]
    with pytest.raises(BrokerUnavailable, match="is away"):
        await asyncio.wait_for(call(), 2)


@pytest.mark.parametrize("channel", ["cars", "kept:a"])
async def test_an_engine_that_hangs_is_given_up_in_time(hubs, make, cable, channel):
    publisher = make(cable.url, timeout=0.5)
    await publisher.broadcast(channel, "before")
    cable.is_deaf = True
    with pytest.raises(BrokerUnavailable, match="may have been published, or not"):
        await asyncio.wait_for(publisher.broadcast(channel, "x"), 2)
    with pytest.raises(BrokerUnavailable):
        await asyncio.wait_for(publisher.user("ana").count(), 2)
    with pytest.raises(BrokerUnavailable, match="is away") as caught:
        await asyncio.wait_for(publisher.channel(channel).history(), 2)
    assert "published" not in str(caught.value)  # it only reads
    cable.is_deaf = False
    await publisher.broadcast(channel, "after")


async def test_an_engine_that_was_restarted_is_found_again(hubs, publisher, redis_server):
    before = (await publisher.broadcast("kept:a", "0")).position
    await publisher.user("ana").count()
    run = hubs[0]._broker._route.engine.run
    redis_server.stop()
    redis_server.start()
    # Who was in it before is told that it may have missed some, and maybe misses the first.
    await until(lambda: hubs[0]._broker._route.engine.run != run)
    async with hubs[0].test_client("/ws/kept:a") as client:
        after = (await publisher.broadcast("kept:a", "1")).position
        assert after.epoch != before.epoch
        assert (await hubs[0].broadcast("kept:a", "2")).position == (after.epoch, 2)
        assert await read(client, 2) == ["1", "2"]
        assert await publisher.everyone.count() == 1


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("pool", ["speaking", "hearing"])
def test_a_connection_that_is_lost_before_it_is_used_is_replaced(redis_server, loop, pool):
    """Writing to it raises, with uvloop something that redis-py does not know."""

    async def work():
        hub = new_hub(redis_server.url)
        await hub.start()
        try:
            await use()
        finally:
            await hub.stop()

    async def use():
        async with AsyncPublisher(redis_server.url, NAME, timeout=5.0) as publisher:
            await publisher.broadcast("kept:a", "0")
            connections = getattr(publisher._door._at(None), pool)
            take = connections.get_connection

            async def take_and_lose():
                connections.get_connection = take
                connection = await take()
                connection._writer.transport.abort()
                await asyncio.sleep(0)
                return connection

            connections.get_connection = take_and_lose
            assert (await publisher.broadcast("kept:a", "1")).position.offset == 2
            assert await publisher.everyone.count() == 0
            assert connections.get_connection == take

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(work())


async def test_what_was_published_and_not_confirmed_is_published_once(hubs, make, cable):
    publisher = make(cable.url, timeout=5.0)
    async with hubs[0].test_client("/ws/kept:a") as client:
        await publisher.broadcast("kept:a", "0")
        cable.is_deaf = True
        sending = asyncio.ensure_future(publisher.broadcast("kept:a", "1"))
        assert await read(client, 2) == ["0", "1"]
        cable.cut()
        cable.mend()
        sent = await sending
        assert (sent.position.offset, sent.reached) == (2, None)
        assert (await hubs[0].broadcast("kept:a", "2")).position.offset == 3
        assert await client.receive() == "2"


async def test_it_is_published_once_also_where_the_engine_forgot_its_scripts_meanwhile(
    hubs, make, cable, redis_server
):
    publisher = make(cable.url, timeout=5.0)
    async with hubs[0].test_client("/ws/kept:a") as client:
        await publisher.broadcast("kept:a", "0")
        cable.is_deaf = True
        sending = asyncio.ensure_future(publisher.broadcast("kept:a", "1"))
        assert await read(client, 2) == ["0", "1"]
        with redis_server.client as engine:
            engine.script_flush()
        cable.cut()
        cable.mend()
        assert (await sending).position.offset == 2
        assert (await hubs[0].broadcast("kept:a", "2")).position.offset == 3
        assert await client.receive() == "2"


async def test_what_is_not_kept_and_not_confirmed_is_not_published_again(hubs, make, cable):
    publisher = make(cable.url)
    async with hubs[0].test_client("/ws/cars") as client:
        await publisher.broadcast("cars", "0")
        cable.is_deaf = True
        sending = asyncio.ensure_future(publisher.broadcast("cars", "1"))
        assert await read(client, 2) == ["0", "1"]
        cable.cut()
        with pytest.raises(BrokerUnavailable, match="may have been published, or not"):
            await sending
        cable.mend()
        await publisher.broadcast("cars", "2")
        assert await client.receive() == "2"


async def test_what_newer_ones_took_the_place_of_is_not_published_again(hubs, make, cable):
    """Whether it was can't be known then, and an error says so."""
    publisher = make(cable.url, timeout=5.0)
    async with hubs[0].test_client("/ws/last:a") as client:
        await publisher.broadcast("last:a", "0")
        cable.is_deaf = True
        sending = asyncio.ensure_future(publisher.broadcast("last:a", "1"))
        assert await read(client, 2) == ["0", "1"]
        await hubs[0].broadcast("last:a", "2")
        cable.cut()
        cable.mend()
        with pytest.raises(BrokerUnavailable, match="may have been published, or not"):
            await sending
        await hubs[0].broadcast("last:a", "3")
        assert await read(client, 2) == ["2", "3"]


async def test_a_node_that_does_not_answer_is_left_out(hubs, make, redis_server, caplog):
    publisher = make(redis_server.url, timeout=0.5)
    with redis_server.client as engine:
        mute = engine.pubsub()
        mute.subscribe(f"backchannel:{NAME}:{{c:cars}}")
        assert mute.get_message(timeout=5)["type"] == "subscribe"
        async with hubs[0].test_client("/ws/cars"):
            assert await publisher.channel("cars").count() == 1
        mute.close()
    assert "1 nodes that have someone of channel did not answer" in caplog.text


async def test_what_strangers_say_is_no_answer(hubs, make, redis_server):
    """Whoever can publish to an inbox: its name is random, and gone with the question."""
    publisher = make(redis_server.url, timeout=0.3)
    with redis_server.client as engine, redis_server.client as second:
        spy = engine.pubsub()
        spy.subscribe(f"backchannel:{NAME}:{{u:ana}}")
        spy.get_message(timeout=5)
        stop = threading.Event()

        def shout():
            while not stop.is_set():
                if (heard := spy.get_message(timeout=0.02)) and heard["data"][:1] == b"Q":
                    me = heard["data"].decode("latin-1")
                    start = me.index("\xb0") + 1  # a str of 16 in msgpack
                    inbox = me[start : start + 16]
                    for data in (b"", b"nonsense", b"A\xc1", b"Tx", b"A\x92"):
                        second.publish(f"backchannel:{NAME}:{{n:{inbox}}}", data)

        thread = threading.Thread(target=shout)
        thread.start()
        try:
            async with hubs[0].test_client("/ws/cars?user=ana"):
                for _ in range(3):
                    # The spy hears it as nodes do, and never answers: it counts as one.
                    assert await publisher.user("ana").users() == ["ana"]
        finally:
            stop.set()
            thread.join()
            spy.close()


# ── at once ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("url", ["redis_server", "cluster"], indirect=True)  # who say who it is
async def test_many_threads_may_use_one(hubs, url):
    threads, each = 16, 50
    with Publisher(url, NAME, max_connections=4) as publisher:

        def work(number):
            for count in range(each):
                publisher.broadcast("kept:a", f"{number} {count}")
                if count % 10 == 0:
                    assert publisher.channel("kept:a").count() == 1
            return number

        async with hubs[1].test_client("/ws/kept:a") as client:
            loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(threads)
            done = [loop.run_in_executor(pool, work, number) for number in range(threads)]
            heard = await read(client, threads * each)
            await asyncio.gather(*done)
            pool.shutdown()
        for port in map(int, re.findall(r":(\d+)", url)):
            with Redis(port=port) as engine:
                clients = [one for one in engine.client_list() if one["lib-name"] == "redis-py"]
                assert len(clients) <= 8 + 1  # of each kind 4, and the one that asks
    for number in range(threads):
        own = [text for text in heard if text.split()[0] == str(number)]
        assert own == [f"{number} {count}" for count in range(each)]
    assert (await hubs[0].broadcast("kept:a", "last")).position.offset == threads * each + 1


@everywhere
async def test_many_tasks_may_use_one_and_a_cancelled_one_spoils_nothing(hubs, url):
    async with (
        AsyncPublisher(url, NAME, max_connections=4) as publisher,
        hubs[1].test_client("/ws/kept:a?user=ana") as client,
    ):
        for number in range(20):
            tasks = [
                asyncio.ensure_future(publisher.user("ana").send("x")),
                asyncio.ensure_future(publisher.channel("kept:a").count()),
                asyncio.ensure_future(publisher.broadcast("kept:a", "y")),
            ]
            for _ in range(number % 7):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        counts = await asyncio.gather(*(publisher.user("ana").count() for _ in range(50)))
        assert counts == [1] * 50
        sent = await asyncio.gather(*(publisher.broadcast("kept:a", str(n)) for n in range(50)))
        offsets = sorted(one.position.offset for one in sent)
        assert offsets == list(range(offsets[0], offsets[0] + 50))
        assert client.connection.is_open


@everywhere
async def test_an_async_publisher_serves_one_event_loop_at_a_time(hubs, url):
    publisher = AsyncPublisher(url, NAME)
    await publisher.broadcast("cars", "x")

    def elsewhere():
        with pytest.raises(RuntimeError, match="in another event loop before"):
            asyncio.run(publisher.broadcast("cars", "x"))

    await asyncio.to_thread(elsewhere)
    await publisher.aclose()

    async def again():
        async with publisher:
            return (await publisher.broadcast("cars", "x")).reached

    assert await asyncio.to_thread(lambda: asyncio.run(again())) == 0


FORKING = """
    import os, sys
    from backchannel import Publisher

    publisher = Publisher(sys.argv[1], "outside")
    publisher.broadcast("kept:a", "before")  # there are connections now
    publisher.user("ana").count()
    children = []
    for child in range(3):
        pid = os.fork()
        if pid == 0:
            for number in range(50):
                publisher.broadcast("kept:a", f"{child} {number}")
                assert publisher.user("ana").count() == 1
            os._exit(0)
        children.append(pid)
    for number in range(50):
        publisher.broadcast("kept:a", f"parent {number}")
        assert publisher.user("ana").send("x").reached == 1
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
    print(publisher.broadcast("kept:a", "after").position.offset)
"""


@everywhere
async def test_processes_that_are_forked_may_use_it_at_the_same_time(hubs, url):
    async with (
        hubs[0].test_client("/ws/kept:a") as client,
        hubs[1].test_client("/ws/x?user=ana"),
    ):
        script = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", textwrap.dedent(FORKING), url,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, problems = await asyncio.wait_for(script.communicate(), 50)
        assert (out, problems) == (b"202\n", b"")
        heard = await read(client, 202)
    for who in ("0", "1", "2", "parent"):
        own = [text for text in heard if text.split()[0] == who]
        assert own == [f"{who} {number}" for number in range(50)]


FORKING_AWAITING = """
    import asyncio, os, sys
    from backchannel import AsyncPublisher

    publisher = AsyncPublisher(sys.argv[1], "outside")

    async def use(who):
        for number in range(20):
            await publisher.broadcast("kept:a", f"{who} {number}")
            assert await publisher.user("ana").count() == 1

    async def child(number):
        if number == 0:
            await publisher.aclose()  # which it may do first of all
        await use(f"child {number}")

    with asyncio.Runner() as runner:
        runner.run(use("before"))
        children = []
        for number in range(3):
            if (pid := os.fork()) == 0:
                try:
                    asyncio.run(child(number))
                    os._exit(0)
                except BaseException as error:
                    print(repr(error), file=sys.stderr, flush=True)
                    os._exit(1)
            children.append(pid)
        runner.run(use("parent"))
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        assert codes == [0, 0, 0], codes
        runner.run(use("after"))
        runner.run(publisher.aclose())
"""


async def test_processes_that_are_forked_may_use_an_async_one_at_the_same_time(hubs, redis_server):
    """With connections, and in an event loop, of their own."""
    async with (
        hubs[0].test_client("/ws/kept:a") as client,
        hubs[1].test_client("/ws/x?user=ana"),
    ):
        script = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", textwrap.dedent(FORKING_AWAITING), redis_server.url,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, problems = await asyncio.wait_for(script.communicate(), 50)
        assert (script.returncode, problems) == (0, b"")
        heard = await read(client, 120)
    for who in ("before", "child 0", "child 1", "child 2", "parent", "after"):
        own = [text for text in heard if text.rpartition(" ")[0] == who]
        assert own == [f"{who} {number}" for number in range(20)]
