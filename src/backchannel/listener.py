"""What an application writes: Listener, @event, @threaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from backchannel.errors import InvalidMessage

if TYPE_CHECKING:
    from backchannel.app import Hub
    from backchannel.connection import CloseReason, Connection
    from backchannel.request import Request

__all__ = ["MISSING", "Listener", "event", "threaded"]

F = TypeVar("F", bound=Callable[..., Any])

MISSING: Any = None
"""What a decorator is above where it was called with empty parentheses."""


class Listener:
    """The callbacks of an endpoint. All are optional, and each may be ``def`` or ``async def``.

    A ``def`` runs in the event loop, unlike in FastAPI: it must not block. Work in memory is fine;
    for anything that waits write ``async def``, or put ``@threaded`` on a blocking ``def``.

    One instance serves all connections of its endpoint. What belongs to one client lives on
    ``ws.state``; setting an attribute on a registered listener raises AttributeError, unless the
    class says ``shared = True``.

    ``durable = ("name", …)`` names what of ``ws.state`` comes back when a client of the dialect v1
    resumes its session, at whatever node: plain values, as they were when they were set.

    ``sends = Said | Left`` says what it sends, and broadcasts in its channel, for ``backchannel
    schema``: a type or a union of types, as annotations of messages have them.
    """

    shared: ClassVar[bool] = False
    durable: ClassVar[tuple[str, ...]] = ()
    sends: ClassVar[Any] = None

    def on_handshake(self, request: Request) -> Any:
        """Before the 101. False or Reject(status, text) refuses; raising answers HTTP 500."""

    def on_first_open(self, hub: Hub) -> Any:
        """This endpoint's connections on this node went from 0 to 1. Raising closes with 1011."""

    def on_open(self, ws: Connection) -> Any:
        """Connected. False or Reject refuses: 1008, never subscribed. Raising closes with 1011."""

    def on_message(self, ws: Connection, message: Any) -> Any:
        """Handle a message. What it returns, unless None, goes to the sender."""

    def on_invalid(self, ws: Connection, error: InvalidMessage) -> Any:
        """Answer a message that its annotation does not admit; by default with a JSON error."""
        ws.send(
            {"type": "error", "code": error.code, "text": error.text, "field": error.field},
        )

    def on_close(self, ws: Connection, reason: CloseReason) -> Any:
        """Ended; exactly once for each connection whose on_open ran. State is still readable."""

    def on_error(self, ws: Connection | None, error: Exception) -> Any:
        """A callback raised. Returning False closes the connection with 1011."""

    def on_last_close(self, hub: Hub) -> Any:
        """This endpoint's connections on this node went from 1 to 0. Balances on_first_open."""

    def on_subscribe(self, ws: Connection, channel: str) -> Any:
        """About to be subscribed. False, Reject or raising refuses."""

    def on_unsubscribe(self, ws: Connection, channel: str) -> Any:
        """Has left a channel."""

    def on_lost(self, ws: Connection, channel: str | None) -> Any:
        """It missed some, or may have, of a channel it is in; it goes on with what comes.

        The channel is None for what may have been for its user, its session or everyone. A third
        parameter, ``position=None``, is given the position from which on it has all again; None
        where nothing is kept.
        """

    def on_renew(self, ws: Connection, token: str) -> Any:
        """A v1 client brings a newer token: return its identity, or raise. See ``ws.renew``."""

    def on_channel_open(self, channel: str) -> Any:
        """A channel gets its first subscriber on this node."""

    def on_channel_close(self, channel: str) -> Any:
        """A channel has lost its last subscriber on this node."""

    def _seal(self) -> None:
        """Guard attributes from now on, unless they are meant to be shared.

        For a class that says ``shared = True`` setting one becomes as fast as elsewhere: only now,
        since a frozen dataclass sets methods of its own when the class has been made.
        """
        object.__setattr__(self, "_sealed", True)
        cls = type(self)
        for name in ("__setattr__", "__delattr__"):
            guarded, free = getattr(Listener, name), getattr(object, name)
            is_free = cls.shared and getattr(super(Listener, cls), name) is free
            wanted, other = (free, guarded) if is_free else (guarded, free)
            if getattr(cls, name) is other:  # else it is right, or the application's own
                setattr(cls, name, wanted)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse what would be shared between connections by accident."""
        self._check_seal(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Refuse what would be shared between connections by accident."""
        self._check_seal(name)
        super().__delattr__(name)

    def _check_seal(self, name: str) -> None:
        kind = type(self)
        if not kind.shared and self.__dict__.get("_sealed"):
            raise AttributeError(
                f"can't set {name!r}: one {kind.__name__} serves all connections: use ws.state "
                f"(or say `shared = True` in class {kind.__name__} if sharing is meant)"
            )


def event(name: str = MISSING) -> Callable[[F], F]:
    """Route messages whose ``"type"`` field is ``name`` to a listener's method.

    The method takes ``(self, ws, message)`` or just ``(self, ws)``; the message's annotation
    decides what it gets, as with on_message, and what it returns goes to the sender.

    Raises:
        TypeError: the name is not a str, the method takes another type already, or it is none.
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError('@event takes the message type, as in @event("typing")')

    def mark(function: F) -> F:
        if isinstance(function, type) or not hasattr(function, "__dict__"):
            raise TypeError(
                f"@event({name!r}) goes above a method (self, ws, message), not {function!r}"
            )
        if (other := getattr(function, "_backchannel_event", None)) is not None:
            raise TypeError(
                f"a method takes one type: it has @event({other!r}) and @event({name!r})"
            )
        function._backchannel_event = name  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return mark


def threaded(function: F = MISSING) -> F:
    """Run a blocking ``def`` callback in a worker thread, with the context variables copied.

    Raises:
        TypeError: it is ``async def``, which needs no thread, or no function.
    """
    if not callable(function):
        raise TypeError(
            "@threaded takes a function: put @threaded, without parentheses, above a blocking def"
        )
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"@threaded is for a blocking def; {function.__qualname__} is async def")
    function._backchannel_threaded = True  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]
    return function
