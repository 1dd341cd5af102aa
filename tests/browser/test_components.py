"""The components of docs/browser.md, with the real frameworks, in a real browser: parts come and go."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import pytest_asyncio

pytest.importorskip("playwright", reason="no playwright: pip install it")

from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")
PAGE = (Path(__file__).parents[2] / "docs/browser.md").read_text()
LOBBY = "chat:lobby"


@pytest.fixture(scope="session")
def scripts(npm_of_the_client, tmp_path_factory):
    """Bundle them with parts of pages that use them."""
    folder = tmp_path_factory.mktemp("components")
    bundle = npm_of_the_client.home / "test/components/bundle.mjs"
    done = npm_of_the_client.run("node", str(bundle), str(folder), cwd=npm_of_the_client.home)
    assert done.returncode == 0, done.stderr
    return folder


@pytest_asyncio.fixture(loop_scope="session")
async def visit(make_app, new_context, scripts, tmp_path):
    """Open a page of the page's own server that has the parts of a framework."""
    python = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    (tmp_path / "app.py").write_text(python)
    (tmp_path / "chat.html").write_text("<!doctype html><meta charset=utf-8><title>parts</title>")
    app = make_app(tmp_path / "app.py")
    await app.start()
    problems = []

    async def go(framework):
        page = await (await new_context()).new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: said.type == "error" and problems.append(said.text))
        await page.goto(app.url)
        await page.add_script_tag(path=scripts / f"{framework}.js")
        await page.evaluate("client.state === 'open' || new Promise((r) => client.on('open', r))")
        return page

    yield go
    seen = [text for text in problems if "404" not in text]  # the page has no icon
    await app.stop()
    assert seen == []


async def show(page, left, right):
    """Show parts that are in these channels, or hide them; wait until the page is in all."""
    await page.evaluate("(parts) => show(parts)", {"left": left, "right": right})
    for channel in {left, right} - {""}:
        await page.evaluate("(name) => client.channel(name).ready", channel)


async def say(page, text, channel=LOBBY):
    await page.evaluate("([channel, text]) => client.publish(channel, text)", [channel, text])


@pytest.mark.parametrize("framework", ["react", "angular"])
async def test_a_part_that_goes_takes_nothing_from_the_others(visit, framework):
    page, other = await visit(framework), await visit(framework)

    async def shows(name, *texts):
        if framework == "react":
            await expect(page.get_by_label(name).get_by_role("listitem")).to_have_text(texts)
        else:
            handle = "([name, count]) => items(name).length === count"
            await page.wait_for_function(handle, arg=[name, len(texts)])
            assert await page.evaluate("(name) => items(name)", name) == list(texts)

    await show(page, LOBBY, LOBBY)
    await say(other, "to both")
    await shows("left", "to both")
    await shows("right", "to both")

    await show(page, "", LOBBY)
    await say(other, "to one")
    await shows("right", "to both", "to one")

    await show(page, LOBBY, LOBBY)
    await say(other, "to both again")
    await shows("left", "to both again")
    await shows("right", "to both", "to one", "to both again")

    # Another channel in the same part, as pages have it that show one room of many.
    await show(page, LOBBY, "chat:other")
    await say(other, "to the left")
    await say(other, "to the right", "chat:other")
    await shows("left", "to both again", "to the left")
    await shows("right", "to the right")

    await show(page, "", "")
    await page.wait_for_function("!client.channel('chat:lobby').isIn")
    heard = "client.on('publication', ({ data }) => { window.heard = data; })"
    await page.evaluate(f"void {heard}")
    await say(other, "to nobody")
    await page.evaluate("client.call('shout', 'a fence')")
    assert await page.evaluate("window.heard") is None


async def test_react_shows_the_state_of_the_connection(visit):
    page = await visit("react")
    await expect(page.get_by_role("status")).to_have_text("open")
    await page.evaluate("client.close()")
    await expect(page.get_by_role("status")).to_have_text("closed")
