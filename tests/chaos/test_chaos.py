"""The chaos runs, scaled down to seconds; README.md here has what they do, RESULTS.md the full ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(("seed", "script"), [(1, "1"), (5, "0")], ids=["in Node", "in Python"])
def test_whatever_fails_nothing_is_lost_in_silence_and_nothing_comes_twice(
    seed, script, tmp_path, request
):
    """Whichever client it is that half of them use."""
    if script != "0":
        request.getfixturevalue("node")
    command, file = [sys.executable, HERE / "chaos.py"], tmp_path / "runs"
    some = ["--runs", "1", "--seconds", "5", "--seed", str(seed), "--results", file]
    some += ["--script", script]
    done = subprocess.run(
        [*command, *some], check=False, capture_output=True, text=True, timeout=58
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summed = subprocess.run(
        [*command, "--sum", file], check=True, capture_output=True, text=True, timeout=20
    )
    assert summed.stdout.startswith("1 runs, 1 seeds")
    assert ("6 clients in Node" in summed.stdout) == (script == "1")


@pytest.mark.parametrize("share", ["2", "-0.1", "nan", "half"])
def test_what_is_no_share_of_the_clients_is_told(share):
    command = [sys.executable, HERE / "chaos.py", f"--script={share}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert f"a share is a number from 0 to 1, not '{share}'" in done.stderr
