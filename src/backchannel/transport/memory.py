"""The transport of tests: a client in the same event loop, the same dispatch code, no sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextvars import copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

import msgspec

from backchannel.codes import check_close
from backchannel.connection import ABSENT, CloseReason, Connection
from backchannel.dialect import NAME
from backchannel.errors import ConnectionClosed, HandshakeRefused, Reject
from backchannel.guard import Place
from backchannel.handshake import going_away, shake_hands
from backchannel.messages import Frame, encode
from backchannel.request import Request, path_segments
from backchannel.session.web import Session
from backchannel.speech.connection import SpeakingConnection
from backchannel.transport.asgi import choose_channel
from backchannel.transport.http import refuse_unknown

if TYPE_CHECKING:
    from backchannel.app import Hub
    from backchannel.dispatch import Dispatch
    from backchannel.endpoint import Endpoint

__all__ = ["MemoryClient"]


class MemoryLink:
    """The server's end: frames go straight into the client's queue."""

    def __init__(self) -> None:
        self.apart = True
        self.is_due = False
        self.frames: asyncio.Queue[Frame | ConnectionClosed] = asyncio.Queue()
        self.closed: ConnectionClosed | None = None

    def rejoin(self) -> None:
        """Stay apart."""

    def push(self, frame: Frame, channel: str | None = None) -> bool:  # noqa: ARG002
        """Hand a frame to the client."""
        if self.closed is not None:
            return False
        self.frames.put_nowait(frame)
        return True

    def answer(self, text: str) -> None:
        """Hand an answer to the client."""
        self.push(text)

    async def drained(self) -> None:
        """There is no network to wait for."""

    async def finished(self) -> None:
        """There is no network to wait for."""

    def close(self, code: int, reason: str) -> None:
        """Hand the close to the client, after what was pushed."""
        if self.closed is None:
            self.closed = ConnectionClosed(code, reason)
            self.frames.put_nowait(self.closed)


class MemoryClient:
    """A client for tests: ``async with hub.test_client("/ws/chat/cars", user="ana") as ws``.

    It connects on entering, and is admitted (``on_open`` and the automatic subscription have run)
    when the block begins. Leaving the block closes with 1000 and waits for ``on_close``.

    Args:
        hub: the hub to connect to.
        url: path and query, such as ``"/ws/chat/cars?name=ana"``.
        user: who it is; then ``authenticate`` is not asked.
        headers: more headers of the handshake; ``{"origin": …}`` makes it a browser.
        cookies: cookies of the handshake.
        session: the web framework's session.
        subprotocols: what the client offers.
        client: (address, port) it seems to come from.

    Raises (on entering):
        HandshakeRefused: the server answered with an HTTP status other than 101.
    """

    def __init__(
        self,
        hub: Hub,
        url: str,
        *,
        user: object = ABSENT,
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
        session: Mapping[str, Any] | None = None,
        subprotocols: Iterable[str] = (),
        client: tuple[str, int] = ("127.0.0.1", 50000),
    ):
        self._hub = hub
        self._user = user
        self._session = session
        self._link = MemoryLink()
        self._dispatch: Dispatch | None = None
        parts = urlsplit(url)
        lines = {"host": "testserver", **(headers or {})}
        if cookies:
            lines["cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        self._scope: dict[str, Any] = {
            "type": "websocket",
            "path": unquote(parts.path),
            "raw_path": parts.path.encode(),
            "query_string": parts.query.encode(),
            "root_path": "",
            "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in lines.items()],
            "client": client,
            "subprotocols": list(subprotocols),
            "session": {},  # as behind session middleware
        }

    @property
    def connection(self) -> Connection:
        """The server's side of this connection: its ``ws``."""
        return self._connected().ws

    @property
    def id(self) -> str:
        """The connection's id."""
        return self.connection.id

    @property
    def closed(self) -> ConnectionClosed | None:
        """How the connection ended, once the server has closed it; None while it is open."""
        return self._link.closed

    async def connect(self, *, wait: bool = True) -> Self:
        """Shake hands.

        Args:
            wait: False returns at the 101, before ``on_open`` has run.

        Raises:
            HandshakeRefused: the server answered with an HTTP status other than 101.
        """
        hub, scope = self._hub, self._scope
        if not (hub.is_stopping and hub.runtime.is_here()):
            await hub.start()
        found = hub.endpoints.match(path_segments(scope))
        if found is None:
            refuse_unknown(hub, scope)
            near = ", ".join(hub.endpoints.near_misses(scope["path"])) or "none"
            raise HandshakeRefused(404, f"no endpoint at {scope['path']}; nearest: {near}")
        endpoint, params = found
        request = Request(
            scope,
            path=scope["path"],
            params=params,
            session=None if self._session is None else Session(self._session),
            proxies=hub.settings.networks(),
        )
        place = hub.guard.enter(request.client)
        if isinstance(place, Reject):
            raise HandshakeRefused(place.status, place.text)
        farewells = hub.farewells
        farewells.begin(request)
        try:
            await self._shake_hands(hub, endpoint, request, place)
        finally:
            place.give_back(unless_held=True)
            farewells.abandon(request)
        if wait:
            await self._connected().settled()
        return self

    async def _shake_hands(
        self, hub: Hub, endpoint: Endpoint, request: Request, place: Place
    ) -> None:
        # In a context of its own, as each connection has on a server.
        context = copy_context()
        shaking = shake_hands(request, endpoint, hub.settings, hub.tickets, user=self._user)
        answer = await asyncio.create_task(shaking, context=context)
        if hub.is_leaving:
            answer = going_away()
        channel = answer or choose_channel(hub, endpoint, request.params)
        if not isinstance(channel, Reject):
            channel = place.sit(request.user) or channel
        if isinstance(channel, Reject):
            raise HandshakeRefused(channel.status, channel.text)
        subprotocol = endpoint.choose_subprotocol(request.subprotocols) or request.subprotocol
        kind = SpeakingConnection if subprotocol == NAME else Connection
        ws = kind(
            hub,
            endpoint,
            request,
            self._link,
            context=context,
            channel=channel,
            subprotocol=subprotocol,
        )
        self._dispatch = hub.guard.dispatch(hub, ws, place)
        self._dispatch.follow(request)
        self._dispatch.start()

    async def send(self, message: Any) -> None:
        """Send a message as a client would: str as text, bytes as binary, all else as JSON.

        Raises:
            ConnectionClosed: the connection has ended.
        """
        if self._link.closed is not None:
            raise self._link.closed
        dispatch = self._connected()
        frame = encode(message)
        size = len(frame.encode() if isinstance(frame, str) else frame)
        limit = self._hub.settings.max_message
        if size > limit:
            text = f"message of {size} bytes is over the limit of {limit}"
            dispatch.end(CloseReason(1009, text, "server"))
            return
        if dispatch.take_in(frame):
            await dispatch.wait_for_room()

    async def receive(self, timeout: float = 1.0) -> Frame:  # noqa: ASYNC109 - it is the API
        """Return the next message.

        Args:
            timeout: seconds to wait.

        Raises:
            TimeoutError: none came in time.
            ConnectionClosed: the connection ended, and all that was sent before is read.
        """
        if self._link.closed is not None and self._link.frames.empty():
            raise self._link.closed
        async with asyncio.timeout(timeout):
            frame = await self._link.frames.get()
        if isinstance(frame, ConnectionClosed):
            raise frame
        return frame

    async def receive_json(self, timeout: float = 1.0) -> Any:  # noqa: ASYNC109 - it is the API
        """Return the next message, parsed as JSON; see ``receive`` for what it raises."""
        return msgspec.json.decode(await self.receive(timeout))

    def received(self) -> list[Frame]:
        """Return what has come and was not read yet, without waiting."""
        frames: list[Frame] = []
        while not self._link.frames.empty():
            frame = self._link.frames.get_nowait()
            if isinstance(frame, ConnectionClosed):
                break
            frames.append(frame)
        return frames

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close as a client would, and wait until the server has run ``on_close``.

        Raises:
            ValueError: a code that can't be sent, or a reason that is too long.
        """
        check_close(code, reason)
        await self._end(CloseReason(code, reason, "client"))

    async def drop(self) -> None:
        """Vanish without a close frame, as a lost network would; wait for ``on_close``."""
        await self._end(CloseReason(1006, "connection lost", "network"))

    async def settled(self) -> None:
        """Wait until no callback of this connection runs or waits."""
        await self._connected().settled()

    async def __aenter__(self) -> Self:
        """Connect."""
        return await self.connect()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close with 1000, if it is still open."""
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """Iterate over messages until the connection ends."""
        while True:
            try:
                yield await self.receive(timeout=3600)
            except ConnectionClosed:
                return

    async def _end(self, reason: CloseReason) -> None:
        dispatch = self._connected()
        dispatch.end(reason)
        await asyncio.shield(dispatch.closed)

    def _connected(self) -> Dispatch:
        if self._dispatch is None:
            raise RuntimeError("not connected: use `async with hub.test_client(…) as ws`")
        return self._dispatch
