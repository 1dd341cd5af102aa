"""What a subscription tells, in the order in which it happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

__all__ = [
    "Device",
    "Event",
    "Join",
    "Leave",
    "Lost",
    "Member",
    "Publication",
    "Snapshot",
    "Unsubscribed",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Publication(Generic[T]):
    """What was published to a channel.

    Args:
        channel: its name.
        data: the message: bytes, or whatever its JSON is.
        position: its place in the channel's history, to go on from there; None without history.
    """

    channel: str
    data: T
    position: str | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Publications may be missing here: load the state anew.

    Args:
        channel: its name; None, which ``on_lost`` alone is told, where messages may be missing that
            were for this client, its user, its session or everyone.
        position: the place to go on from; None where it is not known.
    """

    channel: str | None
    position: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The channel's state, with all that was published up to its position; the rest follows.

    Args:
        channel: its name.
        data: the state.
        position: the position that it belongs to.
    """

    channel: str
    data: Any
    position: str | None = None


@dataclass(frozen=True, slots=True)
class Join:
    """A user's first device came into the channel.

    Args:
        channel: its name.
        user: the user's id.
    """

    channel: str
    user: str


@dataclass(frozen=True, slots=True)
class Leave:
    """A user's last device left the channel.

    Args:
        channel: its name.
        user: the user's id.
    """

    channel: str
    user: str


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """The server has put this client out of the channel; nothing follows.

    Args:
        channel: its name.
        text: why, where the server says it.
    """

    channel: str
    text: str = ""


Event = Publication[T] | Lost | Snapshot | Join | Leave | Unsubscribed


class Device(msgspec.Struct, frozen=True):
    """One connection of a user who is in a channel.

    Args:
        connection: its id.
        meta: what the listener says about it.
    """

    connection: str
    meta: Any = None


class Member(msgspec.Struct, frozen=True):
    """A user who is in a channel.

    Args:
        user: the user's id.
        devices: the connections that are in it.
    """

    user: str
    devices: tuple[Device, ...] = ()
