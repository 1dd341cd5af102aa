"""What all tests share."""

from __future__ import annotations

import os

import pytest

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
