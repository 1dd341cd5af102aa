"""Entering and leaving channels where nobody has to wait, or for the broker alone.

That is where it means no more than to call a ``def`` of the listener. All else is up to the
subclass, which can wait (see ``membership``).
"""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from backchannel.change import Coming
from backchannel.channel import Channel
from backchannel.errors import BrokerUnavailable, Reject
from backchannel.handshake import REFUSED, refusal
from backchannel.observe import CONNECTION, TRACE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from backchannel.attendance import Attendance
    from backchannel.callbacks import Callback
    from backchannel.calling import Work
    from backchannel.catchup import CatchUps, Missed
    from backchannel.changing import Changing
    from backchannel.channel import Channels
    from backchannel.cluster import Cluster
    from backchannel.connection import Connection
    from backchannel.fanout import Fanout
    from backchannel.history import Position
    from backchannel.roster import Roster
    from backchannel.rules import Rules

__all__ = ["Entering"]


class Entering:
    """Entering and leaving where that is plain, for one hub.

    Attributes:
        rechecks: how often someone has asked for a recheck. Who is on the way in meanwhile is in
            no channel yet, where it would be found, so its rule is asked again before it enters.
    """

    __slots__ = (
        "_attendance", "_catch_ups", "_channels", "_cluster", "_fanout", "_roster", "_rules",
        "rechecks",
    )  # fmt: skip

    def __init__(
        self,
        roster: Roster,
        fanout: Fanout,
        channels: Channels,
        rules: Rules,
        catch_ups: CatchUps,
        attendance: Attendance,
        cluster: Cluster | None = None,
    ):
        self._roster = roster
        self._catch_ups = catch_ups
        self._attendance = attendance
        self._cluster = cluster  # None where there are no other nodes
        self._fanout = fanout
        self._channels = channels
        self._rules = rules
        self.rechecks = 0

    def enter_now(
        self, dispatch: Changing, name: str, channel: Channel | None, *, may_wait: bool = False
    ) -> bool | Coming | Coroutine[Any, Any, bool] | None:
        """Ask the rule and on_subscribe and enter, where that is plain; return whether it is in.

        It is where it means no more than to call a def of the listener, and to let the broker hear
        the channel. A coroutine that a def returned is what is left to do; None says that this is
        not plain.

        Args:
            dispatch: the connection's.
            name: the channel's.
            channel: it, where somebody holds it.
            may_wait: for the broker; else it is not plain where it would have to.
        """
        endpoint, ws, seen = dispatch.endpoint, dispatch.ws, self.rechecks
        if not endpoint.callbacks.membership_is_plain:
            return None
        is_unheard = self._cluster is not None
        if channel is not None:
            if not channel.is_plain():
                return None
            is_unheard = is_unheard and not channel.is_open
        if is_unheard and not may_wait:
            return None
        if name in ws._channels:
            return True
        if self._rules.some and (rule := self._rules.find(name)) is not None:
            if rule.replay or (rule.keep and (ws._speaks or is_unheard)):
                return None
            if (asking := rule.subscribe) is not None:
                if (admits := self._ask_now(dispatch, name, asking, seen)) is not True:
                    return admits
                if name in ws._channels:
                    return True
                channel = self._channels.get(name)
                if channel is not None and not channel.is_plain():
                    return self._admitted_later(dispatch, name, seen)
        if channel is None:
            if self._cluster is None:
                channel = Channel(name, endpoint, holders=1, is_open=True)
                self._channels[name] = channel
                return self._enter_open(dispatch, channel, seen)
            channel = self._channels[name] = Channel(name, endpoint)
        elif not channel.holders:
            channel = self._channels.hold(name, endpoint)
        if self._cluster is not None and not channel.is_open:
            if is_unheard and channel.is_plain():
                return self._come(self._cluster, dispatch, channel, seen)
            return self._admitted_later(dispatch, name, seen)  # the rule has let somebody in or out
        channel.holders += 1
        channel.is_open = True
        return self._enter_open(dispatch, channel, seen)

    async def enter_in_turn(self, dispatch: Changing, name: str) -> bool | None:
        """Enter in a task, where that is plain; return whether it is in, None where it is not."""
        done = self.enter_now(dispatch, name, self._channels.get(name), may_wait=True)
        if isinstance(done, Coming):
            return await done.wait()
        return done if done is None or isinstance(done, bool) else await done

    def _ask_now(
        self, dispatch: Changing, name: str, asking: Callback, seen: int
    ) -> bool | Coroutine[Any, Any, bool] | None:
        """Ask a rule's callback, where that is a def; return whether it admits.

        A coroutine that it returned is what is left to do; None says that it is no def.
        """
        if not asking.returns_at_once:
            return None
        answer: Any
        try:
            answer = dispatch.call_now(asking, dispatch.ws, name)
        except Exception as error:  # noqa: BLE001 - a rule may raise anything
            answer = dispatch.answer_of(asking, error)
        if inspect.iscoroutine(answer):
            return self._ask_later(dispatch, name, asking, answer, seen)
        return name in dispatch.ws._channels or not self._stays_out(dispatch.ws, name, answer)

    def _come(
        self, cluster: Cluster, dispatch: Changing, channel: Channel, seen: int
    ) -> bool | Coming | Coroutine[Any, Any, bool]:
        """Let the broker hear a channel, and then enter."""
        channel.begin_opening()
        if (heard := cluster.listen(channel.name)) is None:
            channel.end_opening(is_open=True)
            return self._enter_open(dispatch, channel, seen)
        stay_out = functools.partial(self._stay_out, cluster, channel)
        finish = functools.partial(self._have_heard, dispatch, channel, seen, heard, stay_out)
        return Coming(heard, finish, stay_out)

    def _have_heard(
        self,
        dispatch: Changing,
        channel: Channel,
        seen: int,
        heard: asyncio.Future[Any],
        stay_out: Callable[[], None],
    ) -> bool | Coroutine[Any, Any, bool]:
        """Enter a channel that is heard by now, also where the broker is away.

        Raises:
            Exception: the broker can't hear it.
        """
        if heard.cancelled():
            stay_out()
            return False
        error = heard.exception()
        if error is not None and not isinstance(error, BrokerUnavailable):
            stay_out()
            raise error
        channel.end_opening(is_open=True)
        ws, name = dispatch.ws, channel.name
        if ws.reason is None and name not in ws._channels:
            return self._enter_open(dispatch, channel, seen)
        self._let_go(channel)
        return name in ws._channels

    def _stay_out(self, cluster: Cluster, channel: Channel) -> None:
        """Leave it to the next one to open a channel, and to let the broker hear it."""
        cluster.close(channel.name)
        channel.end_opening(is_open=False)
        channel.holders -= 1
        self._channels.drop_if_free(channel)

    def _enter_open(
        self, dispatch: Changing, channel: Channel, seen: int
    ) -> bool | Coroutine[Any, Any, bool]:
        """Ask on_subscribe and enter a channel that is open, and held for it."""
        ws, name = dispatch.ws, channel.name
        callback, answer = dispatch.endpoint.callbacks.on_subscribe, None
        if callback is not None:
            try:
                answer = dispatch.call_now(callback, ws, name)
            except Exception as error:  # noqa: BLE001 - a listener may raise anything
                answer = dispatch.answer_of(callback, error)
        if seen != self.rechecks or (answer is not None and inspect.iscoroutine(answer)):
            return self._enter_later(dispatch, channel, callback, answer, seen)
        # Almost all come in, without a word about them.
        if answer is None and ws.reason is None and name not in ws._channels:
            self._enter(ws, name)
            return True
        if self._is_let_in(dispatch, name, answer):
            return True
        self._let_go(channel)
        return name in ws._channels

    def _let_go(self, channel: Channel) -> None:
        """Hold a channel no more, where that is plain."""
        channel.holders -= 1
        if not channel.holders:
            channel.is_open = False
            if self._cluster is not None:
                self._cluster.close(channel.name)
            if channel._turn is None and channel._opening is None:
                self._channels.pop(channel.name, None)
            else:
                self._channels.drop_if_free(channel)

    async def _ask_later(
        self, dispatch: Changing, name: str, asking: Callback, coroutine: Any, seen: int
    ) -> bool:
        """Await what a rule that is a def returned, then go on as usual."""
        answer = await dispatch.call_safely_with(asking, coroutine)
        if self._stays_out(dispatch.ws, name, answer):
            return name in dispatch.ws._channels
        return await self._admitted_later(dispatch, name, seen)

    async def _admitted_later(self, dispatch: Changing, name: str, seen: int) -> bool:
        await self._enter_admitted(dispatch, name, seen)
        return name in dispatch.ws._channels

    async def _enter_later(
        self,
        dispatch: Changing,
        channel: Channel,
        callback: Callback | None,
        answer: Any,
        seen: int,
    ) -> bool:
        """Await what on_subscribe returned, where that is a coroutine; then go on as usual."""
        name = channel.name
        if callback is not None and inspect.iscoroutine(answer):
            answer = await dispatch.call_safely_with(callback, answer)
        if seen != self.rechecks and refusal(answer, REFUSED) is None:
            answer = await self._ask_again(dispatch, name, seen)
        if self._is_let_in(dispatch, name, answer):
            return True
        await self._release(dispatch, channel)
        return name in dispatch.ws._channels

    def _is_let_in(self, dispatch: Changing, name: str, answer: object) -> bool:
        """Let a connection in, unless the answer refuses or it is in by another call already."""
        ws = dispatch.ws
        if self._stays_out(ws, name, answer):
            return False
        self._enter(ws, name)
        return True

    def _stays_out(self, ws: Connection, name: str, answer: object) -> bool:
        """Tell whether this is the end of it: refused, ended, or in by another call already."""
        if name in ws._channels:
            return True
        if ws.reason is not None or (answer is not None and refusal(answer, REFUSED) is not None):
            CONNECTION.debug("%s was refused %r", ws, name)
            return True
        return False

    def _enter(self, ws: Connection, name: str, position: Position | None = None) -> None:
        if ws._speaks:
            ws._entered(name, position)
        self._roster.enter(ws, name)
        if self._fanout.lanes or ws._link.apart:
            self._fanout.entered(ws, name)
        if self._rules.presence:
            self._attendance.changed(ws, name)
        if TRACE.is_on:
            CONNECTION.debug("%s entered %r", ws, name)

    def _leave(self, ws: Connection, name: str) -> None:
        if self._fanout.lanes:
            self._fanout.leaving(ws, (name,))
        self._roster.leave(ws, name)
        if ws._speaks:
            ws._left(name)
        if self._rules.presence:
            self._attendance.changed(ws, name)
        if TRACE.is_on:
            CONNECTION.debug("%s left %r", ws, name)

    def leave_now(
        self, dispatch: Changing, name: str, channel: Channel | None
    ) -> bool | Coroutine[Any, Any, bool] | None:
        """Leave and tell on_unsubscribe, where that is plain; return whether it was in.

        See ``enter_now``.
        """
        ws, callbacks = dispatch.ws, dispatch.endpoint.callbacks
        if not callbacks.membership_is_plain or (channel is not None and not channel.is_plain()):
            return None
        if self._cluster is not None and (channel is None or not channel.is_open):
            return None
        if name not in ws._channels:
            return False
        self._leave(ws, name)
        callback = callbacks.on_unsubscribe
        if callback is not None:
            try:
                answer = dispatch.call_now(callback, ws, name)
            except Exception as error:  # noqa: BLE001 - a listener may raise anything
                answer = dispatch.answer_of(callback, error)
            if answer is not None and inspect.iscoroutine(answer):
                return self._left_later(dispatch, channel, callback, answer)
        if channel is not None:
            self._let_go(channel)
        return True

    async def _left_later(
        self, dispatch: Changing, channel: Channel | None, callback: Callback, telling: Any
    ) -> bool:
        told = dispatch.call_safely_with(callback, telling)
        await dispatch.finish(self._tell_and_release(dispatch, told, channel))
        return True

    # ── what has to wait ──────────────────────────────────────────────────────────────────────

    @abstractmethod
    async def _enter_admitted(
        self,
        dispatch: Changing,
        name: str,
        seen: int,
        missed: Missed | None = None,
        *,
        needs_yes: bool = False,
    ) -> Reject | None:
        """Enter as far as the rule is concerned, which was asked after so many rechecks."""

    @abstractmethod
    async def _ask_again(self, dispatch: Changing, name: str, seen: int) -> Reject | None:
        """Ask the rule until nobody has asked for a recheck since it was asked."""

    @abstractmethod
    async def _release(self, dispatch: Changing, channel: Channel) -> None:
        """Hold a channel no more; the last one closes it."""

    @abstractmethod
    async def _tell_and_release(
        self, dispatch: Changing, told: Work, channel: Channel | None
    ) -> None:
        """Tell on_unsubscribe, to its end, and hold the channel no more."""
