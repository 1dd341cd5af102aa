"""Getting things done by a cluster: each where its slot is just now.

A node that does not have a slot says so, and has done nothing: the same attempt goes on elsewhere.
Which keys are whose is read anew then, and where a master does not answer.
"""

from __future__ import annotations

import hashlib
import random
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ResponseError,
    TryAgainError,
)

from backchannel.broker.redis.door import facts_of
from backchannel.broker.redis.slots import Redirect, read_slots
from backchannel.publisher.attempts import SCRIPTS, Attempts, Errand
from backchannel.publisher.steps import Command, InRun, Listen, Lost, NotSent, Pause, Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from backchannel.broker.redis.slots import Address, Served

__all__ = ["Roaming"]

PAUSE: Final = 0.05
"""Seconds before a node that turned something back is asked again."""

MOMENT: Final = 1.0
"""Seconds that the hub's nodes have to say that a channel came to another master by its slot."""

FRESH: Final = 2.0
"""Seconds that slots are taken to be where they were, where topics are classic ones."""

CLOCKS: Final = 2
"""Seconds that the clocks of two masters may differ by, with what is lost by rounding."""

NONE_BEFORE: Final = "0" * 40
"""The master_replid2 of who has never taken another one's place."""

TELL: Final = "?"
"""In place of a run's name: scripts are to say so where a channel comes from another one."""

_HASHES: Final = {
    name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    for name, text in SCRIPTS.items()
}


class Strange(Exception):  # noqa: N818 - what is the matter
    """A channel was last written in another run of data than that of the master it is at.

    Args:
        run: the name of that run.
        time: of the newest that is kept, by the engine's clock in seconds; 0 where nothing is.
        at: the master.
    """

    def __init__(self, run: str, time: int, at: Address):
        super().__init__()
        self.run, self.time, self.at = run, time, at


