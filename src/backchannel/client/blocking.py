"""The client for code without an event loop: scripts, threads, bots.

It is ``backchannel.client`` in a thread of its own; many threads may use one client at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from inspect import iscoroutinefunction
from typing import Any, Final, Generic, Self, TypeVar

from backchannel.client import client as awaiting
from backchannel.client import subscription as awaited
from backchannel.client.core import State
from backchannel.client.errors import Closed
from backchannel.client.events import Event, Member
from backchannel.client.opening import connect as make

__all__ = ["Client", "Subscription", "connect"]

GOODBYE: Final = 5.0
"""Seconds for what other threads do with a client at the moment in which it is closed."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def connect(url: str, **options: Any) -> Client:
    """Make a client of an endpoint of a hub: ``with`` connects it.

    Args:
        url: the endpoint's: ``wss://example.com/ws/chat``.
        options: those of ``backchannel.client.connect``. What ``token`` and ``on_lost`` are runs in
            worker threads, and may block; ``on_state`` must not.

    Raises:
        TypeError, ValueError: as ``backchannel.client.connect``.
    """
    for name in ("token", "on_lost"):
        given = options.get(name)
        if callable(given) and not iscoroutinefunction(given):
            options[name] = _in_a_thread(given)
    return Client(make(url, **options))


