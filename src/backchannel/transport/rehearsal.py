"""A handshake in memory, to find out whether uvicorn is as we use it.

uvicorn promises nothing about the insides of its protocol classes. What we use of them is used
here once, in the way and the order of a real connection; what is missing or behaves otherwise
raises here, and not with the first client.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, cast

from uvicorn import Config
from uvicorn.server import ServerState

from backchannel.transport.native import EXTENSION, Giver, Taken
from backchannel.transport.pace import door_of

__all__ = ["rehearse"]

_UPGRADE: Final = (
    b"GET /ws?x=1 HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
)
_KEPT: Final = _UPGRADE.replace(b"?x=1", b"?kept")
_UNUSUAL: Final = _UPGRADE.replace(b"Connection: ", b"Connection: close, ")
_REQUEST: Final = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class _Loop:
    """An event loop that runs when it is told to, and keeps the tasks it is given."""

    def __init__(self) -> None:
        self.tasks: list[Coroutine[Any, Any, Any]] = []
        self._due: list[Callable[[], object]] = []

    def create_task(self, task: Coroutine[Any, Any, Any]) -> asyncio.Future[None]:
        self.tasks.append(task)
        return asyncio.Future(loop=cast("asyncio.AbstractEventLoop", self))

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> None:
        self._due.append(functools.partial(callback, *arguments))

    def run(self) -> None:
        while self._due:
            self._due.pop(0)()

    def call_later(self, *_: Any) -> None:
        pass

    def time(self) -> float:
        return 0.0

    def get_debug(self) -> bool:
        return False


class _Socket(asyncio.Transport):
    """A socket that leads nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.protocol: Any = None
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


class _Rehearsal:
    """A server that has no connection yet."""

    def __init__(self, websocket: type[Any], http: Callable[..., Any]):
        self.loop = _Loop()
        self.taken: list[tuple[Any, Taken]] = []
        self.scopes: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.state = ServerState()
        ws: Any = functools.partial(cast("Callable[..., Any]", websocket), _loop=self.loop)
        self._config = Config(self._app, ws=ws, log_config=None, lifespan="off", interface="asgi3")
        self._http = http

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            self.scopes.append({**scope, "headers": None, "extensions": None})
            await receive()
            giver: Giver = scope["extensions"][EXTENSION]
            is_kept = scope["query_string"] == b"kept"
            if not is_kept:
                giver.prepare(None)
            await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
            if not is_kept:
                self.taken.append((giver, giver.take_over()))
        except Exception as error:  # noqa: BLE001 - uvicorn would only log it
            self.error = error

    def connect(self, *packets: bytes) -> _Socket:
        """Let a client come, and send packets."""
        socket = _Socket()
        protocol = self._http(
            config=self._config, server_state=self.state, app_state={}, _loop=self.loop
        )
        socket.set_protocol(protocol)
        protocol.connection_made(socket)
        for packet in packets:
            self.send(socket, packet)
        return socket

    def send(self, socket: _Socket, packet: bytes) -> None:
        """Let a client's packet come, and be read in one of the turns that follow."""
        socket.protocol.data_received(packet)
        self.loop.run()

    def serve(self) -> None:
        """Run the app for the last request that came."""
        try:
            self.loop.tasks[-1].send(None)
        except StopIteration:
            if self.error is not None:
                raise self.error from None

    def end(self) -> None:
        """Throw away what was begun, so that nobody warns of it."""
        for task in self.loop.tasks:
            with contextlib.suppress(Exception):
                task.close()


def rehearse(websocket: type[Any], http: Callable[..., Any]) -> None:
    """Go through a takeover and a slow request.

    Args:
        websocket: the Giver for uvicorn.
        http: the patient HTTP protocol.

    Raises:
        Exception: of any kind, and about anything: uvicorn is not as we use it.
    """
    with _silence("uvicorn.error", "uvicorn.asgi"):
        stage = _Rehearsal(websocket, http)
        try:
            _take_over(stage)
            _accept(stage)
            _wait_for_a_request(stage)
        finally:
            stage.end()


@contextlib.contextmanager
def _silence(*names: str) -> Generator[None]:
    """Keep uvicorn from telling of clients that there are none of."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _take_over(stage: _Rehearsal) -> None:
    """Take over from a handshake that we read, and from one that the websockets library reads."""
    for request in (_UPGRADE, _UNUSUAL):
        socket = stage.connect(request)
        stage.send(socket, b"early")
        stage.serve()
        giver, taken = stage.taken.pop()
        answer = socket.written.lower()
        expect("it accepts", answer.startswith(b"http/1.1 101"))
        expect("it agrees on no compression", b"sec-websocket-extensions" not in answer)
        expect("it leaves the socket open", not socket.is_closed)
        expect("it gives the socket", taken.transport is socket)
        expect("it keeps what came early", taken.unread == b"early")
        expect("it knows its connections", taken.connections is stage.state.connections)
        expect("it forgets what it gave", giver not in stage.state.connections)
    ours, uvicorns = stage.scopes
    expect("it makes the scope that uvicorn makes", ours == uvicorns)


def _accept(stage: _Rehearsal) -> None:
    """Let an app accept that keeps its connection."""
    socket = stage.connect(_KEPT)
    stage.serve()
    expect("it accepts for an app", socket.written.lower().startswith(b"http/1.1 101"))


def _wait_for_a_request(stage: _Rehearsal) -> None:
    deadlines = door_of(stage.state, cast("Any", stage.loop), 1.0).deadlines
    socket = stage.connect()
    protocol = socket.protocol
    expect("it waits for a request", protocol in deadlines)
    stage.send(socket, _REQUEST[:-1])
    expect("it waits for the rest of a request", protocol in deadlines)
    before = len(stage.loop.tasks)
    stage.send(socket, _REQUEST[-1:])
    expect("it has waited long enough", protocol not in deadlines)
    expect("it serves the request", len(stage.loop.tasks) == before + 1)
    protocol.connection_lost(None)


def expect(what: str, is_so: bool) -> None:
    """Raise when something is not as it is named.

    Raises:
        RuntimeError: it is not so.
    """
    if not is_so:
        raise RuntimeError(f"this is not so: {what}")
