"""The frames of dialect v1, as docs/protocol.md has them. Pure: bytes in, bytes out.

The hub reads and writes by these; ``backchannel.client`` has its own, written from the page alone.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from backchannel.errors import InvalidMessage
from backchannel.messages import Frame, text_and_path

__all__ = [
    "NAME",
    "PREFIX",
    "Ack",
    "Call",
    "Cancel",
    "Device",
    "Error",
    "FromClient",
    "FromServer",
    "GoingAway",
    "Greeting",
    "Hello",
    "Join",
    "Leave",
    "Lost",
    "Member",
    "Message",
    "Ping",
    "Pong",
    "Presence",
    "Publication",
    "Publish",
    "Renew",
    "Renewed",
    "Reply",
    "Snapshot",
    "Subscribe",
    "Subscribed",
    "UnknownType",
    "Unsubscribe",
    "Unsubscribed",
    "Who",
    "head_of",
    "problem_of_event",
    "read",
    "schema",
    "write",
]

PREFIX: Final = "backchannel.v"
NAME: Final = PREFIX + "1.json"
"""The WebSocket subprotocol."""

T = TypeVar("T")

Id = Annotated[int, Meta(ge=1, le=2**53 - 1, description="chosen by who sends it")]
Channel = Annotated[str, Meta(min_length=1, max_length=255, description="a channel's name")]
Place = Annotated[str, Meta(max_length=90, description="a position, as the server gave it")]
Seconds = Annotated[float, Meta(ge=0, description="seconds")]
Data = msgspec.Raw
"""Any JSON value, not read yet; UNSET where it came as bytes behind the frame, or not at all."""


class Message(Struct, tag="message", tag_field="type"):
    """To the listener, or from it."""

    data: Data | UnsetType = UNSET
    id: Id | UnsetType = UNSET
    again: bool = False


class Call(Struct, tag="call", tag_field="type"):
    """A question with one answer: ``reply`` or ``error``, with the same id."""

    id: Id
    event: str
    data: Data | UnsetType = UNSET
    timeout: Seconds | None = None


class Cancel(Struct, tag="cancel", tag_field="type"):
    """Nobody waits for that answer any more."""

    id: Id


class Reply(Struct, tag="reply", tag_field="type"):
    """The answer to a call."""

    id: Id
    data: Data | UnsetType = UNSET


class Error(Struct, tag="error", tag_field="type", omit_defaults=True):
    """Why a frame, or a call, failed."""

    code: str
    text: str = ""
    id: Id | UnsetType = UNSET
    field: str | UnsetType = UNSET


# ── from the client ───────────────────────────────────────────────────────────────────────────


class Hello(Struct, tag="hello", tag_field="type"):
    """The client's first frame."""

    resume: str | None = None
    positions: dict[str, str] = {}
    id: Id | UnsetType = UNSET


class Publish(Struct, tag="publish", tag_field="type"):
    """To a channel, where a rule allows it."""

    channel: Channel
    data: Data | UnsetType = UNSET
    id: Id | UnsetType = UNSET
    again: bool = False


class Subscribe(Struct, tag="subscribe", tag_field="type"):
    """Asks to enter a channel."""

    id: Id
    channel: Channel
    since: Place | None = None


class Unsubscribe(Struct, tag="unsubscribe", tag_field="type"):
    """Leaves a channel."""

    id: Id
    channel: Channel


class Who(Struct, tag="presence", tag_field="type"):
    """Asks who is in a channel."""

    id: Id
    channel: Channel


class Renew(Struct, tag="renew", tag_field="type"):
    """Brings a newer token of the same user."""

    id: Id
    token: str


class Ping(Struct, tag="ping", tag_field="type"):
    """Asks for a sign of life."""


FromClient = (
    Hello | Message | Publish | Call | Cancel | Reply | Error | Subscribe | Unsubscribe | Who
    | Renew | Ping
)  # fmt: skip


# ── from the server ───────────────────────────────────────────────────────────────────────────


