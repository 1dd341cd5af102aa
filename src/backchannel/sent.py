"""What a sending verb returns."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from backchannel.contracts import Receipt

if TYPE_CHECKING:
    from backchannel.history import Position

__all__ = ["MISSED", "REACHED", "Outcome", "Sent", "wait_in_thread"]

T = TypeVar("T")


class Sent:
    """A message on its way. Ignore it, or await it to know that the broker has it.

    From another thread use ``.result(timeout)`` instead of ``await``.
    """

    __slots__ = ("_receipt",)

    def __init__(self, receipt: Receipt | Outcome):
        self._receipt = receipt

    @property
    def position(self) -> Position | None:
        """Where it stands in the channel's history; None where it is not, or not any more.

        Raises:
            RuntimeError: sent from another thread and not awaited yet.
            Exception: what publishing raised.
        """
        return self._known().position

    @property
    def reached(self) -> int | None:
        """Connections it was queued for.

        Raises:
            RuntimeError: sent from another thread and not awaited yet.
            Exception: what publishing raised.
        """
        return self._known().reached

    def _known(self) -> Receipt:
        receipt = self._receipt
        if isinstance(receipt, Outcome):
            if not receipt.done():
                raise RuntimeError("not sent yet: await it, or call .result(timeout) in a thread")
            return receipt.result()
        return receipt

    def result(self, timeout: float | None = None) -> Sent:
        """Wait in another thread until the broker has it.

        Args:
            timeout: seconds to wait; None waits for ever.

        Raises:
            TimeoutError: it took longer.
            RuntimeError: called in the event loop, which would wait for itself.
            Exception: what publishing raised.
        """
        if isinstance(self._receipt, Outcome):
            self._receipt.is_wanted = True
            wait_in_thread(self._receipt, timeout)
        return self

    def __await__(self) -> Generator[Any, Any, Sent]:
        """Wait until the broker has it; raise what publishing raised."""
        if isinstance(self._receipt, Outcome):
            self._receipt.is_wanted = True
            yield from asyncio.wrap_future(self._receipt)
        return self

    def __repr__(self) -> str:
        receipt = self._receipt
        if isinstance(receipt, Receipt):
            return f"<Sent reached={receipt.reached}>"
        return "<Sent, done>" if receipt.done() else "<Sent, under way>"


class Outcome(concurrent.futures.Future[Receipt]):
    """The outcome of work that may fail: a failure that nobody asks for is reported.

    Args:
        report: called once with the error, when nobody awaited it.

    Attributes:
        is_wanted: somebody waits for it.
    """

    def __init__(self, report: Callable[[Exception], None]):
        super().__init__()
        self.is_wanted = False
        self._report: Callable[[Exception], None] | None = report
        self.set_running_or_notify_cancel()  # who stops waiting for it does not stop it

    def settle(self, work: Callable[[], Receipt | Outcome]) -> None:
        """Do the work and keep what comes of it, at once or later."""
        try:
            done = work()
            if isinstance(done, Outcome):
                done.is_wanted = self.is_wanted
                done.add_done_callback(self._take)
            else:
                self.set_result(done)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
            self.set_exception(error)
        finally:
            # The error's traceback leads here: without this the two would keep each other alive,
            # and the report would wait for the garbage collector.
            del self

    def _take(self, done: concurrent.futures.Future[Receipt]) -> None:
        if (error := done.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(done.result())

    def result(self, timeout: float | None = None) -> Receipt:
        """Return the receipt or raise the error, which somebody knows of now."""
        self._report = None
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error, which somebody knows of now."""
        self._report = None
        return super().exception(timeout)

    def __del__(self) -> None:
        """Report an error that nobody asked for."""
        report = self._report
        if (
            report is not None
            and self.done()
            and isinstance(error := super().exception(), Exception)
        ):
            report(error)


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
