"""What the endpoints of a hub take, answer and send, read off their listeners' annotations."""

from __future__ import annotations

import types
import typing
from collections.abc import Awaitable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from backchannel.annotations import NO_MESSAGE, UNSAID, Unresolved
from backchannel.callbacks import Callback, Callbacks
from backchannel.endpoint import Endpoint
from backchannel.errors import ListenerError, Reject
from backchannel.listener import Listener
from backchannel.messages import union_members
from backchannel.schema.types import Schema, Side, Wanted, json_schemas, named
from backchannel.sent import Sent
from backchannel.template import Variable

__all__ = ["Described", "Description", "Kind", "Message", "Taken", "describe"]

Kind = Literal["json", "text", "bytes", "any"]
"""Of a message: JSON in a text frame, text as such, a binary frame, or nothing is said of it."""

_BYTES: Final = (bytes, bytearray, memoryview)
_ANYTHING: Final = (None, Any, object, UNSAID)
_NO_ANSWER: Final = (None, types.NoneType, Sent, Reject, typing.NoReturn, typing.Never)


@dataclass(slots=True)
class Message:
    """One kind of message.

    Args:
        kind: what its frame is.
        schema: the JSON Schema of what is in it.
    """

    kind: Kind
    schema: Schema = field(default_factory=dict[str, Any])


@dataclass(slots=True)
class Taken:
    """What a client may send.

    Args:
        event: the tag that it is routed by; None is ``on_message``.
        about: the first paragraph of the callback's docstring.
        data: what an event is called with, as its annotation has it; None takes none.
        messages: what may be sent, each kind of it; of an event, with its tag.
        only_called: such as a list can't have a tag, so that only calls can bring it.
        answers: what comes back, each kind of it; None where nothing is said.
        may_be_silent: nothing may come back, or null where it was called.
    """

    event: str | None
    about: str
    data: list[Message] | None
    messages: list[Message]
    answers: list[Message] | None
    may_be_silent: bool
    only_called: bool = False


@dataclass(slots=True)
class Described:
    """An endpoint.

    Args:
        name: its listener's.
        template: its URL template, as it was written.
        address: the same with bare names in braces.
        parameters: names and kinds of what stands in braces.
        channel: the pattern of the channel that its connections enter; None where they enter none.
        tag: the field that events are chosen by.
        about: the first paragraph of the listener's docstring.
        subprotocols: those that it speaks, of its own.
        taken: what clients may send.
        sends: what it sends; None where nothing is said.
        complains: what is no valid message is answered with Backchannel's own error.
    """

    name: str
    template: str
    address: str
    parameters: dict[str, str]
    channel: str | None
    tag: str
    about: str
    subprotocols: tuple[str, ...]
    taken: list[Taken]
    sends: list[Message] | None
    complains: bool


@dataclass(slots=True)
class Description:
    """All endpoints, in the order in which they were added, and the classes of their messages."""

    endpoints: list[Described]
    components: dict[str, Schema]


def describe(endpoints: Iterable[Endpoint]) -> Description:
    """Describe endpoints.

    Raises:
        ListenerError: an annotation can't be resolved, or has no JSON Schema.
    """
    reader = _Reader()
    described = [reader.read(endpoint) for endpoint in endpoints]
    components = reader.fill()
    for one in described:
        for taken in one.taken:
            if taken.event is not None:
                _tag(taken, one.tag, taken.event, components)
    return Description(described, components)