class Greeting(Struct, tag="hello", tag_field="type"):
    """The server's first frame."""

    connection: str
    resumed: bool
    user: str | None
    resume: str | None
    window: Seconds
    channels: list[str]
    ping: Seconds
    max_message: int
    expires_in: Seconds | None = None


class Publication(Struct, tag="publication", tag_field="type"):
    """What was published to a channel that the client is in."""

    channel: str
    data: Data | UnsetType = UNSET
    position: Place | UnsetType = UNSET


class Subscribed(Struct, tag="subscribed", tag_field="type", omit_defaults=True):
    """The client is in a channel, and has had all up to the position."""

    channel: str
    id: Id | UnsetType = UNSET
    position: Place | UnsetType = UNSET


class Unsubscribed(Struct, tag="unsubscribed", tag_field="type", omit_defaults=True):
    """The client is out of a channel."""

    channel: str
    id: Id | UnsetType = UNSET
    text: str | UnsetType = UNSET


class Lost(Struct, tag="lost", tag_field="type", omit_defaults=True):
    """Some of a channel are missing, here; without one, of what was for the client itself."""

    channel: str | UnsetType = UNSET
    position: Place | UnsetType = UNSET


class Snapshot(Struct, tag="snapshot", tag_field="type"):
    """The state of a channel at a position."""

    channel: str
    position: Place
    data: Data | UnsetType = UNSET


class Device(Struct):
    """One connection of a user."""

    connection: str
    meta: dict[str, Any]


class Member(Struct):
    """A user in a channel."""

    user: str
    devices: list[Device]


class Presence(Struct, tag="presence", tag_field="type"):
    """Who is in a channel."""

    id: Id
    channel: str
    users: list[Member]


class Join(Struct, tag="join", tag_field="type"):
    """A user's first device has come into a channel."""

    channel: str
    user: str


class Leave(Struct, tag="leave", tag_field="type"):
    """A user's last device has left a channel."""

    channel: str
    user: str


class Ack(Struct, tag="ack", tag_field="type", omit_defaults=True):
    """That message or publication is done."""

    id: Id
    position: Place | UnsetType = UNSET


class Renewed(Struct, tag="renewed", tag_field="type"):
    """The newer token holds."""

    id: Id
    expires_in: Seconds | None


class GoingAway(Struct, tag="going_away", tag_field="type"):
    """The connection ends; come back no sooner than after so many seconds."""

    after: Seconds


class Pong(Struct, tag="pong", tag_field="type"):
    """A sign of life."""


FromServer = (
    Greeting | Message | Publication | Subscribed | Unsubscribed | Lost | Snapshot | Presence
    | Join | Leave | Call | Cancel | Reply | Error | Ack | Renewed | GoingAway | Pong
)  # fmt: skip


# ── read and written ──────────────────────────────────────────────────────────────────────────


class UnknownType(InvalidMessage):
    """There is no such type of frame."""


class _Head(Struct):
    type: str


class _Numbered(Struct):
    id: Id
    type: Any = None


_client = msgspec.json.Decoder(FromClient)
_server = msgspec.json.Decoder(FromServer)
_head = msgspec.json.Decoder(_Head)
_encoder = msgspec.json.Encoder()
_DECODERS: Final[dict[str, msgspec.json.Decoder[Any]]] = {"client": _client, "server": _server}
_TYPES: Final = {
    sender: frozenset(kind.__struct_config__.tag for kind in union.__args__)
    for sender, union in (("client", FromClient), ("server", FromServer))
}


