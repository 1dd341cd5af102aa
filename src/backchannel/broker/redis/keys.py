"""What keys and topics are called: all of one hub's under its name."""

from __future__ import annotations

import hashlib
from typing import Final

from backchannel.contracts import Target

__all__ = ["Keys"]

_LETTERS: Final = {"channel": "c", "user": "u", "session": "s", "everyone": "e"}


class Keys:
    """The names of one hub.

    What belongs together stands in braces, so that a cluster keeps it in one place.

    Args:
        hub: the hub's name.
    """

    def __init__(self, hub: str):
        self.prefix = f"backchannel:{hub}:"

    def topic(self, target: Target) -> bytes:
        """Return what is published to for a target; one connection's are told to its node."""
        key = target.key
        if target.kind == "session":  # its id may be a secret
            key = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return f"{self.prefix}{{{_LETTERS[target.kind]}:{key}}}".encode()

    def node(self, node: str) -> bytes:
        """Return what is published to for a node."""
        return f"{self.prefix}{{n:{node}}}".encode()

    @staticmethod
    def of_history(topic: bytes) -> tuple[bytes, bytes]:
        """Return where a channel's newest position is kept, and where its history, by its topic."""
        return topic + b":state", topic + b":entries"
