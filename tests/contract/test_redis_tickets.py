"""One-time tickets with an engine between the nodes: made at one, good at all, used once."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from backchannel import Hub, Listener
from backchannel.errors import BrokerUnavailable
from backchannel.testing import HandshakeRefused

NOT_VALID = (401, "The ticket is not valid: unknown, used already, or expired.")
LATER = (503, "Tickets can't be read at the moment. Try again in a few seconds.")


@pytest.fixture
async def hubs(redis_server):
    """Two nodes of one hub."""
    both = [Hub(broker=redis_server.url, name="tickets", broker_timeout=1.0) for _ in range(2)]
    for hub in both:
        hub.add("/ws", Listener)
        await hub.start()
    yield both
    for hub in both:
        await hub.stop()


async def answer(hub, ticket):
    """Connect with a ticket; return who came in, or how it was refused."""
    try:
        async with hub.test_client(f"/ws?ticket={ticket}") as client:
            return client.connection.user
    except HandshakeRefused as refused:
        return refused.status, refused.text


async def test_a_ticket_of_one_node_is_good_at_another_and_once(hubs):
    one, other = hubs
    ticket = await one.ticket(42)
    assert await answer(other, ticket) == "42"
    for hub in hubs:
        assert await answer(hub, ticket) == NOT_VALID


async def test_of_many_that_bring_it_to_all_nodes_at_once_one_gets_in(hubs):
    for _ in range(20):
        ticket = await hubs[0].ticket("ana")
        answers = await asyncio.gather(*(answer(hub, ticket) for hub in hubs * 3))
        assert sorted(answers, key=str) == [NOT_VALID] * 5 + ["ana"]


async def test_the_engine_sees_neither_the_ticket_nor_keeps_it_longer_than_its_ttl(
    hubs, redis_server
):
    ticket = await hubs[0].ticket("ana", ttl=30)
    with redis_server.client as engine:
        (key,) = engine.keys("backchannel:tickets:{t:*")
        assert ticket.encode() not in key + engine.get(key)
        assert 25_000 < engine.pttl(key) <= 30_000


async def test_a_ticket_of_a_hub_of_another_name_is_worth_nothing(hubs, redis_server):
    stranger = Hub(broker=redis_server.url, name="others")
    ticket = await stranger.ticket("ana")
    assert await answer(hubs[0], ticket) == NOT_VALID
    await stranger.stop()


async def test_asking_for_a_ticket_may_be_the_first_use_of_a_hub(redis_server):
    hub = Hub(broker=redis_server.url, name="tickets")
    hub.add("/ws", Listener)
    ticket = await hub.ticket("ana")
    assert hub.is_running
    assert await answer(hub, ticket) == "ana"
    await hub.stop()


async def test_while_the_engine_is_away_handshakes_with_tickets_are_refused_for_now(
    hubs, redis_server, caplog
):
    ticket = await hubs[0].ticket("ana")
    redis_server.stop()
    assert await answer(hubs[0], ticket) == LATER
    with pytest.raises(BrokerUnavailable):
        await hubs[0].ticket("ana")
    assert ticket not in caplog.text


async def test_an_engine_that_hangs_refuses_in_time(hubs, redis_server):
    ticket = await hubs[0].ticket("ana")
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        assert await asyncio.wait_for(answer(hubs[0], ticket), 5) == LATER
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)


async def test_what_else_stands_where_a_ticket_would_is_no_ticket(hubs, redis_server, caplog):
    ticket = await hubs[0].ticket("ana")
    with redis_server.client as engine:
        (key,) = engine.keys("backchannel:tickets:{t:*")
        engine.set(key, b"nonsense")
    assert (await answer(hubs[0], ticket))[0] == 500
    assert "error id" in caplog.text


async def test_a_ticket_asked_for_in_another_event_loop_is_a_clear_error(hubs):
    def elsewhere():
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(hubs[0].ticket("ana"))

    await asyncio.to_thread(elsewhere)
