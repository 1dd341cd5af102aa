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
    from backchannel.broker.redis.keys import Keys
    from backchannel.broker.redis.route import Route, Words

__all__ = ["RedisTickets"]


class RedisTickets:
    """The tickets of all nodes of a hub; see ``stores.TicketStore``.

    Args:
        route: the way to where they are.
        keys: what they are called there.
        timeout: seconds that the engine has to answer.
    """

    def __init__(self, route: Route, keys: Keys, timeout: float):
        self._route = route
        self._keys = keys
        self._timeout = timeout

    async def put(self, key: bytes, holder: TicketHolder, ttl: float) -> None:
        """Keep a ticket until it is taken or has expired.

        Raises:
            BrokerUnavailable: the engine does not answer, or has no room.
        """
        data = msgspec.json.encode((holder.id, holder.expires_at))
        name = self._keys.ticket(key)
        await self._call(name, "SET", name, data, "PX", math.ceil(ttl * 1000))

    async def take(self, key: bytes) -> TicketHolder | None:
        """Return whose ticket it is and forget it; None when there is none that holds.

        Raises:
            BrokerUnavailable: the engine does not answer.
        """
        name = self._keys.ticket(key)
        data = await self._call(name, "GETDEL", name)
        if data is None:
            return None
        id_, expires_at = msgspec.json.decode(data, type=tuple[str, float | None])
        return TicketHolder(id_, expires_at)

    async def _call(self, key: bytes, *command: Words) -> Any:
        shown = self._route.shown
        if self._route.link_of(key) is None:
            raise BrokerUnavailable(f"{shown} is away: tickets are kept there")
        try:
            async with asyncio.timeout(self._timeout):
                return await self._route.call(key, *command)
        except TimeoutError as error:
            raise BrokerUnavailable(f"{shown} did not answer in {self._timeout:g} s") from error
        except hiredis.ReplyError as error:
            raise BrokerUnavailable(f"{shown} refuses a ticket: {error}") from error
