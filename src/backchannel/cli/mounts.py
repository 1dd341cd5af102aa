"""Which hubs an ASGI app serves: those that it mounts, wraps, calls or hands sockets to."""

from __future__ import annotations

import gc
import inspect
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from types import CellType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple, cast

from backchannel.app import Hub

__all__ = ["Inside", "is_asgi_app", "look_inside", "mounted_at"]

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


_MOUNTS: Final = {
    ("starlette.routing", "Mount"): attrgetter("app"),
    ("litestar.routes.asgi", "ASGIRoute"): attrgetter("route_handler.fn"),
}
"""What frameworks mount an app by, and where that has the app; its ``path`` is where it is."""

_WRAPPED: Final = f"{Hub.wrap.__qualname__}.<locals>.wrapped"
"""The app that ``hub.wrap`` returns."""


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
    seen = _all_in(app)
    hubs = tuple(cast("Hub", one) for one in seen.values() if issubclass(type(one), Hub))
    return Inside(hubs, frozenset(seen))


def mounted_at(app: object, hub: Hub) -> str | None:
    """Return the path below which an app serves a hub, such as ``/live``; empty at its root.

    Args:
        app: the app; nothing of it is called.
        hub: a hub in it.

    Returns:
        None where the app does not tell, or serves it at several paths.
    """
    if app is hub:
        return ""
    found: dict[object, _Mount] = {}
    is_wrapped = False
    for one in _all_in(app).values():
        kind = type(one)
        if (has := _MOUNTS.get((kind.__module__, kind.__name__))) is not None:
            inside = _all_in(inner := has(one))
            path: str = cast("Any", one).path.rstrip("/")
            if id(hub) in inside:
                found[path, id(inner)] = _Mount(path, id(one), inside)  # Litestar has two for one
        elif isinstance(one, FunctionType) and one.__qualname__ == _WRAPPED:
            is_wrapped = is_wrapped or any(hub is known for known in _known_to(one))
    if not found:
        return "" if is_wrapped else None
    mounts = sorted(found.values(), key=lambda mount: len(mount.inside), reverse=True)
    is_one_way = all(inner.id in outer.inside for outer, inner in pairwise(mounts))
    return "".join(mount.path for mount in mounts) if is_one_way and not is_wrapped else None


class _Mount(NamedTuple):
    path: str
    id: int
    inside: dict[int, object]


def _all_in(app: object) -> dict[int, object]:
    """Return the objects that an app leads to, by their ids, itself the first one."""
    seen = {id(app): app}  # kept alive: an id is used again
    todo = deque([] if isinstance(app, Hub) else [app])
    while todo and len(seen) < MOST:
        for one in _next(todo.popleft()):
            kind = type(one)  # isinstance would ask what a lazy object stands for, and so make it
            if id(one) in seen or (issubclass(kind, _LEFT) and not issubclass(kind, Hub)):
                continue
            seen[id(one)] = one
            if not issubclass(kind, Hub):
                todo.append(one)
    return seen


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
