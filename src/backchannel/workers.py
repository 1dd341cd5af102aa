"""How many worker processes serve this app: without a broker between them, each is on its own."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, Final

__all__ = ["count_workers"]

_SUPERVISORS: Final = {
    "uvicorn._subprocess": ("config", "workers"),
    "hypercorn.asyncio.run": ("config", "workers"),
    "gunicorn.arbiter": ("self", "num_workers"),
    "granian.server.common": ("self", "workers"),
}
"""In which module a server starts its workers, and which of its variables knows how many."""


def count_workers() -> int:
    """Return how many worker processes the server that called this has; 1 where none tells.

    No server tells its app. But each of them runs it from inside the function that was told, so
    that it stands further up in the stack of this very call.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name, attribute = _SUPERVISORS.get(frame.f_globals.get("__name__", ""), ("", ""))
        known: Any = frame.f_locals.get(name) if name else None
        count = getattr(known, attribute, None) if known is not None else None
        if isinstance(count, int) and not _reloads(known):
            return count
        frame = frame.f_back
    return 1


def _reloads(config: Any) -> bool:
    """Tell whether the process is the one child that ``--reload`` keeps, whatever else is set."""
    return bool(getattr(config, "should_reload", False))
