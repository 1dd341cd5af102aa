"""Backchannel's own sessions, for applications without a framework that has some.

    from backchannel.session.server import ServerSessions

    sessions = ServerSessions(secret=os.environ["SECRET"], store="redis://localhost:6379/0")
    hub = Hub(session=sessions, authenticate=session_user())
    app = sessions.wrap(app)  # HTTP handlers find it in scope["session"], as with Starlette's

The cookie holds nothing but a random id, signed, so that the store is never asked for an id that
was not given out. What the session holds stays on the server.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from backchannel.errors import SessionReadOnly, SessionUnavailable
from backchannel.messages import encode
from backchannel.observe import HUB
from backchannel.session.stores import MemorySessions, OwnStore, RedisSessions
from backchannel.session.web import NO_SESSION, Session, asked, cookies_in
from backchannel.urls import hidden, problem_of

if TYPE_CHECKING:
    from backchannel.request import Request

__all__ = ["HttpSession", "ServerSessions"]

AsgiApp = Callable[[Any, Any, Any], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_SHORTEST: Final = 32
_UNAVAILABLE: Final = b"Sessions can't be read at the moment. Try again in a few seconds."


class ServerSessions:
    """Finds and makes sessions that are kept in memory or in Redis. ``Hub(session=…)`` takes it.

    Args:
        secret: signs the cookies: at least 32 characters that nobody else knows. Of several the
            first signs, and cookies of all are good. None makes one up when it is first needed,
            so that sessions end with the process.
        store: ``"memory"``, this process alone; or where Redis is: ``"redis://…"``,
            ``"rediss://…"``, ``"unix://…"``.
        max_age: seconds that a session lives after it was last used.
        cookie: the cookie's name.
        secure: True sends the cookie over https only; None does where the page came by https.
        user: the key that says who has signed in. When HTTP changes it, the session gets another
            id, so that who knew the old one is not signed in with it.

    Raises:
        TypeError, ValueError: one of these can't be; the text says which, and what can.
        ImportError: Redis is wanted, and the extra ``[redis]`` is missing.
    """

    def __init__(
        self,
        *,
        secret: str | Sequence[str] | None = None,
        store: str = "memory",
        max_age: int = 14 * 24 * 3600,
        cookie: str = "backchannel_session",
        secure: bool | None = None,
        user: str = "user_id",
    ):
        self._keys = None if secret is None else _keys(secret)
        if isinstance(max_age, bool) or not isinstance(max_age, int) or max_age <= 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"ServerSessions(max_age=…) is whole seconds above 0, not {max_age!r}")
        if not cookie or any(
            not 32 < ord(one) < 127 or one in '()<>@,;:\\"/[]?={}' for one in cookie
        ):
            raise ValueError(f"ServerSessions(cookie=…): {cookie!r} is no cookie's name")
        self.cookie = cookie
        self.user = user
        self.store = _store(store, max_age)
        self._max_age = max_age
        self._secure = secure

    async def find(self, request: Request) -> Session:
        """Return the session of a handshake, empty where there is none or it has expired.

        Raises:
            SessionUnavailable: Redis does not answer.
        """
        if (key := self._key_in(request.scope)) is None:
            return NO_SESSION
        data = await asked(self.store.load(key))
        return NO_SESSION if data is None else _SocketSession(data, key, self)

    async def issue(self, **data: Any) -> str:
        """Make a session and return its cookie's value: for tests, and whoever sets cookies.

        Args:
            data: what it holds.

        Raises:
            UnsendableMessage: something in it has no valid JSON form.
            SessionUnavailable: Redis does not answer.
        """
        encode(data)
        key = _new_id()
        await asked(self.store.begin(key, data))
        return self.signed(key)

    def wrap(self, app: AsgiApp, *, begin: bool = False) -> AsgiApp:
        """Return an ASGI app whose HTTP handlers find the session in ``scope["session"]``.

        In Starlette and FastAPI that is ``request.session``; ``app.add_middleware(sessions.wrap)``
        does it there. What a handler changes is saved before its response begins, key by key. While
        the store does not answer, requests that come with a session are answered with 503.

        Args:
            app: any ASGI app.
            begin: True begins a session for each client that has none.
        """

        async def wrapped(scope: Any, receive: Any, send: Send) -> None:
            if scope["type"] == "http":
                await _Visit(self, scope, send, begin=begin).serve(app, receive)
            else:
                await app(scope, receive, send)

        return wrapped

    async def aclose(self) -> None:
        """Close connections to the store; called when the hub has stopped."""
        await self.store.aclose()

    def signed(self, key: str) -> str:
        """Return the cookie's value for a session's id."""
        return f"{key}.{_signature(self._secrets()[0], key)}"

    def header(self, key: str | None, scope: Mapping[str, Any]) -> bytes:
        """Return the ``Set-Cookie`` of a session; None takes the cookie away."""
        secure = scope.get("scheme") == "https" if self._secure is None else self._secure
        value, age = ("", 0) if key is None else (self.signed(key), self._max_age)
        text = f"{self.cookie}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Lax"
        return (text + "; Secure" * secure).encode()

    def _key_in(self, scope: Mapping[str, Any]) -> str | None:
        """Return the id in the first cookie that we have signed; others may be anybody's."""
        for value in cookies_in(scope, self.cookie):
            key, _, signature = value.partition(".")
            for secret in self._secrets():
                if hmac.compare_digest(_signature(secret, key).encode(), signature.encode()):
                    return key
        return None

    def _secrets(self) -> list[bytes]:
        if self._keys is None:
            self._keys = [secrets.token_bytes()]
            HUB.warning(
                "ServerSessions has no secret, so sessions end with this process: give it one that "
                'stays, ServerSessions(secret=os.environ["SECRET"])'
            )
        return self._keys


