"""Frames of the dialect v1, as docs/protocol.md has them, written and read by a client; pure."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import msgspec

from backchannel.client.errors import NotUnderstood
from backchannel.errors import InvalidMessage
from backchannel.messages import encode

__all__ = [
    "OVERHEAD",
    "SUBPROTOCOL",
    "Body",
    "Incoming",
    "Received",
    "check_text",
    "decoded",
    "pack",
    "prepared",
    "unpack",
]

SUBPROTOCOL: Final = "backchannel.v1.json"
OVERHEAD: Final = 256
"""Bytes that a frame costs in memory beside its own."""

Body = msgspec.Raw | bytes
"""A frame's data: JSON that is not parsed yet, or bytes."""

_KNOWN: Final = frozenset({
    "hello", "message", "ack", "error", "publication", "subscribed", "unsubscribed", "lost",
    "snapshot", "presence", "join", "leave", "reply", "call", "cancel", "renewed", "pong",
    "going_away",
})  # fmt: skip


class Incoming(msgspec.Struct):
    """The fields that frames of the server have; ``type`` says which of them a frame has."""

    type: str
    id: int | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    channel: str = ""
    position: str | None = None
    event: str = ""
    timeout: float | None = None
    code: str = ""
    text: str | None = None
    field: str | None = None
    user: str | None = None
    users: msgspec.Raw = msgspec.Raw(b"[]")
    expires_in: float | None = None
    after: float = 0.0
    connection: str = ""
    resumed: bool = False
    resume: str | None = None
    window: float | None = None
    channels: tuple[str, ...] = ()
    ping: float | None = None
    max_message: int | None = None


class Received(NamedTuple):
    """One frame of the server.

    Args:
        frame: its fields.
        data: what it carries.
        size: bytes that it takes in memory, about.
    """

    frame: Incoming
    data: Body
    size: int


class _Kind(msgspec.Struct):
    type: str


_incoming: Final = msgspec.json.Decoder(Incoming)
_kind: Final = msgspec.json.Decoder(_Kind)


def unpack(message: str | bytes) -> Received | None:
    """Read a WebSocket message of the server.

    Returns:
        None for a frame of a type that clients don't know, which they ignore.

    Raises:
        NotUnderstood: it is no frame.
    """
    head, data = message, None
    if isinstance(message, bytes):
        head, _, data = message.partition(b"\n")
    try:
        frame = _read(head)
    except (ValueError, RecursionError) as error:
        try:
            if _kind.decode(head).type not in _KNOWN:
                return None  # its fields may mean something else
        except (ValueError, RecursionError):
            pass
        raise NotUnderstood(f"the server sent what is no frame of v1: {error}") from error
    if frame.type not in _KNOWN:
        return None
    return Received(frame, frame.data if data is None else data, len(message) + OVERHEAD)


def _read(head: str | bytes) -> Incoming:
    """Read a frame's JSON; also what is nested as deeply as a server can pass on.

    How deep that may be depends on how much of the stack is used already, here and there.
    """
    try:
        return _incoming.decode(head)
    except RecursionError:
        with ThreadPoolExecutor(1) as new_stack:
            return new_stack.submit(_incoming.decode, head).result()


def prepared(data: Any) -> Body:
    """Return what an application wants to send as a frame's data.

    Raises:
        UnsendableMessage: it has no valid JSON form.
    """
    encoded = encode(data)
    if isinstance(encoded, bytes):
        return encoded
    return msgspec.Raw(msgspec.json.encode(data) if isinstance(data, str) else encoded.encode())


def check_text(text: object, what: str) -> str:
    """Return text that a field of a frame can carry.

    Args:
        text: what was given for it.
        what: what that is, for people.

    Raises:
        TypeError: it is no str.
        ValueError: it has a lone surrogate, which UTF-8 can't express.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} is a str, not {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has a lone surrogate at character {error.start}, which UTF-8 can't express"
        ) from None
    return text


def pack(fields: dict[str, Any], data: Body | None = None) -> tuple[bytes, bool]:
    """Return a frame's bytes, and whether it is a text message.

    Args:
        fields: all but its data.
        data: None where it has none.
    """
    if isinstance(data, bytes):
        return msgspec.json.encode(fields) + b"\n" + data, False
    return msgspec.json.encode(fields if data is None else {**fields, "data": data}), True


def decoded(data: Body, type_: Any = None) -> Any:
    """Return a frame's data as what an application wants it to be.

    Args:
        data: JSON that is not parsed yet, or bytes.
        type_: what msgspec can decode: a Struct, a dataclass, a TypedDict, ``list[int]`` …;
            None is whatever it is.

    Raises:
        InvalidMessage: it is something else, or nothing can be made of it, such as of ``1e999``;
            with the path of what is wrong.
    """
    if not isinstance(data, msgspec.Raw):
        if type_ in {None, Any, bytes, object}:
            return data
        raise InvalidMessage(f"expected {_called(type_)}, got {len(data)} bytes")
    try:
        return msgspec.json.decode(data, type=Any if type_ is None else type_)
    except RecursionError as error:
        raise InvalidMessage("nested too deeply", field="$") from error
    except ValueError as error:
        text, _, path = str(error).partition(" - at `")
        raise InvalidMessage(text, field=path.rstrip("`") or "$") from error


def _called(type_: Any) -> str:
    return getattr(type_, "__name__", None) or str(type_)
