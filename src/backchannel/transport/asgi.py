"""The portable transport: any ASGI server (ASGI 3.0, WebSocket spec 2.3).

What a server can't do is in docs/servers.md. Nothing here waits for one client on behalf of
another: each has its own queue, bounded in bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

from backchannel.backlog import new_backlog
from backchannel.codes import ENDINGS
from backchannel.connection import ABSENT, CloseReason, Connection
from backchannel.dialect import NAME
from backchannel.errors import Reject
from backchannel.guard import Place
from backchannel.handshake import going_away, shake_hands
from backchannel.observe import CONNECTION, HANDSHAKE, new_error_id
from backchannel.request import Request
from backchannel.speech.connection import SpeakingConnection
from backchannel.transport.lossy import new_socket
from backchannel.transport.meter import begin
from backchannel.transport.native import EXTENSION, Giver, NativeSocket, Taken
from backchannel.transport.outbox import Event, Outbox, Send

if TYPE_CHECKING:
    from backchannel.app import Hub
    from backchannel.dispatch import Dispatch
    from backchannel.endpoint import Endpoint
    from backchannel.messages import Frame

__all__ = ["Event", "Receive", "Scope", "Send", "choose_channel", "fail", "refuse", "serve"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]

_SERVER_CODES: Final = {1002, 1007, 1009, 1012}
"""Codes that a server reports for closes of its own."""


async def serve(
    hub: Hub,
    endpoint: Endpoint,
    params: Mapping[str, Any],
    path: str,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    user: object = ABSENT,
    accepted: bool = False,
    stay: bool = False,
) -> None:
    """Serve one WebSocket from its handshake to the end of its on_close.

    Args:
        hub: the hub; it has started.
        endpoint: what the path leads to.
        params: the URL template's variables.
        path: decoded path below the hub's mount.
        scope: the ASGI scope.
        receive: returns the next ASGI event.
        send: takes an ASGI event.
        user: who it is, when the caller knows already.
        accepted: the 101 has been sent already.
        stay: True returns only when the connection has ended, also where the native transport
            took it over: for a framework's route, whose dependencies live as long.
    """
    if not accepted:
        await receive()  # websocket.connect
    request = Request(
        scope,
        path=path,
        params=params,
        proxies=hub.settings.networks(),
    )
    place = hub.guard.enter(request.client)
    if isinstance(place, Reject):
        await refuse(scope, send, place, accepted=accepted)
        return
    farewells = hub.farewells
    farewells.begin(request)
    try:
        await _serve(
            hub, endpoint, request, place, scope, receive, send,
            user=user, accepted=accepted, stay=stay,
        )  # fmt: skip
    finally:
        place.give_back(unless_held=True)
        farewells.abandon(request)


async def _serve(
    hub: Hub,
    endpoint: Endpoint,
    request: Request,
    place: Place,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    user: object,
    accepted: bool,
    stay: bool,
) -> None:
    channel = await _let_in(hub, endpoint, request, place, user)
    if isinstance(channel, Reject):
        await refuse(scope, send, channel, accepted=accepted)
        return
    subprotocol = endpoint.choose_subprotocol(request.subprotocols) or request.subprotocol
    extensions: Mapping[str, Any] = scope.get("extensions") or {}
    giver: Giver | None = None if accepted else extensions.get(EXTENSION)
    deflates = False
    if giver is not None:
        settings = hub.settings
        window = None if settings.compress_above is None else settings.deflate_window
        deflates = giver.prepare(window)
    if not accepted:
        await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": []})
    link: NativeSocket | Outbox
    taken: Taken | None = None
    if giver is not None:
        taken = giver.take_over()
        link = new_socket(taken, hub, endpoint.slow_client, deflates=deflates)
    else:
        backlog, limit = new_backlog(endpoint.slow_client), hub.settings.max_outbox
        link = Outbox(send, hub.fanout, backlog, limit, hub.settings.close_timeout)
    context = copy_context()
    kind = SpeakingConnection if subprotocol == NAME else Connection
    ws = kind(
        hub, endpoint, request, link, context=context, channel=channel, subprotocol=subprotocol
    )
    dispatch = hub.guard.dispatch(hub, ws, place)
    dispatch.follow(request)
    if isinstance(link, NativeSocket) and taken is not None:
        begin(link, dispatch, taken)
        if stay:
            await asyncio.shield(dispatch.closed)
    elif isinstance(link, Outbox):
        await _live(dispatch, link, receive)


async def _let_in(
    hub: Hub, endpoint: Endpoint, request: Request, place: Place, user: object
) -> str | Reject | None:
    """Shake hands; return the channel that the URL leads into, None, or who refuses."""
    refused = await shake_hands(request, endpoint, hub.settings, hub.tickets, user=user)
    if hub.is_leaving:
        return going_away()
    channel = refused or choose_channel(hub, endpoint, request.params)
    if isinstance(channel, Reject):
        return channel
    return place.sit(request.user) or channel


async def _live(dispatch: Dispatch, link: Outbox, receive: Receive) -> None:
    """Read until the connection has ended, and stay until its on_close has run."""

    def drop_slow_client() -> None:
        text = "reads slower than it is sent to"
        dispatch.end(CloseReason(4001, text, "server"))

    link.too_slow = drop_slow_client
    dispatch.start()
    link.reader = reader = asyncio.create_task(_read(dispatch, link, receive))
    try:
        await asyncio.shield(dispatch.closed)
        await link.finished()
        if not reader.done() or reader.cancelled():
            await _read_to_the_end(reader, receive, dispatch.ws.hub.settings.close_timeout)
    except asyncio.CancelledError:
        # The server gives this connection up: its listener is still told.
        link.lose()
        dispatch.end(CloseReason(1006, "cancelled by the server", "network"))
        await asyncio.shield(dispatch.closed)
        raise
    finally:
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader


async def _read_to_the_end(
    reader: asyncio.Task[None], receive: Receive, close_timeout: float
) -> None:
    """After our close: give the client time for its answer, and drop what it was sending.

    hypercorn waits, and keeps the socket, while it has a message that nobody receives.
    """
    reader.cancel()
    await asyncio.wait({reader})
    with contextlib.suppress(Exception):  # late, or the server's way to say that it is over
        async with asyncio.timeout(close_timeout):
            while (await receive())["type"] != "websocket.disconnect":
                pass


async def _read(dispatch: Dispatch, link: Outbox, receive: Receive) -> None:
    limit = dispatch.ws.hub.settings.max_message
    try:
        while True:
            event = await receive()
            if event["type"] != "websocket.receive":
                break
            text = event.get("text")
            frame: Frame = text if text is not None else event.get("bytes") or b""
            if (size := _size(frame, limit)) > limit:
                text = f"message of {size} bytes is over the limit of {limit}"
                dispatch.end(CloseReason(1009, text, "server"))
                return
            dispatch.take_in(frame)
            await dispatch.wait_for_room()
    except asyncio.CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - the server's, and the same as a lost network
        CONNECTION.debug("%s reading failed: %r", dispatch.ws, error)
        event = {"type": "websocket.disconnect", "code": 1006}
    link.lose()
    dispatch.end(_reason(event))


def _size(frame: Frame, limit: int) -> int:
    """Return a message's bytes; only a text that may be over the limit is encoded for it."""
    if isinstance(frame, str) and len(frame) <= limit < 4 * len(frame) and not frame.isascii():
        return len(frame.encode(errors="replace"))
    return len(frame)


