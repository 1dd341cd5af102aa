"""Making a client: what it is made with, checked."""

from __future__ import annotations

import ssl as tls
from collections.abc import Callable, Mapping
from typing import Any

from websockets.uri import parse_uri

from backchannel.client.client import Client
from backchannel.client.core import Hooks, State
from backchannel.client.events import Lost
from backchannel.client.line import Options
from backchannel.client.outbox import Outbox
from backchannel.client.streams import Unread
from backchannel.client.tokens import Token, check_token

__all__ = ["connect"]


def connect(
    url: str,
    *,
    token: Token | None = None,
    headers: Mapping[str, str] | None = None,
    cookies: Mapping[str, str] | None = None,
    ssl: tls.SSLContext | None = None,
    proxy: str | bool | None = True,
    on_state: Callable[[State], Any] | None = None,
    on_lost: Callable[[Lost], Any] | None = None,
    first_seconds: float | None = 30.0,
    patience: float = 10.0,
    queue_messages: int = 1000,
    queue_bytes: int = 1 << 20,
    queue_seconds: float | None = 60.0,
    max_unread: int = 1 << 20,
    max_message: int = 16 << 20,
) -> Client:
    """Make a client of an endpoint of a hub: ``async with`` connects it.

    It stays connected until it is closed: it comes back by itself, with what was missed.

    Args:
        url: the endpoint's: ``wss://example.com/ws/chat``.
        token: sent as ``Authorization: Bearer …``; None is none. A callable, async or not, is asked
            before each attempt to connect, and for a newer one before the one ends with which the
            connection was let in: half of its time before, or a minute where that is less.
        headers: more headers of each handshake.
        cookies: sent with each handshake.
        ssl: whose certificates are trusted, for ``wss://``; None trusts the system's.
        proxy: True takes the system's proxy, as environment variables have it; a URL is that
            one; None none.
        on_state: called with each new ``client.state``, in the event loop; it must not block.
        on_lost: called with a ``Lost`` where something can't be had any more, when that is known,
            whether or not the channel is read; its ``channel`` is None where it belongs to none.
            It may be async, and then runs beside everything else until the client is closed.
        first_seconds: how long to try for the first connection; None is for ever. Later ones are
            tried for until the client is closed.
        patience: seconds that the answer to a sign of life may take; twice as many for a handshake.
        queue_messages: how many requests may wait while there is no connection.
        queue_bytes: how many bytes of them.
        queue_seconds: how long each may wait; None is for ever.
        max_unread: bytes that may wait until the application reads them, in all streams together.
            Then the client stops reading from its socket.
        max_message: bytes of the largest message of the server that is taken.

    Raises:
        TypeError: the URL is no str, a token neither that nor callable, or ``on_state`` or
            ``on_lost`` not callable.
        ValueError: it is no WebSocket URL, a number is out of range, or a token has characters that
            no header can carry.
    """
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"connect() takes a URL, as wss://example.com/ws/chat, not {url!r}")
    if not url.startswith(("ws://", "wss://")):
        raise ValueError(f"connect({url!r}): a WebSocket URL starts with ws:// or wss://")
    try:
        parse_uri(url)
    except Exception as error:
        raise ValueError(f"connect({url!r}): {error}") from error
    if ssl is not None and url.startswith("ws://"):
        raise ValueError(f"connect({url!r}, ssl=…): only wss:// URLs have TLS")
    for name, hook in (("on_state", on_state), ("on_lost", on_lost)):
        if hook is not None and not callable(hook):
            raise TypeError(f"connect({name}=…) is what can be called, not {hook!r}")
    if token is not None and not callable(token):
        check_token(token, "connect(token=…)")
    _check_numbers(
        first_seconds=first_seconds, patience=patience, queue_seconds=queue_seconds,
        queue_messages=queue_messages, queue_bytes=queue_bytes, max_unread=max_unread,
        max_message=max_message,
    )  # fmt: skip
    all_headers = dict(headers or {})
    if cookies:
        all_headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    options = Options(
        url, token, all_headers, ssl, proxy or None, patience, first_seconds, max_message
    )
    return Client(
        options,
        Outbox(queue_messages, queue_bytes),
        Unread(max_unread),
        queue_seconds,
        Hooks(on_state, on_lost),
    )


def _check_numbers(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is None and name in {"first_seconds", "queue_seconds"}:
            continue
        unit = "seconds" if name.endswith("seconds") or name == "patience" else "a number"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"connect({name}=…) is {unit}, not {value!r}")
        if not 0 < value < float("inf"):  # also NaN
            raise ValueError(f"connect({name}=…) is {unit} above 0, not {value!r}")
