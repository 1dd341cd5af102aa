"""``backchannel run``: serve the hub of a file with uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import click
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.basereload import BaseReload
from uvicorn.supervisors.statreload import StatReload

from backchannel import __version__
from backchannel.blocking import forbid_blocking_calls
from backchannel.cli.load import Found, find, split_target
from backchannel.cli.mounts import mounted_at
from backchannel.cli.sockets import bind, listen
from backchannel.errors import BackchannelError, BrokerUnavailable
from backchannel.transport.health import HealthPages
from backchannel.transport.native import NativeSocket

if TYPE_CHECKING:
    from backchannel.app import Hub

__all__ = ["HubServer", "Options", "make_server", "run", "set_up_logging", "show_what_is_served"]

LEVELS = ("debug", "info", "warning", "error")

ACCEPTED_AT_ONCE = 64
"""How many of them asyncio accepts in one turn: what it takes for the size of the backlog."""

GRACE = 1
"""Seconds that uvicorn waits for requests; it logs an error if even a socket is left then."""

PATIENCE = 0.7
"""Seconds of these in which clients may answer the close of their WebSocket."""

TURNS_TO_COME_IN = 3
"""Turns of the event loop from a connection's accept until uvicorn knows of it."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``backchannel run`` was told; it travels to the processes that it starts."""

    target: str
    host: str
    port: int
    log_level: str
    log_file: Path | None
    debug: bool
    open_browser: bool
    transport: str
    workers: int
    drain: float


@click.command()
@click.argument("target", metavar="FILE[:NAME]")
@click.option("--host", default="localhost", show_default=True, help="Address to listen on.")
@click.option("--port", default=8888, show_default=True, type=click.IntRange(0, 65535),
              help="Port to listen on; 0 takes a free one.")  # fmt: skip
@click.option("--reload", is_flag=True, help="Restart when a Python file beside FILE changes.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1),
              help="Processes to serve with; several need a hub with a broker.")  # fmt: skip
@click.option("--drain", default=5.0, show_default=True, metavar="SECONDS",
              type=click.FloatRange(0, 86_400), help="After SIGTERM clients are asked to come back "
              "one after the other, over this time; a second signal hurries.")  # fmt: skip
@click.option("--log-level", default="info", show_default=True, type=click.Choice(LEVELS),
              help="debug shows each event of a connection on one line.")  # fmt: skip
