"""What the annotations of a listener say, read once at registration."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from backchannel.errors import ListenerError
from backchannel.messages import custom_type, mentions_pydantic, union_members

__all__ = [
    "NO_MESSAGE",
    "UNSAID",
    "Unresolved",
    "means_message",
    "read_returns",
    "read_sends",
    "resolve",
    "scope_of",
    "why_unknown",
]

UNSAID: Final = object()
"""There is no annotation."""

NO_MESSAGE: Final = object()
"""There is no message to annotate."""


_MESSAGES: Final = {"message", "msg", "data", "payload", "body", "event"}
"""Names that nobody gives to a connection."""


class Unresolved(NamedTuple):
    """An annotation whose names are not there when the program runs.

    Args:
        problem: which, and why.
    """

    problem: str


def scope_of(function: Any, names: Mapping[str, Any], kind: type | None) -> dict[str, Any]:
    """Return the names that a function's annotations may use, as Python would look them up.

    Args:
        function: it, bare.
        names: the locals where its endpoint was defined.
        kind: the class that it is a method of.
    """
    scope = dict(getattr(function, "__globals__", {}))
    if "<locals>" in getattr(function, "__qualname__", ""):
        scope.update(names)
    code, closure = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    for name, cell in zip(code.co_freevars if code else (), closure or (), strict=False):
        try:
            scope[name] = cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
    for base in reversed(kind.__mro__ if kind else ()):
        scope.update({k: v for k, v in vars(base).items() if isinstance(v, type)})
    return scope


def resolve(annotation: Any, scope: dict[str, Any], label: str) -> Any:
    """Evaluate one annotation; the others may name what is imported for type checkers only.

    Raises:
        ListenerError: its names are not there.
    """
    holder = types.SimpleNamespace(__annotations__={"message": annotation})
    try:
        hints = typing.get_type_hints(holder, scope, include_extras=True)
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        raise ListenerError(
            f"{label}, {annotation!r}, can't be resolved: {error}; define or import its names at "
            "module level, outside `if TYPE_CHECKING`"
        ) from error
    return hints["message"]


def read_returns(function: Callable[..., Any], scope: dict[str, Any]) -> Any:
    """Return what a callback is annotated to return; UNSAID, or Unresolved.

    Nothing but ``backchannel schema`` needs it, so that a name which is not there is no error yet.
    """
    annotation = inspect.signature(function).return_annotation
    if annotation is inspect.Signature.empty:
        return UNSAID
    try:
        return resolve(annotation, scope, "the return annotation")
    except ListenerError as error:
        return Unresolved(str(error))


def read_sends(sends: Any, label: str) -> tuple[Any, ...] | None:
    """Read what a listener says that it sends.

    Args:
        sends: its ``sends``.
        label: what it is called, with its place.

    Returns:
        The types; None where nothing is said.

    Raises:
        ListenerError: it is no type that messages can have.
    """
    if sends is None:
        return None
    members = union_members(sends)
    for member in members:
        if problem := why_unknown(member):
            raise ListenerError(
                f"{label} has {member!r}, {problem}: write a type of message, or several with |, "
                "as in `sends = Said | Left`; they are str, bytes, dict, list, a msgspec Struct, "
                "dataclass, TypedDict or pydantic model"
            )
    return members


def means_message(parameter: inspect.Parameter, scope: dict[str, Any]) -> bool:
    """Tell whether the only parameter of an event method, which is ``ws``, is meant for a message.

    Args:
        parameter: it.
        scope: the names that its annotation may use.
    """
    try:
        says = resolve(parameter.annotation, scope, parameter.name)
    except ListenerError:  # a name that is imported for type checkers only, as Connection may be
        says = Any
    if says is parameter.empty or says is Any or says is object or says is None:
        return parameter.name in _MESSAGES
    return not why_unknown(says)


def why_unknown(annotation: Any) -> str:
    """Say why a type is none that messages can have, such as ``which is no type``; empty: it is."""
    if isinstance(annotation, str):
        return "which is a text and no type"
    if annotation is None or annotation is Any or annotation is object:
        return ""
    if mentions_pydantic(annotation):
        return ""
    if not isinstance(annotation, type) and typing.get_origin(annotation) is None:
        return "which is no type"
    try:
        unknown = custom_type(msgspec.inspect.type_info(annotation))
    except (TypeError, ValueError, NameError) as error:
        return f"which can't be read ({error})"
    if unknown is None or issubclass(unknown, str):
        return ""
    return f"and {unknown.__qualname__} has no JSON form that is known"
