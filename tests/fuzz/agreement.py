"""Our reader against the reader of the websockets library: the same bytes, the same verdict.

Where the two differ, the difference must have a name in ``EXPLAINED``, and hold by what is written
here, which reads frames the slow and simple way. Anything else raises DisagreementError.
"""

from __future__ import annotations

import codecs
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from inputs import LIMIT, TAIL, Input
from websockets.exceptions import PayloadTooBig
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Opcode
from websockets.protocol import Protocol, Side, State

from backchannel.wire.frames import Close, Event, Ping, Pong, Reader, Violation

_SILENT = logging.getLogger("tests.fuzz")
_SILENT.setLevel(logging.CRITICAL)
_END = b"\x01\x00\x00\xff\xff"


class DisagreementError(AssertionError):
    """The two readers differ, and nothing explains it."""


# ── what each makes of it ─────────────────────────────────────────────────────────────────────


def read(given: Input, sizes: list[int] | None = None, limit: int = LIMIT) -> list[Event]:
    """Return what our reader makes of an input."""
    reader, events, at = Reader(limit, deflate=given.deflate), [], 0
    for size in sizes or given.sizes:
        events += reader.feed(given.stream[at : at + size])
        at += size
    return events


def read_by_websockets(given: Input) -> list[Event]:
    """Return what the websockets library makes of an input, in our words."""
    protocol = Protocol(Side.SERVER, state=State.OPEN, max_size=LIMIT, logger=_SILENT)
    if given.deflate:
        protocol.extensions = [PerMessageDeflate(True, True, 15, 15)]
    at = 0
    for size in given.sizes:
        protocol.receive_data(given.stream[at : at + size])
        at += size
        if protocol.parser_exc or protocol.close_rcvd:
            break
    events: list[Event] = []
    parts: list[bytes] = []
    for frame in protocol.events_received():
        if frame.opcode is Opcode.PING:
            events.append(Ping(bytes(frame.data)))
        elif frame.opcode is Opcode.PONG:
            events.append(Pong(bytes(frame.data)))
        elif frame.opcode is Opcode.CLOSE:
            events.append(Close(protocol.close_rcvd.code, protocol.close_rcvd.reason))
        else:
            if frame.opcode is not Opcode.CONT:
                parts, kind = [], frame.opcode
            parts.append(bytes(frame.data))
            if frame.fin:
                whole = b"".join(parts)
                try:
                    events.append(whole.decode() if kind is Opcode.TEXT else whole)
                except UnicodeDecodeError as error:
                    return [*events, Violation(1007, str(error))]
    error = protocol.parser_exc
    if error is not None:
        code = 1009 if isinstance(error, PayloadTooBig) else 1002
        events.append(
            Violation(1007 if isinstance(error, UnicodeDecodeError) else code, str(error))
        )
    return events


def same(ours: Event | None, theirs: Event | None) -> bool:
    """Tell whether two events are the same; of a violation, only the code counts."""
    if isinstance(ours, Violation) and isinstance(theirs, Violation):
        return ours.code == theirs.code
    return ours == theirs


# ── the slow and simple way ───────────────────────────────────────────────────────────────────


class Frame(NamedTuple):
    """A frame as it stands in the stream; what has not come of it is left out."""

    first: int
    is_masked: bool
    size: int
    width: int
    payload: bytes
    is_whole: bool

    @property
    def opcode(self) -> int:
        return self.first & 15


def frames_of(stream: bytes) -> list[Frame]:
    """Return a stream's frames, whatever is wrong with them."""
    frames, at = [], 0
    while len(stream) - at >= 1:
        first, second = stream[at], (stream[at + 1] if len(stream) - at > 1 else 0x80)
        width = {126: 2, 127: 8}.get(second & 127, 0)
        length = stream[at + 2 : at + 2 + width]
        if len(stream) - at < 2 or len(length) < width:
            least = 126 if width else 0  # what is known of the size
            frames.append(Frame(first, second > 127, least, 0, b"", False))
            break
        size = int.from_bytes(length, "big") if width else second & 127
        start = at + 2 + width + 4
        mask, body = stream[start - 4 : start], stream[start : start + size]
        is_whole = len(mask) == 4 and len(body) == size
        if body:
            body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(body))
        frames.append(Frame(first, second > 127, size, width, body, is_whole))
        at = start + size
    return frames


