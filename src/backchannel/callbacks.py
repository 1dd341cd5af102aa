"""How what an application wrote is read: a listener's callbacks, their annotations, its events."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from backchannel.annotations import (
    NO_MESSAGE,
    UNSAID,
    means_message,
    read_returns,
    read_sends,
    resolve,
    scope_of,
)
from backchannel.errors import ListenerError
from backchannel.listener import Listener
from backchannel.messages import Decoder, decoder_for, wants_text
from backchannel.observe import LISTENER
from backchannel.places import layers, place_of, placed, where_defined
from backchannel.spelling import foreign_names, unknown_callbacks

if TYPE_CHECKING:
    pass

__all__ = ["Callback", "Callbacks", "read_callback", "read_listener"]


@dataclass(frozen=True, slots=True)
class Callback:
    """One callback, read once at registration.

    Args:
        name: for logs, such as ``Chat.on_message``.
        where: file and line of its definition.
        function: what to call, bound to its listener.
        is_async: it was written as ``async def``.
        in_thread: it is to be called in a worker thread.
        decode: makes its message; None passes it on as sent.
        about: its docstring.
        takes: the annotation of its message; UNSAID has none, NO_MESSAGE takes none.
        returns: what it is annotated to return; UNSAID, or Unresolved where its names are not
            there.
    """

    name: str
    where: str
    function: Callable[..., Any]
    is_async: bool
    in_thread: bool
    decode: Decoder | None = None
    about: str = ""
    takes: Any = UNSAID
    returns: Any = UNSAID

    @property
    def returns_at_once(self) -> bool:
        """It runs to its end in the event loop, without ever waiting."""
        return not self.is_async and not self.in_thread


@dataclass(frozen=True, slots=True)
class Callbacks:
    """A listener as the dispatch uses it: None where the listener has no such callback."""

    name: str
    where: str
    about: str = ""
    on_handshake: Callback | None = None
    on_first_open: Callback | None = None
    on_open: Callback | None = None
    on_message: Callback | None = None
    on_invalid: Callback | None = None
    on_close: Callback | None = None
    on_error: Callback | None = None
    on_last_close: Callback | None = None
    on_subscribe: Callback | None = None
    on_unsubscribe: Callback | None = None
    on_lost: Callback | None = None
    on_renew: Callback | None = None
    on_channel_open: Callback | None = None
    on_channel_close: Callback | None = None
    durable: tuple[str, ...] = ()
    sends: tuple[Any, ...] | None = None
    events: Mapping[str, Callback] = field(default_factory=dict[str, Callback])

    membership_is_immediate: bool = field(init=False)
    membership_is_plain: bool = field(init=False)
    opening_is_immediate: bool = field(init=False)
    messages_wait: bool = field(init=False)
    for_texts: Callback | None = field(init=False)
    async_for_texts: Callback | None = field(init=False)

    def __post_init__(self) -> None:
        """Find out what never has to wait for a callback."""
        membership = (
            self.on_subscribe, self.on_unsubscribe, self.on_channel_open, self.on_channel_close,
            self.on_error,
        )  # fmt: skip
        message = self.on_message
        waits = not self.events and message is not None and not message.returns_at_once
        object.__setattr__(self, "messages_wait", waits)
        as_sent = message is not None and (message.decode is None or wants_text(message.decode))
        texts = message if as_sent and not self.events else None
        for_texts = texts if texts and texts.returns_at_once else None
        async_for_texts = texts if texts and texts.is_async and not texts.in_thread else None
        object.__setattr__(self, "for_texts", for_texts)
        object.__setattr__(self, "async_for_texts", async_for_texts)
        opening = (self.on_first_open, self.on_open, self.on_error)
        immediate = _return_at_once(membership)
        plain = immediate and self.on_channel_open is None and self.on_channel_close is None
        object.__setattr__(self, "membership_is_immediate", immediate)
        object.__setattr__(self, "membership_is_plain", plain)
        object.__setattr__(self, "opening_is_immediate", _return_at_once(opening))


def _return_at_once(callbacks: Iterable[Callback | None]) -> bool:
    return all(callback is None or callback.returns_at_once for callback in callbacks)


# Each callback with what it is called with, after self.
_PARAMETERS: Final = {
    "on_handshake": "request", "on_first_open": "hub", "on_open": "ws",
    "on_message": "ws, message", "on_invalid": "ws, error", "on_close": "ws, reason",
    "on_error": "ws, error", "on_last_close": "hub", "on_subscribe": "ws, channel",
    "on_unsubscribe": "ws, channel", "on_lost": "ws, channel",
    "on_renew": "ws, token", "on_channel_open": "channel", "on_channel_close": "channel",
}  # fmt: skip


def read_listener(target: object, names: Mapping[str, Any] | None = None) -> Callbacks:
    """Read a Listener class, a Listener instance or a function, and check it thoroughly.

    Args:
        target: a class is instantiated without arguments.
        names: more names that annotations may use, such as the locals where it was defined.

    Raises:
        ListenerError: it is none of these, a callback has a wrong signature or a misspelt name, or
            an annotation can't be resolved or decoded.
    """
    names = names or {}
    if isinstance(target, type):
        if not issubclass(target, Listener):
            raise ListenerError(
                f"{target.__qualname__} must inherit from backchannel.Listener to be an endpoint"
            )
        kind = target
        try:
            target = kind()
        except TypeError as error:
            raise ListenerError(
                f"{kind.__qualname__} can't be made without arguments ({error}); pass an "
                f'instance: hub.add("/path", {kind.__name__}(…))'
            ) from error
    if isinstance(target, Listener):
        return _read_instance(target, names)
    if callable(target):
        return _read_function(target, names)
    raise ListenerError(f"an endpoint needs a Listener or a function, not {target!r}")


def _read_instance(listener: Listener, names: Mapping[str, Any]) -> Callbacks:
    kind = type(listener)
    _check_spelling(kind)
    found: dict[str, Any] = {}
    for name, parameters in _PARAMETERS.items():
        function = getattr(kind, name)
        if function is getattr(Listener, name) and name != "on_invalid":
            continue
        read = _read_lost if name == "on_lost" else read_callback
        found[name] = read(getattr(listener, name), f"{kind.__name__}.{name}", parameters)
    if message := found.get("on_message"):
        found["on_message"] = _with_decoder(message, names, kind)
    found["events"] = _read_events(listener, names)
    found["durable"] = _read_durable(kind)
    found["sends"] = read_sends(kind.sends, f"{kind.__name__}.sends ({where_defined(kind)})")
    if found.keys() == {"on_invalid", "events", "durable", "sends"} and not found["events"]:
        _warn_of_foreign_names(kind)
    listener._seal()
    about = vars(kind).get("__doc__") or ""
    return Callbacks(name=kind.__name__, where=where_defined(kind), about=about, **found)


def _read_lost(function: Callable[..., Any], name: str, parameters: str) -> Callback:
    """Read on_lost, which may take the position too; it is called with ws and a pair of both."""
    is_told_where = callable(function) and len(_positional(function)) > 2
    callback = read_callback(function, name, parameters + ", position" * is_told_where)
    count = 2 if is_told_where else 1

    def on_lost(ws: object, lost: tuple[object, object]) -> Any:
        return callback.function(ws, *lost[:count])

    return _replaced(callback, function=on_lost)


def _read_durable(kind: type[Listener]) -> tuple[str, ...]:
    durable: Any = kind.durable
    if isinstance(durable, str) or not all(isinstance(name, str) for name in durable):
        raise ListenerError(
            f'{kind.__name__}.durable names keys of ws.state, as in durable = ("name",), not '
            f"{durable!r}"
        )
    return tuple(durable)


def _read_function(function: Callable[..., Any], names: Mapping[str, Any]) -> Callbacks:
    named = function
    while isinstance(named, functools.partial):
        named = typing.cast("Any", named.func)  # pyright: ignore[reportUnknownMemberType]
    name = getattr(named, "__name__", type(named).__name__)
    callback = _with_decoder(read_callback(function, name, "ws, message"), names)
    on_invalid = read_callback(Listener().on_invalid, f"{name}.on_invalid", "ws, error")
    return Callbacks(name, callback.where, on_message=callback, on_invalid=on_invalid)


def _read_events(listener: Listener, names: Mapping[str, Any]) -> dict[str, Callback]:
    kind, found = type(listener), dict[str, Callback]()
    for attribute in dir(kind):
        name = _event_of(kind, attribute)
        if name is None:
            continue
        if other := found.get(name):
            raise ListenerError(f"{other.name} ({other.where}) and {attribute} both take {name!r}")
        function = getattr(listener, attribute)
        label = f"{kind.__name__}.{attribute}"
        if len(_positional(function)) == 1:
            callback = _with_decoder(read_callback(function, label, "ws"), names, kind)
            *_, bare_function = layers(function)
            (only,) = _positional(function)
            if means_message(only, scope_of(bare_function, names, kind)):
                raise ListenerError(
                    f"{label} ({callback.where}) has no ws: it must take (ws, message), or (ws) "
                    f"alone, but takes ({only})"
                )
            bare = _without_message(callback.function)
            found[name] = _replaced(callback, function=bare, takes=NO_MESSAGE)
        else:
            callback = read_callback(function, label, "ws, message")
            found[name] = _with_decoder(callback, names, kind)
    return found


def _without_message(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return an event method without a message parameter as one that is given a message."""

    def without(ws: object, _message: object) -> Any:
        return function(ws)

    return without


