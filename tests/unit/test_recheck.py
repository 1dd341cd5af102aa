"""Asking the rules again: who has lost access is out, whoever comes and goes meanwhile."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest
from shared import turns

from backchannel import Hub, Listener, Reject, threaded


class Access:
    """Who may see what, as an application would keep it; a rule asks it in one of four ways."""

    def __init__(self):
        self.revoked = set()
        self.asked = []

    def decide(self, ws, channel):
        self.asked.append((ws.user, channel))
        return Reject("no longer yours") if ws.user in self.revoked else True

    def rule(self, kind):
        if kind == "async def":

            async def may_see(ws, channel):
                await asyncio.sleep(0)
                return self.decide(ws, channel)

        elif kind == "threaded":

            @threaded
            def may_see(ws, channel):
                return self.decide(ws, channel)

        elif kind == "coroutine":

            async def later(ws, channel):
                await asyncio.sleep(0)
                return self.decide(ws, channel)

            def may_see(ws, channel):
                return later(ws, channel)

        else:

            def may_see(ws, channel):
                return self.decide(ws, channel)

        return may_see


@pytest.fixture
def access():
    return Access()


@pytest.fixture(params=["def", "async def", "threaded", "coroutine"])
def kind(request):
    return request.param


async def test_who_has_lost_access_leaves_and_is_named(hub, diary, style, access, kind):
    hub.rule("thread:{id}", subscribe=access.rule(kind))
    hub.add("/ws", diary.listener(style))
    users = ["ana", "bob", "eve"]
    clients = [await hub.test_client("/ws", user=user).connect() for user in users]
    await hub.everyone.subscribe("thread:7")
    diary.clear()
    assert await hub.channel("thread:7").recheck() == []
    access.revoked = {"eve", "ana"}
    removed = await hub.channel("thread:7").recheck()
    assert [(info.user, info.id) for info in removed] == [
        ("ana", clients[0].id),
        ("eve", clients[2].id),
    ]
    assert await hub.channel("thread:7").users() == ["bob"]
    assert all(client.connection.is_open for client in clients)
    assert clients[0].connection.channels == frozenset()
    assert diary == ["on_unsubscribe thread:7"] * 2
    access.revoked = {"bob"}
    await hub.channel("thread:7").recheck()
    assert diary[2:] == ["on_unsubscribe thread:7", "on_channel_close thread:7"]
    for client in clients:
        await client.close()
    assert len(hub.membership._channels) == 0


async def test_only_the_rules_are_asked_and_of_a_channel_only_that_one(hub, diary, access, kind):
    hub.rule("thread:{id}", subscribe=access.rule(kind))
    hub.rule("free:{id}")
    hub.add("/ws", diary.listener(on_subscribe=lambda ws, channel: True))
    async with hub.test_client("/ws", user="ana") as ana:
        for name in ["thread:7", "thread:8", "free:1", "cars"]:
            assert await ana.connection.subscribe(name)
        access.asked.clear()
        diary.clear()
        await hub.channel("thread:7").recheck()
        assert access.asked == [("ana", "thread:7")]
        await hub.channel("cars").recheck()
        assert len(access.asked) == 1
        assert diary == []


async def test_any_other_audience_is_asked_about_all_its_channels(hub, access, kind):
    hub.rule("{x}", subscribe=access.rule(kind))
    hub.add("/ws", Listener())
    async with hub.test_client("/ws", user="ana") as ana, hub.test_client("/ws", user="bob") as bob:
        for name in ["thread:7", "thread:8"]:
            assert (await hub.everyone.subscribe(name)).reached == 2
        access.revoked = {"ana", "bob"}
        assert [info.user for info in await hub.user("ana").recheck()] == ["ana"]
        assert (ana.connection.channels, len(bob.connection.channels)) == (frozenset(), 2)
        assert [info.user for info in await hub.connection(bob.id).recheck()] == ["bob"]
        assert hub.channels() == {}
        assert await hub.everyone.recheck() == []


async def test_who_loses_the_channel_of_its_url_is_closed_with_1008(
    hub, diary, style, access, kind
):
    hub.rule("thread:{id}", subscribe=access.rule(kind))
    hub.add("/ws/{id}", diary.listener(style), channel="thread:{id}")
    ana = await hub.test_client("/ws/7", user="ana").connect()
    async with hub.test_client("/ws/7", user="bob") as bob:
        access.revoked = {"ana"}
        removed = await hub.channel("thread:7").recheck()
        assert [info.id for info in removed] == [ana.id]
        assert (ana.closed.code, ana.closed.reason) == (1008, "no longer yours")
        await ana.settled()
        assert bob.connection.is_open
        assert diary.only("on_close", "on_unsubscribe") == [
            "on_close 1008",
            "on_unsubscribe thread:7",
        ]


async def test_a_rule_that_raises_removes_and_is_logged(hub, diary, kind, access, caplog):
    hub.rule("thread:{id}", subscribe=access.rule(kind))
    hub.add("/ws", diary.listener())
    async with hub.test_client("/ws", user="ana") as ana:
        assert await ana.connection.subscribe("thread:7")
        access.decide = lambda ws, channel: 1 / 0
        assert [info.user for info in await hub.channel("thread:7").recheck()] == ["ana"]
        assert hub.channels() == {}
        assert ana.connection.is_open
    assert diary.count_of("on_error") == 1
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "subscribe= of rule 'thread:{id}' (" in errors[0]
    assert "raised ZeroDivisionError" in errors[0]


async def test_a_rule_made_later_removes_those_it_refuses(hub, diary):
    hub.add("/ws", diary.listener())
    async with hub.test_client("/ws", user="ana") as ana:
        assert await ana.connection.subscribe("thread:7")
        hub.rule("thread:{id}", subscribe=lambda ws: False)
        assert await hub.channel("thread:7").recheck()
        assert ana.connection.channels == frozenset()


async def test_who_is_busy_is_out_at_once_and_told_in_its_turn(hub, diary, access):
    began, go = asyncio.Event(), asyncio.Event()

    async def busy(ws, message):
        began.set()
        await go.wait()
        diary.append("went on")

    hub.rule("thread:{id}", subscribe=access.rule("def"))
    hub.add("/ws", diary.listener("async def", on_message=busy))
    async with hub.test_client("/ws", user="ana") as ana:
        assert await ana.connection.subscribe("thread:7")
        await ana.send("work")
        await began.wait()
        access.revoked = {"ana"}
        checking = asyncio.create_task(hub.channel("thread:7").recheck())
        await turns()
        assert hub.channels() == {}
        assert hub.broadcast("thread:7", "secret").reached == 0
        assert diary.count_of("on_unsubscribe") == 0
        go.set()
        assert [info.user for info in await checking] == ["ana"]
        assert diary[-3:] == ["went on", "on_unsubscribe thread:7", "on_channel_close thread:7"]
        assert ana.received() == []


async def test_who_ends_before_it_is_told_is_told_all_the_same(hub, diary, access):
    began = asyncio.Event()

    async def busy(ws, message):
        began.set()
        await asyncio.Event().wait()

    hub.rule("thread:{id}", subscribe=access.rule("def"))
    hub.add("/ws", diary.listener("async def", on_message=busy))
    ana = await hub.test_client("/ws", user="ana").connect()
    assert await ana.connection.subscribe("thread:7")
    await ana.send("work")
    await began.wait()
    access.revoked = {"ana"}
    checking = asyncio.create_task(hub.channel("thread:7").recheck())
    await turns()
    await ana.drop()
    assert [info.user for info in await checking] == ["ana"]
    assert diary[-4:] == [
        "on_unsubscribe thread:7",
        "on_channel_close thread:7",
        "on_close 1006",
        "on_last_close",
    ]
    assert len(hub.membership._channels) == 0


async def test_a_callback_may_recheck_its_own_channel(hub, access, kind):
    class Chat(Listener):
        async def on_message(self, ws, message):
            removed = await hub.channel("thread:7").recheck()
            return [info.user for info in removed]

        async def on_unsubscribe(self, ws, channel):
            await turns(2)

    hub.rule("thread:{id}", subscribe=access.rule(kind))
    hub.add("/ws", Chat)
    async with hub.test_client("/ws", user="ana") as ana, hub.test_client("/ws", user="bob") as bob:
        await hub.everyone.subscribe("thread:7")
        access.revoked = {"ana", "bob"}
        await ana.send("recheck")
        assert await ana.receive_json(5) == ["ana", "bob"]
        assert bob.connection.channels == frozenset()


async def test_two_callbacks_that_recheck_each_other_do_not_wait_for_ever(hub, access):
    class Chat(Listener):
        async def on_message(self, ws, message):
            await turns(2)
            await hub.channel("thread:7").recheck()
            return "done"

        async def on_unsubscribe(self, ws, channel):
            await turns(2)

    hub.rule("thread:{id}", subscribe=access.rule("async def"))
    hub.add("/ws", Chat)
    async with hub.test_client("/ws", user="ana") as ana, hub.test_client("/ws", user="bob") as bob:
        await hub.everyone.subscribe("thread:7")
        access.revoked = {"ana", "bob"}
        await ana.send("recheck")
        await bob.send("recheck")
        assert [await ana.receive(5), await bob.receive(5)] == ["done", "done"]


async def test_a_callback_that_loses_its_own_connection_may_end(hub, diary, access):
    class Chat(Listener):
        async def on_message(self, ws, message):
            removed = await hub.channel("thread:7").recheck()
            diary.append(f"removed {len(removed)}")

        def on_close(self, ws, reason):
            diary.append(f"closed {reason.code}")

    hub.rule("thread:{id}", subscribe=access.rule("async def"))
    hub.add("/ws/{id}", Chat, channel="thread:{id}")
    ana = await hub.test_client("/ws/7", user="ana").connect()
    access.revoked = {"ana"}
    await ana.send("recheck")
    await ana.settled()
    assert diary == ["removed 1", "closed 1008"]


async def test_a_rule_that_is_asked_again_beside_a_callback_does_not_disturb_it(hub):
    """Each is nested where it began, whichever of the two ends first."""
    began, go = asyncio.Event(), asyncio.Event()
    asked, answer = asyncio.Event(), asyncio.Event()

    class Chat(Listener):
        async def on_message(self, ws, message):
            began.set()
            await go.wait()
            return await ws.subscribe("cars")

    async def may_see(ws):
        asked.set()
        await answer.wait()
        return await ws.subscribe("boats")

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as ws:
        await ws.connection.subscribe("thread:7")
        hub.rule("thread:{id}", subscribe=may_see)
        for first, second in [(go, answer), (answer, go)]:
            for event in (began, go, asked, answer):
                event.clear()
            checking = asyncio.create_task(hub.channel("thread:7").recheck())
            await asked.wait()
            await ws.send("work")
            await began.wait()
            first.set()
            await turns()
            second.set()
            assert await asyncio.wait_for(checking, 5) == []
            assert await ws.receive_json(5) is True
            assert ws.connection.channels == {"thread:7", "cars", "boats"}
            await ws.connection.unsubscribe("cars")
            await ws.connection.unsubscribe("boats")


async def test_a_member_that_leaves_meanwhile_is_no_error(hub, diary):
    asked, go = asyncio.Event(), asyncio.Event()

    async def refuse_later(ws):
        asked.set()
        await go.wait()
        return False

    hub.add("/ws", diary.listener())
    ana = await hub.test_client("/ws", user="ana").connect()
    async with hub.test_client("/ws", user="bob") as bob:
        await hub.everyone.subscribe("thread:7")
        hub.rule("thread:{id}", subscribe=refuse_later)
        checking = asyncio.create_task(hub.channel("thread:7").recheck())
        await asked.wait()
        await ana.drop()
        await bob.connection.unsubscribe("thread:7")
        go.set()
        assert await checking == []
        assert bob.connection.is_open
    assert diary.count_of("on_unsubscribe") == 2


@pytest.mark.parametrize("where", ["rule", "on_channel_open", "on_subscribe", "def on_subscribe"])
async def test_who_was_admitted_before_a_recheck_but_is_not_in_yet_is_asked_again(hub, where):
    """Else it would come in past the recheck, which finds only those who are in."""
    inside, go, revoked = asyncio.Event(), asyncio.Event(), []

    async def wait_in(place):
        if place == where.removeprefix("def "):
            inside.set()
            await go.wait()

    async def may_see(ws):
        allowed = not revoked
        await wait_in("rule")
        return allowed

    class Chat(Listener):
        if where == "def on_subscribe":

            def on_subscribe(self, ws, channel):
                return wait_in("on_subscribe")

        else:

            async def on_channel_open(self, channel):
                await wait_in("on_channel_open")

            async def on_subscribe(self, ws, channel):
                await wait_in("on_subscribe")

    rule = (lambda ws: not revoked) if where == "def on_subscribe" else may_see
    hub.rule("thread:{id}", subscribe=rule)
    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as ws:
        change = ws.connection.subscribe("thread:7")
        await inside.wait()
        revoked.append(True)
        assert await hub.channel("thread:7").recheck() == []
        go.set()
        assert await change is False
        assert hub.channels() == {}
    assert len(hub.membership._channels) == 0


async def test_not_all_are_asked_at_once_and_a_busy_one_keeps_nobody_waiting(hub):
    inside, most, go = set(), [], asyncio.Event()

    async def may_see(ws):
        inside.add(ws)
        most.append(len(inside))
        await asyncio.sleep(0)
        inside.discard(ws)
        return False

    class Chat(Listener):
        async def on_message(self, ws, message):
            await go.wait()

    hub.add("/ws", Chat)
    clients = [await hub.test_client("/ws").connect() for _ in range(100)]
    await hub.everyone.subscribe("thread:7")
    hub.rule("thread:{id}", subscribe=may_see)
    for client in clients[:50]:
        await client.send("work")
    checking = asyncio.create_task(hub.channel("thread:7").recheck())
    while hub.channels():  # all are out, though half of them are busy  # noqa: ASYNC110 - nothing tells when they are
        await asyncio.sleep(0)
    go.set()
    assert [info.id for info in await checking] == [client.id for client in clients]
    assert max(most) == 16
    for client in clients:
        await client.close()


async def test_a_large_channel_with_a_plain_rule_is_asked_in_slices(hub):
    """The event loop serves others in between."""

    def may_see(ws):
        total = 0
        for number in range(1000):
            total += number
        return total > 0

    hub.add("/ws", Listener())
    clients = [await hub.test_client("/ws").connect() for _ in range(400)]
    await hub.everyone.subscribe("thread:7")
    hub.rule("thread:{id}", subscribe=may_see)
    checking = asyncio.create_task(hub.channel("thread:7").recheck())
    count = 0
    while not checking.done():
        count += 1
        await asyncio.sleep(0)
    assert count > 3
    assert checking.result() == []
    for client in clients:
        await client.close()


async def test_a_recheck_that_is_cancelled_ends_and_the_next_one_does_it_all(hub):
    asked = asyncio.Event()

    async def never(ws):
        asked.set()
        await asyncio.Event().wait()

    hub.add("/ws", Listener())
    async with hub.test_client("/ws") as ws:
        await ws.connection.subscribe("a")
        await ws.connection.subscribe("b:1")
        hub.rule("{x}", subscribe=never)
        checking = asyncio.create_task(hub.everyone.recheck())
        await asked.wait()
        checking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checking
        assert hub.channels() == {"a": 1, "b:1": 1}
        hub.rule("b:{x}", subscribe=lambda ws: False)
        assert [info.id for info in await hub.channel("b:1").recheck()] == [ws.id]


async def test_a_hub_that_does_not_run_has_nobody_to_ask_about():
    assert await Hub().everyone.recheck() == []


async def test_another_event_loop_is_told_that_it_is_another(hub):
    await hub.start()

    def work():
        asyncio.run(hub.everyone.recheck())

    with pytest.raises(RuntimeError, match="in the hub's event loop"):
        await asyncio.to_thread(work)


@pytest.mark.parametrize("seed", range(20))
async def test_after_a_recheck_nobody_who_lost_access_is_in_whoever_comes_and_goes(hub, seed):
    """Decisions that are slow and stale when they come, callbacks that wait, clients that end."""
    chance = random.Random(seed)
    revoked, told = set(), {"in": 0, "out": 0}

    async def pause(most=6):
        await turns(chance.randrange(most))

    async def may_see(ws, channel):
        decision = (ws.user, channel) not in revoked
        await pause()
        return decision

    class Chat(Listener):
        async def on_subscribe(self, ws, channel):
            await pause()

        async def on_unsubscribe(self, ws, channel):
            told["out"] += 1
            await pause()

        async def on_channel_open(self, channel):
            told["in"] += 1
            await pause()

        async def on_channel_close(self, channel):
            told["in"] -= 1

        async def on_message(self, ws, message):
            await ws.subscribe(message)
            await pause()

    hub.rule("{x}", subscribe=may_see)
    hub.add("/ws/{channel}", Chat)
    clients = [await hub.test_client("/ws/lobby", user=f"u{n}").connect() for n in range(12)]

    async def wander(client):
        for _ in range(12):
            name = chance.choice("ab")
            act = chance.choice([client.connection.subscribe, client.connection.unsubscribe, "say"])
            if client.closed is not None:
                return
            if act == "say":
                await client.send(name)
            elif chance.random() < 0.5:
                await act(name)
            else:
                act(name)
            await pause()
        if chance.random() < 0.3:
            await client.drop()

    def intruders():
        there = {(ws.user, name) for ws in hub.roster.everyone for name in ws.channels}
        return there & (settled - {("", "")})

    wandering = [asyncio.create_task(wander(client)) for client in clients]
    settled = set()  # of which a recheck has ended
    while not all(task.done() for task in wandering):
        taken = {(f"u{chance.randrange(12)}", chance.choice(["a", "b", "a", "b", "lobby"]))}
        revoked |= taken
        await hub.channel(next(iter(taken))[1]).recheck()
        settled |= taken
        assert not intruders()
        await pause(12)
    await asyncio.gather(*wandering)
    assert not intruders()
    for client in clients:
        await client.close()
    assert told["in"] == 0
    assert len(hub.membership._channels) == 0
