"""What breaks clients and what does not: each rule, both ways round."""

from __future__ import annotations

import importlib.util
import itertools
import sys

import pytest

from backchannel import Hub
from backchannel.schema.asyncapi import asyncapi
from backchannel.schema.changes import compare
from backchannel.schema.described import describe

numbers = itertools.count()

HEAD = """
from __future__ import annotations
from datetime import datetime, time
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict
from msgspec import UNSET, Meta, Struct, UnsetType
from pydantic import AwareDatetime, BaseModel, Field, NaiveDatetime
from backchannel import Hub, Listener, event
hub = Hub()
"""
SAY = """
class Say(Struct{of}):
    {fields}
@hub.endpoint("/ws")
class Chat(Listener):
    @event("say")
    def say(self, ws, message: Say): ...
"""
SAID = """
class Said(Struct, tag="said", tag_field="type"{of}):
    {fields}
@hub.endpoint("/ws")
class Chat(Listener):
    sends = Said
"""


@pytest.fixture
def document(tmp_path, monkeypatch):
    """Make the document of endpoints in a module: ``document(text)``."""

    def make(text):
        name = f"described_{next(numbers)}"
        file = tmp_path / f"{name}.py"
        file.write_text(HEAD + text)
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        hubs = [one for one in vars(module).values() if isinstance(one, Hub)]
        return asyncapi(describe(hubs[0].endpoints), "test", "0")

    return make


@pytest.fixture
def told(document):
    """Compare two modules: what is said of each change, and whether it breaks somebody."""

    def tell(old, new):
        return {
            f"{one.where}: {one.what}": bool(one.breaks)
            for one in compare(document(old), document(new))
        }

    return tell


def say(fields, of=""):
    return SAY.format(fields=fields, of=of)


def said(fields, of=""):
    return SAID.format(fields=fields, of=of)


def test_what_has_not_changed_is_no_change(told):
    for text in (say("text: str"), said("text: str")):
        assert told(text, text) == {}


# What is in a field, from the narrower to the wider: clients may be admitted more generously, and
# the server may say less than it did.
WIDER = {
    "a whole number": ("a: int", "a: float", "was number and is integer", "was integer and is number"),
    "null": ("a: int", "a: int | None", "null is not {} any more", "null {}"),
    "another type": ("a: int", "a: int | str", "string is not {} any more", "string {}"),
    "anything": ("a: int", "a: Any", "may not be anything any more", "may be anything now"),
    "a word more": (
        'a: Literal["x", "y"]', 'a: Literal["x", "y", "z"]',
        'may not be "z" any more', 'may be "z" too',
    ),
    "any word": (
        'a: Literal["x", "y"]', "a: str", 'may only be "x", "y" now', 'may not only be "x", "y"',
    ),
    "a longer text": (
        "a: Annotated[str, Meta(max_length=3)]", "a: Annotated[str, Meta(max_length=4)]",
        "maxLength was 4 and is 3", "maxLength was 3 and is 4",
    ),
    "any length": (
        "a: Annotated[str, Meta(min_length=3)]", "a: str",
        "minLength was not set and is 3", "minLength was 3 and is not set",
    ),
    "a smaller number": (
        "a: Annotated[int, Meta(ge=3)]", "a: Annotated[int, Meta(ge=2)]",
        "minimum was 2 and is 3", "minimum was 3 and is 2",
    ),
    "any pattern": (
        "a: Annotated[str, Meta(pattern='x')]", "a: str",
        'pattern was not set and is "x"', 'pattern was "x" and is not set',
    ),
    "a time without an offset": (
        "a: Annotated[datetime, Meta(tz=True)]", "a: datetime",
        'format was "iso-date-time" and is "date-time"',
        'format was "date-time" and is "iso-date-time"',
    ),
    "any text, and not a time": (
        "a: time", "a: str",
        'format was not set and is "iso-time"', 'format was "iso-time" and is not set',
    ),
    "any number of items": (
        "a: tuple[int, int]", "a: list[int]",
        "has a fixed number of items now", "has any number of items now",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDER)
def test_what_clients_send_may_be_widened_and_not_narrowed(told, name):
    narrow, wide, narrowed, widened = WIDER[name]
    assert told(say(wide), say(narrow)) == {f"/ws: say.a: {narrowed.format('taken')}": True}
    assert told(say(narrow), say(wide)) == {f"/ws: say.a: {widened.format('is taken too')}": False}


@pytest.mark.parametrize("name", WIDER)
def test_what_the_server_sends_may_be_narrowed_and_not_widened(told, name):
    narrow, wide, narrowed, widened = WIDER[name]
    assert told(said(wide), said(narrow)) == {f"/ws: said.a: {narrowed.format('sent')}": False}
    assert told(said(narrow), said(wide)) == {
        f"/ws: said.a: {widened.format('may be sent too')}": True
    }


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        ("int", "str"), ("int", "float"), ("Literal['1', '2']", "str"),
        ("Literal['1', '2']", "int"), ("Annotated[int, Meta(ge=0)]", "int"), ("datetime", "str"),
        ("Annotated[datetime, Meta(tz=False)]", "datetime"), ("Annotated[str, Meta(min_length=2)]", "str"),
    ],
)  # fmt: skip
def test_keys_are_compared_as_what_they_are_of(told, narrow, wide):
    old, new = f"a: dict[{narrow}, int]", f"a: dict[{wide}, int]"
    for change in (told(say(old), say(new)), told(said(new), said(old))):
        assert set(change.values()) == {False}
    for change in (told(say(new), say(old)), told(said(old), said(new))):
        assert True in change.values()
        assert all("a: its keys: " in where for where, breaks in change.items() if breaks)


