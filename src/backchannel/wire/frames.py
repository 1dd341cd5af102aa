"""RFC 6455 frames, the server's side. Pure: bytes in, events and bytes out.

Reads what clients send in any chunking, and fails as early as the bytes allow: a text that can't
be UTF-8 any more, a length over the limit, a header that breaks a rule end the reading at once,
without waiting for the rest. A reader that waits for the next message holds nothing of its own.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from websockets.frames import apply_mask  # type: ignore[attr-defined]

from backchannel.wire import deflate

__all__ = [
    "SHORT_TEXT",
    "Close",
    "Event",
    "Ping",
    "Pong",
    "Reader",
    "Violation",
    "close_frame",
    "compressed",
    "message_frame",
    "ping_frame",
    "pong_frame",
]

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FIN, _COMPRESSED, _MASKED = 0x80, 0x40, 0x80
_WHOLE_TEXT, _WHOLE_BINARY = _FIN | _TEXT, _FIN | _BINARY
_WHOLE: Final = (_WHOLE_TEXT, _WHOLE_BINARY)
# Parts of a message that are smaller are joined at once: each object costs more than these bytes.
_SMALL: Final = 4096
# A short message in one frame: its second byte and all bytes, its mask, its payload.
_BRIEF: Final = _MASKED - 6
_MASK, _AFTER_MASK = slice(2, 6), slice(6, None)
_NOT_UTF8: Final = "text is not valid UTF-8"


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


SHORT_TEXT: Final = tuple(bytes((_FIN | _TEXT, size)) for size in range(126))
"""The headers of text messages of up to 125 bytes, made once; by their size."""


def message_frame(message: str | bytes) -> bytes:
    """Return a message in one frame: a str as text, bytes as binary."""
    if isinstance(message, bytes):
        return _frame(_FIN | _BINARY, message)
    payload = message.encode()
    if (size := len(payload)) < 126:
        return SHORT_TEXT[size] + payload
    return _frame(_FIN | _TEXT, payload)


def ping_frame(payload: bytes = b"") -> bytes:
    """Return a ping with at most 125 bytes."""
    return _frame(_FIN | _PING, payload)


def pong_frame(payload: bytes) -> bytes:
    """Return a pong with at most 125 bytes."""
    return _frame(_FIN | _PONG, payload)


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a close frame; 1005 makes one without a code. The reason has at most 123 bytes."""
    if code == 1005:
        return _frame(_FIN | _CLOSE, b"")
    return _frame(_FIN | _CLOSE, code.to_bytes(2, "big") + reason.encode())


def compressed(frame: bytes, threshold: int, window: int = deflate.WINDOW_BITS) -> bytes:
    """Return a message's frame for those who agreed on permessage-deflate.

    Args:
        frame: what ``message_frame`` made of the message.
        threshold: bytes of the smallest message that is worth compressing.
        window: the window in bits that ``deflate.negotiate`` was given.

    Returns:
        The compressed frame; the same frame where compressing it is not worth it.
    """
    size, start = len(frame) - 2, 2
    if frame[1] > 125:
        start = 4 if frame[1] == 126 else 10
        size = len(frame) - start
    if size < threshold:
        return frame
    payload = deflate.compress(memoryview(frame)[start:], window)
    return _frame(frame[0] | _COMPRESSED, payload) if len(payload) < size else frame


# ── in ────────────────────────────────────────────────────────────────────────────────────────


class _Broken(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, code: int, reason: str):
        super().__init__(code, reason)
        self.violation = Violation(code, reason)


class _Message:
    """A data message that has not come whole, and the frame of it that is under way."""

    __slots__ = (
        "final", "inflater", "is_text", "left", "mask", "parts", "rest", "sent", "size",
    )  # fmt: skip

    def __init__(self, is_text: bool, inflater: deflate.Inflater | None):
        self.is_text = is_text
        self.inflater = inflater
        self.parts: list[Any] = []  # what came of the message: str of a text, else bytes
        self.rest = b""  # of a text: the beginning of a character
        self.size = 0  # bytes that came of the message, inflated
        self.sent = 0  # bytes of its frames, as they are sent
        self.left = 0  # bytes of its last frame that have not come
        self.mask = b""  # from here on
        self.final = False

    def add(self, chunk: bytes, most: int, *, last: bool) -> None:
        """Add bytes of the payload, and see that there can still be a message with them."""
        fault = ""
        if self.inflater is not None:
            chunk = self.inflater.feed(chunk, most - self.size, last=last)
            fault = self.inflater.fault
        self.size += len(chunk)
        is_over = self.size > most
        part: Any = chunk
        if self.is_text:
            data = self.rest + chunk
            try:
                part, used = utf_8_decode(data, "strict", last and not is_over and not fault)
            except UnicodeDecodeError:
                raise _Broken(1007, _NOT_UTF8) from None
            self.rest = data[used:]
        if is_over:
            raise _Broken(1009, f"message is over the limit of {most} bytes when it is inflated")
        if fault:
            raise _Broken(1007, fault)
        if self.parts and len(self.parts[-1]) < _SMALL:
            self.parts[-1] += part
        else:
            self.parts.append(part)

    def whole(self) -> str | bytes:
        """Return the message, all of which has come."""
        return "".join(self.parts) if self.is_text else b"".join(self.parts)


