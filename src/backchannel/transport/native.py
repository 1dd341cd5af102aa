"""The native transport: our own frames, straight to the socket.

A frame is made once for all its receivers. What a turn of the event loop has for a client is
joined and written at the end of the turn, with one system call and nothing in between, whenever
the kernel takes it; what it does not take goes to ``transport.write``, which knows how to wait.

Hazards, each with its rule: a descriptor that was closed may be somebody else's by now, so it is
forgotten first thing when the connection is lost or closed, and nobody has a copy; bytes written
past ``transport.write`` must not overtake what waits there, so its buffer must be empty; TLS has
bytes of its own, so it is never written to directly.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

from backchannel.connection import CloseReason
from backchannel.observe import CONNECTION
from backchannel.wire import frames

if TYPE_CHECKING:
    from backchannel.app import Hub
    from backchannel.config import Settings
    from backchannel.dispatch import Dispatch
    from backchannel.messages import Frame

__all__ = ["EXTENSION", "Encoder", "Giver", "NativeSocket", "Taken"]

EXTENSION: Final = "backchannel.takeover"
"""The scope extension by which a server gives a socket away: a Giver."""

_NO_DESCRIPTOR: Final = -1
_WINDOWS: Final = sys.platform == "win32"


class Taken(NamedTuple):
    """A socket that was taken over from the server.

    Args:
        transport: the socket's.
        early: messages that a client sent before its handshake was answered.
        unread: bytes of a further one, which had not come whole.
        connections: where the server looks for what it has to wait for and to end.
    """

    transport: asyncio.Transport
    early: list[Frame]
    unread: bytes
    connections: set[Any]


class Giver(Protocol):
    """A server's connection in the handshake, which can give its socket away."""

    def prepare(self) -> None:
        """Agree on nothing that the native transport can't do; before the 101 is sent."""
        ...

    def take_over(self) -> Taken:
        """Give the socket away; in the turn that sent the 101."""
        ...


class Encoder:
    """Makes a message's frame once, however many connections get it one after the other."""

    __slots__ = ("_frame", "_message")

    def __init__(self) -> None:
        self._message: Frame = ""
        self._frame = frames.text_frame("")

    def encode(self, message: Frame) -> bytes:
        """Return the message's frame."""
        if message is not self._message:
            make = frames.text_frame if isinstance(message, str) else frames.binary_frame
            self._frame = make(cast("Any", message))
            self._message = message
        return self._frame


