"""What nodes write about their hub: read by publishers, and never over what is another's."""

from __future__ import annotations

import asyncio
import json

import pytest
from shared import until

from backchannel import AsyncPublisher, Hub, Listener, UnsendableMessage
from backchannel.about import FORMAT, About
from backchannel.errors import BrokerUnusable

KEY = "backchannel:notices:about"


@pytest.fixture
async def new_hub(redis_server):
    """Make hubs of one name; they are stopped at the end."""
    hubs = []

    def make(**settings):
        hub = Hub(broker=redis_server.url, name="notices", **settings)
        hub.add("/ws/{channel}", Listener)
        hubs.append(hub)
        return hub

    yield make
    for hub in hubs:
        await hub.stop()


def notice(redis_server):
    with redis_server.client as engine:
        data = engine.get(KEY)
    return data and json.loads(data)


async def test_a_node_writes_at_the_start_what_holds(new_hub, redis_server):
    hub = new_hub(casefold_channels=True, max_publication=1000)
    hub.rule("Chat:{room}", history=10, ttl=60)
    hub.rule("chat:Lobby", presence=True)
    await hub.start()
    assert notice(redis_server) == {
        "backchannel": FORMAT,
        "casefold": True,
        "max_publication": 1000,
        "named": True,
        "endpoints": ["/ws/{channel}"],
        "rules": [
            {"pattern": "chat:lobby", "history": None, "ttl": None, "presence": True},
            {"pattern": "chat:{room}", "history": 10, "ttl": 60.0, "presence": False},
        ],
    }
    with redis_server.client as engine:
        about = About.read(engine.get(KEY))
    assert about.rules.keeping("chat:1") == (10, 60.0)
    assert about.rules.keeping("chat:lobby") is None
    assert about.rules.has_presence("chat:lobby")
    assert not about.rules.has_presence("chat:1")


async def test_a_rule_that_is_added_later_is_written_too(new_hub, redis_server):
    hub = new_hub()
    await hub.start()
    await asyncio.to_thread(hub.rule, "chat:{room}", history=10)
    await until(lambda: notice(redis_server)["rules"])
    hub.rule("news", history=1)
    await until(lambda: len(notice(redis_server)["rules"]) == 2)


async def test_no_rule_is_forgotten_that_is_added_while_another_is_being_written(
    new_hub, redis_server
):
    hub = new_hub()
    await hub.start()
    for count in range(1, 60):
        hub.rule(f"room-{count}", history=1)
        await until(lambda count=count: len(notice(redis_server)["rules"]) == count)


async def test_the_last_writer_wins_and_a_node_that_comes_back_is_none(new_hub, redis_server):
    old, new = new_hub(), new_hub()
    new.rule("chat:{room}", history=10)
    await old.start()
    await new.start()
    assert len(notice(redis_server)["rules"]) == 1
    with redis_server.client as engine:
        engine.config_resetstat()
        engine.client_kill_filter(_type="pubsub")
        await until(lambda: engine.info("commandstats").get("cmdstat_get", {}).get("calls") == 2)
        for hub in (old, new, old, new):  # what follows from what was read has been said then
            await hub.broadcast("cars", "on it goes")
        assert "cmdstat_set" not in engine.info("commandstats")
    assert len(notice(redis_server)["rules"]) == 1


async def test_an_engine_that_lost_it_gets_it_again(new_hub, redis_server):
    hub = new_hub()
    hub.rule("chat:{room}", history=10)
    await hub.start()
    redis_server.stop()
    await until(lambda: "away" in hub.health.broker)
    hub.rule("news", history=1)
    redis_server.start()
    await until(lambda: notice(redis_server))
    assert len(notice(redis_server)["rules"]) == 2


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (b"\x00garbage", r"it is b'\\x00garbage'"),
        (b"{}", "it is b'{}'"),
        (b'{"backchannel": 99, "new": 1}', f"it has format 99, and this version knows {FORMAT}"),
        (b'{"backchannel": 2, "rules": []}', f"it has format 2, and this version knows {FORMAT}"),
        (b'{"backchannel": 4, "rules": 5}', "it is b'{"),
        (
            (
                b'{"backchannel": 4, "casefold": false, "max_publication": 1, "named": true, '
                b'"endpoints": [], "rules": [{"pattern": "{", "history": 1, "ttl": 1.0, '
                b'"presence": false}]}'
            ),
            "malformed",
        ),
        (None, "WRONGTYPE"),
    ],
)
async def test_another_format_or_anothers_data_keeps_a_node_from_starting(
    new_hub, redis_server, found, said
):
    with redis_server.client as engine:
        if found is None:
            engine.rpush(KEY, "a list")
        else:
            engine.set(KEY, found)
        hub = new_hub()
        with pytest.raises(BrokerUnusable, match=said) as caught:
            await hub.start()
        for part in (redis_server.url, KEY, "Hub(name=…)"):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not hub.is_running
        assert found is None or engine.get(KEY) == found  # it stays as it was
        assert engine.client_list(_type="pubsub") == []  # nothing is left half-started
        engine.delete(KEY)
        await hub.start()


