"""Entering and leaving channels: who is asked, who is told, in which order."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

from backchannel.errors import Reject
from backchannel.handshake import refusal
from backchannel.observe import CONNECTION, TRACE

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from backchannel.channel import Channel, Channels
    from backchannel.connection import Connection
    from backchannel.dispatch import Dispatch
    from backchannel.fanout import Fanout
    from backchannel.listener import Callback
    from backchannel.roster import Roster
    from backchannel.turn import Step

__all__ = ["Membership"]

_REFUSED: Final = Reject(403, "refused")


class Membership:
    """Entering and leaving, for one hub.

    A connection that is asked about a channel holds it, so that the channel neither opens twice
    nor closes under it; a slow on_subscribe of one does not keep another waiting.
    """

    __slots__ = ("_channels", "_fanout", "_roster")

    def __init__(self, roster: Roster, fanout: Fanout, channels: Channels):
        self._roster = roster
        self._fanout = fanout
        self._channels = channels

    def is_immediate(self, dispatch: Dispatch, name: str) -> bool:
        """Tell whether entering or leaving would not have to wait for anything."""
        if not dispatch.endpoint.callbacks.membership_is_immediate:
            return False
        channel = self._channels.find(name)
        return channel is None or (
            channel.is_calm and channel.opener.callbacks.membership_is_immediate
        )

    def _is_plain(self, dispatch: Dispatch, channel: Channel | None) -> bool:
        """Tell whether entering or leaving means no more than to call a def of the listener."""
        return dispatch.endpoint.callbacks.membership_is_plain and (
            channel is None or (channel.is_calm and channel.opener.callbacks.membership_is_plain)
        )

    def enter_now(self, dispatch: Dispatch, name: str) -> bool | Coroutine[Any, Any, bool] | None:
        """Ask on_subscribe and enter, where that is plain; return whether it is in.

        A coroutine that on_subscribe returned, though it is a def, is what is left to do; None says
        that this is not plain.
        """
        if not self._is_plain(dispatch, channel := self._channels.find(name)):
            return None
        ws = dispatch.ws
        if name in ws._channels:
            return True
        if channel is None or not channel.holders:
            channel = self._channels.hold(name, dispatch.endpoint)
        channel.holders += 1
        channel.is_open = True
        callback, answer = dispatch.endpoint.callbacks.on_subscribe, None
        if callback is not None:
            answer = dispatch.call_def(callback, ws, name)
            if answer is not None and inspect.iscoroutine(answer):
                return self._enter_later(dispatch, channel, callback, answer)
        if self._is_let_in(dispatch, name, answer):
            return True
        self._let_go(channel)
        return name in ws._channels

    def _let_go(self, channel: Channel) -> None:
        """Hold a channel no more, where that is plain."""
        channel.holders -= 1
        if not channel.holders:
            channel.is_open = False
            self._channels.drop_if_free(channel)

    async def _enter_later(
        self, dispatch: Dispatch, channel: Channel, callback: Callback, asking: Any
    ) -> bool:
        name = channel.name
        answer = await dispatch.call_safely_with(callback, asking)
        if self._is_let_in(dispatch, name, answer):
            return True
        await self._release(dispatch, channel)
        return name in dispatch.ws._channels

    def _is_let_in(self, dispatch: Dispatch, name: str, answer: object) -> bool:
        """Let a connection in, unless the answer refuses or it is in by another call already."""
        ws = dispatch.ws
        if name in ws._channels:
            return False
        if ws.reason is not None or (answer is not None and refusal(answer, _REFUSED) is not None):
            CONNECTION.debug("%s was refused %r", ws, name)
            return False
        self._enter(ws, name)
        return True

    def _enter(self, ws: Connection, name: str) -> None:
        self._roster.enter(ws, name)
        self._fanout.entered(ws, name)
        if TRACE.is_on:
            CONNECTION.debug("%s entered %r", ws, name)

    def _leave(self, ws: Connection, name: str) -> None:
        self._fanout.leaving(ws, (name,))
        self._roster.leave(ws, name)
        if TRACE.is_on:
            CONNECTION.debug("%s left %r", ws, name)

    def leave_now(self, dispatch: Dispatch, name: str) -> bool | Coroutine[Any, Any, bool] | None:
        """Leave and tell on_unsubscribe, where that is plain; return whether it was in.

        See ``enter_now``.
        """
        channel = self._channels.find(name)
        if not self._is_plain(dispatch, channel):
            return None
        ws = dispatch.ws
        if name not in ws._channels:
            return False
        self._leave(ws, name)
        callback = dispatch.endpoint.callbacks.on_unsubscribe
        if callback is not None:
            answer = dispatch.call_def(callback, ws, name)
            if answer is not None and inspect.iscoroutine(answer):
                return self._left_later(dispatch, channel, callback, answer)
        if channel is not None:
            self._let_go(channel)
        return True

    async def _left_later(
        self, dispatch: Dispatch, channel: Channel | None, callback: Callback, telling: Any
    ) -> bool:
        await dispatch.call_safely_with(callback, telling)
        if channel is not None:
            await self._release(dispatch, channel)
        return True

    async def enter(self, dispatch: Dispatch, name: str) -> Reject | None:
        """Ask on_subscribe and enter; return who refused, None when it is in."""
        ws = dispatch.ws
        if name in ws._channels:
            return None
        channel = self._channels.hold(name, dispatch.endpoint)
        stays, refused = False, None
        try:
            await channel.enter(self._opening(dispatch, channel))
            if name not in ws._channels:
                refused = await self._ask(dispatch, name)
            if name in ws._channels:  # a callback about this very channel has let it in
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

    async def leave(self, dispatch: Dispatch, name: str) -> bool:
        """Leave and tell on_unsubscribe; return whether it was in."""
        if name not in dispatch.ws._channels:
            return False
        self._leave(dispatch.ws, name)
        await self.left(dispatch, name)
        return True

    async def left(self, dispatch: Dispatch, name: str) -> None:
        """Tell on_unsubscribe of a channel that the connection is out of already."""
        on_unsubscribe = dispatch.endpoint.callbacks.on_unsubscribe
        try:
            await dispatch.call_safely(on_unsubscribe, dispatch.ws, name)
        finally:
            if channel := self._channels.find(name):
                await self._release(dispatch, channel)

    async def _ask(self, dispatch: Dispatch, name: str) -> Reject | None:
        callback = dispatch.endpoint.callbacks.on_subscribe
        default = Reject(403, f"subscription to {name!r} refused")
        if callback is None:
            return None
        try:
            answer = await dispatch.call(callback, dispatch.ws, name)
        except Reject as raised:
            return raised
        except Exception as error:  # noqa: BLE001 - a listener may raise anything
            await dispatch.failed(callback, error)
            return default
        return refusal(answer, default)

    async def _release(self, dispatch: Dispatch, channel: Channel) -> None:
        leaving = self._close_behind(dispatch, channel)
        if self.is_immediate(dispatch, channel.name):
            await leaving
        else:
            await dispatch.finish(leaving)

    async def _close_behind(self, dispatch: Dispatch, channel: Channel) -> None:
        on_close = channel.opener.callbacks.on_channel_close
        await channel.leave(
            None
            if on_close is None
            else functools.partial(dispatch.call_safely, on_close, channel.name)
        )
        self._channels.drop_if_free(channel)

    def _opening(self, dispatch: Dispatch, channel: Channel) -> Step | None:
        if dispatch.endpoint.callbacks.on_channel_open is None:
            return None
        return functools.partial(self._open, dispatch, channel)

    async def _open(self, dispatch: Dispatch, channel: Channel) -> None:
        channel.opener = dispatch.endpoint
        on_open = dispatch.endpoint.callbacks.on_channel_open
        await dispatch.call_safely(on_open, channel.name)
