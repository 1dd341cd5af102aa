"""A connection's callbacks: their order, their turn, how they nest, fail, and end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from contextvars import ContextVar
from pathlib import Path

import msgspec
import pytest

from backchannel import Hub, Listener, Reject, event, threaded
from backchannel.testing import ConnectionClosed

LANGUAGE: ContextVar[str] = ContextVar("language", default="none")


def lines_of(caplog, level=logging.ERROR, name="backchannel"):
    return [
        r.getMessage() for r in caplog.records if r.levelno >= level and r.name.startswith(name)
    ]


async def turns(count=10):
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


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


# ── every way to end ──────────────────────────────────────────────────────────────────────────


async def _client_close(hub, ws, other):
    await ws.close(3001, "done")


async def _lost(hub, ws, other):
    await ws.drop()


async def _from_inside(hub, ws, other):
    await ws.send("close me")


async def _from_another_connection(hub, ws, other):
    await other.send(ws.id)


async def _from_outside(hub, ws, other):
    ws.connection.close(4100, "out")


async def _by_audience(hub, ws, other):
    hub.user("ana").close(4101, "all out")


async def _from_a_thread(hub, ws, other):
    await asyncio.to_thread(lambda: ws.connection.close(4102, "thread").result(1))


async def _hub_stop(hub, ws, other):
    await hub.stop()


async def _listener_failed(hub, ws, other):
    await ws.send("raise")


async def _too_big(hub, ws, other):
    await ws.send("x" * 1025)


ENDINGS = [
    (_client_close, (3001, "done", "client")),
    (_lost, (1006, "connection lost", "network")),
    (_from_inside, (4103, "bye", "server")),
    (_from_another_connection, (4104, "pushed", "server")),
    (_from_outside, (4100, "out", "server")),
    (_by_audience, (4101, "all out", "server")),
    (_from_a_thread, (4102, "thread", "server")),
    (_hub_stop, (1001, "server or page is going away", "server")),
    (_listener_failed, (1011, "listener failed", "server")),
    (_too_big, (1009, "message of 1025 bytes is over the limit of 1024", "server")),
]


class WebSession(dict):
    session_key = "s1"


@pytest.mark.parametrize(("ending", "wanted"), ENDINGS, ids=[e.__name__[1:] for e, _ in ENDINGS])
async def test_every_ending_is_one_on_close_and_leaves_no_ghost(diary, style, ending, wanted):
    hub = Hub(max_message=1024, cancel_grace=0.3)
    reasons, views, ghosts = [], [], []

    def on_open(ws):
        ws.state.name = ws.user

    def on_message(ws, message):
        if message == "close me":
            ws.close(4103, "bye")
        elif message == "raise":
            raise ValueError(message)
        elif ws.user == "bob":
            hub.connection(message).close(4104, "pushed")

    def on_close(ws, reason):
        if ws.user == "bob":
            return
        reasons.append((reason.code, reason.text, reason.by))
        views.append((ws.channels, ws.state.name, ws.session["k"], ws.user, ws.is_open))
        ghosts.append(hub.channels().get("cars", 0) + hub.health.connections)
        audiences = [hub.channel("cars"), hub.user("ana"), hub.session("s1"), hub.everyone]
        sent = [a.send("x", exclude=hub.user("bob")) for a in audiences]
        sent += [hub.connection(ws.id).send("x"), ws.send("x")]
        ghosts.extend(one.result(1).reached for one in sent)

    acts = {"on_open": on_open, "on_message": on_message, "on_close": on_close}
    hub.add("/ws/{channel}", diary.listener(style, on_error=lambda *_: False, **acts))
    hub.add("/other", diary.listener(style, **acts))
    other = await hub.test_client("/other", user="bob").connect()
    ws = await hub.test_client("/ws/cars", user="ana", session=WebSession(k=1)).connect()
    diary.clear()
    await ending(hub, ws, other)
    await other.settled()
    await asyncio.wait_for(ws.settled(), 2)
    others = 0 if ending is _hub_stop else 1  # bob is still here
    assert reasons == [wanted]
    assert views == [({"cars"}, "ana", 1, "ana", False)]
    assert ghosts == [others, 0, 0, 0, 0, 0, 0]
    mine = diary.only("on_close", "on_unsubscribe", "on_channel_close", "on_last_close")
    start = mine.index(f"on_close {wanted[0]}")
    if ending is not _hub_stop:
        assert mine[start:] == [
            f"on_close {wanted[0]}",
            "on_unsubscribe cars",
            "on_channel_close cars",
            "on_last_close",
        ]
    assert (ws.closed.code, ws.closed.reason) == wanted[:2]
    await other.close()
    await hub.stop()
    assert hub.health.problems == ()


async def test_a_running_callback_is_cancelled_then_on_close_runs(hub):
    began, order = asyncio.Event(), []

    class Chat(Listener):
        async def on_message(self, ws, message):
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                order.append("cancelled")
                raise

        def on_close(self, ws, reason):
            order.append(reason.code)

    hub.add("/ws", Chat)
    ws = await hub.test_client("/ws").connect()
    await ws.send("x")
    await began.wait()
    await ws.drop()
    assert order == ["cancelled", 1006]


async def test_a_cancelled_callback_may_tidy_up_before_on_close(hub):
    began, order = asyncio.Event(), []

    class Chat(Listener):
        async def on_message(self, ws, message):
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                await turns()
                order.append("tidied")

        def on_close(self, ws, reason):
            order.append("on_close")

    hub.add("/ws", Chat)
    ws = await hub.test_client("/ws").connect()
    await ws.send("x")
    await began.wait()
    await ws.close()
    assert order == ["tidied", "on_close"]


async def test_with_cancel_on_close_off_a_callback_ends_before_on_close():
    hub = Hub(cancel_on_close=False)
    began, go, order = asyncio.Event(), asyncio.Event(), []

    class Chat(Listener):
        async def on_message(self, ws, message):
            began.set()
            await go.wait()
            order.append("finished")

        def on_close(self, ws, reason):
            order.append("on_close")

    hub.add("/ws", Chat)
    ws = await hub.test_client("/ws").connect()
    await ws.send("x")
    await began.wait()
    closing = asyncio.create_task(ws.close())
    await turns()
    assert order == []
    assert hub.health.connections == 0
    go.set()
    await closing
    assert order == ["finished", "on_close"]
    await hub.stop()


async def test_a_callback_that_swallows_its_cancellation_does_not_keep_on_close_away(caplog):
    hub = Hub(cancel_grace=0.02)
    began, go, order = asyncio.Event(), asyncio.Event(), []

    class Chat(Listener):
        async def on_message(self, ws, message):
            began.set()
            while not go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await go.wait()
            order.append("went on")

        def on_close(self, ws, reason):
            order.append("on_close")

    hub.add("/ws", Chat)
    ws = await hub.test_client("/ws").connect()
    await ws.send("x")
    await began.wait()
    await asyncio.wait_for(ws.close(), 2)
    assert order == ["on_close"]
    assert any("still runs" in line for line in lines_of(caplog))
    go.set()
    await turns()
    assert order == ["on_close", "went on"]
    await hub.stop()
    assert hub.health.problems == ()


async def test_a_threaded_callback_that_outlives_its_client_does_not_keep_on_close_away():
    hub = Hub(cancel_grace=0.02)
    began, go = asyncio.Event(), threading.Event()
    closed = []
    loop = asyncio.get_running_loop()

    class Chat(Listener):
        @threaded
        def on_message(self, ws, message):
            loop.call_soon_threadsafe(began.set)
            go.wait(5)
            return ws.send("too late").result(1).reached

        def on_close(self, ws, reason):
            closed.append(reason.code)

    hub.add("/ws", Chat)
    ws = await hub.test_client("/ws").connect()
    await ws.send("x")
    await began.wait()
    await asyncio.wait_for(ws.close(), 2)
    assert closed == [1000]
    go.set()
    await hub.stop()


async def test_a_callback_that_closes_its_own_connection_goes_on(hub):
    order = []

    class Chat(Listener):
        async def on_message(self, ws, message):
            ws.close(4100)
            await turns()
            order.append("after close")

        def on_close(self, ws, reason):
            order.append("on_close")

    hub.add("/ws", Chat)
    ws = await hub.test_client("/ws").connect()
    await ws.send("x")
    await ws.settled()
    assert order == ["after close", "on_close"]


async def test_a_callback_that_closes_its_own_connection_and_hangs_is_cancelled(hub):
    order = []

    class Chat(Listener):
        async def on_message(self, ws, message):
            ws.close(4100)
            try:
                await asyncio.Event().wait()
            finally:
                order.append("cancelled")

        def on_close(self, ws, reason):
            order.append("on_close")

    hub.add("/ws", Chat)
    ws = await hub.test_client("/ws").connect()
    await ws.send("x")
    await asyncio.wait_for(ws.settled(), 2)
    assert order == ["cancelled", "on_close"]


async def test_inside_on_close_no_list_and_no_count_has_the_connection(hub):
    seen = []

    class Chat(Listener):
        async def on_close(self, ws, reason):
            for audience in (
                hub.channel("cars"),
                hub.user("ana"),
                hub.session("s1"),
                hub.connection(ws.id),
                hub.everyone,
            ):
                seen.append(await audience.count())
                seen.extend(await audience.connections())
                seen.extend(await audience.users())
                seen.append((await audience.subscribe("boats")).reached)

    hub.add("/ws/{channel}", Chat)
    async with hub.test_client("/ws/cars", user="ana", session=WebSession()):
        assert await hub.session("s1").count() == 1
    assert seen == [0] * 10


async def test_a_client_that_leaves_during_on_open_has_its_on_close(hub):
    began, order = asyncio.Event(), []

    class Chat(Listener):
        async def on_open(self, ws):
            began.set()
            await asyncio.Event().wait()

        def on_close(self, ws, reason):
            order.append(reason.code)

        def on_subscribe(self, ws, channel):
            order.append(channel)

    hub.add("/ws/{channel}", Chat)
    ws = await hub.test_client("/ws/cars").connect(wait=False)
    await began.wait()
    await ws.drop()
    assert order == [1006]


async def test_a_client_that_leaves_before_on_open_has_no_on_close(hub, diary):
    hub.add("/ws/{channel}", diary.listener("async def"))
    ws = await hub.test_client("/ws/cars").connect(wait=False)
    await ws.drop()
    assert diary.count_of("on_open") == diary.count_of("on_close") == 0
    assert diary.count_of("on_first_open") == diary.count_of("on_last_close")


async def test_a_client_that_leaves_during_on_subscribe_is_in_no_channel(hub, diary):
    began = asyncio.Event()

    async def hang(ws, channel):
        began.set()
        await asyncio.Event().wait()

    hub.add("/ws/{channel}", diary.listener("async def", on_subscribe=hang))
    ws = await hub.test_client("/ws/cars").connect(wait=False)
    await began.wait()
    await ws.drop()
    assert hub.channels() == {}
    assert diary[-4:] == [
        "on_subscribe cars",
        "on_channel_close cars",
        "on_close 1006",
        "on_last_close",
    ]


async def test_a_message_that_comes_after_the_end_reaches_no_callback(hub, diary):
    hub.add("/ws", diary.listener("def", on_message=lambda ws, _: ws.close(4100) and None))
    ws = await hub.test_client("/ws").connect()
    await ws.send("one")
    with pytest.raises(ConnectionClosed):
        await ws.send("two")
    await ws.settled()
    assert diary.only("on_message") == ["on_message one"]


async def test_a_client_that_sends_and_leaves_at_once_gives_no_warning(hub, diary, style):
    hub.add("/ws", diary.listener(style))
    ws = await hub.test_client("/ws").connect()
    await ws.send("one")
    await ws.send("two")
    await ws.drop()
    assert diary.count_of("on_close") == 1


async def test_on_close_that_raises_does_not_keep_the_rest_away(hub, diary, style, caplog):
    def boom(*_):
        raise ValueError("boom")

    names = ("on_close", "on_unsubscribe", "on_channel_close", "on_last_close")
    hub.add("/ws/{channel}", diary.listener(style, **dict.fromkeys(names, boom)))
    async with hub.test_client("/ws/cars"):
        pass
    assert diary[-8:] == [
        "on_close 1000",
        "on_error ValueError",
        "on_unsubscribe cars",
        "on_error ValueError",
        "on_channel_close cars",
        "on_error ValueError",
        "on_last_close",
        "on_error ValueError",
    ]
    assert len(lines_of(caplog)) == 4


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


# ── one at a time ─────────────────────────────────────────────────────────────────────────────


async def test_callbacks_of_one_connection_run_one_at_a_time_in_order(hub):
    running, most, seen = 0, 0, []

    class Chat(Listener):
        async def on_message(self, ws, message):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await turns(3)
            running -= 1
            seen.append(message)

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as ws:
        for number in range(20):
            await ws.send(str(number))
        await ws.settled()
    assert most == 1
    assert seen == [str(number) for number in range(20)]


async def test_messages_wait_until_on_open_is_over(hub, diary):
    go = asyncio.Event()

    async def slow(ws):
        await go.wait()
        diary.append("open is over")

    hub.add("/ws", diary.listener("async def", on_open=slow))
    ws = await hub.test_client("/ws").connect(wait=False)
    await ws.send("early")
    await turns()
    assert diary.count_of("on_message") == 0
    go.set()
    await ws.settled()
    assert diary[-2:] == ["open is over", "on_message early"]
    await ws.close()


async def test_callbacks_of_different_connections_interleave(hub):
    order, gates = [], {"one": asyncio.Event(), "two": asyncio.Event()}

    class Chat(Listener):
        async def on_message(self, ws, message):
            order.append(f"{message} begins")
            await gates[message].wait()
            order.append(f"{message} ends")

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as one, hub.test_client("/ws") as two:
        await one.send("one")
        await two.send("two")
        await turns()
        gates["two"].set()
        await two.settled()
        gates["one"].set()
        await one.settled()
    assert order == ["one begins", "two begins", "two ends", "one ends"]


async def test_a_def_callback_answers_in_the_turn_that_brought_the_message(hub):
    hub.add("/ws", lambda ws, message: message)
    async with hub.test_client("/ws") as ws:
        await ws.send("now")
        assert ws.received() == ["now"]


async def test_replies_keep_the_order_of_mixed_callbacks(hub):
    class Mixed(Listener):
        @event("def")
        def plain(self, ws, message: dict):
            return message["n"]

        @event("async")
        async def waiting(self, ws, message: dict):
            await turns(3)
            return message["n"]

        @event("thread")
        @threaded
        def blocking(self, ws, message: dict):
            return message["n"]

    hub.add("/ws", Mixed)
    kinds = ["async", "def", "thread", "def", "async", "thread", "def"]
    async with hub.test_client("/ws") as ws:
        for n, kind in enumerate(kinds):
            await ws.send({"type": kind, "n": n})
        assert [await ws.receive_json() for _ in kinds] == list(range(len(kinds)))


async def test_a_full_inbox_lets_the_sender_wait(hub):
    go, seen = asyncio.Event(), []

    class Slow(Listener):
        async def on_message(self, ws, message):
            seen.append(message)
            await go.wait()

    hub.add("/ws", Slow)
    async with hub.test_client("/ws") as ws:

        async def pour():
            for number in range(200):
                await ws.send(str(number))

        pouring = asyncio.create_task(pour())
        await turns(300)
        assert not pouring.done()
        go.set()
        await asyncio.wait_for(pouring, 2)
        await ws.settled()
    assert seen == [str(number) for number in range(200)]


async def test_several_senders_that_wait_for_room_all_go_on(hub):
    go, seen = asyncio.Event(), []

    class Slow(Listener):
        async def on_message(self, ws, message):
            await go.wait()
            seen.append(message)

    hub.add("/ws", Slow)
    async with hub.test_client("/ws") as ws:
        sending = [asyncio.create_task(ws.send(str(number))) for number in range(100)]
        await turns()
        assert not all(task.done() for task in sending)
        go.set()
        await asyncio.wait_for(asyncio.gather(*sending), 2)
        await ws.settled()
    assert sorted(seen, key=int) == [str(number) for number in range(100)]


async def test_a_sender_that_waits_for_room_is_let_go_when_the_connection_ends(hub):
    class Slow(Listener):
        async def on_message(self, ws, message):
            await asyncio.Event().wait()

    hub.add("/ws", Slow)
    ws = await hub.test_client("/ws").connect()
    sending = asyncio.gather(*(ws.send("x") for _ in range(100)))
    await turns()
    await ws.close()
    await asyncio.wait_for(sending, 2)


# ── nested ────────────────────────────────────────────────────────────────────────────────────


async def enter(ws, channel):
    return await ws.subscribe(channel)


async def _awaited(ws):
    return [await ws.subscribe("a"), await ws.subscribe("b")]


async def _gathered(ws):
    return await asyncio.gather(ws.subscribe("a"), ws.subscribe("b"))


async def _in_a_task_group(ws):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(enter(ws, name)) for name in ("a", "b")]
    return [task.result() for task in tasks]


async def _with_a_time_limit(ws):
    async with asyncio.timeout(5):
        return [await ws.subscribe("a"), await asyncio.wait_for(ws.subscribe("b"), 5)]


async def _by_an_audience(ws):
    sent = await ws.hub.connection(ws.id).subscribe("a")
    also = await ws.hub.user("ana").subscribe("b")
    return [sent.reached == 1, also.reached == 1]


async def _in_a_thread(ws):
    return await asyncio.to_thread(lambda: [ws.subscribe(n).result(5) for n in ("a", "b")])


async def _in_a_task_of_its_own(ws):
    return [await asyncio.create_task(enter(ws, "a")), await asyncio.create_task(enter(ws, "b"))]


WAYS = [
    _awaited,
    _gathered,
    _in_a_task_group,
    _with_a_time_limit,
    _by_an_audience,
    _in_a_thread,
    _in_a_task_of_its_own,
]


@pytest.mark.parametrize("way", WAYS, ids=[way.__name__[1:] for way in WAYS])
async def test_a_subscription_awaited_inside_a_callback_runs_nested(hub, diary, style, way):
    """Whatever style on_subscribe has, and however the await is wrapped: no deadlock."""
    done = asyncio.Event()

    class Nesting(diary.listener(style)):
        async def on_message(self, ws, message):
            diary.append("begins")
            diary.append(f"got {await way(ws)} in {sorted(ws.channels)}")
            done.set()

    hub.add("/ws", Nesting)
    async with hub.test_client("/ws", user="ana") as ws:
        diary.clear()
        await ws.send("go")
        await asyncio.wait_for(done.wait(), 5)
        assert diary[0] == "begins"
        assert sorted(diary[1:-1]) == [
            "on_channel_open a",
            "on_channel_open b",
            "on_subscribe a",
            "on_subscribe b",
        ]
        assert diary[-1] == "got [True, True] in ['a', 'b']"


async def test_result_in_a_threaded_callback_runs_nested(hub, diary, style):
    class Nesting(diary.listener(style)):
        @threaded
        def on_message(self, ws, message):
            entered = ws.subscribe("a").result(5)
            left = ws.unsubscribe("a").result(5)
            return [entered, left]

    hub.add("/ws", Nesting)
    async with hub.test_client("/ws") as ws:
        await ws.send("go")
        assert await ws.receive_json(5) == [True, True]


async def test_every_callback_may_await_a_subscription(hub):
    """on_open, on_subscribe, on_unsubscribe and on_error as well as on_message."""
    entered = []

    class Nesting(Listener):
        async def on_open(self, ws):
            entered.append(await ws.subscribe("from on_open"))

        async def on_subscribe(self, ws, channel):
            if channel == "from on_open":
                entered.append(await ws.subscribe("from on_subscribe"))

        async def on_unsubscribe(self, ws, channel):
            if channel == "from on_open" and ws.is_open:
                entered.append(await ws.subscribe("from on_unsubscribe"))

        async def on_error(self, ws, error):
            entered.append(await ws.subscribe("from on_error"))

        async def on_message(self, ws, message):
            await ws.unsubscribe("from on_open")
            raise ValueError

    hub.add("/ws/{channel}", Nesting)
    async with hub.test_client("/ws/cars") as ws:
        await ws.send("x")
        await asyncio.wait_for(ws.settled(), 5)
        assert entered == [True] * 4
        assert ws.connection.channels == {
            "cars",
            "from on_subscribe",
            "from on_unsubscribe",
            "from on_error",
        }


async def test_a_subscription_awaited_in_on_close_is_false(hub):
    got = []

    class Chat(Listener):
        async def on_close(self, ws, reason):
            got.append(await ws.subscribe("again"))

    hub.add("/ws", Chat)
    async with hub.test_client("/ws"):
        pass
    assert got == [False]
    assert hub.channels() == {}


async def test_a_subscription_nobody_awaits_runs_at_once_where_nothing_waits(hub):
    seen = []

    class Chat(Listener):
        def on_subscribe(self, ws, channel):
            seen.append(channel)

        def on_message(self, ws, message):
            ws.subscribe(message)
            return sorted(ws.channels)

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as ws:
        await ws.send("cars")
        assert await ws.receive_json() == ["cars"]
    assert seen == ["cars"]


@pytest.mark.parametrize("asks", ["def", "async def", "threaded"])
async def test_a_subscription_nobody_awaits_happens_after_the_callback_at_the_latest(
    hub, diary, style, asks
):
    def act(ws, message):
        if message == "enter":
            ws.subscribe("later")
            return None
        return sorted(ws.channels)

    class Chat(diary.listener(style)):
        if asks == "def":

            def on_message(self, ws, message):
                return act(ws, message)

        elif asks == "async def":

            async def on_message(self, ws, message):
                return act(ws, message)

        else:

            @threaded
            def on_message(self, ws, message):
                return act(ws, message)

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as ws:
        await ws.send("enter")
        await ws.send("where?")
        assert await ws.receive_json() == ["later"]


@pytest.mark.parametrize("how", ["await", "result"])
async def test_two_connections_that_await_each_others_subscription_dont_deadlock(hub, style, how):
    both, met = [], threading.Barrier(2)
    meeting = asyncio.Event()

    class Asked(Listener):
        if style == "async def":

            async def on_subscribe(self, ws, channel):
                await turns(1)

        elif style == "threaded":

            @threaded
            def on_subscribe(self, ws, channel):
                pass

        if how == "await":

            async def on_message(self, ws, message):
                both.append(ws)
                if len(both) == 2:
                    meeting.set()
                await meeting.wait()
                other = next(one for one in both if one is not ws)
                return await other.subscribe("x")

        else:

            @threaded
            def on_message(self, ws, message):
                both.append(ws)
                met.wait(5)
                other = next(one for one in both if one is not ws)
                return other.subscribe("x").result(5)

    hub.add("/ws", Asked)
    async with hub.test_client("/ws") as one, hub.test_client("/ws") as two:
        await one.send("go")
        await two.send("go")
        assert await one.receive_json(4) is True
        assert await two.receive_json(4) is True
        assert hub.channels() == {"x": 2}


async def test_three_connections_that_await_each_other_in_a_ring_dont_deadlock(hub):
    ring, ready = [], asyncio.Event()

    class Asked(Listener):
        async def on_subscribe(self, ws, channel):
            await turns(2)

        async def on_message(self, ws, message):
            ring.append(ws)
            if len(ring) == 3:
                ready.set()
            await ready.wait()
            return await ring[(ring.index(ws) + 1) % 3].subscribe("x")

    hub.add("/ws", Asked)
    clients = [await hub.test_client("/ws").connect() for _ in range(3)]
    for client in clients:
        await client.send("go")
    assert [await client.receive_json(5) for client in clients] == [True] * 3
    for client in clients:
        await client.close()


async def test_awaiting_the_subscription_of_a_connection_that_ends_is_false(hub):
    began = asyncio.Event()

    class Busy(Listener):
        async def on_message(self, ws, message):
            began.set()
            await asyncio.Event().wait()

    hub.add("/ws", Busy)
    ws = await hub.test_client("/ws").connect()
    await ws.send("x")
    await began.wait()
    waiting = asyncio.ensure_future(ws.connection.subscribe("cars"))
    await turns()
    await ws.drop()
    assert await asyncio.wait_for(waiting, 2) is False
    assert hub.channels() == {}


async def test_work_spawned_by_a_callback_waits_for_its_turn(hub):
    """ws.spawn is beside the messages: what it causes does not cut into a running callback."""
    order, go = [], asyncio.Event()

    class Chat(Listener):
        def on_subscribe(self, ws, channel):
            order.append(f"on_subscribe {channel}")

        async def on_message(self, ws, message):
            ws.spawn(self.beside(ws))
            await go.wait()
            order.append("on_message ends")

        async def beside(self, ws):
            change = ws.subscribe("beside")
            go.set()
            order.append(f"entered {await change}")

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as ws:
        await ws.send("x")
        await ws.settled()
        await turns()
        assert order == ["on_message ends", "on_subscribe beside", "entered True"]


# ── context, tasks ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("handshake", ["def", "async def"])
async def test_callbacks_run_in_the_context_of_their_handshake(hub, diary, style, handshake):
    heard = {}

    def hear(name):
        def note(*_):
            heard.setdefault(name, []).append(LANGUAGE.get())

        return note

    later = ["on_open", "on_message", "on_close", "on_subscribe", "on_unsubscribe"]
    kind = diary.listener(style, **{name: hear(name) for name in later})

    def on_handshake(self, request):
        LANGUAGE.set(request.query["language"])

    async def on_handshake_async(self, request):
        await asyncio.sleep(0)
        LANGUAGE.set(request.query["language"])

    kind.on_handshake = on_handshake if handshake == "def" else on_handshake_async
    hub.add("/ws/{channel}", kind)
    one = await hub.test_client("/ws/a?language=da").connect()
    two = await hub.test_client("/ws/b?language=pt").connect()
    for client in (one, two):
        await client.send("x")
        await client.settled()
        await client.close()
    assert heard == {name: ["da", "pt"] for name in later}
    assert LANGUAGE.get() == "none"


async def test_what_a_callback_sets_in_its_context_the_next_one_sees(hub):
    class Chat(Listener):
        async def on_open(self, ws):
            LANGUAGE.set(ws.query["language"])

        def on_message(self, ws, message):
            return LANGUAGE.get()

    hub.add("/ws", Chat)
    async with hub.test_client("/ws?language=da") as one, hub.test_client("/ws?language=pt") as two:
        await one.send("x")
        await two.send("x")
        assert (await one.receive(), await two.receive()) == ("da", "pt")


async def test_async_callbacks_run_in_a_real_task(hub):
    seen = []

    def check():
        seen.append(asyncio.current_task() is not None)

    class Chat(Listener):
        async def on_open(self, ws):
            check()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
            seen.append("on_open timed out")

        async def on_subscribe(self, ws, channel):
            check()
            async with asyncio.timeout(5):
                await turns(1)

        async def on_message(self, ws, message):
            check()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.001)
            async with asyncio.TaskGroup() as group:
                group.create_task(turns(1))
            return "timed out"

        async def on_close(self, ws, reason):
            check()
            async with asyncio.timeout(5):
                await turns(1)
            seen.append("on_close ended")

    hub.add("/ws/{channel}", Chat)
    async with hub.test_client("/ws/cars") as ws:
        await ws.send("x")
        assert await ws.receive() == "timed out"
        assert await ws.connection.subscribe("later")
    assert seen == [True, "on_open timed out", True, True, True, True, "on_close ended"]


async def test_a_def_runs_in_the_event_loop_and_threaded_does_not(hub):
    class Chat(Listener):
        @event("def")
        def plain(self, ws):
            return [threading.get_ident()]

        @event("thread")
        @threaded
        def blocking(self, ws):
            return [threading.get_ident(), LANGUAGE.get()]

        def on_handshake(self, request):
            LANGUAGE.set("da")

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as ws:
        await ws.send({"type": "def"})
        assert await ws.receive_json() == [threading.get_ident()]
        await ws.send({"type": "thread"})
        ident, language = await ws.receive_json()
        assert ident != threading.get_ident()
        assert language == "da"


# ── when a callback raises ────────────────────────────────────────────────────────────────────


def raising(*_):
    raise ValueError("boom")


async def test_an_on_open_that_raises_closes_with_1011_and_is_never_subscribed(hub, diary, style):
    hub.add("/ws/{channel}", diary.listener(style, on_open=raising))
    ws = await hub.test_client("/ws/cars").connect()
    assert (ws.closed.code, ws.closed.reason) == (1011, "listener failed")
    assert diary == [
        "on_handshake",
        "on_first_open",
        "on_open",
        "on_error ValueError",
        "on_close 1011",
        "on_last_close",
    ]


async def test_an_on_message_that_raises_is_logged_once_and_the_connection_kept(
    hub, diary, style, caplog
):
    hub.add("/ws/{channel}", diary.listener(style, on_message=raising))
    async with hub.test_client("/ws/cars") as ws:
        await ws.send("x")
        await ws.settled()
        assert ws.connection.is_open
        assert diary[-2:] == ["on_message x", "on_error ValueError"]
        (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
        line = record.getMessage()
        for part in ("Kept.on_message", "ValueError: boom", "'/ws/cars'", ws.id, "127.0.0.1:50000"):
            assert part in line
        assert record.exc_info[2] is not None
        assert ws.received() == []


async def test_the_log_names_file_and_line_of_the_callback(hub, caplog):
    class Chat(Listener):
        def on_message(self, ws, message):
            raise ValueError

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as ws:
        await ws.send("x")
    line = Chat.on_message.__code__.co_firstlineno
    assert f"{Path(__file__).name}:{line}" in lines_of(caplog)[0]


@pytest.mark.parametrize(
    "name", ["on_unsubscribe", "on_channel_open", "on_channel_close", "on_invalid"]
)
async def test_all_other_callbacks_may_raise_and_the_connection_is_kept(
    hub, diary, style, name, caplog
):
    kind = diary.listener(style, **{name: raising})
    if name == "on_invalid":

        def on_message(self, ws, message: dict):
            diary.write("on_message")

        kind.on_message = on_message
    hub.add("/ws", kind)
    async with hub.test_client("/ws") as ws:
        assert await ws.connection.subscribe("cars")
        assert await ws.connection.unsubscribe("cars")
        await ws.send("no json")
        await ws.settled()
        assert ws.connection.is_open
        assert diary.count_of(name) == diary.count_of("on_error") == 1
    assert len(lines_of(caplog)) == 1


async def test_an_on_subscribe_that_raises_refuses(hub, diary, style):
    hub.add("/ws", diary.listener(style, on_subscribe=raising))
    async with hub.test_client("/ws") as ws:
        assert await ws.connection.subscribe("cars") is False
        assert ws.connection.is_open
        assert hub.channels() == {}
        assert diary[-4:] == [
            "on_channel_open cars",
            "on_subscribe cars",
            "on_error ValueError",
            "on_channel_close cars",
        ]


async def test_on_error_is_told_also_where_on_subscribe_is_def_and_on_error_waits(hub):
    told = []

    class Chat(Listener):
        def on_subscribe(self, ws, channel):
            raise ValueError(channel)

        async def on_error(self, ws, error):
            await turns(2)
            told.append(str(error))

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as ws:
        assert await ws.connection.subscribe("cars") is False
        assert told == ["cars"]


@pytest.mark.parametrize(
    "name", ["on_message", "on_subscribe", "on_unsubscribe", "on_channel_open", "on_channel_close"]
)
async def test_an_on_error_that_returns_false_closes_with_1011(hub, diary, style, name):
    hub.add("/ws", diary.listener(style, on_error=lambda *_: False, **{name: raising}))
    ws = await hub.test_client("/ws").connect()
    if name == "on_message":
        await ws.send("x")
    else:
        await ws.connection.subscribe("cars")
        await ws.connection.unsubscribe("cars")
    await ws.settled()
    assert ws.closed.code == 1011
    assert diary.count_of("on_close") == 1
    assert diary.count_of("on_channel_open") == diary.count_of("on_channel_close")


@pytest.mark.parametrize("answer", [None, True, 0])
async def test_any_other_answer_of_on_error_keeps_the_connection(hub, diary, style, answer):
    hub.add("/ws", diary.listener(style, on_error=lambda *_: answer, on_message=raising))
    async with hub.test_client("/ws") as ws:
        await ws.send("x")
        await ws.settled()
        assert ws.connection.is_open


async def test_an_on_error_that_raises_is_logged_and_not_asked_again(hub, diary, style, caplog):
    def worse(ws, error):
        raise KeyError("worse")

    hub.add("/ws", diary.listener(style, on_error=worse, on_message=raising))
    async with hub.test_client("/ws") as ws:
        await ws.send("x")
        await ws.settled()
        assert ws.connection.is_open
    assert diary.count_of("on_error") == 1
    assert ["ValueError" in line for line in lines_of(caplog)] == [True, False]
    assert "KeyError" in lines_of(caplog)[1]


async def test_a_callback_that_closes_and_then_raises_is_still_reported(hub, diary, style, caplog):
    def close_and_raise(ws, message):
        ws.close(4100)
        raise ValueError("boom")

    hub.add("/ws", diary.listener(style, on_message=close_and_raise))
    ws = await hub.test_client("/ws").connect()
    await ws.send("x")
    await ws.settled()
    assert len(lines_of(caplog)) == 1
    assert diary.only("on_message", "on_error", "on_close") == [
        "on_message x",
        "on_error ValueError",
        "on_close 4100",
    ]


async def test_a_def_that_raised_is_reported_also_when_the_client_leaves_at_once(hub, caplog):
    told = []

    class Chat(Listener):
        def on_message(self, ws, message):
            raise ValueError("boom")

        async def on_error(self, ws, error):
            told.append(str(error))

    hub.add("/ws", Chat)
    ws = await hub.test_client("/ws").connect()
    await ws.send("x")
    await ws.drop()
    assert len(lines_of(caplog)) == 1
    assert told == ["boom"]


@pytest.mark.parametrize("name", ["on_open", "on_message", "on_subscribe", "on_first_open"])
async def test_a_callback_that_awaits_something_cancelled_has_failed(hub, diary, name, caplog):
    """CancelledError is no Exception: it must not leave a half-open connection behind."""

    async def cancelled(*_):
        gone = asyncio.get_running_loop().create_future()
        gone.cancel()
        await gone

    hub.add("/ws/{channel}", diary.listener("async def", **{name: cancelled}))
    ws = await hub.test_client("/ws/cars").connect()
    if name == "on_message":
        await ws.send("x")
        await ws.settled()
        assert ws.connection.is_open
        await ws.close()
    await ws.settled()
    assert diary.count_of("on_error") == 1
    assert len(lines_of(caplog)) == 1
    wanted = {"on_message": 1000, "on_subscribe": 1008}.get(name, 1011)
    assert ws.closed.code == wanted
    assert diary.count_of("on_close") == (name != "on_first_open")


@pytest.mark.parametrize("error", [TimeoutError, StopIteration, KeyError])
async def test_what_a_callback_raises_is_logged_with_its_own_traceback(
    hub, diary, style, error, caplog
):
    def fail(*_):
        raise error("boom")

    hub.add("/ws", diary.listener(style, on_message=fail))
    async with hub.test_client("/ws") as ws:
        await ws.send("x")
        await asyncio.wait_for(ws.settled(), 5)
        assert ws.connection.is_open
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert error.__name__ in caplog.text
    assert diary.count_of("on_error") == 1
    frames, at = [], record.exc_info[1]
    while at is not None:
        trace = at.__traceback__
        while trace is not None:
            frames.append(trace.tb_frame.f_code)
            trace = trace.tb_next
        at = at.__cause__
    assert fail.__code__ in frames


async def test_a_reply_that_cannot_be_sent_is_the_callbacks_error(hub, diary, style):
    hub.add("/ws", diary.listener(style, on_message=lambda *_: {"x": float("nan")}))
    async with hub.test_client("/ws") as ws:
        await ws.send("x")
        await ws.settled()
        assert diary[-1] == "on_error UnsendableMessage"
        assert ws.received() == []


# ── what comes back ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "frames"),
    [
        (None, []),
        ("text", ["text"]),
        ("", [""]),
        (b"bytes", [b"bytes"]),
        ({"a": 1}, ['{"a":1}']),
        ([], ["[]"]),
        (False, ["false"]),
        (0, ["0"]),
    ],
    ids=repr,
)
async def test_what_on_message_returns_unless_none_goes_to_the_sender(
    hub, diary, style, answer, frames
):
    hub.add("/ws/{channel}", diary.listener(style, on_message=lambda *_: answer))
    async with hub.test_client("/ws/cars") as other, hub.test_client("/ws/cars") as ws:
        await ws.send("x")
        await ws.settled()
        assert ws.received() == frames
        assert other.received() == []


@pytest.mark.parametrize("verb", ["send", "broadcast", "hub", "close", "subscribe", "audience"])
async def test_what_a_verb_returned_is_no_reply(hub, diary, verb):
    def act(ws, message):
        return {
            "send": lambda: ws.send("sent"),
            "broadcast": lambda: ws.broadcast("sent"),
            "hub": lambda: hub.broadcast("cars", "sent"),
            "close": ws.close,
            "subscribe": lambda: ws.subscribe("other"),
            "audience": lambda: hub.everyone.subscribe("other"),
        }[verb]()

    hub.add("/ws/{channel}", diary.listener("def", on_message=act))
    ws = await hub.test_client("/ws/cars").connect()
    await ws.send("x")
    await ws.settled()
    assert ws.received() == (["sent"] if verb in {"send", "broadcast", "hub"} else [])
    assert diary.count_of("on_error") == 0
    await ws.close()


async def test_a_def_that_returns_a_coroutine_is_awaited(hub, diary):
    """A decorator without functools.wraps makes an async def look like a def."""

    def undressed(function):
        def plain(self, *arguments):
            return function(self, *arguments)

        return plain

    class Chat(Listener):
        @undressed
        async def on_open(self, ws):
            await turns(2)
            diary.write("on_open")

        @undressed
        async def on_subscribe(self, ws, channel):
            async with asyncio.timeout(5):
                await turns(2)
            diary.write("on_subscribe")

        async def on_close(self, ws, reason):
            diary.write("on_close")

        def on_message(self, ws, message):
            return self.answer(ws, message)

        async def answer(self, ws, message):
            await turns(2)
            return message

    hub.add("/ws/{channel}", Chat)
    async with hub.test_client("/ws/cars") as ws:
        await ws.send("x")
        assert await ws.receive() == "x"
        assert await ws.connection.subscribe("later")
        assert ws.connection.channels == {"cars", "later"}
    assert diary == ["on_open", "on_subscribe", "on_subscribe", "on_close"]


# ── typed messages, events ────────────────────────────────────────────────────────────────────


class Move(msgspec.Struct):
    x: int
    y: int = 0


async def test_a_message_arrives_as_its_annotation_says(hub, style):
    class Game(Listener):
        if style == "async def":

            async def on_message(self, ws, message: Move):
                return message.x + message.y

        elif style == "threaded":

            @threaded
            def on_message(self, ws, message: Move):
                return message.x + message.y

        else:

            def on_message(self, ws, message: Move):
                return message.x + message.y

    hub.add("/ws", Game)
    async with hub.test_client("/ws") as ws:
        await ws.send({"x": 1, "y": 2})
        assert await ws.receive_json() == 3


async def test_invalid_input_never_reaches_the_callback_and_names_the_field(hub):
    seen = []

    class Game(Listener):
        def on_message(self, ws, message: Move):
            seen.append(message)

    hub.add("/ws", Game)
    async with hub.test_client("/ws") as ws:
        for wrong in ({"x": "1"}, {"y": 1}, "no json", [1]):
            await ws.send(wrong)
        answers = [await ws.receive_json() for _ in range(4)]
        assert ws.connection.is_open
    assert seen == []
    assert all(a["type"] == "error" and a["code"] == "invalid_message" for a in answers)
    assert answers[0]["field"] == "$.x"
    assert not any("Traceback" in a["text"] or "/" in a["text"] for a in answers)


async def test_the_wrong_kind_is_invalid_input(hub):
    hub.add("/text", _text_only)
    hub.add("/binary", _binary_only)
    async with hub.test_client("/text") as ws:
        await ws.send(b"binary")
        assert "expected a text message" in (await ws.receive_json())["text"]
        await ws.send("text")
        assert await ws.receive() == "text"
    async with hub.test_client("/binary") as ws:
        await ws.send("text")
        assert "expected a binary message" in (await ws.receive_json())["text"]
        await ws.send(b"binary")
        assert await ws.receive() == b"binary"


def _text_only(ws, message: str):
    return message


async def _binary_only(ws, message: bytes):
    return message


async def test_an_own_on_invalid_answers_in_its_place(hub, diary, style):
    kind = diary.listener(
        style, on_invalid=lambda ws, error: ws.send(f"no: {error.field}") and None
    )

    def on_message(self, ws, message: Move):
        diary.append("reached")

    kind.on_message = on_message
    hub.add("/ws", kind)
    async with hub.test_client("/ws") as ws:
        await ws.send({"x": "1"})
        assert await ws.receive() == "no: $.x"
        assert ws.connection.is_open
    assert "reached" not in diary
    assert "on_invalid InvalidMessage" in diary


async def test_events_are_routed_by_the_type_field(hub, style):
    class Game(Listener):
        if style == "async def":

            @event("move")
            async def moves(self, ws, message: Move):
                return message.x

            @event("ping")
            async def pings(self, ws):
                return "pong"

        elif style == "threaded":

            @event("move")
            @threaded
            def moves(self, ws, message: Move):
                return message.x

            @threaded
            @event("ping")
            def pings(self, ws):
                return "pong"

        else:

            @event("move")
            def moves(self, ws, message: Move):
                return message.x

            @event("ping")
            def pings(self, ws):
                return "pong"

    hub.add("/ws", Game)
    async with hub.test_client("/ws") as ws:
        await ws.send({"type": "move", "x": 7})
        assert await ws.receive_json() == 7
        await ws.send({"type": "ping"})
        assert await ws.receive() == "pong"
        await ws.send({"type": "move", "x": "seven"})
        assert (await ws.receive_json())["field"] == "$.x"
        await ws.send({"type": "jump"})
        unknown = await ws.receive_json()
        assert unknown["code"] == "unknown_type"
        assert unknown["text"] == "unknown type 'jump'; known are move, ping"
        for frame, field in (
            ("no json", "$"),
            ("[]", "$"),
            ("{}", "$.type"),
            ('{"type": 5}', "$.type"),
        ):
            await ws.send(frame)
            answer = await ws.receive_json()
            assert "move, ping" in answer["text"]
            assert (answer["field"], answer["code"]) == (field, "invalid_message")
        assert ws.connection.is_open


async def test_events_without_a_method_go_to_on_message(hub):
    class Game(Listener):
        @event("ping")
        def pings(self, ws):
            return "pong"

        def on_message(self, ws, message):
            return "other"

    hub.add("/ws", Game)
    async with hub.test_client("/ws") as ws:
        for message in ({"type": "jump"}, "no json", {"no": "type"}, b"\x00"):
            await ws.send(message)
            assert await ws.receive() == "other"
        await ws.send({"type": "ping"})
        assert await ws.receive() == "pong"


async def test_another_tag_may_be_named(hub):
    class Game(Listener):
        @event("ping")
        def pings(self, ws):
            return "pong"

    hub.add("/ws", Game, tag="msgType")
    async with hub.test_client("/ws") as ws:
        await ws.send({"msgType": "ping", "type": "other"})
        assert await ws.receive() == "pong"
        await ws.send({"msgType": "jump"})
        assert (await ws.receive_json())["text"] == "unknown msgType 'jump'; known are ping"
        await ws.send({"type": "ping"})
        assert (await ws.receive_json())["field"] == "$.msgType"


async def test_an_event_that_raises_is_reported_under_its_own_name(hub, caplog):
    class Game(Listener):
        @event("ping")
        def pings(self, ws):
            raise ValueError

    hub.add("/ws", Game)
    async with hub.test_client("/ws") as ws:
        await ws.send({"type": "ping"})
        assert ws.connection.is_open
    assert "Game.pings" in lines_of(caplog)[0]


# ── who holds the loop ────────────────────────────────────────────────────────────────────────


class Blocking(Listener):
    @event("def")
    def plain(self, ws):
        time.sleep(0.03)

    @event("first step")
    async def first(self, ws):
        time.sleep(0.03)  # noqa: ASYNC251 - what must not be done

    @event("later step")
    async def later(self, ws):
        await asyncio.sleep(0)
        time.sleep(0.03)  # noqa: ASYNC251 - what must not be done


@pytest.mark.parametrize(
    ("kind", "method"),
    [("def", Blocking.plain), ("first step", Blocking.first), ("later step", Blocking.later)],
)
async def test_a_callback_that_holds_the_loop_is_named_with_file_and_line(
    hub, caplog, kind, method
):
    hub.add("/ws", Blocking)
    async with hub.test_client("/ws") as ws:
        caplog.clear()
        await ws.send({"type": kind})
        await ws.settled()
    line = lines_of(caplog, logging.WARNING, "backchannel.listener")[0]
    assert f"Blocking.{method.__name__}" in line
    assert f"{Path(__file__).name}:{method.__code__.co_firstlineno}" in line
    assert "held the event loop" in line
    assert "@threaded" in line


async def test_waiting_and_threads_hold_no_loop(caplog):
    hub = Hub(slow_callback=0.1)

    class Patient(Listener):
        @event("async")
        async def waits(self, ws):
            await asyncio.sleep(0.15)
            return "done"

        @event("thread")
        @threaded
        def blocks(self, ws):
            time.sleep(0.15)
            return "done"

    hub.add("/ws", Patient)
    async with hub.test_client("/ws") as ws:
        for kind in ("async", "thread"):
            await ws.send({"type": kind})
            assert await ws.receive() == "done"
    assert lines_of(caplog, logging.WARNING, "backchannel.listener") == []
    await hub.stop()


async def test_with_cancel_on_close_off_what_a_client_sent_before_it_closed_is_handled():
    hub, handled, closed = Hub(cancel_on_close=False), [], []

    @hub.endpoint("/ws/save")
    class Save(Listener):
        async def on_message(self, ws, message: str):
            await asyncio.sleep(0)
            handled.append(message)

        def on_close(self, ws, reason):
            closed.append(list(handled))

    client = await hub.test_client("/ws/save").connect()
    for number in range(5):
        await client.send(str(number))
    await client.close()

    assert handled == ["0", "1", "2", "3", "4"]
    assert closed == [handled]  # before on_close, and on_close once


async def test_what_a_vanished_client_had_sent_is_dropped_with_the_connection():
    hub, handled = Hub(cancel_on_close=False), []

    @hub.endpoint("/ws/save")
    class Save(Listener):
        async def on_message(self, ws, message: str):
            await asyncio.sleep(0)
            handled.append(message)

    client = await hub.test_client("/ws/save").connect()
    await client.send("begun")
    await asyncio.sleep(0)  # the turn in which the callback begins
    await client.send("waits")
    await client.drop()

    assert handled == ["begun"]
