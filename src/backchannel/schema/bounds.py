"""The bounds that a JSON Schema sets: which are tighter, and what is inside of them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["BOUNDS", "admits", "is_exact", "is_same", "is_tighter"]

Schema = Mapping[str, Any]

_LOWER: Final = ("minLength", "minItems", "minProperties")
_UPPER: Final = ("maxLength", "maxItems", "maxProperties")
_LEAST: Final = ("minimum", "exclusiveMinimum")
_MOST: Final = ("maximum", "exclusiveMaximum")
_OTHER: Final = ("pattern", "format", "contentEncoding", "multipleOf", "uniqueItems")
BOUNDS: Final = (*_LOWER, *_LEAST, *_UPPER, *_MOST, *_OTHER)
"""The words of JSON Schema that set them."""

_WIDER: Final = {
    "iso-date-time": {"date-time", "date-time-local"},
    "iso-time": {"time", "partial-time"},
    "number": {"integer"},
}
"""Formats that admit all of others."""


def is_tighter(name: str, old: Schema, new: Schema) -> bool | None:
    """Tell whether a bound has become tighter.

    Returns:
        False where it is wider, or gone; None where it is neither, but another one.
    """
    if name in _LEAST:
        return _limit(new, _LEAST, 1) > _limit(old, _LEAST, 1)
    if name in _MOST:
        return _limit(new, _MOST, -1) > _limit(old, _MOST, -1)
    was, now = old.get(name), new.get(name)
    if was is None or now is None:
        return was is None
    if name in _LOWER or name in _UPPER:
        return bool((now > was) is (name in _LOWER))
    if name == "multipleOf" and 0 in {now % was, was % now}:
        return bool(now % was == 0)
    if name == "format" and (was in _WIDER.get(now, ()) or now in _WIDER.get(was, ())):
        return now in _WIDER.get(was, ())
    return None


def is_same(name: str, old: Schema, new: Schema) -> bool:
    """Tell whether a bound is what it was, in whatever words."""
    empty = 0 if name in _LOWER else None
    if old.get(name, empty) == new.get(name, empty):
        return True
    if name in _LEAST:
        return _limit(new, _LEAST, 1) == _limit(old, _LEAST, 1)
    return name in _MOST and _limit(new, _MOST, -1) == _limit(old, _MOST, -1)


def is_exact(schema: Schema) -> bool:
    """Tell whether an array always has the same number of items."""
    return schema.get("minItems") is not None and schema["minItems"] == schema.get("maxItems")


def _limit(schema: Schema, names: tuple[str, str], sign: int) -> tuple[float, bool]:
    """Return a limit of numbers, greater where it is tighter, and whether it is itself outside."""
    found = [(float("-inf"), False)]
    closed, opened = (schema.get(name) for name in names)
    if closed is not None:
        found.append((closed * sign, False))
    if opened is not None:
        is_whole = schema.get("type") == "integer" and opened == int(opened)
        found.append((opened * sign + 1, False) if is_whole else (opened * sign, True))
    return max(found)


def admits(schema: Schema, text: str) -> bool:
    """Tell whether a value, as JSON, is within all bounds of its kind."""
    value = json.loads(text)
    if isinstance(value, str):
        return _admits_text(schema, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    least, most = _limit(schema, _LEAST, 1), _limit(schema, _MOST, -1)
    if (value, False) < least or (-value, False) < most:
        return False
    step = schema.get("multipleOf")
    return step is None or value % step == 0


def _admits_text(schema: Schema, value: str) -> bool:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return False
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return False
    if schema.get("format") in {"integer", "number"}:  # of keys
        kind = int if schema["format"] == "integer" else float
        try:
            number = kind(value)
        except ValueError:
            return False
        rest = {name: one for name, one in schema.items() if name != "format"}
        return admits(rest, json.dumps(number))
    return "format" not in schema and "contentEncoding" not in schema
