"""Sessions on a server that live on because their sockets are used."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any

from backchannel.errors import SessionUnavailable
from backchannel.observe import HUB

if TYPE_CHECKING:
    from backchannel.session.web import Session

__all__ = ["TOUCH_EVERY", "Touches"]

TOUCH_EVERY = 60.0
"""Seconds between two touches of one session."""

_MANY = 1000


class Touches:
    """Touches the sessions whose sockets are used: each at most once in TOUCH_EVERY seconds.

    A store that does not answer ends nothing: it is said once, and asked again when it is time.

    Args:
        keep: runs a coroutine in the background.
    """

    def __init__(self, keep: Callable[[Coroutine[Any, Any, None]], object]):
        self._keep = keep
        self._due: dict[str, float] = {}  # a time that is past is as good as none
        self._tidy_at = _MANY
        self._is_away = False

    def heard(self, session: Session) -> float:
        """Take note of a message, whichever of the session's sockets it came by.

        Returns:
            Until when nothing is to be told of this session, by the monotonic clock.
        """
        now = monotonic()
        due = now + TOUCH_EVERY
        if (key := session.id) is None:
            return due
        if (known := self._due.get(key, 0.0)) > now:
            return known
        self._due[key] = due
        if len(self._due) > self._tidy_at:
            self._due = {key: until for key, until in self._due.items() if until > now}
            self._tidy_at = max(_MANY, 2 * len(self._due))
        self._keep(self._touch(session))
        return due

    async def _touch(self, session: Session) -> None:
        try:
            await session.touch()  # where it has ended, session_check says so
        except SessionUnavailable as error:
            if not self._is_away:
                HUB.error("%s; sessions are not kept alive", error)
            self._is_away = True
        else:
            self._is_away = False
