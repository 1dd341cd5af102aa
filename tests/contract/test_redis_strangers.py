"""What strangers publish to a hub's topics, or write into its history: dropped, counted, logged once."""

from __future__ import annotations

import asyncio
import logging
import threading

import msgspec
import pytest
from redis import Redis
from speaking import Speaker

from backchannel import AsyncPublisher, Hub, Listener, Publisher

BAD_JSON = [
    b"J{bad", b"J", b"J\x00\x01", b"J1}{", b'J{"a":1},"type":"hello"', b'J"\xff"', b'J"a\nb"', b"JNaN",
]  # fmt: skip
BAD_EVENTS = [
    b"Enonsense", b"E", b"E1", b"E{}", b'E{"type":1}', b'E{"type":"join"}', b'E{"type":"pong"}',
    b'E{"type":"hello","connection":"x"}', b'E{"type":"join","channel":"kept:a","user":1}',
]  # fmt: skip
BAD_ADDRESSED = [
    b"X" + msgspec.msgpack.encode(words)
    for words in (
        ["{bad", None, [], None, "json"],
        ["{bad", None, [], None, "event"],
        [b"\x00", None, [], None, "event"],
        ['{"type":"join"}', None, [], None, "event"],
        ["{}", None, [], None, "other"],
    )
]


def topic(channel):
    return f"backchannel:strangers:{{c:{channel}}}"


@pytest.fixture
async def hub(redis_server):
    hub = Hub(broker=redis_server.url, name="strangers")
    hub.rule("kept:{name}", history=1000, subscribe=lambda ws: True)
    hub.rule("{name}", subscribe=lambda ws: True)
    hub.add("/ws/{channel}", Listener)
    await hub.start()
    yield hub
    await hub.stop()


async def hear(speaker):
    """Return the next publication, and nothing may come before it."""
    async with asyncio.timeout(5):
        found = await speaker.hear()
    assert found["type"] == "publication"
    return found["data"]


async def hear_with_losses(speaker, count):
    """Return what comes until so many publications are there, losses included."""
    found = []
    async with asyncio.timeout(5):
        while len([one for one in found if one != "lost"]) < count:
            frame = await speaker.hear()
            found.append(frame["data"] if frame["type"] == "publication" else frame["type"])
    return found


def errors(caplog):
    return [one for one in caplog.records if one.levelno >= logging.ERROR]


@pytest.mark.parametrize("data", [*BAD_JSON, *BAD_EVENTS, *BAD_ADDRESSED])
async def test_what_clients_would_not_understand_is_dropped(hub, redis_server, caplog, data):
    async with Speaker(hub, "/ws/cars") as speaker, hub.test_client("/ws/cars") as raw:
        assert (await speaker.hear())["type"] == "subscribed"
        with redis_server.client as engine:
            for _ in range(3):
                engine.publish(topic("cars"), data)
        await hub.broadcast("cars", {"from": "us"})
        assert await hear(speaker) == {"from": "us"}
        assert await raw.receive_json() == {"from": "us"}
        assert hub.health.foreign == 3
        assert hub.health.problems == ()
    assert len(errors(caplog)) == 1
    assert "a stranger publishes" in errors(caplog)[0].getMessage()
    assert errors(caplog)[0].exc_info is None


async def test_an_event_of_a_newer_node_reaches_clients(hub, redis_server):
    async with Speaker(hub, "/ws/cars") as speaker:
        assert (await speaker.hear())["type"] == "subscribed"
        with redis_server.client as engine:
            engine.publish(topic("cars"), b'E{"type":"typing","channel":"cars"}')
        assert await speaker.client.receive_json() == {"type": "typing", "channel": "cars"}
        assert hub.health.foreign == 0


