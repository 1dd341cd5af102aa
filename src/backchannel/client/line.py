"""Staying connected: one connection after the other, each greeted, read and written to."""

from __future__ import annotations

import asyncio
import logging
import ssl as tls
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    NegotiationError,
    SecurityError,
)
from websockets.protocol import State
from websockets.typing import Subprotocol

from backchannel.client.errors import (
    ClientError,
    Closed,
    NotAdmitted,
    NotRead,
    NotUnderstood,
    Unreachable,
)
from backchannel.client.frames import SUBPROTOCOL, Incoming, Received, unpack
from backchannel.client.returning import Pace, comes_back, is_temporary, retry_after
from backchannel.client.streams import LOG
from backchannel.client.tokens import Token, ask

if TYPE_CHECKING:
    from backchannel.client.outbox import Outbox
    from backchannel.client.streams import Unread

__all__ = ["Line", "Options", "Session"]

STALLED: Final = 5.0
"""Seconds without anything being read after which those who wait for answers are told."""

_PING: Final = b'{"type":"ping"}'

_WIRE: Final = logging.getLogger("backchannel.client.wire")
_WIRE.setLevel(logging.WARNING)  # at debug level there would be the headers, with the token


@dataclass(frozen=True, slots=True)
class Options:
    """What a client is made with; see ``backchannel.client.connect``."""

    url: str
    token: Token | None
    headers: Mapping[str, str]
    ssl: tls.SSLContext | None
    proxy: str | Literal[True] | None
    patience: float
    first_seconds: float | None
    max_message: int


class Session(Protocol):
    """What a line tells of its connections, and asks."""

    outbox: Outbox
    unread: Unread

    def hello(self) -> dict[str, Any]:
        """Return the first frame of a connection."""
        ...

    def connecting(self) -> None:
        """Take note that an attempt begins."""
        ...

    def greeted(self, frame: Incoming) -> None:
        """Take note of the server's first frame."""
        ...

    def received(self, received: Received) -> None:
        """Take a frame."""
        ...

    def waiting(self) -> None:
        """Take note that there is no connection."""
        ...

    def ended(self, error: Exception) -> None:
        """Take note that there will be none any more."""
        ...

    def blame(self) -> str:
        """Say what waits to be read, for people."""
        ...


