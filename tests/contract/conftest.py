"""What tests of several nodes share."""

from __future__ import annotations

import asyncio
import copy
import inspect
import subprocess
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from ports import BUS, free_port, free_ports
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from backchannel import AsyncPublisher, Publisher
from backchannel.broker.redis import RedisBroker
from backchannel.broker.redis.door import Door

LEASE = 1.5
"""Seconds, of brokers that are cut off and killed."""


class Cable:
    """A connection between a node and its engine that can be cut, and made deaf or mute.

    Attributes:
        last_words: once the node has said these, it hears no more.
    """

    last_words = None

    def __init__(self, port):
        self.port = port
        self.is_cut = self.is_deaf = self.is_mute = False
        self.pause = 0.0  # after each 64 KiB that the engine says
        self.delay = 0.0  # seconds before what the node says goes on
        self.writers = []
        self.serving = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}/0"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.cut()
        if self.serving:
            await asyncio.wait(self.serving)

    async def _serve(self, reader, writer):
        self.serving.add(asyncio.current_task())
        if self.is_cut:
            writer.transport.abort()
            return
        try:
            there, away = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:  # the engine is away
            writer.transport.abort()
            return
        self.writers += [writer, away]
        if self.is_cut:  # meanwhile
            self.cut()
        await asyncio.gather(self._pass(reader, away), self._pass(there, writer, back=True))

    async def _pass(self, reader, writer, *, back=False):
        try:
            while data := await reader.read(1 << 16):
                if self.last_words is not None and not back and self.last_words in data:
                    self.is_deaf = True
                if self.delay and not back:
                    asyncio.get_running_loop().call_later(self.delay, writer.write, data)
                elif not (self.is_deaf if back else self.is_mute):
                    writer.write(data)
                if back and self.pause:
                    await asyncio.sleep(self.pause)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    def cut(self):
        """Cut it, and let nobody connect."""
        self.is_cut = True
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    def mend(self):
        """Let connect again."""
        self.is_cut = self.is_deaf = self.is_mute = False
        self.last_words = None


@pytest.fixture
async def cable(redis_server):
    async with Cable(int(redis_server.url.rpartition(":")[2].partition("/")[0])) as cable:
        yield cable


class CabledDoor(Door):
    """Where an engine is, to which each connection goes by a cable: all of one broker's.

    Attributes:
        cables: they, by the port of the engine that they lead to; shared with the doors to the
            other nodes of a cluster.
    """

    def __init__(self, url):
        super().__init__(url)
        self.cables = {}
        self.switch = SimpleNamespace(is_cut=False)

    async def _connect(self, hear):
        if (cable := self.cables.get(self._port)) is None:
            cable = self.cables[self._port] = await Cable(self._port).__aenter__()
            cable.is_cut = self.switch.is_cut
        door = copy.copy(self)
        door._port = int(urlsplit(cable.url).port)
        return await super(CabledDoor, door)._connect(hear)

    def cut(self):
        self.switch.is_cut = True
        for cable in self.cables.values():
            cable.cut()

    def mend(self):
        self.switch.is_cut = False
        for cable in self.cables.values():
            cable.mend()


@pytest.fixture
async def cabled(monkeypatch):
    """Make brokers that can be cut off: ``cabled(url)``, then ``broker.door.cut()``."""
    doors = []

    def make_door(url):
        doors.append(CabledDoor(url))
        return doors[-1]

    def make(url, kind=RedisBroker, **settings):
        broker = kind(url, "test", **{"timeout": 1.0, "lease": LEASE, **settings})
        broker.door = doors[-1]
        return broker

    monkeypatch.setattr("backchannel.broker.redis.broker.Door", make_door)
    yield make
    for door in doors:
        for cable in door.cables.values():
            await cable.__aexit__()