@pytest.mark.parametrize(
    "data", [b"\xffgarbage", b"", b"J{bad", b"Q\x01", b"A\x92\x01\x01", *BAD_ADDRESSED[:1]]
)
async def test_what_a_stranger_wrote_into_a_history_is_told_as_lost_and_the_rest_goes_on(
    hub, redis_server, caplog, data
):
    async def spoil():
        """Write it at the next position, as a publication that went wrong would be."""
        top = (await hub._broker.history("kept:cars", None, 0)).top.offset + 1
        with redis_server.client as engine:
            name = topic("kept:cars")
            fields = {"parcel": data, "time": engine.time()[0], "id": f"stranger:{top}"}
            engine.xadd(f"{name}:entries", fields, id=f"{top}-1")
            engine.hset(f"{name}:state", "top", top)

    async with (
        Speaker(hub, "/ws/kept:cars") as speaker,
        AsyncPublisher(redis_server.url, hub="strangers") as publisher,
    ):
        assert (await speaker.hear())["type"] == "subscribed"
        first = (await hub.broadcast("kept:cars", "0")).position
        await spoil()
        await hub.broadcast("kept:cars", "1")
        await spoil()
        assert await hear_with_losses(speaker, 2) == ["0", "lost", "1"]
        kept = await hub.channel("kept:cars").history()
        assert [(one.message, one.position.offset) for one in kept] == [("0", 1), ("1", 3)]
        assert (kept.position.offset, kept.lost) == (4, True)
        kept = await hub.channel("kept:cars").history(since=first)
        assert [one.message for one in kept] == ["1"]
        assert [one.message for one in await publisher.channel("kept:cars").history()] == ["0", "1"]
        await hub.broadcast("kept:cars", "2")
        assert await hear_with_losses(speaker, 1) == ["lost", "2"]
        hello = {"resume": speaker.greeting["resume"], "positions": {"kept:cars": str(first)}}
        await speaker.drop()
        async with Speaker(hub, "/ws/kept:cars", hello=hello) as again:
            assert await hear_with_losses(again, 2) == ["lost", "1", "lost", "2"]
    assert hub.health.foreign >= 4
    assert hub.health.problems == ()
    assert len(errors(caplog)) == 1
    assert "a stranger wrote to" in errors(caplog)[0].getMessage()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["all", "nonsense", 1], "nonsense"),
        (["all", "close", 1005, ""], "close"),
        (["all", "close", 99999, ""], "close"),
        (["all", "close", 1000, "x" * 124], "close"),
        (["all", "close"], "close"),
        (["all", "farewell", "user", "ana", 7, ""], "farewell"),
        (["all", "farewell", "channel", "ana", 1000, ""], "farewell"),
        (["all", "subscribe", ""], "subscribe"),
        (["all", "subscribe", "\x00"], "subscribe"),
        (["all", ["count"]], "count"),
        (["all", {"a": 1}], "a"),
        (["all"], ""),
        ([], ""),
    ],
)
async def test_a_question_that_nobody_understands_is_logged_once_for_each_who_asks(
    hub, redis_server, caplog, words, shown
):
    async with hub.test_client("/ws/cars") as client:
        with redis_server.client as engine:
            for asker in ("ab", "cd"):
                data = b"Q" + msgspec.msgpack.encode([["channel", "cars"], [asker, 1], words])
                for _ in range(3):
                    engine.publish(topic("cars"), data)
        await hub.broadcast("cars", "one of us")
        assert await client.receive() == "one of us"
        assert client.connection.is_open
        assert client.connection.channels == {"cars"}
    assert hub.health.foreign == 6
    assert hub.health.problems == ()
    assert len(errors(caplog)) == 2
    for asker, record in zip(("ab", "cd"), errors(caplog), strict=True):
        assert "does not understand" in record.getMessage()
        assert asker in record.getMessage()
        assert shown in record.getMessage()
        assert record.exc_info is None


async def test_the_log_is_not_filled_by_many_who_ask(hub, redis_server, caplog):
    async with hub.test_client("/ws/cars") as client:
        with redis_server.client as engine:
            for number in range(300):
                asking = [["channel", "cars"], [f"asker {number}", 1], ["all", "nonsense"]]
                engine.publish(topic("cars"), b"Q" + msgspec.msgpack.encode(asking))
        await hub.broadcast("cars", "one of us")
        assert await client.receive() == "one of us"
    assert hub.health.foreign == 300
    assert len(errors(caplog)) == 100


# ── answers ───────────────────────────────────────────────────────────────────────────────────

WRONG = ["garbage", [["id", None, "/ws", "n", 1e20, {}]]]


@pytest.fixture
def answers_wrong(redis_server):
    """Let a stranger hear a topic, and answer each question and counted publication there."""
    threads = []

    def start(topic, words):
        client = Redis.from_url(redis_server.url)
        heard = client.pubsub()
        heard.subscribe(topic)
        assert heard.get_message(timeout=5)["type"] == "subscribe"

        def answer():
            while not done.is_set():
                one = heard.get_message(ignore_subscribe_messages=True, timeout=0.05)
                if one is None:
                    continue
                asked = msgspec.msgpack.decode(one["data"][1:])
                node, number = asked[3] if one["data"][:1] == b"X" else asked[1]
                inbox = f"{topic.partition('{')[0]}{{n:{node}}}"
                client.publish(inbox, b"A" + msgspec.msgpack.encode([number, words]))
            client.close()

        done = threading.Event()
        thread = threading.Thread(target=answer)
        thread.start()
        threads.append((thread, done))

    yield start
    for thread, done in threads:
        done.set()
        thread.join()


@pytest.fixture
async def asking(redis_server):
    """A hub that does not wait long."""
    hub = Hub(
        broker=redis_server.url, name="strangers", broker_timeout=0.3,
        authenticate=lambda request: request.query.get("user"),
    )  # fmt: skip
    hub.rule("{name}", subscribe=lambda ws: True)
    hub.add("/ws/{channel}", Listener)
    await hub.start()
    yield hub
    await hub.stop()


