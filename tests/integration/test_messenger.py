"""What the users of the original were building, on three nodes with a real engine between them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json

import pytest

PATIENCE = 15.0

NATIVE = "--ws backchannel.transport.uvicorn:Protocol"
COMMANDS = {
    "native": [f"uvicorn messenger:hub --port {{port}} {NATIVE}"] * 3,
    "portable": [
        "uvicorn messenger:hub --port {port} --ws websockets-sansio",
        "uvicorn messenger:hub --port {port} --ws websockets-sansio --loop asyncio",
        "hypercorn messenger:hub --bind 127.0.0.1:{port}",
    ],
    "mixed": [
        f"uvicorn messenger:hub --port {{port}} {NATIVE} --loop asyncio",
        "uvicorn messenger:hub --port {port} --ws websockets-sansio",
        "hypercorn messenger:hub --bind 127.0.0.1:{port}",
    ],
}
rooms = (f"r{number}" for number in itertools.count())


@pytest.fixture(scope="module", params=list(COMMANDS))
def nodes(request, start_once, new_redis_server):
    engine = new_redis_server()
    engine.start()
    env = {"BROKER": engine.url}
    return [
        start_once(f"{request.param}-{number}", command + " " * number, env=tuple(env.items()))
        for number, command in enumerate(COMMANDS[request.param])
    ]


class Device:
    """One device of a user, at one node."""

    def __init__(self, server, user, room, device=""):
        self.user = user
        self._connect = server.connect(f"/ws/{room}?user={user}&device={device}")

    async def __aenter__(self):
        self.socket = await self._connect.__aenter__()
        hello = await self.read()
        self.id, self.node = hello["id"], hello["node"]
        return self

    async def __aexit__(self, *error):
        await self._connect.__aexit__(*error)

    async def send(self, type_, **message):
        await self.socket.send(json.dumps({"type": type_, **message}))

    async def read(self):
        message = await asyncio.wait_for(self.socket.recv(), PATIENCE)
        return json.loads(message) if message[:1] in "{[" else message

    async def ask(self, type_, **message):
        await self.send(type_, **message)
        return await self.read()


@pytest.fixture
async def people(nodes):
    """Ana with three devices on three nodes, and bob, mallory on others; in a room of their own."""
    room = next(rooms)
    async with contextlib.AsyncExitStack() as stack:

        async def come(user, node, device=""):
            return await stack.enter_async_context(Device(nodes[node], user, room, device))

        ana = [await come("ana", n, name) for n, name in enumerate(("phone", "laptop", "tablet"))]
        bob, mallory = await come("bob", 1), await come("mallory", 2)
        yield room, ana, bob, mallory


async def test_a_room_on_several_nodes_is_one_room(people):
    _, ana, bob, mallory = people
    await bob.send("say", text="hello")
    for one in (*ana, bob, mallory):
        assert await one.read() == {"from": "bob", "text": "hello"}
    assert await ana[0].ask("who") == {"users": ["ana", "bob", "mallory"], "count": 5}


async def test_a_user_is_told_on_all_her_devices_wherever_they_are(people):
    _, ana, bob, _ = people
    assert await bob.ask("tell", user="ana", text="hi") == {"reached": 3}
    for one in ana:
        assert await one.read() == {"from": "bob", "text": "hi"}
    assert await bob.ask("tell", user="nobody", text="hi") == {"reached": 0}


async def test_her_other_devices_and_one_alone(people):
    _, ana, bob, _ = people
    phone, laptop, tablet = ana
    assert await phone.ask("sync", text="read up to 7") == {"reached": 2}
    assert await laptop.read() == {"sync": "read up to 7"}
    assert await tablet.read() == {"sync": "read up to 7"}
    assert await bob.ask("ack", id=tablet.id, text="got it") == {"reached": 1}
    assert await tablet.read() == {"ack": "got it"}
    assert await bob.ask("ack", id="ffffffff.nobody", text="?") == {"reached": 0}


async def test_devices_are_told_apart_across_nodes(people):
    _, ana, bob, _ = people
    devices = await bob.ask("devices", user="ana")
    assert [device for device, _, _ in devices] == ["laptop", "phone", "tablet"]
    assert {node for _, node, _ in devices} == {one.node for one in ana}
    assert {id_ for _, _, id_ in devices} == {one.id for one in ana}


async def test_a_whisper_reaches_those_in_the_room_and_nobody_else(people):
    _, ana, bob, mallory = people
    await bob.send("whisper", to=["ana"], text="psst")
    for one in (*ana, bob):
        assert await one.read() == {"whisper": "psst"}
    await bob.send("say", text="aloud")
    assert await mallory.read() == {"from": "bob", "text": "aloud"}  # and nothing before it


async def test_who_is_blocked_gets_nothing_on_any_node(people):
    _, ana, bob, mallory = people
    await ana[1].send("say", text="without mallory")
    await bob.send("say", text="with mallory")
    assert await mallory.read() == {"from": "bob", "text": "with mallory"}
    for one in (*ana, bob):
        assert await one.read() == {"from": "ana", "text": "without mallory"}


async def test_who_is_kicked_is_out_on_all_devices(people):
    room, ana, bob, mallory = people
    assert await bob.ask("kick", user="ana", channel=f"room:{room}") == {"kicked": 3}
    assert await bob.ask("who") == {"users": ["bob", "mallory"], "count": 2}
    await bob.send("say", text="is she gone?")
    # Who is invited at bob's node comes in at once: what is still on its way there is for her too.
    for one in (bob, mallory):
        assert await one.read() == {"from": "bob", "text": "is she gone?"}
    assert await bob.ask("invite", user="ana", channel=f"room:{room}") == {"invited": 3}
    await bob.send("say", text="welcome back")
    for one in ana:
        assert await one.read() == {"from": "bob", "text": "welcome back"}


async def test_signing_out_closes_all_sockets_after_what_was_said(people):
    _, ana, bob, _ = people
    await ana[2].send("sign out")
    for one in ana:
        assert await one.read() == "goodbye"
        await asyncio.wait_for(one.socket.wait_closed(), PATIENCE)
        assert (one.socket.close_code, one.socket.close_reason) == (4004, "signed out")
    assert await bob.ask("who") == {"users": ["bob", "mallory"], "count": 2}
