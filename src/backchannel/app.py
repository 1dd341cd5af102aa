"""The one place that knows the concrete classes: a hub with its broker and transports."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from backchannel.access import Access
from backchannel.broker.memory import MemoryBroker
from backchannel.callbacks import read_listener
from backchannel.config import Settings
from backchannel.connection import ABSENT
from backchannel.endpoint import Endpoint, check_options
from backchannel.handshake import going_away
from backchannel.heartbeat import Heartbeat
from backchannel.hub import HubCore
from backchannel.publishing import Publishing
from backchannel.request import path_segments
from backchannel.session.server import ServerSessions
from backchannel.template import Template
from backchannel.transport import asgi, health, http, scripts
from backchannel.transport.lifespan import serve_lifespan, wrap_lifespan
from backchannel.transport.memory import MemoryClient
from backchannel.urls import hidden
from backchannel.workers import count_workers

if TYPE_CHECKING:
    from typing import Unpack

    from backchannel.config import SettingsOptions
    from backchannel.contracts import Broker
    from backchannel.transport.asgi import Event, Receive, Scope, Send

__all__ = ["Hub"]

AsgiApp = Callable[[Any, Any, Any], Awaitable[Any]]


class WebSocketLike(Protocol):
    """What ``Hub.serve`` needs of Starlette's, FastAPI's or Litestar's WebSocket object."""

    @property
    def scope(self) -> Any:
        """The ASGI scope."""
        ...

    async def receive(self) -> Any:
        """Return the next ASGI event."""
        ...

    async def send(self, message: Any, /) -> None:
        """Send an ASGI event."""
        ...


