"""Messages out of Python and into it: what is a frame's text, and what an annotation admits."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Union, get_args, get_origin

import msgspec

from backchannel.errors import InvalidMessage, ListenerError, UnsendableMessage

__all__ = ["Decoder", "Frame", "decoder_for", "encode", "tag_reader"]

Frame = str | bytes
"""What travels in one message: a str in a text frame, bytes in a binary one."""

Decoder = Callable[[Frame], Any]
"""Turns what a client sent into what a callback's annotation says, or raises InvalidMessage."""

_TEXT_OR_BYTES: Final = {str, bytes}


def encode(message: Any) -> Frame:
    """Return the frame that carries a message.

    Args:
        message: str (text frame), bytes, bytearray or memoryview (binary frame), or anything
            that msgspec or pydantic encodes (text frame with JSON, keys exactly as written).

    Raises:
        UnsendableMessage: it has no valid JSON form, or is text that UTF-8 can't express.
    """
    if isinstance(message, str):
        if not message.isascii():
            _check_text(message, "$")
        return message
    if isinstance(message, bytes):
        return message
    if isinstance(message, bytearray | memoryview):
        return bytes(typing.cast("bytearray", message))
    return _encode_json(message).decode()


def _encode_json(message: Any) -> bytes:
    try:
        encoded = _encoder.encode(message)
    except (TypeError, ValueError, RecursionError, UnicodeError) as error:
        for path, problem in _problems(message):
            raise UnsendableMessage(path, problem) from error
        raise UnsendableMessage("$", f"can't be encoded: {error}") from error
    # msgspec writes NaN and infinity as null, so only a message with a null needs a closer look.
    if b"null" in encoded:
        for path, problem in _problems(message):
            raise UnsendableMessage(path, problem)
    return encoded


def _plain_model(value: Any) -> Any:
    """Encode what msgspec doesn't know: pydantic models, when pydantic is in use."""
    if dump := _pydantic_dump(value):
        return dump(mode="json")
    raise NotImplementedError


def _pydantic_dump(value: Any) -> Callable[..., Any] | None:
    pydantic = sys.modules.get("pydantic")
    if pydantic and isinstance(value, pydantic.BaseModel):
        return typing.cast("Callable[..., Any]", value.model_dump)
    return None


_encoder: Final = msgspec.json.Encoder(enc_hook=_plain_model)


def _problems(
    value: Any, path: str = "$", above: tuple[int, ...] = ()
) -> Iterator[tuple[str, str]]:
    """Find, with their paths, the values that keep a message from being valid JSON."""
    if id(value) in above:
        yield path, "contains itself"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield path, f"is {value}, which JSON has no form for"
    elif isinstance(value, str):
        yield from _text_problems(value, path)
    elif (children := _children(value, path)) is not None:
        for child_path, child in children:
            yield from _problems(child, child_path, (*above, id(value)))
    else:
        try:
            _encoder.encode(value)
        except (TypeError, ValueError, NotImplementedError) as error:
            kind = type(value).__qualname__
            detail = "" if "unsupported" in str(error) else f" ({error})"
            yield path, f"is of type {kind}, which has no JSON form{detail}"


def _children(value: Any, path: str) -> Iterator[tuple[str, Any]] | None:
    """Return a container's parts with their paths; None for what is no container."""
    if isinstance(value, Mapping):
        return _items(typing.cast("Mapping[Any, Any]", value), path)
    if isinstance(value, list | tuple | set | frozenset):
        parts = typing.cast("list[Any]", value)
        return ((f"{path}[{index}]", part) for index, part in enumerate(parts))
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
        return ((f"{path}.{name}", getattr(value, name, None)) for name in names)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return ((f"{path}.{f.name}", getattr(value, f.name, None)) for f in fields)
    if dump := _pydantic_dump(value):
        return _items(dump(mode="python"), path)
    return None


