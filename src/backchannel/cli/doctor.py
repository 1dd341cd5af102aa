"""`backchannel doctor URL`: connect as a browser would, and say in plain words what happened.

One visit goes through the steps that a browser takes (`_Visit`) and ends with the name of a row of
`_ROWS`. That table holds what a user gets to read; the visit fills in the facts it has seen.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import re
import socket
import ssl
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import quote, unquote, urljoin

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidURI, NegotiationError
from websockets.extensions.permessage_deflate import enable_client_permessage_deflate
from websockets.frames import Frame, Opcode
from websockets.headers import build_host, validate_subprotocols
from websockets.protocol import State
from websockets.typing import Origin, Subprotocol
from websockets.uri import DELIMS, WebSocketURI, parse_uri

from backchannel.codes import ENDINGS, meaning_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Diagnosis", "diagnose", "doctor", "render"]

_SETTLE: Final = 0.5
"""Seconds a fresh connection is watched: one that ends within them was "closed at once"."""
_GOODBYE: Final = 1.0
"""Seconds at most for what is only nice to have: the rest of a body, the answer to our close."""
_PROBE: Final = 2.0
"""Seconds at most to see whether a port would rather have had TLS, or rather not."""
_PORTION: Final = 4096
"""Bytes of a refusal that are read at most, head and body each; an error page may be endless."""

# A row: its name and what happened; "=" why; "-" what to do, in order. Braces hold `_Visit.values`.
_ROWS: Final = """
address: This is no WebSocket address: {url}
= It can't be contacted as it is written: {why}.
- Write it like ws://localhost:8888/ws/echo, or with wss:// where the site has https://.

unresolved: The host name {host} is not known
= No address was found for it ({why}), so there was nothing to connect to.
- Check how {host} is spelled.
- If it is right, check this machine's DNS, VPN and hosts file. Names of containers are only known
  inside their own network.

refused: Nothing is listening on {where}
= The machine is there and refused the connection: no program has port {port} open.
- {start}
- Compare its port with the URL's, {port}. `backchannel run` takes 8888 unless told otherwise.
- If it runs in a container or on another machine, let it listen on 0.0.0.0 and publish the port.

connect timeout: {where} did not answer within {timeout} s
= Not even a refusal came back. Usually a firewall drops the packets, or no machine is there.
- Check the address, and that firewalls and security groups let port {port} through.
- If the way is only slow, give it longer: --timeout 30.

unreachable: {where} can't be reached
= This machine's network says: {why}.
- Check the network, VPN and routes of this machine.
- Check the address in the URL.

silent: {where} took the connection but did not answer within {timeout} s
= A program is listening, but nothing came back to the handshake: it hangs, or is no web server.
- {hangs}
- Check that port {port} is the application's.
- If it is only slow, give it longer: --timeout 30.

dropped: {where} closed the connection without an answer
= It took the connection, then hung up on the handshake ({why}). That is a program that crashed or
  does not speak HTTP, or a proxy that lost its server.
- See the server's log at this very moment.
- Check that port {port} is the application's.

not http: {where} does not speak HTTP
= A WebSocket begins with an HTTP request, and this program answered “{bytes}”.
- Check the port: {port} belongs to another program, such as a database or a mail server.
- {start}

plain to tls: {where} expects TLS, but the URL says ws://
= ws:// is not encrypted, and this port only takes encrypted connections.
- Use {other} instead, in the page too.

tls to plain: The URL says wss://, but {where} does not speak TLS
= The port answers plain HTTP, so the encrypted connection could not even begin.
- On a development machine use {other} instead.
- In production use the address of the proxy that has the certificate: a page on https:// may only
  open wss://.

tls: No TLS connection to {where}
= The two sides could not agree on an encrypted connection: {why}.
- Check that port {port} is the one with TLS, and that its certificate and key are in place.
- See the server's or proxy's log: it has the other half of this error.

expired: The certificate of {host} has expired
= Browsers refuse an expired certificate ({why}).
- Renew the certificate.
- If it was just renewed, reload the server or proxy: it still uses the old one.
- Check the clock of this machine.

self-signed: The certificate of {host} is self-signed
= Nobody whom this machine trusts has signed it, so browsers refuse it ({why}).
- On a public site install a certificate from an authority, such as Let's Encrypt.
- {insecure}

