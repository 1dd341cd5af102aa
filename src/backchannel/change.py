"""Entering and leaving a channel as something that can be awaited, or not.

What a callback causes at its own connection (``await ws.subscribe(x)``) runs nested, at that
await: a Frame in the context says that the code which waits belongs to a running callback, also
through gather(), task groups and threads. Without it the callback would wait for its own end.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from backchannel.sent import Later, wait_in_thread
from backchannel.stepping import NOTHING_YET, Watched
from backchannel.turn import OPENINGS

if TYPE_CHECKING:
    from backchannel.catchup import Missed
    from backchannel.changing import Changing
    from backchannel.history import Position
    from backchannel.sequence import Sequence

__all__ = ["RUNNING", "SETTLED", "Change", "Coming", "Frame", "current", "detached", "heed"]

RUNNING: ContextVar[Frame | None] = ContextVar("backchannel_running", default=None)


class Frame(msgspec.Struct, eq=False):
    """One running callback that may wait; what it causes at its own connection nests in it.

    A Struct, since each async callback needs one, and these are made fastest.

    Args:
        dispatch: whose callback it is.
        active: it has not ended.
        lock: that of ``turn``, once somebody needed it.
    """

    dispatch: Sequence
    active: bool = True
    lock: asyncio.Lock | None = None

    @property
    def turn(self) -> asyncio.Lock:
        """Held by the change that runs nested: one at a time."""
        if self.lock is None:
            self.lock = asyncio.Lock()
        return self.lock


def current() -> Frame | None:
    """Return the running callback that the calling code belongs to, if there is one."""
    frame = RUNNING.get()
    return frame if frame is not None and frame.active else None


def detached(context: Context) -> Context:
    """Return a copy of a context for a task of its own, which is part of no running callback."""
    context = context.copy()
    context.run(RUNNING.set, None)
    return context


class Change(Later):
    """A connection entering or leaving a channel. Await it for True or False, or ignore it."""

    __slots__ = (
        "_apply", "_dispatch", "_missed", "_openings", "_outcome", "_waiting", "has_begun",
    )  # fmt: skip

    def __init__(
        self,
        dispatch: Changing,
        apply: Callable[[], Coroutine[Any, Any, bool]] | None,
        missed: Missed | None = None,
    ):
        super().__init__()
        self._dispatch = dispatch
        self._missed = missed
        self._apply = apply
        self._outcome: bool | None = None
        self._openings = OPENINGS.get()
        self._waiting: list[asyncio.Future[None]] | None = None  # in the hub's event loop
        self.has_begun = False

    @property
    def lost(self) -> bool:
        """Some of what came after ``since`` is not there any more; known once it was awaited."""
        return self._missed is not None and self._missed.lost

    @property
    def position(self) -> Position | None:
        """Up to where the client has all there is of the channel; None without ``since``."""
        return None if self._missed is None else self._missed.position

    def done(self) -> bool:
        """Tell whether it is known what became of it."""
        return self._outcome is not None

    @property
    def is_waiting(self) -> bool:
        """It is not done, and nobody is at it."""
        return self._apply is not None

    def settle(self, *, result: bool) -> None:
        """Tell those who wait."""
        self._apply = None
        if self._outcome is not None:
            return
        self._outcome = result
        if self._signal is not None:
            self._tell()
        for waiting in self._waiting or ():
            if not waiting.done():
                waiting.set_result(None)

    def run_now(self) -> bool:
        """Do it without waiting; False when it has to wait after all and needs its turn."""
        apply, self._apply = self._apply, None
        if apply is None:
            return True
        work = apply()
        try:
            waits_for = work.send(None)
        except StopIteration as stop:
            self.settle(result=stop.value)
            return True
        except BaseException:
            self.settle(result=False)
            raise
        # A def returned a coroutine, of which nothing has run yet (see Dispatch.call), or a rule
        # has closed the channel that it was asked about, which has to be heard anew.
        self.go_on(functools.partial(_go_on, work, waits_for))
        return False

    def go_on(self, apply: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        """Have it come to its end when it has its turn: it has begun."""
        self._apply, self.has_begun = apply, True

    async def run(self) -> None:
        """Do it, once."""
        apply, self._apply = self._apply, None
        if apply is None:
            return
        result, outer = False, OPENINGS.get()
        OPENINGS.set(self._openings)
        try:
            result = await apply()
        finally:
            OPENINGS.set(outer)
            self.settle(result=result)

    def result(self, timeout: float | None = None) -> bool:
        """Wait in another thread.

        Args:
            timeout: seconds to wait; None waits for ever.

        Raises:
            TimeoutError: it took longer.
            RuntimeError: called in the event loop, which would wait for itself.
        """
        if self.is_waiting and current():
            keep, context = self._dispatch.ws.hub.runtime.keep, copy_context()
            self._dispatch.ws.hub.runtime.loop.call_soon_threadsafe(
                lambda: keep(self._wait(), context)
            )
        if self._outcome is None:
            wait_in_thread(self.signal(), timeout)
        return bool(self._outcome)

    async def _nested(self, frame: Frame) -> None:
        async with frame.turn:
            await self.run()

    async def _wait(self) -> bool:
        frame = current()
        if frame is None:
            return await self._settled()
        if frame.dispatch is self._dispatch:
            await self._nested(frame)
            return await self._settled()
        # A callback of one connection waits for another connection's turn: its own changes
        # are taken meanwhile, so that two that wait for each other don't wait for ever.
        waiting = asyncio.ensure_future(self._settled())
        try:
            while frame.active and not waiting.done():
                if (change := frame.dispatch.inbox.take_change()) is not None:
                    await change._nested(frame)
                    continue
                either: set[asyncio.Future[Any]] = {waiting, frame.dispatch.inbox.news()}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return await waiting
        finally:
            waiting.cancel()

    async def _settled(self) -> bool:
        if self._outcome is None:
            loop = asyncio.get_running_loop()
            if loop is not self._dispatch.ws.hub.runtime.loop:
                await asyncio.wrap_future(self.signal())
                return bool(self._outcome)
            waiting = loop.create_future()
            if self._waiting is None:
                self._waiting = []
            self._waiting.append(waiting)
            await waiting
        return bool(self._outcome)

    def __bool__(self) -> NoReturn:
        """Refuse: without ``await`` it would always be true.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "what became of it is not known yet: await it first, as in `if await "
            "ws.subscribe(…):`, or call .result(timeout) in a thread"
        )

    def __await__(self) -> Generator[Any, Any, bool]:
        """Wait until it is done; inside a callback of the same connection it is done right here."""
        if self._outcome is None:
            return (yield from self._wait().__await__())
        return self._outcome


