"""What a listener says that it takes and sends, and what is refused."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from typing import Annotated, Literal

import msgspec
import pydantic
import pytest

from backchannel import Hub, Listener, event
from backchannel.errors import ListenerError
from backchannel.schema.asyncapi import asyncapi
from backchannel.schema.described import describe
from backchannel.schema.typescript import typescript


class Inner(msgspec.Struct):
    a: int
    b: str = "x"
    c: int | msgspec.UnsetType = msgspec.UNSET


class Said(msgspec.Struct, tag="said", tag_field="type"):
    inner: Inner


@dataclasses.dataclass
class Plain:
    a: int = 1


class Model(pydantic.BaseModel):
    a: int = 1
    named: str = pydantic.Field("", alias="nom")


class Row(msgspec.Struct, array_like=True, tag="row"):
    at: dt.datetime


class Sub(msgspec.Struct):
    many: list[dt.datetime]
    either: dt.time | int | None
    both: tuple[int, dt.time]
    naive: Annotated[dt.datetime, msgspec.Meta(tz=False)]
    aware: Annotated[dt.datetime, msgspec.Meta(tz=True, description="when")]
    keys: dict[int, dict[dt.datetime, dt.time]]
    words: dict[Literal[2, 1], int] | None
    rows: list[Row]
    plain: dict[str, int]


class Unknown:
    pass


class User(str):
    __slots__ = ()


def described(listener):
    hub = Hub()
    hub.add("/ws/{room}", listener)
    return describe(hub.endpoints)


def components(listener):
    return asyncapi(described(listener), "t", "0")["components"]["schemas"]


@pytest.mark.parametrize(
    ("sends", "problem"),
    [
        ("Said | Left", "'Said | Left', which is a text and no type"),
        ((Said, Plain), "which is no type"),
        (Said(Inner(1)), "which is no type"),
        (Said | Unknown, "and Unknown has no JSON form that is known"),
        (list[Unknown], "and Unknown has no JSON form that is known"),
        (42, "42, which is no type"),
    ],
)
def test_sends_that_is_no_type_is_refused_at_registration(sends, problem):
    class Chat(Listener):
        pass

    Chat.sends = sends
    with pytest.raises(ListenerError, match=re.escape(problem)) as raised:
        Hub().add("/ws", Chat)
    assert str(raised.value).startswith("Chat.sends (tests/unit/schema/test_described.py:")
    assert "as in `sends = Said | Left`" in str(raised.value)


@pytest.mark.parametrize(
    "sends", [str, bytes, dict, list[Plain], Said | Plain | Model, Said | None, list[User], Inner]
)
def test_sends_takes_whatever_can_be_sent(sends):
    class Chat(Listener):
        pass

    Chat.sends = sends
    assert described(Chat).endpoints[0].sends


def test_a_field_with_a_default_is_always_sent_and_may_be_left_out_by_clients():
    class Chat(Listener):
        sends = Said | Plain | Model

        def on_message(self, ws, message: Inner): ...

        @event("model")
        def model(self, ws, message: Model): ...

    found = components(Chat)
    assert found["Inner"]["required"] == ["a"]
    assert found["InnerSent"]["required"] == ["a", "b"]
    assert found["Said"]["properties"]["inner"] == {"$ref": "#/components/schemas/InnerSent"}
    assert found["Plain"]["required"] == ["a"]
    assert list(found["Model"]["properties"]) == ["a", "nom"]
    assert "required" not in found["Model"]
    assert list(found["ModelSent"]["properties"]) == ["a", "named"]  # dumped without its alias
    assert found["ModelSent"]["required"] == ["a", "named"]


def test_what_is_sent_is_what_its_schema_says():
    """The promise behind `required`: what is left out of a message when it is encoded."""
    for message in (Plain(), Model(), Inner(1)):
        kind = type(message)

        class Chat(Listener):
            sends = kind

        required = set(components(Chat)[kind.__name__]["required"])
        from backchannel.messages import encode

        assert required == set(msgspec.json.decode(encode(message)))


def test_a_return_annotation_that_is_not_there_is_told_when_it_is_asked_for():
    class Chat(Listener):
        @event("ask")
        def ask(self, ws) -> Missing: ...  # noqa: F821

    hub = Hub()
    hub.add("/ws", Chat)  # it serves
    with pytest.raises(ListenerError, match=r"Chat\.ask \(.+\): the return .+'Missing'.+define"):
        describe(hub.endpoints)


def test_a_return_annotation_without_a_schema_is_told():
    class Chat(Listener):
        def on_message(self, ws, message: str) -> Unknown: ...

    with pytest.raises(ListenerError, match=r"Chat\.on_message .+Unknown has no JSON form"):
        described(Chat)


def test_an_event_that_no_object_can_bring_is_only_called():
    class Chat(Listener):
        @event("sum")
        def sum(self, ws, message: list[int]) -> int: ...

        @event("shout")
        def shout(self, ws, message: str) -> str: ...

    described_ = described(Chat)
    shout, sum_ = described_.endpoints[0].taken
    assert sum_.only_called
    assert not shout.only_called  # an object comes as its text
    text = typescript(described_)
    assert "sum: (data: number[]) => number;" in text
    assert "shout: (data: string) => string;" in text
    assert 'sends: { type: "shout"; };' in text


def test_names_that_two_have_are_told_apart():
    def chat(ws, message: str): ...

    class Inner_(msgspec.Struct):  # noqa: N801
        z: int

    Inner_.__name__ = "Chat"

    class Chat(Listener):
        def on_message(self, ws, message: Inner_): ...

    hub = Hub()
    hub.add("/a", Chat)
    hub.add("/b", chat)
    hub.add("/c/{room}", Chat)
    document = asyncapi(describe(hub.endpoints), "t", "0")
    assert list(document["channels"]) == ["Chat", "chat", "Chat_2"]
    names = re.findall(
        r"^export interface (\w+)", typescript(describe(hub.endpoints)), re.MULTILINE
    )
    assert len(names) == len(set(names)) == 4


def test_times_and_keys_are_described_also_inside_of_others():
    class Chat(Listener):
        def on_message(self, ws, message: list[Sub]):
            pass

    found = components(Chat)
    fields = found["Sub"]["properties"]
    at, clock = ({"type": "string", "format": f"iso-{one}"} for one in ("date-time", "time"))
    assert fields["many"] == {"type": "array", "items": at}
    assert fields["either"]["anyOf"] == [clock, {"type": "integer"}, {"type": "null"}]
    assert fields["both"]["items"] == [{"type": "integer"}, clock]
    assert fields["naive"]["format"] == "date-time-local"
    assert fields["aware"] == {"type": "string", "format": "date-time", "description": "when"}
    inner = {"type": "object", "propertyNames": {"format": "iso-date-time"}}
    assert fields["keys"] == {
        "type": "object",
        "propertyNames": {"format": "integer"},
        "additionalProperties": {**inner, "additionalProperties": clock},
    }
    assert fields["words"]["anyOf"][0]["propertyNames"] == {"enum": ["1", "2"]}
    assert found["Row"]["items"] == [{"enum": ["row"]}, at]
    assert "propertyNames" not in fields["plain"]