def test_keys_of_pydantic_models_are_compared_too(told):
    chat = "@hub.endpoint('/ws')\ndef chat(ws, message: Say): ...\n"
    model = "class Say(BaseModel):\n    a: {}\n" + chat
    for narrow, wide in [
        ("int", "str"),
        ("int", "float"),
        ("Annotated[str, Field(pattern='x')]", "str"),
    ]:
        old, new = model.format(f"dict[{narrow}, int]"), model.format(f"dict[{wide}, int]")
        assert True not in told(old, new).values()
        assert True in told(new, old).values()
    for old, new, breaks in [
        ("AwareDatetime", "datetime", False),
        ("datetime", "NaiveDatetime", True),
    ]:
        assert list(told(model.format(old), model.format(new)).values()) == [breaks]


def test_a_field_becomes_a_key_and_the_other_way_round(told):
    listener = "@hub.endpoint('/ws')\ndef chat(ws, message: {}): ...\n"
    text = "class Say(Struct):\n    text: int{}\n" + listener.format("Say")
    assert told(text.format(""), listener.format("dict[int, int]")) == {
        "/ws: object.text: is refused now": True
    }
    assert told(listener.format("dict[str, str]"), text.format(" = 0")) == {
        "/ws: Say.text: was string and is integer": True,
        "/ws: Say.text: may be sent too": False,
    }
    sent = "@hub.endpoint('/ws')\nclass Chat(Listener):\n    sends = {}\n"
    text = "class Said(Struct):\n    text: int\n" + sent.format("Said")
    assert told(sent.format("dict[int, int]"), text) == {
        "/ws: Said.text: was no key that is sent": True, "/ws: Said.text: is sent too": False,
    }  # fmt: skip


def test_items_at_the_end_of_an_array_may_come(told):
    array = "class Row({}):\n    x: int\n    {}\n"
    short = array.format("Struct, array_like=True", "y: int = 0")
    long = short + "    z: int = 0\n"
    closed = short.replace("True)", "True, forbid_unknown_fields=True)")
    for old, new, changes in [
        (short, long, {"[2]: may be sent too": False}),
        (long, short, {"[2]: is ignored now": True}),
        (long, closed, {"[2]: is refused now": True, ": maxItems was not set and is 2": True}),
        (short, closed, {": maxItems was not set and is 2": True}),
        (array.format("NamedTuple", "y: int = 0"), array.format("NamedTuple", "y: int"),
         {": minItems was 1 and is 2": True}),
    ]:  # fmt: skip
        assert told(old + say("a: Row"), new + say("a: Row")) == {
            f"/ws: say.a{what}": breaks for what, breaks in changes.items()
        }


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("a: list[int]", "a: list[str]", "/ws: say.a[*]"),
        ("a: dict[str, int]", "a: dict[str, str]", "/ws: say.a[*]"),
        ("a: tuple[int, int]", "a: tuple[int, str]", "/ws: say.a[1]"),
        ("a: int", "a: str", "/ws: say.a"),
    ],
)
def test_another_type_breaks_both_ways_and_is_found_inside_of_others(told, old, new, where):
    for first, second in ((old, new), (new, old)):
        assert any(
            breaks and name.startswith(where)
            for name, breaks in told(say(first), say(second)).items()
        )
        assert True in told(said(first), said(second)).values()


