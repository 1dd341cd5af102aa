"""A server logs what callbacks raise and goes on; a test should fail."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator
from typing import Final

from backchannel.observe import CONNECTION, HANDSHAKE, HUB, LISTENER

__all__ = ["no_errors"]

_LOGGERS: Final = (HUB, HANDSHAKE, CONNECTION, LISTENER)


class _Collector(logging.Handler):
    """Keeps the errors that are logged. Each one is logged exactly once, wherever it comes from."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[Exception] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what was raised; where nothing was, the line itself."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, Exception):
            error = RuntimeError(record.getMessage())
        self.errors.append(error)


@contextlib.contextmanager
def no_errors() -> Generator[list[Exception]]:
    """Fail when a callback, ``authenticate`` or spawned work of any hub raises inside the block.

    Yields:
        What was raised until now; a test takes out of it what it expects.

    Raises:
        ExceptionGroup: at the end of the block, with what is left in the list.
        RuntimeError: the application's logging setup has switched off a logger that this needs.
    """
    for logger in _LOGGERS:
        if not logger.isEnabledFor(logging.ERROR):
            raise RuntimeError(f"the logger {logger.name} is switched off, so errors go unnoticed")
    collector = _Collector()
    for logger in _LOGGERS:
        logger.addHandler(collector)
    try:
        yield collector.errors
    finally:
        for logger in _LOGGERS:
            logger.removeHandler(collector)
        if collector.errors:
            raise ExceptionGroup("the application failed while the test ran", collector.errors)
