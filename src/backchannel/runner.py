"""Tasks for what may wait, as few as possible.

A callback that may wait needs a task: ``asyncio.timeout``, ``current_task`` and anyio work with
nothing less. Most callbacks have ended when their first step has. So one task takes those first
steps for all connections that have something in this turn of the event loop, each in the context
of its own. As soon as one has to wait, the task becomes its own, until its end, and others go on
with the rest: two, and if these have to wait too, four, so that many which wait begin within a few
turns. A task is therefore never shared by two that wait, nor used again; nor is one
that somebody keeps, as who cancels it later, or finds something by it, means what it was then.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextvars import Context
from typing import Any, Final, Protocol, cast

from backchannel.stepping import InContext

__all__ = ["Runner", "Work", "Writer"]

_CONTEXT: Final = Context()

MOST: Final = 64
"""Tasks that take first steps at the same time."""


def _counted(_task: object, _calls: Iterator[int] = itertools.count()) -> int:  # noqa: B008 - all share it
    return next(_calls)


_references: Final[Callable[[object], int]] = getattr(sys, "getrefcount", _counted)
"""How often something is referred to; where nobody counts, always once more than before."""


class Work(Protocol):
    """What a connection has to do.

    Attributes:
        task: the task that is its own while it waits; None otherwise.
    """

    task: asyncio.Task[Any] | None

    @property
    def context(self) -> Context:
        """The context variables it runs in."""
        ...

    def begin(self) -> Awaitable[object] | None:
        """Take the first step, inside a task; return what is left, None when it is done."""
        ...

    def ended(self) -> None:
        """Take note that it has come to its end, whatever that was."""
        ...


class Writer(Protocol):
    """Writes what work answers."""

    def gather(self) -> None:
        """Keep from now on what work answers."""
        ...

    def release(self) -> None:
        """Write it."""
        ...


class Runner:
    """Runs work in tasks.

    Args:
        create: makes a task for a coroutine and its context, which begins in the next turn.
        hold: holds a task until it ends, and reports what it raises.
        writer: writes what is answered in first steps, when a task has taken its last one.
    """

    __slots__ = ("_create", "_hold", "_on_end", "_takers", "_waiting", "_width", "_writer")

    def __init__(
        self,
        create: Callable[[Coroutine[Any, Any, Any], Context], asyncio.Task[Any]],
        hold: Callable[[asyncio.Task[Any]], object],
        writer: Writer,
    ):
        self._create = create
        self._hold = hold
        self._writer = writer
        self._waiting: deque[Work] = deque()
        self._takers: set[asyncio.Task[Any]] = set()
        self._on_end = self._ended  # bound once
        self._width = 1

    @property
    def tasks(self) -> Iterable[asyncio.Task[Any]]:
        """Those that take first steps; nobody else holds them."""
        return self._takers

    def start(self, work: Work) -> None:
        """Begin work in the next turn of the event loop."""
        self._waiting.append(work)
        if not self._takers:
            self._width = 1
            self._wake()

    def _wake(self) -> None:
        task = self._create(self._run(), _CONTEXT)
        self._takers.add(task)
        task.add_done_callback(self._on_end)

    def _leave(self, task: asyncio.Task[Any]) -> None:
        """Take no first steps any more; others go on with what waits."""
        takers = self._takers
        takers.remove(task)
        # It is for tasks that end otherwise, and would take a turn of the event loop.
        task.remove_done_callback(self._on_end)
        if self._waiting and not takers:
            self._width = min(2 * self._width, MOST)
            for _ in range(min(self._width, len(self._waiting))):
                self._wake()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """Go on without a task that was cancelled before its first step, or failed."""
        self._hold(task)  # which reports it
        self._leave(task)

    async def _run(self) -> None:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._writer.gather()
        try:
            waits = self._take_first_steps(task)
        finally:
            self._writer.release()
        if waits is None:
            self._leave(task)
            return
        work, rest = waits
        work.task = task
        self._hold(task)
        self._leave(task)
        try:
            await InContext(rest, work.context)
        finally:
            work.task = None
            work.ended()

    def _take_first_steps(self, task: asyncio.Task[Any]) -> tuple[Work, Awaitable[object]] | None:
        """Take them until one has to wait; return whose that is, and what is left of it."""
        unshared = _references(task)
        while self._waiting:
            work = self._waiting.popleft()
            rest: Awaitable[object] | None = None
            try:
                rest = work.context.run(work.begin)
            finally:
                if rest is None:
                    work.ended()
            if rest is not None:
                return work, rest
            if _references(task) > unshared or task.cancelling():
                break  # whoever cancels or keeps it means what has ended, not what comes next
        return None
