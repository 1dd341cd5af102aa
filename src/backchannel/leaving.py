"""How a hub is emptied: its connections end one after the other, what was accepted before them."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backchannel.connection import CloseReason
    from backchannel.dispatch import Dispatch

__all__ = ["Leaving"]

BATCH: Final = 0.05
"""Seconds between two batches of closes."""


class Leaving:
    """Ends connections at random moments, so that those who come back do not come all at once.

    A connection whose callback runs is ended when nothing of what it sent waits any more.

    Args:
        dispatches: the hub's connections; those that come in between are ended with the last.
        ending: what they are told.
        seconds: within which all end.

    Attributes:
        until: when the last one ends, by the loop's clock.
        stopped: done when the hub has stopped.
    """

    def __init__(self, dispatches: set[Dispatch], ending: CloseReason, seconds: float):
        loop = asyncio.get_running_loop()
        self._dispatches = dispatches
        self._ending = ending
        self._seconds = seconds
        self._hurried = asyncio.Event()
        self._finishing: set[asyncio.Task[None]] = set()
        self.until = loop.time() + seconds
        self.stopped: asyncio.Future[None] = loop.create_future()

    def hurry(self) -> None:
        """End all connections now."""
        self.until = min(self.until, asyncio.get_running_loop().time())
        self._hurried.set()

    async def run(self) -> None:
        """End all connections."""
        loop = asyncio.get_running_loop()
        try:
            for moment, dispatch in self._plan():
                if not self._dispatches or await self._hurried_before(moment):
                    break
                self._finishing.add(loop.create_task(self._end(dispatch)))
            await self._last_ones()
        finally:
            for task in self._finishing:
                task.cancel()
        for dispatch in list(self._dispatches):
            dispatch.end(self._ending)

    def _plan(self) -> Iterator[tuple[float, Dispatch]]:
        """Yield when each connection is to end: at random, and some of them together."""
        began, waiting = self.until - self._seconds, list(self._dispatches)
        random.shuffle(waiting)
        moments = sorted(random.uniform(0, self._seconds) for _ in waiting)  # noqa: S311
        for moment, dispatch in zip(moments, waiting, strict=True):
            yield began + moment // BATCH * BATCH, dispatch

    async def _end(self, dispatch: Dispatch) -> None:
        await dispatch.idle()
        dispatch.end(self._ending)

    async def _last_ones(self) -> None:
        """Wait for callbacks that still run, as long as there is time."""
        ends = asyncio.gather(*self._finishing, return_exceptions=True)
        hurried = asyncio.ensure_future(self._hurried.wait())
        either: set[asyncio.Future[Any]] = {ends, hurried}
        left = self.until - asyncio.get_running_loop().time()
        await asyncio.wait(either, timeout=max(0.0, left), return_when="FIRST_COMPLETED")
        for waiting in either:
            waiting.cancel()
        await asyncio.gather(*either, return_exceptions=True)  # which asks for their errors, too

    async def _hurried_before(self, moment: float) -> bool:
        """Wait until a moment; True when it is not waited for any more."""
        if (left := moment - asyncio.get_running_loop().time()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._hurried.wait()
            except TimeoutError:
                pass
        return self._hurried.is_set()
