"""A description of endpoints as TypeScript: the message maps of the browser's client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any, Final, cast

from backchannel.schema.described import Described, Description, Message, Taken
from backchannel.schema.types import PREFIX, Schema, named

__all__ = ["typescript"]

_IDENTIFIER: Final = re.compile(r"[A-Za-z_$][\w$]*", re.ASCII)
_PRIMITIVE: Final = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
}
_HEAD: Final = """\
// Made by `backchannel schema`; change the listener's annotations and make it anew.
// Endpoints are message maps of the client: connect<NAME>("/ws/…").
"""


def typescript(description: Description) -> str:
    """Return the text of a ``.d.ts`` module: a type for each class, an interface for each endpoint.

    An interface has ``sends`` and ``events``, what ``send`` and ``call`` take, and where a listener
    says what it sends ``messages`` and ``channels``, what arrives.
    """
    writer = _Writer(description.components)
    classes = sorted(description.components.items())
    return "\n".join(
        [
            _HEAD,
            *(writer.component(name, schema) for name, schema in classes),
            *(writer.endpoint(one) for one in description.endpoints),
        ]
    )


class _Writer:
    def __init__(self, components: dict[str, Schema]):
        self._components = components
        self._names = dict[str, str]()
        self._taken = set[str]()
        for name in sorted(components):
            self._names[name] = self._free(name)

    def component(self, name: str, schema: Schema) -> str:
        """Declare a class."""
        about = _comment(schema.get("description", ""))
        if _is_plain_object(schema):
            abouts = [one.get("description", "") for one in schema["properties"].values()]
            rows = [
                f"{_comment(text, '  ')}  {row}\n"
                for row, text in zip_longest(self._fields(schema), abouts, fillvalue="")
            ]
            return f"{about}export interface {self._names[name]} {{\n{''.join(rows)}}}\n"
        return f"{about}export type {self._names[name]} = {self.type(schema)};\n"

    def endpoint(self, endpoint: Described) -> str:
        """Declare an endpoint's message map."""
        words = endpoint.name.split("_")
        name = self._free("".join(word[:1].upper() + word[1:] for word in words), "Endpoint")
        rows: list[str] = []
        events = [taken for taken in endpoint.taken if taken.event is not None]
        sent = [
            message
            for taken in endpoint.taken
            if not taken.only_called
            for message in taken.messages
        ]
        rows.append(f"  sends: {self._union(sent)};")
        if events:
            rows += ["  events: {", *(self._event(one, endpoint.tag) for one in events), "  };"]
        else:
            rows.append("  events: {};")
        if endpoint.sends is not None:
            answers = [one for taken in endpoint.taken for one in taken.answers or ()]
            rows.append(f"  messages: {self._union([*endpoint.sends, *answers])};")
            if endpoint.channel is not None:
                key = _channel_key(endpoint.channel)
                rows.append(f"  channels: {{ {key}: {self._union(endpoint.sends)} }};")
        about = _comment(f"{endpoint.about} At `{endpoint.template}`.".strip())
        return f"{about}export interface {name} {{\n" + "\n".join(rows) + "\n}\n"

    def _event(self, taken: Taken, tag: str) -> str:
        answer = "unknown"
        if taken.answers is not None:
            found = [self._union(taken.answers)] if taken.answers else []
            answer = _either([*found, "null"] if taken.may_be_silent else found)
        data = ""
        if taken.data is not None:
            data = f"data: {_either(self._data(one, tag) for one in taken.data)}"
        about = _comment(taken.about, "    ")
        return f"{about}    {_key(cast('str', taken.event))}: ({data}) => {answer};"

    def _data(self, message: Message, tag: str) -> str:
        """Return what a call is given: a message without its tag, which the call names."""
        schema = message.schema
        found = self._components.get(named(schema) or "", schema)
        text = self._union([message])
        if tag in found.get("properties", {}):
            return f"Omit<{text}, {json.dumps(tag)}>"
        return text

    def _union(self, messages: Iterable[Message]) -> str:
        texts = [
            {"bytes": "Uint8Array", "any": "unknown"}.get(one.kind) or self.type(one.schema)
            for one in messages
        ]
        return " | ".join(dict.fromkeys(texts)) or "never"

    def type(self, schema: Any) -> str:
        """Return a schema's type, as an expression."""
        if not isinstance(schema, dict):
            return "never" if schema is False else "unknown"
        found = cast("Schema", schema)
        if (reference := found.get("$ref")) is not None:
            return self._names[reference.removeprefix(PREFIX)]
        if "const" in found:
            return json.dumps(found["const"], ensure_ascii=False)
        if "enum" in found:
            return _either(json.dumps(one, ensure_ascii=False) for one in found["enum"])
        for key in ("anyOf", "oneOf"):
            if key in found:
                return _either(self.type(one) for one in found[key])
        if "allOf" in found:
            return " & ".join(_grouped(self.type(one)) for one in found["allOf"])
        kind = found.get("type")
        if isinstance(kind, list):
            kinds = cast("list[str]", kind)
            return _either(self.type({**found, "type": one}) for one in kinds)
        if kind == "array":
            return self._array(found)
        if kind == "object" or "properties" in found:
            return self._object(found)
        return _PRIMITIVE.get(cast("str", kind), "unknown")

    def _array(self, schema: Schema) -> str:
        items = schema.get("items", True)
        if isinstance(items, list):
            parts = [self.type(one) for one in cast("list[object]", items)]
            rest = schema.get("additionalItems", True)
            if rest is not False:
                parts.append(f"...{_grouped(self.type(rest))}[]")
            return f"[{', '.join(parts)}]"
        return f"{_grouped(self.type(items))}[]"

    def _object(self, schema: Schema) -> str:
        """Return an object's type on one line."""
        properties: dict[str, Any] = schema.get("properties", {})
        more = schema.get("additionalProperties", not properties)
        if not properties:
            return f"Record<string, {self.type(more)}>"
        return f"{{ {' '.join(self._fields(schema))} }}"

    def _fields(self, schema: Schema) -> list[str]:
        required = schema.get("required", ())
        rows = [
            f"{_key(name)}{'' if name in required else '?'}: {self.type(one)};"
            for name, one in schema["properties"].items()
        ]
        if schema.get("additionalProperties", False) is not False:
            rows.append("[name: string]: unknown;")  # since those above are of other types
        return rows

    def _free(self, name: str, suffix: str = "_") -> str:
        text = re.sub(r"[^A-Za-z0-9_$]", "_", name)
        if text[:1].isdigit() or not text or text in _RESERVED:
            text = f"_{text}"
        plain, number = text, 2
        if text in self._taken:
            text = plain = f"{text}{suffix}"
        while text in self._taken:
            text, number = f"{plain}{number}", number + 1
        self._taken.add(text)
        return text


