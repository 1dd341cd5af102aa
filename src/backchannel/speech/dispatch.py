"""A v1 connection's callbacks: frames become messages, calls and changes, each in its order.

The first frame is the client's hello; until then nothing of the listener runs. What the listener
is to do has its turn, like a message of a raw client; answers to its own calls, and what stops a
call, do not wait for it.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from backchannel.codes import ENDINGS, fit_reason, meaning_of
from backchannel.config import MIB
from backchannel.connection import CloseReason
from backchannel.contracts import Target
from backchannel.dialect import frames
from backchannel.dialect.content import content_of, value_of
from backchannel.dispatch import Dispatch
from backchannel.errors import BrokerUnavailable, CallFailed, InvalidMessage
from backchannel.history import Position
from backchannel.identity import expiry_of
from backchannel.inbox import Rest, nothing
from backchannel.messages import Frame as Message
from backchannel.observe import CONNECTION, LISTENER, TRACE, excerpt
from backchannel.resume import Record
from backchannel.speech.handling import Handling, is_for_now

if TYPE_CHECKING:
    from backchannel.dialect.talk import Talk

__all__ = ["SpeakingDispatch", "speaking"]

MANY: Final = 1024
"""Frames that may wait for a callback that itself waits for the client; more are refused."""

MUCH: Final = 4 * MIB
"""Bytes, or characters, of frames that may wait for it."""

_TOO_MANY: Final = f"{MANY} frames wait already, or {MUCH // MIB} MiB"

REPLACED: Final = CloseReason(4005, meaning_of(4005), "server")


class SpeakingDispatch(Handling):
    """Runs the callbacks of a connection that speaks v1."""

    __slots__ = ()

    @property
    def talk(self) -> Talk:
        """What is remembered of the conversation."""
        return self.speaker.talk

    # ── the beginning ─────────────────────────────────────────────────────────────────────────

    def _begin_life(self) -> None:
        """Wait for the client's hello."""
        loop, seconds = self._runtime.loop, self._hub.settings.handshake_timeout
        self.talk.timer = loop.call_later(seconds, self._miss_hello)

    def _miss_hello(self) -> None:
        self.talk.timer = None
        self.end(CloseReason(1008, "said no hello in time", "server"), refused=True)

    def _greet(self, hello: frames.Hello) -> None:
        talk = self.talk
        if talk.greeted:
            self.complain("out_of_order", "hello is said once, first")
            return
        talk.greeted = True
        talk.stop_timer()
        if hello.resume is not None and self._hub.resumes.window is not None:
            self._work_on(Rest(functools.partial(self._come_back, hello), nothing))
        else:
            self._note_positions(hello)
            self._welcome([])
            super()._begin_life()

    def _note_positions(self, hello: frames.Hello) -> None:
        """Keep what the client has had of the channels that it enters now, and of no others."""
        talk = self.talk
        own = () if self.ws.channel is None else (self.ws.channel,)
        for channel in (*own, *talk.returning):
            if (text := hello.positions.get(channel)) is None:
                continue
            try:
                talk.positions[channel] = Position.parse(text)
            except ValueError:
                talk.positions[channel] = Position("none", 0)  # of no history: it is lost

    def _welcome(self, channels: list[str]) -> None:
        """Say hello, before all else that the client gets."""
        ws, settings = self.speaker, self._hub.settings
        ws.talk.welcomed = True
        own = [] if ws.channel is None else [ws.channel]
        greeting = frames.Greeting(
            connection=ws.id,
            resumed=ws.resumed,
            user=ws.user,
            resume=self._hub.resumes.begin(ws),
            window=self._hub.resumes.window or 0,
            channels=list(dict.fromkeys([*own, *channels])),
            ping=settings.ping_interval,
            max_message=settings.max_message,
            expires_in=self._expires_in(),
        )
        if ws._held is not None:
            ws._held.insert(0, frames.write(greeting))

    def _expires_in(self) -> float | None:
        """Return the seconds after which the connection ends with its identity or session."""
        until = self._until(expiry_of(self.ws.identity))
        return None if until is None else round(max(0.0, until - time()), 3)

    async def _come_back(self, hello: frames.Hello) -> None:
        """Go on with a session, or begin a new one where there is none."""
        ws, talk = self.speaker, self.talk
        # What was taken is given back, or this goes on with it: that is not to be cut short.
        await self.finish(self._resume(hello))
        if ws.reason is not None:
            return
        self._note_positions(hello)
        channels = sorted(talk.returning - {ws.channel})
        self._welcome(channels)
        await self._open()
        for name in channels:
            if talk.opened.get(name) is False:
                self._leave_out(name, "")
            else:
                await self._put_back(name)
        talk.positions.clear()

    async def _resume(self, hello: frames.Hello) -> None:
        """Take a session and be its connection; the one that was ends, and its callbacks first."""
        ws, resumes = self.speaker, self._hub.resumes
        try:
            number = 0 if hello.id is msgspec.UNSET else hello.id
            found = await resumes.take(cast("str", hello.resume), ws, number)
        except BrokerUnavailable as error:
            CONNECTION.warning("%s can't be resumed now: %s", ws, error)
            self.end(CloseReason(1013, "sessions can't be read now", "server"), refused=True)
            return
        if found is None or ws.reason is not None:  # then it was kept again
            return
        key, record, before = found
        ws.id = record.id
        self._adopt(record)
        newer = await self._take_over(record)
        # One from before the last turn that is kept knows less; who had that one may be dead.
        if newer is not None and newer.turn >= before:
            newer.turn = max(record.turn, newer.turn + 1)
            self._adopt(newer)
        ws.talk.keys = (key,)  # until the next one has arrived
        if ws.reason is not None and ws.reason is not REPLACED:
            resumes.put_back(key, ws)

    async def _take_over(self, record: Record) -> Record | None:
        """End the connection that had a session; return what it has still to say of it."""
        hub, target = self._hub, Target("connection", record.id)
        await self._stay(target)
        live: Any = [one._dispatch for one in hub.roster.members(target)]
        answers = [await hub.resumes.hand_over(record.id, record.turn, live, hub.grace)]
        if hub.cluster.is_shared:
            try:
                answers += await hub.cluster.ask(target, "replace", record.turn)
            except BrokerUnavailable as error:
                text = "%s: its former connection could not be ended: %s"
                CONNECTION.debug(text, self.ws, error)
        if True in answers:
            self.replaced()
        told = [Record.unpack(data) for data in answers if isinstance(data, bytes)]
        return max(filter(None, told), key=lambda one: (one.turn, one.last), default=None)

    async def _stay(self, target: Target) -> None:
        """Be found by who goes on with this session, also at another node, until all is done."""
        cluster = self._hub.cluster
        self.talk.stays = True
        left = functools.partial(cluster.hear_no_more, (target,)) if cluster.is_shared else None
        self._hub.resumes.stay(self, left)
        if cluster.is_shared:
            await cluster.hear((target,))

    def _stay_on(self) -> None:
        """Do so after the end, as long as callbacks may have something to say of the session."""
        ws, hub = self.speaker, self._hub
        if self.talk.stays or not self.talk.keys:
            return
        left = None
        if hub.cluster.is_shared and hub.cluster.holds(ws):
            target = Target("connection", ws.id)
            hub.cluster.stay(target)
            left = functools.partial(hub.cluster.hear_no_more, (target,))
        hub.resumes.stay(self, left)

    def _adopt(self, record: Record) -> None:
        """Take up what an earlier connection of the session was."""
        ws = self.speaker
        ws.talk.go_on(record)
        for name in self.endpoint.callbacks.durable:
            if name in record.state:
                ws.state[name] = record.state[name]
            else:
                ws.state.pop(name, None)

    def replaced(self) -> None:
        """End: another connection goes on with the session."""
        self.end(REPLACED)

    async def _put_back(self, name: str) -> None:
        """Let the client into a channel again that it was in, if it may still be there."""
        ws = self.speaker
        if ws.reason is not None or name in ws._channels:
            return
        refused = await self._hub.membership.enter(self, name)
        if refused is not None and is_for_now(refused):  # it comes back for what it has missed
            self.end(CloseReason(1013, fit_reason(refused.text), "server"))
        elif name not in ws._channels:
            self._leave_out(name, refused.text if refused is not None else "")

    def _leave_out(self, name: str, text: str) -> None:
        """Tell the client that it is not in a channel any more that it was in."""
        ws = self.speaker
        if ws.reason is None:
            ws.talk.returning.discard(name)
            ws.talk.opened.pop(name, None)
            ws.tell(frames.Unsubscribed(name, text=text or "refused"))
            self._hub.resumes.changed(ws)

    def _release(self) -> None:
        self.talk.is_in = True
        super()._release()

    # ── what comes ────────────────────────────────────────────────────────────────────────────

    def feed(self, message: Message) -> str | bool:
        """Take a frame from the client; see ``Dispatch.feed``."""
        ws = self.speaker
        if ws.reason is not None:
            return False
        try:
            frame, data = frames.read(message, "client")
        except InvalidMessage as error:
            self._take_invalid(error, message)
            return False
        talk = ws.talk
        kind: type[Any] = frame.__class__
        if kind is frames.Hello:
            self._greet(frame)
            return False
        if not talk.welcomed:
            self._refuse_early(frame)
            return False
        if len(talk.keys) > 1:
            self._hub.resumes.arrived(ws)
        if kind is frames.Message and frame.id is msgspec.UNSET:
            if talk.calls and self._has_too_much():
                self.complain("too_many", _TOO_MANY)
                return False
            answer = super().feed(content_of(frame.data, data))
            if isinstance(answer, bool):
                return answer
            ws._send(answer)  # in a frame of the dialect
            return False
        if TRACE.is_on:
            what = frame.__struct_config__.tag if kind is frames.Renew else excerpt(message)
            CONNECTION.debug("%s received %s", ws, what)
        if (at_once := _AT_ONCE.get(kind)) is not None:
            at_once(self, frame, data)
            return False
        return self._queue_frame(frame, data, len(message))

    def _take_invalid(self, error: InvalidMessage, message: Message) -> None:
        CONNECTION.debug("%s invalid frame: %s", self.ws, excerpt(error.text))
        if not self.talk.greeted:
            self._refuse_early()
            return
        kind, number = frames.head_of(message)
        id_: Any = msgspec.UNSET if number is None else number
        self.complain(error.code, error.text, id_=id_, field=error.field)
        if kind in {"reply", "error"} and number is not None:
            self._fail_call(number, error)

    def _refuse_early(self, frame: Any = None) -> None:
        """Refuse what comes too early; a client whose first frame is no hello is none."""
        if self.talk.greeted:
            id_ = getattr(frame, "id", msgspec.UNSET)
            self.complain("out_of_order", "nothing before the server's hello", id_=id_)
        else:
            self.end(CloseReason(1008, "the first frame is hello", "server"), refused=True)

    def _queue_frame(self, frame: Any, data: bytes | None, size: int) -> bool:
        """Let a frame have its turn; tell whether nothing more should be read."""
        talk = self.talk
        if frame.id is not msgspec.UNSET:
            is_kept = isinstance(frame, frames.Message | frames.Publish)
            takes = talk.takes(frame.id, again=is_kept and frame.again, acknowledged=is_kept)
            if takes is None:
                self._answer_again(frame.id)
                return False
            if takes is False:
                text = f"ids count up: {talk.last} was used already"
                self.complain("out_of_order", text, id_=frame.id)
                return False
            if talk.unsure and is_kept and frame.again:
                if self._has_no_key(frame):
                    talk.done(frame.id, "unsure")
                    self.complain("unsure", "it may have been done, or not", id_=frame.id)
                    self._hub.resumes.changed(self.speaker)
                    return False
            else:  # clients send again first, then what is new
                talk.unsure = False
        work = Rest(functools.partial(self.handle, frame, data), nothing, size)
        if isinstance(frame, frames.Call):
            self._queue_call(frame)
        if not self._is_busy:
            self._work_on(work)
            return False
        if talk.calls:  # the callback waits for an answer that has to be read
            if self._has_too_much():
                talk.queued.pop(cast("int", frame.id), None)
                talk.done(cast("int", frame.id), "too_many")
                self.complain("too_many", _TOO_MANY, id_=frame.id)
                return False
            self.inbox.put(work)
            return False
        self.inbox.put(work)
        return self._is_full()

    def _is_full(self) -> bool:
        # While a callback waits for the client, its answer has to be read.
        return not self.talk.calls and super()._is_full()

    def _has_too_much(self) -> bool:
        """Tell whether so much waits for a callback that waits for the client."""
        return self._inbox is not None and self._inbox.has(MANY, MUCH)

    def _has_no_key(self, frame: Any) -> bool:
        """Tell whether nothing but the session knows that it was done: no history does."""
        if not isinstance(frame, frames.Publish):
            return True
        rule = self._hub.rules.find(frame.channel)
        return rule is None or rule.keep is None

    def _answer_again(self, id_: int) -> None:
        """Say once more what became of a frame whose answer may have been lost."""
        if (code := self.talk.refused.get(id_)) is None:
            self.speaker.tell(frames.Ack(id_))
        else:
            self.complain(code, "it was answered so before", id_=id_)

    def _queue_call(self, frame: frames.Call) -> None:
        """Count the time that its client waits for an answer."""
        timer = None
        if frame.timeout is not None:
            loop = self._runtime.loop
            timer = loop.call_later(frame.timeout, self.stop_call, frame.id, "timeout")
        self.talk.queued[frame.id] = timer

    # ── what does not wait for its turn ───────────────────────────────────────────────────────

    def _pong(self, _frame: frames.Ping, _data: bytes | None) -> None:
        self.speaker.tell(frames.Pong())

    def _answered(self, frame: frames.Reply, data: bytes | None) -> None:
        if not (self.talk.calls and frame.id in self.talk.calls):
            return
        try:
            answer = value_of(frame.data, data)
        except InvalidMessage as error:
            self._complain_of(error, frame.id)
            self._fail_call(frame.id, error)
        else:
            if (waiting := self._waiting_for(frame.id)) is not None:
                waiting.set_result(answer)

    def _fail_call(self, id_: int, error: InvalidMessage) -> None:
        """End the wait for an answer that came, but can't be read."""
        if (waiting := self._waiting_for(id_)) is not None:
            text = f"its answer can't be read: {error.field}: {error.text}"
            waiting.set_exception(CallFailed("invalid", text))

    def _refused(self, frame: frames.Error, _data: bytes | None) -> None:
        if frame.id is msgspec.UNSET:
            LISTENER.debug("%s says: %s %s", self.ws, frame.code, excerpt(frame.text))
        elif (waiting := self._waiting_for(frame.id)) is not None:
            waiting.set_exception(CallFailed(frame.code, frame.text))

    def _waiting_for(self, id_: int) -> asyncio.Future[Any] | None:
        """Return what waits for an answer; None for calls that nobody made."""
        waiting = (self.talk.calls or {}).pop(id_, None)
        return None if waiting is None or waiting.done() else waiting

    def _cancelled(self, frame: frames.Cancel, _data: bytes | None) -> None:
        self.stop_call(frame.id, "cancelled")

    # ── what it is told, and the end ──────────────────────────────────────────────────────────

    def tell_lost(self, channel: str | None, position: Position | None = None) -> None:
        """Tell the client and the listener that some of a channel were lost."""
        ws = self.speaker
        if ws.reason is None:
            ws._lost(channel, position)
            rule = None if channel is None else self._hub.rules.find(channel)
            if channel is not None and rule is not None and rule.snapshot is not None:
                again = functools.partial(self._hub.membership.enter_again, self, channel)
                self._queue_work(Rest(again, nothing))
        super().tell_lost(channel, position)

    def _queue_work(self, work: Rest) -> None:
        if self._is_busy:
            self.inbox.put(work)
        else:
            self._work_on(work)

    def end(self, reason: CloseReason, *, refused: bool = False) -> bool:
        """End the connection; its session may live on."""
        ws = self.speaker
        if ws.reason is not None:
            return False
        talk = ws.talk
        talk.stop_timer()
        for timer in talk.queued.values():
            if timer is not None:
                timer.cancel()
        if reason.by == "server" and reason.code in {1001, 1012} and ws._held is None:
            ws.tell(frames.GoingAway(round(random.uniform(0, self._spread()), 3)))  # noqa: S311
        self._stay_on()
        ended = super().end(reason, refused=refused)
        self._hub.resumes.ended(ws, lives_on=_lives_on(reason))
        for waiting in list((talk.calls or {}).values()):
            if not waiting.done():
                text = f"the connection has ended with {reason.code}"
                waiting.set_exception(CallFailed("closed", text))
        return ended

    async def _wait_or_cancel(self, grace: float, *, own_wish: bool) -> None:
        """Let what is to be acknowledged come to its end; else half of it would be done twice."""
        await super()._wait_or_cancel(grace, own_wish=own_wish or self.talk.acknowledges)

    def _spread(self) -> float:
        """Return the seconds over which those come back who are told to go at the same time."""
        return min(10.0, 0.25 + len(self._hub.roster.everyone) / 1000)


def _lives_on(reason: CloseReason) -> bool | None:
    """Tell whether the session can be resumed; None: it is another connection's already."""
    if reason.code == REPLACED.code:
        return None
    ending = ENDINGS.get(reason.code)
    return reason.code in {1005, 1006} or (ending is not None and ending.come_back is True)


_AtOnce = Callable[[SpeakingDispatch, Any, "bytes | None"], None]
_AT_ONCE: Final[dict[type, _AtOnce]] = {
    frames.Ping: SpeakingDispatch._pong,
    frames.Reply: SpeakingDispatch._answered,
    frames.Error: SpeakingDispatch._refused,
    frames.Cancel: SpeakingDispatch._cancelled,
}


_made: Final[dict[type[Dispatch], type[Dispatch]]] = {Dispatch: SpeakingDispatch}


def speaking(kind: type[Dispatch]) -> type[Dispatch]:
    """Return the class that does for v1 connections what another one does for raw ones.

    Args:
        kind: what keeps the connection's limits, before the frames are read.
    """
    if (found := _made.get(kind)) is None:
        bases: Any = (kind, SpeakingDispatch)
        found = _made[kind] = type(f"Speaking{kind.__name__}", bases, {"__slots__": ()})
    return found
