"""A chat in channels: who is here, who is typing, and whispers to one person.

Run it:  backchannel run examples/chat.py
Try it:  http://localhost:8888/ in two windows

One connection is one person in one channel; the page opens one for each channel it is in.
"""

from __future__ import annotations

from itertools import chain, count
from typing import Annotated

from msgspec import Meta, Struct

from backchannel import CloseReason, Connection, Hub, Listener, Reject, event

NAME_LENGTH = 24
Text = Annotated[str, Meta(max_length=2000, pattern=r"\S")]  # not empty, and no novel

hub = Hub()
hub.page("/", "chat.html")


# What the page sends. The "type" of a message chooses the @event method that gets it.


class Say(Struct):
    text: Text


class Whisper(Struct):
    to: str  # the id of a person in this channel
    text: Text


# What the page gets. The tag is the "type"; people are named by the id of their connection.


class Welcome(Struct, tag="welcome"):
    you: str
    people: dict[str, str]  # id → name, you included


class Joined(Struct, tag="joined"):
    id: str
    name: str


class Left(Struct, tag="left"):
    id: str


class Said(Struct, tag="said"):
    by: str
    text: str


class Whispered(Struct, tag="whispered"):
    by: str
    text: str


class Delivery(Struct, tag="delivery"):
    to: str
    text: str
    delivered: bool


class Typing(Struct, tag="typing"):
    by: str


@hub.endpoint("/ws/chat/{channel}")
class Chat(Listener):
    """Everyone in a channel hears what is said there; a whisper is heard by one."""

    def __init__(self):
        self.rooms: dict[str, dict[str, str]] = {}  # channel → id → name

    def on_subscribe(self, ws: Connection, channel: str) -> Reject | None:
        """Let someone in, if the name will do, and tell everybody.

        This is a plain def and the entry follows at once, so nobody comes or goes in between:
        the newcomer's list and what the others are told always fit together.
        """
        wanted = readable(ws.query.get("name", ""))
        if not wanted:
            return Reject("Please tell us your name.")
        if len(wanted) > NAME_LENGTH:
            return Reject(f"A name has {NAME_LENGTH} characters at most.")
        people = self.rooms.setdefault(channel, {})
        name = people[ws.id] = unlike(people.values(), wanted)
        ws.broadcast(Joined(ws.id, name))  # reaches the others: ws is not in the channel yet
        ws.send(Welcome(ws.id, people))
        return None

    def on_close(self, ws: Connection, reason: CloseReason) -> None:
        people = self.rooms.get(ws.channel, {})
        if people.pop(ws.id, None):  # else the name was refused, and nobody was told of it
            ws.broadcast(Left(ws.id))
        if not people:
            self.rooms.pop(ws.channel, None)

    @event("say")
    def say(self, ws: Connection, message: Say) -> None:
        ws.broadcast(Said(ws.id, message.text))

    @event("whisper")
    def whisper(self, ws: Connection, message: Whisper) -> Delivery:
        """Send to one connection of this channel. The sender is told whether it is still there."""
        sent = ws.broadcast(Whispered(ws.id, message.text), to=message.to)
        return Delivery(message.to, message.text, delivered=bool(sent.reached))

    @event("typing")
    def typing(self, ws: Connection) -> None:
        ws.broadcast(Typing(ws.id), exclude=ws)


def readable(name: str) -> str:
    """Return a name on one line, without what can't be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())


def unlike(taken, name: str) -> str:
    """Return the name; with a number behind it if someone else has it: Ana, Ana 2, Ana 3."""
    known = {other.casefold() for other in taken}
    options = chain([name], (f"{name} {number}" for number in count(2)))
    return next(option for option in options if option.casefold() not in known)
