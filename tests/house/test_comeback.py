"""The storm of clients that come back is real, and its clients notice what a server does wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SERVERS = BENCHMARKS / "servers"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def clients(monkeypatch):
    """The module that has them."""
    monkeypatch.syspath_prepend(str(SERVERS))
    import comeback_clients

    return comeback_clients


async def answers(port):
    """Wait until a server listens."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)  # nothing tells when it does


@contextlib.asynccontextmanager
async def node(port, broker, **environment):
    command = (
        f"-m uvicorn backchannel_app:hub --host 127.0.0.1 --port {port} --log-level warning "
        "--loop uvloop --ws backchannel.transport.uvicorn:Protocol"
    )
    server = await asyncio.create_subprocess_exec(
        sys.executable, *command.split(), cwd=SERVERS, env=os.environ | environment | broker
    )
    try:
        await answers(port)
        yield server.pid
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()


def ports():
    import socket

    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


async def storm(how, redis_server, **environment):
    first, second = ports()
    broker = {"BROKER": redis_server.url}
    async with (
        node(first, broker, **environment) as pid,
        node(second, broker, **environment) as other,
    ):
        nodes = [str(number) for number in (first, pid, second, other)]
        command = ["comeback.py", "v1", how, "--clients", "100", "--engine", str(redis_server.pid)]
        program = await asyncio.create_subprocess_exec(
            sys.executable, *command, "--nodes", *nodes, cwd=SERVERS,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, complaint = await program.communicate()
    assert program.returncode == 0, complaint.decode()
    return json.loads(output)


@pytest.mark.parametrize("how", ["kill", "jitter", "cut"])
async def test_all_are_whole_again(redis_server, how):
    done = await storm(how, redis_server)
    faults = [done[key] for key in ("not_resumed", "lost", "missed", "doubled")]
    assert faults == [0, 0, 0, 0]
    assert 0 < done["half_s"] <= done["seconds"]
    assert done["timed"] > 0
    assert done["p50_us"] > 0
    assert done["deliveries_in_all"] > 100


async def test_who_can_not_be_resumed_is_counted(redis_server):
    done = await storm("kill", redis_server, NO_RESUME="1")
    assert done["not_resumed"] == 100


def published(clients, number, room=7):
    content = clients.publication(room, number, 1).decode()
    return (
        f'{{"type":"publication","channel":"live:{room:02}","position":"e.{number}",'
        f'"data":"{content}"}}'
    ).encode()


@pytest.mark.parametrize(
    ("numbers", "missed", "doubled"),
    [([1, 2, 3], 0, 0), ([1, 4], 2, 0), ([1, 2, 2], 0, 1), ([2, 1], 1, 1), ([1, 3, 2], 1, 1)],
)
def test_what_is_missed_doubled_or_out_of_order_is_counted(clients, numbers, missed, doubled):
    async def hear():
        crew = clients.Crew(0)
        client = clients.V1(crew, 7)
        for number in numbers:
            client.take_text(published(clients, number))
        return crew, client

    crew, client = asyncio.run(hear())
    assert (crew.missed, crew.doubled, crew.failures) == (missed, doubled, [])
    assert client.position == f"e.{numbers[-1]}".encode()


@pytest.mark.parametrize("fault", ["room", "damaged", "shorter", "unknown"])
def test_what_nobody_published_ends_the_run(clients, fault):
    async def hear():
        crew = clients.Crew(0)
        client = clients.V1(crew, 7)
        good = published(clients, 1)
        client.take_text({
            "room": good.replace(b'"data":"07', b'"data":"08'),
            "damaged": good.replace(b"xx", b"xy", 1),
            "shorter": good.replace(b"xx", b"", 1),
            "unknown": b'{"type":"publication","channel":"live:08","data":"x"}',
        }[fault])  # fmt: skip
        return crew

    crew = asyncio.run(hear())
    assert len(crew.failures) == 1
    with pytest.raises(SystemExit, match="1 failures, the first"):
        crew.check()


def test_a_run_of_ours_that_lost_something_gives_no_figures(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import figures

    good = {"dialect": "v1", "not_resumed": 0, "lost": 0, "missed": 0, "doubled": 0}
    assert figures.check("comeback", good) is None
    assert "not all were whole again" in figures.check("comeback", good | {"not_resumed": 1})
    assert figures.check("comeback", good | {"dialect": "socketio", "missed": 9}) is None
