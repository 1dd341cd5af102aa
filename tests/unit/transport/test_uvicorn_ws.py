"""What the app and the client see of a handshake, beside what they see with uvicorn's own class."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from backchannel.transport.native import EXTENSION
from backchannel.transport.uvicorn_ws import NativeProtocol

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 §1.3
USUAL = [
    ("host", "localhost"), ("connection", "Upgrade"), ("upgrade", "websocket"),
    ("sec-websocket-version", "13"), ("sec-websocket-key", KEY),
]  # fmt: skip
UNUSUAL = [("connection", "close, Upgrade"), *USUAL[2:]]
OFFER = ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits")
ACCEPT = {"type": "websocket.accept", "subprotocol": None, "headers": []}


def request(headers=(), *, usual=USUAL, target="/ws"):
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in (*usual, *headers))]
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


class Socket(asyncio.Transport):
    """A socket that leads nowhere."""

    def __init__(self):
        super().__init__()
        self.written, self.is_closed = b"", False

    def write(self, data):
        self.written += data

    def close(self):
        self.is_closed = True

    def is_closing(self):
        return self.is_closed

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


async def handshake(kind, data, *said, native=False, **options):
    """Let a client ask, and an app say so; return the scope, what raised, what was written, whether closed."""
    scopes, raised = [], []

    async def app(scope, receive, send):
        scopes.append({key: value for key, value in scope.items() if key != "extensions"})
        await receive()
        giver = scope["extensions"].get(EXTENSION) if native else None
        if giver:
            giver.prepare(12)
        try:
            for message in said:
                await send(message)
        except Exception as error:
            raised.append(error)
            raise
        if giver:
            giver.take_over()

    config = Config(app, lifespan="off", log_config=None, **options)
    config.load()
    protocol, socket = kind(config, ServerState(), {"a": 1}), Socket()
    protocol.connection_made(socket)
    protocol.data_received(data)
    if protocol.tasks:
        await asyncio.wait(protocol.tasks)
    protocol.stop_keepalive()
    if protocol.close_timer:
        protocol.close_timer.cancel()
    return scopes, [type(error) for error in raised], socket.written, socket.is_closed


async def both(data, *said, **options):
    """Return what our class gives and what uvicorn's does."""
    kinds = NativeProtocol, WebSocketsSansIOProtocol
    return [await handshake(kind, data, *said, **options) for kind in kinds]


def start(status, **headers):
    named = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "websocket.http.response.start", "status": status, "headers": named}


BODY = {"type": "websocket.http.response.body", "body": b"why", "more_body": False}
CLOSE = {"type": "websocket.close", "code": 1000}


@pytest.mark.parametrize("usual", [USUAL, UNUSUAL], ids=["usual", "unusual"])
@pytest.mark.parametrize(
    "said",
    [
        [ACCEPT],
        [{**ACCEPT, "subprotocol": "b", "headers": [(b"X-A", b"1"), [b"x-b", b"2"]]}],
        [ACCEPT, {"type": "websocket.send", "text": "hi"}, CLOSE],
        [ACCEPT, ACCEPT],
        [CLOSE],
        [CLOSE, ACCEPT],
        [start(404, a="b"), BODY],
        [start(404), ACCEPT],
        [{"type": "websocket.send", "text": "too early"}],
        [],
    ],
)  # fmt: skip
async def test_what_an_app_says_for_itself_comes_as_from_uvicorn(said, usual, caplog):
    data = request([OFFER, ("sec-websocket-protocol", "a, b")], usual=usual)
    lines = []
    results = []
    for kind in (NativeProtocol, WebSocketsSansIOProtocol):
        caplog.clear()
        with caplog.at_level(logging.INFO, "uvicorn.error"):
            results.append(await handshake(kind, data, *said))
        lines.append([one.getMessage() for one in caplog.records])
    ours, uvicorns = results
    assert ours == uvicorns
    assert lines[0] == lines[1]