def read(frame: Frame, sender: str) -> tuple[Any, bytes | None]:
    """Read a frame.

    Args:
        frame: a WebSocket message.
        sender: who sent it: ``"client"`` or ``"server"``.

    Returns:
        What it says: one of ``FromClient`` or ``FromServer``; and the bytes that are its data,
        where it was a binary message.

    Raises:
        UnknownType: no such type of frame.
        InvalidMessage: it is no frame; ``field`` is the path of what is wrong.
    """
    data = None
    if isinstance(frame, bytes):
        head, feed, data = frame.partition(b"\n")
        if not feed:
            text = "a binary frame is a JSON object, a line feed, bytes"
            raise InvalidMessage(text, field="$", code="invalid")
        frame = head
    try:
        return _DECODERS[sender].decode(frame), data
    except msgspec.ValidationError as error:
        _check_type(frame, sender)
        text, path = text_and_path(str(error))
        raise InvalidMessage(text, field=path, code="invalid") from None
    except UnicodeDecodeError:
        raise InvalidMessage("not valid JSON: not UTF-8", field="$", code="invalid") from None
    except RecursionError:
        raise InvalidMessage("nested too deeply", field="$", code="invalid") from None
    except msgspec.DecodeError as error:
        why = "half a surrogate pair in a string" if _has_half_a_pair(frame) else str(error)
        raise InvalidMessage(f"not valid JSON: {why}", field="$", code="invalid") from None


def _has_half_a_pair(frame: Frame) -> bool:
    r"""Tell whether ``"\ud800"`` is all that is wrong: JSON.stringify writes it, RFC 8259 warns."""
    try:
        text = json.dumps(json.loads(frame), ensure_ascii=False)
    except (ValueError, RecursionError):
        return False
    return any("\ud800" <= character <= "\udfff" for character in text)


_FIRST: Final = re.compile(r'\s*\{(?:\s*"\w+"\s*:\s*(?:"[^"\\]*"|[\w.+-]+)\s*,){1,16}')
"""The first fields of an object, up to one that is no plain text or number, or can't be read."""


def head_of(frame: Frame) -> tuple[Any, int | None]:
    """Return the type and the id of a frame that can't be read otherwise; None for what it lacks.

    Of one that is no JSON, or is nested too deeply, what stands before that counts.
    """
    head = frame.partition(b"\n")[0] if isinstance(frame, bytes) else frame
    fields: Any = {}
    try:
        fields = json.loads(head)
    except (ValueError, RecursionError):
        text = head if isinstance(head, str) else head.decode(errors="replace")
        if (first := _FIRST.match(text)) is not None:
            fields = _fields(first[0][:-1] + "}")
    try:
        found = msgspec.convert(fields, _Numbered)
    except ValueError:
        return None, None
    return found.type, found.id


def _fields(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {}


def problem_of_event(frame: Frame) -> str | None:
    """Tell what is wrong with an event for a channel; None where clients understand it."""
    try:
        event, _ = read(frame, "server")
    except UnknownType:
        return None  # of a newer node: clients leave it at that
    except InvalidMessage as error:
        return str(error)
    return None if isinstance(event, Join | Leave) else "it is no event of a channel"


def _check_type(frame: Frame, sender: str) -> None:
    """Tell a type that is not known from one whose fields are wrong."""
    try:
        kind = _head.decode(frame).type
    except (ValueError, RecursionError):
        raise InvalidMessage(
            'a frame is a JSON object with a "type"', field="$.type", code="invalid"
        ) from None
    if kind not in _TYPES[sender]:
        known = ", ".join(sorted(_TYPES[sender]))
        raise UnknownType(
            f"unknown type {kind[:40]!r}; known are {known}", field="$.type", code="unknown_type"
        )


def write(frame: Any, data: Frame | None = None) -> Frame:
    """Return a frame as a WebSocket message.

    Args:
        frame: one of ``FromClient`` or ``FromServer``.
        data: its data as bytes, which makes it a binary message.
    """
    head = _encoder.encode(frame)
    return head.decode() if data is None else head + b"\n" + bytes(data)  # type: ignore[arg-type]


def schema(sender: str) -> dict[str, Any]:
    """Return the JSON Schema of all frames that a sender sends.

    Args:
        sender: ``"client"`` or ``"server"``.
    """
    union: Any = FromClient if sender == "client" else FromServer
    (found,), parts = msgspec.json.schema_components(
        [union], schema_hook=lambda _kind: {}, ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Frames of {NAME} from the {sender}",
        **found,
        "$defs": parts,
    }
