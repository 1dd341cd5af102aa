"""Whom something is for: the same verbs on a channel, a user, a session, a connection, everyone."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NoReturn

from backchannel.addressing import Addressed, Addressees, check_reading
from backchannel.codes import check_close
from backchannel.connection import ABSENT, CloseReason, Connection
from backchannel.contracts import Receipt, Target
from backchannel.history import History, Position
from backchannel.info import Info, User, unpacked
from backchannel.sent import Sent

if TYPE_CHECKING:
    from backchannel.change import Change
    from backchannel.hub import HubCore
    from backchannel.sent import Outcome

__all__ = ["Addressees", "Audience", "Changes", "Info", "User"]


class Audience(Addressed):
    """Whom something is for, made by the hub: ``hub.channel("cars")``, ``hub.user("ana")``."""

    __slots__ = ("_hub",)

    def __init__(self, hub: HubCore, target: Target):
        super().__init__(target)
        self._hub = hub

    def send(self, message: Any, *, exclude: Addressees = ABSENT) -> Sent:
        """Send to everyone in this audience.

        Args:
            message: str, bytes, or anything that can be JSON.
            exclude: who is left out (see ``Hub.broadcast``).

        Raises:
            UnsendableMessage: the message has no valid JSON form; nothing was sent to anyone.
            TypeError, ValueError: ``exclude`` is nothing that can be excluded.
        """
        return self._hub.publish(self.target, message, ABSENT, exclude)

    def close(self, code: int = 1000, reason: str = "") -> Sent:
        """Close every connection in this audience; ``.reached`` tells how many.

        Args:
            code: 1000–1003, 1007–1014 or 3000–4999; 4100–4999 are the application's own.
            reason: at most 123 bytes of UTF-8.

        Raises:
            ValueError: a code that can't be sent, or a reason that is too long.
        """
        check_close(code, reason)
        ending = CloseReason(code, reason, "server")

        def close_all() -> Receipt | Outcome:
            self._hub.farewells.note(self.target, ending)
            if self._hub.cluster.is_shared:
                return self._hub.cluster.close_all(self.target, code, reason)
            return Receipt(sum(ws._dispatch.end(ending) for ws in self._members()))

        return self._hub.runtime.do(close_all)

    def subscribe(self, channel: str) -> Changes:
        """Let every connection in this audience enter a channel, each asked by ``on_subscribe``.

        Returns:
            Await it for a Sent whose ``.reached`` tells how many are in the channel now.

        Raises:
            TypeError, ValueError: no valid channel name.
        """
        return self._hub.change_all(self._members, channel, entering=True, elsewhere=self.target)

    def unsubscribe(self, channel: str) -> Changes:
        """Let every connection in this audience leave a channel.

        Returns:
            Await it for a Sent whose ``.reached`` tells how many have left.

        Raises:
            TypeError, ValueError: no valid channel name.
        """
        return self._hub.change_all(self._members, channel, entering=False, elsewhere=self.target)

    async def recheck(self) -> list[Info]:
        """Ask the rules again about everyone in this audience; who has lost access is taken out.

        Of ``hub.channel("cars")`` that channel is asked about, of any other audience every channel
        that its connections are in. Only the rules are asked: ``on_subscribe`` may greet. They are
        asked at once, also while a callback of the connection runs. Whom a rule refuses, or raises
        about, leaves the channel as by ``unsubscribe``. A connection that loses the channel of its
        URL is closed with 1008 and Reject's text, since it is there for nothing else.

        Returns:
            Who was taken out of a channel or closed, each once, in the order they came.

        Raises:
            RuntimeError: awaited outside the hub's event loop.
        """
        lost = [self._hub.info(ws) for ws in await self._hub.recheck(self.target)]
        return lost + unpacked(await self._ask_others("recheck"))

    async def history(
        self,
        *,
        since: Position | str | None = None,
        limit: int = 100,
        reader: Connection | None = None,
    ) -> History:
        """Return what was published to this channel, as far as a rule has kept it.

        Args:
            since: what came after this position, from the oldest; None is the newest.
            limit: publications that are looked at.
            reader: whom it is for: those that were for some only (``to=``, ``exclude=``) are there
                where they were for this connection. Left out, they are not there.

        Raises:
            TypeError: this audience is no channel, or a ``since`` or ``limit`` of the wrong type.
            ValueError: ``since`` is no position, ``limit`` is below 1, or the reader is another
                hub's.
            BrokerUnavailable: the broker does not answer.
        """
        after = check_reading(self, since, limit)
        if reader is not None and reader.hub is not self._hub:
            raise ValueError(f"reader={reader!r} belongs to another hub")
        return await self._hub.read_history(self.target.key, after, limit, reader)

    async def connections(self) -> list[Info]:
        """Return the connections in this audience, in the order they came, node by node.

        Raises:
            BrokerUnavailable: the other nodes can't be asked.
        """
        here = [self._hub.info(ws) for ws in self._members()]
        return here + unpacked(await self._ask_others("connections"))

    async def count(self) -> int:
        """Return how many connections are in this audience, on all nodes.

        Raises:
            BrokerUnavailable: the other nodes can't be asked.
        """
        here = len(self._hub.roster.members(self.target))
        return here + sum(map(int, await self._ask_others("count")))

    async def users(self) -> list[User]:
        """Return the users in this audience, each once: their ids, in the order they came.

        Where it is a channel whose rule says ``presence=True``, the broker knows them: each has
        its ``devices``, a list of ``Info``, and one whose last device has just gone is there until
        ``on_leave`` is told. Else the nodes are asked.

        Raises:
            BrokerUnavailable: the broker or the other nodes can't be asked.
        """
        if self._has_presence:
            return await self._hub.attendance.users(self.target.key)
        here = [ws.user for ws in self._members() if ws.user is not None]
        there = [user for some in await self._ask_others("users") for user in some]
        return [User(id_) for id_ in dict.fromkeys([*here, *there])]

    async def count_users(self) -> int:
        """Return how many users are in this audience, on all nodes.

        In a channel whose rule says ``presence=True`` this costs the same for any number of them.

        Raises:
            BrokerUnavailable: the broker or the other nodes can't be asked.
        """
        if self._has_presence:
            return await self._hub.attendance.count(self.target.key)
        return len(await self.users())

    @property
    def _has_presence(self) -> bool:
        return self.target.kind == "channel" and self._hub.rules.has_presence(self.target.key)

    async def _ask_others(self, verb: str) -> list[Any]:
        """Ask the other nodes that have someone of this audience, where there are any."""
        cluster = self._hub.cluster
        return await cluster.ask(self.target, verb) if cluster.is_shared else []

    def belongs_to(self, owner: object) -> bool:
        """Tell whether this audience was made by a hub."""
        return self._hub is owner

    def _members(self) -> list[Connection]:
        return list(self._hub.roster.members(self.target))


class Changes:
    """Many connections entering or leaving a channel. Await it for a Sent, or ignore it."""

    __slots__ = ("_changes", "_others", "_started")

    def __init__(self, started: Sent, changes: list[Change], others: Sent | None = None):
        self._started = started
        self._changes = changes
        self._others = others

    def result(self, timeout: float | None = None) -> Sent:
        """Wait in another thread; see ``Sent.result``."""
        self._started.result(timeout)
        done = sum(change.result(timeout) for change in self._changes)
        if self._others is not None:
            done += self._others.result(timeout).reached or 0
        return Sent(Receipt(done))

    def __bool__(self) -> NoReturn:
        """Refuse: without ``await`` it would always be true.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "what became of it is not known yet: await it first and look at .reached, as in `if "
            "(await hub.user(…).subscribe(…)).reached:`, or call .result(timeout) in a thread"
        )

    def __await__(self) -> Generator[Any, Any, Sent]:
        """Wait until each has been asked."""
        yield from self._started.__await__()
        done = 0
        for change in self._changes:
            done += yield from change.__await__()
        if self._others is not None:
            done += (yield from self._others.__await__()).reached or 0
        return Sent(Receipt(done))
