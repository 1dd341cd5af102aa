"""A connection's life: its callbacks' order, what `on_open` sends and refuses, first and last."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from shared import turns

from backchannel import Hub, Listener, Reject
from backchannel.testing import ConnectionClosed

# ── a life ────────────────────────────────────────────────────────────────────────────────────


async def test_a_life_runs_in_its_order(hub, diary, style):
    hub.add("/ws/{channel}", diary.listener(style))
    async with hub.test_client("/ws/cars") as ws:
        await ws.send("hello")
        await ws.settled()
        assert diary[-1] == "on_message hello"
    assert diary == [
        "on_handshake",
        "on_first_open",
        "on_open",
        "on_channel_open cars",
        "on_subscribe cars",
        "on_message hello",
        "on_close 1000",
        "on_unsubscribe cars",
        "on_channel_close cars",
        "on_last_close",
    ]


async def test_a_second_life_beside_the_first_opens_and_closes_nothing_shared(hub, diary, style):
    hub.add("/ws/{channel}", diary.listener(style))
    async with hub.test_client("/ws/cars"):
        diary.clear()
        async with hub.test_client("/ws/cars"):
            pass
        assert diary == [
            "on_handshake",
            "on_open",
            "on_subscribe cars",
            "on_close 1000",
            "on_unsubscribe cars",
        ]


async def test_without_a_channel_in_the_url_nothing_is_subscribed(hub, diary, style):
    hub.add("/ws", diary.listener(style))
    async with hub.test_client("/ws") as ws:
        assert ws.connection.channels == frozenset()
    assert diary == ["on_handshake", "on_first_open", "on_open", "on_close 1000", "on_last_close"]


async def test_a_listener_without_callbacks_lives_too(hub):
    hub.add("/ws/{channel}", Listener)
    async with hub.test_client("/ws/cars") as ws:
        await ws.send("hello")
        assert hub.channels() == {"cars": 1}
        assert ws.received() == []
    assert hub.channels() == {}


async def test_first_open_and_last_close_are_per_endpoint(hub, diary, style):
    hub.add("/a", diary.listener(style))
    hub.add("/b", diary.listener(style))
    async with hub.test_client("/a"), hub.test_client("/b"), hub.test_client("/a"):
        assert diary.count_of("on_first_open") == 2
    assert diary.count_of("on_last_close") == 2
    async with hub.test_client("/a"):
        assert diary.count_of("on_first_open") == 3
    assert diary.count_of("on_last_close") == 3


async def test_first_open_and_last_close_get_the_hub(hub):
    seen = []

    class Kept(Listener):
        def on_first_open(self, hub):
            seen.append(hub)

        async def on_last_close(self, hub):
            seen.append(hub)

    hub.add("/ws", Kept)
    async with hub.test_client("/ws"):
        pass
    assert seen == [hub, hub]


# ── what on_open sends ────────────────────────────────────────────────────────────────────────


async def test_what_on_open_sends_waits_until_the_subscription_is_in_force(hub):
    asked, go = asyncio.Event(), asyncio.Event()

    class Chat(Listener):
        def on_open(self, ws):
            assert ws.send("welcome").reached == 1

        async def on_subscribe(self, ws, channel):
            asked.set()
            await go.wait()

    hub.add("/ws/{channel}", Chat)
    ws = await hub.test_client("/ws/cars").connect(wait=False)
    await asked.wait()
    assert ws.received() == []
    assert hub.channels() == {}
    go.set()
    assert await ws.receive() == "welcome"
    assert hub.channels() == {"cars": 1}
    await ws.close()


async def test_a_refused_subscription_drops_what_on_open_sent(hub, style, diary):
    hub.add(
        "/ws/{channel}",
        diary.listener(
            style, on_open=lambda ws: ws.send("welcome") and None, on_subscribe=lambda *_: False
        ),
    )
    ws = await hub.test_client("/ws/cars").connect()
    with pytest.raises(ConnectionClosed) as closed:
        await ws.receive()
    assert closed.value.code == 1008


async def test_a_refusing_on_open_drops_what_it_sent(hub):
    class Chat(Listener):
        def on_open(self, ws):
            ws.send("welcome")
            return False

    hub.add("/ws/{channel}", Chat)
    ws = await hub.test_client("/ws/cars").connect()
    with pytest.raises(ConnectionClosed):
        await ws.receive()


async def test_a_hub_that_stops_before_the_subscription_drops_the_welcome(hub):
    asked = asyncio.Event()

    class Chat(Listener):
        def on_open(self, ws):
            ws.send("welcome")

        async def on_subscribe(self, ws, channel):
            asked.set()
            await asyncio.Event().wait()

    hub.add("/ws/{channel}", Chat)
    ws = await hub.test_client("/ws/cars").connect(wait=False)
    await asked.wait()
    await hub.stop()
    with pytest.raises(ConnectionClosed) as closed:
        await ws.receive()
    assert closed.value.code == 1001


async def test_an_on_open_that_closes_says_its_word_first(hub, style, diary):
    def say_and_close(ws):
        ws.send("full")
        ws.close(4100, "full")

    hub.add("/ws/{channel}", diary.listener(style, on_open=say_and_close))
    ws = await hub.test_client("/ws/cars").connect()
    assert await ws.receive() == "full"
    with pytest.raises(ConnectionClosed) as closed:
        await ws.receive()
    assert (closed.value.code, closed.value.reason) == (4100, "full")
    assert diary.count_of("on_subscribe") == 0
    assert diary.only("on_close") == ["on_close 4100"]


async def test_what_others_send_meanwhile_comes_after_what_on_open_sent(hub):
    asked, go = asyncio.Event(), asyncio.Event()

    class Chat(Listener):
        def on_open(self, ws):
            ws.send("welcome")

        async def on_subscribe(self, ws, channel):
            asked.set()
            await go.wait()

    hub.add("/ws/{channel}", Chat)
    ws = await hub.test_client("/ws/cars", user="ana").connect(wait=False)
    await asked.wait()
    hub.user("ana").send("from elsewhere")
    go.set()
    await ws.settled()
    assert ws.received() == ["welcome", "from elsewhere"]
    await ws.close()


# ── refused by on_open ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["False", "returned", "raised"])
async def test_on_open_refuses_with_1008_and_is_never_subscribed(hub, diary, style, how):
    def refuse(ws):
        if how == "False":
            return False
        if how == "raised":
            raise Reject("members only")
        return Reject(403, "members only")

    hub.add("/ws/{channel}", diary.listener(style, on_open=refuse))
    ws = await hub.test_client("/ws/cars").connect()
    assert ws.closed.code == 1008
    assert ws.closed.reason == ("refused" if how == "False" else "members only")
    assert diary == [
        "on_handshake",
        "on_first_open",
        "on_open",
        "on_close 1008",
        "on_last_close",
    ]
    assert hub.health.connections == 0


async def test_a_long_reject_text_is_cut_to_what_a_close_frame_holds(hub):
    class Chat(Listener):
        def on_open(self, ws):
            return Reject(403, "ä" * 100)

    hub.add("/ws", Chat)
    ws = await hub.test_client("/ws").connect()
    assert ws.closed.reason == "ä" * 61


@pytest.mark.parametrize("answer", [None, True, 0, "", "False", []])
async def test_only_false_and_reject_refuse(hub, diary, style, answer):
    hub.add(
        "/ws/{channel}",
        diary.listener(style, on_open=lambda ws: answer, on_subscribe=lambda *_: answer),
    )
    async with hub.test_client("/ws/cars") as ws:
        assert ws.connection.is_open
        assert hub.channels() == {"cars": 1}


# ── first open, last close ────────────────────────────────────────────────────────────────────


async def test_an_on_first_open_that_raises_closes_with_1011_and_the_next_one_tries_again(
    hub, diary, style
):
    failing = [True, False]

    def first(hub):
        if failing.pop(0):
            raise ValueError("no database")

    hub.add("/ws/{channel}", diary.listener(style, on_first_open=first))
    ws = await hub.test_client("/ws/cars").connect()
    assert (ws.closed.code, ws.closed.reason) == (1011, "listener failed")
    assert diary == ["on_handshake", "on_first_open", "on_error ValueError"]
    async with hub.test_client("/ws/cars"):
        pass
    assert diary.count_of("on_first_open") == 2
    assert diary.count_of("on_last_close") == 1


async def test_who_waits_behind_a_failing_on_first_open_tries_it_again(hub, diary):
    began, go = asyncio.Event(), asyncio.Event()

    async def first(hub):
        if not began.is_set():
            began.set()
            await go.wait()
            raise ValueError("the first time")

    hub.add("/ws", diary.listener("async def", on_first_open=first))
    one = await hub.test_client("/ws").connect(wait=False)
    await began.wait()
    two = await hub.test_client("/ws").connect(wait=False)
    await turns()
    go.set()
    await one.settled()
    await two.settled()
    assert one.closed.code == 1011
    assert two.closed is None
    await two.close()
    assert diary.count_of("on_first_open") == 2
    assert diary.count_of("on_last_close") == 1


async def test_on_first_open_is_over_before_any_on_open(hub, diary):
    began, go = asyncio.Event(), asyncio.Event()

    async def first(hub):
        began.set()
        await go.wait()
        diary.append("first is over")

    hub.add("/ws", diary.listener("async def", on_first_open=first))
    clients = [await hub.test_client("/ws").connect(wait=False) for _ in range(3)]
    await began.wait()
    await turns()
    assert diary.count_of("on_open") == 0
    go.set()
    for client in clients:
        await client.settled()
    assert diary.only("on_first_open", "first", "on_open") == [
        "on_first_open",
        "first is over",
        *["on_open"] * 3,
    ]
    for client in clients:
        await client.close()
    assert diary.count_of("on_last_close") == 1


async def test_a_client_that_leaves_during_on_first_open_leaves_it_to_the_next(hub, diary):
    began, go = asyncio.Event(), asyncio.Event()

    async def first(hub):
        began.set()
        await go.wait()
        diary.append("opened")

    hub.add("/ws", diary.listener("async def", on_first_open=first))
    one = await hub.test_client("/ws").connect(wait=False)
    await began.wait()
    two = await hub.test_client("/ws").connect(wait=False)
    await turns()
    await one.drop()
    go.set()
    await two.settled()
    assert diary.count_of("on_open") == 1
    await two.close()
    assert diary.count_of("opened") == diary.count_of("on_last_close") == 1
    assert diary.count_of("on_close") == 1


async def test_an_on_first_open_that_finishes_in_spite_of_its_client_is_balanced(diary):
    hub = Hub(cancel_grace=0.02)
    began, go = asyncio.Event(), asyncio.Event()

    async def first(hub):
        began.set()
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()

    hub.add("/ws", diary.listener("async def", on_first_open=first))
    ws = await hub.test_client("/ws").connect(wait=False)
    await began.wait()
    leaving = asyncio.create_task(ws.drop())
    await asyncio.sleep(0.1)  # longer than the grace: the time is the subject
    go.set()
    await leaving
    await turns()
    assert diary == ["on_handshake", "on_first_open", "on_last_close"]
    async with hub.test_client("/ws"):
        pass
    assert diary.count_of("on_first_open") == diary.count_of("on_last_close") == 2
    await hub.stop()


async def test_with_cancel_on_close_off_who_left_during_on_first_open_is_not_opened(diary):
    hub = Hub(cancel_on_close=False)
    began, go = asyncio.Event(), asyncio.Event()

    async def first(hub):
        began.set()
        await go.wait()

    hub.add("/ws/{channel}", diary.listener("async def", on_first_open=first))
    ws = await hub.test_client("/ws/cars").connect(wait=False)
    await began.wait()
    leaving = asyncio.create_task(ws.drop())
    await turns()
    go.set()
    await leaving
    assert diary == ["on_handshake", "on_first_open", "on_last_close"]
    await hub.stop()


async def test_a_new_client_waits_for_a_running_on_last_close(hub, diary):
    began, go = asyncio.Event(), asyncio.Event()

    async def last(hub):
        began.set()
        await go.wait()
        diary.append("closed down")

    hub.add("/ws", diary.listener("async def", on_last_close=last))
    one = await hub.test_client("/ws").connect()
    leaving = asyncio.create_task(one.close())
    await began.wait()
    diary.clear()
    two = await hub.test_client("/ws").connect(wait=False)
    await turns()
    assert diary.count_of("on_first_open") == 0
    go.set()
    await two.settled()
    await leaving
    assert diary == ["on_handshake", "closed down", "on_first_open", "on_open"]
    await two.close()
