"""Taking the steps of publishing by redis-py's pools: blocking, or in an event loop.

Nothing is retried in here: redis-py would send a command again whose first sending may have been
carried out. The connections that publish and those that hear answers are in pools of their own, so
that nobody holds one of each kind while waiting for the other.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import RedisError

from backchannel.publisher.doorway import Doorway, Inbox, is_spoilt, translate, translate_opening
from backchannel.publisher.pools import AwaitingPools, BlockingPools
from backchannel.publisher.steps import Command, Hear, Leave, Listen, NotSent, Pause, Work

if TYPE_CHECKING:
    from backchannel.broker.redis.door import Whereabouts
    from backchannel.broker.redis.slots import Address

__all__ = ["AwaitingDoor", "BlockingDoor"]

T = TypeVar("T")

_Step = Command | Listen | Hear | Leave | Pause


class BlockingDoor(Doorway):
    """Takes steps and blocks the thread meanwhile; many threads may, and forked processes.

    See ``Doorway`` for the arguments.
    """

    def __init__(self, address: Whereabouts, patience: float, connections: int):
        super().__init__(address, patience, connections)
        self._pools: dict[Address | None, BlockingPools] = {}

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
        for pools in list(self._pools.values()):
            pools.close()

    def _at(self, at: Address | None) -> BlockingPools:
        """Return the pools to a node of a cluster, or to the one engine there is."""
        if (pools := self._pools.get(at)) is None:
            new = BlockingPools(self._address, self._options, at)
            pools = self._pools.setdefault(at, new)  # another thread may have been faster
        return pools

    def _take(self, step: _Step) -> Any:
        match step:
            case Command():
                return self._command(step)
            case Listen():
                return self._listen(step)
            case Hear(inbox, seconds):
                return self._hear(inbox, seconds)
            case Leave(inbox):
                return self._leave(inbox)
            case Pause(seconds):
                return time.sleep(seconds)

    def _greet(self, connection: Any) -> None:
        connection.on_connect()
        for section in ("server", "replication"):
            connection.send_command("INFO", section, check_health=False)
        self._note(connection, connection.read_response(), connection.read_response())

    def _look_where(self, connection: Any, pool: Any) -> None:
        """Check that sentinels still name the master that a connection leads to."""
        if self._address.sentinels is None:
            return
        try:
            master = pool.get_master_address()
        except (RedisError, OSError):  # nobody knows better
            return
        self._note_master(connection, master)

    def _open(self, pool: Any) -> Any:
        connection = None
        try:
            connection = pool.get_connection()
            if self._is_stale(connection):
                self._look_where(connection, pool)
                connection.send_command("INFO", "replication", check_health=False)
                self._note_run(connection, connection.read_response())
        except BaseException as error:
            if connection is not None:
                connection.disconnect()
                pool.release(connection)
            translate_opening(self._address, error)
            raise
        return connection

    def _command(self, step: Command) -> Any:
        pool = self._at(step.at).speaking
        connection = self._open(pool)
        try:
            words = self._words(connection, step)
            if step.asking:
                connection.send_command("ASKING", check_health=False)
                connection.read_response(timeout=step.seconds)
            connection.send_command(*words, check_health=False)
            return connection.read_response(timeout=step.seconds)
        except BaseException as error:
            if is_spoilt(error):
                connection.disconnect()
            translate(error, self._runs.get(connection, ""))
            raise
        finally:
            pool.release(connection)

    def _listen(self, step: Listen) -> Inbox:
        pool = self._at(step.at).hearing
        connection = self._open(pool)
        try:
            words = self._words(connection, step)
            connection.send_command(*words, check_health=False)
            connection.read_response(timeout=step.seconds)
        except BaseException as error:
            connection.disconnect()
            pool.release(connection)
            translate(error)
            raise
        return Inbox(connection, pool, step.is_sharded)

    @staticmethod
    def _hear(inbox: Inbox, seconds: float) -> bytes | None:
        try:
            return inbox.take(inbox.connection.read_response(timeout=max(seconds, 0.001)))
        except (RedisError, OSError):
            inbox.is_good = False
            return None

    def _leave(self, inbox: Inbox) -> None:
        connection = inbox.connection
        try:
            if inbox.is_good:
                for words in inbox.farewell:
                    connection.send_command(*words, check_health=False)
                while not inbox.is_over(connection.read_response()):
                    pass
        except (RedisError, OSError):
            inbox.is_good = False
        except BaseException:
            inbox.is_good = False
            raise
        finally:
            if not inbox.is_good:
                connection.disconnect()
            inbox.pool.release(connection)


class AwaitingDoor(Doorway):
    """Takes steps in an event loop; a forked process begins anew in one of its own.

    See ``Doorway`` for the arguments.
    """

    def __init__(self, address: Whereabouts, patience: float, connections: int):
        super().__init__(address, patience, connections)
        self._parents: list[dict[Address | None, AwaitingPools]] = []
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._pools: dict[Address | None, AwaitingPools] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def _look_whose(self) -> None:
        """Begin anew where this process was forked: the connections are its parent's.

        They are kept, since what would close them here would be said on the parent's sockets.
        """
        if self._pid != os.getpid():
            self._parents.append(self._pools)
            self._begin()

    async def run(self, work: Work[T]) -> T:
        """Do what there is to do; returns and raises what it does.

        Raises:
            RuntimeError: it was used in another event loop before.
        """
        self._look_whose()
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
        self._look_whose()
        for pools in list(self._pools.values()):
            await pools.aclose()
        self._loop = None

    def _at(self, at: Address | None) -> AwaitingPools:
        """Return the pools to a node of a cluster, or to the one engine there is."""
        if (pools := self._pools.get(at)) is None:
            pools = self._pools[at] = AwaitingPools(self._address, self._options, at)
        return pools

    async def _take(self, step: _Step) -> Any:
        match step:
            case Command():
                return await self._command(step)
            case Listen():
                return await self._listen(step)
            case Hear(inbox, seconds):
                return await self._hear(inbox, seconds)
            case Leave(inbox):
                return await self._leave(inbox)
            case Pause(seconds):
                return await asyncio.sleep(seconds)

    async def _greet(self, connection: Any) -> None:
        await connection.on_connect()
        for section in ("server", "replication"):
            await connection.send_command("INFO", section, check_health=False)
        server, replication = await connection.read_response(), await connection.read_response()
        self._note(connection, server, replication)

    async def _look_where(self, connection: Any, pool: Any) -> None:
        """Check that sentinels still name the master that a connection leads to."""
        if self._address.sentinels is None:
            return
        try:
            master = await pool.get_master_address()
        except (RedisError, OSError):  # nobody knows better
            return
        self._note_master(connection, master)

    async def _open(self, pool: Any) -> Any:
        connection = None
        try:
            connection = await pool.get_connection()
            if self._is_stale(connection):
                await self._look_where(connection, pool)
                await connection.send_command("INFO", "replication", check_health=False)
                self._note_run(connection, await connection.read_response())
        except BaseException as error:
            if connection is not None:
                await connection.disconnect(nowait=True)
                await pool.release(connection)
            translate_opening(self._address, error)
            raise
        return connection

    @staticmethod
    async def _say(connection: Any, *words: Any) -> None:
        try:
            await connection.send_command(*words, check_health=False)
        except RuntimeError as error:  # what uvloop says of a transport that is closed
            raise NotSent(str(error)) from error

    async def _command(self, step: Command) -> Any:
        pool = self._at(step.at).speaking
        connection = await self._open(pool)
        try:
            words = self._words(connection, step)
            async with asyncio.timeout(step.seconds):
                if step.asking:
                    await self._say(connection, "ASKING")
                    await connection.read_response(timeout=math.inf)
                await self._say(connection, *words)
                return await connection.read_response(timeout=math.inf)
        except BaseException as error:
            if is_spoilt(error):
                await connection.disconnect(nowait=True)
            translate(error, self._runs.get(connection, ""))
            raise
        finally:
            await pool.release(connection)

    async def _listen(self, step: Listen) -> Inbox:
        pool = self._at(step.at).hearing
        connection = await self._open(pool)
        try:
            words = self._words(connection, step)
            async with asyncio.timeout(step.seconds):
                await self._say(connection, *words)
                await connection.read_response(timeout=math.inf)
        except BaseException as error:
            await connection.disconnect(nowait=True)
            await pool.release(connection)
            translate(error)
            raise
        return Inbox(connection, pool, step.is_sharded)

    @staticmethod
    async def _hear(inbox: Inbox, seconds: float) -> bytes | None:
        try:
            async with asyncio.timeout(seconds):
                return inbox.take(await inbox.connection.read_response(timeout=math.inf))
        except (RedisError, OSError):
            inbox.is_good = False
            return None
        except BaseException:
            inbox.is_good = False
            raise

    async def _leave(self, inbox: Inbox) -> None:
        connection = inbox.connection
        try:
            if inbox.is_good:
                for words in inbox.farewell:
                    await self._say(connection, *words)
                while not inbox.is_over(await connection.read_response()):
                    pass
        except (RedisError, OSError, NotSent):
            inbox.is_good = False
        except BaseException:
            inbox.is_good = False
            raise
        finally:
            if not inbox.is_good:
                await connection.disconnect(nowait=True)
            await inbox.pool.release(connection)
