"""What clients that speak v1 were promised beyond publications, and what is wrong with it: pure.

Messages to the listener that were acknowledged, the state that comes back with a session, and the
server's calls. Who said what is known here, what was done from the lines that nodes wrote.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Collection, Iterable
from typing import NamedTuple

BEFORE = 5.0
"""Seconds before which a trouble that is over has no consequences any more."""


class Trouble(NamedTuple):
    """Something that kept a node from knowing, or from telling, what it had done.

    Args:
        of: the run of a node; 0 is the engine, and with it all of them.
        began: by the machine's monotonic clock.
        ended: likewise.
    """

    of: int
    began: float
    ended: float


class Did(NamedTuple):
    """A line that a node wrote.

    Args:
        by: which run of a node.
        what: "did" a message; "asked" a client, or was "answered", or told that it is not.
        id: of the message, or of the call.
        at: by the machine's monotonic clock.
    """

    by: int
    what: str
    id: str
    at: float

    @classmethod
    def read(cls, text: str) -> list[Did]:
        """Read what a node wrote: a line for each; one that it died over may be cut short."""
        return [cls(*json.loads(line)) for line in text.splitlines() if line.endswith("]")]


class Came(NamedTuple):
    """What a client found when it was connected.

    Args:
        name: its own.
        resumed: what it was told.
        before: the connection's id that it had before; "" where it had none.
        id: the one it has now.
        acknowledged: the newest number that had been acknowledged in the session before.
        since: when that was, by the machine's monotonic clock.
        last: the number that its durable state has; None where it could not be asked for.
        at: by the machine's monotonic clock.
    """

    name: str
    resumed: bool
    before: str
    id: str
    acknowledged: int
    since: float
    last: int | None
    at: float


class Deeds:
    """All of a run.

    Attributes:
        said: what became of each message, as far as its sender was told: "sent" is nothing yet,
            then "acknowledged", "unknown", or "never" where it was not done.
        came: how sessions went on.
        troubles: what happened to nodes and the engine.
    """

    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        self.came: list[Came] = []
        self.troubles: list[Trouble] = []

    def is_troubled(self, by: Collection[int], began: float, ended: float) -> bool:
        """Tell whether something happened to one of these, or to the engine, in that time.

        Args:
            by: runs of nodes; an empty one stands for all.
            began: by the machine's monotonic clock.
            ended: likewise.
        """
        return any(
            (trouble.of == 0 or not by or trouble.of in by)
            and trouble.began <= ended
            and trouble.ended >= began - BEFORE
            for trouble in self.troubles
        )

    def judge(self, did: Iterable[Did]) -> list[str]:
        """Return what is wrong with the messages: empty where all was as promised."""
        times: dict[str, list[Did]] = collections.defaultdict(list)
        for one in did:
            if one.what == "did":
                times[one.id].append(one)
        wrong = [f"{id_} was done, and nobody said it" for id_ in times if id_ not in self.said]
        for id_, state in self.said.items():
            if (text := self._misdone(state, times[id_])) is not None:
                wrong.append(f"{id_} ({state}) {text}")
        return wrong + [text for one in self.came if (text := self._misled(one)) is not None]

    def _misdone(self, state: str, done: list[Did]) -> str | None:
        if state == "acknowledged" and not done:
            return "was never done"
        if state == "never" and done:
            return f"was done by {done[0].by}"
        if len(done) < 2:
            return None
        by = {one.by for one in done}
        if len(by) < len(done):
            return f"was done {len(done)} times, by {[one.by for one in done]}"
        if not self.is_troubled(by, done[0].at, done[-1].at):
            return f"was done {len(done)} times, though nothing had happened to {sorted(by)}"
        return None

    def _misled(self, came: Came) -> str | None:
        if came.resumed != (came.before == came.id):
            how = "resumed" if came.resumed else "begun anew"
            return f"{came.name}: its session was {how}, as {came.id} after {came.before!r}"
        if not came.resumed or came.last is None or came.last >= came.acknowledged:
            return None
        if self.is_troubled((), came.since, came.at):
            return None
        return f"{came.name}: its state is of {came.last}, and {came.acknowledged} was acknowledged"


def unanswered(did: Iterable[Did], killed: Collection[int]) -> list[str]:
    """Return the server's calls that neither were answered nor failed.

    Args:
        did: all that nodes wrote.
        killed: the runs of nodes that ended by being killed.
    """
    open_: collections.Counter[tuple[int, str]] = collections.Counter()
    for one in did:
        open_[one.by, one.id] += {"asked": 1, "answered": -1}.get(one.what, 0)
    return [
        f"node {by} asked a client ({id_}), which was neither answered nor failed"
        for (by, id_), count in sorted(open_.items()) if count and by not in killed
    ]  # fmt: skip
