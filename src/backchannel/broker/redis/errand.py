"""Something that is asked of where a key is in a cluster, wherever that is just now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import hiredis

from backchannel.broker.redis.detour import PAUSE
from backchannel.broker.redis.slots import Redirect
from backchannel.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from backchannel.broker.redis.lane import Lane
    from backchannel.broker.redis.route import Words
    from backchannel.broker.redis.shards import Shards

__all__ = ["Errand"]


class Errand:
    """One thing to ask.

    Args:
        key: where it is asked.
        shards: knows where that is.
        timeout: seconds that it may be on its way there.
        whole: not while only some of the keys of its slot may be there.
    """

    def __init__(self, key: bytes, shards: Shards, timeout: float, *, whole: bool = False):
        self._key = key
        self._shards = shards
        self._timeout = timeout
        self._whole = whole

    async def call(self, *command: Words) -> Any:
        """Send a command; return its reply; see ``route.Route``."""

        async def do(lane: Lane, asking: bool) -> Any:
            if (link := lane.engine.link) is None:
                raise BrokerUnavailable(f"{lane.shown} is away")
            if asking:
                link.call("ASKING")
            return await link.call(*command)

        return await self._do(do)

    async def evaluate(
        self,
        name: str,
        keys: Sequence[bytes],
        words: Callable[[tuple[str, ...]], Sequence[Words]],
    ) -> Any:
        """Run a script; return its reply; see ``route.Route``."""

        async def do(lane: Lane, asking: bool) -> Any:
            said = (len(keys), *keys, *words(lane.runs(keys[0])))
            return await lane.engine.evaluate(name, *said, asking=asking)

        return await self._do(do)

    async def _do(self, do: Callable[[Lane, bool], Awaitable[Any]]) -> Any:
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._timeout
        asked: Lane | None = None
        while True:
            lane = asked or self._shards.of(self._key)
            try:
                return await do(lane, asked is not None)
            except hiredis.ReplyError as error:
                redirect = Redirect.read(error, lane.host)
                if redirect is None:
                    raise
                if clock() >= deadline:
                    why = f"{lane.shown} has no whole slot for it just now: {error}"
                    raise BrokerUnavailable(why) from error
            if asked is None and redirect.kind == "ASK" and not self._whole:
                asked = await self._shards.joined(redirect.address)
            else:
                asked = None
                self._shards.look(lane)
                await asyncio.sleep(PAUSE)
