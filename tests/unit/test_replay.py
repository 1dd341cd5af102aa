"""History by rule: what is kept, who may read it, and entering a channel with what was missed."""

from __future__ import annotations

import asyncio
import logging

import pytest
from shared import lines_of

from backchannel import Hub, Listener
from backchannel.broker import memory
from backchannel.history import REMEMBERED, Position


@pytest.fixture
def hub():
    hub = Hub(authenticate=lambda request: request.query.get("user"))
    hub.rule("chat:{room}", history=5, ttl=60)
    hub.rule("price:{share}", history=3, replay=1)

    @hub.endpoint("/ws")
    class Plain(Listener):
        async def on_message(self, ws, message: dict):
            entering = ws.subscribe(message["channel"], since=message.get("since"))
            is_in = await entering
            position = entering.position and str(entering.position)
            return {"in": is_in, "lost": entering.lost, "position": position}

    @hub.endpoint("/ws/price/{share}", channel="price:{share}")
    class Price(Listener):
        def on_open(self, ws):
            ws.send("welcome")

    return hub


def texts(history):
    return [kept.message for kept in history]


# ── what is kept ──────────────────────────────────────────────────────────────────────────────


async def test_a_rule_keeps_the_newest_publications_of_each_of_its_channels(hub):
    async with hub.test_client("/ws"):
        for number in range(7):
            hub.broadcast("chat:1", f"one {number}")
        hub.broadcast("chat:2", {"two": True})
        hub.broadcast("lobby", "not kept")

    assert texts(await hub.channel("chat:1").history()) == [f"one {n}" for n in range(2, 7)]
    assert texts(await hub.channel("chat:1").history(limit=2)) == ["one 5", "one 6"]
    assert texts(await hub.channel("chat:2").history()) == ['{"two":true}']
    assert texts(await hub.channel("lobby").history()) == []


async def test_a_history_that_no_rule_keeps_is_empty_and_warned_of_once_a_pattern(caplog):
    hub = Hub()
    hub.rule("chat:{room}", subscribe=lambda ws: True)
    hub.rule("kept:{room}", history=5)
    hub.add("/ws/{room}", Listener, channel="room:{room}")
    await hub.start()
    for name in ("chat:1", "chat:2", "room:1", "room:2", "lobby", "lobby", "kept:1"):
        assert texts(await hub.channel(name).history()) == []
    lines = lines_of(caplog, logging.WARNING, "backchannel.hub")
    assert [line.split(": ")[0] for line in lines] == [
        "the history of channel 'chat:1' is empty",
        "the history of channel 'room:1' is empty",
        "the history of channel 'lobby' is empty",
    ]
    assert "rule 'chat:{room}' (" in lines[0]
    assert "test_replay.py" in lines[0]
    assert "keeps none, as with history=100 it would" in lines[0]
    assert "no rule keeps any, as hub.rule('room:{room}', history=100) would" in lines[1]
    assert "hub.rule('lobby', history=100)" in lines[2]
    await hub.stop()


async def test_names_that_clients_choose_fill_neither_log_nor_memory_with_such_warnings(caplog):
    hub = Hub()
    await hub.start()
    for number in range(150):
        await hub.channel(f"name{number}").history()
    assert len(lines_of(caplog, logging.WARNING, "backchannel.hub")) == 100
    await hub.stop()


async def test_a_publication_tells_its_position(hub):
    async with hub.test_client("/ws"):
        first = await hub.broadcast("chat:1", "a")
        second = await hub.broadcast("chat:1", "b")
        assert (await hub.broadcast("lobby", "c")).position is None
        assert (await hub.user("ana").send("d")).position is None
    assert first.position == (second.position.epoch, second.position.offset - 1)
    (kept,) = await hub.channel("chat:1").history(since=first.position)
    assert (kept.position, kept.message) == (second.position, "b")


async def test_history_goes_on_from_a_position_also_as_text(hub):
    async with hub.test_client("/ws"):
        for number in range(5):
            hub.broadcast("chat:1", str(number))
    history = await hub.channel("chat:1").history(since=None, limit=5)
    since = str(history[0].position)
    page = await hub.channel("chat:1").history(since=since, limit=2)
    assert texts(page) == ["1", "2"]
    assert not page.lost
    assert texts(await hub.channel("chat:1").history(since=page.position)) == ["3", "4"]


async def test_what_is_not_there_any_more_is_told(hub):
    async with hub.test_client("/ws"):
        first = (await hub.broadcast("chat:1", "0")).position
        for number in range(1, 7):
            last = (await hub.broadcast("chat:1", str(number))).position
    page = await hub.channel("chat:1").history(since=first)
    assert (texts(page), page.lost, page.position) == ([], True, last)
    oldest = Position(first.epoch, first.offset + 1)
    assert texts(await hub.channel("chat:1").history(since=oldest)) == ["2", "3", "4", "5", "6"]
    for other in (Position("other", 1), Position(first.epoch, 99)):
        assert (await hub.channel("chat:1").history(since=other)).lost