TARGETS = st.lists(
    st.sampled_from(["a", "%20", "%ff", "/", "?", "#", "&", "=", "%", "+", ";", "..", '"', "\\", "{"]),
    max_size=6,
).map(lambda parts: "/" + "".join(parts))  # fmt: skip
HEADERS = st.lists(
    st.sampled_from([
        ("x-a", " \t b\t"), ("x-a", "\xe9\xff\x80"), ("x-e", ""), ("x-c", ":"), ("x-d", "a\x01b"),
        ("cookie", "a=b; c"), ("origin", "null"), ("origin", ""), ("authorization", "Bearer \xa0"),
        ("sec-websocket-protocol", "a,b,  c"), OFFER,
        ("sec-websocket-extensions", "x; y=z,permessage-deflate;client_max_window_bits"),
        ("sec-websocket-extensions", "permessage-deflate; server_max_window_bits=9, x"),
        ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits=99"),
    ]),
    max_size=4,
)  # fmt: skip


@settings(max_examples=300)
@given(target=TARGETS, headers=HEADERS, root=st.sampled_from(["", "/r"]), data=st.data())
def test_the_scope_and_the_101_are_those_of_uvicorn(target, headers, root, data):
    headers = data.draw(st.permutations([*USUAL, *headers]))
    asked = request(headers, usual=(), target=target)
    ours, uvicorns = asyncio.run(both(asked, ACCEPT, root_path=root))
    if uvicorns[2]:
        assert ours == uvicorns
    else:  # it says nothing of what it can't read
        assert ours[2].startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("usual", [USUAL, UNUSUAL], ids=["usual", "unusual"])
@pytest.mark.parametrize("deflate", [True, False])
async def test_a_socket_that_is_given_away_has_our_compression_if_any(usual, deflate):
    data = request([OFFER], usual=usual)
    (scope,), raised, written, is_closed = await handshake(
        NativeProtocol, data, ACCEPT, native=True, ws_per_message_deflate=deflate
    )
    assert (scope["path"], raised, is_closed) == ("/ws", [], False)
    assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in written
    assert (b"server_no_context_takeover" in written) == deflate


async def test_what_middleware_adds_to_the_101_is_told_in_lower_case():
    headers = [(b"X-A", b"J\xf6rg"), [b"x-b", b""]]
    message = {**ACCEPT, "subprotocol": "caf\xe9", "headers": headers}
    _, raised, written, _ = await handshake(NativeProtocol, request(), message, native=True)
    assert raised == []
    for line in (b"x-a: J\xf6rg", b"x-b: ", b"Sec-WebSocket-Protocol: caf\xe9"):
        assert b"\r\n" + line + b"\r\n" in written


@pytest.mark.parametrize(
    "more",
    [
        {"headers": [(b"x-a", b"a\r\nset-cookie: b")]},
        {"headers": [(b"x-a: b\r\nx-b", b"c")]},
        {"headers": [("x-a", "b")]},
        {"subprotocol": "a\r\nx-b: c"},
    ],
)
async def test_what_can_be_no_header_of_the_101_is_a_500(more):
    """It may be a client's text, with which it would make up headers for others."""
    message = {**ACCEPT, **more}
    _, raised, written, is_closed = await handshake(NativeProtocol, request(), message, native=True)
    assert len(raised) == 1
    assert re.match(rb"HTTP/1.1 500 Internal Server Error\r\n", written)
    assert written.count(b"\r\n\r\n") == 1
    assert is_closed


async def test_a_socket_that_closes_is_told_nothing_more():
    """Also where the app accepts for itself just then: no error of the app's."""

    async def app(scope, receive, send):
        await receive()
        protocol.shutdown()
        await send(ACCEPT)
        done.append(scope["path"])

    config, done = Config(app, lifespan="off", log_config=None), []
    config.load()
    protocol, socket = NativeProtocol(config, ServerState(), {}), Socket()
    protocol.connection_made(socket)
    protocol.data_received(request())
    await asyncio.wait(protocol.tasks)
    assert done == ["/ws"]
    assert socket.written.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (("content-length", "555"), b"unsupported request body"),
        (("transfer-encoding", "chunked"), b"transfer codings"),
        (("x-long", "x" * 9000), b"8192 bytes"),
        (("x-control", "a\x01b"), b"invalid HTTP header value"),
    ],
)
async def test_a_request_that_the_library_cant_read_is_a_400_that_says_why(header, why, caplog):
    """Else its client would wait for ever, and hold its connection."""
    scopes, _, written, is_closed = await handshake(NativeProtocol, request([header]))
    assert scopes == []
    assert written.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert why in written.partition(b"\r\n\r\n")[2]
    assert is_closed
    assert "can't be read" in caplog.text
    assert header[1] not in caplog.text  # it may be a credential