class Coming:
    """A connection on its way into a channel that its node has yet to hear: all it waits for.

    Args:
        heard: done when the node hears the channel, or can't.
        finish: goes on then; returns whether it is in, or what is left to do.
        give_up: stays out instead.
    """

    __slots__ = ("finish", "give_up", "heard")

    def __init__(
        self,
        heard: asyncio.Future[Any],
        finish: Callable[[], bool | Coroutine[Any, Any, bool]],
        give_up: Callable[[], None],
    ):
        self.heard = heard
        self.finish = finish
        self.give_up = give_up

    async def wait(self) -> bool:
        """Wait in a task; return whether it is in."""
        try:
            await asyncio.wait({self.heard})  # finish() sees what became of it
        except asyncio.CancelledError:
            self.heard.add_done_callback(heed)
            self.give_up()
            raise
        done = self.finish()
        return done if isinstance(done, bool) else await done


class _Settled(Change):
    """A change that is done; of each outcome there is one."""

    __slots__ = ()

    def __init__(self, outcome: bool):
        self._apply = self._missed = self._signal = self._waiting = None
        self._outcome = outcome
        self.has_begun = True


SETTLED: Final = {outcome: _Settled(outcome) for outcome in (False, True)}


async def _go_on(work: Coroutine[Any, Any, bool], waits_for: Any) -> bool:
    """Go on with what has taken a step, which may have given up its turn: None."""
    rest = NOTHING_YET if waits_for is None else waits_for
    return bool(await Watched(work, waits_for=rest))


def heed(heard: asyncio.Future[Any]) -> None:
    """Look at what became of something that nobody waits for any more."""
    if not heard.cancelled():
        heard.exception()