# A type of which nothing is left, and what stands there now: one change, which breaks either side.
OTHER = {
    "one": ("a: str", "a: int", "a", "was string and is integer"),
    "beside what stays": ("a: str | None", "a: int | None", "a", "was string and is integer"),
    "in a list": ("a: list[str]", "a: list[int]", "a[*]", "was string and is integer"),
    "several": ("a: str | bool", "a: int | None", "a", "was string or boolean and is integer or null"),
    "a word": ('a: Literal["x"]', "a: Literal[1, 2]", "a", 'was "x" and is 1 or 2'),
    "a class": ("a: str", "a: Point", "a", "was string and is Point"),
    "a tagged class": ("a: Point", "a: Line", "a", "was Point and is Line"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_a_field_of_another_type_is_one_change_that_names_both_types(told, name):
    old, new, where, what = OTHER[name]
    points = "".join(
        f"class {one}(Struct, tag={one!r}, tag_field='type'):\n    x: int\n" for one in ("Point", "Line")
    )  # fmt: skip
    for kind, write in (("say", say), ("said", said)):
        assert told(points + write(old), points + write(new)) == {
            f"/ws: {kind}.{where}: {what}": True
        }


def test_of_several_classes_in_a_field_each_that_comes_or_goes_is_told(told):
    """What is to be done is another thing for each."""
    classes = "".join(
        f"class {one}(Struct, tag={one!r}, tag_field='type'):\n    x: int\n" for one in "ABC"
    )
    assert told(classes + said("a: A | B"), classes + said("a: A | C")) == {
        "/ws: said.a: B is not sent any more": False,
        "/ws: said.a: C may be sent too": True,
    }


def test_a_tuple_of_another_length_breaks(told):
    for first, second in (("int, int", "int"), ("int", "int, int")):
        changes = told(say(f"a: tuple[{first}]"), say(f"a: tuple[{second}]"))
        assert list(changes.values()) == [True]
        assert "items and has" in next(iter(changes))


# ── fields ────────────────────────────────────────────────────────────────────────────────────


def test_a_field_that_clients_must_send_breaks_and_one_that_they_may_send_does_not(told):
    old = say("text: str")
    assert told(old, say("text: str\n    to: str")) == {"/ws: say.to: must be sent now": True}
    assert told(old, say("text: str\n    to: str = ''")) == {"/ws: say.to: may be sent too": False}
    assert told(say("text: str = ''"), old) == {"/ws: say.text: is always there now": True}
    assert told(old, say("text: str = ''")) == {"/ws: say.text: may be missing now": False}


def test_a_field_that_clients_send_and_that_is_gone_breaks_and_says_what_becomes_of_it(told):
    old = say("text: str\n    to: str = ''")
    assert told(old, say("text: str")) == {"/ws: say.to: is ignored now": True}
    closed = say('type: Literal["say"]\n    text: str', ", forbid_unknown_fields=True")
    assert told(old, closed) == {
        "/ws: say.to: is refused now": True,
        "/ws: say: other fields are refused now": True,
    }
    assert told(closed, say("text: str")) == {"/ws: say: other fields are ignored now": False}


def test_a_field_that_is_renamed_breaks_on_either_side(told):
    assert told(say("text: str"), say("words: str")) == {
        "/ws: say.text: is ignored now": True,
        "/ws: say.words: must be sent now": True,
    }
    assert told(said("text: str"), said("words: str")) == {
        "/ws: said.text: is not sent any more": True,
        "/ws: said.words: is sent too": False,
    }


def test_a_field_of_what_the_server_sends_may_come_and_must_not_go(told):
    assert told(said("a: int"), said("a: int\n    b: int")) == {"/ws: said.b: is sent too": False}
    assert told(said("a: int\n    b: int"), said("a: int")) == {
        "/ws: said.b: is not sent any more": True
    }
    assert told(said("a: int"), said("a: int | UnsetType = UNSET")) == {
        "/ws: said.a: may be missing now": True
    }
    assert told(said("a: int | UnsetType = UNSET"), said("a: int")) == {
        "/ws: said.a: is always there now": False
    }


def test_a_default_matters_to_clients_and_not_to_what_the_server_sends(told):
    assert told(said("a: int"), said("a: int = 1")) == {}
    assert told(said("a: int"), said("a: int = 1", ", omit_defaults=True")) == {
        "/ws: said.a: may be missing now": True
    }


def test_a_dict_takes_what_was_a_field(told):
    listener = "@hub.endpoint('/ws')\ndef chat(ws, message: {}): ...\n"
    old = "class Say(Struct):\n    text: str\n" + listener.format("Say")
    assert told(old, listener.format("dict")) == {"/ws: object.text: may be anything now": False}
    assert told(old, listener.format("dict[str, int]")) == {
        "/ws: object.text: was string and is integer": True
    }


# ── types of message ──────────────────────────────────────────────────────────────────────────

TWO = """
class Said(Struct, tag="said", tag_field="type"):
    a: int
class Left(Struct, tag="{left}", tag_field="type"):
    a: int
@hub.endpoint("/ws")
class Chat(Listener):
    {what}
"""


def two(what, left="left"):
    return TWO.format(what=what, left=left)


def test_a_type_of_message_that_the_server_sends_may_come_and_must_not_go(told):
    one, both = two("sends = Said"), two("sends = Said | Left")
    assert told(one, both) == {"/ws: left may be sent too": False}
    assert told(both, one) == {"/ws: left is not sent any more": True}
    assert told(both, two("sends = Said | Left", "gone")) == {
        "/ws: left is not sent any more": True,
        "/ws: gone may be sent too": False,
    }


def test_a_type_of_message_that_clients_send_may_come_and_must_not_go(told):
    one = two("def on_message(self, ws, message: Said): ...")
    both = two("def on_message(self, ws, message: Said | Left): ...")
    assert told(one, both) == {"/ws: left is taken too": False}
    assert told(both, one) == {"/ws: left is not taken any more": True}


EVENTS = """
@hub.endpoint("/ws")
class Chat(Listener):
    @event("a")
    def a(self, ws): ...
    {more}
"""


def test_an_event_may_come_and_must_not_go(told):
    one = EVENTS.format(more="")
    both = EVENTS.format(more="@event('b')\n    def b(self, ws): ...")
    assert told(one, both) == {"/ws: b is taken too": False}
    assert told(both, one) == {"/ws: b is not taken any more": True}
    # …unless on_message takes whatever it was.
    rest = EVENTS.format(more="def on_message(self, ws, message): ...")
    assert told(both, rest) == {"/ws: may be anything now": False}
    assert told(rest, both)["/ws: may not be anything any more"]


def test_an_event_and_a_tagged_message_are_the_same_to_clients(told):
    routed = two("@event('said')\n    def said(self, ws, message: Said): ...")
    assert told(routed, two("def on_message(self, ws, message: Said): ...")) == {}
    assert told(two("def on_message(self, ws, message: Said): ..."), routed) == {}


def test_another_field_that_had_only_one_value_makes_no_other_type_of_message(told):
    """A constant beside the tag looks like a tag."""
    narrow, wide = (f'type: Literal["say"]\n    a: Literal[{one}]' for one in ("'x'", "'x', 'y'"))
    assert told(say(narrow), say(wide)) == {'/ws: say.a: may be "y" too': False}
    assert told(say(wide), say(narrow)) == {'/ws: say.a: may not be "y" any more': True}


def test_the_name_of_a_class_that_nobody_sees_is_no_change(told):
    assert told(say("text: str"), say("text: str").replace("Say", "Spoken")) == {}


def test_text_and_bytes_are_types_of_message(told):
    text, both = (
        f"@hub.endpoint('/ws')\ndef echo(ws, message: {one}): ...\n"
        for one in ("str", "str | bytes")
    )
    assert told(text, both) == {"/ws: a binary message is taken too": False}
    assert told(both, text) == {"/ws: a binary message is not taken any more": True}


def test_classes_that_have_themselves_in_them_are_compared_once(told):
    tree = "children: list[Say]\n    size: {}"
    assert told(say(tree.format("int")), say(tree.format("int"))) == {}
    assert told(say(tree.format("float")), say(tree.format("int"))) == {
        "/ws: say.size: was number and is integer": True
    }


def test_pydantic_models_are_compared_too(told):
    chat = "@hub.endpoint('/ws')\nclass Chat(Listener):\n    sends = Said\n"
    model = "class Said(BaseModel):\n    type: Literal['said'] = 'said'\n    a: {}\n" + chat
    assert told(model.format("int"), model.format("int | None")) == {
        "/ws: said.a: null may be sent too": True
    }
    # What a struct sends is not told from what a model sends.
    assert told(said("a: int"), model.format("int")) == {}


# ── answers ───────────────────────────────────────────────────────────────────────────────────

ASK = """
class A(Struct):
    a: int
class B(Struct):
    a: int
    b: int
@hub.endpoint("/ws")
class Chat(Listener):
    @event("ask")
    def ask(self, ws){}: ...
"""
WHERE = "/ws: the answer to ask"


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (" -> A", " -> B", {f"{WHERE}.b: is sent too": False}),
        (" -> B", " -> A", {f"{WHERE}.b: is not sent any more": True}),
        (" -> A", "", {f"{WHERE}: is not said any more": True}),
        ("", " -> A", {f"{WHERE}: is said now": False}),
        (" -> A", " -> None", {f"{WHERE}: never comes now": True}),
        (" -> None", " -> A", {f"{WHERE}: comes now": False}),
        (" -> A", " -> A | None", {f"{WHERE}: may be null, or not come": True}),
        (" -> A | None", " -> A", {f"{WHERE}: always comes now": False}),
        (" -> int", " -> int | list[int]", {f"{WHERE}: array may be sent too": True}),
        (" -> int | list[int]", " -> int", {f"{WHERE}: array is not sent any more": False}),
        (" -> None", " -> None", {}),
    ],
)
def test_answers_are_what_the_server_sends(told, old, new, changes):
    assert told(ASK.format(old), ASK.format(new)) == changes


