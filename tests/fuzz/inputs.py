"""Makes what a client could send from a tape of bytes: valid, broken, cut, in any chunking.

A tape makes one input, always the same. Whoever writes tapes explores: a fuzzer that looks at the
code's coverage, hypothesis, or a random generator.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from websockets.frames import apply_mask

LIMIT = 300
TAIL = b"\x00\x00\xff\xff"
TEXTS = (
    b"",
    b"a",
    "grüße".encode(),
    "日本語 \U0001f600".encode(),
    b"to be or not to be " * 4,
    b"x" * 125,
    b"y" * 126,
    b"z" * (LIMIT - 1),
    "é".encode() * (LIMIT // 2),
    "é".encode() * (LIMIT // 2) + b"!",
    b"bomb" * LIMIT,
    b"\xff",
    b"fine, then \xc3(",
    b"cut \xf0\x9f\x98",
    b"\xed\xa0\x80 half a pair",
    b"\xf4\x90\x80\x80 too far",
)
CLOSES = (
    b"",
    b"\x03",
    b"\x03\xe8",
    b"\x03\xe8bye",
    b"\x03\xec",
    b"\x03\xee",
    b"\x03\xf0",
    b"\x03\xf7",
    b"\x0b\xb7",
    b"\x0f\xa0" + "grüße".encode(),
    b"\x13\x88",
    b"\x03\xe8\xff",
    b"\x03\xed\xff",
    b"\x03\xe8" + b"r" * 123,
    b"\x03\xe8" + b"r" * 124,
)


class Input(NamedTuple):
    """A client's bytes, the sizes of the pieces they come in, and what was agreed on."""

    stream: bytes
    sizes: list[int]
    deflate: bool


class Tape:
    """Bytes to be used up by choices; zeros when there are no more."""

    def __init__(self, data: bytes):
        self.data = data
        self.at = 0

    def below(self, most: int) -> int:
        self.at += 1
        return self.data[self.at - 1] % most if self.at <= len(self.data) else 0

    def take(self, size: int) -> bytes:
        taken = self.data[self.at : self.at + size]
        self.at += size
        return taken

    @property
    def is_over(self) -> bool:
        return self.at >= len(self.data)


def masked(
    first: int, payload: bytes = b"", key: bytes = b"\x01\x02\x03\x04", width: int = 0
) -> bytes:
    """Return a client's frame; a width of 2 or 8 writes the length in that many bytes."""
    size = len(payload)
    width = width or (0 if size < 126 else 2 if size < 65536 else 8)
    length = bytes((0x80 | {0: size, 2: 126, 8: 127}[width],))
    if width:
        length += size.to_bytes(width, "big")
    return bytes((first,)) + length + key + (apply_mask(payload, key) if payload else b"")


def make(data: bytes) -> Input:
    """Make the input that a tape stands for."""
    tape = Tape(data)
    mode = tape.below(16)
    deflate, stream = bool(mode & 1), bytearray()
    if mode >= 14:
        stream += data[2:]
        return Input(bytes(stream), _sizes(Tape(data[:2]), len(stream)), deflate)
    damages, plan = tape.below(4), tape.take(3)
    while not tape.is_over and len(stream) < 2000:
        stream += _part(tape, deflate)
    for _ in range(max(0, damages - 1)):
        if stream:
            stream[(tape.below(256) * 256 + tape.below(256)) % len(stream)] ^= 1 << tape.below(8)
    if damages == 3:
        del stream[len(stream) - tape.below(60) :]
    return Input(bytes(stream), _sizes(Tape(plan), len(stream)), deflate)


def _sizes(tape: Tape, length: int) -> list[int]:
    """Return the sizes of the pieces a stream comes in."""
    plan = tape.below(8)
    if plan < 3 or length == 0:
        return [length]
    if plan == 3:
        single = min(length, 150)
        return [1] * single + [length - single] * (length > single)
    sizes = []
    turn = (1 + tape.below(9), 1 + tape.below(255))
    while length > 0:
        sizes.append(min(length, turn[len(sizes) % 2]))
        length -= sizes[-1]
    return sizes


