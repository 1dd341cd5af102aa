"""History to real clients: more of it than an outbox holds, to whoever reads as slowly as he likes."""

from __future__ import annotations

import json

import pytest

COUNT, SIZE = 300, 40_000  # 12 MB, of which 1 MiB may wait for a client
COMMANDS = {
    "native": "uvicorn kept:hub --port {port} --ws backchannel.transport.uvicorn:Protocol",
    "uvicorn": "uvicorn kept:hub --port {port} --ws websockets-sansio",
    "hypercorn": "hypercorn kept:hub --bind 127.0.0.1:{port}",
}


@pytest.fixture(params=list(COMMANDS))
def server(start_once, request):
    return start_once(request.param, COMMANDS[request.param])


async def read_numbers(client, count):
    numbers = []
    while len(numbers) < count:
        opcode, payload = await client.frame()
        assert (opcode, len(payload)) == (1, SIZE), payload[:100]
        numbers.append(int(payload.partition(b" ")[0]))
    return numbers


async def fill(server, channel):
    async with server.connect("/ws/elsewhere") as client:
        await client.send(json.dumps({"channel": channel, "count": COUNT, "size": SIZE}))
        return json.loads(await client.recv())["first"]


async def test_a_rule_replays_more_than_an_outbox_holds(server, make_raw):
    await fill(server, "all:cars")
    async with make_raw(server, "/ws/all:cars", receive_buffer=4096) as client:
        await client.opened()
        assert await read_numbers(client, COUNT) == list(range(COUNT))


async def test_a_slow_client_gets_all_it_missed_and_then_what_comes(server, make_raw):
    first = await fill(server, "since:cars")
    async with make_raw(server, "/ws/lobby", receive_buffer=4096) as client:
        await client.opened()
        await client.send(json.dumps({"channel": "since:cars", "since": first}))
        numbers = await read_numbers(client, 10)
        await fill_one_more(server)
        assert await read_numbers(client, COUNT - 10) == [*range(11, COUNT), 0]
        assert numbers == list(range(1, 11))
        assert json.loads((await client.frame())[1]) == {"in": True, "lost": False}


async def fill_one_more(server):
    async with server.connect("/ws/elsewhere") as client:
        await client.send(json.dumps({"channel": "since:cars", "count": 1, "size": SIZE}))
        await client.recv()
