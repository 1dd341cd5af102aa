"""A chat in channels: who is here, who is typing, and whispers to one person.

Run it:  in a clone: python3 dev.py example chat
         elsewhere: pip install /path/to/the/clone, and then: backchannel run chat.py
Try it:  http://localhost:8888/ in two windows

One connection is one person in one channel; the page opens one for each channel it is in.
People are known by the id of their connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, count
from typing import Annotated

from msgspec import Meta, Struct

from backchannel import CloseReason, Connection, Hub, Listener, Reject, event

NAME_LENGTH = 24
Text = Annotated[str, Meta(max_length=2000, pattern=r"\S")]  # no novel, and not empty

hub = Hub()
hub.page("/", "chat.html")


class Say(Struct):
    """Something for everyone in the channel."""

    text: Text


class Whisper(Struct):
    """Something for one person in the channel."""

    to: str
    text: Text


class Sent(Struct, tag=str.lower):
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


class Whispered(Sent):
    """Someone said something to you alone."""

    by: str
    text: str


class Delivery(Sent):
    """What has become of a whisper."""

    to: str
    text: str
    delivered: bool


class Typing(Sent):
    """Someone is about to say something."""

    by: str


@hub.endpoint("/ws/chat/{channel}")
class Chat(Listener):
    """Everyone in a channel hears what is said there; a whisper is heard by one."""

    # With the annotations below it is what `backchannel schema chat.py` makes chat.d.ts of.
    sends = Welcome | Joined | Left | Said | Whispered | Typing

    def __init__(self) -> None:
        self.rooms: dict[str, dict[str, str]] = {}  # channel → id → name

    def on_subscribe(self, ws: Connection, channel: str) -> Reject | None:
        """Let someone in, if the name will do.

        A plain def is not interrupted, and ws enters the channel right after it. So nobody
        comes or goes between the list in "welcome" and the first "joined" or "left" after it.
        """
        wanted = readable(ws.query.get("name", ""))
        if not wanted:
            return Reject("Please tell us your name.")
        if len(wanted) > NAME_LENGTH:
            return Reject(f"A name can have {NAME_LENGTH} characters at most.")
        people = self.rooms.setdefault(channel, {})
        name = people[ws.id] = distinct(wanted, people.values())
        ws.broadcast(Joined(ws.id, name))  # to those already in
        ws.send(Welcome(ws.id, people))
        return None

    def on_close(self, ws: Connection, reason: CloseReason) -> None:
        people = self.rooms.get(ws.channel, {})
        if people.pop(ws.id, None):  # else the name was refused, and nobody has heard of it
            ws.broadcast(Left(ws.id))
            if not people:
                del self.rooms[ws.channel]

    @event("say")  # called for messages whose "type" is "say"; what is no valid Say never gets here
    def say(self, ws: Connection, message: Say) -> None:
        ws.broadcast(Said(ws.id, message.text))

    @event("whisper")
    def whisper(self, ws: Connection, message: Whisper) -> Delivery:
        """Send to one connection of this channel, and answer the sender whether it was there."""
        sent = ws.broadcast(Whispered(ws.id, message.text), to=message.to)
        return Delivery(message.to, message.text, delivered=sent.reached == 1)

    @event("typing")
    def typing(self, ws: Connection) -> None:
        ws.broadcast(Typing(ws.id), exclude=ws)


def readable(name: str) -> str:
    """Return a name on one line, without characters that can't be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())


def distinct(name: str, taken: Iterable[str]) -> str:
    """Return the name, or if it is taken the first that is not: Ana, Ana 2, Ana 3."""
    known = {other.casefold() for other in taken}
    choices = chain([name], (f"{name} {number}" for number in count(2)))
    return next(choice for choice in choices if choice.casefold() not in known)
