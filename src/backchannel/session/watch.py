"""Web sessions that end while their sockets are open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from backchannel.errors import SessionUnavailable
from backchannel.observe import HUB

if TYPE_CHECKING:
    from backchannel.session.web import Session

__all__ = ["watch_sessions"]


async def watch_sessions(
    interval: float,
    sessions: Callable[[], Iterable[Session]],
    end: Callable[[str], object],
) -> None:
    """Ask again and again whether sessions still exist, until cancelled.

    A store that does not answer ends no session: it is said once, and asked again next time.

    Args:
        interval: seconds between two rounds.
        sessions: returns one session for each id, of those that are kept on the server.
        end: called with the id of a session that has expired or was deleted.
    """
    is_away = False
    while True:
        await asyncio.sleep(interval)
        try:
            for session in list(sessions()):
                key = session.id
                if key is not None and not await session.refresh():
                    end(key)
        except SessionUnavailable as error:
            if not is_away:
                HUB.error("%s; open connections stay", error)
            is_away = True
        else:
            is_away = False
