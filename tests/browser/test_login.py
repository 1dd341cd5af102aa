"""People sign in and out in a real browser, and see their sockets close: FastAPI and Django."""

from __future__ import annotations

import re

import pytest
import pytest_asyncio

pytest.importorskip("playwright", reason="no playwright: pip install it")

from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")
APPS = {"fastapi": "fastapi_login.py:app", "django": "django_project/serve.py:application"}


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=APPS)
async def address(request, make_app, tmp_path_factory):
    """Run an example as its first lines say; give its address."""
    database = tmp_path_factory.mktemp("login") / "db.sqlite3"
    app = make_app(APPS[request.param], DATABASE=str(database))
    await app.start()
    yield app.url
    await app.stop()


async def sign_in(page, address, name):
    await page.goto(address)
    await page.get_by_label("Name").fill(name)
    await page.get_by_label("Password").fill("chat")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("status")).to_have_text(re.compile("connected", re.IGNORECASE))


async def test_signing_out_closes_the_sockets_of_every_tab_of_this_browser(new_context, address):
    ana = await new_context()
    first, second = await ana.new_page(), await ana.new_page()
    bob = await (await new_context()).new_page()
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


async def test_a_wrong_password_is_told_and_lets_nobody_in(new_context, address):
    page = await (await new_context()).new_page()
    await page.goto(address)
    await page.get_by_label("Name").fill("ana")
    await page.get_by_label("Password").fill("wrong")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_text("That name and password don't match.")).to_be_visible()


@pytest_asyncio.fixture(loop_scope="session")
async def fastapi(make_app):
    """Run FastAPI's example alone; a restart signs everyone out, since it has another secret."""
    app = make_app(APPS["fastapi"])
    await app.start()
    yield app
    await app.stop()


async def test_who_was_signed_out_meanwhile_stays_away_until_the_next_login(new_context, fastapi):
    """What the server refuses looks like a broken network to a page: it asks, and gives up."""
    ana = await new_context()
    first, second = await ana.new_page(), await ana.new_page()
    await sign_in(first, fastapi.url, "ana")
    await second.goto(fastapi.url)
    await expect(second.get_by_role("status")).to_have_text("Connected")
    await fastapi.stop()
    await expect(second.get_by_role("status")).to_have_text(re.compile("trying again|Connecting"))
    await fastapi.start()
    for page in (first, second):
        await expect(page.get_by_role("status")).to_have_text(
            "You have signed out.", timeout=20_000
        )
        await expect(page.get_by_label("Message")).to_be_hidden()
    await sign_in(first, fastapi.url, "ana")
    await expect(second.get_by_role("status")).to_have_text("Connected")
    await second.get_by_label("Message").fill("Here I am again")
    await second.get_by_label("Message").press("Enter")
    await expect(first.locator("#log")).to_contain_text("ana: Here I am again")


async def test_what_is_written_without_a_network_is_sent_when_there_is_one(new_context, fastapi):
    ana, bob = [await (await new_context()).new_page() for _ in range(2)]
    await sign_in(ana, fastapi.url, "ana")
    await sign_in(bob, fastapi.url, "bob")
    await ana.context.set_offline(True)
    await expect(ana.get_by_role("status")).to_have_text(re.compile("trying again"))
    await ana.get_by_label("Message").fill("from the tunnel")
    await ana.get_by_label("Message").press("Enter")
    await bob.get_by_label("Message").fill("where are you?")
    await bob.get_by_label("Message").press("Enter")
    await ana.context.set_offline(False)
    for page in (ana, bob):
        await expect(page.get_by_text(re.compile("tunnel|where"))).to_have_text(
            ["bob: where are you?", "ana: from the tunnel"]
        )
        await expect(page.get_by_text(re.compile("left|missing"))).to_have_count(0)
