"""May this client come in? A row of checks before the 101, from the cheapest to the dearest."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from backchannel.connection import ABSENT
from backchannel.errors import Reject
from backchannel.observe import HANDSHAKE, new_error_id
from backchannel.request import Request, user_id

if TYPE_CHECKING:
    from backchannel.config import Settings
    from backchannel.listener import Callback, Callbacks

__all__ = ["check_origin", "refusal", "shake_hands"]

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def check_origin(request: Request, settings: Settings) -> Reject | None:
    """Refuse a browser page of another origin (RFC 6455 §10.2); None lets it pass.

    The Origin's host and port must equal the Host's, default ports filled in and the scheme
    ignored, or be listed in ``allowed_origins``. Without an Origin it is no browser.
    """
    origins = request.headers.getlist("origin")
    if not origins:
        return None
    origin, host = origins[0], request.host
    if len(origins) == 1 and (
        _same_host(origin, host)
        or any(_admits(pattern, origin) for pattern in settings.allowed_origins)
        or (settings.debug and urlsplit(origin).hostname == "localhost")
    ):
        return None
    HANDSHAKE.warning(
        "refused %s from %s: its Origin %r is not the Host %r; if the page is yours, add it: "
        "Hub(allowed_origins=[%r])",
        request.path, request.client, ", ".join(origins), host, origin,
    )  # fmt: skip
    return Reject(
        403,
        "This origin may not connect. The server's log says which origin and host were compared; "
        "the setting allowed_origins widens it.",
    )


def _host_port(netloc: str, scheme: str) -> tuple[str | None, int | None] | None:
    try:
        parts = urlsplit(f"//{netloc}")
        return parts.hostname, parts.port or _DEFAULT_PORTS.get(scheme)
    except ValueError:
        return None


def _same_host(origin: str, host: str) -> bool:
    scheme, separator, netloc = origin.partition("://")
    if not separator or not host or _DEFAULT_PORTS.get(scheme) is None:
        return False
    ours = _host_port(host, scheme)
    return ours is not None and ours[0] is not None and ours == _host_port(netloc, scheme)


def _admits(pattern: str, origin: str) -> bool:
    if pattern == "*":
        return True
    scheme, _, netloc = pattern.partition("://")
    origin_scheme, _, origin_netloc = origin.partition("://")
    if scheme.lower() != origin_scheme.lower():
        return False
    if netloc.startswith("*."):
        wanted, got = _host_port(netloc[2:], scheme), _host_port(origin_netloc, scheme)
        return bool(
            wanted and got and wanted[1] == got[1] and (got[0] or "").endswith(f".{wanted[0]}")
        )
    wanted = _host_port(netloc, scheme)
    return wanted is not None and wanted == _host_port(origin_netloc, scheme)


async def shake_hands(
    request: Request, callbacks: Callbacks, settings: Settings, *, user: object = ABSENT
) -> Reject | None:
    """Make every check before the 101.

    Args:
        request: the handshake; its user and identity are filled in.
        callbacks: the endpoint's listener.
        settings: the hub's.
        user: who it is, when the caller knows already; then ``authenticate`` is not asked.

    Returns:
        Who is refused, and how; None lets the client in. A check that raises or takes too long
        refuses with 500 or 503 and an error id that stands in the log.
    """
    if refused := check_origin(request, settings):
        return refused
    try:
        async with asyncio.timeout(settings.handshake_timeout):
            refused = await _identify(request, settings, user)
            if refused is None and callbacks.on_handshake:
                refused = await _ask(callbacks.on_handshake, request)
    except TimeoutError as error:
        why = f"took longer than handshake_timeout={settings.handshake_timeout:g} s"
        return await _report(request, callbacks, error, 503, why, settings)
    except Exception as error:  # noqa: BLE001 - the application may raise anything
        return await _report(request, callbacks, error, 500, "raised", settings)
    return refused


async def _identify(request: Request, settings: Settings, user: object) -> Reject | None:
    if user is not ABSENT:
        _note(request, user)
    elif settings.authenticate is not None:
        try:
            identity = settings.authenticate(request)
            if inspect.isawaitable(identity):
                identity = await identity
        except Reject as answer:
            return answer
        if (refused := refusal(identity, Reject(401, "Not authenticated."))) is not None:
            return refused
        _note(request, identity)
    if settings.require_user and request.user is None:
        return Reject(401, "Not authenticated.")
    return None


def _note(request: Request, identity: object) -> None:
    if identity is not None:
        request.identity = identity
        request.user = _id_of(identity)


async def _ask(callback: Callback, request: Request) -> Reject | None:
    try:
        if callback.in_thread:
            answer = await asyncio.to_thread(callback.function, request)
        else:
            answer = callback.function(request)
            if inspect.isawaitable(answer):
                answer = await answer
    except Reject as raised:
        answer = raised
    return refusal(answer, Reject(403, "Refused."))


async def _report(
    request: Request,
    callbacks: Callbacks,
    error: Exception,
    status: int,
    what: str,
    settings: Settings,
) -> Reject:
    """Log a failed handshake under an error id, tell on_error, and make the response."""
    error_id = new_error_id()
    HANDSHAKE.error(
        "error id %s: the handshake of %s (%s, %s) %s: %s: %s [client %s]",
        error_id, request.path, callbacks.name, callbacks.where, what,
        type(error).__name__, error, request.client, exc_info=error,
    )  # fmt: skip
    if callbacks.on_error is not None:
        try:
            told = callbacks.on_error.function(None, error)
            if inspect.isawaitable(told):
                await told
        except Exception:  # noqa: BLE001 - the application may raise anything
            HANDSHAKE.exception("error id %s: on_error raised too", error_id)
    text = f"The handshake failed, error id {error_id}: the server's log has it under this id."
    if settings.debug:
        text += "\n\n" + "".join(traceback.format_exception(error))
    return Reject(status, text)


def _id_of(identity: object) -> str:
    if isinstance(identity, str | int):
        return user_id(identity)
    for name in ("id", "pk", "user_id"):
        value = getattr(identity, name, None)
        if value is not None:
            return user_id(value if isinstance(value, str | int) else str(value))
    raise TypeError(
        f"authenticate returned {identity!r}; return None (anonymous), a user id (str or int), or "
        "an object with an id, pk or user_id"
    )


def refusal(answer: object, default: Reject) -> Reject | None:
    """Read what a callback returned: False and Reject refuse, all else does not."""
    if isinstance(answer, Reject):
        return answer
    return default if answer is False else None
