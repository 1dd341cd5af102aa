"""The way to where a key is: to one engine for all of them, or to one of a cluster's.

Who goes it is the broker. ``lane.Lane`` is the way to one engine, and ``shards.Shards`` has such a
lane for each master of a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    import hiredis

    from backchannel.broker.redis.asking import Inquiries
    from backchannel.broker.redis.keys import Keys
    from backchannel.broker.redis.lane import Lane
    from backchannel.broker.redis.link import Link
    from backchannel.broker.redis.posting import Posting, Question
    from backchannel.contracts import Node

__all__ = ["Origin", "Owner", "Route", "Steward", "Words"]

Words = str | bytes | int | float
"""What a command is made of."""


class Route(Protocol):
    """How to get something done where a key or topic is."""

    @property
    def shown(self) -> str:
        """The URL without its password, for people."""
        ...

    @property
    def state(self) -> str:
        """How it is doing, for people."""
        ...

    @property
    def is_connected(self) -> bool:
        """The engine is there; of a cluster most of its masters."""
        ...

    @property
    def pending(self) -> int:
        """Bytes of publications that wait or are under way."""
        ...

    @property
    def is_sharded(self) -> bool | None:
        """Topics are those of shards; False is classic ones, None where there is one engine."""
        ...

    async def start(self, *, classic: bool = False) -> None:
        """Connect, for the first time.

        Args:
            classic: in a cluster, without topics of shards, also where all masters have them.

        Raises:
            BrokerUnavailable: nobody answers there.
            BrokerUnusable: who answers will not do.
        """
        ...

    async def stop(self) -> None:
        """Publish what waits, and disconnect."""
        ...

    def post(self, posting: Posting | Question) -> None:
        """Publish at the end of this turn of the event loop, or when the engine is back."""
        ...

    def say(self, topic: bytes, data: bytes) -> None:
        """Publish something that may be lost."""
        ...

    def listen(self, topic: bytes) -> Awaitable[Any] | None:
        """Hear a topic from now on; None where the engine is away: then when it is back."""
        ...

    def unlisten(self, topic: bytes) -> None:
        """Hear no more of it."""
        ...

    def heard_at(self, lane: Lane) -> Iterable[bytes] | None:
        """Return the topics that are heard at one engine; None is all there are."""
        ...

    def link_of(self, key: bytes) -> Link | None:
        """Return the connection to where a key is; None while that is away."""
        ...

    def runs(self, key: bytes) -> tuple[str, ...]:
        """Name the run of data of where a key is, and others from which it came, whole."""
        ...

    async def call(self, key: bytes, *command: Words) -> Any:
        """Send a command about a key; return its reply.

        Raises:
            BrokerUnavailable: the engine is away.
            hiredis.ReplyError: it refused.
        """
        ...

    async def evaluate(
        self,
        name: str,
        keys: Sequence[bytes],
        words: Callable[[tuple[str, ...]], Sequence[Words]],
        *,
        whole: bool = False,
    ) -> Any:
        """Run a script; return its reply.

        Args:
            name: of the script.
            keys: its keys.
            words: returns its arguments, given the name of the engine's run of data, and those of
                others from which it has these keys, whole.
            whole: it looks at more keys than it names: not while only some of them are there.

        Raises:
            BrokerUnavailable: the engine is away.
            hiredis.ReplyError: it refused.
        """
        ...


@dataclass(slots=True)
class Origin:
    """Who publishes: what all lanes of a node have in common.

    Args:
        keys: what is called how.
        inquiries: what it asks the other nodes.
        hear: called with topic and payload of what is heard.
        timeout: seconds that a publication may wait for an engine that is away.
        max_unsent: bytes of publications that each engine may have yet to answer.

    Attributes:
        node: it, from when the broker is bound.
    """

    keys: Keys
    inquiries: Inquiries
    hear: Callable[[bytes, bytes], None]
    timeout: float
    max_unsent: int
    node: Node = field(init=False)


class Owner(Protocol):
    """Who is told what becomes of a lane."""

    def topics_of(self, lane: Lane | None) -> Iterable[bytes]:
        """Return what is to be heard there; None is anywhere."""
        ...

    def connected(self, lane: Lane, *, again: bool) -> None:
        """Take note that its topics are heard; what waited has left."""
        ...

    def disconnected(self, lane: Lane) -> None:
        """Take note that nothing is heard there."""
        ...

    def missed(self, topics: Iterable[bytes] | None) -> None:
        """Take note that some topics, or all, were not heard for a while; they are now."""
        ...

    def failed(self, text: str, error: Exception) -> None:
        """Take note of a bug."""
        ...


class Steward(Protocol):
    """Who knows which engine of a cluster has what."""

    def of(self, key: bytes) -> Lane:
        """Return the way to the master that has a key."""
        ...

    def dropped(self, lane: Lane, topic: bytes) -> None:
        """Take note that a topic is another engine's."""
        ...

    def turned_back(self, lane: Lane, posting: Posting | Question, why: hiredis.ReplyError) -> bool:
        """Publish a posting where it belongs; False where that is not the matter."""
        ...