async def test_what_is_older_than_its_ttl_is_not_there(hub, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(memory, "monotonic", lambda: now)
    async with hub.test_client("/ws"):
        first = (await hub.broadcast("chat:1", "0")).position
        now += 59
        second = (await hub.broadcast("chat:1", "1")).position
        now += 2
        assert texts(await hub.channel("chat:1").history()) == ["1"]
        assert texts(await hub.channel("chat:1").history(since=first)) == ["1"]
        now += 60
        assert texts(await hub.channel("chat:1").history()) == []
        assert (await hub.channel("chat:1").history(since=first)).lost
        assert not (await hub.channel("chat:1").history(since=second)).lost
        now += 60 + REMEMBERED - 1
        assert not (await hub.channel("chat:1").history(since=second)).lost
        now += 60 + REMEMBERED  # since the position was handed out for the last time
        assert (await hub.channel("chat:1").history(since=second)).lost
        third = (await hub.broadcast("chat:1", "2")).position
    assert third.epoch != second.epoch


async def test_channels_that_are_forgotten_leave_nothing(hub, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(memory, "monotonic", lambda: now)
    async with hub.test_client("/ws"):
        for number in range(100):
            hub.broadcast(f"chat:{number}", "x")
        now += 30
        hub.broadcast("chat:0", "x")
        now += REMEMBERED + 31
        hub.broadcast("chat:new", "x")
        assert set(hub._broker._logs) == {"chat:0", "chat:new"}


async def test_what_was_for_some_is_read_by_those_only(hub):
    async with (
        hub.test_client("/ws?user=ana") as ana,
        hub.test_client("/ws?user=bob") as bob,
    ):
        await hub.everyone.subscribe("chat:1")
        hub.broadcast("chat:1", "to all")
        hub.broadcast("chat:1", "to ana", to=hub.user("ana"))
        hub.broadcast("chat:1", "not to ana", exclude=hub.user("ana"))
        last = (await hub.broadcast("chat:1", "to nobody", to=[])).position
        channel = hub.channel("chat:1")
        assert texts(await channel.history()) == ["to all"]
        assert texts(await channel.history(reader=ana.connection)) == ["to all", "to ana"]
        assert texts(await channel.history(reader=bob.connection)) == ["to all", "not to ana"]
        assert (await channel.history(reader=bob.connection)).position == last


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"since": "17"}, ValueError, "is no position"),
        ({"since": 17}, TypeError, "a position is a str"),
        ({"limit": 0}, ValueError, "at least 1"),
        ({"limit": "10"}, TypeError, "number of publications"),
    ],
)
async def test_what_history_can_not_be_asked(hub, wrong, error, words):
    with pytest.raises(error, match=words):
        await hub.channel("chat:1").history(**wrong)


async def test_only_channels_have_a_history(hub):
    with pytest.raises(TypeError, match=r"hub\.channel\(name\)\.history"):
        await hub.user("ana").history()


async def test_a_reader_is_of_this_hub(hub):
    async with hub.test_client("/ws") as client:
        with pytest.raises(ValueError, match="another hub"):
            await Hub().channel("x").history(reader=client.connection)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"history": 0}, ValueError, "history= is at least 1"),
        ({"history": 1.5}, TypeError, "history= is a number of publications"),
        ({"history": True}, TypeError, "history= is a number of publications"),
        ({"history": 5, "ttl": 0}, ValueError, "ttl= is seconds above 0"),
        ({"history": 5, "ttl": float("inf")}, ValueError, "ttl= is seconds above 0"),
        ({"history": 5, "ttl": "1h"}, TypeError, "ttl= is seconds"),
        ({"history": 5, "replay": 6}, ValueError, "replay=6 of history=5"),
        ({"replay": 1}, ValueError, "replay=1 of no history"),
        ({"history": 5, "replay": -1}, ValueError, "replay= is at least 0"),
    ],
)
def test_a_rule_that_keeps_what_it_can_not(wrong, error, words):
    with pytest.raises(error, match=words) as caught:
        Hub().rule("chat:{room}", **wrong)
    assert "chat:{room}" in str(caught.value)


# ── entering with what was missed ─────────────────────────────────────────────────────────────


async def test_a_rule_replays_the_newest_to_whoever_enters(hub):
    for price in ("1.00", "1.01"):
        async with hub.test_client("/ws/price/acme"):
            await hub.broadcast("price:acme", price)
    async with hub.test_client("/ws/price/acme") as client:
        assert await client.receive() == "welcome"
        assert await client.receive() == "1.01"
        hub.broadcast("price:acme", "1.02")
        assert await client.receive() == "1.02"


async def test_who_comes_back_gets_each_missed_publication_once_and_in_order(hub):
    async with hub.test_client("/ws") as client:
        since = (await hub.broadcast("chat:1", "0")).position
        for number in range(1, 4):
            hub.broadcast("chat:1", str(number))
        await client.send({"channel": "chat:1", "since": str(since)})
        got = [await client.receive() for _ in range(3)]
        answer = await client.receive_json()
        hub.broadcast("chat:1", "4")
        assert [*got, await client.receive()] == ["1", "2", "3", "4"]
    assert answer == {"in": True, "lost": False, "position": f"{since.epoch}.4"}


