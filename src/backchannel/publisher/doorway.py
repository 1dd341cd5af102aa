"""What both doors to an engine have in common: who is let in, whose data it is, what went wrong."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    ConnectionError,  # noqa: A004 - redis-py's own
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from backchannel.broker.redis.door import (
    NoShards,
    check_mode,
    check_version,
    facts_of,
    role_of,
)
from backchannel.broker.redis.link import is_of_a_replica
from backchannel.errors import BrokerUnusable
from backchannel.publisher.pools import away
from backchannel.publisher.steps import RUN, Command, InRun, Lost, NotSent

if TYPE_CHECKING:
    from backchannel.broker.redis.door import Whereabouts
    from backchannel.publisher.steps import Listen

__all__ = ["Doorway", "Inbox", "is_spoilt", "translate", "translate_opening"]

REFUSALS: Final = (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    NoPermissionError,
)

FRESH: Final = 2.0
"""Seconds that a master is taken to be one, in the same run of data. Others may make it a replica,
and a master again, and no connection is lost by that; and what is published at a replica is
answered as if nobody heard it, and heard by nobody who is at the master."""

_OF_ANYONE: Final = {"CLUSTER", "INFO", "SCRIPT"}
"""Commands that a replica is good for too."""


class _Unfit(RedisError):  # noqa: N818 - what is the matter
    """The engine will not do; redis-py's own, so that it closes a connection that is greeted so."""


@dataclass(slots=True)
class Inbox:
    """A connection that hears a topic.

    Args:
        connection: redis-py's.
        pool: where it is from.
        is_sharded: the topic is that of a shard.
        is_good: it can be used again.
    """

    connection: Any
    pool: Any
    is_sharded: bool = False
    is_good: bool = True

    def take(self, reply: Any) -> bytes | None:
        """Return what was heard; None where its topic is not heard there any more."""
        kind, _, data = reply
        if kind == b"sunsubscribe":  # its slot is another one's
            self.is_good = False
            return None
        return data if kind in {b"message", b"smessage"} else b""

    @property
    def farewell(self) -> tuple[tuple[str, ...], ...]:
        """What ends hearing.

        The slot of a shard's topic that goes meanwhile says the same unasked; so there another
        reply is the last.
        """
        return (("SUNSUBSCRIBE",), ("PING",)) if self.is_sharded else (("UNSUBSCRIBE",),)

    def is_over(self, reply: Any) -> bool:
        """Tell whether it is the last that ``farewell`` is answered."""
        return bool(reply == b"PONG" if self.is_sharded else reply[0] == b"unsubscribe")


