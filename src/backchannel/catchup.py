"""Entering a channel with its history: what was missed first, then what comes, each once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from backchannel.history import Follower, Position

if TYPE_CHECKING:
    from backchannel.connection import Connection
    from backchannel.contracts import Broker, Publication
    from backchannel.messages import Frame
    from backchannel.roster import Roster

__all__ = ["CatchUp", "CatchUps", "Missed", "release_slowly"]

PAGE: Final = 100
"""Publications that are read from history at a time."""

SNAPSHOTS: Final = 3
"""Times that a snapshot may be so old that its position is not in the history any more."""

Snapshotting = Callable[[], Awaitable[tuple["Frame", bool, "Position"]]]
"""Returns the state, whether it is JSON, and the position that it belongs to."""

CHUNK: Final = 64 * 1024
"""Bytes that a client is sent of history before it is waited for: an outbox has room for them."""


class Missed:
    """What a connection gets first when it enters a channel, and what came of it.

    Args:
        since: the last position it had; None begins with the newest publications.
        replay: how many of these it gets, where ``since`` is None.
        snapshot: makes the channel's state, that it gets instead where ``since`` is None, and after
            a loss.

    Attributes:
        lost: some that it missed are not there any more.
        position: up to where it has all, or all there is; None before it is in.
    """

    __slots__ = ("lost", "position", "replay", "since", "snapshot")

    def __init__(
        self, since: Position | None, replay: int = 0, snapshot: Snapshotting | None = None
    ):
        self.since = since
        self.replay = replay
        self.snapshot = snapshot
        self.lost = False
        self.position: Position | None = None


class CatchUp:
    """One connection on its way into a channel.

    Args:
        ws: the connection.
        channel: the channel's name.
        missed: what it gets first; told what came of it.
        broker: has the history.
        roster: knows who a publication is for.
    """

    __slots__ = (
        "_broker", "_follower", "_missed", "_ready", "_roster", "_snapshots", "_state_at",
        "channel", "ws",
    )  # fmt: skip

    def __init__(
        self, ws: Connection, channel: str, missed: Missed, broker: Broker, roster: Roster
    ):
        self.ws = ws
        self.channel = channel
        self._missed = missed
        self._broker = broker
        self._roster = roster
        self._follower: Follower[Publication] = Follower(missed.since)
        self._ready: list[tuple[Position, Publication]] = []
        self._snapshots = 0
        self._state_at: Position | None = None  # of a state after which nothing was asked for yet

    def hear(self, position: Position, publication: Publication) -> None:
        """Take what was just published to the channel."""
        if self._follower.hear(position, publication):
            self._ready.append((position, publication))

    async def fill(self) -> None:
        """Send what was missed, as fast as the client takes it.

        Raises:
            Exception: the broker can't be asked.
        """
        if self._missed.snapshot is not None and self._missed.since is None and not self._snapshots:
            await self._begin_with(self._missed.snapshot)
        while not self.is_complete and self.ws.reason is None:
            if self._follower.asks:
                await self._ask()
            await self._send()

    def settle(self) -> None:
        """Note up to where it has all."""
        self._missed.position = self.position

    def look_again(self) -> None:
        """Ask history once more."""
        self._follower.interrupt()

    @property
    def position(self) -> Position | None:
        """Up to where it has all."""
        return self._follower.position

    @property
    def is_complete(self) -> bool:
        """The client was sent all there is up to now."""
        return not self._ready and not self._follower.asks

    async def _ask(self) -> None:
        follower = self._follower
        limit = self._missed.replay if follower.position is None else PAGE
        page = await self._broker.history(self.channel, follower.since, limit)
        state_at, self._state_at = self._state_at, None
        if page.lost and state_at is not None and state_at.epoch != page.top.epoch:
            # The state is from before this epoch, so that all of the epoch comes later.
            self._follow(Position(page.top.epoch, 0))
            return
        ready, lost = follower.learn(page)
        if lost:
            self._missed.lost = True
            if self.ws._speaks:
                self.ws._lost(self.channel, follower.position)
            if self._missed.snapshot is not None:
                await self._begin_with(self._missed.snapshot)
                return
        self._ready += ready

    async def _begin_with(self, snapshot: Snapshotting) -> None:
        """Send the channel's state, and go on from there."""
        self._snapshots += 1
        if self._snapshots > SNAPSHOTS:
            raise LookupError(
                f"{SNAPSHOTS} snapshots of {self.channel!r} were older than its history: the last "
                f"one belongs to {self._follower.position}, and what came after that is not kept "
                "any more. Store the state with each publication, beside its position, or keep "
                "more: hub.rule(…, history=)"
            )
        frame, is_json, position = await snapshot()
        self.ws._begin_with(self.channel, frame, position, is_json=is_json)
        self._state_at = position
        self._follow(position)

    def _follow(self, since: Position) -> None:
        """Begin after a position: what was heard meanwhile, history has."""
        self._follower = Follower(since)
        self._ready.clear()

    async def _send(self) -> None:
        size = 0
        due, self._ready = self._ready, []
        for position, publication in due:
            if size > CHUNK:
                size = 0
                await asyncio.sleep(0)  # what was queued is written at the end of the turn
                await self.ws._link.drained()
            if self._roster.is_for(publication, self.ws):
                self.ws._take(publication, position, self.channel)
                size += len(publication.frame)


class CatchUps:
    """All of a hub's connections that are on their way into a channel with its history."""

    __slots__ = ("_broker", "_roster", "_under_way")

    def __init__(self, broker: Broker, roster: Roster):
        self._broker = broker
        self._roster = roster
        self._under_way: dict[str, list[CatchUp]] = {}

    def begin(self, ws: Connection, channel: str, missed: Missed) -> CatchUp:
        """Begin to hear what is published; the caller calls ``end``."""
        catch_up = CatchUp(ws, channel, missed, self._broker, self._roster)
        self._under_way.setdefault(channel, []).append(catch_up)
        return catch_up

    def end(self, catch_up: CatchUp) -> None:
        """Hear no more; what has come of it is settled."""
        catch_up.settle()
        under_way = self._under_way[catch_up.channel]
        under_way.remove(catch_up)
        if not under_way:
            del self._under_way[catch_up.channel]

    def hear(self, position: Position, publication: Publication) -> None:
        """Take what was just published to a channel."""
        for catch_up in self._under_way.get(publication.target.key, ()):
            catch_up.hear(position, publication)


async def release_slowly(ws: Connection) -> None:
    """Send what was held until a connection had opened, as fast as its client takes it."""
    link = ws._link
    while held := ws._held:
        size = count = 0
        for frame in held:
            if size > CHUNK:
                break
            link.push(frame)
            size += len(frame)
            count += 1
        ws._held = held[count:]
        await asyncio.sleep(0)  # what was queued is written at the end of the turn
        await link.drained()
    ws._held = None
    ws.hub.fanout.rejoin(link)
