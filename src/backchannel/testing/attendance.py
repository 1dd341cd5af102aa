"""What every broker promises of presence; part of ``backchannel.testing.broker.BrokerContract``."""

from __future__ import annotations

import asyncio

from backchannel.testing.recording import Nodes, RecordingNode

__all__ = ["PresenceContract"]

JOINED, LEFT = True, False


async def told_once(nodes: list[RecordingNode], wanted: tuple[str, str, bool]) -> None:
    """Wait until one of the nodes, whichever, is told something, which is told to no other."""
    tasks = [asyncio.ensure_future(node.next_told()) for node in nodes]
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.wait(tasks)
    assert [task.result() for task in done] == [wanted]


class PresenceContract:
    """The tests."""

    async def test_who_comes_is_told_of_once_and_is_a_member(self, nodes: Nodes) -> None:
        """As soon as it is announced, and wherever it is asked."""
        all_ = await nodes(2)
        all_[0].come("cars", "ana", b"\x00\xffphone")
        assert await all_[0].next_told() == ("cars", "ana", JOINED)
        for node in all_:
            assert await node.broker.members("cars") == {"ana": [b"\x00\xffphone"]}
            assert await node.broker.count_members("cars") == 1
        assert all(node.told.empty() for node in all_)

    async def test_what_a_node_announces_it_sees_at_once(self, nodes: Nodes) -> None:
        """Without waiting for anything else."""
        (node, *_) = await nodes(1)
        for number in range(1200):
            node.come("cars", f"user {number}")
        assert await node.broker.count_members("cars") == 1200
        assert set(await node.broker.members("cars")) == {f"user {n}" for n in range(1200)}
        assert [await node.next_told() for _ in range(1200)] == [
            ("cars", f"user {number}", JOINED) for number in range(1200)
        ]

    async def test_devices_on_several_nodes_are_one_user(self, nodes: Nodes) -> None:
        """Who joins with the first one, and leaves with the last one."""
        all_ = await nodes(2)
        for node in all_:
            node.come("cars", "ana", node.id.encode())
            await node.broker.count_members("cars")
        members = await all_[0].broker.members("cars")
        assert {*members["ana"]} == {node.id.encode() for node in all_}
        await told_once(all_, ("cars", "ana", JOINED))
        for node in all_[1:]:
            node.go("cars", "ana")
            assert await node.broker.members("cars") == {"ana": [all_[0].id.encode()]}
        all_[0].go("cars", "ana")
        await told_once(all_, ("cars", "ana", LEFT))
        for node in all_:
            assert await node.broker.members("cars") == {}
            assert await node.broker.count_members("cars") == 0
            assert node.told.empty()

    async def test_devices_that_change_are_no_join(self, nodes: Nodes) -> None:
        """And the newest are there."""
        (node, *_) = await nodes(1)
        for devices in (b"phone", b"phone, laptop", b"laptop"):
            node.come("cars", "ana", devices)
            assert await node.broker.members("cars") == {"ana": [devices]}
        node.come("cars", "bob")
        assert await node.next_told() == ("cars", "ana", JOINED)
        assert await node.next_told() == ("cars", "bob", JOINED)

    async def test_who_comes_back_within_the_moment_never_left(self, nodes: Nodes) -> None:
        """On whatever node; meanwhile the user is there, without a device."""
        all_ = await nodes(2)
        all_[0].come("cars", "ana")
        await told_once(all_, ("cars", "ana", JOINED))
        for _ in range(3):
            all_[0].go("cars", "ana")
            assert await all_[0].broker.members("cars") == {"ana": []}
            all_[-1].come("cars", "ana")
            assert await all_[-1].broker.members("cars") == {"ana": [b"phone"]}
            all_[-1].go("cars", "ana")
            assert await all_[-1].broker.members("cars") == {"ana": []}
            all_[0].come("cars", "ana")
            assert await all_[0].broker.members("cars") == {"ana": [b"phone"]}
        all_[0].come("boats", "bob")
        await told_once(all_, ("boats", "bob", JOINED))
        all_[0].go("boats", "bob")
        await told_once(all_, ("boats", "bob", LEFT))  # ana would have left before
        assert all(node.told.empty() for node in all_)

    async def test_who_comes_back_later_has_left_and_joined(self, nodes: Nodes) -> None:
        """The two alternate."""
        (node, *_) = await nodes(1)
        for _ in range(2):
            node.come("cars", "ana")
            assert await node.next_told() == ("cars", "ana", JOINED)
            node.go("cars", "ana")
            assert await node.next_told() == ("cars", "ana", LEFT)
        assert node.told.empty()

    async def test_a_join_that_waits_is_told_of_who_stays(self, nodes: Nodes) -> None:
        """Who is in the list at once; and who stays is told of once."""
        all_ = await nodes(2)
        for node in all_:
            node.settling = {"cars"}
        all_[0].come("cars", "ana")
        assert await all_[0].broker.members("cars") == {"ana": [b"phone"]}
        assert await all_[0].broker.count_members("cars") == 1
        assert await all_[0].broker.members("cars", told=True) == {}
        all_[-1].come("boats", "bob")
        await told_once(all_, ("boats", "bob", JOINED))  # which waits nowhere else
        await told_once(all_, ("cars", "ana", JOINED))
        assert await all_[-1].broker.members("cars", told=True) == {"ana": [b"phone"]}
        all_[0].go("cars", "ana")
        await told_once(all_, ("cars", "ana", LEFT))
        assert await all_[0].broker.members("cars", told=True) == {}
        assert all(node.told.empty() for node in all_)

    async def test_of_a_visit_shorter_than_the_moment_nobody_is_told_where_joins_wait(
        self, nodes: Nodes
    ) -> None:
        """Neither that it began nor that it is over; on however many nodes."""
        all_ = await nodes(2)
        for node in all_:
            node.settling = {"cars"}
        for node in all_:
            node.come("cars", "ana")
            assert await node.broker.members("cars", told=True) == {}
            node.go("cars", "ana")
            assert await node.broker.members("cars", told=True) == {}
            assert await node.broker.members("cars") == {"ana": []}
        all_[0].come("boats", "bob")
        await told_once(all_, ("boats", "bob", JOINED))
        all_[0].go("boats", "bob")
        await told_once(all_, ("boats", "bob", LEFT))  # ana has gone before
        assert await all_[0].broker.members("cars") == {}
        all_[0].come("cars", "ana")
        await told_once(all_, ("cars", "ana", JOINED))
        assert all(node.told.empty() for node in all_)

    async def test_a_join_that_waits_goes_on_waiting_where_a_page_is_loaded_anew(
        self, nodes: Nodes
    ) -> None:
        """On whatever node: it is one visit, which is told of once."""
        all_ = await nodes(2)
        for node in all_:
            node.settling = {"cars"}
        for node in (*all_, *all_):
            node.come("cars", "ana")
            assert await node.broker.members("cars") == {"ana": [b"phone"]}
            node.go("cars", "ana")
            assert await node.broker.members("cars") == {"ana": []}
            assert all(node.told.empty() for node in all_)
        all_[-1].come("cars", "ana")
        await told_once(all_, ("cars", "ana", JOINED))
        all_[-1].go("cars", "ana")
        await told_once(all_, ("cars", "ana", LEFT))
        assert all(node.told.empty() for node in all_)

    async def test_who_was_never_there_does_not_leave(self, nodes: Nodes) -> None:
        """Whatever is announced."""
        (node, *_) = await nodes(1)
        node.broker.announce("cars", "nobody")
        assert await node.broker.members("cars") == {}
        node.come("cars", "ana")
        assert await node.next_told() == ("cars", "ana", JOINED)

    async def test_channels_have_members_of_their_own(self, nodes: Nodes) -> None:
        """Also those whose names, and whose members' names, look like parts of others."""
        (node, *_) = await nodes(1)
        names = ["cars", "cars:", "{cars}", "cars}", "in:cars", "a b", "ü", "😀", '"', "\\"]
        for channel in names:
            for user in names:
                node.come(channel, user, f"{channel} {user}".encode())
        for channel in names:
            assert await node.broker.members(channel) == {
                user: [f"{channel} {user}".encode()] for user in names
            }

    async def test_a_node_that_stops_leaves_nobody_behind(self, nodes: Nodes) -> None:
        """Who has left with it is told of by another one."""
        all_ = await nodes(2)
        if not all_[0].broker.shared:
            return  # there is no other one
        all_[0].come("cars", "ana")
        await told_once(all_, ("cars", "ana", JOINED))
        all_[1].come("cars", "bob")
        await told_once(all_, ("cars", "bob", JOINED))
        await all_[0].broker.stop()
        assert await all_[1].next_told() == ("cars", "ana", LEFT)
        assert await all_[1].broker.members("cars") == {"bob": [b"phone"]}

    async def test_who_comes_from_a_node_that_stops_to_another_has_not_left(
        self, nodes: Nodes
    ) -> None:
        """Within the moment; nobody of the node that has stopped is in the list meanwhile."""
        all_ = await nodes(2)
        if not all_[0].broker.shared:
            return  # there is no other one
        for user in ("ana", "bob"):
            all_[0].come("cars", user)
            await told_once(all_, ("cars", user, JOINED))
        await all_[0].broker.stop()
        assert await all_[1].broker.members("cars") == {}
        assert await all_[1].broker.count_members("cars") == 0
        all_[1].come("cars", "ana")
        assert await all_[1].next_told() == ("cars", "bob", LEFT)
        assert await all_[1].broker.members("cars") == {"ana": [b"phone"]}
        assert await all_[1].broker.count_members("cars") == 1
        all_[1].go("cars", "ana")
        assert await all_[1].next_told() == ("cars", "ana", LEFT)
        assert all_[1].told.empty()
