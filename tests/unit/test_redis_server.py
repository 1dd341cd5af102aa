"""The redis-compatible server that tests are given: real, empty, and it can go away."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as Unreachable


@pytest.mark.parametrize("time", ["first", "second"])
def test_each_test_gets_an_empty_server_that_runs(redis_server, time):
    with redis_server.client as client:
        assert client.dbsize() == 0
        client.set("key", time)
        assert client.get("key") == time.encode()


def test_it_can_go_away_and_come_back_at_the_same_place(redis_server):
    url = redis_server.url
    redis_server.stop()
    with redis_server.client as client:
        with pytest.raises(Unreachable):
            client.ping()
        redis_server.start()
        assert redis_server.url == url
        assert client.ping()
    redis_server.stop()  # and the next test has one that runs


def test_after_a_test_that_stopped_it_there_is_one_again(redis_server):
    with redis_server.client as client:
        assert client.ping()
