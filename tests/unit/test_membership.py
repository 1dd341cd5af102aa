"""Entering and leaving channels: who is asked, who is told, and that the books balance."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared import turns

from backchannel import Hub, Listener, Reject, threaded


def refusals(how):
    def refuse(*_):
        if how == "False":
            return False
        if how == "returned":
            return Reject(403, "members only")
        if how == "raised":
            raise Reject("members only")
        raise ValueError("boom")

    return refuse


HOWS = pytest.mark.parametrize("how", ["False", "returned", "raised", "failed"])


# ── entering and leaving ──────────────────────────────────────────────────────────────────────


async def test_subscribe_and_unsubscribe_from_the_listener(hub, style):
    class Chat(Listener):
        if style == "threaded":

            @threaded
            def on_message(self, ws, message):
                entered = ws.subscribe("cars").result(5)
                within = sorted(ws.channels)
                return [entered, within, ws.unsubscribe("cars").result(5), sorted(ws.channels)]

        elif style == "async def":

            async def on_message(self, ws, message):
                entered = await ws.subscribe("cars")
                within = sorted(ws.channels)
                return [entered, within, await ws.unsubscribe("cars"), sorted(ws.channels)]

        else:

            def on_message(self, ws, message):
                entered = ws.subscribe("cars").result()
                within = sorted(ws.channels)
                return [entered, within, ws.unsubscribe("cars").result(), sorted(ws.channels)]

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as ws:
        await ws.send("go")
        assert await ws.receive_json() == [True, ["cars"], True, []]


async def test_who_has_ended_before_on_subscribe_is_asked_is_not_asked(hub):
    """Else it would be asked once more than it is told that somebody is out."""
    opening, go, asked = asyncio.Event(), asyncio.Event(), []

    class Chat(Listener):
        async def on_channel_open(self, channel):
            opening.set()
            await go.wait()

        def on_subscribe(self, ws, channel):
            asked.append(channel)

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as ws:
        change = ws.connection.subscribe("cars")
        await opening.wait()
        go.set()  # it goes on in the next turn, before it can be cancelled
        ws.connection.close(4100)
        assert await change is False
    assert asked == []
    assert hub.channels() == {}


async def test_subscribe_from_outside(hub, diary, style):
    hub.add("/ws", diary.listener(style))
    async with hub.test_client("/ws") as ws:
        assert await ws.connection.subscribe("cars") is True
        assert ws.connection.channels == {"cars"}
        assert hub.channels() == {"cars": 1}
        assert hub.broadcast("cars", "hi").reached == 1
        assert await ws.connection.unsubscribe("cars") is True
        assert ws.connection.channels == frozenset()
        assert hub.broadcast("cars", "hi").reached == 0
    assert diary[3:-2] == [
        "on_channel_open cars",
        "on_subscribe cars",
        "on_unsubscribe cars",
        "on_channel_close cars",
    ]


async def test_subscribe_by_audience_from_outside(hub, diary, style):
    hub.add("/ws", diary.listener(style))
    async with (
        hub.test_client("/ws", user="ana"),
        hub.test_client("/ws", user="ana"),
        hub.test_client("/ws", user="bob"),
    ):
        assert (await hub.user("ana").subscribe("cars")).reached == 2
        assert hub.channels() == {"cars": 2}
        assert (await hub.everyone.subscribe("cars")).reached == 3
        assert (await hub.channel("cars").unsubscribe("cars")).reached == 3
        assert (await hub.everyone.unsubscribe("cars")).reached == 0
        assert hub.channels() == {}
        assert (await hub.user("unknown").subscribe("cars")).reached == 0
    assert diary.count_of("on_subscribe") == diary.count_of("on_unsubscribe") == 3
    assert diary.count_of("on_channel_open") == diary.count_of("on_channel_close") == 1


async def test_subscribe_by_audience_counts_who_is_in_and_asks_each(hub, diary, style):
    hub.add("/ws", diary.listener(style, on_subscribe=lambda ws, channel: ws.user != "bob"))
    async with hub.test_client("/ws", user="ana"), hub.test_client("/ws", user="bob"):
        assert (await hub.everyone.subscribe("cars")).reached == 1
        assert await hub.channel("cars").users() == ["ana"]
    assert diary.count_of("on_subscribe") == 2


async def test_entering_twice_is_asked_once_and_leaving_twice_told_once(hub, diary, style):
    hub.add("/ws/{channel}", diary.listener(style))
    async with hub.test_client("/ws/cars") as ws:
        assert await ws.connection.subscribe("cars") is True
        assert await ws.connection.unsubscribe("cars") is True
        assert await ws.connection.unsubscribe("cars") is False
        assert await ws.connection.unsubscribe("never") is False
    assert diary.count_of("on_subscribe") == diary.count_of("on_unsubscribe") == 1


async def test_on_subscribe_is_asked_before_and_on_unsubscribe_told_after(hub):
    seen = []

    class Chat(Listener):
        def on_subscribe(self, ws, channel):
            seen.append(("asked", channel in ws.channels, hub.broadcast(channel, "x").reached))

        def on_unsubscribe(self, ws, channel):
            seen.append(("told", channel in ws.channels, hub.broadcast(channel, "x").reached))

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as ws:
        await ws.connection.subscribe("cars")
        await ws.connection.unsubscribe("cars")
    assert seen == [("asked", False, 0), ("told", False, 0)]


async def test_at_the_end_each_channel_is_left_after_on_close(hub, diary, style):
    hub.add("/ws/{channel}", diary.listener(style))
    async with hub.test_client("/ws/cars") as ws:
        for name in ("boats", "planes"):
            await ws.connection.subscribe(name)
        diary.clear()
    assert diary[0] == "on_close 1000"
    assert sorted(diary[1:-1]) == sorted(
        f"{what} {name}"
        for what in ("on_unsubscribe", "on_channel_close")
        for name in ("cars", "boats", "planes")
    )
    assert diary[-1] == "on_last_close"


async def test_an_ended_connection_enters_and_leaves_nothing(hub, diary, style):
    hub.add("/ws/{channel}", diary.listener(style))
    async with hub.test_client("/ws/cars") as ws:
        pass
    diary.clear()
    assert await ws.connection.subscribe("boats") is False
    assert await ws.connection.unsubscribe("cars") is False
    assert await asyncio.to_thread(lambda: ws.connection.subscribe("boats").result(1)) is False
    assert diary == []
    assert ws.connection.channels == {"cars"}
    assert hub.channels() == {}


async def test_a_channel_lives_as_long_as_someone_is_in_it(hub, diary, style):
    hub.add("/ws/{channel}", diary.listener(style))
    async with hub.test_client("/ws/cars"):
        async with hub.test_client("/ws/cars"):
            assert diary.count_of("on_channel_open") == 1
        assert diary.count_of("on_channel_close") == 0
    assert diary.count_of("on_channel_close") == 1
    async with hub.test_client("/ws/cars"):
        assert diary.count_of("on_channel_open") == 2


async def test_a_channel_shared_by_two_endpoints_opens_and_closes_once(hub, diary, style):
    hub.add("/a/{channel}", diary.listener(style), share_channels=True)
    hub.add("/b/{channel}", diary.listener(style), share_channels=True)
    one = await hub.test_client("/a/cars").connect()
    two = await hub.test_client("/b/cars").connect()
    await one.close()
    await two.close()
    assert diary.count_of("on_channel_open") == diary.count_of("on_channel_close") == 1


# ── refusals ──────────────────────────────────────────────────────────────────────────────────


@HOWS
async def test_refusing_a_later_subscription_keeps_the_connection(hub, diary, style, how):
    hub.add("/ws", diary.listener(style, on_subscribe=refusals(how)))
    async with hub.test_client("/ws") as ws:
        assert await ws.connection.subscribe("cars") is False
        assert ws.connection.is_open
        assert ws.connection.channels == frozenset()
        assert hub.channels() == {}
        assert hub.broadcast("cars", "hi").reached == 0
    assert diary.count_of("on_channel_open") == diary.count_of("on_channel_close") == 1
    assert diary.count_of("on_unsubscribe") == 0
    assert diary.count_of("on_error") == (how == "failed")


@HOWS
async def test_refusing_the_automatic_subscription_closes_with_1008_and_rejects_text(
    hub, diary, style, how
):
    hub.add("/ws/{channel}", diary.listener(style, on_subscribe=refusals(how)))
    ws = await hub.test_client("/ws/cars").connect()
    text = "members only" if how in {"returned", "raised"} else "subscription to 'cars' refused"
    assert (ws.closed.code, ws.closed.reason) == (1008, text)
    assert diary.only("on_open", "on_close", "on_channel_close", "on_last_close") == [
        "on_open",
        "on_channel_close cars",
        "on_close 1008",
        "on_last_close",
    ]
    assert diary.count_of("on_unsubscribe") == 0
    assert hub.channels() == {}


async def test_one_who_is_refused_does_not_close_the_channel_of_the_others(hub, diary, style):
    hub.add("/ws/{channel}", diary.listener(style, on_subscribe=lambda ws, _: ws.user == "ana"))
    async with hub.test_client("/ws/cars", user="ana") as ana:
        await hub.test_client("/ws/cars", user="bob").connect()
        assert diary.count_of("on_channel_close") == 0
        assert hub.channels() == {"cars": 1}
        assert ana.connection.is_open
    assert diary.count_of("on_channel_close") == 1


async def test_a_slow_question_to_one_does_not_keep_another_waiting(hub):
    go = asyncio.Event()

    class Chat(Listener):
        async def on_subscribe(self, ws, channel):
            if ws.user == "slow":
                await go.wait()

    hub.add("/ws/{channel}", Chat)
    slow = await hub.test_client("/ws/cars", user="slow").connect(wait=False)
    await turns()
    async with hub.test_client("/ws/cars", user="quick"):
        assert await hub.channel("cars").users() == ["quick"]
        go.set()
        await slow.settled()
        assert hub.channels() == {"cars": 2}
    await slow.close()


# ── opening and closing take turns ────────────────────────────────────────────────────────────


async def test_who_comes_while_the_channel_opens_waits_for_it(hub, diary):
    began, go = asyncio.Event(), asyncio.Event()

    async def opening(channel):
        began.set()
        await go.wait()
        diary.append("opened")

    hub.add("/ws/{channel}", diary.listener("async def", on_channel_open=opening))
    one = await hub.test_client("/ws/cars").connect(wait=False)
    await began.wait()
    two = await hub.test_client("/ws/cars").connect(wait=False)
    await turns()
    assert diary.count_of("on_subscribe") == 0
    go.set()
    await one.settled()
    await two.settled()
    assert diary.only("on_channel_open", "opened", "on_subscribe") == [
        "on_channel_open cars",
        "opened",
        "on_subscribe cars",
        "on_subscribe cars",
    ]
    await one.close()
    await two.close()
    assert diary.count_of("on_channel_close") == 1


async def test_who_comes_while_the_channel_opens_waits_also_where_its_own_rule_has_begun_that(
    hub, diary
):
    go = asyncio.Event()

    async def opening():
        diary.append("opening")
        await go.wait()
        diary.append("open")

    class Slow(Listener):
        def on_channel_open(self, channel):
            return opening()

    class Plain(Listener):
        def on_subscribe(self, ws, channel):
            diary.append("asked")

    def let_slow_in(ws, channel):
        if ws is plain.connection:
            slow.connection.subscribe(channel)
        return True

    hub.rule("cars", subscribe=let_slow_in)
    hub.add("/slow", Slow)
    hub.add("/plain", Plain)
    slow, plain = [await hub.test_client(url).connect() for url in ("/slow", "/plain")]
    change = plain.connection.subscribe("cars")
    await turns()
    assert diary == ["opening"]
    go.set()
    assert await change is True
    await slow.settled()
    assert diary == ["opening", "open", "asked"]
    assert hub.channels() == {"cars": 2}


async def test_who_ends_while_the_channel_opens_is_asked_nothing(hub, diary):
    """It can't enter: on_subscribe would greet it, and no on_unsubscribe would follow."""
    began, go = asyncio.Event(), asyncio.Event()

    async def opening(channel):
        began.set()
        await go.wait()

    hub.add("/ws/{channel}", diary.listener("async def", on_channel_open=opening))
    one = await hub.test_client("/ws/cars").connect(wait=False)
    await began.wait()
    two = await hub.test_client("/ws/cars").connect(wait=False)
    await turns()
    two.connection.close(4000, "enough")
    go.set()
    await one.settled()
    await two.settled()
    assert hub.channels() == {"cars": 1}
    await one.close()
    assert diary.count_of("on_subscribe") == diary.count_of("on_unsubscribe") == 1


