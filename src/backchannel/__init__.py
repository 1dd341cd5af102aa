"""Backchannel: a WebSocket application layer for Python.

Write a Listener, bind it to a URL, and get live connections that know their user and session,
channels, and messages to a channel, a user, one device or any chosen set.
"""

from backchannel.app import Hub
from backchannel.audience import Audience, Info, User
from backchannel.connection import CloseReason, Connection
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
