"""Sending, on one node or many: the audiences, and the one path from a call to its receivers."""

from __future__ import annotations

import contextlib
from contextvars import Context
from logging import DEBUG
from typing import TYPE_CHECKING, Any, Final, cast

from backchannel.addressing import (
    Addressees,
    connection_target,
    session_target,
    targets,
    user_target,
)
from backchannel.audience import Audience
from backchannel.channel import check_channel
from backchannel.connection import ABSENT, Connection
from backchannel.contracts import Broker, Publication, Receipt, Target
from backchannel.dialect import frames
from backchannel.errors import BrokerUnavailable
from backchannel.history import History, Position
from backchannel.messages import check_size, encode, form_of
from backchannel.observe import HUB, excerpt

if TYPE_CHECKING:
    from backchannel.catchup import CatchUps
    from backchannel.cluster import Cluster
    from backchannel.config import Settings
    from backchannel.endpoint import Endpoints
    from backchannel.fanout import Fanout
    from backchannel.hub import HubCore
    from backchannel.messages import Frame
    from backchannel.roster import Roster
    from backchannel.rules import Rules
    from backchannel.runtime import Runtime
    from backchannel.sent import Outcome, Sent

__all__ = ["Publishing"]

WARNINGS: Final = 100
"""Channels and patterns of which it is said that no history is kept."""


