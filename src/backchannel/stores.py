"""What keeps something for a hub: web sessions, tickets, sessions that may be resumed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from backchannel.request import Request
    from backchannel.session.web import Session

__all__ = ["ResumeStore", "SessionStore", "Sessions", "TicketHolder", "TicketStore"]


class SessionStore(Protocol):
    """Where a web framework keeps its sessions on the server.

    Failure: each of these raises whatever it likes when the store can't be reached. In a handshake
    that becomes 503 with Retry-After; ``ws.session`` raises SessionUnavailable.

    Attributes:
        extends: ``touch`` makes a session live longer. False where sessions end at a time that use
            does not move, or where only writing all that one holds would move it.
    """

    @property
    def extends(self) -> bool:  # noqa: D102 - described above
        ...

    async def load(self, key: str) -> Mapping[str, Any] | None:
        """Return what a session holds; None when it has expired or was deleted."""
        ...

    async def save(self, key: str, changed: Mapping[str, Any], removed: Collection[str]) -> bool:
        """Change some keys of a session and leave the others alone.

        Returns:
            False when it has expired or was deleted; it is not made anew.
        """
        ...

    async def touch(self, key: str) -> bool:
        """Let a session live on as if it had just been used, and leave alone what it holds.

        What HTTP writes at the same time must not be lost, and one that ends at the same time
        must not come back. Only called where ``extends`` is true.

        Returns:
            False when it has expired or was deleted.
        """
        ...


class Sessions(Protocol):
    """Finds the web session that a handshake belongs to: one for each framework.

    One that also has an async ``aclose()`` is told so when the hub has stopped.
    """

    async def find(self, request: Request) -> Session:
        """Return the session; an empty one where there is none, or it has expired.

        Raises:
            SessionUnavailable: the store does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class TicketHolder:
    """Whom a ticket lets in: plain values, so that it can travel between nodes.

    Args:
        id: the user's id.
        expires_at: until when it holds that it is them, in seconds since the epoch; None is for
            ever. The ticket's own time to be used is another.
    """

    id: str
    expires_at: float | None = None


class TicketStore(Protocol):
    """Keeps one-time tickets until they are used: those of one hub, on all its nodes.

    Failure: both may raise when the store can't be reached. A handshake is refused then: with 503
    and Retry-After where it is BrokerUnavailable.
    """

    async def put(self, key: bytes, holder: TicketHolder, ttl: float) -> None:
        """Keep a ticket.

        Args:
            key: a hash of it; the ticket itself is kept nowhere.
            holder: whose it is.
            ttl: seconds after which it is worth nothing.
        """
        ...

    async def take(self, key: bytes) -> TicketHolder | None:
        """Return whose ticket it is and forget it, in one step: of two that ask, one gets it.

        Returns:
            None where there is none, it was taken already, or it has expired.
        """
        ...


class ResumeStore(Protocol):
    """Keeps the sessions that clients may resume: those of one hub, on all its nodes.

    Failure: each of these may raise BrokerUnavailable. Who wants to resume then is told to come
    back later; what could not be kept is tried again.
    """

    async def put(
        self, records: Mapping[bytes, tuple[int, bytes]], ttl: float, *, new: bool
    ) -> None:
        """Keep sessions.

        Args:
            records: the turn that each is in, and what is kept of it, by its key.
            ttl: seconds after which they are worth nothing.
            new: False keeps only those that are still there: they may have been taken meanwhile.
        """
        ...

    async def extend(self, keys: Collection[bytes], ttl: float) -> None:
        """Keep sessions for so many seconds from now on."""
        ...

    async def drop(self, keys: Collection[bytes]) -> None:
        """Forget sessions."""
        ...

    async def take(self, key: bytes, turn: int) -> bytes | None:
        """Return a session and forget it, in one step: of two that ask, one gets it.

        Args:
            key: what it was kept under.
            turn: the one that asks is of; one that is kept in a later turn stays, and is for
                others. 0: it is not known, and whatever is kept is meant.
        """
        ...

    def runs(self, key: bytes) -> Sequence[str]:
        """Name the unbroken run of data in which a key is kept now; and others before it, if any.

        What was kept in a run that is not among them may be older than what was kept last: the
        store may have lost that since. Names tell runs apart by their first 8 characters.
        """
        ...