def _part(tape: Tape, deflate: bool) -> bytes:
    """Return a message, control frame or something that is neither."""
    kind = tape.below(12)
    if kind < 7:
        return _message(tape, compressed=kind < (5 if deflate else 1))
    if kind == 7:
        return _control(tape)
    if kind == 8:
        return masked(0x88, CLOSES[tape.below(len(CLOSES))] or tape.take(tape.below(4)))
    if kind == 9:
        return tape.take(1 + tape.below(20))
    if kind == 10:
        size = tape.below(256) * 3
        head = bytes((tape.below(256), tape.below(256)))
        return head + size.to_bytes((2, 8)[tape.below(2)], "big") + tape.take(tape.below(40))
    payload = _payload(tape)
    widths = (0, 2, 8) if len(payload) < 126 else (2, 8)
    return masked(
        tape.below(256), payload, tape.take(4).ljust(4, b"k"), widths[tape.below(len(widths))]
    )


def _control(tape: Tape) -> bytes:
    return masked((0x89, 0x8A)[tape.below(2)], TEXTS[tape.below(7)] + tape.take(tape.below(3)))


def _payload(tape: Tape) -> bytes:
    which = tape.below(len(TEXTS) + 6)
    return TEXTS[which] if which < len(TEXTS) else tape.take(tape.below(200))


def _message(tape: Tape, *, compressed: bool) -> bytes:
    """Return a message in one frame or several, perhaps with control frames in between."""
    payload, first = _payload(tape), 1 + tape.below(2)
    if compressed:
        payload, first = _squeeze(tape, payload), first | 0x40
    cuts = sorted((tape.below(256) * len(payload)) // 255 for _ in range(tape.below(5)))
    # Now and then: fragments marked as compressed, as new messages, as text; no last one.
    wrong = tape.below(24)
    rest = {20: 0x40, 21: 0x02, 22: 0x01}.get(wrong, 0)
    stream, edges = b"", [0, *cuts, len(payload)]
    for index in range(len(edges) - 1):
        is_last = index == len(edges) - 2
        opening = rest if index else first
        final = 0x80 if is_last and wrong != 23 else 0
        stream += masked(opening | final, payload[edges[index] : edges[index + 1]])
        if not is_last and tape.below(8) == 7:
            stream += _control(tape)
    return stream


def _squeeze(tape: Tape, payload: bytes) -> bytes:
    """Return a payload compressed in one of the ways that clients do, or get wrong."""
    way, level, bits = tape.below(12), (6, 1, 0, 9)[tape.below(4)], 9 + tape.below(7)
    squeezer = zlib.compressobj(level, zlib.DEFLATED, -bits, 1 + tape.below(9), tape.below(5))
    if way == 0:  # in two blocks
        half = len(payload) // 2
        data = squeezer.compress(payload[:half]) + squeezer.flush(zlib.Z_FULL_FLUSH)
        return data + (squeezer.compress(payload[half:]) + squeezer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    data = squeezer.compress(payload)
    if way < 4:  # with a last block, and with more after it
        data += squeezer.flush(zlib.Z_FINISH)
        return (data, data + b"\x00", data + tape.take(3), data * (1 + tape.below(4)))[
            tape.below(4)
        ]
    flushed = data + squeezer.flush(zlib.Z_SYNC_FLUSH)
    if way == 4:  # the tail forgotten
        return flushed
    if way == 5:  # cut short
        return flushed[: len(flushed) * tape.below(256) // 256]
    if way == 6:  # damaged
        broken = bytearray(flushed[:-4])
        if broken:
            broken[tape.below(256) % len(broken)] ^= 1 << tape.below(8)
        return bytes(broken)
    if way == 7:
        return tape.take(tape.below(60))
    if way == 8:
        return flushed[:-4] + b"\x00" * 3
    return flushed[:-4]