@pytest.mark.parametrize("words", WRONG)
async def test_an_answer_that_is_none_is_dropped_and_nobody_waits_for_ever(
    asking, redis_server, answers_wrong, caplog, words
):
    answers_wrong("backchannel:strangers:{u:ana}", words)
    async with asyncio.timeout(20), asking.test_client("/ws/cars?user=ana") as client:
        ana = asking.user("ana")
        assert (await ana.send("hello")).reached == 1
        assert await ana.count() == 1
        assert [one.id for one in await ana.connections()] == [client.connection.id]
        assert await ana.users() == ["ana"]
        assert await ana.recheck() == []
        assert (await ana.subscribe("boats")).reached == 1
        assert (await ana.unsubscribe("boats")).reached == 1
        assert (await ana.close(4100, "bye")).reached == 1
    assert asking.health.foreign == 8
    assert asking.health.problems == ()
    said = [one.getMessage() for one in errors(caplog)]
    assert len(said) == 1
    assert "a stranger answers" in said[0]


@pytest.mark.parametrize("words", WRONG)
@pytest.mark.parametrize("kind", [AsyncPublisher, Publisher])
async def test_so_it_is_for_publishers(asking, redis_server, answers_wrong, kind, words):
    answers_wrong("backchannel:strangers:{u:ana}", words)

    async def get(call, *args):
        done = await asyncio.to_thread(call, *args) if kind is Publisher else await call(*args)
        return getattr(done, "reached", done)

    publisher = kind(redis_server.url, "strangers", timeout=0.3)
    async with asyncio.timeout(20), asking.test_client("/ws/cars?user=ana") as client:
        ana = publisher.user("ana")
        assert await get(ana.send, "hello") == 1
        assert await get(ana.count) == 1
        assert [one.id for one in await get(ana.connections)] == [client.connection.id]
        assert await get(ana.users) == ["ana"]
        assert await get(ana.subscribe, "boats") == 1
        assert await get(ana.close, 4100, "bye") == 1
    await publisher.aclose() if kind is AsyncPublisher else publisher.close()


# ── who only listens ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def watched(redis_server):
    """Somebody who hears everything, as people do to find out what goes on."""
    with redis_server.client as client, client.pubsub() as everything:
        everything.psubscribe("*", "backchannel:*")
        assert [everything.get_message(timeout=5)["data"] for _ in range(2)] == [1, 2]
        yield everything


async def test_nobody_waits_for_who_listens_to_a_pattern(watched, redis_server):
    hub = Hub(
        broker=redis_server.url, name="strangers", broker_timeout=60,
        authenticate=lambda request: request.query.get("user"),
    )  # fmt: skip
    hub.add("/ws/{channel}", Listener)
    await hub.start()
    async with (
        asyncio.timeout(20),
        hub.test_client("/ws/cars?user=ana") as client,
        AsyncPublisher(redis_server.url, "strangers", timeout=60) as publisher,
    ):
        for sender in (hub, publisher):
            ana = sender.user("ana")
            assert (await ana.send("hello")).reached == 1
            assert await client.receive() == "hello"
            assert await ana.count() == 1
            assert [one.user for one in await sender.everyone.connections()] == ["ana"]
            assert (await sender.user("nobody").send("hello")).reached == 0
            assert await sender.user("nobody").count() == 0
        with redis_server.client as engine:
            engine.script_flush()
        assert await hub.user("ana").count() == 1
        assert await publisher.user("ana").count() == 1
        assert (await hub.user("ana").close(4100, "bye")).reached == 1
    await hub.stop()


async def test_who_listens_to_the_topic_itself_is_waited_for(asking, redis_server, watched, caplog):
    """As one who does not answer: it may be a node, and nobody can tell."""
    with redis_server.client as client, client.pubsub() as mute:
        mute.subscribe("backchannel:strangers:{u:ana}")
        assert mute.get_message(timeout=5)["type"] == "subscribe"
        async with asyncio.timeout(20), asking.test_client("/ws/cars?user=ana"):
            assert await asking.user("ana").count() == 1
    assert "1 nodes that have someone of user did not answer" in caplog.text


async def test_a_node_that_may_not_count_waits_for_all_who_hear_it(redis_server, caplog):
    with redis_server.client as engine:
        engine.execute_command(
            "ACL", "SETUSER", "node", "on", ">pw", "~*", "&*", "+@all", "-pubsub"
        )
    url = redis_server.url.replace("redis://", "redis://node:pw@")
    hub = Hub(broker=url, name="strangers", broker_timeout=0.3)
    hub.add("/ws/{channel}", Listener)
    await hub.start()
    try:
        async with asyncio.timeout(20), hub.test_client("/ws/cars"):
            assert await hub.everyone.count() == 1
            assert (await hub.everyone.send("hello")).reached == 1
        assert "did not answer" not in caplog.text
    finally:
        await hub.stop()
        with redis_server.client as engine:
            engine.execute_command("ACL", "DELUSER", "node")
