"""Publishing to a hub from an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from backchannel.addressing import (
    Addressed,
    Addressees,
    check_reading,
    connection_target,
    session_target,
    user_target,
)
from backchannel.channel import check_channel
from backchannel.cluster import told
from backchannel.codes import check_close
from backchannel.connection import ABSENT
from backchannel.contracts import Receipt, Target
from backchannel.info import Info, User, unpacked
from backchannel.publisher.front import Front
from backchannel.sent import Sent

if TYPE_CHECKING:
    from backchannel.history import History, Position
    from backchannel.publisher.doors import AwaitingDoor

__all__ = ["AsyncPublisher", "AsyncPublisherAudience"]


class AsyncPublisher(Front):
    """Publishes to a hub without running one: from an async view, a bot, a worker.

    Each call is awaited, and returns when the engine has what was published. One serves one event
    loop, in which many tasks may use it, and one in each process that is forked later; without an
    event loop use Publisher.

    Args:
        url: the engine that the hub's nodes have as their broker: ``redis://localhost:6379/0``,
            ``redis+sentinel://…`` and ``redis+cluster://…`` too.
        hub: the hub's name, ``Hub(name=…)``.
        timeout: seconds that a call may take, with all attempts to reach the engine and all nodes'
            answers.
        max_connections: to the engine, or to each master of a cluster, at most, for publishing and
            for waiting for answers each;
            a task waits for one that is free.

    Raises:
        ImportError: redis and hiredis are not installed.
        TypeError, ValueError: no such URL, name or number.
    """

    def __init__(
        self, url: str, hub: str = "hub", *, timeout: float = 5.0, max_connections: int = 16
    ):
        super().__init__(url, hub, timeout, max_connections)
        from backchannel.publisher.doors import AwaitingDoor  # noqa: PLC0415 - an extra

        self._door: AwaitingDoor = AwaitingDoor(self._address, self._patience, max_connections)

    async def __aenter__(self) -> Self:
        """Return it; it connects when it is used."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close its connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections; it may be used again, in another event loop too."""
        await self._door.aclose()

    async def broadcast(
        self,
        channel: str,
        message: Any,
        *,
        to: Addressees = ABSENT,
        exclude: Addressees = ABSENT,
    ) -> Sent:
        """Send to everyone in a channel, or to some of them, on every node.

        Args:
            channel: the channel's name.
            message: str (text frame), bytes (binary frame), or anything that can be JSON.
            to: only these, and only if they are in the channel: a connection id (a bare str is
                one id), an Info, ``publisher.user(…)``, ``publisher.session(…)``, or a list of
                these. An empty list reaches nobody.
            exclude: not these.

        Returns:
            ``.position`` in the channel's history, where a rule of the hub keeps one; ``.reached``
            is None, or 0 where no node has anyone in the channel.

        Raises:
            UnsendableMessage: the message has no valid JSON form, or is too large.
            TypeError: ``to`` or ``exclude`` is None or addresses nobody.
            ValueError: no valid channel name, or an audience of another publisher.
            BrokerUnavailable: the engine does not answer; it was not published, unless the error
                says that it may have been.
            BrokerUnusable: the engine knows no such hub, or lets nobody in like this.
        """
        return await self._send(self._channel_target(channel), message, to, exclude)

    def channel(self, name: str) -> AsyncPublisherAudience:
        """Return everyone in a channel.

        Raises:
            TypeError, ValueError: no valid channel name.
        """
        return AsyncPublisherAudience(self, self._channel_target(name))

    def user(self, id: object) -> AsyncPublisherAudience:  # noqa: A002 - the public name
        """Return a user on all devices. 42 and "42" are the same user.

        Raises:
            TypeError, ValueError: None, empty, or no str or int.
        """
        return AsyncPublisherAudience(self, user_target(id))

    def session(self, id: str) -> AsyncPublisherAudience:  # noqa: A002 - the public name
        """Return every connection of a web session.

        Raises:
            TypeError, ValueError: None, empty, or no str.
        """
        return AsyncPublisherAudience(self, session_target(id))

    def connection(self, id: str) -> AsyncPublisherAudience:  # noqa: A002 - the public name
        """Return one connection, by its id. An unknown id is no error: it reaches nobody.

        Raises:
            TypeError: not a str.
        """
        return AsyncPublisherAudience(self, connection_target(id))

    @property
    def everyone(self) -> AsyncPublisherAudience:
        """Everyone connected to the hub."""
        return AsyncPublisherAudience(self, Target("everyone"))

    async def _send(
        self, target: Target, message: Any, to: Addressees, exclude: Addressees
    ) -> Sent:
        publication = self._publication(target, message, to, exclude)
        return Sent(await self._door.run(self._plan.publish(publication)))

    async def _ask(self, target: Target, *words: Any) -> list[Any]:
        return told(target, *await self._door.run(self._plan.ask(target, *words)))


