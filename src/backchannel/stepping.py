"""Coroutines stepped by hand: to time each step, to choose its context, to see whether it waits."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from time import perf_counter
from typing import Any, Final

__all__ = ["NOTHING_YET", "InContext", "Watched", "step"]

NOTHING_YET: Final = object()
"""What a coroutine waits for that has taken no step; None means that it gave up its turn."""


def step(work: Coroutine[Any, Any, Any]) -> Awaitable[Any] | None:
    """Take a coroutine's first step; return what is left of it, None when that was all.

    What it returns is lost, what it raises is raised.
    """
    try:
        waits_for = work.send(None)
    except StopIteration:
        return None
    return Watched(work, waits_for=waits_for)


class Watched:
    """Awaits a coroutine and times every step that holds the event loop.

    Args:
        coroutine: what to await; it may have taken a step already.
        limit: seconds a step may take.
        report: called with the seconds of each step that took longer.
        waits_for: what the step it has taken yielded.
    """

    __slots__ = ("_coroutine", "_limit", "_report", "_waits_for")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        limit: float = math.inf,
        report: Callable[[float], object] = repr,
        waits_for: Any = NOTHING_YET,
    ):
        self._coroutine = coroutine
        self._limit = limit
        self._report = report
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        """Step the coroutine by hand, since nothing else sees where one step ends."""
        send, throw, limit = self._coroutine.send, self._coroutine.throw, self._limit
        waits_for, value, error = self._waits_for, None, None
        while True:
            if waits_for is NOTHING_YET:
                began = perf_counter()
                try:
                    waits_for = send(value) if error is None else throw(error)
                except StopIteration as stop:
                    return stop.value
                finally:
                    if (took := perf_counter() - began) > limit:
                        self._report(took)
            value = error = None
            try:
                value = yield waits_for
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as caught:  # noqa: BLE001 - it belongs to the coroutine
                error = caught
            waits_for = NOTHING_YET


class InContext:
    """Awaits something in another context than the task's."""

    __slots__ = ("_context", "_work")

    def __init__(self, work: Awaitable[object], context: Context):
        self._work = work
        self._context = context

    def __await__(self) -> Generator[Any, Any, Any]:
        run = self._context.run
        steps: Any = self._work.__await__()
        value, error = None, None
        while True:
            try:
                waits_for = run(steps.send, value) if error is None else run(steps.throw, error)
            except StopIteration as stop:
                return stop.value
            value = error = None
            try:
                value = yield waits_for
            except GeneratorExit:
                run(steps.close)
                raise
            except BaseException as caught:  # noqa: BLE001 - it belongs to the work
                error = caught