@pytest.mark.parametrize("how", ["awaited", "not awaited", "from outside"])
async def test_the_end_of_a_connection_does_not_cut_on_unsubscribe_short(hub, how):
    """Whoever keeps books of who is in a channel would have one too many in them for ever."""
    began, go = asyncio.Event(), asyncio.Event()
    told = []

    class Chat(Listener):
        async def on_message(self, ws, message):
            leaving = ws.unsubscribe(message)
            if how == "awaited":
                await leaving

        async def on_unsubscribe(self, ws, channel):
            began.set()
            await go.wait()
            told.append(channel)

        async def on_close(self, ws, reason):
            told.append(reason.code)

    hub.add("/ws/{channel}", Chat)
    ws = await hub.test_client("/ws/cars").connect()
    if how == "from outside":
        ws.connection.unsubscribe("cars")
        await began.wait()
    else:
        await asyncio.gather(ws.send("cars"), began.wait())
    ws.connection.close(4000, "enough")
    await turns()
    go.set()
    await ws.settled()
    assert told == ["cars", 4000]


@pytest.mark.parametrize("who", ["mod", "ana"])
@pytest.mark.parametrize("how", ["await", "result", "ignored"])
async def test_on_channel_open_may_let_others_in_and_wait_for_them(hub, diary, who, how):
    """The very channel that it opens, and the very connection that it is opened for."""

    class Chat(Listener):
        if how == "await":

            async def on_channel_open(self, channel):
                diary.append(f"opening {(await hub.user(who).subscribe(channel)).reached}")

        elif how == "result":

            @threaded
            def on_channel_open(self, channel):
                diary.append(f"opening {hub.user(who).subscribe(channel).result(5).reached}")

        else:

            async def on_channel_open(self, channel):
                hub.user(who).subscribe(channel)
                diary.append("opening 1")

        async def on_subscribe(self, ws, channel):
            await turns(2)

        def on_channel_close(self, channel):
            diary.append("closed")

    hub.add("/ws", Chat)
    mod = await hub.test_client("/ws", user="mod").connect()
    ana = await hub.test_client("/ws", user="ana").connect()
    assert await asyncio.wait_for(ana.connection.subscribe("cars"), 5) is True
    await mod.settled()
    assert diary == ["opening 1"]
    assert hub.channels() == {"cars": 2 if who == "mod" else 1}
    await ana.close()
    await mod.close()
    assert diary == ["opening 1", "closed"]
    assert len(hub.membership._channels) == 0


