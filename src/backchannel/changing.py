"""What one connection does about its channels: at once where nobody waits, else in its turn."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextvars import copy_context
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

from backchannel.calling import Caller
from backchannel.change import SETTLED, Change, Coming
from backchannel.channel import check_channel

if TYPE_CHECKING:
    from backchannel.calling import Work
    from backchannel.channel import Channel
    from backchannel.connection import Connection
    from backchannel.hub import HubCore

__all__ = ["Changing"]

YES: Final = SETTLED[True]
NO: Final = SETTLED[False]


class Changing(Caller):
    """Lets one connection enter channels and leave them."""

    __slots__ = ("_to_finish",)

    def __init__(self, hub: HubCore, ws: Connection):
        super().__init__(hub, ws)
        self._to_finish: set[asyncio.Task[Any]] | None = None

    def change(self, name: str, entering: bool, *, expelled: bool = False) -> Change:
        """Let this connection enter or leave a channel; see ``Connection.subscribe``.

        Args:
            name: the channel.
            entering: False leaves it.
            expelled: see ``expel``.

        Returns:
            The change, mostly done.

        Raises:
            TypeError, ValueError: no valid channel name.
        """
        hub = self._hub
        try:
            channel = hub._channels.get(name)
        except TypeError:  # as a list would raise
            channel = None
        if channel is None or type(name) is not str:  # else the name was checked
            if hub.settings.casefold_channels:
                name = check_channel(name, casefold=True)
                channel = hub._channels.get(name)
            else:
                check_channel(name)
        if get_ident() != self._runtime.thread:
            change = self._in_turn(name, entering)
            self._runtime.loop.call_soon_threadsafe(self._take_its_turn, change, name, entering)
            return change
        inside = self._inline or self._is_inside()
        if self.ws.reason is None and (inside or not self._is_busy):
            if not inside:
                done = self._change_in_context(name, channel, entering)
            elif entering:
                done = hub.membership.enter_now(self, name, channel)
            else:
                done = hub.membership.leave_now(self, name, channel)
            if done is True:
                return YES
            if done is False:
                return NO
            if done is not None:
                return self._begun(done, first=inside)
        if expelled:
            return self._expel(name)
        change = self._in_turn(name, entering)
        self._take_its_turn(change, name, entering)
        return change

    def _change_in_context(
        self, name: str, channel: Channel | None, entering: bool
    ) -> bool | Coming | Work | None:
        """Enter or leave outside of this connection's callbacks, where that is plain."""
        membership, run = self._hub.membership, self.context.run
        if entering:
            return run(membership.enter_now, self, name, channel, may_wait=True)
        return run(membership.leave_now, self, name, channel)

    def _begun(self, done: Coming | Work, *, first: bool) -> Change:
        """Return the change that has begun at once, and waits for something."""
        if isinstance(done, Coming):
            self._wait_to_hear(done, change := Change(self, None))
            return change
        return self._go_on_with(lambda: done, first=first)

    def expel(self, name: str) -> Change:
        """Take this connection out of a channel at once; on_unsubscribe is told in its turn."""
        return self.change(name, False, expelled=True)

    def _expel(self, name: str) -> Change:
        membership = self._hub.membership
        membership.expel(self.ws, name)
        telling = functools.partial(membership.left, self, name)
        return self._go_on_with(telling, first=self._is_inside())

    def _go_on_with(self, work: Callable[[], Work], *, first: bool) -> Change:
        """Do in its turn what has begun and must come to its end."""
        change = Change(self, work)
        change.has_begun = True
        self._queue(change, first=first)
        return change

    def _in_turn(self, name: str, entering: bool) -> Change:
        apply = self._hub.membership.apply
        return Change(self, functools.partial(apply, self, name, entering=entering))

    def _take_its_turn(self, change: Change, name: str, entering: bool) -> None:
        membership = self._hub.membership
        ask = membership.enters_at_once if entering else membership.is_immediate
        self.take(change, at_once=ask(self, name))

    def take(self, change: Change, *, at_once: bool) -> None:
        """Let this connection enter or leave a channel in its turn.

        Args:
            change: what to do.
            at_once: True when it will not have to wait for anything.
        """
        if self.ws.reason is not None:
            change.settle(result=False)
            return
        nested = self._is_inside()
        if at_once and nested and change.run_now():
            return
        idle = not nested and not self._is_busy
        if at_once and idle and self.ws._context.run(change.run_now):
            return
        self._queue(change, first=nested)

    async def finish(self, work: Work) -> None:
        """Do what is not to be cut short when the connection ends: others count on it."""
        task = self._hub.runtime.keep(work, copy_context())
        if self._to_finish is None:
            self._to_finish = set()
        self._to_finish.add(task)
        task.add_done_callback(self._to_finish.discard)
        await asyncio.shield(task)