class AsyncPublisherAudience(Addressed):
    """Whom something is for, made by a publisher: ``publisher.user("ana")``.

    Each call raises BrokerUnavailable where the engine does not answer, and BrokerUnusable where
    it knows no such hub. A node that does not answer in time is left out, with a warning in
    the log.
    """

    __slots__ = ("_publisher",)

    def __init__(self, publisher: AsyncPublisher, target: Target):
        super().__init__(target)
        self._publisher = publisher

    async def send(self, message: Any, *, exclude: Addressees = ABSENT) -> Sent:
        """Send to everyone in this audience.

        Args:
            message: str, bytes, or anything that can be JSON.
            exclude: who is left out (see ``AsyncPublisher.broadcast``).

        Returns:
            ``.reached`` connections; of a channel as ``AsyncPublisher.broadcast`` says.

        Raises:
            UnsendableMessage: the message has no valid JSON form, or is too large.
            TypeError, ValueError: ``exclude`` is nothing that can be excluded.
        """
        return await self._publisher._send(self.target, message, ABSENT, exclude)

    async def close(self, code: int = 1000, reason: str = "") -> Sent:
        """Close every connection in this audience; ``.reached`` tells how many.

        Args:
            code: 1000–1003, 1007–1014 or 3000–4999; 4100–4999 are the application's own.
            reason: at most 123 bytes of UTF-8.

        Raises:
            ValueError: a code that can't be sent, or a reason that is too long.
        """
        check_close(code, reason)
        publisher = self._publisher
        closing = publisher._plan.close(self.target, code, reason)
        answers = told(self.target, *await publisher._door.run(closing))
        return Sent(Receipt(sum(answers)))

    async def subscribe(self, channel: str) -> Sent:
        """Let every connection in this audience enter a channel, each asked by ``on_subscribe``.

        Returns:
            ``.reached`` tells how many are in the channel now.

        Raises:
            TypeError, ValueError: no valid channel name.
        """
        return await self._do("subscribe", check_channel(channel))

    async def unsubscribe(self, channel: str) -> Sent:
        """Let every connection in this audience leave a channel.

        Returns:
            ``.reached`` tells how many have left.

        Raises:
            TypeError, ValueError: no valid channel name.
        """
        return await self._do("unsubscribe", check_channel(channel))

    async def connections(self) -> list[Info]:
        """Return the connections in this audience, in the order they came, node by node."""
        return unpacked(await self._publisher._ask(self.target, "connections"))

    async def count(self) -> int:
        """Return how many connections are in this audience, on all nodes."""
        return sum(map(int, await self._publisher._ask(self.target, "count")))

    async def users(self) -> list[User]:
        """Return the users in this audience, each once: their ids, in the order they came.

        Where it is a channel whose rule says ``presence=True``, the engine knows them: each has
        its ``devices``, a list of ``Info``, and one whose last device has just gone is there until
        ``on_leave`` is told. Else the nodes are asked.
        """
        publisher = self._publisher
        return await publisher._door.run(publisher._plan.users(self.target))

    async def count_users(self) -> int:
        """Return how many users are in this audience, on all nodes.

        In a channel whose rule says ``presence=True`` this costs the same for any number of them.
        """
        publisher = self._publisher
        return await publisher._door.run(publisher._plan.count_users(self.target))

    async def recheck(self) -> list[Info]:
        """Ask the rules again about everyone in this audience; who has lost access is taken out.

        Nodes do, each about its own connections, as ``Audience.recheck`` says. One whose rules
        have no answer in time is left out, with a warning in the log; it goes on all the same.

        Returns:
            Who was taken out of a channel or closed, each once, in the order they came, node by
            node.
        """
        return unpacked(await self._publisher._ask(self.target, "recheck"))

    async def history(self, *, since: Position | str | None = None, limit: int = 100) -> History:
        """Return what was published to this channel, as far as a rule of the hub has kept it.

        What was for some only (``to=``, ``exclude=``) is not there: a publisher is nobody's.

        Args:
            since: what came after this position, from the oldest; None is the newest.
            limit: publications that are looked at.

        Raises:
            TypeError: this audience is no channel, or a ``since`` or ``limit`` of the wrong type.
            ValueError: ``since`` is no position, or ``limit`` is below 1.
        """
        after = check_reading(self, since, limit)
        reading = self._publisher._plan.history(self.target, after, limit)
        return await self._publisher._door.run(reading)

    def belongs_to(self, owner: object) -> bool:
        """Tell whether this audience was made by a publisher."""
        return self._publisher is owner

    async def _do(self, *words: Any) -> Sent:
        return Sent(Receipt(sum(await self._publisher._ask(self.target, *words))))
