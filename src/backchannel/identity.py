"""Who an application says that a client is: the id in what it returned, and how long it holds."""

from __future__ import annotations

import math
from datetime import datetime
from time import time

from backchannel.request import user_id
from backchannel.stores import TicketHolder

__all__ = ["expiry_of", "holder_of", "id_of"]


def id_of(identity: object, what: str = "authenticate returned") -> str:
    """Return the user's id in what an application calls an identity.

    Args:
        identity: an id, or an object with one.
        what: how the application came to say so, for the error.

    Raises:
        TypeError: it names nobody.
        ValueError: the id is empty.
    """
    if isinstance(identity, str | int):
        return user_id(identity)
    for name in ("id", "pk", "user_id"):
        value = getattr(identity, name, None)
        if value is not None:
            return user_id(value if isinstance(value, str | int) else str(value))
    kind = type(identity).__qualname__  # what is in it may be a credential
    raise TypeError(
        f"{what} a {kind} that names nobody; a user is a user id (str or int), or an object with "
        "an id, pk or user_id; None is anonymous"
    )


def expiry_of(identity: object) -> float | None:
    """Return until when an identity holds, in seconds since the epoch; None is for ever.

    Raises:
        TypeError: its ``expires_at`` is neither an aware datetime nor a number.
        ValueError: it is not a number (NaN).
    """
    value: object = getattr(identity, "expires_at", None)
    if value is None:
        return None
    if isinstance(value, datetime) and value.utcoffset() is not None:
        return value.timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            "an identity's expires_at is an aware datetime or seconds since the epoch, not "
            f"{value!r}"
        )
    if value != value:  # noqa: PLR0124 - so is NaN told
        raise ValueError("an identity's expires_at is NaN: a time that never comes")
    return None if value == math.inf else float(value)


def holder_of(identity: object) -> TicketHolder:
    """Return whom a ticket lets in, of what ``hub.ticket`` was given.

    Raises:
        TypeError, ValueError: as ``id_of`` and ``expiry_of``; or it has expired already.
    """
    holder = TicketHolder(id_of(identity, "hub.ticket got"), expiry_of(identity))
    if holder.expires_at is not None and holder.expires_at <= time():
        raise ValueError("hub.ticket(…): this identity has expired already")
    return holder
