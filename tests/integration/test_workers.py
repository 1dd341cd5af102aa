"""Several worker processes of one server: one hub, replaced when they die, also without the broker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal

import pytest
from websockets.exceptions import InvalidStatus

from clients import ended, read  # isort: skip # found by conftest.py
from processes import PATIENCE, PROGRAMS  # isort: skip

NATIVE = "--ws backchannel.transport.uvicorn:Protocol"


@contextlib.asynccontextmanager
async def on_two_workers(server):
    """Connect until two workers have a client; yields one of each. Who leaves may say 503 first."""
    async with contextlib.AsyncExitStack() as stack:
        found = {}
        async with asyncio.timeout(30):
            while len(found) < 2:
                try:
                    client = await stack.enter_async_context(server.connect("/ws/cars"))
                except InvalidStatus as refused:
                    if refused.response.status_code != 503:
                        raise
                    continue
                found.setdefault((await read(client))["pid"], client)
        yield found


WORKERS = {
    "uvicorn": "uvicorn deployed:hub --port {port} --workers 2 --ws websockets-sansio",
    "native": f"uvicorn deployed:hub --port {{port}} --workers 2 {NATIVE}",
    "gunicorn": "gunicorn deployed:hub --bind 127.0.0.1:{port} -w 2 -k uvicorn_worker.UvicornWorker",
    "gunicorn-native": "gunicorn deployed:hub --bind 127.0.0.1:{port} -w 2 -k workered.NativeWorker",
}


async def assert_one_hub(server):
    async with on_two_workers(server) as clients:
        one, other = clients.values()
        await one.send("hello")
        for client in (one, other):
            assert await read(client) == "hello"
    assert "worker processes" not in server.printed()


@pytest.mark.parametrize("name", WORKERS)
async def test_a_message_crosses_the_workers_of_other_servers(start, name, redis_server):
    if name.startswith("gunicorn"):
        pytest.importorskip("uvicorn_worker", reason="no gunicorn: pip install uvicorn-worker")
    await assert_one_hub(start(name, WORKERS[name], env={"BROKER": redis_server.url}))


@pytest.mark.parametrize("transport", ["native", "portable"])
async def test_workers_of_backchannel_run_are_one_hub_and_end_together(
    run, redis_server, transport
):
    options = ("--workers", "2", "--drain", "1", "--transport", transport)
    server = run(*options, env={"BROKER": redis_server.url})
    await assert_one_hub(server)
    assert server.printed().count("Ctrl-C to stop") == 1
    async with on_two_workers(server) as clients:
        server.process.signal(signal.SIGTERM)
        ends = await asyncio.gather(*(ended(client) for client in clients.values()))
        assert [code for code, _ in ends] == [1012, 1012]
    assert await asyncio.to_thread(server.process.wait) == 0
    assert "Traceback" not in server.printed()


async def test_a_worker_that_died_is_replaced(run, redis_server):
    server = run("--workers", "2", env={"BROKER": redis_server.url})
    async with on_two_workers(server) as clients:
        victim = next(iter(clients))
        os.kill(victim, signal.SIGKILL)
        assert (await ended(clients[victim]))[0] == 1006
    async with on_two_workers(server) as clients:
        assert victim not in clients


async def test_a_second_signal_hurries_the_workers(run, redis_server):
    server = run("--workers", "2", "--drain", "600", env={"BROKER": redis_server.url})
    async with on_two_workers(server) as clients:
        server.process.signal(signal.SIGTERM)
        await server.until_ready_is(503)
        closing = asyncio.gather(*(ended(client) for client in clients.values()))
        while not closing.done():  # the first of these may come before the parent has seen SIGTERM
            server.process.signal(signal.SIGTERM)
            await asyncio.wait({closing}, timeout=0.5)
        assert [code for code, _ in closing.result()] == [1012, 1012]
    assert await asyncio.to_thread(server.process.wait) == 0


async def test_workers_without_a_broker_are_refused(process):
    started = process("backchannel", "run", "deployed.py", "--port", "0", "--workers", "2")
    assert await asyncio.to_thread(started.wait) == 1
    (line,) = started.output().splitlines()
    assert line.startswith("Error: --workers 2: the hub in deployed.py")
    assert "has no broker, so each process would have channels" in line
    assert 'Hub(broker="redis://localhost:6379/0"), or leave --workers out' in line


async def test_workers_that_reload_are_refused(process):
    started = process("backchannel", "run", "deployed.py", "--workers", "2", "--reload")
    assert await asyncio.to_thread(started.wait) == 2
    assert "--reload serves with one process: leave --workers out" in started.output()


# ── replaced ──────────────────────────────────────────────────────────────────────────────────


async def assert_serves(server, worker):
    """Connect several times: it is always this worker."""
    for _ in range(5):
        async with server.connect("/ws/cars") as client:
            assert (await read(client))["pid"] == worker


async def assert_ends(server, sig=signal.SIGTERM):
    """It ends in less than PATIENCE, and so without what it waits for in some tests."""
    server.process.signal(sig)
    assert await asyncio.to_thread(server.process.wait) == 0
    assert "Traceback" not in server.printed(), server.printed()


@pytest.fixture
def engine(new_redis_server):
    """An engine of one test, which may stop it."""
    engine = new_redis_server()
    engine.start()
    return engine


@contextlib.asynccontextmanager
async def in_the_place_of(engine, hear):
    """Listen where an engine that was stopped did."""
    port = int(engine.url.rpartition(":")[2].partition("/")[0])
    serving = await asyncio.start_server(hear, "127.0.0.1", port)
    yield
    serving.close()


WAITS = r"backchannel.hub: worker \d+ waits for its broker: redis://\S+ "
SERVES = r"backchannel.hub: worker \d+ starts: its broker answers after [\d.]+ s"


@pytest.mark.parametrize("dead", [1, 2])
async def test_workers_that_die_while_the_broker_is_away_come_back_with_it(run, engine, dead):
    """The others serve meanwhile; and it is said once, however often they try."""
    server = run("--workers", "2", "--drain", "0.2", env={"BROKER": engine.url})
    tries = asyncio.Semaphore(0)

    async def hang_up(_, writer):
        tries.release()
        writer.close()

    async with on_two_workers(server) as clients:
        *victims, other = [*list(clients)[:dead], list(clients)[-1]]
        engine.stop()
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
            assert (await ended(clients[victim]))[0] == 1006
        for number in range(1, dead + 1):
            await asyncio.to_thread(server.process.wait_for_output, f"(?s)({WAITS}.*){{{number}}}")
        if dead == 1:
            await assert_serves(server, other)
        async with in_the_place_of(engine, hang_up), asyncio.timeout(PATIENCE):
            for _ in range(6):
                await tries.acquire()
        engine.start()
        await asyncio.to_thread(server.process.wait_for_output, f"(?s)({SERVES}.*){{{dead}}}")
        if dead == 1:  # it may be back later; until then it misses what is said, and says so
            await asyncio.to_thread(server.process.wait_for_output, r"broker: redis://\S+ is back")
            await asyncio.wait_for(await clients[other].ping(), PATIENCE)
    async with on_two_workers(server) as clients:
        assert not set(clients) & set(victims)
        assert (other in clients) == (dead == 1)
    await assert_one_hub(server)
    await assert_ends(server)
    assert len(re.findall(WAITS, server.printed())) == dead
    assert len(re.findall(SERVES, server.printed())) == dead


@pytest.mark.parametrize("engine_is", ["away", "silent"])
async def test_a_worker_that_waits_for_the_broker_ends_at_once(run, engine, tmp_path, engine_is):
    """Between two tries, and in one, which may take it 30 s here."""
    text = (PROGRAMS / "deployed.py").read_text()
    target = tmp_path / "deployed.py"
    target.write_text(text.replace("slow_callback=60", "slow_callback=60, broker_timeout=30"))
    options = ("--workers", "2", "--drain", "0")
    server = run(*options, env={"BROKER": engine.url}, target=str(target))
    tries = asyncio.Semaphore(0)

    async def say_nothing(reader, writer):
        tries.release()
        await reader.read()
        writer.close()

    async with on_two_workers(server) as clients, contextlib.AsyncExitStack() as stack:
        engine.stop()
        os.kill(next(iter(clients)), signal.SIGKILL)
        await asyncio.to_thread(server.process.wait_for_output, WAITS)
        if engine_is == "silent":
            await stack.enter_async_context(in_the_place_of(engine, say_nothing))
            async with asyncio.timeout(PATIENCE):  # one is the other worker's, which stays in it
                await tries.acquire()
                await tries.acquire()
        await assert_ends(server)


async def test_a_replacement_that_fails_by_itself_ends_the_server(run, redis_server, tmp_path):
    """As one of an app that was changed for the worse meanwhile."""
    target = shutil.copy(PROGRAMS / "deployed.py", tmp_path)
    server = run("--workers", "2", env={"BROKER": redis_server.url}, target=target)
    async with on_two_workers(server) as clients:
        tmp_path.joinpath("deployed.py").write_text("wrong")
        victim, other = clients
        os.kill(victim, signal.SIGKILL)
        assert (await ended(clients[other]))[0] == 1012
    assert await asyncio.to_thread(server.process.wait) == 1
    assert "name 'wrong' is not defined" in server.printed()


# ── SIGHUP ────────────────────────────────────────────────────────────────────────────────────


SLOW = """
import time
from pathlib import Path