async def test_work_spawned_while_a_channel_opened_waits_for_its_turn_later(hub, diary):
    """It is inside the opening only as long as that runs."""
    began, spawned = asyncio.Event(), []

    class Chat(Listener):
        async def on_channel_open(self, channel):
            diary.append("opening")
            if not spawned:
                spawned.append(hub.spawn(self.later(channel)))

        async def later(self, channel):
            await began.wait()
            return (await hub.user("mod").subscribe(channel)).reached

        async def on_channel_close(self, channel):
            diary.append("closing")
            if not began.is_set():
                began.set()
                await turns(20)
            diary.append("closed")

    hub.add("/ws", Chat)
    mod = await hub.test_client("/ws", user="mod").connect()
    async with hub.test_client("/ws") as ana:
        await ana.connection.subscribe("cars")
    assert await asyncio.wait_for(spawned[0], 5) == 1
    await mod.close()
    assert diary == ["opening", "closing", "closed"] * 2


async def test_who_comes_while_the_channel_closes_opens_it_anew(hub, diary):
    began, go = asyncio.Event(), asyncio.Event()

    async def closing(channel):
        if not go.is_set():
            began.set()
            await go.wait()
        diary.append("closed")

    hub.add("/ws/{channel}", diary.listener("async def", on_channel_close=closing))
    one = await hub.test_client("/ws/cars").connect()
    leaving = asyncio.create_task(one.close())
    await began.wait()
    two = await hub.test_client("/ws/cars").connect(wait=False)
    await turns()
    assert diary.count_of("on_channel_open") == 1
    go.set()
    await leaving
    await two.settled()
    await two.close()
    assert diary.only("on_channel_open", "on_channel_close", "closed") == [
        "on_channel_open cars",
        "on_channel_close cars",
        "closed",
        "on_channel_open cars",
        "on_channel_close cars",
        "closed",
    ]


