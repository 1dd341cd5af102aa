"""Which hubs an ASGI app serves: those that it mounts, wraps, calls or hands sockets to."""

from __future__ import annotations

import gc
import inspect
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import CellType, FunctionType, ModuleType
from typing import Any, Final, cast

from backchannel.app import Hub

__all__ = ["Inside", "is_asgi_app", "look_inside"]

MOST: Final = 20_000
"""Objects that are looked at: an app may hold anything, such as a cache."""

_LEFT: Final = (type, ModuleType, str, bytes, int)
_ASGI: Final = ("scope", "receive", "send")


@dataclass(frozen=True, slots=True)
class Inside:
    """What an app holds.

    Args:
        hubs: those that it serves.
        seen: all objects that were looked at, by their ids.
    """

    hubs: tuple[Hub, ...]
    seen: frozenset[int]


def is_asgi_app(value: object) -> bool:
    """Tell whether something takes an ASGI app's arguments, by their names."""
    if isinstance(value, type) or not callable(value):
        return False
    try:
        return tuple(inspect.signature(value).parameters) == _ASGI
    except (TypeError, ValueError):  # it does not tell
        return False


def look_inside(app: object) -> Inside:
    """Look through an app's objects for hubs.

    That a function knows a hub is no sign that it serves it: views send to hubs too. So functions
    count only where they are ASGI apps, or call ``hub.serve``.

    Args:
        app: the app; nothing of it is called.
    """
    hubs: dict[Hub, None] = {}
    seen = {id(app): app}  # kept alive: an id is used again
    todo = deque([app])
    while todo and len(seen) < MOST:
        for one in _next(todo.popleft()):
            kind = type(one)  # isinstance would ask what a lazy object stands for, and so make it
            if issubclass(kind, Hub):
                hubs[cast("Hub", one)] = None
            elif id(one) not in seen and not issubclass(kind, _LEFT):
                seen[id(one)] = one
                todo.append(one)
    return Inside(tuple(hubs), frozenset(seen))


def _next(one: Any) -> Iterator[object]:
    """Yield what is to be looked at behind an object."""
    if isinstance(one, FunctionType):
        yield from _known_to(one)
    elif type(one).__name__ != "State":  # what a framework keeps for views, a hub to send to too
        yield from gc.get_referents(one)
        call = getattr(cast("type[object]", type(one)), "__call__", None)  # noqa: B004 - the function itself is wanted
        if isinstance(call, FunctionType) and _takes_asgi(call):
            yield call


def _known_to(function: FunctionType) -> Iterator[object]:
    code = function.__code__
    serves = _takes_asgi(function) or "serve" in code.co_names
    cells: tuple[CellType, ...] = function.__closure__ or ()
    for cell in cells:
        try:
            known = cell.cell_contents
        except ValueError:  # not set yet
            continue
        if serves or not issubclass(type(known), Hub):
            yield known
    if serves:
        yield from (function.__globals__[n] for n in code.co_names if n in function.__globals__)


def _takes_asgi(function: FunctionType) -> bool:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return names[-3:] == _ASGI
