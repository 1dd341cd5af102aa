"""What is said to break clients, beside what decoders really refuse: every type to every other."""

from __future__ import annotations

import datetime as dt
import enum
import itertools
import json
import uuid
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import pytest
from msgspec import Meta, Struct

from backchannel import Hub, Listener, event
from backchannel.schema.asyncapi import asyncapi
from backchannel.schema.changes import compare
from backchannel.schema.described import describe


class Word(enum.Enum):
    A = "a"
    B = "b"


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


class Pair(NamedTuple):
    x: int
    y: int


class Half(NamedTuple):
    x: int
    y: int = 0


class Row(Struct, array_like=True, forbid_unknown_fields=True):
    x: int
    y: int = 0


At = dt.datetime
Clock = dt.time
Aware, Naive = Annotated[At, Meta(tz=True)], Annotated[At, Meta(tz=False)]
AwareClock, NaiveClock = Annotated[Clock, Meta(tz=True)], Annotated[Clock, Meta(tz=False)]
SCALARS = [
    int, float, str, bool, None, Any, int | None, int | str, float | None, Literal["a"],
    Literal["a", "b", "c"], Literal[1, 2], Literal["a", 1], Word, Number, Word | None,
    Annotated[int, Meta(ge=0)], Annotated[int, Meta(gt=0)], Annotated[int, Meta(ge=1)],
    Annotated[int, Meta(ge=0, le=10)], Annotated[int, Meta(ge=0, multiple_of=2)],
    Annotated[int, Meta(ge=0, multiple_of=4)], Annotated[float, Meta(gt=0)],
    Annotated[str, Meta(max_length=1)], Annotated[str, Meta(pattern="^[ab]")],
    At, Aware, Naive, Clock, AwareClock, NaiveClock, At | None, At | int, dt.date,
    dt.timedelta, uuid.UUID,
]  # fmt: skip
ARRAYS = [
    list, list[int], list[int | None], list[str], list[At], list[Aware],
    Annotated[list[int], Meta(max_length=2)], Annotated[list[int], Meta(min_length=3)],
    tuple[int, int], tuple[int, int, int], tuple[int, str], tuple[int, ...],
    Pair, Half, Row,
]  # fmt: skip
DICTS = [
    dict, dict[str, int], dict[str, str], dict[int, int], dict[float, int], dict[Number, int],
    dict[Annotated[int, Meta(ge=0)], int], dict[Literal["a", "b"], int], dict[Word, int],
    dict[Annotated[str, Meta(max_length=2)], int], dict[dt.date, int], dict[At, int],
    dict[Aware, int], dict[Clock, int], dict[uuid.UUID, int],
    dict[int, Clock], dict[str, dict[int, int]], dict[str, dict[str, int]], dict[str, list[At]],
]  # fmt: skip
VALUES = [
    None, True, False, 0, 1, 2, 3, 4, 8, -1, -2, 11, 12, 0.5, 1.5, -0.5, "", "a", "b", "c", "d",
    "ab", "ba", "cc", "1", "2020-01-01", "2020-01-01T00:00:00", "2020-01-01T00:00:00Z", "10:00:00",
    "10:00:00Z", "P1D", "c0a8e1e0-0000-4000-8000-000000000000", [], [1], [1, 2], [1, 2, 3],
    [1, 2, 3, 4], ["a"], [1, "a"], [None], [1, None], [[1]], ["2020-01-01T00:00:00"],
    ["2020-01-01T00:00:00Z"], [True],
]  # fmt: skip
KEYS = [
    "x", "a", "b", "c", "1", "2", "3", "100", "-1", "1.5", "abc", "null", "2020-01-01", "10:00:00",
    "2020-01-01T00:00:00", "2020-01-01T00:00:00Z", "c0a8e1e0-0000-4000-8000-000000000000",
]  # fmt: skip
INNER = [1, "a", "10:00:00", {"1": 1}, {"a": 1}, {}, ["2020-01-01T00:00:00"], [], True]
OBJECTS = [{}, *({key: value} for key in KEYS for value in INNER)]
LISTS = {"scalars": SCALARS, "arrays": ARRAYS, "dicts": DICTS}


def document(kind):
    fields: Any = [("a", kind)]
    taken = msgspec.defstruct("Say", fields)
    sent = msgspec.defstruct("Said", fields, tag="said", tag_field="type")

    class Chat(Listener):
        sends = sent

        def say(self, ws, message):
            pass

    Chat.say.__annotations__["message"] = taken
    Chat.say = event("say")(Chat.say)
    hub = Hub()
    hub.add("/ws", Chat)
    return json.loads(json.dumps(asyncapi(describe(hub.endpoints), "test", "0")))


def admitted(kind):
    """Return those of all values that a decoder takes."""
    decode = msgspec.json.Decoder(kind).decode
    texts = [json.dumps(value) for value in [*VALUES, *OBJECTS]]
    found = set()
    for text in texts:
        try:
            decode(text)
        except msgspec.ValidationError:
            continue
        found.add(text)
    return found


@pytest.mark.parametrize("name", LISTS)
def test_what_breaks_is_what_decoders_refuse(name):
    wrong = []
    known = [(kind, document(kind), admitted(kind)) for kind in LISTS[name]]
    for (old, before, was), (new, after, now) in itertools.permutations(known, 2):
        broken = {one.breaks for one in compare(before, after)}
        for whom, more in (
            ("clients that send it", was - now),
            ("clients that read it", now - was),
        ):
            if (whom in broken) is not bool(more):
                wrong.append(f"{old} → {new}: {whom}: {whom in broken}, {sorted(more)[:3]}")
    assert not wrong, "\n".join(wrong)


def test_types_of_different_kinds_break_both():
    kinds = [str, int, list[int], dict[str, int]]
    for old, new in itertools.permutations([document(kind) for kind in kinds], 2):
        broken = {one.breaks for one in compare(old, new)}
        assert broken >= {"clients that send it", "clients that read it"}
