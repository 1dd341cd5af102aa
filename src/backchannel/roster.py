"""Who is connected here and in what: the sets that audiences are made of. Pure bookkeeping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from backchannel.connection import Connection
    from backchannel.contracts import Publication, Target

__all__ = ["Roster"]

# Dicts, not sets: iteration in order of arrival, the same on each run.
Members = dict["Connection", None]
_NOBODY: Final[Mapping[Connection, None]] = MappingProxyType({})


class Roster:
    """The live connections of one node, by id, user, session and channel.

    A connection is in everything it belongs to or, once removed, in nothing.
    """

    def __init__(self) -> None:
        self.everyone: Members = {}
        self._by_id: dict[str, Connection] = {}
        self._users: dict[str, Members] = {}
        self._sessions: dict[str, Members] = {}
        # A framework may give a session another id later on, as at a login.
        self._session_of: dict[Connection, str] = {}
        self._channels: dict[str, Members] = {}

    def admit(self, ws: Connection) -> None:
        """Add a connection."""
        self.everyone[ws] = None
        self._by_id[ws.id] = ws
        if ws.user is not None:
            self._users.setdefault(ws.user, {})[ws] = None
        if (session := ws.session.id) is not None:
            self._sessions.setdefault(session, {})[ws] = None
            self._session_of[ws] = session

    def remove(self, ws: Connection) -> None:
        """Take a connection out of everything; its ``channels`` keep their last view."""
        for name in ws._channels:
            _discard(self._channels, name, ws)
        ws._channels = frozenset(ws._channels)
        if self._by_id.pop(ws.id, None) is None:
            return
        del self.everyone[ws]
        if ws.user is not None:
            _discard(self._users, ws.user, ws)
        if (session := self._session_of.pop(ws, None)) is not None:
            _discard(self._sessions, session, ws)

    def enter(self, ws: Connection, channel: str) -> None:
        """Put a connection into a channel."""
        cast("set[str]", ws._channels).add(channel)
        self._channels.setdefault(channel, {})[ws] = None

    def leave(self, ws: Connection, channel: str) -> None:
        """Take a connection out of a channel."""
        cast("set[str]", ws._channels).discard(channel)
        _discard(self._channels, channel, ws)

    def counts(self) -> dict[str, int]:
        """Return the channels that have members, with how many."""
        return {name: len(members) for name, members in self._channels.items()}

    def members(self, target: Target) -> Mapping[Connection, None]:
        """Return the connections a target means; empty when there are none."""
        match target.kind:
            case "channel":
                return self._channels.get(target.key, _NOBODY)
            case "connection":
                found = self._by_id.get(target.key)
                return {found: None} if found else _NOBODY
            case "user":
                return self._users.get(target.key, _NOBODY)
            case "session":
                return self._sessions.get(target.key, _NOBODY)
            case "everyone":
                return self.everyone

    def receivers(self, publication: Publication) -> list[Connection]:
        """Return who gets a publication, each once."""
        audience = self.members(publication.target)
        if publication.to is None:
            chosen: Iterable[Connection] = audience
        else:
            named = dict.fromkeys(ws for target in publication.to for ws in self.members(target))
            chosen = [ws for ws in named if ws in audience]
        if publication.exclude:
            left_out = {ws for target in publication.exclude for ws in self.members(target)}
            return [ws for ws in chosen if ws not in left_out]
        return list(chosen)


def _discard(index: dict[str, Members], key: str, ws: Connection) -> None:
    """Remove a member and, with the last one, its key: no empty audience stays behind."""
    members = index.get(key)
    if members is None:
        return
    members.pop(ws, None)
    if not members:
        del index[key]
