"""What a node of a cluster turned back, brought to where it belongs: in order, one by one."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

import hiredis

from backchannel.broker.redis.posting import Keeping
from backchannel.broker.redis.slots import Redirect
from backchannel.errors import BrokerUnavailable
from backchannel.history import Position

if TYPE_CHECKING:
    from backchannel.broker.redis.lane import Lane
    from backchannel.broker.redis.posting import Posting, Question
    from backchannel.broker.redis.slots import Address

__all__ = ["PAUSE", "Detour", "Shards"]

PAUSE: Final = 0.05
"""Seconds before a node that turned something back is asked again."""


class Shards(Protocol):
    """Where slots are."""

    shown: str

    def owner_of(self, slot: int) -> Lane:
        """Return the way to a slot's master."""
        ...

    async def joined(self, address: Address) -> Lane | None:
        """Return the way to a node that slots are moved to, once it is connected; or None."""
        ...

    def look(self, informant: Lane | None) -> None:
        """Find out where slots are."""
        ...


class Detour:
    """The publications of one slot that was not where it was thought to be.

    Each waits for the one before it: while keys are on their way from one master to another, the
    second of two could be taken where the first was not.

    Args:
        slot: the slot.
        shards: knows where it is.

    Attributes:
        unsent: bytes of them.
    """

    def __init__(self, slot: int, shards: Shards):
        self._slot = slot
        self._shards = shards
        self._turned: deque[Posting | Question] = deque()
        self._joined: deque[Posting | Question] = deque()
        self.unsent = 0

    def __len__(self) -> int:
        return len(self._turned) + len(self._joined)

    def turn_back(self, posting: Posting | Question) -> None:
        """Take what was on its way before anything that ``join`` takes."""
        self._take(posting, self._turned)

    def join(self, posting: Posting | Question) -> None:
        """Take what was to be published later."""
        self._take(posting, self._joined)

    def _take(self, posting: Posting | Question, line: deque[Posting | Question]) -> None:
        posting.owner = self
        self.unsent += posting.size
        line.append(posting)

    async def bring_all(self) -> None:
        """Publish them in order; returns when there are no more."""
        while self._turned or self._joined:
            line = self._turned or self._joined
            await self._bring(line[0])
            line.popleft()

    def give_up(self) -> None:
        """Publish no more of them."""
        for posting in (*self._turned, *self._joined):
            self._fail(posting)
        self._turned.clear()
        self._joined.clear()

    def _fail(self, posting: Posting | Question) -> None:
        self.unsent -= posting.size
        what = "may have been published, or not" if posting.is_retry else "was not published"
        shown = self._shards.owner_of(self._slot).shown
        posting.fail(BrokerUnavailable(f"{shown} has no slot for it any more: this {what}"))

    # ── as the owner of postings, which are settled only by what is final ─────────────────────

    def takes_back(self, posting: Posting | Question, reply: hiredis.ReplyError) -> bool:  # noqa: ARG002
        """Leave it at that."""
        return False

    def retry(self, posting: Posting) -> None:
        """Do nothing: what may have been published stays where it is in the line."""

    # ── one of them ───────────────────────────────────────────────────────────────────────────

    async def _bring(self, posting: Posting | Question) -> None:
        asked: Lane | None = None
        while asyncio.get_running_loop().time() < posting.until:
            lane = asked or self._shards.owner_of(self._slot)
            redirect = None
            if (replying := lane.publish(posting, asking=asked is not None)) is not None:
                reply = await _outcome(replying)
                if reply is None:
                    if not isinstance(posting, Keeping):
                        posting.abandon()
                        return
                    posting.is_retry = True
                redirect = self._read(lane, reply)
                if redirect is None and reply is not None:
                    told = await self._tell(posting, reply) if asked else reply
                    posting.settle(told)
                    return
            if asked is None and redirect is not None and redirect.kind == "ASK":
                asked = await self._shards.joined(redirect.address)
            else:
                asked = None
                self._shards.look(lane)
                await asyncio.sleep(PAUSE)
        self._fail(posting)

    @staticmethod
    def _read(lane: Lane, reply: Any) -> Redirect | None:
        """Return where else, or when else, a posting is to be tried."""
        if not isinstance(reply, hiredis.ReplyError):
            return None
        if str(reply).startswith("NOSCRIPT"):
            lane.engine.reload()
            return Redirect("TRYAGAIN")
        return Redirect.read(reply, lane.host)

    async def _tell(self, posting: Posting | Question, reply: Any) -> Any:
        """Publish to those who hear it what was kept where its key already is, and they are not."""
        if isinstance(reply, hiredis.ReplyError) or not isinstance(posting, Keeping):
            return reply
        epoch, offset, heard = reply
        owner = self._shards.owner_of(self._slot)
        if offset:
            telling = owner.tell(posting, Position(epoch.decode(), offset))
            told = None if telling is None else await _outcome(telling)
            heard += told if isinstance(told, int) else 0
        return epoch, offset, heard


async def _outcome(replying: asyncio.Future[Any]) -> Any:
    """Return a reply, an error as it is, or None where the connection was lost before it."""
    await asyncio.wait({replying})
    error = replying.exception()
    if isinstance(error, BrokerUnavailable):
        return None
    return replying.result() if error is None else error
