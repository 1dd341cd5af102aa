"""Whom things are for: users, their sessions and connections, by addresses that are plain text.

``user:ana``, ``session:ana-0``, ``connection:…`` and ``everyone``. Nodes and publishers have the
same verbs, so that one function finds the audience for both.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

DIRECT = "direct"
"""What is for users, sessions, connections or everyone, and for no channel."""


class Who(NamedTuple):
    """A client, whose user and session stay the same over all of its connections."""

    name: str
    user: str
    session: str

    def addresses(self, connection: str = "") -> frozenset[str]:
        """Return all that reaches it while it has a connection with this id."""
        own = (f"user:{self.user}", f"session:{self.session}", f"connection:{connection}")
        return frozenset({"everyone", *own})


def audience(owner: Any, address: str) -> Any:
    """Return the audience of an address.

    Args:
        owner: a hub or a publisher.
        address: as above.
    """
    kind, _, id_ = address.partition(":")
    return owner.everyone if kind == "everyone" else getattr(owner, kind)(id_)


class Crowd:
    """All who are there, to choose from.

    Args:
        who: the clients.
        connections: names the connections that they have now.
        rng: decides.
    """

    def __init__(self, who: list[Who], connections: Callable[[], list[str]], rng: random.Random):
        self.users = sorted({f"user:{one.user}" for one in who})
        self.sessions = sorted({f"session:{one.session}" for one in who})
        self.connections = connections
        self.rng = rng

    def choose(self, channel: str) -> tuple[list[str] | None, list[str] | None]:
        """Return whom the next message to a channel, or past all channels, is for and not for."""
        kind = self.rng.random()
        if channel != DIRECT:
            some = self.rng.sample(self.users + self.sessions, 2)
            return (some if kind < 0.15 else None), (some[:1] if 0.15 < kind < 0.3 else None)
        devices = [f"connection:{one}" for one in self.connections()]
        groups = [self.users, self.sessions, devices or self.users, ["everyone"]]
        to = self.rng.choice(self.rng.choice(groups))
        some = self.users + self.sessions + devices
        return [to], ([self.rng.choice(some)] if kind < 0.2 else None)
