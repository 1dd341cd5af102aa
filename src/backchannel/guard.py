"""Keeps a hub's limits: refuses handshakes, ends connections, and says so in the log.

Where no limit is set, nothing of this is part of a connection: its dispatch is a plain one.
"""

from __future__ import annotations

import math
from logging import Logger
from time import monotonic
from typing import TYPE_CHECKING, Final

from backchannel.codes import meaning_of
from backchannel.connection import CloseReason, Connection
from backchannel.dispatch import Dispatch
from backchannel.errors import Reject
from backchannel.limits import Bucket, Offenders, Rates, network_of
from backchannel.observe import CONNECTION, HANDSHAKE
from backchannel.speech.dispatch import speaking

if TYPE_CHECKING:
    from backchannel.config import Settings
    from backchannel.hub import HubCore
    from backchannel.messages import Frame

__all__ = ["Guard", "Metered", "Place"]

_NOTICED: Final = 0.001
"""Seconds without reading in which more may come than in a turn of the event loop."""


class Place:
    """A client's place among those of its address and its user, from its handshake to its end.

    Args:
        guard: who counts it; None when nobody does, or it was given back.
        address: what it is counted under; None where addresses are not counted.

    Attributes:
        user: whose connection it is counted as; None where users' are not counted.
        holder: the connection that has it, and gives it back; None until there is one.
    """

    __slots__ = ("address", "guard", "holder", "user")

    def __init__(self, guard: Guard | None = None, address: str | None = None):
        self.guard = guard
        self.address = address
        self.user: str | None = None
        self.holder: Dispatch | None = None

    def sit(self, user: str | None) -> Reject | None:
        """Take a place of the user's, now that it is known who that is.

        Returns:
            429 where a user that has enough connections gets no more; None lets the client in.
        """
        return None if self.guard is None else self.guard.sit(self, user)

    def give_back(self, *, unless_held: bool = False) -> None:
        """Give the place to others; doing it again does nothing.

        Args:
            unless_held: True does nothing when a connection has it.
        """
        if self.guard is not None and not (unless_held and self.holder is not None):
            guard, self.guard, self.holder = self.guard, None, None
            guard.leave(self)


FREE: Final = Place()
"""The place of all who are not counted."""


