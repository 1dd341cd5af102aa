"""What is said of an error in the user's file: the user's own lines, and none of ours."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import IO, Any, Final

import click

import backchannel
from backchannel.errors import BackchannelError, BrokerUrlError

__all__ = ["MistakeError"]

_OURS: Final = str(Path(backchannel.__file__).parent)
_DEFINITION: Final = (BackchannelError, TypeError, ValueError, LookupError, FileNotFoundError)


class MistakeError(click.ClickException):
    """The user's file could not be imported.

    Args:
        error: what it raised; its traceback begins where the file was imported.
    """

    def __init__(self, error: Exception):
        super().__init__(_told(error))

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it as it is, to stderr unless told otherwise."""
        click.echo(self.message, file=file, err=file is None)


def _told(error: Exception) -> str:
    told = traceback.TracebackException.from_exception(error)
    is_ours = bool(told.stack) and told.stack[-1].filename.startswith(_OURS)
    _leave_users_lines(told)
    if isinstance(error, BrokerUrlError):
        # One line: the one in the file may have a password in it.
        where = f" ({told.stack[-1].filename}:{told.stack[-1].lineno})" if told.stack else ""
        return f"Error: {error}{where}"
    if is_ours and isinstance(error, _DEFINITION):
        # We refused what the file defines: the message says all, the rest is where that stands.
        return f"Error: {error}\n{''.join(told.stack.format())}".rstrip()
    bare = not told.stack and not told.__cause__ and not told.__context__  # as for a SyntaxError
    lines = told.format_exception_only() if bare else told.format()
    return "".join(lines).rstrip()


def _leave_users_lines(told: traceback.TracebackException) -> None:
    """Take out the frames that import a file, and those inside Backchannel."""
    told.stack[:] = [
        frame for frame in told.stack if not frame.filename.startswith((_OURS, "<frozen importlib"))
    ]
    for other in (told.__cause__, told.__context__, *(told.exceptions or ())):
        if other is not None:
            _leave_users_lines(other)
