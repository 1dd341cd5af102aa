"""An application whose clients come with a JWT or a one-time ticket."""

from __future__ import annotations

import logging
import os
import sys

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from backchannel import Connection, Hub, Listener, event
from backchannel.auth import JWT

handler = logging.StreamHandler(sys.stderr)
handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
log = logging.getLogger("backchannel")
log.addHandler(handler)
log.setLevel(logging.DEBUG)

jwt = JWT(os.environ["SECRET"], ["HS256"], cookie="token")
hub = Hub(authenticate=jwt, require_user=True)


class Me(Listener):
    """Says who came in, and takes newer tokens."""

    def on_open(self, ws: Connection) -> None:
        ws.send({"user": ws.user})

    @event("renew")
    def renew(self, ws: Connection, message: dict) -> dict:
        ws.renew(jwt.verify(message["token"]))
        return {"until": ws.identity.expires_at.timestamp()}

    def on_error(self, ws: Connection | None, error: Exception) -> None:
        if ws is not None:
            ws.send({"error": str(error)})


hub.add("/ws/me", Me)
hub.add("/ws/spoken", Me, subprotocols=["chat.v1"])


async def ticket(request: Request) -> PlainTextResponse:
    return PlainTextResponse(await hub.ticket(request.query_params["user"]))


app = Starlette(
    routes=[Route("/ticket", ticket, methods=["POST"]), Mount("/", hub)], lifespan=hub.lifespan
)
