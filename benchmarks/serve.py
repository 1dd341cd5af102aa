"""Run a server under test on the first core, and the load generator on the second."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import make
from figures import Run, check
from peers import PEERS
from plan import SCENARIOS

START_SECONDS = 30
FILES = 20_000


class FailedError(Exception):
    """A run that gave no valid figures; the text is for the reader of the terminal."""


def allow_many_files() -> None:
    """Let this process's children have so many sockets."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    allowed = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def one_run(name: str, peer: str, seconds: float, warm_up: float) -> Run:
    """Put a scenario's load on a server; return what the generator counted."""
    scenario = SCENARIOS[name]
    steps = {key: load_on(name, peer, load, seconds, warm_up) for key, load in scenario.before}
    load = os.getloadavg()[0]
    if scenario.load.startswith("program "):
        run = program_run(name, peer)
    else:
        run = load_on(name, peer, scenario.load, seconds, warm_up)
    run.update(steps, load=load)
    if wrong := check(scenario.kind, run):
        raise FailedError(f"{peer}: {wrong}")
    return run


def load_on(name: str, peer: str, load: str, seconds: float, warm_up: float) -> Run:
    """Start a server, put one load on it, stop it."""
    log = make.BUILD / f"{name}.{peer}.log"
    with contextlib.ExitStack() as stack:
        about, scenario = PEERS[peer], SCENARIOS[name]
        arguments = [about.paths.get(part, part) for part in shlex.split(load)]
        if about.dialect != "raw":
            arguments += ["--dialect", about.dialect]
        broker = None
        if scenario.nodes == 2:
            broker, engine = stack.enter_context(valkey(make.BUILD / f"{name}.valkey.log"))
            other = make.BUILD / f"{name}.{peer}.other.log"
            second, port = stack.enter_context(serving(peer, other, broker))
            arguments += ["--watch", str(second), "--watch", str(engine)]
            arguments += ["--other-port", str(port)]
        pid, port = stack.enter_context(serving(peer, log, broker))
        warm_up = max(warm_up, about.warm_up)
        arguments += ["--seconds", str(seconds), "--warmup", str(warm_up)]
        arguments += ["--port", str(port), "--server-pid", str(pid)]
        generator = start([str(make.LOADGEN), *arguments], 1, stdout=subprocess.PIPE)
        with generator:
            try:
                output, complaint = generator.communicate()
            except BaseException:
                generator.kill()
                raise
    if generator.returncode:
        raise FailedError(f"{peer}: {complaint.strip()}\n{output.strip()}\n{tail(log)}")
    run: Run = json.loads(output)
    return run


def program_run(name: str, peer: str) -> Run:
    """Run a peer's own program beside a Valkey; return what it counted."""
    what = SCENARIOS[name].load.removeprefix("program ")
    with contextlib.ExitStack() as stack:
        broker, engine = stack.enter_context(valkey(make.BUILD / f"{name}.valkey.log"))
        command, core = [*PEERS[peer].program, what], 0
        if (program := what.split()[0]) in CLIENTS:  # the program is the clients
            core = 1
            command = [sys.executable, *CLIENTS[program](stack, name, peer, broker, engine)]
        with start(command, core, stdout=subprocess.PIPE, broker=broker) as program:
            output, complaint = program.communicate()
    if program.returncode:
        raise FailedError(f"{peer}: {complaint.strip()[-2000:]}")
    run: Run = json.loads(output)
    return run


def catch_up(
    stack: contextlib.ExitStack, name: str, peer: str, broker: str, _engine: int
) -> list[str]:
    """Start a server; return the command of its clients."""
    pid, port = stack.enter_context(serving(peer, make.BUILD / f"{name}.{peer}.log", broker))
    return ["catch_up.py", str(port), str(pid)]


def recover(
    stack: contextlib.ExitStack, name: str, peer: str, broker: str, _engine: int
) -> list[str]:
    """Start a server; return the command of the clients that go and come back."""
    pid, port = stack.enter_context(serving(peer, make.BUILD / f"{name}.{peer}.log", broker))
    return ["recover.py", PEERS[peer].dialect, str(port), str(pid)]


def come_back(
    stack: contextlib.ExitStack, name: str, peer: str, broker: str, engine: int
) -> list[str]:
    """Start two nodes; return the command of the clients that lose the first of them."""
    nodes = []
    for which in ("", ".other"):
        log = make.BUILD / f"{name}.{peer}{which}.log"
        pid, port = stack.enter_context(serving(peer, log, broker))
        nodes += [str(port), str(pid)]
    how = SCENARIOS[name].load.split()[-1]
    arguments = [PEERS[peer].dialect, how, "--engine", str(engine), "--nodes", *nodes]
    return ["comeback.py", *arguments]


def kept(stack: contextlib.ExitStack, name: str, peer: str, broker: str, _engine: int) -> list[str]:
    """Start a server, with a broker of its own or of several nodes; return its clients' command."""
    shared = SCENARIOS[name].load.endswith("engine")
    log = make.BUILD / f"{name}.{peer}.log"
    pid, port = stack.enter_context(serving(peer, log, broker if shared else None))
    return ["kept.py", str(port), str(pid), *([broker] if shared else [])]


CLIENTS = {"catch-up": catch_up, "recover": recover, "comeback": come_back, "kept": kept}


def tail(log: Path) -> str:
    """Return the end of what a server printed."""
    text = log.read_text(errors="replace").strip()
    return f"The server's last words:\n{text[-2000:]}" if text else "The server printed nothing."


@contextlib.contextmanager
def serving(peer: str, log: Path, broker: str | None = None) -> Iterator[tuple[int, int]]:
    """Run a peer's server; give its process id and port.

    ``broker`` is the URL of what is between it and others, where it is one of several nodes.
    """
    port = free_port()
    command = [part.format(port=port) for part in PEERS[peer].command]
    with log.open("w") as out:
        server = start(command, 0, stdout=out, broker=broker)
    with server:
        try:
            wait_for(server, port, log)
            yield server.pid, port
        finally:
            server.kill()  # what it would do at its end is not measured


@contextlib.contextmanager
def valkey(log: Path) -> Iterator[tuple[str, int]]:
    """Run an empty Valkey on the generator's core; give its URL and process id."""
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(make.BUILD)]
    with log.open("w") as out:
        server = start([str(make.valkey()), *options], 1, stdout=out)
    with server:
        try:
            wait_for(server, port, log)
            yield f"redis://127.0.0.1:{port}/0", server.pid
        finally:
            server.kill()


def free_port() -> int:
    """Find a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(
    command: list[str], core: int, stdout: object, broker: str | None = None
) -> subprocess.Popen[str]:
    """Start a process on a core of its own, where there are two; its threads stay there too."""
    cores = os.sched_getaffinity(0)
    if len(cores) > 1:
        os.sched_setaffinity(0, {sorted(cores)[core]})
    try:
        return subprocess.Popen(
            command, cwd=make.SERVERS, text=True, stdout=stdout,
            stderr=subprocess.PIPE if stdout == subprocess.PIPE else subprocess.STDOUT,
            env=os.environ | ({"BROKER": broker} if broker else {}),
        )  # fmt: skip
    finally:
        os.sched_setaffinity(0, cores)


def wait_for(server: subprocess.Popen[str], port: int, log: Path) -> None:
    """Return when the port answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise FailedError(f"{log.stem}: the server did not start:\n{tail(log)}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.02)
    raise FailedError(f"{log.stem}: the server did not answer within {START_SECONDS} s")
