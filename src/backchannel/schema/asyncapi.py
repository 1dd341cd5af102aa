"""A description of endpoints as an AsyncAPI 3 document."""

from __future__ import annotations

import json
import re
from typing import Any, Final, cast

from backchannel.schema.described import Described, Description, Message, Taken
from backchannel.schema.types import named

__all__ = ["VERSION", "asyncapi"]

VERSION: Final = "3.0.0"
_JSON: Final = "application/json"
_CONTENT: Final = {"text": "text/plain", "bytes": "application/octet-stream"}
_KINDS: Final = {
    "int": "An integer.",
    "uuid": "A UUID.",
    "path": "The rest of the path; it may have slashes.",
}
_COMPLAINT: Final = {
    "description": "What was sent is no valid message; the connection is kept. Clients that speak "
    "backchannel.v1.json get an error frame instead.",
    "type": "object",
    "properties": {
        "type": {"const": "error"},
        "code": {"type": "string"},
        "text": {"type": "string"},
        "field": {"type": ["string", "null"]},
    },
    "required": ["type", "code", "text", "field"],
}


def asyncapi(description: Description, title: str, version: str) -> dict[str, Any]:
    """Return the document.

    Args:
        description: what it tells.
        title: what is described, for people.
        version: of that, as its authors count.

    Returns:
        The document, as values that JSON has. Messages stand with their channel, classes below
        ``components``. What AsyncAPI has no word for is below ``x-backchannel``.
    """
    document: dict[str, Any] = {
        "asyncapi": VERSION,
        "info": {"title": title, "version": version},
        "defaultContentType": _JSON,
        "channels": {},
        "operations": {},
    }
    for one in description.endpoints:
        taken = document["channels"]
        name = _free(one.name, taken)
        writer = _Writer(name, one)
        taken[name] = writer.channel()
        document["operations"].update(writer.operations)
    if description.components:
        components = dict(sorted(description.components.items()))
        document["components"] = {"schemas": components}
    return cast("dict[str, Any]", json.loads(json.dumps(document)))  # tuples are lists in it


class _Writer:
    """Writes one endpoint."""

    def __init__(self, name: str, endpoint: Described):
        self._name = name
        self._endpoint = endpoint
        self._messages: dict[str, dict[str, Any]] = {}
        self.operations: dict[str, dict[str, Any]] = {}

    def channel(self) -> dict[str, Any]:
        """Return the channel, and fill in what is done by it."""
        endpoint = self._endpoint
        for taken in endpoint.taken:
            self._receive(taken)
        self._send()
        channel: dict[str, Any] = {"address": endpoint.address}
        if endpoint.about:
            channel["description"] = endpoint.about
        channel["messages"] = self._messages
        if endpoint.parameters:
            channel["parameters"] = {
                name: {
                    **({"description": _KINDS[kind]} if kind in _KINDS else {}),
                    "x-backchannel": {"kind": kind},
                }
                for name, kind in endpoint.parameters.items()
            }
        channel["bindings"] = {"ws": {"method": "GET"}}
        told = {
            "template": endpoint.template,
            "tag": endpoint.tag,
            "channel": endpoint.channel,
            "subprotocols": list(endpoint.subprotocols),
        }
        channel["x-backchannel"] = {key: value for key, value in told.items() if value}
        return channel

    def _receive(self, taken: Taken) -> None:
        messages = [self._message(one, taken.event) for one in taken.messages]
        operation = self._operation("receive", messages, taken.about)
        if taken.answers:
            answers = [self._message(one) for one in taken.answers]
            operation["reply"] = {"channel": self._reference(), "messages": answers}
        told = {
            "event": taken.event,
            "answers": _how_often(taken),
            "only_called": taken.only_called,
        }
        told = {key: value for key, value in told.items() if value}
        operation.update({"x-backchannel": told} if told else {})
        word = "on_message" if taken.event is None else f"event.{taken.event}"
        self._add(word, operation)

    def _send(self) -> None:
        if self._endpoint.sends is not None:
            messages = [self._message(one) for one in self._endpoint.sends]
            self._add("sends", self._operation("send", messages))
        if self._endpoint.complains:
            message = self._message(Message("json", _COMPLAINT), "invalid")
            operation = self._operation("send", [message])
            operation["x-backchannel"] = {"complains": True}
            self._add("on_invalid", operation)

    def _operation(
        self, action: str, messages: list[dict[str, str]], about: str = ""
    ) -> dict[str, Any]:
        operation: dict[str, Any] = {"action": action, "channel": self._reference()}
        if about:
            operation["description"] = about
        distinct = {one["$ref"]: one for one in messages}
        return {**operation, "messages": list(distinct.values())}

    def _add(self, word: str, operation: dict[str, Any]) -> None:
        self.operations[_free(f"{self._name}.{word}", self.operations)] = operation

    def _message(self, message: Message, name: str | None = None) -> dict[str, str]:
        """Put a message among those of the channel; return the reference to it."""
        name = name or named(message.schema) or {"any": "anything"}.get(message.kind, message.kind)
        written: dict[str, Any] = {"name": name}
        if message.kind == "any":
            written["description"] = "Any text or bytes."
            written["x-backchannel"] = {"any": True}
        else:
            written["contentType"] = _CONTENT.get(message.kind, _JSON)
        written["payload"] = message.schema
        for key, other in self._messages.items():
            if other == written:
                return self._reference("messages", key)
        key = _free(name, self._messages)
        self._messages[key] = written
        return self._reference("messages", key)

    def _reference(self, *more: str) -> dict[str, str]:
        return {"$ref": "/".join(["#/channels", self._name, *more])}


def _how_often(taken: Taken) -> str:
    if taken.answers is None:
        return ""
    if not taken.answers:
        return "never"
    return "maybe" if taken.may_be_silent else "always"


def _free(name: str, taken: dict[str, Any]) -> str:
    """Return a name as a key that is not taken, and that needs no escape in a reference."""
    key = wanted = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    number = 2
    while key in taken:
        key, number = f"{wanted}_{number}", number + 1
    return key