class Reader:
    """Reads one client's frames.

    Args:
        max_message: bytes of the largest message, fragments together and inflated; above it 1009.
        deflate: True if permessage-deflate was agreed on.
    """

    __slots__ = ("_brief", "_deflate", "_max", "_message", "_tail")

    def __init__(self, max_message: int, *, deflate: bool = False):
        self._max = max_message
        self._deflate = deflate
        # Of a header or control frame that has not come whole; None when nothing more is read.
        self._tail: bytes | None = b""
        self._message: _Message | None = None
        # Bytes that a short message in one frame is shorter than; 0 while something has begun
        # that is not whole.
        self._brief = self._idle_brief()

    def whole(self, data: bytes) -> str | bytes | None:
        """Return the message that the bytes are: all of one, in one frame, and nothing else.

        That is how most come. None for all else: then nothing was read, and ``feed`` is to.
        """
        end = len(data)
        brief = self._brief
        if 6 < end < brief:
            if data[1] != end + _BRIEF:
                return None
            payload = apply_mask(data[_AFTER_MASK], data[_MASK])
        elif (
            brief
            and 133 < end <= self._max + 8
            and data[1] == _MASKED | 126
            and data[2] << 8 | data[3] == end - 8
        ):
            payload = apply_mask(data[8:], data[4:8])
        else:
            return None
        if (first := data[0]) == _WHOLE_TEXT:
            try:
                return payload.decode()
            except UnicodeDecodeError:
                return None  # feed() says what is wrong with it
        return payload if first == _WHOLE_BINARY else None

    def _idle_brief(self) -> int:
        return min(6 + 126, 7 + self._max)

    def feed(self, data: bytes) -> list[Event]:
        """Read bytes as they came; return what is complete now, in order.

        After a Close or a Violation nothing more is read.
        """
        return list(self.events(data))

    def events(self, data: bytes) -> Iterator[Event]:
        """Read as ``feed`` does, each message only when it is asked for.

        So there is no more of what was compressed than one message, if who asks keeps none. No
        more bytes may be given before the last ones are read to the end.
        """
        if (message := self.whole(data)) is not None:
            yield message
            return
        self._brief = 0
        yield from self._read(data)
        is_idle = self._message is None and self._tail == b""
        self._brief = self._idle_brief() if is_idle else 0

    def _read(self, data: bytes) -> Iterator[Event]:
        events: list[Event] = []
        if self._tail:
            data, self._tail = self._tail + data, b""
        at, end = 0, len(data)
        try:
            while at < end and self._tail is not None:
                message = self._message
                if message is None:
                    # The next common case: one of several short messages in one frame each.
                    if (first := data[at]) in _WHOLE and end - at > 5:
                        size = data[at + 1] - _MASKED
                        after = at + 6 + size
                        if 0 <= size < 126 and after <= end and size <= self._max:
                            payload = apply_mask(data[at + 6 : after], data[at + 2 : at + 6])
                            at = after
                            yield payload.decode() if first == _WHOLE_TEXT else payload
                            continue
                elif message.left:
                    at = self._read_payload(data, at, end, message, events)
                    yield from _taken(events)
                    continue
                after = self._read_frame(data, at, end, events)
                if after < 0:
                    self._tail = data[at:]
                    break
                at = after
                yield from _taken(events)
        except UnicodeDecodeError:
            self._fail(Violation(1007, _NOT_UTF8), events)
        except _Broken as broken:
            self._fail(broken.violation, events)
        yield from events

    def _fail(self, violation: Violation, events: list[Event]) -> None:
        self._tail = self._message = None
        events.append(violation)

    def _read_frame(self, data: bytes, at: int, end: int, events: list[Event]) -> int:
        """Read a frame's header and, if it is there, its payload; -1 when more must come first."""
        first = data[at]
        self._check_first(first)
        if end - at < 2:
            return -1
        second = data[at + 1]
        if second < _MASKED:
            raise _Broken(1002, "a client's frames must be masked")
        size, opcode, at = second & 0x7F, first & 0x0F, at + 2
        if opcode >= _CLOSE:
            return self._read_control(data, at, end, opcode, size, events)
        if size > 125:
            width = 2 if size == 126 else 8
            if end - at < width:
                return -1
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
            if size < 126 or width == 8:
                self._check_length(size, width)
        after = at + 4 + size
        if first in _WHOLE and size <= self._max and after <= end:
            payload = apply_mask(data[at + 4 : after], data[at : at + 4])
            events.append(payload.decode() if opcode == _TEXT else payload)
            return after
        self._check_size(size, first)
        if end - at < 4:
            return -1
        mask, at = data[at : at + 4], at + 4
        message = self._message
        if message is None:
            inflater = deflate.Inflater() if first & _COMPRESSED else None
            message = self._message = _Message(opcode == _TEXT, inflater)
        message.left, message.mask, message.final = size, mask, first >= _FIN
        message.sent += size
        return at if size else self._read_payload(data, at, at, message, events)

    def _check_first(self, first: int) -> None:
        """Check a frame's first byte: RFC 6455 §5.2 and §5.4, RFC 7692 §6."""
        opcode = first & 0x0F
        if first & 0x70:
            if not self._deflate:
                raise _Broken(1002, "reserved bits are set, and no extension was agreed on")
            if first & 0x30:
                raise _Broken(1002, "reserved bits are set that no extension uses")
            if opcode not in {_TEXT, _BINARY}:
                raise _Broken(1002, "a frame is marked as compressed that starts no message")
        if opcode > _PONG or _BINARY < opcode < _CLOSE:
            raise _Broken(1002, f"unknown opcode {opcode}")
        if opcode >= _CLOSE:
            if first < _FIN:
                raise _Broken(1002, "a control frame must not be fragmented")
        elif opcode == _CONTINUATION and self._message is None:
            raise _Broken(1002, "a continuation of nothing")
        elif opcode != _CONTINUATION and self._message is not None:
            raise _Broken(1002, "a new message before the last one ended")

    @staticmethod
    def _check_length(size: int, width: int) -> None:
        """Check a length that was written in more than seven bits: RFC 6455 §5.2."""
        if size >> 63:
            raise _Broken(1002, "a frame's length has its first bit set")
        if size < (126 if width == 2 else 65536):
            raise _Broken(1002, "a frame's length is not written in as few bytes as it could be")

    def _check_size(self, size: int, first: int) -> None:
        """Check that the message, with a frame of this size, is not over the limit."""
        message, most = self._message, self._max
        is_compressed = first & _COMPRESSED
        if message is not None:
            size += message.sent
            is_compressed = message.inflater is not None
        if is_compressed:
            # What can't be compressed grows a little, and by each flush.
            most += most // 8 + 1024
        if size > most:
            kind = "compressed message" if is_compressed else "message"
            raise _Broken(1009, f"{kind} of {size} bytes is over the limit of {self._max}")

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
            self._tail = self._message = None
        return at + 4 + size

    def _read_payload(
        self, data: bytes, at: int, end: int, message: _Message, events: list[Event]
    ) -> int:
        """Read what has come of a data frame's payload."""
        after = min(end, at + message.left)
        taken = after - at
        message.left -= taken
        is_last = message.final and not message.left
        message.add(apply_mask(data[at:after], message.mask), self._max, last=is_last)
        if is_last:
            events.append(message.whole())
            self._message = None
        elif turn := taken % 4:
            message.mask = message.mask[turn:] + message.mask[:turn]
        return after


def _taken(events: list[Event]) -> list[Event]:
    """Take all there is out of a list."""
    taken = events[:]
    events.clear()
    return taken


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise _Broken(1007, _NOT_UTF8) from None


def _close(payload: bytes) -> Close:
    if not payload:
        return Close(1005, "")
    code = int.from_bytes(payload[:2], "big")
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise _Broken(1002, "a close frame with an invalid code")
    return Close(code, _text(payload[2:]))
