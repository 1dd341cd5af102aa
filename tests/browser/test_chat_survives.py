"""The example chat through a network that breaks and a server that restarts, in a real browser.

Its seed is printed: ``BACKCHANNEL_SEED=…`` takes the same one again.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal

import pytest

pytest.importorskip("playwright", reason="no playwright: pip install it")

from playwright.async_api import expect
from speaking import VALID

PATIENCE = 10.0
"""Seconds a test waits for what should come at once."""

pytestmark = pytest.mark.asyncio(loop_scope="session")

CUTS = ["cut"] * 7 + ["truncate"] * 7 + ["half-close"] * 6
"""What is done to the connections. Each comes at a random moment, the network slow before it."""


IMPATIENT = """
import { connect as real } from "./client.js?real";
export const connect = (url, options) => real(url, { ...options, patience: %s });
"""
"""The client with another patience, in seconds, than the page asks for."""


def dice():
    """Return what decides; its seed is printed, and shown where a test fails."""
    seed = int(os.environ.get("BACKCHANNEL_SEED", random.randrange(10**6)))
    print("BACKCHANNEL_SEED =", seed)  # noqa: T201
    return random.Random(seed)


def delay(wire, rng, *seconds):
    """Let everything take so long, each direction its own: from, to; nothing without."""
    wire.delays = {way: rng.uniform(*seconds) if seconds else 0.0 for way in ("up", "down")}


async def slow(wire, rng):
    """Be slow for a moment."""
    delay(wire, rng, 0.02, 0.2)
    await asyncio.sleep(rng.uniform(0.02, 0.2))  # it is the moment itself
    delay(wire, rng)


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


def listen(page):
    """Check all that a page says and hears by the schemas; return the server's hellos."""
    hellos, problems = [], []

    def check(sender, payload):
        head, _, _ = payload.partition(b"\n") if isinstance(payload, bytes) else (payload, 0, 0)
        frame = json.loads(head)
        problems.extend(f"{head}: {error.message}" for error in VALID[sender].iter_errors(frame))
        if sender == "server" and frame["type"] == "hello":
            hellos.append(frame)

    def opened(socket):
        socket.on("framesent", lambda payload: check("client", payload))
        socket.on("framereceived", lambda payload: check("server", payload))

    page.on("websocket", opened)
    return hellos, problems


async def come(new_context, url, name, patience=None, clock=False):
    page = await (await new_context()).new_page()
    page.hellos, page.problems = listen(page)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    # Cut again and again, a client waits up to 20 seconds: here a hundredth of that.
    await page.add_init_script("Math.random = () => 0.01")
    if clock:
        await page.clock.install()
    if patience is not None:
        script = IMPATIENT % patience
        await page.route(
            "**/backchannel/client.js",
            lambda route: route.fulfill(body=script, content_type="text/javascript"),
        )
    await page.goto(url)
    await page.get_by_label("Your name").fill(name)
    await page.get_by_role("button", name="Join").click()
    await expect(page.get_by_role("status")).to_have_text("Connected")
    return page


async def say(page, text):
    await page.locator(".composer input").fill(text)
    await page.locator(".composer input").press("Enter")


async def write(page, name, ended):
    """Write as fast as a browser is typed into, until told to end; return all that was written."""
    said = []
    while not ended.is_set():
        said.append(f"{name} {len(said)}")
        await say(page, said[-1])
        await page.wait_for_timeout(100)  # nobody types faster
    return said


@pytest.mark.timeout(150)  # of which it needs 25 where nothing else runs
async def test_twenty_cuts_and_three_restarts_lose_and_double_nothing(
    make_app, make_wire, redis_server, new_context
):
    """Two people write all the while: both read all of it, each once and in the same order."""
    rng = dice()
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
    await all_is_shown([ana, ben], said)
    for page in (ana, ben):
        people = page.get_by_label("People here").locator("bdi")
        await expect(people).to_have_count(2)
        assert sorted(await people.all_text_contents()) == ["Ana", "Ben"]
        notes = await page.locator(".log > .event").all_text_contents()
        assert [note for note in notes if not re.match("Welcome|You are|Ben joined", note)] == []
    await wire.stop()
    await server.stop()