class _SocketSession(Session):
    """One of these sessions, as a socket has it."""

    __slots__ = ("_user",)

    def __init__(self, data: Mapping[str, Any], key: str, sessions: ServerSessions):
        super().__init__(data, id=key, store=sessions.store)
        self._user = sessions.user

    def __setitem__(self, key: str, value: Any) -> None:
        self._check(key)
        encode({key: value})
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self._check(key)
        super().__delitem__(key)

    def _check(self, key: str) -> None:
        if key == self._user:
            raise SessionReadOnly(
                f"{key!r} says who has signed in, which only HTTP can change: the session gets "
                "another id then, and only an HTTP response can set its cookie"
            )


class HttpSession(MutableMapping[str, Any]):
    """A session during one HTTP request; what is changed is saved before the response begins.

    Args:
        key: its id; None where there is none yet.
        data: what it holds.
    """

    def __init__(self, key: str | None, data: Mapping[str, Any]):
        self.key = key
        self.before = data
        self.data = dict(data)
        self.changed: dict[str, Any] = {}
        self.next: str | None = None
        self.was_used = False

    @property
    def id(self) -> str | None:
        """What names it, for ``hub.session(id)``; None where there is none yet."""
        return self.key if self.next is None else self.next

    @property
    def removed(self) -> set[str]:
        """The keys that it held and does no more."""
        return set(self.before) - set(self.data)

    def rotate(self) -> str:
        """Give it another id, as at a login, and return that; who knows the old one has nothing."""
        self.was_used = True
        if self.next is None:
            self.next = _new_id()
        return self.next

    def __getitem__(self, key: str) -> Any:
        self.was_used = True
        return self.data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        encode({key: value})
        self.was_used = True
        self.data[key] = self.changed[key] = value

    def __delitem__(self, key: str) -> None:
        self.was_used = True
        del self.data[key]
        self.changed.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        self.was_used = True
        return iter(self.data)

    def __len__(self) -> int:
        self.was_used = True
        return len(self.data)

    def __repr__(self) -> str:
        return f"<HttpSession, {len(self.data)} keys>"  # no id and no values


