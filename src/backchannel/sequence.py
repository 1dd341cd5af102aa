"""What one connection has to do, one piece at a time and in order.

What may wait is begun by the runner, in a task, and goes on there until nothing is left to do: an
idle connection has neither a task nor an inbox.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from backchannel.change import Change, Coming, heed
from backchannel.inbox import Call, Inbox, Item, Rest
from backchannel.stepping import step

if TYPE_CHECKING:
    from backchannel.messages import Frame as Message
    from backchannel.runtime import Runtime

__all__ = ["Sequence"]


_MESSAGE: Final = (str, bytes)


class Sequence:
    """Does a connection's work in order; what that is, is up to the subclass.

    Args:
        runtime: whose runner begins what may wait.
        context: the context variables it is done in.

    Attributes:
        context: the context variables it is done in.
        task: the task of the piece of work that waits, if one does.
    """

    __slots__ = ("_awaited", "_first", "_idle", "_inbox", "_is_busy", "_runtime", "context", "task")

    def __init__(self, runtime: Runtime, context: Context):
        self.context = context
        self.task: asyncio.Task[Any] | None = None
        self._runtime = runtime
        self._is_busy = False
        self._awaited: tuple[Coming, Change] | None = None
        self._first: Item | None = None
        self._inbox: Inbox | None = None
        self._idle: asyncio.Future[None] | None = None

    @abstractmethod
    def _handle(self, message: Message) -> Rest | Call | str | None:
        """Handle a message as far as it goes without waiting.

        Returns:
            What is left of it; a text is the answer, which can be sent as it is.
        """

    @abstractmethod
    def _send_answer(self, text: str) -> None:
        """Send an answer, ASCII only: what ``_handle`` gave back, or an async callback."""

    @abstractmethod
    def _call_async(self, call: Call) -> Awaitable[object] | None:
        """Take the first step of an async callback; return what is left of it."""

    @property
    def inbox(self) -> Inbox:
        """What waits for its turn."""
        if self._inbox is None:
            self._inbox = Inbox(self._runtime.loop)
        return self._inbox

    def _is_full(self) -> bool:
        """So much waits that nothing more should be read for now."""
        return self._inbox is not None and self._inbox.is_full

    def look_for_room(self) -> None:
        """Let those who wait for room look again: it may be that they need not any more."""
        if self._inbox is not None:
            self._inbox.let_in()

    async def _wait_for_room(self) -> None:
        while self._inbox is not None and self._is_full():
            await self._inbox.room()

    def _has_more(self) -> bool:
        """Something waits that has not begun."""
        return self._first is not None or bool(self._inbox)

    def _work_on(self, rest: Item) -> None:
        """Let the runner go on with what has to wait, before all else."""
        if self._first is not None:
            self.inbox.put_first(self._first)
        self._first = rest
        if not self._is_busy:
            self._start()

    def _queue(self, change: Change, *, first: bool) -> None:
        """Let a change have its turn: before what came in, where a callback wants it."""
        if first:
            self.inbox.wish(change)
        else:
            self.inbox.put(change)
        if not self._is_busy:
            self._start()

    def _start(self) -> None:
        self._is_busy = True
        self._runtime.runner.start(self)

    def begin(self) -> Awaitable[object] | None:
        """Do what waits, as far as it goes without waiting; return what is left."""
        while (item := self._first) is not None or (item := self._take()) is not None:
            self._first = None
            if (rest := self._begin(item)) is not None:
                return self._work(rest)
            if self._inbox is None and self._first is None:
                return None
        return None

    async def _work(self, rest: Awaitable[object]) -> None:
        """Finish what has begun, then what came in meanwhile."""
        await rest
        while (item := self._take()) is not None:
            if left := self._begin(item):
                await left

    def ended(self) -> None:
        """Be idle, or go on with what came in since: also after a task that was cancelled."""
        if self._first is not None or self._inbox:
            self._runtime.runner.start(self)
            return
        self._is_busy = False
        self._inbox = None
        if self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    def _take(self) -> Item | None:
        if (item := self._first) is not None:
            self._first = None
            return item
        return self._inbox.take() if self._inbox else None

    def _begin(self, item: Item) -> Awaitable[object] | None:
        if isinstance(item, _MESSAGE):
            rest = self._handle(item)
            if rest is None:
                return None
            if isinstance(rest, str):
                self._send_answer(rest)
                return None
            item = rest
        if isinstance(item, Call):
            return self._call_async(item)
        return step(item.run() if isinstance(item, Change) else item.begin())

    def _wait_to_hear(self, coming: Coming, change: Change) -> None:
        """Be busy until this node hears a channel, which takes no task; then settle a change."""
        if self._is_busy:  # the rule that was asked has begun something, which comes after this
            change.go_on(coming.wait)
            self._work_on(change)
        else:
            self._is_busy = True
            self._awaited = coming, change
            coming.heard.add_done_callback(self._heard, context=self.context)

    def _heard(self, heard: asyncio.Future[Any]) -> None:
        """Enter the channel, then go on with what came in meanwhile."""
        if self._awaited is None or self._awaited[0].heard is not heard:
            heed(heard)
            return  # it was given up
        (coming, change), self._awaited = self._awaited, None
        try:
            done = coming.finish()
        except Exception as error:  # noqa: BLE001 - whatever the broker raises
            change.settle(result=False)
            self._runtime.report(f"entering a channel failed: {error!r}", error)
        else:
            if isinstance(done, bool):
                change.settle(result=done)
            else:
                change.go_on(lambda: done)
                self._work_on(change)
        self.ended()

    def _wait_no_more(self) -> None:
        """Cancel what a callback, or entering a channel, waits for."""
        if self.task is not None:
            self.task.cancel()
        elif self._awaited is not None:
            (coming, change), self._awaited = self._awaited, None
            coming.give_up()
            change.settle(result=False)
            self.ended()

    def _give_up(self, *, keep_messages: bool) -> None:
        first = self._first
        if not keep_messages and isinstance(first, str | bytes):
            self._first = None
        elif not keep_messages and isinstance(first, Rest | Call) and first.give_up is not None:
            self._first = None
            first.give_up()
        if self._inbox is not None:
            self._inbox.give_up(keep_messages=keep_messages)

    async def _wait_until_idle(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        if self._is_busy:
            self._idle = self._idle or self._runtime.loop.create_future()
            await asyncio.wait({self._idle}, timeout=timeout)
        return not self._is_busy
