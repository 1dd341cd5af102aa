"""Who may be in which channel, and publish to it, by rules: asked on demand, and asked again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Never, TypeVar

from backchannel.attendance import check_callback
from backchannel.channel import check_channel
from backchannel.listener import MISSING
from backchannel.observe import CONNECTION, HUB
from backchannel.places import written_at
from backchannel.rules import astray, check_call, read_rule
from backchannel.stepping import InContext

if TYPE_CHECKING:
    from backchannel.attendance import Attendance
    from backchannel.change import Change
    from backchannel.cluster import Cluster
    from backchannel.config import Settings
    from backchannel.connection import Connection
    from backchannel.contracts import Target
    from backchannel.endpoint import Endpoints
    from backchannel.membership import Membership
    from backchannel.presence import Presence
    from backchannel.roster import Roster
    from backchannel.rules import KeepsPresence, Rules
    from backchannel.runtime import Runtime

__all__ = ["Access"]

MemberCallback = TypeVar("MemberCallback", bound=Callable[[str, str], Any])
UserCallback = TypeVar("UserCallback", bound=Callable[[str], Any])

AT_ONCE: Final = 16
"""Connections that a recheck asks about at the same time, where rules have to wait."""

SLICE: Final = 0.005 / AT_ONCE
"""Seconds each of these goes on before others have their turn: 5 ms for all of them."""


class Access:
    """What a hub has to do with rules.

    Attributes:
        rules: its rules.
    """

    settings: Settings
    roster: Roster
    membership: Membership
    runtime: Runtime
    rules: Rules
    endpoints: Endpoints
    cluster: Cluster
    attendance: Attendance
    presence: Presence

    def rule(
        self,
        pattern: str,
        *unnamed: Never,
        subscribe: Callable[..., Any] | None = None,
        publish: Callable[..., Any] | None = None,
        history: int | None = None,
        ttl: float = 3600,
        replay: int = 0,
        presence: KeepsPresence = False,
        snapshot: Callable[..., Any] | None = None,
        **unknown: Never,
    ) -> None:
        """Say who may enter the channels of a pattern, who may publish to them, and what is kept.

        Of the rules that fit a channel's name the most specific one, which has the most text of
        its own, holds alone. It is asked before ``on_subscribe``, whatever way a connection comes:
        by its URL, ``ws.subscribe``, an audience, a thread. Both must admit. Who is in a channel
        already is not asked about again, unless by ``recheck``.

        Args:
            pattern: text with ``{name}`` variables, such as ``"thread:{id}"``.
            subscribe: ``def``, ``async def`` or ``@threaded def``, called with the connection and
                by name with what it names of ``channel`` (the whole name) and the pattern's
                variables (each a str), as in ``may_see(ws, id)``. False, Reject or raising
                refuses, anything else admits. Left out, everyone may enter.
            publish: the same for publishing; it is asked by ``may_publish``. Left out, no client
                may.
            history: publications, the newest ones, that are kept of each channel. Left out, nothing
                is kept.
            ttl: seconds that each of them is kept.
            replay: publications, the newest ones, that everyone who enters gets before all later
                ones, as far as they were for this one; at most ``history``.
            presence: True keeps which users are in each channel, on all nodes: for ``on_join``,
                ``on_leave`` and ``await hub.channel(name).users()``. ``"settled"`` does too, and
                joins are told only when the user has stayed for ``presence_moment`` seconds: of
                shorter visits nobody is told.
            snapshot: ``def``, ``async def`` or ``@threaded def``, called by name with what it names
                of ``ws``, ``channel`` and the pattern's variables; returns the channel's state and
                the position that it belongs to. Clients of the dialect v1 that enter without a
                position, or have lost some, are sent it, and then what came after it.
            unnamed: refused: subscribe and publish are given by name.
            unknown: refused, with what was probably meant.

        Raises:
            TemplateError: the pattern is malformed or fits no channel, has a rule already, or is
                as specific as another one that could fit the same name.
            ListenerError: what is to be asked takes something that rules do not have to give.
            TypeError: the pattern is no str, a number is none, presence is neither bool nor str, or
                something is given by no name or an unknown one.
            ValueError: a number is out of range, more is to be replayed than is kept, or presence
                is another word than ``"settled"``.
        """
        check_call(pattern, unnamed, unknown)
        caller = sys._getframe(1)
        where = written_at(caller.f_code.co_filename, caller.f_lineno)
        rule = read_rule(
            pattern, where, subscribe=subscribe, publish=publish, history=history, ttl=ttl,
            replay=replay, presence=presence, snapshot=snapshot,
            casefold=self.settings.casefold_channels,
        )  # fmt: skip
        self.rules.add(rule)
        self._announce()  # what is kept holds for those who publish without a hub too

    def _announce(self) -> None:
        """Tell others of a rule or an endpoint, where the hub runs; it is told at the start too."""
        if self.runtime.is_alive:
            self.runtime.loop.call_soon_threadsafe(self.cluster.announce)

    def _warn_of_rules(self) -> None:
        """Warn of rules that fit no endpoint's channel, but nearly: they guard nothing there."""
        patterns = [(one.pattern, one) for one in self.endpoints.all() if one.pattern is not None]
        for rule, near in astray(self.rules, [pattern for pattern, _ in patterns]):
            where = next(one for pattern, one in patterns if pattern is near)
            HUB.warning(
                "rule %s fits no channel that an endpoint leads into, so that it guards none of "
                "them: did you mean %r, those of %r (%s)?",
                rule, near.text, where.template.text, where.callbacks.name,
            )  # fmt: skip
        told = [f"hub.{name}" for name in ("on_join", "on_leave") if getattr(self.attendance, name)]
        if told and not self.rules.presence:
            HUB.warning(
                "%s will never be called: no rule keeps who is in its channels, as "
                'hub.rule("room:{name}", presence=True) does',
                " and ".join(told),
            )

    def on_join(self, callback: MemberCallback = MISSING) -> MemberCallback:
        """Call ``callback(channel, user)`` when a user has come into a channel; a decorator.

        That is when the first of the user's devices has entered it, on whatever node, of a channel
        whose rule says ``presence=True``, or ``presence_moment`` seconds later where it says
        ``presence="settled"``. It is called once, on one node.

        Args:
            callback: ``def``, ``async def`` or ``@threaded def``. What it raises is logged.

        Raises:
            ListenerError: it can't be called with a channel and a user, or there is one already.
        """
        self.attendance.on_join = check_callback(
            self.attendance.on_join, callback, "on_join", "channel", "user"
        )
        return callback

    def on_leave(self, callback: MemberCallback = MISSING) -> MemberCallback:
        """Call ``callback(channel, user)`` when a user has left a channel; a decorator.

        That is when the last of the user's devices has left it, and none has come back for
        ``presence_moment`` seconds. See ``on_join``.
        """
        self.attendance.on_leave = check_callback(
            self.attendance.on_leave, callback, "on_leave", "channel", "user"
        )
        return callback

    def on_user_online(self, callback: UserCallback = MISSING) -> UserCallback:
        """Call ``callback(user)`` when a user's first device has come; a decorator.

        Raises:
            ListenerError: it can't be called with a user, or there is one already.
        """
        self.presence.on_online = check_callback(
            self.presence.on_online, callback, "on_user_online", "user"
        )
        return callback

    def on_user_offline(self, callback: UserCallback = MISSING) -> UserCallback:
        """Call ``callback(user)`` when a user's last device has gone; a decorator.

        Raises:
            ListenerError: it can't be called with a user, or there is one already.
        """
        self.presence.on_offline = check_callback(
            self.presence.on_offline, callback, "on_user_offline", "user"
        )
        return callback

    async def may_publish(self, ws: Connection, channel: str) -> bool:
        """Tell whether a rule lets a client publish to a channel: for listeners that pass it on.

        Clients publish through listeners alone, and what a listener sends is the server's own
        word, so that no rule is asked about it. A listener that sends what a client says to a
        channel that the client names asks this before it does.

        Args:
            ws: the client's connection.
            channel: the channel's name.

        Returns:
            False where no rule says ``publish=``, where it refuses or raises, and for a
            connection that has ended. Whether it is in the channel is up to the rule.

        Raises:
            TypeError, ValueError: no valid channel name, or a connection of another hub.
        """
        name = check_channel(channel, casefold=self.settings.casefold_channels)
        if ws.hub is not self:
            raise ValueError(f"{ws!r} belongs to another hub")
        rule = self.rules.find(name)
        if rule is None or rule.publish is None or ws.reason is not None:
            return False
        asking = self.membership.ask(ws._dispatch, rule.publish, name)
        refused = await InContext(asking, ws._context.copy())
        return refused is None and ws.reason is None

    async def recheck(self, target: Target) -> list[Connection]:
        """Ask the rules again about those in an audience; see ``Audience.recheck``."""
        if self.runtime.is_alive and self.runtime.is_elsewhere():
            raise RuntimeError("recheck() must be awaited in the hub's event loop")
        self.membership.rechecks += 1
        members = list(self.roster.members(target))
        pairs = [
            (ws, name)
            for ws in members
            for name in ([target.key] if target.kind == "channel" else sorted(ws._channels))
            if self.rules.asking(name) is not None
        ]
        lost: set[Connection] = set()
        changes: list[Change] = []
        todo = iter(pairs)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE, len(pairs))):
                group.create_task(self._check(todo, lost, changes))
        for change in changes:  # only now, since a busy connection takes its time
            await change
        return [ws for ws in members if ws in lost]

    async def _check(
        self,
        todo: Iterator[tuple[Connection, str]],
        lost: set[Connection],
        changes: list[Change],
    ) -> None:
        """Take from what is to be asked about until nothing is left; note who has lost access."""
        began = perf_counter()
        for ws, name in todo:
            if ws.reason is None and name in ws._channels:
                # In a copy of its context, where a callback of this connection may be under way.
                asking = self.membership.ask_rule(ws._dispatch, name)
                refused = await InContext(asking, ws._context.copy())
                if refused is not None and ws.reason is None and name in ws._channels:
                    CONNECTION.info("%s has lost access to %r", ws, name)
                    lost.add(ws)
                    if name == ws.channel:
                        ws._dispatch._refuse(refused)
                    else:
                        changes.append(ws._dispatch.expel(name))
            if perf_counter() - began > SLICE:
                await asyncio.sleep(0)
                began = perf_counter()
