"""What channels got in a turn of the event loop, and how it is written to their members.

A member that is in several of these channels gets their frames in one piece, in the order of the
calls. Which connections share, and when the lanes end, is ``fanout``'s to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from backchannel.connection import Connection
    from backchannel.contracts import Link, Publication
    from backchannel.history import Position
    from backchannel.messages import Frame

__all__ = [
    "BATCH",
    "COMPRESSED",
    "ENCLOSED",
    "Flushed",
    "Lane",
    "Making",
    "Members",
    "Part",
    "Sharing",
    "merged",
    "write_all",
]

BATCH: Final = 64
"""Writes between two looks at the clock."""

FEW_BYTES: Final = 4096
FEW_LANES: Final = 64
"""What so many lanes have together is copied for each client by itself."""

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
        self._without.add(ws)
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


def merged(lanes: list[Lane], variant: int) -> list[bytes]:
    """Return the frames of some lanes in the order of the calls."""
    if len(lanes) == 1:
        return lanes[0].frames(variant)
    numbered = [
        pair for lane in lanes for pair in zip(lane.numbers, lane.frames(variant), strict=True)
    ]
    return [frame for _, frame in sorted(numbered)]


def write_all(
    parts: list[Part],
    due: list[Flushed],
    report: Callable[[str, Exception], None],
    only: int | None,
) -> Iterator[None]:
    """Write; yields now and then for a look at the clock.

    Args:
        parts: the lanes.
        due: what is to be flushed.
        report: is told of an error at one of these.
        only: the variant that all clients take; None where they differ.
    """
    for count, link in enumerate(due, 1):
        try:
            link.flush()
        except Exception as error:  # noqa: BLE001 - others wait for what comes after
            report("writing to a client failed", error)
        if not count % BATCH:
            yield
    if len(parts) == 1:
        lane, sockets = parts[0]
        batch = BATCH
        for start in range(0, len(sockets), batch):
            for variant, some in _alike(sockets[start : start + batch], only):
                some[0].write_each(zip(some, repeat(lane.joined(variant))))
            yield
    elif parts:
        yield from _write_mixed(parts, only)


def _alike(sockets: list[Sharing], only: int | None) -> Iterable[tuple[int, list[Sharing]]]:
    """Return sockets by the variant that they take."""
    if only is not None:  # then none is looked at, which takes longer than it seems
        return ((only, sockets),)
    found: dict[int, list[Sharing]] = defaultdict(list)
    for socket in sockets:
        found[socket.variant].append(socket)
    return found.items()


def _write_mixed(parts: list[Part], only: int | None) -> Iterator[None]:
    """Write what all lanes of a socket have to it in one piece."""
    lanes = [lane for lane, _ in parts]
    plan = None
    if len(lanes) <= FEW_LANES and all(
        one.numbers[-1] < other.numbers[0] for one, other in pairwise(lanes)
    ):
        plan = _one_after_the_other(parts, only)
    if plan is None:
        plan = _interleaved(parts)
    sockets, data, batch = list(plan), iter(plan.values()), BATCH
    for start in range(0, len(sockets), batch):
        some = sockets[start : start + batch]
        some[0].write_each(zip(some, data, strict=False))
        yield


def _one_after_the_other(parts: list[Part], only: int | None) -> dict[Sharing, bytes] | None:
    """Return what lanes have for each, none of which begins before the last has ended.

    Those who have the same don't share it: to find that out takes longer than a short copy. None
    where it is not short.
    """
    plan: dict[Sharing, bytes] = {}
    size = 0
    for lane, sockets in parts:
        for variant, some in _alike(sockets, only):
            data = lane.joined(variant)
            if (size := size + len(data)) > FEW_BYTES:
                return None
            for socket in some:
                if socket in plan:
                    plan[socket] += data
                else:
                    plan[socket] = data
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
        self[bits] = data = b"".join(merged(own, self._variant))
        return data
