"""Every way a connection ends: one `on_close`, no ghost, and what becomes of what still runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading

import pytest
from shared import lines_of, turns

from backchannel import Hub, Listener, threaded
from backchannel.dialect import NAME
from backchannel.observe import CONNECTION
from backchannel.testing import ConnectionClosed

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


@pytest.mark.parametrize("which", ["open, client", "ended"])
@pytest.mark.parametrize("name", [None, NAME])
async def test_a_connection_opens_and_leaves_its_channels_although_the_log_raises(
    hub, diary, name, monkeypatch, caplog, which
):
    def mistaken(record):
        if which in record.getMessage():
            raise RuntimeError("a bug in a filter of the log")
        return True

    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    hub.add("/ws/{channel}", diary.listener())
    monkeypatch.setattr(CONNECTION, "filters", [mistaken])
    caplog.set_level(logging.INFO, CONNECTION.name)
    client = await hub.test_client("/ws/cars", subprotocols=[name] if name else ()).connect()
    if name:
        await client.send('{"type":"hello","v":1}')
    hub.broadcast("cars", "to all")
    assert "to all" in "".join([await client.receive() for _ in range(3 if name else 1)])
    await client.close()
    assert hub.channels() == {}
    assert "on_close 1000" in diary
    (context,) = told
    assert f"{which}" in context["message"]
    assert str(context["exception"]) == "a bug in a filter of the log"
