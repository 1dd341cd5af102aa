"""What every broker promises (contracts.Broker), checked for each one there is."""

from __future__ import annotations

import asyncio
import sys
from platform import machine

import pytest

from backchannel import Hub
from backchannel.broker.memory import MemoryBroker
from backchannel.broker.redis import RedisBroker
from backchannel.contracts import Publication, Target
from backchannel.testing.broker import BrokerContract, RecordingNode

LEASE = 1.5  # as in conftest.py
CARS = Target("channel", "cars")


class TestMemoryBroker(BrokerContract):
    @pytest.fixture
    def make_broker(self):
        return MemoryBroker

    def test_publishing_before_there_is_a_node_is_a_clear_error(self):
        with pytest.raises(RuntimeError, match="bind"):
            MemoryBroker().publish(Publication(CARS, "hello"), None)

    def test_a_delivery_that_fails_is_the_publishers_to_know(self):
        broker = MemoryBroker()
        node = RecordingNode(broker)
        node.deliver = lambda publication, position: 1 / 0
        broker.bind(node)
        with pytest.raises(ZeroDivisionError):
            broker.publish(Publication(CARS, "hello"), None)


class TestRedisBroker(BrokerContract):
    lease = LEASE

    @pytest.fixture
    def make_broker(self, redis_server, cabled):
        return lambda: cabled(redis_server.url)

    @pytest.fixture
    def cut(self):
        return cut

    @pytest.fixture
    def mend(self):
        return mend

    @pytest.fixture
    def lose_data(self, redis_server):
        async def lose_data():
            redis_server.stop()
            redis_server.start()

        return lose_data


class TestOldestRedis(BrokerContract):
    """Some of it with Redis 6.2: all scripts, and each command that a broker says."""

    __test__ = sys.version_info[:2] == (3, 11) and sys.platform == "linux" and machine() == "x86_64"
    chosen = (
        "every_node_that_listens_hears_a_publication_once",
        "users_and_sessions_are_heard_where_they_are",
        "what_is_no_longer_listened_to_is_not_heard",
        "offsets_count_up_and_all_nodes_hear_one_order",
        "history_is_read_from_a_position",
        "only_as_many_as_are_to_be_kept_are_there",
        "a_second_attempt_is_none",
        "a_second_attempt_whose_first_did_not_arrive_appears_once_or_is_unsure",
        "a_second_attempt_does_not_come_behind_what_its_session_said_later",
        "what_a_session_had_on_its_way_is_none_once_it_has_gone_on_elsewhere",
        "a_later_position_that_was_really_had_begins_a_new_epoch",
        "all_nodes_that_listen_answer_a_question",
        "who_comes_is_told_of_once_and_is_a_member",
        "what_a_node_announces_it_sees_at_once",
        "who_comes_back_later_has_left_and_joined",
        "a_join_that_waits_is_told_of_who_stays",
        "of_a_visit_shorter_than_the_moment_nobody_is_told_where_joins_wait",
        "a_node_that_stops_leaves_nobody_behind",
        "another_hubs_node_is_refused",
        "a_ticket_is_taken_once_on_whatever_node",
        "a_session_is_taken_once_on_whatever_node",
        "a_session_ends_when_its_time_is_over",
    )

    @pytest.fixture
    def make_broker(self, oldest_redis):
        with oldest_redis.client as client:
            assert client.info("server")["redis_version"].startswith("6.2.")
            client.flushall()
        return lambda: RedisBroker(oldest_redis.url, "test", moment=0.2)


class TestOldestCluster(BrokerContract):
    """The same on a cluster of them, which has no topics of shards."""

    __test__ = TestOldestRedis.__test__
    one_order = False

    @pytest.fixture
    def make_broker(self, old_cluster):
        return lambda: RedisBroker(old_cluster.url, "test", moment=0.2)


assert {f"test_{name}" for name in TestOldestRedis.chosen} <= set(dir(BrokerContract))
for name in dir(BrokerContract):
    if name.startswith("test_") and name.removeprefix("test_") not in TestOldestRedis.chosen:
        setattr(TestOldestRedis, name, None)
        setattr(TestOldestCluster, name, None)


class TestClusterBroker(BrokerContract):
    one_order = False  # of what goes to several channels: they may be at several masters
    lease = LEASE

    @pytest.fixture
    def make_broker(self, cluster, cabled):
        return lambda: cabled(cluster.url)

    @pytest.fixture
    def cut(self):
        return cut

    @pytest.fixture
    def mend(self):
        return mend

    @pytest.fixture
    def lose_data(self, cluster):
        async def lose_data():
            cluster.flush()

        return lose_data


async def cut(node):
    node.broker.door.cut()


async def mend(node):
    node.broker.door.mend()


class Failing(MemoryBroker):
    """A broker whose engine is away."""

    def publish(self, publication, keep):
        raise OSError("the engine is away")


async def test_a_failure_that_nobody_awaited_is_logged_once_and_shown_in_health(caplog):
    hub = Hub(broker=Failing())
    await hub.start()

    hub.broadcast("cars", "hello")

    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "nobody awaited" in caplog.text
    assert "the engine is away" in hub.health.problems[0]


async def test_a_failure_that_is_awaited_is_raised_there_and_nowhere_else(caplog):
    hub = Hub(broker=Failing())
    await hub.start()

    with pytest.raises(OSError, match="the engine is away"):
        await hub.broadcast("cars", "hello")

    assert caplog.records == []
    assert hub.health.problems == ()


async def test_a_failure_in_a_thread_is_raised_by_result(caplog):
    hub = Hub(broker=Failing())
    await hub.start()

    def send():
        with pytest.raises(OSError, match="the engine is away"):
            hub.broadcast("cars", "hello").result(timeout=5)

    await asyncio.to_thread(send)

    assert caplog.records == []


async def test_a_failure_in_a_thread_that_nobody_awaited_is_logged(caplog):
    hub = Hub(broker=Failing())
    await hub.start()

    await asyncio.to_thread(lambda: hub.broadcast("cars", "hello") and None)
    await asyncio.sleep(0)  # the turn in which the loop publishes

    assert "nobody awaited" in caplog.text
