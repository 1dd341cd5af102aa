"""Who is in the channels whose rule says presence, on all nodes: announced, asked, told."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

import msgspec

from backchannel.contracts import Broker, Target
from backchannel.dialect import frames
from backchannel.errors import ListenerError
from backchannel.info import User, attending, packed
from backchannel.listener import MISSING
from backchannel.observe import LISTENER
from backchannel.places import where_defined
from backchannel.presence import tell

if TYPE_CHECKING:
    from backchannel.connection import Connection
    from backchannel.hub import HubCore

__all__ = ["Attendance", "check_callback"]

ONLINE: Final = "$online"
"""The channel, as it were, that all users are in who are connected to any node."""

MemberCallback = Callable[[str, str], Any]
_encoder = msgspec.msgpack.Encoder()


class Attendance:
    """A hub's side of presence.

    Where no rule says presence, and nobody wants to know who is online on several nodes, nothing
    here is called.

    Args:
        hub: the hub.
        broker: knows who is where.

    Attributes:
        on_join: called with a channel and a user whose first device has come into it.
        on_leave: called with a channel and a user whose last device has left it for good.
    """

    def __init__(self, hub: HubCore, broker: Broker):
        self._hub = hub
        self._broker = broker
        self.on_join: MemberCallback | None = None
        self.on_leave: MemberCallback | None = None
        self._to_tell: dict[tuple[str, str], deque[tuple[bool, Callable[[], None]]]] = {}

    def begin_anew(self) -> None:
        """Forget what was of an earlier event loop."""
        self._to_tell.clear()

    # ── announced ─────────────────────────────────────────────────────────────────────────────

    def changed(self, ws: Connection, channel: str) -> None:
        """Announce that a connection has entered or left a channel."""
        if ws.user is not None and self._hub.rules.has_presence(channel):
            self._broker.announce(channel, ws.user)

    def ended(self, ws: Connection) -> None:
        """Announce that a connection is out of all that it was in."""
        for channel in ws._channels:
            self.changed(ws, channel)

    def came_or_went(self, user: str) -> None:
        """Announce that a user's devices here may be none, or the first one."""
        if self._hub.presence.is_wanted:
            self._broker.announce(ONLINE, user)

    def attending(self) -> Iterator[tuple[str, str]]:
        """Name each channel with presence and each user in it here, some more than once."""
        is_wanted = self._hub.presence.is_wanted
        for ws in list(self._hub.roster.everyone):
            if ws.user is not None:
                if is_wanted:
                    yield ONLINE, ws.user
                for channel in ws._channels:
                    if self._hub.rules.has_presence(channel):
                        yield channel, ws.user

    def devices(self, channel: str, user: str) -> bytes:
        """Describe a user's connections here that are in a channel; empty where there are none."""
        all_ = self._hub.roster.members(Target("user", user))
        if channel == ONLINE:
            return b"1" if all_ else b""
        found = [packed(self._hub.info(ws)) for ws in all_ if channel in ws._channels]
        if not found:
            return b""
        try:
            return _encoder.encode(found)
        except (TypeError, ValueError, RecursionError) as error:
            return _encoder.encode([self._encodable(one, error) for one in found])

    @staticmethod
    def _encodable(words: list[Any], error: Exception) -> list[Any]:
        """Leave out the metadata that can't be told to other nodes."""
        *others, meta = words
        try:
            _encoder.encode(meta)
        except (TypeError, ValueError, RecursionError):
            LISTENER.error(
                "ws.meta of %s can't be told to other nodes, and is left out: %s; it is for plain "
                "values: str, numbers, lists, dicts",
                others[0],
                error,
            )
            meta = {}
        return [*others, meta]

    def settles(self, channel: str) -> bool:
        """Tell whether joins wait for the moment in a channel."""
        return channel != ONLINE and self._hub.rules.settles(channel)

    # ── asked ─────────────────────────────────────────────────────────────────────────────────

    async def users(self, channel: str) -> list[User]:
        """Return who is in a channel, those first who have been connected for longest."""
        return attending(await self._broker.members(channel))

    async def told(self, channel: str) -> list[User]:
        """Return who was told to have joined a channel, and not to have left; like ``users``."""
        return attending(await self._broker.members(channel, told=True))

    async def count(self, channel: str) -> int:
        """Return how many users are in a channel."""
        return await self._broker.count_members(channel)

    # ── told ──────────────────────────────────────────────────────────────────────────────────

    def tell_of(self, channel: str, user: str, done: Callable[[], None], *, joined: bool) -> None:
        """Call on_join or on_leave; see ``contracts.Node``."""
        if self._hub.is_stopping:
            return
        if channel != ONLINE:
            event = frames.Join(channel, user) if joined else frames.Leave(channel, user)
            self._hub._publish_event(Target("channel", channel), frames.write(event))
        if self._callback(channel, joined=joined) is None:
            done()
            return
        waiting = self._to_tell.get((channel, user))
        if waiting is not None:
            waiting.append((joined, done))
            return
        self._to_tell[channel, user] = waiting = deque([(joined, done)])
        self._hub.runtime.keep(self._tell_all(channel, user, waiting), Context())

    async def _tell_all(
        self, channel: str, user: str, waiting: deque[tuple[bool, Callable[[], None]]]
    ) -> None:
        """Tell of one user in one channel, one after the other."""
        while waiting:
            joined, done = waiting.popleft()
            named = (user,) if channel == ONLINE else (channel, user)
            await tell(self._callback(channel, joined=joined), *named)
            done()
        del self._to_tell[channel, user]

    def _callback(self, channel: str, *, joined: bool) -> Callable[..., Any] | None:
        """Return what is to be called."""
        if channel == ONLINE:
            presence = self._hub.presence
            return presence.on_online if joined else presence.on_offline
        return self.on_join if joined else self.on_leave


def check_callback(there: Any, callback: Any, name: str, *takes: str) -> Any:
    """Return what a decorator of the hub is put above.

    Args:
        there: what it was put above before, since it calls one function; None where nothing is.
        callback: it.
        name: the decorator, such as ``"on_join"``.
        takes: what it is called with.

    Raises:
        ListenerError: it can't be, or there is another one.
    """
    given = ", ".join(takes)
    if not callable(callback):
        but = "" if callback is MISSING else f", not {callback!r}"
        raise ListenerError(
            f"hub.{name} takes a function{but}: put @hub.{name}, without parentheses, above a "
            f"function that takes ({given})"
        )
    try:
        inspect.signature(callback).bind(*takes)
    except (TypeError, ValueError) as error:
        label = getattr(callback, "__name__", repr(callback))
        raise ListenerError(
            f"hub.{name} calls {label}({given}), which it can't be called with: {error}"
        ) from error
    if there is not None and there is not callback:
        label = getattr(there, "__name__", repr(there))
        raise ListenerError(
            f"hub.{name} calls one function, and that is {label} ({where_defined(there)}): let it "
            "do both"
        )
    return callback
