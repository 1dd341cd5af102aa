"""A handshake's facts: path, headers, cookies, query, and what middleware made of them."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from backchannel.session.web import NO_SESSION, Session

if TYPE_CHECKING:
    from backchannel.config import Network

__all__ = ["Facts", "MultiMapping", "Request", "path_segments", "user_id"]

Scope = Mapping[str, Any]
_ESCAPE: Final = re.compile(r"\\(?:([0-3][0-7]{2})|(.))")
_OWN: Final = {
    b"authorization", b"cookie", b"forwarded", b"sec-websocket-key", b"sec-websocket-protocol",
    b"traceparent", b"tracestate", b"x-forwarded-for", b"x-real-ip", b"x-request-id",
}  # fmt: skip
"""Headers that rarely are the same for two clients."""

_FORWARDING: Final = {"forwarded", "via", "x-real-ip", "x-forwarded-for", "x-forwarded-host"}


class MultiMapping(Mapping[str, str]):
    """A read-only mapping whose keys may have several values; ``[key]`` is the first.

    Args:
        pairs: keys and values in their order.
        casefold: True ignores the case of keys, as headers want it.
    """

    __slots__ = ("_casefold", "_values")

    def __init__(self, pairs: Iterable[tuple[str, str]], *, casefold: bool = False):
        self._casefold = casefold
        self._values: dict[str, list[str]] = {}
        for key, value in pairs:
            self._values.setdefault(key.lower() if casefold else key, []).append(value)

    def __getitem__(self, key: str) -> str:
        return self._values[key.lower() if self._casefold else key][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def getlist(self, key: str) -> list[str]:
        """Return all values of a key, in their order; an empty list when there is none."""
        return list(self._values.get(key.lower() if self._casefold else key, ()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._values!r})"


class Request:
    """A WebSocket handshake, as ``on_handshake`` and ``authenticate`` get it.

    Attributes:
        path: decoded path below the place where the hub is mounted.
        params: the URL template's variables, converted.
        client: (address, port) of the peer, or None when the server does not tell.
        session: the web framework's session that came with the handshake.
        user: user id, set once ``authenticate`` has run; None is anonymous.
        identity: the object that ``authenticate`` returned.
        subprotocols: what the client offers, in its order of preference.
        subprotocol: what ``authenticate`` wants to be answered, one of these; the endpoint's own
            choice comes before it.
        app: the framework's application object, or None.
        scope: the ASGI scope itself.
    """

    __slots__ = (
        "_cookies",
        "_headers",
        "_proxied",
        "_query",
        "_since",
        "app",
        "client",
        "identity",
        "params",
        "path",
        "scope",
        "session",
        "subprotocol",
        "subprotocols",
        "user",
    )  # fmt: skip

    def __init__(
        self,
        scope: Scope,
        *,
        path: str,
        params: Mapping[str, Any],
        session: Session | None = None,
        proxies: tuple[Network, ...] = (),
    ):
        self.scope = scope
        self._since: int | None = None  # see farewell.Farewells
        self.path = path
        self.params: Mapping[str, Any] = MappingProxyType(dict(params))
        self.session = NO_SESSION if session is None else session
        self.user: str | None = None
        self.identity: Any = None
        self.subprotocols: tuple[str, ...] = tuple(scope.get("subprotocols") or ())
        self.subprotocol: str | None = None
        self.app: Any = scope.get("app")
        self._headers: MultiMapping | None = None
        self._query: MultiMapping | None = None
        self._cookies: MultiMapping | None = None
        peer = scope.get("client")
        self._proxied = bool(peer and proxies and _is_in(peer[0], proxies))
        self.client: tuple[str, int] | None = self._forwarded_client(peer, proxies)

    @property
    def headers(self) -> MultiMapping:
        """The handshake's headers; case of names ignored."""
        if self._headers is None:
            pairs = ((k.decode("latin-1"), v.decode("latin-1")) for k, v in self.scope["headers"])
            self._headers = MultiMapping(pairs, casefold=True)
        return self._headers

    def _values_of(self, name: str) -> list[str]:
        """Return all values of one header, without reading the others.

        Args:
            name: in lower case.
        """
        if self._headers is not None:
            return self._headers.getlist(name)
        wanted = name.encode()
        return [v.decode("latin-1") for k, v in self.scope["headers"] if k.lower() == wanted]

    @property
    def query(self) -> MultiMapping:
        """The query string's fields, blank ones included; ``.getlist(key)`` has all values."""
        if self._query is None:
            self._query = _query(self.scope.get("query_string", b""))
        return self._query

    @property
    def cookies(self) -> MultiMapping:
        """The cookies; of several with one name the first, which is the most specific."""
        if self._cookies is None:
            self._cookies = MultiMapping(_cookies(self._values_of("cookie")))
        return self._cookies

    @property
    def host(self) -> str:
        """Host and port the client asked for; a trusted proxy's word counts."""
        forwarded = self._values_of("x-forwarded-host")[:1] if self._proxied else []
        if forwarded and forwarded[0]:
            return forwarded[0].split(",")[0].strip()
        return next(iter(self._values_of("host")), "")

    @property
    def is_local(self) -> bool:
        """Peer and Host are this machine, and nothing was forwarded: a developer's own request."""
        peer = self.scope.get("client")
        try:
            host = urlsplit("//" + self.headers.get("host", "")).hostname or ""
        except ValueError:
            return False
        return bool(
            peer
            and _is_loopback(peer[0])
            and (host == "localhost" or _is_loopback(host))
            and _FORWARDING.isdisjoint(self.headers)
        )

    def _forwarded_client(
        self, peer: tuple[str, int] | None, proxies: tuple[Network, ...]
    ) -> tuple[str, int] | None:
        if self._proxied and (forwarded := self.headers.getlist("x-forwarded-for")):
            hops = [hop.strip() for hop in ",".join(forwarded).split(",")]
            # From the right: the first hop that is no proxy of ours is the client.
            for hop in reversed(hops):
                if not _is_in(hop, proxies):
                    return hop, 0
        # granian tells the port as a str, some servers none for a Unix socket
        return (peer[0], int(peer[1] or 0)) if peer else None


