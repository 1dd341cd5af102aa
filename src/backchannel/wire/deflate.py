"""permessage-deflate, RFC 7692, the server's side. Pure: headers and bytes in, the same out.

Neither side keeps anything from one message to the next (no context takeover), and the server's
window is the same for everyone. So one compressed frame serves every receiver, and an idle
connection holds no zlib state, which would be hundreds of kilobytes of it with context takeover.

The window has 12 bits, 4 KiB: with nothing kept between messages, a larger one finds little more
in messages of usual size (JSON of 4 KiB: 25.5 % of its bytes at 12 bits, 25.6 % at 15, 32 % at 9;
of 64 KiB: 21.5 %, 20 % and 31 %), but setting zlib up for it takes longer than compressing a short
message (1 KiB of JSON: 9 µs at 12 bits, 27 µs at 15). A client that asks for a smaller one is
served uncompressed; browsers and the usual libraries do not.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from websockets.exceptions import InvalidHeader
from websockets.headers import parse_extension

if TYPE_CHECKING:
    from zlib import _Decompress as Stream

__all__ = ["WINDOW_BITS", "Inflater", "compress", "negotiate"]

WINDOW_BITS: Final = 12
"""The server's window, as a power of two."""

_NAME: Final = "permessage-deflate"
_FLAGS: Final = ("server_no_context_takeover", "client_no_context_takeover")
_BITS: Final = frozenset(str(bits) for bits in range(8, 16))
# Memory for its hash table: less makes worse matches, more takes longer to clear (measured).
_MEMORY_LEVEL: Final = 5
# What ends a flushed block, and is left out of a message (RFC 7692 §7.2.1).
_TAIL: Final = b"\x00\x00\xff\xff"
# An empty last block: zlib says that it has seen the end if it was at the end of a block before.
_END: Final = b"\x01\x00\x00\xff\xff"
# zlib starts anew after each block that says it is the last one, which takes time and copies what
# is left. Clients that end blocks so do it once a message or once a flush.
_MAX_LAST_BLOCKS: Final = 256


@functools.lru_cache(maxsize=64)  # most clients are one of a few browsers
def negotiate(offers: str, window: int = WINDOW_BITS) -> str | None:
    """Accept the first offer that one fixed window and no context takeover fit.

    Args:
        offers: the client's ``Sec-WebSocket-Extensions`` headers, joined by commas.
        window: the server's window in bits, 9 to 15; the same that is given to ``compress``.

    Returns:
        The value of the response's ``Sec-WebSocket-Extensions``; None to serve uncompressed:
        nothing fits, or the header is malformed.
    """
    try:
        extensions = parse_extension(offers.strip(" \t,"))
    except InvalidHeader:
        return None
    for name, parameters in extensions:
        if name == _NAME and (answer := _accept(parameters, window)) is not None:
            return answer
    return None


def _accept(parameters: Sequence[tuple[str, str | None]], window: int) -> str | None:
    """Return the answer to one offer; None declines it (RFC 7692 §5.1, §7.1)."""
    offered = dict(parameters)
    if len(offered) != len(parameters):
        return None  # a parameter came twice
    server_window = None
    for name, value in parameters:
        if name in _FLAGS:
            if value is not None:
                return None
        elif name == "server_max_window_bits":
            if value not in _BITS or int(value) < window:
                return None
            server_window = window
        elif name != "client_max_window_bits" or (value is not None and value not in _BITS):
            return None
    # A client's window is not limited: what inflates its messages is gone after each of them.
    answer = "; ".join((_NAME, *_FLAGS))
    return answer if server_window is None else f"{answer}; server_max_window_bits={server_window}"


def compress(payload: bytes | memoryview, window: int = WINDOW_BITS) -> bytes:
    """Return a message's payload compressed.

    Args:
        payload: the message's bytes.
        window: the server's window in bits, 9 to 15.
    """
    squeezer = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -window, _MEMORY_LEVEL)
    return (squeezer.compress(payload) + squeezer.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]


class Inflater:
    """Inflates one message, as its bytes come.

    Attributes:
        fault: what is wrong with the message, which is damaged or cut short; empty if nothing is.
    """

    __slots__ = ("_came", "_last_blocks", "_zlib", "fault")

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)
        self._came = b""  # the last bytes that came, as many as a tail has
        self._last_blocks = 0
        self.fault = ""

    def feed(self, data: bytes, room: int, *, last: bool) -> bytes:
        """Inflate what came. After a fault, or more than there was room for, nothing may follow.

        Args:
            data: the next bytes of the message's payload.
            room: bytes that the message may still grow by.
            last: True if these are the message's last bytes, which may be none.

        Returns:
            What is known of the message now, up to a fault; room + 1 bytes of it when it grows by
            more than room.
        """
        self._came = (self._came + data[-len(_TAIL) :])[-len(_TAIL) :]
        inflated = b""
        while data and not self.fault:
            if self._zlib.eof:
                self._start_anew()
            inflated += self._inflate(data, room + 1 - len(inflated))
            if len(inflated) > room:
                return inflated
            data = self._zlib.unused_data
        if last and self._came and not self._zlib.eof and not self.fault:
            self._end()
        return inflated

    def _inflate(self, data: bytes, most: int) -> bytes:
        before = self._zlib.copy()
        try:
            return self._zlib.decompress(data, most)
        except zlib.error:
            self.fault = "compressed message is damaged"
            return _until_damage(before, data, most)

    def _start_anew(self) -> None:
        """Go on after a block that said it was the last one: RFC 7692 §7.2.3.5."""
        self._last_blocks += 1
        self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)
        if self._last_blocks > _MAX_LAST_BLOCKS:
            self.fault = f"compressed message has more than {_MAX_LAST_BLOCKS} last blocks"

    def _end(self) -> None:
        """See that the message ended where a block did."""
        # Some clients forget to leave the tail out. No message ends so that has left it out.
        ending = _END if self._came == _TAIL else _TAIL + _END
        try:
            is_cut = bool(self._zlib.decompress(ending, 1)) or not self._zlib.eof
        except zlib.error:
            is_cut = True
        if is_cut or self._zlib.unused_data:
            self.fault = "compressed message is cut short"


def _until_damage(stream: Stream, data: bytes, most: int) -> bytes:
    """Return what data inflates to before the byte at which it is damaged.

    zlib keeps that to itself. It is needed since a message must be refused for the same reason in
    whatever pieces it comes. Halving takes twice the time of inflating, not the square of it.
    """
    inflated = b""
    while len(data) > 1 and len(inflated) < most:
        half, trial = data[: len(data) // 2], stream.copy()
        try:
            inflated += trial.decompress(half, most - len(inflated))
        except zlib.error:
            data = half
        else:
            data, stream = data[len(half) :], trial
    return inflated
