"""What the application is told: log lines under ``backchannel.*``, and slow callbacks by name.

Contents of messages are logged at debug level only.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Coroutine, Generator
from time import perf_counter
from typing import Any, Final

__all__ = ["CONNECTION", "HANDSHAKE", "HUB", "LISTENER", "Watched", "excerpt", "new_error_id"]

HUB: Final = logging.getLogger("backchannel.hub")
HANDSHAKE: Final = logging.getLogger("backchannel.handshake")
CONNECTION: Final = logging.getLogger("backchannel.connection")
LISTENER: Final = logging.getLogger("backchannel.listener")


def new_error_id() -> str:
    """Return a short random id that stands both in a response and in the log."""
    return secrets.token_hex(4)


def excerpt(frame: str | bytes, limit: int = 200) -> str:
    """Return a message for a debug line: on one line, cut after ``limit`` characters."""
    text = repr(frame[:limit])
    return f"{text}… ({len(frame)})" if len(frame) > limit else text


class Watched:
    """Awaits a callback's coroutine and times every step that holds the event loop.

    Args:
        coroutine: what to await.
        limit: seconds a step may take.
        report: called with the seconds of each step that took longer.
    """

    __slots__ = ("_coroutine", "_limit", "_report")

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], limit: float, report: Callable[[float], None]
    ):
        self._coroutine = coroutine
        self._limit = limit
        self._report = report

    def __await__(self) -> Generator[Any, Any, Any]:
        """Step the coroutine by hand, since nothing else sees where one step ends."""
        send, throw, limit = self._coroutine.send, self._coroutine.throw, self._limit
        value: Any = None
        error: BaseException | None = None
        while True:
            began = perf_counter()
            try:
                waiting_for = send(value) if error is None else throw(error)
            except StopIteration as stop:
                return stop.value
            finally:
                if (took := perf_counter() - began) > limit:
                    self._report(took)
            value = error = None
            try:
                value = yield waiting_for
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as caught:  # noqa: BLE001 - it belongs to the coroutine
                error = caught
