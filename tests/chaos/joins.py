"""What ``on_join`` and ``on_leave`` were told, on all nodes, and what is wrong with it: pure."""

from __future__ import annotations

import collections
import json
from collections.abc import Collection, Iterable
from typing import NamedTuple

Pair = tuple[str, str]


class Told(NamedTuple):
    """A call of one of them.

    Args:
        by: which run of a node.
        joined: whether it was ``on_join``.
        channel: the channel.
        user: the user.
    """

    by: int
    joined: bool
    channel: str
    user: str

    @classmethod
    def read(cls, text: str) -> list[Told]:
        """Read what a node wrote: a line for each; one that it died over may be cut short."""
        return [cls(*json.loads(line)) for line in text.splitlines() if line.endswith("]")]


def unbalanced(told: Iterable[Told], lost: Collection[int], there: Collection[Pair]) -> list[str]:
    """Return whose joins and leaves do not take turns.

    Calls about one user may run beside one another on two nodes, so that their order by the clock
    tells nothing. Their numbers do: one join more than leaves, of who is there in the end, and as
    many of who is not. Only what was told by a node that was lost may have been told once more.

    Args:
        told: all there was.
        lost: the runs of nodes that were killed, or not heard of for as long as a lease.
        there: the channels and the users who are in them in the end.
    """
    counts: dict[Pair, collections.Counter[tuple[bool, bool]]] = collections.defaultdict(
        collections.Counter
    )
    for one in told:
        counts[one.channel, one.user][one.joined, one.by in lost] += 1
    wrong = []
    for pair in sorted({*counts, *there}):
        count = counts[pair]
        joins, leaves = (count[what, False] + count[what, True] for what in (True, False))
        surplus = joins - leaves - (pair in there)
        if not -count[False, True] <= surplus <= count[True, True]:
            wrong.append(
                f"{pair[1]} {'is' if pair in there else 'is not'} in {pair[0]}, and was told to "
                f"have joined {joins} times and left {leaves} times"
            )
    return wrong