def _event_of(kind: type[Listener], attribute: str) -> str | None:
    marked = inspect.getattr_static(kind, attribute)
    function = getattr(marked, "__func__", None)  # under a staticmethod or classmethod
    name: str | None = getattr(marked, "_backchannel_event", None)
    return getattr(function, "_backchannel_event", None) if name is None else name


def read_callback(
    function: Callable[..., Any], name: str, parameters: str, named: Iterable[str] = ()
) -> Callback:
    """Read one callable of an application.

    Args:
        function: def, async def or @threaded def, or anything made of one.
        name: for logs and errors.
        parameters: what it is called with by position, such as ``"ws, message"``.
        named: what it is called with by name, besides.

    Raises:
        ListenerError: it does not take these, or has a yield, or is both @threaded and async.
    """
    wanted = [name for name in parameters.split(", ") if name]
    by_name = dict.fromkeys(named)
    made_of = list(layers(function))
    label = placed(name, made_of[-1])
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ListenerError(f"{label}: its signature can't be read: {error}") from error
    try:
        signature.bind(*wanted, **by_name)
    except TypeError as error:
        raise ListenerError(
            f"{label} must take ({', '.join([*wanted, *by_name])}), but takes {signature}: {error}"
        ) from error
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ListenerError(
            f"{label} has a yield, so that calling it would do nothing: send each part with "
            "ws.send(…), within ws.spawn(…) if it takes long"
        )
    is_async = any(inspect.iscoroutinefunction(layer) for layer in made_of)
    in_thread = any(getattr(layer, "_backchannel_threaded", False) is True for layer in made_of)
    if is_async and in_thread:
        raise ListenerError(f"{label} is both @threaded and async: @threaded is for a blocking def")
    return Callback(
        name=name,
        where=where_defined(made_of[-1]),
        function=function,
        is_async=is_async,
        in_thread=in_thread,
        about=getattr(made_of[-1], "__doc__", None) or "",
    )


