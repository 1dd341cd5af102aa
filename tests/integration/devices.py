"""An application whose users come on several devices, for test_users.py."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from backchannel import Connection, Hub, Listener, Reject
from backchannel.errors import SessionUnavailable
from backchannel.session.web import Session

told: list[str] = []
gone = asyncio.Event()


class Store:
    """A session store that does not answer those who say so."""

    async def find(self, request: Any) -> Session:
        if "down" in request.query:
            raise SessionUnavailable("the store does not answer")
        return Session(None)


async def who(request: Any) -> str | None:
    return request.query.get("user")


hub = Hub(authenticate=who, session=Store())


@hub.on_user_online
def online(user: str) -> None:
    told.append(f"{user} online")


@hub.on_user_offline
def offline(user: str) -> None:
    told.append(f"{user} offline")
    gone.set()


@hub.endpoint("/ws/inbox")
class Inbox(Listener):
    """Knows the device of each connection; passes messages on to the user's other devices."""

    def on_open(self, ws: Connection) -> None:
        ws.meta["name"] = ws.query.get("name", "")
        ws.meta["agent"] = ws.headers.get("user-agent", "")
        ws.send({"id": ws.id})

    def on_message(self, ws: Connection, message: str) -> None:
        assert ws.user is not None
        ws.hub.user(ws.user).send(message, exclude=ws)


def by_token(request: Any) -> str:
    return f"service {request.headers['x-service']}"


@hub.endpoint("/ws/service", authenticate=by_token)
def service(ws: Connection, message: str) -> str | None:
    return ws.user


@hub.endpoint("/ws/moved")
class Moved(Listener):
    """Sends its clients where they say, as careless applications do."""

    def on_handshake(self, request: Any) -> Reject:
        return Reject(302, "Moved.", {"Location": request.query["to"]})


async def devices(request: Request) -> JSONResponse:
    infos = await hub.user(request.path_params["user"]).connections()
    return JSONResponse(
        [{"id": one.id, "user": one.user, "endpoint": one.endpoint, **one.meta} for one in infos]
    )


async def all_told(request: Request) -> JSONResponse:
    if "gone" in request.query_params:
        await gone.wait()
    return JSONResponse(told)


async def say(request: Request) -> JSONResponse:
    sent = await hub.user(request.path_params["user"]).send(request.query_params["text"])
    return JSONResponse(sent.reached)


app = Starlette(
    routes=[
        Route("/devices/{user}", devices),
        Route("/say/{user}", say, methods=["POST"]),
        Route("/told", all_told),
        Mount("/", hub),
    ],
    lifespan=hub.lifespan,
)
