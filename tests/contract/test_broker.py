"""What every broker promises (contracts.Broker), checked for each one there is."""

from __future__ import annotations

import asyncio

import pytest

from backchannel import Hub
from backchannel.broker.memory import MemoryBroker
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
