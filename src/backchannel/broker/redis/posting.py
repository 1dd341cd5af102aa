"""What is to be published, from the call that says so to the last answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import hiredis

from backchannel.broker.redis import parcel
from backchannel.contracts import Receipt
from backchannel.errors import BrokerUnavailable
from backchannel.history import Position

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from backchannel.contracts import Publication, Target
    from backchannel.history import Retention
    from backchannel.sent import Outcome

__all__ = ["Inquiry", "Posting"]

_OVERHEAD: Final = 200
"""Bytes that a posting needs besides its message, roughly."""


class Inquiry:
    """Counts the answers of the nodes that heard a question.

    Args:
        done: called once with the answers, and with how many did not come.
    """

    __slots__ = ("_answers", "_done", "_wanted")

    def __init__(self, done: Callable[[list[Any], int], None]):
        self._done: Callable[[list[Any], int], None] | None = done
        self._answers: list[Any] = []
        self._wanted: int | None = None

    def heard_by(self, nodes: int) -> None:
        """Take note of how many nodes will answer."""
        self._wanted = nodes
        self._look()

    def take(self, words: Any) -> None:
        """Take an answer."""
        self._answers.append(words)
        self._look()

    def give_up(self) -> None:
        """Wait no more."""
        if (done := self._done) is not None:
            self._done = None
            done(self._answers, max(0, (self._wanted or 0) - len(self._answers)))

    def _look(self) -> None:
        if self._wanted is not None and len(self._answers) >= self._wanted:
            self.give_up()

    @property
    def is_done(self) -> bool:
        """All who heard the question have answered, or it was given up."""
        return self._done is None


class Owner(Protocol):
    """Who publishes postings."""

    def landed(self, posting: Posting) -> None:
        """Take note that a posting is no longer under way."""
        ...

    def retry(self, posting: Posting) -> None:
        """Publish a posting again, which may or may not have been published."""
        ...


class Posting:
    """Something to be published; gets the engine's reply as a ``link.Command``.

    Args:
        target: to whose topic.
        publication: what; None for a question.
        words: the question.
        keep: what is kept of the channel; None keeps nothing.
        outcome: told what came of a publication.
        inquiry: gets the answers to a question.
        asked: fails where a question could not be asked.
        number: of this node's postings.
        until: when it is too late to publish it, by the loop's clock.
        owner: told when it is done with, or is to be tried again.

    Attributes:
        is_retry: it may have been published already.
        run: the engine's run of data in which it was first published; empty before that.
        size: bytes it needs.
    """

    __slots__ = (
        "_asked", "_owner", "inquiry", "is_retry", "keep", "number", "outcome", "publication",
        "run", "size", "target", "until", "words",
    )  # fmt: skip

    def __init__(
        self,
        target: Target,
        *,
        number: int,
        until: float,
        owner: Owner,
        publication: Publication | None = None,
        words: list[Any] | None = None,
        keep: Retention | None = None,
        outcome: Outcome | None = None,
        inquiry: Inquiry | None = None,
        asked: asyncio.Future[Any] | None = None,
    ):
        self.target = target
        self.publication = publication
        self.words = words
        self.keep = keep
        self.outcome = outcome
        self.inquiry = inquiry
        self._asked = asked
        self.number = number
        self.until = until
        self.is_retry = False
        self.run = ""
        self.size = _OVERHEAD + (len(publication.frame) if publication is not None else 0)
        self._owner = owner

    def pack(self, node: str) -> bytes:
        """Return it as it travels."""
        asking = parcel.Asking(node, self.number)
        if self.publication is None:
            return parcel.pack_question(self.target, asking, self.words or [])
        return parcel.pack(self.publication, asking if self.inquiry is not None else None)

    # ── what became of it ─────────────────────────────────────────────────────────────────────

    def settle(self, reply: Any) -> None:
        """Take the engine's reply: how many nodes heard it, with its position where it is kept."""
        self._owner.landed(self)
        if isinstance(reply, hiredis.ReplyError):
            unsure = str(reply).startswith("UNSURE")
            what = "it may have been published, or not" if unsure else "the broker refused it"
            self.fail(BrokerUnavailable(f"{what}: {reply}"))
            return
        heard, position = reply, None
        if self.keep is not None:
            epoch, offset, heard = reply
            position = Position(epoch.decode(), offset) if offset else None
        if self.inquiry is not None:
            self.inquiry.heard_by(heard)
        elif self.outcome is not None:
            self.outcome.set_result(Receipt(None if heard or self.is_retry else 0, position))

    def abandon(self) -> None:
        """The connection was lost before the reply: try again where that can't make it two."""
        self._owner.landed(self)
        if self.keep is not None:
            self.is_retry = True
            self._owner.retry(self)
        else:
            self.fail(
                BrokerUnavailable(
                    "the connection to the broker was lost while this was published: it may have "
                    "been, or not"
                )
            )

    def fail(self, error: BrokerUnavailable) -> None:
        """Take note that it was not published."""
        if self.outcome is not None and not self.outcome.done():
            self.outcome.set_exception(error)
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(error)
        if self.inquiry is not None:
            self.inquiry.give_up()
