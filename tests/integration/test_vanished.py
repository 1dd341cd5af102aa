"""Peers that are gone without a word: no FIN, no RST. The server has to find out by itself.

For real: a client process that is stopped, so that its kernel still acknowledges but nobody
answers a ping; and one behind a cable that is pulled, in network namespaces made for the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SERVER = Path(__file__).parents[1] / "load/server.py"
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
PRECISION = 0.4
"""Seconds later than promised that are the machine's: it may be busy. The wheel has three ticks."""

CLIENT = """
import sys
from websockets.sync.client import connect
with connect(sys.argv[1], proxy=None, close_timeout=0.1, ping_interval=None) as client:
    print(client.recv(), flush=True)
    for message in client:
        print(message, flush=True)
"""

ENTER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
namespace = os.open(f"/run/netns/{sys.argv[1]}", os.O_RDONLY)
if libc.setns(namespace, 0x40000000):  # CLONE_NEWNET; os.setns() came with Python 3.12
    raise OSError(ctypes.get_errno(), "setns")
os.close(namespace)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Watched:
    """The server: what it says of itself, and of each ending."""

    def __init__(self, process):
        self.process = process
        self.port = int(process.wait_for_output(r"LISTENING (\d+)")[1])
        self.asked = 0

    def stats(self):
        self.asked += 1
        self.process.signal(signal.SIGUSR1)
        pattern = rf"(?s)(?:STATS .*?\n.*?){{{self.asked - 1}}}STATS (\{{[^\n]*\}})\n"
        return json.loads(self.process.wait_for_output(pattern)[1])

    async def counts(self, wanted, within):
        """Return the counts when they are as wanted, or when the time is over."""
        end = time.monotonic() + within
        while (now := self.stats()["counts"]) != wanted and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # nothing tells
        return now

    def ended(self, tag):
        """Return code, by whom and when, as the listener's on_close was told."""
        said = self.process.wait_for_output(rf"ENDED {tag} (\d+) (\w+) ([\d.]+)\n")
        return int(said[1]), said[2], float(said[3])

    def printed_errors(self):
        lines = self.process.output().splitlines()
        return [one for one in lines if one.split(" ")[0] not in {"LISTENING", "STATS", "ENDED"}]


@pytest.fixture
def watched(process):
    """Start the server: ``watched("uvloop", ping_interval=1.0)``."""

    def start(loop, *, inside=None, host="127.0.0.1", **settings):
        options = ["--loop", loop, "--settings", json.dumps(settings), "--say-ends", "--host", host]
        program = [SERVER] if inside is None else [inside, SERVER]
        return Watched(process(*program, *options))

    return start


