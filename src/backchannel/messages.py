"""Messages out of Python and into it: what is a frame's text, and what an annotation admits."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, Union, get_args, get_origin

import msgspec

from backchannel.errors import InvalidMessage, ListenerError, UnsendableMessage

__all__ = [
    "Decoder",
    "Frame",
    "check_size",
    "custom_type",
    "decoder_for",
    "encode",
    "form_of",
    "mentions_pydantic",
    "size_of",
    "tag_reader",
    "text_and_path",
    "text_only",
    "types_in",
    "union_members",
    "wants_text",
]

Frame = str | bytes
"""What travels in one message: a str in a text frame, bytes in a binary one."""

Decoder = Callable[[Frame], Any]
"""Turns what a client sent into what a callback's annotation says, or raises InvalidMessage."""

_UNIONS: Final = {Union, types.UnionType}

_BUFFERS: Final = (bytearray, memoryview)


def encode(message: Any) -> Frame:
    """Return the frame that carries a message.

    Args:
        message: str (text frame), bytes, bytearray or memoryview (binary frame), or anything
            that msgspec or pydantic encodes (text frame with JSON, keys exactly as written).

    Raises:
        UnsendableMessage: it has no valid JSON form, or is text that UTF-8 can't express.
    """
    if isinstance(message, str):
        if not message.isascii() and (problem := _problem_of_text(message)):
            raise UnsendableMessage("$", problem)
        return message
    if isinstance(message, bytes):
        return message
    if isinstance(message, _BUFFERS):
        return bytes(typing.cast("bytearray", message))
    return _encode_json(message).decode()


def form_of(message: Any) -> Literal["plain", "json"]:
    """Tell whether ``encode`` makes JSON of a message that was none; see ``contracts.Form``."""
    is_plain = isinstance(message, str | bytes | bytearray | memoryview)
    return "plain" if is_plain else "json"


def size_of(frame: Frame) -> int:
    """Return how many bytes a frame has."""
    if isinstance(frame, str) and not frame.isascii():
        return len(frame.encode())
    return len(frame)


def check_size(frame: Frame, limit: int, audience: int = 0) -> None:
    """Refuse a message that is too large to go through a broker's engine.

    Args:
        frame: the encoded message.
        limit: bytes that it may have.
        audience: bytes that naming those takes whom it is for, or not for.

    Raises:
        UnsendableMessage: it has more.
    """
    if 4 * len(frame) + audience <= limit:  # a character is four bytes at most
        return
    size = size_of(frame)
    if size > limit:
        raise UnsendableMessage(
            "$",
            f"is {size} bytes long, and what goes through the broker may have "
            f"max_publication={limit}: send where it can be fetched instead",
        )
    if size + audience > limit:
        raise UnsendableMessage(
            "$",
            f"is {size} bytes long, but to= and exclude= take {audience} bytes more, and all of "
            f"it may have max_publication={limit}: name fewer, or send to a channel that has only "
            "those whom it is for",
        )


def _encode_json(message: Any) -> bytes:
    try:
        encoded = _encoder.encode(message)
        # msgspec writes NaN and infinity as null, so only a message with a null is looked into.
        suspect = _plain_values(message) if b"null" in encoded else None
    except (TypeError, ValueError, RuntimeError) as error:
        deep = isinstance(error, RecursionError)
        unknown = "is nested too deeply" if deep else f"can't be encoded: {error}"
        raise UnsendableMessage(*(_problem_in(message) or ("$", unknown))) from error
    if suspect is not None and (found := _problem_in(suspect)):
        raise UnsendableMessage(*found)
    return encoded


def _plain_model(value: Any) -> Any:
    """Encode what msgspec doesn't know: subclasses of str, such as User, and pydantic models."""
    if isinstance(value, str):
        return str(value)
    if _is_model(value):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__qualname__} is unsupported")


