"""Entering and leaving channels: who is asked, who is told, in which order."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

from backchannel.catchup import CatchUp, CatchUps, Missed
from backchannel.change import Coming
from backchannel.errors import BrokerUnavailable, Reject, TryLater
from backchannel.handshake import refusal
from backchannel.observe import CONNECTION, HUB, TRACE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from backchannel.attendance import Attendance
    from backchannel.calling import Work
    from backchannel.channel import Channel, Channels
    from backchannel.cluster import Cluster
    from backchannel.connection import Connection
    from backchannel.dispatch import Dispatch
    from backchannel.fanout import Fanout
    from backchannel.history import Position
    from backchannel.listener import Callback
    from backchannel.roster import Roster
    from backchannel.rules import Rules
    from backchannel.turn import Step

__all__ = ["Membership"]

_REFUSED: Final = Reject(403, "refused")


class Membership:
    """Entering and leaving, for one hub.

    A rule is asked first: whom it refuses opens no channel. A connection that on_subscribe is then
    asked about holds the channel, so that it neither opens twice nor closes under it; a slow
    on_subscribe of one does not keep another waiting.

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

    def enters_at_once(self, dispatch: Dispatch, name: str) -> bool:
        """Tell whether entering would not have to wait for anything."""
        rule = self._rules.find(name) if self._rules.some else None
        if rule is not None and (
            rule.replay
            or (dispatch.ws._speaks and rule.keep)
            or not (rule.subscribe is None or rule.subscribe.returns_at_once)
        ):
            return False
        return self.is_immediate(dispatch, name)

    def is_immediate(self, dispatch: Dispatch, name: str) -> bool:
        """Tell whether leaving would not have to wait, nor entering once the rule was asked."""
        if not dispatch.endpoint.callbacks.membership_is_immediate:
            return False
        channel = self._channels.get(name)
        if self._cluster is not None and (channel is None or not channel.is_open):
            return False
        return channel is None or (
            channel.is_calm and channel.opener.callbacks.membership_is_immediate
        )

    def enter_now(
        self, dispatch: Dispatch, name: str, *, may_wait: bool = False
    ) -> bool | Coming | Coroutine[Any, Any, bool] | None:
        """Ask the rule and on_subscribe and enter, where that is plain; return whether it is in.

        It is where it means no more than to call a def of the listener, and to let the broker hear
        the channel. A coroutine that a def returned is what is left to do; None says that this is
        not plain.

        Args:
            dispatch: the connection's.
            name: the channel.
            may_wait: for the broker; else it is not plain where it would have to.
        """
        callbacks, channel = dispatch.endpoint.callbacks, self._channels.get(name)
        if not callbacks.membership_is_plain or (channel is not None and not channel.is_plain):
            return None
        is_unheard = self._cluster is not None and (channel is None or not channel.is_open)
        if is_unheard and not may_wait:
            return None
        ws, seen = dispatch.ws, self.rechecks
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
        if channel is None or not channel.holders:
            channel = self._channels.hold(name, dispatch.endpoint)
        if self._cluster is not None and not channel.is_open:
            if is_unheard and channel.is_plain:
                return self._come(self._cluster, dispatch, channel, seen)
            return self._admitted_later(dispatch, name, seen)  # the rule has let somebody in or out
        channel.holders += 1
        channel.is_open = True
        return self._enter_open(dispatch, channel, seen)

    def _ask_now(
        self, dispatch: Dispatch, name: str, asking: Callback, seen: int
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
        self, cluster: Cluster, dispatch: Dispatch, channel: Channel, seen: int
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
        dispatch: Dispatch,
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
        self, dispatch: Dispatch, channel: Channel, seen: int
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
            self._channels.drop_if_free(channel)

    async def _ask_later(
        self, dispatch: Dispatch, name: str, asking: Callback, coroutine: Any, seen: int
    ) -> bool:
        """Await what a rule that is a def returned, then go on as usual."""
        answer = await dispatch.call_safely_with(asking, coroutine)
        if self._stays_out(dispatch.ws, name, answer):
            return name in dispatch.ws._channels
        return await self._admitted_later(dispatch, name, seen)

    async def _admitted_later(self, dispatch: Dispatch, name: str, seen: int) -> bool:
        await self._enter_admitted(dispatch, name, seen)
        return name in dispatch.ws._channels

    async def _enter_later(
        self,
        dispatch: Dispatch,
        channel: Channel,
        callback: Callback | None,
        answer: Any,
        seen: int,
    ) -> bool:
        """Await what on_subscribe returned, where that is a coroutine; then go on as usual."""
        name = channel.name
        if callback is not None and inspect.iscoroutine(answer):
            answer = await dispatch.call_safely_with(callback, answer)
        if seen != self.rechecks and refusal(answer, _REFUSED) is None:
            answer = await self._ask_again(dispatch, name, seen)
        if self._is_let_in(dispatch, name, answer):
            return True
        await self._release(dispatch, channel)
        return name in dispatch.ws._channels

    def _is_let_in(self, dispatch: Dispatch, name: str, answer: object) -> bool:
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
        if ws.reason is not None or (answer is not None and refusal(answer, _REFUSED) is not None):
            CONNECTION.debug("%s was refused %r", ws, name)
            return True
        return False

    def _enter(self, ws: Connection, name: str, position: Position | None = None) -> None:
        if ws._speaks:
            ws._entered(name, position)
        self._roster.enter(ws, name)
        if self._fanout.lanes:
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

    def leave_now(self, dispatch: Dispatch, name: str) -> bool | Coroutine[Any, Any, bool] | None:
        """Leave and tell on_unsubscribe, where that is plain; return whether it was in.

        See ``enter_now``.
        """
        callbacks, channel = dispatch.endpoint.callbacks, self._channels.get(name)
        if not callbacks.membership_is_plain or (channel is not None and not channel.is_plain):
            return None
        if self._cluster is not None and (channel is None or not channel.is_open):
            return None
        ws = dispatch.ws
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
        self, dispatch: Dispatch, channel: Channel | None, callback: Callback, telling: Any
    ) -> bool:
        told = dispatch.call_safely_with(callback, telling)
        await dispatch.finish(self._tell_and_release(dispatch, told, channel))
        return True

    def expel(self, ws: Connection, name: str) -> None:
        """Take a connection out of a channel that it is in; ``left`` does the rest."""
        self._leave(ws, name)

    async def enter(
        self,
        dispatch: Dispatch,
        name: str,
        missed: Missed | None = None,
        *,
        asked: bool = False,
    ) -> Reject | None:
        """Ask the rule and on_subscribe and enter; return who refused, None when it is in.

        Args:
            dispatch: the connection's.
            name: the channel.
            missed: from where on it gets what it missed, first; told what came of it.
            asked: the client asked for it: somebody has to say yes.
        """
        ws = dispatch.ws
        if name in ws._channels:
            return None
        seen = self.rechecks
        refused = await self.ask_rule(dispatch, name) if self._rules.some else None
        needs_yes = asked and self._rules.asking(name) is None
        if needs_yes and dispatch.endpoint.callbacks.on_subscribe is None:
            refused = Reject(403, f"no rule lets clients into {name!r} by themselves")
        if self._stays_out(ws, name, refused):
            return None if name in ws._channels else refused
        return await self._enter_admitted(dispatch, name, seen, missed, needs_yes=needs_yes)

    async def _enter_admitted(
        self,
        dispatch: Dispatch,
        name: str,
        seen: int,
        missed: Missed | None = None,
        *,
        needs_yes: bool = False,
    ) -> Reject | None:
        """Enter as far as the rule is concerned, which was asked after so many rechecks."""
        ws = dispatch.ws
        channel = self._channels.hold(name, dispatch.endpoint)
        stays, refused = False, None
        try:
            await channel.enter(self._opening(dispatch, channel))
            if name not in ws._channels and ws.reason is None:
                on_subscribe = dispatch.endpoint.callbacks.on_subscribe
                refused = await self.ask(dispatch, on_subscribe, name, needs_yes=needs_yes)
            if missed is None:
                missed = self._missed(ws, name)
            if refused is None and missed is not None:
                refused, stays = await self._catch_up(dispatch, name, seen, missed)
            elif refused is None and seen != self.rechecks:
                refused = await self._ask_again(dispatch, name, seen)
            if stays or name in ws._channels:  # a callback about this very channel has let it in
                return None
            if refused is None and ws.reason is None:
                self._enter(ws, name)
                stays = True
            else:
                CONNECTION.debug("%s was refused %r", ws, name)
        finally:
            if not stays:
                await self._release(dispatch, channel)
        return refused

    def _missed(self, ws: Connection, name: str) -> Missed | None:
        if ws._speaks:
            return ws._missed(name)
        replay = self._rules.replaying(name)
        return Missed(None, replay) if replay else None

    async def enter_again(self, dispatch: Dispatch, name: str) -> None:
        """Let someone who is in a channel begin anew, with its snapshot."""
        ws = dispatch.ws
        if name not in ws._channels or (missed := self._missed(ws, name)) is None:
            return
        self._fanout.leaving(ws, (name,))
        self._roster.leave(ws, name)
        _, stays = await self._catch_up(dispatch, name, self.rechecks, missed)
        if not stays and name not in ws._channels:
            if ws.reason is None:
                ws._left(name)
            await self.left(dispatch, name)

    async def _catch_up(
        self, dispatch: Dispatch, name: str, seen: int, missed: Missed
    ) -> tuple[Reject | None, bool]:
        """Send what was missed and enter; return who refused, and whether it has entered."""
        ws = dispatch.ws
        refused: Reject | None = None
        catch_up = self._catch_ups.begin(ws, name, missed)
        try:
            while refused is None and not (self._is_level(catch_up) and seen == self.rechecks):
                if ws.reason is not None or name in ws._channels:
                    break
                await catch_up.fill()
                if self._cluster is not None and not self._is_level(catch_up):
                    await self._cluster.level(name)
                    if not self._is_level(catch_up):
                        catch_up.look_again()
                refused, seen = await self._ask_again(dispatch, name, seen), self.rechecks
            if ws.reason is not None or name in ws._channels:
                return None, False
            if refused is None:
                self._enter(ws, name, catch_up.position)
        except Exception as error:  # noqa: BLE001 - a broker may raise anything
            HUB.error("entering %r with its history failed: %r", name, error, exc_info=error)
            is_state = missed.snapshot is not None and not isinstance(error, BrokerUnavailable)
            what = "the state of" if is_state else "the history of"
            refused = TryLater(f"{what} {name!r} can't be read now")
            refused.__cause__ = error
        finally:
            self._catch_ups.end(catch_up)
        return refused, refused is None

    def _is_level(self, catch_up: CatchUp) -> bool:
        """Tell whether someone has all, and just what those have who are in already."""
        return catch_up.is_complete and (
            self._cluster is None or self._cluster.is_level(catch_up.channel, catch_up.position)
        )

    async def leave(self, dispatch: Dispatch, name: str) -> bool:
        """Leave and tell on_unsubscribe; return whether it was in."""
        if name not in dispatch.ws._channels:
            return False
        self._leave(dispatch.ws, name)
        return await self.left(dispatch, name)

    async def left(self, dispatch: Dispatch, name: str) -> bool:
        """Tell on_unsubscribe of a channel that the connection is out of already; return True."""
        told = dispatch.call_safely(dispatch.endpoint.callbacks.on_unsubscribe, dispatch.ws, name)
        leaving = self._tell_and_release(dispatch, told, self._channels.get(name))
        if self.is_immediate(dispatch, name):
            await leaving
        else:
            await dispatch.finish(leaving)
        return True

    async def _tell_and_release(
        self, dispatch: Dispatch, told: Work, channel: Channel | None
    ) -> None:
        """Tell on_unsubscribe, to its end: books are kept of who is in and who is out."""
        try:
            await told
        finally:
            if channel is not None:
                await self._close_behind(dispatch, channel)

    async def ask_rule(self, dispatch: Dispatch, name: str) -> Reject | None:
        """Ask the rule that holds for a channel now; return how it refused, None if it did not."""
        return await self.ask(dispatch, self._rules.asking(name), name)

    async def _ask_again(self, dispatch: Dispatch, name: str, seen: int) -> Reject | None:
        """Ask the rule until nobody has asked for a recheck since it was asked."""
        refused = None
        while refused is None and seen != self.rechecks:
            seen = self.rechecks
            refused = await self.ask_rule(dispatch, name)
        return refused

    async def ask(
        self,
        dispatch: Dispatch,
        callback: Callback | None,
        name: str,
        *,
        needs_yes: bool = False,
        what: str = "subscription to",
    ) -> Reject | None:
        """Ask a callback about a channel; return how it refused, None if it did not.

        Args:
            dispatch: the connection's.
            callback: what is asked.
            name: the channel.
            needs_yes: nothing but True admits.
            what: what is refused, for the client.
        """
        default = Reject(403, f"{what} {name!r} refused")
        if callback is None:
            return None
        try:
            answer = await dispatch.call(callback, dispatch.ws, name)
        except Reject as raised:
            return raised
        except Exception as error:  # noqa: BLE001 - a listener may raise anything
            await dispatch.failed(callback, error)
            return default
        refused = refusal(answer, default)
        return default if needs_yes and refused is None and answer is not True else refused

    async def _release(self, dispatch: Dispatch, channel: Channel) -> None:
        leaving = self._close_behind(dispatch, channel)
        if self.is_immediate(dispatch, channel.name):
            await leaving
        else:
            await dispatch.finish(leaving)

    async def _close_behind(self, dispatch: Dispatch, channel: Channel) -> None:
        on_close = channel.opener.callbacks.on_channel_close
        closing = None
        if on_close is not None or self._cluster is not None:
            closing = functools.partial(self._close, dispatch, channel, on_close)
        await channel.leave(closing)
        self._channels.drop_if_free(channel)

    async def _close(self, dispatch: Dispatch, channel: Channel, on_close: Callback | None) -> None:
        if self._cluster is not None:
            self._cluster.close(channel.name)
        await dispatch.call_safely(on_close, channel.name)

    def _opening(self, dispatch: Dispatch, channel: Channel) -> Step | None:
        if dispatch.endpoint.callbacks.on_channel_open is None and self._cluster is None:
            return None
        return functools.partial(self._open, dispatch, channel)

    async def _open(self, dispatch: Dispatch, channel: Channel) -> None:
        channel.opener = dispatch.endpoint
        on_open = dispatch.endpoint.callbacks.on_channel_open
        try:
            if self._cluster is not None:
                await self._cluster.open(channel.name)
            await dispatch.call_safely(on_open, channel.name)
        except BaseException:
            if self._cluster is not None:  # what was not opened nobody closes
                self._cluster.close(channel.name)
            raise