@contextlib.contextmanager
def client(watched, tag, *, host="127.0.0.1", inside=(), says="welcome"):
    """A client in a process of its own, once it has been let in."""
    url = f"ws://{host}:{watched.port}/fan/all?tag={tag}"
    program = subprocess.Popen(
        [sys.executable, *inside, *(() if inside else ("-c", CLIENT)), url],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout.readline() == f"{says}\n"
        yield program
    finally:
        program.kill()  # also one that is stopped
        program.wait()
        program.stdout.close()


def check_ending(watched, tag, since, interval, timeout):
    """It was neither too early, the ping may have been sent a moment ago, nor too late."""
    code, by, at = watched.ended(tag)
    assert (code, by) == (4002, "server")
    tick = min(1.0, interval / 10, timeout / 10)
    assert timeout - tick - 0.01 < at - since < interval + timeout + 3 * tick + PRECISION
    return at


@LOOPS
async def test_a_stopped_client_is_let_go_in_time_and_leaves_nothing(watched, loop):
    interval, timeout = 0.4, 0.3
    server = watched(loop, ping_interval=interval, ping_timeout=timeout)
    nobody = server.stats()["counts"]
    with client(server, "alive"):
        one = server.stats()["counts"]
        with client(server, "stopped") as stopped:
            await asyncio.sleep(interval * 1.5)  # real time is the subject: it has answered once
            assert None not in server.stats()["latencies"]
            stopped.send_signal(signal.SIGSTOP)
            check_ending(server, "stopped", time.monotonic(), interval, timeout)
            assert await server.counts(one, within=2.0) == one
        latencies = server.stats()["latencies"]
        assert len(latencies) == 1  # whoever answers stays
        assert latencies[0] < timeout
    assert await server.counts(nobody, within=2.0) == nobody
    assert server.stats()["told"]["on_open"] == server.stats()["told"]["on_close"] == 2
    assert server.printed_errors() == []


async def test_who_answers_late_and_then_never_is_let_go_as_soon_as_any_other(watched, make_raw):
    interval, timeout = 0.2, 1.0
    server = watched("uvloop", ping_interval=interval, ping_timeout=timeout)
    async with make_raw(server, "/fan/all?tag=late") as client:
        await client.opened()
        assert await client.frame() == (1, b"welcome")
        opcode, payload = await client.frame()
        assert opcode == 9
        await asyncio.sleep(interval * 1.3)  # real time is the subject
        since = time.monotonic()
        await client.send(payload, 10)
        await asyncio.sleep(interval * 2)  # from here on it could have been asked again
        check_ending(server, "late", since, interval, timeout)


# ── behind a cable that is pulled ─────────────────────────────────────────────────────────────


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


@pytest.fixture
def cable():
    """Two network namespaces and a cable between; returns their names and the server's address."""
    if sys.platform != "linux" or shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs Linux, root and iproute2's ip for network namespaces")
    names = [f"backchannel-{os.getpid()}-{end}" for end in "sc"]
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        ip("netns", "add", names[1])
        ip("-n", names[0], "link", "add", "veth0", "type", "veth",
           "peer", "name", "veth1", "netns", names[1])  # fmt: skip
        for name, device, address in zip(names, ("veth0", "veth1"), "12", strict=True):
            ip("-n", name, "address", "add", f"10.99.0.{address}/30", "dev", device)
            ip("-n", name, "link", "set", device, "up")
        yield (*names, "10.99.0.1")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@LOOPS
async def test_a_client_whose_cable_is_pulled_is_let_go_in_time_and_leaves_nothing(
    watched, cable, tmp_path, loop
):
    """Nothing comes back, not even an acknowledgement; what was sent to it waits in the kernel."""
    servers, clients, host = cable
    interval, timeout = 0.4, 0.3
    enter = tmp_path / "enter.py"
    enter.write_text(ENTER)
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    inside = tmp_path / "inside.py"
    inside.write_text(ENTER.replace("sys.argv[1]", repr(servers)).replace("argv[2:]", "argv[1:]"))
    server = watched(loop, inside=inside, host=host, ping_interval=interval, ping_timeout=timeout)
    nobody = server.stats()["counts"]
    with client(server, "cut", host=host, inside=(enter, clients, script)):
        await asyncio.sleep(interval * 1.5)  # real time is the subject: it has answered once
        assert None not in server.stats()["latencies"]
        ip("-n", clients, "link", "set", "veth1", "down")
        check_ending(server, "cut", time.monotonic(), interval, timeout)
        assert await server.counts(nobody, within=2.0) == nobody
    assert server.printed_errors() == []


# ── there, but taking nothing ─────────────────────────────────────────────────────────────────


@LOOPS
@pytest.mark.parametrize("way", ["close frame", "end of its stream"])
async def test_who_says_goodbye_and_takes_nothing_of_what_waits_is_let_go(
    watched, make_raw, loop, way
):
    """Its kernel takes no more bytes, so that what waits for it would wait for ever."""
    server = watched(loop, max_outbox=1 << 28, close_timeout=0.3, ping_interval=600)
    nobody = server.stats()["counts"]
    async with (
        make_raw(server, "/fan/all?tag=sender") as sender,
        make_raw(server, "/fan/all?tag=leaver", receive_buffer=4096) as leaver,
    ):
        await sender.opened()
        await leaver.opened()
        assert await sender.frame() == (1, b"welcome")
        one = server.stats()["counts"]
        for _ in range(12):  # more than the kernel's 4 MiB of buffers
            await sender.send("x" * 500_000)
            await sender.frame()
        if way == "close frame":
            await leaver.close(1000)
            assert server.ended("leaver")[:2] == (1000, "client")
        else:
            leaver.socket.shutdown(socket.SHUT_WR)
            assert server.ended("leaver")[:2] == (1006, "network")
        one["descriptors"] -= 1
        one.update({n: one[n] - 1 for n in ("connections", "dispatches", "heartbeats")})
        one["server's connections"] -= 1
        assert await server.counts(one, within=3.0) == one
    assert await server.counts(nobody, within=3.0) == nobody
    assert server.printed_errors() == []
