"""Which users are online: told when the first device comes and when the last one goes."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any

from backchannel.observe import LISTENER
from backchannel.turn import Occupancy

__all__ = ["Presence"]


class Presence:
    """The users with connections on this node.

    Attributes:
        on_online: called with a user whose first device has come.
        on_offline: called with a user whose last device has gone.
    """

    __slots__ = ("_telling", "_users", "on_offline", "on_online")

    def __init__(self) -> None:
        self.on_online: Callable[[str], Any] | None = None
        self.on_offline: Callable[[str], Any] | None = None
        self._users: dict[str, Occupancy] = {}
        self._telling: set[asyncio.Task[None]] = set()

    async def came(self, user: str | None) -> None:
        """Note that one of a user's devices has come; the first one is announced.

        Whoever has called this calls ``went``, also when it was cancelled: a device that leaves
        again meanwhile does not cut the announcement short.
        """
        if user is None or (self.on_online is None and self.on_offline is None):
            return
        occupancy = self._users.setdefault(user, Occupancy())
        telling = asyncio.create_task(
            occupancy.enter(functools.partial(_tell, self.on_online, user))
        )
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)
        await asyncio.shield(telling)

    async def went(self, user: str | None) -> None:
        """Note that one of a user's devices has gone; the last one is announced."""
        occupancy = None if user is None else self._users.get(user)
        if user is None or occupancy is None:
            return
        await occupancy.leave(functools.partial(_tell, self.on_offline, user))
        if not occupancy.holders and occupancy.is_calm:
            self._users.pop(user, None)

    def forget(self) -> None:
        """Begin anew, with nobody online."""
        self._users.clear()
        self._telling.clear()


async def _tell(callback: Callable[[str], Any] | None, user: str) -> None:
    if callback is None:
        return
    try:
        if getattr(callback, "_backchannel_threaded", False):
            await asyncio.to_thread(callback, user)
            return
        told = callback(user)
        if inspect.isawaitable(told):
            await told
    except Exception as error:  # noqa: BLE001 - the application may raise anything
        LISTENER.error("%r(%r) raised %r", callback, user, error, exc_info=error)
