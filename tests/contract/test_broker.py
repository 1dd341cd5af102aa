"""What every broker promises (contracts.Broker), checked for each one there is."""

from __future__ import annotations

import pytest

from backchannel.broker.memory import MemoryBroker
from backchannel.contracts import Publication, Target

CARS = Target("channel", "cars")


@pytest.fixture(params=[MemoryBroker])
def broker(request):
    return request.param()


def test_a_publication_reaches_this_node_itself(broker):
    heard = []
    broker.bind(lambda publication: heard.append(publication) or 1)

    receipt = broker.publish(Publication(CARS, "hello"))

    assert heard == [Publication(CARS, "hello")]
    assert receipt.reached == 1


def test_publications_arrive_in_the_order_of_the_calls(broker):
    heard = []
    broker.bind(lambda publication: heard.append(publication.frame) or 0)

    for number in range(100):
        broker.publish(Publication(CARS, str(number)))

    assert heard == [str(number) for number in range(100)]


def test_the_audience_travels_with_the_publication(broker):
    heard = []
    broker.bind(lambda publication: heard.append(publication) or 0)
    whisper = Publication(
        CARS, "psst", to=(Target("connection", "a"),), exclude=(Target("user", "bob"),)
    )

    broker.publish(whisper)

    assert heard == [whisper]


def test_publishing_before_there_is_a_node_is_a_clear_error(broker):
    with pytest.raises(RuntimeError, match="bind"):
        broker.publish(Publication(CARS, "hello"))


def test_a_delivery_that_fails_is_the_publishers_to_know(broker):
    def deliver(publication):
        raise OSError("disk on fire")

    broker.bind(deliver)

    with pytest.raises(OSError, match="disk on fire"):
        broker.publish(Publication(CARS, "hello"))
