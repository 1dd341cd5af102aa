"""Who is connected here and in what: the sets that audiences are made of. Pure bookkeeping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from backchannel.connection import Connection
    from backchannel.contracts import Link, Publication, Target
    from backchannel.session.web import Session

__all__ = ["Roster"]

# Dicts, not sets: iteration in order of arrival, the same on each run; and with each connection
# its link, which is all that writing to a channel has to look at.
Members = dict["Connection", "Link"]

FEW: Final = 8
"""Channels up to which a connection keeps their names in a tuple, which needs less memory."""


class Solo(Mapping["Connection", "Link"]):
    """Members of an audience of one, as most users and many channels are.

    A connection has one, for all audiences in which it is alone.
    """

    __slots__ = ("ws",)

    def __init__(self, ws: Connection):
        self.ws = ws

    def __getitem__(self, ws: Connection) -> Link:
        if ws is not self.ws:
            raise KeyError(ws)
        return ws._link

    def __contains__(self, ws: object) -> bool:
        return ws is self.ws

    def __iter__(self) -> Iterator[Connection]:
        yield self.ws

    def __len__(self) -> int:
        return 1


Index = dict[str, Solo | Members]
_NOBODY: Final[Mapping[Connection, Link]] = MappingProxyType({})


class Roster:
    """The live connections of one node, by id, user, session and channel.

    A connection is in everything it belongs to or, once removed, in nothing.
    """

    def __init__(self) -> None:
        self.everyone: Members = {}
        self._by_id: dict[str, Connection] = {}
        self._users: Index = {}
        self._sessions: Index = {}
        # A framework may give a session another id later on, as at a login.
        self._session_of: dict[Connection, str] = {}
        self._channels: Index = {}

    def admit(self, ws: Connection) -> None:
        """Add a connection."""
        self.everyone[ws] = ws._link
        self._by_id[ws.id] = ws
        if ws.user is not None:
            _add(self._users, ws.user, ws)
        if (session := ws.session.id) is not None:
            _add(self._sessions, session, ws)
            self._session_of[ws] = session

    def remove(self, ws: Connection) -> None:
        """Take a connection out of everything; its ``channels`` keep their last view."""
        for name in ws._channels:
            _discard(self._channels, name, ws)
        ws._channels = frozenset(ws._channels)  # type: ignore[assignment] # raises at a change
        if self._by_id.pop(ws.id, None) is None:
            return
        del self.everyone[ws]
        if ws.user is not None:
            _discard(self._users, ws.user, ws)
        if (session := self._session_of.pop(ws, None)) is not None:
            _discard(self._sessions, session, ws)
        ws._alone = None

    def server_sessions(self) -> list[Session]:
        """Return one of each web session that is kept on a server."""
        first = (next(iter(members)).session for members in self._sessions.values())
        return [session for session in first if session.is_writable]

    def enter(self, ws: Connection, channel: str) -> None:
        """Put a connection into a channel."""
        names = ws._channels
        if not isinstance(names, tuple):
            names.add(channel)
        elif channel not in names:
            ws._channels = (*names, channel) if len(names) < FEW else {*names, channel}
        alone = ws._alone
        if alone is None or self._channels.setdefault(channel, alone) is not alone:
            _add(self._channels, channel, ws)

    def leave(self, ws: Connection, channel: str) -> None:
        """Take a connection out of a channel."""
        names = ws._channels
        if not isinstance(names, tuple):
            names.discard(channel)
        else:
            ws._channels = tuple([name for name in names if name != channel])
        if self._channels.get(channel, ws) is ws._alone:
            del self._channels[channel]
        else:
            _discard(self._channels, channel, ws)

    def counts(self) -> dict[str, int]:
        """Return the channels that have members, with how many."""
        return {name: len(members) for name, members in self._channels.items()}

    def members(self, target: Target) -> Mapping[Connection, Link]:
        """Return the connections a target means; empty when there are none."""
        match target.kind:
            case "channel":
                return self._channels.get(target.key, _NOBODY)
            case "connection":
                found = self._by_id.get(target.key)
                return {found: found._link} if found else _NOBODY
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
            chosen = [ws for ws in self.named(publication.to) if ws in audience]
        if publication.exclude:
            left_out = self.named(publication.exclude)
            return [ws for ws in chosen if ws not in left_out]
        return list(chosen)

    def is_for(self, publication: Publication, ws: Connection) -> bool:
        """Tell whether a member of its audience gets a publication, as ``receivers`` would."""
        to = publication.to
        if to is not None and not any(self._means(target, ws) for target in to):
            return False
        return not any(self._means(target, ws) for target in publication.exclude)

    def _means(self, target: Target, ws: Connection) -> bool:
        match target.kind:
            case "channel":
                return target.key in ws._channels
            case "connection":
                return target.key == ws.id
            case "user":
                return target.key == ws.user
            case "session":
                return target.key == self._session_of.get(ws, ws.session.id)
            case "everyone":
                return True

    def named(self, targets: Iterable[Target]) -> dict[Connection, None]:
        """Return the connections that some targets mean, each once."""
        return dict.fromkeys(ws for target in targets for ws in self.members(target))


def _add(index: Index, key: str, ws: Connection) -> None:
    members = index.get(key)
    if members is None:
        if (alone := ws._alone) is None:
            alone = ws._alone = Solo(ws)
        index[key] = alone
    elif isinstance(members, Solo):
        index[key] = {members.ws: members.ws._link, ws: ws._link}
    else:
        members[ws] = ws._link


def _discard(index: Index, key: str, ws: Connection) -> None:
    """Remove a member and, with the last one, its key: no empty audience stays behind."""
    members = index.get(key)
    if isinstance(members, Solo):
        if members.ws is ws:
            del index[key]
    elif members is not None:
        members.pop(ws, None)
        if not members:
            del index[key]
