"""Sessions of dialect v1 in the engine: resumed once, on whatever node."""

from __future__ import annotations

import asyncio
import functools
import math
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import hiredis

from backchannel.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from backchannel.broker.redis.keys import Keys
    from backchannel.broker.redis.link import Link
    from backchannel.broker.redis.route import Route, Words

__all__ = ["RedisResumes"]

_TAKE: Final = files("backchannel.broker.redis").joinpath("take.lua").read_text()

_Asked = tuple[bytes, tuple["Words", ...], "asyncio.Future[Any]"]


class RedisResumes:
    """The sessions of all nodes of a hub; see ``stores.ResumeStore``.

    Args:
        route: the way to where they are.
        keys: what they are called there.
        timeout: seconds that the engine has to answer.
    """

    def __init__(self, route: Route, keys: Keys, timeout: float):
        self._route = route
        self._keys = keys
        self._timeout = timeout

    async def put(
        self, records: Mapping[bytes, tuple[int, bytes]], ttl: float, *, new: bool
    ) -> None:
        """Keep sessions; those that are not new only where they are still there."""
        more = ("PX", math.ceil(ttl * 1000), *(() if new else ("XX",)))
        words = {key: (b"%d %b" % each, *more) for key, each in records.items()}
        await self._call_each("SET", words)

    async def extend(self, keys: Collection[bytes], ttl: float) -> None:
        """Keep sessions for so long from now on."""
        await self._call_each("PEXPIRE", dict.fromkeys(keys, (math.ceil(ttl * 1000),)))

    async def drop(self, keys: Collection[bytes]) -> None:
        """Forget sessions."""
        await self._call_each("DEL", dict.fromkeys(keys, ()))

    def runs(self, key: bytes) -> tuple[str, ...]:
        """Name the engine's run of data, and others from which it has a session, whole."""
        return self._route.runs(self._keys.resume(key))

    async def take(self, key: bytes, turn: int) -> bytes | None:
        """Return what is kept and forget it: an answer that nobody waits for is given back."""
        name = self._keys.resume(key)
        link = self._link(name)
        # With its text: an answer that comes too late to be waited for can't ask to have it loaded.
        command = ("EVAL", _TAKE, 1, name, turn)
        life, data = link.call("PTTL", name), link.call(*command)
        life.add_done_callback(_heed)
        is_taken = False
        try:
            await asyncio.wait([data], timeout=self._timeout)
            is_taken = data.done()
        finally:
            if not is_taken:
                data.add_done_callback(functools.partial(_give_back, link, name, life))
        if not is_taken:
            raise self._too_slow()
        try:
            found = data.result()
        except hiredis.ReplyError as error:
            if not _is_elsewhere(error):
                raise self._refused(error) from error
            found = await self._route.call(name, *command)
        return None if found is None else bytes(found).partition(b" ")[2]

    async def _call_each(self, verb: str, words: Mapping[bytes, tuple[Words, ...]]) -> list[Any]:
        """Say the same about some sessions, in one write to each engine; return the answers."""
        try:
            async with asyncio.timeout(self._timeout):
                asked = [
                    self._ask(verb, self._keys.resume(key), more) for key, more in words.items()
                ]
                return [await self._answer(*each) for each in asked]
        except TimeoutError as error:
            raise self._too_slow() from error
        except hiredis.ReplyError as error:
            raise self._refused(error) from error

    def _ask(self, verb: str, key: bytes, more: tuple[Words, ...]) -> _Asked:
        command = (verb, key, *more)
        return key, command, self._link(key).call(*command)

    async def _answer(
        self, key: bytes, command: tuple[Words, ...], answer: asyncio.Future[Any]
    ) -> Any:
        try:
            return await answer
        except hiredis.ReplyError as error:
            if not _is_elsewhere(error):
                raise
            return await self._route.call(key, *command)  # which knows where it belongs by now

    def _link(self, key: bytes) -> Link:
        if (link := self._route.link_of(key)) is None:
            raise BrokerUnavailable(f"{self._route.shown} is away: sessions are kept there")
        return link

    def _too_slow(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"{self._route.shown} did not answer in {self._timeout:g} s")

    def _refused(self, error: hiredis.ReplyError) -> BrokerUnavailable:
        return BrokerUnavailable(f"{self._route.shown} refuses to keep a session: {error}")


def _is_elsewhere(error: hiredis.ReplyError) -> bool:
    """Tell whether another node of a cluster has it, or the same one later."""
    return str(error).partition(" ")[0] in {"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"}


def _heed(answer: asyncio.Future[Any]) -> bool:
    """Tell whether an answer came that nobody waits for; an error is nobody's either."""
    return not answer.cancelled() and answer.exception() is None


def _give_back(
    link: Link, name: bytes, life: asyncio.Future[Any], data: asyncio.Future[Any]
) -> None:
    """Keep what was taken for nobody, for the rest of its time, unless it is there again."""
    if _heed(life) and _heed(data) and data.result() is not None and life.result() > 0:
        again = link.call("SET", name, bytes(data.result()), "PX", life.result(), "NX")
        again.add_done_callback(_heed)
