"""What a client is made of, and its life: opened once, closed once, connected in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from inspect import isawaitable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast

from backchannel.client.answers import Answers
from backchannel.client.channels import Channels
from backchannel.client.errors import Closed, OutcomeUnknown
from backchannel.client.events import Lost
from backchannel.client.frames import Body, Received
from backchannel.client.line import Line, Options
from backchannel.client.outbox import Kind, Outbox, Request
from backchannel.client.session import Session
from backchannel.client.streams import LOG, Stream, Unread
from backchannel.client.tokens import Renewal
from backchannel.codes import check_close

if TYPE_CHECKING:
    from backchannel.client.client import Client

__all__ = ["Core", "Hooks", "State"]

_RAISED: Final = "what connect(on_lost=…) was given raised"

State = Literal["connecting", "open", "waiting", "closed"]


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the application wants to be told by itself; see ``backchannel.client.connect``."""

    on_state: Callable[[State], Any] | None = None
    on_lost: Callable[[Lost], Any] | None = None


class Core:
    """A client without its verbs.

    Args:
        options: how to connect.
        outbox: what it has to say.
        unread: what waits to be read.
        queue_seconds: how long what it has to say may wait for a connection.
        hooks: what is called by itself.
    """

    def __init__(
        self,
        options: Options,
        outbox: Outbox,
        unread: Unread,
        queue_seconds: float | None,
        hooks: Hooks,
    ):
        self.state: State = "connecting"
        self.id = ""
        self.user: str | None = None
        self.resumed = False
        self._url = options.url
        self._options = options
        self._queue_seconds = queue_seconds
        self._hooks = hooks
        self._outbox, self._unread = outbox, unread
        loose = unread.limit // 4
        self._messages: Stream[Received] = Stream("messages of the listener", unread, loose)
        self._channels = Channels(cast("Client", self), unread, loose)
        self._answers = Answers(self._reply)
        self._resume: str | None = None
        self._line: Line | None = None
        self._task: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None
        self._changed: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._told: Exception | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._renewal = Renewal(options.token, cast("Client", self).renew, self._begin)
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Client {self._url.partition('?')[0]} {self.state}>"

    # Its life.

    async def __aenter__(self) -> Self:
        """Connect, and wait until it is open.

        Raises:
            NotAdmitted: the server refused with an HTTP status.
            Closed: it refused after the handshake; ``.code`` is 1008, most of the time.
            Unreachable: there was no connection in ``first_seconds``.
            NotUnderstood: the server does not speak the protocol.
            RuntimeError: it was used before.
        """
        if self._task is not None:
            raise RuntimeError("this client was used before: connect() makes another")
        loop = asyncio.get_running_loop()
        self._first = loop.create_future()
        self._line = Line(self._options, Session(self))
        self._task = loop.create_task(self._line.run())
        try:
            await self._first
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Close it; see ``close``."""
        await self.close()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Leave for good: the session ends with it. What was sent before has left by then.

        Iteration ends; what waits for an answer fails with OutcomeUnknown, what was not sent
        with Closed.

        Args:
            code: the close code; 1000 is what ends the session.
            reason: at most 123 bytes of UTF-8.

        Raises:
            ValueError: a code that can't be sent, or a reason that is too long.
        """
        check_close(code, reason)
        if self._line is None or self._task is None:
            return
        self._unread.lift()
        closing = None
        if self.state != "closed":
            closing = Closed(code, reason or "by the client")
            await self._line.close(code, reason)
        self._task.cancel()
        await asyncio.wait([self._task])
        if closing is not None:
            self._end(closing, None)
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def wait_open(self) -> None:
        """Wait until there is a connection; returns at once where there is one.

        Raises:
            Closed, NotAdmitted, NotUnderstood: the client has ended.
        """
        while self.state != "open":
            self._check_open()
            self._changed = self._changed or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._changed)

    async def wait_closed(self) -> None:
        """Wait until the client has ended for good.

        Raises:
            Closed, NotAdmitted, NotUnderstood: why, where it was not closed by the application, nor
                by the server with 1000.
        """
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._told is not None:
            raise self._told.with_traceback(None)

    # Inside.

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin a task that ends with the client."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _future(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    def _check_open(self) -> None:
        if self._task is None:
            raise RuntimeError(
                "this client is not connected yet: async with connect(url) as client"
            )
        if self.state == "closed":
            raise self._error.with_traceback(None) if self._error else Closed(1006, "")

    async def _ask(
        self, kind: Kind, fields: dict[str, Any], data: Body | None = None, *, retry: bool = False
    ) -> Any:
        return await self._answer_to(Request(kind, fields, data, self._future(), retry=retry))

    async def _answer_to(self, request: Request) -> Any:
        assert request.done is not None  # noqa: S101 - for type checkers
        self._add(request)
        try:
            return await request.done
        except asyncio.CancelledError:
            self._outbox.remove(request)
            raise

    def _reply(self, request: Request) -> None:
        if self.state != "closed":
            self._add(request)

    def _add(self, request: Request) -> None:
        self._check_open()
        self._outbox.check_size(request)
        if self.state != "open" and not request.is_lasting:
            self._outbox.check(request)
            if self._queue_seconds is not None:
                request.expires_at = asyncio.get_running_loop().time() + self._queue_seconds
                self._watch_expiry()
        self._outbox.add(request)
        if self._line is not None:
            self._line.wake()

    def _watch_expiry(self) -> None:
        if self._expiry is None and (at := self._outbox.next_expiry()) is not None:
            self._expiry = asyncio.get_running_loop().call_at(at, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        if silent := self._outbox.expire(asyncio.get_running_loop().time()):
            LOG.warning(
                "%d messages waited for a connection for queue_seconds=%g and were not sent",
                len(silent), self._queue_seconds,
            )  # fmt: skip
        self._watch_expiry()

    def _set_state(self, state: State) -> None:
        self.state = state
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None
        if self._hooks.on_state is not None:
            try:
                self._hooks.on_state(state)
            except Exception:  # noqa: BLE001 - the application's code
                LOG.exception("what connect(on_state=…) was given raised")

    def _tell_lost(self, lost: Lost) -> None:
        """Tell the application of a loss at once, whoever reads the channel and when."""
        if (on_lost := self._hooks.on_lost) is None:
            if lost.channel is None:
                LOG.warning(
                    "messages to this client may have been lost: connect(on_lost=…) would be told"
                )
            return
        try:
            if isawaitable(done := on_lost(lost)):
                self._begin(_finish(done))
        except Exception:  # noqa: BLE001 - the application's code
            LOG.exception(_RAISED)

    def _end(self, error: Exception, told: Exception | None) -> None:
        if self._error is not None:
            return
        self._error, self._told = error, told
        self._renewal.stop()
        self._outbox.close(
            lambda sent: (
                OutcomeUnknown(f"{error}; it may have been done, or not") if sent else error
            )
        )
        self._messages.end(told)
        self._channels.end(told)
        self._answers.stop()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._first is not None and not self._first.done():
            self._first.set_exception(error)
            self._first.exception()  # somebody may have been cancelled
        self._set_state("closed")


async def _finish(done: Awaitable[Any]) -> None:
    try:
        await done
    except Exception:  # noqa: BLE001 - the application's code
        LOG.exception(_RAISED)
