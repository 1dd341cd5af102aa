"""Callbacks of one connection: one at a time, and nested where one causes another."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from shared import turns

from backchannel import Listener, event, threaded
from backchannel.dialect import NAME

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


@pytest.mark.parametrize("dialect", [None, NAME])
@pytest.mark.parametrize(("size", "few"), [(100_000, 3), (1_000_000, 1), (5_050, 52)])
async def test_an_inbox_is_full_of_few_messages_where_they_are_large(hub, dialect, size, few):
    """Up to a quarter of a MiB, and one in any case; besides the one that is at work."""
    go, seen = asyncio.Event(), []

    class Slow(Listener):
        async def on_message(self, ws, message):
            seen.append(message)
            await go.wait()

    hub.add("/ws", Slow)
    async with hub.test_client("/ws", subprotocols=[dialect] if dialect else ()) as ws:
        sent = 0

        async def say(text, id_):
            frame = {"type": "message", "id": id_, "data": text}
            await ws.send(json.dumps(frame) if dialect else text)

        async def pour():
            nonlocal sent
            for number in range(1, 80):
                await say(f"{number:<{size}}", number)
                sent = number

        if dialect:
            await ws.send('{"type":"hello","v":1}')
        pouring = asyncio.create_task(pour())
        await turns(300)
        assert sent == few  # the last of them waits for room
        go.set()
        await asyncio.wait_for(pouring, 5)
        await ws.settled()
    assert [int(text) for text in seen] == list(range(1, 80))


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
