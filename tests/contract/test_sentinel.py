"""A master that others take the place of, as Redis Sentinel's processes say."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time

import pytest
from ports import free_port
from redis import Redis
from redis.exceptions import RedisError, ResponseError
from shared import until

from backchannel import AsyncPublisher, Hub, Listener, Publisher
from backchannel.broker.redis import engine
from backchannel.errors import BrokerUnavailable, BrokerUrlError


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

    def hand_over(self):
        """Let the replica become the master, while the master is there."""
        with self.ask(self.sentinel) as sentinel:
            before = sentinel.sentinel_get_master_addr_by_name("chat")

            def begins():
                with contextlib.suppress(ResponseError):  # it has yet to hear of its replica
                    return sentinel.execute_command("SENTINEL", "FAILOVER", "chat")

            wait_until(begins)
            wait_until(lambda: sentinel.sentinel_get_master_addr_by_name("chat") != before)

    def role_of(self, port):
        with self.ask(port) as client:
            return client.info("replication")["role"]

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
        hub = Hub(broker=url, name="chat", authenticate=lambda request: "ana")
        hub.rule("kept:{name}", history=100, presence=True)
        hub.add("/ws/{channel}", Listener)
        made.append(hub)
        await hub.start()
        return hub

    yield start
    for hub in made:
        await hub.stop()


def link_of(hub):
    return hub._broker._route.engine.link


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


@pytest.mark.timeout(90)
async def test_nodes_follow_a_master_that_hands_over_calmly(replicated, hubs, monkeypatch, caplog):
    """It lives on, cuts nobody off, and goes on as a master until sentinels tell it."""
    monkeypatch.setattr(engine, "BEAT", 0.1)
    one, two = await hubs(replicated.url), await hubs(replicated.url)
    async with one.test_client("/ws/cars") as here, two.test_client("/ws/kept:cars") as there:
        await two.broadcast("kept:cars", "before")
        assert await there.receive() == "before"
        links = [link_of(hub) for hub in (one, two)]
        replicated.hand_over()
        for hub, link in zip((one, two), links, strict=True):
            await until(lambda hub=hub, link=link: link_of(hub) not in {None, link})
        assert replicated.role_of(replicated.master) == "master"  # as it is told only later
        three = await hubs(replicated.url)
        await three.broadcast("cars", "after")
        assert await here.receive() == "after"
        await three.broadcast("kept:cars", "kept")
        assert await there.receive() == "kept"
    told = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert len(told) == 2
    assert all(
        "is lost: another one is the master now; connections stay open" in one for one in told
    )


class Blocking:
    """A blocking publisher, with the calls of the async one that are needed here."""

    def __init__(self, url, **options):
        self.inner = Publisher(url, "chat", **options)

    async def broadcast(self, *args):
        return await asyncio.to_thread(self.inner.broadcast, *args)

    async def count(self):
        return await asyncio.to_thread(self.inner.everyone.count)

    async def history(self, channel):
        return await asyncio.to_thread(self.inner.channel(channel).history)

    async def users(self, channel):
        return await asyncio.to_thread(self.inner.channel(channel).users)

    async def aclose(self):
        self.inner.close()


class Awaiting(AsyncPublisher):
    def __init__(self, url, **options):
        super().__init__(url, "chat", **options)

    async def count(self):
        return await self.everyone.count()

    async def history(self, channel):
        return await self.channel(channel).history()

    async def users(self, channel):
        return await self.channel(channel).users()


@pytest.fixture
async def publishers(replicated):
    both = [kind(replicated.url, timeout=30) for kind in (Blocking, Awaiting)]
    yield both
    for publisher in both:
        await publisher.aclose()


@pytest.mark.timeout(90)
async def test_publishers_follow_the_master(replicated, hubs, publishers):
    hub = await hubs(replicated.url)
    async with hub.test_client("/ws/kept:cars") as client:
        for publisher in publishers:
            assert (await publisher.broadcast("kept:cars", "before")).position
            assert await client.receive() == "before"
            assert await publisher.count() == 1
            assert [len(one.devices) for one in await publisher.users("kept:cars")] == [1]

        await asyncio.to_thread(replicated.kill, replicated.master)
        publishing = [one.broadcast("kept:cars", "after") for one in publishers]
        positions = {sent.position for sent in await asyncio.gather(*publishing)}
        assert len(positions) == 2
        async with asyncio.timeout(40):
            while "connected" not in hub.health.broker:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.02)
        for publisher in publishers:
            await publisher.broadcast("kept:cars", "at last")
            # What came before the hub was back is of an epoch that it did not know.
            while (heard := await client.receive()) != "at last":
                assert heard == "after"
            kept = [one.message for one in await publisher.history("kept:cars")]
            assert kept.count("after") == 2
            assert await publisher.count() == 1
            assert await publisher.users("kept:cars") == ["ana"]
            await publisher.aclose()  # and it may be used again
            assert await publisher.count() == 1


@pytest.mark.timeout(90)
async def test_publishers_follow_a_master_that_hands_over_calmly(
    replicated, hubs, publishers, monkeypatch
):
    monkeypatch.setattr(engine, "BEAT", 0.1)
    monkeypatch.setattr("backchannel.publisher.doorway.FRESH", 0.0)
    hub = await hubs(replicated.url)
    async with hub.test_client("/ws/kept:cars") as client:
        for publisher in publishers:
            await publisher.broadcast("kept:cars", "before")
            assert await client.receive() == "before"
        link = link_of(hub)
        replicated.hand_over()
        await until(lambda: link_of(hub) not in {None, link})
        await hub.broadcast("kept:cars", "heard again")
        assert await client.receive() == "heard again"
        for publisher in publishers:
            await publisher.broadcast("kept:cars", "after")
            assert await client.receive() == "after"
            assert await publisher.count() == 1
        assert replicated.role_of(replicated.master) == "master"  # as it is told only later


@pytest.mark.timeout(90)
async def test_publishers_publish_what_a_replica_refuses_at_the_master(
    replicated, hubs, publishers, monkeypatch
):
    monkeypatch.setattr("backchannel.publisher.doorway.FRESH", 3600)
    await hubs(replicated.url)
    with replicated.ask(replicated.master) as client:
        for publisher in publishers:
            assert (await publisher.broadcast("kept:cars", "before")).position
        replicated.hand_over()
        client.replicaof("127.0.0.1", replicated.replica)
    for publisher in publishers:
        assert (await publisher.broadcast("kept:cars", "after")).position
        kept = [one.message for one in await publisher.history("kept:cars")]
        assert kept.count("after") == publishers.index(publisher) + 1


@pytest.mark.parametrize("kind", [Blocking, Awaiting])
async def test_a_database_of_the_master_is_the_same_however_it_is_written(replicated, hubs, kind):
    master = f"redis://127.0.0.1:{replicated.master}"
    service = replicated.url.rpartition("/")[0]
    ways = [f"{service}/1", f"{service}?db=1", f"{master}/1"]
    nodes = [await hubs(way) for way in ways]
    stranger = await hubs(replicated.url)
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(hub.test_client("/ws/cars"))
            for hub in (*nodes, stranger)
        ]
        for way in ways:
            publisher = kind(way)
            await publisher.broadcast("cars", way)
            assert await publisher.count() == 3
            await publisher.aclose()
        await stranger.everyone.send("other")
        for client in clients[:3]:
            assert [await client.receive() for _ in ways] == ways
        assert await clients[3].receive() == "other"


@pytest.mark.parametrize("kind", [Blocking, Awaiting])
async def test_publishers_name_sentinels_that_do_not_answer_or_know_the_master(
    replicated, free_port, kind
):
    for port, service in ((free_port, "chat"), (replicated.sentinel, "caht")):
        publisher = kind(f"redis+sentinel://127.0.0.1:{port}/{service}", timeout=0.5)
        said = f"none of the sentinels 127.0.0.1:{port} answers and knows a master '{service}'"
        with pytest.raises(BrokerUnavailable, match=f"is away: {said}") as caught:
            await asyncio.wait_for(publisher.broadcast("cars", "x"), 3)
        assert len(str(caught.value)) < 250
        await publisher.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:secret@h:1/chat?sentinel_password=secret",
        "redis+sentinel://h:1/chat?db=0&password=secret",
        "redis://h:1/0?password=secret",
    ],
)
def test_no_password_of_a_url_is_shown(url):
    for shown in (Hub(broker=url).health.broker, repr(Publisher(url)), repr(AsyncPublisher(url))):
        assert "h:1" in shown
        assert "secret" not in shown


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
