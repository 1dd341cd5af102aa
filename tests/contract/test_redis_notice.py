"""What nodes write about their hub: read by publishers, and never over what is another's."""

from __future__ import annotations

import asyncio
import json

import pytest

from backchannel import Hub, Listener, UnsendableMessage
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


async def until(is_so, seconds=10):
    """Wait for what nothing tells of."""
    async with asyncio.timeout(seconds):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_node_writes_at_the_start_what_holds(new_hub, redis_server):
    hub = new_hub(casefold_channels=True, max_publication=1000)
    hub.rule("Chat:{room}", history=10, ttl=60)
    hub.rule("chat:Lobby")
    await hub.start()
    assert notice(redis_server) == {
        "backchannel": FORMAT,
        "casefold": True,
        "max_publication": 1000,
        "rules": [
            {"pattern": "chat:lobby", "history": None, "ttl": None},
            {"pattern": "chat:{room}", "history": 10, "ttl": 60.0},
        ],
    }
    with redis_server.client as engine:
        about = About.read(engine.get(KEY))
    assert about.rules.keeping("chat:1") == (10, 60.0)
    assert about.rules.keeping("chat:lobby") is None


async def test_a_rule_that_is_added_later_is_written_too(new_hub, redis_server):
    hub = new_hub()
    await hub.start()
    await asyncio.to_thread(hub.rule, "chat:{room}", history=10)
    await until(lambda: notice(redis_server)["rules"])
    hub.rule("news", history=1)
    await until(lambda: len(notice(redis_server)["rules"]) == 2)


async def test_the_last_writer_wins_and_a_node_that_comes_back_is_none(new_hub, redis_server):
    old, new = new_hub(), new_hub()
    new.rule("chat:{room}", history=10)
    await old.start()
    await new.start()
    assert len(notice(redis_server)["rules"]) == 1
    with redis_server.client as engine:
        engine.config_resetstat()
        engine.client_kill_filter(_type="pubsub")
        await until(lambda: engine.info("commandstats").get("cmdstat_set", {}).get("calls") == 2)
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
        (b'{"backchannel": 1, "rules": 5}', "it is b'{"),
        (
            (
                b'{"backchannel": 1, "casefold": false, "max_publication": 1, '
                b'"rules": [{"pattern": "{", "history": 1, "ttl": 1.0}]}'
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
