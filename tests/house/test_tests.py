"""The tests' own house: what tests/conftest.py does with a run, tried out on small runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

WRITES_DOWN_WHERE = """
import os
import pytest

@pytest.mark.parametrize("server", ["native-uvloop", "native-asyncio", "hypercorn", "granian"])
@pytest.mark.parametrize("way", range(3))
def test_it(server, way, request):
    with open("where.txt", "a") as file:
        file.write(f"{request.path.name}/{server} {os.environ['PYTEST_XDIST_WORKER']}\\n")
"""


SKIPS = """
import pytest

def test_it():
    pytest.skip("no such tool")
"""


@pytest.fixture
def run(tmp_path):
    """Run pytest on some files beside our conftest where nothing may be skipped."""
    shutil.copy(TESTS / "conftest.py", tmp_path)
    # Without the plugins that these files have no use for, which take most of the time.
    env = {**os.environ, "BACKCHANNEL_NO_SKIPS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def start(*options, **files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        shared = f"pythonpath={TESTS / 'unit'}"
        quiet = ["-q", "-p", "no:cacheprovider", "-o", shared]
        command = [sys.executable, "-m", "pytest", *quiet, *options]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return start


def test_a_skip_fails_where_nothing_may_be_skipped(run):
    code, output = run(test_skips=SKIPS)
    assert code == 1, output
    assert "nothing may be skipped here" in output


def test_what_shares_a_server_or_a_file_runs_in_one_process_and_a_skip_fails_there_too(
    run, tmp_path
):
    files = dict.fromkeys(("test_servers", "test_endings", "test_sessions"), WRITES_DOWN_WHERE)
    code, output = run("-p", "xdist", "-n", "2", **files, test_skips=SKIPS)
    assert code == 1, output
    assert "nothing may be skipped here" in output
    assert "36 passed, 1 skipped" in output
    where = defaultdict(set)
    for line in (tmp_path / "where.txt").read_text().splitlines():
        what, worker = line.split()
        file, server = what.split("/")
        where["sessions" if file == "test_sessions.py" else server].add(worker)
    assert {name: len(workers) for name, workers in where.items()} == dict.fromkeys(
        ("sessions", "native-uvloop", "native-asyncio", "hypercorn", "granian"), 1
    )
    assert len(set().union(*where.values())) == 2, "all in one process"


def test_the_files_that_are_handed_out_in_their_own_way_exist(pytestconfig):
    conftest = pytestconfig.pluginmanager.get_plugin(str(TESTS / "conftest.py"))
    shared = {f"integration/{file}" for file in conftest.ON_SHARED_SERVERS}
    for file in shared | conftest.EACH_BY_ITSELF:
        assert (TESTS / file).exists(), file


def test_no_test_is_named_by_an_address_that_is_another_in_each_process(request):
    assert [one.nodeid for one in request.session.items if " at 0x" in one.nodeid] == []