def _in_a_thread(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def call(*arguments: Any) -> Any:
        return await asyncio.to_thread(function, *arguments)

    return call


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # What runs in its threads may close the client, so that nobody waits for them.
        self._workers = ThreadPoolExecutor(thread_name_prefix="backchannel client")
        self._loop.set_default_executor(self._workers)
        self._lock = threading.Lock()
        self._is_stopped = False
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="backchannel client", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """Run a coroutine there and return what it returns; an interrupt here cancels it there.

        Raises:
            TimeoutError: it took longer.
            RuntimeError: called in that thread itself, which would wait for itself.
            Closed: the loop has ended.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError(
                "this would wait for itself: what the client's event loop calls must not call the "
                "client; use backchannel.client in async code"
            )
        with self._lock:
            if self._is_stopped:
                work.close()
                raise Closed(1000, "by the client")
            running = asyncio.run_coroutine_threadsafe(_in_time(work, seconds), self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()
            raise

    def call(self, function: Callable[[], T]) -> T:
        """Call a function there and return what it returns."""

        async def call() -> T:
            return function()

        return self.run(call())

    def stop(self) -> None:
        """End it, when all that runs there has ended; does nothing the second time."""
        with self._lock:
            if self._is_stopped:
                return
            self._is_stopped = True
            finishing = asyncio.run_coroutine_threadsafe(_finish(), self._loop)
        finishing.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._workers.shutdown(wait=False)
        self._loop.close()


async def _finish() -> None:
    """Let the others see that the client has ended; what does not end by that is cancelled."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        _, pending = await asyncio.wait(others, timeout=GOODBYE)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _in_time(work: Coroutine[Any, Any, T], seconds: float | None) -> T:
    async with asyncio.timeout(seconds):
        return await work


class Client:
    """One client of an endpoint, made by ``connect``; see ``backchannel.client.Client``.

    Calls block until they are done. Many threads may make them at once.
    """

    def __init__(self, client: awaiting.Client):
        self._client = client
        self._loop: _Loop | None = None

    def __repr__(self) -> str:
        return repr(self._client)

    def __enter__(self) -> Self:
        """Connect, and wait until it is open.

        Raises:
            NotAdmitted, Closed, Unreachable, NotUnderstood: as ``backchannel.client.Client``.
            RuntimeError: it was used before.
        """
        if self._loop is not None:
            raise RuntimeError("this client was used before: connect() makes another")
        self._loop = _Loop()
        try:
            self._loop.run(self._client.__aenter__())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close it; see ``close``."""
        self.close()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Leave for good, as ``backchannel.client.Client.close``; other threads' calls end."""
        if self._loop is not None:
            with suppress(Closed):  # by another thread
                self._loop.run(self._client.close(code, reason))
            self._loop.stop()

    @property
    def state(self) -> State:
        """``"connecting"``, ``"open"``, ``"waiting"`` or ``"closed"``."""
        return self._client.state

    @property
    def id(self) -> str:
        """The connection's id, as other clients may know it."""
        return self._client.id

    @property
    def user(self) -> str | None:
        """Who the server thinks that this is; None for nobody."""
        return self._client.user

    @property
    def resumed(self) -> bool:
        """The last connection went on with the session of the one before."""
        return self._client.resumed

    def wait_open(self, *, timeout: float | None = None) -> None:
        """Wait until there is a connection.

        Args:
            timeout: seconds to wait at most; None is for ever.

        Raises:
            TimeoutError: there was none in time.
            Closed, NotAdmitted, NotUnderstood: the client has ended.
        """
        self._run(self._client.wait_open(), timeout)

    def wait_closed(self) -> None:
        """Wait until the client has ended for good; see ``backchannel.client.Client``."""
        try:
            self._run(self._client.wait_closed())
        except Closed:  # maybe by another thread, a moment ago
            if self._client._told is not None:
                raise self._client._told from None

    def send(self, data: Any) -> None:
        """Send a message to the listener, at most once; see ``backchannel.client.Client.send``."""
        self._run(self._client.send(data))

    def deliver(self, data: Any, *, retry: bool = False, timeout: float | None = None) -> None:
        """Send a message to the listener, and return when that is done with it.

        Args:
            data: str, bytes, or anything that can be JSON.
            retry: as of ``backchannel.client.Client.deliver``.
            timeout: seconds to wait at most; None is for ever.

        Raises:
            TimeoutError: it took longer; it may be done yet.
            ClientError: as ``backchannel.client.Client.deliver``.
        """
        self._run(self._client.deliver(data, retry=retry), timeout)

    def publish(
        self, channel: str, data: Any, *, retry: bool = False, timeout: float | None = None
    ) -> str | None:
        """Publish to a channel, and return its position there; None where it has no history.

        Args:
            channel: its name.
            data: str, bytes, or anything that can be JSON.
            retry: as of ``backchannel.client.Client.deliver``.
            timeout: seconds to wait at most; None is for ever.

        Raises:
            TimeoutError: it took longer; it may be done yet.
            ClientError: as ``backchannel.client.Client.publish``.
        """
        return self._run(self._client.publish(channel, data, retry=retry), timeout)

    def call(
        self,
        event: str,
        data: Any = None,
        *,
        timeout: float | None = 30.0,
        type: Any = None,  # noqa: A002 - the public name
    ) -> Any:
        """Call the listener's ``@event`` method; see ``backchannel.client.Client.call``."""
        return self._run(self._client.call(event, data, timeout=timeout, type=type))

    def answer(self, event: str, *, type: Any = None) -> Callable[[F], F]:  # noqa: A002
        """Decorate what answers the server's calls, each in a worker thread: it may block.

        See ``backchannel.client.Client.answer``.
        """

        def add(function: F) -> F:
            call = function if iscoroutinefunction(function) else _in_a_thread(function)
            self._client.answer(event, type=type)(call)
            return function

        return add

    def renew(self, token: str | None = None) -> float | None:
        """Bring a newer token; see ``backchannel.client.Client.renew``."""
        return self._run(self._client.renew(token))

    def subscribe(
        self,
        channel: str,
        *,
        since: str | None = None,
        type: Any = None,  # noqa: A002 - the public name
        snapshot: Any = None,
    ) -> Subscription[Any]:
        """Enter a channel; see ``backchannel.client.Client.subscribe``."""
        entering = self._client.subscribe
        loop = self._running()
        found = loop.call(lambda: entering(channel, since=since, type=type, snapshot=snapshot))
        return Subscription(loop, found)

    def channel(
        self,
        name: str,
        *,
        type: Any = None,  # noqa: A002 - the public name
        snapshot: Any = None,
    ) -> Subscription[Any]:
        """Return what happens in a channel; see ``backchannel.client.Client.channel``."""
        loop = self._running()
        found = loop.call(lambda: self._client.channel(name, type=type, snapshot=snapshot))
        return Subscription(loop, found)

    def presence(self, channel: str, *, timeout: float | None = None) -> list[Member]:
        """Return who is in a channel; see ``backchannel.client.Client.presence``.

        Args:
            channel: its name.
            timeout: seconds to wait at most; None is for ever.
        """
        return self._run(self._client.presence(channel), timeout)

    def receive(self, *, timeout: float | None = None, type: Any = None) -> Any:  # noqa: A002
        """Return the next message of the listener.

        Args:
            timeout: seconds to wait at most; None is for ever.
            type: what it is decoded as.

        Raises:
            TimeoutError: none came in time; none is missed by it.
            Closed, NotAdmitted, NotUnderstood: the client has ended.
            InvalidMessage: it is something else than ``type``.
        """
        return self._run(self._client.receive(type=type), timeout)

    def __iter__(self) -> Iterator[Any]:
        """Go over the messages of the listener: ``for message in client``."""
        return self.messages()

    def messages(self, *, type: Any = None) -> Iterator[Any]:  # noqa: A002 - the public name
        """Go over the messages of the listener; see ``backchannel.client.Client.messages``."""
        return _Iterator(self._running(), self._client.messages(type=type).__anext__)

    def _running(self) -> _Loop:
        if self._loop is None:
            raise RuntimeError("this client is not connected yet: with connect(url) as client")
        return self._loop

    def _run(self, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        if self._loop is None:
            work.close()
        return self._running().run(work, seconds)


class Subscription(Generic[T]):
    """A channel, made by ``client.subscribe(channel)``; see ``backchannel.client.Subscription``."""

    def __init__(self, loop: _Loop, subscription: awaited.Subscription[T]):
        self._loop = loop
        self._subscription = subscription

    def __repr__(self) -> str:
        return repr(self._subscription)

    @property
    def channel(self) -> str:
        """The channel's name."""
        return self._subscription.channel

    @property
    def position(self) -> str | None:
        """The last position in its history that the client has received; None without one."""
        return self._subscription.position

    @property
    def is_in(self) -> bool:
        """The server has said that the client is in it; False also while there is no connection."""
        return self._subscription.is_in

    def ready(self, *, timeout: float | None = None) -> Self:
        """Wait until the client is in the channel for the first time, and return itself.

        Args:
            timeout: seconds to wait at most; None is for ever.

        Raises:
            TimeoutError: it took longer.
            ServerError: the server refused.
            Closed: the client has ended.
        """
        self._loop.run(self._subscription.ready(), timeout)
        return self

    def __iter__(self) -> Iterator[Event[T]]:
        """Go over what happens in the channel."""
        return _Iterator(self._loop, self._subscription.__anext__)

    def receive(self, *, timeout: float | None = None) -> Event[T]:
        """Return what happened next.

        Args:
            timeout: seconds to wait at most; None is for ever.

        Raises:
            TimeoutError: nothing did in time; nothing is missed by it.
            Closed: the client is out of the channel, or has ended.
            InvalidMessage, ServerError: as iteration.
        """
        return self._loop.run(self._subscription.receive(), timeout)

    def presence(self, *, timeout: float | None = None) -> list[Member]:
        """Return who is in the channel; see ``backchannel.client.Client.presence``."""
        return self._loop.run(self._subscription.presence(), timeout)

    def publish(
        self, data: Any, *, retry: bool = False, timeout: float | None = None
    ) -> str | None:
        """Publish to the channel; see ``Client.publish``."""
        return self._loop.run(self._subscription.publish(data, retry=retry), timeout)

    def unsubscribe(self) -> None:
        """Leave the channel; see ``backchannel.client.Subscription.unsubscribe``."""
        self._loop.run(self._subscription.unsubscribe())

    def __enter__(self) -> Self:
        """Wait until the client is in the channel."""
        return self.ready()

    def __exit__(self, *_: object) -> None:
        """Leave it."""
        self.unsubscribe()


class _Iterator(Iterator[T]):
    def __init__(self, loop: _Loop, following: Callable[[], Awaitable[T]]):
        self._loop, self._following = loop, following

    def __next__(self) -> T:
        async def following() -> tuple[T, ...]:
            try:
                return (await self._following(),)
            except StopAsyncIteration:  # which no future may raise
                return ()

        try:
            for item in self._loop.run(following()):
                return item
        except Closed as error:
            if error.code != 1000:
                raise
        raise StopIteration