class Doorway:
    """What both doors have in common.

    Args:
        address: where the engine is.
        patience: seconds that connecting may take.
        connections: of each kind at most.
    """

    def __init__(self, address: Whereabouts, patience: float, connections: int):
        self._address = address
        self._options: dict[str, Any] = {
            "max_connections": connections,
            "timeout": patience,
            "socket_connect_timeout": patience,
            "socket_timeout": patience,
            "protocol": 2,  # what is heard comes as plain replies
            "retry_on_timeout": False,
            "health_check_interval": 0,
            "redis_connect_func": self._greet,
        }
        self._in_cluster = bool(address.nodes)
        # By connection, since each knows the engine that it leads to.
        self._runs: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._looked: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        self._lacks: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # topics of shards

    def _greet(self, connection: Any) -> Any:
        raise NotImplementedError

    def _note(self, connection: Any, server: bytes, replication: bytes) -> None:
        """Check whether an engine will do, and keep what names its run of data."""
        facts, shown = facts_of(server), self._address.shown
        try:
            if self._in_cluster:
                scheme = "rediss" if self._address.is_tls else "redis"
                shown = f"{scheme}://{connection.host}:{connection.port}"
                self._note_version(connection, facts, shown)
            is_tls = self._address.is_tls
            check_mode(facts, shown, in_cluster=self._in_cluster, is_tls=is_tls)
        except BrokerUnusable as error:
            raise _Unfit(str(error)) from error
        self._note_run(connection, replication)

    def _note_version(self, connection: Any, facts: dict[str, str], shown: str) -> None:
        try:
            check_version(facts, shown, is_sharded=True)
        except NoShards as error:  # which it may not need
            self._lacks[connection] = str(error)

    def _note_run(self, connection: Any, info: bytes) -> None:
        """Keep what names the engine's run of data; a replica is none to publish at."""
        facts = facts_of(info)
        self._looked[connection] = time.monotonic()
        if not (role := role_of(facts)):
            self._runs[connection] = facts.get("master_replid", "")
        elif self._in_cluster:  # it can be asked who the masters are
            self._runs.pop(connection, None)
        else:
            raise ConnectionError(f"it is {role}")

    @staticmethod
    def _note_master(connection: Any, master: tuple[str, int]) -> None:
        """Check that a connection leads to the master: the one before may go on for a while."""
        if (connection.host, connection.port) != master:
            raise ConnectionError("another one is the master now")

    def _is_stale(self, connection: Any) -> bool:
        """Tell whether it may lead to a replica by now, or to another run of data."""
        return self._looked.get(connection, 0.0) < time.monotonic() - FRESH

    def _words(self, connection: Any, step: Command | Listen) -> list[Any]:
        """Return the words of a step, where who is at the other end can take it."""
        if step.is_sharded and connection in self._lacks:
            raise BrokerUnusable(self._lacks[connection])
        if isinstance(step, Command):
            words = step.words
        else:
            words = ("SSUBSCRIBE" if step.is_sharded else "SUBSCRIBE", step.topic)
        run = self._runs.get(connection)
        if run is None and self._in_cluster and words[0] not in _OF_ANYONE:
            raise NotSent("it is a replica")
        return [
            (run or "") if word is RUN else _in_run(run, word) if type(word) is InRun else word
            for word in words
        ]


def _in_run(run: str | None, word: Any) -> Any:
    while type(word) is InRun:
        word = word.word if run in word.runs else word.otherwise
    return word


def is_spoilt(error: BaseException) -> bool:
    """Tell whether a connection that raised this can't be used again, or is not to be."""
    return not isinstance(error, ResponseError) or _is_of_a_replica(error)


def translate_opening(address: Whereabouts, error: BaseException) -> None:
    """Raise what the work understands of what happened while a connection was opened."""
    if isinstance(error, REFUSALS):
        raise BrokerUnusable(_refused(error)) from error
    if isinstance(error, _Unfit):
        raise BrokerUnusable(str(error)) from error
    if isinstance(error, RedisError | OSError | RuntimeError):  # uvloop's, see ``AwaitingDoor``
        raise NotSent(away(address, error)) from error


def translate(error: BaseException, run: str = "") -> None:
    """Raise what the work understands; what it has no word for is the caller's to raise.

    Args:
        error: what happened after something was sent.
        run: names the run of data of who it was sent to.
    """
    if _is_of_a_replica(error):  # the engine has become a replica meanwhile
        raise NotSent(str(error)) from error
    if isinstance(error, REFUSALS):
        raise BrokerUnusable(_refused(error)) from error
    if isinstance(error, ResponseError):
        return
    if isinstance(error, RedisError | OSError):  # TimeoutError is an OSError
        raise Lost(str(error), run) from error


def _is_of_a_replica(error: BaseException) -> bool:
    if isinstance(error, ReadOnlyError) or isinstance(error.__context__, ReadOnlyError):
        return True  # the latter where redis-py has asked sentinels
    return isinstance(error, ResponseError) and is_of_a_replica(error)  # a script's, of Redis 6.2


def _refused(error: Exception) -> str:
    return (
        "the engine lets nobody in like this: redis://:password@host:port, or user:password "
        f"({error})"
    )
