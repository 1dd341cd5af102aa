"""What every broker promises, as tests: a broker of your own is a class and a subclass of these.

::

    class TestMyBroker(BrokerContract):
        @pytest.fixture
        def make_broker(self):
            return lambda: MyBroker("my://localhost")  # of one and the same engine, empty

They are async; pytest-asyncio runs them with ``asyncio_mode = "auto"``. What happens when something
fails can be tested only by who can make it fail: those tests need hooks, which are fixtures too,
and are skipped without. See ``BrokerContract``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from backchannel.contracts import Broker, Publication, Target
from backchannel.errors import BrokerUnusable
from backchannel.history import Page, Position, Retention
from backchannel.sent import Outcome
from backchannel.testing.attempts import AttemptContract
from backchannel.testing.attendance import PresenceContract
from backchannel.testing.keeping import KeepingContract
from backchannel.testing.outages import OutageContract
from backchannel.testing.recording import BOATS, CARS, KEPT, Nodes, RecordingNode, frames, started

__all__ = ["BrokerContract", "RecordingNode"]

NodeHook = Callable[[RecordingNode], Awaitable[None]]


def numbers(page: Page[Publication]) -> list[int]:
    """Return the offsets of a page."""
    return [offset for offset, _ in page.entries]


class BrokerContract(PresenceContract, KeepingContract, OutageContract, AttemptContract):
    """The tests. Where ``shared`` is False there is one node only.

    Fixtures of a subclass: ``make_broker``, and the hooks ``cut`` with ``mend``, ``kill`` and
    ``lose_data``, async functions which make fail what a test says. Let the brokers under test have
    a short lease, and short timeouts.

    Attributes:
        one_order: what goes to several targets is heard in the order of the calls, too; False where
            several engines carry it.
        lease: seconds that the brokers under test have until what a dead node had is gone.
        patience: seconds that are waited for what has to happen at once.
        late: seconds after a lease has run out that are waited for what ends with it, the moment
            that leaves wait included.
    """

    one_order = True
    lease = 10.0
    patience = 10.0
    late = 3.0

    @pytest.fixture
    def make_broker(self) -> Callable[[], Broker]:
        """Return what makes brokers of one engine, which is empty."""
        raise NotImplementedError("a subclass has a fixture make_broker")

    @pytest.fixture
    def cut(self) -> NodeHook | None:
        """Return what cuts a node off from the engine, called with it; none by default."""
        return None

    @pytest.fixture
    def mend(self) -> NodeHook | None:
        """Return what lets a node that was cut off reach the engine; none by default."""
        return None

    @pytest.fixture
    def kill(self, cut: NodeHook | None) -> NodeHook | None:
        """Return what ends a node without ``stop()``, as the death of its process.

        By default it is cut off for good, which is the same to everybody else.
        """
        return cut

    @pytest.fixture
    def lose_data(self) -> Callable[[], Awaitable[None]] | None:
        """Return what has the engine lose all its data and come back; none by default."""
        return None

    @pytest.fixture
    async def nodes(self, make_broker: Callable[[], Broker]) -> AsyncGenerator[Nodes]:
        """Start some nodes; of a broker that is not shared there is one, however many."""
        async with started(make_broker) as start:
            yield start

    # ── publishing ────────────────────────────────────────────────────────────────────────────

    async def test_every_node_that_listens_hears_a_publication_once(self, nodes: Nodes) -> None:
        """Also the one that published it."""
        all_ = await nodes(3)
        for node in all_:
            await node.listen(CARS)
        await all_[0].publish(CARS, "hello")
        await all_[-1].publish(CARS, "end")
        for node in all_:
            assert await node.texts(2) == ["hello", "end"]
            assert node.heard.empty()

    async def test_the_order_of_the_calls_is_the_order_of_what_is_heard(self, nodes: Nodes) -> None:
        """For each publisher, across channels where these have one order."""
        all_ = await nodes(2)
        for node in all_:
            await node.listen(CARS, BOATS)
        for number in range(200):
            all_[0].broker.publish(Publication((CARS, BOATS)[number % 2], str(number)), None)
        for node in all_:
            heard = [await node.next() for _ in range(200)]
            orders = [heard] if self.one_order else []
            orders += [[one for one in heard if one.target == of] for of in (CARS, BOATS)]
            for order in orders:
                assert [int(one.frame) for one in order] == sorted(int(one.frame) for one in order)
            assert len({one.frame for one in heard}) == 200

    async def test_what_was_published_has_its_outcome_when_it_finishes(self, nodes: Nodes) -> None:
        """A node that goes does not take with it what it was given."""
        (node,) = await nodes(1)
        assert node.broker.is_connected
        sent = [node.broker.publish(Publication(CARS, str(n)), KEPT) for n in range(100)]
        await node.broker.finish(5)
        assert all(not isinstance(one, Outcome) or one.done() for one in sent)
        assert frames(await node.broker.history("cars", None, 1)) == ["99"]

    @pytest.mark.parametrize(
        "frame",
        ["", "text", "ü€😀\x00", "@1.1 T", b"", b"\x00\xff", b"T", "x" * 1_000_000],
        ids=len,
    )
    async def test_a_frame_is_heard_as_it_was_published(
        self, nodes: Nodes, frame: str | bytes
    ) -> None:
        """Text as text, binary as binary, kept or not."""
        all_ = await nodes(2)
        for node in all_:
            await node.listen(CARS)
        await all_[0].publish(CARS, frame)
        await all_[0].publish(CARS, frame, KEPT)
        for node in all_:
            assert [await node.next(), await node.next()] == [Publication(CARS, frame)] * 2
        page = await all_[-1].broker.history("cars", None, 10)
        assert frames(page) == [frame]

    @pytest.mark.parametrize("keep", [None, KEPT])
    async def test_the_audience_travels_with_a_publication(
        self, nodes: Nodes, keep: Retention | None
    ) -> None:
        """So that it is applied where its receivers are, and again when history is read."""
        all_ = await nodes(2)
        audience: dict[str, Any] = {
            "to": (Target("connection", "a"), Target("user", "ana")),
            "exclude": (Target("session", "s"), CARS),
        }
        for node in all_:
            await node.listen(CARS)
        await all_[0].publish(CARS, "psst", keep, **audience)
        await all_[0].publish(CARS, "to nobody", keep, to=())
        for node in all_:
            assert await node.next() == Publication(CARS, "psst", **audience)
            assert await node.next() == Publication(CARS, "to nobody", to=())
        if keep is not None:
            page = await all_[-1].broker.history("cars", None, 10)
            assert page.entries[0][1] == Publication(CARS, "psst", **audience)

    @pytest.mark.parametrize("kind", ["user", "session"])
    async def test_users_and_sessions_are_heard_where_they_are(
        self, nodes: Nodes, kind: Any
    ) -> None:
        """And nowhere else."""
        all_ = await nodes(2)
        ana, bob = Target(kind, "ana"), Target(kind, "bob")
        await all_[0].listen(ana)
        await all_[-1].listen(bob)
        await all_[-1].publish(ana, "for ana")
        await all_[0].publish(bob, "for bob")
        assert await all_[0].next() == Publication(ana, "for ana")
        if len(all_) > 1:
            assert await all_[1].next() == Publication(bob, "for bob")
            assert all_[0].heard.empty()

    async def test_everyone_is_heard_without_listening(self, nodes: Nodes) -> None:
        """On each node."""
        all_ = await nodes(2)
        await all_[0].publish(Target("everyone"), "all of you")
        for node in all_:
            assert await node.next() == Publication(Target("everyone"), "all of you")

    async def test_what_is_no_longer_listened_to_is_not_heard(self, nodes: Nodes) -> None:
        """And what is listened to again, is."""
        all_ = await nodes(2)
        if not all_[0].broker.shared:
            return  # it is alone, and hears all
        for node in all_:
            await node.listen(CARS)
        all_[1].broker.unlisten(CARS)
        await all_[0].publish(CARS, "1")
        await all_[1].listen(CARS)
        await all_[0].publish(CARS, "2")
        assert await all_[0].texts(2) == ["1", "2"]
        assert await all_[1].texts(1) == ["2"]

    # ── history ───────────────────────────────────────────────────────────────────────────────

    async def test_offsets_count_up_and_all_nodes_hear_one_order(self, nodes: Nodes) -> None:
        """Whoever publishes, at the same time; history has the same."""
        all_ = await nodes(3)
        for node in all_:
            await node.listen(CARS)
        keep = Retention(1000, 3600.0)
        receipts = await asyncio.gather(
            *[node.publish(CARS, f"{node.id} {n}", keep) for n in range(50) for node in all_]
        )
        count = 50 * len(all_)
        orders = [[await node.heard.get() for _ in range(count)] for node in all_]
        assert all(order == orders[0] for order in orders)
        positions = [position for _, position in orders[0]]
        epoch = positions[0].epoch if positions[0] else ""
        assert positions == [Position(epoch, n) for n in range(1, count + 1)]
        assert sorted(receipt.position or ("", 0) for receipt in receipts) == positions
        page = await all_[0].broker.history("cars", None, 1000)
        assert page.top == positions[-1]
        assert [(publication, Position(epoch, n)) for n, publication in page.entries] == orders[0]

    async def test_history_is_read_from_a_position(self, nodes: Nodes) -> None:
        """From the oldest after it, as many as are asked for."""
        (node, *_) = await nodes(1)
        first = await self._publish(node, 5)
        epoch = first.epoch
        page = await node.broker.history("cars", first, 2)
        assert (numbers(page), page.lost, page.top) == ([2, 3], False, Position(epoch, 5))
        page = await node.broker.history("cars", Position(epoch, 3), 100)
        assert frames(page) == ["4", "5"]
        page = await node.broker.history("cars", Position(epoch, 5), 100)
        assert (page.entries, page.lost) == ((), False)

    async def test_without_a_position_the_newest_are_read(self, nodes: Nodes) -> None:
        """As many as are asked for; none of them only tells the position."""
        (node, *_) = await nodes(1)
        first = await self._publish(node, 5)
        assert frames(await node.broker.history("cars", None, 2)) == ["4", "5"]
        page = await node.broker.history("cars", None, 0)
        assert page == Page(Position(first.epoch, 5), (), lost=False)

    async def test_only_as_many_as_are_to_be_kept_are_there(self, nodes: Nodes) -> None:
        """What went before is lost to whoever had none of it, and not to whoever had all."""
        (node, *_) = await nodes(1)
        first = await self._publish(node, 7)
        assert numbers(await node.broker.history("cars", None, 100)) == [3, 4, 5, 6, 7]
        page = await node.broker.history("cars", first, 100)
        assert (page.lost, page.entries, page.top.offset) == (True, (), 7)
        page = await node.broker.history("cars", Position(first.epoch, 2), 100)
        assert numbers(page) == [3, 4, 5, 6, 7]

    async def test_a_position_of_another_epoch_or_from_the_future_is_lost(
        self, nodes: Nodes
    ) -> None:
        """Never guessed at; and a client that says such a thing changes nothing for others."""
        (node, *_) = await nodes(1)
        first = await self._publish(node, 3)
        for other in (Position("another", 1), Position(first.epoch, 4)):
            page = await node.broker.history("cars", other, 100)
            assert (page.lost, page.entries, page.top) == (True, (), Position(first.epoch, 3))
        assert not (await node.broker.history("cars", first, 100)).lost

    async def test_a_channel_that_nobody_published_to_has_a_position(self, nodes: Nodes) -> None:
        """From which all that is published later can be followed."""
        (node, *_) = await nodes(1)
        page = await node.broker.history("cars", None, 10)
        assert (page.top.offset, page.entries, page.lost) == (0, (), False)
        await self._publish(node, 2)
        assert frames(await node.broker.history("cars", page.top, 10)) == ["1", "2"]

    async def test_the_newest_positions_of_many_channels_are_told_at_once(
        self, nodes: Nodes
    ) -> None:
        """None of those that nothing is known of."""
        (node, *_) = await nodes(1)
        receipts = [await node.publish(CARS, str(n), KEPT) for n in range(7)]
        assert await node.broker.tops(["cars", "boats"]) == {
            "cars": receipts[-1].position,
            "boats": None,
        }

    async def test_what_is_not_kept_has_no_position(self, nodes: Nodes) -> None:
        """And no place in history."""
        (node, *_) = await nodes(1)
        await node.listen(CARS)
        assert (await node.publish(CARS, "gone")).position is None
        assert (await node.heard.get())[1] is None
        assert (await node.broker.history("cars", None, 10)).entries == ()

    async def test_channels_have_histories_of_their_own(self, nodes: Nodes) -> None:
        """Also those whose names look like parts of others."""
        (node, *_) = await nodes(1)
        names = ["cars", "cars:state", "{cars}", "cars}", "c:cars", "a b", "ü"]
        for name in names:
            await node.publish(Target("channel", name), name, KEPT)
        for name in names:
            assert frames(await node.broker.history(name, None, 10)) == [name]

    @staticmethod
    async def _publish(node: RecordingNode, count: int) -> Position:
        receipts = [await node.publish(CARS, str(n), KEPT) for n in range(1, count + 1)]
        first = receipts[0].position
        assert first is not None
        return first

    # ── questions ─────────────────────────────────────────────────────────────────────────────

    async def test_all_nodes_that_listen_answer_a_question(self, nodes: Nodes) -> None:
        """Whether they answer at once or later."""
        all_ = await nodes(3)

        async def later(*words: Any) -> list[Any]:
            await asyncio.sleep(0)
            return ["later", *words]

        for node in all_:
            await node.listen(CARS)
            node.answers = {"count": 2, "later": later}
        assert await all_[0].broker.ask(CARS, ["count"]) == ([2] * len(all_), 0)
        answers, missing = await all_[-1].broker.ask(CARS, ["later", 1, "x", None])
        assert (answers, missing) == ([["later", 1, "x", None]] * len(all_), 0)

    async def test_a_question_keeps_its_place_among_publications(self, nodes: Nodes) -> None:
        """So that who is told goodbye and then closed gets the goodbye."""
        all_ = await nodes(2)
        asked: list[int] = []
        for node in all_:
            await node.listen(CARS)
            node.answers = {"close": lambda node=node: asked.append(node.heard.qsize())}
        all_[0].broker.publish(Publication(CARS, "goodbye"), None)
        await all_[0].broker.ask(CARS, ["close"])
        assert asked == [1] * len(all_)

    async def test_an_answer_that_fails_is_none(self, nodes: Nodes) -> None:
        """Who asks does not wait for it."""
        all_ = await nodes(2)
        if not all_[0].broker.shared:
            return  # who asks is who fails

        def fail() -> None:
            raise LookupError("on purpose")

        for node in all_:
            await node.listen(CARS)
            node.answers = {"fail": fail}
        assert await all_[0].broker.ask(CARS, ["fail"]) == ([None, None], 0)
        assert all("on purpose" in node.problems[0] for node in all_)

    async def test_a_question_about_nobody_has_no_answers(self, nodes: Nodes) -> None:
        """And is not waited for."""
        all_ = await nodes(2)
        if all_[0].broker.shared:
            assert await all_[0].broker.ask(Target("user", "nobody"), ["count"]) == ([], 0)

    # ── a newer position than there is ────────────────────────────────────────────────────────

    async def test_a_later_position_that_was_really_had_begins_a_new_epoch(
        self, nodes: Nodes
    ) -> None:
        """The engine has lost some: what it gives out from then on is none of the old."""
        all_ = await nodes(2)
        first = await self._publish(all_[0], 3)
        old = first.epoch
        page = await all_[0].broker.history("cars", Position(old, 7), 100, had=True)
        assert (page.lost, page.entries) == (True, ())
        assert page.top.epoch != old
        for node in all_:
            assert (await node.broker.history("cars", first, 100)).lost
        after = (await all_[-1].publish(CARS, "new", KEPT)).position
        assert after is not None
        assert after.epoch == page.top.epoch
        assert frames(await all_[0].broker.history("cars", page.top, 100)) == ["new"]

    # ── what a node tells of its hub ──────────────────────────────────────────────────────────

    async def test_another_hubs_node_is_refused(
        self, nodes: Nodes, make_broker: Callable[[], Broker]
    ) -> None:
        """At its start; what stands there stays, and nodes of the same hub come in."""
        (one, *_) = await nodes(1)
        if not one.broker.shared:
            return  # nobody else can be there
        stranger = RecordingNode(make_broker())
        stranger.says = b"another hub"
        with pytest.raises(BrokerUnusable, match="a recording node"):
            await stranger.broker.start()
        await nodes(1)

    async def test_what_a_node_told_last_of_its_hub_is_what_others_find(
        self, nodes: Nodes, make_broker: Callable[[], Broker]
    ) -> None:
        """So that rules which are made later are known to whoever comes."""
        (one, *_) = await nodes(1)
        if not one.broker.shared:
            return
        one.takes.add(before := one.says)
        one.says = b"with another rule"
        one.broker.about_changed()
        async with asyncio.timeout(self.patience):
            while (found := await _Visitor(make_broker()).look()) != one.says:
                assert found == before  # nothing tells when it is changed


class _Visitor(RecordingNode):
    """A node that takes nothing for its hub's, and so changes nothing."""

    found = b""

    def check_about(self, found: bytes) -> None:
        """Keep it."""
        self.found = found
        raise BrokerUnusable("is only looked at")

    async def look(self) -> bytes:
        """Return what it finds when it starts."""
        with pytest.raises(BrokerUnusable, match="looked at"):
            await self.broker.start()
        return self.found
