"""What nodes answer one another: of which type, so that a stranger's word is not taken for one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

__all__ = ["Fits", "anything", "fitting", "is_count"]

Fits = Callable[[Any], bool]
"""Tells of an answer whether it is one to what was asked."""

_Info = tuple[str, str | None, str, str, float, dict[Any, Any]]  # see ``info.packed``


def anything(answer: object) -> bool:  # noqa: ARG001 - whatever
    """Take anything."""
    return True


def is_count(answer: object) -> bool:
    """Tell whether an answer is how many; None is of a node that was not meant."""
    return answer is None or (type(answer) is int and answer >= 0)


def _is_list_of(kind: Any) -> Fits:
    whole = list[kind]

    def fits(answer: object) -> bool:
        if answer is None:
            return True
        try:
            found = msgspec.convert(answer, whole)
            if kind is _Info:
                for *_, opened_at, _meta in found:
                    datetime.fromtimestamp(opened_at, UTC)
        except (msgspec.ValidationError, ValueError, OverflowError, OSError):
            return False
        return True

    return fits


def _is_handed_over(answer: object) -> bool:
    """Tell whether an answer is a session, or that a later connection has it."""
    return answer is None or answer is True or isinstance(answer, bytes)


_FITTING: Final[dict[str, Fits]] = {
    "close": is_count,
    "count": is_count,
    "subscribe": is_count,
    "unsubscribe": is_count,
    "users": _is_list_of(str),
    "connections": _is_list_of(_Info),
    "recheck": _is_list_of(_Info),
    "replace": _is_handed_over,
    "farewell": anything,  # nobody asks for it
}


def fitting(verb: Any) -> Fits:
    """Return what tells of an answer whether it is one to a verb."""
    return _FITTING.get(verb, anything)
