"""The broker of a single process: the embedded default."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backchannel.contracts import Receipt

if TYPE_CHECKING:
    from backchannel.contracts import Deliver, Publication

__all__ = ["MemoryBroker"]


class MemoryBroker:
    """Delivers at once, in the order of the calls, to the one node there is."""

    def __init__(self) -> None:
        self._deliver: Deliver | None = None

    def bind(self, deliver: Deliver) -> None:
        """Remember the node."""
        self._deliver = deliver

    def publish(self, publication: Publication) -> Receipt:
        """Deliver."""
        if self._deliver is None:
            raise RuntimeError("publish() before bind()")
        return Receipt(self._deliver(publication))
