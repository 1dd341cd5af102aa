"""One connection to Redis or Valkey: commands in order, and what its subscriptions hear.

RESP3, so that one connection does both, and a command's reply and what it caused to be heard keep
their order. hiredis reads and writes the protocol; what a turn of the event loop has to say leaves
in one write.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection
from typing import Any, Final, Protocol, cast

import hiredis

from backchannel.errors import BrokerUnavailable

__all__ = ["Command", "Link", "is_of_a_replica", "pack_command"]

_MORE: Final = object()
pack_command: Final[Callable[[tuple[Any, ...]], bytes]] = cast("Any", hiredis).pack_command
"""Returns a command as it travels."""

_CONFIRMATIONS: Final = {b"subscribe", b"unsubscribe", b"ssubscribe"}


class Command(Protocol):
    """Waits for a reply."""

    def settle(self, reply: Any) -> None:
        """Take the reply; an error is a ``hiredis.ReplyError``."""
        ...

    def abandon(self) -> None:
        """Take note that the connection was lost before there was a reply."""
        ...


class _Call:
    """A command whose reply someone awaits."""

    __slots__ = ("_link", "future")

    def __init__(self, link: Link) -> None:
        self._link = link
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def settle(self, reply: Any) -> None:
        if self.future.done():
            return
        if isinstance(reply, hiredis.ReplyError):
            self._link.turned_down(reply)
            self.future.set_exception(reply)
        else:
            self.future.set_result(reply)

    def abandon(self) -> None:
        if not self.future.done():
            text = self._link.problem or "the connection to the broker was lost"
            self.future.set_exception(BrokerUnavailable(text))
            self.future.exception()  # whoever waited may have gone


class _Left:
    """A SUNSUBSCRIBE, with the sign of life that is asked for right after it.

    What confirms it looks like what the engine says unasked when a slot goes, and an error may
    come in its place. So the next reply tells which of the two it was.
    """

    __slots__ = ("_waiting",)

    def __init__(self, waiting: deque[Command]) -> None:
        self._waiting = waiting

    def settle(self, reply: Any) -> None:
        if not isinstance(reply, hiredis.ReplyError):  # of the sign of life
            self._waiting.popleft().settle(reply)

    def abandon(self) -> None:
        pass


class Link(asyncio.Protocol):
    """A connection.

    Args:
        hear: called with topic and payload of each message of a subscription.

    Attributes:
        dropped: called with a topic of a shard that the engine ends unasked.
        refused: done when the engine would not write, since it is a replica.
        lost: done when the connection has ended.
        problem: why it was given up; empty where it was lost.
        progress: changes with each reply, and with each part of a long one.
    """

    def __init__(self, hear: Callable[[bytes, bytes], None]) -> None:
        self._hear = hear
        self.dropped: Callable[[bytes], None] = _nothing
        self._leaving: Counter[bytes] = Counter()
        self._reader: Any = hiredis.Reader(notEnoughData=_MORE)
        self._waiting: deque[Command] = deque()
        self._due: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.progress = 0
        self.problem = ""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ── what is asked ─────────────────────────────────────────────────────────────────────────

    def call(self, *command: str | bytes | float) -> asyncio.Future[Any]:
        """Send a command; return what becomes its reply.

        Raises (in the future):
            hiredis.ReplyError: the engine refused it.
            BrokerUnavailable: the connection was lost.
        """
        call = _Call(self)
        self.send(call, *command)
        return call.future

    def call_packed(self, packed: bytes) -> asyncio.Future[Any]:
        """Send a command as ``pack_command`` makes it; see ``call``."""
        call = _Call(self)
        self.send_packed([packed], (call,))
        return call.future

    def leave(self, topic: bytes) -> None:
        """Hear no more of a shard's topic."""
        self._leaving[topic] += 1
        self.send(_Left(self._waiting), "SUNSUBSCRIBE", topic)
        self.call("PING")

    def send(self, waiting: Command, *command: str | bytes | float) -> None:
        """Send a command, whose reply ``waiting`` gets."""
        if self.lost.done():
            waiting.abandon()
            return
        if not self._due:
            asyncio.get_running_loop().call_soon(self._flush)
        self._due.append(pack_command(command))
        self._waiting.append(waiting)

    def send_packed(self, packed: list[bytes], waiting: Collection[Command]) -> None:
        """Send commands at once, with what waits to be sent.

        Args:
            packed: they, as ``pack_command`` makes them.
            waiting: who gets the reply of each.
        """
        if self.lost.done():
            for each in waiting:
                each.abandon()
            return
        self._due += packed
        self._waiting += waiting
        self._flush()

    def _flush(self) -> None:
        due, self._due = self._due, []
        if due and self._transport is not None and not self.lost.done():
            self._transport.write(due[0] if len(due) == 1 else b"".join(due))

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def turned_down(self, error: hiredis.ReplyError) -> bool:
        """Take note of an error; tell whether the engine would not write, since it is a replica."""
        if not is_of_a_replica(error):
            return False
        if not self.refused.done():
            self.refused.set_result(None)
        return True

    # ── as the transport's protocol ───────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read replies, and what subscriptions hear."""
        gets, hear = self._reader.gets, self._hear
        self._reader.feed(data)
        try:
            while (reply := gets()) is not _MORE:
                if type(reply) is not hiredis.PushNotification:
                    self._waiting.popleft().settle(reply)
                    self.progress += 1
                    continue
                push = cast("list[Any]", reply)
                kind = push[0]
                if kind == b"message" or kind == b"smessage":  # noqa: PLR1714 - the faster way
                    hear(push[1], push[2])
                elif kind in _CONFIRMATIONS:
                    self._waiting.popleft().settle(push)
                elif kind == b"sunsubscribe":
                    self._ended(push[1])
            if self._reader.has_data():
                self.progress += 1
        except (hiredis.ProtocolError, IndexError) as error:
            self.close()  # nothing it says can be told apart any more
            if isinstance(error, IndexError) and self._waiting:
                raise  # a bug
            said = data.partition(b"\r\n")[0][:40] or data[:40]
            what = "what answers there is neither Redis nor Valkey, or wants TLS"
            self.problem = f"{what}: it says {said!r}…"

    def _ended(self, topic: bytes) -> None:
        if self._leaving[topic] > 1:
            self._leaving[topic] -= 1
        elif self._leaving.pop(topic, 0) == 0:
            self.dropped(topic)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """Tell everyone who waits."""
        if self.lost.done():
            return
        self.lost.set_result(None)
        waiting, self._waiting = self._waiting, deque()
        for command in waiting:
            command.abandon()


def is_of_a_replica(error: Exception) -> bool:
    """Tell whether an engine refused to write since it is a replica; Redis 6.2 says more before."""
    return "READONLY You" in str(error)


def _nothing(topic: bytes) -> None:
    """Do nothing: there are no shards."""