issuer: The certificate of {host} comes from an issuer that is not trusted here
= No chain leads from it to an authority that this machine knows ({why}).
- Install the full chain on the server, with the intermediate certificates.
- If the authority is your own, make it known: to the browser, and to the doctor with SSL_CERT_FILE.
- {insecure}

name: The certificate belongs to another name than {host}
= It may be valid, but not for this host, so browsers refuse it ({why}).
- Use the host name that the certificate was made for.
- Or get a certificate that names {host} too.

certificate: The certificate of {host} was refused
= Its check says: {why}.
- Replace the certificate on the server or proxy.
- {insecure}

200: HTTP {status}: a web page, not a WebSocket
= It was answered like a plain HTTP request. Either a proxy in between took the Upgrade headers out,
  or {path} is a page and no endpoint.{said}
- {nginx}
- Compare {path} with the endpoint's template.

redirect: HTTP {status}: the server redirects to {target}
= Browsers do not follow redirects for WebSockets, so this fails in every page. {why}
- {what_to_do}
- Try it: backchannel doctor {target}

redirect nowhere: HTTP {status}: the server redirects, but not to any address
= Browsers do not follow redirects for WebSockets, and this one's Location header says nothing.
- Find the rule that redirects {path}, in the application or in its proxy.

400: HTTP 400: the server could not make sense of the handshake
= The doctor's handshake was complete, so something on the way changed it, or the server does not
  want to be called {host}.{said}
- {nginx}
- {nginx_host}
- If the framework lists the host names it serves (Django: ALLOWED_HOSTS), add {host}.

401: HTTP 401: the server wants to know who connects
= The doctor sends neither cookie nor token. If only signed-in users may connect, all is well.{said}
- Sign in with a browser, then try in its console: new WebSocket("{url}")
- If that fails too, see what `authenticate` returns for its cookie or token.
- If anonymous users may connect, take `require_user=True` away.

403: HTTP 403: the server refuses this connection
= It understood the handshake and does not want it. The Origin sent was {origin}.{said}
- See the server's log: it says what refused, and which values it compared.
- If it is the Origin, let it in: Hub(allowed_origins=["{origin}"])
- If it is `on_handshake`, see which condition returned False or Reject.
- Starlette and FastAPI also say 403 where they have no WebSocket route: compare {path}.

403 origin: HTTP 403: pages from {origin} may not connect
= The server compares the Origin, which says where a page comes from, with its own Host. The Origin
  sent was {origin}, the Host {where}.{said}
- If such pages shall connect, let them in: Hub(allowed_origins=["{origin}"])
- {nginx_host}
- If your page is from elsewhere, try as that one: backchannel doctor --origin https://it.is {url}

404: HTTP 404: there is no endpoint at {path}
= The server is there, but has nothing under this path.{said}
- Compare {path} with the endpoint's template.
- If the hub is mounted, put the prefix in front: app.mount("/live", hub) has /live/ws/echo.
- See that the module which registers the endpoint is imported.
- Ask from the server's own machine, or run it with --debug: then it names the nearest endpoints.

404 near: HTTP 404: there is no endpoint at {path}
= The server is there and names what comes nearest.{said}
- Use what was meant, with what stands in braces filled in: {near}
- If {path} should exist, see that the module which registers it is imported.

426: HTTP 426: the endpoint speaks WebSocket, but the upgrade got lost
= The doctor asked for it, in version 13. The server saw a plain HTTP request or another version, so
  a proxy in between changed the headers.{said}
- {nginx}
- If nothing is in between, update the server: it must speak version 13.

429: HTTP 429: too many connections or attempts
= The server is well and turned this one away because of a limit.{said}
- Wait and try again{retry}.
- If it happens in normal use, see who connects so often: a page that reconnects without a pause?
- Or raise the server's limit on handshakes or connections.

500: HTTP 500: the server failed on the handshake
= It raised an exception before it accepted the connection.{said}
- See the traceback in the server's log at this very moment.

500 id: HTTP 500: the server failed on the handshake, error id {error_id}
= `authenticate` or `on_handshake` raised an exception. Without --debug only the log says which.
- Look for {error_id} in the server's log: the traceback is there.
- On a development machine `backchannel run --debug` shows it.

