"""Sessions of dialect v1 in the engine: resumed once, on whatever node."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import hiredis

from backchannel.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from backchannel.broker.redis.engine import Engine
    from backchannel.broker.redis.keys import Keys

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
        """Return what is kept and forget it."""
        (data,) = await self._call([("GETDEL", self._keys.resume(key))])
        return None if data is None else bytes(data)

    async def _call(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Say all of it in one write; return the answers."""
        link, shown = self._engine.link, self._engine.shown
        if link is None:
            raise BrokerUnavailable(f"{shown} is away: sessions are kept there")
        try:
            async with asyncio.timeout(self._timeout):
                return [await answer for answer in [link.call(*each) for each in commands]]
        except TimeoutError as error:
            raise BrokerUnavailable(f"{shown} did not answer in {self._timeout:g} s") from error
        except hiredis.ReplyError as error:
            raise BrokerUnavailable(f"{shown} refuses to keep a session: {error}") from error
