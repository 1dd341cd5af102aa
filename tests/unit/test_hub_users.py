"""Users: who is online, from the first device to the last."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading

from shared import Room

from backchannel import (
    Listener,
    Reject,
    threaded,
)

# ── users ─────────────────────────────────────────────────────────────────────────────────────


def presence(hub, style):
    told = []
    if style == "async def":

        @hub.on_user_online
        async def online(user):
            await asyncio.sleep(0)
            told.append(f"{user} online")

        @hub.on_user_offline
        async def offline(user):
            await asyncio.sleep(0)
            told.append(f"{user} offline")

    else:

        def online(user):
            told.append(f"{user} online")
            threads.append(threading.get_ident())

        def offline(user):
            told.append(f"{user} offline")

        mark = threaded if style == "threaded" else lambda function: function
        assert hub.on_user_online(mark(online)) is online
        hub.on_user_offline(mark(offline))
    threads = []
    return told, threads


async def test_a_user_is_online_from_the_first_device_to_the_last(hub, style):
    told, threads = presence(hub, style)
    hub.add("/a", Room)
    hub.add("/b", Room)
    async with hub.test_client("/a", user="ana"):
        assert told == ["ana online"]
        async with hub.test_client("/b", user="ana"), hub.test_client("/a", user="bob"):
            assert told == ["ana online", "bob online"]
        assert told == ["ana online", "bob online", "bob offline"]
    assert told == ["ana online", "bob online", "bob offline", "ana offline"]
    async with hub.test_client("/a"):
        pass
    assert len(told) == 4
    if style != "async def":
        assert all((ident == threading.get_ident()) == (style == "def") for ident in threads)


async def test_who_is_refused_never_was_online(hub, style):
    told, _ = presence(hub, style)

    class Closed(Listener):
        def on_open(self, ws):
            return Reject("no")

    class Guarded(Listener):
        def on_subscribe(self, ws, channel):
            return False

    hub.add("/a", Closed)
    hub.add("/b/{channel}", Guarded)
    await hub.test_client("/a", user="ana").connect()
    await hub.test_client("/b/cars", user="ana").connect()
    assert told == []


async def test_online_and_offline_balance_when_the_client_leaves_meanwhile(hub):
    told, began, go = [], asyncio.Event(), asyncio.Event()

    @hub.on_user_online
    async def online(user):
        began.set()
        await go.wait()
        told.append("online")

    @hub.on_user_offline
    def offline(user):
        told.append("offline")

    hub.add("/ws", Room)
    ws = await hub.test_client("/ws", user="ana").connect(wait=False)
    await began.wait()
    leaving = asyncio.create_task(ws.drop())
    for _ in range(10):
        await asyncio.sleep(0)
    go.set()
    await leaving
    assert told == ["online", "offline"]


async def test_a_user_who_comes_online_may_be_subscribed_and_waited_for(hub):
    """On all devices, also those that come meanwhile."""
    entered = []

    @hub.on_user_online
    async def online(user):
        await asyncio.sleep(0)
        entered.append((await hub.user(user).subscribe(f"inbox:{user}")).reached)

    hub.add("/ws", Room)
    one = await hub.test_client("/ws", user="ana").connect(wait=False)
    two = await hub.test_client("/ws", user="ana").connect(wait=False)
    await asyncio.wait_for(asyncio.gather(one.settled(), two.settled()), 5)
    assert entered in ([1], [2])
    assert hub.channels() == {"inbox:ana": entered[0]}
    await one.close()
    await two.close()


async def test_who_listens_late_for_users_hears_of_those_that_come_then(hub):
    hub.add("/ws", Room)
    early = await hub.test_client("/ws", user="ana").connect()
    told, _ = presence(hub, "def")
    late = await hub.test_client("/ws", user="ana").connect()
    await early.close()
    assert told == ["ana online"]
    await late.close()
    assert told == ["ana online", "ana offline"]


async def test_a_user_callback_that_raises_is_logged_and_keeps_nobody_away(hub, caplog):
    @hub.on_user_online
    def online(user):
        raise ValueError("boom")

    hub.on_user_offline(functools.partial(lambda word, user: 1 / 0, "x"))
    hub.add("/ws", Room)
    async with hub.test_client("/ws", user="ana") as ws:
        assert ws.connection.is_open
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert "ValueError" in errors[0]
    assert "ZeroDivisionError" in errors[1]
