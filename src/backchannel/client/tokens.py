"""A client's tokens: where they come from, and a newer one in time, while it is connected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from inspect import isawaitable
from typing import Any, Final

from backchannel.client.errors import ClientError
from backchannel.client.streams import LOG

__all__ = ["Renewal", "Token", "ask", "check_token"]

AHEAD: Final = 60.0
"""Seconds before the end of a token that lives long at which a newer one is asked for."""

SOONEST: Final = 0.5
"""Seconds that pass before it is asked for, at least: some give the same token until its end."""

Token = str | Callable[[], str | Awaitable[str | None] | None]
"""A token, or what is asked for one: before each attempt to connect, and before one ends."""


def check_token(token: object, where: str) -> str:
    """Return a token that a header can carry.

    Args:
        token: what was given for one; it is not shown.
        where: what it was given to, for people.

    Raises:
        TypeError: it is no str.
        ValueError: it has other characters than those of printable ASCII.
    """
    if not isinstance(token, str):
        raise TypeError(f"{where}: a token is a str, not a {type(token).__name__}")
    for at, character in enumerate(token):
        if not " " <= character <= "~":
            raise ValueError(
                f"{where}: a token is printable ASCII, and character {at} is {character!a}: "
                "strip() one that was read from a file"
            )
    return token


async def ask(source: Token | None) -> str | None:
    """Return the token of ``connect(token=…)``; None where there is none.

    Raises:
        TypeError, ValueError: what was given is none. What a callable raises is raised too.
    """
    if source is None or isinstance(source, str):
        return source
    found = source()
    token = await found if isawaitable(found) else found
    return None if token is None else check_token(token, "connect(token=…)")


class Renewal:
    """Brings a newer token before the one ends that the connection has.

    What can't be called gives no other: then nothing is planned.

    Args:
        source: where tokens come from.
        renew: asks for one and brings it.
        begin: makes a task.
    """

    def __init__(
        self,
        source: Token | None,
        renew: Callable[[], Coroutine[Any, Any, Any]],
        begin: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ):
        self._renew, self._begin = renew, begin
        self._has_others = callable(source)
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def plan(self, seconds: float | None) -> None:
        """Plan the next one, in place of what was planned.

        Args:
            seconds: until the end of the token that the connection has now; None is for ever.
        """
        self._unplan()
        if seconds is not None and self._has_others:
            delay = max(seconds / 2, seconds - AHEAD, SOONEST)
            self._timer = asyncio.get_running_loop().call_later(delay, self._now)

    def stop(self) -> None:
        """Take note that the connection has ended: the next one begins with a token of its own."""
        self._unplan()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _unplan(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _now(self) -> None:
        self._timer = None
        self._task = self._begin(self._bring())

    async def _bring(self) -> None:
        try:
            await self._renew()
        except Exception as error:  # noqa: BLE001 - the application's code
            LOG.warning(
                "no newer token came onto the open connection, which ends with the one it has "
                "(4007) and is followed by another: %s",
                error,
                exc_info=None if isinstance(error, ClientError) else error,
            )
