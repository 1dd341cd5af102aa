"""A connection that speaks v1: ``ws`` in callbacks, as always."""

from __future__ import annotations

import asyncio
import functools
import secrets
from typing import TYPE_CHECKING, Any, ClassVar, cast

import msgspec

from backchannel.catchup import Missed
from backchannel.connection import Connection, State
from backchannel.dialect import frames
from backchannel.dialect.envelope import in_message, in_snapshot
from backchannel.dialect.talk import Talk
from backchannel.errors import CallFailed
from backchannel.messages import encode, form_of
from backchannel.observe import CONNECTION, TRACE, excerpt
from backchannel.resume import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backchannel.change import Change
    from backchannel.contracts import Publication
    from backchannel.history import Position
    from backchannel.messages import Frame
    from backchannel.speech.handling import Handling

__all__ = ["SpeakingConnection"]


class DurableState(State):
    """State of which some comes back when the session is resumed: what is set is told."""

    __slots__ = ("_changed", "_durable")

    def __init__(self, durable: tuple[str, ...], changed: Callable[[], None]):
        object.__setattr__(self, "_durable", durable)
        object.__setattr__(self, "_changed", changed)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if key in self._durable:
            self._changed()

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        if key in self._durable:
            self._changed()


class SpeakingConnection(Connection):
    """A live connection whose client speaks v1.

    Attributes:
        talk: what is remembered of the conversation.
    """

    _speaks: ClassVar[bool] = True

    __slots__ = ("talk",)

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        # It may go on at another node, so that its id names none.
        self.id = secrets.token_urlsafe(12)
        self.talk = Talk()

    # ── what is different for the application ─────────────────────────────────────────────────

    @property
    def state(self) -> State:
        """The application's own data about this client."""
        if self._state is None:
            durable = self._endpoint.callbacks.durable
            changed = functools.partial(self.hub.resumes.changed, self)
            self._state = DurableState(durable, changed) if durable else State()
        return self._state

    @property
    def resumed(self) -> bool:
        """It goes on with a session whose earlier connection was lost."""
        return self.talk.resumed

    def subscribe(self, channel: str, *, since: Position | str | None = None) -> Change:
        """Enter a channel; see ``Connection.subscribe``."""
        change = super().subscribe(channel, since=since)
        if not self.talk.is_in:  # so it is on_open that asks, and will again after a resume
            self.talk.opened[self.hub.check_channel(channel)] = True
        return change

    async def call(self, event: str, data: Any = None, *, timeout: float = 5.0) -> Any:  # noqa: ASYNC109 - it is the API
        """Ask the client something; see ``Connection.call``."""
        if self.hub.runtime.is_elsewhere():
            raise RuntimeError("ws.call must be awaited in the hub's event loop")
        if self._held is not None:
            raise RuntimeError(
                "ws.call before the client is in would wait for its own end: ask later, or in "
                "ws.spawn(…)"
            )
        self._check_open()
        talk = self.talk
        talk.number += 1
        number, answer = talk.number, self.hub.runtime.loop.create_future()
        if talk.calls is None:
            talk.calls = {}
        talk.calls[number] = answer
        self._dispatch.look_for_room()  # its answer has to be read
        content = encode(data)
        frame = frames.Call(number, event, timeout=timeout)
        if isinstance(content, bytes):
            self._push(frames.write(frame, content))
        else:
            frame.data = msgspec.Raw(content if form_of(data) == "json" else _json(content))
            self._push(frames.write(frame))
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            if not answer.cancelled():
                raise  # the application's own
            raise TimeoutError(f"{self} did not answer {event!r} in {timeout:g} s") from None
        finally:
            if talk.calls.pop(number, None) is not None and self.reason is None:
                self._push(frames.write(frames.Cancel(number)))

    def _check_open(self) -> None:
        if self.reason is not None:
            raise CallFailed("closed", f"the connection has ended with {self.reason.code}")

    # ── what it is sent ───────────────────────────────────────────────────────────────────────

    def _send(self, message: Any) -> bool:
        frame = encode(message)
        if TRACE.is_on:
            CONNECTION.debug("%s send %s", self, excerpt(frame))
        return self._push(in_message(frame, is_json=form_of(message) == "json"))

    def _take(
        self,
        publication: Publication,
        position: Position | None = None,
        channel: str | None = None,
    ) -> bool:
        return self._push(self.hub.fanout.enclose(publication, position), channel)

    def tell(self, frame: Any) -> None:
        """Send a frame."""
        self._push(frames.write(frame))

    # ── what becomes of its channels ──────────────────────────────────────────────────────────

    def _missed(self, channel: str) -> Missed | None:
        """Return what it gets first when it enters a channel; None where nothing is kept of it."""
        rule = self.hub.rules.find(channel)
        if rule is None or rule.keep is None:
            return None
        since = self.talk.positions.pop(channel, None)
        snapshot = None
        if rule.snapshot is not None:
            dispatch = cast("Handling", self._dispatch)
            snapshot = functools.partial(dispatch.snapshot, rule.snapshot, channel)
        return Missed(since, rule.replay, snapshot)

    def _entered(self, channel: str, position: Position | None) -> None:
        """Tell the client that it is in a channel, and has had all up to a position."""
        if channel in self.talk.returning:
            self.talk.returning.discard(channel)
            if position is None:  # nobody knows what it missed where nothing is kept
                self._lost(channel, None)
        frame = frames.Subscribed(channel)
        if (asked := self.talk.asked.pop(channel, None)) is not None:
            frame.id = asked
        if position is not None:
            frame.position = str(position)
        self.tell(frame)
        self.hub.resumes.changed(self)

    def _left(self, channel: str) -> None:
        """Tell the client that it is out of a channel."""
        frame = frames.Unsubscribed(channel)
        if (asked := self.talk.asked.pop(channel, None)) is not None:
            frame.id = asked
        self.tell(frame)
        self.talk.opened.pop(channel, None)
        self.hub.resumes.changed(self)

    def _lost(self, channel: str | None, position: Position | None) -> None:
        """Tell the client that some of a channel are missing from here."""
        frame = frames.Lost() if channel is None else frames.Lost(channel)
        if position is not None:
            frame.position = str(position)
        self.tell(frame)

    def _begin_with(self, channel: str, frame: Frame, position: Position, *, is_json: bool) -> None:
        self._push(in_snapshot(channel, frame, position, is_json=is_json))

    def record(self) -> Record:
        """Return what is kept of its session."""
        state: Mapping[str, Any] = self._state or {}
        durable = self._endpoint.callbacks.durable
        channels = sorted({*self._channels, *self.talk.returning})
        return Record(
            self.id,
            channels,
            {key: state[key] for key in durable if key in state},
            self.talk.last,
            sorted(self.talk.pending),
            list(self.talk.keys),
            self.talk.refused,
            self.talk.turn,
            [name for name in channels if name in self.talk.opened],
            self.talk.began,
            self.talk.unsure,
        )


def _json(text: Frame) -> bytes:
    return msgspec.json.encode(text)
