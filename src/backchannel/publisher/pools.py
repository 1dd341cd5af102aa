"""redis-py's pools of connections, to one engine or to the master that sentinels name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.utils import str_if_bytes

from backchannel.broker.redis.slots import url_of_node

if TYPE_CHECKING:
    from backchannel.broker.redis.door import Whereabouts
    from backchannel.broker.redis.slots import Address

__all__ = ["AwaitingPools", "BlockingPools", "away"]

MASTER_NOT_FOUND: Final = (
    redis.sentinel.MasterNotFoundError,
    redis.asyncio.sentinel.MasterNotFoundError,
)

NOT_OF_A_MASTER: Final = ("host", "port", "path", "connection_class")
"""What a URL says of where an engine is, or how it is spoken to; sentinels say the former."""


_NOBODY_KNOWS: Final = "No master found for {!r}"


class _Sentinels(redis.sentinel.Sentinel):
    """Sentinels, one of which is asked where the master is; the one that knew it last first.

    redis-py asks for ``SENTINEL MASTERS``, which is the old one until a hand-over is over. Nodes
    ask for the address: that of the new one as soon as it is a master.
    """

    def discover_master(self, service_name: str) -> tuple[str, int]:
        some: list[Any] = list(self.sentinels)
        for sentinel in some:
            try:
                found = sentinel.sentinel_get_master_addr_by_name(service_name)
            except (redis.ConnectionError, redis.TimeoutError):
                continue
            if found is not None:
                # Another list, since other threads may go through this one.
                self.sentinels = [sentinel, *(one for one in some if one is not sentinel)]
                return str_if_bytes(found[0]), found[1]
        raise redis.sentinel.MasterNotFoundError(_NOBODY_KNOWS.format(service_name))


class _AwaitingSentinels(redis.asyncio.sentinel.Sentinel):
    """The same in an event loop."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        some: list[Any] = list(self.sentinels)
        for sentinel in some:
            try:
                found = await sentinel.sentinel_get_master_addr_by_name(service_name)
            except (redis.ConnectionError, redis.TimeoutError):
                continue
            if found is not None:
                self.sentinels = [sentinel, *(one for one in some if one is not sentinel)]
                return str_if_bytes(found[0]), found[1]
        raise redis.asyncio.sentinel.MasterNotFoundError(_NOBODY_KNOWS.format(service_name))


class _MasterPool(redis.sentinel.SentinelConnectionPool, redis.BlockingConnectionPool):
    """Each connection that is opened asks where the master is; who waits for one waits its turn."""


class _AwaitingMasterPool(
    redis.asyncio.sentinel.SentinelConnectionPool,
    redis.asyncio.BlockingConnectionPool,
):
    """The same in an event loop."""


class BlockingPools:
    """Pools for threads.

    Args:
        address: where the engine is.
        options: how connections are made; of each pool, and of those to sentinels as far as it is
            about them.
        at: which node of a cluster; None is the one engine there is.

    Attributes:
        speaking: for publishing.
        hearing: for waiting for answers.
    """

    def __init__(self, address: Whereabouts, options: dict[str, Any], at: Address | None = None):
        options = {**options, "retry": Retry(NoBackoff(), 0)}
        self._masters: Any = None
        pool: Any
        if (sentinels := address.sentinels) is None:
            pool = redis.BlockingConnectionPool
            url = address.url if at is None else url_of_node(address.url, at)
            self.speaking: Any = pool.from_url(url, **options)
            self.hearing: Any = pool.from_url(url, **options)
        else:
            theirs, masters = _of_sentinels(address, options)
            sentinel: Any = _Sentinels
            self._masters = sentinel(sentinels.addresses, sentinel_kwargs=theirs)
            pool = _MasterPool
            self.speaking = pool(sentinels.service, self._masters, **masters)
            self.hearing = pool(sentinels.service, self._masters, **masters)

    def close(self) -> None:
        """Close all connections; they are opened again when need be."""
        self.speaking.disconnect()
        self.hearing.disconnect()
        for sentinel in self._masters.sentinels if self._masters else ():
            sentinel.connection_pool.disconnect()


class AwaitingPools:
    """Pools for an event loop; see ``BlockingPools``."""

    def __init__(self, address: Whereabouts, options: dict[str, Any], at: Address | None = None):
        options = {**options, "retry": AsyncRetry(NoBackoff(), 0)}
        self._masters: Any = None
        pool: Any
        if (sentinels := address.sentinels) is None:
            pool = redis.asyncio.BlockingConnectionPool
            url = address.url if at is None else url_of_node(address.url, at)
            self.speaking: Any = pool.from_url(url, **options)
            self.hearing: Any = pool.from_url(url, **options)
        else:
            theirs, masters = _of_sentinels(address, options)
            sentinel: Any = _AwaitingSentinels
            self._masters = sentinel(sentinels.addresses, sentinel_kwargs=theirs)
            pool = _AwaitingMasterPool
            self.speaking = pool(sentinels.service, self._masters, **masters)
            self.hearing = pool(sentinels.service, self._masters, **masters)

    async def aclose(self) -> None:
        """Close all connections; they may be opened again in another event loop."""
        await self.speaking.aclose()
        await self.hearing.aclose()
        for sentinel in self._masters.sentinels if self._masters else ():
            await sentinel.connection_pool.disconnect()


def away(address: Whereabouts, error: Exception) -> str:
    """Return why no connection could be opened; redis-py names sentinels at length."""
    if address.sentinels is None or not isinstance(error, MASTER_NOT_FOUND):
        return str(error)
    named = ", ".join(f"{host}:{port}" for host, port in address.sentinels.addresses)
    return f"none of the sentinels {named} answers and knows a master {address.sentinels.service!r}"


def _of_sentinels(
    address: Whereabouts, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how connections to sentinels are made, and how those to the master."""
    sentinels = address.sentinels
    assert sentinels is not None  # noqa: S101 - for type checkers
    said = dict(address.options)
    is_tls = "connection_class" in said
    for name in NOT_OF_A_MASTER:
        said.pop(name, None)
    # Half the time for all of them, one after the other, so that the master has the rest.
    seconds = options["socket_timeout"] / 2 / len(sentinels.addresses)
    theirs = {
        **{name: value for name, value in said.items() if name.startswith("ssl_")},
        "ssl": is_tls,
        "password": sentinels.password,
        "socket_connect_timeout": seconds,
        "socket_timeout": seconds,
        "retry": options["retry"],
    }
    return theirs, {**options, **said, "ssl": is_tls}
