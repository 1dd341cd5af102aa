"""What nodes are asked through the engine, until all have answered or it is too late."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from backchannel.answers import Fits

__all__ = ["Inquiries", "Inquiry"]


class Inquiry:
    """Counts the answers of the nodes that heard a question.

    Args:
        number: what the node tells its questions apart by.
        done: called once with the answers, and with how many did not come.
        fits: tells of an answer whether it is one.
    """

    __slots__ = ("_answers", "_done", "_fits", "_wanted", "number")

    def __init__(self, number: int, done: Callable[[list[Any], int], None], fits: Fits):
        self.number = number
        self._done: Callable[[list[Any], int], None] | None = done
        self._fits = fits
        self._answers: list[Any] = []
        self._wanted: int | None = None

    @property
    def was_heard(self) -> bool:
        """The engine has said how many nodes it went to."""
        return self._wanted is not None

    def heard_by(self, nodes: int) -> None:
        """Take note of how many nodes will answer."""
        self._wanted = nodes
        self._look()

    def take(self, words: Any) -> bool:
        """Take an answer; False where it is none: no node's place is taken by a stranger."""
        if not self._fits(words):
            return False
        self._answers.append(words)
        self._look()
        return True

    def give_up(self) -> None:
        """Wait no more."""
        if (done := self._done) is not None:
            self._done = None
            done(self._answers, max(0, (self._wanted or 0) - len(self._answers)))

    def _look(self) -> None:
        if self._wanted is not None and len(self._answers) >= self._wanted:
            self.give_up()


class Inquiries:
    """Those of a node that are open.

    Args:
        timeout: seconds that nodes have to answer.

    Attributes:
        numbers: what the node tells all apart by that it publishes.
    """

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._open: dict[int, Inquiry] = {}
        self.numbers = itertools.count(1)

    def open(self, done: Callable[[list[Any], int], None], fits: Fits) -> Inquiry:
        """Return a new one.

        Args:
            done: called once with the answers, and with how many did not come.
            fits: tells of an answer whether it is one.
        """
        number = next(self.numbers)

        def settle(answers: list[Any], missing: int) -> None:
            timer.cancel()
            self._open.pop(number, None)
            done(answers, missing)

        inquiry = self._open[number] = Inquiry(number, settle, fits)
        timer = asyncio.get_running_loop().call_later(self._timeout, inquiry.give_up)
        return inquiry

    def take(self, number: int, words: Any) -> bool:
        """Take an answer to one of them, unless it came too late; False where it is none."""
        inquiry = self._open.get(number)
        return inquiry is None or inquiry.take(words)
