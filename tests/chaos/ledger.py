"""Keeps what was accepted and what came, and judges it: pure, so that it can be shown to notice.

What each client was told of a channel is one list, in its order. A stretch of it begins where the
client entered or was told of a loss; within a stretch each publication that was for this client
comes once, in the order of the offsets, and none is left out. What came past all channels is a list
too, that of ``people.DIRECT``.
"""

from __future__ import annotations

import collections
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from people import Who


class Place(NamedTuple):
    """A position, as its text says it."""

    epoch: str
    offset: int

    @classmethod
    def read(cls, text: str) -> Place:
        epoch, _, offset = text.rpartition(".")
        return cls(epoch, int(offset))


@dataclass
class Said:
    """A publication, as its publisher knows it.

    Args:
        id: its own.
        channel: where it was said.
        by: the connection that said it: over two of them there is no order.
        number: which counts up.
        to: addresses of those whom it is for alone; None is all.
        exclude: addresses of those whom it is not for.
        again: its sender sends it again until it is acknowledged: where nothing is kept it may
            come twice.

    Attributes:
        state: what its publisher was told: "sent" is nothing yet, then "accepted", "unknown", or
            "never" where it was not published.
        offset: where it stands, in each of the epochs.
        elsewhere: other offsets that it was seen at: it was published more than once.
        reached: how many connections got it, as far as its publisher was told.
        epochs: more than one where an engine came back with its data.
    """

    id: str
    channel: str
    by: str
    number: int
    to: list[str] | None
    exclude: list[str] | None
    again: bool = False
    state: str = "sent"
    offset: int | None = None
    epochs: set[str] = field(default_factory=set)
    elsewhere: list[Place] = field(default_factory=list)
    reached: int | None = None

    def is_for(self, addresses: frozenset[str]) -> bool:
        """Tell whether it is for who has these addresses."""
        return (self.to is None or not addresses.isdisjoint(self.to)) and (
            addresses.isdisjoint(self.exclude or ())
        )


class Had(NamedTuple):
    """What a client was told of a channel.

    Args:
        kind: "got" a publication; "entered", before what it missed; "caught up", after it; "lost"
            while it was in; "draft" for what came before the word that it has entered, which never
            came: it does not count as had; "named" when it heard the id of its connection.
        id: of what it got, or of its connection.
        lost: on entering, some were lost.
        at: up to where it has all; None where nobody knows.
    """

    kind: str
    id: str = ""
    lost: bool = False
    at: Place | None = None


class Ledger:
    """All of a run."""

    def __init__(self) -> None:
        self.said: dict[str, Said] = {}
        self.had: dict[tuple[Who, str], list[Had]] = collections.defaultdict(list)
        self.figures: collections.Counter[str] = collections.Counter()

    def say(self, said: Said) -> None:
        self.said[said.id] = said

    def place(self, id_: str, place: Place) -> None:
        """Note where a publication stands; in an engine that kept its data, also in a new epoch."""
        said = self.said[id_]
        if said.offset is not None and said.offset != place.offset:
            said.elsewhere.append(place)
            return
        said.offset = place.offset
        said.epochs.add(place.epoch)

    def accepted(self, id_: str, place: Place | None, reached: int | None) -> None:
        """Note what the publisher was told of what was published."""
        self.said[id_].state, self.said[id_].reached = "accepted", reached
        self.figures["accepted"] += 1
        if place is not None:
            self.place(id_, place)

    def failed(self, id_: str, *, never: bool) -> None:
        """Note that the publisher was told that it was not published, or that it may not be."""
        self.said[id_].state = "never" if never else "unknown"
        self.figures["not published" if never else "maybe published"] += 1

    def note(self, who: Who, channel: str, had: Had) -> None:
        self.had[who, channel].append(had)
        self.figures[had.kind] += 1
        self.figures["lost told"] += had.lost or had.kind == "lost"

    def judge(self, complete: Collection[str] = ()) -> list[str]:
        """Return what is wrong: empty where everything was as promised.

        Args:
            complete: channels whose history was so long that all that was stored was seen there.
        """
        wrong = self._vanished(complete)
        stored: dict[str, list[Said]] = collections.defaultdict(list)
        for said in self.said.values():
            if said.elsewhere:
                wrong.append(
                    f"{said.id} is in {said.channel} twice: at {said.offset} of {said.epochs}, "
                    f"and at {said.elsewhere} ({said.state}, by {said.by})"
                )
            if said.offset is not None:
                stored[said.channel].append(said)
        for (who, channel), had in self.had.items():
            where = f"{who.name} ({who.session}) in {channel}"
            kept = bool(stored[channel])
            wrong += [f"{where}: {text}" for text in self._strangers(who, channel, had, kept=kept)]
            if kept:
                walk = _Walk(who.addresses(), stored[channel], self.said)
                wrong += [f"{where}: {text}" for text in walk.judge(had)]
            else:
                wrong += [f"{where}: {text}" for text in self._out_of_order(had)]
        for channel, some in stored.items():
            wrong += [f"{channel}: {text}" for text in _misplaced(some)]
        return wrong

    def _vanished(self, complete: Collection[str]) -> list[str]:
        """What was acknowledged and is nowhere; an acknowledgement need not have a position."""
        got = {one.id for had in self.had.values() for one in had if one.kind == "got"}
        return [
            f"{said.id} in {said.channel} was acknowledged, and is nowhere"
            for said in self.said.values()
            if said.state == "accepted" and said.channel in complete
            and said.offset is None and said.id not in got
        ]  # fmt: skip

    def _strangers(self, who: Who, channel: str, had: list[Had], *, kept: bool) -> list[str]:
        """What no promise allows, however much was lost.

        Who moves to another node, where nothing is kept, may hear there what it has heard already.
        """
        wrong, seen, addresses = [], set(), who.addresses()
        for one in had:
            if one.kind == "entered" and not kept:
                seen.clear()
            if one.kind == "named":
                addresses = who.addresses(one.id)
            if one.kind not in {"got", "draft"}:
                continue
            said = self.said[one.id]
            if said.channel != channel:
                wrong.append(f"{one.id} was for {said.channel}")
            if not said.is_for(addresses):
                wrong.append(f"{one.id} was not for it: to {said.to}, without {said.exclude}")
            if said.state == "never":
                wrong.append(f"{one.id} came, whose sender was told that it was not published")
            if one.kind == "got" and one.id in seen and (kept or not said.again):
                wrong.append(f"{one.id} came twice")
            if one.kind == "got":
                seen.add(one.id)
        return wrong

    def _out_of_order(self, had: list[Had]) -> list[str]:
        """Where nothing is kept, one connection has each publisher's in its order."""
        wrong: list[str] = []
        last: dict[str, int] = {}
        for one in had:
            if one.kind == "entered":
                last.clear()
            if one.kind == "got":
                said = self.said[one.id]
                if said.number <= last.get(said.by, -1) and not said.again:
                    wrong.append(f"{one.id} came after number {last[said.by]} of {said.by}")
                last[said.by] = said.number
        return wrong