class NativeSocket(asyncio.Protocol):
    """One client's socket: reads frames into its dispatch, and is its connection's link.

    Args:
        taken: the socket, as the server gave it away after the 101.
        hub: whose flusher, encoder and heartbeat it shares.
        settings: the hub's limits.
    """

    __slots__ = (
        "_awaits_pong", "_close_sent", "_descriptor", "_dispatch", "_gone", "_hub", "_is_due",
        "_paused", "_pending", "_pinged_at", "_reader", "_settings", "_taken", "_timer",
        "_transport",
    )  # fmt: skip

    def __init__(self, taken: Taken, hub: Hub, settings: Settings):
        self._taken = taken
        self._transport = taken.transport
        self._hub = hub
        self._settings = settings
        self._reader = frames.Reader(settings.max_message)
        self._dispatch: Dispatch | None = None
        self._pending: list[bytes] = []
        self._is_due = False
        self._paused = False
        self._close_sent = False
        self._awaits_pong = False
        self._pinged_at = 0.0
        self._gone: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._descriptor = _descriptor(taken.transport)

    def begin(self, dispatch: Dispatch) -> None:
        """Start the connection's life, with what the client was too early to send."""
        self._dispatch = dispatch
        self._transport.set_protocol(self)
        self._taken.connections.add(self)
        self._hub.heartbeat.add(self)
        dispatch.start()
        for message in self._taken.early:
            dispatch.feed(message)
        if self._taken.unread:
            self.data_received(self._taken.unread)
        self._taken = self._taken._replace(early=[], unread=b"")

    def shutdown(self) -> None:
        """Close, since the server shuts down: what uvicorn asks of each of its connections."""
        if self._dispatch is not None:
            self._dispatch.end(CloseReason(1012, "server is restarting", "server"))

    # ── as the connection's link ──────────────────────────────────────────────────────────────

    def push(self, frame: Frame) -> bool:
        """Queue a message for the end of the turn."""
        if self._close_sent:
            return False
        self._pending.append(self._hub.encoder.encode(frame))
        if not self._is_due:
            self._is_due = True
            self._hub.flusher.add(self)
        return True

    def close(self, code: int, reason: str) -> None:
        """Send what waits and the close frame; the client has a while to answer it."""
        if self._close_sent:
            return
        if code not in {1005, 1006}:
            self._pending.append(frames.close_frame(code, reason))
        self._close_sent = True
        self.flush()
        if code in {1005, 1006, 4001, 4002}:
            self._abort()  # there is nobody who would answer
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._settings.close_timeout, self._abort)

    async def finished(self) -> None:
        """Wait until the socket is gone."""
        if self in self._taken.connections:
            self._gone = self._gone or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._gone)

    def flush(self) -> None:
        """Write what waits, in one piece."""
        self._is_due = False
        pending = self._pending
        if not pending:
            return
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        self._pending = []
        self._write(data)

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport.is_closing():
            return
        waiting = transport.get_write_buffer_size()
        if not waiting and self._descriptor != _NO_DESCRIPTOR:
            try:
                written = os.write(self._descriptor, data)
            except (BlockingIOError, InterruptedError):
                written = 0
            except OSError as error:
                CONNECTION.debug("writing failed: %r", error)
                self._abort()
                return
            if written == len(data):
                return
            data = data[written:]
        elif waiting > self._settings.max_outbox and not self._close_sent:
            self._too_slow()
            return
        transport.write(data)

    def _too_slow(self) -> None:
        if self._dispatch is not None:
            text = "reads slower than it is sent to"
            self._dispatch.end(CloseReason(4001, text, "server"))

    def _hang_up(self) -> None:
        self._descriptor = _NO_DESCRIPTOR
        self._transport.close()

    def _abort(self) -> None:
        self._descriptor = _NO_DESCRIPTOR
        self._transport.abort()

    # ── as the transport's protocol ───────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        dispatch = self._dispatch
        if dispatch is None:
            return
        for event in self._reader.feed(data):
            if isinstance(event, str | bytes):
                dispatch.feed(event)
            else:
                self._take_control(event, dispatch)
        if dispatch.inbox.is_full and not self._paused:
            self._pause(dispatch)

    def _take_control(self, event: frames.Event, dispatch: Dispatch) -> None:
        if isinstance(event, frames.Ping):
            if not self._close_sent:
                self._write_soon(frames.pong_frame(event.payload))
        elif isinstance(event, frames.Pong):
            self._take_pong(dispatch)
        elif isinstance(event, frames.Close):
            self._take_close(event, dispatch)
        elif isinstance(event, frames.Violation):
            dispatch.end(CloseReason(event.code, event.reason, "server"))
            # Nothing more is read, so its answer would not be seen (RFC 6455 §7.1.7).
            self._hang_up()

    def _take_close(self, event: frames.Close, dispatch: Dispatch) -> None:
        if not self._close_sent:
            self.flush()
            self._write(frames.close_frame(event.code))
            self._close_sent = True
        dispatch.end(CloseReason(event.code, event.reason, "client"))
        self._hang_up()

    def _write_soon(self, data: bytes) -> None:
        self._pending.append(data)
        if not self._is_due:
            self._is_due = True
            self._hub.flusher.add(self)

    def _pause(self, dispatch: Dispatch) -> None:
        """Stop reading until the callback that runs has caught up."""
        self._paused = True
        self._transport.pause_reading()
        waiting = dispatch.ws.hub.runtime.keep(dispatch.wait_for_room(), dispatch.ws._context)
        waiting.add_done_callback(self._resume)

    def _resume(self, _waiting: object) -> None:
        self._paused = False
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> None:
        """Let the transport close; ``connection_lost`` follows."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """Forget the descriptor before anything else can run."""
        self._descriptor = _NO_DESCRIPTOR
        self._close_sent = True
        self._taken.connections.discard(self)
        self._hub.heartbeat.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        if self._dispatch is not None:
            self._dispatch.end(CloseReason(1006, "connection lost", "network"))

    # ── signs of life ─────────────────────────────────────────────────────────────────────────

    def beat(self) -> float | None:
        """Ping, and a while later look for the answer: a peer that has none to give is gone."""
        if self._close_sent or self._dispatch is None:
            return None
        beat = self._hub.heartbeat
        if self._awaits_pong and self._paused:
            return beat.timeout  # its answer may be among what we do not read for now
        if self._awaits_pong:
            self._dispatch.end(CloseReason(4002, "ping was not answered", "server"))
            return None
        if self._pinged_at:
            self._pinged_at = 0.0
            return max(0.0, beat.interval - beat.timeout)
        self._awaits_pong = True
        self._pinged_at = perf_counter()
        self._write_soon(frames.ping_frame())
        return beat.timeout

    def _take_pong(self, dispatch: Dispatch) -> None:
        if self._awaits_pong:
            self._awaits_pong = False
            dispatch.ws.latency = perf_counter() - self._pinged_at


def _descriptor(transport: asyncio.Transport) -> int:
    """Return what may be written to directly; -1 where that would be wrong.

    With SIGPIPE at its default, as an embedding program may have set it, a write to a socket that
    its peer has closed would end the process.
    """
    if _WINDOWS or transport.get_extra_info("ssl_object") is not None:
        return _NO_DESCRIPTOR
    if signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL:
        return _NO_DESCRIPTOR
    sock = transport.get_extra_info("socket")
    return _NO_DESCRIPTOR if sock is None else sock.fileno()
