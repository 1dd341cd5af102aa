"""Nothing stays behind, however many come and go and whatever fails."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import tracemalloc

import pytest
from shared import heard, to_all

from backchannel import (
    Hub,
    Listener,
    Reject,
)
from backchannel.testing import ConnectionClosed

# ── nothing stays behind ──────────────────────────────────────────────────────────────────────


class Failing(Listener):
    """Fails in all the ways there are, by the number in the URL."""

    opened = 0
    closed = 0

    def on_first_open(self, hub):
        pass

    def on_open(self, ws):
        Failing.opened += 1
        number = ws.params["number"]
        ws.state.junk = "x" * 100
        if number == 1:
            raise ValueError
        if number == 2:
            return Reject("no")
        return None

    async def on_subscribe(self, ws, channel):
        if ws.params["number"] == 3:
            return False
        if ws.params["number"] == 4:
            raise ValueError
        return None

    async def on_message(self, ws, message):
        if ws.params["number"] == 5:
            raise ValueError
        if ws.params["number"] == 6:
            ws.close(4100)
        if ws.params["number"] == 7:
            ws.spawn(asyncio.Event().wait())
            await asyncio.Event().wait()
        await ws.subscribe(f"more {message}")

    def on_close(self, ws, reason):
        Failing.closed += 1
        if ws.params["number"] == 8:
            raise ValueError


async def _one_after_the_other(hub, count):
    for number in range(count):
        kind = number % 10
        client = await hub.test_client(f"/ws/{kind}/{number % 7}", user=f"u{number % 11}").connect()
        if client.closed is None:
            await client.send(str(number))
            if kind == 9:
                await client.drop()
        await client.close()


async def test_ten_thousand_connects_and_disconnects_leave_nothing_behind(caplog):
    hub = Hub()
    hub.on_user_online(lambda user: None)
    hub.on_user_offline(lambda user: None)
    hub.add("/ws/{number:int}/{room}", Failing, channel="room:{room}")
    caplog.set_level(logging.CRITICAL + 1, logger="backchannel")
    Failing.opened = Failing.closed = 0
    await _one_after_the_other(hub, 500)  # what is made once is made
    gc.collect()
    objects, tasks = len(gc.get_objects()), len(asyncio.all_tasks())
    await _one_after_the_other(hub, 8_000)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    await _one_after_the_other(hub, 1_500)  # tracing is slow
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert Failing.opened == Failing.closed == 10_000
    assert len(asyncio.all_tasks()) == tasks
    assert hub.channels() == {}
    assert await hub.everyone.count() == 0
    assert hub.health.connections == hub.health.channels == 0
    assert len(hub.dispatches) == 0
    assert len(hub.membership._channels) == 0
    assert hub.presence._users == {}
    assert len(gc.get_objects()) - objects < 500
    assert after - before < 100_000
    assert hub.health.problems == ()
    await hub.stop()


async def test_an_idle_connection_has_no_task(hub, diary):
    hub.add("/ws/{channel}", diary.listener("async def"))
    clients = [await hub.test_client("/ws/cars").connect() for _ in range(10)]
    assert asyncio.all_tasks() == {asyncio.current_task()}
    for client in clients:
        await client.close()


async def test_a_crowd_that_comes_and_goes_at_once_balances(hub, diary):
    hub.add("/ws/{channel}", diary.listener("async def"))

    async def visit(number):
        client = await hub.test_client(f"/ws/{number % 4}").connect(wait=number % 2 == 0)
        if number % 3:
            await client.drop()
        else:
            await client.close()
            with pytest.raises(ConnectionClosed):
                await client.send("too late")

    await asyncio.gather(*(visit(number) for number in range(200)))
    assert diary.count_of("on_open") == diary.count_of("on_close")
    assert diary.count_of("on_first_open") == diary.count_of("on_last_close")
    assert diary.count_of("on_channel_open") == diary.count_of("on_channel_close")
    assert hub.channels() == {}


async def test_one_receivers_failure_never_affects_another(hub, room):
    class Broken:
        closed = None
        apart = True

        def push(self, frame, channel=None):
            return False

        def close(self, code, reason):
            """Its client is gone."""

    room["ana1"].connection._link = Broken()
    assert hub.broadcast("cars", "hi").reached == 2
    assert heard(room) == to_all("bob anonymous")


async def test_a_future_of_another_thread_is_no_deadlock_for_the_loop(hub, room):
    """Many threads wait for results while the loop goes on."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        loop = asyncio.get_running_loop()
        work = [
            loop.run_in_executor(pool, lambda: hub.broadcast("cars", "x").result(5).reached)
            for _ in range(64)
        ]
        assert await asyncio.gather(*work) == [3] * 64
