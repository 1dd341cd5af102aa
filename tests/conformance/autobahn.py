# ruff: noqa: T201
"""Run Autobahn|Testsuite against the native transport: `python3 dev.py conformance`.

All 517 cases of its client, on uvloop and on asyncio, against a server of its own each. The suite
is a Python 2.7 program; it is set up once in build/autobahn. Without a Python 2.7 it can't run,
which is said, and is no failure unless --required is given.

Arguments: --loop asyncio|uvloop for one of them, --required, and case groups such as 9 or 12.1
to run only these. A full run writes its summary to tests/conformance/AUTOBAHN.md.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "autobahn"
VENV = BUILD / "python27"
SUITE = "25.10.1"
LOOPS = ("uvloop", "asyncio")
CASES = {"1": 16, "2": 11, "3": 7, "4": 10, "5": 20, "6": 145, "7": 37, "9": 54, "10": 1, "12": 90,
         "13": 126}  # fmt: skip
# Its client sometimes hangs when it runs long: in batches, one of which can be run again.
BATCHES = ("1 2 3 4 5 7 10", "6", "9", *(f"12.{n}" for n in range(1, 6)),
           *(f"13.{n}" for n in range(1, 8)))  # fmt: skip
NARROW = {"13.3", "13.5"}
"""Whose client wants a window of 512 bytes: they talk to a hub with that window, since one with
the default window would serve them uncompressed."""

LONGEST = 600.0
"""Seconds a batch may take; on a quiet machine the longest takes 60."""

ALLOWED: dict[str, str] = {}
"""NON-STRICT cases that are as they should be, with the reason."""


class Problem(Exception):  # noqa: N818 - it is told, not raised at people
    """Why the suite could not run."""


def main() -> int:
    """Run the suite; returns the exit code."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--loop", choices=LOOPS, action="append")
    asked.add_argument("--required", action="store_true", help="fail without a Python 2.7")
    asked.add_argument("groups", nargs="*", help="such as 9 or 12.1; all by default")
    options = asked.parse_args()
    python = find_python27()
    if python is None:
        print("Autobahn|Testsuite was NOT RUN: there is no Python 2.7 here.")
        return 1 if options.required else 0
    began = time.monotonic()
    loops = tuple(options.loop or LOOPS)
    try:
        set_up(python)
        results = run(loops, options.groups)
    except Problem as problem:
        print(f"FAILED: {problem}")
        return 1
    bad = judge(results)
    seconds = time.monotonic() - began
    print(*summary(results), sep="\n")
    print(f"{sum(map(len, results.values()))} cases in {seconds:.0f} s")
    if not options.groups and loops == LOOPS and not bad:
        (HERE / "AUTOBAHN.md").write_text(document(results, seconds))
    print(*bad, "FAILED" if bad else "All cases are as they should be.", sep="\n")
    return 1 if bad else 0


# ── the suite ─────────────────────────────────────────────────────────────────────────────────


