"""What the doctor says, with a real server on 127.0.0.1 behind every case."""

import asyncio
import contextlib
import datetime as dt
import io
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner
from ports import free_port
from rich.console import Console
from websockets.asyncio.server import serve

from backchannel.cli import findings, visit
from backchannel.cli import stay as staying
from backchannel.cli.doctor import Diagnosis, diagnose, doctor, render
from backchannel.codes import ENDINGS

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Watch a fresh connection for a shorter time than a person would wait for."""
    monkeypatch.setattr(staying, "SETTLE", 0.1)


def text_of(diagnosis):
    return "\n".join([diagnosis.title, diagnosis.explanation, *diagnosis.advice])


def assert_says(diagnosis, *needles, ok=False):
    """Check that a diagnosis says what, why and what to do, and all of the needles."""
    assert diagnosis.ok is ok, text_of(diagnosis)
    assert diagnosis.title
    assert diagnosis.explanation
    assert ok or diagnosis.advice
    assert not re.search(r"[{}]|None", re.sub(r"\{(id:int|channel)\}", "", text_of(diagnosis)))
    for needle in needles:
        assert needle in text_of(diagnosis)


@contextlib.asynccontextmanager
async def talking(handle, *, tls=None):
    """Serve raw bytes: `handle(reader, writer)` for each connection; yields the port.

    Every handler ends by itself when the doctor hangs up, which it always does.
    """
    tasks = []

    async def client(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await handle(reader, writer)
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    def connected(reader, writer):
        tasks.append(asyncio.get_running_loop().create_task(client(reader, writer)))

    server = await asyncio.start_server(connected, HOST, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*tasks)


def answering(response, requests=None):
    """Return a handler that reads a request, answers, and waits for the client to leave."""

    async def handle(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        if requests is not None:
            requests.append(request.decode())
        writer.write(response.encode() if isinstance(response, str) else response)
        await reader.read()

    return handle


def http(status, body="", *headers):
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body.encode())}", *headers]
    return "\r\n".join([*head, "", body])


async def seen_by(handle, path="/ws/echo", scheme="ws", tls=None, **options):
    async with talking(handle, tls=tls) as port:
        return await diagnose(f"{scheme}://{HOST}:{port}{path}", **options)


@contextlib.asynccontextmanager
async def websocket(handler, **options):
    async with serve(handler, HOST, 0, **options) as server:
        yield server.sockets[0].getsockname()[1]


async def stay(ws):
    await ws.wait_closed()


# What can't be asked at all


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "hostname"),
        ("   ", "hostname"),
        ("ws://", "hostname"),
        ("/ws/echo", "hostname"),
        (":8888/ws/echo", "hostname"),
        ("ftp://localhost/ws", "ftp:// is neither ws:// nor wss://"),
        ("ws://localhost:99999/ws", "Port"),
        ("ws://localhost:port/ws", "Port"),
        ("ws://[::1/ws", "IPv6"),
        ("what is this?", "“what is this” is no host name"),
        ("ws://two words/ws", "“two words” is no host name"),
        ("ws://a..b/ws", "label"),
        (f"ws://{'a' * 64}.example/ws", "label"),
        ("ws://ana@localhost/ws", "password"),
        ("ws://\x1b[31mred/ws", ""),
    ],
)
async def test_nonsense_is_a_clear_error(url, why):
    diagnosis = await diagnose(url)
    assert_says(diagnosis, "no WebSocket address", why, "ws://localhost:8888/ws/echo")
    assert diagnosis.title.startswith("This is no WebSocket address:")
    assert "\x1b" not in text_of(diagnosis)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
async def test_a_timeout_must_be_some_time(seconds):
    with pytest.raises(ValueError, match="more than 0 seconds"):
        await diagnose("ws://localhost", timeout=seconds)


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "example.com",
        "https://example.com/",
        "https://example.com/page",
        "https://a\r\nX: y",
        "https://a?b",
    ],
)
async def test_an_origin_must_be_one_that_browsers_send(origin):
    with pytest.raises(ValueError, match="no origin"):
        await diagnose("ws://localhost", origin=origin)


@pytest.mark.parametrize("name", ["", "two words", "a,b", "a\r\nb"])
async def test_a_subprotocol_must_be_a_token(name):
    with pytest.raises(ValueError, match="subprotocol"):
        await diagnose("ws://localhost", subprotocols=[name])


# Nobody there


async def test_refused():
    port = free_port()
    diagnosis = await diagnose(f"ws://{HOST}:{port}/ws/echo")
    assert_says(
        diagnosis, f"Nothing is listening on {HOST}:{port}", "refused", "Start the application"
    )
    assert dict(diagnosis.details)["Origin sent"] == f"http://{HOST}:{port}"


async def test_refused_on_every_address_of_a_name():
    assert_says(
        await diagnose(f"ws://localhost:{free_port()}"), "Nothing is listening on localhost"
    )


async def test_unresolvable_host():
    diagnosis = await diagnose("ws://nothing.invalid/ws")
    assert_says(diagnosis, "nothing.invalid is not known", "No address was found", "spelled")


@pytest.mark.skipif(sys.platform != "linux", reason="fills an accept queue as Linux counts it")
async def test_connect_timeout():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind((HOST, 0))
        server.listen(0)
        for _ in range(3):  # the queue holds one; from then on the kernel drops who knocks
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        port = server.getsockname()[1]
        diagnosis = await diagnose(f"ws://{HOST}:{port}", timeout=0.2)
    assert_says(diagnosis, "did not answer within 0.2 s", "firewall", "--timeout 30")


async def test_no_way_to_the_address():
    diagnosis = await diagnose("ws://255.255.255.255:8888/ws")
    assert_says(diagnosis, "can't be reached", "network says", "routes")


# Somebody there who is no web server


async def test_silent():
    async def silent(reader, writer):
        await reader.read()

    diagnosis = await seen_by(silent, timeout=0.2)
    assert_says(
        diagnosis,
        "did not answer within 0.2 s",
        "it hangs, or is no web server",
        "--debug",
        "--reload",
    )


async def test_hung_up():
    async def hang_up(reader, writer):
        await reader.readuntil(b"\r\n\r\n")

    diagnosis = await seen_by(hang_up, timeout=0.3)
    assert_says(diagnosis, "closed the connection without an answer", "crashed", "server's log")


async def test_reset():
    async def reset(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    assert_says(
        await seen_by(reset, timeout=0.3), "closed the connection without an answer", "reset"
    )


@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"-ERR unknown command 'GET'\r\n", b"\x00\xff\x1b[2J"]
)
async def test_not_http(greeting):
    async def greet(reader, writer):
        writer.write(greeting)
        await reader.read()

    diagnosis = await seen_by(greet)
    assert_says(diagnosis, "does not speak HTTP", "Check the port")
    assert "\x1b" not in text_of(diagnosis)


async def test_broken_http():
    diagnosis = await seen_by(answering("HTTP/1.1 fine\r\n\r\n"), timeout=0.3)
    assert_says(diagnosis, "does not speak HTTP", "HTTP/1.1 fine")


async def test_a_head_without_end_is_not_read_for_ever():
    async def endless(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-More: and more\r\n" * 1000)
            await writer.drain()

    assert (await seen_by(endless)).ok is False


# HTTP answers


REFUSALS = [
    # response, what the diagnosis must say
    (http("200 OK", "<html>"), ["HTTP 200", "proxy_http_version 1.1;", "$http_upgrade", "Connection"]),
    (http("204 No Content"), ["HTTP 204", "Upgrade"]),
    ("HTTP/1.0 200 OK\r\n\r\nold", ["HTTP 200", "no endpoint", "“old”"]),
    (http("301 Moved", "", "Location: /ws/echo/"), ["do not follow redirects", "/ws/echo/", "slash"]),
    (http("308 Moved", "", "Location: /login?next=x"), ["HTTP 308", "page to sign in", "/login?next=x"]),
    (http("302 Found"), ["HTTP 302", "Location header says nothing", "Find the rule"]),
    (http("307 Temporary", "", "Location: http://[bad"), ["HTTP 307", "Location header"]),
    (http("400 Bad Request", "what?"), ["HTTP 400", "“what?”", "proxy_set_header Host", "ALLOWED_HOSTS"]),
    (http("401 Unauthorized", "who?"), ["HTTP 401", "who connects", "“who?”", "require_user=True",
                                        "/ws/echo?ticket=bct_", '--header "Cookie: ',
                                        "--subprotocol backchannel.jwt --subprotocol TOKEN"]),
    (http("403 Forbidden", "Not you."), ["HTTP 403", "http://127.0.0.1:", "“Not you.”", "on_handshake"]),
    (http("403 Forbidden"), ["HTTP 403 without a word", "Starlette", "Origin sent, http://127.0.0.1:"]),
    (http("404 Not Found", "nope"), ["no endpoint at /ws/echo", "“nope”", "template"]),
    (http("426 Upgrade Required", "upgrade!"), ["upgrade got lost", "“upgrade!”", "proxy_http_version"]),
    (http("429 Too Many"), ["HTTP 429", "limit", "Wait and try again."]),
    (http("429 Too Many", "", "Retry-After: 30"), ["HTTP 429", "Wait and try again in 30 s."]),
    (http("500 Internal", "oops"), ["HTTP 500", "exception", "traceback"]),
    (http("500 Internal", "Failed; error id 3f9a-x."), ["error id 3f9a-x", "Look for 3f9a-x in the server's log"]),
    (http("502 Bad Gateway"), ["HTTP 502", "proxy is up", "Start the application", "error log"]),
    (http("503 Unavailable", "", "Retry-After: Fri, 31 Dec"), ["HTTP 503", "not available", "again after Fri, 31 Dec."]),
    (http("503 No", "Failed, error id ab12: see"), ["error id ab12", "too long", "handshake_timeout"]),
    (http("504 Timeout"), ["HTTP 504", "did not answer in time", "hangs"]),
    (http("418 Teapot", "short and stout"), ["HTTP 418", "“short and stout”", "Check that /ws/echo"]),
]  # fmt: skip


@pytest.mark.parametrize(("response", "needles"), REFUSALS)
async def test_refusals(response, needles):
    diagnosis = await seen_by(answering(response))
    assert_says(diagnosis, *needles)
    assert dict(diagnosis.details)["answer"].startswith("HTTP ")


async def test_redirect_to_https():
    async def redirect(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        host = re.search(rb"Host: (\S+)", request)[1].decode()
        writer.write(http("307 To TLS", "", f"Location: https://{host}/ws/echo").encode())

    diagnosis = await seen_by(redirect)
    assert_says(diagnosis, "redirects to wss://127.0.0.1:", "wants TLS", "Use wss://127.0.0.1:")


async def test_origin_refused_by_our_server():
    body = "This origin may not connect. The setting allowed_origins widens it."
    diagnosis = await seen_by(
        answering(http("403 Forbidden", body, "Server: uvicorn")), origin="https://shop.example"
    )
    assert_says(
        diagnosis,
        "pages from https://shop.example may not connect",
        body,
        'Hub(allowed_origins=["https://shop.example"])',
        "proxy_set_header Host",
    )
    details = dict(diagnosis.details)
    assert details["Origin sent"] == "https://shop.example"
    assert details["server"] == "uvicorn"
    assert details["body"] == body


async def test_a_bare_403_is_first_of_all_a_route_that_is_not_there():
    bare = answering(http("403 Forbidden"))
    async with talking(bare) as port:
        for origin in (None, f"http://{HOST}:{port}"):
            diagnosis = await diagnose(f"ws://{HOST}:{port}/ws/echo", origin=origin)
            assert "Compare /ws/echo with the application's routes" in diagnosis.advice[0]
            assert "allowed_origins" not in text_of(diagnosis)
    diagnosis = await seen_by(bare, origin="https://shop.example")
    assert_says(diagnosis, 'Hub(allowed_origins=["https://shop.example"])', "Starlette")
    assert "without a word" not in diagnosis.title


@pytest.mark.parametrize("mount", ["", "/live"])
async def test_near_misses_of_a_404(mount):
    body = (
        "Nothing is served at /ws/ech.\n"
        "The nearest WebSocket endpoints are: /ws/echo, /ws/{id:int}/{channel}\n"
    )
    answer = http("404 Not Found", body, "Content-Type: text/plain; charset=utf-8")
    async with talking(answering(answer)) as port:
        diagnosis = await diagnose(f"ws://{HOST}:{port}{mount}/ws/ech")
    base = f"ws://{HOST}:{port}{mount}"
    assert_says(diagnosis, f"no endpoint at {mount}/ws/ech", "Nothing is served at /ws/ech.")
    assert diagnosis.advice[0].endswith(f"{base}/ws/echo, {base}/ws/{{id:int}}/{{channel}}")


async def test_a_404_that_knows_no_near_misses():
    body = "Nothing is served at /ws/echo.\nThis hub has no endpoints yet.\n"
    diagnosis = await seen_by(answering(http("404 No", body, "Content-Type: text/plain")))
    assert_says(diagnosis, "no endpoints yet", "is imported", "--debug")


async def test_a_404_page_names_no_near_misses():
    page = "<style>a{}</style><a href='/home'>Not&nbsp;<b>here</b></a> /sorry"
    diagnosis = await seen_by(answering(http("404 Not Found", page, "Content-Type: text/html")))
    assert "Use what was meant" not in text_of(diagnosis)
    assert dict(diagnosis.details)["body"] == "Not&nbsp; here /sorry"


@pytest.mark.parametrize(
    "body",
    [
        "The plain HTTP request was sent to HTTPS port",  # nginx
        "Client sent an HTTP request to an HTTPS server.",  # Go
        "You're speaking plain HTTP to an SSL-enabled server port.",  # Apache
    ],
)
async def test_plain_to_a_tls_port_that_says_so(body):
    diagnosis = await seen_by(answering(http("400 Bad Request", body)))
    assert_says(diagnosis, "expects TLS, but the URL says ws://", "Use wss://127.0.0.1:")


@pytest.mark.parametrize(
    "body",
    [
        "Transfer-Encoding: chunked\r\n\r\n4\r\nno, \r\n4\r\nnope\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n8\r\nno, nope\r\n",  # and it never ends
        "Content-Length: 100\r\n\r\nno, nope",  # shorter than promised
        "\r\nno, nope",
    ],
)
async def test_bodies_in_every_shape(body, monkeypatch):
    monkeypatch.setattr(visit, "GOODBYE", 0.1)
    diagnosis = await seen_by(answering(f"HTTP/1.1 403 No\r\n{body}"))
    assert_says(diagnosis, "“no, nope”")


async def test_a_body_is_cut_and_disarmed():
    diagnosis = await seen_by(answering(http("403 No", "\x1b[31mred\u202e[bold]" + "x" * 10_000)))
    body = dict(diagnosis.details)["body"]
    assert body.startswith("[31mred [bold]xxx")
    assert len(body) < 310
    out = io.StringIO()
    render(diagnosis, Console(file=out, width=1000))
    assert "[bold]xxx" in out.getvalue()
    assert "\x1b" not in out.getvalue()


# The handshake as a browser sends it


@pytest.mark.parametrize(
    ("prefix", "host"), [("ws://", "127.0.0.1"), ("", "localhost"), ("ws:/", "LocalHost")]
)
async def test_the_request_is_a_browsers(prefix, host):
    requests = []
    async with talking(answering(http("403 No"), requests)) as port:
        await diagnose(f"{prefix}{host}:{port}/ws/a b?q=é#part", subprotocols=["chat", "v1"])
    lines = requests[0].split("\r\n")
    host = host.lower()
    assert lines[0] == "GET /ws/a%20b?q=%C3%A9 HTTP/1.1"
    for line in (
        f"Host: {host}:{port}",
        f"Origin: http://{host}:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: chat, v1",
    ):
        assert line in lines
    assert any(line.startswith("Sec-WebSocket-Extensions: permessage-deflate") for line in lines)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("ws://nothing.invalid/ws", "http://nothing.invalid"),
        ("ws://nothing.invalid:80/ws", "http://nothing.invalid"),
        ("wss://nothing.invalid:443/ws", "https://nothing.invalid"),
        ("wss://nothing.invalid:8443/ws", "https://nothing.invalid:8443"),
        ("https://nothing.invalid/ws", "https://nothing.invalid"),
        ("ws://bücher.invalid/ws", "http://xn--bcher-kva.invalid"),
    ],
)
async def test_default_origin(url, origin):
    assert dict((await diagnose(url)).details)["Origin sent"] == origin


async def test_a_password_is_sent_but_not_shown():
    requests = []
    async with talking(answering(http("401 No"), requests)) as port:
        diagnosis = await diagnose(f"ws://ana:secret@{HOST}:{port}/ws")
    assert "Authorization: Basic" in requests[0]
    assert "secret" not in text_of(diagnosis) + str(diagnosis.details)


@pytest.mark.parametrize("path", ["/ws/chat/{channel}", "/ws/%7Bid:int%7D/{channel}?q={x}"])
async def test_a_variable_that_was_not_filled_in_is_noted(path):
    async with websocket(stay) as port:
        diagnosis = await diagnose(f"ws://{HOST}:{port}{path}")
    assert_says(diagnosis, "{channel} was sent as it stands", "Fill in a value", ok=True)
    assert ("{id:int}, {channel}" in diagnosis.explanation) is ("id" in path)
    async with websocket(stay) as port:
        filled_in = await diagnose(f"ws://{HOST}:{port}/ws/chat/cars?filter={{x}}")
    assert "as it stands" not in filled_in.explanation


async def test_more_headers_are_sent_and_their_values_not_shown():
    requests = []
    headers = [("Cookie", "session=secret"), ("Authorization", "Bearer secret"), ("X-Empty", "")]
    async with talking(answering(http("401 No"), requests)) as port:
        diagnosis = await diagnose(f"ws://{HOST}:{port}/ws", headers=headers)
    for name, value in headers:
        assert f"{name}: {value}" in requests[0].split("\r\n")
    assert dict(diagnosis.details)["headers sent"] == "Cookie, Authorization, X-Empty"
    assert "secret" not in text_of(diagnosis) + str(diagnosis.details)


@pytest.mark.parametrize(
    "header",
    [("two words", "x"), ("", "x"), ("X", "a\r\nb"), ("X", "é"), ("Host", "x"), ("upgrade", "x"),
     ("Sec-WebSocket-Key", "x"), ("ORIGIN", "x"), ("Content-Length", "3")],
)  # fmt: skip
async def test_a_header_must_be_one_that_can_be_added(header):
    with pytest.raises(ValueError, match="can't be sent"):
        await diagnose("ws://localhost", headers=[header])


async def test_http_urls_are_read_as_ws():
    async with websocket(stay) as port:
        diagnosis = await diagnose(f"http://{HOST}:{port}/ws/echo")
    assert_says(diagnosis, "http:// is for pages; the doctor used ws://", ok=True)


async def test_an_url_without_a_scheme_is_read_as_ws():
    async with websocket(stay) as port:
        diagnosis = await diagnose(f"localhost:{port}/ws/echo")
    assert_says(diagnosis, "no scheme; the doctor used ws://", ok=True)


# TLS


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def tls_of(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.fixture
def trusted(authority, monkeypatch, tmp_path):
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))


async def test_tls_is_fine(authority, trusted):
    async with websocket(stay, ssl=tls_of(authority.issue_cert(HOST))) as port:
        diagnosis = await diagnose(f"wss://{HOST}:{port}/ws")
    assert_says(diagnosis, "Connected", ok=True)
    assert dict(diagnosis.details)["Origin sent"] == f"https://{HOST}:{port}"


async def test_expired_certificate(authority, trusted):
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    certificate = authority.issue_cert(HOST, not_before=past, not_after=past.replace(year=2021))
    diagnosis = await seen_by(answering(""), scheme="wss", tls=tls_of(certificate))
    assert_says(diagnosis, "has expired", "Browsers refuse", "Renew")


async def test_certificate_of_another_name(authority, trusted):
    certificate = authority.issue_cert("other.example")
    async with talking(answering(""), tls=tls_of(certificate)) as port:
        for host in (HOST, "localhost"):
            diagnosis = await diagnose(f"wss://{host}:{port}")
            assert_says(diagnosis, f"another name than {host}", "names", "Use the host name")


async def test_certificate_of_an_unknown_issuer(authority):
    tls = tls_of(authority.issue_cert(HOST))
    diagnosis = await seen_by(answering(""), scheme="wss", tls=tls)
    assert_says(diagnosis, "not trusted here", "full chain", "SSL_CERT_FILE", "--insecure")


async def test_certificate_not_valid_yet(authority, trusted):
    far = dt.datetime(2999, 1, 1, tzinfo=dt.UTC)
    certificate = authority.issue_cert(HOST, not_before=far, not_after=far.replace(year=3000))
    diagnosis = await seen_by(answering(""), scheme="wss", tls=tls_of(certificate))
    assert_says(diagnosis, "was refused", "not yet valid", "Replace")


@pytest.fixture
def self_signed(tmp_path):
    authority = trustme.CA()  # its own certificate is signed by itself
    path = tmp_path / "self.pem"
    authority.private_key_pem.write_to_path(path)
    authority.cert_pem.write_to_path(path, append=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_self_signed_certificate(self_signed):
    diagnosis = await seen_by(answering(""), scheme="wss", tls=self_signed)
    assert_says(diagnosis, "is self-signed", "Nobody", "Let's Encrypt", "--insecure")


async def test_insecure_goes_on_and_says_so(self_signed):
    async with websocket(stay, ssl=self_signed) as port:
        diagnosis = await diagnose(f"wss://{HOST}:{port}/ws", insecure=True)
    assert_says(diagnosis, "Connected", "not checked", ok=True)


async def test_plain_to_a_tls_port(self_signed):
    async with websocket(stay, ssl=self_signed) as port:
        diagnosis = await diagnose(f"ws://{HOST}:{port}/ws")
    assert_says(diagnosis, "expects TLS, but the URL says ws://", f"Use wss://{HOST}:{port}/ws")


async def test_tls_that_gets_lost_behind_the_proxy(self_signed):
    says = answering(http("400 Bad Request", "The plain HTTP request was sent to HTTPS port"))
    diagnosis = await seen_by(says, scheme="wss", tls=self_signed, insecure=True)
    assert_says(diagnosis, "HTTP 400", "changed it", "HTTPS port”")
    assert "Use ws" not in text_of(diagnosis)


@pytest.mark.parametrize("scheme", ["wss", "https"])
async def test_tls_to_a_plain_port(scheme):
    async with websocket(stay) as port:
        diagnosis = await diagnose(f"{scheme}://{HOST}:{port}/ws", timeout=1)
    assert_says(diagnosis, "does not speak TLS", "plain HTTP", f"ws://{HOST}:{port}/ws")


async def test_tls_to_a_port_that_waits():
    async def lines(reader, writer):  # as many HTTP servers: not a word before a whole request
        await answering(http("400 Bad Request"))(reader, writer)

    diagnosis = await seen_by(lines, scheme="wss", timeout=0.3)
    assert_says(diagnosis, "does not speak TLS", "plain HTTP", "wss://")


@pytest.mark.parametrize("farewell", [b"", b"220 mail.example ESMTP\r\n"])
async def test_tls_to_something_else(farewell):
    async def other(reader, writer):
        writer.write(farewell)
        await reader.read(1)

    diagnosis = await seen_by(other, scheme="wss", timeout=0.3)
    assert_says(diagnosis, "No TLS connection", "could not agree", "certificate and key")


# 101, and then


ACCEPT = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (f"{ACCEPT}Sec-WebSocket-Accept: bm8=\r\n\r\n", "Sec-WebSocket-Accept"),
        (f"{ACCEPT}\r\n", "missing Sec-WebSocket-Accept"),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "missing Connection"),
        ("HTTP/1.0 101 Switching Protocols\r\n\r\n", "HTTP/1.1"),
    ],
)
async def test_a_101_that_is_none(response, why):
    diagnosis = await seen_by(answering(response))
    assert_says(diagnosis, "said yes (101)", why, "past the proxy")


async def test_a_101_that_is_cut_off():
    async def cut(reader, writer):
        writer.write(ACCEPT.encode())
        writer.write_eof()
        await reader.read()

    assert_says(await seen_by(cut), "said yes (101)", "connection closed")


async def test_subprotocol_nobody_chose():
    async with websocket(stay) as port:
        diagnosis = await diagnose(f"ws://{HOST}:{port}", subprotocols=["chat", "v1"])
    assert_says(
        diagnosis, "do not agree on a subprotocol", "chose none of “chat, v1”", "--subprotocol"
    )


def switch(*headers, then=b"", after=None):
    """Return a handler that does the WebSocket handshake right, sends raw bytes, then does more."""

    async def handle(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)[1].decode()
        lines = [f"{ACCEPT}Sec-WebSocket-Accept: {accept_key(key)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + then)
        if after is not None:
            await after(reader, writer)
        if then is not None:
            await reader.read()

    return handle


def accept_key(key):
    from websockets.utils import accept_key

    return accept_key(key)


async def test_subprotocol_nobody_offered():
    diagnosis = await seen_by(switch("Sec-WebSocket-Protocol: chat"))
    assert_says(diagnosis, "do not agree on a subprotocol", "chose “chat”, and not all")


async def test_extension_nobody_offered():
    diagnosis = await seen_by(switch("Sec-WebSocket-Extensions: x-made-up"))
    assert_says(diagnosis, "extension", "x-made-up")


def close_frame(code, reason=""):
    payload = struct.pack("!H", code) + reason.encode()
    return bytes([0x88, len(payload)]) + payload


@pytest.mark.parametrize("code", sorted(set(ENDINGS) - {1005, 1006} | {3001, 4100}))
async def test_closed_at_once(code):
    diagnosis = await seen_by(switch(then=close_frame(code, "because")))
    assert_says(diagnosis, f"closed at once with code {code} (", "“because”", "come back", "See ")
    come_back = ENDINGS[code].come_back if code in ENDINGS else None
    assert ("should not come back" in diagnosis.explanation) is (come_back is False)
    assert dict(diagnosis.details)["close code"] == f"{code} because"


async def test_closed_by_a_server_that_changes_its_mind():
    async def refuse(ws):
        await ws.close(1008, "members only")

    async with websocket(refuse) as port:
        diagnosis = await diagnose(f"ws://{HOST}:{port}/ws")
    assert_says(
        diagnosis, "1008 (refused)", "“members only”", "on_subscribe", "should not come back"
    )


async def test_closed_without_a_code():
    diagnosis = await seen_by(switch(then=b"\x88\x00"))
    assert_says(diagnosis, "code 1005", "no reason", "the code does not say")


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_lost_at_once(how):
    async def lose(reader, writer):
        sock = writer.get_extra_info("socket")
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await switch()(reader, writer)

    diagnosis = await seen_by(lose)
    assert_says(diagnosis, "code 1006", "should come back", "crashed, or a proxy")


async def test_closed_on_the_ping():
    async def close_later(reader, writer):
        await switch_then_read(reader, writer)
        writer.write(close_frame(1011))
        await reader.read()

    async def switch_then_read(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)[1].decode()
        writer.write(f"{ACCEPT}Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n".encode())
        await reader.read(1)

    assert_says(await seen_by(close_later), "code 1011", "traceback")


@pytest.mark.parametrize(
    "junk", [b"hello, this is no frame" * 10, b"\x81\x82\x00\x00\x00\x00hi", close_frame(1005)]
)
async def test_no_frames(junk):
    diagnosis = await seen_by(switch(then=junk))
    assert_says(diagnosis, "what the server sends is no WebSocket", "no valid frames", "proxy")


async def test_no_pong():
    diagnosis = await seen_by(switch(), timeout=0.2)
    assert_says(diagnosis, "a ping was not answered within 0.2 s", "hangs", "past the proxy")


async def test_all_is_fine():
    codes = []

    async def listen(ws):
        await ws.send("welcome " * 200_000)
        await ws.wait_closed()
        codes.append(ws.close_code)

    async with websocket(listen, subprotocols=["v1"], server_header="Test/1") as port:
        diagnosis = await diagnose(f"ws://{HOST}:{port}/ws", subprotocols=["v1"])
    assert_says(diagnosis, f"ws://{HOST}:{port}/ws is fine, round trip", ok=True)
    details = dict(diagnosis.details)
    assert details["address"] == f"{HOST}:{port}"
    assert details["answer"] == "HTTP 101 Switching Protocols"
    assert details["server"] == "Test/1"
    assert details["subprotocol"] == "v1"
    assert details["compression"] == "permessage-deflate"
    assert re.fullmatch(r"\d+\.\d ms", details["round trip"])
    assert codes == [1000]


async def test_fine_without_compression():
    async with websocket(stay, compression=None, server_header=None) as port:
        diagnosis = await diagnose(f"ws://{HOST}:{port}")
    assert diagnosis.ok
    details = dict(diagnosis.details)
    assert (details["compression"], details["subprotocol"]) == ("none", "none")
    assert "server" not in details


async def test_ipv6():
    try:
        server = await serve(stay, "::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    async with server:
        port = server.sockets[0].getsockname()[1]
        diagnosis = await diagnose(f"ws://[::1]:{port}/")
    assert diagnosis.ok
    assert dict(diagnosis.details)["Origin sent"] == f"http://[::1]:{port}"


# Watching a connection that is silent


@contextlib.asynccontextmanager
async def impatient(seconds, port):
    """Pass bytes on to a port, both ways, until nothing came for so many seconds."""

    async def pass_on(reader, writer):
        there, back = await asyncio.open_connection(HOST, port)
        heard = asyncio.Event()

        async def copy(source, target):
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    heard.set()
                    target.write(data)
            heard.set()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(copy(*pair)) for pair in ((reader, back), (there, writer))]
            with contextlib.suppress(TimeoutError):
                while not any(task.done() for task in tasks):
                    heard.clear()
                    await asyncio.wait_for(heard.wait(), seconds)
            for one in (back, writer):
                one.transport.abort()

    async with talking(pass_on) as through:
        yield through


async def test_what_ends_silence_is_named_with_the_time_it_took():
    async with (
        websocket(stay, ping_interval=None) as port,
        impatient(0.6, port) as through,
    ):
        diagnosis = await diagnose(f"ws://{HOST}:{through}/ws", watch=30)
    assert_says(
        diagnosis,
        "cut off after ",
        "without a close frame",
        "before that neither side had said anything. No ping came.",
        "proxy_read_timeout 75s;  # nginx",
        "Hub(ping_interval=0.",
    )
    assert re.search(r"For 0\.[6-9] s before", diagnosis.explanation)
    details = dict(diagnosis.details)
    assert details["pings from the server"] == "none"
    assert details["close code"] == "1006"
    assert re.fullmatch(r"[01]\.\d s, the last 0\.[6-9] s silent", details["ended after"])


async def test_pings_keep_a_silent_connection_and_are_counted():
    async with (
        websocket(stay, ping_interval=0.2) as port,
        impatient(2.0, port) as through,
    ):
        diagnosis = await diagnose(f"ws://{HOST}:{through}/ws", watch=1.0)
    assert_says(diagnosis, "fine, and after 1 s still open", "The server pinged", ok=True)
    assert re.match(
        r"\d, the longest silence 0\.\d s", dict(diagnosis.details)["pings from the server"]
    )


async def test_an_end_between_pings_is_no_limit_for_silence():
    async def crash(ws):
        for _ in range(3):
            await asyncio.sleep(0.3)
            await ws.ping()
        ws.transport.abort()

    async with websocket(crash, ping_interval=None) as port:
        diagnosis = await diagnose(f"ws://{HOST}:{port}/ws", watch=30)
    assert_says(
        diagnosis, "though it was not silent for long", "crashed", "how long a connection may last"
    )


async def test_a_later_close_is_told_with_its_code():
    async def idle(ws):
        await asyncio.sleep(0.4)
        await ws.close(4008, "no message for 0.4 s")

    async with websocket(idle) as port:
        diagnosis = await diagnose(f"ws://{HOST}:{port}/ws", watch=30)
    assert_says(
        diagnosis, "closed after 0.", "4008 (idle)", "no message for 0.4 s", "`idle_timeout`"
    )


async def test_a_connection_that_somebody_forgot_is_dead():
    """It answers the first ping, then nothing, and never ends: as behind a firewall."""

    async def forget(reader, writer):
        ping = await reader.readexactly(6 + 7)
        text = bytes(b ^ ping[2 + i % 4] for i, b in enumerate(ping[6:]))
        writer.write(b"\x8a" + bytes([len(text)]) + text)

    diagnosis = await seen_by(switch(after=forget), watch=0.3, timeout=0.3)
    assert_says(diagnosis, "after 0.3 s of silence a ping was not answered", "firewall")


@pytest.mark.parametrize("seconds", [-1, 86_401, float("nan")])
async def test_only_some_time_can_be_watched(seconds):
    with pytest.raises(ValueError, match="watch must be 0 seconds or more and at most a day"):
        await diagnose("ws://localhost", watch=seconds)


async def test_a_fine_connection_says_how_to_find_out_what_ends_it_later():
    async with websocket(stay) as port:
        diagnosis = await diagnose(f"ws://{HOST}:{port}")
    assert_says(diagnosis, "--watch", ok=True)


async def test_a_token_that_is_offered_is_not_shown():
    secret = "eyJhbGciOi" * 10
    async with websocket(stay) as port:
        diagnosis = await diagnose(f"ws://{HOST}:{port}", subprotocols=["backchannel.jwt", secret])
    assert_says(diagnosis, "chose none of “backchannel.jwt, eyJhbGci…”")
    assert secret not in str(diagnosis)


# The texts


def test_every_row_is_whole():
    names = re.findall(r"^([a-z0-9 -]+): ", findings.ROWS, re.MULTILINE)
    assert len(names) == len(set(names)) == findings.ROWS.count("\n\n") + 1
    known = dict.fromkeys(
        re.findall(r"\{(\w+)\}", findings.ROWS), "x"
    )  # that they are filled in, the other tests show
    for name in names:
        diagnosis = findings.fill(name, known, {})
        assert diagnosis.title
        assert diagnosis.explanation
        assert diagnosis.advice or name in {"ok", "ok watched"}
    named = {row for _, _, row in visit._ANSWERS} | set(visit._CERTIFICATES.values())
    assert named <= set(names)


def test_the_documentation_has_every_row():
    page = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text(encoding="utf-8")
    for title in re.findall(r"^[a-z0-9 -]+: (.+)", findings.ROWS, re.MULTILINE):
        assert f"| {re.sub(r'{[a-z_]+}', '…', title)} |" in page


# The command


@pytest.fixture
def server():
    """Run a server in a thread of its own, since the command runs its own event loop."""
    ready, ports = threading.Event(), []

    async def run():
        async with websocket(stay) as port:
            ports.append((port, asyncio.get_running_loop(), asyncio.Event()))
            ready.set()
            await ports[0][2].wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    ready.wait()
    port, loop, stop = ports[0]
    yield port
    loop.call_soon_threadsafe(stop.set)
    thread.join()


def test_command_fine(server):
    result = CliRunner().invoke(doctor, [f"ws://{HOST}:{server}/ws"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("OK  Connected:")
    assert "round trip" in result.output
    assert "What to do" not in result.output


def test_command_not_fine():
    result = CliRunner().invoke(
        doctor, [f"{HOST}:{free_port()}", "--timeout", "2", "--origin", "https://shop.example"]
    )
    assert result.exit_code == 1
    assert result.output.startswith("PROBLEM  Nothing is listening")
    assert "What to do\n  1.  Start" in result.output
    assert "https://shop.example" in result.output


def test_command_offers_subprotocols(server):
    options = ["--subprotocol", "chat", "--subprotocol", "v1", "--insecure"]
    result = CliRunner().invoke(doctor, [f"ws://{HOST}:{server}", *options])
    assert result.exit_code == 1
    assert "chose none of “chat, v1”" in " ".join(result.output.split())


def test_command_sends_headers(server):
    options = ["--header", "Cookie: a=b; c=d:e", "--header", "X-One:1"]
    result = CliRunner().invoke(doctor, [f"ws://{HOST}:{server}", *options])
    assert result.exit_code == 0
    assert re.search(r"headers sent +Cookie, X-One", result.output)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--watch", "soon"], "no number of seconds"),
        (["--watch", "0"], "more than 0"),
        (["--watch", "nan"], "more than 0"),
    ],
)
def test_what_can_not_be_watched_is_explained(options, why):
    result = CliRunner().invoke(doctor, ["ws://localhost", *options])
    assert result.exit_code == 2
    assert why in " ".join(result.output.split())


def test_an_url_behind_the_option_is_explained():
    result = CliRunner().invoke(doctor, ["--watch", "ws://localhost"])
    assert result.exit_code == 2
    assert "the URL comes first" in " ".join(result.output.split())


def test_command_watches(server):
    result = CliRunner().invoke(doctor, [f"ws://{HOST}:{server}/ws", "--watch", "0.2"])
    assert result.exit_code == 0, result.output
    assert "watched for 0.2 s" in result.output
    assert "after 0.2 s still open" in " ".join(result.output.split())


@pytest.mark.parametrize(
    "options",
    [
        ["--timeout", "0"],
        ["--header", "Cookie"],
        ["--header", "Host: x"],
        ["--origin", "shop"],
        ["--subprotocol", "a b"],
        [],
    ],
)
def test_command_used_wrongly(options):
    url = ["ws://localhost"] if options else []
    result = CliRunner().invoke(doctor, [*url, *options])
    assert result.exit_code == 2
    assert "Usage:" in result.output


def test_command_on_a_poor_terminal():
    run = subprocess.run(
        [sys.executable, "-c", "from backchannel.cli.doctor import doctor; doctor()", "ws://é…?"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (1, "")
    assert run.stdout.startswith("PROBLEM")


def test_rendering_keeps_the_nginx_lines():
    diagnosis = Diagnosis(
        False, "[red]t", "why", (findings._PHRASES["nginx"],), (("status", "200"),)
    )
    out = io.StringIO()
    render(diagnosis, Console(file=out, width=80))
    assert "PROBLEM  [red]t" in out.getvalue()
    assert "          proxy_http_version 1.1;\n" in re.sub(r" +\n", "\n", out.getvalue())