async def test_a_client_that_leaves_while_its_channel_opens_leaves_it_to_the_next(hub, diary):
    began, go = asyncio.Event(), asyncio.Event()

    async def opening(channel):
        began.set()
        await go.wait()
        diary.append("opened")

    hub.add("/ws/{channel}", diary.listener("async def", on_channel_open=opening))
    one = await hub.test_client("/ws/cars").connect(wait=False)
    await began.wait()
    two = await hub.test_client("/ws/cars").connect(wait=False)
    await turns()
    await one.drop()
    go.set()
    await two.settled()
    assert hub.channels() == {"cars": 1}
    await two.close()
    assert diary.count_of("opened") == diary.count_of("on_channel_close") == 1
    assert len(hub.membership._channels) == 0


async def test_who_leaves_right_when_its_turn_comes_does_not_jam_the_channel(hub, diary):
    """The first is refused in the very turn that wakes the second, which has left by then."""
    began, go, second = asyncio.Event(), asyncio.Event(), []

    async def opening(channel):
        began.set()
        await go.wait()

    def refuse(ws, channel):
        if ws.user != "one":
            return None
        second[0].connection.close(4100)
        return False

    hub.add(
        "/ws/{channel}",
        diary.listener("async def", on_channel_open=opening, on_subscribe=refuse),
    )
    one = await hub.test_client("/ws/cars", user="one").connect(wait=False)
    await began.wait()
    second.append(await hub.test_client("/ws/cars", user="two").connect(wait=False))
    await turns()
    go.set()
    await one.settled()
    await second[0].settled()
    assert diary.count_of("on_channel_open") == diary.count_of("on_channel_close") == 1
    assert len(hub.membership._channels) == 0


