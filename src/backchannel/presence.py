"""Which users are online: told when the first device comes and when the last one goes.

Where there are other nodes, they are asked too: see ``attendance``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from backchannel.observe import LISTENER
from backchannel.places import where_defined
from backchannel.threads import call_in_thread
from backchannel.turn import Occupancy

__all__ = ["Presence", "tell"]


class Presence:
    """The users with connections.

    Attributes:
        announce: where there may be other nodes, called with a user of whom a device has come.
        on_online: called with a user whose first device has come.
        on_offline: called with a user whose last device has gone.
    """

    __slots__ = ("_users", "announce", "on_offline", "on_online")

    def __init__(self) -> None:
        self.on_online: Callable[[str], Any] | None = None
        self.on_offline: Callable[[str], Any] | None = None
        self.announce: Callable[[str], None] | None = None
        self._users: dict[str, Occupancy] = {}

    @property
    def is_wanted(self) -> bool:
        """Somebody wants to know."""
        return self.on_online is not None or self.on_offline is not None

    def came(self, user: str | None) -> Coroutine[Any, Any, None] | None:
        """Return what notes that one of a user's devices has come, and announces the first one.

        It is run beside the connection, which neither waits for it nor cuts it short: the
        application may subscribe the user's devices in there. None when nobody wants to know, or
        all nodes are asked; else the caller calls ``went`` in the end.
        """
        if user is None or not self.is_wanted:
            return None
        if self.announce is not None:
            self.announce(user)
            return None
        occupancy = self._users.setdefault(user, Occupancy())
        return occupancy.enter(functools.partial(tell, self.on_online, user))

    async def went(self, user: str | None) -> None:
        """Note that one of a user's devices has gone; the last one is announced."""
        occupancy = None if user is None else self._users.get(user)
        if user is None or occupancy is None:
            return
        await occupancy.leave(functools.partial(tell, self.on_offline, user))
        if not occupancy.holders and occupancy.is_calm:
            self._users.pop(user, None)

    def forget(self) -> None:
        """Begin anew, with nobody online."""
        self._users.clear()


async def tell(callback: Callable[..., Any] | None, *arguments: str) -> None:
    """Call a callback of the application's, however it is written; what it raises is logged."""
    if callback is None:
        return
    try:
        if getattr(callback, "_backchannel_threaded", False):
            await call_in_thread(callback, *arguments)
            return
        told = callback(*arguments)
        if inspect.isawaitable(told):
            await told
    except Exception as error:  # noqa: BLE001 - the application may raise anything
        shown = ", ".join(map(repr, arguments))
        name = getattr(callback, "__qualname__", repr(callback))
        LISTENER.error(
            "%s(%s) (%s) raised %r", name, shown, where_defined(callback), error, exc_info=error
        )
