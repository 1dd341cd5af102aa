"""A client of a hub, for event loops: bots, services, tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from inspect import isawaitable
from typing import Any, TypeVar, overload

from backchannel.channel import check_channel
from backchannel.client.core import Core
from backchannel.client.errors import CallTimeout, ClientError, Closed, NotUnderstood, ServerError
from backchannel.client.events import Member
from backchannel.client.frames import Received, check_text, decoded, prepared
from backchannel.client.outbox import Kind, Request
from backchannel.client.streams import LOG, Ended
from backchannel.client.subscription import Subscription
from backchannel.client.tokens import ask, check_token
from backchannel.errors import InvalidMessage

__all__ = ["Client"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Client(Core):
    """One client of an endpoint, made by ``backchannel.client.connect``, for one event loop.

    What is asked for while there is no connection waits for one, in bounds.

    Attributes:
        state: ``"connecting"``, ``"open"``, ``"waiting"`` for the next attempt, or ``"closed"``.
        id: the connection's id, as other clients may know it; the same after a resume. "" before
            the first connection.
        user: who the server thinks that this is; None for nobody.
        resumed: the last connection went on with the session of the one before.
    """

    # What it sends.

    async def send(self, data: Any) -> None:
        """Send a message to the listener, at most once.

        Returns when it is written, or, without a connection, when it waits for one. What was under
        way when a connection broke may be lost: ``deliver`` says when it has arrived.

        Args:
            data: str, bytes, or anything that can be JSON.

        Raises:
            UnsendableMessage: it has no valid JSON form, or is larger than the server takes.
            QueueFull: there is no connection, and no room to wait for one.
            Closed: the client has ended.
        """
        fields = {"type": "message"}
        request = Request(Kind.PLAIN, fields, prepared(data), self._future())
        if self.state == "open":
            await self._answer_to(request)
        else:
            self._add(request)
            request.succeed()

    async def deliver(self, data: Any, *, retry: bool = False) -> None:
        """Send a message to the listener, and return when that is done with it.

        It is sent again after a reconnect, and done once.

        Args:
            data: str, bytes, or anything that can be JSON.
            retry: send it as new where nothing says whether it was done: for what does no harm
                twice.

        Raises:
            ServerError: the listener raised, or takes no such message; ``.code`` says which.
            OutcomeUnknown: the session could not be resumed: it may have been done, or not.
            UnsendableMessage, QueueFull, Closed: as ``send``.
            QueueExpired: it waited for a connection for ``queue_seconds``; it was not sent.
            NotRead: the answer is behind what the application does not read.
        """
        await self._ask(Kind.KEPT, {"type": "message"}, prepared(data), retry=retry)

    async def publish(self, channel: str, data: Any, *, retry: bool = False) -> str | None:
        """Publish to a channel, where a rule of the hub lets this client; as ``deliver``, once.

        Args:
            channel: its name.
            data: str, bytes, or anything that can be JSON.
            retry: as of ``deliver``.

        Returns:
            Its position in the channel's history; None where none is kept, or where the first
            answer was lost with the connection: then the server says only that it was done.

        Raises:
            ServerError: ``.code`` is ``"refused"`` where no rule allows it, ``"unavailable"`` where
                the hub's broker is away.
            OutcomeUnknown: nothing says whether it was published.
            TypeError, ValueError: no valid channel name.
            UnsendableMessage, QueueFull, QueueExpired, NotRead, Closed: as ``deliver``.
        """
        fields = {"type": "publish", "channel": check_channel(channel)}
        position: str | None = await self._ask(Kind.KEPT, fields, prepared(data), retry=retry)
        return position

    @overload
    async def call(
        self,
        event: str,
        data: Any = None,
        *,
        timeout: float | None = 30.0,  # noqa: ASYNC109
        type: type[T],
    ) -> T: ...
    @overload
    async def call(
        self,
        event: str,
        data: Any = None,
        *,
        timeout: float | None = 30.0,  # noqa: ASYNC109
        type: Any = None,
    ) -> Any: ...
    async def call(
        self,
        event: str,
        data: Any = None,
        *,
        timeout: float | None = 30.0,  # noqa: ASYNC109 - the server is told
        type: Any = None,  # noqa: A002 - the public name
    ) -> Any:
        """Call the listener's ``@event`` method of a name. Who is cancelled cancels it there too.

        It is not sent again after a reconnect.

        Args:
            event: the event's name.
            data: what the method gets: str, bytes, or anything that can be JSON.
            timeout: seconds to wait for the answer, also for a connection; None is for ever.
            type: what the answer is decoded as: a Struct, a dataclass, ``list[int]`` …

        Returns:
            What the method returned.

        Raises:
            ServerError: it raised (``"failed"``), takes no such data (``"invalid"``), or there is
                none (``"unknown_type"``).
            CallTimeout: there was no answer in time.
            OutcomeUnknown: the connection was lost before the answer.
            InvalidMessage: the answer is not what ``type`` says.
            TypeError, ValueError: the event is no text.
            UnsendableMessage, QueueFull, NotRead, Closed: as ``deliver``.
        """
        check_text(event, "call(): the event")
        clock = asyncio.get_running_loop().time
        deadline = None if timeout is None else clock() + timeout

        def fields() -> dict[str, Any]:
            left = {} if deadline is None else {"timeout": round(max(0.001, deadline - clock()), 3)}
            return {"type": "call", "event": event, **left}

        request = Request(Kind.CALL, fields, prepared(data), self._future())
        patience = asyncio.timeout_at(deadline)
        try:
            async with patience:
                received = await self._answer_to(request)
        except TimeoutError as error:
            if not patience.expired():
                raise
            said = "was answered" if request.id else "could be sent"
            raise CallTimeout(f"call({event!r}): nothing {said} within {timeout:g} s") from error
        except asyncio.CancelledError:
            if request.id is not None:
                self._reply(Request(Kind.BOUND, {"type": "cancel", "id": request.id}))
            raise
        except ServerError as error:
            if error.code == "timeout":
                raise CallTimeout(f"call({event!r}): {error}") from error
            raise
        return decoded(received.data, type)

    def answer(self, event: str, *, type: Any = None) -> Callable[[F], F]:  # noqa: A002
        """Decorate what answers the server's calls, ``ws.call(event, data)``: with what it returns.

        It may be async, and runs beside everything else; it is cancelled when nobody waits for
        it any more. Raising ``Reject("why")`` refuses; whatever else it raises is logged, and the
        server is told that it failed.

        Args:
            event: the event's name.
            type: what the call's data is decoded as, before the function gets it.

        Raises:
            ValueError: the event is answered already.
        """

        def add(function: F) -> F:
            self._answers.add(event, function, type)
            return function

        return add

    async def renew(self, token: str | None = None) -> float | None:
        """Bring a newer token of the same user before the old one ends.

        Where ``connect(token=…)`` can be called, that is done by itself in time.

        Args:
            token: None asks what ``connect(token=…)`` was given.

        Returns:
            Seconds until this one ends; None for ever.

        Raises:
            ServerError: it is another user's, has expired, or the server takes none here.
            TypeError, ValueError: there is none, or it is no token.
            QueueFull, QueueExpired, NotRead, Closed: as ``deliver``.
        """
        if token is None:
            token = await ask(self._options.token)
        if token is None:
            raise ValueError("renew() needs a token: pass it, or connect(token=…)")
        fields = {"type": "renew", "token": check_token(token, "renew()")}
        seconds: float | None = await self._ask(Kind.ASKED, fields)
        return seconds

    # Channels.

    @overload
    def subscribe(
        self, channel: str, *, since: str | None = None, type: type[T], snapshot: Any = None
    ) -> Subscription[T]: ...
    @overload
    def subscribe(
        self, channel: str, *, since: str | None = None, type: Any = None, snapshot: Any = None
    ) -> Subscription[Any]: ...
    def subscribe(
        self,
        channel: str,
        *,
        since: str | None = None,
        type: Any = None,  # noqa: A002 - the public name
        snapshot: Any = None,
    ) -> Subscription[Any]:
        """Enter a channel, and again after each reconnect, where a rule lets this client.

        ``async for event in client.subscribe("news")`` goes over what happens in it. Where the
        server refuses, iteration and ``ready()`` raise ServerError.

        Args:
            channel: its name.
            since: a position, to get first what was published after it. It counts for nothing where
                the channel was asked for already, or the client has been in it.
            type: what publications' data is decoded as: a Struct, a dataclass, ``list[int]`` …
            snapshot: the same for the data of snapshots.

        Returns:
            The subscription; the same object for the same channel, while the client is in it.

        Raises:
            TypeError, ValueError: no valid channel name, or no text that may be a position.
            Closed: the client has ended.
        """
        self._check_open()
        if since is not None:
            check_text(since, f"subscribe({channel!r}, since=…)")
        subscription = self._known(check_channel(channel), type, snapshot)
        if subscription._is_asked:
            return subscription
        subscription._is_asked = True
        if not subscription.is_in:
            if not subscription._was_in:  # what it has had is not asked for again
                subscription.position = since or subscription.position
            if self.state == "open":
                self._add(self._channels.ask(subscription))
        return subscription

    @overload
    def channel(self, name: str, *, type: type[T], snapshot: Any = None) -> Subscription[T]: ...
    @overload
    def channel(
        self, name: str, *, type: Any = None, snapshot: Any = None
    ) -> Subscription[Any]: ...
    def channel(
        self,
        name: str,
        *,
        type: Any = None,  # noqa: A002 - the public name
        snapshot: Any = None,
    ) -> Subscription[Any]:
        """Return what happens in a channel, without asking to enter it.

        For channels that the URL, or the application, puts the client into. What came before this
        call is there too, as far as it is not too much; else it begins with ``Lost``.

        Args:
            name: its name.
            type: as of ``subscribe``.
            snapshot: as of ``subscribe``.

        Raises:
            TypeError, ValueError: no valid channel name.
            Closed: the client has ended.
        """
        self._check_open()
        return self._known(check_channel(name), type, snapshot)

    def _known(self, name: str, type_: Any, snapshot: Any) -> Subscription[Any]:
        subscription = self._channels.get(name)
        subscription._stream.is_wanted = True
        if type_ is not None:
            subscription._type = type_
        if snapshot is not None:
            subscription._snapshot = snapshot
        return subscription

    async def presence(self, channel: str) -> list[Member]:
        """Return who is in a channel that this client is in, where a rule keeps presence.

        Raises:
            ServerError: the client is not in it, or no rule keeps presence.
            NotUnderstood: the server answered with something else.
            TypeError, ValueError: no valid channel name.
            QueueFull, QueueExpired, NotRead, Closed: as ``deliver``.
        """
        fields = {"type": "presence", "channel": check_channel(channel)}
        received: Received = await self._ask(Kind.ASKED, fields)
        try:
            users: list[Member] = decoded(received.frame.users, list[Member])
        except InvalidMessage as error:
            text = f"the server sent what is no list of users: {error.field}: {error.text}"
            raise NotUnderstood(text) from error
        return users

    async def _unsubscribe(self, subscription: Subscription[Any]) -> None:
        if not self._channels.forget(subscription) or self.state == "closed":
            return
        fields = {"type": "unsubscribe", "channel": subscription.channel}
        request = Request(Kind.ASKED, fields, done=self._future(), is_lasting=True)
        self._add(request)
        if self.state == "open" and request.done is not None:
            await asyncio.shield(request.done)

    # What it receives.

    def __aiter__(self) -> AsyncIterator[Any]:
        """Go over the messages of the listener: ``async for message in client``."""
        return self.messages()

    @overload
    def messages(self, *, type: type[T]) -> AsyncIterator[T]: ...
    @overload
    def messages(self, *, type: Any = None) -> AsyncIterator[Any]: ...
    def messages(self, *, type: Any = None) -> AsyncIterator[Any]:  # noqa: A002 - the public name
        """Go over the messages of the listener, which are no publications.

        Several may read: each message goes to one of them. Until the first reads, the newest
        messages are kept, as far as they are not too much.

        Args:
            type: what each is decoded as: a Struct, a dataclass, a union of Structs …

        Raises:
            InvalidMessage: in the iteration, where one is something else; the next may not be.
            Closed, NotAdmitted, NotUnderstood: in the iteration, where the client has ended, but by
                ``close()``, or the server's 1000.
        """
        return _Messages(self, type)

    @overload
    async def receive(self, *, type: type[T]) -> T: ...
    @overload
    async def receive(self, *, type: Any = None) -> Any: ...
    async def receive(self, *, type: Any = None) -> Any:  # noqa: A002 - the public name
        """Return the next message of the listener; who is cancelled meanwhile misses none.

        Args:
            type: what it is decoded as.

        Raises:
            Closed: the client has ended; NotAdmitted, NotUnderstood likewise.
            InvalidMessage: it is something else than ``type``.
        """
        try:
            received = await self._messages.get()
        except Ended:
            raise Closed(1000, "no message follows") from None
        return decoded(received.data, type)

    def on_message(self, function: F) -> F:
        """Decorate what is called with each message of the listener, one after the other.

        It may be async; what it raises is logged. It is called while the client is open.
        """

        async def read() -> None:
            with suppress(ClientError):  # which the application learns elsewhere
                async for message in self:
                    await tell(message)

        async def tell(message: Any) -> None:
            try:
                done = function(message)
                if isawaitable(done):
                    await done
            except Exception:  # noqa: BLE001 - the application's code
                LOG.exception("what on_message was given raised")

        self._begin(read())
        return function


class _Messages(AsyncIterator[Any]):
    def __init__(self, client: Client, type_: Any):
        self._stream, self._type = client._messages, type_
        self._stream.is_wanted = True

    async def __anext__(self) -> Any:
        try:
            received = await self._stream.get()
        except Ended:
            raise StopAsyncIteration from None
        return decoded(received.data, self._type)