@pytest.mark.parametrize("name", ["on_unsubscribe", "on_channel_close"])
async def test_a_client_that_leaves_while_it_leaves_a_channel_still_closes_it(hub, diary, name):
    began = asyncio.Event()

    async def slow(*_):
        began.set()
        await turns(20)

    async def leave(ws, message):
        await ws.unsubscribe("cars")

    hub.add("/ws/{channel}", diary.listener("async def", on_message=leave, **{name: slow}))
    ws = await hub.test_client("/ws/cars").connect()
    await ws.send("leave")
    await began.wait()
    await ws.drop()
    assert diary.count_of("on_channel_open") == diary.count_of("on_channel_close") == 1
    assert diary.count_of("on_unsubscribe") == diary.count_of("on_close") == 1
    assert diary[-1] == "on_last_close"
    assert len(hub.membership._channels) == 0
    async with hub.test_client("/ws/cars"):
        assert hub.channels() == {"cars": 1}


@pytest.mark.parametrize("kind", ["def", "coroutine"])
async def test_a_question_that_turns_out_to_wait_has_its_turn(hub, diary, kind):
    """An on_subscribe that looks like a def may return a coroutine; a client may leave during it."""
    began, go = asyncio.Event(), asyncio.Event()

    async def ask(ws, channel):
        began.set()
        await go.wait()
        diary.append(f"asked {channel}")

    class Chat(Listener):
        def on_subscribe(self, ws, channel):
            return ask(ws, channel) if kind == "coroutine" else diary.append(f"asked {channel}")

        def on_message(self, ws, message):
            diary.append(message)

        def on_channel_close(self, channel):
            diary.append("channel closed")

    hub.add("/ws", Chat)
    ws = await hub.test_client("/ws").connect()
    change = ws.connection.subscribe("cars")
    await ws.send("message")
    if kind == "coroutine":
        await began.wait()
        assert diary == []
        go.set()
    assert await change is True
    await ws.settled()
    assert diary == ["asked cars", "message"]
    change = ws.connection.subscribe("boats")
    await ws.drop()
    await change
    assert diary.count("channel closed") == 2
    assert hub.channels() == {}


