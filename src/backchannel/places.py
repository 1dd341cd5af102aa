"""Where something is defined, as people read it."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["layers", "names_of_caller", "place_of", "placed", "where_defined", "written_at"]


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


def layers(function: Any) -> Iterator[Any]:
    """Yield a callable and what it is made around, one after the other; the function comes last."""
    while True:
        yield function
        if isinstance(function, functools.partial):
            function = typing.cast("Any", function.func)  # pyright: ignore[reportUnknownMemberType]
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif (wrapped := getattr(function, "__wrapped__", None)) is not None:
            function = wrapped
        elif inspect.isfunction(call := getattr(function.__class__, "__call__", None)):  # noqa: B004
            function = call
        else:
            return


def place_of(kind: type, name: str) -> str:
    """Return a method's name with file and line."""
    *_, function = layers(getattr(kind, name))
    return placed(f"{kind.__name__}.{name}", function)


def placed(name: str, function: object) -> str:
    """Return a name with file and line, if these are known."""
    where = where_defined(function)
    return name if where == "?" else f"{name} ({where})"
