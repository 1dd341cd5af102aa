"""A hub that drains: who is ended when, and what is done before."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import time

import pytest

from backchannel import Hub, Listener
from backchannel.testing import HandshakeRefused


@pytest.fixture
def hub():
    return Hub()


@pytest.fixture
def log(hub):
    log = []

    @hub.endpoint("/ws/{channel}")
    class Room(Listener):
        async def on_message(self, ws, message: str):
            if message == "work":
                log.append("begun")
                await asyncio.sleep(0.2)
                ws.broadcast("worked")
            elif message == "hang":
                log.append("begun")
                await asyncio.Event().wait()
            else:
                ws.broadcast(message)

        def on_close(self, ws, reason):
            log.append(reason.code)

    return log


async def until(is_so):
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_callback_that_outlasts_the_time_is_no_error_of_ours(hub, log, caplog):
    async with hub.test_client("/ws/a") as client:
        await client.send("hang")
        await until(lambda: log)
        await hub.stop(1012, drain=0.05, timeout=0.2)
    gc.collect()  # what nobody asked for is logged then
    assert [one for one in caplog.records if one.name == "asyncio"] == []


async def test_connections_end_over_the_time_given(hub, log):
    async with contextlib.AsyncExitStack() as stack:
        for n in range(40):
            await stack.enter_async_context(hub.test_client(f"/ws/{n}"))
        began = time.monotonic()
        stopping = asyncio.create_task(hub.stop(1012, drain=1.0))
        await until(lambda: log)
        assert hub.health.connections > 0, "all at once"
        assert not hub.health.running
        assert not hub.health.ready
        await stopping
        assert 0.4 < time.monotonic() - began < 2
    assert log == [1012] * 40


async def test_newcomers_are_refused_at_once_and_those_who_are_in_are_served(hub, log):
    async with hub.test_client("/ws/a") as client:
        stopping = asyncio.create_task(hub.stop(1012, drain=600))
        await until(lambda: hub.is_leaving)
        with pytest.raises(HandshakeRefused) as refused:
            await hub.test_client("/ws/a").connect()
        assert refused.value.status == 503
        await client.send("still served")
        assert await client.receive() == "still served"
        await hub.stop()
        assert stopping.done()
    assert log == [1012]


async def test_what_was_begun_comes_to_its_end(hub, log):
    async with hub.test_client("/ws/a") as client:
        await client.send("work")
        await client.send("and more")
        await until(lambda: log)
        await hub.stop(1012, drain=5)
        assert await client.receive() == "worked"
        assert await client.receive() == "and more"
    assert log == ["begun", 1012]


async def test_what_never_ends_is_cancelled_in_time(hub, log):
    async with hub.test_client("/ws/a") as client:
        await client.send("hang")
        await until(lambda: log)
        began = time.monotonic()
        await hub.stop(1012, drain=0.3)
        assert 0.25 < time.monotonic() - began < 1.5
    assert log == ["begun", 1012]


async def test_stopping_again_hurries_also_while_a_callback_runs(hub, log):
    async with hub.test_client("/ws/a") as client:
        await client.send("hang")
        await until(lambda: log)
        stopping = asyncio.create_task(hub.stop(1012, drain=600))
        await until(lambda: hub.is_leaving)
        another = asyncio.create_task(hub.stop(drain=600))  # asks for no hurry
        began = time.monotonic()
        await hub.stop()
        assert time.monotonic() - began < 2
        await asyncio.gather(stopping, another)
    assert log == ["begun", 1012]


async def test_nobody_is_waited_for_where_nobody_is(hub, log):
    await hub.start()
    began = time.monotonic()
    await hub.stop(drain=600)
    assert time.monotonic() - began < 1
    assert log == []


async def test_a_hub_that_drained_starts_again(hub, log):
    async with hub.test_client("/ws/a"):
        await hub.stop(drain=0.1)
    await hub.start()
    async with hub.test_client("/ws/a") as client:
        assert hub.health.ready
        await client.send("again")
        assert await client.receive() == "again"
    await hub.stop()
    assert log == [1001, 1000]


@pytest.mark.parametrize("drain", [-1, math.nan, math.inf])
async def test_a_drain_that_is_no_time_is_refused(hub, drain):
    await hub.start()
    with pytest.raises(ValueError, match="drain= is 0 seconds or more and at most a day, not"):
        await hub.stop(drain=drain)
    assert hub.health.running
    await hub.stop()