async def test_who_comes_back_too_late_is_told(hub):
    async with hub.test_client("/ws") as client:
        since = (await hub.broadcast("chat:1", "0")).position
        for number in range(1, 9):
            hub.broadcast("chat:1", str(number))
        await client.send({"channel": "chat:1", "since": str(since)})
        answer = await client.receive_json()
        hub.broadcast("chat:1", "9")
        assert await client.receive() == "9"
    assert answer == {"in": True, "lost": True, "position": f"{since.epoch}.9"}


async def test_what_was_for_others_stays_out_of_what_was_missed(hub):
    async with hub.test_client("/ws?user=ana") as ana, hub.test_client("/ws?user=bob"):
        since = (await hub.broadcast("chat:1", "0")).position
        await hub.user("bob").subscribe("chat:1")
        hub.broadcast("chat:1", "for bob", to=hub.user("bob"))
        hub.broadcast("chat:1", "for ana", to=hub.user("ana"))
        hub.broadcast("chat:1", "not for ana", exclude=hub.user("ana"))
        await ana.send({"channel": "chat:1", "since": str(since)})
        assert await ana.receive() == "for ana"
        assert (await ana.receive_json())["position"] == f"{since.epoch}.4"


class Slow(memory.MemoryBroker):
    """A memory broker whose history takes its time, as one over a network does."""

    def __init__(self):
        super().__init__()
        self.asked = asyncio.Queue()
        self.go_on = asyncio.Queue()

    async def history(self, channel, since, limit, *, had=False):
        page = await super().history(channel, since, limit)
        self.asked.put_nowait(since)
        await self.go_on.get()
        return page


async def test_what_is_published_while_history_is_read_comes_after_it_once(hub):
    broker = Slow()
    hub = Hub(broker=broker)
    hub.rule("{any}", history=10)

    @hub.endpoint("/ws")
    def on_message(ws, message: str):
        ws.subscribe("cars", since=message)

    async with hub.test_client("/ws") as client:
        since = (await hub.broadcast("cars", "0")).position
        hub.broadcast("cars", "1")
        await client.send(str(since))
        await broker.asked.get()
        hub.broadcast("cars", "2")  # not on the page that was read, and before it is joined
        broker.go_on.put_nowait(None)
        assert [await client.receive(), await client.receive()] == ["1", "2"]
        hub.broadcast("cars", "3")
        assert await client.receive() == "3"


async def test_who_loses_access_while_history_is_read_does_not_come_in(hub):
    broker = Slow()
    hub = Hub(broker=broker)
    allowed = True
    hub.rule("{any}", history=10, subscribe=lambda ws: allowed)
    answers = asyncio.Queue()

    @hub.endpoint("/ws")
    async def on_message(ws, message: str):
        answers.put_nowait(await ws.subscribe("cars", since=message))

    async with hub.test_client("/ws") as client:
        since = (await hub.broadcast("cars", "0")).position
        await client.send(str(since))
        await broker.asked.get()
        allowed = False
        await hub.channel("cars").recheck()
        broker.go_on.put_nowait(None)
        assert await answers.get() is False
        assert client.connection.channels == set()
        assert hub.channels() == {}


async def test_history_that_can_not_be_read_refuses_with_try_again_later(caplog):
    class Away(Slow):
        async def history(self, channel, since, limit, *, had=False):
            raise OSError("the engine is away")

    hub = Hub(broker=Away())
    hub.rule("{any}", history=10, replay=1)

    @hub.endpoint("/ws/{channel}")
    def echo(ws, message):
        return message

    client = await hub.test_client("/ws/cars").connect()
    assert (client.closed.code, client.closed.reason) == (
        1013,
        "the history of 'cars' can't be read now",
    )
    assert "the engine is away" in caplog.text


async def test_a_position_that_is_none_is_the_callers_error(hub):
    async with hub.test_client("/ws") as client:
        with pytest.raises(ValueError, match="is no position"):
            client.connection.subscribe("chat:1", since="17")


async def test_the_history_of_a_channel_with_a_listener_that_waits(hub):
    """Entering waits for rules and callbacks; what is published meanwhile is there once."""
    hub = Hub()
    entering, admitted = asyncio.Event(), asyncio.Event()
    hub.rule("{any}", history=10, replay=10)

    @hub.endpoint("/ws/{channel}")
    class Waits(Listener):
        async def on_subscribe(self, ws, channel):
            entering.set()
            await admitted.wait()

    client = hub.test_client("/ws/cars")
    connecting = asyncio.create_task(client.connect())
    await entering.wait()
    for number in range(3):
        hub.broadcast("cars", str(number))
    admitted.set()
    await connecting
    hub.broadcast("cars", "3")
    assert [await client.receive() for _ in range(4)] == ["0", "1", "2", "3"]
    await client.close()
