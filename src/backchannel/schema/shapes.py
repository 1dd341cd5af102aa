"""Whether one JSON Schema admits what another one does, said field by field.

Only for what msgspec and pydantic make of types: that is taken apart into shapes, and shapes of a
kind are compared.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, cast

from backchannel.schema.bounds import BOUNDS, admits, is_exact, is_same, is_tighter
from backchannel.schema.types import PREFIX

__all__ = ["Change", "Comparison", "Shape", "Shapes"]

Schema = Mapping[str, Any]

_TYPES: Final = (
    (types.NoneType, "null"), (str, "string"), (bool, "boolean"), ((int, float), "number"),
)  # fmt: skip
_WORDS: Final = {"text": "a text", "bytes": "a binary message", "any": "anything"}


class Change(NamedTuple):
    """A difference.

    Args:
        where: the endpoint, and what of it.
        what: in a few words.
        breaks: whom it breaks; empty where nobody.
    """

    where: str
    what: str
    breaks: str = ""


class Shape(NamedTuple):
    """One of the kinds of value that a schema admits.

    Args:
        kind: object, array, string, number, boolean, null, any; or text and bytes, of messages.
        schema: where it is described.
        values: the only ones that it may have, as JSON; None admits all of its kind.
        marks: what tells it from other objects: fields that have one value, with it.
        title: of the class.
    """

    kind: str
    schema: Schema
    values: frozenset[str] | None = None
    marks: frozenset[tuple[str, str]] = frozenset()
    title: str = ""

    def __str__(self) -> str:
        if self.marks:
            marks = dict(sorted(self.marks))
            return str(json.loads(marks.get("type") or next(iter(marks.values()))))
        if self.values is not None:
            return " or ".join(sorted(self.values))
        return self.title or _WORDS.get(self.kind) or str(self.schema.get("type", self.kind))


class Shapes:
    """Takes schemas apart.

    Args:
        components: those that they refer to.
    """

    def __init__(self, components: Mapping[str, Schema]):
        self._components = components

    def of(self, schema: Any) -> list[Shape]:
        """Return what a schema admits."""
        return list(self._of(schema))

    def _of(self, schema: Any) -> Iterator[Shape]:
        if schema is False:
            return
        found = self._resolved(schema)
        for key in ("anyOf", "oneOf"):
            if key in found:
                for one in found[key]:
                    yield from self._of(one)
                return
        if "allOf" in found:
            found = self._merged(found["allOf"])
        if "const" in found or "enum" in found:
            yield from _of_values([found["const"]] if "const" in found else found["enum"])
            return
        kinds = found.get("type", "object" if "properties" in found else "any")
        for kind in cast("list[str]", kinds if isinstance(kinds, list) else [kinds]):
            same = {**found, "type": kind}
            if kind == "object":
                yield Shape("object", same, None, self._marks(found), found.get("title", ""))
            else:
                yield Shape("number" if kind == "integer" else kind, same)

    def _resolved(self, schema: Any) -> Schema:
        found = cast("Schema", schema if isinstance(schema, dict) else {})
        while "$ref" in found:
            found = self._components[found["$ref"].removeprefix(PREFIX)]
        return found

    def _merged(self, schemas: Iterable[Any]) -> Schema:
        """Return one object that is all of several; of a field in two of them the last counts."""
        merged: dict[str, Any] = {"type": "object", "properties": {}, "required": []}
        for one in schemas:
            found = self._resolved(one)
            if "allOf" in found:
                found = self._merged(found["allOf"])
            properties = {**merged["properties"], **found.get("properties", {})}
            required = dict.fromkeys([*merged["required"], *found.get("required", ())])
            merged |= {**found, "properties": properties, "required": list(required)}
        return merged

    def _marks(self, schema: Schema) -> frozenset[tuple[str, str]]:
        found = set[tuple[str, str]]()
        for name, one in schema.get("properties", {}).items():
            resolved = self._resolved(one)
            values = [resolved["const"]] if "const" in resolved else resolved.get("enum", [])
            if len(values) == 1 and isinstance(values[0], str):
                found.add((name, json.dumps(values[0])))
        return frozenset(found)


def _of_values(values: Iterable[Any]) -> Iterator[Shape]:
    kinds = dict[str, list[str]]()
    for value in values:
        kind = next((k for one, k in _TYPES if isinstance(value, one)), "any")
        kinds.setdefault(kind, []).append(json.dumps(value, ensure_ascii=False))
    for kind, texts in kinds.items():
        yield Shape(kind, {"type": kind}, None if kind == "null" else frozenset(texts))


class Comparison:
    """Compares what one side sends.

    Args:
        sender: who sends it: what clients send must go on to be admitted, and what the server
            sends must go on to be what clients were made for.
        whom: who is broken by what is not.
        old: takes the older schemas apart.
        new: takes the newer ones apart.

    Attributes:
        changes: what was found.
    """

    def __init__(self, sender: Literal["client", "server"], whom: str, old: Shapes, new: Shapes):
        self._client = sender == "client"
        self._whom = whom
        self._old, self._new = old, new
        self._around: list[tuple[str, str]] = []
        self.changes: list[Change] = []

    def compare_all(
        self, old: list[Shape], new: list[Shape], where: str, *, is_message: bool
    ) -> None:
        """Compare all that something may be.

        Args:
            old: what it was.
            new: what it is.
            where: what is compared.
            is_message: these are whole messages. The server may send new ones, since clients
                ignore what they don't know, and none of the old ones may go.
        """
        if self._settle_any(old, new, where):
            return
        pairs, gone, added = _pair(old, new)
        for one, other in pairs:
            label = f"{where}: {other}" if is_message else where
            if not is_message and len(pairs) > 1 and other.kind == "object":
                label = f"{where} ({other})"
            self._compare_pair(one, other, label)
        if not is_message and _is_exchange(pairs, gone, added):
            self._note(where, f"was {_either(gone)} and is {_either(added)}", breaks=True)
            return
        for one in gone:
            word = "is not taken any more" if self._client else "is not sent any more"
            self._note(where, f"{one} {word}", breaks=self._client or is_message)
        for one in added:
            word = "is taken too" if self._client else "may be sent too"
            self._note(where, f"{one} {word}", breaks=not self._client and not is_message)

    def _note(self, where: str, what: str, *, breaks: bool) -> None:
        change = Change(where, what, self._whom if breaks else "")
        if change not in self.changes:
            self.changes.append(change)

    def _settle_any(self, old: list[Shape], new: list[Shape], where: str) -> bool:
        was, now = (any(one.kind == "any" for one in side) for side in (old, new))
        if was != now:
            what = "may be anything now" if now else "may not be anything any more"
            self._note(where, what, breaks=now is not self._client)
        return was or now

    def _compare_pair(self, old: Shape, new: Shape, where: str) -> None:
        if old.kind == "object":
            names = (old.title, new.title)
            if all(names) and names in self._around:  # classes that have themselves in them
                return
            self._around.append(names)
            self._compare_objects(old.schema, new.schema, where)
            self._around.pop()
        elif old.kind == "array":
            self._compare_arrays(old.schema, new.schema, where)
        else:
            self._compare_values(old, new, where)
        self._compare_bounds(old, new, where)

    # ── objects ───────────────────────────────────────────────────────────────────────────────

    def _compare_objects(self, old: Schema, new: Schema, where: str) -> None:
        was, now = old.get("properties", {}), new.get("properties", {})
        rest = new.get("additionalProperties", not now)
        for name in was:
            if name in now:
                self._compare_field(old, new, name, where)
            elif self._client and not now and rest is not False:
                olds, news = self._old.of(was[name]), self._new.of(rest)
                self.compare_all(olds, news, f"{where}.{name}", is_message=False)
                self._check_key(name, self._new, new, where, "is refused now")
            else:
                what = "is not sent any more"
                if self._client:
                    is_closed = new.get("additionalProperties") is False
                    what = "is refused now" if is_closed else "is ignored now"
                self._note(f"{where}.{name}", what, breaks=True)
        for name in now:
            if name not in was:
                self._compare_with_rest(old, new, name, where)
                must = self._client and name in new.get("required", ())
                what = "is sent too"
                if self._client:
                    what = "must be sent now" if must else "may be sent too"
                self._note(f"{where}.{name}", what, breaks=must)
        self._compare_rest(old, new, where)

    def _compare_with_rest(self, old: Schema, new: Schema, name: str, where: str) -> None:
        """Compare a field of what was a dict with what that had under any name."""
        rest = old.get("additionalProperties", True)
        if old.get("properties") or isinstance(rest, bool):
            return
        olds, news = self._old.of(rest), self._new.of(new["properties"][name])
        self.compare_all(olds, news, f"{where}.{name}", is_message=False)
        if not self._client:
            self._check_key(name, self._old, old, where, "was no key that is sent")

    def _check_key(self, name: str, shapes: Shapes, schema: Schema, where: str, what: str) -> None:
        """Tell where a field's name is none of the keys of a dict."""
        key, keys = json.dumps(name), shapes.of(_keys(schema.get("propertyNames", {})))
        if not any(
            key in one.values if one.values is not None else admits(one.schema, key) for one in keys
        ):
            self._note(f"{where}.{name}", what, breaks=True)

    def _compare_field(self, old: Schema, new: Schema, name: str, where: str) -> None:
        place = f"{where}.{name}"
        was, now = (name in one.get("required", ()) for one in (old, new))
        if was != now:
            what = "is always there now" if now else "may be missing now"
            self._note(place, what, breaks=now is self._client)
        olds = self._old.of(old["properties"][name])
        news = self._new.of(new["properties"][name])
        self.compare_all(olds, news, place, is_message=False)

    def _compare_rest(self, old: Schema, new: Schema, where: str) -> None:
        """Compare what is said of other fields: a dict's values, or that there are none."""
        was, now = (one.get("additionalProperties", True) for one in (old, new))
        if was is False or now is False:
            if was is not now:
                word = "refused" if now is False else "ignored"
                breaks = self._client and now is False
                self._note(where, f"other fields are {word} now", breaks=breaks)
        elif not old.get("properties") and not new.get("properties"):
            self.compare_all(self._old.of(was), self._new.of(now), f"{where}[*]", is_message=False)
            keys = (_keys(one.get("propertyNames", {})) for one in (old, new))
            olds, news = (
                side.of(one) for side, one in zip((self._old, self._new), keys, strict=True)
            )
            self.compare_all(olds, news, f"{where}: its keys", is_message=False)

    # ── arrays, and what has no parts ─────────────────────────────────────────────────────────

    def _compare_arrays(self, old: Schema, new: Schema, where: str) -> None:
        was, now = old.get("items", True), new.get("items", True)
        first, second = _parts(was), _parts(now)
        if first is not None and second is not None and len(first) != len(second):
            if is_exact(old) and is_exact(new):
                self._note(where, f"had {len(first)} items and has {len(second)}", breaks=True)
            else:
                self._note_items(len(first), len(second), new, where)
        if (first is None) != (second is None):
            fixed = second is not None
            what = "has a fixed number of items now" if fixed else "has any number of items now"
            self._note(where, what, breaks=fixed is self._client)
        length = max(len(first or ()), len(second or ()), 1)
        olds = first if first is not None else [was] * length
        news = second if second is not None else [now] * length
        for index, (one, other) in enumerate(zip(olds, news, strict=False)):
            place = f"{where}[{index}]" if first or second else f"{where}[*]"
            self.compare_all(self._old.of(one), self._new.of(other), place, is_message=False)

    def _note_items(self, was: int, now: int, new: Schema, where: str) -> None:
        """Tell of items that came or went at the end of an array that may be longer or shorter."""
        gone, added = "is not sent any more", "is sent too"
        if self._client:
            gone = "is refused now" if new.get("maxItems") == now else "is ignored now"
            added = "may be sent too"
        for index in range(now, was):
            self._note(f"{where}[{index}]", gone, breaks=True)
        for index in range(was, now):
            self._note(f"{where}[{index}]", added, breaks=False)

    def _compare_values(self, old: Shape, new: Shape, where: str) -> None:
        was, now = old.schema.get("type"), new.schema.get("type")
        if was != now and old.values is None and new.values is None:
            self._note(where, f"was {was} and is {now}",
                       breaks=(now == "integer") is self._client)  # fmt: skip
        if old.values == new.values:
            return
        if old.values is None or new.values is None:
            shown = ", ".join(sorted(new.values or old.values or ()))
            what = f"may only be {shown} now" if old.values is None else f"may not only be {shown}"
            self._note(where, what, breaks=(old.values is None) is self._client)
            return
        if gone := old.values - new.values:
            self._note(where, f"may not be {', '.join(sorted(gone))} any more", breaks=self._client)
        if added := new.values - old.values:
            self._note(where, f"may be {', '.join(sorted(added))} too", breaks=not self._client)

    def _compare_bounds(self, old: Shape, new: Shape, where: str) -> None:
        if old.values is not None or new.values is not None:
            self._compare_within(old, new, where)
            return
        was, now = old.schema, new.schema
        parts = [isinstance(one.get("items"), list) for one in (was, now)]
        for name in BOUNDS:
            if is_same(name, was, now):
                continue
            is_told = (is_exact(was) and is_exact(now)) or (
                parts[0] is not parts[1] and None in {was.get(name), now.get(name)}
            )
            if name.endswith("Items") and any(parts) and is_told:
                continue
            tighter = is_tighter(name, was, now)
            what = f"{name} was {_shown(was.get(name))} and is {_shown(now.get(name))}"
            self._note(where, what, breaks=tighter is None or tighter is self._client)

    def _compare_within(self, old: Shape, new: Shape, where: str) -> None:
        """Compare values with bounds: those outside could not be sent before, or can't be now."""
        if old.values is not None and new.values is None and self._client:
            gone = sorted(one for one in old.values if not admits(new.schema, one))
            if gone:
                self._note(where, f"may not be {', '.join(gone)} any more", breaks=True)
        if new.values is not None and old.values is None and not self._client:
            added = sorted(one for one in new.values if not admits(old.schema, one))
            if added:
                self._note(where, f"may be {', '.join(added)} too", breaks=True)