async def test_anothers_data_that_appears_later_is_reported_and_stays(new_hub, redis_server):
    hub = new_hub()
    await hub.start()
    with redis_server.client as engine:
        engine.set(KEY, b"garbage")
        hub.rule("news", history=1)
        await until(lambda: hub.health.problems)
        assert KEY in hub.health.problems[0]
        assert engine.get(KEY) == b"garbage"


# ── another application's hub ─────────────────────────────────────────────────────────────────

UNNAMED = "backchannel:hub:about"


@pytest.fixture
async def new_app(redis_server):
    """Make hubs of applications with the given URLs; they are stopped at the end."""
    hubs = []

    def make(*templates, **settings):
        hub = Hub(broker=redis_server.url, **settings)
        for template in templates:
            hub.add(template, Listener)
        hubs.append(hub)
        return hub

    yield make
    for hub in hubs:
        await hub.stop()


@pytest.mark.parametrize(
    ("first", "second"),
    [({}, {}), ({"name": "hub"}, {}), ({}, {"name": "hub"})],
    ids=["both unnamed", "the first is named", "the second is named"],
)
async def test_another_applications_hub_under_the_same_name_is_refused(
    new_app, redis_server, first, second
):
    await new_app("/shop", "/orders/{id}", **first).start()
    with redis_server.client as engine:
        found = engine.get(UNNAMED)
        chat = new_app("/ws/chat/{channel}", **second)
        with pytest.raises(BrokerUnusable) as caught:
            await chat.start()
        for part in (
            redis_server.url, UNNAMED, "/orders/{id}, /shop", "/ws/chat/{channel}", "Hub(name=…)",
        ):  # fmt: skip
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)
        assert engine.get(UNNAMED) == found
        assert len(engine.client_list(_type="pubsub")) == 1
        engine.delete(UNNAMED)  # as the error says
    await chat.start()


async def test_who_says_the_same_name_twice_means_it(new_app):
    await new_app("/shop", name="both").start()
    await new_app("/ws/chat", name="both").start()


async def test_hubs_with_names_of_their_own_never_meet(new_app):
    await new_app("/shop").start()
    await new_app("/ws/chat", name="chat").start()


async def test_nodes_of_one_hub_need_one_url_in_common(new_app, redis_server):
    """So that in a deploy URLs come and go, one version after the other."""
    await new_app("/old").start()
    await new_app("/old", "/new").start()
    await new_app("/new").start()
    with redis_server.client as engine:
        assert json.loads(engine.get(UNNAMED))["endpoints"] == ["/new"]
    with pytest.raises(BrokerUnusable, match="/new"):
        await new_app("/old").start()


async def test_a_variable_of_another_name_is_the_same_url(new_app):
    await new_app("/ws/{room}").start()
    await new_app("/ws/{channel}").start()


async def test_of_many_endpoints_a_few_are_named(new_app):
    await new_app(*[f"/ws/{number:03}" for number in range(100)]).start()
    with pytest.raises(BrokerUnusable, match=r"/ws/000, /ws/001, .* and 95 more") as caught:
        await new_app("/chat").start()
    assert "/ws/005" not in str(caught.value)


async def test_a_hub_whose_endpoints_come_later_is_known_by_then(new_app, redis_server):
    """Before that it leaves standing what tells others from it."""
    await new_app("/shop").start()
    chat = new_app(max_publication=1000)
    await chat.start()
    with redis_server.client as engine:
        found = json.loads(engine.get(UNNAMED))
        assert (found["endpoints"], found["max_publication"]) == (["/shop"], 1000)
        await asyncio.to_thread(chat.add, "/ws/chat", Listener)
        await until(lambda: chat.health.problems)
        for part in (UNNAMED, "/shop", "/ws/chat", "Hub(name=…)"):
            assert part in chat.health.problems[0]
        assert json.loads(engine.get(UNNAMED)) == found


