"""Web sessions that end while their sockets are open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from backchannel.errors import SessionUnavailable
from backchannel.observe import HUB

if TYPE_CHECKING:
    from backchannel.session.web import Session

__all__ = ["watch_sessions"]

AT_ONCE: Final = 16
"""Sessions that are asked about at the same time."""

PATIENCE: Final = 10.0
"""Seconds that a store may take for one."""


async def watch_sessions(
    interval: float,
    sessions: Callable[[], Iterable[Session]],
    end: Callable[[str], object],
) -> None:
    """Ask again and again whether sessions still exist, until cancelled.

    A store that does not answer ends no session: it is said once, and asked again next time. What
    becomes of one session is nothing to the others.

    Args:
        interval: seconds between two rounds.
        sessions: returns one session for each id, of those that are kept on the server.
        end: called with the id of a session that has expired or was deleted.
    """
    is_away = False
    while True:
        await asyncio.sleep(interval)
        todo = iter(list(sessions()))
        workers = [_ask_each(todo, end) for _ in range(AT_ONCE)]
        problems = [problem for found in await asyncio.gather(*workers) for problem in found]
        if problems and not is_away:
            HUB.error("%s; open connections stay, of %d sessions", problems[0], len(problems))
        is_away = bool(problems)


async def _ask_each(todo: Iterator[Session], end: Callable[[str], object]) -> list[str]:
    """Take sessions until none is left; return what went wrong."""
    problems: list[str] = []
    for session in todo:
        key = session.id
        if key is None:
            continue
        try:
            async with asyncio.timeout(PATIENCE):
                exists = await session.refresh()
        except TimeoutError:
            problems.append(f"the session store did not answer in {PATIENCE:g} s")
        except SessionUnavailable as error:
            problems.append(str(error))
        else:
            if not exists:
                end(key)
    return problems
