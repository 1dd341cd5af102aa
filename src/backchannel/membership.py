"""Entering and leaving channels: who is asked, who is told, in which order."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from backchannel.catchup import CatchUp, Missed
from backchannel.entering import Entering
from backchannel.errors import BrokerUnavailable, Reject, TryLater
from backchannel.observe import CONNECTION, HUB

if TYPE_CHECKING:
    from backchannel.callbacks import Callback
    from backchannel.calling import Work
    from backchannel.changing import Changing
    from backchannel.channel import Channel
    from backchannel.connection import Connection
    from backchannel.turn import Step

__all__ = ["Membership"]


class Membership(Entering):
    """Entering and leaving, for one hub.

    A rule is asked first: whom it refuses opens no channel. A connection that on_subscribe is then
    asked about holds the channel, so that it neither opens twice nor closes under it; a slow
    on_subscribe of one does not keep another waiting.
    """

    __slots__ = ()

    def enters_at_once(self, dispatch: Changing, name: str) -> bool:
        """Tell whether entering would not have to wait for anything."""
        rule = self._rules.find(name) if self._rules.some else None
        if rule is not None and (
            rule.replay
            or (dispatch.ws._speaks and rule.keep)
            or not (rule.subscribe is None or rule.subscribe.returns_at_once)
        ):
            return False
        return self.is_immediate(dispatch, name)

    def is_immediate(self, dispatch: Changing, name: str) -> bool:
        """Tell whether leaving would not have to wait, nor entering once the rule was asked."""
        if not dispatch.endpoint.callbacks.membership_is_immediate:
            return False
        channel = self._channels.get(name)
        if self._cluster is not None and (channel is None or not channel.is_open):
            return False
        return channel is None or (
            channel.is_calm and channel.opener.callbacks.membership_is_immediate
        )

    async def apply(
        self, dispatch: Changing, name: str, *, entering: bool, missed: Missed | None = None
    ) -> bool:
        """Enter or leave, in a connection's turn; return whether it is in now, or was.

        Args:
            dispatch: the connection's.
            name: the channel.
            entering: False leaves it.
            missed: see ``enter``.
        """
        if not entering:
            return await self.leave(dispatch, name)
        if missed is None and (is_in := await self.enter_in_turn(dispatch, name)) is not None:
            return is_in
        refused = await self.enter(dispatch, name, missed)
        return refused is None and name in dispatch.ws._channels

    def expel(self, ws: Connection, name: str) -> None:
        """Take a connection out of a channel that it is in; ``left`` does the rest."""
        self._leave(ws, name)

    async def enter(
        self,
        dispatch: Changing,
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
        dispatch: Changing,
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

    async def enter_again(self, dispatch: Changing, name: str) -> None:
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
        self, dispatch: Changing, name: str, seen: int, missed: Missed
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

    async def leave(self, dispatch: Changing, name: str) -> bool:
        """Leave and tell on_unsubscribe; return whether it was in."""
        if name not in dispatch.ws._channels:
            return False
        self._leave(dispatch.ws, name)
        return await self.left(dispatch, name)

    async def left(self, dispatch: Changing, name: str) -> bool:
        """Tell on_unsubscribe of a channel that the connection is out of already; return True."""
        told = dispatch.call_safely(dispatch.endpoint.callbacks.on_unsubscribe, dispatch.ws, name)
        leaving = self._tell_and_release(dispatch, told, self._channels.get(name))
        if self.is_immediate(dispatch, name):
            await leaving
        else:
            await dispatch.finish(leaving)
        return True

    async def _tell_and_release(
        self, dispatch: Changing, told: Work, channel: Channel | None
    ) -> None:
        """Tell on_unsubscribe, to its end: books are kept of who is in and who is out."""
        try:
            await told
        finally:
            if channel is not None:
                await self._close_behind(dispatch, channel)

    async def ask_rule(self, dispatch: Changing, name: str) -> Reject | None:
        """Ask the rule that holds for a channel now; return how it refused, None if it did not."""
        return await self.ask(dispatch, self._rules.asking(name), name)

    async def _ask_again(self, dispatch: Changing, name: str, seen: int) -> Reject | None:
        """Ask the rule until nobody has asked for a recheck since it was asked."""
        refused = None
        while refused is None and seen != self.rechecks:
            seen = self.rechecks
            refused = await self.ask_rule(dispatch, name)
        return refused

    async def ask(
        self,
        dispatch: Changing,
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
        if callback is None:
            return None
        answer: Any
        try:
            answer = await dispatch.call(callback, dispatch.ws, name)
        except Reject as raised:
            return raised
        except Exception as error:  # noqa: BLE001 - a listener may raise anything
            await dispatch.failed(callback, error)
            answer = False
        if answer is False or (needs_yes and not isinstance(answer, Reject) and answer is not True):
            return Reject(403, f"{what} {name!r} refused")
        return answer if isinstance(answer, Reject) else None

    async def _release(self, dispatch: Changing, channel: Channel) -> None:
        leaving = self._close_behind(dispatch, channel)
        if self.is_immediate(dispatch, channel.name):
            await leaving
        else:
            await dispatch.finish(leaving)

    async def _close_behind(self, dispatch: Changing, channel: Channel) -> None:
        on_close = channel.opener.callbacks.on_channel_close
        closing = None
        if on_close is not None or self._cluster is not None:
            closing = functools.partial(self._close, dispatch, channel, on_close)
        await channel.leave(closing)
        self._channels.drop_if_free(channel)

    async def _close(self, dispatch: Changing, channel: Channel, on_close: Callback | None) -> None:
        if self._cluster is not None:
            self._cluster.close(channel.name)
        await dispatch.call_safely(on_close, channel.name)

    def _opening(self, dispatch: Changing, channel: Channel) -> Step | None:
        if dispatch.endpoint.callbacks.on_channel_open is None and self._cluster is None:
            return None
        return functools.partial(self._open, dispatch, channel)

    async def _open(self, dispatch: Changing, channel: Channel) -> None:
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
