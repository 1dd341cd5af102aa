"""One attempt to connect as a browser would, step by step."""

from __future__ import annotations

import asyncio
import http.client
import io
import re
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, cast
from urllib.parse import unquote, urljoin

from websockets.client import ClientProtocol
from websockets.exceptions import NegotiationError
from websockets.extensions.permessage_deflate import enable_client_permessage_deflate
from websockets.headers import build_host
from websockets.protocol import State
from websockets.typing import Origin, Subprotocol
from websockets.uri import WebSocketURI

from backchannel.cli.findings import TroubleError, clean
from backchannel.cli.stay import GOODBYE, Stay

__all__ = ["Visit"]

_PROBE: Final = 2.0
"""Seconds at most to see whether a port would rather have had TLS, or rather not."""
_PORTION: Final = 4096
"""Bytes of a refusal that are read at most, head and body each; an error page may be endless."""

_ANSWERS: Final = (
    # Statuses, what the body must hold, row. The first that fits.
    ({400}, "this server speaks backchannel", "version"),
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


class Visit:
    """One attempt to connect: its steps in order, and what was learnt on the way."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def __init__(
        self,
        uri: WebSocketURI,
        origin: str | None,
        timeout: float,
        subprotocols: Sequence[str],
        headers: Sequence[tuple[str, str]],
        *,
        insecure: bool,
        watch: float = 0,
    ) -> None:
        self.uri, self.timeout, self.offered, self.insecure = uri, timeout, subprotocols, insecure
        self.headers, self.seconds = headers, watch
        host, s = build_host(uri.host, uri.port, uri.secure), "s" if uri.secure else ""
        own = f"http{s}://{host}"
        origin = origin or own
        self.is_own_origin = origin == own
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
            "base": self.base,
            "path": uri.path or "/",
            "origin": origin,
            "timeout": f"{timeout:g}",
            "uncertain": "",
        }
        self.details = {"URL": self.url, "Origin sent": origin}
        if headers:
            self.details["headers sent"] = ", ".join(name for name, _ in headers)

    async def run(self) -> str:
        """Take all steps; return the row of a visit that came to its end."""
        sock = await self.reach()
        self.reader, self.writer = await self.secure(sock)
        try:
            head = await self.ask()
            answer = _parse(head)
            self.details["answer"] = f"HTTP {answer.status} {clean(answer.reason)}".rstrip()
            if server := answer.getheader("Server"):
                self.details["server"] = clean(server)
            if answer.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
                return self.refusal(answer, await self.body(head, answer))
            self.check_switch(head, answer)
            stay = Stay(
                self.reader, self.writer, self.protocol, self.timeout, self.values, self.details
            )
            return await stay.watch(self.seconds)
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
            raise TroubleError("unresolved", why=clean(error.strerror or str(error))) from error
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
                raise TroubleError(row)
        raise TroubleError("unreachable", why=clean(str(errors[-1])))

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
            raise TroubleError(row, why=clean(error.verify_message)) from error
        except OSError as error:
            if await self.answers(tls=False):
                raise TroubleError("tls to plain") from error
            why = clean(str(error)) or f"no answer within {self.timeout:g} s"
            raise TroubleError("tls", why=why) from error

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
        except TroubleError:
            if not self.uri.secure and await self.answers(tls=True):
                raise TroubleError("plain to tls") from None
            raise

    async def shake_hands(self) -> bytes:
        """Do what `ask` does, without asking whether the port would have liked TLS better."""
        request, got = self.protocol.connect(), b""
        request.headers["User-Agent"] = "backchannel-doctor"
        for name, value in self.headers:
            request.headers[name] = value
        self.protocol.send_request(request)
        try:
            async with asyncio.timeout(self.timeout):
                self.writer.write(b"".join(self.protocol.data_to_send()))
                # Stops early on what is not HTTP: such a program may wait for us to go on.
                while b"\r\n\r\n" not in got and b"HTTP/".startswith(got[:5]):
                    data = await self.reader.read(_PORTION)
                    if not data or len(got) > 16 * _PORTION:
                        break
                    got += data
        except TimeoutError as error:
            raise TroubleError("silent") from error
        except OSError as error:
            raise TroubleError("dropped", why=clean(str(error))) from error
        if not got:
            raise TroubleError("dropped", why="it said nothing")
        _parse(got)
        return got

    async def body(self, got: bytes, answer: http.client.HTTPResponse) -> str:
        """Return as much of a refusal's body as comes soon: the server need not end it."""
        head, _, body = got.partition(b"\r\n\r\n")
        wanted = _PORTION if answer.length is None else min(answer.length, _PORTION)
        with suppress(OSError):  # a time-out is one
            async with asyncio.timeout(GOODBYE):
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
        excerpt, wait = clean(body), clean(answer.getheader("Retry-After", ""))
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
        if row == "403" and self.is_own_origin and not excerpt:
            return "403 route"
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
        self.values["near"] = ", ".join(clean(self.base + mount + path) for path in near)
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
        self.values |= {"target": clean(target), "why": why, "what_to_do": clean(what_to_do)}
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
            why = f"the server chose “{clean(chosen)}”, and not all of that was offered"
            raise TroubleError("subprotocol", why=why)
        if error := protocol.handshake_exc:
            raise TroubleError("bad 101", why=clean(str(error.__cause__ or error)))
        if self.offered and not protocol.subprotocol:
            named = [name if len(name) <= 40 else f"{name[:8]}…" for name in self.offered]  # tokens
            why = f"the server chose none of “{', '.join(named)}”"
            raise TroubleError("subprotocol", why=why)
        self.details["subprotocol"] = protocol.subprotocol or "none"
        self.details["compression"] = ", ".join(e.name for e in protocol.extensions) or "none"


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
        raise TroubleError("not http", bytes=clean(data, 80)) from error
    return response
