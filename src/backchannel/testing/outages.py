"""What every broker promises when something fails; part of ``broker.BrokerContract``.

Whoever can't make it fail has no such hook; then the tests that need it are skipped. A broker of
one node lives and dies with its process: for it there is nothing to test.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

import pytest

from backchannel.contracts import Broker
from backchannel.errors import BrokerUnavailable
from backchannel.history import Position, Retention
from backchannel.stores import TicketHolder
from backchannel.testing.recording import BOATS, CARS, KEPT, Nodes, RecordingNode, needed, until

__all__ = ["OutageContract"]

Asking = Callable[[], Coroutine[Any, Any, Any]]
Hook = Callable[[RecordingNode], Awaitable[None]] | None

JOINED, LEFT = True, False


class OutageContract:
    """The tests. See ``broker.BrokerContract`` for the attributes, and for the hooks."""

    lease: float
    patience: float
    late: float

    # ── a node that is cut off ────────────────────────────────────────────────────────────────

    async def test_all_that_a_node_asks_while_it_is_cut_off_says_so(
        self, nodes: Nodes, cut: Hook, mend: Hook
    ) -> None:
        """BrokerUnavailable, whatever it is; and that it is not connected."""
        (one, *_) = await nodes(1)
        if not one.broker.shared:
            return
        await one.publish(CARS, "before", KEPT)
        await self._cut(one, cut)
        broker = one.broker
        asked: dict[str, Asking] = {
            "publish": lambda: one.publish(CARS, "gone"),
            "publish and keep": lambda: one.publish(CARS, "gone", KEPT),
            "history": lambda: broker.history("cars", None, 10),
            "ask": lambda: _awaited(broker.ask(CARS, ["count"])),
            "members": lambda: broker.members("cars"),
            "count_members": lambda: broker.count_members("cars"),
            **_asked_of_stores(broker),
        }
        for ask in asked.values():
            with pytest.raises(BrokerUnavailable) as caught:
                async with asyncio.timeout(self.patience):
                    await ask()
            assert not caught.value.unsure  # nothing of it was sent
        await self._mend(one, mend)
        await one.publish(CARS, "after", KEPT)
        page = await broker.history("cars", None, 10)
        assert [publication.frame for _, publication in page.entries] == ["before", "after"]

    async def test_a_node_that_starts_while_it_is_cut_off_says_so(
        self, make_broker: Callable[[], Broker], cut: Hook, mend: Hook
    ) -> None:
        """And it starts when it is not."""
        node = RecordingNode(make_broker())
        if not node.broker.shared:
            return
        await needed(cut, "cut")(node)
        with pytest.raises(BrokerUnavailable):
            await node.broker.start()
        await needed(mend, "mend")(node)
        await node.broker.start()
        await node.listen(CARS)
        await node.publish(CARS, "hello")
        assert await node.texts(1) == ["hello"]
        await node.broker.stop()

    async def test_a_node_that_was_cut_off_is_told_that_it_may_have_missed_some(
        self, nodes: Nodes, cut: Hook, mend: Hook
    ) -> None:
        """It can read it then, and hears what comes next; also what it came to listen to."""
        all_ = await nodes(2)
        if not all_[0].broker.shared:
            return
        one, two = all_
        await one.listen(CARS)
        before = (await two.publish(CARS, "heard", KEPT)).position
        assert await one.texts(1) == ["heard"]
        await self._cut(one, cut)
        assert one.broker.listen(BOATS) is None
        await two.publish(CARS, "missed", KEPT)
        counts = {target: one.interruptions_of(target) for target in (CARS, BOATS)}
        await self._mend(one, mend)
        await until(
            lambda: all(one.interruptions_of(of) > was for of, was in counts.items()),
            self.patience,
        )
        page = await one.broker.history("cars", before, 10)
        assert not page.lost
        assert [publication.frame for _, publication in page.entries] == ["missed"]
        await two.publish(CARS, "cars", KEPT)
        await two.publish(BOATS, "boats")
        assert sorted(await one.texts(2)) == ["boats", "cars"]

    async def test_what_is_published_around_an_outage_is_kept_once_or_it_failed(
        self, nodes: Nodes, cut: Hook, mend: Hook
    ) -> None:
        """What was accepted is there once, in order; what was refused is nowhere."""
        all_ = await nodes(2)
        if not all_[0].broker.shared:
            return
        one, two = all_
        keep = Retention(1000, 3600.0)
        tasks: list[asyncio.Task[Any]] = []
        for number in range(150):
            if number == 50:
                await needed(cut, "cut")(one)
            if number == 100:
                await needed(mend, "mend")(one)
            tasks.append(asyncio.ensure_future(one.publish(CARS, str(number), keep)))
            if number % 10 == 0:
                await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: one.broker.is_connected, self.patience)
        page = await two.broker.history("cars", None, 1000)
        kept = [int(str(publication.frame)) for _, publication in page.entries]
        assert kept == sorted(set(kept))
        for number, result in enumerate(results):
            if isinstance(result, BaseException):
                assert isinstance(result, BrokerUnavailable)
                assert result.unsure or number not in kept
            else:
                assert number in kept

    # ── presence of nodes that come back, and of those that don't ─────────────────────────────

    async def test_who_is_at_a_node_that_was_cut_off_for_a_while_has_not_left(
        self, nodes: Nodes, cut: Hook, mend: Hook
    ) -> None:
        """Nor has joined when it is back; who came and went meanwhile has."""
        all_ = await nodes(2)
        if not all_[0].broker.shared:
            return
        one, two = all_
        await self._people(one, two)
        await self._cut(one, cut)
        one.go("cars", "ana")
        one.come("cars", "dan")
        await self._mend(one, mend)
        assert await self._told(all_, 2) == [("ana", LEFT), ("dan", JOINED)]
        for node in all_:
            members = await node.broker.members("cars")
            assert {user: len(devices) for user, devices in members.items()} == {
                "bob": 1, "both": 2, "dan": 1,
            }  # fmt: skip

    async def test_a_node_that_was_cut_off_for_longer_than_its_lease_announces_anew(
        self, nodes: Nodes, cut: Hook, mend: Hook
    ) -> None:
        """Who was told to have left joins again; who was not has done neither."""
        all_ = await nodes(2)
        if not all_[0].broker.shared:
            return
        one, two = all_
        await self._people(one, two)
        await self._cut(one, cut)
        assert await self._told([two], 1, after=self.lease) == [("ana", LEFT)]
        await self._mend(one, mend)
        assert await self._told(all_, 1) == [("ana", JOINED)]
        members = await two.broker.members("cars")
        assert {user: len(devices) for user, devices in members.items()} == {
            "ana": 1, "bob": 1, "both": 2,
        }  # fmt: skip
        assert all(node.told.empty() for node in all_)

    async def test_a_node_that_died_has_nobody_in_channels_when_its_lease_is_over(
        self, nodes: Nodes, kill: Hook
    ) -> None:
        """Nobody asks it any more, and another one tells who has left."""
        all_ = await nodes(2)
        if not all_[0].broker.shared:
            return
        dead, alive = all_
        for node in all_:
            node.answers = {"count": 1}
            await node.listen(CARS)
        await self._people(dead, alive)
        await needed(kill, "kill")(dead)
        assert await self._told([alive], 1, after=self.lease) == [("ana", LEFT)]
        assert await alive.broker.members("cars") == {"bob": [b"phone"], "both": [b"phone"]}
        assert await alive.broker.count_members("cars") == 2
        assert (await alive.broker.ask(CARS, ["count"]))[0] == [1]
        alive.come("cars", "ana")
        assert await self._told([alive], 1) == [("ana", JOINED)]

    # ── an engine that has lost its data ──────────────────────────────────────────────────────

    async def test_an_engine_that_lost_its_data_begins_a_new_epoch(
        self, nodes: Nodes, lose_data: Callable[[], Awaitable[None]] | None
    ) -> None:
        """Positions of before are lost, and never come again."""
        (one, *_) = await nodes(1)
        if not one.broker.shared:
            return
        before = [await self._position(one, "before") for _ in range(3)]
        await needed(lose_data, "lose_data")()
        after = await self._back(one)
        assert after.epoch != before[0].epoch
        for position in before:
            page = await one.broker.history("cars", position, 10, had=True)
            assert (page.lost, page.entries) == (True, ())
            assert page.top.epoch != position.epoch
        page = await one.broker.history("cars", None, 10)
        assert {publication.frame for _, publication in page.entries} == {"after"}

    async def test_an_engine_that_lost_its_data_learns_anew_who_is_there(
        self, nodes: Nodes, lose_data: Callable[[], Awaitable[None]] | None
    ) -> None:
        """Of all nodes; and nobody is told to have left or joined by that."""
        all_ = await nodes(2)
        if not all_[0].broker.shared:
            return
        await self._people(*all_)
        await needed(lose_data, "lose_data")()
        wanted = {"ana": 1, "bob": 1, "both": 2}
        async with asyncio.timeout(self.patience + self.lease):
            while True:
                with contextlib.suppress(BrokerUnavailable):
                    found = await all_[0].broker.members("cars")
                    if {user: len(devices) for user, devices in found.items()} == wanted:
                        break
                await asyncio.sleep(0.05)  # nothing tells when each node has announced
        all_[0].come("cars", "zoe")
        assert await self._told(all_, 1) == [("zoe", JOINED)]
        all_[0].go("cars", "zoe")
        assert await self._told(all_, 1) == [("zoe", LEFT)]

    # ── what they need ────────────────────────────────────────────────────────────────────────

    async def _cut(self, node: RecordingNode, cut: Hook) -> None:
        await needed(cut, "cut")(node)
        await until(lambda: not node.broker.is_connected, self.patience)

    async def _mend(self, node: RecordingNode, mend: Hook) -> None:
        await needed(mend, "mend")(node)
        await until(lambda: node.broker.is_connected, self.patience)

    async def _people(self, one: RecordingNode, two: RecordingNode) -> None:
        """Have one user at each node, and one at both, who were told to have joined."""
        for node in (one, two):
            node.keeps_presence = True
            node.come("cars", "both")
            await node.broker.count_members("cars")
        one.come("cars", "ana")
        two.come("cars", "bob")
        told = await self._told([one, two], 3)
        assert told == [("ana", JOINED), ("bob", JOINED), ("both", JOINED)]

    async def _told(
        self, nodes: Collection[RecordingNode], count: int, *, after: float = 0.0
    ) -> list[tuple[str, bool]]:
        """Return what some nodes are told next, each by itself; nothing else may be told by then.

        Args:
            nodes: they.
            count: of what is waited for.
            after: seconds that it may take anyway.
        """
        seconds = after + self.late if after else self.patience
        await until(lambda: sum(node.told.qsize() for node in nodes) >= count, seconds)
        told = [node.told.get_nowait() for node in nodes for _ in range(node.told.qsize())]
        return sorted((user, joined) for _, user, joined in told)

    @staticmethod
    async def _position(node: RecordingNode, frame: str) -> Position:
        position = (await node.publish(CARS, frame, KEPT)).position
        assert position is not None
        return position

    async def _back(self, node: RecordingNode) -> Position:
        """Return the first position that is given out after an outage."""
        async with asyncio.timeout(self.patience):
            while True:
                with contextlib.suppress(BrokerUnavailable):
                    return await self._position(node, "after")
                await asyncio.sleep(0.01)  # it fails where it was sent when the engine went


def _asked_of_stores(broker: Broker) -> dict[str, Asking]:
    asked: dict[str, Asking] = {}
    if (tickets := broker.tickets) is not None:
        asked |= {
            "tickets.put": lambda: tickets.put(b"key", TicketHolder("ana"), 30),
            "tickets.take": lambda: tickets.take(b"key"),
        }
    if (resumes := broker.resumes) is not None:
        asked |= {
            "resumes.put": lambda: resumes.put({b"key": (1, b"data")}, 30, new=True),
            "resumes.extend": lambda: resumes.extend([b"key"], 30),
            "resumes.drop": lambda: resumes.drop([b"key"]),
            "resumes.take": lambda: resumes.take(b"key", 0),
        }
    return asked


async def _awaited(future: Awaitable[Any]) -> Any:
    return await future
