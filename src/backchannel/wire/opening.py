"""The opening handshake, RFC 6455 §4.2: a request as almost all clients send it, and the 101.

Pure: bytes in, bytes out. What is not exactly as usual is left to a library that knows every case
and says what is wrong; the usual one takes an eighth of the time.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha1
from typing import Final, NamedTuple

from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS

__all__ = ["Opening", "read_opening", "switching"]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_MOST: Final = min(8192, MAX_LINE_LENGTH)
"""Bytes of a usual request: no line of it is over a limit of the library's."""

_TOKEN: Final = rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_TEXT: Final = rb"[\t\x20-\x7e\x80-\xff]*"
_OFFER: Final = rb"%b(?:; *%b(?:=%b)?)*" % (_TOKEN, _TOKEN, _TOKEN)

_is_name: Final = re.compile(_TOKEN).fullmatch
_is_text: Final = re.compile(_TEXT).fullmatch
_parts: Final = re.compile(
    rb"GET (/[!-~]*) HTTP/1\.1\r\n((?:%b: %b\r\n)*)\r\n" % (_TOKEN, _TEXT)
).fullmatch

_USUAL: Final = {
    name: re.compile(pattern).fullmatch
    for name, pattern in {
        b"connection": rb"(?i:upgrade|keep-alive, ?upgrade)",
        b"upgrade": rb"(?i:websocket)",
        b"sec-websocket-version": rb"13",
        b"sec-websocket-key": rb"[A-Za-z0-9+/]{21}[AQgw]==",  # 16 bytes in base64
        b"sec-websocket-protocol": rb"%b(?:, *%b)*" % (_TOKEN, _TOKEN),
        b"sec-websocket-extensions": rb"%b(?:, *%b)*" % (_OFFER, _OFFER),
        b"origin": rb".*",
        # A body: never where a WebSocket is to begin.
        b"content-length": rb"(?!)",
        b"transfer-encoding": rb"(?!)",
    }.items()
}
"""What the headers that count are like; each comes once at most."""

_LIST: Final = re.compile(r"[^, ]+").findall

_NEEDED: Final = {b"connection", b"upgrade", b"sec-websocket-version", b"sec-websocket-key"}


class Opening(NamedTuple):
    """A valid request to begin a WebSocket.

    Attributes:
        target: path and query, as they came.
        headers: names and values in their order.
        key: its ``Sec-WebSocket-Key``.
        offers: its ``Sec-WebSocket-Extensions``; empty without.
        subprotocols: what it offers, in its order of preference.
    """

    target: bytes
    headers: list[tuple[bytes, bytes]]
    key: str
    offers: str
    subprotocols: list[str]


def read_opening(data: bytes) -> Opening | None:
    """Read a usual request of a client that wants a WebSocket.

    Args:
        data: the whole request, names of headers in lower case.

    Returns:
        None where it is not quite usual, which need not mean that it is wrong.
    """
    if len(data) > _MOST or (parts := _parts(data)) is None:
        return None
    target, lines = parts.groups()
    headers: list[tuple[bytes, bytes]] = []
    known: dict[bytes, str] = {}
    for line in lines.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b": ")
        value = value.strip(b" \t")
        headers.append((name, value))
        if (is_usual := _USUAL.get(name)) is not None:
            if name in known or is_usual(value) is None:
                return None
            known[name] = value.decode("latin-1")
    if not known.keys() >= _NEEDED or len(headers) > MAX_NUM_HEADERS:
        return None
    offers = known.get(b"sec-websocket-extensions", "")
    subprotocols = _LIST(known.get(b"sec-websocket-protocol", ""))
    return Opening(target, headers, known[b"sec-websocket-key"], offers, subprotocols)


def switching(key: str, headers: Iterable[Sequence[bytes]]) -> bytes:
    """Return the 101 that ends a handshake (RFC 6455 §4.2.2).

    Args:
        key: the client's ``Sec-WebSocket-Key``.
        headers: names and values of what else it says, in their order.

    Raises:
        ValueError: one can't be sent as a header: with a line break in it, it would be two.
    """
    accept = b64encode(sha1(key.encode() + _GUID, usedforsecurity=False).digest())
    said = [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n" % accept
    ]
    for name, value in headers:
        if _is_name(name) is None or _is_text(value) is None:
            raise ValueError(f"a handshake can't be answered with the header {name!r}: {value!r}")
        said.append(b"%b: %b\r\n" % (name, value))
    said.append(b"\r\n")
    return b"".join(said)
