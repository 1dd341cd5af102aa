"""What the application is told: log lines under ``backchannel.*``, and slow callbacks by name.

Contents of messages are logged at debug level only, tokens and tickets nowhere.
"""

from __future__ import annotations

import gc
import inspect
import logging
import re
import secrets
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

from backchannel.stepping import Watched

__all__ = [
    "BROKER",
    "CONNECTION",
    "HANDSHAKE",
    "HUB",
    "LISTENER",
    "PAUSES",
    "TRACE",
    "address",
    "excerpt",
    "guard_servers",
    "new_error_id",
    "report_slow",
    "without_credentials",
]

HUB: Final = logging.getLogger("backchannel.hub")
BROKER: Final = logging.getLogger("backchannel.broker")
HANDSHAKE: Final = logging.getLogger("backchannel.handshake")
CONNECTION: Final = logging.getLogger("backchannel.connection")
LISTENER: Final = logging.getLogger("backchannel.listener")


_CREDENTIAL: Final = re.compile(r"bct_[\w%-]*|ey(?:J|Ai)[\w-]{10,}(?:\.[\w-]*){0,2}", re.ASCII)
"""A one-time ticket, or a JWT (base64 of ``{"`` or ``{ "``), also the beginning of one."""


class _Trace:
    """Whether messages are logged, without asking the logger at each of them.

    Attributes:
        is_on: they were to be logged when it was last looked.
        until: time of perf_counter() from which on to look again.
    """

    __slots__ = ("is_on", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self.look()

    def look(self) -> None:
        """Ask the logger: when a connection begins, and at the end of turns that send."""
        self.is_on = CONNECTION.isEnabledFor(logging.DEBUG)

    def look_again(self, now: float) -> None:
        """Ask it once a second, where messages are handled that no turn has to end for."""
        self.until = now + 1.0
        self.look()


TRACE: Final = _Trace()


def new_error_id() -> str:
    """Return a short random id that stands both in a response and in the log."""
    return secrets.token_hex(4)


def without_credentials(text: str) -> str:
    """Return a text with ``[hidden]`` in place of the JWTs and tickets in it."""
    return _CREDENTIAL.sub("[hidden]", text)


_SECRET: Final = re.compile(r"""("(?:resume|token)"\s*:\s*")[^"]*""")
"""The value of a frame's field that is one, also the beginning of it."""


def _without_secrets(record: logging.LogRecord) -> bool:
    """Take tokens out of the frames that a server logs; the line itself stays."""
    if record.levelno <= logging.DEBUG:
        text = record.getMessage()
        told = _SECRET.sub(r"\1[hidden]", without_credentials(text))
        if told != text:
            record.msg, record.args = told, ()
    return True


def guard_servers() -> None:
    """Keep tokens out of the debug lines in which uvicorn's WebSocket libraries show frames."""
    logger = logging.getLogger("uvicorn.error")
    if _without_secrets not in logger.filters:
        logger.addFilter(_without_secrets)


def excerpt(frame: str | bytes, limit: int = 200) -> str:
    """Return a message for a debug line: on one line, cut after ``limit`` characters.

    JWTs and tickets in it are left out, since clients may send new ones.
    """
    text = without_credentials(repr(frame[:limit]))
    return f"{text}… ({len(frame)})" if len(frame) > limit else text


def address(client: tuple[str, int] | None) -> str:
    """Return a client's address as people write it, such as ``127.0.0.1:5123``."""
    if client is None:
        return "unknown"
    host, port = client
    if not host.isprintable():  # a proxy's word, and a proxy passes on what it gets
        host = repr(host)
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Pauses:
    """When the garbage collector held everything up, so that no callback is blamed for it."""

    def __init__(self) -> None:
        self._began = 0.0
        self._recent: deque[tuple[float, float]] = deque(maxlen=16)

    def watch(self) -> None:
        """Take note from now on. The collector is the process's, so this is too."""
        if self._note not in gc.callbacks:
            gc.callbacks.append(self._note)

    def since(self, began: float) -> float:
        """Return the seconds it took from a time of perf_counter() on."""
        return sum(ended - max(began, start) for start, ended in self._recent if ended > began)

    def _note(self, phase: str, _info: object) -> None:
        if phase == "start":
            self._began = perf_counter()
        else:
            self._recent.append((self._began, perf_counter()))


PAUSES: Final = _Pauses()


def report_slow(name: str, where: str, seconds: float, limit: float) -> None:
    """Warn of a callback that held the event loop, unless the garbage collector did.

    Args:
        name: the callback.
        where: file and line of its definition.
        seconds: how long, until now.
        limit: seconds that are no reason to warn.
    """
    held = seconds - PAUSES.since(perf_counter() - seconds)
    if held > limit:
        LISTENER.warning(
            "%s (%s) held the event loop for %.0f ms, so that nobody else was served meanwhile; "
            "a blocking def wants @threaded, a blocking call in async def an await",
            name, where, held * 1000,
        )  # fmt: skip


async def timed(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    limit: float,
    report: Callable[[float], None],
) -> Any:
    """Call a function of the application, await what it returns, and time what holds the loop.

    Args:
        function: def or async def.
        arguments: what it is called with.
        limit: seconds it may hold the event loop.
        report: called with the seconds of each step that took longer.

    Raises:
        Whatever it raises.
    """
    began = perf_counter()
    try:
        result = function(*arguments)
    finally:
        if (took := perf_counter() - began) > limit:
            report(took)
    if inspect.iscoroutine(result):
        return await Watched(result, limit, report)
    return await result if inspect.isawaitable(result) else result
