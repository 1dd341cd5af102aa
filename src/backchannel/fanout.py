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
from collections import defaultdict
from collections.abc import Mapping
from contextvars import Context
from itertools import pairwise, repeat
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

from backchannel.dialect.envelope import Envelopes
from backchannel.observe import TRACE
from backchannel.wire import frames

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from backchannel.connection import Connection
    from backchannel.contracts import Link, Publication
    from backchannel.history import Position
    from backchannel.messages import Frame

__all__ = ["COMPRESSED", "ENCLOSED", "Encoder", "Fanout", "Flushed", "Members", "Sharing"]

SLICE: Final = 0.005
"""Seconds that writing may hold the event loop; what is left then comes in the next turn."""

_BATCH: Final = 64
"""Writes between two looks at the clock."""

_CONTEXT: Final = Context()

COMPRESSED: Final = 1
ENCLOSED: Final = 2
"""In a frame of a dialect."""


class Flushed(Protocol):
    """What a turn may have something for.

    Attributes:
        is_due: it will be flushed at the end of the turn.
        apart: for now, or by its nature, it shares no lanes.
    """

    is_due: bool
    apart: bool

    def flush(self) -> None:
        """Send what waits; never waits and never raises."""
        ...

    def rejoin(self) -> None:
        """Set ``apart`` for the turn that begins."""
        ...


class Sharing(Flushed, Protocol):
    """A socket that takes bytes made for many.

    Attributes:
        ws: whose it is.
        variant: which making of a message its client takes.
    """

    @property
    def ws(self) -> Connection:
        """Whose it is."""
        ...

    @property
    def variant(self) -> int:
        """Which making of a message its client takes: COMPRESSED and ENCLOSED, or neither."""
        ...

    def take(self, data: Iterable[bytes]) -> None:
        """Queue frames for ``flush``."""
        ...

    @staticmethod
    def write_each(due: Iterable[tuple[Any, bytes]]) -> None:
        """Write frames to some sockets of this kind, at once; never waits and never raises."""
        ...


Members = Mapping["Connection", "Link"]
"""Of a channel, each with its link."""


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


class Making(NamedTuple):
    """How messages become frames.

    Args:
        encode: makes the bytes of a message, compressed or not.
        enclose: makes the message of a publication and its position, for those who speak a dialect.
    """

    encode: Callable[[Frame, bool], bytes]
    enclose: Callable[[Publication, Position | None], Frame]


class Lane:
    """What one channel got in this turn.

    Most channels have no other members than those who share, so nothing is noted of each: who
    shares are the members, whoever comes or goes, without those who were found or set apart.

    Args:
        members: of the channel, each with its link; may change, or be forgotten by the channel.
        making: how its messages become frames.
        some_apart: members may be apart already.

    Attributes:
        sharing: how many get these messages, and maybe those of other lanes, but no others.
        apart: the other members; each is pushed to by itself.
        messages: what those who share are to get, in order, each with its position in the history.
        numbers: the place of each message among all of the turn.
    """

    __slots__ = (
        "_frames", "_joined", "_making", "_members", "_without", "apart", "messages", "numbers",
        "sharing",
    )  # fmt: skip

    def __init__(self, members: Members, making: Making, *, some_apart: bool):
        self._members = members
        self._without: set[Connection] = set()  # who does not share; it may have left
        self.apart: dict[Connection, None] = {}
        if some_apart and (apart := [ws for ws, link in members.items() if link.apart]):
            self._without.update(apart)
            self.apart.update(dict.fromkeys(apart))
        self.sharing = len(members) - len(self.apart)
        self.messages: list[tuple[Publication, Position | None]] = []
        self.numbers: list[int] = []
        self._making = making
        self._frames: dict[int, list[bytes]] = {}
        self._joined: dict[int, bytes] = {}

    def shares(self, ws: Connection) -> bool:
        """Tell whether a connection is a member that shares."""
        return ws in self._members and ws not in self._without

    def set_apart(self, ws: Connection) -> None:
        """Let a member no longer share."""
        self.sharing -= 1
        self._without.add(ws)
        self.apart[ws] = None

    def entered(self, ws: Connection) -> None:
        """Let a new member get what comes from now on."""
        self.apart[ws] = None

    def left(self, ws: Connection) -> None:
        """Let a member that no longer shares get no more."""
        self.apart.pop(ws, None)

    def sockets(self) -> list[Sharing]:
        """Return the sockets of those who share."""
        members, without = self._members, self._without
        if not without:
            return cast("list[Sharing]", list(members.values()))
        sharing = [link for ws, link in members.items() if ws not in without]
        return cast("list[Sharing]", sharing)

    def frames(self, variant: int) -> list[bytes]:
        """Return the messages as frames of a variant; each is made once."""
        if (made := self._frames.get(variant)) is None:
            made = self._frames[variant] = []
        encode, enclose = self._making
        deflates = bool(variant & COMPRESSED)
        for publication, position in self.messages[len(made) :]:
            frame = publication.frame
            if variant & ENCLOSED:
                frame = enclose(publication, position)
            made.append(encode(frame, deflates))
        return made

    def joined(self, variant: int) -> bytes:
        """Return the frames in one piece, once no more are added."""
        if (data := self._joined.get(variant)) is None:
            data = self._joined[variant] = b"".join(self.frames(variant))
        return data


