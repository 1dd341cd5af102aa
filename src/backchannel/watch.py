"""Looking whether followed channels are where their history is, though nothing comes from them."""

from __future__ import annotations

import asyncio
import random
from contextvars import Context
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from backchannel.errors import BrokerUnavailable
from backchannel.history import REMEMBERED
from backchannel.observe import BROKER

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from backchannel.contracts import Broker, Publication
    from backchannel.history import Follower, Position

    Keep = Callable[[Coroutine[Any, Any, Any], Context], asyncio.Task[None]]

__all__ = ["Unread", "Watch"]

LOOK: Final = 30.0
"""Seconds between two looks at a channel."""

RENEW: Final = REMEMBERED / 2
"""Seconds after which a quiet channel's history is read, so that its position stays known."""

AT_ONCE: Final = 100
"""Channels that are looked at in one go; the next ones have their turn later."""

BACK_OFF: Final = (0.25, 4.0)
"""Seconds before a history that could not be read is asked for again, and at most between two."""

ATTEMPTS: Final = 64
"""Histories that are asked for again at the same time."""


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
        fill: Callable[[str, Follower[Publication]], asyncio.Task[None]],
    ):
        self._broker = broker
        self._followers = followers
        self._fill = fill
        self._seen: dict[str, Position | None] = {}
        self._watching: asyncio.Task[None] | None = None

    def begin(self, keep: Keep) -> None:
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
            if follower.asks:
                self._fill(name, follower)
            elif self._seen.get(name) == follower.position:
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


class Unread:
    """Channels of which what was missed can't be read: asked for again, in ever longer pauses.

    An engine may be there and refuse, for a moment or until somebody sees to it. Nothing would tell
    of its end but the next publication, which may never come.

    Args:
        broker: has the history.
        followers: those of the channels that this node hears.
        fill: reads what a follower has not heard, or calls ``put_off``.

    Attributes:
        why: why histories can't be read though the broker is there, for people; or empty.
    """

    def __init__(
        self,
        broker: Broker,
        followers: Mapping[str, Follower[Publication]],
        fill: Callable[[str, Follower[Publication]], asyncio.Task[None]],
    ):
        self._broker = broker
        self._followers = followers
        self._fill = fill
        self._waiting: dict[str, Follower[Publication]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._problem = ""
        self.why = ""

    def put_off(
        self, name: str, follower: Follower[Publication], error: BrokerUnavailable, keep: Keep
    ) -> None:
        """Ask for a channel's history again later.

        Args:
            name: the channel.
            follower: its follower.
            error: why it could not be read.
            keep: runs what asks.
        """
        self._waiting[name] = follower
        self._problem = str(error)
        if self._asking is None:
            self._asking = keep(self._ask_again(), Context())

    def end(self) -> None:
        """Forget all; the event loop is another one."""
        self._waiting.clear()
        self._asking = None
        self.why = ""

    async def _ask_again(self) -> None:
        wait, longest = BACK_OFF
        while self._waiting:
            await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - jitter
            if not self._broker.is_connected:
                continue  # gaps are filled when it is back
            wait = min(2 * wait, longest)
            while await self._ask_some():  # it reads again: so it does for the others
                wait, _ = BACK_OFF
            if self._waiting and not self.why:
                self.why = self._problem
                BROKER.error("%s; it is asked for again every few seconds", self.why)
        if self.why:
            self.why = ""
            BROKER.warning("what could not be read of histories has been read")
        self._asking = None

    async def _ask_some(self) -> bool:
        """Ask for those whose turn it is; tell whether there are others, and some could be read."""
        turn = dict(islice(self._waiting.items(), ATTEMPTS))
        for name in turn:
            self._waiting[name] = self._waiting.pop(name)  # the others have theirs before it again
        if asked := [self._fill(*one) for one in turn.items() if self._asks(*one)]:
            await asyncio.wait(asked)
        for name, follower in turn.items():
            if self._waiting.get(name) is follower and not self._asks(name, follower):
                del self._waiting[name]
        return bool(self._waiting) and any(name not in self._waiting for name in turn)

    def _asks(self, name: str, follower: Follower[Publication]) -> bool:
        return follower.asks and self._followers.get(name) is follower
