"""Every close code: what it means, whether to come back, and which of them can be sent."""

import enum
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.codes import ENDINGS, MAX_REASON_BYTES, check_close, fit_reason, meaning_of

MEANINGS = {
    1000: "normal", 1001: "going away", 1002: "protocol", 1003: "kind of data",
    1005: "without a code", 1006: "lost", 1007: "UTF-8", 1008: "refused", 1009: "too big",
    1010: "extension", 1011: "listener failed", 1012: "restarting", 1013: "later", 1014: "gateway",
    4001: "slower", 4002: "ping", 4003: "too many messages", 4004: "signed out", 4005: "replaced",
    4006: "too many bytes", 4007: "expired", 4008: "idle",
}  # fmt: skip
COME_BACK = {1001, 1006, 1011, 1012, 1013, 1014, 4001, 4002, 4003, 4006, 4007, 4008}
SENDABLE = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


@pytest.mark.parametrize("code", MEANINGS)
def test_each_code_is_explained_in_plain_words(code):
    assert MEANINGS[code] in meaning_of(code)
    assert ENDINGS[code].code == code


def test_the_table_has_no_other_codes_than_these():
    assert set(ENDINGS) == set(MEANINGS)


def test_each_code_says_whether_to_come_back_but_1005_which_says_nothing():
    assert {code for code, ending in ENDINGS.items() if ending.come_back} == COME_BACK
    assert [code for code, ending in ENDINGS.items() if ending.come_back is None] == [1005]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (4100, "application's own"),
        (4999, "application's own"),
        (3000, "framework"),
        (3999, "framework"),
        (4009, "unknown"),
        (4099, "unknown"),
        (5000, "unknown"),
        (0, "unknown"),
        (-1, "unknown"),
    ],
)
def test_a_code_outside_the_table_is_explained_by_its_range(code, words):
    assert words in meaning_of(code)


@given(st.integers(-10, 6000) | st.integers())
def test_close_takes_exactly_the_codes_that_may_be_sent(code):
    if code in SENDABLE:
        check_close(code, "")
    else:
        with pytest.raises(ValueError, match=f"close code {code} "):
            check_close(code, "")


@pytest.mark.parametrize("code", [1004, 1005, 1006, 1015])
def test_a_code_that_is_only_reported_is_refused_as_that(code):
    with pytest.raises(ValueError, match=r"only ever reported, never sent: use 1000–1003"):
        check_close(code, "")


@pytest.mark.parametrize("code", [0, 999, 1016, 2999, 5000, -1000])
def test_a_code_out_of_range_is_refused_with_the_ranges_that_may_be_used(code):
    wanted = f"close code {code} is out of range: use 1000–1003, 1007–1014 or 3000–4999"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_close(code, "")


@pytest.mark.parametrize("code", [True, None, "1000", 1000.0])
def test_a_code_that_is_no_int_is_a_type_error(code):
    with pytest.raises(TypeError, match="close code must be an int, not"):
        check_close(code, "")


def test_a_code_of_an_enum_will_do():
    check_close(enum.IntEnum("Codes", {"SHUT": 4100}).SHUT, "")


@pytest.mark.parametrize("reason", [None, b"bye", 5])
def test_a_reason_that_is_no_str_is_a_type_error(reason):
    with pytest.raises(TypeError, match="close reason must be a str, not"):
        check_close(1000, reason)


@given(st.text(max_size=130))
def test_a_reason_may_have_123_bytes_of_utf8_and_no_more(reason):
    try:
        size = len(reason.encode())
    except UnicodeEncodeError:
        with pytest.raises(ValueError, match="can't be encoded as UTF-8"):
            check_close(1000, reason)
        return
    if size <= 123:
        check_close(1000, reason)
    else:
        with pytest.raises(ValueError, match=f"close reason is {size} bytes of UTF-8.* 123"):
            check_close(1000, reason)


@pytest.mark.parametrize("reason", ["x" * 123, "ü" * 61, "🚗" * 30 + "abc"])
def test_a_reason_at_the_limit_fits(reason):
    check_close(1000, reason)
    with pytest.raises(ValueError, match="124 bytes"):
        check_close(1000, reason + "y" * (124 - len(reason.encode())))


def test_the_reason_that_is_too_long_is_shown_by_its_beginning():
    with pytest.raises(ValueError, match="'begin") as caught:
        check_close(1000, "begin" + "x" * 10_000)
    assert len(str(caught.value)) < 150


@given(st.text())
def test_a_fitted_reason_always_fits_and_is_the_texts_beginning(text):
    fitted = fit_reason(text)
    check_close(1000, fitted)
    readable = text.encode(errors="replace").decode()
    assert readable.startswith(fitted)
    assert fitted == readable or len(fitted.encode()) > MAX_REASON_BYTES - 4
