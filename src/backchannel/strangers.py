"""What is heard from the broker that no node of this hub says: dropped, counted, logged once."""

from __future__ import annotations

from typing import Final

from backchannel.observe import BROKER

__all__ = ["Strangers"]

KNOWN: Final = 100
"""Sources that are told apart: of more of them the log is not told any more."""


class Strangers:
    """Counts what was dropped.

    Attributes:
        count: how much it was.
    """

    def __init__(self) -> None:
        self.count = 0
        self._known: set[str] = set()

    def take(self, source: str, text: str, *words: object) -> None:
        """Count one, and log it where it is the first of its source.

        Args:
            source: who says it, or where.
            text: for the log, with ``%s`` in it for the words.
            words: what it is about.
        """
        self.count += 1
        if source not in self._known and len(self._known) < KNOWN:
            self._known.add(source)
            BROKER.error(text, *words)