# ── endpoints ─────────────────────────────────────────────────────────────────────────────────


def at(url, **options):
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"@hub.endpoint({url!r}{given})\ndef echo(ws, message: str): ...\n"


def test_an_endpoint_may_come_and_must_not_go(told):
    one, both = at("/a"), at("/a") + at("/b")
    assert told(one, both) == {"/b: the endpoint is new": False}
    assert told(both, one) == {"/b: the endpoint is gone": True}
    assert told(at("/a/{x}"), at("/a")) == {
        "/a/{x}: the endpoint is gone": True,
        "/a: the endpoint is new": False,
    }


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("/a/{x}", "/a/{y}", {"/a/{x}: {x}: is called {y} now": True}),
        ("/a/{x}", "/a/{x:int}", {"/a/{x}: {x}: was str and is int": True}),
        ("/a/{x:int}", "/a/{x}", {"/a/{x}: {x}: was int and is str": False}),
        ("/a/{x:int}", "/a/{x:uuid}", {"/a/{x}: {x}: was int and is uuid": True}),
        ("/a/{x}", "/a/{x:path}", {"/a/{x}: {x}: was str and is path": False}),
        ("/a/{x:path}", "/a/{x}", {"/a/{x}: {x}: was path and is str": True}),
    ],
)
def test_what_stands_in_a_url(told, old, new, changes):
    assert told(at(old), at(new)) == changes


