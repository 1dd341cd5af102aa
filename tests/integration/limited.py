"""An application whose limits are tried out; its settings come from the environment."""

from __future__ import annotations

import json
import os
from typing import Any

from backchannel import Connection, Hub


def who(request: Any) -> str | None:
    return request.query.get("user")


hub = Hub(authenticate=who, **json.loads(os.environ.get("SETTINGS", "{}")))


@hub.endpoint("/ws/echo")
def echo(ws: Connection, message: str | bytes) -> str | bytes:
    return message


@hub.endpoint("/ws/silent")
def silent(ws: Connection, message: str | bytes) -> None:
    """Answer nothing, so that a client need not read."""


@hub.endpoint("/ws/idle", idle_timeout=0.5)
def idle(ws: Connection, message: str) -> str:
    return message
