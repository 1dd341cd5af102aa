"""What a client of v1 asks for, done in its turn: messages, calls, channels, presence, tokens."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from contextvars import Context
from time import time
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from backchannel.channel import check_channel
from backchannel.contracts import Publication, Receipt, Target
from backchannel.dialect import frames
from backchannel.dialect.content import content_of, tagged
from backchannel.dispatch import Dispatch
from backchannel.errors import (
    BrokerUnavailable,
    InvalidMessage,
    Reject,
    TryLater,
    UnsendableMessage,
)
from backchannel.history import Position
from backchannel.identity import expiry_of
from backchannel.listener import Listener
from backchannel.messages import check_size, encode, form_of, wants_text
from backchannel.observe import CONNECTION, excerpt
from backchannel.sent import Outcome

if TYPE_CHECKING:
    from backchannel.callbacks import Callback
    from backchannel.inbox import Rest
    from backchannel.messages import Frame
    from backchannel.speech.connection import SpeakingConnection

__all__ = ["Handling", "is_for_now"]


class Handling(Dispatch):
    """Does what a client asks for; each runs in the connection's turn."""

    __slots__ = ()

    @property
    def speaker(self) -> SpeakingConnection:
        """The connection."""
        return cast("SpeakingConnection", self.ws)

    def complain(
        self, code: str, text: str, *, id_: Any = msgspec.UNSET, field: str | None = None
    ) -> None:
        """Tell the client what is wrong; the connection is kept."""
        error = frames.Error(code, text, id_)
        if field is not None:
            error.field = field
        self.speaker.tell(error)

    async def handle(self, frame: Any, data: bytes | None) -> None:
        """Do what a frame asks for."""
        await _HANDLERS[type(frame)](self, frame, data)

    # ── messages and calls ────────────────────────────────────────────────────────────────────

    def _send_answer(self, text: str) -> None:
        self.ws._send(text)  # in a frame of the dialect

    def _invalid(self, error: InvalidMessage) -> Rest | None:
        """Answer an invalid message with an error, unless the listener has its own way."""
        callback = self.endpoint.callbacks.on_invalid
        if callback is not None and not _is_default(callback):
            return super()._invalid(error)
        CONNECTION.debug("%s invalid message: %s", self.ws, excerpt(error.text))
        self._complain_of(error, msgspec.UNSET)
        return None

    def _complain_of(self, error: InvalidMessage, id_: Any) -> None:
        field = None if error.field is None else "$.data" + error.field.removeprefix("$")
        code = "unknown_type" if error.code == "unknown_type" else "invalid"
        self.complain(code, error.text, id_=id_, field=field)

    async def _message(self, frame: frames.Message, data: bytes | None) -> None:
        """Do a message whose end the client wants to know of."""
        id_ = cast("int", frame.id)
        callbacks = self.endpoint.callbacks
        try:
            content: Any = content_of(frame.data, data)
            callback = self.endpoint.route(content) if callbacks.events else callbacks.on_message
            if callback is not None and callback.decode is not None:
                content = callback.decode(content)
        except InvalidMessage as error:
            self._done(id_, "unknown_type" if error.code == "unknown_type" else "invalid")
            custom = callbacks.on_invalid
            if custom is not None and not _is_default(custom):
                await self.call_safely(custom, self.ws, error)
            self._complain_of(error, id_)
            return
        answer: Any = None
        if callback is not None:
            talk = self.speaker.talk
            talk.acknowledges = True
            try:
                answer = await self.call(callback, self.ws, content)
                if answer is not None and not isinstance(answer, self._no_reply):
                    self.ws._send(answer)
            except Exception as error:  # noqa: BLE001 - a listener may raise anything
                await self._fail(callback, error, id_)
                return
            finally:
                talk.acknowledges = False
        self._done(id_)
        self.speaker.tell(frames.Ack(id_))

    def _done(self, id_: int, code: str = "") -> None:
        self.speaker.talk.done(id_, code)
        self._hub.resumes.changed(self.speaker)

    async def _fail(self, callback: Callback, error: Exception, id_: int) -> None:
        """Tell that the listener raised: the client without the server's details."""
        self._done(id_, "refused" if isinstance(error, Reject) else "failed")
        if isinstance(error, Reject):
            self.complain("refused", error.text or "refused", id_=id_)
            return
        await self.failed(callback, error)
        text = repr(error) if self._hub.settings.debug else "the listener failed"
        self.complain("failed", text, id_=id_)

    async def _call(self, frame: frames.Call, data: bytes | None) -> None:
        """Answer a call by the @event method of that name."""
        talk = self.speaker.talk
        if frame.id not in talk.queued:
            return  # it was stopped while it waited
        timer = talk.queued.pop(frame.id)
        try:
            await self._answer_call(frame, data)
        finally:
            if timer is not None:
                timer.cancel()

    async def _answer_call(self, frame: frames.Call, data: bytes | None) -> None:
        callback = self.endpoint.callbacks.events.get(frame.event)
        if callback is None:
            known = ", ".join(sorted(self.endpoint.callbacks.events)) or "none"
            text = f"unknown event {frame.event[:40]!r}; known are {known}"
            self.complain("unknown_type", text, id_=frame.id, field="$.event")
            return
        try:
            content = self._content_of_call(callback, frame, data)
        except InvalidMessage as error:
            self._complain_of(error, frame.id)
            return
        talk = self.speaker.talk
        talk.running, talk.stopped = frame.id, ""
        try:
            answer = await self.call(callback, self.ws, content)
            self._reply(frame.id, None if isinstance(answer, self._no_reply) else answer)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not talk.stopped or task is None:
                raise
            task.uncancel()
            self.complain(talk.stopped, "", id_=frame.id)
        except Exception as error:  # noqa: BLE001 - a listener may raise anything
            await self._fail(callback, error, frame.id)
        finally:
            talk.running = 0

    def _content_of_call(self, callback: Callback, frame: frames.Call, data: bytes | None) -> Any:
        """Return what a call's data is for its method.

        Raises:
            InvalidMessage: not what the method's annotation admits.
        """
        content: Any = content_of(frame.data, data)
        raw = b"" if frame.data is msgspec.UNSET else bytes(frame.data)
        is_text = raw[:1] == b'"'
        if wants_text(callback.decode) and not is_text and data is None:
            raise InvalidMessage("expected text", field="$")
        if not is_text:
            content = tagged(content, self.endpoint.tag, frame.event)
        elif callback.decode is not None and not wants_text(callback.decode):
            content = raw.decode()  # text that looks like JSON is still text
        return content if callback.decode is None else callback.decode(content)

    def _reply(self, id_: int, answer: Any) -> None:
        content = encode(answer)
        reply = frames.Reply(id_)
        if isinstance(content, bytes):
            self.ws._push(frames.write(reply, content))
            return
        text = content if form_of(answer) == "json" else msgspec.json.encode(content)
        reply.data = msgspec.Raw(text)
        self.speaker.tell(reply)

    def stop_call(self, id_: int, why: str) -> None:
        """Cancel the client's call, where it waits or its callback runs."""
        talk = self.speaker.talk
        if id_ in talk.queued:
            if (timer := talk.queued.pop(id_)) is not None:
                timer.cancel()
            self.complain(why, "", id_=id_)
        elif talk.running == id_ and not talk.stopped and self.task is not None:
            talk.stopped = why
            self.task.cancel()

    # ── channels ──────────────────────────────────────────────────────────────────────────────

    async def _subscribe(self, frame: frames.Subscribe, _data: bytes | None) -> None:
        """Let the client into a channel, where a rule or the listener says so."""
        ws, talk = self.speaker, self.speaker.talk
        if (name := self._checked(frame.channel, frame.id)) is None:
            return
        if name in ws._channels:
            ws.tell(frames.Subscribed(name, id=frame.id))
            return
        most = self._hub.settings.max_subscriptions
        if len(ws._channels) >= most:
            text = f"a client may be in {most} channels"
            self.complain("too_many_channels", text, id_=frame.id, field="$.channel")
            return
        if frame.since is not None:
            try:
                talk.positions[name] = Position.parse(frame.since)
            except ValueError as error:
                self.complain("invalid", str(error), id_=frame.id, field="$.since")
                return
        hub = self._hub
        if hub.rules.asking(name) is None and hub.endpoints.is_behind_another(self.endpoint, name):
            text = f"{name!r} has another door"
            self.complain("refused", text, id_=frame.id, field="$.channel")
            return
        talk.asked[name] = frame.id
        try:
            refused = await self._hub.membership.enter(self, name, asked=True)
        finally:
            talk.positions.pop(name, None)
            was_told = talk.asked.pop(name, None) is None
        if was_told or ws.reason is not None:
            return
        if name in ws._channels:  # a callback about this very channel had let it in
            ws.tell(frames.Subscribed(name, id=frame.id))
        else:
            text = (refused.text if refused is not None else "") or "refused"
            code = "unavailable" if is_for_now(refused) else "refused"
            self.complain(code, text, id_=frame.id, field="$.channel")

    def _checked(self, channel: str, id_: Any) -> str | None:
        """Return a channel's name as the hub keeps it; None where it is none, which was told."""
        try:
            return check_channel(channel, casefold=self._hub.settings.casefold_channels)
        except ValueError as error:
            self.complain("invalid", str(error), id_=id_, field="$.channel")
            return None

    async def _unsubscribe(self, frame: frames.Unsubscribe, _data: bytes | None) -> None:
        ws = self.speaker
        if (name := self._checked(frame.channel, frame.id)) is None:
            return
        ws.talk.asked[name] = frame.id
        await self._hub.membership.leave(self, name)
        if ws.talk.asked.pop(name, None) is not None:  # it was not in
            ws.tell(frames.Unsubscribed(name, id=frame.id))

    async def _publish(self, frame: frames.Publish, data: bytes | None) -> None:
        """Publish to a channel, where a rule says that this client may."""
        ws, id_ = self.speaker, frame.id
        if (name := self._checked(frame.channel, id_)) is None:
            self._settle(id_, "invalid")
            return
        rule = self._hub.rules.find(name)
        asking = None if rule is None else rule.publish
        refused = Reject("no rule lets clients publish here")
        if asking is not None:
            ask = self._hub.membership.ask
            refused = await ask(self, asking, name, what="publishing to")  # type: ignore[assignment]
        if refused is not None:
            self._settle(id_, "refused")
            self.complain("refused", refused.text or "refused", id_=id_, field="$.channel")
            return
        message = content_of(frame.data, data)
        is_text = frame.data is not msgspec.UNSET and bytes(frame.data)[:1] == b'"'
        form = "plain" if isinstance(message, bytes) or is_text else "json"
        try:
            if self._hub.cluster.is_shared:
                check_size(message, self._hub.settings.max_publication)
        except UnsendableMessage as error:
            self._settle(id_, "too_large")
            self.complain("too_large", str(error), id_=id_, field="$.data")
            return
        key = "" if id_ is msgspec.UNSET else f"{ws.id}:{id_}"
        age = max(0.001, time() - ws.talk.began) if frame.again and ws.talk.began else 0.0
        publication = Publication(
            Target("channel", name), message,
            form=form, key=key, again=frame.again, age=age, turn=ws.talk.turn,
        )  # fmt: skip
        self._tell_outcome(id_, self._hub._publish(publication))

    def _settle(self, id_: Any, code: str) -> None:
        if id_ is not msgspec.UNSET:
            self._done(id_, code)

    def _tell_outcome(self, id_: Any, outcome: Receipt | Outcome) -> None:
        """Acknowledge a publication once the broker has it; what comes next does not wait."""
        if id_ is msgspec.UNSET:
            return
        if isinstance(outcome, Receipt):
            self._published(id_, outcome)
            return
        self._runtime.keep(self._acknowledge_later(id_, outcome), Context())

    async def _acknowledge_later(self, id_: int, outcome: Outcome) -> None:
        try:
            receipt = await outcome
        except BrokerUnavailable as error:
            self._done(id_, "unsure" if error.unsure else "unavailable")
            if error.unsure:
                self.complain("unsure", "it may have been published, or not", id_=id_)
            else:
                self.complain("unavailable", "it was not published: try again later", id_=id_)
        else:
            self._published(id_, receipt)

    def _published(self, id_: int, receipt: Receipt) -> None:
        self._done(id_)
        ack = frames.Ack(id_)
        if receipt.position is not None:
            ack.position = str(receipt.position)
        self.speaker.tell(ack)

    async def snapshot(self, callback: Callback, channel: str) -> tuple[Frame, bool, Position]:
        """Return the state of a channel, whether that is JSON, and the position it belongs to.

        Raises:
            Exception: what the application raised, or what it returned is none.
        """
        found = await self.call(callback, self.ws, channel)
        try:
            state, position = found
            at = Position.of(position)
        except (TypeError, ValueError) as error:
            what = f"{callback.name} ({callback.where}) returns (state, position)"
            raise TypeError(f"{what}, not {found!r:.80}: {error}") from error
        return encode(state), form_of(state) == "json", at

    # ── presence and tokens ───────────────────────────────────────────────────────────────────

    async def _who(self, frame: frames.Who, _data: bytes | None) -> None:
        if (name := self._checked(frame.channel, frame.id)) is None:
            return
        if name not in self.ws._channels:
            self.complain("refused", "only its members may ask who is in it", id_=frame.id)
            return
        if not self._hub.rules.has_presence(name):
            self.complain("refused", "no rule keeps who is in it", id_=frame.id)
            return
        try:
            users = await self._hub.attendance.told(name)  # as join and leave have it
        except BrokerUnavailable:
            self.complain("unavailable", "try again later", id_=frame.id)
            return
        members = [
            frames.Member(
                str(user), [frames.Device(one.id, dict(one.meta)) for one in user.devices or ()]
            )
            for user in users
        ]
        self.speaker.tell(frames.Presence(frame.id, name, members))

    async def _renew(self, frame: frames.Renew, _data: bytes | None) -> None:
        """Take a newer token of the same user."""
        ws = self.ws
        callback = self.endpoint.callbacks.on_renew
        asked = self.endpoint.authenticate or self._hub.settings.authenticate
        verify: Callable[[str], Any] | None = getattr(asked, "verify", None)
        try:
            if callback is not None:
                identity = await self.call(callback, ws, frame.token)
            elif verify is not None:
                identity = verify(frame.token)
            else:
                text = "this endpoint has no on_renew, and its authenticate no verify(token)"
                self.complain("refused", text, id_=frame.id)
                return
            ws.renew(identity)
        except Reject as refused:
            self.complain("refused", refused.text or "refused", id_=frame.id, field="$.token")
            return
        except (TypeError, ValueError) as error:
            CONNECTION.debug("%s could not be renewed: %s", ws, error)
            text = "not a valid newer token of this user"
            self.complain("refused", text, id_=frame.id, field="$.token")
            return
        except Exception as error:
            if callback is None:
                raise
            await self._fail(callback, error, frame.id)
            return
        until = expiry_of(identity)
        expires_in = None if until is None else max(0.0, until - time())
        self.speaker.tell(frames.Renewed(frame.id, expires_in))


def is_for_now(refused: Reject | None) -> bool:
    """Tell whether asking again may help: nothing is wrong with the application."""
    cause = None if refused is None else refused.__cause__
    return isinstance(refused, TryLater) and (cause is None or isinstance(cause, BrokerUnavailable))


def _is_default(callback: Callback) -> bool:
    function = inspect.unwrap(callback.function)
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__func__", function) is Listener.on_invalid


_HANDLERS: Final[dict[type, Callable[[Handling, Any, bytes | None], Any]]] = {
    frames.Message: Handling._message,
    frames.Publish: Handling._publish,
    frames.Call: Handling._call,
    frames.Subscribe: Handling._subscribe,
    frames.Unsubscribe: Handling._unsubscribe,
    frames.Who: Handling._who,
    frames.Renew: Handling._renew,
}