def _with_decoder(
    callback: Callback, names: Mapping[str, Any], kind: type[Listener] | None = None
) -> Callback:
    """Add what its annotations say, as far as there are any."""
    *_, function = layers(callback.function)
    scope = scope_of(function, names, kind)
    callback = _replaced(callback, returns=read_returns(callback.function, scope))
    message = next(iter(_positional(callback.function)[1:]), None)
    if message is None or message.annotation is message.empty:
        return callback
    label = f"{callback.name} ({callback.where}): the annotation of {message.name!r}"
    annotation = resolve(message.annotation, scope, label)
    return _replaced(callback, decode=decoder_for(annotation, label), takes=annotation)


def _replaced(callback: Callback, **changes: Any) -> Callback:
    fields = {name: getattr(callback, name) for name in Callback.__dataclass_fields__}
    return Callback(**{**fields, **changes})


def _positional(function: Callable[..., Any]) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # read_callback says so
        return []
    return [parameter for parameter in parameters if parameter.kind in kinds]


def _check_spelling(kind: type[Listener]) -> None:
    events = {name for name in dir(kind) if _event_of(kind, name) is not None}
    for name, meant in unknown_callbacks(kind, {*_PARAMETERS, *events}):
        hint = f"did you mean {meant}?" if meant else f"there are {', '.join(_PARAMETERS)}."
        raise ListenerError(
            f"{place_of(kind, name)} is no callback; {hint} What handles one type of message wants "
            "@event; a helper of your own, a name without on_ or with a leading underscore."
        )


def _warn_of_foreign_names(kind: type[Listener]) -> None:
    for name, meant in foreign_names(kind):
        LISTENER.warning("%s is never called; did you mean %s?", place_of(kind, name), meant)