def _reason(event: Mapping[str, Any]) -> CloseReason:
    """Read a disconnect event.

    uvicorn reports a lost connection as 1005 without a reason, a close frame without a code as
    1005 with one.
    """
    code, text = event.get("code") or 1005, event.get("reason")
    if code == 1006 or (code == 1005 and text is None):
        return CloseReason(1006, text or "connection lost", "network")
    if code in _SERVER_CODES:
        return CloseReason(code, text or ENDINGS[code].meaning, "server")
    return CloseReason(code, text or "", "client")


def choose_channel(hub: Hub, endpoint: Endpoint, params: Mapping[str, Any]) -> str | Reject | None:
    """Return the name of the channel that a URL leads into, None, or why it leads nowhere."""
    if endpoint.pattern is None:
        return None
    try:
        name = hub.check_channel(endpoint.pattern.fill(params))
    except ValueError as error:
        return Reject(400, str(error))
    if other := hub.endpoints.guarded_by_another(endpoint, name):
        HANDSHAKE.warning("refused: channel %r belongs to %s, not to %s", name, other, endpoint)
        return Reject(403, f"The channel {name!r} can't be entered by this URL.")
    return name


async def refuse(scope: Scope, send: Send, answer: Reject, *, accepted: bool = False) -> None:
    """Answer a handshake with an HTTP status other than 101, where the server can do so."""
    HANDSHAKE.debug("refused %r with %d: %r", scope["path"], answer.status, answer.text)
    if accepted:
        await send({"type": "websocket.close", "code": 1008, "reason": answer.text[:40]})
        return
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1008})  # becomes a plain 403
        return
    body = answer.text.encode(errors="replace")
    headers = {
        "content-type": "text/plain; charset=utf-8",
        "content-length": str(len(body)),
        **{name.lower(): value for name, value in answer.headers.items()},
    }
    await send(
        {
            "type": "websocket.http.response.start",
            "status": answer.status,
            "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
        }
    )
    await send({"type": "websocket.http.response.body", "body": body, "more_body": False})
    # uvicorn logs an error when the app returns before its transport has noticed the close.
    await asyncio.sleep(0)


async def fail(scope: Scope, send: Send, error: Exception, *, debug: bool) -> None:
    """Answer 500 with an error id for what went wrong outside all callbacks."""
    error_id = new_error_id()
    HANDSHAKE.error("error id %s: %r: %r", error_id, scope["path"], error, exc_info=error)
    detail = f"\n\n{error!r}" if debug else ""
    await refuse(scope, send, Reject(500, f"The server failed, error id {error_id}.{detail}"))
