"""Sending: what a verb returns, and calls from other threads."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared import Room, heard

from backchannel import (
    Hub,
    Listener,
    Sent,
    UnsendableMessage,
    threaded,
)
from backchannel.broker.memory import MemoryBroker

# ── Sent ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_sent_may_be_ignored_awaited_or_asked(hub, room):
    sent = hub.broadcast("cars", "hi")
    assert isinstance(sent, Sent)
    assert await sent is sent
    assert await sent is sent  # again
    assert (sent.reached, sent.position) == (3, None)
    assert sent.result(0) is sent


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (math.nan, r"\$ "),
        ({"a": [1, math.inf]}, r"\$\.a\[1\]"),
        ({"a": object()}, r"\$\.a"),
        ("\ud800", r"\$"),
        ({"a": "\ud800"}, r"\$\.a"),
    ],
    ids=["nan", "infinity", "object", "surrogate", "nested surrogate"],
)
async def test_what_can_not_be_json_raises_at_the_call_and_nothing_was_sent(
    hub, room, message, path
):
    ws = room["bob"].connection
    for act in (
        lambda: hub.broadcast("cars", message),
        lambda: hub.everyone.send(message),
        lambda: ws.send(message),
        lambda: ws.broadcast(message),
        lambda: hub.broadcast("nobody-here", message),
    ):
        with pytest.raises(UnsendableMessage, match=path):
            act()
    assert heard(room) == {}


async def test_kinds_of_messages_reach_clients_as_kinds_of_frames(hub, room):
    for message in ("text", b"\x00", bytearray(b"\x01"), {"k": [1, None]}, 0, None):
        hub.user("bob").send(message)
    assert heard(room) == {"bob": ["text", b"\x00", b"\x01", '{"k":[1,null]}', "0", "null"]}


class FailingBroker(MemoryBroker):
    def publish(self, publication, keep):
        raise ConnectionError("the broker is away")


async def test_a_failure_is_raised_where_the_sent_is_awaited(caplog):
    hub = Hub(broker=FailingBroker())
    hub.add("/ws", Room)
    async with hub.test_client("/ws"):
        with pytest.raises(ConnectionError):
            await hub.broadcast("cars", "hi")
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(lambda: hub.broadcast("cars", "hi").result(1))
    await hub.stop()


async def test_a_failure_that_nobody_awaited_is_logged_once_and_shown_in_health(caplog):
    hub = Hub(broker=FailingBroker())
    hub.add("/ws", Room)
    async with hub.test_client("/ws"):
        hub.broadcast("cars", "hi")
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()
        assert len(hub.health.problems) == 1
        assert "the broker is away" in hub.health.problems[0]
        assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 1
    await hub.stop()


# ── threads ───────────────────────────────────────────────────────────────────────────────────


async def test_every_verb_works_from_another_thread(hub, room):
    ws = room["bob"].connection

    def elsewhere():
        return [
            hub.broadcast("cars", "1").result(1).reached,
            ws.send("2").result(1).reached,
            ws.broadcast("3").result(1).reached,
            hub.user("bob").send("4").result(1).reached,
            ws.subscribe("boats").result(1),
            hub.everyone.subscribe("boats").result(1).reached,
            ws.unsubscribe("boats").result(1),
            hub.everyone.unsubscribe("boats").result(1).reached,
            hub.user("ana").close(4100).result(1).reached,
        ]

    assert await asyncio.to_thread(elsewhere) == [3, 1, 3, 1, True, 4, True, 3, 2]
    assert room["bob"].received() == ["1", "2", "3", "4"]


async def test_a_sent_from_another_thread_may_be_awaited_in_the_loop(hub, room):
    sent = await asyncio.to_thread(lambda: hub.broadcast("cars", "hi"))
    assert (await sent).reached == 3


async def test_reached_before_it_is_sent_says_so(hub, room):
    begun = threading.Event()
    caught = []

    def elsewhere():
        sent = hub.broadcast("cars", "hi")
        try:
            caught.append(sent.reached)
        except RuntimeError as error:
            caught.append(str(error))
        begun.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    begun.wait(5)  # the loop stands still: nothing can have been sent
    thread.join(5)
    assert "not sent yet" in caught[0]


async def test_result_in_the_event_loop_would_wait_for_itself_and_says_so(hub, room):
    sent = []
    thread = threading.Thread(target=lambda: sent.append(hub.broadcast("cars", "hi")))
    thread.start()
    thread.join(5)
    with pytest.raises(RuntimeError, match="await"):
        sent[0].result(1)
    assert (await sent[0]).reached == 3


async def test_what_raises_at_the_call_raises_in_the_thread_that_calls(hub, room):
    def elsewhere():
        with pytest.raises(UnsendableMessage):
            hub.broadcast("cars", math.nan)
        with pytest.raises(TypeError):
            hub.broadcast("cars", "hi", to=None)
        with pytest.raises(ValueError, match="channel name"):
            room["bob"].connection.subscribe("$x")
        with pytest.raises(ValueError, match="close code"):
            room["bob"].connection.close(99)

    await asyncio.to_thread(elsewhere)
    assert heard(room) == {}


async def test_before_the_start_nobody_is_reached_and_nothing_raises():
    hub = Hub()
    hub.add("/ws", Room)
    assert hub.broadcast("cars", "hi").reached == 0
    assert hub.everyone.send("hi").reached == 0
    assert hub.everyone.close().reached == 0
    assert hub.channels() == {}
    assert await hub.everyone.count() == 0
    assert hub.health.running is False


CALLS = st.lists(st.sampled_from(["send", "broadcast", "whisper", "user", "reply"]), max_size=30)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls=CALLS, in_thread=st.booleans(), style=st.sampled_from(["def", "async", "threaded"]))
def test_messages_of_one_caller_arrive_in_the_order_of_the_calls(calls, in_thread, style):
    """From a callback of any style, or from another thread, whatever verb is used."""

    async def scenario():
        hub = Hub()

        def pour(ws):
            for number, call in enumerate(calls):
                text = str(number)
                if call == "send":
                    ws.send(text)
                elif call == "broadcast":
                    ws.broadcast(text)
                elif call == "whisper":
                    hub.broadcast("cars", text, to=ws.id)
                elif call == "user":
                    hub.user("ana").send(text)
                else:
                    hub.connection(ws.id).send(text)
            return "end"

        class Pour(Listener):
            if style == "def":

                def on_message(self, ws, message):
                    return pour(ws)

            elif style == "async":

                async def on_message(self, ws, message):
                    await asyncio.sleep(0)
                    return pour(ws)

            else:

                @threaded
                def on_message(self, ws, message):
                    return pour(ws)

        hub.add("/ws/{channel}", Pour)
        async with (
            hub.test_client("/ws/cars", user="ana") as ws,
            hub.test_client("/ws/cars", user="bob") as other,
        ):
            if in_thread:

                def from_thread():
                    pour(ws.connection)
                    ws.connection.send("end").result(5)

                await asyncio.to_thread(from_thread)
            else:
                await ws.send("go")
                await ws.settled()
            assert ws.received() == [*map(str, range(len(calls))), "end"]
            wanted = [str(n) for n, call in enumerate(calls) if call == "broadcast"]
            assert other.received() == wanted
        await hub.stop()

    asyncio.run(scenario())


async def test_several_threads_each_keep_their_own_order(hub, room):
    def pour(name):
        sent = [hub.broadcast("cars", f"{name} {n}") for n in range(200)]
        sent[-1].result(5)

    await asyncio.gather(*(asyncio.to_thread(pour, name) for name in "abc"))
    frames = room["bob"].received()
    assert len(frames) == 600
    for name in "abc":
        assert [f for f in frames if f[0] == name] == [f"{name} {n}" for n in range(200)]
