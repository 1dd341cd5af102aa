"""What a hub answers to plain HTTP: its pages, and words that help to find a mistake."""

from __future__ import annotations

import asyncio
import mimetypes
from logging import INFO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from backchannel.errors import Reject
from backchannel.observe import HANDSHAKE, address, excerpt
from backchannel.request import Request, path_segments

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backchannel.hub import HubCore
    from backchannel.transport.asgi import Scope, Send

__all__ = ["Page", "Pages", "answer", "refuse_unknown", "respond", "shown_path"]


class Page:
    """A file that is served at a path, read anew for each request.

    Args:
        path: where it is served, such as ``"/"``.
        file: the file.

    Raises:
        ValueError: the path does not start with a slash.
        FileNotFoundError: there is no such file.
    """

    __slots__ = ("file", "path", "type")

    def __init__(self, path: str, file: Path):
        if not path.startswith("/"):
            raise ValueError(f'page path {path!r} must start with "/"')
        if not file.is_file():
            raise FileNotFoundError(f"hub.page({path!r}, …): there is no file {file}")
        self.path = path
        self.file = file
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        self.type = f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


class Pages:
    """The pages of a hub, by path."""

    def __init__(self) -> None:
        self._pages: dict[str, Page] = {}

    def __iter__(self) -> Iterator[Page]:
        return iter(self._pages.values())

    def add(self, page: Page) -> None:
        """Add a page.

        Raises:
            ValueError: there is one at that path already.
        """
        if other := self._pages.get(page.path):
            raise ValueError(
                f"hub.page({page.path!r}, …): {other.file.name} is served there already"
            )
        self._pages[page.path] = page

    def find(self, scope: Scope) -> Page | None:
        """Return the page for a request's path."""
        readings = ("/" + "/".join(segments) for segments in path_segments(scope))
        return next((self._pages[path] for path in readings if path in self._pages), None)


async def answer(hub: HubCore, pages: Pages, scope: Scope, send: Send) -> None:
    """Answer a plain HTTP request: a page, 426 where a WebSocket belongs, or 404."""
    method = scope.get("method", "GET")
    if page := pages.find(scope):
        if method not in {"GET", "HEAD"}:
            await respond(send, 405, f"{method} is not allowed here.", {"allow": "GET, HEAD"})
            return
        body = await asyncio.to_thread(page.file.read_bytes)
        headers = {"content-type": page.type, "cache-control": "no-cache"}
        await respond(send, 200, body, headers, head=method == "HEAD")
    elif hub.endpoints.match(path_segments(scope)):
        await respond(
            send,
            426,
            f"{_public_path(scope)} speaks WebSocket, and this was a plain HTTP request. If a "
            "browser's WebSocket led here, a proxy on the way dropped its Upgrade and Connection "
            "headers.\n",
            {"upgrade": "websocket", "connection": "upgrade"},
            head=method == "HEAD",
        )
    else:
        await respond(send, 404, _not_found(hub, scope), head=method == "HEAD")


def refuse_unknown(hub: HubCore, scope: Scope) -> Reject:
    """Refuse a WebSocket at a path that no endpoint has, and say so in the log."""
    if HANDSHAKE.isEnabledFor(INFO):
        client = Request(scope, path="", params={}, proxies=hub.settings.networks()).client
        near = ", ".join(_near(hub, scope))
        HANDSHAKE.info(
            "refused %s from %s with 404: no endpoint has this URL; %s",
            excerpt(_public_path(scope)), address(client),
            f"the nearest are {near}" if near else "this hub has none yet",
        )  # fmt: skip
    return Reject(404, _not_found(hub, scope))


def _not_found(hub: HubCore, scope: Scope) -> str:
    """Say that nothing is here; name the nearest endpoints to a developer, to nobody else."""
    text = f"Nothing is served at {_public_path(scope)}.\n"
    request = Request(scope, path=shown_path(scope), params={})
    if not (hub.settings.debug or request.is_local):
        return text
    if not (near := _near(hub, scope)):
        return text + "This hub has no endpoints yet.\n"
    return text + "The nearest WebSocket endpoints are: " + ", ".join(near) + "\n"


def _near(hub: HubCore, scope: Scope) -> list[str]:
    """Return the endpoints whose URLs look most like a request's, as clients have them."""
    mount = _mount(scope)
    return [mount + template for template in hub.endpoints.near_misses(shown_path(scope))]


def shown_path(scope: Scope) -> str:
    """Return the path below the hub's mount, decoded."""
    return "/" + "/".join(next(iter(path_segments(scope))))


def _mount(scope: Scope) -> str:
    """Return where the hub is mounted, as a client's URL has it."""
    below, root = shown_path(scope), str(scope.get("root_path", "")).rstrip("/")
    # Litestar does not tell where it mounts what, but what came over the wire does.
    raw = unquote((scope.get("raw_path") or b"").decode("latin-1"))
    cut_off = raw.removesuffix(below) if raw.endswith(below) else ""
    return max(root, cut_off, key=len)


def _public_path(scope: Scope) -> str:
    """Return the path as the client asked for it, decoded."""
    return _mount(scope) + shown_path(scope)


async def respond(
    send: Send,
    status: int,
    body: str | bytes,
    headers: Mapping[str, str] | None = None,
    *,
    head: bool = False,
) -> None:
    """Send an HTTP response.

    Args:
        send: takes its ASGI events.
        status: the HTTP status.
        body: text, as UTF-8, or bytes.
        headers: more headers, and others than the usual ones.
        head: the request was a HEAD: the body stays here.
    """
    content = body.encode(errors="replace") if isinstance(body, str) else body
    lines = {
        "content-type": "text/plain; charset=utf-8",
        "x-content-type-options": "nosniff",
        **(headers or {}),
        "content-length": str(len(content)),
    }
    raw = [(name.encode(), value.encode("latin-1")) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if head else content})
