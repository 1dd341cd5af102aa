"""A client of a hub that comes back by itself, with what was missed: for bots and services.

``backchannel.client.blocking`` is the same for code without an event loop.
"""

from backchannel.client.client import Client
from backchannel.client.core import State
from backchannel.client.errors import (
    CallTimeout,
    ClientError,
    Closed,
    NotAdmitted,
    NotRead,
    NotUnderstood,
    OutcomeUnknown,
    QueueExpired,
    QueueFull,
    ServerError,
    Unreachable,
)
from backchannel.client.events import (
    Device,
    Event,
    Join,
    Leave,
    Lost,
    Member,
    Publication,
    Snapshot,
    Unsubscribed,
)
from backchannel.client.opening import connect
from backchannel.client.subscription import Subscription

__all__ = [
    "CallTimeout",
    "Client",
    "ClientError",
    "Closed",
    "Device",
    "Event",
    "Join",
    "Leave",
    "Lost",
    "Member",
    "NotAdmitted",
    "NotRead",
    "NotUnderstood",
    "OutcomeUnknown",
    "Publication",
    "QueueExpired",
    "QueueFull",
    "ServerError",
    "Snapshot",
    "State",
    "Subscription",
    "Unreachable",
    "Unsubscribed",
    "connect",
]
