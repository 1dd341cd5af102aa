"""RFC 6455 frames, the server's side. Pure: bytes in, events and bytes out.

Reads what clients send in any chunking, and fails as early as the bytes allow: a text that can't
be UTF-8 any more, a length over the limit, a header that breaks a rule end the reading at once,
without waiting for the rest.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Final

from websockets.frames import apply_mask  # type: ignore[attr-defined]

__all__ = [
    "Close",
    "Event",
    "Ping",
    "Pong",
    "Reader",
    "Violation",
    "binary_frame",
    "close_frame",
    "ping_frame",
    "pong_frame",
    "text_frame",
]

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_new_decoder: Final = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class Ping:
    """A ping, to be answered with a pong of the same payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """A pong."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """A close frame; 1005 stands for one without a code."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Violation:
    """The client broke a rule: the close to answer with. Nothing is read after it."""

    code: int
    reason: str


Event = str | bytes | Ping | Pong | Close | Violation
"""A str is a text message, bytes are a binary one, whole."""


# ── out ───────────────────────────────────────────────────────────────────────────────────────


def _frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


def text_frame(text: str) -> bytes:
    """Return a text message in one frame."""
    return _frame(0x80 | _TEXT, text.encode())


def binary_frame(data: bytes) -> bytes:
    """Return a binary message in one frame."""
    return _frame(0x80 | _BINARY, data)


def ping_frame(payload: bytes = b"") -> bytes:
    """Return a ping with at most 125 bytes."""
    return _frame(0x80 | _PING, payload)