Path(__file__).with_name("started").touch()
time.sleep(30)
"""


async def close_code(client):
    """Wait for what takes as long as workers take to start, one after the other."""
    await asyncio.wait_for(client.wait_closed(), 60)
    return client.close_code


async def assert_replaces_all(server):
    """SIGHUP takes one worker after the other, and one serves always; who leaves says 503."""
    async with on_two_workers(server) as clients:
        server.process.signal(signal.SIGHUP)
        leaving = asyncio.gather(*(close_code(client) for client in clients.values()))
        while not leaving.done():
            with contextlib.suppress(InvalidStatus):
                async with server.connect("/ws/cars") as client:
                    await read(client)
        assert leaving.result() == [1012, 1012]
        old = set(clients)
    async with on_two_workers(server) as clients:
        assert not old & set(clients)
    said = r"INFO +backchannel.hub: reloaded: workers ([\d, ]+) serve in place of ([\d, ]+)\n"
    line = await asyncio.to_thread(server.process.wait_for_output, said)
    assert [set(map(int, pids.split(", "))) for pids in line.groups()] == [set(clients), old]


async def test_sighup_replaces_the_workers(run, redis_server):
    server = run("--workers", "2", "--drain", "0.5", env={"BROKER": redis_server.url})
    await assert_replaces_all(server)
    await assert_one_hub(server)
    await assert_ends(server)


async def test_sighup_without_the_broker_keeps_the_workers(run, engine):
    server = run("--workers", "2", "--drain", "0.5", env={"BROKER": engine.url})
    async with on_two_workers(server) as clients:
        engine.stop()
        server.process.signal(signal.SIGHUP)
        kept = r"worker \d+ stays: what was to replace it does not serve"
        await asyncio.to_thread(server.process.wait_for_output, kept)
        assert "reloaded" not in server.printed()
        for client in clients.values():
            await asyncio.wait_for(await client.ping(), PATIENCE)
        engine.start()
        old = set(clients)
    async with on_two_workers(server) as clients:
        assert set(clients) == old
    await assert_replaces_all(server)
    await assert_ends(server)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_wait_for_a_replacement(run, redis_server, tmp_path, sig):
    """It imports for 30 s, which is no reason to wait for it, nor to give it up."""
    text = (PROGRAMS / "deployed.py").read_text()
    target = tmp_path / "deployed.py"
    target.write_text(text)
    options = ("--workers", "2", "--drain", "0")
    server = run(*options, env={"BROKER": redis_server.url}, target=str(target))
    async with on_two_workers(server):
        started = tmp_path / "started"
        target.write_text(text + SLOW)
        server.process.signal(signal.SIGHUP)
        async with asyncio.timeout(PATIENCE):
            while not started.exists():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.02)
        await assert_ends(server, sig)
