"""What waits for a client of an ASGI server: a queue bounded in bytes, flushed once a turn.

A broadcast puts a frame into many outboxes; at the end of the event loop's turn each outbox that
got something is flushed. An ASGI server's ``send`` rarely has to wait, so that it is stepped by
hand, and a task is made only for a client that does not take what it is sent: a task for each
receiver of each broadcast would keep the garbage collector busier than the network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import TYPE_CHECKING, Any, Final, cast

from backchannel.observe import CONNECTION
from backchannel.stepping import Watched

if TYPE_CHECKING:
    from backchannel.backlog import Backlog
    from backchannel.fanout import Fanout
    from backchannel.messages import Frame

__all__ = ["Event", "Outbox", "Send"]

Event = MutableMapping[str, Any]
Send = Callable[[Event], Awaitable[None]]

_PATIENCE: Final = 8
"""Turns of the event loop in which a full queue may still get shorter."""

_STEPPABLE: Final = ("uvicorn.", "hypercorn.", "starlette.", "fastapi.")
"""Where a ``send`` comes from that is known not to care which task it runs in."""


class Outbox:
    """One client's queue.

    Args:
        send: the ASGI server's.
        fanout: flushes it at the end of the turn.
        backlog: what waits.
        limit: bytes that may wait after an attempt to send; one frame always fits.
        close_timeout: seconds in which the client has to take what is queued before the close.

    Attributes:
        apart: True: it shares no lanes, since an ASGI server frames each message itself.
        is_due: it will be flushed at the end of the turn.
        too_slow: called when more than the limit waits.
        reader: the task that reads; it ends before the close is sent.
    """

    __slots__ = (
        "_checking", "_close", "_close_timeout", "_done", "_fanout", "_limit", "_lost", "_queue",
        "_send", "_sent", "_steppable", "_task", "_timer", "_under_way", "apart", "is_due",
        "reader", "too_slow",
    )  # fmt: skip

    def __init__(
        self, send: Send, fanout: Fanout, backlog: Backlog[Frame], limit: int, close_timeout: float
    ):
        self.too_slow: Callable[[], None] = self.lose
        self.reader: asyncio.Task[None] | None = None
        self._send = send
        self._steppable = str(getattr(send, "__module__", "")).startswith(_STEPPABLE)
        self._fanout = fanout
        self._limit = limit
        self._close_timeout = close_timeout
        self._queue = backlog
        self._under_way = 0  # bytes that the server was given and has not taken
        self._sent = 0
        self.is_due = False
        self.apart = True
        self._checking = False
        self._lost = False
        self._close: Event | None = None
        self._done: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def push(self, frame: Frame, channel: str | None = None) -> bool:
        """Queue a frame."""
        if self._lost or self._close is not None:
            return False
        self._queue.put(frame, channel)
        if self._task is None:
            self._fanout.due(self)
        if self._queue.size + self._under_way > self._limit and not self._checking:
            self._checking = True
            self._check_soon(_PATIENCE, self._sent)
        return True

    def answer(self, text: str) -> None:
        """Queue an answer."""
        self.push(text)

    def close(self, code: int, reason: str) -> None:
        """Close after what waits; a client that does not take it in time is left."""
        if self._lost or self._close is not None:
            return
        loop = asyncio.get_running_loop()
        self._close = {"type": "websocket.close", "code": code, "reason": reason}
        self._done = loop.create_future()
        self._timer = loop.call_later(self._close_timeout, self.lose)
        if self._task is None:
            self._task = loop.create_task(self._write())

    def lose(self) -> None:
        """Give the client up: it is gone, or takes nothing."""
        self._lost = True
        self._queue.clear()
        if self._task is not None:
            self._task.cancel()
        self._finish()

    async def drained(self) -> None:
        """Wait until the server has taken what waits."""
        while self._task is not None and not self._lost:
            await asyncio.wait({self._task})

    async def finished(self) -> None:
        """Wait until the close has been sent or given up."""
        if self._done is not None:
            await asyncio.shield(self._done)

    def flush(self) -> None:
        """Send what waits, as far as that goes without waiting for the client."""
        if self._task is not None or self._lost:
            return
        rest = None
        if self._steppable:
            rest = self._step_all()
            if rest is None:
                return
        if self._queue or rest is not None:
            self._task = asyncio.get_running_loop().create_task(self._write(rest))

    def rejoin(self) -> None:
        """Stay apart."""

    def _step_all(self) -> Awaitable[None] | None:
        """Step ``send`` for each frame; return the one that has to wait, if there is one."""
        queue, send = self._queue, self._send
        while queue:
            frame = queue.take()
            sending = cast("Coroutine[Any, Any, None]", send(_event(frame)))
            try:
                waits_for = sending.send(None)
            except StopIteration:
                self._sent += 1
            except Exception as error:  # noqa: BLE001 - the server's way to say it is gone
                self._gone(error)
            else:
                self._under_way = len(frame)
                return Watched(sending, waits_for=waits_for)
        return None

    async def _write(self, rest: Awaitable[None] | None = None) -> None:
        """Send what waits, also where that means to wait for the client."""
        try:
            if rest is not None:
                await rest
                self._sent += 1
            while self._queue:
                frame = self._queue.take()
                self._under_way = len(frame)
                await self._send(_event(frame))
                self._sent += 1
            self._under_way = 0
            if self._close is not None:
                await self._stop_reading()
                await self._send(self._close)
        except asyncio.CancelledError:
            if not self._lost:
                raise
        except Exception as error:  # noqa: BLE001 - the server's way to say it is gone
            self._gone(error)
        finally:
            self._task = None
            if self._close is not None:
                self._finish()

    async def _stop_reading(self) -> None:
        """End the reader: granian sends no close while the app waits in receive()."""
        if self.reader is not None:
            self.reader.cancel()
            await asyncio.wait({self.reader})

    def _gone(self, error: Exception) -> None:
        CONNECTION.debug("sending failed: %r", error)
        self._lost = True
        self._queue.clear()

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _check_soon(self, patience: int, sent: int) -> None:
        # After the flush: what one turn queued has then been tried to send.
        asyncio.get_running_loop().call_soon(self._check, patience, sent)

    def _check(self, patience: int, sent: int) -> None:
        """Judge a full queue by what is left after an attempt to send; one frame always fits."""
        size, count = self._queue.size + self._under_way, len(self._queue) + bool(self._under_way)
        if size <= self._limit or count <= 1:
            self._checking = False
        elif patience and sent != self._sent:
            self._check_soon(patience - 1, self._sent)
        else:
            self._checking = False
            if not self._queue.trim(self._limit - self._under_way):
                self._queue.clear()
                self.too_slow()


def _event(frame: Frame) -> Event:
    if isinstance(frame, str):
        return {"type": "websocket.send", "text": frame}
    return {"type": "websocket.send", "bytes": frame}