502: HTTP 502: the proxy is up, the application behind it is down
= A proxy took the request and got no valid answer from the application.{said}
- {start}
- Compare its address with the one in the proxy's settings.
- {proxy_log}

503: HTTP 503: the application is not available now
= A proxy has no application to pass this on to, or the application starts, stops or is full.{said}
- Wait and try again{retry}.
- {start}
- {proxy_log}

503 id: HTTP 503: the handshake took the server too long, error id {error_id}
= `authenticate` or `on_handshake` did not end within the hub's `handshake_timeout`.
- Look for {error_id} in the server's log: the traceback shows what it waited for.
- Make that faster, give it a time limit of its own, or raise Hub(handshake_timeout=...).

504: HTTP 504: the proxy is up, the application behind it did not answer in time
= The application hangs, or the proxy's way to it is blocked.{said}
- {hangs}
- Connect from the proxy's machine, past the proxy, to see which of the two it is.
- {proxy_log}

status: HTTP {status}: an answer, but not a WebSocket
= A WebSocket begins with the answer 101, and this server gave another.{said}
- Check that {path} is an endpoint.
- See the server's log for this request.
- {nginx}

bad 101: The server said yes (101), but in a way that browsers refuse
= Its answer breaks the rules of the WebSocket handshake: {why}.
- Connect past the proxy to compare: proxies and caches that answer by themselves do this.
- If nothing is in between, update the server's WebSocket library.

subprotocol: The server and the client do not agree on a subprotocol or extension
= Browsers end the connection when the answer does not fit what was offered: {why}.
- Offer what the server speaks: new WebSocket(url, ["name"]) in the page, --subprotocol NAME here.
- Or let the server choose from what is offered, and nothing where nothing is.

closed: Connected, then closed at once with code {code} ({meaning})
= The handshake went well, then the server's side ended the connection. {why} {come_back}
- {what_to_do}
- See the server's log for this connection.

bad frames: Connected, but what the server sends is no WebSocket
= After the handshake came bytes that are no valid frames: {why}.
- Connect past the proxy to see whether it changes what passes through.
- If nothing is in between, update the server's WebSocket library.

no pong: Connected, but a ping was not answered within {timeout} s
= The handshake went well, then nothing. The server hangs, or a proxy accepts for it.
- {hangs}
- Connect past the proxy to see which of the two it is.

ok: Connected: {url} is fine, round trip {rtt}
= The handshake succeeded, the connection stayed open, and a ping came back.{uncertain}
"""

_PHRASES: Final = {
    "start": "Start the application, and see that it stays up and which port it prints.",
    "hangs": (
        "See whether the application hangs: a callback that blocks holds all connections up. "
        "`backchannel run --debug` names it."
    ),
    "proxy_log": "See the proxy's error log: it names the address that it could not use.",
    "insecure": (
        "On a development machine --insecure goes on without the check. Browsers have no such "
        "switch for WebSockets: open the https:// address once and accept the certificate there."
    ),
    "nginx": (
        "If nginx is in between, add to its location:\n"
        "    proxy_http_version 1.1;\n"
        "    proxy_set_header Upgrade $http_upgrade;\n"
        '    proxy_set_header Connection "upgrade";'
    ),
    "nginx_host": (
        "If a proxy is in between, let it pass the Host on. For nginx:\n"
        "    proxy_set_header Host $http_host;"
    ),
}

_ANSWERS: Final = (
    # Statuses, what the body must hold, row. The first that fits.
    ({400}, "https (port|server)|ssl-enabled", "plain to tls"),
    ({403}, "origin", "403 origin"),
    ({500}, r"error id \w", "500 id"),
    ({503}, r"error id \w", "503 id"),
    ({301, 302, 303, 307, 308}, "", "redirect"),
    (range(200, 300), "", "200"),
    *(({code}, "", str(code)) for code in (400, 401, 403, 404, 426, 429, 500, 502, 503, 504)),
    (range(1000), "", "status"),
)

_CERTIFICATES: Final = {
    # OpenSSL's X509_V_ERR_… numbers; what is not here is the row "certificate".
    10: "expired",
    18: "self-signed",
    **dict.fromkeys((2, 19, 20, 21), "issuer"),
    **dict.fromkeys((62, 64), "name"),
}

_AFTER_CLOSE: Final = {
    1000: "See where the listener calls ws.close().",
    1001: "Connect again in a moment: the server was shutting down.",
    1006: "See whether the server still runs: it raised, crashed, or a proxy cut the connection.",
    1008: "See what `on_open` and `on_subscribe` return: False and Reject refuse.",
    1011: "See the server's log for the traceback: `on_open` or `on_first_open` raised.",
    1012: "Connect again in a moment.",
    1013: "Connect again later, and see which limit was reached.",
    4004: "Sign in again, then connect.",
    4005: "See which other connection of the same user took its place.",
    4007: "Get a new token, then connect.",
}

_COME_BACK: Final = {
    True: "A client should come back: connecting again can work.",
    False: "A client should not come back: it would only happen again.",
    None: "Whether to come back, the code does not say.",
}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What came of one attempt to connect.

    Args:
        ok: True when a browser could use this connection.
        title: what happened, in one line.
        explanation: why, in plain words.
        advice: what to do, in the order to try it; empty when there is nothing to do.
        details: the facts as (name, value), in the order they were seen.
    """

    ok: bool
    title: str
    explanation: str
    advice: tuple[str, ...]
    details: tuple[tuple[str, str], ...]


