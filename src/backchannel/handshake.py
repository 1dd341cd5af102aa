"""May this client come in? A row of checks before the 101, from the cheapest to the dearest."""

from __future__ import annotations

import asyncio
import functools
import traceback
from time import time
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

from backchannel.connection import ABSENT
from backchannel.errors import BrokerUnavailable, InvalidToken, Reject, SessionUnavailable
from backchannel.identity import expiry_of, id_of
from backchannel.observe import HANDSHAKE, address, excerpt, new_error_id, report_slow, timed
from backchannel.places import where_defined
from backchannel.request import Request
from backchannel.session.scope import in_scope
from backchannel.session.web import NO_SESSION
from backchannel.stepping import Watched
from backchannel.threads import call_in_thread
from backchannel.tickets import key_of, tickets_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from backchannel.callbacks import Callback, Callbacks
    from backchannel.config import Settings
    from backchannel.endpoint import Endpoint
    from backchannel.stores import TicketStore

__all__ = ["REFUSED", "check_origin", "going_away", "refusal", "shake_hands"]

REFUSED: Final = Reject(403, "refused")
"""What a client is told that False keeps out."""

_NOBODY: Final = Reject(401, "Not authenticated.")

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def check_origin(request: Request, settings: Settings) -> Reject | None:
    """Refuse a browser page of another origin (RFC 6455 §10.2); None lets it pass.

    The Origin's host and port must equal the Host's, default ports filled in and the scheme
    ignored, or be listed in ``allowed_origins``. Without an Origin it is no browser.
    """
    origins = request._values_of("origin")
    if not origins:
        return None
    origin, host = origins[0], request.host
    if len(origins) == 1 and (
        _same_host(origin, host)
        or any(_admits(pattern, origin) for pattern in settings.allowed_origins)
        or (settings.debug and _is_localhost(origin))
    ):
        return None
    advice = f"if the page is yours, add it: Hub(allowed_origins=[{origin!r}])"
    if origin == "null":
        advice = "it is a local file or a sandboxed frame, which only allowed_origins='*' admits"
    HANDSHAKE.warning(
        "refused %r from %s: its Origin %r is not the Host %r; %s",
        request.scope["path"], address(request.client), ", ".join(origins), host, advice,
    )  # fmt: skip
    return Reject(
        403,
        "This origin may not connect. The server's log says which origin and host were compared; "
        "the setting allowed_origins widens it.",
    )


def _host_port(netloc: str, scheme: str) -> tuple[str | None, int | None] | None:
    try:
        parts = urlsplit(f"//{netloc}")
        port = parts.port
    except ValueError:
        return None
    return parts.hostname, _DEFAULT_PORTS.get(scheme) if port is None else port


def _parts(origin: str) -> tuple[str, str]:
    """Return scheme and the rest of an origin; both are empty for what is none, such as null."""
    scheme, separator, netloc = origin.partition("://")
    return (scheme.lower(), netloc) if separator else ("", "")


@functools.lru_cache(maxsize=256)
def _same_host(origin: str, host: str) -> bool:
    scheme, netloc = _parts(origin)
    if scheme not in _DEFAULT_PORTS:
        return False
    ours = _host_port(host, scheme)
    return ours is not None and ours[0] is not None and ours == _host_port(netloc, scheme)


def _is_localhost(origin: str) -> bool:
    scheme, netloc = _parts(origin)
    theirs = _host_port(netloc, scheme)
    return scheme in _DEFAULT_PORTS and theirs is not None and theirs[0] == "localhost"


def _admits(pattern: str, origin: str) -> bool:
    if pattern == "*":
        return True
    (scheme, netloc), (origin_scheme, origin_netloc) = _parts(pattern), _parts(origin)
    if scheme != origin_scheme:
        return False
    if netloc.startswith("*."):
        wanted, got = _host_port(netloc[2:], scheme), _host_port(origin_netloc, scheme)
        return bool(
            wanted and got and wanted[1] == got[1] and (got[0] or "").endswith(f".{wanted[0]}")
        )
    wanted = _host_port(netloc, scheme)
    return wanted is not None and wanted == _host_port(origin_netloc, scheme)


def going_away() -> Reject:
    """Return what newcomers are told by a hub that stops: another server may take them."""
    return Reject(503, "The server is going away.", {"Retry-After": "1"})


async def shake_hands(
    request: Request,
    endpoint: Endpoint,
    settings: Settings,
    tickets: TicketStore,
    *,
    user: object = ABSENT,
) -> Reject | None:
    """Make every check before the 101.

    The origin comes first, so that a page of another site can't use up a ticket.

    Args:
        request: the handshake; its user and identity are filled in.
        endpoint: where it leads; its own ``authenticate`` wins over the hub's.
        settings: the hub's.
        tickets: the hub's; a ticket in the URL is used up, and ``authenticate`` not asked.
        user: who it is, when the caller knows already; then nobody else is asked.

    Returns:
        Who is refused, and how; None lets the client in. A check that raises or takes too long
        refuses with 500 or 503 and an error id that stands in the log.
    """
    if refused := check_origin(request, settings) or endpoint.refuse_version(request.subprotocols):
        return refused
    callbacks = endpoint.callbacks
    asked = settings.authenticate if endpoint.authenticate is None else endpoint.authenticate
    limit: asyncio.Timeout | None = None
    checks = _checks(request, callbacks, settings, tickets, asked, user)
    try:
        try:
            waits_for = checks.send(None)
        except StopIteration as done:  # nothing had to wait, so that nothing needs a limit
            return cast("Reject | None", done.value)
        async with asyncio.timeout(settings.handshake_timeout) as limit:
            return cast("Reject | None", await Watched(checks, waits_for=waits_for))
    except Exception as error:  # noqa: BLE001 - the application may raise anything
        if isinstance(error, TimeoutError) and limit is not None and limit.expired():
            why = f"took longer than handshake_timeout={settings.handshake_timeout:g} s"
            return await _report(request, callbacks, error, 503, why, settings)
        return await _report(request, callbacks, error, 500, "raised", settings)


