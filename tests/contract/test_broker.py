"""What every broker promises (contracts.Broker), checked for each one there is."""

from __future__ import annotations

import asyncio

import pytest

from backchannel import Hub
from backchannel.broker.memory import MemoryBroker
from backchannel.contracts import Publication, Target

CARS = Target("channel", "cars")


@pytest.fixture(params=[MemoryBroker])
def broker(request):
    return request.param()


def test_a_publication_reaches_this_node_itself(broker):
    heard = []
    broker.bind(lambda publication, _: heard.append(publication) or 1)

    receipt = broker.publish(Publication(CARS, "hello"), None)

    assert heard == [Publication(CARS, "hello")]
    assert receipt.reached == 1


def test_publications_arrive_in_the_order_of_the_calls(broker):
    heard = []
    broker.bind(lambda publication, _: heard.append(publication.frame) or 0)

    for number in range(100):
        broker.publish(Publication(CARS, str(number)), None)

    assert heard == [str(number) for number in range(100)]


def test_the_audience_travels_with_the_publication(broker):
    heard = []
    broker.bind(lambda publication, _: heard.append(publication) or 0)
    whisper = Publication(
        CARS, "psst", to=(Target("connection", "a"),), exclude=(Target("user", "bob"),)
    )

    broker.publish(whisper, None)

    assert heard == [whisper]


def test_publishing_before_there_is_a_node_is_a_clear_error(broker):
    with pytest.raises(RuntimeError, match="bind"):
        broker.publish(Publication(CARS, "hello"), None)


def test_a_delivery_that_fails_is_the_publishers_to_know(broker):
    def deliver(publication, position):
        raise OSError("disk on fire")

    broker.bind(deliver)

    with pytest.raises(OSError, match="disk on fire"):
        broker.publish(Publication(CARS, "hello"), None)


class Failing:
    """A broker whose engine is away."""

    def bind(self, deliver):
        pass

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
