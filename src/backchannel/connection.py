"""One client, one socket: who it is, what it is in, and what can be sent to it."""

from __future__ import annotations

import secrets
from collections.abc import Coroutine, Iterator, Mapping, MutableMapping
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime
from time import time
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from backchannel.codes import check_close
from backchannel.contracts import Receipt
from backchannel.identity import expiry_of, id_of
from backchannel.messages import Frame, encode
from backchannel.observe import CONNECTION, TRACE, excerpt
from backchannel.request import Facts
from backchannel.sent import MISSED, REACHED, Sent

if TYPE_CHECKING:
    import asyncio

    from backchannel.addressing import Addressees
    from backchannel.app import Hub
    from backchannel.catchup import Missed
    from backchannel.change import Change
    from backchannel.contracts import Link, Publication
    from backchannel.dispatch import Dispatch
    from backchannel.endpoint import Endpoint
    from backchannel.history import Position
    from backchannel.request import MultiMapping, Request
    from backchannel.roster import Solo
    from backchannel.session.web import Session

__all__ = ["ABSENT", "CloseReason", "Connection", "State"]


class _Absent:
    """Stands for an argument that was not given, where None means something."""

    def __repr__(self) -> str:
        return "<absent>"


ABSENT: Any = _Absent()


@dataclass(frozen=True, slots=True)
class CloseReason:
    """How a connection ended.

    Args:
        code: the close code (see ``backchannel.codes``).
        text: the reason that came with it, maybe empty.
        by: who ended it.
    """

    code: int
    text: str
    by: Literal["client", "server", "network"]


