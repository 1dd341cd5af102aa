"""Hubs of one name in different databases of one engine, whose topics know no databases: strangers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import tempfile

import pytest
from shared import WebSession
from speaking import Speaker

from backchannel import AsyncPublisher, Hub, Listener, Publisher
from backchannel.broker.redis.door import read_url
from backchannel.broker.redis.keys import Keys
from backchannel.contracts import Target
from backchannel.errors import BrokerUrlError
from backchannel.testing import ConnectionClosed, HandshakeRefused

NAME = "outside"
KINDS = ["channel", "user", "session", "connection", "everyone"]


class Room(Listener):
    """Says what was lost, which nothing is here."""

    def on_lost(self, ws, channel):
        ws.send({"lost": channel})


@pytest.fixture(params=[("0", "1"), ("1", "12")], ids=" and ".join)
def urls(request, redis_server):
    """Return the URLs of two databases."""
    engine = redis_server.url.rpartition("/")[0]
    return [f"{engine}/{database}" for database in request.param]


@pytest.fixture
async def hubs(urls):
    """Two hubs of one name that have nothing in common but the engine."""
    both = [new_hub(url) for url in urls]
    for hub in both:
        await hub.start()
    yield both
    for hub in both:
        await hub.stop()


def new_hub(url):
    hub = Hub(
        broker=url,
        name=NAME,
        broker_timeout=2.0,
        presence_moment=0.1,
        authenticate=lambda request: request.query.get("user"),
    )
    hub.rule("kept:{name}", history=100, subscribe=lambda ws: True, publish=lambda ws: True)
    hub.rule("seen:{name}", presence=True, subscribe=lambda ws: True)
    hub.add("/ws/{channel}", Room)
    return hub


def audiences(of, client):
    """Return those that a client is in, of a hub or a publisher, and none of which says which hub."""
    return {
        "channel": of.channel("cars"),
        "user": of.user("ana"),
        "session": of.session("s1"),
        "connection": of.connection(client.connection.id),
        "everyone": of.everyone,
    }


def client_of(hub):
    return hub.test_client("/ws/cars?user=ana", session=WebSession("s1"))


# ── what is said and asked ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_hub_says_is_for_its_own_database(hubs, kind):
    here, there = hubs
    async with client_of(here) as ana, client_of(there) as stranger:
        sent = await audiences(here, ana)[kind].send("mine")
        assert sent.reached == (None if kind == "channel" else 1)
        await audiences(there, stranger)[kind].send("theirs")
        assert (await ana.receive(), await stranger.receive()) == ("mine", "theirs")
        await there.everyone.send("end")
        await here.everyone.send("end")
        assert (await ana.receive(), await stranger.receive()) == ("end", "end")


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_publisher_says_is_for_its_own_database(hubs, urls, make, kind):
    here, there = hubs
    one, other = (make(url) for url in urls)
    async with client_of(here) as ana, client_of(there) as stranger:
        sent = await audiences(one, ana)[kind].send("mine")
        assert sent.reached == (None if kind == "channel" else 1)
        await audiences(other, stranger)[kind].send("theirs")
        assert (await ana.receive(), await stranger.receive()) == ("mine", "theirs")
        await one.everyone.send("end")
        await other.everyone.send("end")
        assert (await ana.receive(), await stranger.receive()) == ("end", "end")
    assert (here.health.foreign, there.health.foreign) == (0, 0)


async def test_nobody_of_another_database_is_counted_listed_or_reached(hubs, urls, make):
    here, there = hubs
    publisher = make(urls[0])
    async with client_of(there) as stranger:
        for asked in (here, publisher):
            for kind, audience in audiences(asked, stranger).items():
                assert await audience.connections() == []
                assert await audience.count() == 0
                assert (await audience.send("nobody is there")).reached == 0, kind
        async with client_of(here) as ana:
            for asked in (here, publisher):
                for kind, audience in audiences(asked, ana).items():
                    found = [one.id for one in await audience.connections()]
                    assert found == [ana.connection.id], kind
        await there.everyone.send("end")
        assert await stranger.receive() == "end"


@pytest.mark.parametrize("kind", KINDS)
async def test_nobody_of_another_database_is_closed(hubs, urls, make, kind):
    here, there = hubs
    publisher = make(urls[0])
    async with client_of(there) as stranger:
        for asked in (here, publisher):
            async with client_of(here) as ana:
                await audiences(asked, ana)[kind].close(4100, "maintenance")
                with pytest.raises(ConnectionClosed, match="4100 maintenance"):
                    await ana.receive()
            await audiences(asked, stranger)[kind].close(4100, "maintenance")
        await there.everyone.send("still here")
        assert await stranger.receive() == "still here"


async def test_channels_of_another_database_are_entered_and_left_by_nobody(hubs, urls, make):
    here, there = hubs
    publisher = make(urls[0])
    async with client_of(there) as stranger:
        for asked in (here, publisher):
            assert (await asked.user("ana").subscribe("boats")).reached == 0
            assert (await asked.user("ana").unsubscribe("cars")).reached == 0
        assert stranger.connection.channels == {"cars"}


# ── what is kept ──────────────────────────────────────────────────────────────────────────────


async def test_histories_of_two_databases_have_positions_of_their_own(hubs, urls, make):
    here, there = hubs
    one, other = (make(url) for url in urls)
    async with (
        here.test_client("/ws/kept:x") as ana,
        there.test_client("/ws/kept:x") as stranger,
    ):
        for n in range(3):
            await there.broadcast("kept:x", f"theirs {n}")
        for n in range(2):
            await here.broadcast("kept:x", f"mine {n}")
            await one.broadcast("kept:x", f"mine too {n}")
        await other.broadcast("kept:x", "end")
        mine = ["mine 0", "mine too 0", "mine 1", "mine too 1"]
        theirs = ["theirs 0", "theirs 1", "theirs 2", "end"]
        assert [await ana.receive() for _ in mine] == mine
        assert [await stranger.receive() for _ in theirs] == theirs
    for asked in (here, one):
        assert [entry.message for entry in await asked.channel("kept:x").history()] == mine
    for asked in (there, other):
        assert [entry.message for entry in await asked.channel("kept:x").history()] == theirs


async def test_a_ticket_of_another_database_is_worth_nothing(hubs):
    here, there = hubs
    ticket = await here.ticket("ana")
    with pytest.raises(HandshakeRefused) as refused:
        await there.test_client(f"/ws/cars?ticket={ticket}").connect()
    assert refused.value.status == 401
    async with here.test_client(f"/ws/cars?ticket={ticket}") as ana:
        assert ana.connection.user == "ana"


async def test_a_session_goes_on_in_its_own_database_only(hubs, urls):
    here, there = hubs
    async with Speaker(here, "/ws/cars?user=ana") as ana:
        await ana.hear("subscribed")
        key, id_ = ana.greeting["resume"], ana.greeting["connection"]
        second = new_hub(urls[0])
        await second.start()
        async with Speaker(there, "/ws/cars?user=ana", hello={"resume": key}) as stranger:
            assert stranger.greeting["resumed"] is False
            assert (await there.connection(id_).send("nobody is there")).reached == 0
            assert (await here.connection(id_).send("still here")).reached == 1
            assert (await ana.hear("message"))["data"] == "still here"
        await ana.drop()
        async with Speaker(second, "/ws/cars?user=ana", hello={"resume": key}) as again:
            assert (again.greeting["resumed"], again.greeting["connection"]) == (True, id_)
        await second.stop()


async def test_presence_of_another_database_is_not_seen(hubs):
    told = asyncio.Queue()
    for which, hub in zip(("here", "there"), hubs, strict=True):
        hub.on_join(functools.partial(tell, told, f"joined {which}"))
        hub.on_leave(functools.partial(tell, told, f"left {which}"))
    here, there = hubs
    async with there.test_client("/ws/seen:a?user=bob"):
        assert await told.get() == ("joined there", "seen:a", "bob")
        async with here.test_client("/ws/seen:a?user=ana"):
            assert await told.get() == ("joined here", "seen:a", "ana")
            for hub, user in ((here, "ana"), (there, "bob")):
                assert await hub.channel("seen:a").users() == [user]
                assert await hub.channel("seen:a").count_users() == 1
        assert await told.get() == ("left here", "seen:a", "ana")
    assert await told.get() == ("left there", "seen:a", "bob")


def tell(told, what, channel, user):
    told.put_nowait((what, channel, str(user)))


# ── what says which database ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://h", 0),
        ("redis://h/", 0),
        ("redis://h/0", 0),
        ("redis://h/1", 1),
        ("redis://h/01/", 1),
        ("redis://h?db=1", 1),
        ("redis://h/0?db=1", 1),
        ("rediss://h:1/12?ssl_cert_reqs=none", 12),
        ("unix:///run/a.sock", 0),
        ("unix:///run/a.sock?db=1", 1),
        ("redis+sentinel://h:1/chat", 0),
        ("redis+sentinel://h:1/chat/1?sentinel_password=x", 1),
        ("redis+sentinel://h:1,i:2/chat?db=1", 1),
        ("redis+cluster://h:1", 0),
        ("redis+cluster://h:1/0?db=0", 0),
    ],
)
def test_a_url_says_the_database(url, database):
    assert read_url(url, "Hub(broker={})").database == database


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("redis+cluster://h:1?db=1", "a cluster has no database but 0"),
        ("redis+cluster://h:1/0?db=x", "a cluster has no database but 0"),
        ("redis://h/1/2", "the path is the number of a database"),
        ("redis+sentinel://h:1/chat/1/2", "the path is the number of a database"),
    ],
)
@pytest.mark.parametrize("kind", [lambda url: Hub(broker=url), Publisher, AsyncPublisher])
def test_a_url_that_says_no_database_is_refused(kind, url, what):
    with pytest.raises(BrokerUrlError, match=what):
        kind(url)


def test_names_in_database_0_are_without_it_and_those_of_others_are_no_other_hubs():
    cars = Target("channel", "cars")
    assert Keys("chat", 0).topic(cars) == b"backchannel:chat:{c:cars}"
    assert Keys("chat", 0).about == b"backchannel:chat:about"
    assert Keys("chat", 1).topic(cars) == b"backchannel:chat:1:{c:cars}"
    assert Keys("chat", 1).about == b"backchannel:chat:1:about"


async def test_all_ways_to_write_a_database_are_the_same_one(new_redis_server, make):
    server = new_redis_server()
    with tempfile.TemporaryDirectory() as folder:  # a short path, as sockets need it
        path = f"{folder}/engine.sock"
        server.start("--unixsocket", path)
        engine = server.url.rpartition("/")[0]
        ways = [f"{engine}/1", f"{engine}?db=1", f"unix://{path}?db=1"]
        nodes = [new_hub(url) for url in (*ways, f"unix://{path}")]
        for hub in nodes:
            await hub.start()
        async with contextlib.AsyncExitStack() as stack:
            *mine, stranger = [await stack.enter_async_context(client_of(hub)) for hub in nodes]
            for way in ways:
                publisher = make(way)
                assert (await publisher.user("ana").send(way)).reached == 3
                assert [await client.receive() for client in mine] == [way] * 3
            assert (await make(f"unix://{path}?db=0").everyone.send("other")).reached == 1
            assert await stranger.receive() == "other"
            assert len(await nodes[0].user("ana").connections()) == 3
        for hub in nodes:
            await hub.stop()
