"""A channel as the client sees it: what is told of it, in order, whatever connections do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from backchannel.client.errors import Closed
from backchannel.client.events import (
    Event,
    Join,
    Leave,
    Lost,
    Member,
    Publication,
    Snapshot,
    Unsubscribed,
)
from backchannel.client.frames import OVERHEAD, Incoming, Received, decoded
from backchannel.client.streams import Ended, Stream

if TYPE_CHECKING:
    from backchannel.client.client import Client

__all__ = ["Subscription"]

T = TypeVar("T")


class Subscription(Generic[T]):
    """A channel: an async iterator of what happens in it, made by ``client.subscribe(channel)``.

    It lives on through reconnects: what was missed comes in its place, or ``Lost`` says that some
    can't be had any more. Iteration ends when the client is out of the channel or was closed with
    1000; it raises ServerError where the server refused, and Closed where the client ended.

    Attributes:
        channel: its name.
        position: the last position in its history that the client has received; None without one.
    """

    def __init__(self, client: Client, channel: str, stream: Stream[Received]):
        self.channel = channel
        self.position: str | None = None
        self._client = client
        self._stream = stream
        self._type: Any = None
        self._snapshot: Any = None
        self._is_in = False
        self._was_in = False
        self._is_asked = False
        self._has_gap = False
        self._told_dropped = False
        self._entered: asyncio.Future[None] | None = None
        self._error: Exception | None = None

    def __repr__(self) -> str:
        return f"<Subscription {self.channel!r} {'in' if self._is_in else 'out'}>"

    @property
    def is_in(self) -> bool:
        """The server has said that the client is in it; False also while there is no connection."""
        return self._is_in

    async def ready(self) -> Self:
        """Wait until the client is in the channel for the first time.

        Returns:
            The subscription itself.

        Raises:
            ServerError: the server refused.
            Closed: the client has ended.
        """
        while not self._is_in:
            if self._error is not None:
                raise self._error.with_traceback(None)
            if self._stream.is_ended:
                break
            if self._entered is None or self._entered.done():
                self._entered = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._entered)
        return self

    def __aiter__(self) -> Self:
        """Return itself."""
        self._stream.is_wanted = True
        return self

    async def __anext__(self) -> Event[T]:
        """Return what happened next.

        Raises:
            StopAsyncIteration: the client is out of the channel, or was closed.
            InvalidMessage: a publication is not what ``type=`` says; the next one may be.
            ServerError: the server refused.
            Closed: the client has ended.
        """
        try:
            return await self._next()
        except Ended:
            raise StopAsyncIteration from None

    async def receive(self) -> Event[T]:
        """Return what happened next, as iteration does; who is cancelled meanwhile misses nothing.

        Raises:
            Closed: the client is out of the channel, or has ended.
            InvalidMessage, ServerError: as iteration.
        """
        try:
            return await self._next()
        except Ended:
            raise Closed(1000, f"nothing follows in {self.channel!r}") from None

    async def _next(self) -> Event[T]:
        if self._stream.dropped and not self._told_dropped:
            self._stream.is_wanted = self._told_dropped = True
            return Lost(self.channel)
        return self._event(await self._stream.get())

    def _event(self, received: Received) -> Event[T]:
        frame = received.frame
        if frame.type == "publication":
            data = decoded(received.data, self._type)
            return Publication(self.channel, data, frame.position)
        if frame.type == "snapshot":
            return Snapshot(self.channel, decoded(received.data, self._snapshot), frame.position)
        if frame.type == "lost":
            return Lost(self.channel, frame.position)
        if frame.type == "unsubscribed":
            return Unsubscribed(self.channel, frame.text or "")
        kind = Join if frame.type == "join" else Leave
        return kind(self.channel, frame.user or "")

    async def presence(self) -> list[Member]:
        """Return who is in the channel, where a rule keeps presence; see ``Client.presence``."""
        return await self._client.presence(self.channel)

    async def publish(self, data: Any, *, retry: bool = False) -> str | None:
        """Publish to the channel; see ``Client.publish``."""
        return await self._client.publish(self.channel, data, retry=retry)

    async def unsubscribe(self) -> None:
        """Leave the channel; iteration ends with what was received before.

        Returns when the server has said so, or, without a connection, at once: then it is said
        when there is one again.
        """
        await self._client._unsubscribe(self)

    async def __aenter__(self) -> Self:
        """Wait until the client is in the channel."""
        return await self.ready()

    async def __aexit__(self, *_: object) -> None:
        """Leave it."""
        await self.unsubscribe()

    # What the client tells it.

    def _received(self, received: Received) -> None:
        frame = received.frame
        self._was_in = True
        # What a snapshot has, or a loss that is told, needs no other word.
        self._close_gap(is_known=frame.type in {"lost", "snapshot"})
        if frame.position is not None or frame.type == "lost":
            self.position = frame.position
        self._stream.put(received, received.size)

    def _subscribed(self, position: str | None) -> None:
        is_known = position is not None and position == self.position
        self._close_gap(is_known=is_known, position=position)
        if position is not None:
            self.position = position
        self._is_in = self._was_in = True
        self._settle()

    def _close_gap(self, *, is_known: bool, position: str | None = None) -> None:
        """Tell of what a new session may have missed, before what comes in it."""
        if self._has_gap and not is_known:
            lost = Incoming("lost", channel=self.channel, position=position)
            self._stream.put(Received(lost, lost.data, OVERHEAD), OVERHEAD)
            self._client._tell_lost(Lost(self.channel, position))
        self._has_gap = False

    def _ended(self, error: Exception | None) -> None:
        self._is_in = False
        self._error = error
        self._stream.end(error)
        self._settle()

    def _settle(self) -> None:
        if self._entered is not None and not self._entered.done():
            self._entered.set_result(None)
