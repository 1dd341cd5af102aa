"""The ledger of the chaos runs notices what it is there to notice, and nothing else."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import summing
from deeds import Came, Deeds, Did, Trouble, unanswered
from joins import Told, unbalanced
from ledger import Had, Ledger, Place, Said
from people import DIRECT, Crowd, Who


def at(offset, epoch="e"):
    return Place(epoch, offset)


def got(*numbers):
    return [Had("got", f"a-{n}") for n in numbers]


ANA = Who("c1", "ana", "ana-0")
ENTERED = Had("entered", at=at(0))
LOST = Had("lost")


@pytest.fixture
def judge():
    """Judge what ana had of a room in which a-1 to a-5 were said, each at its number."""
    ledger = Ledger()
    for number in range(1, 6):
        to = ["user:ana"] if number == 2 else None
        exclude = ["user:ana"] if number == 3 else None
        ledger.say(Said(f"a-{number}", "room", "a/1", number, to, exclude))
        ledger.place(f"a-{number}", at(number))

    def decide(*had, who=ANA, **states):
        for id_, state in states.items():
            ledger.said[id_.replace("_", "-")].state = state
        for one in had:
            ledger.note(who, "room", one)
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


def test_what_was_acknowledged_without_a_place_is_somewhere():
    ledger = Ledger()
    ledger.say(Said("a-0", "room", "a/1", 0, None, None))
    ledger.accepted("a-0", None, None)
    assert ledger.judge() == []
    assert ledger.judge(["room"]) == ["a-0 in room was acknowledged, and is nowhere"]
    ledger.place("a-0", at(1))
    assert ledger.judge(["room"]) == []
    ledger.said["a-0"].offset = None
    ledger.note(ANA, "room", Had("got", "a-0"))
    assert ledger.judge(["room"]) == []


def test_what_is_stored_twice_is_told(judge):
    judge.ledger.place("a-1", at(9, "f"))
    (wrong,) = judge(ENTERED, *got(1, 2, 4, 5))
    assert "a-1 is in room twice: at 1 of {'e'}" in wrong


def test_without_history_each_connection_that_speaks_keeps_its_order():
    ledger = Ledger()
    for number, by in enumerate(["a/1", "a/1", "b/1", "a/2"]):
        ledger.say(Said(f"a-{number}", "plain", by, number, None, None))
    cleo, dan = Who("c2", "ana", "ana-0"), Who("c3", "ana", "ana-1")
    for number in (3, 0, 2, 1):
        ledger.note(ANA, "plain", Had("got", f"a-{number}"))
    assert ledger.judge() == []
    ledger.note(cleo, "plain", Had("got", "a-1"))
    ledger.note(cleo, "plain", Had("got", "a-0"))
    assert ledger.judge() == ["c2 (ana-0) in plain: a-0 came after number 1 of a/1"]
    for had in (Had("entered"), *got(0, 1), Had("entered"), *got(0, 1)):
        ledger.note(dan, "plain", had)
    assert len(ledger.judge()) == 1


def test_what_is_stored_in_another_order_than_one_connection_said_it_is_told(judge):
    judge.ledger.said["a-4"].number = 1
    (wrong,) = judge(ENTERED, *got(1, 2, 4, 5))
    assert "room: a-4 is at 4 of e, after a-3 at 3 of the same connection" in wrong
    judge.ledger.said["a-4"].by = "a/2"
    assert judge() == []


def test_what_is_for_a_session_is_kept_for_it_alone(judge):
    judge.ledger.said["a-4"].to = ["session:ana-1"]
    assert judge(ENTERED, *got(1, 2, 5)) == []
    (wrong, *_) = judge(*got(4), who=Who("c2", "ana", "ana-0"))
    assert "a-4 was not for it: to ['session:ana-1']" in wrong
    (wrong,) = judge(ENTERED, *got(1, 2, 5), who=Who("c3", "ana", "ana-1"))[-1:]
    assert wrong.startswith("c3 (ana-1) in room: 1 missing between")
    assert wrong.endswith("a-4")


# ── past all channels ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def past():
    """Judge what c1 had of what was said past all channels, one after the other."""
    ledger = Ledger()
    for number, (to, exclude) in enumerate(
        [
            ("user:ana", None),
            ("session:ana-0", None),
            ("connection:x", None),
            ("everyone", None),
            ("user:bob", None),
            ("session:ana-1", None),
            ("connection:y", None),
            ("everyone", ["user:ana"]),
            ("user:ana", ["session:ana-0"]),
            ("everyone", ["connection:x"]),
        ]
    ):
        ledger.say(Said(f"a-{number}", DIRECT, "a/1", number, [to], exclude))

    def decide(*had):
        for one in (Had("entered"), Had("named", "x"), *had):
            ledger.note(ANA, DIRECT, one)
        return ledger.judge()

    decide.ledger = ledger
    return decide


def test_past_all_channels_whoever_it_is_for_may_have_it_or_not(past):
    assert past(*got(0, 1, 2, 3), Had("entered"), *got(3), Had("named", "y"), *got(6, 9)) == []
    assert past(*got(1, 3)) == []


@pytest.mark.parametrize("number", range(4, 10))
def test_past_all_channels_nobody_else_must_have_it(past, number):
    (wrong,) = past(*got(number))
    assert f"a-{number} was not for it" in wrong


def test_past_all_channels_what_is_for_an_earlier_connection_is_not_for_the_next(past):
    (wrong,) = past(Had("entered"), Had("named", "y"), *got(2))
    assert "a-2 was not for it: to ['connection:x']" in wrong


def test_past_all_channels_nothing_comes_twice_to_a_connection_nor_out_of_order(past):
    assert any("a-0 came twice" in one for one in past(*got(0, 0)))
    assert any("a-1 came after number 2 of a/1" in one for one in past(*got(2, 1)))


def test_past_all_channels_what_was_not_published_must_not_come(past):
    past.ledger.failed("a-0", never=True)
    assert any("was told that it was not published" in one for one in past(*got(0)))


def test_what_is_for_a_channel_must_not_come_past_it(past):
    past.ledger.say(Said("a-20", "room", "a/1", 20, None, None))
    assert any("a-20 was for room" in one for one in past(*got(20)))


def test_everybody_in_the_crowd_is_chosen():
    who = [ANA, Who("c2", "bob", "bob-0")]
    crowd = Crowd(who, lambda: ["x"], random.Random(0))
    chosen = [crowd.choose(DIRECT) for _ in range(200)]
    ana_and_bob = {f"{kind}{user}{end}" for user in ("ana", "bob") for kind, end in KINDS}
    assert {to[0] for to, _ in chosen} == {*ana_and_bob, "connection:x", "everyone"}
    some = [crowd.choose("room") for _ in range(200)]
    assert (
        {to is None for to, _ in some} == {exclude is None for _, exclude in some} == {True, False}
    )


KINDS = [("user:", ""), ("session:", "-0")]


def test_without_history_what_is_sent_until_it_is_acknowledged_may_come_twice():
    ledger = Ledger()
    ledger.say(Said("a-0", "plain", "a/1", 0, None, None, again=True))
    ledger.say(Said("a-1", "plain", "a/1", 1, None, None, again=True))
    for number in (0, 1, 0):
        ledger.note(ANA, "plain", Had("got", f"a-{number}"))
    assert ledger.judge() == []
    ledger.place("a-0", at(1))  # nor where it is kept
    assert any("a-0 came twice" in one for one in ledger.judge())


# ── what v1 promises besides ──────────────────────────────────────────────────────────────────


def deeds(**states):
    some = Deeds()
    some.said = {id_.replace("_", "-"): state for id_, state in states.items()}
    return some


def done(*ids, by=1, since=100.0):
    return [Did(by, "did", id_, since) for id_ in ids]


def test_what_was_acknowledged_is_done_once_and_what_is_not_known_at_most_once():
    some = deeds(c_1="acknowledged", c_2="unknown", c_3="unknown", c_4="never", c_5="sent")
    assert some.judge(done("c-1", "c-2", "c-5")) == []


@pytest.mark.parametrize(
    ("did", "words"),
    [
        (done(), "c-1 \\(acknowledged\\) was never done"),
        (done("c-1", "c-1"), "c-1 .* was done 2 times, by"),
        (done("c-1") + done("c-1", by=2), "c-1 .* was done 2 times, though nothing had happened"),
        (done("c-1", "c-4"), "c-4 \\(never\\) was done"),
        (done("c-1", "c-2") + done("c-2", by=2), "c-2 \\(unknown\\) was done 2 times"),
        (done("c-1", "c-9"), "c-9 was done, and nobody said it"),
    ],
)
def test_what_was_done_otherwise_is_told(did, words):
    (wrong,) = deeds(c_1="acknowledged", c_2="unknown", c_4="never").judge(did)
    assert re.search(words, wrong), wrong


@pytest.mark.parametrize(
    ("trouble", "may"),
    [
        (Trouble(1, 101, 102), True),
        (Trouble(2, 97, 99), True),
        (Trouble(0, 99, 101), True),
        (Trouble(3, 101, 102), False),
        (Trouble(1, 90, 94), False),
        (Trouble(1, 104, 105), False),
    ],
)
def test_a_node_that_could_not_tell_what_it_did_lets_another_do_it_again(trouble, may):
    some = deeds(c_1="acknowledged")
    some.troubles = [trouble]
    wrong = some.judge(done("c-1") + done("c-1", by=2, since=103))
    assert (wrong == []) == may
    again = some.judge(done("c-1") + done("c-1", by=2, since=103) + done("c-1", by=2, since=103))
    assert "3 times" in again[0]  # and not even then by the same node


def came(**other):
    usual = {
        "name": "c1", "resumed": True, "before": "x", "id": "x", "acknowledged": 3, "since": 100.0,
        "last": 3, "at": 101.0,
    }  # fmt: skip
    some = Deeds()
    some.came = [Came(**usual | other)]
    return some


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({}, None),
        ({"last": 5}, None),
        ({"last": None}, None),
        ({"resumed": False, "id": "y", "last": 0}, None),
        ({"resumed": False, "before": "", "last": 0}, None),
        ({"last": 2}, "its state is of 2, and 3 was acknowledged"),
        ({"id": "y"}, "was resumed, as y after 'x'"),
        ({"resumed": False}, "was begun anew, as x after 'x'"),
    ],
)
def test_a_session_comes_back_with_its_id_and_state_or_is_another(other, words):
    wrong = came(**other).judge([])
    assert wrong == [] if words is None else re.search(words, wrong[0])


def test_state_may_be_older_where_a_node_could_not_tell():
    some = came(last=2)
    some.troubles = [Trouble(7, 99, 100)]
    assert some.judge([]) == []


def test_calls_that_hang_are_told():
    asked = [Did(1, "asked", "c-1", 0), Did(2, "asked", "c-2", 0), Did(1, "asked", "c-3", 0)]
    some = [*asked, Did(1, "answered", "c-1", 1)]
    (wrong,) = unanswered(some, {2})
    assert "node 1 asked a client (c-3)" in wrong
    assert unanswered([*some, Did(1, "answered", "c-3", 2)], {2}) == []


# ── joins and leaves ──────────────────────────────────────────────────────────────────────────


def told(*words, by=1):
    return [Told(by, word == "joined", "room", "ana") for word in words]


@pytest.mark.parametrize(
    ("words", "there", "is_right"),
    [
        ([], False, True),
        (["joined"], True, True),
        (["joined", "left", "joined"], True, True),
        (["left", "joined", "joined"], True, True),  # at once, on two nodes
        (["joined", "left"], False, True),
        ([], True, False),
        (["joined"], False, False),
        (["joined", "joined"], True, False),
        (["joined", "left"], True, False),
        (["joined", "left", "left"], False, False),
    ],
)
def test_joins_and_leaves_take_turns(words, there, is_right):
    pairs = {("room", "ana")} if there else set()
    assert (unbalanced(told(*words), set(), pairs) == []) == is_right


def test_what_a_node_told_that_was_killed_may_be_told_once_more():
    pairs = {("room", "ana")}
    twice = told("joined") + told("joined", by=2)
    assert unbalanced(twice, {2}, pairs) == []
    assert unbalanced(twice, {3}, pairs) != []
    assert unbalanced(twice + told("joined"), {2}, pairs) != []
    left = told("joined", "left", "joined") + told("left", by=2)
    assert unbalanced(left, {2}, pairs) == []
    assert unbalanced(told("joined", "joined") + told("left", by=2), {2}, set()) != []


def test_a_line_that_a_node_died_over_is_left_out():
    assert Told.read('[1, true, "room", "ana"]\n[1, fal') == told("joined")
    assert Did.read('[1, "did", "c-1", 100.0]\n[1, "di') == done("c-1")


# ── results ───────────────────────────────────────────────────────────────────────────────────


def test_runs_are_summed_up_from_their_file(tmp_path):
    file = tmp_path / "runs"
    for seed, wrong in ((1, []), (2, ["a ghost"])):
        figures = {"got": 10, "× storm": 1}
        summing.append(file, {"seed": seed, "seconds": 30, "figures": figures, "wrong": wrong})
    text, is_right = summing.summed(summing.read(file))
    assert not is_right
    assert text.startswith("2 runs, 2 seeds, 1 minutes, from seed 1 to 2")
    assert "20 got" in text
    assert "2 × storm" in text
    assert "WRONG: seed 2: a ghost" in text
    assert summing.summed(summing.read(file)[:1])[1]


def test_runs_without_a_run_are_not_right():
    assert summing.summed([]) == ("no runs", False)


def test_what_is_no_file_of_runs_is_told(tmp_path):
    with pytest.raises(SystemExit, match="--sum takes a file that --results wrote"):
        summing.read(tmp_path / "nothing")
    file = tmp_path / "else"
    for text in ("hello", "[]", "3", '{"seed": 1}'):
        file.write_text(text)
        with pytest.raises(SystemExit, match=r"line 1 of .* is no run, without"):
            summing.read(file)
