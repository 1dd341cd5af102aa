"""A frame's data as the listener gets it: what a raw client would have sent. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import msgspec

from backchannel.errors import InvalidMessage
from backchannel.messages import text_and_path

if TYPE_CHECKING:
    from backchannel.messages import Frame

__all__ = ["content_of", "tagged", "value_of"]


def content_of(raw: Any, data: bytes | None) -> Frame:
    """Return a frame's data as a message.

    Args:
        raw: its JSON, unread; UNSET where it has none.
        data: its bytes, where it came as a binary message.
    """
    if data is not None:
        return data
    if raw is msgspec.UNSET:
        return "null"
    text = bytes(raw)
    if text[:1] == b'"':
        return cast("str", msgspec.json.decode(text))
    return text.decode()


def value_of(raw: Any, data: bytes | None) -> Any:
    """Return a frame's data as a value; its bytes, where it came as a binary message.

    Args:
        raw: its JSON, unread; UNSET where it has none, which is None.
        data: its bytes.

    Raises:
        InvalidMessage: no value can be made of it, such as of ``1e999``: JSON's grammar has no
            bounds for numbers and for depth.
    """
    if data is not None or raw is msgspec.UNSET:
        return data
    try:
        return msgspec.json.decode(raw)
    except RecursionError:
        raise InvalidMessage("nested too deeply", field="$") from None
    except ValueError as error:
        text, path = text_and_path(str(error))
        raise InvalidMessage(text, field=path) from None


def tagged(content: Frame, tag: str, event: str) -> Frame:
    """Return a call's data as the message that a raw client would have sent for that event.

    Args:
        content: the data.
        tag: the field that events are chosen by.
        event: which one.
    """
    if isinstance(content, bytes):
        return content
    name = f"{msgspec.json.encode(tag).decode()}:{msgspec.json.encode(event).decode()}"
    if content == "null":
        return f"{{{name}}}"
    try:
        fields = msgspec.json.decode(content) if content[:1] == "{" else None
    except (ValueError, RecursionError):
        return content
    if not isinstance(fields, dict) or tag in fields:
        return content
    inner = content[1:].lstrip()
    return f"{{{name},{inner}" if fields else f"{{{name}}}"