@click.option("--log-file", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the WebSocket log to this file too.")  # fmt: skip
@click.option("--debug", is_flag=True, help="Show tracebacks and near misses to clients, and raise "
              "at blocking calls in callbacks. Never in production.")  # fmt: skip
@click.option("--open", "open_browser", is_flag=True, help="Open the first page in a browser.")
@click.option("--transport", default="native", show_default=True,
              type=click.Choice(("native", "portable")),
              help="portable lets uvicorn read and write all frames, as any ASGI server would: "
              "slower, for comparing.")  # fmt: skip
def run(
    target: str,
    host: str,
    port: int,
    reload: bool,
    workers: int,
    drain: float,
    log_level: str,
    log_file: Path | None,
    debug: bool,
    open_browser: bool,
    transport: str,
) -> None:
    """Serve the hub in a Python file, or the app that has it in it; NAME names another one."""
    if reload and workers > 1:
        raise click.UsageError("--reload serves with one process: leave --workers out")
    options = Options(
        target, host, port, log_level, log_file, debug, open_browser, transport, workers,
        0 if reload else drain,
    )  # fmt: skip
    file, _ = split_target(target)
    sockets = bind(host, port)
    if workers > 1:
        from backchannel.cli.supervise import serve_with_workers  # noqa: PLC0415 - seldom needed

        serve_with_workers(options, sockets)
    elif reload:
        listen(sockets)
        config = uvicorn.Config("backchannel:Hub", reload=True, reload_dirs=[str(file.parent)],
                                log_config=None)  # fmt: skip
        set_up_logging(options)
        Reload(config, target=functools.partial(_serve_child, options), sockets=sockets).run()
    else:
        serve(options, sockets)


def serve(options: Options, sockets: list[socket.socket]) -> None:
    """Serve until a signal ends it."""
    try:
        make_server(options).run(sockets=sockets)
    except KeyboardInterrupt:
        click.echo("", err=True)


def make_server(options: Options, kind: type[HubServer] | None = None) -> HubServer:
    """Return the server of a file, which has not started."""
    set_up_logging(options)
    from backchannel.transport import uvicorn as door  # noqa: PLC0415 - it may have to warn

    found = find(options.target)
    if options.debug:
        for hub in found.hubs:
            hub.debug = True
        if forbid_blocking_calls() is None:
            click.echo("blocking calls go unnoticed: pip install 'backchannel[debug]'", err=True)
    settings = [hub.settings for hub in found.hubs]
    proxies = sorted({proxy for one in settings for proxy in one.trusted_proxies})
    config = uvicorn.Config(
        found.app,
        log_config=None,
        access_log=False,
        # Of whom forwarded headers are believed the hub says, not uvicorn's own default.
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        lifespan="on" if found.app in found.hubs else "auto",
        http=door.patient(max([one.handshake_timeout for one in settings], default=10.0)),
        ws=door.Protocol if options.transport == "native" else "websockets-sansio",
        ws_max_size=max([one.max_message for one in settings], default=1024 * 1024),
        ws_ping_interval=min([one.ping_interval for one in settings], default=25.0),
        ws_ping_timeout=min([one.ping_timeout for one in settings], default=20.0),
        timeout_graceful_shutdown=GRACE,
        backlog=ACCEPTED_AT_ONCE,
    )
    config.load()
    config.loaded_app = HealthPages(cast("Any", config.loaded_app), found.hubs)
    return (kind or HubServer)(config, found, options)


def _serve_child(options: Options, sockets: list[socket.socket] | None = None) -> None:
    """Serve in a child process of ``--reload``, on the sockets of its parent."""
    try:
        serve(options, sockets or [])
    except click.ClickException as problem:  # nobody above shows it in this process
        problem.show()
        sys.exit(STARTUP_FAILURE)


class Reload(StatReload):
    """uvicorn's, but a change while the program starts is not missed."""

    def startup(self) -> None:
        """Start the program as the files are now."""
        self._note()
        super().startup()

    def restart(self) -> None:
        """Start it again as the files are now."""
        self._note()
        BaseReload.restart(self)

    def _note(self) -> None:
        for file in self.iter_py_files():
            with contextlib.suppress(OSError):  # it has just been removed
                self.mtimes[file] = file.stat().st_mtime


class HubServer(uvicorn.Server):
    """uvicorn, but the hub closes its connections first, with a code that says why."""

    def __init__(self, config: uvicorn.Config, found: Found, options: Options):
        super().__init__(config)
        self._found = found
        self._options = options
        self._last_resort: threading.Timer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hurrying: asyncio.Future[Any] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the hubs, then listen, then say what is served where.

        Raises:
            click.ClickException: a hub's broker can't be used; nothing has listened.
        """
        self._loop = asyncio.get_running_loop()
        if not await self.start_hubs(self._found.hubs):
            return
        await super().startup(sockets)
        listen(sockets or [])
        if self._options.workers == 1:  # else who started this process says it, once
            show_what_is_served(self._found, self._options, sockets or [])

    async def start_hubs(self, hubs: Sequence[Hub]) -> bool:
        """Start the hubs; returns whether there is something to serve.

        Raises:
            click.ClickException: one could not start.
        """
        await start_all(hubs)
        return True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close all connections: 1001 after Ctrl-C, 1012 (come back) over a while after SIGTERM.

        While they drain it still listens, to tell others that it is not ready.
        """
        is_interrupted = signal.SIGINT in self._captured_signals[:1]
        code, drain = (1001, 0.0) if is_interrupted else (1012, self._options.drain)
        if not drain:
            self._stop_listening()
        hubs = self._found.hubs
        await asyncio.gather(*(hub.stop(code, timeout=1.2, drain=drain) for hub in hubs))
        self._stop_listening()
        for _ in range(TURNS_TO_COME_IN):
            await asyncio.sleep(0)
        patience = asyncio.get_running_loop().call_later(PATIENCE, self._hang_up)
        await super().shutdown(sockets)
        patience.cancel()
        if not is_interrupted:
            self._captured_signals.clear()  # uvicorn would raise it again, and end with an error
        self._last_resort = threading.Timer(0.3, _end_regardless)
        self._last_resort.daemon = True
        self._last_resort.start()

    def _hang_up(self) -> None:
        """Leave clients that were closed and do not answer: asleep, say, or out of reach."""
        for connection in list[Any](self.server_state.connections):
            if isinstance(connection, NativeSocket):
                connection._abort()
            elif connection.transport.is_closing():  # what is left for it, it does not take
                connection.transport.abort()

    def _stop_listening(self) -> None:
        for server in self.servers:
            server.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first one ends the server, another one hurries it.

        One of several workers may get the first twice, from the system and from its parent.
        """
        if not self.should_exit or not any(hub.is_leaving for hub in self._found.hubs):
            super().handle_exit(sig, frame)
        elif self._loop is not None and (sig == signal.SIGINT or self._options.workers == 1):
            self._loop.call_soon_threadsafe(self._hurry)

    def _hurry(self) -> None:
        self._hurrying = asyncio.gather(*(hub.stop() for hub in self._found.hubs))

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal ends it, also when code of the application never ends."""
        try:
            super().run(sockets)
        finally:
            if self._last_resort is not None:
                self._last_resort.cancel()


def _end_regardless() -> None:
    """End the process; Python would wait for ever for a task or thread that does not end."""
    logging.getLogger("backchannel.hub").error(
        "a task or thread of the application does not end; the process ends regardless"
    )
    logging.shutdown()
    os._exit(1)


async def start_all(hubs: Sequence[Hub]) -> None:
    """Start hubs, all or none.

    Raises:
        click.ClickException: one could not start.
    """
    try:
        for hub in hubs:
            await hub.start()
    except BackchannelError as error:
        for hub in hubs:
            await hub.stop()
        hint = "; is the broker running, and is this its URL?"
        what = str(error) + hint * isinstance(error, BrokerUnavailable)
        raise click.ClickException(what) from error


def show_what_is_served(found: Found, options: Options, sockets: list[socket.socket]) -> None:
    """Say what is served where, and open it in a browser if that was asked for."""
    base = _base_url(options.host, sockets[0].getsockname()[1])
    click.echo(_banner(found, base))
    if options.open_browser:
        webbrowser.open(next(iter(_pages(found, base)), base))


def set_up_logging(options: Options) -> None:
    """Send ``backchannel.*`` to the terminal and, if asked for, to a file."""
    form = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    log = logging.getLogger("backchannel")
    log.setLevel(options.log_level.upper())
    if options.log_file is not None:
        try:
            to_file = logging.FileHandler(options.log_file, encoding="utf-8")
        except OSError as error:
            raise click.ClickException(
                f"--log-file {options.log_file}: {error.strerror}"
            ) from error
        to_file.setFormatter(form)
        log.addHandler(to_file)
    for handler in handlers:
        handler.setFormatter(form)
        log.addHandler(handler)
        logging.getLogger("uvicorn").addHandler(handler)
    logging.getLogger("uvicorn").setLevel("WARNING")


def _base_url(host: str, port: int) -> str:
    shown = {"": "localhost", "0.0.0.0": "localhost", "::": "localhost", "127.0.0.1": "localhost"}  # noqa: S104
    name = shown.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def _banner(found: Found, base: str) -> str:
    rows = [(click.style("page", bold=True), page, "") for page in _pages(found, base)]
    for hub in found.hubs:
        root = base.replace("http", "ws", 1) + (mounted_at(found.app, hub) or "")
        for endpoint in hub.endpoints:
            by = f"{endpoint.callbacks.name}, {endpoint.callbacks.where}"
            rows.append((click.style("endpoint", bold=True), root + endpoint.template.text, by))
    width = max((len(url) for _, url, _ in rows), default=0)
    where = "" if rows else f" at {base}"
    lines = [f"Backchannel {__version__} serves {found.label}{where}", *[""] * bool(rows)]
    for kind, url, by in rows:
        lines.append(f"  {kind}{' ' * (10 - len(click.unstyle(kind)))}{url.ljust(width)}  {by}")
    if any(list(hub.endpoints) and mounted_at(found.app, hub) is None for hub in found.hubs):
        lines.append("  (endpoints are shown as they are below where the app mounts its hub)")
    return "\n".join([*lines, *_notes(found), "", "Ctrl-C to stop.", ""])


def _pages(found: Found, base: str) -> list[str]:
    return [
        f"{base}{mounted_at(found.app, hub) or ''}{page.path}"
        for hub in found.hubs
        for page in hub.pages
    ]


def _notes(found: Found) -> list[str]:
    """Return what a user may have expected otherwise."""
    notes: list[str] = []
    if found.app in found.hubs and not list(found.app.endpoints):
        notes.append(
            "This hub has no endpoint, so no WebSocket can connect to it: write "
            '@hub.endpoint("/ws/echo") above a listener.'
        )
    if found.note:
        notes.append(found.note)
    if found.left_out:
        named = [f"{name} ({', '.join(e)})" if e else name for name, e in found.left_out.items()]
        notes += [
            f"Not served: {', '.join(named)}",
            f"To serve another one instead: backchannel run {next(iter(found.left_out))}",
        ]
    return ["", *(f"  {note}" for note in notes)] if notes else []
