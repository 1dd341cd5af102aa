"""Where something is defined, as people read it."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["names_of_caller", "where_defined", "written_at"]


def where_defined(thing: Any) -> str:
    """Return file and line of a definition, the file relative to the working directory."""
    try:
        code: types.CodeType | None = getattr(thing, "__code__", None)
        file = inspect.getsourcefile(thing) or (code.co_filename if code else "?")
        line = inspect.getsourcelines(thing)[1] if isinstance(thing, type) else None
    except (OSError, TypeError, SystemError):
        # SystemError: CPython's parser met itself, in something the garbage collector ran.
        return "?"
    if line is None and code is not None:
        line = code.co_firstlineno
    return written_at(file, line)


def written_at(file: str, line: int | None) -> str:
    """Return file and line as people read them, the file relative to the working directory."""
    path = Path(file)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{path}:{line or '?'}"


def names_of_caller(depth: int) -> Mapping[str, Any]:
    """Return the locals where an endpoint is defined, for annotations that name local classes."""
    frame = sys._getframe(depth)
    return {} if frame.f_locals is frame.f_globals else dict(frame.f_locals)