def test_endpoints_that_only_their_variables_tell_apart_are_not_mixed_up(told):
    both = at("/a/{x}") + at("/a/{x:int}")
    assert told(both, at("/a/{x:int}") + at("/a/{x}")) == {}


def test_another_channel_breaks_and_another_name_for_its_variable_does_not(told):
    old = at("/a/{x}", channel="room:{x}")
    assert told(old, at("/a/{x}", channel="chat:{x}")) == {
        "/a/{x}: its channel was room:{x} and is chat:{x}": True
    }
    assert list(told(old, at("/a/{y}", channel="room:{y}"))) == ["/a/{x}: {x}: is called {y} now"]


def test_a_subprotocol_may_come_and_must_not_go(told):
    one, both = at("/a", subprotocols=["x"]), at("/a", subprotocols=["x", "y"])
    assert told(one, both) == {}
    assert told(both, one) == {"/a: the subprotocol y is gone": True}


def test_what_the_server_sends_may_be_said_and_must_not_be_unsaid(told):
    assert told(two("sends = None"), two("sends = Said")) == {
        "/ws: what the server sends: is said now": False
    }
    assert told(two("sends = Said"), two("sends = None")) == {
        "/ws: what the server sends: is not said any more": True
    }


def test_descriptions_are_no_changes(told):
    about = say("text: str").replace("def say(self, ws, message: Say): ...",
                                     "def say(self, ws, message: Say):\n        'To all.'")  # fmt: skip
    assert "To all." in about
    assert told(say("text: str"), about) == {}


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda d: d.pop("channels"), "#/channels/Chat leads nowhere"),
        (lambda d: d["channels"]["Chat"].pop("address"), "KeyError 'address'"),
        (lambda d: d["components"]["schemas"].clear(), "#/components/schemas/Say leads nowhere"),
        (lambda d: d.update(operations=[1]), "AttributeError"),
    ],
)
def test_a_document_that_is_spoilt_is_refused(document, spoil, problem):
    old, new = document(say("text: str")), document(say("text: str"))
    spoil(old)
    with pytest.raises(ValueError, match=problem):
        compare(old, new)