class _TroubleError(Exception):
    """Ends a visit: the row that fits, and what to fill in."""

    def __init__(self, row: str, **values: object) -> None:
        super().__init__(row)
        self.row = row
        self.values = values


async def diagnose(
    url: str,
    *,
    origin: str | None = None,
    timeout: float = 5.0,  # noqa: ASYNC109 - it is for each step, and running out is a finding
    subprotocols: Sequence[str] = (),
    insecure: bool = False,
) -> Diagnosis:
    """Connect to a WebSocket as a browser would, and tell what came of it.

    Sends the handshake, a ping and a close frame, no message, cookie or token. Proxy settings in
    the environment are not used. Looking a name up takes as long as the system's resolver does.

    Args:
        url: the address. ``http://`` is read as ``ws://``, and so is an address without a scheme.
        origin: the Origin header; by default that of a page served from the very same host.
        timeout: seconds for each step: to connect, agree on TLS, answer, answer the ping.
        subprotocols: names to offer, the preferred one first.
        insecure: True goes on when the server's certificate is not valid.

    Returns:
        The diagnosis. What is wrong with the URL or the connection is in it, never raised.

    Raises:
        ValueError: the timeout is not above 0 or above a day, or the origin or a subprotocol
            can't be sent.
    """
    if not 0 < timeout <= 86_400:
        raise ValueError(f"timeout must be more than 0 seconds and at most a day, not {timeout}")
    if origin is not None and not re.fullmatch(r"null|[a-z][a-z0-9+.-]*://[][a-z0-9_.:-]+", origin):
        raise ValueError(f"{origin!r} is no origin: write it like https://example.com, no path")
    validate_subprotocols([Subprotocol(name) for name in subprotocols])
    try:
        uri, note = _read_url(url)
    except _TroubleError as trouble:
        return _fill(trouble.row, {"url": _clean(url), **trouble.values}, {})
    visit = _Visit(uri, origin, timeout, subprotocols, insecure=insecure)
    try:
        row = await visit.run()
    except _TroubleError as trouble:
        row = trouble.row
        visit.values |= trouble.values
    return _fill(row, visit.values, visit.details, note)


def _fill(
    name: str, values: Mapping[str, object], details: Mapping[str, str], note: str = ""
) -> Diagnosis:
    row = re.search(rf"^{name}: (.+?)\n\n", f"{_ROWS}\n", re.DOTALL | re.MULTILINE)
    assert row, name  # noqa: S101 - the tests go through all rows
    lines = [" ".join(line.split()) for line in re.split(r"\n[=-] ", row[1])]
    title, why, *advice = (line.format_map({**_PHRASES, **values}) for line in lines)
    return Diagnosis(name == "ok", title, note + why, tuple(advice), tuple(details.items()))


