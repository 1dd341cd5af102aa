"""Calling a listener for what its client sent, and sending what it answers.

Nearly all of an application's messages come this way, so that each call counts.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable
from time import perf_counter
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, cast

from backchannel.calling import Caller, met_cancelled
from backchannel.change import RUNNING, Frame
from backchannel.errors import InvalidMessage
from backchannel.inbox import Call, Rest, nothing
from backchannel.observe import CONNECTION, TRACE, excerpt
from backchannel.stepping import step

if TYPE_CHECKING:
    from backchannel.callbacks import Callback
    from backchannel.calling import Work
    from backchannel.messages import Frame as Message

__all__ = ["Answering", "handle"]


class Answering(Caller):
    """Calls the callbacks for messages of one connection."""

    __slots__ = ()

    def _handle(self, message: Message) -> Rest | Call | str | None:
        """Handle a message as far as it goes without waiting; return what is left of it."""
        callbacks = self.endpoint.callbacks
        content: Any = message
        if (callback := callbacks.for_texts) is None or type(message) is not str:
            callback = callbacks.on_message
            try:
                if callbacks.events:
                    callback = self.endpoint.route(message)
                if callback is None:
                    return None
                if (decode := callback.decode) is not None:
                    content = decode(message)
            except InvalidMessage as error:
                return self._invalid(error)
            if callback.in_thread:
                return self._in_thread(callback, content)
            if callback.is_async:
                function = callback.function
                try:
                    return Call(callback, function(self.ws, content))
                except Exception as error:  # noqa: BLE001 - a listener may raise anything
                    return self._failed(callback, error)
        # What follows is call_now() and _answer(), without the cost of calling them.
        ws, outer, function = self.ws, self._inline, callback.function
        self._inline = True
        try:
            began = perf_counter()
            try:
                answer = function(ws, content)
            finally:
                self._inline = outer
                if (took := perf_counter() - began) > self._slow:
                    self._report_slow(callback, took)
            if began > TRACE.until:
                TRACE.look_again(began)
            if answer is None:
                return None
            if type(answer) is str:
                if not TRACE.is_on and answer.isascii():
                    return answer
                ws._send(answer)
            elif type(answer) is CoroutineType:
                return Call(callback, cast("Work", answer))
            elif not isinstance(answer, self._no_reply):
                ws._send(answer)
        except asyncio.CancelledError as error:
            return self._failed(callback, met_cancelled(callback, error))
        except Exception as error:  # noqa: BLE001 - a listener may raise anything
            return self._failed(callback, error)
        return None

    def begin(self) -> Awaitable[object] | None:
        """Do what waits: a text for an async callback without the detours of all else."""
        text = self._first
        if type(text) is not str or (callback := self.endpoint.callbacks.async_for_texts) is None:
            return super().begin()
        self._first = None
        try:
            coroutine = callback.function(self.ws, text)
        except Exception as error:  # noqa: BLE001 - a listener may raise anything
            rest = self._failed(callback, error)
            left = None if rest is None else step(rest.begin())
        else:
            left = self._step(callback, coroutine)
        if left is not None:
            return self._work(left)
        if self._inbox is None and self._first is None:
            return None
        return super().begin()

    def _call_async(self, call: Call) -> Awaitable[object] | None:
        return self._step(call.callback, call.coroutine)

    def _step(self, callback: Callback, coroutine: Work) -> Awaitable[object] | None:
        """Take the first step of an async callback for a message; return what is left."""
        frame = Frame(self)
        before = RUNNING.set(frame)
        began = perf_counter()
        if began > TRACE.until:
            TRACE.look_again(began)
        answer: Any = None
        rest: Rest | None = None
        try:
            waits_for = coroutine.send(None)
        except StopIteration as stop:
            answer = stop.value
        except asyncio.CancelledError as error:
            rest = self._failed(callback, met_cancelled(callback, error))
        except Exception as error:  # noqa: BLE001 - a listener may raise anything
            rest = self._failed(callback, error)
        else:
            going_on = functools.partial(self._in_frame, coroutine, callback, frame, waits_for)
            return self._finish(callback, going_on)
        finally:
            RUNNING.reset(before)
            if (took := perf_counter() - began) > self._slow:
                self._report_slow(callback, took)
        frame.active = False
        # Only now: a StopIteration that is being handled would show the answer in a traceback.
        if answer is not None:
            if type(answer) is str and answer.isascii():
                self._send_answer(answer)
                return None
            rest = self._answer(callback, answer)
        return None if rest is None else step(rest.begin())

    def _send_answer(self, text: str) -> None:
        ws = self.ws
        # With more to do there are more answers to come, which shall be one write.
        if self._inbox is None and ws._held is None and ws.reason is None and not TRACE.is_on:
            ws._link.answer(text)
        else:
            ws._send(text)

    def _invalid(self, error: InvalidMessage) -> Rest | None:
        CONNECTION.debug("%s invalid message: %s", self.ws, excerpt(error.text))
        callback = self.endpoint.callbacks.on_invalid
        if callback is None:
            return None
        if not callback.returns_at_once:
            return Rest(functools.partial(self.call_safely, callback, self.ws, error), nothing)
        try:
            self.call_now(callback, self.ws, error)
        except Exception as raised:  # noqa: BLE001 - a listener may raise anything
            return self._failed(callback, raised)
        return None


# Bound to a connection's dispatch it would be one object more for each message.
handle: Final = Answering._handle
