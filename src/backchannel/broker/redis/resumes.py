"""Sessions of dialect v1 in the engine: resumed once, on whatever node."""

from __future__ import annotations

import asyncio
import functools
import math
from typing import TYPE_CHECKING, Any

import hiredis

from backchannel.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from backchannel.broker.redis.engine import Engine
    from backchannel.broker.redis.keys import Keys
    from backchannel.broker.redis.link import Link

__all__ = ["RedisResumes"]


class RedisResumes:
    """The sessions of all nodes of a hub; see ``stores.ResumeStore``.

    Args:
        engine: has them.
        keys: what they are called there.
        timeout: seconds that the engine has to answer.
    """

    def __init__(self, engine: Engine, keys: Keys, timeout: float):
        self._engine = engine
        self._keys = keys
        self._timeout = timeout

    async def put(self, records: Mapping[bytes, bytes], ttl: float, *, new: bool) -> None:
        """Keep sessions; those that are not new only where they are still there."""
        only = () if new else ("XX",)
        px = math.ceil(ttl * 1000)
        await self._call([
            ("SET", self._keys.resume(key), data, "PX", px, *only) for key, data in records.items()
        ])  # fmt: skip

    async def extend(self, keys: Collection[bytes], ttl: float) -> None:
        """Keep sessions for so long from now on."""
        px = math.ceil(ttl * 1000)
        await self._call([("PEXPIRE", self._keys.resume(key), px) for key in keys])

    async def drop(self, keys: Collection[bytes]) -> None:
        """Forget sessions."""
        await self._call([("DEL", self._keys.resume(key)) for key in keys])

    async def take(self, key: bytes) -> bytes | None:
        """Return what is kept and forget it: an answer that nobody waits for is given back."""
        link, name = self._link(), self._keys.resume(key)
        life, data = link.call("PTTL", name), link.call("GETDEL", name)
        life.add_done_callback(_heed)
        is_taken = False
        try:
            await asyncio.wait([data], timeout=self._timeout)
            is_taken = data.done()
        finally:
            if not is_taken:
                data.add_done_callback(functools.partial(_give_back, link, name, life))
        if not is_taken:
            raise self._too_slow()
        try:
            found = data.result()
        except hiredis.ReplyError as error:
            raise self._refused(error) from error
        return None if found is None else bytes(found)

    async def _call(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Say all of it in one write; return the answers."""
        link = self._link()
        try:
            async with asyncio.timeout(self._timeout):
                return [await answer for answer in [link.call(*each) for each in commands]]
        except TimeoutError as error:
            raise self._too_slow() from error
        except hiredis.ReplyError as error:
            raise self._refused(error) from error

    def _link(self) -> Link:
        if (link := self._engine.link) is None:
            raise BrokerUnavailable(f"{self._engine.shown} is away: sessions are kept there")
        return link

    def _too_slow(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"{self._engine.shown} did not answer in {self._timeout:g} s")

    def _refused(self, error: hiredis.ReplyError) -> BrokerUnavailable:
        return BrokerUnavailable(f"{self._engine.shown} refuses to keep a session: {error}")


def _heed(answer: asyncio.Future[Any]) -> bool:
    """Tell whether an answer came that nobody waits for; an error is nobody's either."""
    return not answer.cancelled() and answer.exception() is None


def _give_back(
    link: Link, name: bytes, life: asyncio.Future[Any], data: asyncio.Future[Any]
) -> None:
    """Keep what was taken for nobody, for the rest of its time, unless it is there again."""
    if _heed(life) and _heed(data) and data.result() is not None and life.result() > 0:
        again = link.call("SET", name, bytes(data.result()), "PX", life.result(), "NX")
        again.add_done_callback(_heed)
