"""A handshake's facts: what a listener can read of it, and whose word counts."""

import ipaddress
import time
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.request import MultiMapping, Request, path_segments, user_id

PROXIES = tuple(ipaddress.ip_network(text) for text in ("10.0.0.0/8", "fd00::/8"))


def request(*headers, peer=("192.0.2.1", 4000), proxies=(), query=b"", **scope):
    """Return a request with headers given as (name, value)."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return Request(
        {"headers": raw, "client": peer, "query_string": query, **scope},
        path="/ws",
        params={},
        proxies=proxies,
    )


# ── mappings ──────────────────────────────────────────────────────────────────────────────────


def test_a_key_with_several_values_is_its_first_and_getlist_has_all():
    mapping = MultiMapping([("a", "1"), ("b", "2"), ("a", "3")])
    assert mapping["a"] == "1"
    assert mapping.getlist("a") == ["1", "3"]
    assert list(mapping) == ["a", "b"]
    assert len(mapping) == 2
    assert mapping.get("c") is None
    assert mapping.getlist("c") == []
    with pytest.raises(KeyError, match="c"):
        mapping["c"]


def test_case_is_ignored_where_it_should_be_and_only_there():
    assert MultiMapping([("Origin", "x")], casefold=True)["oRIGIN"] == "x"
    assert "ORIGIN" in MultiMapping([("Origin", "x")], casefold=True)
    assert "origin" not in MultiMapping([("Origin", "x")])


def test_a_mapping_is_read_only():
    mapping = MultiMapping([("a", "1")])
    with pytest.raises(TypeError):
        mapping["a"] = "2"
    mapping.getlist("a").append("2")
    assert mapping.getlist("a") == ["1"]
    assert isinstance(mapping, Mapping)


def test_a_mapping_shows_what_it_has():
    assert repr(MultiMapping([("a", "1"), ("a", "2")])) == "MultiMapping({'a': ['1', '2']})"


def test_headers_ignore_case_and_keep_all_values_in_order():
    headers = request(("X-Tag", "a"), ("x-tag", "b")).headers
    assert headers["X-TAG"] == "a"
    assert headers.getlist("X-tag") == ["a", "b"]


def test_the_query_is_decoded_and_blank_fields_are_kept():
    query = request(query=b"name=J%C3%BCrgen+K&tag=a&tag=b&blank=&flag").query
    assert dict(query) == {"name": "Jürgen K", "tag": "a", "blank": "", "flag": ""}
    assert query.getlist("tag") == ["a", "b"]


def test_without_a_query_string_the_query_is_empty():
    plain = Request({"headers": []}, path="/", params={})
    assert dict(plain.query) == dict(plain.cookies) == dict(plain.headers) == {}
    assert plain.client is None
    assert plain.subprotocols == ()
    assert plain.app is None


@pytest.mark.parametrize(
    ("header", "cookies"),
    [
        ("a=1; b=2", {"a": "1", "b": "2"}),
        ("a=1;b=2;", {"a": "1", "b": "2"}),
        ("token=abc==", {"token": "abc=="}),
        ("a=", {"a": ""}),
        ("a; =x; b=1", {"b": "1"}),
        ("a=specific; a=general", {"a": "specific"}),
        ('quoted="a b\\073c"', {"quoted": "a b;c"}),
        ("  a = 1 ", {"a": "1"}),
        ("[weird]=ok; a=1", {"[weird]": "ok", "a": "1"}),
        ("", {}),
    ],
)
def test_cookies_are_read_as_browsers_send_them(header, cookies):
    assert dict(request(("Cookie", header)).cookies) == cookies


def test_cookies_may_come_in_several_headers():
    assert dict(request(("Cookie", "a=1"), ("Cookie", "b=2; a=3")).cookies) == {"a": "1", "b": "2"}


@given(st.lists(st.text()))
def test_no_cookie_header_raises(values):
    headers = [("cookie", value.encode("latin-1", "replace").decode("latin-1")) for value in values]
    for name in request(*headers).cookies:
        assert name


# ── whose word counts ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        (("192.0.2.1", 4000), ["203.0.113.9"], ("192.0.2.1", 4000)),
        (("10.0.0.1", 4000), [], ("10.0.0.1", 4000)),
        (("10.0.0.1", 4000), ["203.0.113.9"], ("203.0.113.9", 0)),
        (("10.0.0.1", 4000), ["6.6.6.6, 203.0.113.9"], ("203.0.113.9", 0)),
        (("10.0.0.1", 4000), ["6.6.6.6, 203.0.113.9, 10.2.2.2"], ("203.0.113.9", 0)),
        (("10.0.0.1", 4000), ["6.6.6.6", "203.0.113.9 , 10.2.2.2"], ("203.0.113.9", 0)),
        (("10.0.0.1", 4000), ["10.3.3.3, 10.2.2.2"], ("10.0.0.1", 4000)),
        (("::ffff:10.0.0.1", 4000), ["203.0.113.9, ::ffff:10.2.2.2"], ("203.0.113.9", 0)),
        (("fd00::7", 4000), ["2001:db8::1"], ("2001:db8::1", 0)),
        (("", 0), ["203.0.113.9"], ("", 0)),
        (None, ["203.0.113.9"], None),
    ],
)
def test_forwarded_addresses_count_from_trusted_proxies_alone(peer, forwarded, client):
    headers = [("X-Forwarded-For", value) for value in forwarded]
    assert request(*headers, peer=peer, proxies=PROXIES).client == client


def test_without_trusted_proxies_no_forwarded_header_counts():
    facts = request(
        ("Host", "me.example"), ("X-Forwarded-Host", "evil.example"), ("X-Forwarded-For", "6.6.6.6"),
        peer=("10.0.0.1", 1),
    )  # fmt: skip
    assert facts.host == "me.example"
    assert facts.client == ("10.0.0.1", 1)


@pytest.mark.parametrize(
    ("peer", "forwarded", "host"),
    [
        (("10.0.0.1", 1), "app.example.com", "app.example.com"),
        (("10.0.0.1", 1), "app.example.com:8443 , inner", "app.example.com:8443"),
        (("10.0.0.1", 1), "", "inner:80"),
        (("192.0.2.1", 1), "app.example.com", "inner:80"),
        (None, "app.example.com", "inner:80"),
    ],
)
def test_the_forwarded_host_counts_from_trusted_proxies_alone(peer, forwarded, host):
    headers = [("Host", "inner:80"), ("X-Forwarded-Host", forwarded)]
    assert request(*headers, peer=peer, proxies=PROXIES).host == host


def test_without_a_host_header_the_host_is_empty():
    assert request().host == ""


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8888",
        "LocalHost:1",
        "127.0.0.1",
        "127.0.0.1:8888",
        "[::1]",
        "[::1]:8888",
    ],
)
def test_a_developers_own_request_is_local(peer, host):
    assert request(("Host", host), peer=(peer, 1)).is_local


@pytest.mark.parametrize(
    ("peer", "headers"),
    [
        ("192.0.2.1", [("Host", "localhost")]),
        ("127.0.0.1", [("Host", "app.example.com")]),
        ("127.0.0.1", [("Host", "localhost.evil.example")]),
        ("127.0.0.1", [("Host", "127.0.0.1.evil.example")]),
        ("127.0.0.1", [("Host", "[::1")]),
        ("127.0.0.1", [("Host", "")]),
        ("127.0.0.1", []),
        ("unknown", [("Host", "localhost")]),
        ("127.0.0.1", [("Host", "localhost"), ("X-Forwarded-For", "6.6.6.6")]),
        ("127.0.0.1", [("Host", "localhost"), ("X-Forwarded-Host", "x")]),
        ("127.0.0.1", [("Host", "localhost"), ("Forwarded", "for=6.6.6.6")]),
        ("127.0.0.1", [("Host", "localhost"), ("X-Real-IP", "6.6.6.6")]),
        ("127.0.0.1", [("Host", "localhost"), ("Via", "1.1 proxy")]),
    ],
)
def test_what_may_come_from_elsewhere_is_not_local(peer, headers):
    assert not request(*headers, peer=(peer, 1)).is_local


def test_without_a_peer_nothing_is_local():
    assert not request(("Host", "localhost"), peer=None).is_local


# ── paths ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("scope", "readings"),
    [
        ({"path": "/ws/echo"}, [["ws", "echo"]]),
        ({"path": "/"}, [[]]),
        ({"path": ""}, [[]]),
        ({"path": "/ws/"}, [["ws", ""]]),
        ({"path": "/a//b"}, [["a", "", "b"]]),
        ({"path": "/live/ws/x", "root_path": "/live"}, [["ws", "x"], ["live", "ws", "x"]]),
        ({"path": "/live/ws/x", "root_path": "/live/"}, [["ws", "x"], ["live", "ws", "x"]]),
        ({"path": "/live", "root_path": "/live"}, [[], ["live"]]),
        ({"path": "/live/", "root_path": "/live"}, [[], ["live", ""]]),
        ({"path": "/ws/x", "root_path": "/live"}, [["ws", "x"]]),
        ({"path": "/liveness", "root_path": "/live"}, [["liveness"]]),
        ({"path": "/ws/x", "root_path": ""}, [["ws", "x"]]),
        ({"path": "/ws/ü", "raw_path": b"/ws/%C3%BC"}, [["ws", "ü"]]),
        ({"path": "/ws/a/b", "raw_path": b"/ws/a%2Fb"}, [["ws", "a/b"]]),
        ({"path": "/ws/a/b", "raw_path": b"/ws/a/b"}, [["ws", "a", "b"]]),
        ({"path": "/ws/%2F", "raw_path": b"/ws/%252F"}, [["ws", "%2F"]]),
        ({"path": "/ws/a b", "raw_path": None}, [["ws", "a b"]]),
        (
            {"path": "/l i/ws/a/b", "root_path": "/l i", "raw_path": b"/l%20i/ws/a%2Fb"},
            [["ws", "a/b"], ["l i", "ws", "a/b"]],
        ),
        (
            {"path": "/ws/a/b", "root_path": "/live", "raw_path": b"/live/ws/a%2Fb"},
            [["ws", "a/b"]],
        ),
        ({"path": "/l i/", "root_path": "/l i", "raw_path": b"/l%20i/"}, [[], ["l i", ""]]),
        ({"path": "/rewritten/x", "raw_path": b"/ws/a%2Fb"}, [["rewritten", "x"]]),
        ({"path": "/a/b", "raw_path": b"a%2Fb"}, [["a", "b"]]),
        # Litestar puts a slash at the end of what is below its mounts, and leaves the raw path.
        ({"path": "/ws/x/", "raw_path": b"/live/ws/x"}, [["ws", "x"]]),
        ({"path": "/a/b/x/", "raw_path": b"/live/a%2Fb/x"}, [["a/b", "x"]]),
        ({"path": "/", "raw_path": b"/live"}, [[]]),
        ({"path": "/ws/x/", "raw_path": b"/ws/x/"}, [["ws", "x", ""]]),
        ({"path": "/ws/x/", "raw_path": b"/ws/x%2F"}, [["ws", "x/"]]),
        ({"path": "/ws/x/"}, [["ws", "x", ""]]),
    ],
)
def test_a_path_is_read_below_the_mount_and_an_encoded_slash_stays_in_its_segment(scope, readings):
    assert list(path_segments(scope)) == readings


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1).filter(
        lambda s: s != [""]
    )
)
def test_any_segments_survive_their_encoding(segments):
    from urllib.parse import quote, unquote

    raw = "/" + "/".join(quote(segment, safe="") for segment in segments)
    scope = {"path": unquote(raw), "raw_path": raw.encode()}
    assert list(path_segments(scope)) == [segments]


def test_a_path_of_many_encoded_segments_is_read_at_once():
    raw = "/%41" * 20_000
    began = time.process_time()
    assert list(path_segments({"path": "/A" * 20_000, "raw_path": raw.encode()})) == [
        ["A"] * 20_000
    ]
    assert list(path_segments({"path": "/B" * 20_000, "raw_path": raw.encode()})) == [
        ["B"] * 20_000
    ]
    assert time.process_time() - began < 1


# ── user ids ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "kept"), [("ana", "ana"), (42, "42"), ("42", "42"), (0, "0"), (-1, "-1")]
)
def test_a_user_id_is_a_str_and_42_is_42(value, kept):
    assert user_id(value) == kept


@pytest.mark.parametrize("value", [None, True, False, 1.5, b"ana", ["ana"], object()])
def test_what_is_no_user_id_is_a_type_error(value):
    with pytest.raises(TypeError, match="a user id is a str or an int, not"):
        user_id(value)


def test_an_empty_user_id_is_refused():
    with pytest.raises(ValueError, match="can't be empty"):
        user_id("")
