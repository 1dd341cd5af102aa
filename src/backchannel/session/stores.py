"""Where Backchannel's own sessions are kept: in this process, or in Redis.

What a session holds is kept as JSON, each of its keys by itself: two who write different keys at
the same time do not undo each other's work.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Collection, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import msgspec

from backchannel.observe import HUB
from backchannel.stores import SessionStore
from backchannel.urls import hidden

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["MemorySessions", "OwnStore", "RedisSessions"]

MOST: Final = 100_000
"""Sessions that are kept in memory; above it the one that would end first makes room."""

_PATIENCE: Final = 2.0
"""Seconds that Redis has to answer."""

_PREFIX: Final = "backchannel:session:"
_EXISTS: Final = ""  # a field of its own, since Redis keeps no hash without fields

# KEYS: the session, and the name it gets. ARGV: seconds to live, how many keys are removed, these,
# then keys and values by turns. In one step, so that what was deleted is not made anew.
_CHANGE: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local key = KEYS[1]
if KEYS[2] then
    key = KEYS[2]
    redis.call('RENAME', KEYS[1], key)
end
local first = 3 + tonumber(ARGV[2])
for i = 3, first - 1 do redis.call('HDEL', key, ARGV[i]) end
for i = first, #ARGV, 2 do redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', key, ARGV[1])
return 1
"""


class OwnStore(SessionStore, Protocol):
    """What keeps sessions that Backchannel itself makes. Failure: as for a SessionStore."""

    async def begin(self, key: str, data: Mapping[str, Any]) -> None:
        """Make a session."""
        ...

    async def rename(
        self, key: str, new: str, changed: Mapping[str, Any], removed: Collection[str]
    ) -> bool:
        """Give a session another id and change some keys, in one step.

        Returns:
            False when it has expired or was deleted; it is not made anew.
        """
        ...

    async def delete(self, key: str) -> None:
        """Delete a session; one that does not exist is no error."""
        ...

    async def aclose(self) -> None:
        """Give back what it holds of the network; it can be used again."""
        ...


class MemorySessions:
    """The sessions of one process.

    Args:
        max_age: seconds that a session lives after it was last used.
    """

    extends: bool = True

    def __init__(self, max_age: int):
        self._max_age = max_age
        # In the order of their ends, since each use puts a session at the end of the row.
        self._held: dict[str, tuple[dict[str, bytes], float]] = {}
        self._has_warned = False

    def __len__(self) -> int:
        return len(self._held)

    async def load(self, key: str) -> Mapping[str, Any] | None:
        """Return what a session holds; None when it has expired or was deleted."""
        held = self._living(key)
        return None if held is None else _decoded(held)

    async def begin(self, key: str, data: Mapping[str, Any]) -> None:
        """Make a session."""
        now = monotonic()
        while self._held and (len(self._held) >= MOST or self._first_end() <= now):
            if self._first_end() > now and not self._has_warned:
                self._has_warned = True
                HUB.warning("%d sessions are kept in memory: the oldest make room", MOST)
            del self._held[next(iter(self._held))]
        self._held[key] = (_fields(data), now + self._max_age)

    async def save(self, key: str, changed: Mapping[str, Any], removed: Collection[str]) -> bool:
        """Change some keys of a session; False when it does not exist any more."""
        return await self.rename(key, key, changed, removed)

    async def rename(
        self, key: str, new: str, changed: Mapping[str, Any], removed: Collection[str]
    ) -> bool:
        """Give a session another id and change some keys; False when it does not exist any more."""
        held = self._living(key)
        if held is None:
            return False
        gone = {_field(name) for name in removed}
        kept = {field: value for field, value in held.items() if field not in gone}
        del self._held[key]
        self._held[new] = (kept | _fields(changed), monotonic() + self._max_age)
        return True

    async def touch(self, key: str) -> bool:
        """Let a session live for its whole time from now on; False when it does not exist."""
        return await self.rename(key, key, {}, ())

    async def delete(self, key: str) -> None:
        """Delete a session."""
        self._held.pop(key, None)

    async def aclose(self) -> None:
        """Keep them: the hub may start again."""

    def _living(self, key: str) -> dict[str, bytes] | None:
        held, until = self._held.get(key, (None, 0.0))
        return held if monotonic() < until else None

    def _first_end(self) -> float:
        return next(iter(self._held.values()))[1]