def _read_url(url: str) -> tuple[WebSocketURI, str]:
    """Return the address, and what to say about how it was read."""
    typed, note = url.strip(), ""
    if match := re.match(r"(ws|http)(s?):/+", typed, re.IGNORECASE):
        address = f"ws{match[2].lower()}://{typed[match.end() :]}"
        if match[1].lower() == "http":
            note = f"{match[0]} is for pages; the doctor used ws{match[2].lower()}:// instead. "
    elif match := re.match(r"[a-z][a-z0-9+.-]*://", typed, re.IGNORECASE):
        raise _TroubleError("address", why=f"{match[0]} is neither ws:// nor wss://")
    else:
        address, note = f"ws://{typed}", "The URL has no scheme; the doctor used ws://. "
    try:
        # As browsers do: what follows "#" is not sent, and what can't be in a request is escaped.
        uri = parse_uri(address.partition("#")[0])
        uri.path, uri.query = (quote(part, safe=DELIMS + "%") for part in (uri.path, uri.query))
        if not re.fullmatch(r"[a-z0-9._:%-]+", uri.host):
            raise _TroubleError("address", why=f"“{_clean(uri.host)}” is no host name")
        uri.host.encode("idna")  # the look-up does it too: no label may be empty or too long
    except InvalidURI as error:
        raise _TroubleError("address", why=error.msg) from error
    except ValueError as error:
        raise _TroubleError("address", why=_clean(str(error))) from error
    return uri, note