class Line:
    """Connects, and connects again.

    Args:
        options: how.
        session: who is told.

    Attributes:
        going: seconds that ``going_away`` told; None while it told nothing.
        is_closing: the application closes it.
    """

    def __init__(self, options: Options, session: Session):
        self.options = options
        self.going: float | None = None
        self.is_closing = False
        self._session = session
        self._socket: ClientConnection | None = None
        self._wake = asyncio.Event()
        self._pace = Pace()
        self._heard = 0.0
        self._ping = 25.0
        self._is_held = False
        self._was_open = False

    def wake(self) -> None:
        """Write what is there to be written."""
        self._wake.set()

    async def run(self) -> None:
        """Stay connected until that is over for good; then the session is told."""
        until = self.options.first_seconds
        deadline = None if until is None else asyncio.get_running_loop().time() + until
        try:
            while True:
                problem = await self._attempt()
                if self.is_closing:
                    return
                if isinstance(problem, _Final):
                    self._session.ended(problem.error)
                    return
                self._session.waiting()
                await self._hold(None)
                seconds = self._pace.wait()
                if not self._was_open and deadline is not None:
                    self._give_up(deadline, seconds, problem)
                LOG.info("%s: connecting again in %.1f s", problem, seconds)
                await asyncio.sleep(seconds)
        except Unreachable as error:
            self._session.ended(error)
        except Exception as error:  # noqa: BLE001 - who waits is not to wait for ever
            LOG.exception("the client has a bug; it is closed")
            self._session.ended(error)

    async def close(self, code: int, reason: str) -> None:
        """Close what is open, after what was sent before."""
        self.is_closing = True
        if self._socket is not None:
            await self._socket.close(code, reason)

    def _give_up(self, deadline: float, seconds: float, problem: Exception) -> None:
        if asyncio.get_running_loop().time() + seconds > deadline:
            raise Unreachable(
                f"no connection to {self.options.url.partition('?')[0]} within "
                f"{self.options.first_seconds:g} s (first_seconds): {problem}"
            ) from problem

    async def _attempt(self) -> Exception:
        """Make one connection and stay for as long as it lasts; return why it ended."""
        loop = asyncio.get_running_loop()
        self._session.connecting()
        self.going = None
        try:
            self._socket = await self._dial()
        except (OSError, EOFError, InvalidHandshake, _Temporary) as error:
            return self._failed(error)
        opened = loop.time()
        try:
            await self._serve(self._socket)
            return ConnectionError("the connection ended")  # never: it ends by raising
        except ConnectionClosed as error:
            if self._was_open:
                self._pace.lasted(loop.time() - opened)
            return self._ending(error)
        except TimeoutError:
            self._socket.transport.abort()
            return ConnectionError("the server did not say hello")
        except NotUnderstood as error:
            await self._socket.close(1002)
            return _Final(error)
        finally:
            self._socket = None

    # Opening.

    async def _dial(self) -> ClientConnection:
        options = self.options
        headers = dict(options.headers)
        if (token := await self._token()) is not None:
            headers["Authorization"] = f"Bearer {token}"
        more: dict[str, Any] = {} if options.ssl is None else {"ssl": options.ssl}
        return await connect(
            options.url,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            additional_headers=headers,
            proxy=options.proxy,
            open_timeout=2 * options.patience,
            close_timeout=options.patience,
            ping_interval=None,
            max_size=options.max_message,
            logger=_WIRE,
            **more,
        )

    async def _token(self) -> str | None:
        try:
            return await ask(self.options.token)
        except Exception as error:
            LOG.warning("connect(token=…) raised: it is asked again later", exc_info=error)
            raise _Temporary(f"connect(token=…) raised {error!r}") from error

    def _failed(self, error: Exception) -> Exception:
        """Say whether a failed handshake is final, and note when it says to come back."""
        if isinstance(error, InvalidStatus):
            response = error.response
            text = (response.body or b"").decode(errors="replace").strip()[:500]
            refusal = NotAdmitted(response.status_code, text or response.reason_phrase)
            if not is_temporary(response.status_code):
                return _Final(refusal)
            self._pace.refused(retry_after(response.headers.get("Retry-After")))
            return refusal
        if isinstance(error, NegotiationError | SecurityError):
            return _Final(NotUnderstood(f"the server does not agree to {SUBPROTOCOL}: {error}"))
        if isinstance(error, tls.SSLCertVerificationError):
            untrusted = Unreachable(
                f"the server's certificate is not to be trusted, {error.verify_message}: "
                "pass connect(ssl=…), an SSLContext that knows who has signed it"
            )
            untrusted.__cause__ = error
            return _Final(untrusted)
        return error

    # While it is open.

    async def _serve(self, socket: ClientConnection) -> None:
        if socket.subprotocol != SUBPROTOCOL:
            raise NotUnderstood(
                f"the server does not speak {SUBPROTOCOL}: no Backchannel hub, or an older one"
            )
        async with asyncio.timeout(2 * self.options.patience):
            await socket.send(msgspec.json.encode(self._session.hello()), text=True)
            hello = unpack(await socket.recv())
        if hello is None or hello.frame.type != "hello":
            raise NotUnderstood("the server's first frame is no hello")
        self._was_open = True
        self._ping = hello.frame.ping or self._ping
        self._heard = asyncio.get_running_loop().time()
        self._session.greeted(hello.frame)
        if hello.frame.resume is not None and not len(self._session.outbox):
            await socket.send(_PING, text=True)  # so that the server knows that the token is here
        tasks = [asyncio.create_task(self._write(socket)), asyncio.create_task(self._beat(socket))]

        def failed(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and task.exception():
                socket.transport.abort()  # so that reading ends too, and nobody waits for ever

        for task in tasks:
            task.add_done_callback(failed)
        try:
            await self._read(socket)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled() and (error := task.exception()):
                    raise error

    async def _read(self, socket: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            message = await socket.recv()
            self._heard = loop.time()
            if (received := unpack(message)) is not None:
                self._session.received(received)
            if self._session.unread.is_full:
                await self._hold(socket)

    async def _hold(self, socket: ClientConnection | None) -> None:
        """Read no more until what waits was read by the application, or the connection is lost."""
        unread, warned = self._session.unread, False
        self._is_held = True
        lost = None if socket is None else asyncio.ensure_future(socket.wait_closed())
        try:
            while unread.is_full and not (lost and lost.done()):
                room = asyncio.ensure_future(unread.room(STALLED))
                await asyncio.wait({room, lost} if lost else {room}, return_when="FIRST_COMPLETED")
                if not room.done():
                    room.cancel()
                elif not room.result():
                    self._stalled(warn=not warned)
                    warned = True
        finally:
            self._is_held = False
            self._heard = asyncio.get_running_loop().time()
            if lost:
                lost.cancel()

    def _stalled(self, *, warn: bool) -> None:
        unread = self._session.unread
        text = (
            f"{unread.used} bytes wait to be read (max_unread={unread.limit}), and nothing was "
            f"for {STALLED:g} s: {self._session.blame()}"
        )
        if warn:
            LOG.warning("%s; the client reads no more from its socket", text)
        self._session.outbox.fail_awaited(
            NotRead(f"the answer is behind what is not read: {text}; read it in a task of its own")
        )

    async def _write(self, socket: ClientConnection) -> None:
        outbox = self._session.outbox
        with suppress(ConnectionClosed):  # which _read sees too
            while True:
                self._wake.clear()
                while socket.state is State.OPEN and (entry := outbox.next()):
                    request, frame, is_text = entry
                    try:
                        await socket.send(frame, text=is_text)
                    finally:
                        if not request.has_answer:
                            request.succeed()
                await self._wake.wait()

    async def _beat(self, socket: ClientConnection) -> None:
        """Ask for a sign of life when there was none for long; give up where none comes."""
        loop = asyncio.get_running_loop()
        while True:
            silent = loop.time() - self._heard
            if silent < self._ping or self._is_held:
                await asyncio.sleep(max(0.01, self._ping - (0 if self._is_held else silent)))
                continue
            asked = loop.time()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.options.patience):
                    await socket.send(_PING, text=True)
                    await asyncio.sleep(self.options.patience)
            if self._heard < asked and not self._is_held:
                LOG.info("nothing was heard of the server for %.0f s", loop.time() - self._heard)
                socket.transport.abort()
                return

    # Its end.

    def _ending(self, error: ConnectionClosed) -> Exception:
        """Say whether to come back after a close, and note what it says of when."""
        if error.rcvd is None or (error.sent is not None and not error.rcvd_then_sent):
            if error.sent is not None and error.sent.code == 1009:
                text = f"the server sent more than max_message={self.options.max_message} bytes"
                return _Final(Closed(1009, f"{text}: raise it"))
            self._pace.ended(1006, self.going)
            return ConnectionError(f"the connection was lost ({error})")
        code, reason = error.rcvd.code, error.rcvd.reason
        ended = Closed(code, reason)
        if not comes_back(code):
            return _Final(ended)
        if code == 4007 and not callable(self.options.token):
            text = (
                f"{reason or 'token expired'}: pass connect(token=…) what can be called for another"
            )
            return _Final(Closed(code, text))
        self._pace.ended(code, self.going)
        return ended


class _Temporary(Exception):  # noqa: N818
    """An attempt failed before there was anything to connect to."""


class _Final(Exception):  # noqa: N818
    """There is no coming back."""

    def __init__(self, error: ClientError):
        super().__init__(error)
        self.error = error
