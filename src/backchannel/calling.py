"""Calling a listener's callbacks: timed, nested, and what follows when one raises."""

from __future__ import annotations

import asyncio
import functools
import inspect
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from backchannel.change import RUNNING, Frame
from backchannel.connection import ABSENT, CloseReason
from backchannel.errors import Reject
from backchannel.inbox import Rest, nothing
from backchannel.observe import LISTENER, address, report_slow
from backchannel.sequence import Sequence
from backchannel.spelling import hint_for
from backchannel.stepping import NOTHING_YET, Watched, step
from backchannel.threads import call_in_thread

if TYPE_CHECKING:
    from backchannel.callbacks import Callback
    from backchannel.connection import Connection
    from backchannel.history import Position
    from backchannel.hub import HubCore

__all__ = ["Caller", "Work", "awaiting", "met_cancelled"]

Work = Coroutine[Any, Any, Any]


class Caller(Sequence):
    """Calls the callbacks of one connection's listener.

    Attributes:
        ws: the connection.
        endpoint: its endpoint, with the listener.
    """

    __slots__ = ("_hub", "_inline", "_slow", "endpoint", "ws")

    _no_reply: ClassVar[tuple[type, ...]]
    """What a callback may return that is not for the client."""

    def __init__(self, hub: HubCore, ws: Connection):
        super().__init__(hub.runtime, ws._context)
        self.ws = ws
        self.endpoint = ws._endpoint
        self._hub = hub
        self._slow = hub.settings.slow_callback  # is asked at each call
        self._inline = False

    @abstractmethod
    def end(self, reason: CloseReason, *, refused: bool = False) -> bool:
        """End the connection."""

    async def idle(self) -> None:
        """Wait until no callback for what the client sent runs or waits."""
        while self._is_busy and self.ws.reason is None:
            await self._wait_until_idle()

    def _is_inside(self) -> bool:
        """The code that runs now was called by one of this connection's callbacks."""
        if self._inline:
            return True
        frame = RUNNING.get()
        return frame is not None and frame.active and frame.dispatch is self

    def call_now(self, callback: Callback, first: Any, second: Any = ABSENT) -> Any:
        """Call a plain ``def`` with one argument or two, and time it; raises what it raises."""
        outer, self._inline = self._inline, True
        began = perf_counter()
        try:
            if second is ABSENT:
                return callback.function(first)
            return callback.function(first, second)
        except asyncio.CancelledError as error:
            raise met_cancelled(callback, error) from error
        finally:
            self._inline = outer
            if (took := perf_counter() - began) > self._slow:
                self._report_slow(callback, took)

    async def call(self, callback: Callback, *arguments: Any) -> Any:
        """Call a callback of any kind and wait for its end; raises what it raises."""
        if callback.in_thread:
            return await self._in_frame(call_in_thread(callback.function, *arguments), callback)
        if callback.is_async:
            return await self._in_frame(callback.function(*arguments), callback)
        result = self.call_now(callback, *arguments)
        if not inspect.iscoroutine(result):
            return result
        try:
            await asyncio.sleep(0)  # from here on in a task, whatever the caller is
        except BaseException:
            result.close()
            raise
        return await self._in_frame(result, callback)

    async def _in_frame(
        self,
        coroutine: Work,
        callback: Callback,
        frame: Frame | None = None,
        waits_for: Any = NOTHING_YET,
    ) -> Any:
        """Await a callback's coroutine, which has taken a step already where there is a frame."""
        outer, frame = RUNNING.get(), frame or Frame(self)
        RUNNING.set(frame)
        limit = self._slow
        report = functools.partial(self._report_slow, callback)
        try:
            return await Watched(coroutine, limit, report, waits_for)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise met_cancelled(callback, error) from error
        finally:
            frame.active = False
            RUNNING.set(outer)

    async def call_safely(self, callback: Callback | None, *arguments: Any) -> Any:
        """Call a callback; when it raises, log it, tell on_error, and return None."""
        if callback is None:
            return None
        try:
            return await self.call(callback, *arguments)
        except Exception as error:  # noqa: BLE001 - a listener may raise anything
            await self.failed(callback, error)
            return None

    def _in_thread(self, callback: Callback, content: Any) -> Rest:
        """Return the call of a callback for a message in a worker thread; it has not begun."""
        call = functools.partial(self.call, callback, self.ws, content)
        return Rest(functools.partial(self._finish, callback, call), nothing)

    async def _finish(self, callback: Callback, call: Callable[[], Work]) -> None:
        try:
            answer = await call()
        except Exception as error:  # noqa: BLE001 - a listener may raise anything
            await self.failed(callback, error)
            return
        if answer is not None and (rest := self._answer(callback, answer)):
            await rest.begin()

    def _answer(self, callback: Callback, answer: Any) -> Rest | None:
        """Send what a callback returned; return what is left to do when it can't be sent."""
        try:
            if type(answer) is str or not isinstance(answer, self._no_reply):
                self.ws._send(answer)
        except Exception as error:  # noqa: BLE001 - UnsendableMessage
            return self._failed(callback, error)
        return None

    def answer_of(self, callback: Callback, error: Exception) -> Reject | Literal[False]:
        """Return what a ``def`` that was asked has answered by raising.

        Raising Reject is an answer; any other error is logged, told to on_error, and refuses.
        """
        if isinstance(error, Reject):
            return error
        if (rest := self._failed(callback, error)) and (left := step(rest.begin())):
            self._work_on(Rest(functools.partial(awaiting, left)))
        return False

    async def call_safely_with(self, callback: Callback, coroutine: Work) -> Any:
        """Await what a ``def`` returned; when it raises, log it, tell on_error, return False."""
        try:
            return await self._in_frame(coroutine, callback)
        except Reject as answer:
            return answer
        except Exception as error:  # noqa: BLE001 - a listener may raise anything
            await self.failed(callback, error)
            return False

    def _report_slow(self, callback: Callback, seconds: float) -> None:
        report_slow(callback.name, callback.where, seconds, self._slow)

    def tell_lost(self, channel: str | None, position: Position | None = None) -> None:
        """Tell on_lost that this connection missed some; at once where it is idle.

        Args:
            channel: of it; None is of what was for its user, its session or everyone.
            position: from which on it has all again, where it is known.
        """
        callback = self.endpoint.callbacks.on_lost
        if callback is None or self.ws.reason is not None:
            return
        telling = functools.partial(self.call_safely, callback, self.ws, (channel, position))
        if self._is_busy:
            self.inbox.put(Rest(telling, nothing))
        elif not callback.returns_at_once:
            self._work_on(Rest(telling, nothing))
        elif rest := self.context.run(step, telling()):
            self._work_on(Rest(functools.partial(awaiting, rest)))

    async def failed(self, callback: Callback, error: Exception) -> None:
        """Log what a callback raised, once, and tell on_error."""
        if rest := self._failed(callback, error):
            await rest.begin()

    def _failed(self, callback: Callback, error: Exception) -> Rest | None:
        ws = self.ws
        LISTENER.error(
            "%s (%s) raised %s: %s%s [%r, connection %s, client %s]",
            callback.name, callback.where, type(error).__name__, error, hint_for(error, type(ws)),
            ws._facts.path, ws.id, address(ws.client), exc_info=error,
        )  # fmt: skip
        on_error = self.endpoint.callbacks.on_error
        if on_error is None or callback is on_error:
            return None
        return Rest(functools.partial(self._tell, on_error, error))

    async def _tell(self, on_error: Callback, error: Exception) -> None:
        if await self.call_safely(on_error, self.ws, error) is False:
            self.end(CloseReason(1011, "listener failed", "server"))


def met_cancelled(callback: Callback, error: BaseException) -> RuntimeError:
    """Return the error for a callback that nobody cancelled: what it waited for was cancelled."""
    met = RuntimeError(f"{callback.name} awaited something that was cancelled")
    met.__cause__ = error
    return met


async def awaiting(work: Awaitable[object]) -> None:
    """Await what is left of some work."""
    await work
