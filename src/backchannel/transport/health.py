"""For load balancers: `/healthz`, does the process live; `/readyz`, does it take connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from backchannel.errors import BackchannelError
from backchannel.observe import HUB
from backchannel.transport.http import respond, shown_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from backchannel.app import Hub
    from backchannel.transport.asgi import Event, Receive, Scope, Send

__all__ = ["HealthPages", "answer", "asked"]

PAGES: Final = ("/healthz", "/readyz")


def asked(scope: Scope) -> str | None:
    """Return which of the pages a request is for; None is neither."""
    path = shown_path(scope)
    return path if path in PAGES else None


async def answer(page: str, hubs: Sequence[Hub], scope: Scope, send: Send) -> None:
    """Answer with one of the pages, as JSON: nothing of it says where the broker is.

    Args:
        page: what ``asked`` returned.
        hubs: all of which have to be ready.
        scope: the request's.
        send: takes ASGI events.
    """
    method = scope.get("method", "GET")
    if method not in {"GET", "HEAD"}:
        await respond(send, 405, f"{method} is not allowed here.", {"allow": "GET, HEAD"})
        return
    status, content = (200, {"status": "ok"}) if page == PAGES[0] else await _readiness(hubs)
    headers = {"content-type": "application/json", "cache-control": "no-store"}
    body = msgspec.json.encode(content)
    await respond(send, status, body, headers, head=method == "HEAD")


async def _readiness(hubs: Sequence[Hub]) -> tuple[int, dict[str, Any]]:
    because = [why for hub in hubs if (why := await _hindrance(hub))]
    content: dict[str, Any] = {"status": "not ready" if because else "ready"}
    if because:
        content["because"] = sorted(set(because))
    if any(hub.is_split for hub in hubs):
        content["warning"] = "one of several worker processes without a broker between them"
    return (503 if because else 200), content


async def _hindrance(hub: Hub) -> str | None:
    """Return what keeps a hub from taking connections; one that waits for its first is started."""
    if hub.is_leaving:
        return "stopping"
    if not hub.is_running:
        try:
            await hub.start()
        except (BackchannelError, RuntimeError) as error:
            HUB.error("the hub could not start: %s", error)
            return "could not start"
    return None if hub.health.ready else "the broker is away"


class HealthPages:
    """An ASGI app that answers the pages where the app that it wraps has none there.

    Args:
        app: an app that may have its own: only its 404 is answered for it.
        hubs: those in it.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[Any]], hubs: Sequence[Hub]):
        self._app = app
        self._hubs = hubs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        page = asked(scope) if scope["type"] == "http" else None
        if page is None:
            await self._app(scope, receive, send)
            return
        is_missing = False

        async def send_unless_missing(event: Event) -> None:
            nonlocal is_missing
            is_missing = is_missing or event.get("status") == 404
            if not is_missing:
                await send(event)

        await self._app(scope, receive, send_unless_missing)
        if is_missing:
            await answer(page, self._hubs, scope, send)
