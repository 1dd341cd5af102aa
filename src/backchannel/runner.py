"""Tasks for what may wait, as few as possible.

A callback that may wait needs a task: ``asyncio.timeout``, ``current_task`` and anyio work with
nothing less. Most callbacks have ended when their first step has. So one task takes those first
steps for all connections that have something in this turn of the event loop, each in the context
of its own. As soon as one has to wait, the task becomes its own, until its end, and another one
goes on with the rest. A task is therefore never shared by two that wait, nor used again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, Final, Protocol

from backchannel.stepping import InContext

__all__ = ["Runner", "Work"]

_CONTEXT: Final = Context()


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


class Runner:
    """Runs work in tasks.

    Args:
        create: makes a task that somebody holds, for a coroutine and its context.
    """

    __slots__ = ("_create", "_task", "_waiting")

    def __init__(self, create: Callable[[Coroutine[Any, Any, Any], Context], asyncio.Task[Any]]):
        self._create = create
        self._waiting: deque[Work] = deque()
        self._task: asyncio.Task[Any] | None = None

    def start(self, work: Work) -> None:
        """Begin work in the next turn of the event loop."""
        self._waiting.append(work)
        if self._task is None:
            self._wake()

    def _wake(self) -> None:
        self._task = self._create(self._run(), _CONTEXT)
        self._task.add_done_callback(self._leave)

    def _leave(self, task: asyncio.Task[Any] | None) -> None:
        """Let another task go on with what waits; also when this one never took a step."""
        if task is self._task:
            self._task = None
            if self._waiting:
                self._wake()

    async def _run(self) -> None:
        task = self._task
        while task is self._task and self._waiting:
            work = self._waiting.popleft()
            rest: Awaitable[object] | None = None
            try:
                rest = work.context.run(work.begin)
            finally:
                if rest is None:
                    work.ended()
            if rest is not None:
                work.task = task
                self._leave(task)
                try:
                    await InContext(rest, work.context)
                finally:
                    work.task = None
                    work.ended()
            elif task is not None and task.cancelling():
                return  # whoever cancelled meant what has ended already, not what comes next
