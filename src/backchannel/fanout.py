"""What a turn of the event loop sends: made once for all, written at its end, order kept.

A message to a whole channel is noted once, in the channel's lane. At the end of the turn the
lane's frames are joined once, and each member is written those very bytes, with one system call
and nothing in between; whoever is in several lanes gets their frames merged in the order of the
calls. A member that gets anything else in the same turn (a whisper, a reply) or that comes or goes
in it leaves the lanes at that moment: it takes what they had until then, and has a queue of its
own for the rest of the turn. So what a connection receives is in the order of the calls that sent
it, whatever path each took.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from time import perf_counter
from typing import TYPE_CHECKING, Final, cast

from backchannel.dialect.envelope import Envelopes
from backchannel.lanes import Lane, Making, merged, write_all
from backchannel.observe import TRACE
from backchannel.wire import frames

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from backchannel.connection import Connection
    from backchannel.contracts import Link, Publication
    from backchannel.history import Position
    from backchannel.lanes import Flushed, Members, Sharing
    from backchannel.messages import Frame

__all__ = ["Encoder", "Fanout", "report"]

SLICE: Final = 0.005
"""Seconds that writing may hold the event loop; what is left then comes in the next turn."""

ANSWERS: Final = 64
"""Answers that are written together, before the turn ends if so many have come."""

_CONTEXT: Final = Context()


class Encoder:
    """Makes a message's frame once, however many connections get it one after the other.

    Args:
        compress_above: bytes of payload from which on a message is compressed for those who take
            that; see ``Settings``.
        window: base-two logarithm of the compression window.
    """

    __slots__ = ("_compress_above", "_compressed", "_frame", "_message", "_window")

    def __init__(self, compress_above: int, window: int) -> None:
        self._compress_above = compress_above
        self._window = window
        self._message: Frame = ""
        self._frame = frames.message_frame("")
        self._compressed: bytes | None = None

    def encode(self, message: Frame, deflates: bool) -> bytes:
        """Return the message's frame, compressed for those who take that and where it helps."""
        if message is self._message:
            if not deflates:
                return self._frame
        else:
            self._message = message
            self._frame = frame = frames.message_frame(message)
            self._compressed = None
            if not deflates:
                return frame
        if self._compressed is None:
            self._compressed = frames.compressed(self._frame, self._compress_above, self._window)
        return self._compressed