class Guard:
    """What one hub knows of its clients for the sake of its limits.

    Args:
        settings: the hub's.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        rate = settings.max_handshakes_per_second
        self._handshakes = None if rate is None else Rates(rate)
        self._addresses: dict[str, int] = {}
        self._users: dict[str, dict[Place, None]] = {}  # in the order they came
        self._offenders = Offenders()

    # ── before the 101 ────────────────────────────────────────────────────────────────────────

    def enter(self, client: tuple[str, int] | None) -> Place | Reject:
        """Let a client begin its handshake.

        Args:
            client: (address, port) as the server or a trusted proxy says; addresses that are none
                are not limited.

        Returns:
            Its place, which is to be given back if no connection comes of it; or 429.
        """
        settings = self._settings
        most = settings.max_connections_per_address
        if self._handshakes is None and most is None:
            return self._place(None)
        if (address := network_of(client)) is None:
            return self._place(None)
        if self._handshakes is not None and (wait := self._handshakes.take(address, monotonic())):
            self._refused("max_handshakes_per_second", address)
            # What is shorter than a second is told as one: the header knows no other.
            seconds = math.ceil(min(wait, 86_400))
            text = f"Too many handshakes from your address. Try again in {seconds} s."
            return Reject(429, text, {"Retry-After": str(seconds)})
        if most is None:
            return self._place(None)
        count = self._addresses.get(address, 0)
        if count >= most:
            self._refused("max_connections_per_address", address)
            return Reject(429, "There are too many connections from your address.")
        self._addresses[address] = count + 1
        return self._place(address)

    def sit(self, place: Place, user: str | None) -> Reject | None:
        """Count a client as its user's; called by its place."""
        settings = self._settings
        most = settings.max_connections_per_user
        if most is None or user is None or settings.when_user_is_full == "replace":
            return None
        if len(self._users.get(user, ())) >= most:
            self._refused("max_connections_per_user", f"user {user!r}")
            return Reject(429, "This user has too many connections.")
        self._seat(place, user)
        return None

    def leave(self, place: Place) -> None:
        """Count a client no more; called by its place."""
        if (address := place.address) is not None:
            if (count := self._addresses[address]) > 1:
                self._addresses[address] = count - 1
            else:
                del self._addresses[address]
        if (user := place.user) is not None:
            places = self._users[user]
            del places[place]
            if not places:
                del self._users[user]

    # ── from then on ──────────────────────────────────────────────────────────────────────────

    def dispatch(self, hub: HubCore, ws: Connection, place: Place) -> Dispatch:
        """Return what runs a connection's callbacks, which does no more than its limits need.

        Where a user has too many connections with this one, the oldest ends, with 4005.
        """
        kind = self._kind(ws, place)
        if ws._speaks:
            kind = speaking(kind)
        dispatch = kind(hub, ws)
        if isinstance(dispatch, Guarded):
            dispatch.place = place
            if place.guard is not None:  # the one that let it in: the hub may have started anew
                place.holder = dispatch
                place.guard.make_room(place, ws.user)
        return dispatch

    def _kind(self, ws: Connection, place: Place) -> type[Dispatch]:
        settings = self._settings
        is_rated = settings.max_messages_per_second or settings.max_bytes_per_second
        keeps = settings.touch_session and ws.session.is_extendable
        if is_rated or ws._endpoint.idle is not None:
            return KeepingMetered if keeps else Metered
        if keeps:
            return Keeping
        return Dispatch if place is FREE else Guarded

    def make_room(self, place: Place, user: str | None) -> None:
        """End the oldest connections of a user that has too many with the one of this place."""
        most = self._settings.max_connections_per_user
        if most is None or user is None:
            return
        if place.user is None:
            self._seat(place, user)
        places = self._users[user]
        while len(places) > most:
            oldest = next(iter(places))
            if (holder := oldest.holder) is not None:
                what = f"closed {holder.ws} with 4005"
                self._tell(CONNECTION, what, "max_connections_per_user", f"user {user!r}")
                holder.end(CloseReason(4005, meaning_of(4005), "server"))
            oldest.give_back()

    def tell(self, ws: Connection, setting: str, code: int) -> None:
        """Say in the log that a connection went over a limit; once a minute for one client."""
        who = f"user {ws.user!r}" if ws.user else network_of(ws.client) or f"connection {ws.id}"
        self._tell(CONNECTION, f"closed {ws} with {code}", setting, who)

    def _place(self, address: str | None) -> Place:
        if address is None and self._settings.max_connections_per_user is None:
            return FREE
        return Place(self, address)

    def _seat(self, place: Place, user: str) -> None:
        place.user = user
        self._users.setdefault(user, {})[place] = None

    def _refused(self, setting: str, who: str) -> None:
        self._tell(HANDSHAKE, "refused a handshake with 429", setting, who)

    def _tell(self, log: Logger, what: str, setting: str, who: str) -> None:
        if (line := self._offenders.note(setting, who, monotonic())) is None:
            return
        value = getattr(self._settings, setting)
        more = f"; {line.further} times more since the last such line" if line.further else ""
        log.warning("%s: %s went over %s=%r%s", what, line.who, setting, value, more)


class Guarded(Dispatch):
    """The dispatch of a connection that has a place to give back.

    Attributes:
        place: its place among those of its address and its user.
    """

    __slots__ = ("place",)

    def __init__(self, hub: HubCore, ws: Connection):
        super().__init__(hub, ws)
        self.place = FREE

    def end(self, reason: CloseReason, *, refused: bool = False) -> bool:
        """End the connection; it leaves every count at once."""
        ended = super().end(reason, refused=refused)
        if ended:
            self.place.give_back()
        return ended


class Keeping(Guarded):
    """The dispatch of a connection whose messages keep its web session alive."""

    __slots__ = ("_touch_at",)

    def __init__(self, hub: HubCore, ws: Connection):
        super().__init__(hub, ws)
        self._touch_at = 0.0

    def feed(self, message: Frame) -> str | bool:
        """Take a message from the client, and see to it that the session lives on."""
        if monotonic() >= self._touch_at and self.ws.reason is None:
            self._touch_at = self._hub.touches.heard(self.ws.session)
        return super().feed(message)


