"""Litestar's sessions on the server.

    from backchannel.session.litestar import LitestarSessions

    config = ServerSideSessionConfig()
    hub = Hub(session=LitestarSessions(config))
    app = Litestar([live], middleware=[config.middleware], …)

What its ``CookieBackendConfig`` keeps in a cookie needs none of this: the middleware leaves it in
the scope, where the hub finds it by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import msgspec

from backchannel.session.web import NO_SESSION, Session, asked

if TYPE_CHECKING:
    from backchannel.request import Request

__all__ = ["LitestarSessions"]


class LitestarSessions:
    """Finds the Litestar session of a handshake by its cookie. ``Hub(session=…)`` takes it.

    Args:
        config: the app's ``ServerSideSessionConfig``.
    """

    def __init__(self, config: Any):
        self._config = config

    async def find(self, request: Request) -> Session:
        """Return the session of a handshake, empty where there is none or it has expired.

        Raises:
            SessionUnavailable: Litestar's store does not answer.
        """
        app = request.scope.get("litestar_app") or request.app
        if app is None:
            return NO_SESSION
        # Of several cookies with one name it takes another than we do.
        connection = import_module("litestar.connection").ASGIConnection(request.scope)
        key: str | None = connection.cookies.get(self._config.key)
        if not key:
            return NO_SESSION
        store = _Store(self._config.get_store_from_app(app), self._config.max_age)
        data = await asked(store.load(key))
        return NO_SESSION if data is None else Session(data, id=key, store=store)


class _Store:
    """A store of Litestar's.

    Args:
        store: theirs.
        max_age: seconds that a session lives after it was written.
    """

    __slots__ = ("_max_age", "_store")

    def __init__(self, store: Any, max_age: int):
        self._store = store
        self._max_age = max_age

    @property
    def extends(self) -> bool:
        """It can be told to; Litestar's FileStore would write all of the session to do so."""
        return type(self._store).__name__ != "FileStore"

    async def load(self, key: str) -> Mapping[str, Any] | None:
        """Return what a session holds; None when it has expired or was deleted."""
        raw: bytes | None = await self._store.get(key)
        return None if raw is None else msgspec.json.decode(raw, type=dict[str, Any])

    async def save(self, key: str, changed: Mapping[str, Any], removed: Collection[str]) -> bool:
        """Change some keys of a session; False when it does not exist any more."""
        data = await self.load(key)
        if data is None:
            return False
        kept = {name: value for name, value in data.items() if name not in removed}
        raw = msgspec.json.encode({**kept, **changed})
        await self._store.set(key, raw, expires_in=self._max_age)
        return True

    async def touch(self, key: str) -> bool:
        """Let a session live for the config's max_age from now on."""
        return await self._store.get(key, renew_for=self._max_age) is not None
