"""Messages out of Python and into it: every kind, and what is said of those that are none."""

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import typing
import uuid
from typing import Any, Literal

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.errors import InvalidMessage, ListenerError, UnsendableMessage
from backchannel.messages import decoder_for, encode, tag_reader

NAN, INF = float("nan"), float("inf")
TEN_MIB = 10 * 1024 * 1024


class Point(msgspec.Struct):
    x: float
    y: Any = None


class Camel(msgspec.Struct, rename="camel"):
    nick_name: str
    left_out: int | msgspec.UnsetType = msgspec.UNSET
    nothing: None = None


@dataclasses.dataclass
class Place:
    name: str
    at: Any = None


class Row(typing.NamedTuple):
    value: float


class Model(pydantic.BaseModel):
    x: float = 1.0
    url: pydantic.HttpUrl | None = None
    secret: pydantic.SecretStr | None = None
    more: Any = None


class Many(pydantic.RootModel[list[float]]):
    pass


class Odd(enum.Enum):
    NOTHING = NAN
    RED = "red"


def refusal_of(message):
    """Return why a message can't be sent; fails when it can."""
    with pytest.raises(UnsendableMessage) as caught:
        encode(message)
    return caught.value


# ── out ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["", "hi", "größer 🚗", "null", '{"a": 1}', "\x00\n"])
def test_a_str_travels_as_it_is_in_a_text_frame(text):
    assert encode(text) == text
    assert type(encode(text)) is str


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_any_kind_travel_in_a_binary_frame(kind):
    frame = encode(kind(b"\x00\xff"))
    assert frame == b"\x00\xff"
    assert type(frame) is bytes


def test_a_buffer_that_changes_later_does_not_change_what_was_sent():
    buffer = bytearray(b"now")
    frame = encode(buffer)
    buffer[:] = b"new"
    assert frame == b"now"


def test_a_slice_with_a_step_of_a_memoryview_travels_as_its_bytes():
    assert encode(memoryview(b"abcdef")[::2]) == b"ace"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0, "0"),
        (2**70, str(2**70)),
        (1.5, "1.5"),
        ([], "[]"),
        ({}, "{}"),
        ((1, 2), "[1,2]"),
        ({"snake_case": 1, "camelCase": None}, '{"snake_case":1,"camelCase":null}'),
        ({1: "int", 2.5: "float"}, '{"1":"int","2.5":"float"}'),
        (Point(1.0), '{"x":1.0,"y":null}'),
        (Place("here", [None]), '{"name":"here","at":[null]}'),
        (Row(2.0), "[2.0]"),
        (Odd.RED, '"red"'),
        (dt.date(2020, 2, 29), '"2020-02-29"'),
        (uuid.UUID(int=0), '"00000000-0000-0000-0000-000000000000"'),
        (decimal.Decimal("1.10"), '"1.10"'),
        (b"x", b"x"),
        ([b"x"], '["eA=="]'),
        (Many([1.0, 2.0]), "[1.0,2.0]"),
        ({"model": Many([1.0]), "n": None}, '{"model":[1.0],"n":null}'),
        ("ü", "ü"),
        (["ü"], '["ü"]'),
        ([msgspec.Raw(b'{"a":null}'), None], '[{"a":null},null]'),
    ],
)
def test_whatever_has_a_json_form_is_sent_as_json(message, text):
    assert encode(message) == text


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Camel("ana"), '{"nickName":"ana","nothing":null}'),
        ({"deep": [Camel("ana")]}, '{"deep":[{"nickName":"ana","nothing":null}]}'),
        (
            Model(url="https://a.example/"),
            '{"x":1.0,"url":"https://a.example/","secret":null,"more":null}',
        ),
        (
            [Model(secret="s3cret")],
            '[{"x":1.0,"url":null,"secret":"**********","more":null}]',
        ),
        ([decimal.Decimal("NaN"), None], '["NaN",null]'),
        ([{1, 2}, frozenset(), None], "[[1,2],[],null]"),
        ({"nan": None, "text": "NaN"}, '{"nan":null,"text":"NaN"}'),
    ],
)
def test_a_null_beside_a_value_of_an_unusual_type_is_no_reason_to_refuse(message, text):
    assert encode(message) == text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=20,
).filter(lambda value: not isinstance(value, str))  # fmt: skip