class Fanout:
    """Collects what a turn of the event loop sends and writes it at the end.

    One hub's; used in its event loop only.

    Args:
        encoder: makes the frames.
        schedule: calls what it is given at the end of the turn.

    Attributes:
        encoder: makes the frames.
        is_quiet: no channel's messages wait, and no earlier turn's writing is unfinished: a link
            that is not due has nothing to be written.
        lanes: by channel, what this turn has for them; empty while it has nothing.
    """

    __slots__ = (
        "_answers", "_due", "_gathers", "_kinds", "_making", "_number", "_outsiders", "_round",
        "_schedule", "_scheduled", "enclose", "encoder", "is_quiet", "lanes",
    )  # fmt: skip

    def __init__(
        self,
        encoder: Encoder,
        schedule: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self.encoder = encoder
        self.enclose = Envelopes().of
        self._making = Making(encoder.encode, self.enclose)
        self.lanes: dict[str, Lane] = {}
        self._answers: list[tuple[Sharing, bytes]] = []
        self._due: list[Flushed] = []
        self._kinds: dict[int, int] = {}  # how many sockets there are of each variant
        self._outsiders: set[Link | Flushed] = set()  # in channels and apart, with nothing due
        self._number = 0
        self._round: Iterator[None] | None = None
        self._schedule = schedule or _at_the_end_of_the_turn
        self._scheduled = False
        self._gathers = False
        self.is_quiet = True

    def came(self, variant: int) -> None:
        """Take note of a socket that may share lanes, and of the variant that its client takes."""
        self._kinds[variant] = self._kinds.get(variant, 0) + 1

    def went(self, variant: int) -> None:
        """Take note that such a socket is gone: nothing can be written to it."""
        if left := self._kinds.pop(variant) - 1:
            self._kinds[variant] = left

    def broadcast(
        self,
        publication: Publication,
        members: Members,
        without: Collection[Connection] = (),
        position: Position | None = None,
    ) -> int:
        """Send a publication to the members of a channel.

        Args:
            publication: it; its target is the channel.
            members: who is in it, each with its link.
            without: members that don't get it.
            position: where it stands in the channel's history.

        Returns:
            The number of connections it was queued for.
        """
        channel = publication.target.key
        lane = self.lanes.get(channel)
        if lane is None:
            if not members:
                return 0
            lane = self._open(channel, members)
        for ws in without:
            if lane.shares(ws):
                self.due(cast("Flushed", ws._link))
        reached = lane.sharing
        if reached:
            self._number += 1
            lane.numbers.append(self._number)
            lane.messages.append((publication, position))
        for ws in lane.apart:
            if ws not in without:
                reached += ws._take(publication, position, channel)
        return reached

    def entered(self, ws: Connection, channel: str) -> None:
        """Take note of a new member, who gets nothing of what the channel had before."""
        if ws._link.apart:
            self._outsiders.add(ws._link)
        if lane := self.lanes.get(channel):
            lane.entered(ws)

    def leaving(self, ws: Connection, channels: Iterable[str]) -> None:
        """Take note of a member about to leave, who gets all that the channel had before."""
        if not self.lanes:
            return
        for channel in channels:
            if lane := self.lanes.get(channel):
                if lane.shares(ws):
                    self.due(cast("Flushed", ws._link))
                lane.left(ws)

    def ending(self, ws: Connection) -> None:
        """Take note of a connection about to leave all that it is in, for good."""
        self.leaving(ws, ws._channels)
        self._outsiders.discard(ws._link)

    def rejoin(self, link: Link | Flushed) -> None:
        """Let a link share lanes from now on, if it is one that does and has nothing due."""
        if not link.is_due:
            link.rejoin()
            if not link.apart:
                self._outsiders.discard(link)

    def answer(self, socket: Sharing, data: bytes) -> None:
        """Write frames that answer a message, before all that comes after them in this turn.

        They go with the answers of others, so that reading does not take turns with writing, but
        do not wait for many.

        Args:
            socket: whose client is answered; for which nothing waits, since this is quiet and it
                is not due.
            data: the frames.
        """
        answers = self._answers
        answers.append((socket, data))
        if len(answers) >= ANSWERS:
            self._write_answers()
        elif not self._scheduled and not self._gathers:
            self._wake()

    def gather(self) -> None:
        """Keep answers, if they don't become many, until ``release``: still in this turn."""
        self._gathers = True

    def release(self) -> None:
        """Write the answers that were gathered."""
        self._gathers = False
        if self._answers:
            self._write_answers()

    def due(self, link: Flushed) -> None:
        """Flush a link at the end of this turn, apart from all lanes."""
        if link.is_due:
            return
        link.is_due = True
        self._due.append(link)
        if not self._scheduled:
            self._wake()
        if not link.apart:
            link.apart = True
            if self.lanes:
                self._part(cast("Sharing", link))

    def _open(self, channel: str, members: Members) -> Lane:
        some_apart = bool(self._due or self._outsiders)
        lane = self.lanes[channel] = Lane(members, self._making, some_apart=some_apart)
        self.is_quiet = False
        if not self._scheduled:
            self._wake()
        return lane

    def _part(self, link: Sharing) -> None:
        """Let a socket leave the lanes that it shares, with what they had until now."""
        ws, lanes = link.ws, self.lanes
        shared = [
            lane
            for channel in ws._channels
            if (lane := lanes.get(channel)) is not None and lane.shares(ws)
        ]
        for lane in shared:
            lane.set_apart(ws)
        if shared:
            link.take(merged(shared, link.variant))

    # ── the end of the turn ───────────────────────────────────────────────────────────────────

    def _wake(self) -> None:
        self._scheduled = True
        self._schedule(self._flush)

    def _flush(self) -> None:
        """Write what the turn had, or as much as fits into one slice.

        What comes in meanwhile is a round of its own, after this one: nothing overtakes.
        """
        if self._round is None:
            TRACE.look()
            lanes, self.lanes = self.lanes, {}
            due, self._due = self._due, []
            for link in due:
                link.is_due = False
                self.rejoin(link)
            parts = [(lane, lane.sockets()) for lane in lanes.values() if lane.numbers]
            only = next(iter(self._kinds)) if len(self._kinds) == 1 else None
            self._round = write_all(parts, due, report, only)
            self.is_quiet = False
            if self._answers:
                self._write_answers()
        end = perf_counter() + SLICE
        for _ in self._round:
            if perf_counter() > end:
                self._wake()
                return
        self._round = None
        self._scheduled = False
        self.is_quiet = not self.lanes
        if self.lanes or self._due:
            self._wake()

    def _write_answers(self) -> None:
        answers, self._answers = self._answers, []
        answers[0][0].write_each(answers)


def _at_the_end_of_the_turn(flush: Callable[[], None]) -> None:
    # Not in the context of whichever connection happens to be first in a turn.
    asyncio.get_running_loop().call_soon(flush, context=_CONTEXT)


def report(what: str, error: Exception) -> None:
    """Report an error in writing to one client, from which others must not suffer.

    By the event loop: what has failed here may be what a log is written by.
    """
    context = {"message": f"backchannel: {what}", "exception": error}
    asyncio.get_running_loop().call_exception_handler(context)
