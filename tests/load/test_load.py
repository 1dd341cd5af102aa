"""The load programs, scaled down to seconds; README.md here has the full runs and their results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


def run(program, *options):
    command = [sys.executable, HERE / program, *map(str, options)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stdout + done.stderr


@LOOPS
def test_slow_readers_end_and_the_others_keep_order_and_rate(loop):
    """The rate is compared within the run, with room for what else the machine does meanwhile."""
    run("slow_readers.py", "--clients", 100, "--slow", 5, "--seconds", 3, "--outbox", 1 << 18,
        "--ratio", 0.5, "--loop", loop)  # fmt: skip


@pytest.mark.parametrize("options", [["uvloop"], ["asyncio", "--slices"]])
def test_after_churn_everything_is_as_it_was(options):
    run("churn.py", "--seconds", 5, "--clients", 40, "--lifetime", 1, "--loop", *options)
