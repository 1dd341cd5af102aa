"""The browser's client by its own tests: `npm test` in clients/js, with whatever Node there is.

They say too whether what the package serves is the build of its source, and check its types.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "clients/js"


@pytest.fixture(scope="module")
def npm_of_the_client(node):
    """Run npm in clients/js; its packages are installed once, where they are not there."""
    folder, command = node
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
def test_the_client_passes_its_own_tests(npm_of_the_client):
    done = npm_of_the_client("test")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    passed = re.search(r"^(?:#|ℹ) pass (\d+)$", done.stdout, re.MULTILINE)  # noqa: RUF001
    assert passed is not None
    assert int(passed[1]) > 80
