#!/usr/bin/env python3
"""Everything a person or CI does with this checkout. Needs Python 3.11+ and pip, nothing else.

python3 dev.py chat     set up and run the example chat at http://localhost:8888/
python3 dev.py example …  the same for any example, with what it needs; without a name: all of them
python3 dev.py check    set up and run every check: format, lint, types, import ladder, tests
python3 dev.py quick    the same without browsers and most servers: what to run before each commit
python3 dev.py test …   only the tests, with pytest's arguments
python3 dev.py fix      format, mend what the linter can mend, write docs/protocol/*.json
python3 dev.py run …    `backchannel run …` from this checkout, in the folder you are in
python3 dev.py fuzz …   fuzz the frame reader; with --runs N, --seed N, --engine random
python3 dev.py load slow_readers|churn …  clients that never read; clients that come and die
python3 dev.py chaos …  nodes, engine, clients fail at random; --runs N --seed N --results FILE
python3 dev.py conformance …  Autobahn|Testsuite on the native transport (12 minutes)
python3 dev.py lock     renew requirements-dev.lock from pyproject.toml
python3 dev.py setup    only set up
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
LOCK = ROOT / "requirements-dev.lock"
EXAMPLES = {
    "chat": ("chat.py", "channels, names, presence, whispers"),
    "cluster": ("cluster.py", "the same on three servers, with a Valkey between them"),
    "django_project": ("django_project/serve.py:application", "Django's login, users and sessions"),
    "echo": ("echo.py", "the smallest endpoint"),
    "fastapi_app": ("fastapi_app.py:app", "an HTTP POST that broadcasts"),
    "fastapi_login": ("fastapi_login.py:app", "a login, and sockets that know who signed in"),
    "private_chat": ("private_chat.py", "a list of users, and private messages"),
}
"""By name: what is served below examples/, and what it shows. Its first lines say what it needs."""
STARTS_ITSELF = {"cluster"}
"""Examples that start their servers themselves."""

FUZZER = "atheris==3.0.0"  # not in the lock: it has wheels for Linux only
# One process for each CPU, four at most: with more, browsers and servers wait for each other.
# tests/conftest.py says which tests stay together.
PARALLEL = ["-n", "auto", "--maxprocesses", "4"]
READING = {  # these only read, each by itself: they run at the same time
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "mypy": ["mypy"],
    "pyright": ["pyright"],
    "ladder": ["lint-imports"],
}
PROGRAMS = {"chaos": "tests/chaos/chaos.py", "conformance": "tests/conformance/autobahn.py"}
CHECKS = {**READING, "tests": ["pytest", *PARALLEL]}
QUICK = {**READING, "tests": [*CHECKS["tests"], "tests/unit", "tests/contract", "tests/house"]}


def main(command: str = "help", *arguments: str) -> int:
    """Run one command; return its exit code."""
    if command == "chat":
        return example("chat", *arguments)
    if command == "example":
        return example(*arguments)
    if command == "run":
        setup(dev=False)
        return serve(*arguments)
    if command not in {"check", "quick", *PROGRAMS, "test", "fix", "fuzz", "load", "lock", "setup"}:
        print(__doc__)
        return 0 if command == "help" else 2
    setup(dev=True)
    if command in {"check", "quick"}:
        return check(CHECKS if command == "check" else QUICK)
    if command == "test":
        return tool("pytest", *(arguments or PARALLEL))
    if command == "fix":
        schemas = tool("python", "-m", "backchannel.dialect", "docs/protocol")
        return schemas | tool("ruff", "check", "--fix", ".") | tool("ruff", "format", ".")
    if command in PROGRAMS:
        return tool("python", PROGRAMS[command], *arguments)
    if command == "fuzz":
        return fuzz(*arguments)
    if command == "load":
        return load(*arguments)
    if command == "lock":
        return lock()
    return 0


def example(name: str = "", *arguments: str) -> int:
    """Run an example, with what it needs; list them when none is named."""
    if name not in EXAMPLES:
        width = max(map(len, EXAMPLES))
        rows = [
            f"  python3 dev.py example {n.ljust(width)}  {what}"
            for n, (_, what) in EXAMPLES.items()
        ]
        problem = [f"There is no example {name!r}. There are:", ""] if name else []
        print("\n".join([*problem, *rows]))
        return 2 if name else 0
    target = str(ROOT / "examples" / EXAMPLES[name][0])
    setup(dev=False)
    text = Path(target.partition(".py")[0] + ".py").read_text(encoding="utf-8")
    add(*(found[1].split() if (found := re.search(r"^Needs: +(.+)$", text, re.MULTILINE)) else ()))
    here = os.path.relpath(target)
    shown = target if here.startswith(os.pardir) else here
    return (
        become("python", shown, *arguments) if name in STARTS_ITSELF else serve(shown, *arguments)
    )


def add(*packages: str) -> None:
    """Install what an example needs beside this checkout; does nothing when it is there."""
    stamp = VENV / ".installed"
    done = stamp.read_text().split()
    missing = [] if "dev" in done else [name for name in packages if name not in done]
    if missing:
        print(f"Installing {', '.join(missing)} into .venv (once)…", flush=True)
        run_or_exit([*make_venv(), "install", "--quiet", "--constraint", str(LOCK), *missing])
        stamp.write_text(" ".join([*done, *missing]))


def setup(*, dev: bool) -> None:
    """Make .venv and install this checkout into it; does nothing when nothing changed."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the message below is for such a Python
        have = ".".join(map(str, sys.version_info[:3]))
        sys.exit(
            f"Backchannel needs Python 3.11 or newer; {sys.executable} is {have}. "
            "Run this with a newer one, for example: python3.12 dev.py chat"
        )
    stamp = VENV / ".installed"
    done = stamp.read_text().split() if stamp.exists() else []
    if done[:1] == [wanted()] and (not dev or done[1:] == ["dev"]):
        return
    print("Setting up .venv (once)…", flush=True)
    pip = make_venv()
    if dev:
        run_or_exit([*pip, "install", "--quiet", "--requirement", str(LOCK)])
    run_or_exit([*pip, "install", "--quiet", "--constraint", str(LOCK), "--editable", str(ROOT)])
    stamp.write_text(f"{wanted()} {'dev' if dev else ''}")


