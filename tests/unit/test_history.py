"""Following a channel: whatever is heard, dropped, trimmed or lost, once and in order, or told."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

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
    assert follower.hear(Position("a", 6), "a6")
    assert not follower.hear(Position("a", 6), "a6")
    assert not follower.asks  # what is heard twice is not looked up each time
    assert not follower.hear(Position("a", 5), "a5")
    assert follower.since == ("a", 5)
    assert follower.learn(page("a", 6, 6)) == ([], False)
    assert not follower.asks
    assert follower.hear(Position("a", 7), "a7")


def test_an_offset_that_counts_anew_is_looked_up_and_told_to_be_lost():
    follower = begun("a", 4)
    assert follower.hear(Position("a", 5), "a5")
    assert not follower.hear(Position("a", 4), "another 4")
    assert follower.asks
    assert not follower.hear(Position("a", 5), "another 5")
    assert not follower.hear(Position("a", 6), "another 6")
    assert follower.since == ("a", 4)  # to see whether it has the same
    anew = Page(Position("a", 6), ((5, "another 5"), (6, "another 6")))
    assert follower.learn(anew) == ([], False)
    assert follower.since > Position("a", 10**15)  # then a new epoch begins
    assert follower.learn(page("b", 6, lost=True)) == ([], True)
    assert follower.position == ("b", 6)
    while follower.asks:  # what it has heard of the old one
        assert follower.learn(page("b", 6)) == ([], False)
    assert follower.hear(Position("b", 7), "b7")


def test_where_the_newest_is_older_than_what_was_had_a_new_epoch_begins():
    follower = begun("a", 4)
    assert follower.hear(Position("a", 5), "a5")
    assert not follower.hear(Position("a", 4), "another 4")
    assert follower.learn(page("a", 4)) == ([], False)
    assert follower.since > Position("a", 10**15)


def test_what_is_heard_late_while_history_is_asked_is_looked_up_too():
    follower = begun("a", 4)
    assert follower.hear(Position("a", 5), "a5")
    follower.interrupt()
    assert not follower.hear(Position("a", 4), "another 4")
    assert not follower.hear(Position("a", 6), "another 6")
    assert follower.learn(page("a", 5)) == ([], False)
    assert follower.asks
    assert follower.since == ("a", 4)
    anew = Page(Position("a", 6), ((5, "another 5"), (6, "another 6")))
    assert follower.learn(anew) == ([], False)
    assert follower.learn(page("b", 6, lost=True))[1]


def test_what_comes_late_to_who_had_it_elsewhere_is_no_loss():
    """As when a client comes back to a node that hears a moment later."""
    follower = Follower(Position("a", 5))
    assert not follower.hear(Position("a", 5), "a5")
    assert not follower.hear(Position("a", 6), "a6")
    ready, lost = follower.learn(page("a", 6, 6))
    assert (texts(ready), lost, follower.asks) == (["a6"], False, False)


# ── what can't be read ────────────────────────────────────────────────────────────────────────


def unreadable(top, offset, *offsets):
    return Page(Position("a", top), tuple((n, f"a{n}") for n in offsets), unreadable=offset)


def test_what_can_not_be_read_is_lost_and_what_comes_after_it_is_not():
    follower = Follower(Position("a", 2))
    ready, lost = follower.learn(unreadable(6, 4, 5, 6))
    assert (texts(ready), lost, follower.asks) == (["a5", "a6"], True, False)


def test_where_the_newest_can_not_be_read_it_goes_on_after_it():
    follower = begun("a", 2)
    assert not follower.hear(Position("a", 4), "a4")
    ready, lost = follower.learn(unreadable(3, 3))
    assert (texts(ready), lost) == (["a4"], True)
    assert follower.position == ("a", 4)


def test_of_the_newest_few_those_are_given_that_can_be_read():
    follower = Follower(None)
    ready, lost = follower.learn(unreadable(6, 6, 3, 5))
    assert (texts(ready), lost, follower.position) == (["a3", "a5"], True, ("a", 6))
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


def test_where_what_is_in_doubt_can_not_be_read_some_may_be_lost():
    """The engine may count anew: what it has there now is not what was had there."""
    follower = begun("a", 0)
    assert follower.hear(Position("a", 1), "a1")
    assert not follower.hear(Position("a", 1), "another")
    assert not follower.hear(Position("a", 2), "a2")
    ready, lost = follower.learn(Page(Position("a", 2), ((2, "a2"),), unreadable=1))
    assert (texts(ready), lost) == (["a2"], True)
    assert not follower.asks


def test_what_was_had_does_not_come_again_where_what_is_in_doubt_is_not_kept_any_more():
    follower = begun("a", 0)
    follower.interrupt()
    assert texts(follower.learn(page("a", 2, 1, 2))[0]) == ["a1", "a2"]
    for n in (1, 2):
        assert not follower.hear(Position("a", n), f"a{n}")  # late
    ready, lost = follower.learn(page("a", 2, lost=True))
    assert (texts(ready), lost, follower.position) == ([], True, ("a", 2))


# ── any interleaving ──────────────────────────────────────────────────────────────────────────


class Said(NamedTuple):
    """A publication, and which one was before it: its number, which no other has."""

    number: int
    before: int


class Engine:
    """A channel as an engine keeps it, with what may go wrong."""

    def __init__(self):
        self.epochs = ["e0"]
        self.top = 0
        self.count = 0
        self.said: dict[int, Said] = {}
        self.kept: list[int] = []
        self.bad: set[int] = set()

    def publish(self):
        self.count += 1
        before = self.said.get(self.top, Said(0, 0)).number
        self.top += 1
        self.said[self.top] = Said(self.count, before)
        self.kept.append(self.top)
        return Position(self.epochs[-1], self.top), self.said[self.top]

    def forget_all_but(self, count):
        self.kept = self.kept[len(self.kept) - min(count, len(self.kept)) :]

    def fall_back(self, lost):
        """Lose the newest, and know nothing of it."""
        self.top -= min(lost, self.top)
        self.kept = [n for n in self.kept if n <= self.top]
        self.bad = {n for n in self.bad if n <= self.top}

    def begin_epoch(self):
        self.epochs.append(f"e{len(self.epochs)}")

    def read(self, since, limit):
        if since.epoch == self.epochs[-1] and since.offset > self.top:
            self.begin_epoch()  # it was really had
        top = Position(self.epochs[-1], self.top)
        if since.epoch != top.epoch:
            return Page(top, (), lost=True)
        wanted = list(range(since.offset + 1, self.top + 1))
        if any(n not in self.kept for n in wanted):
            return Page(top, (), lost=True)
        wanted, unreadable = wanted[:limit], 0
        while wanted and wanted[0] in self.bad:
            unreadable = wanted.pop(0)
        good = list(itertools.takewhile(lambda n: n not in self.bad, wanted))
        return Page(top, tuple((n, self.said[n]) for n in good), unreadable=unreadable)


class Following(RuleBasedStateMachine):
    """Publications that are heard late, twice, or never, and pages that arrive late."""

    def __init__(self):
        super().__init__()
        self.told: list[tuple[Position, Said] | None] | None = None  # None is a loss

    @initialize(before=st.integers(0, 3), missed=st.integers(0, 3))
    def begin(self, before, missed):
        self.engine = Engine()
        for _ in range(before):
            self.engine.publish()
        self.follower = Follower(Position("e0", before))
        self.began = Position("e0", before), self.engine.said.get(before, Said(0, 0))
        self.line: list[tuple[Position, Said]] = []
        self.pages: list[Page] = []
        self.told = []
        for _ in range(missed):
            self.engine.publish()

    @rule(count=st.integers(1, 4))
    def publish(self, count):
        self.line += [self.engine.publish() for _ in range(count)]

    @rule(count=st.integers(1, 5))
    def hear(self, count):
        for at, item in self.line[:count]:
            if self.follower.hear(at, item):
                self.told.append((at, item))
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

    @rule(back=st.integers(0, 2))
    def spoil(self, back):
        """Let something be unreadable in history, and wherever it was not heard yet."""
        if self.engine.top - back > 0:
            self.engine.bad.add(self.engine.top - back)

    @rule(lost=st.integers(0, 2))
    def fail_over(self, lost):
        self.engine.fall_back(lost)
        self.engine.begin_epoch()
        self.follower.interrupt()

    @precondition(lambda self: self.told and self.told[-1] is not None)
    @rule(lost=st.integers(1, 3), count=st.integers(1, 4))
    def fall_back(self, lost, count):
        """Count anew, as an engine that was given older data; the first such word is heard."""
        had = self.told[-1][0]
        is_level = not self.follower.asks and had == (self.engine.epochs[-1], self.engine.top)
        if is_level and not self.line and not self.pages:
            self.engine.fall_back(lost)
            self.publish(count)
            self.hear(1)

    @rule(limit=st.integers(1, 3))
    def ask(self, limit):
        if self.follower.asks and not self.pages:
            self.pages.append(self.engine.read(self.follower.since, limit))

    @rule()
    def learn(self):
        if self.pages:
            ready, lost = self.follower.learn(self.pages.pop())
            self.told += [None] * lost
            self.told += ready

    @invariant()
    def each_once_and_in_order_or_told(self):
        if self.told is None:  # it has not begun
            return
        had = [one[1].number for one in self.told if one is not None]
        assert len(had) == len(set(had))
        last = self.began
        for one in self.told:
            if one is not None and last is not None:
                assert one[0] == (last[0].epoch, last[0].offset + 1)
                assert one[1].before == last[1].number
            last = one

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
TestFollowing.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
