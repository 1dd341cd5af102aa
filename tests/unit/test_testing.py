"""What an application's tests get besides the client: errors of callbacks fail a test."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from backchannel import Hub, Reject
from backchannel.testing import ConnectionClosed, HandshakeRefused, no_errors

CALLBACKS = ["on_handshake", "on_first_open", "on_open", "on_channel_open", "on_subscribe",
             "on_message", "on_close", "on_unsubscribe", "on_channel_close", "on_last_close"]  # fmt: skip
LOGGERS = [f"backchannel.{name}" for name in ("hub", "handshake", "connection", "listener")]


def boom(*arguments):
    raise ValueError("boom")


async def boom_later():
    boom()


async def visit(hub, path="/ws/cars"):
    """Live through all callbacks, whatever they do."""
    with contextlib.suppress(ConnectionClosed, HandshakeRefused):
        async with hub.test_client(path) as client:
            await client.send("hello")
            await client.settled()


@contextlib.contextmanager
def failing(*errors):
    """Check that the block fails with exactly these errors of callbacks."""
    with pytest.raises(ExceptionGroup, match="the application failed") as caught:
        yield
    assert [type(error) for error in caught.value.exceptions] == list(errors)


@pytest.mark.parametrize("name", CALLBACKS)
async def test_what_a_callback_raises_fails_the_block(hub, diary, style, name):
    hub.add("/ws/{channel}", diary.listener(style, **{name: boom}))
    with failing(ValueError), no_errors():
        await visit(hub)


async def test_errors_beside_the_callbacks_fail_the_block_too(diary):
    hub = Hub(authenticate=boom)
    hub.add("/ws", diary.listener())
    with failing(ValueError), no_errors():
        await visit(hub, "/ws")
    await hub.stop()


async def test_spawned_work_that_raises_fails_the_block(hub, diary):
    hub.add("/ws", diary.listener(on_message=lambda ws, message: ws.spawn(boom_later()) and None))
    with failing(ValueError), no_errors():
        async with hub.test_client("/ws") as client:
            await client.send("x")
            (task,) = client.connection._tasks
            await asyncio.wait({task})


async def test_what_has_no_exception_fails_the_block_by_its_text(diary):
    hub = Hub(cancel_grace=0.01)

    async def hold_on(*arguments):
        begun.set()
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    begun, release = asyncio.Event(), asyncio.Event()
    hub.add("/ws", diary.listener("async def", on_message=hold_on))
    with failing(RuntimeError), no_errors():
        async with hub.test_client("/ws") as client:
            await client.send("x")
            await begun.wait()
    release.set()
    await hub.stop()


async def test_refusals_and_invalid_messages_are_no_errors(hub, diary):
    def refuse(ws, channel):
        raise Reject("no")

    hub.add("/ws/{channel}", diary.listener(on_subscribe=refuse))
    hub.add("/typed", lambda ws, message: None)
    with no_errors():
        await visit(hub)
        await visit(hub, "/typed")


async def test_an_error_that_is_expected_is_taken_out(hub, diary):
    hub.add("/ws/{channel}", diary.listener(on_message=boom))
    with no_errors() as errors:
        await visit(hub)
        assert str(errors.pop()) == "boom"
    with failing(ValueError), no_errors() as errors:
        await visit(hub)
        errors.pop()
        await visit(hub)


async def test_a_failure_of_the_block_itself_is_shown_with_what_caused_it(hub, diary):
    hub.add("/ws", diary.listener(on_message=boom))

    async def wait_for_an_answer():
        async with hub.test_client("/ws") as client:
            await client.send("x")
            await client.receive(timeout=0.01)

    with pytest.raises(ExceptionGroup) as caught, no_errors():
        await wait_for_an_answer()
    assert isinstance(caught.value.__context__, TimeoutError)
    with pytest.raises(LookupError), no_errors():
        raise LookupError


async def test_afterwards_nobody_listens_any_more(hub, diary):
    hub.add("/ws/{channel}", diary.listener(on_message=boom))
    before = [list(logging.getLogger(name).handlers) for name in LOGGERS]
    with no_errors() as errors:
        pass
    await visit(hub)
    assert errors == []
    assert [logging.getLogger(name).handlers for name in LOGGERS] == before


@pytest.mark.parametrize("name", LOGGERS)
def test_a_log_that_is_switched_off_is_no_silent_success(name, monkeypatch):
    monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    with pytest.raises(RuntimeError, match=f"{name} is switched off"), no_errors():
        pass
