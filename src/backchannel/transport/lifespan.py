"""Start and stop with the server (ASGI lifespan 2.0), also around an app that has none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from backchannel.errors import BackchannelError
from backchannel.observe import HUB

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backchannel.hub import HubCore
    from backchannel.transport.asgi import Event, Receive, Scope, Send

__all__ = ["serve_lifespan", "wrap_lifespan"]


async def serve_lifespan(hub: HubCore, receive: Receive, send: Send) -> None:
    """Start the hub when the server starts, stop it when the server stops."""
    while True:
        event = await receive()
        if event["type"] == "lifespan.startup":
            if (error := await _start(hub)) is not None:
                await _failed(error, send)
                return
            await send({"type": "lifespan.startup.complete"})
        elif event["type"] == "lifespan.shutdown":
            await hub.stop()
            await send({"type": "lifespan.shutdown.complete"})
            return


async def wrap_lifespan(
    hub: HubCore,
    app: Callable[[Scope, Receive, Send], Awaitable[Any]],
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Let a wrapped app have its lifespan, and the hub its own around it.

    An app that raises on the lifespan scope has none (ASGI says so): then the hub's alone runs.
    """
    inbox: asyncio.Queue[Event] = asyncio.Queue()
    outbox: asyncio.Queue[Event] = asyncio.Queue()
    inner = asyncio.ensure_future(app(scope, inbox.get, outbox.put))
    try:
        await inbox.put(await receive())
        started = await _answer(inner, outbox)
        if started is not None and started["type"] == "lifespan.startup.failed":
            await send(started)
            return
        if (error := await _start(hub)) is not None:
            await _failed(error, send)
            return
        await send({"type": "lifespan.startup.complete"})
        event = await receive()
        await hub.stop()
        stopped = None
        if started is not None:
            await inbox.put(event)
            stopped = await _answer(inner, outbox)
        await send(stopped or {"type": "lifespan.shutdown.complete"})
    finally:
        inner.cancel()
        await asyncio.wait({inner})


async def _start(hub: HubCore) -> Exception | None:
    """Start a hub; return why it could not.

    What a server raises when it is told is then no consequence of it, with both tracebacks.
    """
    try:
        await hub.start()
    except Exception as error:  # noqa: BLE001 - the server is told
        return error
    return None


async def _failed(error: Exception, send: Send) -> None:
    """Tell the server, which ends then, that the hub could not start."""
    is_bug = not isinstance(error, BackchannelError)  # those say all in one line
    HUB.error("the hub could not start: %s", error, exc_info=error if is_bug else None)
    await send({"type": "lifespan.startup.failed", "message": str(error)})


async def _answer(inner: asyncio.Future[Any], outbox: asyncio.Queue[Event]) -> Event | None:
    """Return the app's next answer; None when it ended without one, as an app without lifespan."""
    answer = asyncio.ensure_future(outbox.get())
    await asyncio.wait({inner, answer}, return_when=asyncio.FIRST_COMPLETED)
    if answer.done():
        return answer.result()
    answer.cancel()
    if not inner.cancelled() and (error := inner.exception()):
        HUB.debug("the wrapped app has no lifespan: %r", error)
    return None
