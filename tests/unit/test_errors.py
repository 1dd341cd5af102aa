"""What Backchannel raises: one family, with what is needed to act on it."""

import inspect
import re

import pytest

import backchannel
from backchannel import errors
from backchannel.errors import (
    BackchannelError,
    ConnectionClosed,
    HandshakeRefused,
    InvalidMessage,
    ListenerError,
    Reject,
    TemplateError,
    UnsendableMessage,
)


def test_the_modules_tree_names_exactly_the_errors_there_are_with_their_parents():
    """Read the tree in the module's docstring and compare it with the classes."""
    parents, family = ["Exception"], {}
    for line in errors.__doc__.splitlines():
        found = re.match(r"^((?:│   |    )*)[├└]── (\w+)", line)
        if found:
            depth = len(found[1]) // 4 + 1
            parents[depth:] = [found[2]]
            family[found[2]] = parents[depth - 1]
    assert sorted(family) == sorted(errors.__all__)
    assert {name: getattr(errors, name).__mro__[1].__name__ for name in family} == family


@pytest.mark.parametrize("name", errors.__all__)
def test_each_error_says_what_it_is_for(name):
    assert inspect.getdoc(getattr(errors, name))


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (UnsendableMessage("$.a", "is odd"), TypeError),
        (TemplateError("x"), ValueError),
        (ListenerError("x"), TypeError),
    ],
)
def test_a_programmers_mistake_can_be_caught_as_the_builtin_error_it_is(error, builtin):
    assert isinstance(error, builtin)
    assert isinstance(error, BackchannelError)


def test_reject_is_public_and_no_error_of_backchannels():
    assert backchannel.Reject is Reject
    assert not issubclass(Reject, BackchannelError)


def test_an_invalid_message_has_its_text_its_field_and_a_word_for_programs():
    error = InvalidMessage("expected int", field="$.age")
    assert (error.text, error.field, error.code) == ("expected int", "$.age", "invalid_message")
    assert str(error) == "expected int"
    assert InvalidMessage("x").field is None
    assert InvalidMessage("x", code="unknown_type").code == "unknown_type"


def test_an_unsendable_message_names_path_and_problem():
    error = UnsendableMessage("$.users[3]", "is nan")
    assert (error.path, error.problem) == ("$.users[3]", "is nan")
    assert str(error) == "can't send this message: $.users[3] is nan"


def test_a_refused_handshake_shows_status_and_body():
    error = HandshakeRefused(403, "no")
    assert (error.status, error.text, str(error)) == (403, "no", "HTTP 403: no")


@pytest.mark.parametrize(
    ("reason", "shown"), [("bye", "closed with 1001 bye"), ("", "closed with 1001")]
)
def test_a_closed_connection_shows_code_and_reason(reason, shown):
    error = ConnectionClosed(1001, reason)
    assert (error.code, error.reason, str(error)) == (1001, reason, shown)


def test_a_bare_reject_is_403_without_text():
    answer = Reject()
    assert (answer.status, answer.text, answer.headers) == (403, "", {})


@pytest.mark.parametrize("status", [300, 302, 401, 403, 429, 503, 599])
def test_reject_takes_any_http_status_of_a_refusal(status):
    answer = Reject(status, "why", headers={"Retry-After": "5"})
    assert (answer.status, answer.text, answer.headers) == (status, "why", {"Retry-After": "5"})


@pytest.mark.parametrize("status", [0, 101, 200, 299, 600, -1])
def test_reject_refuses_a_status_that_would_let_in_and_says_what_is_allowed(status):
    with pytest.raises(ValueError, match=f"from 300 to 599, not {status}"):
        Reject(status)


def test_rejects_only_argument_may_be_the_text():
    answer = Reject("members only")
    assert (answer.status, answer.text) == (403, "members only")


def test_two_rejects_share_no_headers():
    Reject().headers["X"] = "1"
    assert Reject().headers == {}


@pytest.mark.parametrize(
    "headers",
    [
        {"Location": "/a\r\nX: 1"},
        {"X": "\n"},
        {"X": "a\0"},
        {"X": "\u2028"},
        {"X\r\nY": "1"},
        {"": "1"},
        {"a b": "1"},
        {"a:": "1"},
    ],
    ids=repr,
)
def test_a_header_that_would_make_up_others_is_refused_by_name(headers):
    with pytest.raises(ValueError, match="Reject's headers") as error:
        Reject(302, headers=headers)
    assert repr(next(iter(headers))).strip("'") in str(error.value)


def test_headers_as_they_are_sent_are_taken():
    headers = {"Location": "/login?next=%2Fa", "X-Note": "caf\xe9\tau lait", "Retry-After": "1"}
    assert Reject(302, headers=headers).headers == headers
