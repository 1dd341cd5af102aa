"""What is read of a handshake without the websockets library, and that it would accept the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.http11 import Request
from websockets.server import ServerProtocol

from backchannel.wire.opening import read_opening, switching

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 §1.3
CHROMIUM = [
    ("host", "localhost:8000"),
    ("connection", "Upgrade"),
    ("pragma", "no-cache"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
    ("upgrade", "websocket"),
    ("origin", "http://localhost:8000"),
    ("sec-websocket-version", "13"),
    ("cookie", "a=b; c=d"),
    ("sec-websocket-key", KEY),
    ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
    ("sec-websocket-protocol", "backchannel.v1, other"),
]


def request(headers, first="GET /ws/a?b=c HTTP/1.1"):
    lines = [first, *(f"{name}: {value}" for name, value in headers)]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def changed(name, *values):
    """Chromium's request, a header of it otherwise, or not there, or there several times."""
    return request([*(h for h in CHROMIUM if h[0] != name), *((name, value) for value in values)])


def library(data):
    """What the websockets library answers."""
    protocol = ServerProtocol(extensions=[ServerPerMessageDeflateFactory()])
    protocol.receive_data(data)
    events = protocol.events_received()
    assert all(isinstance(event, Request) for event in events)
    return protocol.accept(events[0]) if events else None


def test_a_browsers_request_is_read():
    opening = read_opening(request(CHROMIUM))
    assert opening is not None
    assert opening.target == b"/ws/a?b=c"
    assert opening.headers == [(name.encode(), value.encode()) for name, value in CHROMIUM]
    assert opening.key == KEY
    assert opening.offers == "permessage-deflate; client_max_window_bits"
    assert opening.subprotocols == ["backchannel.v1", "other"]


def test_the_answer_is_that_of_the_rfc():
    answer = switching(KEY, [(b"server", b"x"), (b"Sec-WebSocket-Protocol", b"other")])
    assert answer == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"server: x\r\nSec-WebSocket-Protocol: other\r\n\r\n"
    )


@pytest.mark.parametrize(
    "data",
    [
        changed("connection", "keep-alive, Upgrade"),  # Firefox
        changed("connection", "upgrade"),  # nginx
        changed("upgrade", "WebSocket"),
        changed("origin"),
        changed("sec-websocket-extensions"),
        changed("sec-websocket-protocol"),
        changed("cookie", "a=b", "c=d"),
        changed("x-name", "J\xf6rg"),
        changed("x-empty", ""),
        changed("sec-websocket-extensions", "permessage-deflate; server_max_window_bits=12, x-b"),
    ],
)
def test_other_usual_requests_are_read(data):
    assert read_opening(data) is not None
    assert library(data).status_code == 101


@pytest.mark.parametrize(
    "data",
    [
        changed("sec-websocket-key"),
        changed("sec-websocket-key", "short"),
        changed("sec-websocket-key", KEY, KEY),
        changed("sec-websocket-key", KEY[:-3] + "h=="),  # bits that no encoder sets
        changed("sec-websocket-version", "8"),
        changed("sec-websocket-version", "13", "13"),
        changed("upgrade", "websocket, h2c"),
        changed("upgrade"),
        changed("connection", "close"),
        changed("connection", "Upgrade", "Upgrade"),
        changed("origin", "http://a", "http://b"),
        changed("sec-websocket-extensions", "permessage-deflate;;"),
        changed("sec-websocket-extensions", 'permessage-deflate; a="b"'),
        changed("sec-websocket-protocol", "a, , b"),
        changed("sec-websocket-protocol", "a b"),
        changed("sec-websocket-protocol", ""),
        changed("content-length", "0"),
        changed("transfer-encoding", "chunked"),
        changed("x-long", "x" * 8192),
        request(CHROMIUM, "GET /ws HTTP/1.0"),
        request(CHROMIUM, "POST /ws HTTP/1.1"),
        request(CHROMIUM, "GET http://localhost/ws HTTP/1.1"),
        request(CHROMIUM, "GET /w\xe4 HTTP/1.1"),
        request(CHROMIUM + [(f"x-{n}", "") for n in range(128)]),
        request(CHROMIUM)[:-2],
        request(CHROMIUM) + b"early",
        request(CHROMIUM).replace(b"cookie: ", b"cookie:"),
        b"",
    ],
)
def test_anything_else_is_left_to_the_library(data):
    assert read_opening(data) is None


NEAR = {
    "connection": ["upgrade", "UPGRADE", "keep-alive, Upgrade", "keep-alive,upgrade", "xupgrade",
                   "upgrade x", "close, upgrade", "Upgrade,", ""],
    "upgrade": ["WebSocket", "websocket, x", "xwebsocket", "websocket ", ""],
    "sec-websocket-version": ["13", "13 ", "013", "8", "13, 8"],
    "sec-websocket-key": [KEY[:-3] + f"{last}==" for last in "AQgwBhx"] + [KEY[1:], KEY + "=", ""],
    "sec-websocket-protocol": ["a", "a,b", "a,  b", "a, ,b", "a b", "a;b", ""],
    "sec-websocket-extensions": [
        "permessage-deflate", "permessage-deflate;client_max_window_bits", "x; a=b, y; c; d=1",
        "x; a=", 'x; a="b"', "x;; a", "x, , y", "permessage-deflate; server_max_window_bits=99",
    ],
    "origin": ["null", "http://a", ""],
    "content-length": ["0"],
    "transfer-encoding": ["chunked"],
    "x": ["", "\x01", "a\x7f", "\t", "\xff", "a: b"],
    "x:y": ["1"],
    "": ["1"],
}  # fmt: skip


@st.composite
def requests(draw):
    """Chromium's request with some headers otherwise, gone, or there twice."""
    names = draw(st.lists(st.sampled_from(sorted(NEAR)), max_size=2))
    kept = draw(st.sets(st.sampled_from(sorted(NEAR)), max_size=1))  # besides the other one
    headers = [each for each in CHROMIUM if each[0] not in names or each[0] in kept]
    edits = [(name, draw(st.sampled_from(NEAR[name]))) for name in names]
    return request(draw(st.permutations([*headers, *edits])))


@settings(max_examples=1000)
@given(data=requests())
def test_what_is_read_the_library_accepts_with_the_same_answer(data):
    opening = read_opening(data)
    if opening is None:
        return
    answer = library(data)
    assert answer.status_code == 101
    accept = answer.headers["Sec-WebSocket-Accept"].encode()
    assert b"\r\nSec-WebSocket-Accept: " + accept + b"\r\n" in switching(opening.key, [])
