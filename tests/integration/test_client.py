"""The Python client and real hubs: on both transports, over networks that break, on two nodes."""

from __future__ import annotations

import asyncio
import random

import pytest

from backchannel.client import (
    Closed,
    Join,
    Leave,
    Lost,
    NotAdmitted,
    OutcomeUnknown,
    Publication,
    ServerError,
    connect,
    returning,
)
from backchannel.client.blocking import connect as connect_blocking

from cable import Cable  # isort: skip # found by conftest.py

COMMANDS = {
    "native": "uvicorn conversing:hub --port {port} --ws backchannel.transport.uvicorn:Protocol",
    "uvicorn": "uvicorn conversing:hub --port {port} --ws websockets-sansio",
    "hypercorn": "hypercorn conversing:hub --bind 127.0.0.1:{port}",
}


@pytest.fixture(params=list(COMMANDS))
def server(start_once, request):
    return start_once(request.param, COMMANDS[request.param])


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Come back at once, also after many cuts."""
    monkeypatch.setattr(returning, "FIRST", 0.02)
    monkeypatch.setattr(returning, "STEADY", 0)


@pytest.fixture
async def cable(server):
    async with Cable(server.port) as cable:
        yield cable


@pytest.fixture
def room():
    """A room of this test's own."""
    return f"r{random.getrandbits(64):x}"


class Away(asyncio.Event):
    """Set while there is no connection: for ``on_state``."""

    def __call__(self, state):
        (self.clear if state == "open" else self.set)()


async def test_messages_calls_and_what_the_server_asks(server, room):
    url = f"ws://127.0.0.1:{server.port}/ws/{room}"
    async with connect(url, token="ana") as client:
        assert client.user == "ana"

        @client.answer("confirm")
        async def confirm(about):
            return about == "sure?"

        await client.send("hi")
        assert await client.receive() == "hi"
        await client.send(b"\x00\n\xff")
        assert await client.receive() == b"\x00\n\xff"
        await client.deliver("count")
        assert await client.call("counted") == 1
        assert await client.call("add", {"a": 1, "b": 2}, type=int) == 3
        await client.call("ask", {"about": "sure?"})
        assert await client.receive() == {"answered": True}
        with pytest.raises(ServerError) as error:
            await client.call("nothing")
        assert error.value.code == "unknown_type"
        with pytest.raises(ServerError) as error:
            await client.deliver({"type": "add", "b": 1})
        assert error.value.code == "failed"
        with pytest.raises(ServerError, match="refused"):
            await client.renew("new")


async def test_channels_presence_and_refusals(server, room):
    url = f"ws://127.0.0.1:{server.port}/ws/{room}"
    async with connect(url, token="ana") as ana:
        chat = await ana.channel(f"chat:{room}").ready()
        async with connect(url, token="bob") as bob:
            assert await anext(chat) == Join(chat.channel, "ana")
            assert await anext(chat) == Join(chat.channel, "bob")
            position = await bob.publish(chat.channel, {"n": 1})
            assert await anext(chat) == Publication(chat.channel, {"n": 1}, position)
            assert await bob.publish(chat.channel, b"bytes") is not None
            assert (await anext(chat)).data == b"bytes"
            assert {member.user for member in await chat.presence()} == {"ana", "bob"}
            assert await bob.publish(f"plain:{room}", "x") is None
            with pytest.raises(ServerError, match="not for you"):
                await bob.subscribe("secret:1").ready()
            with pytest.raises(ServerError, match="refused"):
                await bob.publish("secret:1", "x")
        assert await anext(chat) == Leave(chat.channel, "bob")


async def test_since_brings_what_was_missed(server, room):
    async with connect(f"ws://127.0.0.1:{server.port}/ws/{room}") as client:
        async with client.subscribe(f"short:{room}") as short:
            for n in range(3):
                await client.publish(short.channel, n)
            positions = [(await anext(short)).position for _ in range(3)]
        async with client.subscribe(short.channel, since=positions[1]) as again:
            assert await anext(again) == Publication(short.channel, 2, positions[2])
            with pytest.raises(ServerError, match="invalid"):
                await client.subscribe("plain:x", since="no position").ready()


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_a_refused_handshake_says_why(server, status):
    url = f"ws://127.0.0.1:{server.port}/ws/x?no={status}"
    with pytest.raises(NotAdmitted, match=f"HTTP {status}: .*not like this"):
        await connect(url).__aenter__()


async def test_the_applications_own_close_code_ends_it(server, room):
    async with connect(f"ws://127.0.0.1:{server.port}/ws/{room}") as client:
        await client.send("close")
        with pytest.raises(Closed, match=r"4100, .*as you wish"):
            await client.receive()


async def test_a_tunnel_costs_nothing(cable, room):
    away = Away()
    async with (
        connect(cable.url(f"/ws/{room}"), on_state=away) as client,
        connect(cable.url("/ws/y")) as other,
    ):
        chat = await client.channel(f"chat:{room}").ready()
        plain = await client.subscribe(f"plain:{room}").ready()
        name = client.id
        await client.deliver("count")
        cable.cut()
        await away.wait()
        waiting = [asyncio.create_task(client.deliver("count")) for _ in range(3)]
        publishing = asyncio.create_task(other.publish(chat.channel, "while it was away"))
        cable.mend()
        await asyncio.gather(publishing, *waiting)
        assert (await anext(chat)).data == "while it was away"
        assert (client.id, client.resumed) == (name, True)
        assert await client.call("counted") == 4
        await other.publish(plain.channel, "next")
        assert [type(event) for event in [await anext(plain)]] in ([Lost], [Publication])