@given(json_values)
def test_what_was_sent_as_json_reads_back_as_it_was(value):
    assert json.loads(encode(value)) == value


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda n: n, "$"),
        (lambda n: [0, n], "$[1]"),
        (lambda n: (n,), "$[0]"),
        (lambda n: {"a": {"b": [1, {"c": n}]}}, "$.a.b[1].c"),
        (lambda n: {"a": None, "b": n}, "$.b"),
        (lambda n: {7: n}, "$.7"),
        (lambda n: {n}, "$[0]"),
        (Point, "$.x"),
        (lambda n: [Point(1.0, [n])], "$[0].y[0]"),
        (lambda n: Place("x", {"at": n}), "$.at.at"),
        (Row, "$[0]"),
        (lambda n: Model(x=n), "$.x"),
        (lambda n: {"models": [Model(), Model(more={"z": n})]}, "$.models[1].more.z"),
        (lambda n: Many([1.0, n]), "$[1]"),
        (lambda n: [Point(1.0, Model(x=n))], "$[0].y.x"),
        (lambda n: collections.OrderedDict(a=n), "$.a"),
        (lambda n: [msgspec.Raw(b"1"), n], "$[1]"),
    ],
)
def test_a_number_that_json_lacks_is_refused_and_its_path_named(number, wrap, path):
    error = refusal_of(wrap(number))
    assert error.path == path
    assert str(number) in error.problem
    assert str(error).startswith(f"can't send this message: {path} is ")


def test_an_enum_whose_value_json_lacks_is_refused_too():
    assert refusal_of({"e": Odd.NOTHING}).path == "$.e"


@given(json_values, st.data())
def test_one_nan_anywhere_in_a_value_is_found(value, data):
    """Put a NaN at a place of a random value and follow the path that the error names to it."""
    place, path = value, "$"
    while isinstance(place, list | dict) and place:
        key = data.draw(
            st.sampled_from(list(place) if isinstance(place, dict) else range(len(place)))
        )
        path += f".{key}" if isinstance(place, dict) else f"[{key}]"
        inner = place[key]
        if not isinstance(inner, list | dict) or not inner:
            place[key] = NAN
            break
        place = inner
    else:
        value = [NAN]
        path = "$[0]"
    assert refusal_of(value).path == path


@pytest.mark.parametrize(
    ("message", "path", "kind"),
    [
        (object(), "$", "object"),
        ({"a": [1, object()]}, "$.a[1]", "object"),
        ([None, {"when": range(3)}], "$[1].when", "range"),
        ((n for n in [1]), "$", "generator"),
        ({"q": collections.deque()}, "$.q", "deque"),
        (Point(1.0, 1j), "$.y", "complex"),
        (Place("x", print), "$.at", "builtin_function_or_method"),
        (Place, "$", "type"),
        ([Model(more=object())], "$[0]", "Model"),
        ([ValueError("x")], "$[0]", "ValueError"),
    ],
)
def test_a_value_of_a_type_without_json_form_is_refused_by_type_and_path(message, path, kind):
    error = refusal_of(message)
    assert error.path == path
    assert error.problem.startswith(f"is of type {kind}, which has no JSON form")


def test_an_unset_field_is_not_blamed_for_another_fields_fault():
    class Loose(msgspec.Struct):
        unset: int | msgspec.UnsetType = msgspec.UNSET
        wrong: Any = None

    assert refusal_of(Loose(wrong=object())).path == "$.wrong"


@pytest.mark.parametrize("key", [None, True, (1, 2), "\ud800"])
def test_a_key_that_json_lacks_is_refused_and_named_with_its_place(key):
    error = refusal_of({"users": [{key: 1}]})
    assert error.path == "$.users[0]"
    assert error.problem == f"has the key {key!r}, which JSON can't have"


@pytest.mark.parametrize(
    ("message", "path", "at"),
    [("\ud800", "$", 0), ("ab\udfff", "$", 2), ({"a": ["ok", "x\ud800"]}, "$.a[1]", 1)],
)
def test_a_lone_surrogate_is_refused_with_its_place_in_the_text(message, path, at):
    error = refusal_of(message)
    assert error.path == path
    assert f"lone surrogate at character {at}" in error.problem


def test_a_value_that_contains_itself_is_refused_where_the_circle_closes():
    inner: dict[str, Any] = {}
    message = {"rooms": [1, inner]}
    inner["home"] = message
    error = refusal_of(message)
    assert (error.path, error.problem) == ("$.rooms[1].home", "contains itself")


