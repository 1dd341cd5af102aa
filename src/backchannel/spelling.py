"""Names of callbacks and of a connection's attributes that are none: what was meant."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection, Iterator
from typing import Final

__all__ = ["foreign_names", "hint_for", "unknown_callbacks"]

_LIKE_A_CALLBACK: Final = re.compile(r"[oO]n(_|[A-Z])")

# What other frameworks call these moments, without "on" and underscores.
_ELSEWHERE: Final = {
    **dict.fromkeys(["connect", "connected", "connection", "accept", "ready"], "on_open"),
    **dict.fromkeys(["disconnect", "disconnected", "disconnection", "end"], "on_close"),
    **dict.fromkeys(["receive", "received", "receivejson", "data", "text", "event"], "on_message"),
    **dict.fromkeys(["join", "enter"], "on_subscribe"),
    **dict.fromkeys(["leave", "exit"], "on_unsubscribe"),
    **dict.fromkeys(["upgrade", "authenticate"], "on_handshake"),
}

_CONSUMERS: Final = ("connect", "receive", "receive_json", "disconnect")


def unknown_callbacks(kind: type, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Find what looks like a callback and is none.

    Args:
        kind: the listener's class.
        known: the names that are called, ``@event`` methods among them.

    Yields:
        Its name, and the callback that was probably meant; empty where none comes near.
    """
    callbacks = {name.replace("_", ""): name for name in known if name.startswith("on_")}
    for name in dir(kind):
        if name in known or name.startswith("_"):
            continue
        plain = name.replace("_", "").casefold()
        if plain not in callbacks and not _LIKE_A_CALLBACK.match(name):
            continue
        close = difflib.get_close_matches(plain, callbacks, n=1, cutoff=0.85)
        meant = _ELSEWHERE.get(plain.removeprefix("on")) or (callbacks[close[0]] if close else "")
        if close or callable(getattr(kind, name)):
            yield name, meant


def foreign_names(kind: type) -> Iterator[tuple[str, str]]:
    """Yield methods named as Django Channels names its callbacks, and what these are here."""
    for name in _CONSUMERS:
        if inspect.isfunction(inspect.getattr_static(kind, name, None)):
            yield name, _ELSEWHERE[name.replace("_", "")]


_MISSING: Final = re.compile(r"'(\w+)' object has no attribute '(\w+)'")
_SENDING: Final = {"send_json", "send_text", "send_bytes", "sendall", "write", "emit", "reply"}


def hint_for(error: Exception, kind: type) -> str:
    """Say what was probably meant by an attribute that a connection does not have.

    Args:
        error: what a callback raised.
        kind: the connection's class.

    Returns:
        The hint, to be put behind the error; empty where it is about something else.
    """
    if not isinstance(error, AttributeError) or not (found := _MISSING.match(str(error))):
        return ""
    if found[1] not in [one.__name__ for one in kind.__mro__]:
        return ""
    name = found[2]
    if name in _SENDING:
        return "; ws.send(…) takes str, bytes and all that can be JSON"
    if name in {"accept", "receive", "receive_text", "receive_json"}:
        return "; it is accepted before on_open, and messages come to on_message"
    known = [one for one in dir(kind) if not one.startswith("_")]
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.75):
        return f"; did you mean ws.{near[0]}?"
    return f"; what is yours belongs in ws.state: ws.state.{name}"
