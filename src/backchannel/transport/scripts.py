"""The browser's client, as every hub serves it: below its mount, at ``/backchannel/client.js``.

The scripts in ``static/`` are the build of ``clients/js``; a test keeps them so.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backchannel.request import path_segments
from backchannel.transport.http import respond

if TYPE_CHECKING:
    from backchannel.transport.asgi import Scope, Send

__all__ = ["FOLDER", "SCRIPTS", "TYPES", "Script", "answer", "asked", "read"]

FOLDER: Final = Path(__file__).parents[1] / "static"
SCRIPTS: Final = ("client.js", "client.global.js", "tabs.js")
"""A module, the same as a classic script, and one socket for all tabs, which imports the first."""
TYPES: Final = ("client.d.ts", "tabs.d.ts")
"""For TypeScript; not served, since browsers have no use for them."""


@dataclass(frozen=True, slots=True)
class Script:
    """One of the files.

    Args:
        content: its bytes.
        compressed: the same with gzip.
        integrity: what a page writes down to get this file and no other: ``sha384-…``.
    """

    content: bytes
    compressed: bytes
    integrity: str

    @property
    def etag(self) -> str:
        """Weak: it is the same compressed or not."""
        return f'W/"{self.integrity}"'


@functools.cache
def read(name: str) -> Script:
    """Return one of ``SCRIPTS``; it is read once, and blocks then."""
    content = (FOLDER / name).read_bytes()
    digest = base64.b64encode(hashlib.sha384(content).digest()).decode()
    return Script(content, gzip.compress(content, 9, mtime=0), f"sha384-{digest}")


def asked(scope: Scope) -> str | None:
    """Return which of ``SCRIPTS`` a request is for; None is none of them."""
    for segments in path_segments(scope):
        if len(segments) == 2 and segments[0] == "backchannel" and segments[1] in SCRIPTS:
            return segments[1]
    return None


async def answer(name: str, scope: Scope, send: Send) -> None:
    """Answer with a script; with 304 where the client has it.

    Args:
        name: what ``asked`` returned.
        scope: the request's.
        send: takes ASGI events.
    """
    method = scope.get("method", "GET")
    if method not in {"GET", "HEAD"}:
        await respond(send, 405, f"{method} is not allowed here.", {"allow": "GET, HEAD"})
        return
    script = await asyncio.to_thread(read, name)
    headers = {
        "content-type": "text/javascript; charset=utf-8",
        # Its address is the same in each version: asked about each time, and seldom sent.
        "cache-control": "no-cache",
        "etag": script.etag,
        "vary": "accept-encoding",
        # It is public, and modules want to hear so where a page of another origin uses it.
        "access-control-allow-origin": "*",
    }
    known, encodings = _header(scope, b"if-none-match"), _header(scope, b"accept-encoding")
    if known == "*" or script.etag.removeprefix("W/") in known:
        await respond(send, 304, b"", headers, head=True)
        return
    content = script.content
    if _takes_gzip(encodings):
        headers["content-encoding"], content = "gzip", script.compressed
    await respond(send, 200, content, headers, head=method == "HEAD")


def _header(scope: Scope, name: bytes) -> str:
    headers: Mapping[bytes, bytes] = dict(scope.get("headers") or ())
    return headers.get(name, b"").decode("latin-1").strip()


def _takes_gzip(encodings: str) -> bool:
    """Return whether an Accept-Encoding has gzip, and not with the quality 0."""
    for each in encodings.lower().split(","):
        name, _, parameters = each.partition(";")
        if name.strip() in {"gzip", "*"}:
            quality = parameters.strip().removeprefix("q=") or "1"
            return quality.strip("0.") != ""
    return False
