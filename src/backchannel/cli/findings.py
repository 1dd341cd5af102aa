"""What `backchannel doctor` can find, and what it then says: one row for each case."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["ROWS", "Diagnosis", "TroubleError", "clean", "fill"]

# A row: its name and what happened; "=" why; "-" what to do, in order. Braces hold `Visit.values`.
ROWS: Final = """
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
- If it runs with --reload, see its terminal: while the file has a mistake, nobody answers.
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

version: HTTP 400: the client speaks no version of Backchannel's protocol that this server knows
= It was asked by a subprotocol.{said}
- Offer one that the server names, as newer clients do beside their own; or leave the subprotocol
  out, for a raw WebSocket.

400: HTTP 400: the server could not make sense of the handshake
= The doctor's handshake was complete, so something on the way changed it, or the server does not
  want to be called {host}.{said}
- {nginx}
- {nginx_host}
- If the framework lists the host names it serves (Django: ALLOWED_HOSTS), add {host}.

401: HTTP 401: the server wants to know who connects
= The doctor sends no cookie and no token of its own. If only signed-in users may connect, all is
  well.{said}
- {as_user}
- Sign in with a browser, then try in its console: new WebSocket("{url}")
- If that fails too, see what `authenticate` returns for its cookie or token.
- If anonymous users may connect, take `require_user=True` away.

403: HTTP 403: the server refuses this connection
= It understood the handshake and does not want it. The Origin sent was {origin}.{said}
- See the server's log: it says what refused, and which values it compared.
- If it is the Origin, let it in: Hub(allowed_origins=["{origin}"])
- If it is `on_handshake`, see which condition returned False or Reject.
- Starlette and FastAPI also say 403 where they have no WebSocket route: compare {path}.

403 route: HTTP 403 without a word: probably no WebSocket is served at {path}
= Starlette and FastAPI answer like this where they have no such route. The Origin sent, {origin},
  is the server's own, so it is hardly that.
- Compare {path} with the application's routes: the prefix of a mount, the slash at the end.
- See that the module which registers the endpoint is imported.
- See the server's log: if something refused, such as `on_handshake`, it says so there.
- {nginx_host}

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
- Or raise the limit that the server's log names. A hub's are max_handshakes_per_second,
  max_connections_per_address and max_connections_per_user.

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

closed later: Connected, then closed after {after} with code {code} ({meaning})
= The connection was fine, then the server's side ended it. {why} {come_back} {pings}
- {what_to_do}
- See the server's log for this connection.

cut silent: Connected, then cut off after {after} without a close frame
= For {silence} before that neither side had said anything. {pings} Proxies and load balancers end
  what is silent for too long, nginx (proxy_read_timeout) and Apache (the longer of Timeout and
  ProxyTimeout) after 60 s unless told otherwise. A server that crashes looks the same from here.
- Try again: a time limit ends it after the same time, a crash does not.
- {patience}
- Or ping more often: Hub(ping_interval={less}). Where the server pings and not the hub, tell the
  server, such as uvicorn with --ws-ping-interval.
- See the proxy's and the server's log at this very moment.

cut: Connected, then cut off after {after}, though it was not silent for long
= No close frame came, and {silence} before that something was still heard. {pings} So it is hardly
  a limit for silence.
- See whether the server still runs, and its log at this very moment: it crashed or was restarted.
- Try again: if it ends after the same time, a proxy or load balancer limits how long a connection
  may last. Raise that, and let the page connect again.

dead: Connected, but after {watched} of silence a ping was not answered within {timeout} s
= Nobody ended the connection, and yet nothing comes back: a firewall or a router in between forgot
  it while it was silent, or the server hangs. {pings}
- Ping more often: Hub(ping_interval={less}). Where the server pings and not the hub, tell the
  server, such as uvicorn with --ws-ping-interval.
- {hangs}

bad frames: Connected, but what the server sends is no WebSocket
= After the handshake came bytes that are no valid frames: {why}.
- Connect past the proxy to see whether it changes what passes through.
- If nothing is in between, update the server's WebSocket library.

no pong: Connected, but a ping was not answered within {timeout} s
= The handshake went well, then nothing. The server hangs, or a proxy accepts for it.
- {hangs}
- Connect past the proxy to see which of the two it is.

ok: Connected: {url} is fine, round trip {rtt}
= The handshake succeeded, the connection stayed open, and a ping came back.{uncertain} Whether
  something in between ends it when it is silent for long, as proxies do, --watch finds out.

ok watched: Connected: {url} is fine, and after {watched} still open
= The doctor was silent for so long, then a ping came back. {pings}{uncertain}
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
        '    proxy_set_header Connection "upgrade";\n'
        "For Apache, 2.4.47 or newer:\n"
        "    ProxyPass / http://127.0.0.1:8888/ upgrade=websocket"
    ),
    "nginx_host": (
        "If a proxy is in between, let it pass the Host on. For nginx:\n"
        "    proxy_set_header Host $http_host;\n"
        "For Apache:\n"
        "    ProxyPreserveHost On\n"
        "Caddy does, unless its configuration says otherwise: take out\n"
        "    header_up Host …"
    ),
    "patience": (
        "If a proxy is in between, let it wait for longer than pings are apart (ping_interval, 25 "
        "s unless set otherwise):\n"
        "    proxy_read_timeout {more}s;  # nginx\n"
        "    ProxyTimeout {more}          # Apache\n"
        "    timeout tunnel {more}s       # HAProxy"
    ),
    "as_user": (
        "To try as a user, send what your page would, one of:\n"
        '    --header "Cookie: session=…"\n'
        '    --header "Authorization: Bearer TOKEN"\n'
        "    --subprotocol backchannel.jwt --subprotocol TOKEN\n"
        '    "{base}{path}?ticket=bct_…"\n'
        "The first is a session's cookie, the next two a JWT, the last a one-time ticket, made by "
        "`await hub.ticket(user)`."
    ),
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


class TroubleError(Exception):
    """Ends a visit: the row that fits, and what to fill in."""

    def __init__(self, row: str, **values: object) -> None:
        super().__init__(row)
        self.row = row
        self.values = values


def fill(
    name: str, values: Mapping[str, object], details: Mapping[str, str], note: str = ""
) -> Diagnosis:
    """Return the diagnosis that a row makes of what was seen."""
    row = re.search(rf"^{name}: (.+?)\n\n", f"{ROWS}\n", re.DOTALL | re.MULTILINE)
    assert row, name  # noqa: S101 - the tests go through all rows
    lines = [" ".join(line.split()) for line in re.split(r"\n[=-] ", row[1])]
    phrases = {key: text.format_map(_Left(values)) for key, text in _PHRASES.items()}
    title, why, *advice = (line.format_map({**phrases, **values}) for line in lines)
    return Diagnosis(
        name in {"ok", "ok watched"}, title, note + why, tuple(advice), tuple(details.items())
    )


class _Left(dict[str, object]):
    """What phrases are filled in with; those that a row does not use may lack something."""

    def __missing__(self, key: str) -> str:
        return ""


def clean(text: str | bytes, limit: int = 300) -> str:
    """Return foreign text as one short line, without what could steer a terminal."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= limit else f"{line[:limit]}…"