def test_a_value_that_stands_in_two_places_is_no_circle():
    twice: list[Any] = [None]
    assert encode([twice, twice, {"a": twice}]) == '[[null],[null],{"a":[null]}]'
    assert refusal_of([twice, twice, NAN]).path == "$[2]"


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: Point(1.0, v)])
def test_nesting_too_deep_to_encode_is_refused_and_says_so(wrap):
    message: Any = 1
    for _ in range(20_000):
        message = wrap(message)
    assert refusal_of(message).problem == "is nested too deeply"
    while not isinstance(message, int):  # so that freeing it does not recurse either
        message = (
            message.y
            if isinstance(message, Point)
            else message[0 if message.__class__ is list else "a"]
        )


def test_a_fault_deep_down_is_named_though_the_message_is_too_deep_to_encode():
    message: Any = NAN
    for _ in range(5_000):
        message = [message]
    assert refusal_of(message).path == "$" + "[0]" * 5_000


def test_nesting_that_can_be_encoded_is_looked_through_to_the_bottom():
    message: Any = NAN
    for _ in range(150):
        message = {"a": message}
    assert refusal_of(message).path == "$" + ".a" * 150


@pytest.mark.parametrize("message", ["x" * TEN_MIB, "ü" * (TEN_MIB // 2), b"x" * TEN_MIB])
def test_a_big_message_travels_without_being_copied(message):
    assert encode(message) is message


def test_a_big_text_inside_json_travels_whole():
    assert encode(["x" * TEN_MIB, None]) == f'["{"x" * TEN_MIB}",null]'


def test_an_unsendable_message_can_be_caught_as_a_type_error():
    with pytest.raises(TypeError, match=r"can't send this message: \$ is nan"):
        encode(NAN)


# ── in ────────────────────────────────────────────────────────────────────────────────────────


class Join(msgspec.Struct, tag="join", tag_field="kind"):
    room: str


class Say(msgspec.Struct, tag="say", tag_field="kind", forbid_unknown_fields=True):
    lines: list[str] = []
    votes: dict[str, int] = {}


class Options(typing.TypedDict):
    volume: int
    name: typing.NotRequired[str]


class User(pydantic.BaseModel):
    age: int
    tags: list[str] = []


def decode(annotation, frame):
    decoder = decoder_for(annotation, "Chat.on_message")
    return frame if decoder is None else decoder(frame)


def invalid(annotation, frame):
    """Return what the client is told; fails when the frame is valid."""
    with pytest.raises(InvalidMessage) as caught:
        decode(annotation, frame)
    return caught.value


@pytest.mark.parametrize(
    "annotation",
    [None, Any, object, str | bytes, bytes | str, typing.Union[str, bytes]],  # noqa: UP007
)
def test_without_annotation_or_with_both_kinds_a_message_comes_as_sent(annotation):
    assert decoder_for(annotation, "Chat.on_message") is None


@pytest.mark.parametrize(
    ("annotation", "frame"), [(str, '{"a": 1}'), (str, ""), (bytes, b'{"a": 1}'), (bytes, b"\xff")]
)
def test_str_and_bytes_come_as_sent_even_when_they_look_like_json(annotation, frame):
    assert decode(annotation, frame) is frame


@pytest.mark.parametrize(
    ("annotation", "frame", "wanted", "got"),
    [(str, b"hi", "text", "binary"), (bytes, "hi", "binary", "text")],
)
def test_the_wrong_kind_of_frame_is_invalid_input(annotation, frame, wanted, got):
    error = invalid(annotation, frame)
    assert error.text == f"expected a {wanted} message, got a {got} one"
    assert (error.field, error.code) == (None, "invalid_message")


@pytest.mark.parametrize(
    ("annotation", "frame", "message"),
    [
        (dict, '{"a": [1, null]}', {"a": [1, None]}),
        (dict[str, Any], b'{"a": 1}', {"a": 1}),
        (dict[str, bytes], '{"a": "eA=="}', {"a": b"x"}),
        (tuple[str, bytes], '["a", "eA=="]', ("a", b"x")),
        (list, "[1]", [1]),
        (int, "5", 5),
        (Literal["up", "down"], '"up"', "up"),
        (Point, '{"x": 1, "y": 2}', Point(1.0, 2)),
        (Point | None, "null", None),
        (Join | Say, '{"kind": "say", "lines": ["a"]}', Say(["a"])),
        (Join | Say, '{"kind": "join", "room": "r"}', Join("r")),
        (Place, '{"name": "x"}', Place("x")),
        (Options, '{"volume": 3}', {"volume": 3}),
        (User, '{"age": 3}', User(age=3)),
        (User, b'{"age": 3}', User(age=3)),
        (User | None, "null", None),
        (list[User], '[{"age": 3}]', [User(age=3)]),
        (dict[str, User], '{"a": {"age": 3}}', {"a": User(age=3)}),
        (set[Literal["a"]] | User, '["a"]', {"a"}),
        (typing.Sequence[User], '[{"age": 3}]', [User(age=3)]),
        (typing.Annotated[User, "note"], '{"age": 3}', User(age=3)),
    ],
)
def test_any_other_annotation_is_parsed_json_checked_against_it(annotation, frame, message):
    assert decode(annotation, frame) == message


@pytest.mark.parametrize(
    ("annotation", "frame", "field", "words"),
    [
        (dict, "[]", "$", ["object", "array"]),
        (list, "{}", "$", ["array", "object"]),
        (Point, "5", "$", ["object", "int"]),
        (Point, "{}", "$.x", ["missing", "x"]),
        (list[Point], '[{"x": 1}, {}]', "$[1].x", ["missing"]),
        (dict[str, Point], '{"a": {}}', "$[...].x", ["missing"]),
        (Point, '{"x": "1"}', "$.x", ["float", "str"]),
        (list[Point], '[{"x": 1}, {"x": null}]', "$[1].x", ["float", "null"]),
        (Say, '{"kind": "say", "lines": ["a", 2]}', "$.lines[1]", ["str", "int"]),
        (Say, '{"kind": "say", "more": 2}', "$", ["unknown field", "more"]),
        (Say, '{"kind": "say", "votes": {"a": "b"}}', "$.votes[...]", ["int", "str"]),
        (Join | Say, '{"room": "r"}', "$.kind", ["missing", "kind"]),
        (Join | Say, '{"kind": "leave"}', "$.kind", ["leave"]),
        (Place, "{}", "$.name", ["missing", "name"]),
        (Options, '{"volume": "loud"}', "$.volume", ["int", "str"]),
        (dict[int, int], '{"a": 1}', "$", ["int", "str", "key"]),
        (dict[str, dict[int, int]], '{"a": {"b": 1}}', "$[...]", ["int", "str", "key"]),
        (list, "[1e999]", "$[0]", ["out of range"]),
        (User, "[]", "$", ["object"]),
        (User, "{}", "$.age", ["required"]),
        (User, '{"age": 1, "tags": ["a", 2]}', "$.tags[1]", ["string"]),
        (list[User], '[{"age": 1}, {"age": "old"}]', "$[1].age", ["integer"]),
    ],
)
def test_json_that_does_not_fit_names_the_field_and_what_is_wrong(annotation, frame, field, words):
    error = invalid(annotation, frame)
    assert error.field == field
    for word in words:
        assert word in error.text
    assert "`$" not in error.text


@pytest.mark.parametrize("annotation", [dict, Point, Join | Say, User])
@pytest.mark.parametrize("frame", ["", "{", "{'a': 1}", '"\\ud800"', b"\xff", b"\x00"])
def test_what_is_no_json_is_invalid_as_a_whole(annotation, frame):
    error = invalid(annotation, frame)
    assert error.text.startswith("not valid JSON: ")
    assert (error.field, error.code) == ("$", "invalid_message")


@pytest.mark.parametrize(
    "frame", ["NaN", '{"a": Infinity}', "{} x", '{"a": "\\ud800"}', b'{"a":"\xff"}', "{1: 2}"]
)
def test_what_other_parsers_let_pass_is_no_json_either(frame):
    error = invalid(dict, frame)
    assert error.text.startswith("not valid JSON: ")
    assert error.field == "$"


@pytest.mark.parametrize("annotation", [list, dict, Point, User])
def test_json_nested_too_deeply_is_invalid_and_nothing_worse(annotation):
    frame = "[" * 100_000 + "]" * 100_000
    assert invalid(annotation, frame).text


def test_the_client_is_told_nothing_of_the_servers_insides():
    class Guarded(msgspec.Struct):
        secret_default: str = "hunter2"
        n: int = 0

    for frame in ['{"n": "x"}', "[" * 50_000, "{", b"\xff"]:
        text = invalid(Guarded, frame).text
        for inside in [
            "hunter2",
            "Guarded",
            "backchannel",
            "recursion",
            "codec",
            "Traceback",
            ".py",
        ]:
            assert inside not in text


def test_an_error_of_the_applications_own_check_reaches_the_client_with_its_field():
    class Even(msgspec.Struct):
        n: int

        def __post_init__(self):
            if self.n % 2:
                raise ValueError("n must be even - at `least` once")

    error = invalid(list[Even], '[{"n": 2}, {"n": 3}]')
    assert error.field == "$[1]"
    assert error.text == "n must be even - at `least` once"


def test_big_messages_are_decoded_whole():
    text = "x" * TEN_MIB
    assert decode(dict, f'{{"t":"{text}"}}')["t"] == text
    assert decode(list, b'["' + text.encode() + b'"]') == [text]


@pytest.mark.parametrize(
    "annotation",
    [
        complex,
        type,
        5,
        "unresolved",
        collections.deque[int],
        Point | Place,  # msgspec can't tell two untagged objects apart
        Join | User,  # neither library can decode both
        typing.TypeVar("T", bound=complex),
    ],
)
def test_an_annotation_that_nothing_decodes_is_refused_at_registration(annotation):
    with pytest.raises(ListenerError, match=r"Chat\.on_message: no message can be decoded into"):
        decoder_for(annotation, "Chat.on_message")


def test_the_refusal_of_an_annotation_says_what_could_be_used_instead():
    with pytest.raises(
        ListenerError, match="complex: use str, bytes, dict, list, a msgspec Struct"
    ):
        decoder_for(list[complex], "Chat.on_message")


def test_a_model_whose_own_names_cannot_be_resolved_is_refused_at_registration():
    class Broken(pydantic.BaseModel):
        x: "NowhereDefined"  # noqa: F821

    with pytest.raises(ListenerError, match="NowhereDefined"):
        decoder_for(Broken, "Chat.on_message")


@given(json_values)
def test_valid_json_of_any_shape_comes_in_as_it_was_sent(value):
    frame = json.dumps(value)
    got = decode(list | dict | int | float | bool | None, frame)
    assert got == value or math.isclose(got, value)


@given(st.text() | st.binary())
def test_no_frame_makes_a_decoder_raise_anything_but_invalid_message(frame):
    if isinstance(frame, str):
        frame = frame.encode(errors="replace").decode()
    for decoder in DECODERS:
        try:
            decoder(frame)
        except InvalidMessage as error:
            assert error.text  # noqa: PT017 - what else it raises is the failure


DECODERS = [
    decoder_for(annotation, "x")
    for annotation in (str, bytes, dict, Point, Join | Say, Options, User)
] + [tag_reader("type")]


# ── the tag ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tag", ["type", "msgType", "a b", "größe"])
def test_the_tag_is_read_from_the_field_that_the_endpoint_names(tag):
    frame = json.dumps({"other": [1, {tag: "inner"}], tag: "typing", "rest": None})
    assert tag_reader(tag)(frame) == "typing"
    assert tag_reader(tag)(frame.encode()) == "typing"


@pytest.mark.parametrize(
    ("frame", "field", "words"),
    [
        ("{}", "$.type", ["missing", "type"]),
        ('{"type": 5}', "$.type", ["str", "int"]),
        ('{"type": null}', "$.type", ["str", "null"]),
        ("[]", "$", ["object", "array"]),
        ('"type"', "$", ["object", "str"]),
        ("{", "$", ["not valid JSON"]),
        (b"\xff", "$", ["not valid JSON"]),
        ('{"type": "a"', "$", ["not valid JSON"]),
    ],
)
def test_a_message_without_a_tag_is_invalid_and_says_why(frame, field, words):
    with pytest.raises(InvalidMessage) as caught:
        tag_reader("type")(frame)
    assert caught.value.field == field
    for word in words:
        assert word in caught.value.text


@pytest.mark.parametrize("tag", [5, None, "", b"type", 'say "type"', "a\nb", "a\\b"])
def test_a_tag_that_names_no_field_is_refused_at_registration(tag):
    with pytest.raises(ListenerError, match="name of a field"):
        tag_reader(tag)
