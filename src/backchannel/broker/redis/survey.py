"""Asking the nodes of a cluster which of them has which slots."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Final

import hiredis

from backchannel.broker.redis.slots import Served, read_slots
from backchannel.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from backchannel.broker.redis.door import Door
    from backchannel.broker.redis.lane import Lane
    from backchannel.broker.redis.slots import Address

__all__ = ["PATIENCE", "Survey"]

PATIENCE: Final = 1.0
"""Seconds that a node may take to say who has the slots, before another one is asked."""


class Survey:
    """Who has the slots.

    Args:
        door: how nodes are spoken to, and some of them.
    """

    def __init__(self, door: Door):
        self._door = door

    async def look(self, first: Lane | None, lanes: Collection[Lane]) -> list[Served]:
        """Ask one that knows first, else any that we are connected to, else whoever answers.

        Args:
            first: the one that knows; None is nobody.
            lanes: the ways to the nodes that are known.

        Raises:
            BrokerUnavailable: none of them answers.
            BrokerUnusable: one does, and will not do.
        """
        others = [lane for lane in lanes if lane is not first]
        random.shuffle(others)
        for lane in (first, *others):
            if lane is not None and (link := lane.engine.link) is not None:
                with contextlib.suppress(TimeoutError, BrokerUnavailable, hiredis.ReplyError):
                    async with asyncio.timeout(PATIENCE):
                        return read_slots(await link.call("CLUSTER", "SLOTS"), lane.host)
        return await self.ask((*[lane.address for lane in lanes], *self._door.nodes))

    async def ask(self, addresses: Iterable[Address]) -> list[Served]:
        """Ask nodes one after the other.

        Raises:
            BrokerUnavailable: none of them answers.
            BrokerUnusable: one does, and will not do.
        """
        problems: list[str] = []
        for address in dict.fromkeys(addresses):
            door = self._door.of_node(address)
            try:
                link, *_ = await door.open(_nothing, PATIENCE, anyone=True)
            except BrokerUnavailable as error:
                problems.append(str(error))
                continue
            try:
                async with asyncio.timeout(PATIENCE):
                    return read_slots(await link.call("CLUSTER", "SLOTS"), door.host)
            except (TimeoutError, BrokerUnavailable, hiredis.ReplyError) as error:
                problems.append(f"{door.shown}: {error!r}")
            finally:
                link.close()
                await link.lost
        raise BrokerUnavailable(f"no node of {self._door.shown} answers: {'; '.join(problems)}")


def _nothing(topic: bytes, data: bytes) -> None:
    """Hear nothing: they are only asked."""
