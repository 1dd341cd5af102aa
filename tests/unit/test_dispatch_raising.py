"""What follows when a callback raises."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from shared import lines_of, turns

from backchannel import Listener

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


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("name", "what is yours belongs in ws.state: ws.state.name"),
        ("send_json", "ws.send(…) takes str, bytes and all that can be JSON"),
        ("receive_text", "messages come to on_message"),
        ("subscribed", "did you mean ws.subscribe?"),
    ],
)
@pytest.mark.parametrize("access", [getattr, lambda ws, name: setattr(ws, name, 1)])
async def test_the_log_says_what_was_meant_by_an_attribute_that_is_none(
    hub, caplog, name, hint, access
):
    hub.add("/ws", lambda ws, message: access(ws, name))
    async with hub.test_client("/ws") as ws:
        await ws.send("x")
        await ws.settled()
    (line,) = lines_of(caplog, logging.ERROR, "backchannel.listener")
    assert f"has no attribute '{name}'; " in line
    assert hint in line


async def test_an_attribute_error_about_something_else_gets_no_hint(hub, caplog):
    hub.add("/ws", lambda ws, message: message.name)
    async with hub.test_client("/ws") as ws:
        await ws.send("x")
        await ws.settled()
    (line,) = lines_of(caplog, logging.ERROR, "backchannel.listener")
    assert "has no attribute 'name' [" in line


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
