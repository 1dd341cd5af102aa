"""The session that middleware before the hub put into the scope."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

__all__ = ["Session"]


_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Session(Mapping[str, Any]):
    """A read-only view of the handshake's session; empty when there is none.

    Args:
        store: what the framework keeps it in, such as Starlette's ``scope["session"]``.
    """

    __slots__ = ("_store",)

    def __init__(self, store: Mapping[str, Any] | None):
        self._store: Mapping[str, Any] = _NOTHING if store is None else store

    @property
    def id(self) -> str | None:
        """What names the session; None where the framework keeps it all in a cookie."""
        key = getattr(self._store, "session_key", None) or getattr(self._store, "session_id", None)
        return None if key is None else str(key)

    def __getitem__(self, key: str) -> Any:
        return self._store[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._store)

    def __len__(self) -> int:
        return len(self._store)
