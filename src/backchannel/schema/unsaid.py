"""What msgspec knows of types and leaves out of their JSON Schema. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import msgspec
from msgspec import inspect

__all__ = ["BOUNDS_OF_NUMBERS", "CLASSES", "complete", "require_what_is_sent"]

Schema = dict[str, Any]

CLASSES: Final = (
    inspect.StructType,
    inspect.DataclassType,
    inspect.TypedDictType,
    inspect.NamedTupleType,
)
"""Types whose schema stands by itself, and is referred to."""

_DICTS: Final[tuple[Any, ...]] = tuple(
    getattr(inspect, name) for name in ("DictType", "FrozenDictType") if hasattr(inspect, name)
)
_FORMATS: Final[dict[tuple[type, bool | None], str]] = {
    (inspect.DateTimeType, None): "iso-date-time",
    (inspect.DateTimeType, False): "date-time-local",
    (inspect.DateTimeType, True): "date-time",
    (inspect.TimeType, None): "iso-time",
    (inspect.TimeType, False): "partial-time",
    (inspect.TimeType, True): "time",
}
"""Of dates with times, and times, by whether they have an offset; None may have one."""

_KEYS: Final[dict[type, Schema]] = {
    inspect.IntType: {"format": "integer"},
    inspect.FloatType: {"format": "number"},
    inspect.BoolType: {"enum": ["true", "false"]},
    inspect.NoneType: {"enum": ["null"]},
    inspect.DateType: {"format": "date"},
    inspect.TimeDeltaType: {"format": "duration"},
    inspect.UUIDType: {"format": "uuid"},
    inspect.DecimalType: {"format": "decimal"},
    inspect.BytesType: {"contentEncoding": "base64"},
}
"""What keys are, which are texts in JSON whatever they are in Python."""
BOUNDS_OF_NUMBERS: Final = {
    "minimum": "ge",
    "exclusiveMinimum": "gt",
    "maximum": "le",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
}
"""JSON Schema's words for them, with msgspec's and pydantic's."""


def complete(info: inspect.Type, schema: Schema) -> None:
    """Add to a schema what msgspec left out: the formats of times, and what keys have to be.

    Args:
        info: the type. Classes inside of it are only referred to; each is completed by itself.
        schema: what msgspec made of it; it is changed.
    """
    if "$ref" in schema:
        return
    info = _bare(info)
    if isinstance(info, inspect.DateTimeType | inspect.TimeType):
        schema.setdefault("format", _FORMATS[type(info), info.tz])
    elif isinstance(info, _DICTS) and "propertyNames" not in schema:
        names = _names(cast("inspect.DictType", info).key_type)
        schema.update({} if names is None else {"propertyNames": names})
    for part, inner in _parts(info, schema):
        complete(part, inner)


def _bare(info: inspect.Type) -> inspect.Type:
    while isinstance(info, inspect.Metadata):
        info = info.type
    return info


def _parts(info: inspect.Type, schema: Schema) -> Iterator[tuple[inspect.Type, Schema]]:
    """Yield the types in a type, each with its schema."""
    items = schema.get("prefixItems", [])
    if isinstance(info, inspect.CollectionType):
        if "items" in schema:
            yield info.item_type, schema["items"]
    elif isinstance(info, inspect.TupleType):
        yield from zip(info.item_types, items, strict=True)
    elif isinstance(info, _DICTS):
        if "additionalProperties" in schema:
            yield cast("inspect.DictType", info).value_type, schema["additionalProperties"]
    elif isinstance(info, inspect.UnionType):
        # Structs and null stand behind the others.
        others = [one for one in info.types if not _stands_last(_bare(one))]
        yield from zip(others, schema["anyOf"], strict=False)
    elif isinstance(info, CLASSES):
        if items:
            tags = len(items) - len(info.fields)
            yield from zip((one.type for one in info.fields), items[tags:], strict=True)
        else:
            for one in info.fields:
                yield one.type, schema["properties"][one.encode_name]


def _stands_last(info: inspect.Type) -> bool:
    is_object = isinstance(info, inspect.StructType) and not info.array_like
    return is_object or isinstance(info, inspect.NoneType)


def _names(info: inspect.Type) -> Schema | None:
    """Return what is admitted as a key; None where every text is, or msgspec says it."""
    info = _bare(info)
    if isinstance(info, inspect.DateTimeType | inspect.TimeType):
        return {"format": _FORMATS[type(info), info.tz]}
    if isinstance(info, inspect.LiteralType | inspect.EnumType):
        values = (
            info.values if isinstance(info, inspect.LiteralType) else [e.value for e in info.cls]
        )
        return {"enum": sorted(str(one) for one in values)}
    if isinstance(info, inspect.UnionType):
        choices = [_names(one) for one in info.types]
        return None if None in choices else {"anyOf": choices}
    if (found := _KEYS.get(type(info))) is None:
        return None
    bounds = {word: getattr(info, name, None) for word, name in BOUNDS_OF_NUMBERS.items()}
    return {**found, **{word: bound for word, bound in bounds.items() if bound is not None}}


def require_what_is_sent(info: inspect.Type, schema: Schema) -> None:
    """Require those fields of a class that are always there when it is sent.

    Args:
        info: the class.
        schema: its schema, which is changed.
    """
    if isinstance(info, inspect.StructType):
        if info.cls.__struct_config__.omit_defaults:
            return
    elif not isinstance(info, inspect.DataclassType):
        return
    if "properties" not in schema:
        return
    always = {field.encode_name for field in info.fields if _is_always_sent(field)}
    required = schema.get("required", [])
    schema["required"] = [
        name for name in schema["properties"] if name in always or name in required
    ]


def _is_always_sent(field: inspect.Field) -> bool:
    """Tell it from a field that may be UNSET, which msgspec knows without its default."""
    nothing = msgspec.NODEFAULT
    return field.required or not field.default is field.default_factory is nothing
