"""People sign in and out in a real browser, and see their sockets close: FastAPI and Django."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 10.0
"""Seconds a test waits for what should come at once."""

playwright_api = pytest.importorskip("playwright.async_api", reason="no playwright: pip install it")
expect = playwright_api.expect
expect.set_options(timeout=PATIENCE * 1000)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser to test with: none of {', '.join(BROWSERS)} is installed"
)
APPS = {"fastapi": "fastapi_login.py:app", "django": "django_project/serve.py:application"}


@pytest.fixture(params=APPS)
async def address(request, tmp_path):
    """Run an example as its first lines say; give its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "backchannel", "run", str(EXAMPLES / APPS[request.param]),
        "--port", "0",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "DATABASE": str(tmp_path / "db.sqlite3")},
    )  # fmt: skip
    log = []

    async def port():
        while line := (await process.stdout.readline()).decode():
            log.append(line)
            if found := re.search(r"(?:http|ws)://[\w.]+:(\d+)", line):
                return found[1]
        raise EOFError

    try:
        yield f"http://localhost:{await asyncio.wait_for(port(), 30)}/"
    except EOFError:
        pytest.fail("".join(log))
    finally:
        rest = asyncio.create_task(process.stdout.read())
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), PATIENCE)
        printed = "".join(log) + (await rest).decode()
    assert re.search(r"ERROR|WARNING(?!.*held the event loop)|Traceback", printed) is None, printed


@pytest.fixture
async def browser():
    async with playwright_api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        await browser.close()


async def sign_in(page, address, name):
    await page.goto(address)
    await page.get_by_label("Name").fill(name)
    await page.get_by_label("Password").fill("chat")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("status")).to_have_text(re.compile("connected", re.IGNORECASE))


async def test_signing_out_closes_the_sockets_of_every_tab_of_this_browser(browser, address):
    ana = await browser.new_context()
    first, second = await ana.new_page(), await ana.new_page()
    bob = await (await browser.new_context()).new_page()
    await sign_in(first, address, "ana")
    await second.goto(address)  # signed in already
    await expect(second.get_by_role("status")).to_have_text(re.compile("connected", re.IGNORECASE))
    await sign_in(bob, address, "bob")

    await bob.get_by_label("Message").fill("Hello, Ana!")
    await bob.get_by_label("Message").press("Enter")
    for page in (first, second, bob):
        await expect(page.locator("#log")).to_contain_text("Hello, Ana!")

    await first.get_by_role("button", name="Sign out").click()
    await expect(first.get_by_role("heading", name="Sign in")).to_be_visible()
    await expect(second.get_by_role("status")).to_have_text("You have signed out.")
    await expect(bob.locator("#log")).to_contain_text("ana left")
    await bob.get_by_label("Message").fill("Anyone?")
    await bob.get_by_label("Message").press("Enter")
    await expect(bob.locator("#log")).to_contain_text("Anyone?")


async def test_a_wrong_password_is_told_and_lets_nobody_in(browser, address):
    page = await browser.new_page()
    await page.goto(address)
    await page.get_by_label("Name").fill("ana")
    await page.get_by_label("Password").fill("wrong")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_text("That name and password don't match.")).to_be_visible()
