"""Which channels a client is in, and wants to be in, across connections."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final

from backchannel.client.errors import Closed, ServerError
from backchannel.client.events import Lost
from backchannel.client.frames import OVERHEAD, Incoming, Received
from backchannel.client.outbox import Kind, Request
from backchannel.client.streams import LOG, Stream, Unread
from backchannel.client.subscription import Subscription

if TYPE_CHECKING:
    from backchannel.client.client import Client

__all__ = ["Channels"]

LATER: Final = 1.0
"""Seconds after which a channel is asked for again that could not be had just now, at most."""


class Channels:
    """The subscriptions of one client.

    Args:
        client: whose.
        unread: where their streams count.
        loose: bytes that are kept of a channel that nobody has asked for yet.
    """

    def __init__(self, client: Client, unread: Unread, loose: int):
        self._client, self._unread, self._loose = client, unread, loose
        self._known: dict[str, Subscription[Any]] = {}
        self._leaving: set[str] = set()

    def get(self, name: str) -> Subscription[Any]:
        """Return the subscription of a channel; a new one where there is none."""
        subscription = self._known.get(name)
        if subscription is None:
            stream: Stream[Received] = Stream(f"channel {name!r}", self._unread, self._loose)
            subscription = self._known[name] = Subscription(self._client, name, stream)
        return subscription

    def forget(self, subscription: Subscription[Any]) -> bool:
        """Take a subscription out; False where it is out already.

        What still comes of its channel is ignored until the server has said that it is out.
        """
        name = subscription.channel
        if self._known.get(name) is not subscription:
            return False
        del self._known[name]
        self._leaving.add(name)
        subscription._ended(None)
        return True

    def left(self, name: str) -> None:
        """Take note that the server has said so."""
        self._leaving.discard(name)

    def positions(self) -> dict[str, str]:
        """Return the last position of each channel."""
        return {
            name: subscription.position
            for name, subscription in self._known.items()
            if subscription.position is not None
        }

    def disconnected(self) -> None:
        """Take note that the connection was lost."""
        for subscription in self._known.values():
            subscription._is_in = False

    def greeted(self, frame: Incoming) -> list[Request]:
        """Take note of a new connection; return what has to be asked for.

        Where the session is another one, publications may have been missed: by channels without a
        position, and by those that the server puts the client into by itself.
        """
        asked: list[Request] = []
        for name, subscription in list(self._known.items()):
            is_put = name in frame.channels and name not in self._leaving
            if not frame.resumed and subscription._was_in:
                subscription._has_gap = is_put or subscription.position is None
            if subscription._is_asked and not is_put:
                asked.append(self.ask(subscription))
            elif not frame.resumed and not is_put:
                gone = Incoming("unsubscribed", channel=name, text="another session")
                self.received(Received(gone, gone.data, OVERHEAD))
        return asked

    def ask(self, subscription: Subscription[Any]) -> Request:
        """Return the frame that asks to enter a channel, after its last position."""
        subscription._is_asked = True

        def fields() -> dict[str, Any]:
            since = subscription.position
            return {
                "type": "subscribe",
                "channel": subscription.channel,
                **({} if since is None else {"since": since}),
            }

        return Request(Kind.ENTERING, fields, owner=subscription)

    def ask_later(self, subscription: Subscription[Any]) -> None:
        """Ask once more in a while: the server can't say now, or has too much to do."""
        seconds = random.uniform(0.5, 1.0) * LATER  # noqa: S311 - no secret
        asyncio.get_running_loop().call_later(seconds, self._ask_again, subscription)

    def _ask_again(self, subscription: Subscription[Any]) -> None:
        is_known = self._known.get(subscription.channel) is subscription
        # On a connection that came since it was asked for already.
        if is_known and not subscription.is_in and self._client.state == "open":
            self._client._add(self.ask(subscription))

    def received(self, received: Received) -> None:
        """Hand on what the server says of a channel."""
        frame = received.frame
        name = frame.channel
        if name in self._leaving:
            return
        if frame.type == "lost":
            self._client._tell_lost(Lost(name, frame.position))
        if frame.type == "unsubscribed":
            if name in self._known:
                subscription = self._known.pop(name)
                subscription._received(received)
                subscription._ended(None)
        elif frame.type == "subscribed":
            self.get(name)._subscribed(frame.position)
        else:
            self.get(name)._received(received)

    def refused(self, subscription: Subscription[Any], frame: Incoming) -> None:
        """Take note that the server does not let the client in."""
        error = ServerError(frame.code, frame.text or "", frame.field)
        if self._known.get(subscription.channel) is subscription:
            del self._known[subscription.channel]
        LOG.info("channel %r: %s", subscription.channel, error)
        subscription._ended(error)

    def end(self, error: Closed | Exception | None) -> None:
        """End all of them."""
        for subscription in self._known.values():
            subscription._ended(error)
        self._known.clear()

    def streams(self) -> list[Stream[Any]]:
        """Return what waits to be read of each of them."""
        return [subscription._stream for subscription in self._known.values()]