class _Reader:
    """Collects what is annotated; its schemas are made together, so that names are told apart."""

    def __init__(self) -> None:
        self._wanted: list[Wanted] = []
        self._places: list[Schema] = []

    def fill(self) -> dict[str, Schema]:
        """Make the schemas; return those of the classes."""
        schemas, components = json_schemas(self._wanted)
        for place, schema in zip(self._places, schemas, strict=True):
            place.update(schema)
        return components

    def read(self, endpoint: Endpoint) -> Described:
        """Read an endpoint; its schemas are empty until they are filled in."""
        callbacks, template = endpoint.callbacks, endpoint.template
        taken = [self._taken(name, one) for name, one in sorted(callbacks.events.items())]
        if callbacks.on_message is not None:
            taken.append(self._taken(None, callbacks.on_message))
        parts = [
            f"{{{part.name}}}" if isinstance(part, Variable) else part for part in template.segments
        ]
        return Described(
            name=callbacks.name,
            template=template.text,
            address="/" + "/".join(parts),
            parameters={p.name: p.kind for p in template.segments if isinstance(p, Variable)},
            channel=None if endpoint.pattern is None else endpoint.pattern.text,
            tag=endpoint.tag,
            about=_first_paragraph(callbacks.about),
            subprotocols=endpoint.subprotocols,
            taken=taken,
            sends=self._sends(callbacks),
            complains=_complains(callbacks),
        )

    def _sends(self, callbacks: Callbacks) -> list[Message] | None:
        if callbacks.sends is None:
            return None
        return [self._sent(one, f"{callbacks.name}.sends") for one in callbacks.sends]

    def _taken(self, event: str | None, callback: Callback) -> Taken:
        label = f"{callback.name} ({callback.where})"
        data = None
        messages: list[Message] = []
        if event is None:
            messages = self._messages(callback.takes, label)
        elif callback.takes is not NO_MESSAGE:
            data = self._messages(callback.takes, label, split=False)
        answers = self._answers(callback, label)
        silent = answers is None or len(answers) < len(_members_of_return(callback))
        return Taken(event, _first_paragraph(callback.about), data, messages, answers, silent)

    def _messages(self, annotation: Any, label: str, *, split: bool = True) -> list[Message]:
        """Return what ``on_message``'s annotation admits, as ``decoder_for`` reads it."""
        if annotation in _ANYTHING:
            return [Message("any")]
        members = union_members(annotation)
        if set(members) <= {str, bytes}:
            return [_PLAIN[one]() for one in members]
        kinds = members if split else (annotation,)
        return [Message("json", self._schema(one, "client", label)) for one in kinds]

    def _answers(self, callback: Callback, label: str) -> list[Message] | None:
        if isinstance(callback.returns, Unresolved):
            raise ListenerError(f"{label}: {callback.returns.problem}")
        members = _members_of_return(callback)
        if any(one is UNSAID or one is Any or one is object for one in members):
            return None
        label = f"{label}: the return annotation"
        return [self._sent(one, label) for one in members if one not in _NO_ANSWER]

    def _sent(self, annotation: Any, label: str) -> Message:
        if annotation is str:
            return Message("text", {"type": "string"})
        if annotation in _BYTES:
            return Message("bytes", dict(_BINARY))
        if annotation in _ANYTHING:
            return Message("any")
        return Message("json", self._schema(annotation, "server", label))

    def _schema(self, annotation: Any, side: Side, label: str) -> Schema:
        place: Schema = {}
        self._wanted.append(Wanted(annotation, side, label))
        self._places.append(place)
        return place


_BINARY: Final = {"type": "string", "format": "binary"}
_PLAIN: Final = {
    str: lambda: Message("text", {"type": "string"}),
    bytes: lambda: Message("bytes", dict(_BINARY)),
}


def _members_of_return(callback: Callback) -> tuple[Any, ...]:
    returns = callback.returns
    if typing.get_origin(returns) in (Awaitable, Coroutine):
        returns = typing.get_args(returns)[-1]
    return union_members(returns)


def _complains(callbacks: Callbacks) -> bool:
    """Tell whether what is no valid message gets the answer that every listener gives by itself."""
    on_invalid, on_message = callbacks.on_invalid, callbacks.on_message
    if on_invalid is None or getattr(on_invalid.function, "__func__", None) is not (
        Listener.on_invalid
    ):
        return False
    return bool(callbacks.events) or (on_message is not None and on_message.decode is not None)


def _tag(taken: Taken, tag: str, event: str, components: dict[str, Schema]) -> None:
    """Fill in what an event's messages are: its data, and the tag that it is routed by."""
    schema: Schema = {}
    for one in taken.data or ():
        if one.kind == "json":
            schema = one.schema
    if not _admits_objects(schema, components):
        taken.messages, taken.only_called = [Message("json", schema)], True
    else:
        taken.messages = [Message("json", _tagged(schema, tag, event, components))]


def _tagged(schema: Schema, tag: str, event: str, components: dict[str, Schema]) -> Schema:
    marker: Schema = {
        "type": "object",
        "properties": {tag: {"const": event}},
        "required": [tag],
    }
    if not schema:
        return marker
    found = components.get(named(schema) or "", schema)
    mark = found.get("properties", {}).get(tag, {})
    is_marked = mark.get("enum") == [event] or mark.get("const") == event
    if is_marked and tag in found.get("required", ()):
        return schema
    return {"allOf": [schema, marker]}


def _admits_objects(schema: Schema, components: dict[str, Schema]) -> bool:
    found = components.get(named(schema) or "", schema)
    choices = found.get("anyOf", found.get("oneOf"))
    if choices is not None:
        return any(_admits_objects(one, components) for one in choices)
    return "properties" in found or found.get("type", "object") == "object"


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").strip().partition("\n\n")[0].split())
