"""Sessions of dialect v1 in the engine: resumed once, on whatever node."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import hiredis

from backchannel.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from backchannel.broker.redis.keys import Keys
    from backchannel.broker.redis.route import Route, Words

__all__ = ["RedisResumes"]

_Asked = tuple[bytes, tuple["Words", ...], "asyncio.Future[Any]"]


class RedisResumes:
    """The sessions of all nodes of a hub; see ``stores.ResumeStore``.

    Args:
        route: the way to where they are.
        keys: what they are called there.
        timeout: seconds that the engine has to answer.
    """

    def __init__(self, route: Route, keys: Keys, timeout: float):
        self._route = route
        self._keys = keys
        self._timeout = timeout

    async def put(self, records: Mapping[bytes, bytes], ttl: float, *, new: bool) -> None:
        """Keep sessions; those that are not new only where they are still there."""
        more = ("PX", math.ceil(ttl * 1000), *(() if new else ("XX",)))
        await self._call_each("SET", {key: (data, *more) for key, data in records.items()})

    async def extend(self, keys: Collection[bytes], ttl: float) -> None:
        """Keep sessions for so long from now on."""
        await self._call_each("PEXPIRE", dict.fromkeys(keys, (math.ceil(ttl * 1000),)))

    async def drop(self, keys: Collection[bytes]) -> None:
        """Forget sessions."""
        await self._call_each("DEL", dict.fromkeys(keys, ()))

    async def take(self, key: bytes) -> bytes | None:
        """Return what is kept and forget it."""
        (data,) = await self._call_each("GETDEL", {key: ()})
        return None if data is None else bytes(data)

    async def _call_each(self, verb: str, words: Mapping[bytes, tuple[Words, ...]]) -> list[Any]:
        """Say the same about some sessions, in one write to each engine; return the answers."""
        shown = self._route.shown
        try:
            async with asyncio.timeout(self._timeout):
                asked = [
                    self._ask(verb, self._keys.resume(key), more) for key, more in words.items()
                ]
                return [await self._answer(*each) for each in asked]
        except TimeoutError as error:
            raise BrokerUnavailable(f"{shown} did not answer in {self._timeout:g} s") from error
        except hiredis.ReplyError as error:
            raise BrokerUnavailable(f"{shown} refuses to keep a session: {error}") from error

    def _ask(self, verb: str, key: bytes, more: tuple[Words, ...]) -> _Asked:
        if (link := self._route.link_of(key)) is None:
            raise BrokerUnavailable(f"{self._route.shown} is away: sessions are kept there")
        command = (verb, key, *more)
        return key, command, link.call(*command)

    async def _answer(
        self, key: bytes, command: tuple[Words, ...], answer: asyncio.Future[Any]
    ) -> Any:
        try:
            return await answer
        except hiredis.ReplyError as error:
            if str(error).partition(" ")[0] not in {"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"}:
                raise
            return await self._route.call(key, *command)  # which knows where it belongs by now
