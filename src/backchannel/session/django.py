"""Django's sessions and users, of any engine, without Django Channels.

    from backchannel.session.django import DjangoSessions, close_on_logout

    sessions = DjangoSessions()
    hub = Hub(session=sessions, authenticate=sessions.user)
    close_on_logout(hub)

Django is asked by its asynchronous API, which it has from 5.1 on; what talks to a database runs in
its threads. It is imported when it is needed, once its settings are in place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from backchannel.session.web import NO_SESSION, Session, asked

if TYPE_CHECKING:
    from backchannel.hub import HubCore
    from backchannel.request import Request

__all__ = ["DjangoSessions", "close_on_logout"]


class DjangoSessions:
    """Finds the Django session of a handshake by its cookie.

    ``Hub(session=…)`` takes it. The cookie's name and the engine are those of Django's settings.
    """

    async def find(self, request: Request) -> Session:
        """Return the session of a handshake, empty where there is none or it has expired.

        Raises:
            SessionUnavailable: the engine's store does not answer.
        """
        if (key := _cookie(request)) is None:
            return NO_SESSION
        engine = _engine()
        store = _Store(engine)
        data = await asked(store.load(key))
        if data is None:
            return NO_SESSION
        if engine.__module__.endswith(".signed_cookies"):
            return Session(data)  # what Django calls its key is the cookie's content
        return Session(data, id=key, store=store)

    async def user(self, request: Request) -> Any:
        """Return the user who is signed in, as ``django.contrib.auth`` has it; None for nobody.

        ``Hub(authenticate=sessions.user)`` takes it: ``ws.identity`` is then the model's instance,
        and ``ws.user`` its primary key.
        """
        if (key := _cookie(request)) is None:
            return None
        auth = import_module("django.contrib.auth")
        user = await auth.aget_user(_HttpRequest(_engine()(key)))
        return user if user.is_authenticated and user.is_active else None


class _HttpRequest:
    """As much of a request as ``aget_user`` wants."""

    def __init__(self, session: Any):
        self.session = session


class _Store:
    """A session engine of Django."""

    __slots__ = ("_engine",)

    def __init__(self, engine: type[Any]):
        self._engine = engine

    async def load(self, key: str) -> Mapping[str, Any] | None:
        """Return what a session holds; None when it has expired or was deleted."""
        session = self._engine(key)
        data: dict[str, Any] = await session.aload()
        # Django forgets the key of a session that it does not find.
        return None if session.session_key is None or session.modified else data

    async def save(self, key: str, changed: Mapping[str, Any], removed: Collection[str]) -> bool:
        """Change some keys of a session; False when it does not exist any more."""
        gone: type[Exception] = import_module("django.contrib.sessions.backends.base").UpdateError
        session = self._engine(key)
        await session.aupdate(changed)
        for name in removed:
            await session.apop(name, None)
        if session.session_key is None:
            return False
        try:
            await session.asave()
        except gone:  # deleted meanwhile
            return False
        return True


def close_on_logout(hub: HubCore) -> None:
    """Close a session's connections with 4004 when its user signs out: in every tab.

    Call it once for each hub, when Django's settings are in place, as in ``asgi.py``.
    """
    signals = import_module("django.contrib.auth.signals")

    def close(request: Any, **_: Any) -> None:
        key = request.session.session_key
        if key is not None:
            hub.session(key).close(4004, "signed out")

    signals.user_logged_out.connect(close, weak=False, dispatch_uid=("backchannel", id(hub)))


def _cookie(request: Request) -> str | None:
    """Return the value of the session's cookie, where there are several the one Django takes."""
    headers = [pair for pair in request.scope["headers"] if pair[0] == b"cookie"]
    make = import_module("django.core.handlers.asgi").ASGIRequest
    cookies: dict[str, str] = make({"method": "GET", "path": "/", "headers": headers}, None).COOKIES
    return cookies.get(_settings().SESSION_COOKIE_NAME) or None


def _engine() -> type[Any]:
    engine: type[Any] = import_module(_settings().SESSION_ENGINE).SessionStore
    return engine


def _settings() -> Any:
    return import_module("django.conf").settings
