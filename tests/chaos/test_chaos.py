"""The chaos runs, scaled down to seconds; README.md here has what they do, RESULTS.md the full ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("seed", [1, 5])
def test_whatever_fails_nothing_is_lost_in_silence_and_nothing_comes_twice(seed, tmp_path):
    command, file = [sys.executable, HERE / "chaos.py"], tmp_path / "runs"
    some = ["--runs", "1", "--seconds", "5", "--seed", str(seed), "--results", file]
    done = subprocess.run(
        [*command, *some], check=False, capture_output=True, text=True, timeout=58
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summed = subprocess.run(
        [*command, "--sum", file], check=True, capture_output=True, text=True, timeout=20
    )
    assert summed.stdout.startswith("1 runs, 1 seeds")