class Inflated(NamedTuple):
    """What a compressed message is: "whole", "cut", "damaged", "over" or "under way"."""

    state: str
    data: bytes
    last_blocks: int


def inflate(payload: bytes, *, is_all: bool) -> Inflated:
    """Inflate byte by byte."""
    stream, data, last_blocks = zlib.decompressobj(-15), b"", 0
    for byte in payload:
        if stream.eof:
            last_blocks += 1
            stream = zlib.decompressobj(-15)
        try:
            data += stream.decompress(bytes((byte,)))
        except zlib.error:
            return Inflated("damaged", data, last_blocks)
        if len(data) > LIMIT:
            return Inflated("over", data, last_blocks)
    if not is_all:
        return Inflated("under way", data, last_blocks)
    if payload and not stream.eof:
        # An empty last block is the end if the message ended where a block did.
        try:
            more = stream.decompress(_END if payload.endswith(TAIL) else TAIL + _END)
        except zlib.error:
            return Inflated("cut", data, last_blocks)
        if more or not stream.eof or stream.unused_data:
            return Inflated("cut", data + more, last_blocks)
    return Inflated("whole", data, last_blocks)


def is_utf8_so_far(data: bytes, *, is_all: bool = False) -> bool:
    """Tell whether data is valid UTF-8, or a beginning of it."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, is_all)
    except UnicodeDecodeError:
        return False
    return True


@dataclass
class Parting:
    """Where the two part: the next event of each, and the bytes it comes from."""

    ours: Event | None
    theirs: Event | None
    culprit: Frame
    message: list[Frame]
    """The fragments of the message under way; the culprit is the last one if it is no control."""
    deflate: bool

    @property
    def is_compressed(self) -> bool:
        return bool(self.message) and self.deflate and bool(self.message[0].first & 0x40)

    @property
    def is_text(self) -> bool:
        return bool(self.message) and self.message[0].opcode == 1

    @property
    def earlier(self) -> list[Frame]:
        """Return the message's fragments before the culprit."""
        return [frame for frame in self.message if frame is not self.culprit]

    def broken(self) -> set[int]:
        """Return the codes of all rules that the culprit breaks, by itself and where it stands."""
        return self.broken_by_header() | self.broken_by_close() | self.broken_by_message()

    def broken_by_header(self) -> set[int]:
        frame, codes = self.culprit, set()
        opcode = frame.opcode
        if frame.first & (0x30 if self.deflate else 0x70):
            codes.add(1002)
        if frame.first & 0x40 and opcode not in {1, 2}:
            codes.add(1002)
        if opcode > 10 or 2 < opcode < 8 or not frame.is_masked or frame.size >> 63:
            codes.add(1002)
        if opcode > 7 and (frame.first < 128 or frame.size > 125):
            codes.add(1002)
        if opcode < 3 and (opcode == 0) != bool(self.earlier):
            codes.add(1002)
        size, most = frame.size, LIMIT
        if opcode < 3:
            size = sum(fragment.size for fragment in self.message)
            most += LIMIT // 8 + 1024 if self.is_compressed else 0
        if size > most:
            codes.add(1009)
        return codes

    @property
    def is_wire_over(self) -> bool:
        """Tell whether a fragment is larger, as it was sent, than the message may still grow."""
        before = b""
        for frame in self.message:
            if frame.size > LIMIT - len(inflate(before, is_all=False).data):
                return True
            before += frame.payload
        return False

    def broken_by_close(self) -> set[int]:
        frame, codes = self.culprit, set()
        if frame.opcode == 8 and frame.is_whole and frame.payload:
            code, reason = int.from_bytes(frame.payload[:2], "big"), frame.payload[2:]
            valid = {*range(1000, 1004), *range(1007, 1015)}
            if len(frame.payload) == 1 or not (code in valid or 3000 <= code < 5000):
                codes.add(1002)
            if not is_utf8_so_far(reason, is_all=True):
                codes.add(1007)
        return codes

    def broken_by_message(self) -> set[int]:
        """Return the code of what is wrong with the message's content, as far as it has come."""
        expected = self.expected() if self.message and self.culprit.opcode < 8 else None
        return {expected.code} if isinstance(expected, Violation) else set()

    def inflated(self) -> Inflated:
        """Return what the message is, or would be if it is not compressed."""
        payload = b"".join(frame.payload for frame in self.message)
        is_all = self.message[-1].first > 127 and self.message[-1].is_whole
        if self.is_compressed:
            return inflate(payload, is_all=is_all)
        state = "over" if len(payload) > LIMIT else "whole" if is_all else "under way"
        return Inflated(state, payload, 0)

    def expected(self) -> Event | None:
        """Return what the message's content comes to, judged byte by byte."""
        state, data, _ = self.inflated()
        if self.is_text and not is_utf8_so_far(data[: LIMIT + 1], is_all=state == "whole"):
            return Violation(1007, "text")
        if state in {"cut", "damaged"}:
            return Violation(1007, state)
        if state == "over":
            return Violation(1009, state)
        return None if state == "under way" else data.decode() if self.is_text else data