def _is_exchange(pairs: list[Any], gone: list[Shape], added: list[Shape]) -> bool:
    """Tell whether some types became others, rather than of several classes some came and went."""
    alike = all(one.kind == "object" for one in (*gone, *added))
    return bool(gone and added) and not (pairs and alike)


def _either(shapes: list[Shape]) -> str:
    return " or ".join(map(str, shapes))


def _keys(schema: Schema) -> Schema:
    """Return what keys may be: JSON Schema leaves unsaid that they are texts."""
    if "anyOf" in schema:
        return {"anyOf": [_keys(one) for one in schema["anyOf"]]}
    return schema if "enum" in schema or "$ref" in schema else {**schema, "type": "string"}


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _parts(items: Any) -> list[Any] | None:
    return cast("list[object]", items) if isinstance(items, list) else None


def _pair(
    old: list[Shape], new: list[Shape]
) -> tuple[list[tuple[Shape, Shape]], list[Shape], list[Shape]]:
    """Find what was the same thing: by kind, marks and class, then by less and less of these."""
    pairs: list[tuple[Shape, Shape]] = []
    gone, added = list(old), list(new)
    for same in (_same_class, _same_marks, _some_marks, _same_title, _may_be_same):
        for one in list(gone):
            if (other := next((two for two in added if same(one, two)), None)) is not None:
                pairs.append((one, other))
                gone.remove(one)
                added.remove(other)
    return pairs, gone, added


def _same_class(old: Shape, new: Shape) -> bool:
    return _same_marks(old, new) and old.title == new.title


def _same_marks(old: Shape, new: Shape) -> bool:
    return old.kind == new.kind and old.marks == new.marks and bool(old.marks or not old.title)


def _some_marks(old: Shape, new: Shape) -> bool:
    return bool(old.marks & new.marks) and not _differ(old, new)


def _same_title(old: Shape, new: Shape) -> bool:
    return old.kind == new.kind == "object" and old.title == new.title and not _differ(old, new)


def _may_be_same(old: Shape, new: Shape) -> bool:
    return old.kind == new.kind and not _differ(old, new)


def _differ(old: Shape, new: Shape) -> bool:
    """Tell whether a mark has another value: then these are two types of message."""
    was, now = dict(old.marks), dict(new.marks)
    return any(was[name] != now[name] for name in was.keys() & now.keys())
