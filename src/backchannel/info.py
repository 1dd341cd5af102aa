"""What anyone may know about a connection, on this node and on others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import msgspec

__all__ = ["Info", "User", "attending", "packed", "unpacked"]


@dataclass(frozen=True, slots=True)
class Info:
    """What anyone may know about a connection.

    Args:
        id: connection id.
        user: user id, or None for an anonymous client.
        endpoint: the URL template it came in by.
        node: id of the node it is connected to.
        opened_at: aware datetime of its handshake.
        meta: what the listener put into ``ws.meta``.
    """

    id: str
    user: str | None
    endpoint: str
    node: str
    opened_at: datetime
    meta: Mapping[str, Any]


class User(str):
    """A user in an audience: the id, which it is equal to, and more where a rule says presence.

    Args:
        id_: the user's id.
        devices: the user's connections in the channel, on all nodes; None where that is not known.
    """

    __slots__ = ("_devices",)
    _devices: tuple[Info, ...] | None

    def __new__(cls, id_: str, devices: Iterable[Info] | None = None) -> Self:  # noqa: D102
        self = super().__new__(cls, id_)
        self._devices = None if devices is None else tuple(devices)
        return self

    @property
    def devices(self) -> list[Info]:
        """The user's connections in the channel, as they were when each came into it.

        None for a user whose last one has gone, and who may be back in a moment.

        Raises:
            AttributeError: no rule says that presence is kept of this channel.
        """
        if self._devices is None:
            raise AttributeError(
                f"the devices of {str(self)!r} are known in channels whose rule says so: "
                'hub.rule("room:{name}", presence=True); all of a user\'s are '
                "await hub.user(id).connections()"
            )
        return list(self._devices)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it be copied and pickled."""
        return (User, (str(self), self._devices))


def unpacked(answers: Iterable[Iterable[Any]]) -> list[Info]:
    """Return the connections that other nodes named."""
    return [
        Info(id_, user, endpoint, node, datetime.fromtimestamp(opened_at, UTC), meta)
        for answer in answers
        for id_, user, endpoint, node, opened_at, meta in answer
    ]


def attending(members: Mapping[str, Iterable[bytes]]) -> list[User]:
    """Return users with their devices, those first who have been connected for longest.

    Args:
        members: by their ids, what each of their nodes has described; see ``contracts.Broker``.
    """
    users = [
        User(id_, unpacked(msgspec.msgpack.decode(some) for some in devices))
        for id_, devices in members.items()
    ]
    return sorted(users, key=_came)


def _came(user: User) -> float:
    return min((one.opened_at.timestamp() for one in user.devices), default=float("inf"))


def packed(info: Info) -> list[Any]:
    """Return what tells another node of a connection."""
    opened_at = info.opened_at.timestamp()
    return [info.id, info.user, info.endpoint, info.node, opened_at, dict(info.meta)]