async def test_endpoints_that_come_later_are_written(new_app, redis_server):
    hub = new_app()
    await hub.start()
    with redis_server.client as engine:
        assert json.loads(engine.get(UNNAMED))["endpoints"] == []
        for number in range(3):
            hub.add(f"/ws/{number}", Listener)
        await until(lambda: len(json.loads(engine.get(UNNAMED))["endpoints"]) == 3)
    with pytest.raises(BrokerUnusable, match="/ws/0, /ws/1, /ws/2"):
        await new_app("/shop").start()
    assert hub.health.problems == ()


async def test_of_two_applications_that_start_at_the_same_time_one_is_refused(new_app):
    shop, chat = new_app("/shop"), new_app("/chat")
    done = await asyncio.gather(shop.start(), chat.start(), return_exceptions=True)
    assert {type(one) for one in done} == {BrokerUnusable, type(None)}


async def test_another_applications_notice_does_not_concern_publishers(new_app, redis_server):
    hub = new_app("/shop")
    async with hub.test_client("/shop", user="ana") as client:
        with pytest.raises(BrokerUnusable):
            await new_app("/chat").start()
        async with AsyncPublisher(redis_server.url) as publisher:
            assert (await publisher.user("ana").send("hello")).reached == 1
        assert await client.receive() == "hello"


# ── what is too large ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("message", [b"x" * 1001, "x" * 1001, "ü" * 501, ["x" * 1000]])
async def test_what_is_too_large_for_the_broker_raises_at_the_call(new_hub, message):
    hub = new_hub(max_publication=1000)
    async with hub.test_client("/ws/cars") as client:
        for send in (
            lambda: hub.broadcast("cars", message),
            lambda: hub.user("ana").send(message),
            lambda: client.connection.broadcast(message),
        ):
            with pytest.raises(UnsendableMessage, match="may have max_publication=1000"):
                send()
        client.connection.send(message)  # stays here
        await client.receive()
        await hub.broadcast("cars", "ü" * 500)
        assert await client.receive() == "ü" * 500


async def test_in_one_process_nothing_is_too_large(hub_in_one_process):
    async with hub_in_one_process.test_client("/ws/cars") as client:
        hub_in_one_process.broadcast("cars", b"x" * 2000)
        assert len(await client.receive()) == 2000


@pytest.fixture
async def hub_in_one_process():
    hub = Hub(max_publication=1000, max_outbox=10_000)
    hub.add("/ws/{channel}", Listener)
    yield hub
    await hub.stop()


async def test_as_much_as_is_admitted_gets_through_an_engine_as_it_comes(new_hub):
    """Engines hang up on a node whose replies wait for it: 32 MiB, unless they are told otherwise."""
    hub, other = new_hub(max_outbox=1 << 26), new_hub(max_outbox=1 << 26)
    await other.start()
    async with hub.test_client("/ws/cars") as client:
        await other.broadcast("cars", b"x" * other.settings.max_publication)
        assert len(await client.receive()) == 16 * 1024 * 1024
        await other.broadcast("cars", "and on it goes")
        assert await client.receive() == "and on it goes"
    assert hub.health.problems == other.health.problems == ()


async def test_two_of_one_name_with_no_endpoint_in_common_are_warned_of_once(redis_server, caplog):
    """By their own word they are one hub: both start."""
    shop, games = (Hub(broker=redis_server.url, name="chat") for _ in range(2))
    shop.add("/shop/{channel}", Listener)
    games.add("/games/{channel}", Listener)
    await shop.start()
    assert caplog.records == []
    await games.start()
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    for words in ("/shop/{channel}", "/games/{channel}", "'chat'", "a name of its own"):
        assert words in warning.getMessage()
    games.rule("kept:{name}", history=10)  # which is told to others
    with redis_server.client as engine:
        await until(lambda: b"kept:" in engine.get("backchannel:chat:about"))
    assert caplog.records == [warning]
    same = Hub(broker=redis_server.url, name="chat")
    same.add("/games/{room}", Listener)
    await same.start()
    assert caplog.records == [warning]
    for hub in (shop, games, same):
        await hub.stop()
