"""A master that others take the place of, as Redis Sentinel's processes say."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time

import pytest
from redis import Redis
from redis.exceptions import RedisError

from backchannel import Hub, Listener
from backchannel.errors import BrokerUnavailable, BrokerUrlError


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(is_so, seconds=30):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if is_so():
                return
        except RedisError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)  # nothing tells when a process is so far


class Replicated:
    """A master, its replica, and a sentinel that watches them."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        self.master, self.replica, self.sentinel = free_port(), free_port(), free_port()
        self.running = {}

    def start(self):
        self._start(self.master)
        self._start(self.replica, "--replicaof", "127.0.0.1", str(self.master))
        wait_until(lambda: self.ask(self.replica).info()["master_link_status"] == "up")
        conf = self.folder / "sentinel.conf"
        conf.write_text(
            f"port {self.sentinel}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor chat 127.0.0.1 {self.master} 1\n"
            "sentinel down-after-milliseconds chat 500\nsentinel failover-timeout chat 3000\n"
        )
        self._run(self.sentinel, str(conf), "--sentinel")
        wait_until(lambda: len(self.ask(self.sentinel).sentinel_slaves("chat")) == 1)

    def _start(self, port, *more):
        folder = self.folder / str(port)
        folder.mkdir()
        self._run(
            port, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder),
            "--repl-diskless-sync-delay", "0", *more,
        )  # fmt: skip
        wait_until(lambda: self.ask(port).ping())

    def _run(self, port, *arguments):
        log = (self.folder / f"{port}.log").open("wb")
        self.running[port] = subprocess.Popen(
            [self.program, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        log.close()

    def ask(self, port):
        return Redis(port=port, protocol=2)

    def kill(self, port):
        process = self.running.pop(port)
        process.kill()
        process.wait(20)

    def stop(self):
        for port in list(self.running):
            self.kill(port)

    @property
    def url(self):
        nobody = free_port()
        return f"redis+sentinel://127.0.0.1:{nobody},127.0.0.1:{self.sentinel}/chat/0"


@pytest.fixture
def replicated(redis_process, tmp_path):
    engines = Replicated(redis_process._program, tmp_path)
    try:
        engines.start()
        yield engines
    finally:
        engines.stop()


@pytest.fixture
async def hubs():
    made = []

    async def start(url):
        hub = Hub(broker=url, name="chat")
        hub.rule("kept:{name}", history=100)
        hub.add("/ws/{channel}", Listener)
        made.append(hub)
        await hub.start()
        return hub

    yield start
    for hub in made:
        await hub.stop()


@pytest.mark.timeout(90)
async def test_nodes_follow_the_master(replicated, hubs):
    one, two = await hubs(replicated.url), await hubs(replicated.url)
    async with one.test_client("/ws/cars") as here, two.test_client("/ws/kept:cars") as there:
        await two.broadcast("cars", "before")
        assert await here.receive() == "before"
        before = (await one.broadcast("kept:cars", "kept")).position
        assert await there.receive() == "kept"

        await asyncio.to_thread(replicated.kill, replicated.master)
        async with asyncio.timeout(40):
            for hub in (one, two):
                while "away" not in hub.health.broker:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.02)
            for hub in (one, two):
                while "connected" not in hub.health.broker:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

        assert here.connection.is_open
        await two.broadcast("cars", "after")
        assert await here.receive() == "after"
        after = (await one.broadcast("kept:cars", "kept too")).position
        assert await there.receive() == "kept too"
        assert after.epoch != before.epoch  # what the replica did not have may be lost
        assert (await one.channel("kept:cars").history(since=before)).lost


async def test_sentinels_that_do_not_answer_or_know_the_master_are_named(replicated, free_port):
    url = f"redis+sentinel://127.0.0.1:{free_port}/chat"
    with pytest.raises(BrokerUnavailable, match=f"no sentinel tells the master: .*{free_port}"):
        await Hub(broker=url).start()
    url = f"redis+sentinel://127.0.0.1:{replicated.sentinel}/caht"
    with pytest.raises(BrokerUnavailable, match="it knows no 'caht'"):
        await Hub(broker=url).start()


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://127.0.0.1:26379",
        "redis+sentinel:///chat",
        "redis+sentinel://host:port/chat",
        "redis+sentinel://a:1,,b:2/chat",
    ],
)
def test_what_is_no_url_of_sentinels_is_refused(url):
    with pytest.raises(BrokerUrlError, match="it looks like redis"):
        Hub(broker=url)
