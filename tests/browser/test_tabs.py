"""Several tabs share one socket, and hand it over, in a real browser against a real hub."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("playwright", reason="no playwright: pip install it")

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def new_tab(visit, new_context):
    """Open tabs of one browser."""
    made = {}

    async def make(path="/ws/main", **options):
        made["context"] = context = made.get("context") or await new_context()
        return await visit(path, file="tabs.js", context=context, **options)

    return make


def sockets(*tabs):
    return [len(tab.sockets) for tab in tabs]


async def test_three_tabs_have_one_socket_and_all_hear_everything(new_tab):
    tabs = [await new_tab() for _ in range(3)]
    assert sockets(*tabs) == [1, 0, 0]
    ids = {await tab.evaluate("client.last.connection") for tab in tabs}
    assert len(ids) == 1
    for tab in tabs:
        await tab.evaluate("client.subscribe('room:1').ready")
    for n, tab in enumerate(tabs):
        assert await tab.evaluate(f"client.publish('room:1', {n})")
    for tab in tabs:
        await tab.evaluate("until(() => log.got.length === 3)")
        assert await tab.evaluate("log.got") == [0, 1, 2]
    assert await tabs[1].evaluate("client.call('add', { type: 'add', a: 1, b: 2 })") == 3
    code = "client.call('nothing').catch((e) => [e.code, e.name, e instanceof Error])"
    assert await tabs[2].evaluate(code) == ["unknown_type", "BackchannelError", True]
    await tabs[1].evaluate("client.deliver(new Uint8Array([1, 2]))")
    for tab in tabs:
        await tab.evaluate("until(() => log.messages.length)")
        assert await tab.evaluate("[...log.messages[0]]") == [1, 2]
    late = "client.call('wait', {}, { timeout: 0.1 }).catch(({ code }) => code)"
    assert await tabs[1].evaluate(late) == "timeout"
    aborted = """client.call('wait', {}, { signal: AbortSignal.timeout(50) })
        .catch(({ name }) => name)"""
    assert await tabs[1].evaluate(aborted) == "TimeoutError"
    refused = "client.subscribe('room:secret').ready.catch(({ code }) => code)"
    assert await tabs[1].evaluate(refused) == "refused"


async def test_the_next_tab_goes_on_with_the_session_and_nothing_is_lost_or_doubled(new_tab):
    tabs = [await new_tab() for _ in range(4)]
    for tab in tabs:
        await tab.evaluate("client.subscribe('room:over').ready")
    connection = await tabs[3].evaluate("client.last.connection")
    writing = """async (name) => {
        const all = [];
        for (let n = 0; n < 120; n++) {
            all.push(client.publish('room:over', `${name} ${n}`));
            await new Promise((then) => setTimeout(then, 10));
        }
        return (await Promise.all(all)).length;
    }"""
    tasks = [asyncio.create_task(tabs[n].evaluate(writing, str(n))) for n in (2, 3)]
    for leader in tabs[:2]:
        again = "new Promise((then) => client.on('open', ({ resumed }) => then(resumed)))"
        taken = asyncio.create_task(tabs[3].evaluate(again))
        await tabs[3].evaluate("until(() => log.got.length > 10)")
        await leader.close()
        assert await taken is True
    assert await asyncio.gather(*tasks) == [120, 120]
    assert sockets(*tabs) == [1, 1, 1, 0]
    for tab in tabs[2:]:
        await tab.evaluate("until(() => log.got.length >= 240)")
        got = await tab.evaluate("log.got")
        assert len(got) == len(set(got)) == 240
        assert [text for text in got if text[0] == "2"] == [f"2 {n}" for n in range(120)]
        assert await tab.evaluate("log.lost") == []
        assert await tab.evaluate("client.last.connection") == connection


async def test_close_in_one_tab_is_its_own_and_the_last_one_ends_the_session(new_tab):
    first, second, third = [await new_tab() for _ in range(3)]
    for tab in (first, second):
        await tab.evaluate("client.subscribe('room:1').ready")
    connection = await second.evaluate("client.last.connection")
    await first.evaluate("client.close()")
    assert await first.evaluate("client.state") == "closed"
    await second.evaluate("until(() => log.states.at(-1) === 'open+')")
    assert await second.evaluate("client.last.connection") == connection
    await third.evaluate("client.publish('room:1', 'still here')")
    await second.evaluate("until(() => log.got.length)")
    assert await first.evaluate("log.got") == []
    assert await first.evaluate("client.deliver(1).catch(({ code }) => code)") == "closed"
    await second.evaluate("client.close()")
    await third.evaluate("until(() => log.states.filter((each) => each === 'open+').length === 2)")
    await third.evaluate("client.close()")
    fresh = await new_tab()
    assert await fresh.evaluate("client.last.resumed") is False
    assert await fresh.evaluate("client.last.connection") != connection


async def test_a_channel_is_left_when_the_last_tab_leaves_it(new_tab):
    first, second = [await new_tab() for _ in range(2)]
    for tab in (first, second):
        await tab.evaluate("client.subscribe('room:1').ready")
    await first.evaluate("client.channel('room:1').unsubscribe()")
    await second.evaluate("client.publish('room:1', 'one')")
    await second.evaluate("until(() => log.got.length)")
    assert await first.evaluate("client.channel('room:1').isIn") is False
    await second.close()  # the leader sees it go, and leaves for it
    third = await new_tab()
    left = """async () => {
        const inside = client.channel('room:1').isIn;
        await client.publish('room:1', 'two');
        await client.deliver('fence');
        return [inside, log.got];
    }"""
    await first.evaluate("until(() => !log.got.includes('two'))")
    assert (await third.evaluate(left))[1] == []


async def test_the_servers_calls_ring_in_tabs_that_can_answer(new_tab):
    first, second, third = [await new_tab() for _ in range(3)]
    await second.evaluate("void client.answer('double', (n) => 2 * n)")
    assert await first.evaluate("client.call('ask', { type: 'ask', n: 21 })") == 42
    ringing = """void client.answer('double', (n, { signal }) => new Promise((resolve) => {
        signal.addEventListener('abort', () => { window.stopped = true; });
        window.reply = resolve;
    }))"""
    await second.evaluate(ringing)
    await third.evaluate(ringing)
    asked = asyncio.create_task(first.evaluate("client.call('ask', { type: 'ask', n: 1 })"))
    for tab in (second, third):
        await tab.evaluate("until(() => window.reply)")
    await third.evaluate("reply('from the third')")
    assert await asked == "from the third"
    await second.evaluate("until(() => window.stopped)")


async def test_signed_out_all_tabs_are_closed_and_a_new_one_begins_anew(new_tab):
    first, second = [await new_tab() for _ in range(2)]
    await second.evaluate("client.call('leave').catch(() => {})")
    for tab in (first, second):
        await tab.evaluate("until(() => client.state === 'closed')")
        assert await tab.evaluate("client.last.code") == 4004
    third = await new_tab()
    assert sockets(first, second, third) == [1, 0, 1]


async def test_the_network_breaks_for_all_at_once(new_tab, wire):
    first, second = [await new_tab() for _ in range(2)]
    await second.evaluate("client.subscribe('room:1').ready")
    wire.cut()
    await second.evaluate("client.publish('room:1', 'over the gap')")
    await second.evaluate("until(() => log.got.length)")
    for tab in (first, second):
        await tab.evaluate("until(() => log.states.at(-1) === 'open+')")


async def test_without_locks_each_tab_has_its_own_socket(visit, new_context):
    context = await new_context()
    await context.add_init_script("delete Navigator.prototype.locks")
    tabs = [await visit(file="tabs.js", context=context) for _ in range(2)]
    assert sockets(*tabs) == [1, 1]


async def test_the_first_tab_has_what_it_asked_for_before_anyone_led(new_tab):
    tab = await new_tab()
    code = """async () => {
        const first = await client.publish('room:since', 1);
        for (const n of [2, 3]) await client.publish('room:since', n);
        const { connect } = await import('/backchannel/tabs.js');
        const other = connect('/ws/main', { name: 'other' });
        const got = [];
        for await (const { data } of other.subscribe('room:since', { since: first })) {
            if (got.push(data) === 2) break;
        }
        other.close();
        return got;
    }"""
    assert await tab.evaluate(code) == [2, 3]


READ = """async (channel) => {
    try { for await (const { data } of channel) return data; } catch ({ code }) { return code; }
    return 'ended';
}"""


async def test_what_was_refused_left_or_closed_is_told_in_every_tab(new_tab, wire):
    first, second = [await new_tab() for _ in range(2)]
    read = f"(name) => ({READ})(client.subscribe(name))"
    assert await second.evaluate(read, "room:secret") == "refused"
    again = f"(name) => ({READ})(client.channel(name))"
    assert await second.evaluate(again, "room:secret") == "refused"

    for tab in (first, second):
        await tab.evaluate("client.subscribe('room:1').ready")
    await second.evaluate("client.channel('room:1').unsubscribe()")
    # It does not come back into what the other one is in.
    wire.cut()
    await first.evaluate("until(() => client.state !== 'open')")
    await first.evaluate("client.publish('room:1', 'to the first')")
    await first.evaluate("until(() => client.channel('room:1').isIn && log.got.length)")
    await second.evaluate("client.deliver('a fence')")
    assert await second.evaluate("[client.channel('room:1').isIn, log.got]") == [False, []]
    assert await second.evaluate(again, "room:1") == "ended"

    # Left and entered at once, it is in.
    code = """async () => {
        const channel = client.channel('room:1');
        const left = channel.unsubscribe();
        const { ready } = client.subscribe('room:1');
        await Promise.all([left, ready]);
        await client.publish('room:1', 'in again');
        return channel.isIn;
    }"""
    assert await first.evaluate(code) is True

    code = """async () => {
        const left = client.channel('room:1').unsubscribe();
        client.close();
        await left;
        await client.channel('room:1').unsubscribe();
        const late = client.subscribe('late');
        await late.unsubscribe();
        return late.ready.catch(({ code }) => code);
    }"""
    assert await first.evaluate(code) == "closed"


REFUSED = """async (name) => {
    window.told = [];
    const channel = client.subscribe(name);
    for (const event of ['subscribed', 'unsubscribed']) channel.on(event, () => told.push(event));
    return channel.ready.then(() => 'in', ({ code }) => code);
}"""
OUT = """async (name) => {
    await client.deliver('a fence');
    return [told, client.channel(name).isIn, log.got];
}"""


async def asks(tab, name):
    await tab.evaluate("client.deliver('a fence')")
    return await tab.evaluate(f"client.call('asks', {{ type: 'asks', name: '{name}' }})")


async def test_who_is_refused_is_asked_for_once_and_stays_out(new_tab):
    first = await new_tab()
    assert await first.evaluate(REFUSED, "gate:once") == "refused"
    assert await asks(first, "once") == 1
    # It asks as soon as it is there, maybe before it knows who leads.
    code = """async () => {
        const { connect } = await import('/backchannel/tabs.js');
        window.early = connect('/ws/main');
        return early.subscribe('gate:once').ready.then(() => 'in', ({ code }) => code);
    }"""
    second = await new_tab()
    assert await second.evaluate(code) == "refused"
    assert await asks(second, "once") == 2
    assert await second.evaluate("early.channel('gate:once').isIn") is False
    assert await second.evaluate(REFUSED, "gate:once") == "refused"
    assert await asks(second, "once") == 3

    # One who is let in is no reason for the others to be.
    third = await new_tab()
    assert await third.evaluate(REFUSED, "gate:once") == "in"
    await third.evaluate("client.publish('gate:once', 'for the third')")
    await third.evaluate("until(() => log.got.length)")
    for tab in (first, second):
        assert await tab.evaluate(OUT, "gate:once") == [["unsubscribed"], False, []]
    assert await first.evaluate(REFUSED, "gate:once") == "in"
    assert await asks(first, "once") == 4


async def test_the_next_leader_does_not_ask_for_what_was_refused(new_tab, wire):
    first, second, third = [await new_tab() for _ in range(3)]
    for tab in (first, second):
        assert await tab.evaluate(REFUSED, "gate:over") == "refused"
    await third.evaluate("client.subscribe('room:1').ready")
    await first.close()
    await third.evaluate("until(() => log.states.at(-1) === 'open+')")
    assert await asks(third, "over") == 2
    wire.cut()
    await third.evaluate("until(() => client.state !== 'open')")
    await second.close()
    # Also where the leader goes while there is no connection.
    await third.evaluate("client.publish('room:1', 'still in')")
    await third.evaluate("until(() => log.got.length)")
    assert await asks(third, "over") == 2
    assert await third.evaluate("client.channel('gate:over').isIn") is False


async def test_two_tabs_that_wait_for_one_channel_ask_once(new_tab, wire):
    first, second = [await new_tab() for _ in range(2)]
    wire.delays["down"] = 0.3
    told = await asyncio.gather(*(tab.evaluate(REFUSED, "gate:both") for tab in (first, second)))
    wire.delays["down"] = 0
    assert told == ["refused", "refused"]
    assert await asks(second, "both") == 1


async def test_whom_the_listener_lets_in_is_in_though_it_was_refused(new_tab):
    first, second = [await new_tab() for _ in range(2)]
    assert await second.evaluate(REFUSED, "gate:late") == "refused"
    await first.evaluate("client.call('admit', { type: 'admit', channel: 'gate:late' })")
    await second.evaluate("until(() => client.channel('gate:late').isIn)")
    await first.evaluate("client.publish('gate:late', 'now')")
    await second.evaluate("until(() => log.got.includes('now'))")


async def test_another_tab_begins_after_the_position_that_it_kept(new_tab):
    first = await new_tab()
    code = """async () => {
        const position = await client.publish('room:kept', 1);
        for (const n of [2, 3]) await client.publish('room:kept', n);
        return position;
    }"""
    since = await first.evaluate(code)
    code = """async (since) => {
        const { connect } = await import('/backchannel/tabs.js');
        window.early = connect('/ws/main');
        const got = [];
        for await (const { data } of early.subscribe('room:kept', { since })) {
            if (got.push(data) === 2) return got;
        }
    }"""
    assert await (await new_tab()).evaluate(code, since) == [2, 3]


@pytest.mark.parametrize("when", ["at once", "when it is open", "after a while"])
async def test_a_tab_that_enters_where_another_one_is_hears_so_once(new_tab, when):
    first, second = [await new_tab() for _ in range(2)]
    await first.evaluate("client.subscribe('room:1').ready")
    code = """async (when) => {
        const { connect } = await import('/backchannel/tabs.js');
        const early = connect('/ws/main');
        const told = [];
        if (when !== 'at once') await new Promise((then) => early.on('open', then));
        if (when === 'after a while') await early.deliver('a fence');
        const room = early.subscribe('room:1');
        room.on('subscribed', () => told.push(room.isIn));
        await room.ready;
        await early.deliver('a fence');
        await early.deliver('another');
        return told;
    }"""
    assert await second.evaluate(code, when) == [True]
