"""docs/browser.md, as its readers do it: the page's own code, a real hub, a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import pytest_asyncio

pytest.importorskip("playwright", reason="no playwright: pip install it")

from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")
PAGE = (Path(__file__).parents[2] / "docs/browser.md").read_text()


@pytest_asyncio.fixture(loop_scope="session")
async def app(make_app, tmp_path):
    """Serve the page's files as it says."""
    python, html = (
        re.search(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)[1] for kind in ("python", "html")
    )
    (tmp_path / "app.py").write_text(python)
    (tmp_path / "chat.html").write_text(html)
    app = make_app(tmp_path / "app.py")
    await app.start()
    yield app
    await app.stop()


async def test_two_windows_talk_and_the_network_going_loses_nothing(app, new_context):
    pages = []
    for _ in range(2):
        page = await (await new_context()).new_page()
        await page.goto(app.url)
        await expect(page.get_by_role("status")).to_have_text("open")
        pages.append(page)
    ana, bob = pages

    async def say(page, text):
        await page.get_by_label("Message").fill(text)
        await page.get_by_role("button").click()

    await say(ana, "hello")
    for page in pages:
        await expect(page.get_by_role("listitem")).to_have_text(["hello"])

    await ana.context.set_offline(True)
    await expect(ana.get_by_role("status")).to_have_text("offline, trying again")
    await say(bob, "are you there?")
    await expect(bob.get_by_role("listitem")).to_have_text(["hello", "are you there?"])
    await say(ana, "in the tunnel")
    await ana.context.set_offline(False)
    for page in pages:
        await expect(page.get_by_role("listitem")).to_have_count(3)
        shown = await page.get_by_role("listitem").all_text_contents()
        assert sorted(shown) == ["are you there?", "hello", "in the tunnel"]


async def test_the_tags_of_the_command_load_it_and_no_other_script(app, new_context, tmp_path):
    from click.testing import CliRunner

    from backchannel.cli.main import main

    tags = CliRunner().invoke(main, ["client"]).output
    module = """<script type="module">
        import { connect } from "backchannel";
        import { connect as share } from "backchannel/tabs";
        connect("/ws").on("open", () => { document.title = `loaded ${typeof Backchannel} ${typeof share}`; });
    </script>"""
    page = await (await new_context()).new_page()

    async def show(text):
        (tmp_path / "chat.html").write_text(text)
        await page.goto(app.url)

    await show(tags + module)
    await expect(page).to_have_title("loaded object function")
    refused = []
    page.on("console", lambda message: message.type == "error" and refused.append(message.text))
    await show(re.sub("sha384-.", "sha384-x", tags) + module)
    await expect(page).not_to_have_title("loaded object function")
    assert await page.evaluate("typeof Backchannel") == "undefined"
    assert [text for text in refused if "integrity" in text.lower() or "digest" in text.lower()]