class Hub(HubCore):
    """One application's connection manager; an ASGI app. Two hubs share nothing.

    Args:
        settings: see ``backchannel.config.Settings`` for each, with its unit and default.

    Attributes:
        is_split: it is one of several worker processes that hear nothing of each other.

    Raises:
        TypeError: an unknown setting, or one of the wrong type.
        ValueError: a setting out of range.
    """

    def __init__(self, **settings: Unpack[SettingsOptions]):
        known = [field.name for field in dataclasses.fields(Settings)]
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                raise TypeError(f"Hub has no setting {name!r}; {hint}")
        checked = Settings(**settings)
        super().__init__(checked, _broker(checked))
        self.pages = http.Pages()
        self.heartbeat = Heartbeat(checked.ping_interval, checked.ping_timeout)
        self.is_named = "name" in settings
        self.is_split = False

    @property
    def debug(self) -> bool:
        """Show clients what went wrong; see the setting. May be set until the hub starts."""
        return self.settings.debug

    @debug.setter
    def debug(self, value: bool) -> None:
        self.settings = dataclasses.replace(self.settings, debug=value)

    async def start(self) -> None:
        """Start; does nothing when it runs already.

        Raises:
            RuntimeError: it runs in another event loop.
        """
        starts = not self.is_running
        await super().start()
        self.is_split = self.is_split and not starts
        if starts and isinstance(self._broker, MemoryBroker) and (count := count_workers()) > 1:
            self.is_split = True
            self.runtime.report(
                f"this is one of {count} worker processes, and each has its own channels and "
                "users: a message reaches only the clients of the worker that sent it. Use one "
                "worker, or a broker that connects them: Hub(broker=…)"
            )

    # ── as an ASGI app ────────────────────────────────────────────────────────────────────────

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await serve_lifespan(self, receive, send)
        elif scope["type"] == "http":
            await self._serve_http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)
        else:
            raise ValueError(f"unknown ASGI scope type {scope['type']!r}")

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.pages.find(scope):
            if page := self._health_page(scope):
                await health.answer(page, [self], scope, send)
                return
            if script := self._script(scope):
                await scripts.answer(script, scope, send)
                return

        async def answer(scope: Scope, _: Receive, send: Send) -> None:
            await http.answer(self, self.pages, scope, send)

        sessions = self.settings.session
        if isinstance(sessions, ServerSessions) and self.pages.find(scope):
            await sessions.wrap(answer, begin=True)(scope, receive, send)
        else:
            await answer(scope, receive, send)

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self.endpoints.match(path_segments(scope))
        if found is None:
            await receive()
            await asgi.refuse(scope, send, http.refuse_unknown(self, scope))
            return
        endpoint, params = found
        await self._live(endpoint, params, scope, receive, send)

    async def _live(
        self,
        endpoint: Endpoint,
        params: Mapping[str, Any],
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        user: object = ABSENT,
        accepted: bool = False,
        stay: bool = False,
    ) -> None:
        try:
            if not self.is_stopping:
                await self.start()
        except RuntimeError as error:
            await asgi.fail(scope, send, error, debug=self.debug)
            return
        if self.is_leaving:
            await asgi.refuse(scope, send, going_away())
            return
        await asgi.serve(
            self, endpoint, params, http.shown_path(scope), scope, receive, send,
            user=user, accepted=accepted, stay=stay,
        )  # fmt: skip

    def wrap(self, app: AsgiApp) -> AsgiApp:
        """Return an ASGI app that serves this hub's endpoints and pages, and passes the rest on.

        Args:
            app: any ASGI app: Django, Quart, Starlette …

        Raises:
            TypeError: not callable.
        """
        if not callable(app):
            raise TypeError(f"hub.wrap takes an ASGI app, not {app!r}")

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await wrap_lifespan(self, app, scope, receive, send)
            elif self._is_ours(scope):
                await self(scope, receive, send)
            elif scope["type"] == "websocket":
                await self._pass_on(app, scope, receive, send)
            else:
                await app(scope, receive, send)

        return wrapped

    async def _pass_on(self, app: AsgiApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a WebSocket on; one that an app for HTTP alone fails at gets 404 and near misses."""
        try:
            await app(scope, receive, send)
        except ValueError as error:
            if "can only handle ASGI/HTTP" not in str(error):  # Django's words for it
                raise
            await receive()
            await asgi.refuse(scope, send, http.refuse_unknown(self, scope))

    def _is_ours(self, scope: Scope) -> bool:
        if self.endpoints.match(path_segments(scope)):
            return True
        if scope["type"] != "http":
            return False
        own = self.pages.find(scope) or self._health_page(scope) or self._script(scope)
        return own is not None

    def _health_page(self, scope: Scope) -> str | None:
        return health.asked(scope) if self.settings.health_pages else None

    def _script(self, scope: Scope) -> str | None:
        return scripts.asked(scope) if self.settings.client_scripts else None

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None]:  # noqa: ARG002 - Starlette passes it
        """Start and stop with a framework: ``FastAPI(lifespan=hub.lifespan)``.

        With it an error at the start keeps the server from starting, and shutdown drains; without
        it the hub starts at its first use.

        Args:
            app: the framework's app; not used.
        """
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    async def serve(
        self,
        websocket: WebSocketLike,
        listener: object,
        *,
        user: object = ABSENT,
        params: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Serve a WebSocket that a framework's own route has matched; returns when it has ended.

        Args:
            websocket: Starlette's or FastAPI's WebSocket, accepted or not.
            listener: a Listener class, instance or function; one instance serves all.
            user: who it is: an id, or an object with one. Left out, ``authenticate`` is asked.
            params: becomes ``ws.params``; a ``channel`` in it subscribes, as in a URL template.
            options: as for ``add``.

        Raises:
            ListenerError, TemplateError: as for ``add``, at the first connection.
            TypeError: params lacks what ``channel=`` names.
        """
        scope = websocket.scope
        check_options(options, "hub.serve", scope["path"])
        values = dict(params or {})
        template = getattr(scope.get("route"), "path", None) or scope["path"]
        endpoint = self.endpoints.served(
            (listener, template),
            lambda: Endpoint(_label(template, values), read_listener(listener), **options),
        )
        _check_params(endpoint, values)
        accepted = getattr(getattr(websocket, "application_state", None), "name", "") == "CONNECTED"

        async def receive() -> Event:
            event: Event = await websocket.receive()
            return event

        await self._live(
            endpoint,
            values,
            scope,
            receive,
            websocket.send,
            user=user,
            accepted=accepted,
            stay=True,
        )

    # ── beside it ─────────────────────────────────────────────────────────────────────────────

    def page(self, path: str, file: str | os.PathLike[str]) -> None:
        """Serve a file, such as a page for a small app; it is read anew for each request.

        Args:
            path: where, such as ``"/"``.
            file: absolute, or relative to the Python file that calls this.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the path does not start with a slash, or is taken.
        """
        caller = sys._getframe(1).f_globals.get("__file__")
        base = Path(caller).resolve().parent if caller else Path.cwd()
        self.pages.add(http.Page(path, base / file))

    def test_client(
        self,
        url: str,
        *,
        user: object = ABSENT,
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
        session: Mapping[str, Any] | None = None,
        subprotocols: Iterable[str] = (),
    ) -> MemoryClient:
        """Return a client for tests, which runs the real dispatch without sockets.

        See ``backchannel.testing.MemoryClient`` for the arguments and what it can do.
        """
        return MemoryClient(
            self, url, user=user, headers=headers, cookies=cookies, session=session,
            subprotocols=subprotocols,
        )  # fmt: skip


def _broker(settings: Settings) -> Broker:
    """Return what carries publications between nodes."""
    url = settings.broker
    if not isinstance(url, str):
        return url or MemoryBroker(settings.presence_moment)
    try:
        from backchannel.broker.redis import RedisBroker  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(
            f"Hub(broker={hidden(url)!r}) needs redis and hiredis: pip install "
            f'"backchannel[redis]" ({error})'
        ) from error
    return RedisBroker(
        url,
        settings.name,
        timeout=settings.broker_timeout,
        max_unsent=settings.max_unsent,
        lease=settings.presence_lease,
        moment=settings.presence_moment,
    )


def _name_after_hub(*kinds: type) -> None:
    """Let Python's errors about a call name it as applications write it: ``Hub.add() takes …``."""
    for kind in kinds:
        for name, member in vars(kind).items():
            if inspect.isfunction(member) and not name.startswith("_"):
                member.__qualname__ = f"Hub.{name}"


_name_after_hub(HubCore, Access, Publishing)


def _check_params(endpoint: Endpoint, params: Mapping[str, Any]) -> None:
    if (pattern := endpoint.pattern) is None:
        return
    for name in pattern.names:
        if name not in params:
            raise TypeError(
                f"hub.serve(…, channel={pattern.text!r}) needs params={{{name!r}: …}}: what the "
                "framework's route found for it"
            )


def _label(template: str, params: Mapping[str, Any]) -> Template:
    """Return a template that names the framework's route and has the given variables."""
    missing = [name for name in params if f"{{{name}" not in template]
    return Template(template + "".join(f"/{{{name}}}" for name in missing))
