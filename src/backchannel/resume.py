"""Sessions of dialect v1 that outlive their socket: what is kept of one, and under which token.

Pure. What a client holds is a random token; what is kept under it can be found with the token, the
place and the user together, so that it is worth nothing to anybody else, nor at another door.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping
from heapq import heapify, heappop, heappush
from time import monotonic
from typing import Any

import msgspec

__all__ = ["MemoryResumes", "Record", "key_of", "new_token"]

_RANDOM_BYTES = 24


class Record(msgspec.Struct, array_like=True):
    """What is kept of a session.

    Args:
        id: the connection's id.
        channels: names of those that it is in.
        state: what of ``ws.state`` is durable.
        last: the last id of a frame that the client wanted to have acknowledged.
        pending: those up to ``last`` that were not done.
        keys: all that it is kept under: by the token that the client has, and by the one before
            as long as it is not known which of them that is.
        refused: those up to ``last`` that were answered with an error, and its code.
        turn: what its client's hello has counted, or how often it was resumed where clients do
            not count: of two connections that have it, that of the later one goes on.
        opened: those of the channels that on_open put it in, which is asked again.
        began: when it began, in seconds since 1970; 0 where that is not known.
        unsure: there may have been a later one, which is lost with what was done by then.
    """

    id: str
    channels: list[str]
    state: dict[str, Any]
    last: int = 0
    pending: list[int] = []
    keys: list[bytes] = []
    refused: dict[int, str] = {}
    turn: int = 0
    opened: list[str] = []
    began: float = 0.0
    unsure: bool = False

    def pack(self) -> bytes:
        """Return it as it is kept.

        Raises:
            TypeError, ValueError, RecursionError: something of the state is no plain value.
        """
        return _encoder.encode(self)

    @classmethod
    def unpack(cls, data: bytes) -> Record | None:
        """Read what ``pack`` made; None where another version did."""
        try:
            return _decoder.decode(data)
        except msgspec.DecodeError:
            return None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def new_token() -> str:
    """Return a token that nobody can guess: 192 random bits."""
    return secrets.token_urlsafe(_RANDOM_BYTES)


def key_of(token: str, endpoint: str, params: Mapping[str, str], user: str | None) -> bytes:
    """Return what a session is kept under.

    Args:
        token: what the client holds; it is kept nowhere.
        endpoint: the URL template it came in by.
        params: what the template's fields were.
        user: who it is; None is nobody.
    """
    bound = msgspec.msgpack.encode((token, endpoint, sorted(params.items()), user))
    return hashlib.blake2b(bound, digest_size=20).digest()


class MemoryResumes:
    """The sessions of one process; see ``stores.ResumeStore``."""

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[tuple[int, bytes], float]] = {}
        self._ends: list[tuple[float, bytes]] = []  # a heap: when to look whether one has ended

    def __len__(self) -> int:
        return len(self._kept)

    async def put(
        self, records: Mapping[bytes, tuple[int, bytes]], ttl: float, *, new: bool
    ) -> None:
        """Keep sessions; those that are not new only where they are still there."""
        now = monotonic()
        self._tidy(now)
        for key, data in records.items():
            known = key in self._kept
            if new or known:
                self._kept[key] = (data, now + ttl)
                if not known:
                    heappush(self._ends, (now + ttl, key))

    async def extend(self, keys: Collection[bytes], ttl: float) -> None:
        """Keep sessions for so long from now on."""
        until = monotonic() + ttl
        for key in keys:
            if (kept := self._kept.get(key)) is not None:
                self._kept[key] = (kept[0], until)

    async def drop(self, keys: Collection[bytes]) -> None:
        """Forget sessions."""
        for key in keys:
            self._kept.pop(key, None)

    def runs(self, key: bytes) -> tuple[str]:  # noqa: ARG002 - all are lost together
        """Name the one run of data there is."""
        return ("",)

    async def take(self, key: bytes, turn: int) -> bytes | None:
        """Return what is kept and forget it, unless it is of a later turn."""
        (kept_in, data), until = self._kept.get(key, ((0, b""), 0.0))
        if turn and kept_in > turn:
            return None
        self._kept.pop(key, None)
        return data if monotonic() < until else None

    def _tidy(self, now: float) -> None:
        if len(self._ends) > 1000 and len(self._ends) > 4 * len(self._kept):
            self._ends = [(until, key) for key, (_, until) in self._kept.items()]
            heapify(self._ends)
        while self._ends and self._ends[0][0] <= now:
            _, key = heappop(self._ends)
            if (kept := self._kept.get(key)) is None:
                continue
            if kept[1] <= now:
                del self._kept[key]
            else:
                heappush(self._ends, (kept[1], key))
