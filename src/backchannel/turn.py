"""First in and last out take turns: what an endpoint's and a channel's life have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Final

import msgspec

from backchannel.stepping import step

__all__ = ["Occupancy"]

Step = Callable[[], Awaitable[object]]

OPENINGS: ContextVar[tuple[object, ...]] = ContextVar("backchannel_openings", default=())
"""What is being opened by the callback that runs: what it lets in does not wait for its end."""

_BY_HAND: Final = object()
"""What is opened without a callback that could let somebody in: see ``begin_opening``."""


class Occupancy(msgspec.Struct, eq=False, kw_only=True):
    """Something that opens with its first holder and closes with its last.

    Opening and closing may wait for callbacks. They never overlap, and whoever comes while one
    runs waits for its end, so that each opening is followed by one closing.

    A Struct, since each channel needs one, and these are made fastest.

    Args:
        holders: how many hold it.
        is_open: it was opened, and has not been closed since.
    """

    holders: int = 0
    is_open: bool = False
    _turn: asyncio.Lock | None = None  # only while somebody needs it: there are many
    _waiting: int = 0
    _opening: object = None

    @property
    def is_calm(self) -> bool:
        """No opening or closing is under way."""
        return self._opening is None and (self._turn is None or not self._turn.locked())

    async def enter(self, opening: Step | None) -> None:
        """Become a holder; the first one runs ``opening``.

        Whoever has called this calls ``leave``, also when it raised.

        Raises:
            Whatever opening raises; then it is not open, and the next one tries again.
        """
        self.holders += 1
        if self._opening in OPENINGS.get():
            return
        if self.is_calm and (self.is_open or opening is None):
            self.is_open = True
            return
        await self._in_turn(self._open(opening))

    async def leave(self, closing: Step | None) -> None:
        """Be a holder no more; the last one runs ``closing``, whose errors pass through."""
        self.holders -= 1
        if self.holders:
            return
        if closing is None and self.is_calm:
            self.is_open = False
            return
        await self._in_turn(self._close(closing))

    def begin_opening(self) -> None:
        """Become the first holder of what is calm and closed; no opening may run until it ends."""
        self.holders += 1
        self._opening = _BY_HAND

    def end_opening(self, *, is_open: bool) -> None:
        """Let others have their turn."""
        self.is_open, self._opening = is_open, None
        if self._turn is not None:
            self._turn.release()

    async def _open(self, opening: Step | None) -> None:
        if not self.is_open:
            if opening is not None:
                await self._run(opening)
            self.is_open = True

    async def _close(self, closing: Step | None) -> None:
        if self.is_open and not self.holders:
            self.is_open = False
            if closing is not None:
                await closing()

    async def _run(self, opening: Step) -> None:
        outer, self._opening = OPENINGS.get(), object()
        OPENINGS.set((*outer, self._opening))
        try:
            await opening()
        finally:
            OPENINGS.set(outer)
            self._opening = None

    async def _in_turn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._turn is None:
            self._turn = asyncio.Lock()
            if self._opening is _BY_HAND:  # whose turn it is; now that somebody waits, it is said
                step(self._turn.acquire())
        self._waiting += 1
        try:
            async with self._turn:
                await work
        finally:
            work.close()  # where waiting for the turn was cancelled
            self._waiting -= 1
            if not self._waiting:
                self._turn = None