async def _checks(
    request: Request,
    callbacks: Callbacks,
    settings: Settings,
    tickets: TicketStore,
    asked: Callable[..., Any] | None,
    user: object,
) -> Reject | None:
    """Make those checks that may have to wait."""
    offered = tickets_in(request) if user is ABSENT else []
    refused = await _find_session(request, settings)
    if refused is None and offered:
        refused = await _redeem(request, offered, tickets)
    elif refused is None:
        refused = await _identify(request, settings, asked, user)
    if refused is None and callbacks.on_handshake:
        refused = await _ask(callbacks.on_handshake, settings, request)
    return refused


async def _find_session(request: Request, settings: Settings) -> Reject | None:
    if request.session is not NO_SESSION:
        return None  # the test client's
    try:
        if settings.session is None:
            request.session = await in_scope(request.scope)
        else:
            request.session = await settings.session.find(request)
    except SessionUnavailable as error:
        HANDSHAKE.error("refused %r with 503: %s", request.scope["path"], error, exc_info=error)
        text = "Sessions can't be read at the moment. Try again in a few seconds."
        return Reject(503, text, headers={"Retry-After": "5"})
    return None


async def _identify(
    request: Request, settings: Settings, asked: Callable[..., Any] | None, user: object
) -> Reject | None:
    refused = None
    if user is not ABSENT:
        refused = _note(request, user)
    elif asked is not None:
        try:
            identity = await _call(_Check(asked), settings, request)
        except Reject as answer:
            identity = answer
        refused = refusal(identity, _NOBODY) or _note(request, identity)
    if refused is not None:
        return _noted(refused, "authenticate", request)
    if settings.require_user and request.user is None:
        return _noted(_NOBODY, "require_user", request)
    return None


def _note(request: Request, identity: object) -> Reject | None:
    """Note who it is; who it was until a time that is past is refused."""
    if identity is None:
        return None
    request.identity = identity
    request.user = id_of(identity)
    until = expiry_of(identity)
    return InvalidToken("The token has expired.") if until is not None and until <= time() else None


async def _redeem(request: Request, offered: list[str], tickets: TicketStore) -> Reject | None:
    """Use up the ticket in the URL; whatever is refused later, it is gone."""
    if len(offered) > 1:
        refused = Reject(401, "The URL has more than one ticket; it may have one.")
        return _noted(refused, "its ticket", request)
    try:
        holder = await tickets.take(key_of(offered[0]))
    except BrokerUnavailable as error:
        HANDSHAKE.error("refused %r with 503: %s", request.scope["path"], error, exc_info=error)
        text = "Tickets can't be read at the moment. Try again in a few seconds."
        return Reject(503, text, headers={"Retry-After": "5"})
    if holder is None:
        refused = Reject(401, "The ticket is not valid: unknown, used already, or expired.")
        return _noted(refused, "its ticket", request)
    return _note(request, holder.id if holder.expires_at is None else holder)


async def _ask(callback: Callback, settings: Settings, request: Request) -> Reject | None:
    try:
        answer = await _call(callback, settings, request)
    except Reject as raised:
        answer = raised
    refused = refusal(answer, Reject(403, "Refused."))
    return refused and _noted(refused, "on_handshake", request)


def _noted(refused: Reject, by: str, request: Request) -> Reject:
    """Say in the log who is refused by what; the text is what the client is told, no token."""
    HANDSHAKE.info(
        "refused %r from %s with %d by %s: %s",
        request.scope["path"], address(request.client), refused.status, by, excerpt(refused.text),
    )  # fmt: skip
    return refused


class _Check:
    """``authenticate`` as a callback: what is only needed for a warning is found out then."""

    __slots__ = ("function", "in_thread")

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.in_thread: bool = getattr(function, "_backchannel_threaded", False)

    @property
    def name(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))

    @property
    def where(self) -> str:
        return where_defined(self.function)


async def _call(callback: Callback | _Check, settings: Settings, *arguments: Any) -> Any:
    """Call what the application wrote as def, async def or @threaded def."""
    if callback.in_thread:
        return await call_in_thread(callback.function, *arguments)
    limit = settings.slow_callback
    try:
        return await timed(
            callback.function,
            arguments,
            limit,
            lambda seconds: report_slow(callback.name, callback.where, seconds, limit),
        )
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError("it awaited something that was cancelled") from error


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
        "error id %s: the handshake of %r (%s, %s) %s: %r [client %s]",
        error_id, request.scope["path"], callbacks.name, callbacks.where, what,
        error, address(request.client), exc_info=error,
    )  # fmt: skip
    if callbacks.on_error is not None:
        try:
            await _call(callbacks.on_error, settings, None, error)
        except Exception:  # noqa: BLE001 - the application may raise anything
            HANDSHAKE.exception("error id %s: on_error raised too", error_id)
    text = f"The handshake failed, error id {error_id}: the server's log has it under this id."
    if settings.debug:
        text += "\n\n" + "".join(traceback.format_exception(error))
    return Reject(status, text)


def refusal(answer: object, default: Reject) -> Reject | None:
    """Read what a callback returned: False and Reject refuse, all else does not."""
    if isinstance(answer, Reject):
        return answer
    return default if answer is False else None