async def test_history_that_is_too_short_is_told_as_lost(cable, server, room):
    direct = f"ws://127.0.0.1:{server.port}/ws/y"
    away = Away()
    async with (
        connect(cable.url(f"/ws/{room}"), on_state=away) as client,
        connect(direct) as other,
    ):
        short = await client.subscribe(f"short:{room}").ready()
        await other.publish(short.channel, 0)
        assert (await anext(short)).data == 0
        cable.cut()
        await away.wait()
        for n in range(10):
            await other.publish(short.channel, n)
        cable.mend()
        assert isinstance(await anext(short), Lost)
        await other.publish(short.channel, "after")
        while (event := await anext(short)).data != "after":
            pass
        assert event.position == short.position


@pytest.mark.parametrize("seed", range(3))
async def test_twenty_cuts_lose_and_double_nothing(cable, room, seed):
    dice = random.Random(seed)
    async with connect(cable.url(f"/ws/{room}")) as ana, connect(cable.url(f"/ws/{room}")) as bob:
        name = f"chat:{room}"
        heard = [await client.channel(name).ready() for client in (ana, bob)]

        talking = {"ana": 0, "bob": 0}

        async def talk(client, who):
            while not sawing.done():
                await client.publish(name, [who, talking[who]])
                await client.deliver("count")
                talking[who] += 1
            await client.publish(name, [who, "end"])

        async def read(events):
            got, ends = [], 0
            while ends < 2:
                got.append(await anext(events))
                ends += got[-1].data[1] == "end"
            return got

        async def saw():
            for _ in range(20):
                await asyncio.sleep(dice.uniform(0.01, 0.2))
                cable.cut(and_hold=False)

        sawing = asyncio.create_task(saw())
        async with asyncio.TaskGroup() as tasks:
            reading = [tasks.create_task(read(events)) for events in heard]
            tasks.create_task(talk(ana, "ana"))
            tasks.create_task(talk(bob, "bob"))
        first, second = (task.result() for task in reading)
        assert first == second
        for client, who in ((ana, "ana"), (bob, "bob")):
            said = [event.data[1] for event in first if event.data[0] == who]
            assert said == [*range(talking[who]), "end"]
            assert await client.call("counted", timeout=10) == talking[who] > 0
        assert cable.opened > 20


def test_the_blocking_client(server, room):
    with connect_blocking(f"ws://127.0.0.1:{server.port}/ws/{room}", token="ana") as client:
        chat = client.channel(f"chat:{room}").ready(timeout=5)
        client.publish(chat.channel, "hi", timeout=5)
        for event in chat:
            if isinstance(event, Publication):
                assert event.data == "hi"
                break
        assert client.call("add", {"a": 1, "b": 2}) == 3


async def test_a_killed_node_costs_nothing(start, redis_server, room):
    """The session goes on at the other node, whose listener has what was durable."""
    env = {"ENGINE": redis_server.url}
    nodes = [start(f"node{n}", COMMANDS["native"], env=env) for n in range(2)]
    direct = f"ws://127.0.0.1:{nodes[1].port}/ws/y"
    async with (
        Cable(nodes[0].port) as cable,
        connect(cable.url(f"/ws/{room}")) as client,
        connect(direct) as other,
    ):
        chat = await client.channel(f"chat:{room}").ready()
        name = client.id
        await client.deliver("count")
        await other.publish(chat.channel, 0)
        assert (await anext(chat)).data == 0
        cable.port = nodes[1].port
        nodes[0].process.popen.kill()
        for n in range(1, 5):
            await other.publish(chat.channel, n)
        await client.publish(chat.channel, 5)
        assert [(await anext(chat)).data for _ in range(5)] == [1, 2, 3, 4, 5]
        assert (client.id, client.resumed) == (name, True)
        assert await client.call("counted") == 1


async def test_a_server_that_starts_anew_is_another_session(start, server, room):
    """Its memory is gone: what the client had sent may have been done, and it says so."""
    first, second = (start(f"n{n}", COMMANDS["native"]) for n in range(2))
    async with Cable(first.port) as cable, connect(cable.url(f"/ws/{room}")) as client:
        chat = await client.channel(f"chat:{room}").ready()
        await client.publish(chat.channel, "had")
        assert (await anext(chat)).data == "had"
        first.process.popen.send_signal(19)  # SIGSTOP: it takes what is sent, and answers nothing
        unknown = asyncio.create_task(client.deliver("count"))
        await asyncio.sleep(0)
        cable.port = second.port
        first.process.popen.kill()
        with pytest.raises(OutcomeUnknown):
            await unknown
        assert client.resumed is False
        assert isinstance(await anext(chat), Lost)
        await client.publish(chat.channel, "next")
        assert (await anext(chat)).data == "next"
