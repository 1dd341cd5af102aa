"""What waits for an engine, and what goes through it, is bounded in bytes: all of it counts."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from shared import until

from backchannel import AsyncPublisher, Hub, Listener
from backchannel.broker.redis import parcel
from backchannel.contracts import Publication, Target
from backchannel.errors import BrokerUnavailable, UnsendableMessage


@pytest.fixture
async def node():
    """Start nodes of one application: ``await node(url)``."""
    hubs = []

    async def start(url, **settings):
        hub = Hub(broker=url, name="bounds", **settings)
        hub.rule("kept:{name}", history=1000)
        hub.add("/ws/{channel}", Listener)
        hubs.append(hub)
        await hub.start()
        return hub

    yield start
    for hub in hubs:
        await hub.stop()


@pytest.fixture
def hanging(redis_server):
    """Let the engine hang while its connections stand: ``hanging()``; and go on: ``hanging(False)``."""

    def hang(is_so=True):
        os.kill(redis_server.pid, signal.SIGSTOP if is_so else signal.SIGCONT)

    yield hang
    hang(is_so=False)


async def refused(sent):
    """Tell which of what was sent could not wait too, and at once."""
    found = []
    for one in sent:
        async with asyncio.timeout(1):
            try:
                await one
            except BrokerUnavailable as error:
                found.append(str(error))
    return found


@pytest.mark.parametrize("channel", ["cars", "kept:cars"])
async def test_what_an_engine_that_hangs_has_not_answered_is_bounded_in_bytes(
    node, redis_server, hanging, channel
):
    hub = await node(redis_server.url, max_unsent=100_000, broker_timeout=60.0)
    async with hub.test_client(f"/ws/{channel}") as client:
        hanging()
        sent = []
        for number in range(30):
            sent.append(hub.broadcast(channel, f"{number} ".ljust(10_000, "x")))
            await asyncio.sleep(0)  # each has a turn of its own, at whose end it leaves
            await asyncio.sleep(0)
            assert hub._broker._route.pending <= 100_000
        problems = await refused(sent[9:])
        assert len(problems) == 21
        assert "has not answered 91800 bytes" in problems[0]
        assert "max_unsent=100000" in problems[0]
        hanging(False)
        heard = [(await client.receive()).split()[0] for _ in range(9)]
        assert heard == [str(number) for number in range(9)]
        assert await refused(sent[:9]) == []
        assert hub._broker._route.pending == 0
        await hub.broadcast(channel, "y" * 200_000)  # one always fits
        assert len(await client.receive()) == 200_000


async def test_what_waits_is_counted_in_bytes_and_not_in_characters(node, cable):
    hub = await node(cable.url, max_unsent=50_000, broker_timeout=60.0)
    cable.cut()
    await until(lambda: "away" in hub.health.broker)
    sent = [hub.broadcast("cars", "\N{GRINNING FACE}" * 2500) for _ in range(10)]
    assert len(await refused(sent[4:])) == 6
    cable.mend()
    assert await refused(sent[:4]) == []


async def test_whom_what_waits_is_for_counts_too(node, cable):
    hub = await node(cable.url, max_unsent=70_000, broker_timeout=60.0)
    cable.cut()
    await until(lambda: "away" in hub.health.broker)
    blocked = [hub.user(f"user number {number}") for number in range(1000)]  # more than 20 KB
    sent = [hub.broadcast("cars", "hi", exclude=blocked) for _ in range(3)]
    sent += [hub.broadcast("cars", "hi", to=blocked) for _ in range(3)]
    assert len(await refused(sent[2:])) == 4
    cable.mend()
    assert await refused(sent[:2]) == []


async def test_the_words_of_a_question_that_waits_count_too(node, cable):
    hub = await node(cable.url, max_unsent=50_000, broker_timeout=60.0)
    cable.cut()
    await until(lambda: "away" in hub.health.broker)
    asking = [asyncio.create_task(hub.user("\N{GRINNING FACE}" * 2500).count()) for _ in range(10)]
    done, pending = await asyncio.wait(asking, timeout=1)
    assert len(done) == 6
    assert all("50000 bytes" in str(one.exception()) for one in done)
    cable.mend()
    assert await asyncio.gather(*pending) == [0] * 4


async def test_an_engine_that_gives_no_sign_of_life_is_told_of_in_health(
    node, redis_server, hanging
):
    hub = await node(redis_server.url, broker_timeout=60.0)
    hanging()
    await until(lambda: "has not answered for" in hub.health.broker)
    assert redis_server.url in hub.health.broker
    assert hub.health.ready  # it may be busy
    hanging(False)
    await until(lambda: hub.health.broker == f"connected to {redis_server.url}")


# ── what is too large ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", ["to", "exclude"])
async def test_whom_a_message_is_for_counts_towards_what_is_too_large(node, redis_server, verb):
    hub = await node(redis_server.url, max_publication=10_000)
    many = [hub.user(f"user number {number}") for number in range(50_000)]
    with redis_server.client as engine:
        before = engine.info("stats")["total_net_input_bytes"]
        with pytest.raises(
            UnsendableMessage, match=r"2 bytes long, but to= and exclude= take \d{7} bytes more"
        ) as caught:
            hub.broadcast("cars", "hi", **{verb: many})
        assert "max_publication=10000: name fewer, or send to a channel" in str(caught.value)
        assert engine.info("stats")["total_net_input_bytes"] - before < 10_000
    async with hub.test_client("/ws/cars?") as client:
        exclude = [hub.user(str(number)) for number in range(400)]  # up to 8 KB: they fit
        await hub.broadcast("cars", "hi", exclude=exclude)
        assert await client.receive() == "hi"
        with pytest.raises(UnsendableMessage, match="exclude="):
            hub.broadcast("cars", "x" * 9000, exclude=exclude)
        with pytest.raises(UnsendableMessage, match="is 10001 bytes long, and what goes through"):
            hub.broadcast("cars", "x" * 10_001, exclude=exclude)


@pytest.mark.parametrize("users", ["user number", "\N{GRINNING FACE} number"])
async def test_what_is_counted_of_those_it_is_for_is_not_less_than_what_travels(
    node, redis_server, users
):
    hub = await node(redis_server.url)
    many = [hub.user(f"{users} {number}") for number in range(1000)]
    many += [hub.session(f"{users} {number}") for number in range(1000)]
    many += [hub.connection(f"{hub.node}.{number}") for number in range(1000)]
    publication = Publication(
        Target("channel", "cars"), "hi", tuple(one.target for one in many), (many[0].target,)
    )
    travels = len(parcel.pack(publication))
    assert travels - 100 <= publication.audience_size <= 2 * travels


async def test_publishers_count_whom_a_message_is_for_too(node, redis_server):
    await node(redis_server.url, max_publication=10_000)
    async with AsyncPublisher(redis_server.url, hub="bounds") as publisher:
        many = [publisher.user(f"user number {number}") for number in range(1000)]
        with pytest.raises(UnsendableMessage, match="to= and exclude= take"):
            await publisher.broadcast("cars", "hi", exclude=many)
