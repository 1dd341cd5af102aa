"""Sessions that middleware before the hub has left in the scope: Starlette's, starsessions'."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

from backchannel.session.web import (
    NO_SESSION,
    NO_SESSIONS,
    Session,
    asked,
    cookies_in,
    end_of_signed,
)

__all__ = ["in_scope"]


async def in_scope(scope: Mapping[str, Any]) -> Session:
    """Return the session that middleware left in a handshake's scope.

    Starlette's ``SessionMiddleware`` keeps all of it in a signed cookie. starsessions keeps it in a
    store, unless that is its ``CookieStore``; it need not be loaded.

    Raises:
        SessionUnavailable: the store does not answer.
    """
    if (handler := scope.get("session_handler")) is not None and hasattr(handler, "serializer"):
        return await _starsession(handler, scope)
    data: Any = scope.get("session")
    if not isinstance(data, Mapping):
        return NO_SESSIONS
    if not data:
        return NO_SESSION
    return Session(data, ends_at=_end_of_starlettes(scope))  # pyright: ignore[reportUnknownArgumentType]


async def _starsession(handler: Any, scope: Mapping[str, Any]) -> Session:
    options = _options_of(scope, "starsessions")
    rolls = options is not None and bool(options.get("rolling"))
    store = _Starsessions(handler.store, handler.serializer, handler.lifetime, rolls=rolls)
    key: str | None = handler.session_id
    data = None if key is None else await asked(store.load(key))
    if data is None:
        return NO_SESSION
    if type(handler.store).__name__ == "CookieStore":
        # What it calls the session's id is the cookie's content.
        signer, age = getattr(handler.store, "_signer", None), handler.lifetime
        end = end_of_signed(signer.unsign, key or "", age) if signer and age else None
        return Session(data, ends_at=end)
    return Session(data, id=key, store=store)


class _Starsessions:
    """A store of starsessions, which counts the time of a session from its last use or creation.

    Args:
        store: theirs.
        serializer: theirs, between a dict and bytes.
        lifetime: seconds that a session lives; 0 for as long as the browser runs.
        rolls: the time is counted from the last use.
    """

    __slots__ = ("_lifetime", "_rolls", "_serializer", "_store")

    def __init__(self, store: Any, serializer: Any, lifetime: int, *, rolls: bool):
        self._store = store
        self._serializer = serializer
        self._lifetime = lifetime
        self._rolls = rolls

    @property
    def extends(self) -> bool:
        """It is in Redis, and the time is counted from the last use."""
        in_redis = hasattr(self._store, "_connection") and hasattr(self._store, "prefix")
        return in_redis and self._rolls and self._lifetime > 0

    async def load(self, key: str) -> Mapping[str, Any] | None:
        """Return what a session holds; None when it has expired or was deleted."""
        found = await self._read(key)
        return None if not found else {n: v for n, v in found.items() if n != "__metadata__"}

    async def save(self, key: str, changed: Mapping[str, Any], removed: Collection[str]) -> bool:
        """Change some keys of a session; False when it does not exist any more."""
        found = await self._read(key)
        if not found:
            return False
        data = {name: value for name, value in found.items() if name not in removed} | dict(changed)
        about: Mapping[str, Any] = found.get("__metadata__") or {}
        await self._store.write(
            session_id=key, data=self._serializer.serialize(data), lifetime=self._lifetime,
            ttl=self._lifetime if self._rolls else _left(about, self._lifetime),
        )  # fmt: skip
        return True

    async def touch(self, key: str) -> bool:
        """Let a session live for its lifetime from now on."""
        place = self._store.prefix(key)
        return bool(await self._store._connection.expire(place, self._lifetime))

    async def _read(self, key: str) -> dict[str, Any]:
        raw = await self._store.read(session_id=key, lifetime=self._lifetime)
        return dict(self._serializer.deserialize(raw))


def _left(about: Mapping[str, Any], lifetime: int) -> int:
    """Return the seconds that a session has left, as starsessions counts them; 0 is no limit."""
    if not lifetime or "last_access" not in about:
        return lifetime
    return max(1, int(about["created"] + about["lifetime"] - about["last_access"]))


def _end_of_starlettes(scope: Mapping[str, Any]) -> float | None:
    """Return when the cookie of Starlette's middleware is good no more; None where nobody knows."""
    options = _options_of(scope, "starlette")
    if options is None or options["max_age"] is None:
        return None
    # That middleware needs it, so it is there.
    signer = import_module("itsdangerous").TimestampSigner(str(options["secret_key"]))
    values = cookies_in(scope, options["session_cookie"])
    ends = (end_of_signed(signer.unsign, value, options["max_age"]) for value in values)
    return min((end for end in ends if end is not None), default=None)


def _options_of(scope: Mapping[str, Any], package: str) -> Mapping[str, Any] | None:
    """Return how the app's SessionMiddleware was set up, where ``add_middleware`` did it.

    Args:
        scope: the handshake's; its app has the list.
        package: whose SessionMiddleware.
    """
    for middleware in getattr(scope.get("app"), "user_middleware", ()):
        kind = middleware.cls
        if getattr(kind, "__name__", "") == "SessionMiddleware" and (
            kind.__module__.partition(".")[0] == package
        ):
            given = inspect.signature(kind).bind(None, *middleware.args, **middleware.kwargs)
            given.apply_defaults()
            return given.arguments
    return None
