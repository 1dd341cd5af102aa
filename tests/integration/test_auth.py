"""Tokens and tickets on real sockets, by both transports of uvicorn."""

from __future__ import annotations

import asyncio
import json
import time

import jwt
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from backchannel.client import connect
from backchannel.client.blocking import connect as connect_blocking

SECRET = "a secret for tests that is long enough for HS256"
COMMANDS = {
    "portable": "uvicorn signed:app --port {port} --ws websockets-sansio --log-level warning",
    "native": "uvicorn signed:app --port {port} --log-level warning "
    "--ws backchannel.transport.uvicorn:Protocol",
}
NOT_VALID = (401, "The ticket is not valid: unknown, used already, or expired.", None)
PATIENCE = 15.0


@pytest.fixture(params=COMMANDS)
def server(start, request):
    return start(request.param, COMMANDS[request.param], env={"SECRET": SECRET})


def token(seconds=600, secret=SECRET, **said):
    return jwt.encode({"sub": "ana", "exp": int(time.time()) + seconds, **said}, secret, "HS256")


def bearer(text):
    return {"additional_headers": {"Authorization": f"Bearer {text}"}}


async def hears(client):
    return json.loads(await asyncio.wait_for(client.recv(), PATIENCE))


async def ended(client):
    with pytest.raises(ConnectionClosed) as closed:
        await asyncio.wait_for(client.recv(), PATIENCE)
    return closed.value.rcvd.code, closed.value.rcvd.reason


async def refused(server, path="/ws/me", **options):
    with pytest.raises(InvalidStatus) as caught:
        await server.connect(path, **options).__aenter__()
    answer = caught.value.response
    return answer.status_code, answer.body.decode(), answer.headers.get("www-authenticate")


class Issued:
    """Tokens of two or three seconds, as a client is given to ask for them."""

    def __init__(self):
        self.ends = []
        self._many = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self):
        self.ends.append(int(time.time()) + 3)
        # Renewed at half time, the second one at the latest when the first has ended.
        if time.time() > self.ends[0] + 1:
            self._loop.call_soon_threadsafe(self._many.set)
        return token(exp=self.ends[-1])

    async def outlived(self):
        """Wait until the first token has been at its end for a second."""
        async with asyncio.timeout(PATIENCE):
            await self._many.wait()


async def new_ticket(server, user="ana"):
    return (await server.request("POST", "/ticket", params={"user": user})).text


async def test_a_token_by_header_by_cookie_and_by_subprotocol(server):
    good = token()
    for path, options, subprotocol in (
        ("/ws/me", bearer(good), None),
        ("/ws/me", {"additional_headers": {"Cookie": f"a=b; token={good}"}}, None),
        ("/ws/me", {"subprotocols": ["backchannel.jwt", good]}, "backchannel.jwt"),
        ("/ws/spoken", {"subprotocols": ["backchannel.jwt", good]}, "backchannel.jwt"),
        ("/ws/spoken", {"subprotocols": ["backchannel.jwt", good, "chat.v1"]}, "chat.v1"),
    ):
        async with server.connect(path, **options) as client:
            assert await hears(client) == {"user": "ana"}
            assert client.subprotocol == subprotocol


async def test_a_bad_token_is_answered_with_401_and_why(server):
    wrong = 'Bearer error="invalid_token"'
    for options, answer in (
        (bearer(token(-1)), (401, "The token has expired.", wrong)),
        (bearer(token(secret=SECRET[::-1])), (401, "The token's signature is not valid.", wrong)),
        (bearer(token()[:30]), (401, "The token is malformed.", wrong)),
        (
            {"subprotocols": ["backchannel.jwt", token(aud="mail")]},
            (401, "The token is for another audience.", wrong),
        ),
        ({}, (401, "Not authenticated.", None)),
    ):
        assert await refused(server, **options) == answer


async def test_the_client_brings_newer_tokens_before_they_end(server):
    states, issued = [], Issued()
    url = f"ws://127.0.0.1:{server.port}/ws/me"
    async with connect(url, token=issued, on_state=states.append) as client:
        await issued.outlived()
        assert await client.receive() == {"user": "ana"}  # and was never let in again
        until = await client.call("renew", {"token": token(60)})
        assert until["until"] > time.time()
    assert states == ["connecting", "open", "closed"]


