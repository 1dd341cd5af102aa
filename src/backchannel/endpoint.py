"""A URL template bound to a listener, with its options; and the table of all of them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

from backchannel.backlog import SLOW_CLIENT, SlowClient
from backchannel.callbacks import Callback, Callbacks
from backchannel.config import Settings, check_authenticate
from backchannel.dialect.frames import NAME, PREFIX
from backchannel.errors import InvalidMessage, Reject, TemplateError
from backchannel.heartbeat import Heartbeat
from backchannel.messages import Decoder, Frame, tag_reader
from backchannel.template import NamePattern, Router, Template, near_misses
from backchannel.turn import Occupancy

__all__ = ["Endpoint", "Endpoints", "check_options"]

_OPTIONS: Final = (
    "channel", "share_channels", "tag", "subprotocols", "slow_client", "idle_timeout",
    "authenticate",
)  # fmt: skip


def check_options(options: Iterable[str], call: str, template: str) -> None:
    """Check the names of an endpoint's options.

    Args:
        options: their names.
        call: what they were given to, such as ``hub.add``.
        template: the URL that they are for.

    Raises:
        TypeError: endpoints have no such option; the error says what was probably meant.
    """
    settings = [field.name for field in fields(Settings) if field.name not in _OPTIONS]
    for name in options:
        if name in _OPTIONS:
            continue
        hint = "known are " + ", ".join(f"{known}=" for known in _OPTIONS)
        near = difflib.get_close_matches(name, [*_OPTIONS, *settings], n=1, cutoff=0.75)
        if name in settings:
            hint = f"{name}= is a setting of the hub, for all its endpoints: Hub({name}=…)"
        elif near and near[0] in settings:
            hint = f"did you mean {near[0]}= of the hub, for all its endpoints: Hub({near[0]}=…)?"
        elif near:
            hint = f"did you mean {near[0]}=?"
        raise TypeError(f"{call} has no option {name}= for {template!r}; {hint}")


class Endpoint:
    """A URL template bound to a listener.

    Args:
        template: the URL template.
        callbacks: its listener, as read at registration.
        channel: pattern of the channel its connections enter by themselves; None takes a plain
            ``{channel}`` of the template, and no channel where there is none.
        share_channels: True when its channels may also be entered through other endpoints.
        tag: the field that ``@event`` methods are chosen by.
        subprotocols: WebSocket subprotocols it speaks; the client's first choice among them wins.
        slow_client: what is done about a client for which more than ``max_outbox`` waits:
            ``"close"`` (with 4001), ``"drop_oldest"`` or ``"drop_newest"`` messages, or
            ``"latest"``: of each channel only the latest message waits.
        idle_timeout: seconds after which a client that sends no message is closed, with 4008;
            pings do not count. None leaves it.
        authenticate: asked instead of the hub's own; None leaves it at that one.

    Attributes:
        idle: looks at those connections; None where none of them is closed for that.

    Raises:
        TemplateError: the channel pattern is malformed.
        TypeError: idle_timeout is no number, or authenticate can't be called.
        ValueError: no such way to deal with slow clients, or an idle_timeout out of range.
    """

    __slots__ = (
        "authenticate", "callbacks", "idle", "idle_timeout", "occupancy", "pattern", "read_tag",
        "share_channels", "slow_client", "subprotocols", "tag", "template",
    )  # fmt: skip

    def __init__(
        self,
        template: Template,
        callbacks: Callbacks,
        *,
        channel: str | None = None,
        share_channels: bool = False,
        tag: str = "type",
        subprotocols: Iterable[str] = (),
        slow_client: SlowClient = "close",
        idle_timeout: float | None = None,
        authenticate: Callable[[Any], Any] | None = None,
    ):
        check_authenticate("authenticate", authenticate)
        self.authenticate = authenticate
        if slow_client not in SLOW_CLIENT:
            known = ", ".join(map(repr, SLOW_CLIENT))
            raise ValueError(f"slow_client is one of {known}, not {slow_client!r}")
        self.slow_client: SlowClient = slow_client
        self.idle_timeout = _seconds(idle_timeout)
        self.template = template
        self.callbacks = callbacks
        self.begin_anew()
        self.share_channels = share_channels
        self.subprotocols = (
            (subprotocols,) if isinstance(subprotocols, str) else tuple(subprotocols)
        )
        self.tag = tag
        self.read_tag: Decoder = tag_reader(tag)
        text = "{channel}" if channel is None and "channel" in template.variables else channel
        self.pattern = None if text is None else NamePattern(text, template.variables)

    def begin_anew(self) -> None:
        """Have no connections, and no timer: the hub starts, maybe in another event loop."""
        self.occupancy = Occupancy()
        seconds = self.idle_timeout
        self.idle = None if seconds is None else Heartbeat(seconds, seconds)

    def choose_subprotocol(self, offered: Iterable[str]) -> str | None:
        """Return the first of the client's offers that this endpoint speaks.

        Every endpoint speaks our dialects; one that is offered wins, since a client that does
        knows what to do with it.
        """
        offers = list(offered)
        if NAME in offers:
            return NAME
        return next((name for name in offers if name in self.subprotocols), None)

    def refuse_version(self, offered: Iterable[str]) -> Reject | None:
        """Refuse a client that speaks only versions of our dialect that this hub does not know."""
        offers = list(offered)
        ours = [name for name in offers if name.startswith(PREFIX)]
        if not ours or self.choose_subprotocol(offers) is not None:
            return None
        return Reject(400, f"{', '.join(ours)}: not spoken here; this server speaks {NAME}.")

    def route(self, message: Frame) -> Callback | None:
        """Choose the @event method by a message's tag, or on_message.

        Raises:
            InvalidMessage: there is neither; the text names the known types.
        """
        callbacks = self.callbacks
        try:
            name = self.read_tag(message)
        except InvalidMessage as error:
            if callbacks.on_message:
                return callbacks.on_message
            known = ", ".join(sorted(callbacks.events))
            tag = self.tag
            raise InvalidMessage(
                f"{error.text}; expected a JSON object whose {tag!r} is one of {known}",
                field=error.field,
            ) from error
        callback = callbacks.events.get(name) or callbacks.on_message
        if callback is None:
            known = ", ".join(sorted(callbacks.events))
            raise InvalidMessage(
                f"unknown {self.tag} {name!r}; known are {known}",
                field=f"$.{self.tag}",
                code="unknown_type",
            )
        return callback

    def __str__(self) -> str:
        return f"{self.template.text} ({self.callbacks.name}, {self.callbacks.where})"


def _seconds(value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"idle_timeout is a number of seconds or None, not {value!r}")
    if not 0 < value < math.inf:  # also NaN
        raise ValueError(
            f"idle_timeout is more than 0 seconds, or None to leave idle clients, not {value!r}"
        )
    return value


class Endpoints:
    """The endpoints of a hub.

    Args:
        casefold: True when the hub ignores the case of channel names.
    """

    def __init__(self, *, casefold: bool = False) -> None:
        self._casefold = casefold
        self._router = Router[Endpoint]()
        self._served: dict[tuple[object, str], Endpoint] = {}

    def __iter__(self) -> Iterator[Endpoint]:
        """Iterate over those that a URL of the hub leads to, as they were added."""
        return iter(self._router)

    def all(self) -> Iterator[Endpoint]:
        """Iterate also over those that a framework's own routes lead to."""
        yield from self._router
        yield from self._served.values()

    def served(self, key: tuple[object, str], make: Callable[[], Endpoint]) -> Endpoint:
        """Return the endpoint of a framework's own route, made at its first use.

        Args:
            key: listener and route.
            make: makes it.

        Raises:
            TemplateError: it leads into another endpoint's channels.
        """
        if (endpoint := self._served.get(key)) is None:
            endpoint = make()
            for (listener, _), other in self._served.items():
                if listener == key[0]:
                    endpoint.callbacks = other.callbacks
            self._check_door(endpoint)
            self._served[key] = endpoint
        return endpoint

    def get(self, template: str) -> Endpoint | None:
        """Return the endpoint of a template's text."""
        return self._router.get(template)

    def add(self, endpoint: Endpoint) -> None:
        """Add an endpoint.

        Raises:
            TemplateError: its template or its channels clash with another endpoint's.
        """
        self._check_door(endpoint)
        self._router.add(endpoint.template, endpoint)

    def match(self, readings: Iterable[list[str]]) -> tuple[Endpoint, Mapping[str, Any]] | None:
        """Find the endpoint for the first reading of a path that has one."""
        for segments in readings:
            if found := self._router.match(segments):
                return found
        return None

    def near_misses(self, path: str) -> list[str]:
        """Return the templates that look most like a path."""
        return near_misses(path, [endpoint.template.text for endpoint in self])

    def guarded_by_another(self, endpoint: Endpoint, channel: str) -> Endpoint | None:
        """Return the endpoint whose own door a channel has, when it is not this one.

        Without this, ``/ws/chat/{channel}`` would let anyone into ``admin:x`` past the
        on_subscribe of the endpoint that says ``channel="admin:{room}"``. The pattern with more
        text of its own is the more specific; where two have as much, neither leads in.
        """
        own = endpoint.pattern
        if own is None:
            return None
        for other in self.all():
            if (
                other.pattern
                and other.callbacks is not endpoint.callbacks
                and not other.share_channels
                and other.pattern.shape != own.shape
                and other.pattern.literal_length >= own.literal_length
                and other.pattern.matches(channel)
            ):
                return other
        return None

    def is_behind_another(self, endpoint: Endpoint, channel: str) -> bool:
        """Tell whether a channel has another endpoint's door, whose on_subscribe guards it."""
        return any(
            other.pattern is not None
            and other.callbacks is not endpoint.callbacks
            and not other.share_channels
            and other.pattern.matches(channel)
            for other in self.all()
        )

    def _check_door(self, endpoint: Endpoint) -> None:
        """Refuse a second door to the same channels, which the first one's would not guard."""
        if endpoint.pattern and self._casefold:
            endpoint.pattern = endpoint.pattern.casefolded()
        if endpoint.pattern is None or endpoint.share_channels:
            return
        for other in self.all():
            if (
                other.pattern
                and not other.share_channels
                and other.callbacks is not endpoint.callbacks
                and other.pattern.shape == endpoint.pattern.shape
            ):
                raise TemplateError(
                    f"{endpoint.template.text!r} and {other.template.text!r} both lead into the "
                    f"channels {other.pattern.text!r}, so that the on_subscribe of one would not "
                    f'guard the other: give one its own names, such as channel="admin:'
                    f'{endpoint.pattern.text}", or say share_channels=True'
                )
