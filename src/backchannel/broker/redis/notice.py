"""What stands in the engine about a hub, for its nodes and those who publish without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import hiredis

from backchannel.errors import BrokerUnavailable, BrokerUnusable

if TYPE_CHECKING:
    from backchannel.broker.redis.route import Route
    from backchannel.contracts import Node

__all__ = ["Classic", "Notice", "read_notice"]

CLASSIC: Final = b"classic "
"""What stands before it in a cluster whose nodes and publishers use no topics of shards."""


class Classic(BrokerUnusable):
    """The hub's nodes have classic topics, and this one has those of shards."""


def read_notice(found: bytes) -> tuple[bool, bytes]:
    """Read what stands in the engine.

    Returns:
        Whether topics are those of shards, in a cluster; and what the node wrote.
    """
    return not found.startswith(CLASSIC), found.removeprefix(CLASSIC)


class Notice:
    """What a node writes about its hub. The last writer wins.

    Args:
        route: the way to where it is written.
        key: what it is called there.
        node: knows what is to be written, and what may stand there.
    """

    def __init__(self, route: Route, key: bytes, node: Node):
        self._route = route
        self._key = key
        self._node = node
        self._is_news = False  # others may not know it yet

    async def begin(self) -> None:
        """Look what stands there, and write it anew.

        Raises:
            BrokerUnusable: something of another kind stands there, which stays.
            Classic: the hub's nodes have classic topics, and this one has not.
            BrokerUnavailable: the connection was lost.
        """
        self._is_news = False
        await self._put(over=True)

    def renew(self) -> None:
        """Write it, once the engine is there."""
        self._is_news = True
        if self._route.link_of(self._key) is not None:
            self._node.keep(self._catch_up())

    def connected(self) -> None:
        """Write it where the engine has lost it; others may have written something newer."""
        if self._route.link_of(self._key) is not None:
            self._node.keep(self._catch_up())

    async def _catch_up(self) -> None:
        # What becomes news from here on may come too late for this one, and has its own.
        over, self._is_news = self._is_news, False
        try:
            await self._put(over=over)
        except (BrokerUnavailable, BrokerUnusable) as error:
            self._is_news = self._is_news or over  # it is done when the engine is back
            if isinstance(error, BrokerUnusable):
                self._node.report(str(error), error)

    async def _put(self, *, over: bool) -> None:
        """Write it where nothing stands, or over what stands there.

        Two applications that find nothing there at the same time are told apart all the same.
        """
        while True:
            is_there = await self._check()
            if is_there and not over:
                return
            if await self._write(*(() if is_there else ("NX",))):
                return

    async def _check(self) -> bool:
        """Tell whether something stands there, which may be written over."""
        name = self._key.decode()
        try:
            found = await self._route.call(self._key, "GET", self._key)
            is_sharded, about = read_notice(found or b"")
            if found is not None:
                self._node.check_about(about)
        except (hiredis.ReplyError, BrokerUnusable) as error:
            problem = error if isinstance(error, BrokerUnusable) else f"can't be read ({error})"
            raise BrokerUnusable(
                f"{self._route.shown} has data of something else under this hub's name: {name!r} "
                f"{problem}; give each application's hub a name of its own, Hub(name=…), or delete "
                "that key if nobody needs it"
            ) from error
        if found is not None:
            self._check_topics(is_sharded=is_sharded)
        return found is not None

    def _check_topics(self, *, is_sharded: bool) -> None:
        """Check that the hub's nodes have the same kind of topics: others they would not hear."""
        if self._route.is_sharded in {is_sharded, None}:
            return
        if not is_sharded:
            raise Classic(
                f"{self._route.shown}: the hub's nodes use classic topics by now, and this one "
                "those of shards: none hears the other, start it again"
            )
        raise BrokerUnusable(
            f"{self._route.shown}: the hub's nodes use topics of shards, and this one can't, or "
            "has begun without: give all masters Redis 7.0 or newer and start it again; or "
            f"stop all nodes and publishers, and delete {self._key.decode()!r}"
        )

    async def _write(self, *options: Any) -> bool:
        """Tell whether it was written."""
        about = self._node.about()
        if self._route.is_sharded is False:
            about = CLASSIC + about
        try:
            return await self._route.call(self._key, "SET", self._key, about, *options) is not None
        except hiredis.ReplyError as error:
            raise BrokerUnusable(f"{self._route.shown} can't be written to: {error}") from error
