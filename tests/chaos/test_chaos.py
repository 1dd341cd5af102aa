"""The chaos runs, scaled down to seconds; README.md here has what they do, RESULTS.md the full ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("seed", [1, 5])
def test_whatever_fails_nothing_is_lost_in_silence_and_nothing_comes_twice(seed):
    command = [sys.executable, HERE / "chaos.py", "--runs", "1", "--seconds", "5"]
    done = subprocess.run(
        [*command, "--seed", str(seed)], check=False, capture_output=True, text=True, timeout=58
    )
    assert done.returncode == 0, done.stdout + done.stderr