def wanted() -> str:
    """Return what tells whether .venv is as pyproject.toml, the lock and this Python want it."""
    inputs = (ROOT / "pyproject.toml").read_bytes() + LOCK.read_bytes()
    return hashlib.sha256(inputs + sys.version.encode()).hexdigest()


def make_venv() -> list[str]:
    """Create .venv; return the pip command for it.

    Debian's Python comes without ensurepip, so that a plain `-m venv` fails there: then the
    pip that runs outside installs into it (`pip --python`), which PEP 668 allows.
    """
    python = str(BIN / "python")
    if not (BIN / "pip").exists() or subprocess.run([python, "-c", ""], check=False).returncode:
        made = subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, check=False
        )
        if made.returncode:
            run_or_exit([sys.executable, "-m", "venv", "--clear", "--without-pip", str(VENV)])
            return [sys.executable, "-m", "pip", "--python", python]
    return [python, "-m", "pip"]


def check(checks: dict[str, list[str]]) -> int:
    """Run all of some checks, also after one failed; say at the end which did."""
    failed: list[str] = []
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        started = {name: stack.enter_context(start(*READING[name])) for name in READING}
        for name, process in started.items():
            output, _ = process.communicate()  # whole: what they say is not mixed
            print(f"── {name}: {' '.join(READING[name])}\n{output}", end="", flush=True)
            report(name, process.returncode, began, failed)
    for name in checks.keys() - READING.keys():
        print(f"── {name}: {' '.join(checks[name])}", flush=True)
        began = time.monotonic()
        report(name, tool(*checks[name]), began, failed)
    print(f"FAILED: {', '.join(failed)}" if failed else "All checks passed.")
    return 1 if failed else 0


def report(name: str, code: int, began: float, failed: list[str]) -> None:
    """Print how long a check took; note it where it failed."""
    print(f"── {name}: {time.monotonic() - began:.0f} s", flush=True)
    if code:
        failed.append(name)


def fuzz(*arguments: str) -> int:
    """Fuzz the frame reader. Its coverage-guided engine is installed at the first use."""
    if "random" not in arguments and tool("python", "-m", "pip", "install", "--quiet", FUZZER):
        return 1
    return tool("python", "tests/fuzz/fuzz_frames.py", *arguments)


def load(program: str = "", *arguments: str) -> int:
    """Run a load program, as tests/load/README.md describes them."""
    if program not in {"slow_readers", "churn"}:
        print("Say which: python3 dev.py load slow_readers, or python3 dev.py load churn")
        return 2
    return tool("python", f"tests/load/{program}.py", *arguments)


def lock() -> int:
    """Pin what pyproject.toml allows, for every supported Python and system."""
    command = "pip compile --quiet --universal --upgrade --no-header --no-annotate --extra dev"
    return tool("python", "-m", "pip", "install", "--quiet", "uv") or tool(
        "uv", *command.split(), "--no-emit-index-url", "--no-emit-find-links", "--no-emit-package",
        "backchannel", "--output-file", str(LOCK), "pyproject.toml",
    )  # fmt: skip


def serve(*arguments: str) -> int:
    """Become `backchannel run …`; see `become`."""
    return become("backchannel", "run", *arguments)


def become(name: str, *arguments: str) -> int:
    """Become a command of .venv, in the caller's folder; return its exit code where that can't be.

    As one process, since a signal to this one has to end the server too.
    """
    if os.name != "nt":  # there exec makes a second process, and returns to the shell at once
        sys.stdout.flush()
        os.execve(BIN / name, [str(BIN / name), *arguments], environment())  # noqa: S606
    return tool(name, *arguments, folder=Path.cwd())


def tool(name: str, *arguments: str, folder: Path = ROOT) -> int:
    """Run a command of .venv, in the checkout unless told otherwise; return its exit code."""
    command = [str(BIN / name), *arguments]
    try:
        return subprocess.run(command, cwd=folder, env=environment(), check=False).returncode
    except KeyboardInterrupt:
        return 130


def start(name: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a command of .venv in the checkout; what it prints is read from its ``stdout``."""
    return subprocess.Popen(
        [str(BIN / name), *arguments],
        cwd=ROOT, env=environment(), text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """Return this environment with the commands of .venv first on the path.

    Python keeps what it compiled: the tests start hundreds of servers, and each would compile anew.
    """
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PATH": path}


def run_or_exit(command: list[str]) -> None:
    """Run a set-up step; end with its command line when it fails."""
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"This failed with exit code {code}: {' '.join(command)}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