def _items(mapping: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, part in mapping.items():
        try:
            _encoder.encode({key: None})
        except (TypeError, ValueError, NotImplementedError):
            raise UnsendableMessage(path, f"has the key {key!r}, which JSON can't have") from None
        yield f"{path}.{key}", part


def _check_text(text: str, path: str) -> None:
    for where, problem in _text_problems(text, path):
        raise UnsendableMessage(where, problem)


def _text_problems(text: str, path: str) -> Iterator[tuple[str, str]]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        yield path, f"has a lone surrogate at character {error.start}, which UTF-8 can't express"


# ── in ────────────────────────────────────────────────────────────────────────────────────────


def decoder_for(annotation: Any, where: str) -> Decoder | None:
    """Return what decodes a message for an annotation.

    Args:
        annotation: the resolved annotation of a callback's message parameter: None, Any or
            ``str | bytes`` (as sent), str, bytes, or a type for parsed JSON (dict, list, a
            msgspec Struct, dataclass, TypedDict, pydantic model, or a union of such).
        where: the callback, for the error.

    Returns:
        None when the message goes to the callback as it was sent.

    Raises:
        ListenerError: no message can be decoded into that annotation.
    """
    if annotation is None or annotation is Any or annotation is object:
        return None
    if set(get_args(annotation)) == _TEXT_OR_BYTES:
        return None
    if annotation is str:
        return _text_only
    if annotation is bytes:
        return _bytes_only
    if _mentions_pydantic(annotation):
        return _pydantic_decoder(annotation)
    return _json_decoder(annotation, where)


def _text_only(frame: Frame) -> str:
    if isinstance(frame, str):
        return frame
    raise InvalidMessage("expected a text message, got a binary one")


def _bytes_only(frame: Frame) -> bytes:
    if isinstance(frame, bytes):
        return frame
    raise InvalidMessage("expected a binary message, got a text one")


def _json_decoder(annotation: Any, where: str) -> Decoder:
    try:
        decode = msgspec.json.Decoder(annotation).decode
        unknown = _custom_types(msgspec.inspect.type_info(annotation))
    except (TypeError, ValueError, NameError) as error:
        raise ListenerError(
            f"{where}: no message can be decoded into {annotation!r}: {error}"
        ) from error
    if unknown:
        raise ListenerError(
            f"{where}: no message can be decoded into {unknown.__qualname__}: use str, bytes, "
            "dict, list, a msgspec Struct, dataclass, TypedDict or pydantic model"
        )

    def decode_json(frame: Frame) -> Any:
        try:
            return decode(frame)
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at `")
            raise InvalidMessage(text, field=path.rstrip("`") or "$") from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidMessage(f"not valid JSON: {error}") from error

    return decode_json


def _custom_types(info: object) -> type | None:
    """Return a class inside a type that msgspec would need a hook for, if there is one."""
    todo, seen = [info], set[int]()
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, msgspec.inspect.CustomType):
            return item.cls
        if isinstance(item, list | tuple):
            todo.extend(typing.cast("list[object]", item))
        elif isinstance(item, msgspec.inspect.Type | msgspec.inspect.Field):
            todo.extend(getattr(item, name) for name in item.__struct_fields__)
    return None


def _mentions_pydantic(annotation: Any) -> bool:
    if get_origin(annotation) in {Union, types.UnionType, typing.Annotated, list, dict, tuple}:
        return any(_mentions_pydantic(argument) for argument in get_args(annotation))
    return isinstance(annotation, type) and (
        hasattr(annotation, "__pydantic_validator__")
        or hasattr(annotation, "__pydantic_core_schema__")
    )


def _pydantic_decoder(annotation: Any) -> Decoder:
    import pydantic  # noqa: PLC0415 - only where the application itself uses it

    validate = pydantic.TypeAdapter[Any](annotation).validate_json

    def decode_model(frame: Frame) -> Any:
        try:
            return validate(frame)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
            raise InvalidMessage(first["msg"], field=f"${path}") from error

    return decode_model


def tag_reader(tag: str) -> Callable[[Frame], str]:
    """Return what reads the tag field, such as ``"type"``, of a JSON object and skips the rest.

    Raises (from the returned function):
        InvalidMessage: not JSON, not an object, or without that field as a str.
    """
    shape = msgspec.defstruct("Tagged", [("tag", str)], rename={"tag": tag})
    decode = _json_decoder(shape, "tag")

    def read(frame: Frame) -> str:
        return typing.cast("str", decode(frame).tag)

    return read