class _Visit:
    """One HTTP request, and what becomes of its session."""

    def __init__(self, sessions: ServerSessions, scope: Any, send: Send, *, begin: bool):
        self._sessions = sessions
        self._scope = scope
        self._send = send
        self._begin = begin
        self._session = HttpSession(None, {})
        self._failed = False

    async def serve(self, app: AsgiApp, receive: Any) -> None:
        key = self._sessions._key_in(self._scope)
        if key is not None:
            try:
                data = await asked(self._sessions.store.load(key))
            except SessionUnavailable as error:
                await self._refuse(error)
                return
            if data is not None:
                self._session = HttpSession(key, data)
        await app({**self._scope, "session": self._session}, receive, self._pass_on)

    async def _pass_on(self, message: dict[str, Any]) -> None:
        if self._failed:
            return
        if message["type"] == "http.response.start":
            try:
                cookie = await asked(self._settle())
            except SessionUnavailable as error:
                self._failed = True
                await self._refuse(error)
                return
            headers: list[tuple[bytes, bytes]] = list(message.get("headers") or ())
            if self._session.was_used or cookie:
                headers.append((b"vary", b"Cookie"))
            if cookie:
                headers.append((b"set-cookie", cookie))
            message = {**message, "headers": headers}
        await self._send(message)

    async def _settle(self) -> bytes | None:
        """Save what the handler has changed; return the cookie that the client gets."""
        session, store = self._session, self._sessions.store
        key = session.key
        is_new = session.next is not None or session.before.get(
            self._sessions.user
        ) != session.data.get(self._sessions.user)
        if key is None:
            if not (session.data or session.next or self._begin):
                return None
            key = session.rotate()
            await store.begin(key, session.data)
        elif not session.data and session.removed and session.next is None:
            await store.delete(key)
            return self._sessions.header(None, self._scope)
        elif is_new:
            new = session.rotate()
            if not await store.rename(key, new, session.changed, session.removed):
                await store.begin(new, session.changed)  # it ended, and a login is a new beginning
            key = new
        elif session.changed or session.removed:
            if not await store.save(key, session.changed, session.removed):
                return self._sessions.header(None, self._scope)
        elif not session.was_used:
            return None
        elif not await store.touch(key):
            return self._sessions.header(None, self._scope)
        return self._sessions.header(key, self._scope)

    async def _refuse(self, error: SessionUnavailable) -> None:
        HUB.error("answered %r with 503: %s", self._scope["path"], error, exc_info=error)
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(_UNAVAILABLE)).encode()),
            (b"retry-after", b"5"),
        ]
        await self._send({"type": "http.response.start", "status": 503, "headers": headers})
        await self._send({"type": "http.response.body", "body": _UNAVAILABLE})


def _new_id() -> str:
    return secrets.token_urlsafe()  # 256 bits


def _signature(secret: bytes, key: str) -> str:
    digest = hmac.digest(secret, b"backchannel session " + key.encode(errors="replace"), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _keys(secret: str | Sequence[str]) -> list[bytes]:
    is_list = isinstance(secret, Sequence) and not isinstance(secret, str)  # pyright: ignore[reportUnnecessaryIsInstance]
    given: list[Any] = list(secret) if is_list else [secret]
    if not given or not all(isinstance(one, str) for one in given):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError("ServerSessions(secret=…) takes a str, or a list of some")
    if any(len(one) < _SHORTEST for one in given):
        raise ValueError(
            f"ServerSessions(secret=…) needs at least {_SHORTEST} characters; this makes one: "
            'python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return [one.encode() for one in given]


def _store(store: str, max_age: int) -> OwnStore:
    if store == "memory":
        return MemorySessions(max_age)
    if isinstance(store, str) and store.startswith(("redis://", "rediss://", "unix://")):  # pyright: ignore[reportUnnecessaryIsInstance]
        if (problem := problem_of(store)) is not None:
            raise ValueError(f"ServerSessions(store={hidden(store)!r}): {problem}")
        return RedisSessions(store, max_age)
    # What was given may be an address with a password.
    raise ValueError(
        'ServerSessions(store=…) is "memory", or where Redis is: "redis://host:6379/0"'
    )
