"""The web session of a connection: a mapping that is asked, not copied."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from backchannel.errors import SessionReadOnly, SessionUnavailable
from backchannel.observe import HANDSHAKE

if TYPE_CHECKING:
    from backchannel.stores import SessionStore

__all__ = [
    "NO_SESSION",
    "NO_SESSIONS",
    "REMEMBERED",
    "CookieJar",
    "Session",
    "asked",
    "cookies_in",
    "end_of_signed",
    "named",
    "remember",
]

T = TypeVar("T")

REMEMBERED: Final = "_backchannel_id"
"""Where ``hub.remember`` keeps the id of a session that lives in a cookie."""

_GONE: Final = object()
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Session(MutableMapping[str, Any]):
    """The web framework's session that a connection's handshake came with.

    Reading gives what it held at the handshake, or when ``refresh()`` last asked. Where it is kept
    on the server it can be written: ``ws.session["x"] = 1; await ws.session.save()``. One that
    lives in a cookie can't, since only an HTTP response sets a cookie.

    Args:
        data: what it holds; None where there is no session.
        id: what names it.
        store: where it is kept; None for one that lives in a cookie.
        ends_at: when it ends, in seconds since the epoch; None where that is not known.

    Attributes:
        ends_at: when it ends: its connections are closed then.
    """

    __slots__ = ("_changes", "_data", "_id", "_store", "ends_at")

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002 - the public name
        store: SessionStore | None = None,
        ends_at: float | None = None,
    ):
        self._data: Mapping[str, Any] = _NOTHING if data is None else data
        self._id = id
        self._store = store
        self.ends_at = ends_at
        self._changes: dict[str, Any] | None = None  # not saved yet

    @property
    def id(self) -> str | None:
        """What names the session, for ``hub.session(id)``.

        None where it lives in a cookie and ``hub.remember(request)`` was never called.
        """
        if self._id is not None:
            return self._id
        data = self._data
        key = getattr(data, "session_key", None) or getattr(data, "session_id", None)
        if key is not None:
            return str(key)
        remembered: str | None = data.get(REMEMBERED)
        return remembered

    @property
    def is_writable(self) -> bool:
        """It is kept on the server, so that what is written here reaches HTTP."""
        return self._store is not None

    @property
    def is_extendable(self) -> bool:
        """It is kept on the server and lives longer when it is used."""
        return self._store is not None and self._id is not None and self._store.extends

    async def touch(self) -> bool:
        """Let it live on as if HTTP had used it; what it holds is neither read nor written.

        Messages on a socket do so by themselves (``touch_session``).

        Returns:
            False when it has expired or was deleted, and where it is not extendable.

        Raises:
            SessionUnavailable: the store does not answer.
        """
        if self._store is None or self._id is None or not self._store.extends:
            return False
        return await asked(self._store.touch(self._id))

    async def refresh(self) -> bool:
        """Ask for what the session holds now; what was written here and not saved stays.

        Returns:
            False when it has expired or was deleted: then it is empty. What lives in a cookie is
            what the handshake sent, and stays so.

        Raises:
            SessionUnavailable: the store does not answer; what was known stays.
        """
        if self._store is None or self._id is None:
            return bool(self._data)
        data = await asked(self._store.load(self._id))
        self._data = _NOTHING if data is None else data
        return data is not None

    async def save(self) -> bool:
        """Write what was changed here to the store: HTTP sees it from then on.

        Only the keys that were changed here are written; what HTTP wrote meanwhile to others stays.

        Returns:
            False when the session has expired or was deleted: nothing was written, and it is empty.

        Raises:
            SessionReadOnly: it lives in a cookie, or there is none.
            SessionUnavailable: the store does not answer; what was changed can be saved later.
        """
        store, key = self._writable()
        changes, self._changes = self._changes, None
        if not changes:
            return True
        changed = {name: value for name, value in changes.items() if value is not _GONE}
        removed = frozenset(changes) - frozenset(changed)
        try:
            exists = await asked(store.save(key, changed, removed))
        except BaseException:
            self._changes = {**changes, **(self._changes or {})}
            raise
        kept = {name: value for name, value in self._data.items() if name not in removed}
        self._data = {**kept, **changed} if exists else _NOTHING
        return exists

    def _writable(self) -> tuple[SessionStore, str]:
        if self._store is not None and self._id is not None:
            return self._store, self._id
        if self._data is _NOTHING:
            raise SessionReadOnly("there is no session to write to: this client has none")
        raise SessionReadOnly(
            "this session lives in a cookie, which only an HTTP response can change: write it in a "
            "view, or keep sessions on the server"
        )

    # ── as a mapping ──────────────────────────────────────────────────────────────────────────

    def __getitem__(self, key: str) -> Any:
        if self._changes is not None and key in self._changes:
            if (value := self._changes[key]) is _GONE:
                raise KeyError(key)
            return value
        return self._data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._writable()
        if self._changes is None:
            self._changes = {}
        self._changes[key] = value

    def __delitem__(self, key: str) -> None:
        self._writable()
        if key not in self:
            raise KeyError(key)
        if self._changes is None:
            self._changes = {}
        self._changes[key] = _GONE

    def __iter__(self) -> Iterator[str]:
        if self._changes is None:
            return iter(self._data)
        names = dict.fromkeys((*self._data, *self._changes))
        return iter([name for name in names if self._changes.get(name) is not _GONE])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        kind = "on the server" if self._store is not None else "in a cookie"
        return f"<Session {kind}, {len(self)} keys>"  # no id and no values: reprs end up in logs


NO_SESSION: Final = Session()
"""Where there is none."""


class _NoSessions(Session):
    """Stands where nothing is set up that would find a session; says so once when it is read."""

    __slots__ = ("has_warned",)

    def __init__(self) -> None:
        super().__init__()
        self.has_warned = False

    def __getitem__(self, key: str) -> Any:
        if not self.has_warned:
            self.has_warned = True
            HANDSHAKE.warning(
                "the session was asked for %r, and there are no sessions: put the session "
                "middleware around the app that the hub is mounted in, or say which sessions: "
                "Hub(session=…)",
                key,
            )
        raise KeyError(key)


NO_SESSIONS: Final = _NoSessions()
"""Where there are none at all: nothing is set up that would find one."""


async def remember(request: Any) -> str:
    """Give a request's session an id, where it has none; see ``Hub.remember``."""
    try:
        session = getattr(request, "session", None)
    except AssertionError:  # Starlette's way to say that there is none
        session = None
    if session is None:
        raise TypeError(f"{request!r} has no session: is the session middleware installed?")
    if hasattr(session, "rotate"):  # our own
        return str(session.rotate())
    if hasattr(session, "session_key"):  # Django's
        if session.session_key is None:
            await session.acreate()
        if not type(session).__module__.endswith(".signed_cookies"):
            return str(session.session_key)
    handler = getattr(request, "scope", {}).get("session_handler")
    if handler is not None and type(handler.store).__name__ != "CookieStore":
        return str(handler.session_id or handler.regenerate_id())
    of_litestar = getattr(request, "get_session_id", None)
    key: str | None = None if of_litestar is None else of_litestar()
    return named(session) if key is None else key


