"""The browser's client with a token provider, against a hub whose tokens live for three seconds."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from pathlib import Path

import jwt
import pytest
import pytest_asyncio

pytest.importorskip("playwright", reason="no playwright: pip install it")

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = secrets.token_hex(32)
LIFE = 3
"""Seconds that a token is good for; a whole number, as `exp` is."""

CONNECT = """async (token) => {
    const { connect } = await import("/backchannel/client.js");
    window.log = { states: [], errors: [] };
    window.client = connect("/ws/main", { token: eval(token) });
    client.on("state", (change) => log.states.push(change));
    client.on("error", ({ code, message }) => log.errors.push(`${code}: ${message}`));
    await new Promise((then) => client.on("open", then));
}"""


@pytest_asyncio.fixture(loop_scope="session")
async def page(make_app, new_context):
    """Open a page that can ask for tokens; ``page.asked`` has when each ends, ``page.renewed`` its renewals."""
    server = make_app(Path(__file__).with_name("token_app.py"), KEY=KEY)
    await server.start()
    page = await (await new_context()).new_page()
    page.asked, page.renewed, page.sockets = [], asyncio.Queue(), []

    def token():
        page.asked.append(int(time.time()) + LIFE)
        return jwt.encode({"sub": "ana", "exp": page.asked[-1]}, KEY, algorithm="HS256")

    def heard(payload):
        if (frame := json.loads(payload))["type"] == "renewed":
            page.renewed.put_nowait(frame)

    def opened(socket):
        page.sockets.append(socket)
        socket.on("framereceived", heard)

    page.on("websocket", opened)
    await page.expose_function("newToken", token)
    await page.goto(server.url)
    yield page
    await page.evaluate("client.close()")
    await server.stop()


@pytest.mark.parametrize(
    "token",
    [f"async () => ({{ token: await newToken(), expires_in: {LIFE} }})", "() => newToken()"],
    ids=["the page knows how long", "only the server knows"],
)
async def test_a_token_is_renewed_again_and_again_on_one_connection(page, token):
    await page.evaluate(CONNECT, token)
    for _ in range(8):  # each comes when half of the time is over: four lives
        frame = await asyncio.wait_for(page.renewed.get(), 2 * LIFE)
        assert 0 < frame["expires_in"] <= LIFE
        await page.evaluate("client.deliver('fine')")
    assert await page.evaluate("log.states.map(({ state }) => state)") == ["connecting", "open"]
    assert await page.evaluate("[client.state, client.last.user]") == ["open", "ana"]
    assert await page.evaluate("log.errors") == []
    assert len(page.sockets) == 1
    assert len(page.asked) == 9
    assert time.time() > page.asked[0] + LIFE, "the first one is long over"


async def test_what_is_not_renewed_ends_and_a_new_token_goes_on_with_the_session(page):
    """A provider that fails once: the connection ends with 4007, and the next one is the same user's."""
    failing = """async () => {
        window.times = (window.times ?? 0) + 1;
        if (times === 2) throw new Error("the login is away");
        return newToken();
    }"""
    await page.evaluate(CONNECT, failing)
    ended = "() => log.states.filter(({ state }) => state === 'open').length === 2"
    await page.wait_for_function(ended, timeout=4 * LIFE * 1000)
    states = await page.evaluate("log.states")
    assert [each["state"] for each in states] == [
        "connecting",
        "open",
        "waiting",
        "connecting",
        "open",
    ]
    assert (states[2]["code"], states[4]["user"], states[4]["resumed"]) == (4007, "ana", True)
    assert await page.evaluate("log.errors") == ["renewal: Error: the login is away"]
