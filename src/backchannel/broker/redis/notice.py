"""What stands in the engine about a hub, for its nodes and those who publish without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hiredis

from backchannel.errors import BrokerUnavailable, BrokerUnusable

if TYPE_CHECKING:
    from backchannel.broker.redis.engine import Engine
    from backchannel.broker.redis.link import Link
    from backchannel.contracts import Node

__all__ = ["Notice"]


class Notice:
    """What a node writes about its hub. The last writer wins.

    Args:
        engine: where it is written.
        key: what it is called there.
        node: knows what is to be written, and what may stand there.
    """

    def __init__(self, engine: Engine, key: bytes, node: Node):
        self._engine = engine
        self._key = key
        self._node = node
        self._is_news = False  # others may not know it yet

    async def begin(self) -> None:
        """Look what stands there, and write it anew.

        Raises:
            BrokerUnusable: something of another kind stands there, which stays.
            BrokerUnavailable: the connection was lost.
        """
        if (link := self._engine.link) is None:
            raise BrokerUnavailable(f"{self._engine.shown} is away")
        self._is_news = False
        await self._put(link, over=True)

    def renew(self) -> None:
        """Write it, once the engine is there."""
        self._is_news = True
        if (link := self._engine.link) is not None:
            self._node.keep(self._catch_up(link))

    def connected(self) -> None:
        """Write it where the engine has lost it; others may have written something newer."""
        if (link := self._engine.link) is not None:
            self._node.keep(self._catch_up(link))

    async def _catch_up(self, link: Link) -> None:
        try:
            await self._put(link, over=self._is_news)
            self._is_news = False
        except BrokerUnavailable:
            pass  # it is done when the engine is back
        except BrokerUnusable as error:
            self._node.report(str(error), error)

    async def _put(self, link: Link, *, over: bool) -> None:
        """Write it where nothing stands, or over what stands there.

        Two applications that find nothing there at the same time are told apart all the same.
        """
        while True:
            is_there = await self._check(link)
            if is_there and not over:
                return
            if await self._write(link, *(() if is_there else ("NX",))):
                return

    async def _check(self, link: Link) -> bool:
        """Tell whether something stands there, which may be written over."""
        name = self._key.decode()
        try:
            found = await link.call("GET", self._key)
            if found is not None:
                self._node.check_about(found)
        except (hiredis.ReplyError, BrokerUnusable) as error:
            problem = error if isinstance(error, BrokerUnusable) else f"can't be read ({error})"
            raise BrokerUnusable(
                f"{self._engine.shown} has data of something else under this hub's name: {name!r} "
                f"{problem}; give each application's hub a name of its own, Hub(name=…), or delete "
                "that key if nobody needs it"
            ) from error
        return found is not None

    async def _write(self, link: Link, *options: Any) -> bool:
        """Tell whether it was written."""
        try:
            return await link.call("SET", self._key, self._node.about(), *options) is not None
        except hiredis.ReplyError as error:
            raise BrokerUnusable(f"{self._engine.shown} can't be written to: {error}") from error
