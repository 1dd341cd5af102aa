"""What a sending verb returns."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

from backchannel.contracts import Receipt

__all__ = ["MISSED", "REACHED", "Sent"]

T = TypeVar("T")


class Sent:
    """A message on its way. Ignore it, or await it to know that the broker has it.

    From another thread use ``.result(timeout)`` instead of ``await``.
    """

    __slots__ = ("_receipt",)

    def __init__(self, receipt: Receipt | concurrent.futures.Future[Receipt]):
        self._receipt = receipt

    @classmethod
    def from_thread(cls, loop: asyncio.AbstractEventLoop, work: Callable[[], Receipt]) -> Sent:
        """Do the work in the hub's event loop; calls from one thread are done in their order."""
        future = concurrent.futures.Future[Receipt]()
        loop.call_soon_threadsafe(settle, future, work)
        return cls(future)

    @property
    def position(self) -> None:
        """Where it stands in the channel's history; None without history."""
        return None

    @property
    def reached(self) -> int | None:
        """Connections it was queued for.

        Raises:
            RuntimeError: sent from another thread and not awaited yet.
        """
        receipt = self._receipt
        if isinstance(receipt, concurrent.futures.Future):
            if not receipt.done():
                raise RuntimeError("not sent yet: await it, or call .result(timeout) in a thread")
            receipt = receipt.result()
        return receipt.reached

    def result(self, timeout: float | None = None) -> Sent:
        """Wait in another thread until the broker has it.

        Args:
            timeout: seconds to wait; None waits for ever.

        Raises:
            TimeoutError: it took longer.
            RuntimeError: called in the event loop, which would wait for itself.
        """
        if isinstance(self._receipt, concurrent.futures.Future):
            wait_in_thread(self._receipt, timeout)
        return self

    def __await__(self) -> Generator[Any, Any, Sent]:
        """Wait until the broker has it; raise what publishing raised."""
        if isinstance(self._receipt, concurrent.futures.Future):
            yield from asyncio.wrap_future(self._receipt)
        return self

    def __repr__(self) -> str:
        pending = isinstance(self._receipt, concurrent.futures.Future) and not self._receipt.done()
        return "<Sent, under way>" if pending else f"<Sent reached={self.reached}>"


def settle(future: concurrent.futures.Future[Any], work: Callable[[], Any]) -> None:
    """Do the work and put its outcome into the future."""
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
        future.set_exception(error)


def wait_in_thread(future: concurrent.futures.Future[T], timeout: float | None) -> T:
    """Return a future's result from outside the event loop; see Sent.result for what it raises."""
    if not future.done() and _in_event_loop():
        raise RuntimeError(".result() would make the event loop wait for itself: use await")
    return future.result(timeout)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


REACHED: Final = Sent(Receipt(1))
MISSED: Final = Sent(Receipt(0))
