"""One-time tickets in the engine: used once on all nodes."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import hiredis
import msgspec

from backchannel.errors import BrokerUnavailable
from backchannel.stores import TicketHolder

if TYPE_CHECKING:
    from backchannel.broker.redis.engine import Engine
    from backchannel.broker.redis.keys import Keys

__all__ = ["RedisTickets"]


class RedisTickets:
    """The tickets of all nodes of a hub; see ``stores.TicketStore``.

    Args:
        engine: has them.
        keys: what they are called there.
        timeout: seconds that the engine has to answer.
    """

    def __init__(self, engine: Engine, keys: Keys, timeout: float):
        self._engine = engine
        self._keys = keys
        self._timeout = timeout

    async def put(self, key: bytes, holder: TicketHolder, ttl: float) -> None:
        """Keep a ticket until it is taken or has expired.

        Raises:
            BrokerUnavailable: the engine does not answer, or has no room.
        """
        data = msgspec.json.encode((holder.id, holder.expires_at))
        await self._call("SET", self._keys.ticket(key), data, "PX", math.ceil(ttl * 1000))

    async def take(self, key: bytes) -> TicketHolder | None:
        """Return whose ticket it is and forget it; None when there is none that holds.

        Raises:
            BrokerUnavailable: the engine does not answer.
        """
        data = await self._call("GETDEL", self._keys.ticket(key))
        if data is None:
            return None
        id_, expires_at = msgspec.json.decode(data, type=tuple[str, float | None])
        return TicketHolder(id_, expires_at)

    async def _call(self, *command: str | bytes | float) -> Any:
        link, shown = self._engine.link, self._engine.shown
        if link is None:
            raise BrokerUnavailable(f"{shown} is away: tickets are kept there")
        try:
            async with asyncio.timeout(self._timeout):
                return await link.call(*command)
        except TimeoutError as error:
            raise BrokerUnavailable(f"{shown} did not answer in {self._timeout:g} s") from error
        except hiredis.ReplyError as error:
            raise BrokerUnavailable(f"{shown} refuses a ticket: {error}") from error
