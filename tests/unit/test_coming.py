"""Entering channels that the node has yet to hear, with a broker whose word takes its time."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared import lines_of, turns

from backchannel import Hub, Listener
from backchannel.broker.memory import MemoryBroker
from backchannel.contracts import Target
from backchannel.errors import BrokerUnavailable

CARS = Target("channel", "cars")


class Late(MemoryBroker):
    """Hears channels only once it is told to; users and sessions at once."""

    shared = True

    def __init__(self):
        super().__init__()
        self.asked = []
        self.heard = {}

    def about_changed(self):
        pass

    def listen(self, target):
        if target.kind != "channel":
            return None
        self.asked.append(target.key)
        self.heard[target] = asyncio.get_running_loop().create_future()
        return self.heard[target]

    def unlisten(self, target):
        if target.kind == "channel":
            self.heard.pop(target, None)

    def confirm(self, channel="cars"):
        self.heard[Target("channel", channel)].set_result(None)


@pytest.fixture
def broker():
    return Late()


@pytest.fixture
async def hub(broker):
    hub = Hub(broker=broker, name="test", cancel_grace=1.0)
    yield hub
    await hub.stop()
    assert not broker.heard
    assert not hub._channels


async def connected(hub, listener):
    hub.add("/ws", listener)
    return await hub.test_client("/ws").connect()


def plain(diary):
    """Return a listener that nobody has to wait for."""

    class Plain(Listener):
        def on_subscribe(self, ws, channel):
            diary.write("on_subscribe", channel)

        def on_message(self, ws, message):
            diary.write("on_message", message)

        def on_close(self, ws, reason):
            diary.write("on_close", reason)

    return Plain


async def test_it_enters_when_the_node_hears_the_channel_and_what_comes_meanwhile_waits(
    hub, broker, diary
):
    ws = await connected(hub, plain(diary))
    change = ws.connection.subscribe("cars")
    await ws.send("meanwhile")
    await turns()
    assert diary == []
    assert ws.connection.channels == frozenset()
    broker.confirm()
    assert await change is True
    await ws.settled()
    assert diary == ["on_subscribe cars", "on_message meanwhile"]
    assert hub.channels() == {"cars": 1}
    assert await ws.connection.unsubscribe("cars") is True


async def test_it_takes_no_task_to_wait_for_the_broker(hub, broker):
    ws = await connected(hub, Listener)
    before = asyncio.all_tasks()
    change = ws.connection.subscribe("cars")
    await turns()
    assert asyncio.all_tasks() == before
    broker.confirm()
    assert await change is True


async def test_many_who_come_into_one_channel_are_in_with_one_word_of_the_broker(hub, broker):
    hub.add("/ws", Listener)
    clients = [await hub.test_client("/ws").connect() for _ in range(5)]
    changes = [ws.connection.subscribe("cars") for ws in clients]
    await turns()
    assert not any(change.done() for change in changes)
    broker.confirm()
    assert [await change for change in changes] == [True] * 5
    assert broker.asked == ["cars"]


@pytest.mark.parametrize("cancel_on_close", [True, False])
async def test_who_ends_before_the_channel_is_heard_is_asked_nothing(
    broker, diary, cancel_on_close
):
    hub = Hub(broker=broker, name="test", cancel_on_close=cancel_on_close)
    ws = await connected(hub, plain(diary))
    change = ws.connection.subscribe("cars")
    closing = asyncio.create_task(ws.drop())
    await turns()
    if not cancel_on_close:
        assert diary == []
        broker.confirm()
    await closing
    assert await change is False
    assert diary == ["on_close 1006"]
    assert not broker.heard
    assert not hub._channels
    await hub.stop()


async def test_who_ends_first_leaves_the_channel_to_who_came_behind(hub, broker):
    hub.add("/ws", Listener)
    first, second = [await hub.test_client("/ws").connect() for _ in range(2)]
    changes = [ws.connection.subscribe("cars") for ws in (first, second)]
    await turns()
    await first.drop()
    assert await changes[0] is False
    await turns()
    broker.confirm()
    assert await changes[1] is True
    assert hub.channels() == {"cars": 1}


async def test_a_channel_that_all_give_up_before_it_is_heard_is_heard_no_more(hub, broker):
    hub.add("/ws", Listener)
    clients = [await hub.test_client("/ws").connect() for _ in range(2)]
    changes = [ws.connection.subscribe("cars") for ws in clients]
    await turns()
    await asyncio.gather(*(ws.drop() for ws in clients))
    assert [await change for change in changes] == [False, False]
    assert not broker.heard


async def test_a_hub_that_stops_waits_for_no_broker(hub, broker):
    ws = await connected(hub, Listener)
    change = ws.connection.subscribe("cars")
    async with asyncio.timeout(1):
        await hub.stop()
    assert await change is False


async def test_a_broker_that_goes_away_meanwhile_keeps_nobody_out(hub, broker):
    ws = await connected(hub, Listener)
    change = ws.connection.subscribe("cars")
    broker.heard[CARS].set_exception(BrokerUnavailable("away"))
    assert await change is True


async def test_what_the_broker_refuses_is_entered_by_nobody_reported_and_tried_anew(
    hub, broker, diary, caplog
):
    ws = await connected(hub, plain(diary))
    change = ws.connection.subscribe("cars")
    broker.heard[CARS].set_exception(PermissionError("no such topic for you"))
    assert await change is False
    assert diary == []
    assert "no such topic for you" in hub.health.problems[-1]
    assert len(lines_of(caplog)) == 1
    again = ws.connection.subscribe("cars")
    broker.confirm()
    assert await again is True
    assert broker.asked == ["cars", "cars"]


@pytest.mark.parametrize(
    ("error", "enters"), [(BrokerUnavailable("away"), True), (OSError("no such topic"), False)]
)
async def test_a_broker_that_raises_at_once_keeps_no_channel_from_who_comes_next(
    hub, broker, monkeypatch, error, enters
):
    """As one whose answer it is later."""

    def raise_it(target):
        raise error

    hub.add("/ws", Listener)
    first, second = [await hub.test_client("/ws").connect() for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(broker, "listen", raise_it)
        change = first.connection.subscribe("cars")
        async with asyncio.timeout(5):
            assert await change is enters
    change = second.connection.subscribe("cars")
    if not enters:
        broker.confirm()
    async with asyncio.timeout(5):
        assert await change is True
    assert ["no such topic" in problem for problem in hub.health.problems] == [True] * (not enters)


async def test_what_the_broker_refuses_when_nobody_waits_any_more_is_no_error(hub, broker):
    said = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    ws = await connected(hub, Listener)
    change = ws.connection.subscribe("cars")
    heard = broker.heard[CARS]
    await ws.drop()
    assert await change is False
    heard.set_exception(PermissionError("no such topic for you"))
    await turns()
    del heard
    gc.collect()
    assert said == []


async def test_what_the_broker_gives_up_is_entered_by_nobody_and_cancels_no_callback(
    hub, broker, diary
):
    class Entering(Listener):
        async def on_message(self, ws, message):
            diary.append(f"in: {await ws.subscribe(message)}")

    ws = await connected(hub, Entering)
    await ws.send("cars")
    await turns()
    broker.heard[CARS].cancel()
    await ws.settled()
    assert diary == ["in: False"]


async def test_a_rule_is_asked_again_where_someone_asked_for_a_recheck_meanwhile(hub, broker):
    may = [True]
    hub.rule("cars", subscribe=lambda ws, channel: may[0])
    ws = await connected(hub, Listener)
    change = ws.connection.subscribe("cars")
    may[0] = False
    await hub.everyone.recheck()
    broker.confirm()
    assert await change is False
    assert ws.connection.channels == frozenset()


async def test_what_a_rule_wishes_for_comes_after_what_it_was_asked_about(hub, broker, diary):
    hub.rule("cars", subscribe=lambda ws, channel: bool([ws.subscribe("boats")]))
    ws = await connected(hub, plain(diary))
    change = ws.connection.subscribe("cars")
    await turns()
    assert broker.asked == ["cars"]
    broker.confirm()
    assert await change is True
    await turns()
    broker.confirm("boats")
    await ws.settled()
    assert diary == ["on_subscribe cars", "on_subscribe boats"]


async def test_a_rule_may_let_somebody_else_into_the_channel_it_is_asked_about(hub, broker):
    def let_all_in(ws, channel):
        other.connection.subscribe("cars")
        return True

    hub.rule("cars", subscribe=let_all_in)
    hub.add("/ws", Listener)
    ws, other = [await hub.test_client("/ws").connect() for _ in range(2)]
    change = ws.connection.subscribe("cars")
    await turns()
    broker.confirm()
    assert await change is True
    await other.settled()
    assert hub.channels() == {"cars": 2}
    assert broker.asked == ["cars"]


async def test_a_rule_may_empty_the_channel_it_is_asked_about(hub, broker):
    def send_all_out(ws, channel):
        if ws is not first.connection:
            first.connection.unsubscribe("cars")
        return True

    hub.rule("cars", subscribe=send_all_out)
    hub.add("/ws", Listener)
    first, ws = [await hub.test_client("/ws").connect() for _ in range(2)]
    change = first.connection.subscribe("cars")
    broker.confirm()
    assert await change is True
    change = ws.connection.subscribe("cars")
    await turns()
    assert broker.asked == ["cars", "cars"]
    broker.confirm()
    assert await change is True
    assert hub.channels() == {"cars": 1}


class Opening(Listener):
    def on_channel_open(self, channel):
        pass


@pytest.mark.parametrize("listener", [Listener, Opening])
async def test_a_rule_may_empty_the_channel_also_where_nobody_was_to_wait(hub, broker, listener):
    """It seemed that a change from another thread would not have to."""

    def send_all_out(ws, channel):
        if ws is not first.connection:
            first.connection.unsubscribe("cars")
        return True

    hub.rule("cars", subscribe=send_all_out)
    hub.add("/ws", listener)
    first, ws = [await hub.test_client("/ws").connect() for _ in range(2)]
    change = first.connection.subscribe("cars")
    await turns()
    broker.confirm()
    assert await change is True
    change = await asyncio.to_thread(ws.connection.subscribe, "cars")
    await turns()
    broker.confirm()
    assert await change is True
    assert hub.channels() == {"cars": 1}


async def test_an_on_subscribe_that_returns_a_coroutine_has_its_turn(hub, broker, diary):
    go = asyncio.Event()

    async def decide():
        await go.wait()
        diary.append("decided")
        return True

    class Asking(Listener):
        def on_subscribe(self, ws, channel):
            return decide()

        def on_message(self, ws, message):
            diary.append(message)

    ws = await connected(hub, Asking)
    change = ws.connection.subscribe("cars")
    broker.confirm()
    await ws.send("message")
    await turns()
    assert diary == []
    go.set()
    assert await change is True
    await ws.settled()
    assert diary == ["decided", "message"]


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_callback_enters_in_its_turn_too(hub, broker, diary, kind):
    class Entering(Listener):
        def on_subscribe(self, ws, channel):
            diary.append(f"asked {channel}")

    if kind == "def":
        Entering.on_message = lambda self, ws, message: ws.subscribe(message)
    else:

        async def on_message(self, ws, message):
            diary.append(f"in: {await ws.subscribe(message)}")

        Entering.on_message = on_message
    ws = await connected(hub, Entering)
    await ws.send("cars")
    await turns()
    assert diary == []
    broker.confirm()
    await ws.settled()
    assert diary == ["asked cars", "in: True"][: 1 if kind == "def" else 2]


async def test_a_slow_endpoint_cut_short_while_its_channel_opens_hears_it_no_more(hub, broker):
    class Slow(Listener):
        async def on_subscribe(self, ws, channel):
            pass

    ws = await connected(hub, Slow)
    change = ws.connection.subscribe("cars")
    await turns()
    assert CARS in broker.heard
    await ws.drop()
    assert await change is False
    assert not broker.heard


async def test_a_thread_waits_for_a_change_too(hub, broker):
    ws = await connected(hub, Listener)
    change = ws.connection.subscribe("cars")
    waiting = asyncio.create_task(asyncio.to_thread(change.result, 10))
    elsewhere = asyncio.create_task(asyncio.to_thread(asyncio.run, _awaiting(change)))
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(change.result, 0.01)
    broker.confirm()
    assert await waiting is True
    assert await elsewhere is True


async def _awaiting(change):
    return await change


async def test_who_stops_waiting_for_a_change_stops_nobody_else(hub, broker):
    ws = await connected(hub, Listener)
    change = ws.connection.subscribe("cars")
    first, second = [asyncio.create_task(_awaiting(change)) for _ in range(2)]
    await turns()
    first.cancel()
    await turns()
    broker.confirm()
    assert await second is True
    assert first.cancelled()
    assert hub.channels() == {"cars": 1}


class Slowly(Late):
    """Confirms after some turns of the event loop, or is away, or refuses."""

    def __init__(self, chance):
        super().__init__()
        self.chance = chance
        self.tasks = set()

    def listen(self, target):
        hearing = super().listen(target)
        if hearing is None or self.chance.random() < 0.1:
            return None
        task = asyncio.ensure_future(self.answer(hearing))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return hearing

    async def answer(self, hearing):
        await turns(self.chance.randrange(6))
        if hearing.done():
            return
        kind = self.chance.random()
        if kind < 0.1:
            hearing.set_exception(BrokerUnavailable("away"))
            hearing.exception()
        elif kind < 0.2:
            hearing.set_exception(PermissionError("refused"))
            hearing.exception()
        else:
            hearing.set_result(None)


ACTS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from(["connect", "drop", "close", "enter", "leave", "say", "wait"]),
        st.sampled_from(["a", "b"]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(acts=ACTS, seed=st.integers(0, 1000), cancels=st.booleans(), rule=st.booleans())
def test_the_books_balance_whatever_the_broker_does(acts, seed, cancels, rule):
    """Of two endpoints in the same channels one has only plain callbacks."""
    chance = random.Random(seed)
    told: Counter[str] = Counter()
    wrong: list[str] = []  # what is raised in a callback would only be logged

    def check(holds, what):
        if not holds:
            wrong.append(what)

    class Plain(Listener):
        def on_subscribe(self, ws, channel):
            check(Target("channel", channel) in broker.heard, "asked about what is not heard")
            check(ws.reason is None, "asked when it had ended")
            check(channel not in ws.channels, "asked twice")
            admits = chance.random() > 0.3
            told["asked in"] += admits
            if admits and chance.random() < 0.1:
                ws.close()
                told["asked in"] -= 1
            return admits

        def on_unsubscribe(self, ws, channel):
            told["left"] += 1

        def on_message(self, ws, message):
            ws.subscribe(message)

    class Slow(Listener):
        async def on_subscribe(self, ws, channel):
            check(Target("channel", channel) in broker.heard, "asked about what is not heard")
            await turns(chance.randrange(3))

        async def on_message(self, ws, message):
            await ws.subscribe(message)

    async def scenario():
        clients, background = {}, []
        for who, act, channel in acts:
            client = clients.get(who)
            if act == "connect" and client is None:
                url = "/slow" if who == 4 else "/plain"
                clients[who] = await hub.test_client(url).connect()
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
        assert not hub._channels
        assert not broker.heard
        await hub.stop()

    broker = Slowly(chance)
    hub = Hub(broker=broker, name="test", cancel_grace=1.0, cancel_on_close=cancels)
    hub.add("/plain", Plain)
    hub.add("/slow", Slow)
    if rule:
        hub.rule("{name}", subscribe=lambda ws, channel: chance.random() > 0.1)
    asyncio.run(scenario())
    assert wrong == []
    assert told["asked in"] == told["left"]
    assert all("refused" in problem for problem in hub.health.problems)