class Facts:
    """What a connection keeps of its handshake, in little memory: parsed when it is asked for.

    Attributes:
        path: decoded path below the place where the hub is mounted.
        user: user id; None is anonymous.
        identity: the object that ``authenticate`` returned.
        session: the web framework's session that came with the handshake.
        client: (address, port) of the peer, or None when the server does not tell.
        app: the framework's application object, or None.
    """

    __slots__ = (
        "_common", "_own", "_params", "_query_string", "app", "client", "identity", "path",
        "session", "user",
    )  # fmt: skip

    def __init__(self, request: Request):
        self.path = request.path
        self.user = request.user
        self.identity = request.identity
        self.session = request.session
        self.client = request.client
        self.app = request.app
        self._query_string: bytes = request.scope.get("query_string", b"")
        self._params = tuple(part for item in request.params.items() for part in item)
        # Many clients have the same browser: what they all send is kept once.
        common, own = list[bytes](), list[bytes]()
        for name, value in request.scope["headers"]:
            (own if name in _OWN else common).append(name + b"\0" + value + b"\0")
        self._common = _the_same(b"".join(common))
        self._own = b"".join(own)

    @property
    def params(self) -> Mapping[str, Any]:
        """The URL template's variables, converted."""
        return MappingProxyType(dict(zip(self._params[::2], self._params[1::2], strict=True)))

    @property
    def headers(self) -> MultiMapping:
        """The handshake's headers; case of names ignored."""
        return MultiMapping(_unpacked(self._common + self._own), casefold=True)

    @property
    def query(self) -> MultiMapping:
        """The query string's fields, blank ones included; ``.getlist(key)`` has all values."""
        return _query(self._query_string)

    @property
    def cookies(self) -> MultiMapping:
        """The cookies; of several with one name the first, which is the most specific."""
        return MultiMapping(_cookies(self.headers.getlist("cookie")))


def path_segments(scope: Scope) -> Iterator[list[str]]:
    """Yield the readings of a scope's path, as decoded segments, the likeliest first.

    ``root_path`` is where the app is mounted. Most servers and frameworks keep it at the front of
    ``path`` (as the ASGI spec says), some cut it off. An encoded slash stays inside its segment.
    A slash that a framework has put at the end (Litestar does at its mounts) is taken off again.
    """
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    raw = scope.get("raw_path") or b""
    if raw and path.endswith("/") and not unquote(raw.decode("latin-1")).endswith("/"):
        path = path[:-1]
    keep = raw.decode("latin-1") if b"%" in raw else ""
    if root and (path == root or path.startswith(root + "/")):
        yield _split(path[len(root) :], keep)
    yield _split(path, keep)


def _split(path: str, raw: str) -> list[str]:
    if path in {"", "/"}:
        return []
    return (_raw_tail(path, raw) if raw else None) or path[1:].split("/")


def _raw_tail(path: str, raw: str) -> list[str] | None:
    """Return the decoded segments of that end of the raw path which decodes to the path."""
    segments = [unquote(segment) for segment in raw.split("/")]
    missing = len(path)
    for start in range(len(segments) - 1, 0, -1):
        missing -= 1 + len(segments[start])
        if missing <= 0:
            tail = segments[start:]
            return tail if "/" + "/".join(tail) == path else None
    return None


def _query(text: bytes) -> MultiMapping:
    return MultiMapping(parse_qsl(text.decode("latin-1"), keep_blank_values=True))


@functools.lru_cache(maxsize=1024)
def _the_same(data: bytes) -> bytes:
    """Return the one object for equal bytes, so that they are kept once."""
    return data


def _unpacked(blob: bytes) -> Iterator[tuple[str, str]]:
    parts = blob.decode("latin-1").split("\0")
    return zip(parts[:-1:2], parts[1::2], strict=True)


def _cookies(headers: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Read cookies as browsers send them (RFC 6265 §4.2), keeping ``=`` in values."""
    for header in headers:
        for part in header.split(";"):
            name, separator, value = part.strip().partition("=")
            if separator and name:
                yield name.strip(), _unquote(value.strip())


def _unquote(value: str) -> str:
    """Undo the quoting that servers put around values with special characters."""
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    return _ESCAPE.sub(lambda m: chr(int(m[1], 8)) if m[1] else m[2], value[1:-1])


def _is_in(address: str, networks: tuple[Network, ...]) -> bool:
    parsed = _ip_address(address)
    return parsed is not None and any(parsed in network for network in networks)


def _is_loopback(address: str) -> bool:
    parsed = _ip_address(address)
    return parsed is not None and parsed.is_loopback


def _ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read an address; an IPv4 one that a socket for both kinds shows as IPv6 is an IPv4 one."""
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None) or parsed


def user_id(value: object) -> str:
    """Return a user's id as the hub keeps it: a str; 42 is "42".

    Raises:
        TypeError: neither a str nor an int.
        ValueError: empty.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"a user id is a str or an int, not {value!r}")
    if value == "":
        raise ValueError("a user id can't be empty")
    return str(value)
