"""The benchmarks' load generator counts right: it passes a right server and fails a wrong one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

SOURCES = Path(__file__).resolve().parents[2] / "benchmarks/loadgen"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("gcc"), reason="needs Linux and gcc"
)
Wrong = Callable[[int, str], list[str]]


@pytest.fixture(scope="module")
def loadgen(tmp_path_factory):
    program = tmp_path_factory.mktemp("loadgen") / "loadgen"
    command = ["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(program)]
    subprocess.run([*command, *map(str, sorted(SOURCES.glob("*.c")))], check=True)
    return str(program)


class Server:
    """Delivers to the members of channels, or back to the sender, with one fault in it."""

    def __init__(self, wrong: Wrong | None = None) -> None:
        self.wrong = wrong
        self.everyone: list[ServerConnection] = []
        self.named: dict[str, list[ServerConnection]] = {}
        self.users: dict[str, ServerConnection] = {}
        self.answers = 0

    async def __call__(self, ws: ServerConnection) -> None:
        path = ws.request.path
        if path.startswith("/fanout"):
            self.everyone.append(ws)
        if cookie := ws.request.headers.get("Cookie"):
            self.users[cookie[5:9]] = ws
        for name in path.partition("=")[2].split(","):
            self.named.setdefault(name, []).append(ws)
        with contextlib.suppress(ConnectionClosed):
            async for text in ws:
                await self.take(ws, path, str(text))

    async def take(self, ws: ServerConnection, path: str, message: str) -> None:
        if message == "count":
            await ws.send('{"n":1}')
        elif path.startswith("/echo"):
            await self.send(ws, message)
        elif path.startswith("/target"):
            await self.send(self.users[message[:4]], message)
        else:
            for member in self.members(path, message):
                await self.send(member, message)

    def members(self, path: str, message: str) -> list[ServerConnection]:
        return self.named[message[:4]] if path.startswith("/multi") else self.everyone

    async def send(self, ws: ServerConnection, message: str) -> None:
        if message[4:8] == "ffff":  # a probe, before the load begins
            await ws.send(message)
            return
        self.answers += 1
        for answer in self.wrong(self.answers, message) if self.wrong else [message]:
            await ws.send(answer)


async def run(program: str, server: Callable[[ServerConnection], Awaitable[None]], load: str):
    known = {"compression": None, "subprotocols": getattr(server, "subprotocols", None)}
    async with serve(server, "127.0.0.1", 0, **known) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        limits = ["--warmup", "0", "--seconds", "0.3", "--timeout", "2", "--port", str(port)]
        process = await asyncio.create_subprocess_exec(
            program, *load.split(), *limits,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, complaint = await process.communicate()
    result: dict[str, Any] = json.loads(output) if output else {}
    return process.returncode, result, complaint.decode()


FANOUT = "fanout --path /fanout --clients 5"
MULTI = "fanout --path /multi?channels={channels} --clients 8 --channels 6 --per-client 3"
LOADS = [
    f"{FANOUT} --inflight 4",
    f"{FANOUT} --publishers 3 --size 200",
    f"{FANOUT} --rate 2000",
    f"{FANOUT} --rate 500 --idle 3 --storm 20 --extra-path /echo/{{n}} --browser",
    f"{MULTI} --publishers 4",
    "echo --path /echo --clients 3 --inflight 2",
    "echo --path /echo --clients 3 --dialect json",
    "target --path /target --clients 9 --browser --ask count",
]


@pytest.mark.parametrize("load", LOADS)
async def test_a_server_that_does_all_right_passes(loadgen, load):
    code, result, complaint = await run(loadgen, Server(), load)
    assert (code, complaint) == (0, "")
    assert result.get("deliveries") or result["messages"]
    assert (
        result["lost"] == result["duplicates"] == result["out_of_order"] == result["corrupt"] == 0
    )
    assert result["server"] == ({"n": 1} if "--ask" in load else None)
    assert result["stormed"] == (20 if "--storm" in load else 0)


@pytest.mark.parametrize("clients", [1, 3])
async def test_handshakes_are_counted(loadgen, clients):
    load = f"handshakes --path /echo --clients {clients}"
    code, result, complaint = await run(loadgen, Server(), load)
    assert (code, complaint) == (0, "")
    assert result["total_handshakes"] >= result["handshakes"] > 0
    assert result["seconds"] > 0.2


async def test_a_crowd_is_weighed_and_answered(loadgen):
    load = f"crowd --path /echo/{{n}} --clients 40 --browser --server-pid {os.getpid()}"
    code, result, complaint = await run(loadgen, Server(), load)
    assert (code, complaint) == (0, "")
    assert result["answered"] == 40
    assert result["rss_after"] > 1_000_000


async def test_plain_connections_are_counted_by_the_server(loadgen):
    load = f"crowd --path /echo --clients 40 --plain --server-pid {os.getpid()}"
    code, result, complaint = await run(loadgen, Server(), load)
    assert (code, complaint, result["answered"]) == (0, "", 0)
    assert abs(result["accepted"] - 40) <= 5, "this process has other files too"


def lose(number: int, message: str) -> list[str]:
    return [] if number == 12 else [message]


def double(number: int, message: str) -> list[str]:
    return [message, message] if number == 12 else [message]


def damage(number: int, message: str) -> list[str]:
    return [message[:-2] + "x" + message[-1]] if number == 12 else [message]


def shorten(number: int, message: str) -> list[str]:
    return [message[:-1]] if number == 12 else [message]


def invent(number: int, message: str) -> list[str]:
    return [message[:8] + "0fffffff" + message[16:]] if number == 12 else [message]


FAULTS = [
    (lose, "lost"),
    (double, "duplicates"),
    (damage, "corrupt"),
    (shorten, "corrupt"),
    (invent, "corrupt"),
]


@pytest.mark.parametrize("load", [LOADS[0], LOADS[4], LOADS[5], LOADS[7]])
async def test_one_fault_fails_the_run(loadgen, load):
    # At the same time: what is lost is known only after a while.
    runs = await asyncio.gather(*(run(loadgen, Server(wrong), load) for wrong, _ in FAULTS))
    for (wrong, count), (code, result, complaint) in zip(FAULTS, runs, strict=True):
        assert code == 1, (wrong, result)
        assert result[count] > 0, (wrong, result)
        assert complaint.startswith("loadgen: ")


class Speaking(Server):
    """The same in dialect v1: everyone at /fanout is in channel ``bench``."""

    subprotocols = ("backchannel.v1.json",)
    entered = '{"type":"subscribed","channel":"bench"}'

    async def __call__(self, ws: ServerConnection) -> None:
        assert ws.subprotocol == self.subprotocols[0]
        assert json.loads(await ws.recv()) == {"type": "hello"}
        channels = {"/fanout": ["bench"], "/room": ["room"]}.get(ws.request.path, [])
        hello = {"type": "hello", "connection": "a", "channels": channels, "resume": None}
        await ws.send(json.dumps(hello, separators=(",", ":")))
        if channels and self.entered:
            await ws.send(self.entered)
        await super().__call__(ws)

    async def take(self, ws: ServerConnection, path: str, message: str) -> None:
        frame = json.loads(message)
        assert frame["type"] == "message"
        if path != "/fanout":
            await ws.send(message)
        else:
            await super().take(ws, path, frame["data"])

    async def send(self, ws: ServerConnection, message: str) -> None:
        frames = [message]
        if message[4:8] != "ffff":
            self.answers += 1
            frames = self.wrong(self.answers, message) if self.wrong else frames
        for frame in frames:
            await ws.send(frame if frame.startswith("{") else published(frame))


def published(message: str, channel: str = "bench", position: str = "") -> str:
    at = f'"position":"{position}",' if position else ""
    return f'{{"type":"publication","channel":"{channel}",{at}"data":"{message}"}}'


SPEAKING = f"{FANOUT} --inflight 4 --dialect v1"


async def test_a_server_that_speaks_v1_passes(loadgen):
    code, result, complaint = await run(loadgen, Speaking(), SPEAKING)
    assert (code, complaint) == (0, "")
    assert result["deliveries"] > 0
    assert result["lost"] == result["corrupt"] == 0


@pytest.mark.parametrize("path", ["/room", "/echo"])
async def test_a_crowd_that_speaks_v1_is_in_the_channel_that_hello_names(loadgen, path):
    load = f"crowd --path {path} --clients 40 --server-pid {os.getpid()} --dialect v1"
    code, result, complaint = await run(loadgen, Speaking(), load)
    assert (code, complaint, result["answered"]) == (0, "", 40)


def misname(number: int, message: str) -> list[str]:
    return [published(message, channel="bendh")] if number == 12 else [message]


def misplace(number: int, message: str) -> list[str]:
    """A position, though its channel has no history."""
    return [published(message, position="5f3a09c2.17")] if number == 12 else [message]


def answer_instead(number: int, message: str) -> list[str]:
    text = f'{{"type":"message","data":"{message}"}}'
    return [text] if number == 12 else [message]


async def test_one_fault_in_v1_fails_the_run(loadgen):
    faults = [*FAULTS, (misname, "corrupt"), (misplace, "corrupt"), (answer_instead, "corrupt")]
    runs = await asyncio.gather(*(run(loadgen, Speaking(wrong), SPEAKING) for wrong, _ in faults))
    for (wrong, count), (code, result, complaint) in zip(faults, runs, strict=True):
        assert code == 1, (wrong, result)
        # A frame that is longer than all that may come is refused before it is read.
        refused = wrong is misplace and "at most" in complaint
        assert refused or result[count] > 0, (wrong, result, complaint)


@pytest.mark.parametrize(
    ("entered", "complaint"),
    [
        ("", "only 0 of 5 clients connected"),
        ('{"type":"unsubscribed","channel":"bench"}', 'unexpected frame "{"type":"unsubscribed"'),
        (published("x"), 'unexpected frame "{"type":"publication"'),
    ],
)
async def test_a_server_that_does_not_say_that_a_client_is_in_fails_the_run(
    loadgen, entered, complaint
):
    server = Speaking()
    server.entered = entered
    code, _, said = await run(loadgen, server, SPEAKING)
    assert code == 1
    assert complaint in said


async def test_messages_out_of_order_fail_the_run(loadgen):
    held: list[str] = []

    def swap(number: int, message: str) -> list[str]:
        if number == 12:
            held.append(message)
            return []
        return [message, held.pop()] if held else [message]

    load = "echo --path /echo --clients 1 --inflight 4"
    code, result, _ = await run(loadgen, Server(swap), load)
    assert code == 1
    assert result["out_of_order"] > 0


def everywhere(named: dict[str, list[ServerConnection]]) -> list[ServerConnection]:
    return [member for members in named.values() for member in members]


async def test_a_message_for_someone_else_fails_the_run(loadgen):
    class Leaky(Server):
        def members(self, path: str, message: str) -> list[ServerConnection]:
            return everywhere(self.named) if self.answers > 60 else super().members(path, message)

    code, result, _ = await run(loadgen, Leaky(), f"{MULTI} --publishers 2")
    assert code == 1
    assert result["corrupt"] > 0


async def test_a_server_that_hangs_up_fails_the_run(loadgen):
    class Quitter(Server):
        async def send(self, ws: ServerConnection, message: str) -> None:
            await super().send(ws, message)
            if self.answers == 12:
                await ws.close(1011, "enough")

    code, _, complaint = await run(loadgen, Quitter(), LOADS[5])
    assert code == 1
    assert 'closed the connection with 1011 "enough"' in complaint


async def test_a_late_delivery_counts_from_when_it_was_due(loadgen):
    """A server that stands still for a while is not spared by a load that waits for it."""

    class Dozing(Server):
        async def send(self, ws: ServerConnection, message: str) -> None:
            if self.answers == 20:
                await asyncio.sleep(0.25)
            await super().send(ws, message)

    code, result, _ = await run(loadgen, Dozing(), "fanout --path /fanout --clients 1 --rate 1000")
    assert code == 0
    assert result["max_us"] > 245_000
    assert result["p50_us"] > 20_000, "most messages were due while it slept"


async def test_the_second_half_of_the_clients_and_the_idle_ones_go_to_a_second_server(loadgen):
    server, ports = Server(), Counter[int]()

    async def counting(ws: ServerConnection) -> None:
        ports[ws.local_address[1]] += 1
        await server(ws)

    async with serve(counting, "127.0.0.1", 0, compression=None) as other:
        port = next(iter(other.sockets)).getsockname()[1]
        load = f"{FANOUT} --other-port {port} --idle 2 --extra-path /echo"
        code, result, complaint = await run(loadgen, counting, load)
    assert (code, complaint) == (0, "")
    assert result["total_deliveries"] % 5 == 0, "all five have each"
    assert (ports.pop(port), list(ports.values())) == (4, [3])


async def test_the_cpu_time_of_other_processes_is_told(loadgen):
    idle = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE
    )
    load = f"{FANOUT} --watch {os.getpid()} --watch {idle.pid}"
    code, result, complaint = await run(loadgen, Server(), load)
    idle.kill()
    await idle.wait()
    assert (code, complaint) == (0, "")
    ours, theirs = result["watched_cpu_s"]
    assert ours > 0.01, "the server is in this process"
    assert theirs < ours


@pytest.mark.parametrize(
    ("load", "complaint"),
    [
        ("echo --path / --other-port 9", "--other-port belong to fanout"),
        (f"{FANOUT} --other-port 0", "--other-port must be a number from 1"),
        (f"{FANOUT} --watch 4194304", "there is no process 4194304 to watch"),
        (f"{FANOUT}{' --watch 1' * 5}", "--watch is possible 4 times"),
    ],
)
def test_what_makes_no_sense_is_refused(loadgen, load, complaint):
    command = [loadgen, *load.split(), "--port", "9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert complaint in done.stderr


@pytest.mark.parametrize("host", ["192.0.2.1", "10.0.0.1", "0.0.0.0"])
def test_only_loopback_is_a_target(loadgen, host):
    command = [loadgen, "echo", "--port", "9", "--path", "/", "--host", host]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not a loopback address" in done.stderr