ACTS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from(["connect", "drop", "close", "enter", "leave", "say", "wait"]),
        st.sampled_from(["a", "b"]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(acts=ACTS, style=st.sampled_from(["def", "async def"]), seed=st.integers(0, 1000))
def test_the_books_balance_whatever_happens(acts, style, seed):
    """Opened as often as closed; entered as often as left; nobody told out of turn."""
    chance = random.Random(seed)
    told: Counter[str] = Counter()
    open_channels: set[str] = set()
    wrong: list[str] = []  # what is raised in a callback would only be logged

    def check(holds, what):
        if not holds:
            wrong.append(what)

    async def pause():
        if style == "async def":
            await turns(chance.randrange(4))

    class Chat(Listener):
        async def on_first_open(self, hub):
            check(not told["inside"], "opened twice")
            await pause()  # cut short here, it has opened nothing
            told["first"] += 1
            told["inside"] = 1

        async def on_last_close(self, hub):
            told["last"] += 1
            check(told["inside"], "closed without being open")
            told["inside"] = 0
            await pause()

        async def on_open(self, ws):
            told["open"] += 1
            await pause()
            if chance.random() < 0.2:
                raise ValueError

        async def on_close(self, ws, reason):
            told["close"] += 1
            check(hub.connection(ws.id).send("x").reached == 0, "ghost in on_close")
            check(all(ws not in members for members in hub.roster._channels.values()), "ghost")
            await pause()

        async def on_subscribe(self, ws, channel):
            check(channel in open_channels, "asked about a closed channel")
            await pause()
            return chance.random() > 0.3

        async def on_unsubscribe(self, ws, channel):
            check(channel in open_channels, "left a closed channel")
            await pause()

        def on_channel_open(self, channel):
            check(channel not in open_channels, "channel opened twice")
            open_channels.add(channel)

        def on_channel_close(self, channel):
            check(channel in open_channels, "channel closed twice")
            open_channels.discard(channel)

        async def on_message(self, ws, message):
            await ws.subscribe(message)
            await pause()

    if style == "def":
        Chat.on_subscribe = lambda self, ws, channel: chance.random() > 0.3
        Chat.on_unsubscribe = lambda self, ws, channel: None
        Chat.on_message = lambda self, ws, message: ws.subscribe(message)

    async def scenario():
        clients = {}
        background = []
        for who, act, channel in acts:
            client = clients.get(who)
            if act == "connect" and client is None:
                clients[who] = await hub.test_client(f"/ws/{channel}").connect(wait=who % 2 == 0)
            elif act == "wait":
                await turns(chance.randrange(5))
            elif client is None:
                continue
            elif act in {"drop", "close"}:
                background.append(asyncio.create_task(getattr(clients.pop(who), act)()))
            elif act == "enter":
                client.connection.subscribe(channel)
            elif act == "leave":
                client.connection.unsubscribe(channel)
            elif client.closed is None:
                await client.send(channel)
        background.extend(asyncio.create_task(client.close()) for client in clients.values())
        if background:
            await asyncio.wait_for(asyncio.gather(*background), 10)
        assert hub.channels() == {}
        assert len(hub.membership._channels) == 0
        await hub.stop()

    hub = Hub(cancel_grace=1.0)
    hub.add("/ws/{channel}", Chat)
    asyncio.run(scenario())
    assert wrong == []
    assert open_channels == set()
    assert told["open"] == told["close"]
    assert told["first"] == told["last"]
    assert hub.health.problems == ()


async def test_many_enter_and_leave_one_channel_at_once_and_it_balances(hub, diary, style):
    hub.add("/ws", diary.listener(style))
    clients = [await hub.test_client("/ws").connect() for _ in range(8)]

    async def in_and_out(client):
        for _ in range(5):
            assert await client.connection.subscribe("cars")
            assert await client.connection.unsubscribe("cars")

    await asyncio.gather(*map(in_and_out, clients))
    assert diary.count_of("on_subscribe") == diary.count_of("on_unsubscribe") == 40
    marks = diary.only("on_channel_open", "on_channel_close")
    assert marks == ["on_channel_open cars", "on_channel_close cars"] * (len(marks) // 2)
    assert hub.channels() == {}
    for client in clients:
        await client.close()


async def test_a_plain_on_subscribe_and_the_entry_after_it_are_one_step():
    """So a list sent there, and the joins told there, add up: for each client, in any order."""
    hub = Hub()
    here = []

    @hub.endpoint("/ws/{channel}")
    class Room(Listener):
        async def on_open(self, ws):
            for _ in range(random.Random(ws.query["seed"]).randrange(5)):
                await asyncio.sleep(0)

        async def on_channel_open(self, channel):
            await asyncio.sleep(0)

        def on_subscribe(self, ws, channel):
            ws.broadcast({"joined": ws.id})
            here.append(ws.id)
            ws.send({"here": here})

    clients = [hub.test_client(f"/ws/cars?seed={number}") for number in range(40)]
    await asyncio.gather(*(client.connect() for client in clients))

    for client in clients:
        known = []
        for message in map(msgspec.json.decode, client.received()):
            known += message.get("here", []) + [message[key] for key in message if key == "joined"]
        assert sorted(known) == sorted(other.id for other in clients)
    for client in clients:
        await client.close()


# ── the names of channels ─────────────────────────────────────────────────────────────────────


class Named(str):
    """A name as frameworks make them, such as a member of an enumeration."""

    __slots__ = ()


class Lazy:
    """Text that is known later, as of translations: it looks like its name, and is none."""

    def __hash__(self):
        return hash("cars")

    def __eq__(self, other):
        return other == "cars"


async def test_a_name_of_another_kind_of_str_is_the_same_channel(hub):
    hub.add("/ws", Listener)
    async with hub.test_client("/ws") as one, hub.test_client("/ws") as other:
        assert await one.connection.subscribe("cars") is True
        assert await other.connection.subscribe(Named("cars")) is True
        assert hub._channels["cars"].holders == 2
        assert await other.connection.unsubscribe("cars") is True
        assert await one.connection.unsubscribe(Named("cars")) is True
        assert not hub._channels


async def test_where_case_is_ignored_one_channel_has_all_spellings():
    hub = Hub(casefold_channels=True)
    hub.add("/ws", Listener)
    async with hub.test_client("/ws") as one, hub.test_client("/ws") as other:
        assert await one.connection.subscribe("cars") is True
        assert await other.connection.subscribe("CARS") is True
        assert hub.channels() == {"cars": 2}
        assert await one.connection.unsubscribe("Cars") is True
        assert hub.channels() == {"cars": 1}
    await hub.stop()


@pytest.mark.parametrize("name", [Lazy(), ["cars"], b"cars", None, 7])
@pytest.mark.parametrize("verb", ["subscribe", "unsubscribe"])
async def test_what_is_no_str_is_no_name_also_of_a_channel_that_is_held(hub, verb, name):
    hub.add("/ws", Listener)
    async with hub.test_client("/ws") as ws:
        assert await ws.connection.subscribe("cars") is True
        with pytest.raises(TypeError, match="a channel name is a str, not"):
            getattr(ws.connection, verb)(name)
        assert ws.connection.channels == {"cars"}
