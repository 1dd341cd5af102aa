"""The broker of a single process: the embedded default."""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections import deque
from heapq import heappop, heappush
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any

from backchannel.answers import anything
from backchannel.contracts import Receipt
from backchannel.history import REMEMBERED, Page, Position

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from backchannel.contracts import Node, Publication, Target
    from backchannel.history import Retention

__all__ = ["MemoryBroker"]


class MemoryBroker:
    """Delivers at once, in the order of the calls, to the one node there is.

    Args:
        moment: seconds that a user may be away from a channel without having left it, and that
            joins wait in channels of which the node says so.
    """

    shared = False
    state = "in this process"
    tickets = None
    resumes = None
    is_connected = True

    def __init__(self, moment: float = 1.0) -> None:
        self._moment = moment
        self._members: dict[str, dict[str, bytes]] = {}
        self._leaving: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._joining: dict[tuple[str, str], asyncio.TimerHandle | None] = {}  # None: it is due
        self._deliver: Callable[[Publication, Position | None], int] | None = None
        self._logs: dict[str, _Log] = {}
        self._ends: list[tuple[float, str]] = []  # a heap: when to look whether a log has ended

    def bind(self, node: Node) -> None:
        """Remember the node."""
        self._node = node
        self._deliver = node.deliver
        self._answer = node.answer

    async def start(self) -> None:
        """There is nothing to start."""

    async def finish(self, seconds: float) -> None:
        """Nothing waits."""

    async def stop(self) -> None:
        """Forget who was there; what is kept stays."""
        for timer in (*self._leaving.values(), *self._joining.values()):
            if timer is not None:
                timer.cancel()
        self._leaving.clear()
        self._joining.clear()
        self._members.clear()

    def about_changed(self) -> None:
        """Nobody publishes to it but its own hub."""

    def listen(self, target: Target) -> None:
        """Everything is heard."""

    def unlisten(self, target: Target) -> None:
        """Everything is heard."""

    def ask(
        self,
        target: Target,
        words: list[Any],
        fits: Callable[[Any], bool] = anything,  # noqa: ARG002 - nobody else can answer
    ) -> asyncio.Future[tuple[list[Any], int]]:
        """Ask the one node."""

        async def asked() -> tuple[list[Any], int]:
            answer = self._answer("", target, words)
            return [await answer if inspect.isawaitable(answer) else answer], 0

        return asyncio.ensure_future(asked())

    def publish(self, publication: Publication, keep: Retention | None) -> Receipt:
        """Keep and deliver."""
        if self._deliver is None:
            raise RuntimeError("publish() before bind()")
        if keep is None:
            return Receipt(self._deliver(publication, None))
        log = self._log(publication.target.key)
        if publication.again and (position := log.find(publication.key)) is not None:
            return Receipt(None, position)
        position = log.add(publication, keep)
        return Receipt(self._deliver(publication, position), position)

    async def history(
        self,
        channel: str,
        since: Position | None,
        limit: int,
        *,
        had: bool = False,
    ) -> Page[Publication]:
        """Read what is kept of a channel."""
        log = self._log(channel)
        if had and since is not None:
            log.check(since)
        return log.read(since, limit)

    async def tops(self, channels: Collection[str]) -> dict[str, Position | None]:
        """Return the newest positions."""
        found = {channel: self._logs.get(channel) for channel in channels}
        return {name: None if log is None else log.top for name, log in found.items()}

    # ── presence ──────────────────────────────────────────────────────────────────────────────

    def announce(self, channel: str, user: str) -> None:
        """Note a user's devices; tell of the first one, and in a while of the last one's end."""
        devices, pair = self._node.devices(channel, user), (channel, user)
        is_new = user not in self._members.get(channel, ())
        if is_new and not devices:
            return
        self._members.setdefault(channel, {})[user] = devices
        if devices and (timer := self._leaving.pop(pair, None)) is not None:
            timer.cancel()
        later = asyncio.get_running_loop().call_later
        if is_new and self._node.settles(channel):
            self._joining[pair] = later(self._moment, self._welcome, channel, user)
        elif is_new:
            self._node.tell_of(channel, user, _nothing, joined=True)
        elif devices and self._joining.get(pair, ...) is None:  # it fell due while they were away
            self._welcome(channel, user)
        elif not devices and pair not in self._leaving:
            self._leaving[pair] = later(self._moment, self._see_off, channel, user)

    def _welcome(self, channel: str, user: str) -> None:
        """Tell of who has stayed for the moment; who is away now may come back."""
        if not self._members[channel][user]:
            self._joining[channel, user] = None
            return
        del self._joining[channel, user]
        self._node.tell_of(channel, user, _nothing, joined=True)

    def _see_off(self, channel: str, user: str) -> None:
        del self._leaving[channel, user]
        del self._members[channel][user]
        if not self._members[channel]:
            del self._members[channel]
        if (channel, user) not in self._joining:
            self._node.tell_of(channel, user, _nothing, joined=False)
        elif (timer := self._joining.pop((channel, user))) is not None:
            timer.cancel()

    async def members(self, channel: str, *, told: bool = False) -> dict[str, list[bytes]]:
        """Return who is in a channel."""
        found = self._members.get(channel, {})
        return {
            user: [devices] if devices else []
            for user, devices in found.items()
            if not (told and (channel, user) in self._joining)
        }

    async def count_members(self, channel: str) -> int:
        """Return how many users are in a channel."""
        return len(self._members.get(channel, ()))

    def _log(self, channel: str) -> _Log:
        """Return a channel's log, new if need be; forget those that have ended."""
        now = monotonic()
        while self._ends and self._ends[0][0] <= now:
            _, name = heappop(self._ends)
            if self._logs[name].until <= now:
                del self._logs[name]
            else:
                heappush(self._ends, (self._logs[name].until, name))
        log = self._logs.get(channel)
        if log is None:
            log = self._logs[channel] = _Log(now)
            heappush(self._ends, (log.until, channel))
        return log


