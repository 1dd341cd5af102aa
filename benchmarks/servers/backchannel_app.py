"""Backchannel as an ASGI app, written as its users write theirs."""
# ruff: noqa: ARG002 (a callback takes what it is given)

from __future__ import annotations

import os
from time import perf_counter_ns

import msgspec

from backchannel import Hub, Listener


def who_is_it(request):
    if request.path.startswith(("/ws/room/", "/ws/to-")):
        return request.cookies.get("user")
    return None  # as for everyone at the servers that this is compared with


settings = {"broker": os.environ["BROKER"], "name": "bench"} if "BROKER" in os.environ else {}
if "NO_RESUME" in os.environ:
    settings["resume_window"] = None
hub = Hub(authenticate=who_is_it, **settings)


@hub.endpoint("/ws/fanout/{channel}")
class Fanout(Listener):
    """Everyone in the channel gets every message."""

    def on_message(self, ws, message: str):
        ws.broadcast(message)


@hub.endpoint("/ws/multi")
class Multi(Listener):
    """The client names its channels in the query, and each message begins with one."""

    def on_open(self, ws):
        for channel in ws.query["channels"].split(","):
            ws.subscribe(channel)

    def on_message(self, ws, message: str):
        ws.broadcast(message, channel=message[:4])


@hub.endpoint("/ws/echo")
class Echo(Listener):
    """The sender gets it back."""

    def on_message(self, ws, message: str) -> str:
        return message


@hub.endpoint("/ws/echo-async")
class EchoAsync(Listener):
    """The same with a coroutine."""

    async def on_message(self, ws, message: str) -> str:
        return message


class Chat(msgspec.Struct):
    """What a client says."""

    user: str
    text: str


@hub.endpoint("/ws/json")
class Json(Listener):
    """The same with validated JSON."""

    def on_message(self, ws, message: Chat) -> Chat:
        return message


@hub.endpoint("/ws/room/{channel}", channel="room:{channel}")
class Room(Listener):
    """Users in rooms who hardly say anything."""

    def on_message(self, ws, message: str) -> str:
        return message


hub.rule("kept", history=1000)


@hub.endpoint("/ws/resume")
class Resume(Listener):
    """A client says what it had last, and gets what it missed."""

    async def on_message(self, ws, message: str):
        if message.startswith("fill "):
            last = await hub.broadcast("kept", "what everyone had")
            for number in range(int(message[5:])):
                await hub.broadcast("kept", f"{number:064}")
            return str(last.position)
        entering = ws.subscribe("kept", since=message)
        if not await entering or entering.lost:
            ws.close(4000, "something is lost")
        return None


hub.rule("live:{room}", history=1000)


@hub.endpoint("/ws/live/{room}", channel="live:{room}")
class Live(Listener):
    """Rooms whose members miss nothing when they come back."""

    def on_message(self, ws, message: str):
        ws.broadcast(message)


class Addressed(Listener):
    """A message begins with the name of the user that it is for."""

    shared = True

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}
        self.calls = 0
        self.nanoseconds = 0

    def on_open(self, ws):
        self.ids[ws.user] = ws.id

    def audience(self, user: str):
        raise NotImplementedError

    def on_message(self, ws, message: str):
        if message == "count":
            return {"calls": self.calls, "ns_a_call": self.nanoseconds / max(self.calls, 1)}
        began = perf_counter_ns()
        self.audience(message[:4]).send(message)
        self.nanoseconds += perf_counter_ns() - began
        self.calls += 1
        return None


@hub.endpoint("/ws/to-connection")
class ToConnection(Addressed):
    """Addressed by the id of a connection."""

    def audience(self, user: str):
        return hub.connection(self.ids[user])


@hub.endpoint("/ws/to-user")
class ToUser(Addressed):
    """Addressed by the name of a user."""

    def audience(self, user: str):
        return hub.user(user)


class Members(Listener):
    """Clients that come into channels of their own, and leave them again."""

    shared = True

    def __init__(self) -> None:
        self.came = 0
        self.left = 0

    def on_subscribe(self, ws, channel):
        self.came += 1

    def on_unsubscribe(self, ws, channel):
        self.left += 1


@hub.endpoint("/ws/join/{many}", channel=None)
class Join(Members):
    """Every message is answered when its sender is in so many more channels."""

    def on_message(self, ws, message: str):
        if message == "count":
            return {"came": self.came, "left": self.left, "channels": len(hub.channels())}
        for number in range(int(ws.params["many"])):
            ws.subscribe(f"{ws.id}:{number}")
        return message


@hub.endpoint("/ws/pairs")
class Pairs(Members):
    """Every message is answered when its sender has come into 100 channels and left them."""

    def on_message(self, ws, message: str):
        if message == "count":
            return {"came": self.came, "left": self.left, "channels": len(hub.channels())}
        for number in range(100):
            ws.subscribe(f"{ws.id}:{number}")
        for number in range(100):
            ws.unsubscribe(f"{ws.id}:{number}")
        return message