def named(session: MutableMapping[str, Any]) -> str:
    """Give a session that lives in a cookie a new random id, and return it."""
    key = session[REMEMBERED] = secrets.token_urlsafe(18)
    return key


def cookies_in(scope: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the values of all cookies of a name in an ASGI scope, as they were sent."""
    for header, line in scope["headers"]:
        if header == b"cookie":
            for part in line.decode("latin-1").split(";"):
                found, _, value = part.strip().partition("=")
                if found == name:
                    yield value


def end_of_signed(unsign: Callable[..., Any], value: str, max_age: int) -> float | None:
    """Return when what itsdangerous has signed is good no more, in seconds since the epoch.

    Args:
        unsign: ``unsign`` of its signer, or ``loads`` of its serializer.
        value: what was signed.
        max_age: seconds that it is good for.

    Returns:
        None where it is not good now, or was signed in another way.
    """
    with contextlib.suppress(Exception):
        _, signed = unsign(value, max_age=max_age, return_timestamp=True)
        return float(signed.timestamp()) + max_age + 1  # it counts in whole seconds
    return None


class CookieJar:
    """As much of a request as a framework wants that reads its session from a cookie."""

    def __init__(self, cookies: Mapping[str, str]):
        self.cookies = cookies


async def asked(answer: Awaitable[T]) -> T:
    """Await a store's answer.

    Raises:
        SessionUnavailable: it raised.
    """
    try:
        return await answer
    except Exception as error:
        raise SessionUnavailable(f"the session store does not answer: {error!r}") from error
