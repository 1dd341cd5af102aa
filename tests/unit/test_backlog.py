"""What waits for a slow client: bounded, in order, and only as much dropped as must be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.backlog import SLOW_CLIENT, new_backlog

LIMIT = 100
# (size, channel) to put, or None to take one.
steps = st.lists(
    st.one_of(st.none(), st.tuples(st.integers(5, 120), st.sampled_from([None, "a", "b"]))),
    max_size=60,
)


def model(policy, waiting, limit):
    """Trim a plain list of (frame, channel) as the policy says."""
    while sum(len(frame) for frame, _ in waiting) > limit and len(waiting) > 1:
        waiting.pop(-1 if policy == "drop_newest" else 0)


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "latest"])
@given(steps=steps)
def test_what_waits_is_what_a_plain_list_would_hold(policy, steps):
    backlog, waiting = new_backlog(policy), []
    for number, step in enumerate(steps):
        if step is None:
            if waiting:
                assert backlog.take() == waiting.pop(0)[0]
            continue
        size, channel = step
        frame = f"{number} ".ljust(size, "x")
        if policy == "latest" and channel is not None:
            waiting = [(old, of) for old, of in waiting if of != channel]
        waiting.append((frame, channel))
        backlog.put(frame, channel)
        assert backlog.trim(LIMIT)
        model(policy, waiting, LIMIT)
        assert len(backlog) == len(waiting)
        assert backlog.size == sum(len(frame) for frame, _ in waiting)
        assert backlog.size <= LIMIT or len(backlog) == 1
    assert [backlog.take() for _ in range(len(backlog))] == [frame for frame, _ in waiting]
    with pytest.raises(IndexError):
        backlog.take()


def test_by_default_nothing_is_dropped_and_too_much_is_said():
    backlog = new_backlog("close")
    backlog.put("x" * 200, "a")
    assert backlog.trim(LIMIT)  # one message always fits
    backlog.put("y", "a")
    assert not backlog.trim(LIMIT)
    assert [backlog.take(), backlog.take()] == ["x" * 200, "y"]


@pytest.mark.parametrize("policy", SLOW_CLIENT)
def test_dropping_all_leaves_nothing(policy):
    backlog = new_backlog(policy)
    backlog.put("x", None)
    backlog.put("y", "a")
    backlog.clear()
    assert (len(backlog), backlog.size) == (0, 0)