def wait_until(is_so, seconds=30):
    """Wait for what nothing tells of."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if is_so():
                return
        except RedisError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.02)


class EngineCluster:
    """A cluster of masters, each of which may have a replica.

    Args:
        program: the server's.
        folder: where its nodes keep what they have.
        old: the program of an older one, and how many of the masters run it; where all do, so do
            replicas and spare ones.

    Attributes:
        masters: their ports; they share the slots evenly, in this order.
        replicas: of each, by its port.
    """

    def __init__(self, program, folder, *, masters=3, spare=0, replicas=False, **options):
        self.program, self.folder = program, folder
        self.old_program, count = options.get("old", (None, 0))
        ports = free_ports(2 * masters + spare, with_bus=bool(count))
        self.masters, more = ports[:masters], ports[masters : 2 * masters]
        self.spare = ports[2 * masters :]
        self.replicas = dict(zip(self.masters, more, strict=True)) if replicas else {}
        self.old = set(ports if count == masters else ports[:count])
        self.share = options.get("share", -(-16384 // masters))
        self.full_coverage = "yes" if options.get("full_coverage", True) else "no"
        self.bus = {}
        self.running = {}

    @property
    def url(self):
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.masters)

    def ask(self, port, *command, **credentials):
        """Send one node a command; return its reply as it comes."""
        with Redis(port=port, protocol=2, **credentials) as client:
            client.response_callbacks.clear()
            return client.execute_command(*command)

    def start(self):
        ports = [*self.masters, *self.spare, *self.replicas.values()]
        for port in ports:
            self._start(port)
        for port in ports:
            wait_until(lambda port=port: self.ask(port, "PING"))
        for number, port in enumerate(self.masters):
            first, last = number * self.share, min((number + 1) * self.share, 16384) - 1
            self.ask(port, "CLUSTER", "ADDSLOTS", *range(first, last + 1))
            self.ask(port, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        self._meet(ports)
        for master, replica in self.replicas.items():
            self.ask(replica, "CLUSTER", "REPLICATE", self.id_of(master))
        if self.share * len(self.masters) >= 16384:
            wait_until(lambda: all(self._is_up(port) for port in ports))
        for replica in self.replicas.values():
            wait_until(
                lambda at=replica: b"master_link_status:up" in self.ask(at, "INFO", "replication")
            )

    def _meet(self, ports):
        """Make all know each other; who was too busy to shake hands in a second is asked again."""
        deadline = time.monotonic() + 30
        while True:
            for port in ports:
                for other in ports:
                    self.ask(port, "CLUSTER", "MEET", "127.0.0.1", other, self.bus[other])
            try:
                wait_until(lambda: all(self._knows_all(port, len(ports)) for port in ports), 4)
            except AssertionError:
                assert time.monotonic() < deadline
            else:
                return

    def _start(self, port):
        folder = self.folder / str(port)
        folder.mkdir(exist_ok=True)
        is_old = port in self.old
        self.bus[port] = self.bus.get(port) or (port + BUS if is_old else free_port())
        bus = () if is_old else ("--cluster-port", str(self.bus[port]))
        with (self.folder / f"{port}.log").open("ab") as log:
            self.running[port] = subprocess.Popen(
                [
                    self.old_program if is_old else self.program, "--port", str(port), *bus,
                    "--bind", "127.0.0.1", "--save", "", "--dir", folder,
                    "--cluster-enabled", "yes", "--cluster-node-timeout", "1000",
                    "--repl-diskless-sync-delay", "0", "--cluster-allow-replica-migration", "no",
                    "--cluster-require-full-coverage", self.full_coverage,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _knows_all(self, port, count):
        lines = self.ask(port, "CLUSTER", "NODES").splitlines()
        return len(lines) == count and not any(b"handshake" in line for line in lines)

    def _is_up(self, port):
        return b"cluster_state:ok" in self.ask(port, "CLUSTER", "INFO")

    def id_of(self, port):
        return self.ask(port, "CLUSTER", "MYID").decode()

    def flush(self):
        for port in self.masters:
            self.ask(port, "FLUSHALL")

    def owner(self, key):
        """Return the port of the master that has a key."""
        for port in self.running:
            for first, last, master, *_ in self.ask(port, "CLUSTER", "SLOTS"):
                if first <= key_slot(key) <= last:
                    return master[1]
        raise LookupError(key)

    def kill(self, port):
        process = self.running.pop(port)
        process.kill()
        process.wait(20)

    def restart(self, port):
        """Kill a node; it comes back with what it last saved, and is master of what it was."""
        self.kill(port)
        self._start(port)
        wait_until(lambda: self._is_up(port))

    def stop(self):
        for port in list(self.running):
            self.kill(port)


@pytest.fixture(scope="session")
def cluster_process(redis_process, tmp_path_factory):
    """A cluster that is given to one test after the other: nobody kills a master of it."""
    cluster = EngineCluster(redis_process._program, tmp_path_factory.mktemp("cluster"), spare=1)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def old_cluster_process(redis_process, oldest_program, tmp_path_factory):
    """The same of Redis 6.2, which has no topics of shards."""
    folder, old = tmp_path_factory.mktemp("cluster-6.2"), (oldest_program, 3)
    cluster = EngineCluster(redis_process._program, folder, spare=1, old=old)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def old_cluster(old_cluster_process):
    """A real cluster of three masters with Redis 6.2, empty."""
    old_cluster_process.flush()
    return old_cluster_process


@pytest.fixture
def cluster(request):
    """A real cluster of three masters, empty; with the parameter "old" one of Redis 6.2."""
    if getattr(request, "param", "") == "old":
        return request.getfixturevalue("old_cluster")
    cluster = request.getfixturevalue("cluster_process")
    cluster.flush()
    return cluster


@pytest.fixture
def new_cluster(request, redis_process, tmp_path):
    """Start a cluster of the test's own: ``new_cluster(masters=3, replicas=True)``.

    With ``old=2`` two of the masters have Redis 6.2, and no topics of shards.
    """
    made = []

    def start(*, old=0, **options):
        if old:
            options["old"] = (request.getfixturevalue("oldest_program"), old)
        made.append(EngineCluster(redis_process._program, tmp_path, **options))
        made[-1].start()
        return made[-1]

    yield start
    for cluster in made:
        cluster.stop()


class Threaded:
    """A blocking publisher, or an audience of it, as if it were an async one."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        found = getattr(self.inner, name)
        if not callable(found):
            return Threaded(found)
        if name in {"channel", "user", "session", "connection"}:
            return lambda *args: Threaded(found(*args))

        async def call(*args, **options):
            options = {key: bare(value) for key, value in options.items()}
            return await asyncio.to_thread(found, *args, **options)

        return call


def bare(value):
    if isinstance(value, list):
        return [bare(one) for one in value]
    return value.inner if isinstance(value, Threaded) else value


@pytest.fixture(params=["blocking", "async"])
async def make(request):
    """Make publishers of either kind, with the calls of the async one."""
    made = []

    def new(url, hub="outside", **options):
        options = {"timeout": 2.0, **options}
        kind = Publisher if request.param == "blocking" else AsyncPublisher
        made.append(kind(url, hub, **options))
        return Threaded(made[-1]) if request.param == "blocking" else made[-1]

    yield new
    for one in made:
        closing = one.close() if isinstance(one, Publisher) else one.aclose()
        if inspect.isawaitable(closing):
            await closing
