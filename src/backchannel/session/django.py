"""Django's sessions and users, of any engine, without Django Channels.

    from backchannel.session.django import DjangoSessions, close_on_logout

    sessions = DjangoSessions()
    hub = Hub(session=sessions, authenticate=sessions.user)
    close_on_logout(hub)

Django is asked by its asynchronous API, which it has from 5.1 on; what talks to a database runs in
its threads. It is imported when it is needed, once its settings are in place.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from datetime import timedelta
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
            return Session(data, ends_at=_end_of_signed(engine, key))
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

    @property
    def extends(self) -> bool:
        """It is one of Django's own engines, or made from one."""
        known = ("get_model_class", "cache_key_prefix", "_key_to_file")
        return any(hasattr(self._engine, name) for name in known)

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

    async def touch(self, key: str) -> bool:
        """Let a session live for SESSION_COOKIE_AGE, or what set_expiry said, from now on.

        Only the time is written, nowhere what the session holds. One that was given a time to end
        at, by set_expiry, ends then.
        """
        data = await self.load(key)
        if data is None:
            return False
        session = self._engine(key)
        seconds = data.get("_session_expiry") or session.get_session_cookie_age()
        if not isinstance(seconds, int):
            return True
        if hasattr(session, "get_model_class"):
            if not await _extend_row(session.get_model_class().objects, key, seconds):
                return False
            if not hasattr(session, "cache_key_prefix"):
                return True
        if hasattr(session, "cache_key_prefix"):
            found = await session._cache.atouch(await session.acache_key(), seconds)
            return bool(found) or hasattr(session, "get_model_class")
        try:
            os.utime(session._key_to_file())
        except FileNotFoundError:  # deleted meanwhile
            return False
        return True


async def _extend_row(objects: Any, key: str, seconds: int) -> bool:
    """Move the end of a session in the database, unless somebody else does at this moment."""
    now = import_module("django.utils.timezone").now()
    living = objects.filter(session_key=key, expire_date__gt=now)
    end = await living.values_list("expire_date", flat=True).afirst()
    if end is None:
        return False
    await living.filter(expire_date=end).aupdate(expire_date=now + timedelta(seconds=seconds))
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


def _end_of_signed(engine: type[Any], key: str) -> float:
    """Return when a session is good no more that lives in a cookie: its key is all of it."""
    signed_at: int = import_module("django.core.signing").b62_decode(key.rsplit(":", 2)[1])
    age: int = engine(key).get_session_cookie_age()
    return float(signed_at + age)


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
