"""The opening handshake, RFC 6455 §4.2: a request as almost all clients send it, and the 101.

Pure: bytes in, bytes out. What is not exactly as usual is left to a library that knows every case
and says what is wrong; the usual one is read in a tenth of the time.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha1
from typing import Final, NamedTuple

__all__ = ["Opening", "read_opening", "switching"]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_MOST: Final = 8192
"""Bytes of a usual request: no line of it is over a limit of any library."""

_MOST_HEADERS: Final = 128

_TOKEN: Final = rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_OFFER: Final = rb"%b(?:; *%b(?:=%b)?)*" % (_TOKEN, _TOKEN, _TOKEN)

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
        data: the whole request, checked by an HTTP parser, names of headers in lower case.

    Returns:
        None where it is not quite usual, which need not mean that it is wrong.
    """
    if not data.startswith(b"GET /") or not data.endswith(b"\r\n\r\n") or len(data) > _MOST:
        return None
    first, *lines = data[:-4].split(b"\r\n")
    target, _, protocol = first[4:].partition(b" ")
    if protocol != b"HTTP/1.1" or len(lines) > _MOST_HEADERS or not target.isascii():
        return None
    headers: list[tuple[bytes, bytes]] = []
    leading: dict[bytes, str] = {}
    for line in lines:
        name, separator, value = line.partition(b": ")
        if not separator:
            return None
        value = value.strip(b" \t")
        headers.append((name, value))
        if (is_usual := _USUAL.get(name)) is not None:
            if name in leading or is_usual(value) is None:
                return None
            leading[name] = value.decode("latin-1")
    if not leading.keys() >= _NEEDED:
        return None
    offers = leading.get(b"sec-websocket-extensions", "")
    subprotocols = _LIST(leading.get(b"sec-websocket-protocol", ""))
    return Opening(target, headers, leading[b"sec-websocket-key"], offers, subprotocols)


def switching(key: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the 101 that ends a handshake (RFC 6455 §4.2.2).

    Args:
        key: the client's ``Sec-WebSocket-Key``.
        headers: names and values of what else it says, in their order.
    """
    accept = b64encode(sha1(key.encode() + _GUID, usedforsecurity=False).digest())
    said = b"".join([b"%b: %b\r\n" % header for header in headers])
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (accept, said)
    )
