"""Whom something is for, in the words of an application: read and checked, by hub and publisher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Union

from backchannel.connection import Connection
from backchannel.contracts import Target
from backchannel.history import Position
from backchannel.info import Info
from backchannel.request import user_id

__all__ = [
    "Addressed",
    "Addressees",
    "check_reading",
    "connection_target",
    "session_target",
    "targets",
    "user_target",
]


class Addressed:
    """Whom something is for: what the audiences of hubs and publishers have in common.

    Args:
        target: whom it means.
    """

    __slots__ = ("target",)

    def __init__(self, target: Target):
        self.target = target

    def belongs_to(self, owner: object) -> bool:
        """Tell whether it was made by a hub, or by a publisher."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {' '.join(part for part in self.target if part)}>"


Addressee = Union[Connection, Addressed, Info, str]  # noqa: UP007 - read at run time by Sphinx and people
Addressees = Union[Addressee, Iterable[Addressee]]  # noqa: UP007
"""A connection, a connection id, ``hub.user(…)``, ``hub.session(…)``, or a list of these."""


def user_target(id: object) -> Target:  # noqa: A002 - the public name
    """Return a user; see ``Hub.user``."""
    return Target("user", user_id(id))


def session_target(id: str) -> Target:  # noqa: A002 - the public name
    """Return every connection of a web session; see ``Hub.session``."""
    if not isinstance(id, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"a session id is a str, not {id!r}: whoever has no session, or none any more, has "
            "no id; one that lives in a cookie has one once `await hub.remember(request)` was "
            "called at login"
        )
    if not id:
        raise ValueError("a session id can't be empty")
    return Target("session", id)


def connection_target(id: str) -> Target:  # noqa: A002 - the public name
    """Return one connection; see ``Hub.connection``."""
    if not isinstance(id, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a connection id is a str, not {id!r}")
    return Target("connection", id)


def check_reading(whom: Addressed, since: Position | str | None, limit: int) -> Position | None:
    """Check what ``history`` of an audience was given.

    Args:
        whom: the audience.
        since: after which position it is to be read; None is the newest.
        limit: publications that are looked at.

    Raises:
        TypeError: it is no channel, or something is of the wrong type.
        ValueError: ``since`` is no position, or ``limit`` is below 1.
    """
    if whom.target.kind != "channel":
        raise TypeError(f"{whom!r} has no history: channels have, hub.channel(name).history()")
    if isinstance(limit, bool) or not isinstance(limit, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"limit= is a number of publications, not {limit!r}")
    if limit < 1:
        raise ValueError(f"limit= is at least 1, not {limit}")
    return None if since is None else Position.of(since)


def targets(owner: object, value: Any, argument: str) -> tuple[Target, ...]:
    """Read ``to=`` or ``exclude=``.

    Args:
        owner: the hub or publisher whose connections are meant.
        value: one addressee or an iterable of them; a bare str is one connection id.
        argument: the argument's name, for the error.

    Raises:
        TypeError: None, or nothing that can be addressed.
        ValueError: a connection or audience of another hub, or of another publisher.
    """
    if isinstance(value, str | Connection | Addressed | Info):
        return (_target(owner, value, argument),)
    if isinstance(value, Iterable) and not isinstance(value, Mapping | bytes | bytearray):
        return tuple(_target(owner, one, argument) for one in value)  # pyright: ignore[reportUnknownVariableType]
    raise TypeError(
        f"{argument}={value!r} addresses nobody: use a connection, a connection id, hub.user(…), "
        f"hub.session(…) or a list of these; leave {argument} out to "
        + ("reach the whole audience" if argument == "to" else "exclude nobody")
    )


def _target(owner: object, value: Any, argument: str) -> Target:
    if isinstance(value, str):
        return Target("connection", value)
    if isinstance(value, Info):
        return Target("connection", value.id)
    if isinstance(value, Connection | Addressed):
        ours = value.hub is owner if isinstance(value, Connection) else value.belongs_to(owner)
        if not ours:
            raise ValueError(f"{argument}={value!r} belongs to another hub")
        return Target("connection", value.id) if isinstance(value, Connection) else value.target
    raise TypeError(
        f"{argument} has {value!r}, which is no connection, connection id, hub.user(…) or "
        "hub.session(…)"
    )
