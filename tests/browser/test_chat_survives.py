"""The example chat through a network that breaks and a server that restarts, in a real browser.

Its seed is printed: ``BACKCHANNEL_SEED=…`` takes the same one again.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal

import pytest

pytest.importorskip("playwright", reason="no playwright: pip install it")

from playwright.async_api import expect

PATIENCE = 10.0
"""Seconds a test waits for what should come at once."""

pytestmark = pytest.mark.asyncio(loop_scope="session")

CUTS = ["cut"] * 7 + ["truncate"] * 7 + ["half-close"] * 6
"""What is done to the connections. Each comes at a random moment, the network slow before it."""


async def slow(wire, rng):
    """Hold what the server says for a moment."""
    wire.flowing.clear()
    await asyncio.sleep(rng.uniform(0.02, 0.2))  # it is the delay itself
    wire.flowing.set()


async def hurt(wire, kind, rng):
    """Do it to all connections, and wait until someone has come back."""
    await slow(wire, rng)
    coming = asyncio.create_task(wire.next())
    await asyncio.sleep(0)  # now it listens
    if kind == "cut":
        wire.cut()
    elif kind == "truncate":
        wire.truncating = rng.random()
    else:
        wire.half_close(rng)
    await asyncio.wait_for(coming, PATIENCE)
    wire.truncating = None


async def come(new_context, url, name):
    page = await (await new_context()).new_page()
    # Cut again and again, a client waits up to 20 seconds: here a hundredth of that.
    await page.add_init_script("Math.random = () => 0.01")
    await page.goto(url)
    await page.get_by_label("Your name").fill(name)
    await page.get_by_role("button", name="Join").click()
    await expect(page.get_by_role("status")).to_have_text("Connected")
    return page


async def write(page, name, ended):
    """Write as fast as a browser is typed into, until told to end; return all that was written."""
    said = []
    while not ended.is_set():
        said.append(f"{name} {len(said)}")
        await page.locator(".composer input").fill(said[-1])
        await page.locator(".composer input").press("Enter")
        await page.wait_for_timeout(100)  # nobody types faster
    return said


@pytest.mark.timeout(150)  # of which it needs 25 where nothing else runs
async def test_twenty_cuts_and_three_restarts_lose_and_double_nothing(
    make_app, make_wire, redis_server, new_context
):
    """Two people write all the while: both read all of it, each once and in the same order."""
    seed = int(os.environ.get("BACKCHANNEL_SEED", random.randrange(10**6)))
    print("BACKCHANNEL_SEED =", seed)  # noqa: T201 - shown where it fails
    rng = random.Random(seed)
    server = make_app("chat.py", BROKER=redis_server.url)
    await server.start()
    wire = await make_wire(server.port).start()
    ana, ben = [await come(new_context, wire.url, name) for name in ("Ana", "Ben")]
    await expect(ana.get_by_label("People here").get_by_role("listitem")).to_have_count(2)

    ended = asyncio.Event()
    writing = [
        asyncio.create_task(write(page, name, ended)) for page, name in ((ana, "a"), (ben, "b"))
    ]
    restarts = [signal.SIGTERM, signal.SIGKILL, rng.choice([signal.SIGTERM, signal.SIGKILL])]
    troubles = [*rng.sample(CUTS, len(CUTS)), *restarts]
    rng.shuffle(troubles)
    for trouble in troubles:
        if isinstance(trouble, signal.Signals):
            await server.stop(trouble)
            await server.start()
        else:
            await hurt(wire, trouble, rng)
        await asyncio.sleep(rng.uniform(0, 0.3))  # so that the next one comes at any moment
    ended.set()
    said = await asyncio.gather(*writing)

    wanted = sorted(text for one in said for text in one)
    logs = []
    for page in (ana, ben):
        shown = page.locator(".log > .message .bubble")
        await expect(page.locator(".unsent .bubble")).to_have_count(0, timeout=2 * PATIENCE * 1000)
        await expect(shown).to_have_count(len(wanted))
        await expect(page.get_by_role("status")).to_have_text("Connected")
        people = page.get_by_label("People here").locator("bdi")
        await expect(people).to_have_count(2)
        assert sorted(await people.all_text_contents()) == ["Ana", "Ben"]
        notes = await page.locator(".log > .event").all_text_contents()
        assert [note for note in notes if not re.match("Welcome|You are|Ben joined", note)] == []
        logs.append(await shown.all_text_contents())
    assert logs[0] == logs[1]
    assert sorted(logs[0]) == wanted
    for name, own in zip("ab", said, strict=True):
        assert [text for text in logs[0] if text.startswith(name)] == own
    await wire.stop()
    await server.stop()
