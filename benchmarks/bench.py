"""Measure Backchannel beside other servers on this machine: `python benchmarks/bench.py`.

Each run starts a fresh server on one core and the load generator (loadgen.c) on another. The
servers take turns, round by round, so that what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import report
from plan import PEERS, SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
LOADGEN = BUILD / "loadgen"
RESULTS = HERE / "RESULTS.md"
START_SECONDS = 30
STOP_SECONDS = 10
FILES = 20_000


class FailedError(Exception):
    """A run that gave no valid figures; the text is for the reader of the terminal."""


def main() -> int:
    """Run what the command line asks for; 1 when a run failed."""
    options = read_arguments()
    prepare()
    measured: report.Measured = {}
    failures = 0
    for name in options.scenarios:
        try:
            measured[name] = measure(name, options)
        except FailedError as failure:
            failures += 1
            print(f"\n{name} FAILED: {failure}\n", flush=True)
        else:
            print(f"\n{report.section(name, measured[name])}\n", flush=True)
    about = report.about(options.rounds, options.seconds)
    if options.json:
        options.json.write_text(json.dumps({"about": about, "runs": measured}, indent=1) + "\n")
    if options.write and not failures:
        RESULTS.write_text(report.page(about, measured))
    elif options.write:
        print(f"{RESULTS.name} was not written: {failures} scenarios failed.")
    return 1 if failures else 0


def read_arguments() -> argparse.Namespace:
    """Read the command line; scenario and peer names come out as lists."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(SCENARIOS)
    parser.add_argument("scenarios", nargs="*", help=f"all when absent: {names}; or fanout, echo")
    parser.add_argument("--peers", default=",".join(PEERS), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=5, help="of one run (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the raw figures")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    asked = options.scenarios or list(SCENARIOS)
    options.scenarios = [n for n in SCENARIOS if n in asked or n.split("-")[0] in asked]
    options.peers = options.peers.split(",")
    known = {*SCENARIOS, *(n.split("-")[0] for n in SCENARIOS)}
    if unknown := set(asked) - known:
        parser.error(f"unknown scenario {', '.join(sorted(unknown))}; there are {names}")
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"unknown peer {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    if options.rounds < 1 or options.seconds < 1:
        parser.error("--rounds and --seconds must be at least 1")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"there is no folder {options.json.parent}")
    return options


def prepare() -> None:
    """Check what is needed, build the load generator, allow a thousand sockets and more."""
    if sys.platform != "linux":
        sys.exit("The load generator needs Linux (epoll).")
    if missing := report.missing_packages():
        sys.exit(
            f"{sys.executable} lacks {', '.join(missing)}: run this with the checkout's own "
            "Python (.venv/bin/python benchmarks/bench.py)."
        )
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        sys.exit("A C compiler is needed for the load generator: install gcc.")
    BUILD.mkdir(exist_ok=True)
    source = str(HERE / "loadgen.c")
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", str(LOADGEN), source]
    if subprocess.run(command, check=False).returncode:
        sys.exit("The load generator did not build.")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    allowed = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if len(os.sched_getaffinity(0)) < 2:
        print("Only one core: server and load generator share it, rates will be low.")


def measure(name: str, options: argparse.Namespace) -> dict[str, list[report.Run]]:
    """Run one scenario: every peer once a round, A B A B."""
    runs: dict[str, list[report.Run]] = {peer: [] for peer in options.peers}
    for number in range(1, options.rounds + 1):
        for peer in options.peers:
            run = one_run(name, peer, options.seconds)
            runs[peer].append(run)
            print(f"{name} {number}/{options.rounds} {peer}: {report.line(name, run)}", flush=True)
    return runs


def one_run(name: str, peer: str, seconds: int) -> report.Run:
    """Start a server, put the load on it, stop it; return what the generator counted."""
    with serving(peer, BUILD / f"{name}.{peer}.log") as (pid, port):
        arguments = [*SCENARIOS[name].arguments, "--seconds", str(seconds)]
        arguments += ["--port", str(port), "--server-pid", str(pid)]
        generator = subprocess.Popen(
            [str(LOADGEN), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        pin(generator.pid, 1)
        with generator:
            try:
                output, complaint = generator.communicate()
            except BaseException:
                generator.kill()
                raise
        if generator.returncode:
            raise FailedError(f"{peer}: {complaint.strip()}\n{output.strip()}\n{tail(name, peer)}")
    result: dict[str, Any] = json.loads(output)
    return result


def tail(name: str, peer: str) -> str:
    """Return the end of what a server printed."""
    text = (BUILD / f"{name}.{peer}.log").read_text(errors="replace").strip()
    return f"The server's last words:\n{text[-3000:]}" if text else "The server printed nothing."


@contextlib.contextmanager
def serving(peer: str, log: Path) -> Iterator[tuple[int, int]]:
    """Run a peer's server on the first core; give its process id and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [part.format(port=port) for part in PEERS[peer].command]
    with log.open("w") as out:
        server = subprocess.Popen(command, cwd=HERE / "servers", stdout=out, stderr=out)
    try:
        pin(server.pid, 0)
        wait_for(server, port, log)
        yield server.pid, port
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def pin(pid: int, index: int) -> None:
    """Give a process one core of its own, where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(pid, {cores[index]})


def wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the port answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise FailedError(f"{log.stem}: the server did not start:\n{log.read_text()[-3000:]}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    raise FailedError(f"{log.stem}: the server did not answer within {START_SECONDS} s")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