def find_python27() -> str | None:
    """Return a Python 2.7 that works, from the path or from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    here = [shutil.which("python2.7"), *map(str, sorted(pyenv.glob("2.7*/bin/python2.7")))]
    for python in filter(None, here):
        answer = subprocess.run(
            [python, "-c", "import sys, ssl; print(sys.version_info[:2] == (2, 7))"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if answer.stdout.strip() == "True":
            return python
    return None


def set_up(python: str) -> None:
    """Install the suite, once; the stamp says which."""
    needs = HERE / "requirements-python27.txt"
    stamp, wanted = BUILD / "installed", f"{SUITE} {python} {needs.read_text()}"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("Setting up Autobahn|Testsuite (once)…", flush=True)
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    boot, pip = BUILD / "virtualenv", [str(VENV / "bin/python"), "-m", "pip", "install", "-q"]
    step(python, "-m", "pip", "install", "-q", "--target", str(boot), "virtualenv<20.22")
    step(python, "-m", "virtualenv", "-q", str(VENV), PYTHONPATH=str(boot))
    step(*pip, "-r", str(needs))
    step(*pip, "autobahn[accelerate]==0.10.9")
    step(*pip, f"autobahntestsuite=={SUITE}")
    stamp.write_text(wanted)


def step(*command: str, **environment: str) -> None:
    """Run a step of the set-up; what it prints is told when it fails."""
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, env={**os.environ, **quiet, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise Problem(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


# ── the run ───────────────────────────────────────────────────────────────────────────────────


def run(loops: tuple[str, ...], groups: list[str]) -> dict[str, dict[str, dict[str, str]]]:
    """Run the cases; returns {loop: {case: its entry in the suite's index}}.

    Client and server of a batch take turns, so that one batch for each core keeps them busy.
    """
    batches = list(groups or BATCHES)
    results: dict[str, dict[str, dict[str, str]]] = {loop: {} for loop in loops}
    with contextlib.ExitStack() as stack:
        ports = {loop: stack.enter_context(serving(loop)) for loop in loops}
        threads = stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 1))
        work = [(loop, batch) for batch in reversed(batches) for loop in loops]  # the longest first
        for (loop, _), found in zip(
            work, threads.map(lambda job: run_batch(*job, ports[job[0]]), work), strict=True
        ):
            results[loop].update(found)
    if not groups:
        for loop, found in results.items():
            counts = collections.Counter(case.partition(".")[0] for case in found)
            if counts != CASES:
                raise Problem(f"{loop}: not all cases ran: {dict(counts)} instead of {CASES}")
    return {loop: dict(sorted(found.items(), key=by_number)) for loop, found in results.items()}


def by_number(item: tuple[str, object]) -> list[int]:
    """Sort 9.1.10 after 9.1.9."""
    return [int(part) for part in item[0].split(".")]


@contextlib.contextmanager
def serving(loop: str):
    """Serve the echo on a free port; a server that ends or complains fails the run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = BUILD / f"server-{loop}.log"
    command = [
        sys.executable, "-m", "uvicorn", "echo:app", "--port", str(port), "--loop", loop,
        "--ws", "backchannel.transport.uvicorn:Protocol",
        "--http", "backchannel.transport.uvicorn:HttpProtocol", "--log-level", "warning",
    ]  # fmt: skip
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=HERE, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            if server.poll() is not None or time.monotonic() > deadline:
                raise Problem(f"the server does not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield port
        if server.poll() is not None:
            raise Problem(f"the server on {loop} ended:\n{log.read_text()}")
    finally:
        server.terminate()
        server.wait(10)
    if complaints := log.read_text().strip():
        raise Problem(f"the server on {loop} printed:\n{complaints[-4000:]}")


def run_batch(loop: str, batch: str, port: int) -> dict[str, dict[str, str]]:
    """Run a batch of cases, a second time when the suite's client hangs; return its index."""
    name = f"{loop}-{batch.replace(' ', '-')}"
    folder = BUILD / "reports" / name
    url = f"ws://127.0.0.1:{port}/ws/{'narrow' if batch in NARROW else 'echo'}"
    for attempt in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        spec = {
            "outdir": str(folder),
            "options": {"failByDrop": False},
            "servers": [{"agent": "backchannel", "url": url}],
            "cases": [f"{group}.*" for group in batch.split()],
            "exclude-cases": [],
        }
        (folder / "spec.json").write_text(json.dumps(spec))
        command = [str(VENV / "bin/wstest"), "-m", "fuzzingclient", "-s", str(folder / "spec.json")]
        began = time.monotonic()
        with (folder / "log").open("wb") as log, contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, check=False, cwd=folder,
                timeout=LONGEST,
            )  # fmt: skip
        if (folder / "index.json").exists():
            index = json.loads((folder / "index.json").read_text()).get("backchannel", {})
            print(f"{name}: {len(index)} cases, {time.monotonic() - began:.0f} s", flush=True)
            return index
        print(f"{name}: wstest wrote no report (attempt {attempt + 1})", flush=True)
    raise Problem(f"{name}: wstest wrote no report; see {folder / 'log'}")


# ── the verdict ───────────────────────────────────────────────────────────────────────────────


def judge(results: dict[str, dict[str, dict[str, str]]]) -> list[str]:
    """Return what is not as it should be, a line each."""
    return [
        f"{loop}: {case} is {entry['behavior']}, its close {entry['behaviorClose']}"
        for loop, found in results.items()
        for case, entry in found.items()
        if not is_well(case, entry)
    ]


def is_well(case: str, entry: dict[str, str]) -> bool:
    """Tell whether a case is OK, informational, or allowed not to be strict."""
    fine = {"OK", "INFORMATIONAL", *(["NON-STRICT"] if case in ALLOWED else [])}
    return {entry["behavior"], entry["behaviorClose"]} <= fine


def summary(results: dict[str, dict[str, dict[str, str]]]) -> list[str]:
    """Return a table of the groups, a column for each event loop."""
    lines = [f"| group | cases | {' | '.join(results)} |", "|---|---|" + "---|" * len(results)]
    groups = dict.fromkeys(case.partition(".")[0] for found in results.values() for case in found)
    for group in groups:
        cells = []
        for found in results.values():
            inside = [e for case, e in found.items() if case.partition(".")[0] == group]
            counts = collections.Counter(entry["behavior"] for entry in inside)
            cells.append(", ".join(f"{count} {what}" for what, count in counts.most_common()))
        lines.append(f"| {group} | {len(inside)} | {' | '.join(cells)} |")
    return lines


def document(results: dict[str, dict[str, dict[str, str]]], seconds: float) -> str:
    """Return the summary that is kept in the repository."""
    names = ("backchannel", "uvicorn", "uvloop", "httptools", "websockets")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    lenient = sorted(
        {
            case
            for found in results.values()
            for case, e in found.items()
            if "NON-STRICT" in e.values()
        }
    )
    informational = sorted(
        {case for found in results.values() for case, e in found.items()
         if "INFORMATIONAL" in (e["behavior"], e["behaviorClose"])}
    )  # fmt: skip
    return "\n".join(
        [
            "# Autobahn|Testsuite on the native transport",
            "",
            "Written by `python3 dev.py conformance`; the groups are: 1 framing, 2 pings and pongs,",
            "3 reserved bits, 4 opcodes, 5 fragmentation, 6 UTF-8, 7 the closing handshake, 9 limits",
            "and performance, 10 a mix, 12 and 13 permessage-deflate.",
            "",
            *summary(results),
            "",
            "13.3 and 13.5 want a window of 512 bytes, and talk to a hub with `deflate_window=9`; with",
            "the default of 12 they are served uncompressed, as RFC 7692 has it.",
            "",
            f"NON-STRICT: {', '.join(f'{c} ({ALLOWED[c]})' for c in lenient) or 'none'}.",
            "",
            f"Informational, for which there is no right or wrong: {', '.join(informational)}.",
            "",
            (
                f"{sum(map(len, results.values()))} runs in {seconds / 60:.0f} minutes on "
                f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {versions}, "
                f"Autobahn|Testsuite {SUITE}, {platform.system()} on {platform.machine()}."
            ),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
