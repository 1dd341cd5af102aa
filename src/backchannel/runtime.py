"""The event loop a hub lives in: its thread, its tasks, and what went wrong in them."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVarTuple

from backchannel.change import detached
from backchannel.contracts import Receipt
from backchannel.observe import HUB, LISTENER, PAUSES, guard_servers
from backchannel.runner import Runner, Writer
from backchannel.sent import Outcome, Sent

__all__ = ["Health", "Runtime"]

Given = TypeVarTuple("Given")

PROBLEMS_KEPT = 10


@dataclass(frozen=True, slots=True)
class Health:
    """How a hub is doing.

    Args:
        running: it takes connections.
        connections: how many are open on this node.
        channels: how many have members on this node.
        broker: how the broker is doing, in a few words.
        problems: what went wrong and was not awaited by anyone, newest last.
        foreign: how much was heard from the broker that is nothing a node of this hub says: it was
            dropped.
        ready: it takes connections, and what they send gets to its broker.
    """

    running: bool
    connections: int
    channels: int
    broker: str
    problems: tuple[str, ...]
    foreign: int
    ready: bool


class Runtime:
    """One event loop, bound when the hub starts.

    Args:
        writer: writes what connections answer.

    Attributes:
        runner: runs what connections have to do.
        thread: the id of the event loop's thread; None before there is one.
        problems: what went wrong and was not awaited by anyone, newest last.
    """

    def __init__(self, writer: Writer) -> None:
        self.problems: tuple[str, ...] = ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.thread: int | None = None
        self.runner = Runner(self._new_task, self._hold, writer)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._spawned: set[asyncio.Task[Any]] = set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop.

        Raises:
            RuntimeError: the hub has not started.
        """
        if self._loop is None:
            raise RuntimeError("the hub has not started: it starts with its server")
        return self._loop

    @property
    def is_alive(self) -> bool:
        """There is an event loop, and it is not closed."""
        return self._loop is not None and not self._loop.is_closed()

    def is_here(self) -> bool:
        """Tell whether the running event loop is this one."""
        return self._loop is asyncio.get_running_loop()

    def bind(self, writer: Writer) -> None:
        """Take the running event loop; nothing of an earlier one is alive."""
        PAUSES.watch()
        guard_servers()
        self._loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.runner = Runner(self._new_task, self._hold, writer)
        self._tasks.clear()
        self._spawned.clear()

    def release(self) -> None:
        """Let the event loop go: it could not be started in it."""
        self._loop = self.thread = None

    def is_elsewhere(self) -> bool:
        """Tell whether the caller is in another thread than the event loop."""
        return threading.get_ident() != self.thread

    def outcome(self) -> Outcome:
        """Return what is settled later; a failure that nobody asks for is reported."""
        return Outcome(self._report_unheard)

    def do(self, work: Callable[[*Given], Receipt | Outcome], *given: *Given) -> Sent:
        """Do something in the event loop: at once when the caller is in it.

        Args:
            work: it.
            given: what it is called with.

        What it raises is raised where the Sent is awaited; nobody there, it is reported.
        """
        if self._loop is None or self._loop.is_closed():
            return Sent(Receipt(0))  # nobody can be connected to a hub that does not run
        if threading.get_ident() != self.thread:
            outcome = Outcome(self._report_unheard)
            self._loop.call_soon_threadsafe(outcome.settle, functools.partial(work, *given))
            return Sent(outcome)
        try:
            return Sent(work(*given))
        except Exception as error:  # noqa: BLE001 - raised where it is awaited, or reported
            return self._failed(error)

    def keep(self, work: Coroutine[Any, Any, Any], context: Context) -> asyncio.Task[None]:
        """Run a coroutine of the hub's own; what it raises is a bug, and reported."""
        task = self.loop.create_task(work, context=context)
        self._hold(task)
        return task

    def spawn(
        self,
        work: Coroutine[Any, Any, Any],
        label: str,
        context: Context,
        tasks: set[asyncio.Task[Any]] | None = None,
    ) -> asyncio.Task[Any]:
        """Run a coroutine of the application's; what it raises is logged.

        Args:
            work: the coroutine.
            label: whose it is, for the log.
            context: the context variables it sees.
            tasks: who holds the task until it ends; None is the hub itself.

        Raises:
            RuntimeError: called outside the event loop.
            TypeError: it is no coroutine.
        """
        if not isinstance(work, Coroutine):  # pyright: ignore[reportUnnecessaryIsInstance]
            hint = ": call it, as in spawn(self.tick())" if callable(work) else ""
            raise TypeError(f"spawn() takes a coroutine, not {work!r}{hint}")
        if self.is_elsewhere():
            work.close()
            raise RuntimeError("spawn() must be called in the hub's event loop")
        held = self._spawned if tasks is None else tasks
        task = self.loop.create_task(work, context=detached(context))
        held.add(task)

        def ended(task: asyncio.Task[Any]) -> None:
            held.discard(task)
            if not task.cancelled() and (error := task.exception()):
                LISTENER.error("%s raised %r", label, error, exc_info=error)

        task.add_done_callback(ended)
        return task

    async def cancel_all(self, timeout: float) -> None:  # noqa: ASYNC109 - it is the last wait
        """Cancel what still runs, and wait for it.

        Args:
            timeout: seconds to wait.
        """
        me = asyncio.current_task()
        all_of_them = (*self._spawned, *self._tasks, *self.runner.tasks)
        running = [task for task in all_of_them if task is not me]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=timeout)

    def report(self, text: str, error: BaseException | None = None) -> None:
        """Log a problem, and show it in the hub's health."""
        self.problems = (*self.problems[1 - PROBLEMS_KEPT :], text)
        HUB.error("%s", text, exc_info=error)

    def _new_task(self, work: Coroutine[Any, Any, Any], context: Context) -> asyncio.Task[Any]:
        """Make a task whatever factory the loop has: an eager one would run it at once."""
        return asyncio.Task(work, loop=self.loop, context=context)

    def _hold(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.report(f"internal task failed: {error!r}", error)

    def _failed(self, error: Exception) -> Sent:
        outcome = Outcome(self._report_unheard)
        outcome.set_exception(error)
        return Sent(outcome)

    def _report_unheard(self, error: Exception) -> None:
        self.report(f"sending failed, and nobody awaited it: {error!r}", error)
