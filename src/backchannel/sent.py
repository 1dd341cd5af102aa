"""What a sending verb returns."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import threading
from abc import abstractmethod
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from backchannel.contracts import Receipt

if TYPE_CHECKING:
    from backchannel.history import Position

__all__ = ["MISSED", "REACHED", "Later", "Outcome", "Sent", "wait_in_thread"]

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
            wait_in_thread(self._receipt.signal(), timeout)
            self._receipt.result()
        return self

    def __await__(self) -> Generator[Any, Any, Sent]:
        """Wait until the broker has it; raise what publishing raised."""
        if isinstance(self._receipt, Outcome):
            self._receipt.is_wanted = True
            yield from self._receipt.__await__()
        return self

    def __repr__(self) -> str:
        receipt = self._receipt
        if isinstance(receipt, Receipt):
            return f"<Sent reached={receipt.reached}>"
        return "<Sent, done>" if receipt.done() else "<Sent, under way>"


class Later:
    """Something that becomes known, which may be waited for in any thread and event loop.

    Almost none of these is ever waited for: what it takes to wait is made by who does.
    """

    __slots__ = ("_signal",)

    def __init__(self) -> None:
        self._signal: concurrent.futures.Future[None] | None = None

    @abstractmethod
    def done(self) -> bool:
        """Tell whether it is known."""

    def signal(self) -> concurrent.futures.Future[None]:
        """Return what is done when it is known; it holds nothing."""
        with _SIGNALS:
            if (signal := self._signal) is None:
                signal = self._signal = concurrent.futures.Future()
                signal.set_running_or_notify_cancel()  # who stops waiting does not stop the work
        if self.done():  # it may have become so in another thread before that
            self._tell()
        return signal

    def _tell(self) -> None:
        """Tell those who wait, if there are any, now that it is known."""
        with _SIGNALS:  # both sides may have seen the other
            signal, self._signal = self._signal, None
        if signal is not None:
            signal.set_result(None)


class Outcome(Later):
    """The outcome of work that may fail: a failure that nobody asks for is reported.

    One is made for each publication, so it is two fields.

    Args:
        report: called once with the error, when nobody awaited it.

    Attributes:
        is_wanted: somebody waits for it.
    """

    __slots__ = ("_known", "_report", "is_wanted")

    def __init__(self, report: Callable[[Exception], None]):
        self.is_wanted = False
        self._report = report
        self._known: Receipt | _Failure | None = None
        self._signal = None

    def set_result(self, receipt: Receipt) -> None:
        """Keep what came of the work; once."""
        self._known = receipt
        if self._signal is not None:
            self._tell()

    def set_exception(self, error: Exception) -> None:
        """Keep why the work failed; once."""
        self._known = _Failure(error, self._report)
        if self._signal is not None:
            self._tell()

    def settle(self, work: Callable[[], Receipt | Outcome]) -> None:
        """Do the work and keep what comes of it, at once or later."""
        try:
            done = work()
            if isinstance(done, Outcome):
                done.is_wanted = self.is_wanted
                done.signal().add_done_callback(functools.partial(self._take, done))
            else:
                self.set_result(done)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
            self.set_exception(error)
        finally:
            # The error's traceback leads here: without this the two would keep each other alive,
            # and the report would wait for the garbage collector.
            del self

    def _take(self, done: Outcome, _signal: object) -> None:
        known = done._known
        if isinstance(known, _Failure):
            self.set_exception(known.heard())
        elif known is not None:
            self.set_result(known)

    # ── who asks ──────────────────────────────────────────────────────────────────────────────

    def done(self) -> bool:
        """Tell whether the outcome is known."""
        return self._known is not None

    def result(self) -> Receipt:
        """Return the receipt or raise the error, which somebody knows of now.

        Raises:
            RuntimeError: it is not known yet.
        """
        known = self._known
        if isinstance(known, Receipt):
            return known
        if known is None:
            raise RuntimeError("the outcome is not known yet")
        try:
            raise known.heard()
        finally:
            del self, known  # as in settle()

    def __await__(self) -> Generator[Any, Any, Receipt]:
        """Wait; raise the error, which somebody knows of then."""
        if self._known is None:
            yield from asyncio.wrap_future(self.signal())
        return self.result()


_SIGNALS: Final = threading.RLock()  # a finalizer may run anywhere


class _Failure:
    """An error that somebody should hear of."""

    __slots__ = ("_error", "_report")

    def __init__(self, error: Exception, report: Callable[[Exception], None]):
        self._error = error
        self._report: Callable[[Exception], None] | None = report

    def heard(self) -> Exception:
        """Return the error to somebody who asks for it."""
        self._report = None
        return self._error

    def __del__(self) -> None:
        """Report it, where nobody asked."""
        if (report := self._report) is not None:
            report(self._error)


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
