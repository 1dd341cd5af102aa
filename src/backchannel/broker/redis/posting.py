"""What is to be published, from the call that says so to the last answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import hiredis

from backchannel.broker.redis import parcel
from backchannel.contracts import Receipt
from backchannel.errors import BrokerUnavailable
from backchannel.history import Position
from backchannel.messages import size_of

if TYPE_CHECKING:
    import asyncio

    from backchannel.broker.redis.asking import Inquiry
    from backchannel.contracts import Publication, Target
    from backchannel.history import Retention
    from backchannel.sent import Outcome

__all__ = ["Keeping", "Owner", "Posting", "Question"]

_OVERHEAD: Final = 200
"""Bytes that a posting needs besides its message, roughly."""

_REFUSALS: Final = {
    "UNSURE": "it may have been published, or not",
    "LATE": "it was not published",
}
"""What the first words of the script's errors mean; see publish.lua."""

_SOMEWHERE: Final = Receipt(None)
_NOWHERE: Final = Receipt(0)


class Owner(Protocol):
    """Who publishes postings.

    Attributes:
        unsent: bytes that wait or are under way.
    """

    unsent: int

    def takes_back(self, posting: Posting | Question, reply: hiredis.ReplyError) -> bool:
        """Publish a posting again, which was not; False where the reply is the end of it."""
        ...

    def retry(self, posting: Posting) -> None:
        """Publish a posting again, which may or may not have been published."""
        ...


class Posting:
    """A publication of which nothing is kept; gets the engine's reply as a ``link.Command``.

    Args:
        publication: it.
        outcome: told what came of it.

    Attributes:
        inquiry: gets the answers of the nodes, where these count how many it reached.
        until: when it is too late to publish it, by the loop's clock.
        is_retry: it may have been published already.
        owner: told when it is done with, or is to be tried again.
        size: bytes it needs.
    """

    __slots__ = ("inquiry", "outcome", "owner", "publication", "size", "until")

    is_retry = False
    owner: Owner

    def __init__(self, publication: Publication, outcome: Outcome):
        self.publication = publication
        self.outcome = outcome
        self.inquiry: Inquiry | None = None
        self.until = 0.0
        frame = publication.frame
        size = _OVERHEAD + len(frame)
        if type(frame) is str and not frame.isascii():
            size = _OVERHEAD + size_of(frame)
        if publication.exclude or publication.to:
            size += publication.audience_size
        self.size = size

    @property
    def target(self) -> Target:
        """To whose topic."""
        return self.publication.target

    def pack(self, node: str) -> bytes:
        """Return it as it travels."""
        if (inquiry := self.inquiry) is None:
            return parcel.pack(self.publication)
        return parcel.pack(self.publication, parcel.Asking(node, inquiry.number))

    def settle(self, reply: Any) -> None:
        """Take the engine's reply: how many nodes heard it."""
        self.owner.unsent -= self.size
        if isinstance(reply, int):
            self._take(reply)
        elif not self.owner.takes_back(self, reply):
            self.fail(BrokerUnavailable(f"the broker refused it: {reply}"))

    def _take(self, heard: int) -> None:
        if self.inquiry is not None:
            self.inquiry.heard_by(heard)
        else:
            self.outcome.set_result(_SOMEWHERE if heard else _NOWHERE)

    def abandon(self) -> None:
        """The connection was lost before the reply; a second time could be one too many."""
        self.owner.unsent -= self.size
        self.fail(_lost())

    def fail(self, error: BrokerUnavailable, *, is_sure: bool = False) -> None:
        """Take note that it was not published: unless an attempt before this one was.

        Args:
            error: why it was not.
            is_sure: no other attempt was either.
        """
        if self.publication.again and not is_sure and not error.unsure:
            text = f"{error}; what was sent before may have been published, or not"
            error = BrokerUnavailable(text, unsure=True)
        if not self.outcome.done():
            self.outcome.set_exception(error)
        if self.inquiry is not None:
            self.inquiry.give_up()


class Keeping(Posting):
    """A publication that is kept: published again where it is unknown whether it was.

    Args:
        keep: what is kept of the channel.
        number: of this node's postings, by which the engine knows it again.

    Attributes:
        run: the engine's run of data in which it was first published; empty before that.
    """

    __slots__ = ("is_retry", "keep", "number", "run")

    def __init__(
        self,
        publication: Publication,
        outcome: Outcome,
        *,
        keep: Retention,
        number: int,
    ):
        super().__init__(publication, outcome)
        self.keep = keep
        self.number = number
        self.is_retry = False
        self.run = ""

    def settle(self, reply: Any) -> None:
        """Take the engine's reply: its position, and how many nodes heard it."""
        self.owner.unsent -= self.size
        if isinstance(reply, hiredis.ReplyError):
            if self.owner.takes_back(self, reply):
                return
            said = str(reply).partition(" ")[0].strip(":")
            what = _REFUSALS.get(said, "the broker refused it")
            error = BrokerUnavailable(f"{what}: {reply}", unsure=said == "UNSURE")
            self.fail(error, is_sure=said == "LATE")
            return
        epoch, offset, heard = reply
        position = Position(epoch.decode(), offset) if offset else None
        reached = None if heard or self.is_retry else 0  # a retry does not know who heard the first
        self.outcome.set_result(Receipt(reached, position))

    def abandon(self) -> None:
        """The connection was lost before the reply: try again, the engine makes it one."""
        self.owner.unsent -= self.size
        self.is_retry = True
        self.owner.retry(self)


class Question:
    """Something that each node that hears it answers; a ``link.Command`` too.

    Args:
        target: to whose topic.
        words: what is asked.
        inquiry: gets the answers.
        asked: fails where it could not be asked.

    Attributes:
        owner: told when it is done with.
        until: when it is too late to ask, by the loop's clock.
        size: bytes it needs.
    """

    __slots__ = ("_asked", "_inquiry", "owner", "size", "target", "until", "words")

    is_retry = False
    owner: Owner

    def __init__(
        self, target: Target, words: list[Any], inquiry: Inquiry, asked: asyncio.Future[Any]
    ):
        self.target = target
        self.words = words
        self.until = 0.0
        self.size = _OVERHEAD + sum(size_of(str(word)) for word in (target.key, *words))
        self._inquiry = inquiry
        self._asked = asked

    def pack(self, node: str) -> bytes:
        """Return it as it travels."""
        asking = parcel.Asking(node, self._inquiry.number)
        return parcel.pack_question(self.target, asking, self.words)

    def settle(self, reply: Any) -> None:
        """Take the engine's reply: how many nodes heard it."""
        self.owner.unsent -= self.size
        if isinstance(reply, int):
            self._inquiry.heard_by(reply)
        elif not self.owner.takes_back(self, reply):
            self.fail(BrokerUnavailable(f"the broker refused it: {reply}"))

    def abandon(self) -> None:
        """The connection was lost before the reply."""
        self.owner.unsent -= self.size
        self.fail(_lost())

    def fail(self, error: BrokerUnavailable) -> None:
        """Take note that it was not asked."""
        if not self._asked.done():
            self._asked.set_exception(error)
        self._inquiry.give_up()


def _lost() -> BrokerUnavailable:
    return BrokerUnavailable(
        "the connection to the broker was lost while this was published: it may have been, or not",
        unsure=True,
    )
