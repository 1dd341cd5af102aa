"""Rules with real servers: refused by URL, and taken out of a channel later."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.exceptions import ConnectionClosed

COMMANDS = {
    "native": "uvicorn ruled:hub --port {port} --ws backchannel.transport.uvicorn:Protocol",
    "portable": "uvicorn ruled:hub --port {port} --ws websockets-sansio",
}


@pytest.fixture(params=list(COMMANDS))
def server(request, start):
    return start(request.param, COMMANDS[request.param])


async def ended(client):
    """Return the close code and reason, and what came before."""
    came = []
    try:
        while True:
            came.append(await asyncio.wait_for(client.recv(), 15))
    except ConnectionClosed as closed:
        return closed.rcvd.code, closed.rcvd.reason, came


async def ask(client, **message):
    await client.send(json.dumps(message))
    return json.loads(await asyncio.wait_for(client.recv(), 15))


async def test_a_url_that_leads_where_a_rule_refuses_is_closed_with_its_words(server):
    async with server.connect("/ws/thread/7?user=eve") as eve:
        assert await ended(eve) == (1008, "eve may not see thread 7", [])
    async with server.connect("/ws/thread/7?user=ana") as ana:
        assert await ana.recv() == "welcome"


async def test_a_recheck_closes_who_came_by_url_and_keeps_who_is_there_for_more(server):
    async with (
        server.connect("/ws/thread/7?user=ana") as by_url,
        server.connect("/ws/lobby?user=ana") as by_message,
        server.connect("/ws/lobby?user=eve") as eve,
        server.connect("/ws/thread/7?user=mod") as mod,
    ):
        for client in (by_url, by_message, eve, mod):
            assert await client.recv() == "welcome"
        assert await ask(by_message, join="thread:7") is True
        assert await ask(eve, join="thread:7") is False
        removed = await ask(mod, revoke="ana")
        assert sorted(removed) == [["ana", "/ws/lobby"], ["ana", "/ws/thread/{id}"]]
        assert await ended(by_url) == (1008, "ana may not see thread 7", [])
        await mod.send(json.dumps({"say": "secret"}))
        assert [await mod.recv(), await mod.recv()] == ["secret", "1"]
        assert await ask(by_message, join="thread:7") is False  # and no secret before it
