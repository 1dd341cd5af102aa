"""Which pages may connect: the Origin against the Host, and what widens it."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.config import Settings
from backchannel.errors import Reject
from backchannel.handshake import check_origin, refusal
from backchannel.request import Request


def asked(origins, host="app.example.com", peer="192.0.2.1", forwarded=None, **options):
    """Return what check_origin says to a handshake."""
    settings = Settings(**options)
    headers = [(b"origin", origin.encode("latin-1", "replace")) for origin in origins]
    if host is not None:
        headers.append((b"host", host.encode()))
    if forwarded is not None:
        headers.append((b"x-forwarded-host", forwarded.encode()))
    request = Request(
        {"path": "/ws/echo", "headers": headers, "client": (peer, 4000)},
        path="/ws/echo",
        params={},
        proxies=settings.networks(),
    )
    return check_origin(request, settings)


def assert_refused(answer):
    assert isinstance(answer, Reject)
    assert answer.status == 403
    assert "allowed_origins" in answer.text


SAME = [
    ("https://app.example.com", "app.example.com"),
    ("http://app.example.com", "app.example.com"),  # the scheme is ignored
    ("https://app.example.com:443", "app.example.com"),
    ("https://app.example.com", "app.example.com:443"),
    ("http://app.example.com:80", "app.example.com"),
    ("http://app.example.com", "app.example.com:80"),
    ("https://app.example.com:8443", "app.example.com:8443"),
    ("http://localhost:8888", "localhost:8888"),
    ("http://127.0.0.1:8888", "127.0.0.1:8888"),
    ("http://[::1]:8888", "[::1]:8888"),
    ("http://[::1]", "[::1]"),
    ("http://[::1]", "[::1]:80"),
    ("https://[2001:DB8::1]", "[2001:db8::1]:443"),
    ("https://App.Example.com", "app.example.com"),
    ("https://app.example.com", "APP.example.COM:443"),
    ("HTTPS://app.example.com", "app.example.com"),
    ("ws://app.example.com", "app.example.com"),
    ("wss://app.example.com", "app.example.com:443"),
    ("https://xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("https://app.example.com.", "app.example.com."),
]
OTHER = [
    ("https://evil.example", "app.example.com"),
    ("https://example.com", "app.example.com"),
    ("https://www.app.example.com", "app.example.com"),
    ("https://app.example.com.evil.example", "app.example.com"),
    ("https://evilapp.example.com", "app.example.com"),
    ("https://app.example.com:8443", "app.example.com"),
    ("https://app.example.com", "app.example.com:8443"),
    ("http://app.example.com", "app.example.com:443"),
    ("https://app.example.com", "app.example.com:80"),
    ("https://app.example.com:0", "app.example.com"),
    ("http://localhost:3000", "localhost:8888"),
    ("http://localhost:8888", "127.0.0.1:8888"),
    ("http://[::1]:3000", "[::1]:8888"),
    ("http://[::1]:8888", "[::2]:8888"),
    ("null", "app.example.com"),
    ("null", "null"),
    ("", "app.example.com"),
    ("app.example.com", "app.example.com"),
    ("//app.example.com", "app.example.com"),
    ("://app.example.com", "app.example.com"),
    ("file://", "app.example.com"),
    ("file://app.example.com", "app.example.com"),
    ("chrome-extension://app.example.com", "app.example.com"),
    ("https://", "app.example.com"),
    ("https://", ""),
    ("https://app.example.com", ""),
    ("https://app.example.com", None),
    ("http://[::1", "[::1"),
    ("https://app.example.com:port", "app.example.com:port"),
    ("https://app.example.com:99999", "app.example.com:99999"),
    ("https://app.example.com@evil.example", "app.example.com"),
    ("https://app.example.com:x@evil.example", "app.example.com"),
    ("https://evil.example#.app.example.com", "app.example.com"),
    ("https://evil.example/app.example.com", "app.example.com"),
    ("https://evil.example https://app.example.com", "app.example.com"),
    ("https://app.example.com, https://evil.example", "app.example.com"),
]


@pytest.mark.parametrize(("origin", "host"), SAME)
def test_the_hosts_own_pages_may_connect(origin, host):
    assert asked([origin], host) is None


@pytest.mark.parametrize(("origin", "host"), OTHER)
def test_pages_of_other_origins_may_not(origin, host):
    assert_refused(asked([origin], host))


@pytest.mark.parametrize("host", ["app.example.com", "", None])
def test_without_an_origin_it_is_no_browser_and_may_connect(host):
    assert asked([], host) is None


@pytest.mark.parametrize("allowed", [(), "*", "https://app.example.com"])
def test_several_origin_headers_are_refused_whatever_is_allowed(allowed):
    origins = ["https://app.example.com", "https://app.example.com"]
    assert_refused(asked(origins, allowed_origins=allowed))
    assert_refused(asked([*origins, "https://evil.example"], allowed_origins=allowed))


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        ("*", "https://anything.example"),
        ("*", "null"),
        ("*", "chrome-extension://abc"),
        ("https://a.example", "https://a.example"),
        ("https://a.example", "https://a.example:443"),
        ("https://a.example:443", "https://a.example"),
        ("https://A.example", "https://a.EXAMPLE"),
        ("HTTPS://a.example", "https://a.example:443"),
        (["https://b.example", "https://a.example"], "https://a.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://*.example.com", "https://a.example.com"),
        ("https://*.example.com", "https://a.b.example.com"),
        ("https://*.example.com", "https://A.EXAMPLE.com:443"),
        ("https://*.example.com:8443", "https://a.example.com:8443"),
        ("chrome-extension://abc", "chrome-extension://abc"),
    ],
)
def test_allowed_origins_add_to_the_hosts_own(allowed, origin):
    assert asked([origin], "server.example", allowed_origins=allowed) is None
    assert asked(["https://server.example"], "server.example", allowed_origins=allowed) is None


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        ("https://a.example", "http://a.example"),
        ("https://a.example", "https://a.example:8443"),
        ("https://a.example", "https://b.a.example"),
        ("https://a.example", "https://a.example.evil.example"),
        ("https://a.example", "null"),
        ("https://*.example.com", "https://example.com"),
        ("https://*.example.com", "https://evilexample.com"),
        ("https://*.example.com", "https://a.example.com.evil.example"),
        ("https://*.example.com", "http://a.example.com"),
        ("https://*.example.com", "https://a.example.com:8443"),
        ("https://*.example.com:8443", "https://a.example.com"),
        ("https://*.example.com", "https://evil.example?.example.com"),
        ("https://*.example.com", "https://evil.example/.example.com"),
        ("https://*.example.com", "https://evil.example#.example.com"),
        ("https://*.example.com", "https://a.example.com@evil.example"),
        ("https://*.example.com", "https://[::1"),
        ("https://*.example.com", "null"),
        ("https://*.example.com", ""),
        ("http://[::1]:3000", "http://[::1]:3001"),
    ],
)
def test_an_allowed_origin_allows_no_more_than_it_says(allowed, origin):
    assert_refused(asked([origin], "server.example", allowed_origins=allowed))


@pytest.mark.parametrize(
    ("peer", "proxies", "allowed"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", ["192.0.2.0/24", "10.1.2.3"], True),
        ("::ffff:10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", (), False),
        ("", "10.0.0.0/8", False),
    ],
)
def test_the_forwarded_host_is_compared_when_a_trusted_proxy_says_it(peer, proxies, allowed):
    answer = asked(
        ["https://app.example.com"], "inner:8000", peer, "app.example.com", trusted_proxies=proxies
    )
    assert (answer is None) is allowed


def test_a_trusted_proxys_host_stands_instead_of_the_inner_one():
    answer = asked(
        ["http://inner:8000"],
        "inner:8000",
        "10.0.0.1",
        "app.example.com",
        trusted_proxies="10.0.0.1",
    )
    assert_refused(answer)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True),
        ("http://localhost", True),
        ("https://LOCALHOST:5173", True),
        ("http://localhost.evil.example:3000", False),
        ("http://evil.example", False),
        ("http://localhost@evil.example", False),
        ("http://localhost:port", False),
        ("http://[::1", False),
        ("file://localhost", False),
        ("localhost:3000", False),
        ("null", False),
        ("", False),
    ],
)
def test_debug_admits_any_port_of_localhost_and_nothing_else(origin, allowed):
    assert (asked([origin], "localhost:8888", debug=True) is None) is allowed
    assert asked([origin], "localhost:8888") is not None


def test_the_log_names_both_values_and_the_setting(caplog):
    with caplog.at_level(logging.WARNING, "backchannel.handshake"):
        asked(["https://page.example"], "app.example.com:8443")
    (record,) = caplog.records
    text = record.getMessage()
    for word in ["'https://page.example'", "'app.example.com:8443'", "allowed_origins"]:
        assert word in text
    assert "refused '/ws/echo' from 192.0.2.1:4000: " in text


def test_the_log_does_not_advise_a_setting_that_would_be_refused(caplog):
    assert_refused(asked(["null"], "app.example.com"))

    assert "allowed_origins='*'" in caplog.text
    assert "'null']" not in caplog.text


def test_the_client_is_not_told_what_was_compared():
    answer = asked(["https://page.example"], "inner-name:8443")
    assert "inner-name" not in answer.text
    assert "page.example" not in answer.text


def test_who_is_admitted_leaves_no_line_in_the_log(caplog):
    with caplog.at_level(logging.DEBUG, "backchannel.handshake"):
        asked(["https://app.example.com"])
    assert caplog.records == []


@given(st.text(), st.text(st.characters(codec="ascii")), st.booleans())
def test_no_origin_makes_the_check_raise(origin, host, debug):
    answer = asked([origin], host, debug=debug, allowed_origins=["https://*.example.com"])
    assert answer is None or answer.status == 403


@given(
    st.from_regex(r"[a-z0-9.-]{1,12}", fullmatch=True),
    st.from_regex(r"[a-z0-9.-]{1,12}", fullmatch=True),
)
def test_two_plain_hosts_are_the_same_exactly_when_they_are_equal(ours, theirs):
    assert (asked([f"https://{theirs}"], ours) is None) is (ours == theirs)


@pytest.mark.parametrize("answer", [None, True, 0, "", [], "no"])
def test_only_false_and_reject_refuse(answer):
    assert refusal(answer, Reject(403)) is None


def test_false_refuses_with_the_default_and_reject_with_itself():
    default, own = Reject(401), Reject(429, "slow down")
    assert refusal(False, default) is default
    assert refusal(own, default) is own