@pytest.mark.timeout(150)  # of which it needs 25 where nothing else runs
async def test_two_pages_on_two_nodes_read_the_same_and_either_node_may_be_killed(
    make_app, make_wire, redis_server, new_context
):
    """Each is at a node of its own, by a network of its own, and at the other one while that is dead."""
    rng = dice()
    nodes = [make_app("chat.py", BROKER=redis_server.url) for _ in range(2)]
    for node in nodes:
        await node.start()
    wires = [await make_wire(node.port).start() for node in nodes]
    pages = [
        await come(new_context, wire.url, name)
        for wire, name in zip(wires, ("Ana", "Ben"), strict=True)
    ]

    async def move(number, node, leave):
        """Lead a page to a node; its connection is ended by what is awaited."""
        wires[number].target = node.port
        coming = asyncio.create_task(wires[number].next())
        await asyncio.sleep(0)  # now it listens
        await leave()
        await asyncio.wait_for(coming, PATIENCE)

    async def kill(number):
        """Kill the node that a page is on: it goes to the other one, and home when that is back."""
        home, other = nodes[number], nodes[1 - number]
        await move(number, other, lambda: home.stop(signal.SIGKILL))
        await home.start()
        await asyncio.sleep(rng.uniform(0, 0.5))  # so that it was at the other one for any while
        await move(number, home, lambda: hurt(wires[number], "cut", rng))

    ended = asyncio.Event()
    writing = [
        asyncio.create_task(write(page, name, ended))
        for page, name in zip(pages, "ab", strict=True)
    ]
    troubles = [*[("kill", 0), ("kill", 1), ("kill", rng.randrange(2))]]
    troubles += [(kind, rng.randrange(2)) for kind in rng.sample(CUTS, 10)]
    rng.shuffle(troubles)
    for what, number in troubles:
        await (kill(number) if what == "kill" else hurt(wires[number], what, rng))
        await asyncio.sleep(rng.uniform(0, 0.3))  # so that the next one comes at any moment
    ended.set()
    await all_is_shown(pages, await asyncio.gather(*writing))
    for each in (*wires, *nodes):
        await each.stop()


@pytest.mark.timeout(150)  # of which it needs 25 where nothing else runs
async def test_a_network_slower_than_the_clients_are_patient_loses_and_doubles_nothing(
    make_app, make_wire, redis_server, new_context
):
    """They give up connections whose frames are still under way, in both directions, and arrive."""
    rng = dice()
    server = make_app("chat.py", BROKER=redis_server.url)
    await server.start()
    wire = await make_wire(server.port).start()
    pages = [await come(new_context, wire.url, name, patience=1) for name in ("Ana", "Ben")]
    ended = asyncio.Event()
    writing = [
        asyncio.create_task(write(page, name, ended))
        for page, name in zip(pages, "ab", strict=True)
    ]
    for _ in range(5):
        before = wire.connections
        delay(wire, rng, 0.6, 1.5)  # there and back it takes longer than an answer may
        while wire.connections < before + 3:  # also what was begun meanwhile is given up
            for page in pages:
                # As browsers say where the network is another one: so clients ask whether it works.
                await page.evaluate("dispatchEvent(new Event('online')), 0")
            coming = asyncio.ensure_future(wire.next())
            await asyncio.wait([coming], timeout=0.5)
            coming.cancel()
        delay(wire, rng)
        for page in pages:
            await expect(page.get_by_role("status")).to_have_text("Connected")
        await asyncio.sleep(rng.uniform(0, 1))  # so that the next one comes at any moment
    ended.set()
    await all_is_shown(pages, await asyncio.gather(*writing))
    await wire.stop()
    await server.stop()