def _nothing() -> None:
    pass


class _Log:
    """What is kept of one channel.

    Attributes:
        top: position of the newest.
        until: when all of it may be forgotten, by the monotonic clock.
    """

    __slots__ = ("_entries", "_ttl", "top", "until")

    def __init__(self, now: float) -> None:
        self.top = Position(secrets.token_hex(4), 0)
        self._entries: deque[tuple[float, Publication]] = deque()
        self._ttl = 0.0
        self.until = now + REMEMBERED

    def add(self, publication: Publication, keep: Retention) -> Position:
        """Keep a publication; return its position."""
        now = monotonic()
        self._ttl = keep.ttl
        self.top = Position(self.top.epoch, self.top.offset + 1)
        self._entries.append((now, publication))
        while len(self._entries) > keep.size:
            self._entries.popleft()
        self.until = now + keep.ttl + REMEMBERED
        return self.top

    def find(self, key: str) -> Position | None:
        """Return where a publication with a key stands; None where it is not kept."""
        for back, (_, one) in enumerate(reversed(self._entries)):
            if one.key == key:
                return Position(self.top.epoch, self.top.offset - back)
        return None

    def check(self, had: Position) -> None:
        """Begin a new epoch where somebody had a later position than the newest."""
        if had.epoch == self.top.epoch and had.offset > self.top.offset:
            self.top = Position(secrets.token_hex(4), self.top.offset)

    def read(self, since: Position | None, limit: int) -> Page[Publication]:
        """Return what came after a position, or the newest."""
        now = monotonic()
        self.until = max(self.until, now + self._ttl + REMEMBERED)  # a position is handed out
        too_old = now - self._ttl
        while self._entries and self._entries[0][0] <= too_old:
            self._entries.popleft()
        top, count = self.top, len(self._entries)
        first = top.offset - count + 1  # the oldest that is kept
        if since is None:
            skip = max(0, count - limit)
        elif since.epoch != top.epoch or not first - 1 <= since.offset <= top.offset:
            return Page(top, lost=True)
        else:
            skip = since.offset + 1 - first
        kept = islice(self._entries, skip, skip + limit)
        entries = tuple((first + skip + n, one) for n, (_, one) in enumerate(kept))
        return Page(top, entries)