def _is_model(value: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(value, pydantic.BaseModel)


def _plain_values(message: Any) -> Any:
    """Return the dicts, lists and scalars of a message that has a JSON form."""
    # pydantic's JSON form may have null for NaN too; its Python form has the numbers themselves.
    return msgspec.to_builtins(
        message, enc_hook=lambda value: value.model_dump() if _is_model(value) else None
    )


_encoder: Final = msgspec.json.Encoder(enc_hook=_plain_model)


def _problem_in(message: Any) -> tuple[str, str] | None:
    """Find the first value that keeps a message from being valid JSON: its path, what is wrong."""
    # A stack instead of recursion: a message may be nested deeper than Python can call.
    # `above` has the containers around the current value, outermost first: id and step.
    above = dict[int, str]()
    todo: list[Iterator[tuple[str, Any]]] = [iter([("$", message)])]
    while todo:
        step, value = next(todo[-1], ("", _END))
        if value is _END:
            todo.pop()
            if above:
                above.popitem()
            continue
        problem = "contains itself" if id(value) in above else _problem_of(value)
        if problem:
            return "".join(above.values()) + step, problem
        if children := _children(value):
            above[id(value)] = step
            todo.append(children)
    return None


_END: Final = object()


def _problem_of(value: Any) -> str | None:
    """Return what is wrong with a value itself, not with what it contains."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"is {value}, which JSON has no form for"
    if isinstance(value, str):
        return _problem_of_text(value)
    if isinstance(value, dict):
        return _problem_of_keys(typing.cast("Mapping[Any, Any]", value))
    if value is msgspec.UNSET or _children(value):
        return None
    return _refusal(value)


def _problem_of_keys(mapping: Mapping[Any, Any]) -> str | None:
    for key in mapping:
        if _refusal({key: None}) is not None:
            return f"has the key {key!r}, which JSON can't have"
    return None


def _refusal(value: Any) -> str | None:
    try:
        _encoder.encode(value)
    except (TypeError, ValueError, RuntimeError) as error:
        detail = "" if "unsupported" in str(error) else f" ({error})"
        return f"is of type {type(value).__qualname__}, which has no JSON form{detail}"
    return None


def _children(value: Any) -> Iterator[tuple[str, Any]] | None:
    """Return a container's parts, each with the step that leads to it; None for what is none."""
    if isinstance(value, dict):
        items = typing.cast("Mapping[Any, Any]", value).items()
        return ((f".{key}", part) for key, part in items)
    if isinstance(value, list | tuple | set | frozenset):
        parts = typing.cast("list[Any]", value)
        return ((f"[{index}]", part) for index, part in enumerate(parts))
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = tuple(field.name for field in dataclasses.fields(value))
    else:
        return None
    return ((f".{name}", getattr(value, name, None)) for name in names)


def _problem_of_text(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"has a lone surrogate at character {error.start}, which UTF-8 can't express"
    return None


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
    if get_origin(annotation) in _UNIONS and set(get_args(annotation)) == {str, bytes}:
        return None
    if annotation is str:
        return text_only
    if annotation is bytes:
        return _bytes_only
    if mentions_pydantic(annotation):
        return _pydantic_decoder(annotation, where)
    return _json_decoder(annotation, where)


def union_members(annotation: Any) -> tuple[Any, ...]:
    """Return what a union is of; anything else is the only one of its kind."""
    return get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)


def wants_text(decode: Decoder | None) -> bool:
    """Tell whether a decoder is that of ``str``."""
    return decode is text_only


def text_only(frame: Frame) -> str:
    """Return a text as sent: the decoder of ``str``.

    Raises:
        InvalidMessage: it is binary.
    """
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
        unknown = custom_type(msgspec.inspect.type_info(annotation))
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
            text, path = text_and_path(str(error))
            raise InvalidMessage(text, field=path) from error
        except UnicodeDecodeError as error:
            raise InvalidMessage("not valid JSON: not UTF-8", field="$") from error
        except RecursionError as error:
            raise InvalidMessage("not valid JSON: nested too deeply", field="$") from error
        except msgspec.DecodeError as error:
            raise InvalidMessage(f"not valid JSON: {error}", field="$") from error

    return decode_json


_MISSING: Final = re.compile("Object missing required field `(.+)`")


def text_and_path(error: str) -> tuple[str, str]:
    """Take msgspec's ``Expected `int` - at `$.age` `` or ``… - at `key` in `$.ages` `` apart.

    A field that is missing is named by its own path, and not by that of the object it should be in.
    """
    text, separator, path = error.rpartition(" - at `")
    if not separator:
        text, path = error, "$"
    key, _, container = path.rpartition(" in `")
    text, path = (f"{text} as a key" if key else text), container.rstrip("`")
    missing = _MISSING.fullmatch(text)
    return text, f"{path}.{missing[1]}" if missing else path


def custom_type(info: object) -> type | None:
    """Return a class inside a type that msgspec would need a hook for, if there is one."""
    found = (one.cls for one in types_in(info) if isinstance(one, msgspec.inspect.CustomType))
    return next(found, None)


def types_in(info: object) -> Iterator[msgspec.inspect.Type]:
    """Yield all types that one is made of, itself included: each once, as msgspec knows them."""
    todo, seen = [info], set[int]()
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, msgspec.inspect.Type):
            yield item
        if isinstance(item, list | tuple):
            todo.extend(typing.cast("list[object]", item))
        elif isinstance(item, msgspec.inspect.Type | msgspec.inspect.Field):
            todo.extend(getattr(item, name) for name in item.__struct_fields__)


def mentions_pydantic(annotation: Any) -> bool:
    """Tell whether a type is pydantic's business: a model, or made with one."""
    if arguments := get_args(annotation):
        return any(mentions_pydantic(argument) for argument in arguments)
    return isinstance(annotation, type) and (
        hasattr(annotation, "__pydantic_validator__")
        or hasattr(annotation, "__pydantic_core_schema__")
    )


def _pydantic_decoder(annotation: Any, where: str) -> Decoder:
    import pydantic  # noqa: PLC0415 - only where the application itself uses it

    try:
        adapter = pydantic.TypeAdapter[Any](annotation)
        adapter.rebuild(raise_errors=True)  # else a name it can't resolve is found in use only
    except (TypeError, NameError, ValueError, RuntimeError) as error:
        why = str(error).partition("\n")[0]  # without pydantic's link to its documentation
        raise ListenerError(
            f"{where}: no message can be decoded into {annotation!r}: {why}"
        ) from error
    validate = adapter.validate_json

    def decode_model(frame: Frame) -> Any:
        try:
            return validate(frame)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            if first["type"] == "json_invalid":
                text = first["msg"].removeprefix("Invalid JSON: ")
                raise InvalidMessage(f"not valid JSON: {text}", field="$") from error
            path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
            raise InvalidMessage(first["msg"], field=f"${path}") from error

    return decode_model


def tag_reader(tag: str) -> Callable[[Frame], str]:
    """Return what reads the tag field, such as ``"type"``, of a JSON object and skips the rest.

    Raises:
        ListenerError: no JSON field is named like that.

    Raises (from the returned function):
        InvalidMessage: not JSON, not an object, or without that field as a str.
    """
    if not isinstance(tag, str) or not tag or any(c in '"\\' or c < " " for c in tag):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ListenerError(
            f'tag={tag!r} must be the name of a field in JSON messages, such as "type"'
        )
    shape = msgspec.defstruct("Tagged", [("tag", str)], rename={"tag": tag})
    decode = _json_decoder(shape, "tag")

    def read(frame: Frame) -> str:
        return typing.cast("str", decode(frame).tag)

    return read
