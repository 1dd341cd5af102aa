"""The native transport: our own frames, straight to the socket.

A frame is made once for all its receivers. What a turn of the event loop has for a client is
joined and written at the end of the turn, with one system call and nothing in between, whenever
the kernel takes it; what it does not take goes to ``transport.write``, which knows how to wait.
What answers a message goes before all that, unless something else waits.

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
from itertools import chain
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from backchannel.connection import CloseReason
from backchannel.fanout import report
from backchannel.lanes import COMPRESSED, ENCLOSED
from backchannel.observe import CONNECTION
from backchannel.wire import frames

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backchannel.app import Hub
    from backchannel.connection import Connection
    from backchannel.dispatch import Dispatch
    from backchannel.messages import Frame

__all__ = ["EXTENSION", "Giver", "NativeSocket", "Taken"]

EXTENSION: Final = "backchannel.takeover"
"""The scope extension by which a server gives a socket away: a Giver."""

_NO_DESCRIPTOR: Final = -1
_UNANSWERED: Final = {1005, 1006, 4001, 4002}
"""Ends after which there is nobody who would take what waits, or answer a close frame."""

_NOTHING_YET: Final = ()
_SHORT_TEXT: Final = frames.SHORT_TEXT

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

    def prepare(self, window: int | None) -> bool:
        """Agree on what the native transport can do; before the 101 is sent.

        Args:
            window: base-two logarithm of the compression window; None for no compression.

        Returns:
            True when permessage-deflate was agreed on.
        """
        ...

    def take_over(self) -> Taken:
        """Give the socket away; in the turn that sent the 101."""
        ...


class NativeSocket(asyncio.Protocol):
    """One client's socket: reads frames into its dispatch, and is its connection's link.

    Args:
        taken: the socket, as the server gave it away after the 101.
        hub: whose limits hold for it.
        deflates: permessage-deflate was agreed on.

    Attributes:
        ws: its connection.
        is_due: it will be flushed at the end of the turn.
        apart: it shares no lanes for now; see ``fanout``.
        deflates: its client takes compressed frames.
        variant: which making of a message its client takes; see ``lanes.Sharing``.
    """

    __slots__ = (
        "_awaits_pong", "_closing", "_connections", "_descriptor", "_dispatch", "_drained",
        "_fanout", "_gone",
        "_hangs_up", "_has_backlog", "_paused", "_pending", "_pinged_at", "_reader", "_replies",
        "_timer", "_transport", "_unread", "apart", "deflates", "is_due", "variant", "ws",
    )  # fmt: skip

    def __init__(self, taken: Taken, hub: Hub, *, deflates: bool = False):
        self.ws: Connection  # from begin() on
        self.is_due = False
        self.apart = True  # until its connection is open
        self.deflates = deflates
        self.variant = COMPRESSED * deflates
        self._transport = taken.transport
        self._connections = taken.connections
        self._fanout = hub.fanout
        self._reader = frames.Reader(hub.settings.max_message, deflate=deflates)
        self._dispatch: Dispatch | None = None
        self._pending: list[bytes] | None = None
        # While it reads: what was answered.
        self._replies: list[bytes] | tuple[()] | None = None
        self._unread: Iterator[frames.Event] | None = None  # of what came, while it is paused
        self._closing = False
        self._hangs_up = False
        self._has_backlog = False
        self._paused = False
        self._awaits_pong = False
        self._pinged_at = 0.0
        self._gone: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._descriptor = _descriptor(taken.transport)

    def begin(self, dispatch: Dispatch, taken: Taken) -> None:
        """Start the connection's life, with what the client was too early to send."""
        self._dispatch = dispatch
        self.ws = dispatch.ws
        if self.ws._speaks:
            self.variant |= ENCLOSED
        self._fanout.came(self.variant)
        self._transport.set_protocol(self)
        # resume_writing() then tells when nothing waits any more.
        self._transport.set_write_buffer_limits(high=0)
        self._connections.add(self)
        self.ws.hub.heartbeat.add(self)
        dispatch.start()
        for message in taken.early:
            dispatch.take_in(message)
        if taken.unread:
            self.data_received(taken.unread)

    def shutdown(self) -> None:
        """Close, since the server shuts down: what uvicorn asks of each of its connections."""
        if self._dispatch is not None:
            self._dispatch.end(CloseReason(1012, "server is restarting", "server"))

    # ── as the connection's link ──────────────────────────────────────────────────────────────

    def push(self, frame: Frame, channel: str | None = None) -> bool:  # noqa: ARG002
        """Queue a message: for the end of the turn, or as an answer to what is read.

        That goes first, as it may where nothing can wait that was sent to this client earlier: it
        has no queue, and no channel's messages are to be written.
        """
        if self._closing:
            return False
        fanout = self._fanout
        if not self.is_due:
            if (replies := self._replies) is not None and fanout.is_quiet:
                if self.deflates:
                    reply = fanout.encoder.encode(frame, True)
                else:
                    reply = frames.message_frame(frame)
                if isinstance(replies, list):
                    replies.append(reply)
                else:
                    self._replies = [reply]
                return True
            fanout.due(self)
        data = fanout.encoder.encode(frame, self.deflates)
        if self._pending is None:
            self._pending = [data]
        else:
            self._pending.append(data)
        return True

    def answer(self, text: str) -> None:
        """Send what a callback answered: first of all, unless something waits or goes with it."""
        if (
            self.apart
            or isinstance(self._replies, list)
            or not self._fanout.is_quiet
            or self.deflates
            or self._closing
        ):
            self.ws._push(text)  # behind what on_open sent, while that is held
            return
        # message_frame(), without the cost of calling it.
        payload = text.encode()
        if (size := len(payload)) < 126:
            data = _SHORT_TEXT[size] + payload
        else:
            data = frames.message_frame(text)
        self._fanout.answer(self, data)

    def close(self, code: int, reason: str) -> None:
        """Send what waits and the close frame; the client has a while to answer it."""
        if self._closing:
            return
        if code not in {1005, 1006}:
            self._push_control(frames.close_frame(code, reason))
        self._closing = True
        if code in _UNANSWERED:
            self._hang_up()  # not at once: what came before may be in a round that is being written
        else:
            self._abort_later()

    async def drained(self) -> None:
        """Wait until nothing waits in the transport."""
        if self._has_backlog and not self._closing:
            self._drained = self._drained or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    async def finished(self) -> None:
        """Wait until the socket is gone."""
        if self in self._connections:
            self._gone = self._gone or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._gone)

    # ── at the end of the turn ────────────────────────────────────────────────────────────────

    def rejoin(self) -> None:
        """Share lanes again, once the connection is open."""
        self.apart = self.ws._held is not None

    def take(self, data: Iterable[bytes]) -> None:
        """Queue frames made for many."""
        self._pending = [*(self._pending or ()), *data]

    def flush(self) -> None:
        """Write what waits, in one piece."""
        if pending := self._pending:
            self._pending = None
            self.write(pending[0] if len(pending) == 1 else b"".join(pending))
        if self._hangs_up:
            reason, self._descriptor = self.ws.reason, _NO_DESCRIPTOR
            if reason is not None and reason.by != "client" and reason.code in _UNANSWERED:
                self._transport.abort()
            else:
                self._transport.close()

    def write(self, data: bytes) -> None:
        """Write frames: to the descriptor where that is right, else through the transport.

        What may be written to directly has a descriptor, and all else has none.
        """
        if self._descriptor < 0:
            self._write_buffered(data)
            return
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            self._write_failed(data, error)
        else:
            if written != len(data):
                self._write_buffered(data[written:])

    @staticmethod
    def write_each(due: Iterable[tuple[NativeSocket, bytes]]) -> None:
        """Write frames to some sockets: ``write`` without the cost of calling it."""
        write = os.write
        for socket, data in due:
            if (descriptor := socket._descriptor) < 0:
                socket._write_buffered(data)
                continue
            try:
                written = write(descriptor, data)
            except OSError as error:
                socket._write_failed(data, error)
            else:
                if written != len(data):
                    socket._write_buffered(data[written:])

    def _write_failed(self, data: bytes, error: OSError) -> None:
        if isinstance(error, (BlockingIOError, InterruptedError)):
            self._write_buffered(data)
        else:
            self._abort()
            CONNECTION.debug("writing failed: %r", error)

    def _write_buffered(self, data: bytes) -> None:
        try:
            self._write_later(data)
        except Exception as error:  # noqa: BLE001 - others wait to be written to
            self._abort()
            report(f"writing to {self.ws} failed", error)

    def _write_later(self, data: bytes) -> None:
        transport = self._transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > self.ws.hub.settings.max_outbox:
            self._too_slow()
        else:
            transport.write(data)
            if transport.get_write_buffer_size():
                self.pause_writing()

    def _too_slow(self) -> None:
        if self._dispatch is not None and not self._closing:
            text = "reads slower than it is sent to"
            self._dispatch.end(CloseReason(4001, text, "server"))

    def _hang_up(self) -> None:
        """Close the socket once what waits is written."""
        self._hangs_up = True
        self._fanout.due(self)

    def _abort_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.ws.hub.settings.close_timeout, self._abort)

    def _abort(self) -> None:
        self._descriptor = _NO_DESCRIPTOR
        self._transport.abort()

    def _push_control(self, frame: bytes) -> None:
        self._fanout.due(self)
        self._pending = [*(self._pending or ()), frame]

    # ── as the transport's protocol ───────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Read what came, and have written what is answered at once."""
        dispatch = self._dispatch
        if dispatch is None:
            return
        self._replies = _NOTHING_YET
        try:
            if (message := self._reader.whole(data)) is None:
                answer: str | bool = self._read(data, dispatch)
            else:
                answer = dispatch.feed(message)
                if isinstance(answer, str):
                    self.answer(answer)
            replies = self._replies
        finally:
            self._replies = None
        if replies:
            self._fanout.answer(self, replies[0] if len(replies) == 1 else b"".join(replies))
        if answer is True and not self._paused:
            self._pause(dispatch)

    def _read(self, data: bytes, dispatch: Dispatch) -> bool:
        """Read anything until nothing more should be read for now; tell whether that is so."""
        events = self._reader.events(data)
        if (before := self._unread) is not None:
            events, self._unread = chain(before, events), None
        if self._paused:  # a transport may have had something on its way
            self._unread = events
            return True
        self._replies = []
        for event in events:
            if type(event) is str or type(event) is bytes:
                answer = dispatch.feed(event)
                if isinstance(answer, str):
                    self.ws._push(answer)
                elif answer:
                    self._unread = events
                    return True
            else:
                self._take_control(event, dispatch)
        return False

    def _take_control(self, event: frames.Event, dispatch: Dispatch) -> None:
        if isinstance(event, frames.Ping):
            dispatch.take_control()
            if not self._closing:
                self._push_control(frames.pong_frame(event.payload))
        elif isinstance(event, frames.Pong):
            self._take_pong(dispatch)
        elif isinstance(event, frames.Close):
            self._take_close(event, dispatch)
        elif isinstance(event, frames.Violation):
            dispatch.end(CloseReason(event.code, event.reason, "server"))
            # Nothing more is read, so its answer would not be seen (RFC 6455 §7.1.7).
            self._hang_up()

    def _take_close(self, event: frames.Close, dispatch: Dispatch) -> None:
        if not self._closing:
            self._push_control(frames.close_frame(event.code))
            self._closing = True
            self._abort_later()  # it may take nothing of what waits for it
        dispatch.end(CloseReason(event.code, event.reason, "client"))
        self._hang_up()

    def _pause(self, dispatch: Dispatch) -> None:
        """Stop reading until the callback that runs has caught up."""
        self._paused = True
        self._transport.pause_reading()
        waiting = dispatch.ws.hub.runtime.keep(dispatch.wait_for_room(), dispatch.ws._context)
        waiting.add_done_callback(self._resume)

    def _resume(self, _waiting: object) -> None:
        self._paused = False
        self._pinged_at = perf_counter()  # its answer may be among what is read only now
        if self._unread is not None:
            self.data_received(b"")
        if not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        """Write through the transport from now on, after what waits there."""
        self._descriptor = _NO_DESCRIPTOR
        self._has_backlog = True

    def resume_writing(self) -> None:
        """Write directly again: nothing waits in the transport."""
        self._has_backlog = False
        self._tell_drained()
        if not self._transport.is_closing():
            self._descriptor = _descriptor(self._transport)

    def _tell_drained(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def eof_received(self) -> None:
        """End: there is no WebSocket in one direction, and it may take nothing of what waits."""
        if self._dispatch is not None:
            self._dispatch.end(CloseReason(1006, "connection lost", "network"))
        self._descriptor = _NO_DESCRIPTOR

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """Forget the descriptor before anything else can run."""
        self._descriptor = _NO_DESCRIPTOR
        self._closing = True
        self._unread = None
        self._connections.discard(self)
        self._tell_drained()
        if self._timer is not None:
            self._timer.cancel()
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        if self._dispatch is not None:
            self.ws.hub.heartbeat.discard(self)
            self._dispatch.end(CloseReason(1006, "connection lost", "network"))
            self._fanout.went(self.variant)

    # ── signs of life ─────────────────────────────────────────────────────────────────────────

    def beat(self) -> float | None:
        """Ping, and a while later look for the answer: a peer that has none to give is gone."""
        if self._closing or self._dispatch is None:
            return None
        beat, now = self.ws.hub.heartbeat, perf_counter()
        if self._awaits_pong and self._paused:
            return beat.timeout  # its answer may be among what we do not read for now
        wait = beat.timeout if self._awaits_pong else beat.interval
        if (left := self._pinged_at + wait - now) > beat.tick / 2:
            return min(left, beat.interval)
        if self._awaits_pong:
            self._dispatch.end(CloseReason(4002, "ping was not answered", "server"))
            return None
        self._awaits_pong = True
        self._pinged_at = now
        self._push_control(frames.ping_frame())
        return min(beat.timeout, beat.interval)  # an answer may let the next ping be due sooner

    def _take_pong(self, dispatch: Dispatch) -> None:
        if self._awaits_pong:
            self._awaits_pong = False
            dispatch.ws.latency = perf_counter() - self._pinged_at
        else:
            dispatch.take_control()


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
