"""An application that is careless with what clients send, for test_injection.py."""

from __future__ import annotations

import logging
import sys
from typing import Any

from backchannel import Connection, Hub, Listener, Reject, Request

handler = logging.StreamHandler(sys.stderr)
handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
log = logging.getLogger("backchannel")
log.addHandler(handler)
log.setLevel(logging.DEBUG)

hub = Hub(authenticate=lambda request: request.query.get("user"))


@hub.endpoint("/ws/room/{channel}")
class Room(Listener):
    def on_handshake(self, request: Request) -> Any:
        if "next" in request.query:
            return Reject(302, "go there", headers={"Location": request.query["next"]})
        if "say" in request.query:
            return Reject(403, request.query["say"])
        return True

    def on_message(self, ws: Connection, message: str) -> str:
        return message
