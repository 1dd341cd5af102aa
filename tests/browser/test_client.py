"""The browser's client in a real browser, against a real hub, through a network that breaks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="no playwright: pip install it")

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_it_connects_sends_and_hears(visit):
    page = await visit()
    assert await page.evaluate("client.last.connection.length") > 10
    assert await page.evaluate("client.call('add', { type: 'add', a: 1, b: 2 })") == 3
    await page.evaluate("client.deliver({ some: 'json' })")
    await page.evaluate("client.deliver(new Uint8Array([1, 10, 2]))")
    assert await page.evaluate("[log.messages[0], [...log.messages[1]]]") == [
        '{"some":"json"}',
        [1, 10, 2],
    ]


async def test_calls_go_both_ways_and_can_be_cancelled(visit):
    page = await visit()
    await page.evaluate("void client.answer('double', (n) => 2 * n)")
    assert await page.evaluate("client.call('ask', { type: 'ask', n: 21 })") == 42
    name = """async () => {
        const controller = new AbortController();
        const waiting = client.call('wait', {}, { signal: controller.signal });
        setTimeout(() => controller.abort());
        return (await waiting.catch((error) => error)).name;
    }"""
    assert await page.evaluate(name) == "AbortError"
    error = "client.call('nothing').catch(({ code, message }) => [code, message])"
    code, text = await page.evaluate(error)
    assert code == "unknown_type", text
    late = "client.call('wait', {}, { timeout: 0.1 }).catch(({ code }) => code)"
    assert await page.evaluate(late) == "timeout"


async def test_two_pages_meet_in_a_channel_with_presence(visit):
    ana, bob = await visit("/ws/main?user=ana"), await visit("/ws/main?user=bob")
    await ana.evaluate("client.subscribe('room:1').ready")
    listening = """() => {
        const room = client.channel('room:1');
        window.joined = new Promise((then) => room.on('join', ({ user }) => then(user)));
    }"""
    await ana.evaluate(listening)
    await bob.evaluate("client.subscribe('room:1').ready")
    assert await ana.evaluate("joined") == "bob"
    position = await ana.evaluate("client.publish('room:1', { text: 'hi' })")
    assert position
    await bob.evaluate("until(() => log.got.length)")
    assert await bob.evaluate("log.got") == [{"text": "hi"}]
    bytes_read = """async () => {
        const room = client.subscribe('room:1');
        const reading = room[Symbol.asyncIterator]();
        await room.publish(new Uint8Array([7, 10, 9]));
        return [...(await reading.next()).value.data];
    }"""
    assert await bob.evaluate(bytes_read) == [7, 10, 9]
    refused = "client.subscribe('room:secret').ready.catch(({ code, message }) => [code, message])"
    assert (await ana.evaluate(refused))[0] == "refused"
    nameless = "client.subscribe('').ready.catch(({ code, message }) => [code, message])"
    assert (await ana.evaluate(nameless))[0] == "invalid"
    present = await ana.evaluate("client.channel('room:1').presence()")
    assert sorted(each["user"] for each in present) == ["ana", "bob"]
    await ana.evaluate("client.channel('room:1').unsubscribe()")
    assert await ana.evaluate("client.channel('room:1').isIn") is False


async def test_a_snapshot_comes_first(visit):
    page = await visit()
    await page.evaluate("client.publish('state:7', 'in the state already')")
    got = """async () => {
        const state = client.subscribe('state:7');
        return new Promise((resolve) => state.on('snapshot', ({ data }) => resolve(data)));
    }"""
    assert await page.evaluate(got) == {"state": "7"}
    assert await page.evaluate("log.got") == []


async def test_twenty_cuts_lose_and_double_nothing(visit, wire):
    """Two pages write and read while the network breaks: each has all, once and in order."""
    pages = [await visit(), await visit()]
    for page in pages:
        await page.evaluate("client.subscribe('room:cut').ready")
    writing = """async (name) => {
        const all = [];
        for (let n = 0; n < 200; n++) {
            all.push(client.publish('room:cut', `${name} ${n}`));
            await new Promise((then) => setTimeout(then, 10));
        }
        return (await Promise.all(all)).length;
    }"""
    tasks = [
        asyncio.create_task(page.evaluate(writing, name))
        for page, name in zip(pages, "ab", strict=True)
    ]
    for _ in range(20):
        wire.cut()
        await wire.next()
    assert await asyncio.gather(*tasks) == [200, 200]
    for page in pages:
        await page.evaluate("until(() => log.got.length >= 400)")
        got = await page.evaluate("log.got")
        assert len(got) == len(set(got)) == 400
        for name in "ab":
            own = [text for text in got if text[0] == name]
            assert own == [f"{name} {n}" for n in range(200)]
        assert await page.evaluate("log.lost") == []
        assert "open+" in await page.evaluate("log.states")
        assert "open" not in (await page.evaluate("log.states"))[2:]


async def test_the_server_comes_back_as_another_and_the_page_knows(visit, client_server):
    """The memory broker keeps nothing over a restart: a new session, and the loss is told."""
    page = await visit("/ws/url/1", url=client_server.url)
    await page.evaluate("client.channel('url:1').ready")
    await page.evaluate("client.deliver('before')")
    await page.evaluate("until(() => log.got.length)")
    await client_server.stop()
    await page.evaluate("until(() => client.state === 'waiting')")
    await page.evaluate("void client.send('meanwhile')")
    await client_server.start()
    await page.evaluate("until(() => client.state === 'open')")
    await page.evaluate("until(() => log.got.length === 2 && log.lost.length)")
    assert await page.evaluate("log.got") == ["before", "meanwhile"]
    assert [lost["channel"] for lost in await page.evaluate("log.lost")] == ["url:1"]


async def test_signed_out_it_stays_away(visit, wire):
    page = await visit()
    await page.evaluate("client.call('leave').catch(() => {})")
    await page.evaluate("until(() => client.state === 'closed')")
    assert await page.evaluate("client.last") == {
        "state": "closed", "code": 4004, "text": "signed out", "by": "server",
    }  # fmt: skip


async def test_the_network_goes_and_comes_back(visit, wire):
    page = await visit(patience=1)
    wire.flowing.clear()  # nothing comes any more, and no one says so
    await page.context.set_offline(True)
    await page.evaluate("until(() => client.state === 'waiting')")
    await page.evaluate("void client.send('written offline')")
    wire.flowing.set()
    await page.context.set_offline(False)
    await page.evaluate("until(() => log.messages.length)")
    assert await page.evaluate("log.messages") == ["written offline"]
    assert (await page.evaluate("log.states"))[-1] == "open+"


async def test_the_classic_script_does_the_same(new_context, wire):
    page = await (await new_context()).new_page()
    await page.goto(wire.url)
    await page.add_script_tag(url="/backchannel/client.global.js")
    got = """async () => {
        const client = Backchannel.connect('/ws/main');
        return client.call('add', { type: 'add', a: 2, b: 2 });
    }"""
    assert await page.evaluate(got) == 4
    assert await page.evaluate("new Backchannel.BackchannelError('x', 'y') instanceof Error")


async def test_the_node_is_killed_and_another_goes_on_with_the_session(
    make_app, redis_server, wire, visit
):
    """What was sent as it died is there once; the page notices nothing but the gap."""
    app = Path(__file__).with_name("client_app.py")
    nodes = [make_app(app, BROKER=redis_server.url) for _ in range(2)]
    for node in nodes:
        await node.start()
    wire.target = nodes[0].port
    page = await visit()
    await page.evaluate("client.subscribe('room:kill').ready")
    connection = await page.evaluate("client.last.connection")
    writing = """async () => {
        const all = [];
        for (let n = 0; n < 100; n++) {
            all.push(client.publish('room:kill', n));
            await new Promise((then) => setTimeout(then, 5));
        }
        return (await Promise.allSettled(all)).map(({ status, reason }) => reason?.code ?? status);
    }"""
    task = asyncio.create_task(page.evaluate(writing))
    await page.evaluate("until(() => log.got.length > 20)")
    wire.target = nodes[1].port
    nodes[0].process.kill()
    outcomes = await task
    await page.evaluate("client.deliver('fence')")
    got = await page.evaluate("log.got")
    assert await page.evaluate("client.last") == {
        "state": "open", "connection": connection, "user": None, "resumed": True,
    }  # fmt: skip
    assert len(got) == len(set(got))
    done = {n for n, outcome in enumerate(outcomes) if outcome == "fulfilled"}
    assert done <= set(got)
    assert set(outcomes) <= {"fulfilled", "unsure"}
    assert got == sorted(got)
    assert await page.evaluate("log.lost") == []
    await nodes[0].rest
    await nodes[1].stop()
