"""Backchannel: a WebSocket application layer for Python.

Write a Listener, bind it to a URL, and get live connections that know their user and session,
channels, and messages to a channel, a user, one device or any chosen set.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from backchannel.errors import (
    BackchannelError,
    InvalidMessage,
    ListenerError,
    Reject,
    SessionReadOnly,
    SessionUnavailable,
    TemplateError,
    UnsendableMessage,
)

if TYPE_CHECKING:
    from backchannel.app import Hub
    from backchannel.audience import Audience, Info, User
    from backchannel.connection import CloseReason, Connection
    from backchannel.listener import Listener, event, threaded
    from backchannel.publisher import AsyncPublisher, Publisher
    from backchannel.request import Request
    from backchannel.sent import Sent

__all__ = [
    "AsyncPublisher",
    "Audience",
    "BackchannelError",
    "CloseReason",
    "Connection",
    "Hub",
    "Info",
    "InvalidMessage",
    "Listener",
    "ListenerError",
    "Publisher",
    "Reject",
    "Request",
    "Sent",
    "SessionReadOnly",
    "SessionUnavailable",
    "TemplateError",
    "UnsendableMessage",
    "User",
    "event",
    "threaded",
]
__version__ = "0.1.0"

# Imported when they are asked for: a client, or a publisher, has no use for a hub.
_PLACES = {
    "AsyncPublisher": "publisher",
    "Audience": "audience",
    "CloseReason": "connection",
    "Connection": "connection",
    "Hub": "app",
    "Info": "audience",
    "Listener": "listener",
    "Publisher": "publisher",
    "Request": "request",
    "Sent": "sent",
    "User": "audience",
    "event": "listener",
    "threaded": "listener",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'backchannel' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"backchannel.{_PLACES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
