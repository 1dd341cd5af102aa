"""What anyone may know about a connection, on this node and on others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

__all__ = ["Info", "packed", "unpacked"]


@dataclass(frozen=True, slots=True)
class Info:
    """What anyone may know about a connection.

    Args:
        id: connection id.
        user: user id, or None for an anonymous client.
        endpoint: the URL template it came in by.
        node: id of the node it is connected to.
        opened_at: aware datetime of its handshake.
        meta: what the listener put into ``ws.meta``.
    """

    id: str
    user: str | None
    endpoint: str
    node: str
    opened_at: datetime
    meta: Mapping[str, Any]


def unpacked(answers: Iterable[Iterable[Any]]) -> list[Info]:
    """Return the connections that other nodes named."""
    return [
        Info(id_, user, endpoint, node, datetime.fromtimestamp(opened_at, UTC), meta)
        for answer in answers
        for id_, user, endpoint, node, opened_at, meta in answer
    ]


def packed(info: Info) -> list[Any]:
    """Return what tells another node of a connection."""
    opened_at = info.opened_at.timestamp()
    return [info.id, info.user, info.endpoint, info.node, opened_at, dict(info.meta)]