def _clean(text: str | bytes, limit: int = 300) -> str:
    """Return foreign text as one short line, without what could steer a terminal."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= limit else f"{line[:limit]}…"


class _Visit:
    """One attempt to connect: its steps in order, and what was learnt on the way."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def __init__(
        self,
        uri: WebSocketURI,
        origin: str | None,
        timeout: float,
        subprotocols: Sequence[str],
        *,
        insecure: bool,
    ) -> None:
        self.uri, self.timeout, self.offered, self.insecure = uri, timeout, subprotocols, insecure
        host, s = build_host(uri.host, uri.port, uri.secure), "s" if uri.secure else ""
        origin = origin or f"http{s}://{host}"
        self.base = f"ws{s}://{host}"  # without the password that may have been in the URL
        self.url = self.base + uri.resource_name
        self.protocol = ClientProtocol(
            uri,
            origin=Origin(origin),
            extensions=enable_client_permessage_deflate(None),
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            max_size=None,  # a big first message is no fault of the connection
        )
        self.values: dict[str, object] = {
            "url": self.url,
            "other": self.url.replace("wss:", "ws:") if s else self.url.replace("ws:", "wss:", 1),
            "host": uri.host,
            "port": uri.port,
            "where": build_host(uri.host, uri.port, uri.secure, always_include_port=True),
            "path": uri.path or "/",
            "origin": origin,
            "timeout": f"{timeout:g}",
            "uncertain": "",
        }
        self.details = {"URL": self.url, "Origin sent": origin}

    async def run(self) -> str:
        """Take all steps; return the row of a visit that came to its end."""
        sock = await self.reach()
        self.reader, self.writer = await self.secure(sock)
        try:
            head = await self.ask()
            answer = _parse(head)
            self.details["answer"] = f"HTTP {answer.status} {_clean(answer.reason)}".rstrip()
            if server := answer.getheader("Server"):
                self.details["server"] = _clean(server)
            if answer.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
                return self.refusal(answer, await self.body(head, answer))
            self.check_switch(head, answer)
            return await self.watch()
        finally:
            await _hang_up(self.writer)

    async def reach(self) -> socket.socket:
        """Return a socket connected to the first of the host's addresses that takes it."""
        errors: Sequence[Exception] = ()
        try:
            # asyncio's own way would tell only in words why several addresses failed.
            sock = await asyncio.to_thread(
                socket.create_connection,
                (self.uri.host, self.uri.port),
                self.timeout,
                all_errors=True,
            )
        except OSError as error:
            raise _TroubleError("unresolved", why=_clean(error.strerror or str(error))) from error
        except ExceptionGroup as group:
            errors = group.exceptions
        else:
            sock.setblocking(False)
            with suppress(OSError):  # it may be reset already
                address, port = sock.getpeername()[:2]
                self.details["address"] = build_host(address, port, False, always_include_port=True)
            return sock
        for kind, row in ((ConnectionRefusedError, "refused"), (TimeoutError, "connect timeout")):
            if any(isinstance(error, kind) for error in errors):
                raise _TroubleError(row)
        raise _TroubleError("unreachable", why=_clean(str(errors[-1])))

    async def secure(
        self, sock: socket.socket
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the streams of a connected socket, through TLS if the URL says so."""
        if not self.uri.secure:
            return await asyncio.open_connection(sock=sock)
        if self.insecure:
            self.details["certificate"] = "not checked"
            self.values["uncertain"] = " The certificate was not checked: browsers do check it."
        try:
            async with asyncio.timeout(self.timeout):
                return await asyncio.open_connection(
                    sock=sock, ssl=_context(self.insecure), server_hostname=self.uri.host
                )
        except ssl.SSLCertVerificationError as error:
            row = _CERTIFICATES.get(error.verify_code, "certificate")
            raise _TroubleError(row, why=_clean(error.verify_message)) from error
        except OSError as error:
            if await self.answers(tls=False):
                raise _TroubleError("tls to plain") from error
            why = _clean(str(error)) or f"no answer within {self.timeout:g} s"
            raise _TroubleError("tls", why=why) from error

    async def answers(self, *, tls: bool) -> bool:
        """Return whether the port, asked once more, speaks TLS (or else plain HTTP)."""
        try:
            async with asyncio.timeout(min(self.timeout, _PROBE)):
                reader, writer = await asyncio.open_connection(
                    self.uri.host, self.uri.port, ssl=_context(insecure=True) if tls else None
                )
                try:
                    writer.write(b"GET / HTTP/1.1\r\nHost: doctor\r\nConnection: close\r\n\r\n")
                    return tls or await reader.readexactly(5) == b"HTTP/"
                finally:
                    await _hang_up(writer)
        except (OSError, EOFError):
            return False

    async def ask(self) -> bytes:
        """Send the handshake; return what came back, at least the head of an HTTP response."""
        try:
            return await self.shake_hands()
        except _TroubleError:
            if not self.uri.secure and await self.answers(tls=True):
                raise _TroubleError("plain to tls") from None
            raise

    async def shake_hands(self) -> bytes:
        """Do what `ask` does, without asking whether the port would have liked TLS better."""
        request, got = self.protocol.connect(), b""
        request.headers["User-Agent"] = "backchannel-doctor"
        self.protocol.send_request(request)
        try:
            async with asyncio.timeout(self.timeout):
                self.flush()
                # Stops early on what is not HTTP: such a program may wait for us to go on.
                while b"\r\n\r\n" not in got and b"HTTP/".startswith(got[:5]):
                    data = await self.reader.read(_PORTION)
                    if not data or len(got) > 16 * _PORTION:
                        break
                    got += data
        except TimeoutError as error:
            raise _TroubleError("silent") from error
        except OSError as error:
            raise _TroubleError("dropped", why=_clean(str(error))) from error
        if not got:
            raise _TroubleError("dropped", why="it said nothing")
        _parse(got)
        return got

    async def body(self, got: bytes, answer: http.client.HTTPResponse) -> str:
        """Return as much of a refusal's body as comes soon: the server need not end it."""
        head, _, body = got.partition(b"\r\n\r\n")
        wanted = _PORTION if answer.length is None else min(answer.length, _PORTION)
        with suppress(OSError):  # a time-out is one
            async with asyncio.timeout(_GOODBYE):
                while len(body) < wanted and not (answer.chunked and body.endswith(b"0\r\n\r\n")):
                    data = await self.reader.read(_PORTION)
                    if not data:
                        break
                    body += data
        try:
            text = _parse(head + b"\r\n\r\n" + body).read(_PORTION).decode(errors="replace")
        except http.client.IncompleteRead as error:
            text = error.partial.decode(errors="replace")
        if "html" in answer.getheader("Content-Type", ""):
            text = re.sub(r"(?is)<(style|script)\b.*?</\1>|<[^>]*>", " ", text)
        return text

    def refusal(self, answer: http.client.HTTPResponse, body: str) -> str:
        """Return the row for an answer other than 101."""
        excerpt, wait = _clean(body), _clean(answer.getheader("Retry-After", ""))
        self.details["body"] = excerpt or "(empty)"
        error_id = re.search(r"error id ([\w-]+)", body, re.IGNORECASE)
        self.values |= {
            "status": answer.status,
            "said": f" It says: “{excerpt}”" if excerpt else "",
            "retry": f" in {wait} s" if wait.isdigit() else wait and f" after {wait}",
            "error_id": error_id and error_id[1],
        }
        row = next(
            row
            for statuses, pattern, row in _ANSWERS
            if answer.status in statuses and re.search(pattern, body, re.IGNORECASE)
        )
        if row == "plain to tls" and self.uri.secure:
            return "400"  # TLS was spoken; it is lost further on, between proxy and application
        if row == "redirect":
            return self.redirect(answer.getheader("Location", ""))
        if row == "404" and answer.getheader("Content-Type", "").startswith("text/plain"):
            return self.near_misses(body)
        return row

    def near_misses(self, body: str) -> str:
        """Return the row for a 404 whose body may name the nearest endpoints."""
        asked, path = re.search(r" at (/\S*?)[.:;,]?\s", body), unquote(self.uri.path)
        # The server knows paths below where its hub is mounted; what the two have not in common
        # is the mount.
        mount = path.removesuffix(asked[1]) if asked and path.endswith(asked[1]) else ""
        near = re.findall(r"(?<=\s)/[^\s,;]+", re.sub(r"(?is)^.*?(nearest|\Z)", "", body))
        self.values["near"] = ", ".join(_clean(self.base + mount + path) for path in near)
        return "404 near" if near else "404"

    def redirect(self, location: str) -> str:
        """Return the row for a redirect, with what its target tells."""
        try:
            target = urljoin(f"http{self.url[2:]}", location).replace("http", "ws", 1)
        except ValueError:  # such as a broken IPv6 address
            location = target = ""
        why = "The endpoint moved there, or it is a page to sign in."
        what_to_do = "Sign in with a browser and try there, or use that address in your page."
        if target.rstrip("/") == self.url.rstrip("/"):
            why, what_to_do = "Only the slash at the end differs.", f"Use {target} in your page."
        elif target == self.values["other"] and not self.uri.secure:
            why, what_to_do = "It wants TLS: wss:// for ws://.", f"Use {target} in your page."
        self.values |= {"target": _clean(target), "why": why, "what_to_do": _clean(what_to_do)}
        return "redirect" if location else "redirect nowhere"

    def check_switch(self, head: bytes, answer: http.client.HTTPResponse) -> None:
        """Check a 101 by the rules that browsers have; note what was agreed on."""
        protocol = self.protocol
        protocol.receive_data(head)
        if protocol.state is State.CONNECTING and not protocol.handshake_exc:
            protocol.receive_eof()  # the head was cut off
        if isinstance(protocol.handshake_exc, NegotiationError):
            headers = ("Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions")
            chosen = ", ".join(filter(None, map(answer.getheader, headers)))
            why = f"the server chose “{_clean(chosen)}”, and not all of that was offered"
            raise _TroubleError("subprotocol", why=why)
        if error := protocol.handshake_exc:
            raise _TroubleError("bad 101", why=_clean(str(error.__cause__ or error)))
        if self.offered and not protocol.subprotocol:
            why = f"the server chose none of “{', '.join(self.offered)}”"
            raise _TroubleError("subprotocol", why=why)
        self.details["subprotocol"] = protocol.subprotocol or "none"
        self.details["compression"] = ", ".join(e.name for e in protocol.extensions) or "none"

    async def watch(self) -> str:
        """See whether the open connection stays; measure it, and leave politely."""
        # Only listens at first: writing to a socket that is being closed can lose its last words.
        await self.listen(_SETTLE)
        began = asyncio.get_running_loop().time()
        if self.protocol.state is State.OPEN:
            self.protocol.send_ping(b"doctor")
            if await self.listen(self.timeout):
                taken = asyncio.get_running_loop().time() - began
                self.values["rtt"] = self.details["round trip"] = f"{taken * 1000:.1f} ms"
                self.protocol.send_close(1000)
                await self.listen(_GOODBYE)
                return "ok"
        return "no pong" if self.protocol.state is State.OPEN else self.ending()

    async def listen(self, seconds: float) -> bool:
        """Exchange frames until a pong, the end or the time is up; return whether a pong came."""
        protocol = self.protocol
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    self.flush()
                    for event in protocol.events_received():
                        if isinstance(event, Frame) and event.opcode is Opcode.PONG:
                            return True
                    if protocol.close_rcvd or protocol.parser_exc:
                        return False
                    try:
                        data = await self.reader.read(65536)
                    except OSError:  # a reset is an end like any other
                        data = b""
                    if data:
                        protocol.receive_data(data)
                    else:
                        protocol.receive_eof()
        return False

    def flush(self) -> None:
        self.writer.write(b"".join(self.protocol.data_to_send()))

    def ending(self) -> str:
        """Return the row for a connection that the other side ended."""
        close, error = self.protocol.close_rcvd, self.protocol.parser_exc
        if not close and not isinstance(error, EOFError):
            self.values["why"] = _clean(str(error))
            return "bad frames"
        code, reason = (close.code, _clean(close.reason)) if close else (1006, "")
        self.details["close code"] = f"{code} {reason}".rstrip()
        otherwise = "See where the server, or a library of it, closes with this code."
        self.values |= {
            "code": code,
            "meaning": meaning_of(code),
            "why": f"Its reason: “{reason}”." if reason else "It gave no reason.",
            "come_back": _COME_BACK[ENDINGS[code].come_back if code in ENDINGS else None],
            "what_to_do": _AFTER_CLOSE.get(code, otherwise),
        }
        return "closed"


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    # Not close(): over TLS that waits for the other side, which may be just what hangs.
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


def _context(insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _Received:
    """What `HTTPResponse` wants of a socket, for bytes that were received already."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self.data)


def _parse(data: bytes) -> http.client.HTTPResponse:
    """Return an HTTP response of which at least the head is there, or say that it is none."""
    response = http.client.HTTPResponse(cast("socket.socket", _Received(data)))
    try:
        response.begin()
    except (http.client.HTTPException, ValueError) as error:
        raise _TroubleError("not http", bytes=_clean(data, 80)) from error
    return response


def render(diagnosis: Diagnosis, console: Console) -> None:
    """Print a diagnosis.

    Args:
        diagnosis: what to print. Its texts are printed as they are, never read as markup.
        console: where to print it.
    """
    mark = Text("OK  ", "bold green") if diagnosis.ok else Text("PROBLEM  ", "bold red")
    console.print(mark + Text(diagnosis.title, "bold"))
    console.print(Text(f"\n{diagnosis.explanation}"))
    steps = [(f"{number}.", line) for number, line in enumerate(diagnosis.advice, 1)]
    for heading, rows in (("What to do", steps), ("What was seen", diagnosis.details)):
        if rows:
            grid = Table.grid(padding=(0, 2))
            for name, value in rows:
                grid.add_row(Text(f"  {name}"), Text(value, overflow="fold"))
            console.print(Text(f"\n{heading}", "bold"))
            console.print(grid)


@click.command()
@click.argument("url")
@click.option("--origin", help="The Origin to send; by default that of a page from the same host.")
@click.option("--subprotocol", "subprotocols", multiple=True, help="Offer this; repeat for more.")
@click.option("--timeout", default=5.0, show_default=True, help="Seconds for each step.")
@click.option("--insecure", is_flag=True, help="Go on when the certificate is not valid.")
def doctor(
    url: str, origin: str | None, subprotocols: tuple[str, ...], timeout: float, insecure: bool
) -> None:
    """Connect to the WebSocket at URL as a browser would, and explain what happens.

    Exit code: 0 when the connection is fine, 1 when it is not, 2 when an option can't be used.
    """
    visit = diagnose(
        url, origin=origin, timeout=timeout, subprotocols=subprotocols, insecure=insecure
    )
    try:
        diagnosis = asyncio.run(visit)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with suppress(AttributeError):  # what stands in for stdout need not have an encoding
        # What a server says may not fit the terminal's.
        cast("io.TextIOWrapper", sys.stdout).reconfigure(errors="replace")
    render(diagnosis, Console())
    click.get_current_context().exit(0 if diagnosis.ok else 1)
