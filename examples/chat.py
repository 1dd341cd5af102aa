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
from typing import Annotated, Any

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


@hub.endpoint("/ws/chat/{channel}")
class Chat(Listener):
    """Everyone in a channel hears what is said there; a whisper is heard by one."""

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
        ws.broadcast({"type": "joined", "id": ws.id, "name": name})  # to those already in
        ws.send({"type": "welcome", "you": ws.id, "people": people})
        return None

    def on_close(self, ws: Connection, reason: CloseReason) -> None:
        people = self.rooms.get(ws.channel, {})
        if people.pop(ws.id, None):  # else the name was refused, and nobody has heard of it
            ws.broadcast({"type": "left", "id": ws.id})
            if not people:
                del self.rooms[ws.channel]

    @event("say")  # called for messages whose "type" is "say"; what is no valid Say never gets here
    def say(self, ws: Connection, message: Say) -> None:
        ws.broadcast({"type": "said", "by": ws.id, "text": message.text})

    @event("whisper")
    def whisper(self, ws: Connection, message: Whisper) -> dict[str, Any]:
        """Send to one connection of this channel, and answer the sender whether it was there."""
        whisper = {"type": "whispered", "by": ws.id, "text": message.text}
        sent = ws.broadcast(whisper, to=message.to)
        return {
            "type": "delivery",
            "to": message.to,
            "text": message.text,
            "delivered": sent.reached == 1,
        }

    @event("typing")
    def typing(self, ws: Connection) -> None:
        ws.broadcast({"type": "typing", "by": ws.id}, exclude=ws)


def readable(name: str) -> str:
    """Return a name on one line, without characters that can't be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())


def distinct(name: str, taken: Iterable[str]) -> str:
    """Return the name, or if it is taken the first that is not: Ana, Ana 2, Ana 3."""
    known = {other.casefold() for other in taken}
    choices = chain([name], (f"{name} {number}" for number in count(2)))
    return next(choice for choice in choices if choice.casefold() not in known)
