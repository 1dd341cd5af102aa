"""JSON Schema of annotations, as msgspec and pydantic make it, in the words of draft 7."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, cast

import msgspec

from backchannel.annotations import why_unknown
from backchannel.errors import ListenerError
from backchannel.messages import mentions_pydantic, types_in
from backchannel.schema.unsaid import CLASSES, complete, require_what_is_sent

__all__ = ["PREFIX", "Schema", "Side", "Wanted", "json_schemas", "named", "references"]

Schema = dict[str, Any]
Side = Literal["client", "server"]

PREFIX: Final = "#/components/schemas/"


class Wanted(NamedTuple):
    """A type whose schema is wanted.

    Args:
        annotation: it.
        side: who sends it. A field with a default may be left out by clients; the server sends it.
        label: what has this annotation, for the error.
    """

    annotation: Any
    side: Side
    label: str


def json_schemas(wanted: Sequence[Wanted]) -> tuple[list[Schema], dict[str, Schema]]:
    """Make the JSON Schema of each type, and of all classes in them.

    Two classes of one name get names of their own: what the server sends ends in ``Sent``, and
    another one in ``Other``.

    Raises:
        ListenerError: a type has no schema.

    Returns:
        The schemas in the order of what was wanted, and those of classes by their name, to which
        the others refer as ``#/components/schemas/NAME``.
    """
    made = dict[int, Schema]()
    components = dict[str, Schema]()
    for side in ("client", "server"):
        for by_pydantic in (False, True):
            group = {
                index: one
                for index, one in enumerate(wanted)
                if one.side == side and mentions_pydantic(one.annotation) is by_pydantic
            }
            make = _by_pydantic if by_pydantic else _by_msgspec
            schemas, found = make(list(group.values()), side)
            suffix = "Sent" if side == "server" else "Other"
            renamed = _add(components, found, suffix)
            made.update(zip(group, (_renamed(schema, renamed) for schema in schemas), strict=True))
    return [made[index] for index in range(len(wanted))], components


def named(schema: Schema) -> str | None:
    """Return the name of the class that a schema refers to; None where it is none."""
    reference = schema.get("$ref")
    return reference.removeprefix(PREFIX) if isinstance(reference, str) else None


def references(schema: Any) -> Iterator[str]:
    """Yield the names of the classes that a schema refers to."""
    if isinstance(schema, dict):
        for key, value in cast("dict[str, Any]", schema).items():
            if key == "$ref" and isinstance(value, str):
                yield value.removeprefix(PREFIX)
            else:
                yield from references(value)
    elif isinstance(schema, list):
        for one in cast("list[object]", schema):
            yield from references(one)


# ── msgspec ───────────────────────────────────────────────────────────────────────────────────


def _by_msgspec(wanted: Sequence[Wanted], side: Side) -> tuple[list[Schema], dict[str, Schema]]:
    for one in wanted:
        if problem := why_unknown(one.annotation):
            raise ListenerError(f"{one.label}: {one.annotation!r}, {problem}")
    kinds = [one.annotation for one in wanted]
    infos = list(msgspec.inspect.multi_type_info(kinds))
    classes = {one.cls: one for one in types_in(infos) if isinstance(one, CLASSES)}
    try:
        schemas, found = msgspec.json.schema_components(
            [*kinds, *classes], schema_hook=_of_text, ref_template=PREFIX + "{name}"
        )
    except (TypeError, ValueError) as error:
        labels = ", ".join(one.label for one in wanted)
        raise ListenerError(f"no schema can be made of what is annotated: {error}; {labels}") from (
            error
        )
    for info, schema in zip(infos, schemas, strict=False):
        complete(info, schema)
    for info, schema in zip(classes.values(), schemas[len(kinds) :], strict=True):
        if (name := named(schema)) is not None:
            complete(info, found[name])
            if side == "server":
                require_what_is_sent(info, found[name])
    components = {name: _as_draft_7(schema) for name, schema in found.items()}
    return [_as_draft_7(schema) for schema in schemas[: len(kinds)]], components


def _of_text(kind: type) -> Schema:
    if issubclass(kind, str):
        return {"type": "string"}
    raise NotImplementedError


# ── pydantic ──────────────────────────────────────────────────────────────────────────────────


def _by_pydantic(wanted: Sequence[Wanted], side: Side) -> tuple[list[Schema], dict[str, Schema]]:
    if not wanted:
        return [], {}
    import pydantic  # noqa: PLC0415 - only where the application itself uses it
    from pydantic.errors import PydanticUserError  # noqa: PLC0415

    from backchannel.schema.models import AlwaysSent  # noqa: PLC0415 - it imports pydantic

    mode: Any = "validation" if side == "client" else "serialization"
    inputs: list[tuple[str, Any, Any]] = []
    for index, one in enumerate(wanted):
        try:
            adapter = pydantic.TypeAdapter[Any](one.annotation)
            adapter.json_schema(mode=mode)
        except (PydanticUserError, TypeError, ValueError) as error:
            why = str(error).partition("\n")[0]
            raise ListenerError(
                f"{one.label}: {one.annotation!r} has no JSON Schema: {why}"
            ) from error
        inputs.append((str(index), mode, adapter))
    # What is sent has the fields' own names: models are dumped without their aliases.
    schemas, rest = pydantic.TypeAdapter.json_schemas(
        inputs,
        ref_template=PREFIX + "{model}",
        by_alias=side == "client",
        schema_generator=AlwaysSent,
    )
    components = {name: _as_draft_7(schema) for name, schema in rest.get("$defs", {}).items()}
    return [_as_draft_7(schemas[key, mode]) for key, mode, _ in inputs], components


# ── what they have in common ──────────────────────────────────────────────────────────────────


def _as_draft_7(schema: Any) -> Any:
    """Rewrite what AsyncAPI's schemas, which are those of draft 7, say in other words."""
    if isinstance(schema, list):
        return [_as_draft_7(one) for one in cast("list[object]", schema)]
    if not isinstance(schema, dict):
        return schema
    old = cast("Schema", schema)
    new: Schema = {}
    dropped = {"discriminator", *(["items"] if "prefixItems" in old else [])}
    if not old.get("required"):
        dropped.add("required")
    for key, value in old.items():
        if key == "prefixItems":
            new["items"], new["additionalItems"] = _as_draft_7(value), old.get("items", True)
        elif key == "properties":  # their names are no keywords
            new[key] = {name: _as_draft_7(one) for name, one in value.items()}
        elif key in {"default", "enum", "const", "examples"}:
            new[key] = value
        elif key not in dropped:
            new[key] = _as_draft_7(value)
    return new


def _add(components: dict[str, Schema], more: Mapping[str, Schema], suffix: str) -> dict[str, str]:
    """Add schemas to others; return the new names of those whose names are taken by others."""
    renamed = {name for name, schema in more.items() if components.get(name, schema) != schema}
    while True:
        also = {
            name
            for name in more
            if name in components and not renamed.isdisjoint(references(more[name]))
        }
        if also <= renamed:
            break
        renamed |= also
    names = dict[str, str]()
    for name in sorted(renamed):
        new = name + suffix
        while new in components or new in more:
            new += suffix
        names[name] = new
    for name, schema in more.items():
        components[names.get(name, name)] = _renamed(schema, names)
    return names


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    if isinstance(schema, list):
        return [_renamed(one, names) for one in cast("list[object]", schema)]
    if not isinstance(schema, dict):
        return schema
    found = cast("Schema", schema)
    if (name := named(found)) in names and name is not None:
        return {**found, "$ref": PREFIX + names[name]}
    return {key: _renamed(value, names) for key, value in found.items()}
