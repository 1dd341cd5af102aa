"""Keeps the sessions of a hub's clients, so that who comes back goes on, at whatever node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from backchannel.errors import BrokerUnavailable
from backchannel.observe import HUB, LISTENER
from backchannel.resume import Record, key_of, new_token

if TYPE_CHECKING:
    from backchannel.speech.connection import SpeakingConnection
    from backchannel.speech.dispatch import SpeakingDispatch
    from backchannel.stores import ResumeStore

__all__ = ["Resumes"]

AGAIN: Final = 1.0
"""Seconds after which what could not be kept is tried again."""

_RUN: Final = 8
"""Characters of the name of a run of data: see ``ResumeStore.runs``."""

_Kept = tuple[int, bytes]
"""The turn that a session is in, and its record."""

_Todo = tuple["SpeakingConnection | _Kept | None", bool, float]


class Resumes:
    """What a hub keeps of its v1 connections. Where there are none, it does nothing.

    What changes within a turn of the event loop is written once, at its end.

    Args:
        store: keeps it.
        window: seconds that a session outlives its connection; None lets none do so.
        keep: runs a coroutine in the background.
        linger: seconds that who has taken a session may need until it asks for what is newer.
    """

    def __init__(
        self,
        store: ResumeStore,
        window: float | None,
        keep: Callable[[Coroutine[Any, Any, None], Context], asyncio.Task[None]],
        linger: float = 0.0,
    ):
        self._store = store
        self.window = window
        self._keep = keep
        self._linger = linger
        self._live: dict[SpeakingConnection, None] = {}
        # By key: whose it is or what is kept (None: nothing any more), whether it is new, and how
        # long it is worth the trouble, by the monotonic clock.
        self._todo: dict[bytes, _Todo] = {}
        self._on_the_way: dict[bytes, _Todo] = {}
        # By the id of their connection: those that may have a last word about their session.
        self._staying: dict[str, list[SpeakingDispatch]] = {}
        # They, closed, with their keys: until nothing of these waits to be written; and then.
        self._closed: list[tuple[tuple[bytes, ...], Callable[[], None]]] = []
        self._lingering: dict[Callable[[], None], asyncio.TimerHandle] = {}
        # What was written when a connection ended that has not closed yet.
        self._last: dict[SpeakingConnection, _Kept] = {}
        self._writing: asyncio.Task[None] | None = None
        self._is_beating = False

    @property
    def _life(self) -> float:
        """Seconds that a session is kept whose connection lives, and may die with its node."""
        return 2 * (self.window or 0)

    def begin(self, ws: SpeakingConnection) -> str | None:
        """Return the token by which a connection's session can be resumed."""
        if self.window is None:
            return None
        token = new_token()
        key = key_of(token, ws.endpoint, ws.params, ws.user)
        ws.talk.keys = (key, *ws.talk.keys)
        self._live[ws] = None
        for one in ws.talk.keys:
            self._write(one, ws, new=True)
        if not self._is_beating:
            self._is_beating = True
            self._keep(self._beat(), Context())
        return token

    def changed(self, ws: SpeakingConnection) -> None:
        """Take note that what is kept of a session may be another now."""
        if ws in self._live:
            for key in ws.talk.keys:
                self._write(key, ws)

    def arrived(self, ws: SpeakingConnection) -> None:
        """Take note that a client has its newer token: the one it came with is worth no more."""
        key, *others = ws.talk.keys
        ws.talk.keys = (key,)
        for other in others:
            self._write(other, None)

    def ended(self, ws: SpeakingConnection, *, lives_on: bool | None) -> None:
        """Take note that a connection has ended.

        Args:
            ws: it.
            lives_on: its session can be resumed; None: another connection has it already.
        """
        if ws not in self._live:
            return
        del self._live[ws]
        if lives_on is None:
            for key in ws.talk.keys:
                if (todo := self._todo.get(key)) is not None and todo[0] is ws:
                    del self._todo[key]
            return
        kept = self._kept(ws) if lives_on else None
        if kept is not None:
            self._last[ws] = kept
        for key in ws.talk.keys:
            self._write(key, kept)

    def stay(self, dispatch: SpeakingDispatch, left: Callable[[], None] | None = None) -> None:
        """Let who goes on with a session find a connection of it, until its last word is kept.

        And for a while longer: who has taken what was kept before asks only then.

        Args:
            dispatch: of the connection.
            left: called when it is not found any more.
        """
        staying, ws = self._staying, dispatch.speaker
        staying.setdefault(ws.id, []).append(dispatch)

        def leave() -> None:
            staying[ws.id].remove(dispatch)
            if not staying[ws.id]:
                del staying[ws.id]
            if left is not None:
                left()

        def closed(_: object) -> None:
            before = self._last.pop(ws, None)
            if before is not None and (kept := self._kept(ws)) != before:
                for key in ws.talk.keys:
                    self._write(key, kept)
            self._closed.append((ws.talk.keys, leave))
            if self._writing is None:  # else that does so, for all that close meanwhile
                self._let_go()

        dispatch.closed.add_done_callback(closed)

    def _let_go(self) -> None:
        """Let those linger that have closed, and of which all is written."""
        waiting, self._closed = self._closed, []
        loop = asyncio.get_running_loop()
        for keys, leave in waiting:
            if any(key in self._todo or key in self._on_the_way for key in keys):
                self._closed.append((keys, leave))
            elif self._linger:
                self._lingering[leave] = loop.call_later(self._linger, self._leave, leave)
            else:
                leave()

    def _leave(self, leave: Callable[[], None]) -> None:
        del self._lingering[leave]
        leave()

    async def hand_over(
        self, id_: str, turn: int, live: Iterable[SpeakingDispatch], seconds: float
    ) -> bytes | bool | None:
        """End the connections of a session that goes on elsewhere; return what is to be kept of it.

        Args:
            id_: of the connection.
            turn: of the one that goes on: only those before it end.
            live: those that are open here.
            seconds: how long their callbacks may take.

        Returns:
            True where a later one than that has the session; None where there was none here.
        """
        some = {*live, *self._staying.get(id_, ())}
        if any(one.talk.turn > turn and not one.closed.done() for one in some):
            return True
        # Of one that has closed the turn may be later: what was kept of it was lost.
        former = [one for one in some if one.talk.turn < turn or one.closed.done()]
        for dispatch in former:
            dispatch.replaced()
            self._last.pop(dispatch.speaker, None)
        if not former:
            return None
        await asyncio.wait([one.closed for one in former], timeout=seconds)
        return self._packed(max(former, key=lambda one: one.talk.turn).speaker)

    def keep_again(self) -> None:
        """Keep the sessions of all live connections as new: what keeps them may have lost them."""
        for ws in self._live:
            for key in ws.talk.keys:
                self._write(key, ws, new=True)

    async def finish(self, seconds: float) -> None:
        """Wait until all is kept, for so long at most."""
        if self._writing is not None and seconds > 0:
            await asyncio.wait([self._writing], timeout=seconds)
        self._linger = 0.0
        for leave, timer in list(self._lingering.items()):
            timer.cancel()
            self._leave(leave)

    async def take(
        self, token: str, ws: SpeakingConnection, number: int
    ) -> tuple[bytes, Record, int] | None:
        """Return the session of a token, and what it was kept under; None where there is none.

        Nor where it is kept in a later turn: then this hello has been under way for so long that
        its client has given up on it, and come back by another one.

        Args:
            token: what a client has presented.
            ws: its connection, which has to be the same user's at the same place.
            number: what the client's hello has counted; 0: it does not count.

        Returns:
            What it was kept under; it, in its new turn; and the turn in which it was kept.

        Raises:
            BrokerUnavailable: that can't be known now.
        """
        if self.window is None:
            return None
        key = key_of(token, ws.endpoint, ws.params, ws.user)
        runs = [run[:_RUN].encode() for run in self._store.runs(key)]
        data = await self._store.take(key, number)
        run, _, data = (None, None, None) if data is None else data.partition(b"\n")
        here = self._todo.get(key) or self._on_the_way.get(key)
        if here is not None and (data is not None or here[1]):  # what is not written yet is newer
            run, data = None, None if here[0] is None else self._kept(here[0])[1]
        if data is None or (record := Record.unpack(data)) is None:
            return None
        if number and record.turn > number:
            self._write(key, (record.turn, data) if here is None else here[0], new=True)
            return None
        if run is not None and run not in runs:  # what was kept later may be lost
            record.unsure = True
        for other in record.keys:
            if other != key:
                self._write(other, None)
        # Whatever becomes of the connection that goes on, the session is not lost with it.
        before = record.turn
        record.turn = max(before + 1, number)
        self._write(key, (record.turn, record.pack()), new=True)
        return key, record, before

    def put_back(self, key: bytes, ws: SpeakingConnection) -> None:
        """Keep what is known of a session whose connection has ended before it was greeted."""
        self._write(key, self._kept(ws), new=True)

    # ── written ───────────────────────────────────────────────────────────────────────────────

    def _write(
        self, key: bytes, what: SpeakingConnection | _Kept | None, *, new: bool = False
    ) -> None:
        before = self._todo.get(key)
        new = new or (before is not None and before[1])
        until = monotonic() + (self.window or 0)
        self._todo[key] = (what, new, until)
        if self._writing is None:
            self._writing = self._keep(self._write_all(), Context())

    async def _write_all(self) -> None:
        try:
            while self._todo:
                todo, self._todo = self._todo, {}
                self._on_the_way = todo
                try:
                    await self._write_some(todo)
                except BrokerUnavailable as error:
                    HUB.debug("sessions can't be kept: %s", error)
                    now = monotonic()
                    late = {
                        key: one for key, one in todo.items()
                        if not isinstance(one[0], tuple | None) or one[2] > now
                    }  # fmt: skip
                    self._todo = {**late, **self._todo}
                    await asyncio.sleep(AGAIN)
                finally:
                    self._on_the_way = {}
                    self._let_go()
        finally:
            self._writing = None

    async def _write_some(self, todo: dict[bytes, _Todo]) -> None:
        groups: dict[tuple[float, bool], dict[bytes, tuple[int, bytes]]] = {}
        dropped: list[bytes] = []
        for key, (what, new, _) in todo.items():
            if what is None:
                dropped.append(key)
                continue
            run = next(iter(self._store.runs(key)), "")[:_RUN]
            turn, data = self._kept(what)
            life = (self.window or 0) if isinstance(what, tuple) else self._life
            groups.setdefault((life, new), {})[key] = (turn, run.encode() + b"\n" + data)
        for (life, new), records in groups.items():
            await self._store.put(records, life, new=new)
        if dropped:
            await self._store.drop(dropped)

    async def _beat(self) -> None:
        """Keep what lives alive."""
        try:
            while self._live:
                await asyncio.sleep((self.window or 0) / 2)
                keys = [key for ws in self._live for key in ws.talk.keys]
                try:
                    if keys:
                        await self._store.extend(keys, self._life)
                except BrokerUnavailable:
                    continue
        finally:
            self._is_beating = False

    def _kept(self, what: SpeakingConnection | _Kept) -> _Kept:
        return what if isinstance(what, tuple) else (what.talk.turn, self._packed(what))

    @staticmethod
    def _packed(ws: SpeakingConnection) -> bytes:
        record = ws.record()
        try:
            return record.pack()
        except (TypeError, ValueError, RecursionError) as error:
            LISTENER.error(
                "durable state of %s can't be kept, and will not come back: %s; it is for plain "
                "values: str, numbers, lists, dicts",
                ws,
                error,
            )
            record.state = {}
            return record.pack()