async def test_the_blocking_client_does_too(server):
    states, issued = [], Issued()
    url = f"ws://127.0.0.1:{server.port}/ws/me"
    client = connect_blocking(url, token=issued, on_state=states.append)
    await asyncio.to_thread(client.__enter__)
    await issued.outlived()
    assert await asyncio.to_thread(client.receive) == {"user": "ana"}
    await asyncio.to_thread(client.close)
    assert states == ["connecting", "open", "closed"]


async def test_a_connection_ends_with_its_token_unless_that_was_renewed(server):
    soon = int(time.time()) + 3
    async with (
        server.connect("/ws/me", **bearer(token(exp=soon))) as renewed,
        server.connect("/ws/me", **bearer(token(exp=soon))) as other,
    ):
        await hears(renewed)
        until = int(time.time()) + 600
        await renewed.send(json.dumps({"type": "renew", "token": token(exp=until)}))
        assert await hears(renewed) == {"until": until}
        await hears(other)
        assert await ended(other) == (4007, "token expired")
        assert soon <= time.time() < soon + 5
        await renewed.send(json.dumps({"type": "renew", "token": token(exp=soon)}))
        assert await hears(renewed) == {"error": "The token has expired."}


async def test_a_ticket_is_worth_one_handshake(server):
    ticket = await new_ticket(server)
    stranger = {"origin": "https://evil.example"}
    assert (await refused(server, f"/ws/me?ticket={ticket}", **stranger))[0] == 403
    async with server.connect(f"/ws/me?ticket={ticket}") as client:
        assert await hears(client) == {"user": "ana"}
    assert await refused(server, f"/ws/me?ticket={ticket}") == NOT_VALID
    assert await refused(server, f"/ws/me?ticket={ticket}", **bearer(token())) == NOT_VALID


async def test_no_token_and_no_ticket_stands_in_the_log(server):
    good, late, fresh = token(600), token(-5), token(1200)
    ticket, bad = await new_ticket(server), "bct_" + "A" * 32
    for options in (bearer(good), {"subprotocols": ["backchannel.jwt", good]}):
        async with server.connect("/ws/me", **options) as client:
            await hears(client)
            for sent in (fresh, late):
                await client.send(json.dumps({"type": "renew", "token": sent}))
                await hears(client)
    await refused(server, **bearer(late))
    async with server.connect(f"/ws/me?ticket={ticket}") as client:
        await hears(client)
    for used in (ticket, bad):
        await refused(server, f"/ws/me?ticket={used}")
    printed = server.printed()
    assert "received" in printed
    assert "[hidden]" in printed
    assert "refused '/ws/me' with 401" in printed
    for secret in (*good.split("."), *late.split("."), *fresh.split("."), ticket, bad):
        assert secret[5:25] not in printed


SERVED = {
    "native": "uvicorn signed:app --port {port} --ws backchannel.transport.uvicorn:Protocol",
    "run": "backchannel run signed.py:app --port {port} --log-level debug",
    "run-portable": "backchannel run signed.py:app --port {port} --transport portable",
}


@pytest.mark.parametrize("kind", SERVED)
async def test_the_servers_own_lines_have_no_ticket_either(start, kind):
    """One that was refused for its origin is still good, so that it must not stand in a log."""
    server = start(kind, SERVED[kind], env={"SECRET": SECRET})
    ticket, good = await new_ticket(server), token()
    path = f"/ws/me?a=1&ticket={ticket}&b=%20"
    stranger = {"origin": "https://evil.example"}
    assert (await refused(server, path, **stranger))[0] == 403
    async with server.connect(path) as client:
        assert (await hears(client))["user"] == "ana"
    for left in (path, f"/ws/nowhere?ticket={ticket}", f"/ws/me?ticket={ticket[:12]}%2d{ticket}"):
        with pytest.raises(InvalidStatus):
            await server.connect(left).__aenter__()
    async with server.connect(f"/ws/me?token={good}", **bearer(good)) as client:
        await hears(client)
    printed = server.printed()
    for secret in (ticket, *good.split(".")):
        assert secret[5:25] not in printed
        assert secret[-15:] not in printed
    if kind == "native":  # uvicorn's command prints all handshakes, and goes on doing so
        assert '"WebSocket /ws/me?a=1&ticket=[hidden]&b=%20" 403' in printed
        assert '"WebSocket /ws/me?a=1&ticket=[hidden]&b=%20" [accepted]' in printed
