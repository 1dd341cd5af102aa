"""Whether to come back, and when: close codes, HTTP statuses, back-off; pure."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

__all__ = ["Pace", "comes_back", "is_temporary", "retry_after"]

LONGEST: Final = 20.0
FIRST: Final = 0.5
STEADY: Final = 10.0
"""Seconds for which a connection must have been open for the next wait to be short again."""

_FINAL: Final = frozenset({1000, 1002, 1003, 1007, 1008, 1009, 1010, 4004, 4005})
_TEMPORARY: Final = frozenset({408, 425, 429})


def comes_back(code: int) -> bool:
    """Tell whether a client comes back after a close code of the server."""
    return code not in _FINAL and not 4100 <= code <= 4999


def is_temporary(status: int) -> bool:
    """Tell whether a handshake that got this HTTP status is worth another attempt."""
    return status >= 500 or status in _TEMPORARY


def retry_after(value: str | None) -> float:
    """Return the seconds that a Retry-After header says; 0 where it says nothing that one knows."""
    if not value:
        return 0.0
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


@dataclass(slots=True)
class Pace:
    """How long to wait before the next attempt: full jitter, and what the server asks for.

    Attributes:
        attempt: attempts since a connection was open for long enough.
        no_sooner: seconds that the server asked for.
        told: the server said when to come back, so that no time of our own is added.
    """

    attempt: int = 0
    no_sooner: float = 0.0
    told: bool = False

    def wait(self) -> float:
        """Return the seconds to wait, and count the attempt that follows."""
        longest = min(LONGEST, FIRST * 2 ** min(self.attempt, 16))
        jitter = 0.0 if self.told else random.uniform(0, longest)  # noqa: S311 - no secret
        seconds = max(self.no_sooner, jitter)
        self.no_sooner, self.told = 0.0, False
        self.attempt += 1
        return seconds

    def lasted(self, seconds: float) -> None:
        """Take note for how long a connection was open."""
        if seconds >= STEADY:
            self.attempt = 0

    def ended(self, code: int, after: float | None) -> None:
        """Take note of how a connection ended.

        Args:
            code: its close code.
            after: seconds that the server told in ``going_away``; None where it told none.
        """
        if after is not None:
            self.no_sooner, self.told = after, True
        elif code == 1013:
            self.attempt += 1

    def refused(self, after: float) -> None:
        """Take note that a handshake was refused for now, for so many seconds at least."""
        self.no_sooner = after