@pytest.mark.parametrize("meanwhile", ["cut", "forget"])
async def test_a_laptop_that_slept_comes_back_at_once_with_all_that_was_said(
    make_app, make_wire, redis_server, new_context, chromium, meanwhile
):
    """Nothing of the page runs; its connection dies, with a word or without; its clock jumps."""
    server = make_app("chat.py", BROKER=redis_server.url)
    await server.start()
    wire = await make_wire(server.port).start()
    ben = await come(new_context, server.url, "Ben")
    ana = await come(new_context, wire.url, "Ana", clock=True)
    likely = await processes_of(ana, chromium)
    said = [["a before"], ["b before"]]
    for page, (text,) in zip((ana, ben), said, strict=True):
        await say(page, text)
    await all_is_shown([ana, ben], said)

    wire.forget()
    said[0].append("a as the lid closed")  # nobody hears it
    await say(ana, said[0][-1])
    laptop, awake = await put_to_sleep(ana, likely)
    try:
        connections = wire.connections
        if meanwhile == "cut":
            wire.cut()
        for number in range(10):
            said[1].append(f"b {number}")
            await say(ben, said[1][-1])
        await expect(ben.locator(".log > .message .bubble")).to_have_count(12)
        assert wire.connections == connections, "awake it would have come back"
    finally:
        os.kill(laptop, signal.SIGCONT)
    await awake
    await ana.clock.fast_forward(10 * 60 * 1000)
    if meanwhile == "forget":
        await ana.clock.fast_forward(10 * 1000)  # for the answer to its ping
    await all_is_shown([ana, ben], said)
    assert [hello["resumed"] for hello in ana.hellos] == [False, True]
    assert len({hello["connection"] for hello in ana.hellos}) == 1
    notes = await ana.locator(".log > .event").all_text_contents()
    assert [note for note in notes if "missing" in note] == []
    await wire.stop()
    await server.stop()


async def put_to_sleep(page, likely):
    """Stop the process that a page runs in; return its id, and what is done once it goes on."""
    for process in likely:
        os.kill(process, signal.SIGSTOP)
        awake = asyncio.ensure_future(page.evaluate("1"))
        done, _ = await asyncio.wait([awake], timeout=1)
        if not done:
            return process, awake
        os.kill(process, signal.SIGCONT)  # it was another one
    raise AssertionError(f"the page runs in none of the processes {likely}")


async def processes_of(page, chromium):
    """Return ids of processes that a page may run in: first those that get busy with it."""
    session = await chromium.new_browser_cdp_session()

    async def times():
        found = await session.send("SystemInfo.getProcessInfo")
        return {o["id"]: o["cpuTime"] for o in found["processInfo"] if o["type"] == "renderer"}

    before = await times()
    await page.evaluate("for (const end = performance.now() + 1000; performance.now() < end;);")
    after = await times()
    await session.detach()
    # One that has just begun, for pages to come, was busy with that.
    return sorted(before, key=lambda process: before[process] - after.get(process, 0.0))


async def all_is_shown(pages, said):
    """Wait until all pages show all that was said; each once, and in one order, which is its authors' too."""
    wanted = sorted(text for one in said for text in one)
    logs = []
    for page in pages:
        shown = page.locator(".log > .message .bubble")
        await expect(page.locator(".unsent .bubble")).to_have_count(0, timeout=2 * PATIENCE * 1000)
        await expect(shown).to_have_count(len(wanted))
        await expect(page.get_by_role("status")).to_have_text("Connected")
        logs.append(await shown.all_text_contents())
        assert page.problems == []
    assert all(log == logs[0] for log in logs)
    assert sorted(logs[0]) == wanted
    for own in said:
        name = own[0][0]
        assert [text for text in logs[0] if text.startswith(name)] == own