class Metered(Guarded):
    """The dispatch of a connection that may send only so much, or must send now and then.

    Attributes:
        is_rated: there is a limit to how much it may send.
    """

    __slots__ = ("_bytes", "_heard_at", "_messages", "_received", "is_rated")

    def __init__(self, hub: HubCore, ws: Connection):
        super().__init__(hub, ws)
        settings = hub.settings
        rate, size = settings.max_messages_per_second, settings.max_bytes_per_second
        self._messages = None if rate is None else Bucket(rate, max(1.0, rate))
        self._bytes: Bucket | None = None
        self._received: Bucket | None = None
        if size is not None:
            burst = max(size, settings.max_message)
            self._bytes = Bucket(size, burst)
            # One message always fits, with the headers of its frames.
            self._received = Bucket(size, burst + burst // 8 + 1024)
        self.is_rated = rate is not None or size is not None
        self._heard_at = monotonic()

    def start(self) -> None:
        """Begin the connection's life; from now on its silence counts."""
        if (idle := self.endpoint.idle) is not None:
            idle.add(self)
        super().start()

    def feed(self, message: Frame) -> str | bool:
        """Take a message from the client, unless it is one too many."""
        if self.ws.reason is not None:
            return False
        self._heard_at = now = monotonic()
        if self._messages is not None and not self._messages.take(1, now):
            self._too_many_messages()
            return False
        if self._bytes is not None and not self._bytes.take(_size(message), now):
            self._too_many_bytes()
            return False
        return super().feed(message)

    def take_control(self) -> None:
        """Count a ping as a message, so that a flood of them ends; it is no sign of use."""
        messages = self._messages
        if self.ws.reason is None and messages and not messages.take(1, monotonic()):
            self._too_many_messages()

    def take_bytes(self, size: int) -> None:
        """Count what came over the network, where the transport sees it before the messages."""
        received = self._received
        if self.ws.reason is None and received and not received.take(size, monotonic()):
            self._too_many_bytes()

    async def wait_for_room(self) -> None:
        """Wait while too many messages wait; what comes meanwhile is read late, and all at once."""
        began = monotonic()
        await super().wait_for_room()
        now = monotonic()
        if (waited := now - began) > _NOTICED:
            for bucket in (self._messages, self._bytes, self._received):
                if bucket is not None:
                    bucket.excuse(waited, now)

    def end(self, reason: CloseReason, *, refused: bool = False) -> bool:
        """End the connection."""
        ended = super().end(reason, refused=refused)
        if ended and (idle := self.endpoint.idle) is not None:
            idle.discard(self)
        return ended

    def beat(self) -> float | None:
        """End the connection if it was silent for too long; return when to look again."""
        timeout = self.endpoint.idle_timeout
        if timeout is None or self.ws.reason is not None:
            return None
        now = monotonic()
        if self._has_more():
            self._heard_at = now  # it waits for us: more of it may wait where nothing is read
        if (left := self._heard_at + timeout - now) > 0:
            return left
        self.end(CloseReason(4008, f"no message for {timeout:g} s", "server"))
        return None

    def _too_many_messages(self) -> None:
        most = self._hub.settings.max_messages_per_second
        self._hub.guard.tell(self.ws, "max_messages_per_second", 4003)
        self.end(CloseReason(4003, f"more than {most} messages a second", "server"))

    def _too_many_bytes(self) -> None:
        most = self._hub.settings.max_bytes_per_second
        self._hub.guard.tell(self.ws, "max_bytes_per_second", 4006)
        self.end(CloseReason(4006, f"more than {most} bytes a second", "server"))


class KeepingMetered(Metered):
    """The dispatch of a connection that is limited, and whose messages keep its session alive."""

    __slots__ = ("_touch_at",)

    def __init__(self, hub: HubCore, ws: Connection):
        super().__init__(hub, ws)
        self._touch_at = 0.0

    def feed(self, message: Frame) -> str | bool:
        """Take a message, unless it is one too many, and see to it that the session lives on."""
        answer = super().feed(message)
        if monotonic() >= self._touch_at and self.ws.reason is None:
            self._touch_at = self._hub.touches.heard(self.ws.session)
        return answer


def _size(message: Frame) -> int:
    """Return a message's bytes."""
    if isinstance(message, bytes) or message.isascii():
        return len(message)
    return len(message.encode(errors="replace"))
