"""One-time tickets: who asked for one over HTTP may connect once with it in the URL."""

from __future__ import annotations

import hashlib
import math
import secrets
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from backchannel.request import Request
    from backchannel.stores import TicketHolder

__all__ = ["MemoryTickets", "check_ttl", "key_of", "new_ticket", "tickets_in"]

_PREFIX: Final = "bct_"
_RANDOM_BYTES: Final = 24


def new_ticket() -> str:
    """Return a ticket that nobody can guess: 192 random bits, fit for a URL."""
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def key_of(ticket: str) -> bytes:
    """Return what a ticket is kept under: who can read the store can't connect with it."""
    return hashlib.sha256(ticket.encode(errors="replace")).digest()


def tickets_in(request: Request) -> list[str]:
    """Return the URL's ``ticket`` fields, where one of them is a ticket of a hub.

    Others are the application's own business: for those the list is empty.
    """
    if _PREFIX.encode() not in request.scope.get("query_string", b""):
        return []
    fields = request.query.getlist("ticket")
    return fields if any(field.startswith(_PREFIX) for field in fields) else []


def check_ttl(ttl: float) -> None:
    """Check how long a ticket is to hold.

    Raises:
        TypeError: no number.
        ValueError: not above 0, or without end.
    """
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a ticket's ttl is a number of seconds, not {ttl!r}")
    if not 0 < ttl < math.inf:  # also NaN
        raise ValueError(f"a ticket's ttl is more than 0 seconds and has an end, not {ttl!r}")


class MemoryTickets:
    """The tickets of one process; see ``stores.TicketStore``.

    Args:
        limit: how many may wait to be used.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._held: dict[bytes, tuple[TicketHolder, float]] = {}
        self._tidy_at = 0  # when so many are held, those that have expired are dropped
        self._full_until = 0.0

    def __len__(self) -> int:
        return len(self._held)

    async def put(self, key: bytes, holder: TicketHolder, ttl: float) -> None:
        """Keep a ticket until it is taken or has expired.

        Raises:
            RuntimeError: too many wait already.
        """
        now = monotonic()
        if len(self._held) >= self._tidy_at and now >= self._full_until:
            self._tidy(now)
        if len(self._held) >= self._limit:
            raise RuntimeError(
                f"{self._limit} tickets wait to be used already: ask who somebody is before "
                "hub.ticket(…) is called, and how often"
            )
        self._held[key] = (holder, now + ttl)

    async def take(self, key: bytes) -> TicketHolder | None:
        """Return whose ticket it is and forget it; None when there is none that holds."""
        holder, until = self._held.pop(key, (None, 0.0))
        return holder if monotonic() < until else None

    def _tidy(self, now: float) -> None:
        """Drop what has expired; so rarely that each ticket is looked at a few times at most."""
        self._held = {key: held for key, held in self._held.items() if held[1] > now}
        self._tidy_at = min(max(1000, 2 * len(self._held)), self._limit)
        if len(self._held) >= self._limit:
            # None of them can be dropped before the first of them expires.
            self._full_until = min(until for _, until in self._held.values())
