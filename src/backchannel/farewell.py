"""Who was told to go while others were still on their way in. Pure bookkeeping."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from backchannel.connection import CloseReason, Connection
    from backchannel.contracts import Target
    from backchannel.request import Request

__all__ = ["Farewells", "news_of"]

KEPT: Final = 4096
"""Closings that are known to whoever is on the way in meanwhile."""


def news_of(target: Target, code: int, reason: str) -> list[Any] | None:
    """Return what all nodes are told, before those that have someone of a target close it.

    A node hears a user or a session only while it has someone of it, and not while its first
    connection is on the way in.

    Args:
        target: who is closed.
        code: the close code.
        reason: the reason.

    Returns:
        Words for ``Node.answer``; None where all who are concerned hear the closing itself.
    """
    if target.kind not in {"user", "session"}:
        return None
    return ["farewell", *target, code, reason]


class Farewells:
    """The closings of users, sessions and everyone, as long as someone is on the way in.

    A handshake may wait for its ``authenticate`` while its user signs out: it belongs to nobody
    yet, so that no audience has it, and would come in after all.
    """

    __slots__ = ("_coming", "_number", "_recent")

    def __init__(self) -> None:
        self._coming = 0
        self._number = 0
        self._recent: deque[tuple[int, Target, CloseReason]] = deque(maxlen=KEPT)

    def begin(self, request: Request) -> None:
        """Take note that someone is on the way in; whoever has ``request._since`` calls ``end``."""
        self._coming += 1
        request._since = self._number

    def abandon(self, request: Request) -> None:
        """Take note that a handshake came to nothing; does nothing where a connection has it."""
        if request._since is not None:
            request._since = None
            self.end()

    def end(self) -> None:
        """Take note that someone is in, or was refused."""
        self._coming -= 1
        if not self._coming:
            self._recent.clear()

    def note(self, target: Target, ending: CloseReason) -> None:
        """Take note that an audience was closed."""
        if self._coming and target.kind in {"user", "session", "everyone"}:
            self._number += 1
            self._recent.append((self._number, target, ending))

    def told(self, ws: Connection, since: int) -> CloseReason | None:
        """Return how a connection would have been closed, had it been in already; None if not."""
        if since == self._number:
            return None
        keys = {"user": ws.user, "session": ws.session.id, "everyone": ""}
        for number, target, ending in self._recent:
            if number > since and keys[target.kind] == target.key:
                return ending
        return None