_RESERVED: Final = {
    *("any", "unknown", "never", "string", "number", "boolean", "symbol", "object", "bigint"),
    *("null", "undefined", "void", "Omit", "Record", "Uint8Array"),
    *("class", "enum", "interface", "type", "function", "import", "export", "default", "new"),
    *("delete", "typeof", "in", "instanceof", "return", "var", "let", "const", "if", "else"),
    *("for", "while", "do", "switch", "case", "break", "continue", "this", "super", "true"),
    *("false", "with", "yield", "extends", "try", "catch", "finally", "throw", "debugger"),
}
"""What no type can be called, or what the types made here are made of."""


def _is_plain_object(schema: Schema) -> bool:
    return bool(schema.get("properties")) and not {"anyOf", "oneOf", "allOf", "enum"} & set(schema)


def _either(texts: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(texts)) or "never"


def _grouped(text: str) -> str:
    """Return a type that binds at least as tightly as what is put behind it."""
    return f"({text})" if "|" in text or "&" in text else text


def _key(name: str) -> str:
    return name if _IDENTIFIER.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _channel_key(pattern: str) -> str:
    """Return the key of the channels that a pattern makes the names of."""
    parts = re.split(r"\{\w+\}", pattern.replace("{{", "\0").replace("}}", "\1"))
    texts = [part.replace("\0", "{").replace("\1", "}") for part in parts]
    if len(texts) == 1:
        return json.dumps(texts[0], ensure_ascii=False)
    if texts == ["", ""]:
        return "[channel: string]"
    escaped = [re.sub(r"([\\`$])", r"\\\1", text) for text in texts]
    return f"[channel: `{'${string}'.join(escaped)}`]"


def _comment(text: str, indent: str = "") -> str:
    if not text:
        return ""
    safe = " ".join(text.split()).replace("*/", "* /")
    return f"{indent}/** {safe} */\n"