class Publishing:
    """What a hub has to do with sending.

    Attributes:
        roster: the live connections of this node.
        fanout: what a turn of the event loop sends.
    """

    settings: Settings
    roster: Roster
    fanout: Fanout
    rules: Rules
    runtime: Runtime
    cluster: Cluster
    _broker: Broker
    endpoints: Endpoints
    _catch_ups: CatchUps
    _without_history: set[str]

    def channel(self, name: str) -> Audience:
        """Return everyone in a channel.

        Raises:
            TypeError, ValueError: no valid channel name.
        """
        return self._audience(Target("channel", self.check_channel(name)))

    def user(self, id: object) -> Audience:  # noqa: A002 - the public name
        """Return a user on all devices. 42 and "42" are the same user.

        Raises:
            TypeError, ValueError: None, empty, or no str or int.
        """
        return self._audience(user_target(id))

    def session(self, id: str) -> Audience:  # noqa: A002 - the public name
        """Return every connection of a web session.

        Raises:
            TypeError: None or no str: a session kept in a cookie alone has no id.
            ValueError: empty.
        """
        return self._audience(session_target(id))

    def connection(self, id: str) -> Audience:  # noqa: A002 - the public name
        """Return one connection, by its id. An unknown id is no error: it reaches nobody.

        Raises:
            TypeError: not a str.
        """
        return self._audience(connection_target(id))

    def _audience(self, target: Target) -> Audience:
        return Audience(cast("HubCore", self), target)

    @property
    def everyone(self) -> Audience:
        """Everyone connected to this hub."""
        return self._audience(Target("everyone"))

    def broadcast(
        self,
        channel: str,
        message: Any,
        *,
        to: Addressees = ABSENT,
        exclude: Addressees = ABSENT,
    ) -> Sent:
        """Send to everyone in a channel, or to some of them.

        Args:
            channel: the channel's name.
            message: str (text frame), bytes (binary frame), or anything that can be JSON.
            to: only these, and only if they are in the channel: a connection, a connection id
                (a bare str is one id), ``hub.user(…)``, ``hub.session(…)``, or a list of these.
                An empty list reaches nobody.
            exclude: not these.

        Returns:
            ``.reached`` tells how many connections it was queued for.

        Raises:
            UnsendableMessage: the message has no valid JSON form, or is too large for the broker;
                nothing was sent to anyone.
            TypeError: ``to`` or ``exclude`` is None or addresses nobody.
            ValueError: no valid channel name, or a connection of another hub.
        """
        return self.publish(Target("channel", self.check_channel(channel)), message, to, exclude)

    def channels(self) -> dict[str, int]:
        """Return this node's channels that have members, with how many."""
        return self.roster.counts()

    def publish(self, target: Target, message: Any, to: Addressees, exclude: Addressees) -> Sent:
        """Send to a target; what ``broadcast`` and ``Audience.send`` have in common."""
        if HUB.isEnabledFor(DEBUG):
            # The id of a session is a secret where a framework puts it into the cookie as it is.
            is_named = target.key and target.kind != "session"
            whom = f"{target.kind} {target.key!r}" if is_named else target.kind
            HUB.debug("publish to %s: %s", whom, excerpt(encode(message)))
        frame = encode(message)
        publication = Publication(
            target,
            frame,
            None if to is ABSENT else targets(self, to, "to"),
            () if exclude is ABSENT else targets(self, exclude, "exclude"),
            form_of(message),
        )
        if self._broker.shared:
            is_for_all = to is ABSENT and exclude is ABSENT
            audience = 0 if is_for_all else publication.audience_size
            check_size(frame, self.settings.max_publication, audience)
        return self.runtime.do(self._publish, publication)

    def _publish_event(self, target: Target, frame: Frame) -> None:
        """Send a frame of the dialect to those of an audience who speak it; nothing is kept."""
        outcome = self._broker.publish(Publication(target, frame, form="event"), None)
        if not isinstance(outcome, Receipt):
            self.runtime.keep(_whatever(outcome), Context())

    def _publish(self, publication: Publication) -> Receipt | Outcome:
        kind, name = publication.target
        keep = self.rules.keeping(name) if self.rules.keep and kind == "channel" else None
        return self._broker.publish(publication, keep)

    def _deliver(self, publication: Publication, position: Position | None) -> int:
        """Queue a publication for this node's receivers: the end of the one delivery path."""
        if position is not None:
            self._catch_ups.hear(position, publication)
        target = publication.target
        if publication.form == "event":
            if (problem := frames.problem_of_event(publication.frame)) is not None:
                text = "a stranger publishes an event to %r, which is dropped: %s (%s)"
                self.cluster.drop(text, text, target, excerpt(publication.frame), problem)
                return 0
            speakers = [ws for ws in self.roster.receivers(publication) if ws._speaks]
            return sum([ws._push(publication.frame) for ws in speakers])
        if target.kind == "channel" and publication.to is None:
            members = self.roster.members(target)
            without = self.roster.named(publication.exclude) if publication.exclude else ()
            return self.fanout.broadcast(publication, members, without, position)
        return sum([ws._take(publication, position) for ws in self.roster.receivers(publication)])

    async def read_history(
        self, channel: str, since: Position | None, limit: int, reader: Connection | None
    ) -> History:
        """Read a channel's history; see ``Audience.history``."""
        page = await self._broker.history(channel, since, limit)
        if page.top.offset == 0 and self.rules.keeping(channel) is None:
            self._warn_of_no_history(channel)
        return History.of(page, lambda one: reader is not None and self.roster.is_for(one, reader))

    def _warn_of_no_history(self, channel: str) -> None:
        """Warn of reading what nobody keeps: once for all channels of a rule or an endpoint."""
        rule = self.rules.find(channel)
        patterns = [one.pattern for one in self.endpoints.all() if one.pattern is not None]
        near = next((one.text for one in patterns if one.matches(channel)), channel)
        if (known := near if rule is None else rule.pattern.text) in self._without_history:
            return
        if len(self._without_history) < WARNINGS:  # clients may choose names
            self._without_history.add(known)
            HUB.warning(
                "the history of channel %r is empty: %s", channel,
                f"no rule keeps any, as hub.rule({near!r}, history=100) would"
                if rule is None
                else f"rule {rule} keeps none, as with history=100 it would",
            )  # fmt: skip

    def check_channel(self, name: str) -> str:
        """Return a valid channel name as this hub keeps it; see ``channel.check_channel``."""
        return check_channel(name, casefold=self.settings.casefold_channels)


async def _whatever(outcome: Outcome) -> None:
    with contextlib.suppress(BrokerUnavailable):
        await outcome
