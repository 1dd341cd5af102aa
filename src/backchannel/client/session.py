"""What a client's connections tell it, one after the other: greetings, frames, their ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from backchannel.client.errors import Closed
from backchannel.client.events import Lost
from backchannel.client.frames import Incoming, Received
from backchannel.client.streams import LOG

if TYPE_CHECKING:
    from backchannel.client.core import Core

__all__ = ["Session", "is_normal"]


class Session:
    """What a client's line tells it, and what becomes of that.

    Args:
        client: whose.
    """

    def __init__(self, client: Core):
        self._client = client
        self.outbox, self.unread = client._outbox, client._unread

    def hello(self) -> dict[str, Any]:
        """Return the first frame of a connection."""
        resume = self._client._resume
        if resume is None:
            return {"type": "hello"}
        positions, id_ = self._client._channels.positions(), self.outbox.next_id()
        return {"type": "hello", "id": id_, "resume": resume, "positions": positions}

    def connecting(self) -> None:
        """Take note that an attempt begins."""
        self._client._set_state("connecting")

    def greeted(self, frame: Incoming) -> None:
        """Take note of the server's first frame."""
        client = self._client
        client.id, client.user, client.resumed = frame.connection, frame.user, frame.resumed
        client._resume = frame.resume
        self.outbox.max_message = frame.max_message
        self.outbox.greeted(resumed=frame.resumed)
        self.outbox.first(client._channels.greeted(frame))
        if client._first is not None and not client._first.done():
            client._first.set_result(None)
        client._renewal.plan(frame.expires_in)
        client._set_state("open")

    def received(self, received: Received) -> None:
        """Take a frame."""
        client, frame = self._client, received.frame
        match frame.type:
            case "message":
                client._messages.put(received, received.size)
            case "lost" if not frame.channel:
                client._tell_lost(Lost(None))
            case "publication" | "lost" | "snapshot" | "join" | "leave":
                client._channels.received(received)
            case "subscribed" | "unsubscribed":
                self._moved(received)
            case "ack" | "reply" | "presence" | "renewed":
                self._answered(received)
            case "error":
                self._refused(frame)
            case "call":
                client._answers.begin(received)
            case "cancel":
                client._answers.cancel(frame.id)
            case "going_away":
                if client._line is not None:
                    client._line.going = frame.after
            case _:
                pass  # pong: hearing it was all

    def _moved(self, received: Received) -> None:
        frame = received.frame
        request = self.outbox.answered(frame.id)
        if request is not None and frame.type == "unsubscribed":
            self._client._channels.left(frame.channel)
            request.succeed()
            return
        self._client._channels.received(received)

    def _answered(self, received: Received) -> None:
        frame = received.frame
        if frame.type == "renewed":
            self._client._renewal.plan(frame.expires_in)
        if (request := self.outbox.answered(frame.id)) is None:
            return  # nobody waits for it any more
        answers = {"ack": frame.position, "renewed": frame.expires_in}
        request.succeed(answers.get(frame.type, received) if frame.type in answers else received)

    def _refused(self, frame: Incoming) -> None:
        request = self.outbox.answered(frame.id)
        if request is not None and request.owner is not None:
            if frame.code in {"unavailable", "too_many"}:  # just now: the broker, or what waits
                self._client._channels.ask_later(request.owner)
            else:
                self._client._channels.refused(request.owner, frame)
        elif request is not None and self.outbox.refused(request, frame):
            pass  # who asked hears of it
        elif frame.code not in _OF_THE_CLIENT:
            LOG.warning("the server says: %s: %s", frame.code, frame.text or "no more than that")

    def waiting(self) -> None:
        """Take note that there is no connection."""
        client = self._client
        client._renewal.stop()
        seconds = client._queue_seconds
        now = asyncio.get_running_loop().time()
        self.outbox.disconnected(None if seconds is None else now + seconds)
        client._channels.disconnected()
        client._answers.stop()  # the server waits for nothing of another connection
        client._watch_expiry()
        client._set_state("waiting")

    def ended(self, error: Exception) -> None:
        """Take note that there will be none any more."""
        self._client._end(error, None if is_normal(error) else error)

    def blame(self) -> str:
        """Say what waits to be read, for people."""
        client = self._client
        return "; ".join(
            f"{len(stream)} of {stream.name}"
            for stream in (client._messages, *client._channels.streams())
            if len(stream)
        )


_OF_THE_CLIENT: Final = frozenset({"timeout", "cancelled"})
"""Codes of calls that the client itself has given up."""


def is_normal(error: Exception) -> bool:
    """Tell whether an end is one that nobody needs to be told of."""
    return isinstance(error, Closed) and error.code == 1000