class State(MutableMapping[str, Any]):
    """A connection's own data, as items and as attributes: ``state["x"]`` is ``state.x``."""

    def __getitem__(self, key: str) -> Any:
        return self.__dict__[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.__dict__[key] = value

    def __delitem__(self, key: str) -> None:
        del self.__dict__[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __len__(self) -> int:
        return len(self.__dict__)

    def __getattr__(self, name: str) -> Any:
        """Explain what is missing; only called when there is no such attribute."""
        known = ", ".join(self.__dict__) or "nothing"
        raise AttributeError(f"ws.state has no {name!r}; it has {known}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"State({self.__dict__!r})"


class Connection:
    """A live connection: ``ws`` in callbacks.

    Attributes:
        id: random and unique; a public fact, never a credential.
        hub: the hub it belongs to.
        channel: the channel its URL subscribed it to, or None.
        latency: seconds a ping took to be answered, or None where the server does not tell.
        subprotocol: the negotiated WebSocket subprotocol, or None.
        reason: how it ended; None while it is open.
    """

    _speaks: ClassVar[bool] = False

    __slots__ = (
        "_alone", "_channels", "_context", "_dispatch", "_endpoint", "_facts", "_held", "_link",
        "_meta", "_opened_at", "_state", "_tasks", "channel", "hub", "id", "latency", "reason",
        "subprotocol",
    )  # fmt: skip

    def __init__(
        self,
        hub: Hub,
        endpoint: Endpoint,
        request: Request,
        link: Link,
        *,
        context: Context,
        channel: str | None,
        subprotocol: str | None,
    ):
        token = secrets.token_urlsafe(12)
        # Elsewhere it tells which node to ask.
        self.id = f"{hub.node}.{token}" if hub.cluster.is_shared else token
        self.hub = hub
        self.channel = channel
        self.subprotocol = subprotocol
        self._state: State | None = None
        self._meta: dict[str, Any] | None = None
        self._opened_at = time()
        self.latency: float | None = None
        self.reason: CloseReason | None = None
        self._endpoint = endpoint
        self._facts = Facts(request)
        self._link = link
        self._context = context
        self._dispatch: Dispatch  # set by the dispatch itself
        self._channels: tuple[str, ...] | set[str] = ()  # a set once they are many
        self._alone: Solo | None = None  # the audience of it alone, which the roster makes
        self._tasks: set[asyncio.Task[Any]] | None = None
        # What on_open sends waits here until the automatic subscription is in force.
        self._held: list[Frame] | None = []

    # ── what the application keeps about it ───────────────────────────────────────────────────

    @property
    def state(self) -> State:
        """The application's own data about this client."""
        if self._state is None:
            self._state = State()
        return self._state

    @property
    def meta(self) -> dict[str, Any]:
        """Public data about this client (name, device …), shown in ``Info``; JSON values."""
        if self._meta is None:
            self._meta = {}
        return self._meta

    @meta.setter
    def meta(self, value: dict[str, Any]) -> None:
        self._meta = value

    # ── who it is ─────────────────────────────────────────────────────────────────────────────

    @property
    def user(self) -> str | None:
        """User id, or None for an anonymous client."""
        return self._facts.user

    @property
    def identity(self) -> Any:
        """The object that ``authenticate`` returned, or the one that it was renewed with."""
        return self._facts.identity

    @property
    def session(self) -> Session:
        """The web framework's session that the handshake came with."""
        return self._facts.session

    @property
    def params(self) -> Mapping[str, Any]:
        """The URL template's variables, converted."""
        return self._facts.params

    @property
    def query(self) -> MultiMapping:
        """The URL's query fields; ``.getlist(key)`` has all values of a key."""
        return self._facts.query

    @property
    def headers(self) -> MultiMapping:
        """The handshake's headers; case of names ignored."""
        return self._facts.headers

    @property
    def cookies(self) -> MultiMapping:
        """The handshake's cookies."""
        return self._facts.cookies

    @property
    def client(self) -> tuple[str, int] | None:
        """(address, port) of the client, or None when the server does not tell."""
        return self._facts.client

    @property
    def app(self) -> Any:
        """The web framework's application object, or None."""
        return self._facts.app

    @property
    def opened_at(self) -> datetime:
        """Aware datetime of the handshake."""
        return datetime.fromtimestamp(self._opened_at, UTC)

    @property
    def endpoint(self) -> str:
        """The URL template of its endpoint."""
        return self._endpoint.template.text

    @property
    def channels(self) -> frozenset[str]:
        """Names of the channels it is in; once it ended, of those it was in."""
        return frozenset(self._channels)

    @property
    def resumed(self) -> bool:
        """It goes on with a session whose earlier connection was lost; raw clients have none."""
        return False

    @property
    def is_open(self) -> bool:
        """It has not ended."""
        return self.reason is None

    # ── what can be done with it ──────────────────────────────────────────────────────────────

    def send(self, message: Any) -> Sent:
        """Send to this client alone. Never waits for it and never raises because of it.

        Args:
            message: str, bytes, or anything that can be JSON.

        Returns:
            ``.reached`` is 1, or 0 when the connection has ended.

        Raises:
            UnsendableMessage: the message has no valid JSON form; nothing was sent.
        """
        if self.hub.runtime.is_elsewhere():
            frame = encode(message)
            return self.hub.runtime.do(lambda: Receipt(int(self._push(frame))))
        return REACHED if self._send(message) else MISSED

    def broadcast(
        self,
        message: Any,
        *,
        channel: str | None = None,
        to: Addressees = ABSENT,
        exclude: Addressees = ABSENT,
    ) -> Sent:
        """Send to everyone in the endpoint's own channel, this client included.

        Args:
            message: str, bytes, or anything that can be JSON.
            channel: name of another channel.
            to: only those of the channel that are named here (see ``Hub.broadcast``).
            exclude: not those of the channel that are named here; ``exclude=ws`` is the others.

        Raises:
            LookupError: the URL subscribed this connection to no channel, and none was named.
            UnsendableMessage, TypeError, ValueError: as ``Hub.broadcast``.
        """
        name = self.channel if channel is None else channel
        if name is None:
            raise LookupError(
                f"{self.endpoint} has no {{channel}} of its own: say "
                'ws.broadcast(message, channel="…") or hub.everyone.send(message)'
            )
        return self.hub.broadcast(name, message, to=to, exclude=exclude)

    def close(self, code: int = 1000, reason: str = "") -> Sent:
        """End the connection, after what was sent before. Ending it again does nothing.

        Args:
            code: 1000–1003, 1007–1014 or 3000–4999; 4100–4999 are the application's own.
            reason: at most 123 bytes of UTF-8.

        Raises:
            ValueError: a code that can't be sent, or a reason that is too long.
        """
        check_close(code, reason)
        ending = CloseReason(code, reason, "server")
        return self.hub.runtime.do(lambda: Receipt(int(self._dispatch.end(ending))))

    def renew(self, identity: Any) -> Sent:
        """Take a newer identity of the same user; with it comes a new time to end.

        Args:
            identity: what ``authenticate`` would return now, such as ``jwt.verify(token)``. The
                connection ends when its ``expires_at`` comes, and never where it has none.

        Returns:
            ``.reached`` is 1, or 0 when the connection has ended.

        Raises:
            ValueError: it is another user's, or has expired.
            TypeError: it names nobody, or its ``expires_at`` is no time.
        """
        if id_of(identity, "ws.renew got") != self.user:  # neither is shown: it may be a token
            raise ValueError(
                "ws.renew: this identity is another user's than the connection's; for another user "
                "the client has to connect anew"
            )
        until = expiry_of(identity)
        if until is not None and until <= time():
            raise ValueError("ws.renew: this identity has expired already")
        return self.hub.runtime.do(lambda: Receipt(int(self._dispatch.renew(identity, until))))

    def subscribe(self, channel: str, *, since: Position | str | None = None) -> Change:
        """Enter a channel.

        Args:
            channel: its name.
            since: the last position of the channel's history that the client has had: then it is
                sent what came after it, as far as it was for this client, each publication once
                and in order, and after that what comes. Left out, it gets what a rule replays.

        Returns:
            Await it to know: True when it is in now, False when it was refused or has ended. With
            ``since``, ``.lost`` then tells whether some of what it missed are not there any more,
            and ``.position`` where it stands.

        Raises:
            TypeError, ValueError: no valid channel name, or no position.
        """
        if since is None:
            return self._dispatch.change(channel, True)
        return self.hub.change_since(self, channel, since)

    def unsubscribe(self, channel: str) -> Change:
        """Leave a channel.

        Returns:
            Await it to know: True when it was in.

        Raises:
            TypeError, ValueError: no valid channel name.
        """
        return self._dispatch.change(channel, False)

    async def call(
        self,
        event: str,
        data: Any = None,  # noqa: ARG002 - of those that can be asked
        *,
        timeout: float = 5.0,  # noqa: ARG002, ASYNC109
    ) -> Any:
        """Ask the client something, and wait for its answer.

        The client has to speak the dialect v1, as Backchannel's own clients do.

        Args:
            event: what is asked; the client has something that answers it.
            data: what goes with it: str, bytes, or anything that can be JSON.
            timeout: seconds to wait.

        Returns:
            The answer: bytes, or what its JSON is in Python.

        Raises:
            TimeoutError: no answer in time; the client is told that nobody waits any more.
            CallFailed: the client refused, has nothing for that event, answered what can't be
                read, or the connection has ended.
            RuntimeError: this client speaks no dialect; or called in ``on_open``, or outside the
                hub's event loop.
            UnsendableMessage: the data has no valid JSON form.
        """
        raise RuntimeError(
            f"ws.call({event!r}) needs a client that speaks v1, by one of Backchannel's clients; "
            f"{self} is a raw WebSocket, which can only be sent messages"
        )

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine beside the messages; it is cancelled when the connection ends.

        What it raises is logged.

        Raises:
            RuntimeError: called outside the hub's event loop.
        """
        if self._tasks is None:
            self._tasks = set()
        task = self.hub.runtime.spawn(work, f"task of {self}", self._context, self._tasks)
        if self.reason is not None:
            task.cancel()
        return task

    def _send(self, message: Any) -> bool:
        """Send in the hub's event loop."""
        frame = message if type(message) is str and message.isascii() else encode(message)
        if TRACE.is_on:
            CONNECTION.debug("%s send %s", self, excerpt(frame))
        if self.reason is None and self._held is None:
            return self._link.push(frame)
        return self._push(frame)

    def _take(
        self,
        publication: Publication,
        position: Position | None = None,  # noqa: ARG002 - for those who speak a dialect
        channel: str | None = None,
    ) -> bool:
        """Queue a publication; in the hub's event loop only.

        Args:
            publication: it.
            position: where it stands in its channel's history.
            channel: what it was sent to as a whole.
        """
        return self._push(publication.frame, channel)

    # What only those are told who speak a dialect; ``_speaks`` is asked before.

    def _missed(self, channel: str) -> Missed | None:
        """Return what it gets first when it enters a channel; None where nothing is kept of it."""
        raise NotImplementedError

    def _entered(self, channel: str, position: Position | None) -> None:
        """Tell that it is in a channel, and has had all up to a position."""
        raise NotImplementedError

    def _left(self, channel: str) -> None:
        """Tell that it is out of a channel."""
        raise NotImplementedError

    def _lost(self, channel: str | None, position: Position | None) -> None:
        """Tell that some of a channel are missing from here."""
        raise NotImplementedError

    def _begin_with(self, channel: str, frame: Frame, position: Position, *, is_json: bool) -> None:
        """Tell the state of a channel at a position."""
        raise NotImplementedError

    def _push(self, frame: Frame, channel: str | None = None) -> bool:
        """Queue a frame; in the hub's event loop only. ``channel``: what it was sent to."""
        if self.reason is not None:
            return False
        if self._held is not None:
            self._held.append(frame)
            return True
        return self._link.push(frame, channel)

    def __repr__(self) -> str:
        user = f" user={self.user!r}" if self.user else ""
        ended = f" ended={self.reason.code}" if self.reason else ""
        return f"<Connection {self.id} {self._facts.path!r}{user}{ended}>"
