"""A chat in channels: who is here, who is typing, and whispers to one person.

Run it:  in a clone: python3 dev.py example chat
         elsewhere: pip install /path/to/the/clone, and then: backchannel run chat.py
Try it:  http://localhost:8888/ in two windows

One connection is one person in one channel; the page opens one for each channel it is in.
People are known by the id of their connection, which stays the same when their network breaks
and they come back. BROKER=redis://localhost:6379/0 in the environment keeps what was said and who
said it when this server restarts; for several servers see cluster.py.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from itertools import chain, count
from typing import Annotated

from msgspec import Meta, Struct

from backchannel import CloseReason, Connection, Hub, Listener, Reject, event

GRACE = 5.0
"""Seconds in which someone whose network broke may come back without having left."""

NAME_LENGTH = 24
Text = Annotated[str, Meta(max_length=2000, pattern=r"\S")]  # no novel, and not empty

Key = Annotated[str, Meta(max_length=40)]

hub = Hub(broker=os.environ.get("BROKER"), name="chat-example")
hub.page("/", "chat.html")
hub.rule("chat:{room}", history=1000)  # whoever comes back gets what was said meanwhile


class Say(Struct):
    """Something for everyone in the channel.

    A page that did not hear whether it was said says it again; by the key all know it as the same.
    """

    text: Text
    key: Key = ""


class Whisper(Say, kw_only=True):
    """Something for one person in the channel."""

    to: str


class Sent(Struct, tag=str.lower, omit_defaults=True):
    """What the page gets; its "type" is the class's name: "welcome", "joined"."""


class Welcome(Sent):
    """You are in; these people are too."""

    you: str
    people: dict[str, str]  # id → name


class Joined(Sent):
    """Someone came."""

    id: str
    name: str


class Left(Sent):
    """Someone went."""

    id: str


class Said(Sent):
    """Someone said something to all."""

    by: str
    text: str
    key: str = ""


class Whispered(Sent):
    """Someone said something to you alone."""

    by: str
    text: str
    key: str = ""


class Delivery(Sent):
    """What has become of a whisper of yours."""

    to: str
    text: str
    delivered: bool
    key: str = ""


class Typing(Sent):
    """Someone is about to say something."""

    by: str


@hub.endpoint("/ws/chat/{channel}", channel="chat:{channel}")
class Chat(Listener):
    """Everyone in a channel hears what is said there; a whisper is heard by one."""

    durable = ("name",)  # of ws.state: it comes back with whoever comes back
    # With the annotations below it is what `backchannel schema chat.py` makes chat.d.ts of.
    sends = Welcome | Joined | Left | Said | Whispered | Delivery | Typing

    def __init__(self) -> None:
        self.rooms: dict[str, dict[str, str]] = {}  # channel → id → name
        self.leaving: dict[str, asyncio.Task[None]] = {}  # id → what tells the others in a moment

    def on_subscribe(self, ws: Connection, channel: str) -> Reject | None:
        """Let someone in, if the name will do."""
        if channel != ws.channel:
            return None  # who is typing, see below
        if leaving := self.leaving.pop(ws.id, None):
            leaving.cancel()  # it is back
        if not ws.resumed:
            ws.state.name = readable(ws.query.get("name", ""))
            if not ws.state.name:
                return Reject("Please tell us your name.")
            if len(ws.state.name) > NAME_LENGTH:
                return Reject(f"A name can have {NAME_LENGTH} characters at most.")
        ws.spawn(self.welcome(ws, channel))
        return None

    async def welcome(self, ws: Connection, channel: str) -> None:
        """Once it hears what is said, and has heard what it missed: tell it who is here."""
        if not await ws.subscribe(channel):
            return
        # From here on nothing waits: nobody comes or goes between the list and the next "joined".
        people = self.rooms.setdefault(channel, {})
        if ws.id not in people:
            ws.state.name = people[ws.id] = distinct(ws.state.name, people.values())
            ws.broadcast(Joined(ws.id, ws.state.name), exclude=ws)
        ws.send(Welcome(ws.id, people))
        ws.subscribe(f"typing:{channel}")  # a channel of its own, of which nothing is kept

    def on_close(self, ws: Connection, reason: CloseReason) -> None:
        if ws.id in self.rooms.get(ws.channel, {}):  # else nobody has heard of it
            self.leaving[ws.id] = hub.spawn(self.leave(ws, grace(reason)))

    async def leave(self, ws: Connection, seconds: float) -> None:
        """Take someone out and tell the others, so many seconds from now."""
        await asyncio.sleep(seconds)
        del self.leaving[ws.id]
        people = self.rooms[ws.channel]
        del people[ws.id]
        if not people:
            del self.rooms[ws.channel]
        ws.broadcast(Left(ws.id))

    @event("say")  # called for messages whose "type" is "say"; what is no valid Say never gets here
    async def say(self, ws: Connection, message: Say) -> None:
        # Awaited, so that the page hears that it was said when the broker has it, and not before.
        await ws.broadcast(Said(ws.id, message.text, message.key))

    @event("whisper")
    async def whisper(self, ws: Connection, message: Whisper) -> None:
        """Send to one person of this channel."""
        await self.pass_on(ws, message, is_here=message.to in self.rooms.get(ws.channel, {}))

    async def pass_on(self, ws: Connection, message: Whisper, *, is_here: bool) -> None:
        """Send a whisper, and tell its sender what has become of it.

        Both are sent to the channel, for one of it: so they are kept for whoever comes back.
        """
        if is_here:
            await ws.broadcast(Whispered(ws.id, message.text, message.key), to=message.to)
        await ws.broadcast(Delivery(message.to, message.text, is_here, message.key), to=ws)

    @event("typing")
    def typing(self, ws: Connection) -> None:
        ws.broadcast(Typing(ws.id), channel=f"typing:{ws.channel}", exclude=ws)


def grace(reason: CloseReason) -> float:
    """Return the seconds to come back in: none for whoever closed the page."""
    return 0 if reason.by == "client" and reason.code in {1000, 1001} else GRACE


def readable(name: str) -> str:
    """Return a name on one line, without characters that can't be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())


def distinct(name: str, taken: Iterable[str]) -> str:
    """Return the name, or if it is taken the first that is not: Ana, Ana 2, Ana 3."""
    known = {other.casefold() for other in taken}
    choices = chain([name], (f"{name} {number}" for number in count(2)))
    return next(choice for choice in choices if choice.casefold() not in known)