Part = tuple[Lane, list[Sharing]]
"""A lane, and the sockets that it is written to."""


def _merged(lanes: list[Lane], variant: int) -> list[bytes]:
    """Return the frames of some lanes in the order of the calls."""
    if len(lanes) == 1:
        return lanes[0].frames(variant)
    numbered = [
        pair for lane in lanes for pair in zip(lane.numbers, lane.frames(variant), strict=True)
    ]
    return [frame for _, frame in sorted(numbered)]


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
        "_due", "_making", "_number", "_outsiders", "_round", "_schedule", "_scheduled",
        "enclose", "encoder", "is_quiet", "lanes",
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
        self._due: list[Flushed] = []
        self._outsiders: set[Link | Flushed] = set()  # in channels and apart, with nothing due
        self._number = 0
        self._round: Iterator[None] | None = None
        self._schedule = schedule or _at_the_end_of_the_turn
        self._scheduled = False
        self.is_quiet = True

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
            link.take(_merged(shared, link.variant))

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
            self._round = _write_all(parts, due)
            self.is_quiet = False
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


def _at_the_end_of_the_turn(flush: Callable[[], None]) -> None:
    # Not in the context of whichever connection happens to be first in a turn.
    asyncio.get_running_loop().call_soon(flush, context=_CONTEXT)


def _write_all(parts: list[Part], due: list[Flushed]) -> Iterator[None]:
    """Write; yields now and then for a look at the clock."""
    for count, link in enumerate(due, 1):
        link.flush()
        if not count % _BATCH:
            yield
    if len(parts) == 1:
        lane, sockets = parts[0]
        for variant, some in _alike(sockets):
            some[0].write_each(zip(some, repeat(lane.joined(variant))))
            yield
    elif parts:
        yield from _write_mixed(parts)


def _alike(sockets: list[Sharing]) -> Iterator[tuple[int, list[Sharing]]]:
    """Give some sockets after the other, with the variant that they take."""
    batch = _BATCH
    for start in range(0, len(sockets), batch):
        some = sockets[start : start + batch]
        variants = {socket.variant for socket in some}
        for variant in variants:
            if len(variants) == 1:
                yield variant, some
            else:
                yield variant, [socket for socket in some if socket.variant == variant]


def _write_mixed(parts: list[Part]) -> Iterator[None]:
    """Write what all lanes of a socket have to it in one piece."""
    lanes = [lane for lane, _ in parts]
    if all(one.numbers[-1] < other.numbers[0] for one, other in pairwise(lanes)):
        plan = _one_after_the_other(parts)
    else:
        plan = _interleaved(parts)
    sockets, data, batch = list(plan), iter(plan.values()), _BATCH
    for start in range(0, len(sockets), batch):
        some = sockets[start : start + batch]
        some[0].write_each(zip(some, data, strict=False))
        yield


def _one_after_the_other(parts: list[Part]) -> dict[Sharing, bytes]:
    """Return what lanes have for each, none of which begins before the last has ended.

    Those who had the same until then have the same afterwards, and share it.
    """
    plan: dict[Sharing, bytes] = {}
    for lane, sockets in parts:
        made: dict[int, dict[bytes, bytes]] = defaultdict(dict)
        for variant, some in _alike(sockets):
            data, known = lane.joined(variant), made[variant]
            for socket in some:
                if socket not in plan:
                    plan[socket] = data
                elif (before := plan[socket]) in known:
                    plan[socket] = known[before]
                else:
                    plan[socket] = known[before] = before + data
    return plan


def _interleaved(parts: list[Part]) -> dict[Sharing, bytes]:
    """Return what lanes have for each, whatever the order; which lanes it has, the bits tell."""
    bits: dict[Sharing, int] = {}
    for index, (_, sockets) in enumerate(parts):
        bit = 1 << index
        for socket in sockets:
            bits[socket] = bits.get(socket, 0) | bit
    lanes = [lane for lane, _ in parts]
    mix = [_Mix(lanes, variant) for variant in range(2 * ENCLOSED)]
    return {socket: mix[socket.variant][own] for socket, own in bits.items()}


class _Mix(dict[int, bytes]):
    """What some lanes have together, in the order of the calls; made when it is asked for."""

    def __init__(self, lanes: list[Lane], variant: int):
        super().__init__()
        self._lanes = lanes
        self._variant = variant

    def __missing__(self, bits: int) -> bytes:
        own = [lane for index, lane in enumerate(self._lanes) if bits >> index & 1]
        self[bits] = data = b"".join(_merged(own, self._variant))
        return data