def pong_frame(payload: bytes) -> bytes:
    """Return a pong with at most 125 bytes."""
    return _frame(0x80 | _PONG, payload)


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a close frame; 1005 makes one without a code. The reason has at most 123 bytes."""
    if code == 1005:
        return _frame(0x80 | _CLOSE, b"")
    return _frame(0x80 | _CLOSE, code.to_bytes(2, "big") + reason.encode())


# ── in ────────────────────────────────────────────────────────────────────────────────────────


class _Broken(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, code: int, reason: str):
        super().__init__(code, reason)
        self.violation = Violation(code, reason)


class Reader:
    """Reads one client's frames.

    Args:
        max_message: bytes of the largest message, fragments together; above it 1009.
    """

    __slots__ = (
        "_decoder", "_final", "_left", "_mask", "_max", "_opcode", "_over", "_parts", "_size",
        "_tail",
    )  # fmt: skip

    def __init__(self, max_message: int):
        self._max = max_message
        self._tail = b""  # of a header or control frame that has not come whole
        self._over = False
        # Of the message under way: its opcode (0: none), what came of it, its bytes so far.
        self._opcode = 0
        self._parts: list[bytes] | list[str] = []
        self._decoder: codecs.IncrementalDecoder | None = None
        self._size = 0
        # Of the data frame under way: bytes that have not come, its mask from here on.
        self._left = 0
        self._mask = b""
        self._final = False

    def feed(self, data: bytes) -> list[Event]:
        """Read bytes as they came; return what is complete now, in order.

        After a Close or a Violation nothing more is read.
        """
        events: list[Event] = []
        if self._over:
            return events
        if self._tail:
            data, self._tail = self._tail + data, b""
        try:
            position, end = 0, len(data)
            while position < end and not self._over:
                if self._left:
                    position = self._read_payload(data, position, end, events)
                    continue
                after = self._read_frame(data, position, end, events)
                if after < 0:
                    self._tail = data[position:]
                    break
                position = after
        except _Broken as broken:
            self._over = True
            events.append(broken.violation)
        return events

    def _read_frame(self, data: bytes, at: int, end: int, events: list[Event]) -> int:
        """Read a frame's header and, if it is there, its payload; -1 when more must come first."""
        if end - at < 2:
            self._check_first(data[at])
            return -1
        first, second = data[at], data[at + 1]
        self._check_first(first)
        if second < 0x80:
            raise _Broken(1002, "a client's frames must be masked")
        size, opcode, at = second & 0x7F, first & 0x0F, at + 2
        if opcode >= _CLOSE:
            return self._read_control(data, at, end, opcode, size, events)
        if size > 125:
            width = 2 if size == 126 else 8
            if end - at < width:
                return -1
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
            if size >> 63:
                raise _Broken(1002, "a frame's length has its first bit set")
        if self._size + size > self._max:
            whole = self._size + size
            raise _Broken(1009, f"message of {whole} bytes is over the limit of {self._max}")
        if end - at < 4:
            return -1
        mask, at, final = data[at : at + 4], at + 4, first >= 0x80
        if opcode and final and size <= end - at:
            # The common case: a message in one frame that has come whole.
            payload = apply_mask(data[at : at + size], mask)
            events.append(_text(payload) if opcode == _TEXT else payload)
            return at + size
        if opcode:
            self._opcode = opcode
            self._decoder = _new_decoder() if opcode == _TEXT else None
        self._left, self._mask, self._final = size, mask, final
        self._size += size
        if not size:
            self._end_frame(events)
        return at

    def _check_first(self, first: int) -> None:
        """Check a frame's first byte: RFC 6455 §5.2 and §5.4."""
        opcode = first & 0x0F
        if first & 0x70:
            raise _Broken(1002, "reserved bits are set, and no extension was agreed on")
        if opcode > _PONG or _BINARY < opcode < _CLOSE:
            raise _Broken(1002, f"unknown opcode {opcode}")
        if opcode >= _CLOSE:
            if first < 0x80:
                raise _Broken(1002, "a control frame must not be fragmented")
        elif opcode == _CONTINUATION and not self._opcode:
            raise _Broken(1002, "a continuation of nothing")
        elif opcode != _CONTINUATION and self._opcode:
            raise _Broken(1002, "a new message before the last one ended")

    def _read_control(
        self, data: bytes, at: int, end: int, opcode: int, size: int, events: list[Event]
    ) -> int:
        if size > 125:
            raise _Broken(1002, "a control frame has at most 125 bytes")
        if end - at < 4 + size:
            return -1
        payload = apply_mask(data[at + 4 : at + 4 + size], data[at : at + 4])
        if opcode == _PING:
            events.append(Ping(payload))
        elif opcode == _PONG:
            events.append(Pong(payload))
        else:
            events.append(_close(payload))
            self._over = True
        return at + 4 + size

    def _read_payload(self, data: bytes, at: int, end: int, events: list[Event]) -> int:
        """Read what has come of a data frame's payload."""
        upto = min(end, at + self._left)
        chunk = apply_mask(data[at:upto], self._mask)
        taken = upto - at
        self._left -= taken
        turn = taken % 4
        self._mask = self._mask[turn:] + self._mask[:turn]
        if self._decoder is None:
            self._parts.append(chunk)  # type: ignore[arg-type]
        else:
            try:
                self._parts.append(self._decoder.decode(chunk))  # type: ignore[arg-type]
            except UnicodeDecodeError:
                raise _Broken(1007, "text is not valid UTF-8") from None
        if not self._left:
            self._end_frame(events)
        return upto

    def _end_frame(self, events: list[Event]) -> None:
        if not self._final:
            return
        if self._decoder is None:
            events.append(b"".join(self._parts))  # type: ignore[arg-type]
        else:
            try:
                self._decoder.decode(b"", final=True)
            except UnicodeDecodeError:
                raise _Broken(1007, "text is not valid UTF-8") from None
            events.append("".join(self._parts))  # type: ignore[arg-type]
        self._opcode = self._size = 0
        self._parts, self._decoder = [], None


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise _Broken(1007, "text is not valid UTF-8") from None


def _close(payload: bytes) -> Close:
    if not payload:
        return Close(1005, "")
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (
        1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
    ):
        raise _Broken(1002, "a close frame with an invalid code")
    return Close(code, _text(payload[2:]))
