"""What every broker promises of what it keeps for its hub; part of ``broker.BrokerContract``."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from backchannel.stores import ResumeStore, TicketHolder, TicketStore
from backchannel.testing.recording import Nodes, RecordingNode

__all__ = ["KeepingContract"]

ALONE = "its {0} is None: a hub's {0} are good at the node that gave them only"


class KeepingContract:
    """The tests. A broker of one node leaves both stores to its hub; any other may."""

    # ── tickets ───────────────────────────────────────────────────────────────────────────────

    async def test_a_ticket_is_taken_once_on_whatever_node(self, nodes: Nodes) -> None:
        """By one of all that ask at the same time; and it is as it was put."""
        all_ = await nodes(3)
        if (stores := _tickets(all_)) is None:
            return  # they are the hub's
        for holder in (TicketHolder("ana"), TicketHolder("ü 1", 1234567890.125)):
            key = secrets.token_bytes(16) + b"\x00\xff"
            await stores[0].put(key, holder, 30)
            taken = await asyncio.gather(*[store.take(key) for store in stores])
            assert [one for one in taken if one is not None] == [holder]
        assert await stores[0].take(b"unknown") is None

    async def test_a_ticket_expires(self, nodes: Nodes) -> None:
        """After as many seconds as were said."""
        if (stores := _tickets(await nodes(1))) is None:
            return
        await stores[0].put(b"long", TicketHolder("ana"), 30)
        await stores[0].put(b"short", TicketHolder("ana"), 0.05)
        await asyncio.sleep(0.1)  # time is the subject
        assert await stores[0].take(b"short") is None
        assert await stores[0].take(b"long") == TicketHolder("ana")

    # ── sessions that may be resumed ──────────────────────────────────────────────────────────

    async def test_a_session_is_taken_once_on_whatever_node(self, nodes: Nodes) -> None:
        """By one of all that ask at the same time; and it is as it was put last."""
        all_ = await nodes(3)
        if (stores := _resumes(all_)) is None:
            return
        assert len({store.runs(b"a")[0] for store in stores}) == 1  # all see the same data
        first = {b"a": (0, b"first"), b"b\x00\xff": (2**53 - 1, b"\x00\xff")}
        await stores[0].put(first, 30, new=True)
        await stores[-1].put({b"a": (0, b"second")}, 30, new=False)
        for key, data in ((b"a", b"second"), (b"b\x00\xff", b"\x00\xff")):
            taken = await asyncio.gather(*[store.take(key, 0) for store in stores])
            assert [one for one in taken if one is not None] == [data]
        assert await stores[0].take(b"unknown", 0) is None
        assert await stores[0].take(b"unknown", 1) is None

    async def test_a_session_is_not_taken_by_who_is_of_an_earlier_turn(self, nodes: Nodes) -> None:
        """It stays as it was, for who is of its own, or of a later one."""
        all_ = await nodes(2)
        if (stores := _resumes(all_)) is None:
            return
        late, early = 2**53 - 1, 2**53 - 2
        for turn, lower in ((10, 9), (2, 1), (late, early), (late, 1)):
            for taker in (turn, turn + 1, 0):
                await stores[0].put({b"a": (turn, b"1 data")}, 30, new=True)
                assert await stores[-1].take(b"a", lower) is None
                await stores[0].put({b"a": (turn, b"2 data")}, 30, new=False)
                assert await stores[-1].take(b"a", taker) == b"2 data"
                assert await stores[-1].take(b"a", taker) is None

    async def test_a_session_that_was_taken_is_not_kept_again_by_who_had_it(
        self, nodes: Nodes
    ) -> None:
        """Unless it is a new one."""
        all_ = await nodes(2)
        if (stores := _resumes(all_)) is None:
            return
        await stores[0].put({b"a": (0, b"first")}, 30, new=True)
        await stores[-1].take(b"a", 0)
        await stores[0].put({b"a": (0, b"late")}, 30, new=False)
        assert await stores[-1].take(b"a", 0) is None
        await stores[0].put({b"a": (0, b"new")}, 30, new=True)
        assert await stores[-1].take(b"a", 0) == b"new"

    async def test_a_session_ends_when_its_time_is_over(self, nodes: Nodes) -> None:
        """Which can be put off; those that are dropped are gone at once."""
        if (stores := _resumes(await nodes(1))) is None:
            return
        (store,) = stores
        await store.put({b"short": (1, b"1"), b"longer": (1, b"2")}, 0.3, new=True)
        await store.put({b"long": (1, b"3"), b"dropped": (1, b"4")}, 30, new=True)
        await store.extend([b"longer", b"unknown"], 30)
        await store.drop([b"dropped", b"unknown"])
        await asyncio.sleep(0.5)  # time is the subject
        found = [await store.take(key, 1) for key in (b"short", b"longer", b"long", b"dropped")]
        assert found == [None, b"2", b"3", None]


def _tickets(nodes: list[RecordingNode]) -> list[TicketStore] | None:
    """Return where each node's are; None for the only node there is."""
    stores = [store for node in nodes if (store := node.broker.tickets) is not None]
    if not stores and nodes[0].broker.shared:
        pytest.skip(ALONE.format("tickets"))
    return stores or None


def _resumes(nodes: list[RecordingNode]) -> list[ResumeStore] | None:
    stores = [store for node in nodes if (store := node.broker.resumes) is not None]
    if not stores and nodes[0].broker.shared:
        pytest.skip(ALONE.format("resumes"))
    return stores or None
