"""One connection's callbacks, one at a time and in order, from on_open to on_close.

A frame from the client is handled at once, in the turn of the event loop that brought it, as far
as that goes without waiting; the rest is done in order (see ``sequence``).
"""

from __future__ import annotations

import asyncio
import functools
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final

from backchannel.answering import Answering, handle
from backchannel.audience import Changes
from backchannel.calling import awaiting
from backchannel.catchup import release_slowly
from backchannel.change import Change
from backchannel.changing import Changing
from backchannel.codes import fit_reason, meaning_of
from backchannel.connection import CloseReason, Connection
from backchannel.errors import Reject, TryLater
from backchannel.fanout import report
from backchannel.handshake import REFUSED, refusal
from backchannel.identity import expiry_of
from backchannel.inbox import Rest, nothing
from backchannel.messages import Frame as Message
from backchannel.observe import CONNECTION, LISTENER, TRACE, address, excerpt
from backchannel.sent import Sent
from backchannel.stepping import step

if TYPE_CHECKING:
    from backchannel.hub import HubCore
    from backchannel.request import Request

__all__ = ["Dispatch"]

_FEW: Final = 16
"""Messages that a connection is sent at once when it has opened; more of them bit by bit."""


class Dispatch(Answering, Changing):
    """Runs a connection's callbacks."""

    __slots__ = ("_closed", "_coming", "_opened", "_since", "entered")

    _no_reply = (Sent, Change, Changes)

    def __init__(self, hub: HubCore, ws: Connection):
        super().__init__(hub, ws)
        self.entered = False
        self._opened = False
        self._coming: asyncio.Task[None] | None = None
        self._closed: asyncio.Future[None] | None = None
        self._since: int | None = None
        ws._dispatch = self

    @property
    def closed(self) -> asyncio.Future[None]:
        """Done when on_close and all that follows it has run."""
        if self._closed is None:
            self._closed = self._runtime.loop.create_future()
        return self._closed

    # ── what the transport calls ──────────────────────────────────────────────────────────────

    def follow(self, request: Request) -> None:
        """Take over from its handshake since when it is on its way in; see ``Farewells``."""
        self._since, request._since = request._since, None

    def start(self) -> None:
        """Begin the connection's life: on_first_open, on_open, the automatic subscription."""
        TRACE.look()
        self._hub.dispatches.add(self)
        if (identity := self.ws.identity) is not None or self.ws.session.ends_at is not None:
            self._hub.expiry.set(self, self._until(expiry_of(identity)))
        self._begin_life()
        if self._hub.is_stopping:  # since its handshake
            self.end(CloseReason(1001, meaning_of(1001), "server"))

    def _begin_life(self) -> None:
        if self._opens_at_once():
            if rest := self.ws._context.run(step, self._open()):
                self._work_on(Rest(functools.partial(awaiting, rest)))
        else:
            self._work_on(Rest(self._open, nothing))

    def take_in(self, message: Message) -> bool:
        """Take a message from the client, and send what is answered at once.

        Returns:
            True when so much waits for a running callback that nothing more should be read.
        """
        answer = self.feed(message)
        if isinstance(answer, bool):
            return answer
        self.ws._push(answer)
        return False

    def feed(self, message: Message) -> str | bool:
        """Take a message from the client.

        Returns:
            A text is the answer, which the caller has to send now: so a transport that can write
            it does that without a detour. True when so much waits for a running callback that
            nothing more should be read; False otherwise.
        """
        ws = self.ws
        if ws.reason is not None:
            return False
        if TRACE.is_on:
            CONNECTION.debug("%s received %s", ws, excerpt(message))
        if self._is_busy:
            self.inbox.put(message)
            return self._is_full()
        if self.endpoint.callbacks.messages_wait:
            self._first = message
            self._is_busy = True
            self._runtime.runner.start(self)
        elif (rest := self.context.run(handle, self, message)) is not None:
            if isinstance(rest, str):
                return rest
            self._work_on(rest)
        return False

    def take_control(self) -> None:
        """Take note of a ping, or of a pong that nobody asked for; see ``guard.Metered``."""

    async def wait_for_room(self) -> None:
        """Wait while too many messages wait for a running callback: backpressure for reading."""
        if self.ws.reason is None:
            await self._wait_for_room()

    def end(self, reason: CloseReason, *, refused: bool = False) -> bool:
        """End the connection: it leaves every audience at once, then on_close runs.

        Args:
            reason: how it ended.
            refused: True drops what on_open sent: a refused client gets no welcome.

        Returns:
            False when it had ended already.
        """
        ws = self.ws
        if ws.reason is not None:
            return False
        inside = self._is_inside()
        held, ws._held = ws._held, None
        if not refused and (inside or ws.channel is None or ws.channel in ws._channels):
            for frame in held or ():
                ws._link.push(frame)
        ws.reason = reason
        if self._since is not None:
            self._since = None
            self._hub.farewells.end()
        words = f"{reason.code} {reason.text!r}" if reason.text else reason.code
        self._note("%s ended by the %s: %s", ws, reason.by, words)
        self._leave(reason, inside=inside)
        return True

    def _leave(self, reason: CloseReason, *, inside: bool) -> None:
        """Take the connection out of all audiences, end its work, and begin its closing."""
        ws = self.ws
        self._hub.fanout.ending(ws)
        self._hub.roster.remove(ws)
        if self._hub.rules.presence:
            self._hub.attendance.ended(ws)
        if self._hub.cluster.is_shared:
            self._hub.cluster.release(ws)
            if ws.user is not None and self._opened:
                self._hub.attendance.came_or_went(ws.user)
        self._hub.expiry.discard(self)
        ws._link.close(reason.code, reason.text)
        keep = not self._hub.settings.cancel_on_close and reason.by == "client" and self._opened
        self._give_up(keep_messages=keep)
        me = _current_task()
        for task in ws._tasks or ():
            if task is not me:
                task.cancel()
        closing = self._close(own_wish=inside or self._has_more())
        self._hub.runtime.keep(closing, ws._context)

    def expire(self) -> None:
        """End the connection: the time has come that its identity or session holds until."""
        until = expiry_of(self.ws.identity)
        is_session = self._until(until) != until
        text = "session expired" if is_session else meaning_of(4007)
        self.end(CloseReason(4007, text, "server"))

    def _until(self, until: float | None) -> float | None:
        """Return when the connection ends whose identity holds until then; None is never."""
        end = self.ws.session.ends_at
        return until if end is None or (until is not None and until <= end) else end

    def renew(self, identity: object, until: float | None) -> bool:
        """Take a newer identity of the same user.

        Args:
            identity: the newer one.
            until: seconds since the epoch; None is for ever.

        Returns:
            False when the connection has ended.
        """
        if self.ws.reason is not None:
            return False
        self.ws._facts.identity = identity
        self._hub.expiry.set(self, self._until(until))
        return True

    async def settled(self) -> None:
        """Wait until no callback of this connection runs or waits."""
        while self._is_busy:
            await self._wait_until_idle()
        if self._coming is not None:
            await asyncio.wait({self._coming})
        if self.ws.reason is not None:
            await asyncio.shield(self.closed)

    # ── the beginning and the end ─────────────────────────────────────────────────────────────

    def _opens_at_once(self) -> bool:
        """Opening would not have to wait for anything."""
        channel = self.ws.channel
        cluster = self._hub.cluster
        return (
            (not cluster.is_shared or cluster.holds_all(self.ws))
            and self.endpoint.callbacks.opening_is_immediate
            and self.endpoint.occupancy.is_calm
            and (channel is None or self._hub.membership.enters_at_once(self, channel))
        )

    async def _open(self) -> None:
        ws, callbacks = self.ws, self.endpoint.callbacks
        if not await self._enter_endpoint() or ws.reason is not None:
            return
        self._opened = True
        if callbacks.on_open is not None:
            try:
                answer = await self.call(callbacks.on_open, ws)
            except Reject as raised:
                answer = raised
            except Exception as error:  # noqa: BLE001 - a listener may raise anything
                await self.failed(callbacks.on_open, error)
                self.end(CloseReason(1011, "listener failed", "server"), refused=True)
                return
            if refused := refusal(answer, REFUSED):
                self._refuse(refused)
                return
        if ws.reason is not None:
            return
        if self._hub.cluster.is_shared:
            await self._hub.cluster.hold(ws)
            if ws.reason is not None:
                self._hub.cluster.release(ws)
                return
        if self._was_told_to_go():  # only now, that no closing goes unheard any more
            return
        self._hub.roster.admit(ws)
        self._hub.watch(ws.session)
        if ws.channel is not None:
            refused = await self._hub.membership.enter(self, ws.channel)
            if refused is not None:
                self._refuse(refused)
        if ws.reason is None:
            self._release()
            if coming := self._hub.presence.came(ws.user):
                self._coming = self._hub.runtime.keep(coming, copy_context())

    def _was_told_to_go(self) -> bool:
        """Tell whether its user or session was closed since its handshake began, and end it."""
        since, self._since = self._since, None
        if since is None:
            return False
        ending = self._hub.farewells.told(self.ws, since)
        self._hub.farewells.end()
        return ending is not None and self.end(ending, refused=True)

    async def _enter_endpoint(self) -> bool:
        first = self.endpoint.callbacks.on_first_open
        opening = None if first is None else functools.partial(self.call, first, self._hub)
        self.entered = True
        try:
            await self.endpoint.occupancy.enter(opening)
        except Exception as error:  # noqa: BLE001 - a listener may raise anything
            if first is not None:
                await self.failed(first, error)
            self.end(CloseReason(1011, "listener failed", "server"), refused=True)
            return False
        return True

    def _note(self, text: str, *values: object) -> None:
        """Log a step of the connection's life, which goes on whatever comes of that."""
        try:
            CONNECTION.info(text, *values)
        except Exception as error:  # noqa: BLE001 - a filter of the log's may raise anything
            report(f"logging {text!r} failed for {self.ws}", error)

    def _refuse(self, answer: Reject) -> None:
        code = 1013 if isinstance(answer, TryLater) else 1008
        self.end(CloseReason(code, fit_reason(answer.text or "refused"), "server"), refused=True)

    def _release(self) -> None:
        self._note("%s open, client %s", self.ws, address(self.ws.client))
        if len(self.ws._held or ()) > _FEW:
            self._hub.runtime.keep(release_slowly(self.ws), Context())
            return
        held, self.ws._held = self.ws._held, None
        link = self.ws._link
        for frame in held or ():
            link.push(frame)
        self._hub.fanout.rejoin(link)

    async def _close(self, *, own_wish: bool) -> None:
        """Run what follows the end: on_close, on_unsubscribe, on_last_close."""
        try:
            await self._wait_for_task(own_wish=own_wish)
            ws, callbacks = self.ws, self.endpoint.callbacks
            if self._opened:
                await self.call_safely(callbacks.on_close, ws, ws.reason)
            for name in sorted(ws._channels):
                await self._hub.membership.left(self, name)
            if self._coming is not None:
                await self._hub.presence.went(ws.user)
            if self.entered:
                last = callbacks.on_last_close
                await self.endpoint.occupancy.leave(
                    None if last is None else functools.partial(self.call_safely, last, self._hub)
                )
        finally:
            self._hub.dispatches.discard(self)
            if not self.closed.done():
                self.closed.set_result(None)

    async def _wait_for_task(self, *, own_wish: bool) -> None:
        """Let a running callback come to its end, or cancel it.

        One that closed its own connection may go on for a while: it knows what it did.
        """
        if self._is_busy:
            await self._wait_or_cancel(self._hub.grace, own_wish=own_wish)
        if self._to_finish:
            await asyncio.wait(self._to_finish, timeout=self._hub.grace)

    async def _wait_or_cancel(self, grace: float, *, own_wish: bool) -> None:
        if not self._hub.settings.cancel_on_close and not self._hub.is_stopping:
            await self._wait_until_idle()
            return
        if own_wish and await self._wait_until_idle(grace):
            return
        self._wait_no_more()
        if not await self._wait_until_idle(grace):
            LISTENER.error(
                "a callback of %s still runs though its connection ended and it was cancelled; "
                "on_close runs beside it",
                self.ws,
            )


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
