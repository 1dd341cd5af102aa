"""Taking the steps of publishing by redis-py's pools: blocking, or in an event loop.

Nothing is retried in here: redis-py would send a command again whose first sending may have been
carried out. The connections that publish and those that hear answers are in pools of their own, so
that nobody holds one of each kind while waiting for the other.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
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

from backchannel.errors import BrokerUnusable
from backchannel.publisher.pools import AwaitingPools, BlockingPools, away
from backchannel.publisher.steps import (
    RUN,
    Command,
    Hear,
    InRun,
    Leave,
    Listen,
    Lost,
    NotSent,
    Pause,
    Work,
)

if TYPE_CHECKING:
    from backchannel.broker.redis.door import Whereabouts

__all__ = ["AwaitingDoor", "BlockingDoor"]

T = TypeVar("T")

_REFUSALS: Final = (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    NoPermissionError,
)
_Step = Command | Listen | Hear | Leave | Pause


@dataclass(slots=True)
class _Inbox:
    """A connection that hears a topic.

    Args:
        connection: redis-py's.
        is_good: it can be used again.
    """

    connection: Any
    is_good: bool = True


class _Door:
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
        # By connection, since each knows the engine that it leads to.
        self._runs: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    def _greet(self, connection: Any) -> Any:
        raise NotImplementedError

    def _note_run(self, connection: Any, info: bytes) -> None:
        """Keep what names the engine's run of data; a replica is none to publish at."""
        lines = info.decode(errors="replace").splitlines()
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        if facts.get("role") not in {"master", None}:
            raise ConnectionError(f"it is a replica of {facts.get('master_host')}")
        self._runs[connection] = facts.get("master_replid", "")

    def _words(self, connection: Any, words: tuple[Any, ...]) -> list[Any]:
        run = self._runs.get(connection)
        return [
            (run or "") if word is RUN else _in_run(run, word) if type(word) is InRun else word
            for word in words
        ]


def _in_run(run: str | None, word: InRun) -> Any:
    return word.word if run in word.runs else word.otherwise


class BlockingDoor(_Door):
    """Takes steps and blocks the thread meanwhile; many threads may, and forked processes.

    See ``_Door`` for the arguments.
    """

    def __init__(self, address: Whereabouts, patience: float, connections: int):
        super().__init__(address, patience, connections)
        self._pools = BlockingPools(address, self._options)
        self._speaking, self._hearing = self._pools.speaking, self._pools.hearing

    def run(self, work: Work[T]) -> T:
        """Do what there is to do; returns and raises what it does."""
        try:
            step = next(work)
            while True:
                try:
                    done = self._take(step)
                except BaseException as error:  # noqa: BLE001 - the work's to see, which cleans up
                    step = work.throw(error)
                else:
                    step = work.send(done)
        except StopIteration as end:
            result: T = end.value
            return result

    def close(self) -> None:
        """Close all connections; they are opened again when need be."""
        self._pools.close()

    def _take(self, step: _Step) -> Any:
        match step:
            case Command(words, seconds):
                return self._command(words, seconds)
            case Listen(topic, seconds):
                return self._listen(topic, seconds)
            case Hear(inbox, seconds):
                return self._hear(inbox, seconds)
            case Leave(inbox):
                return self._leave(inbox)
            case Pause(seconds):
                return time.sleep(seconds)

    def _greet(self, connection: Any) -> None:
        connection.on_connect()
        connection.send_command("INFO", "replication", check_health=False)
        self._note_run(connection, connection.read_response())

    def _open(self, pool: Any) -> Any:
        try:
            return pool.get_connection()
        except _REFUSALS as error:
            raise BrokerUnusable(_refused(error)) from error
        except (RedisError, OSError) as error:
            raise NotSent(away(self._address, error)) from error

    def _command(self, words: tuple[Any, ...], seconds: float) -> Any:
        connection = self._open(self._speaking)
        try:
            connection.send_command(*self._words(connection, words), check_health=False)
            return connection.read_response(timeout=seconds)
        except BaseException as error:
            if _is_spoilt(error):
                connection.disconnect()
            _translate(error, self._runs.get(connection, ""))
            raise
        finally:
            self._speaking.release(connection)

    def _listen(self, topic: bytes, seconds: float) -> _Inbox:
        connection = self._open(self._hearing)
        try:
            connection.send_command("SUBSCRIBE", topic, check_health=False)
            connection.read_response(timeout=seconds)
        except BaseException as error:
            connection.disconnect()
            self._hearing.release(connection)
            _translate(error)
            raise
        return _Inbox(connection)

    @staticmethod
    def _hear(inbox: _Inbox, seconds: float) -> bytes | None:
        try:
            kind, _, data = inbox.connection.read_response(timeout=max(seconds, 0.001))
        except (RedisError, OSError):
            inbox.is_good = False
            return None
        return data if kind == b"message" else b""

    def _leave(self, inbox: _Inbox) -> None:
        connection = inbox.connection
        try:
            if inbox.is_good:
                connection.send_command("UNSUBSCRIBE", check_health=False)
                while connection.read_response()[0] != b"unsubscribe":
                    pass
        except (RedisError, OSError):
            inbox.is_good = False
        except BaseException:
            inbox.is_good = False
            raise
        finally:
            if not inbox.is_good:
                connection.disconnect()
            self._hearing.release(connection)


