"""The ledger of the chaos runs notices what it is there to notice, and nothing else."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ledger import Had, Ledger, Place, Said


def at(offset, epoch="e"):
    return Place(epoch, offset)


def got(*numbers):
    return [Had("got", f"a-{n}") for n in numbers]


ENTERED = Had("entered", at=at(0))
LOST = Had("lost")


@pytest.fixture
def judge():
    """Judge what ana had of a room in which a-1 to a-5 were said, each at its number."""
    ledger = Ledger()
    for number in range(1, 6):
        to = ["ana"] if number == 2 else None
        exclude = ["ana"] if number == 3 else None
        ledger.say(Said(f"a-{number}", "room", "a/1", number, to, exclude))
        ledger.place(f"a-{number}", at(number))

    def decide(*had, user="ana", **states):
        for id_, state in states.items():
            ledger.said[id_.replace("_", "-")].state = state
        for one in had:
            ledger.note("c1", user, "room", one)
        return ledger.judge()

    decide.ledger = ledger
    return decide


def test_all_in_order_but_what_was_not_for_her_is_right(judge):
    assert judge(ENTERED, *got(1, 2, 4, 5)) == []


@pytest.mark.parametrize(
    ("had", "words"),
    [
        ([ENTERED, *got(1, 4)], "1 missing between .*: a-2"),
        ([ENTERED, *got(2)], "1 missing between .*: a-1"),
        ([ENTERED, *got(1, 1)], "a-1 came twice"),
        ([ENTERED, *got(2, 1)], "a-1 at .* came after"),
        ([ENTERED, *got(1, 2, 3)], "a-3 was not for it"),
        ([ENTERED, Had("draft", "a-3")], "a-3 was not for it"),
        ([ENTERED, *got(1), Had("entered", at=at(5))], "2 missing|3 missing"),
        ([ENTERED, *got(1), Had("entered", at=at(1, "f"))], "without a word of a loss"),
        ([ENTERED, LOST, *got(1, 4)], "1 missing between .*: a-2"),
        ([ENTERED, *got(1), LOST, *got(4, 2)], "a-2 at .* came after"),
    ],
)
def test_what_is_wrong_is_told(judge, had, words):
    wrong = "\n".join(judge(*had))
    assert re.search(words, wrong), wrong


@pytest.mark.parametrize(
    "had",
    [
        [ENTERED, *got(1), LOST, *got(4, 5)],
        [ENTERED, *got(1), Had("entered", lost=True, at=at(3)), *got(4, 5)],
        [ENTERED, *got(1), Had("entered", lost=True), *got(2, 5), Had("caught up")],
        [ENTERED, *got(1), Had("draft", "a-2"), Had("entered", at=at(1)), *got(2, 4)],
        [ENTERED, *got(1, 2), Had("entered", at=at(3)), *got(4)],
    ],
)
def test_what_was_told_to_be_lost_may_be_missing(judge, had):
    assert judge(*had) == []


def test_a_new_epoch_without_a_word_is_told(judge):
    judge.ledger.said["a-4"].epochs.clear()
    judge.ledger.place("a-4", at(4, "f"))
    (wrong, *_) = judge(ENTERED, *got(1, 2, 4))
    assert "is of epoch ['f'] and came after" in wrong


def test_what_is_known_by_two_epochs_joins_them(judge):
    """After a loss the first that comes may be of the new epoch, and have a place in both."""
    for number in (4, 5):
        judge.ledger.said[f"a-{number}"].epochs.add("f")
    judge.ledger.said["a-5"].epochs.discard("e")
    assert judge(ENTERED, *got(1), LOST, *got(4, 5)) == []


def test_what_was_not_published_must_not_come(judge):
    (wrong,) = judge(ENTERED, *got(1), a_1="never")
    assert "was told that it was not published" in wrong


def test_what_is_stored_twice_is_told(judge):
    judge.ledger.place("a-1", at(9, "f"))
    (wrong,) = judge(ENTERED, *got(1, 2, 4, 5))
    assert "a-1 is in room twice: at 1 of {'e'}" in wrong


def test_without_history_each_connection_that_speaks_keeps_its_order():
    ledger = Ledger()
    for number, by in enumerate(["a/1", "a/1", "b/1", "a/2"]):
        ledger.say(Said(f"a-{number}", "plain", by, number, None, None))
    for number in (3, 0, 2, 1):
        ledger.note("c1", "ana", "plain", Had("got", f"a-{number}"))
    assert ledger.judge() == []
    ledger.note("c2", "ana", "plain", Had("got", "a-1"))
    ledger.note("c2", "ana", "plain", Had("got", "a-0"))
    assert ledger.judge() == ["c2 (ana) in plain: a-0 came after number 1 of a/1"]
    for had in (Had("entered"), *got(0, 1), Had("entered"), *got(0, 1)):
        ledger.note("c3", "ana", "plain", had)
    assert len(ledger.judge()) == 1
