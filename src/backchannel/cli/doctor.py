"""`backchannel doctor URL`: connect as a browser would, and say in plain words what happened.

One visit goes through the steps that a browser takes (`visit.py`) and ends with the name of a row
(`findings.py`). The rows hold what a user gets to read; the visit fills in the facts it has seen.
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, cast
from urllib.parse import quote, unquote

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text
from websockets.exceptions import InvalidURI
from websockets.headers import validate_subprotocols
from websockets.typing import Subprotocol
from websockets.uri import DELIMS, WebSocketURI, parse_uri

from backchannel.cli.findings import Diagnosis, TroubleError, clean, fill
from backchannel.cli.visit import Visit

__all__ = ["Diagnosis", "diagnose", "doctor", "render"]


async def diagnose(
    url: str,
    *,
    origin: str | None = None,
    timeout: float = 5.0,  # noqa: ASYNC109 - it is for each step, and running out is a finding
    subprotocols: Sequence[str] = (),
    headers: Sequence[tuple[str, str]] = (),
    insecure: bool = False,
    watch: float = 0,
) -> Diagnosis:
    """Connect to a WebSocket as a browser would, and tell what came of it.

    Sends the handshake, a ping and a close frame, no message, and no cookie or token but those in
    the URL and the headers. Proxy settings in the environment are not used. Looking a name up takes
    as long as the system's resolver does.

    Args:
        url: the address. ``http://`` is read as ``ws://``, and so is an address without a scheme.
        origin: the Origin header; by default that of a page served from the very same host.
        timeout: seconds for each step: to connect, agree on TLS, answer, answer the ping.
        subprotocols: names to offer, the preferred one first.
        headers: more headers to send, as (name, value); their values are shown nowhere.
        insecure: True goes on when the server's certificate is not valid.
        watch: seconds to stay connected and silent, to see what ends that; 0 leaves at once.

    Returns:
        The diagnosis. What is wrong with the URL or the connection is in it, never raised.

    Raises:
        ValueError: the timeout is not above 0 or above a day, watch below 0 or above a day, or the
            origin, a subprotocol or a
            header can't be sent.
    """
    if not 0 < timeout <= 86_400:
        raise ValueError(f"timeout must be more than 0 seconds and at most a day, not {timeout}")
    if not 0 <= watch <= 86_400:
        raise ValueError(f"watch must be 0 seconds or more and at most a day, not {watch}")
    if origin is not None and not re.fullmatch(r"null|[a-z][a-z0-9+.-]*://[][a-z0-9_.:-]+", origin):
        raise ValueError(f"{origin!r} is no origin: write it like https://example.com, no path")
    validate_subprotocols([Subprotocol(name) for name in subprotocols])
    for name, value in headers:
        _check_header(name, value)
    try:
        uri, note = _read_url(url)
    except TroubleError as trouble:
        return fill(trouble.row, {"url": clean(url), **trouble.values}, {})
    visit = Visit(uri, origin, timeout, subprotocols, headers, insecure=insecure, watch=watch)
    try:
        row = await visit.run()
    except TroubleError as trouble:
        row = trouble.row
        visit.values |= trouble.values
    return fill(row, visit.values, visit.details, note)


_OURS: Final = re.compile(
    "host|origin|upgrade|connection|content-length|transfer-encoding|sec-websocket-.*",
    re.IGNORECASE,
)


def _check_header(name: str, value: str) -> None:
    if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII) or _OURS.fullmatch(name):
        raise ValueError(f"the header {name!r} can't be sent: no name, or the handshake's own")
    if not re.fullmatch(r"[\t -~]*", value):
        raise ValueError(f"the value of header {name!r} can't be sent: it must be printable ASCII")


def _read_url(url: str) -> tuple[WebSocketURI, str]:
    """Return the address, and what to say about how it was read."""
    typed, note = url.strip(), ""
    if match := re.match(r"(ws|http)(s?):/+", typed, re.IGNORECASE):
        address = f"ws{match[2].lower()}://{typed[match.end() :]}"
        if match[1].lower() == "http":
            note = f"{match[0]} is for pages; the doctor used ws{match[2].lower()}:// instead. "
    elif match := re.match(r"[a-z][a-z0-9+.-]*://", typed, re.IGNORECASE):
        raise TroubleError("address", why=f"{match[0]} is neither ws:// nor wss://")
    else:
        address, note = f"ws://{typed}", "The URL has no scheme; the doctor used ws://. "
    try:
        # As browsers do: what follows "#" is not sent, and what can't be in a request is escaped.
        uri = parse_uri(address.partition("#")[0])
        uri.path, uri.query = (quote(part, safe=DELIMS + "%") for part in (uri.path, uri.query))
        if not re.fullmatch(r"[a-z0-9._:%-]+", uri.host):
            raise TroubleError("address", why=f"“{clean(uri.host)}” is no host name")
        uri.host.encode("idna")  # the look-up does it too: no label may be empty or too long
    except InvalidURI as error:
        raise TroubleError("address", why=error.msg) from error
    except ValueError as error:
        raise TroubleError("address", why=clean(str(error))) from error
    if left := re.findall(r"\{[^{}/]+\}", unquote(uri.path)):
        note += f"{clean(', '.join(left))} was sent as it stands. Fill in a value, such as /cars. "
    return uri, note


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


def _read_watch(_context: click.Context, _option: click.Parameter, text: str | None) -> float:
    if text is None:
        return 0
    try:
        seconds = float(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is no number of seconds; the URL comes first, as in: backchannel doctor URL "
            "--watch"
        ) from error
    if not 0 < seconds <= 86_400:
        raise click.BadParameter(f"{text} is not more than 0 seconds and at most a day")
    return seconds


@click.command()
@click.argument("url")
@click.option("--origin", help="The Origin to send; by default that of a page from the same host.")
@click.option("--subprotocol", "subprotocols", multiple=True, help="Offer this; repeat for more.")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'",
              help="Send this header too, such as a cookie; repeat for more.")  # fmt: skip
@click.option("--timeout", default=5.0, show_default=True, help="Seconds for each step.")
@click.option("--watch", is_flag=False, flag_value="300", callback=_read_watch,
              metavar="[SECONDS]", help="Stay connected and silent for so long, 300 unless given, "
              "and say what ends it, such as a proxy's time limit.")  # fmt: skip
@click.option("--insecure", is_flag=True, help="Go on when the certificate is not valid.")
def doctor(
    url: str,
    origin: str | None,
    subprotocols: tuple[str, ...],
    headers: tuple[str, ...],
    timeout: float,
    watch: float,
    insecure: bool,
) -> None:
    """Connect to the WebSocket at URL as a browser would, and explain what happens.

    Exit code: 0 when the connection is fine, 1 when it is not, 2 when an option can't be used.
    """
    visit = diagnose(
        url,
        origin=origin,
        timeout=timeout,
        subprotocols=subprotocols,
        headers=[_read_header(header) for header in headers],
        insecure=insecure,
        watch=watch,
    )
    if watch:
        click.echo(f"Once connected, it is watched for {watch:g} s; Ctrl-C ends that.", err=True)
    try:
        diagnosis = asyncio.run(visit)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with suppress(AttributeError):  # what stands in for stdout need not have an encoding
        # What a server says may not fit the terminal's.
        cast("io.TextIOWrapper", sys.stdout).reconfigure(errors="replace")
    render(diagnosis, Console())
    click.get_current_context().exit(0 if diagnosis.ok else 1)


def _read_header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":")
    if not separator:
        raise click.UsageError(f"--header {text!r}: write it like --header 'Cookie: session=…'")
    return name.strip(), value.strip()