class AwaitingDoor(_Door):
    """Takes steps in an event loop.

    See ``_Door`` for the arguments.
    """

    def __init__(self, address: Whereabouts, patience: float, connections: int):
        super().__init__(address, patience, connections)
        self._pools = AwaitingPools(address, self._options)
        self._speaking, self._hearing = self._pools.speaking, self._pools.hearing
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, work: Work[T]) -> T:
        """Do what there is to do; returns and raises what it does.

        Raises:
            RuntimeError: it was used in another event loop before.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise RuntimeError(
                    "this AsyncPublisher was used in another event loop before: make one in each, "
                    "or use a Publisher, which blocks and is at home anywhere"
                )
            self._loop = loop
        try:
            step = next(work)
            while True:
                try:
                    done = await self._take(step)
                except BaseException as error:  # noqa: BLE001 - the work's to see, which cleans up
                    step = work.throw(error)
                else:
                    step = work.send(done)
        except StopIteration as end:
            result: T = end.value
            return result

    async def aclose(self) -> None:
        """Close all connections; it may be used in another event loop then."""
        await self._pools.aclose()
        self._loop = None

    async def _take(self, step: _Step) -> Any:
        match step:
            case Command(words, seconds):
                return await self._command(words, seconds)
            case Listen(topic, seconds):
                return await self._listen(topic, seconds)
            case Hear(inbox, seconds):
                return await self._hear(inbox, seconds)
            case Leave(inbox):
                return await self._leave(inbox)
            case Pause(seconds):
                return await asyncio.sleep(seconds)

    async def _greet(self, connection: Any) -> None:
        await connection.on_connect()
        await connection.send_command("INFO", "replication", check_health=False)
        self._note_run(connection, await connection.read_response())

    async def _open(self, pool: Any) -> Any:
        try:
            return await pool.get_connection()
        except _REFUSALS as error:
            raise BrokerUnusable(_refused(error)) from error
        except (RedisError, OSError, RuntimeError) as error:  # uvloop's, see _say
            raise NotSent(away(self._address, error)) from error

    @staticmethod
    async def _say(connection: Any, *words: Any) -> None:
        try:
            await connection.send_command(*words, check_health=False)
        except RuntimeError as error:  # what uvloop says of a transport that is closed
            raise NotSent(str(error)) from error

    async def _command(self, words: tuple[Any, ...], seconds: float) -> Any:
        connection = await self._open(self._speaking)
        try:
            async with asyncio.timeout(seconds):
                await self._say(connection, *self._words(connection, words))
                return await connection.read_response(timeout=math.inf)
        except BaseException as error:
            if _is_spoilt(error):
                await connection.disconnect(nowait=True)
            _translate(error, self._runs.get(connection, ""))
            raise
        finally:
            await self._speaking.release(connection)

    async def _listen(self, topic: bytes, seconds: float) -> _Inbox:
        connection = await self._open(self._hearing)
        try:
            async with asyncio.timeout(seconds):
                await self._say(connection, "SUBSCRIBE", topic)
                await connection.read_response(timeout=math.inf)
        except BaseException as error:
            await connection.disconnect(nowait=True)
            await self._hearing.release(connection)
            _translate(error)
            raise
        return _Inbox(connection)

    @staticmethod
    async def _hear(inbox: _Inbox, seconds: float) -> bytes | None:
        try:
            async with asyncio.timeout(seconds):
                kind, _, data = await inbox.connection.read_response(timeout=math.inf)
        except (RedisError, OSError):
            inbox.is_good = False
            return None
        except BaseException:
            inbox.is_good = False
            raise
        return data if kind == b"message" else b""

    async def _leave(self, inbox: _Inbox) -> None:
        connection = inbox.connection
        try:
            if inbox.is_good:
                await self._say(connection, "UNSUBSCRIBE")
                while (await connection.read_response())[0] != b"unsubscribe":
                    pass
        except (RedisError, OSError, NotSent):
            inbox.is_good = False
        except BaseException:
            inbox.is_good = False
            raise
        finally:
            if not inbox.is_good:
                await connection.disconnect(nowait=True)
            await self._hearing.release(connection)


def _is_spoilt(error: BaseException) -> bool:
    """Tell whether a connection that raised this can't be used again, or is not to be."""
    return not isinstance(error, ResponseError) or isinstance(error, ReadOnlyError)


def _translate(error: BaseException, run: str = "") -> None:
    """Raise what the work understands; what it has no word for is the caller's to raise.

    Args:
        error: what happened after something was sent.
        run: names the run of data of who it was sent to.
    """
    if isinstance(error, ReadOnlyError):  # the engine has become a replica meanwhile
        raise NotSent(str(error)) from error
    if isinstance(error, _REFUSALS):
        raise BrokerUnusable(_refused(error)) from error
    if isinstance(error, ResponseError):
        return
    if isinstance(error, RedisError | OSError):  # TimeoutError is an OSError
        raise Lost(str(error), run) from error


def _refused(error: Exception) -> str:
    return (
        "the engine lets nobody in like this: redis://:password@host:port, or user:password "
        f"({error})"
    )
