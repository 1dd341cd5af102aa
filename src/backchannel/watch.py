"""Looking whether followed channels are where their history is, though nothing comes from them."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from backchannel.errors import BrokerUnavailable
from backchannel.history import REMEMBERED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from backchannel.contracts import Broker, Publication
    from backchannel.history import Follower, Position

__all__ = ["Watch"]

LOOK: Final = 30.0
"""Seconds between two looks at a channel."""

RENEW: Final = REMEMBERED / 2
"""Seconds after which a quiet channel's history is read, so that its position stays known."""

AT_ONCE: Final = 100
"""Channels that are looked at in one go; the next ones have their turn later."""


class Watch:
    """Finds what was dropped on its way to this node where nothing came after it.

    Only channels are looked at in which nothing was heard since the last look: what is heard
    shows a gap by itself, and keeps the position known.

    Args:
        broker: has the history.
        followers: those of the channels that this node hears.
        fill: reads what a follower has not heard.
    """

    def __init__(
        self,
        broker: Broker,
        followers: Mapping[str, Follower[Publication]],
        fill: Callable[[str, Follower[Publication]], Awaitable[None]],
    ):
        self._broker = broker
        self._followers = followers
        self._fill = fill
        self._seen: dict[str, Position | None] = {}
        self._watching: asyncio.Task[None] | None = None

    def begin(
        self, keep: Callable[[Coroutine[Any, Any, Any], Context], asyncio.Task[None]]
    ) -> None:
        """Look from now on, as long as there is anything to look at.

        Args:
            keep: runs it.
        """
        if self._watching is None or self._watching.done():
            self._watching = keep(self._watch(), Context())

    def end(self) -> None:
        """Forget all; the event loop is another one."""
        self._watching = None
        self._seen.clear()

    async def _watch(self) -> None:
        clock = asyncio.get_running_loop().time
        renewed = clock()
        while names := list(self._followers):
            pause = LOOK * AT_ONCE / max(len(names), AT_ONCE)
            renews = clock() >= renewed + RENEW
            if renews:
                renewed = clock()
            for name in self._seen.keys() - self._followers.keys():
                del self._seen[name]
            for first in range(0, len(names), AT_ONCE):
                await asyncio.sleep(pause)
                await self._look(names[first : first + AT_ONCE], renews=renews)
        self.end()

    async def _look(self, names: list[str], *, renews: bool) -> None:
        quiet: dict[str, Follower[Publication]] = {}
        for name in names:
            if (follower := self._followers.get(name)) is None:
                continue
            if not follower.asks and self._seen.get(name) == follower.position:
                quiet[name] = follower
            self._seen[name] = follower.position
        try:
            tops = dict.fromkeys(quiet) if renews else await self._broker.tops(quiet)
        except BrokerUnavailable:
            return  # it says when it is back
        for name, top in tops.items():
            follower = quiet[name]
            if self._followers.get(name) is follower and not self._is_level(name, top):
                follower.interrupt()
                await asyncio.shield(self._fill(name, follower))

    def _is_level(self, name: str, top: Position | None) -> bool:
        """Tell whether all that was there when it was looked up has been heard."""
        seen, now = self._seen[name], self._followers[name].position
        if top is None or seen is None or now is None or seen.epoch != top.epoch:
            return False
        return seen == top or (now.epoch == top.epoch and seen < top <= now)