def parting(given: Input, ours: list[Event], theirs: list[Event]) -> Parting | None:
    """Return where two verdicts part; None if they don't."""
    common = 0
    while common < min(len(ours), len(theirs)) and same(ours[common], theirs[common]):
        common += 1
    if common == len(ours) == len(theirs):
        return None
    found = Parting(None, None, Frame(0, True, 0, 0, b"", False), [], given.deflate)
    found.ours, found.theirs = ([*events, None][common] for events in (ours, theirs))
    seen = 0
    for frame in frames_of(given.stream):
        found.culprit = frame
        if frame.opcode < 8:
            found.message.append(frame)
        is_event = frame.is_whole and (frame.opcode > 7 or frame.first > 127)
        if seen == common and (is_event or found.broken() or _is_long(frame)):
            break
        if is_event:
            seen += 1
            if frame.opcode < 8:
                found.message = []
    return found


# ── the differences there are ─────────────────────────────────────────────────────────────────


def _is_long(frame: Frame) -> bool:
    return frame.width > 0 and frame.size < (126 if frame.width == 2 else 65536)


def _code(event: Event | None) -> int | None:
    return event.code if isinstance(event, Violation) else None


def _long_length(p: Parting) -> bool:
    return _code(p.ours) == 1002 and _is_long(p.culprit)


def _close_in_message(p: Parting) -> bool:
    return isinstance(p.ours, Close) and _code(p.theirs) == 1002 and bool(p.earlier)


def _first_rule(p: Parting) -> bool:
    if p.earlier and p.culprit.opcode in {1, 2}:  # whatever else is wrong with it
        return _code(p.ours) == 1002 and isinstance(p.theirs, Violation)
    # websockets inflates a frame, with the tail that was cut off, before it looks at reserved bits.
    is_over = p.is_wire_over or (bool(p.message) and len(p.inflated().data) > LIMIT)
    counted = {1009} if is_over else set[int]()
    return _code(p.ours) in p.broken() and _code(p.theirs) in p.broken() | counted


def _early(p: Parting) -> bool:
    return _code(p.ours) in p.broken() and not p.culprit.is_whole and p.theirs is None


def _early_text(p: Parting) -> bool:
    refused = _code(p.ours) == 1007 and p.is_text and not isinstance(p.theirs, str | bytes)
    return refused and not is_utf8_so_far(p.inflated().data[: LIMIT + 1])


def _compressed(p: Parting) -> bool:
    return p.is_compressed and p.culprit.opcode < 8 and same(p.ours, p.expected())


def _damaged(p: Parting) -> bool:
    return _compressed(p) and p.inflated().state == "damaged" and _code(p.theirs) == 1002


def _cut(p: Parting) -> bool:
    return _compressed(p) and p.inflated().state == "cut"


def _after_last_block(p: Parting) -> bool:
    return _compressed(p) and p.inflated().last_blocks > 0


def _wire_over(p: Parting) -> bool:
    between = p.culprit.opcode > 7 and not p.broken()  # a control frame, after such a fragment
    refused = _code(p.theirs) == 1009 and p.is_compressed and p.is_wire_over
    return refused and (between or _compressed(p))


