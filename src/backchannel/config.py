"""A hub's settings: named, with units, checked before anything listens."""

from __future__ import annotations

import inspect
import ipaddress
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, cast, get_args
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from backchannel.contracts import Broker
    from backchannel.stores import Sessions

__all__ = ["Settings", "SettingsOptions", "check_authenticate"]

MIB = 1024 * 1024
SHORTEST_LEASE: Final = 0.1
# Scheme, host with or without "*." in front, port.
_ORIGIN: Final = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://((\*\.)?[^\s/?#@*:\[\]]+|\[[0-9a-fA-F:.]+\])(:[0-9]+)?"
)
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "bool": (bool,),
}
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
WhenUserIsFull = Literal["replace", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What ``Hub(…)`` takes, each as a keyword.

    Args:
        broker: carries publications between nodes: ``"redis://localhost:6379/0"`` for Redis or
            Valkey (``rediss://`` with TLS, ``unix:///path``), or a Broker. None keeps them in this
            process.
        name: what this hub's data is called in the broker's engine: the nodes of one hub have the
            same name, and two hubs that share an engine have different ones. Two that have no
            endpoint in common are refused under one name, unless both were given it.
        broker_timeout: seconds that a publication waits for a broker that is away, and that other
            nodes have to answer.
        max_unsent: bytes of publications that the broker has not answered.
        max_publication: bytes of the largest message that goes through a broker's engine.
        presence_lease: seconds after which a node that died, or that the broker has not heard of
            for as long, has nobody in channels any more (rules with ``presence=True``).
        presence_moment: seconds that a user may be away from a channel, as while a page is loaded
            anew, without having left it, and that joins wait in channels whose rule says
            ``presence="settled"``.
        allowed_origins: origins that browsers may connect from besides the page's own: full
            origins (``"https://app.example.com"``), with a wildcard for subdomains
            (``"https://*.example.com"``), or ``"*"`` for any. One str is one origin.
        authenticate: ``authenticate(request)``, sync or async; returns None (anonymous), a user
            id, or an object with an ``id``, ``pk`` or ``user_id``.
        session: finds the web session of a handshake, such as
            ``backchannel.session.django.DjangoSessions()``; None takes what middleware before the
            hub left in the scope, as Starlette's and starsessions' does.
        session_check: seconds between two looks whether a session that is kept on the server still
            exists; the connections of one that does not end with 4004. None never looks.
        touch_session: True lets a session that is kept on the server live on while messages come by
            its sockets: it is touched at most once a minute. False leaves that to HTTP.
        require_user: True refuses anonymous clients with 401.
        trusted_proxies: addresses or networks whose ``X-Forwarded-Host`` and ``X-Forwarded-For``
            are believed.
        max_message: bytes of the largest message a client may send; above it 1009.
        max_outbox: bytes that may wait for a slow client; above it 4001. One message always fits.
        max_messages_per_second: of one connection, in the long run, pings included where the hub
            sees them; above it 4003. As many may come at once. None is no limit.
        max_bytes_per_second: of one connection, in the long run; above it 4006. As many, or
            ``max_message``, may come at once. None is no limit.
        max_handshakes_per_second: of one address, in the long run; above it 429. As many may come
            at once. None is no limit.
        max_connections_per_address: at the same time; above it 429. None is no limit.
        max_connections_per_user: at the same time; what happens above it, the next setting says.
            None is no limit.
        when_user_is_full: ``"replace"`` closes the user's oldest connection with 4005,
            ``"refuse"`` answers the new one with 429.
        resume_window: seconds that the session of a v1 client outlives its connection, to be
            resumed; None lets none be resumed.
        max_subscriptions: channels that a v1 client may be in when it asks for one more.
        compress_above: bytes of payload from which on a message is compressed for clients that
            take permessage-deflate (browsers do); None never compresses and accepts nothing
            compressed. Where the server's own frames are used, that is the server's setting.
        deflate_window: base-two logarithm of the bytes that compression looks back, 9 to 15; more
            compresses better. One for all, so that a message is compressed once for all.
        handshake_timeout: seconds that ``authenticate`` and ``on_handshake`` may take together.
        ping_interval: seconds between pings, where the server lets us set them.
        ping_timeout: seconds a client has to answer a ping.
        close_timeout: seconds a client has to take what is queued before its close frame.
        cancel_on_close: True cancels a callback that still runs when its connection ends. False
            lets it come to its end, and the messages that a client sent before it closed too.
        cancel_grace: seconds that a cancelled callback has before ``on_close`` runs regardless.
        slow_callback: seconds a callback may hold the event loop before a warning names it.
        casefold_channels: True makes channel names case-insensitive.
        health_pages: True answers ``/healthz`` and ``/readyz`` below the hub's mount, or in front
            of the app that it wraps.
        client_scripts: True answers ``/backchannel/client.js``, ``client.global.js`` and
            ``tabs.js`` beside it: the browser's client. False leaves those paths alone.
        debug: True shows tracebacks and near misses to clients, admits any port of localhost as
            origin, and makes blocking calls inside callbacks raise. Never in production.

    Raises:
        TypeError: an unknown setting, or one of the wrong type.
        ValueError: a setting out of range.
    """

    broker: Broker | str | None = None
    name: str = "hub"
    broker_timeout: float = 5.0
    max_unsent: int = 16 * MIB
    max_publication: int = 16 * MIB
    presence_lease: float = 10.0
    presence_moment: float = 1.0
    allowed_origins: str | Iterable[str] = ()
    authenticate: Callable[[Any], Any] | None = None
    session: Sessions | None = None
    session_check: float | None = 60.0
    touch_session: bool = True
    require_user: bool = False
    trusted_proxies: str | Iterable[str] = ()
    max_message: int = MIB
    max_outbox: int = MIB
    max_messages_per_second: float | None = None
    max_bytes_per_second: int | None = None
    max_handshakes_per_second: float | None = None
    max_connections_per_address: int | None = None
    max_connections_per_user: int | None = None
    when_user_is_full: WhenUserIsFull = "replace"
    resume_window: float | None = 120.0
    max_subscriptions: int = 1000
    compress_above: int | None = 1024
    deflate_window: int = 12
    handshake_timeout: float = 10.0
    ping_interval: float = 25.0
    ping_timeout: float = 20.0
    close_timeout: float = 2.0
    cancel_on_close: bool = True
    cancel_grace: float = 5.0
    slow_callback: float = 0.020
    casefold_channels: bool = False
    health_pages: bool = False
    client_scripts: bool = True
    debug: bool = False

    def __post_init__(self) -> None:
        """Check what has a range; keep lists as tuples."""
        for name in ("allowed_origins", "trusted_proxies"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        for origin in self.allowed_origins:
            _check_origin(origin)
        for proxy in self.trusted_proxies:
            _network(proxy)
        for field in fields(self):
            value: Any = getattr(self, field.name)
            wanted = _TYPES.get(str(field.type))
            if wanted is None:
                continue
            is_number = bool not in wanted
            if not isinstance(value, wanted) or (is_number and isinstance(value, bool)):
                raise TypeError(f"Hub({field.name}=…) must be {field.type}, not {value!r}")
            if is_number and value is not None and not cast("float", value) > 0:  # also NaN
                raise ValueError(f"Hub({field.name}=…) must be more than 0, not {value!r}")
        for name in ("max_messages_per_second", "max_handshakes_per_second"):
            if getattr(self, name) == math.inf:
                raise ValueError(f"Hub({name}=…) must be finite, not inf; None is no limit")
        for name in ("presence_lease", "presence_moment", "resume_window"):
            if getattr(self, name) == math.inf:
                raise ValueError(f"Hub({name}=…) is seconds and must be finite, not inf")
        if self.presence_lease < SHORTEST_LEASE:
            raise ValueError(
                f"Hub(presence_lease=…) is at least {SHORTEST_LEASE} s, not "
                f"{self.presence_lease!r}: it is renewed each third of it"
            )
        if self.when_user_is_full not in get_args(WhenUserIsFull):
            raise ValueError(
                'Hub(when_user_is_full=…) must be "replace" or "refuse", not '
                f"{self.when_user_is_full!r}"
            )
        if not 9 <= self.deflate_window <= 15:
            raise ValueError(f"Hub(deflate_window=…) must be 9 to 15, not {self.deflate_window!r}")
        if not isinstance(self.broker, str | None) and not callable(
            getattr(self.broker, "publish", None)
        ):
            raise TypeError(
                'Hub(broker=…) takes a URL such as "redis://localhost:6379/0" or a Broker, not '
                f"{self.broker!r}; leave it out to keep messages in this process"
            )
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.-]{1,64}", self.name):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                "Hub(name=…) is 1 to 64 letters, digits, dots, dashes and underscores, not "
                f"{self.name!r}"
            )
        if isinstance(self.session, (str, type)) or (
            self.session is not None and not callable(getattr(self.session, "find", None))
        ):
            made = ""
            if isinstance(self.session, type) and hasattr(self.session, "find"):
                made = f": write {self.session.__name__}(…), with what it needs"
            raise TypeError(
                f"Hub(session=…) takes an object with find(request), not {self.session!r}{made}"
            )
        check_authenticate("Hub(authenticate=…)", self.authenticate)

    def networks(self) -> tuple[Network, ...]:
        """Return the trusted proxies as networks."""
        return tuple(_network(proxy) for proxy in self.trusted_proxies)


class SettingsOptions(TypedDict, total=False):
    """The settings as keywords, for editors; a test keeps it the same as Settings."""

    broker: Broker | str | None
    name: str
    broker_timeout: float
    max_unsent: int
    max_publication: int
    presence_lease: float
    presence_moment: float
    allowed_origins: str | Iterable[str]
    authenticate: Callable[[Any], Any] | None
    session: Sessions | None
    session_check: float | None
    touch_session: bool
    require_user: bool
    trusted_proxies: str | Iterable[str]
    max_message: int
    max_outbox: int
    max_messages_per_second: float | None
    max_bytes_per_second: int | None
    max_handshakes_per_second: float | None
    max_connections_per_address: int | None
    max_connections_per_user: int | None
    when_user_is_full: WhenUserIsFull
    resume_window: float | None
    max_subscriptions: int
    compress_above: int | None
    deflate_window: int
    handshake_timeout: float
    ping_interval: float
    ping_timeout: float
    close_timeout: float
    cancel_on_close: bool
    cancel_grace: float
    slow_callback: float
    casefold_channels: bool
    health_pages: bool
    client_scripts: bool
    debug: bool


def check_authenticate(where: str, value: object) -> None:
    """Check what is to say who a client is; None is nobody.

    Args:
        where: what it was given as, for the error.
        value: what was given.

    Raises:
        TypeError: it can't be called with a request, or it is one of ``backchannel.auth`` that has
            to be called first.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{where} must be callable, not {value!r}")
    if value is None:
        return
    if isinstance(value, FunctionType | type) and _is_maker(value):
        call = f"{value.__name__}({'' if value.__name__ == 'starlette_user' else '…'})"
        raise TypeError(f"{where} got {value.__name__}, which makes one: write {call}")
    _check_takes_request(where, value)


def _is_maker(value: FunctionType | type) -> bool:
    """Tell whether it is one of ``backchannel.auth``, which make what is wanted."""
    is_ours = value.__module__.startswith("backchannel.auth.")
    return is_ours and value.__qualname__ == value.__name__


def _check_takes_request(where: str, value: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return  # some written in C have none
    try:
        signature.bind(None)
    except TypeError as error:
        name = getattr(value, "__qualname__", repr(value))
        raise TypeError(
            f"{where} is called with the request alone, as {name}(request), which it can't be: "
            f"{error}"
        ) from None


def _texts(name: str, value: str | Iterable[str]) -> tuple[str, ...]:
    if not isinstance(value, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"Hub({name}=…) takes str or a list of str, not {value!r}")
    texts = (value,) if isinstance(value, str) else tuple(value)
    if wrong := [text for text in texts if not isinstance(text, str)]:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"Hub({name}=…) takes str or a list of str, not {wrong[0]!r}")
    return texts


def _check_origin(origin: str) -> None:
    if origin != "*" and not _is_origin(origin):
        raise ValueError(
            f"Hub(allowed_origins=…): {origin!r} is no origin; write it as a browser sends it: "
            'scheme, host and port without a path, such as "https://app.example.com" or '
            '"http://localhost:3000"; "https://*.example.com" for subdomains, "*" for any'
        )


def _is_origin(text: str) -> bool:
    if not _ORIGIN.fullmatch(text):
        return False
    try:
        urlsplit(text.replace("*.", "")).port  # noqa: B018 - raises when it is out of range
    except ValueError:
        return False
    return True


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError(
            f"Hub(trusted_proxies=…): {text!r} is no address or network such as 10.0.0.0/8"
        ) from error
