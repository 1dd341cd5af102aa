"""The servers that the tests share, and fixtures for servers and clients of their own."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parent / "support"
if str(SUPPORT) not in sys.path:
    sys.path.insert(0, str(SUPPORT))

from clients import Peer, Raw  # noqa: E402 - found by the line above
from processes import Process, Server, running  # noqa: E402

NATIVE = "--ws backchannel.transport.uvicorn:Protocol"
PATIENT = "--http backchannel.transport.uvicorn:HttpProtocol"
COMMANDS = {
    "uvicorn-asyncio": "uvicorn served:app --port {port} --ws websockets-sansio --loop asyncio",
    "uvicorn-uvloop": "uvicorn served:app --port {port} --ws websockets-sansio --loop uvloop",
    "native-asyncio": f"uvicorn served:app --port {{port}} {NATIVE} --loop asyncio",
    "native-uvloop": f"uvicorn served:app --port {{port}} {NATIVE} {PATIENT} --loop uvloop",
    "hypercorn": "hypercorn served:app --bind 127.0.0.1:{port}",
    "granian": "granian --interface asgi served:app --port {port}",
}


@pytest.fixture(scope="session", params=list(COMMANDS))
def session_server(request, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / f"{request.param}.log"
    with running(request.param, COMMANDS[request.param], log) as server:
        yield server


@pytest.fixture
def server(session_server, request):
    """A running server; what it prints of errors that the test did not announce fails the test."""
    session_server.mark = len(session_server.process.output())
    yield session_server
    expected = [pattern for marker in request.node.iter_markers("logs") for pattern in marker.args]
    bad = [
        line
        for line in session_server.printed().splitlines()
        if re.search(r"ERROR|CRITICAL|Traceback|never awaited|never retrieved|Warning:", line)
        and not any(re.search(pattern, line) for pattern in expected)
    ]
    assert not bad, f"{session_server.name} printed errors:\n{session_server.printed()}"


def starter(folder, stack):
    def start_one(name, command, **options):
        log = folder / f"{name}-{next(numbers)}.log"
        return stack.enter_context(running(name, command, log, **options))

    numbers = itertools.count()
    return start_one


@pytest.fixture
def start(tmp_path):
    """Start more servers: ``start("uvicorn", "uvicorn served:app --port {port}")``."""
    with contextlib.ExitStack() as stack:
        yield starter(tmp_path, stack)


@pytest.fixture(scope="session")
def start_once(tmp_path_factory):
    """Start servers for the whole session, each command once."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(starter(tmp_path_factory.mktemp("servers"), stack))


@pytest.fixture
def process(tmp_path):
    """Start programs: ``process("backchannel", "run", "chat.py")``; they are ended after the test."""
    with contextlib.ExitStack() as stack:
        numbers = itertools.count()

        def start_one(*arguments, **options):
            log = tmp_path / f"{Path(arguments[0]).name}-{next(numbers)}.log"
            started = Process([str(one) for one in arguments], log, **options)
            stack.callback(started.end)
            return started

        yield start_one


def pytest_configure(config):
    config.addinivalue_line("markers", "logs(*patterns): errors that the server may print")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Show with a failed test what its servers printed."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Server):
                report.sections.append((f"{value.name} printed", value.printed()[-6000:]))


@pytest.fixture
def make_server():
    """Make the Server of a process that listens: ``make_server(name, process, port)``."""
    return Server


@pytest.fixture
def run(process, make_server):
    """Run ``backchannel run`` on a free port: ``run("--workers", "2")``."""

    def start(*arguments, env=None, target="deployed.py"):
        started = process("backchannel", "run", target, "--port", "0", *arguments, env=env)
        port = started.wait_for_output(r"http?s?ws?://localhost:(\d+)|ws://localhost:(\d+)")
        started.wait_for_output("Ctrl-C to stop")
        return make_server("uvicorn-run", started, int(port[1] or port[2]))

    return start


@pytest.fixture
def make_raw():
    """Make clients without manners of any server: ``make_raw(server, "/ws/echo")``."""
    return Raw


@pytest.fixture
def raw(server):
    """Make clients without manners: ``async with raw("/ws/echo") as client``."""
    return functools.partial(Raw, server)


@pytest.fixture
def peer(server):
    """Make chat clients: ``async with peer("/ws/chat/cars") as ana``."""
    return functools.partial(Peer, server)
