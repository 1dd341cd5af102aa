"""What all tests share."""

from __future__ import annotations

import os

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