class Roaming(Attempts):
    """The way to the masters of a cluster; see ``Attempts``.

    Args:
        shown: where it is, for people.
        hub: the hub's name.
        patience: seconds that connecting may take.
        nodes: some of its nodes.
    """

    def __init__(self, shown: str, hub: str, patience: float, nodes: tuple[Address, ...]):
        super().__init__(shown, hub, patience)
        self._nodes = nodes
        self._served: list[Served] = []  # as far as it is known; nothing is to be read anew
        self._looked = 0.0
        self._known: tuple[Address, ...] = ()  # who had slots, who is to be asked first

    def told(self, *, is_sharded: bool) -> None:
        """Take note of which topics the hub's nodes use."""
        self.is_sharded = is_sharded

    def do(self, errand: Errand) -> Work[Any]:
        """Send a command until it is answered; see ``Attempts``.

        A channel that came here by its slot keeps its epoch. One that did not begins a new one.
        """
        errand.runs = (TELL,)
        judged: set[Address] = set()
        until = 0.0
        while True:
            try:
                return (yield from super().do(errand))
            except Strange as strange:
                until = until or monotonic() + min(MOMENT, errand.left / 2)
                if strange.at not in judged:  # its slot may move on meanwhile
                    judged.add(strange.at)
                    errand.runs = yield from self._judge(strange, errand)
                elif monotonic() < until:
                    yield Pause(PAUSE)
                    errand.runs = (TELL,)
                else:
                    errand.runs = ()

    def loaded(self, name: str, deadline: float) -> Work[str]:  # noqa: ARG002
        """Return by which hash a script is called; who does not know it is told when it is."""
        yield from ()
        return _HASHES[name]

    def again(self, errand: Errand) -> int | InRun:
        """Return what ``publish.lua`` is told of earlier attempts."""
        if errand.lost is None:
            return 0
        run = errand.lost.run
        follow = [one.runs[0] for one in errand.runs if isinstance(one, InRun) and one.word == run]
        return InRun((run,), 3, InRun(tuple(follow), 1, 2))

    # ── where it is ───────────────────────────────────────────────────────────────────────────

    def _go(self, make: Callable[[], Command | Listen], errand: Errand) -> Work[Any]:
        """Take a step where its slot is; a node that turns it back has not taken it."""
        early: Address | None = None
        pause = 0.0
        while True:
            at = early or (yield from self._find(errand))
            try:
                reply = yield self._at(make(), at, asking=early is not None)
            except NoScriptError:
                yield from self._load(at, errand)
                continue
            except (NotSent, Lost):
                self._forget(last=at)
                raise
            except ResponseError as error:
                redirect = _read(error, at)
            else:
                errand.is_early = early is not None
                return reply
            if redirect.kind == "ASK" and early is None and not errand.whole:
                early = redirect.address
                continue
            early = None
            if redirect.kind == "MOVED":
                self._forget(first=redirect.address)
            if monotonic() + pause >= errand.deadline:
                raise NotSent(f"{_name(at)} has no whole slot for it just now: {redirect.kind}")
            yield Pause(pause)
            pause = PAUSE

    def _at(self, step: Command | Listen, at: Address, *, asking: bool) -> Command | Listen:
        if isinstance(step, Listen):
            return step._replace(at=at, is_sharded=self.is_sharded)
        return step._replace(at=at, asking=asking, is_sharded=self.is_sharded)

    def _load(self, at: Address, errand: Errand) -> Work[None]:
        """Tell a node the scripts, which it may not know yet or any more."""
        try:
            for text in SCRIPTS.values():
                yield Command(("SCRIPT", "LOAD", text), errand.left, at)
        except Lost as error:
            raise NotSent(str(error)) from error

    def _find(self, errand: Errand) -> Work[Address]:
        """Return which node has the slot of an errand's key."""
        slot = key_slot(errand.key)
        # What is said to a classic topic is turned back by nobody, wherever its slot is.
        is_stale = not self.is_sharded and self._looked < monotonic() - FRESH
        if is_stale or not (served := self._served):
            served = self._served = yield from self._look(errand)
            self._known = tuple({one.address for one in served})
            self._looked = monotonic()
        for first, last, address in served:
            if first <= slot <= last:
                return address
        self._forget()
        raise NotSent(f"its slot {slot} has no master")

    def _look(self, errand: Errand) -> Work[list[Served]]:
        """Ask nodes one after the other who has which slots."""
        problems: list[str] = []
        for address in dict.fromkeys((*self._known, *self._nodes)):
            seconds = min(self._patience, errand.left)
            try:
                reply = yield Command(("CLUSTER", "SLOTS"), seconds, address)
                if found := read_slots(reply, address[0]):
                    return found
                problems.append(f"{_name(address)} knows of no slots")
            except (NotSent, Lost, ResponseError) as error:
                problems.append(f"{_name(address)}: {error}")
        raise NotSent(f"no node of it answers: {'; '.join(problems)}")

    def _forget(self, *, first: Address | None = None, last: Address | None = None) -> None:
        """Read anew who has which slots.

        Args:
            first: who knows best.
            last: who may not answer.
        """
        self._served = []
        others = [one for one in self._known if one not in {first, last}]
        random.shuffle(others)
        self._known = (*others,) if first is None else (first, *others)

    # ── whose data it is ──────────────────────────────────────────────────────────────────────

    def _judge(self, strange: Strange, errand: Errand) -> Work[tuple[Any, ...]]:
        """Return what to tell a script of a channel's last run of data.

        It came by its slot, whole, where the run is that of another master to this day, and none
        has taken another one's place or been started with data since. Nodes may know more.
        """
        here: dict[str, str] = {}
        runs: set[str] = set()
        is_sure = True
        for address in {one.address for one in self._served} | {strange.at}:
            try:
                facts = facts_of((yield Command(("INFO",), errand.left, address)))
            except (NotSent, Lost, ResponseError):
                is_sure = False
                continue
            if address == strange.at:
                here = facts
            runs.add(facts.get("master_replid", ""))
            is_sure = is_sure and _is_unbroken(facts, strange.time - CLOCKS)
        if here.get("master_replid2") == strange.run:
            return ()  # its replica took its place, maybe without all it had
        if is_sure and strange.run in runs:
            return (InRun((here["master_replid"],), strange.run, TELL),)
        return (TELL,)


def _read(error: ResponseError, at: Address) -> Redirect:
    """Read why a node turned something back; raise what is no such reason."""
    if isinstance(error, AskError):  # so is what says MOVED
        kind = "MOVED" if isinstance(error, MovedError) else "ASK"
        said: Any = error  # what redis-py does not annotate
        host: str = at[0] if said.host in {"", "?"} else said.host
        return Redirect(kind, (host, said.port))
    if isinstance(error, TryAgainError):
        return Redirect("TRYAGAIN")
    if isinstance(error, ClusterDownError):
        raise NotSent(f"{_name(at)} says that the cluster is down: {error}") from error
    kind, _, rest = str(error).partition(" ")
    if kind == "STRANGE":
        run, _, time = rest.partition(" ")
        raise Strange(run, int(time), at) from error
    raise error


def _is_unbroken(facts: dict[str, str], since: int) -> bool:
    """Tell whether a master can't have lost anything from some time on, and have the rest."""
    now, up = facts.get("server_time_usec"), facts.get("uptime_in_seconds")
    if facts.get("master_replid2") != NONE_BEFORE or now is None or up is None:
        return False
    if int(now) // 1_000_000 - int(up) < since:
        return True
    # A new one, or one that lost all: what it has of a channel came there since.
    return facts.get("rdb_last_load_keys_loaded") == "0" == facts.get("aof_enabled")


def _name(address: Address) -> str:
    return f"{address[0]}:{address[1]}"
