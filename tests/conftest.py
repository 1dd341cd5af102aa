"""What all tests share."""

from __future__ import annotations

import os
import re
from typing import Any

import hypothesis
import pytest

# How long one example takes says more about what else the machine does than about the code.
hypothesis.settings.register_profile("backchannel", deadline=None)
hypothesis.settings.load_profile("backchannel")

MUST_NOT_SKIP = os.environ.get("BACKCHANNEL_NO_SKIPS") == "1"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was skipped for want of a tool; CI has all tools, so there a skip fails."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped and MUST_NOT_SKIP:
        terminalreporter.section("skipped, and nothing may be skipped here")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where a skip is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if MUST_NOT_SKIP and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# ── several processes: -n 2 ───────────────────────────────────────────────────────────────────

ON_SHARED_SERVERS = {"test_servers.py", "test_endings.py", "test_server_table.py"}
SHARED_SERVER = re.compile(r"\b(?:uvicorn-|native-)(?:asyncio|uvloop)\b|\bhypercorn\b|\bgranian\b")
EACH_BY_ITSELF = {
    "load/test_load.py",
    *(f"integration/test_{name}.py" for name in (
        "auth", "cli", "dev", "door", "examples", "limits", "native", "rules", "slow_clients",
        "storm", "vanished",
    )),
}  # fmt: skip
"""Files whose tests start what they need, each its own."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out tests that use the same things together, so that no two processes set them up."""
    from xdist.scheduler import LoadScopeScheduling  # only there with -n

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return together(nodeid)

    return Scheduling(config, log)


def together(nodeid: str) -> str:
    """Return the name of what a test is handed out with: its file, its server, or only itself.

    The largest go first, and single tests last, so that all processes have work until the end.
    """
    path, _, name = nodeid.partition("::")
    file = path.rpartition("/")[2]
    if file in ON_SHARED_SERVERS and (server := SHARED_SERVER.search(name)):
        return f"server {server[0]}"
    return nodeid if path.removeprefix("tests/") in EACH_BY_ITSELF else path
