"""Following a channel: whatever is heard, dropped, trimmed or lost, once and in order, or told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from backchannel.history import WAITING, Follower, Page, Position


def page(epoch, top, *offsets, lost=False):
    return Page(Position(epoch, top), tuple((n, f"{epoch}{n}") for n in offsets), lost)


def texts(ready):
    return [item for _, item in ready]


# ── positions as text ─────────────────────────────────────────────────────────────────────────


def test_a_position_is_read_as_it_was_written():
    position = Position("5f3a09c2", 17)
    assert str(position) == "5f3a09c2.17"
    assert Position.parse("5f3a09c2.17") == position


@given(st.from_regex(r"[0-9A-Za-z_-]{1,64}", fullmatch=True), st.integers(0, 10**18 - 1))
def test_every_position_is_read_as_it_was_written(epoch, offset):
    assert Position.parse(str(Position(epoch, offset))) == (epoch, offset)


@pytest.mark.parametrize(
    "text",
    ["", "17", "abc", "abc.", ".17", "abc.-1", "abc.1x", "abc.017", "a b.1", "a.1\n", "x" * 99],
)
def test_what_is_no_position_is_named(text):
    with pytest.raises(ValueError, match="is no position") as caught:
        Position.parse(text)
    assert "5f3a09c2.17" in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_position_is_text():
    with pytest.raises(TypeError, match="17"):
        Position.parse(17)


# ── following ─────────────────────────────────────────────────────────────────────────────────


def begun(epoch, offset):
    """Return who has had all up to a position."""
    follower = Follower(None)
    assert follower.asks
    assert follower.learn(page(epoch, offset)) == ([], False)
    assert follower.position == (epoch, offset)
    return follower


def test_who_starts_with_nothing_begins_at_the_newest():
    follower = Follower(None)
    assert not follower.hear(Position("a", 5), "a5")
    assert not follower.hear(Position("a", 6), "a6")
    assert texts(follower.learn(page("a", 5))[0]) == ["a6"]
    assert not follower.asks
    assert follower.hear(Position("a", 7), "a7")
    assert follower.position == ("a", 7)


def test_who_starts_with_the_newest_few_gets_those_first():
    follower = Follower(None)
    follower.hear(Position("a", 9), "a9")
    assert texts(follower.learn(page("a", 8, 7, 8))[0]) == ["a7", "a8", "a9"]


def test_what_was_had_is_not_given_again():
    follower = begun("a", 5)
    assert not follower.hear(Position("a", 5), "a5")
    assert not follower.hear(Position("a", 4), "a4")
    assert not follower.asks


def test_a_gap_is_filled_from_history_before_what_was_heard():
    follower = begun("a", 5)
    assert not follower.hear(Position("a", 8), "a8")
    assert follower.asks
    assert not follower.hear(Position("a", 9), "a9")
    ready, lost = follower.learn(page("a", 8, 6, 7, 8))
    assert (texts(ready), lost) == (["a6", "a7", "a8", "a9"], False)
    assert not follower.asks


def test_who_comes_back_hears_first_and_joins_what_history_has():
    follower = Follower(Position("a", 2))
    assert follower.asks
    follower.hear(Position("a", 5), "a5")
    ready, _ = follower.learn(page("a", 4, 3, 4))
    assert texts(ready) == ["a3", "a4", "a5"]


def test_pages_are_read_until_the_newest():
    follower = Follower(Position("a", 0))
    assert texts(follower.learn(page("a", 4, 1, 2))[0]) == ["a1", "a2"]
    assert follower.asks
    assert texts(follower.learn(page("a", 4, 3, 4))[0]) == ["a3", "a4"]
    assert not follower.asks


def test_what_history_does_not_have_any_more_is_lost_and_it_goes_on_from_the_newest():
    follower = Follower(Position("a", 2))
    follower.hear(Position("a", 9), "a9")
    ready, lost = follower.learn(page("a", 8, lost=True))
    assert (texts(ready), lost) == (["a9"], True)
    assert follower.position == ("a", 9)


def test_what_was_heard_of_a_new_epoch_is_not_lost_with_what_was_before():
    follower = begun("a", 5)
    for n in (1, 3, 4, 5):
        assert not follower.hear(Position("b", n), f"b{n}")
    ready, lost = follower.learn(page("b", 4, lost=True))
    assert (texts(ready), lost) == (["b3", "b4", "b5"], True)
    assert follower.hear(Position("b", 6), "b6")


def test_what_history_forgot_and_was_heard_is_not_lost():
    follower = Follower(Position("a", 0))
    for n in (2, 3, 4):
        follower.hear(Position("a", n), f"a{n}")
    assert texts(follower.learn(page("a", 4, 1, 2))[0]) == ["a1", "a2"]
    ready, lost = follower.learn(page("a", 4, lost=True))
    assert (texts(ready), lost) == (["a3", "a4"], False)


def test_what_was_heard_and_does_not_reach_the_newest_is_lost_too():
    follower = begun("a", 5)
    assert not follower.hear(Position("b", 1), "b1")
    ready, lost = follower.learn(page("b", 4, lost=True))
    assert (texts(ready), lost, follower.position) == ([], True, ("b", 4))


def test_another_epoch_is_a_loss():
    follower = begun("a", 5)
    assert not follower.hear(Position("b", 1), "b1")
    assert follower.asks
    ready, lost = follower.learn(page("b", 1, lost=True))
    assert (texts(ready), lost) == (["b1"], True)
    assert follower.hear(Position("b", 2), "b2")


def test_a_late_word_of_an_epoch_that_has_ended_does_not_ask_for_ever():
    follower = begun("b", 1)
    assert not follower.hear(Position("a", 7), "a7")
    assert follower.learn(page("b", 1)) == ([], False)
    assert follower.learn(page("b", 1)) == ([], False)
    assert not follower.asks
    assert follower.hear(Position("b", 2), "b2")


def test_what_waits_is_bounded_and_found_in_history_afterwards():
    follower = Follower(Position("a", 0))
    count = WAITING + 10
    for n in range(1, count + 1):
        follower.hear(Position("a", n), f"a{n}")
    ready, lost = follower.learn(page("a", 5, 1, 2, 3, 4, 5))
    assert (texts(ready), lost) == (["a1", "a2", "a3", "a4", "a5"], False)
    assert follower.asks
    ready, lost = follower.learn(page("a", count, *range(6, count + 1)))
    assert texts(ready) == [f"a{n}" for n in range(6, count + 1)]
    assert not follower.asks


# ── any interleaving ──────────────────────────────────────────────────────────────────────────


class Engine:
    """A channel as an engine keeps it, with what may go wrong."""

    def __init__(self):
        self.epochs = ["e0"]
        self.top = 0
        self.kept: list[int] = []

    def publish(self):
        self.top += 1
        self.kept.append(self.top)
        return Position(self.epochs[-1], self.top)

    def forget_all_but(self, count):
        self.kept = self.kept[len(self.kept) - min(count, len(self.kept)) :]

    def fail_over(self, lost):
        """Lose the newest, and begin another epoch."""
        lost = min(lost, self.top)
        self.top -= lost
        self.kept = [n for n in self.kept if n <= self.top]
        self.epochs.append(f"e{len(self.epochs)}")

    def read(self, since, limit):
        top = Position(self.epochs[-1], self.top)
        if since.epoch != top.epoch or since.offset > self.top:
            return Page(top, (), lost=True)
        wanted = range(since.offset + 1, self.top + 1)
        if any(n not in self.kept for n in wanted):
            return Page(top, (), lost=True)
        return Page(top, tuple((n, Position(top.epoch, n)) for n in wanted[:limit]))


class Following(RuleBasedStateMachine):
    """Publications that are heard late, twice, or never, and pages that arrive late."""

    def __init__(self):
        super().__init__()
        self.told: list[Position | None] | None = None  # None is a loss

    @initialize(before=st.integers(0, 3), missed=st.integers(0, 3))
    def begin(self, before, missed):
        self.engine = Engine()
        for _ in range(before):
            self.engine.publish()
        self.follower = Follower(Position("e0", before))
        self.began = Position("e0", before)
        self.line: list[Position] = []
        self.pages: list[Page] = []
        self.told = []
        for _ in range(missed):
            self.engine.publish()

    @rule(count=st.integers(1, 4))
    def publish(self, count):
        self.line += [self.engine.publish() for _ in range(count)]

    @rule(count=st.integers(1, 5))
    def hear(self, count):
        for at in self.line[:count]:
            if self.follower.hear(at, at):
                self.told.append(at)
        del self.line[:count]

    @rule(index=st.integers(0, 9))
    def drop(self, index):
        del self.line[index : index + 1]

    @rule()
    def hear_twice(self):
        self.line[:1] *= 2

    @rule(count=st.integers(0, 3))
    def forget(self, count):
        self.engine.forget_all_but(count)

    @rule(lost=st.integers(0, 2))
    def fail_over(self, lost):
        self.engine.fail_over(lost)
        self.follower.interrupt()

    @rule(limit=st.integers(1, 3))
    def ask(self, limit):
        if self.follower.asks and not self.pages:
            self.pages.append(self.engine.read(self.follower.position, limit))

    @rule()
    def learn(self):
        if self.pages:
            ready, lost = self.follower.learn(self.pages.pop())
            self.told += [None] * lost
            for at, item in ready:
                assert at == item
                self.told.append(at)

    @invariant()
    def each_once_and_in_order_or_told(self):
        if self.told is None:  # it has not begun
            return
        had = [at for at in self.told if at is not None]
        assert len(had) == len(set(had))
        last = self.began
        for at in self.told:
            if at is None:
                last = None
            else:
                if last is not None:
                    assert at == (last.epoch, last.offset + 1)
                last = at

    def teardown(self):
        if self.told is None:
            return
        self.hear(len(self.line))
        self.follower.interrupt()  # as when something was missed and nothing came after it
        self.pages.clear()
        for _ in range(1000):
            if not self.follower.asks:
                break
            self.ask(3)
            self.learn()
        assert not self.follower.asks
        assert self.follower.position == (self.engine.epochs[-1], self.engine.top)
        self.each_once_and_in_order_or_told()


TestFollowing = Following.TestCase
TestFollowing.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
