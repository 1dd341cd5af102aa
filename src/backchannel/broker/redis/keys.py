"""What keys and topics are called: all of one hub's under its name and its database."""

from __future__ import annotations

import hashlib
from typing import Final

from backchannel.contracts import Target

__all__ = ["Keys"]

_LETTERS: Final = {
    "channel": "c", "user": "u", "session": "s", "connection": "k", "everyone": "e",
}  # fmt: skip


class Keys:
    """The names of one hub.

    What belongs together stands in braces, so that a cluster keeps it in one place. An engine's
    topics are the same ones in all of its databases, so the names say which it is. No hub's name
    has a colon: none is another hub's.

    Args:
        hub: the hub's name.
        database: the number of the engine's database; names in 0, the only one that a cluster has,
            do not say it.
    """

    def __init__(self, hub: str, database: int):
        self.prefix = f"backchannel:{hub}:{database}:" if database else f"backchannel:{hub}:"

    def topic(self, target: Target) -> bytes:
        """Return what is published to for a target; see ``heard`` for one connection."""
        key = target.key
        if target.kind == "session":  # its id may be a secret
            key = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return f"{self.prefix}{{{_LETTERS[target.kind]}:{key}}}".encode()

    def heard(self, target: Target) -> bytes:
        """Return the topic of a target's publications and questions.

        A connection's id begins with its node's, where it stays at that node for its life; those
        that may move have a topic each.
        """
        if target.kind == "connection" and "." in target.key:
            return self.node(target.key.partition(".")[0])
        return self.topic(target)

    def node(self, node: str) -> bytes:
        """Return what is published to for a node."""
        return f"{self.prefix}{{n:{node}}}".encode()

    @property
    def about(self) -> bytes:
        """Where it stands what publishers without a hub have to know."""
        return f"{self.prefix}about".encode()

    def ticket(self, key: bytes) -> bytes:
        """Return where a ticket is.

        Args:
            key: its hash.
        """
        return f"{self.prefix}{{t:{key.hex()}}}".encode()

    def resume(self, key: bytes) -> bytes:
        """Return where a session is that can be resumed.

        Args:
            key: its hash.
        """
        return f"{self.prefix}{{r:{key.hex()}}}".encode()

    @property
    def presence(self) -> bytes:
        """What all keys begin with that tell who is in which channel."""
        return f"{self.prefix}{{p}}:".encode()

    @staticmethod
    def of_history(topic: bytes) -> tuple[bytes, bytes]:
        """Return where a channel's newest position is kept, and where its history, by its topic."""
        return topic + b":state", topic + b":entries"
