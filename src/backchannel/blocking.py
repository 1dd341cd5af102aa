"""In debug mode a blocking call inside a callback raises, right where it stands."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from backchannel import answering, calling, dispatch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["forbid_blocking_calls"]

_ADVICE = (
    " in a callback, which would hold all connections up: put @threaded on a plain def, or await "
    "an async library"
)
_FORBIDDEN = ("time.", "socket.", "ssl.", "sqlite3.", "builtins.input")


def forbid_blocking_calls() -> Callable[[], None] | None:
    """Make sleep, socket, TLS, sqlite3 and waiting for a subprocess raise inside callbacks.

    Returns:
        What undoes it; None when the package ``backchannel[debug]`` asks for is not installed.
    """
    try:
        from blockbuster import BlockBuster, BlockBusterFunction  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    # Whatever a callback calls has one of these below it on the stack; the server's own work has
    # none, so that only callbacks are watched.
    callers = [answering, calling, dispatch]
    buster = BlockBuster(scanned_modules=callers)
    watched = [f for name, f in buster.functions.items() if name.startswith(_FORBIDDEN)]
    watched += [
        BlockBusterFunction(subprocess.Popen, name, scanned_modules=callers)
        for name in ("wait", "communicate")
    ]
    for function in watched:
        function.full_name += _ADVICE  # it ends the error's text
        function.activate()

    def undo() -> None:
        for function in watched:
            function.deactivate()

    return undo
