"""What callbacks run in: contexts, tasks, threads; who holds the event loop is named."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from contextvars import ContextVar
from pathlib import Path

import pytest
from shared import lines_of, turns

from backchannel import Hub, Listener, event, threaded

LANGUAGE: ContextVar[str] = ContextVar("language", default="none")


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