class RedisSessions:
    """Sessions in Redis, or a server that speaks as it does.

    Args:
        url: such as ``redis://localhost:6379/0``.
        max_age: seconds that a session lives after it was last used.

    Raises:
        ImportError: the extra ``[redis]`` is missing.
    """

    extends: bool = True

    def __init__(self, url: str, max_age: int):
        try:
            from redis.asyncio import Redis  # noqa: PLC0415 - an extra
            from redis.asyncio.connection import parse_url  # noqa: PLC0415
            from redis.asyncio.retry import Retry  # noqa: PLC0415
            from redis.backoff import NoBackoff  # noqa: PLC0415
        except ImportError as error:
            raise ImportError(
                "sessions in Redis need the extra [redis]: pip install redis, or keep them in "
                'this process: ServerSessions(store="memory")'
            ) from error
        try:
            parse_url(url)
        except ValueError:  # its text may have a part of the password
            raise ValueError(
                f"ServerSessions(store={hidden(url)!r}) can't be read: it looks like "
                "redis://host:6379/0"
            ) from None
        make: Callable[..., Redis] = Redis.from_url  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        self._make = functools.partial(
            make,
            url,
            socket_timeout=_PATIENCE,
            socket_connect_timeout=_PATIENCE,
            retry=Retry(NoBackoff(), 1),  # once, for a connection that went stale
        )
        self._max_age = max_age
        self._client: Redis | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def load(self, key: str) -> Mapping[str, Any] | None:
        """Return what a session holds; None when it has expired or was deleted."""
        asked = cast("Awaitable[dict[bytes, bytes]]", self._redis().hgetall(_PREFIX + key))
        held = {name.decode(): value for name, value in (await asked).items()}
        return _decoded(held) if held else None

    async def begin(self, key: str, data: Mapping[str, Any]) -> None:
        """Make a session."""
        fields: dict[str, bytes] = {_EXISTS: b"null", **_fields(data)}
        async with self._redis().pipeline(transaction=True) as steps:
            steps.hset(_PREFIX + key, mapping=cast("Any", fields))
            steps.expire(_PREFIX + key, self._max_age)
            await steps.execute()

    async def save(self, key: str, changed: Mapping[str, Any], removed: Collection[str]) -> bool:
        """Change some keys of a session; False when it does not exist any more."""
        return await self._change([key], changed, removed)

    async def rename(
        self, key: str, new: str, changed: Mapping[str, Any], removed: Collection[str]
    ) -> bool:
        """Give a session another id and change some keys; False when it does not exist any more."""
        return await self._change([key, new], changed, removed)

    async def touch(self, key: str) -> bool:
        """Let a session live for its whole time from now on; False when it does not exist."""
        return bool(await self._redis().expire(_PREFIX + key, self._max_age))

    async def delete(self, key: str) -> None:
        """Delete a session."""
        await self._redis().delete(_PREFIX + key)

    async def aclose(self) -> None:
        """Close the connections to Redis; the next use opens others."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()

    async def _change(
        self, keys: list[str], changed: Mapping[str, Any], removed: Collection[str]
    ) -> bool:
        places = [_PREFIX + key for key in keys]
        gone = [_field(name) for name in removed]
        pairs = [part for pair in _fields(changed).items() for part in pair]
        arguments = (self._max_age, len(gone), *gone, *pairs)
        done = self._redis().eval(_CHANGE, len(places), *places, *cast("Any", arguments))
        return bool(await cast("Awaitable[int]", done))

    def _redis(self) -> Redis:
        """Return the client of this event loop, since its connections belong to one."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._loop = loop
            self._client = self._make()
        return self._client


def _field(name: str) -> str:
    return f".{name}"


def _decoded(held: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        field.removeprefix("."): msgspec.json.decode(value)
        for field, value in held.items()
        if field != _EXISTS
    }


def _fields(data: Mapping[str, Any]) -> dict[str, bytes]:
    return {_field(name): msgspec.json.encode(value) for name, value in data.items()}
