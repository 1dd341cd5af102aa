"""Which answers are taken for those of nodes."""

import pytest

from backchannel.answers import fitting, is_count

INFO = ["n.1", None, "/ws", "n", 1.5, {}]
GOOD = {
    "close": [None, 0, 3],
    "count": [None, 0, 3],
    "subscribe": [None, 3],
    "unsubscribe": [None, 3],
    "users": [None, [], ["ana", "bob"]],
    "connections": [None, [], [INFO], [INFO, ["n.2", "ana", "/ws", "n", 1, {1: 2}]]],
    "recheck": [None, [], [INFO]],
    "replace": [None, True, b"record"],
}
WRONG = [
    "garbage", -1, 1.5, False, {"a": 1}, [1], [None], [[]], [INFO[:-1]], [[*INFO, 1]],
    *[[[*INFO[:4], moment, {}]] for moment in (1e20, -1e20, float("inf"), float("nan"), "1", None)],
    [["n.1", None, "/ws", "n", 1.5, []]],
]  # fmt: skip


@pytest.mark.parametrize("verb", GOOD)
def test_answers_of_nodes_are_taken_and_no_others(verb):
    fits = fitting(verb)
    assert all(map(fits, GOOD[verb]))
    assert not any(map(fits, WRONG))


def test_yes_is_no_number():
    assert not is_count(True)
    assert not fitting("users")(True)


def test_what_a_newer_node_asks_may_be_answered_by_anything():
    assert fitting("new")("anything")
