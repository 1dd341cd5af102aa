"""A real browser for all tests, and the examples that it visits, run as their first lines say.

The browser is started once: starting one costs more than most tests. People are told apart by
contexts, which share nothing, like profiles. So these tests run in one event loop, the browser's.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import pytest_asyncio

EXAMPLES = Path(__file__).parents[2] / "examples"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 10.0
"""Seconds a test waits for what should come at once."""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium():
    """The one browser."""
    if BROWSER is None:
        pytest.skip(f"no browser to test with: none of {', '.join(BROWSERS)} is installed")
    reason = "no playwright: pip install it"
    playwright_api = pytest.importorskip("playwright.async_api", reason=reason)
    playwright_api.expect.set_options(timeout=PATIENCE * 1000)
    async with playwright_api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def new_context(chromium):
    """Make profiles: ``await new_context(viewport=…)``. They are gone after the test."""
    made = []

    async def make(**options):
        context = await chromium.new_context(**options)
        context.set_default_timeout(PATIENCE * 1000)
        made.append(context)
        return context

    yield make
    for context in made:
        await context.close()


class App:
    """An example that runs; it can be stopped and started again at the same port."""

    def __init__(self, target, **env):
        self.target, self.env, self.port = target, env, 0

    @property
    def url(self):
        return f"http://localhost:{self.port}/"

    async def start(self):
        self.log = []
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "backchannel", "run", str(EXAMPLES / self.target),
            "--port", str(self.port),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self.env},
        )  # fmt: skip
        try:
            self.port = int(await asyncio.wait_for(self._port(), 30))
        except (EOFError, TimeoutError):
            pytest.fail(f"{self.target} did not say where it serves:\n{''.join(self.log)}")
        finally:
            self.rest = asyncio.create_task(self.process.stdout.read())

    async def _port(self):
        while line := (await self.process.stdout.readline()).decode():
            self.log.append(line)
            if found := re.search(r"(?:http|ws)://[\w.]+:(\d+)", line):
                return found[1]
        raise EOFError

    async def stop(self):
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(self.process.wait(), PATIENCE)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            pytest.fail(f"{self.target} had to be killed")
        finally:
            self.log.append((await self.rest).decode())
        printed = "".join(self.log)
        # On a busy machine the process may be held up inside a callback; the hub can't know why.
        bad = re.search(r"ERROR|WARNING(?!.*held the event loop)|Traceback", printed)
        assert bad is None, printed


@pytest.fixture(scope="session")
def make_app():
    """Make the App of an example: ``make_app("chat.py")``; a name and value are its environment."""
    return App
