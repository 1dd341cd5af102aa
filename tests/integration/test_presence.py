"""Presence where nodes are processes that are killed, or stopped for longer than their lease."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time

import pytest

LEASE, MOMENT = 1.0, 0.5
PATIENCE = 15.0
NATIVE = "--ws backchannel.transport.uvicorn:Protocol"
COMMAND = f"uvicorn attending:hub --port {{port}} {NATIVE}"
PORTABLE = "uvicorn attending:hub --port {port} --ws websockets-sansio"


@pytest.fixture
def moment(request):
    return getattr(request, "param", MOMENT)


@pytest.fixture(params=[COMMAND, PORTABLE], ids=["native", "portable"])
def nodes(request, start, new_redis_server, moment):
    engine = new_redis_server()
    engine.start()
    env = {"BROKER": engine.url, "LEASE": str(LEASE), "MOMENT": str(moment)}
    return [start(f"node-{number}", request.param, env=env) for number in range(2)]


class Client:
    def __init__(self, server, path):
        self._connect = server.connect(path)

    async def __aenter__(self):
        self.socket = await self._connect.__aenter__()
        self.node = (await self.read())["node"]
        return self

    async def __aexit__(self, *error):
        with contextlib.suppress(OSError):
            await self._connect.__aexit__(*error)

    async def read(self):
        return json.loads(await asyncio.wait_for(self.socket.recv(), PATIENCE))


class Watcher(Client):
    def __init__(self, server):
        super().__init__(server, "/ws/watch")

    async def told(self, *wanted):
        """Check what is told next, in any order; return by which nodes."""
        heard = [await self.read() for _ in wanted]
        nodes = {one.pop("by") for one in heard}
        assert sorted(map(str, heard)) == sorted(map(str, wanted))
        return nodes

    async def who(self):
        """Return who is in the room, and on which nodes; nothing else may be told meanwhile."""
        await self.socket.send(json.dumps({"type": "who", "channel": "room:a"}))
        answer = await self.read()
        assert "by" not in answer, answer
        return answer


def user(server, name):
    return Client(server, f"/ws/room/a?user={name}")


async def test_a_killed_node_has_nobody_there_after_its_lease(nodes):
    first, second = nodes
    async with Watcher(second) as watcher, user(second, "bob") as bob, user(second, "cleo"):
        await watcher.told({"joined": "bob"}, {"joined": "cleo"})
        async with user(first, "ana") as ana, user(first, "cleo"):
            await watcher.told({"joined": "ana"})
            cleo = {bob.node, ana.node}
            async with asyncio.timeout(PATIENCE):
                while set((await watcher.who())["cleo"]) != cleo:
                    pass  # of a second device nobody is told
            who = {name: set(where) for name, where in (await watcher.who()).items()}
            assert who == {"bob": {bob.node}, "cleo": cleo, "ana": {ana.node}}
            first.process.signal(signal.SIGKILL)
            killed = time.monotonic()
            async with asyncio.timeout(PATIENCE):
                while "ana" in await watcher.who():
                    pass  # nobody is told of that yet
            took = time.monotonic() - killed
            assert LEASE / 3 < took < LEASE + 0.5
            assert await watcher.who() == {"bob": [bob.node], "cleo": [bob.node]}
            assert await watcher.told({"left": "ana"}) == {bob.node}
            took = time.monotonic() - killed
            assert LEASE / 3 + MOMENT < took < LEASE + MOMENT + 0.5
            assert await watcher.who() == {"bob": [bob.node], "cleo": [bob.node]}


@pytest.mark.parametrize("moment", [10.0], indirect=True)
async def test_a_node_that_slept_until_after_its_lease_has_lost_nobody(nodes):
    """Nobody is told anything; only the list has nobody of it while it sleeps."""
    first, second = nodes
    async with (
        Watcher(second) as watcher,
        user(second, "cleo") as cleo,
        user(first, "ana") as ana,
        user(first, "cleo"),
    ):
        await watcher.told({"joined": "cleo"}, {"joined": "ana"})
        first.process.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(PATIENCE):
                while await watcher.who() != {"cleo": [cleo.node]}:
                    pass
        finally:
            first.process.signal(signal.SIGCONT)
        async with asyncio.timeout(PATIENCE):
            while "ana" not in (who := await watcher.who()):
                pass
        assert who["ana"] == [ana.node]
        async with user(first, "zoe"):
            assert await watcher.told({"joined": "zoe"}) == {ana.node}
        who = await watcher.who()  # and zoe, for the moment
        assert (who["ana"], sorted(who["cleo"])) == ([ana.node], sorted([ana.node, cleo.node]))


async def test_a_node_that_slept_for_longer_than_lease_and_moment_announces_what_it_has(nodes):
    first, second = nodes
    async with (
        Watcher(second) as watcher,
        user(second, "cleo") as cleo,
        user(first, "ana") as ana,
        user(first, "cleo"),
    ):
        await watcher.told({"joined": "cleo"}, {"joined": "ana"})
        first.process.signal(signal.SIGSTOP)
        try:
            assert await watcher.told({"left": "ana"}) == {cleo.node}
            assert await watcher.who() == {"cleo": [cleo.node]}
        finally:
            first.process.signal(signal.SIGCONT)
        await watcher.told({"joined": "ana"})  # and not cleo, who was there all the while
        who = await watcher.who()
        assert {name: sorted(where) for name, where in who.items()} == {
            "ana": [ana.node],
            "cleo": sorted([ana.node, cleo.node]),
        }
        async with user(first, "zoe"):
            assert await watcher.told({"joined": "zoe"}) == {ana.node}
        await watcher.told({"left": "zoe"})


async def test_a_node_that_slept_while_nobody_looked_has_lost_nobody(nodes):
    first, second = nodes
    second.process.end()
    async with Watcher(first) as watcher, user(first, "ana") as ana:
        await watcher.told({"joined": "ana"})
        first.process.signal(signal.SIGSTOP)
        await asyncio.sleep(2 * LEASE)
        first.process.signal(signal.SIGCONT)
        assert await watcher.who() == {"ana": [ana.node]}
        async with user(first, "zoe"):
            await watcher.told({"joined": "zoe"})
        await watcher.told({"left": "zoe"})


async def test_a_page_that_is_loaded_anew_from_another_node_is_neither_left_nor_joined(nodes):
    first, second = nodes
    async with Watcher(second) as watcher:
        for server in (first, second, first):
            async with user(server, "ana") as ana:
                pass
        assert ana.node
        await watcher.told({"joined": "ana"})
        async with asyncio.timeout(LEASE):  # the other node is told in its own time that she went
            while await watcher.who() != {"ana": []}:
                pass
        await watcher.told({"left": "ana"})
        async with user(first, "zoe"):
            await watcher.told({"joined": "zoe"})


async def test_a_node_that_ends_in_order_leaves_its_users_to_the_others(nodes):
    first, second = nodes
    async with Watcher(second) as watcher, user(second, "bob") as bob:
        await watcher.told({"joined": "bob"})
        async with user(first, "ana"):
            await watcher.told({"joined": "ana"})
            first.process.end()
            # By the one that ends, if it takes its time, or by the other.
            assert len(await watcher.told({"left": "ana"})) == 1
        assert await watcher.who() == {"bob": [bob.node]}