def _misplaced(stored: list[Said]) -> list[str]:
    """What one connection had stored in another order than it said it."""
    wrong = []
    last: dict[tuple[str, str], Said] = {}
    for said in sorted(stored, key=lambda one: one.offset or 0):
        for epoch in said.epochs:
            before = last.get((epoch, said.by))
            if before is not None and said.number < before.number:
                wrong.append(
                    f"{said.id} is at {said.offset} of {epoch}, after {before.id} at {before.offset} "
                    f"of the same connection ({said.state}, {before.state})"
                )
            last[epoch, said.by] = said
    return wrong


class _Walk:
    """Goes through what one client had of one channel.

    Attributes:
        at: up to where it has all; None where some may be missing before what comes next.
    """

    def __init__(self, addresses: frozenset[str], stored: list[Said], said: dict[str, Said]):
        self.addresses = addresses
        self.said = said
        self.by_epoch: dict[str, dict[int, Said]] = collections.defaultdict(dict)
        for one in stored:
            for epoch in one.epochs:
                self.by_epoch[epoch][one.offset or 0] = one
        self.at: Place | None = None
        self.has_gap = False
        self.wrong: list[str] = []

    def judge(self, had: list[Had]) -> list[str]:
        for one in had:
            if one.kind == "got" and not self.has_gap:
                self._get(one.id)
            elif one.kind == "lost":
                self.at = None
            elif one.kind == "entered":
                self._enter(one)
            elif one.kind == "caught up" and self.has_gap:
                self.at, self.has_gap = None, False
        return self.wrong

    def _enter(self, entered: Had) -> None:
        self.has_gap = entered.at is None  # somewhere in what follows, until it has caught up
        if not entered.lost and self.at is not None and entered.at is not None:
            self._check_between(entered.at)
        self.at = entered.at

    def _get(self, id_: str) -> None:
        said = self.said[id_]
        if said.offset is None:
            return  # where it stands nobody knows: the engine died with it
        if self.at is None:
            self.at = Place(max(said.epochs), said.offset)
            return
        if self.at.epoch not in said.epochs:
            # The first after a loss may be known by several epochs.
            both = self._common(said)
            if both is None:
                self.wrong.append(
                    f"{id_} is of epoch {sorted(said.epochs)} and came after {self.at} "
                    "without a word of a loss"
                )
                self.at = Place(max(said.epochs), said.offset)
                return
            self.at = Place(both, self.at.offset)
        here = Place(self.at.epoch, said.offset)
        if here.offset <= self.at.offset:
            self.wrong.append(f"{id_} at {here} came after {self.at}")
            return
        self._check_between(here)
        self.at = here

    def _common(self, said: Said) -> str | None:
        assert self.at is not None
        before = self.by_epoch[self.at.epoch].get(self.at.offset)
        shared = (before.epochs if before is not None else set()) & said.epochs
        return max(shared, default=None)

    def _check_between(self, here: Place) -> None:
        """Find what should have come between the place it has all up to and this one."""
        assert self.at is not None
        if here.epoch != self.at.epoch:
            self.wrong.append(f"it went on at {here} after {self.at} without a word of a loss")
            return
        known = self.by_epoch[here.epoch]
        missing = [
            known[offset].id
            for offset in range(self.at.offset + 1, here.offset)
            if offset in known and known[offset].is_for(self.addresses)
        ]
        if missing:
            self.wrong.append(
                f"{len(missing)} missing between {self.at} and {here}: {', '.join(missing[:5])}"
            )