def _control_at_limit(p: Parting) -> bool:
    room = LIMIT - len(p.inflated().data) if p.message else LIMIT
    return _code(p.theirs) == 1009 and p.culprit.opcode > 7 and p.culprit.size > room


def _held_back(p: Parting) -> bool:
    return _compressed(p) and p.inflated().state == "over"


EXPLAINED: dict[str, Callable[[Parting], bool]] = {
    # RFC 6455 §5.2: the minimal number of bytes must be used. We refuse the others with 1002, as
    # Chromium does; websockets reads them.
    "a length that is written in more bytes than it needs": _long_length,
    # Control frames may stand between fragments (§5.4), also a close. websockets answers 1002.
    "a close between the fragments of a message": _close_in_message,
    # We name the rule that is broken first in the order of the bytes, as soon as it is known.
    # websockets looks at length before it looks at reserved bits and order.
    "several rules broken by one frame": _first_rule,
    # websockets looks at a frame when it has come whole.
    "a frame refused before it has come whole": _early,
    # websockets leaves UTF-8 to its caller, who sees frames that have come whole.
    "text refused before its message has ended": _early_text,
    # 1007, inconsistent data, as Node's ws and Jetty have it; websockets has 1002.
    "damaged compressed data": _damaged,
    # websockets delivers as much of the message as could be inflated, without a sign.
    "compressed data cut short": _cut,
    # RFC 7692 §7.2.3.5. websockets drops what follows the first last block.
    "a message with more after a last block": _after_last_block,
    # Compressing can make a message larger. websockets measures what is sent and what it is
    # inflated; we measure what it is inflated, and allow an eighth more to be sent.
    "a message within the limit that is sent in more bytes": _wire_over,
    # websockets counts a control frame as if it were a fragment of the message under way.
    "a control frame in a message that is nearly at the limit": _control_at_limit,
    # What zlib has room for comes out later in websockets, or (final empty fragment, at the limit
    # exactly) past the limit; we ask for one byte more than the limit, and know.
    "a message over the limit when inflated": _held_back,
}


def compare(given: Input, ours: list[Event] | None = None) -> str | None:
    """Compare the two on one input.

    Args:
        given: the input.
        ours: what our reader made of it; read here if it is left out.

    Returns:
        None if they agree, else the name of the difference.

    Raises:
        DisagreementError: they differ, and nothing explains it.
    """
    ours, theirs = ours or read(given), read_by_websockets(given)
    found = parting(given, ours, theirs)
    if found is None:
        return None
    for name, explains in EXPLAINED.items():
        if explains(found):
            return name
    raise DisagreementError(f"ours {ours!r}\ntheirs {theirs!r}\nat {found!r}\nof {given!r}")


# ── our reader alone ──────────────────────────────────────────────────────────────────────────


def check_alone(given: Input, *pieces: list[int]) -> list[Event]:
    """Check what must hold of our reader whatever it reads, in whatever pieces.

    Args:
        given: the input, which is read in its own pieces and in these.
        pieces: sizes of pieces; in one piece if there are none.

    Returns:
        What the reader made of it.
    """
    events = read(given)
    for sizes in pieces or ([len(given.stream)],):
        again = read(given, sizes) if sizes != given.sizes else events
        if again != events:
            short = [given.sizes[:3], sizes[:3]]
            raise DisagreementError(f"in {short}: {events!r}\nand {again!r}\n{given.stream!r}")
    for index, event in enumerate(events):
        is_last = index == len(events) - 1
        if isinstance(event, str | bytes):
            size = len(event.encode() if isinstance(event, str) else event)
            if size > LIMIT:
                raise DisagreementError(f"a message of {size} bytes: {given!r}")
        elif isinstance(event, Close | Violation):
            if not is_last:
                raise DisagreementError(f"{event!r} is not the last event: {events!r}")
            if not isinstance(event, Close) and event.code not in {1002, 1007, 1009}:
                raise DisagreementError(f"{event!r} of {given!r}")
        elif not isinstance(event, Ping | Pong) or len(event.payload) > 125:
            raise DisagreementError(f"{event!r} of {given!r}")
    return events
