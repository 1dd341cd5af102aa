"""The browser's client as hubs serve it, and as `backchannel client` says how to load it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re

import httpx
import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from backchannel import Hub
from backchannel.cli.main import main
from backchannel.transport.scripts import FOLDER, SCRIPTS, TYPES

LIMIT = 5 * 1024
"""Bytes of the core as it travels, which docs/browser.md promises."""


def get(app, path, method="GET", **headers):
    """Ask an app; ``accept-encoding`` is empty unless given."""
    headers = {"accept-encoding": "", **headers}

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, headers=headers)

    return ask()


def bare():
    return Hub(), ""


def mounted():
    hub = Hub()
    return Starlette(routes=[Mount("/live", hub)]), "/live"


def wrapped():
    async def home(request):
        return PlainTextResponse("the app's")

    hub = Hub()
    return hub.wrap(Starlette(routes=[Route("/{path:path}", home)])), ""


@pytest.mark.parametrize("make", [bare, mounted, wrapped])
@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_hub_serves_the_client_wherever_it_is(make, name):
    app, prefix = make()
    response = await get(app, f"{prefix}/backchannel/{name}")
    assert response.status_code == 200
    assert response.content == (FOLDER / name).read_bytes()
    assert response.headers["content-type"] == "text/javascript; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["access-control-allow-origin"] == "*"


async def test_nothing_else_of_the_folder_is_served():
    for path in ("client.d.ts", "../app.py", "%2e%2e/app.py", "client.js/", "", "client.js.map"):
        assert (await get(Hub(), f"/backchannel/{path}")).status_code == 404, path
    assert (await get(wrapped()[0], "/backchannel/other.js")).text == "the app's"


async def test_who_has_it_gets_304():
    first = await get(Hub(), "/backchannel/client.js")
    etag = first.headers["etag"]
    for known in (etag, f'"other", {etag}', etag.removeprefix("W/"), "*"):
        second = await get(Hub(), "/backchannel/client.js", **{"if-none-match": known})
        assert (second.status_code, second.content) == (304, b"")
        assert second.headers["etag"] == etag
    other = await get(Hub(), "/backchannel/client.global.js", **{"if-none-match": etag})
    assert other.status_code == 200


@pytest.mark.parametrize(
    ("accepts", "encoding"),
    [
        ("gzip", "gzip"), ("br, gzip;q=0.8", "gzip"), ("*", "gzip"), ("br", None),
        ("gzip;q=0", None), ("gzip;q=0.0, br", None), ("identity", None),
    ],
)  # fmt: skip
async def test_it_is_compressed_for_who_takes_that(accepts, encoding):
    response = await get(Hub(), "/backchannel/client.js", **{"accept-encoding": accepts})
    assert response.headers.get("content-encoding") == encoding
    assert response.content == (FOLDER / "client.js").read_bytes()
    assert response.headers["vary"] == "accept-encoding"


async def test_head_has_no_body_and_other_methods_are_refused():
    head = await get(Hub(), "/backchannel/client.js", "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == (FOLDER / "client.js").stat().st_size
    refused = await get(Hub(), "/backchannel/client.js", "POST")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


async def test_it_can_be_turned_off_and_a_page_of_ones_own_comes_first(tmp_path):
    assert (await get(Hub(client_scripts=False), "/backchannel/client.js")).status_code == 404
    (tmp_path / "mine.js").write_text("mine")
    hub = Hub()
    hub.page("/backchannel/client.js", tmp_path / "mine.js")
    assert (await get(hub, "/backchannel/client.js")).text == "mine"


async def test_an_endpoint_that_would_match_does_not_hide_it():
    hub = Hub()
    hub.add("/{tenant}/{file}", lambda ws, message: None)
    assert (await get(hub, "/backchannel/client.js")).status_code == 200
    assert (await get(hub, "/backchannel/other.js")).status_code == 426


@pytest.mark.parametrize("name", ["client.js", "client.global.js"])
def test_the_core_is_as_small_as_the_page_says(name):
    assert len(gzip.compress((FOLDER / name).read_bytes(), 9)) <= LIMIT


# ── the command ───────────────────────────────────────────────────────────────────────────────


def command(*arguments):
    return CliRunner().invoke(main, ["client", *arguments])


@pytest.mark.parametrize("prefix", ["", "/live", "https://chat.example.com:8443/live"])
def test_the_command_prints_tags_with_the_hashes_of_what_is_served(prefix):
    printed = command("--prefix", prefix).output
    mapped = json.loads(re.search(r'"importmap">(.*?)</script>', printed, re.DOTALL)[1])
    classic = re.search(r'src="(.+?)"\s+integrity="(.+?)" crossorigin="anonymous"', printed)
    hashes = {**mapped["integrity"], classic[1]: classic[2]}
    assert list(mapped["imports"].values()) == list(mapped["integrity"])
    assert len(hashes) == 3
    for url, integrity in hashes.items():
        assert url.startswith(f"{prefix}/backchannel/")
        content = (FOLDER / url.rpartition("/")[2]).read_bytes()
        digest = base64.b64encode(hashlib.sha384(content).digest()).decode()
        assert integrity == f"sha384-{digest}"


@pytest.mark.parametrize("prefix", ["live", '/a"b', "javascript:x", "/a b", "//"])
def test_a_prefix_that_is_none_is_refused(prefix):
    result = command("--prefix", prefix)
    assert result.exit_code == 2
    assert "is no path such as /live" in result.output.replace("\n", " ")


def test_it_copies_the_files_with_their_types(tmp_path):
    folder = tmp_path / "new" / "vendor"
    result = command("--copy", str(folder))
    assert result.exit_code == 0
    names = sorted((*SCRIPTS, *TYPES))
    assert sorted(path.name for path in folder.iterdir()) == names
    assert result.output.split() == [str(folder / name) for name in (*SCRIPTS, *TYPES)]
    for name in names:
        assert (folder / name).read_bytes() == (FOLDER / name).read_bytes()


def test_a_folder_that_can_t_be_written_is_said_to_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    result = command("--copy", str(tmp_path / "file" / "below"))
    assert result.exit_code == 1
    assert "can't be written to: Not a directory" in result.output
