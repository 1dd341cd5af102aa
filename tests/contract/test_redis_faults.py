"""What may go wrong with an engine, and what becomes of it: nothing lost in silence, nobody closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time

import pytest
from shared import until

from backchannel import Hub, Listener
from backchannel.errors import BrokerUnavailable, BrokerUnusable, BrokerUrlError
from backchannel.history import Position


@pytest.fixture
async def node():
    """Start nodes of one application: ``await node(url)``."""
    hubs = []

    async def start(url, **settings):
        hub = Hub(
            broker=url,
            name="faults",
            authenticate=lambda request: request.query.get("user"),
            broker_timeout=settings.pop("broker_timeout", 5.0),
            **settings,
        )
        hub.rule("kept:{name}", history=1000)
        hub.rule("few:{name}", history=3)

        @hub.endpoint("/ws/{channel}")
        class Room(Listener):
            async def on_message(self, ws, message: dict):
                if "since" in message:
                    entering = ws.subscribe(message["channel"], since=message["since"])
                    ws.send({"in": await entering, "lost": entering.lost})

        @hub.endpoint("/told/{channel}", share_channels=True)
        class Told(Listener):
            async def on_message(self, ws, message: dict):
                ws.send({"in": await ws.subscribe(message["channel"])})

            def on_lost(self, ws, channel):
                ws.send({"lost": channel})

        @hub.endpoint("/told-later/{channel}", share_channels=True)
        class ToldLater(Listener):
            async def on_message(self, ws, message: str):
                await ws.state.go_on.wait()
                ws.send(message)

            def on_open(self, ws):
                ws.state.go_on = asyncio.Event()

            async def on_lost(self, ws, channel):
                await asyncio.sleep(0)
                ws.send({"lost": channel})

        hubs.append(hub)
        await hub.start()
        return hub

    yield start
    for hub in hubs:
        await hub.stop()


def is_away(hub):
    return "away" in hub.health.broker


def is_back(hub):
    return "connected" in hub.health.broker


async def read(client, count):
    return [await client.receive(timeout=10) for _ in range(count)]


async def read_json(client, count):
    return [await client.receive_json(timeout=10) for _ in range(count)]


# ── an engine that goes and comes back ────────────────────────────────────────────────────────


async def test_while_the_engine_is_away_connections_stay_and_senders_are_told(
    node, redis_server, caplog
):
    hub = await node(redis_server.url, broker_timeout=0.3)
    async with hub.test_client("/ws/cars") as client:
        redis_server.stop()
        await until(lambda: is_away(hub))
        with pytest.raises(BrokerUnavailable, match="was not published"):
            await hub.broadcast("cars", "lost")
        assert client.connection.is_open
        assert "127.0.0.1" in hub.health.broker
        redis_server.start()
        await until(lambda: is_back(hub))
        await hub.broadcast("cars", "back")
        assert await client.receive() == "back"
    lost = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert [r.getMessage() for r in lost] == [f"{redis_server.url} is lost; connections stay open"]


async def test_what_is_published_while_the_engine_is_away_for_a_moment_goes_out_in_order(
    node, cable
):
    hub = await node(cable.url)
    async with hub.test_client("/ws/cars") as client:
        cable.cut()
        await until(lambda: is_away(hub))
        sent = [hub.broadcast("cars", str(number)) for number in range(20)]
        cable.mend()
        assert await read(client, 20) == [str(number) for number in range(20)]
        for one in sent:
            await one


async def test_what_waits_for_the_engine_is_bounded_in_bytes(node, cable):
    hub = await node(cable.url, max_unsent=10_000)
    async with hub.test_client("/ws/cars") as client:
        cable.cut()
        await until(lambda: is_away(hub))
        waiting = [hub.broadcast("cars", f"{n} ".ljust(1000, "x")) for n in range(8)]
        with pytest.raises(
            BrokerUnavailable, match=r"8 publications wait .* over max_unsent=10000 "
        ):
            await hub.broadcast("cars", "x" * 5000)
        cable.mend()
        assert [text.split()[0] for text in await read(client, 8)] == list("01234567")
        for one in waiting:
            await one
        await hub.broadcast("cars", "y" * 1_000_000)  # one always fits
        assert len(await client.receive()) == 1_000_000


async def test_what_was_not_published_in_time_is_never_published(node, cable):
    hub = await node(cable.url, broker_timeout=0.2)
    async with hub.test_client("/ws/cars") as client:
        cable.cut()
        await until(lambda: is_away(hub))
        with pytest.raises(BrokerUnavailable):
            await hub.broadcast("cars", "too late")
        cable.mend()
        await until(lambda: is_back(hub))
        await hub.broadcast("cars", "in time")
        assert await client.receive() == "in time"


async def test_a_failure_that_nobody_awaits_is_shown_in_health(node, cable):
    hub = await node(cable.url, broker_timeout=0.1)
    cable.cut()
    await until(lambda: is_away(hub))
    hub.broadcast("cars", "nobody asks what became of it")
    await until(lambda: hub.health.problems)
    assert "nobody awaited" in hub.health.problems[0]


async def test_an_engine_that_hangs_is_noticed(node, redis_server):
    hub = await node(redis_server.url, broker_timeout=0.5)
    async with hub.test_client("/ws/cars") as client:
        pid = redis_server.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            await until(lambda: is_away(hub))
            assert client.connection.is_open
        finally:
            os.kill(pid, signal.SIGCONT)
        await until(lambda: is_back(hub))
        await hub.broadcast("cars", "awake")
        assert await client.receive() == "awake"


async def test_an_engine_that_takes_long_to_say_much_is_not_taken_for_dead(node, cable, caplog):
    hub = await node(cable.url, broker_timeout=0.4)
    async with hub.test_client("/ws/kept:cars"):
        for _ in range(40):
            await hub.broadcast("kept:cars", "x" * 200_000)
        cable.pause = 0.03  # 8 MB in 4 seconds, in which a sign of life is asked for
        reading = [hub.channel("kept:cars").history(limit=40) for _ in range(2)]
        for kept in await asyncio.gather(*reading):
            assert [len(one.message) for one in kept] == [200_000] * len(kept)
            assert len(kept) >= 20
    assert "is lost" not in caplog.text


async def test_users_and_sessions_are_heard_again(node, cable, redis_server):
    hub, other = await node(cable.url), await node(redis_server.url)
    async with hub.test_client("/ws/cars?user=ana") as client:
        cable.cut()
        await until(lambda: is_away(hub))
        cable.mend()
        await until(lambda: is_back(hub))
        assert (await other.user("ana").send("for you")).reached == 1
        assert await client.receive() == "for you"
        assert (await other.connection(client.id).send("and you alone")).reached == 1
        assert await client.receive() == "and you alone"


# ── gaps ──────────────────────────────────────────────────────────────────────────────────────


async def test_what_was_not_heard_is_read_from_history_before_what_comes(node, cable, redis_server):
    hub, other = await node(cable.url), await node(redis_server.url)
    async with hub.test_client("/ws/kept:cars") as client:
        await other.broadcast("kept:cars", "0")
        cable.cut()
        for number in range(1, 251):
            await other.broadcast("kept:cars", str(number))
        cable.mend()
        await other.broadcast("kept:cars", "251")
        assert await read(client, 252) == [str(number) for number in range(252)]
        await until(lambda: is_back(hub))
        await other.broadcast("kept:cars", "252")
        assert await client.receive() == "252"


async def test_a_gap_that_nothing_comes_after_is_found_too(node, cable, redis_server):
    hub, other = await node(cable.url), await node(redis_server.url)
    async with hub.test_client("/ws/kept:cars") as client:
        cable.cut()
        await other.broadcast("kept:cars", "missed")
        cable.mend()
        assert await client.receive() == "missed"


async def test_what_was_published_and_not_confirmed_is_published_once(node, cable, redis_server):
    hub, other = await node(cable.url), await node(redis_server.url)
    async with other.test_client("/ws/kept:cars") as client:
        await hub.broadcast("kept:cars", "0")
        cable.is_deaf = True
        sent = [hub.broadcast("kept:cars", str(number)) for number in range(1, 6)]
        assert await read(client, 6) == [str(number) for number in range(6)]
        cable.cut()
        cable.mend()
        positions = [(await one).position.offset for one in sent]
        assert positions == [2, 3, 4, 5, 6]
        await hub.broadcast("kept:cars", "6")
        assert await client.receive() == "6"


async def test_what_newer_ones_took_the_place_of_is_not_published_again(node, cable, redis_server):
    """A node's numbers tell that it was; where it stood is not known any more."""
    hub, other = await node(cable.url), await node(redis_server.url)
    for one in (hub, other):
        one.rule("last:{name}", history=1)
    async with other.test_client("/ws/last:cars") as client:
        await hub.broadcast("last:cars", "0")
        cable.is_deaf = True
        sent = hub.broadcast("last:cars", "1")
        assert await read(client, 2) == ["0", "1"]
        await other.broadcast("last:cars", "2")
        cable.cut()
        cable.mend()
        assert (await sent).position is None
        await hub.broadcast("last:cars", "3")
        assert await read(client, 2) == ["2", "3"]


async def test_what_never_arrived_is_published_where_nothing_came_in_between(
    node, cable, redis_server
):
    """What is kept is older than the first attempt, so that it can't have been published."""
    hub, other = await node(cable.url), await node(redis_server.url)
    for one in (hub, other):
        one.rule("last:{name}", history=1)
    async with other.test_client("/ws/last:cars") as client:
        for number in range(3):
            await hub.broadcast("last:cars", str(number))
        await asyncio.sleep(3.1)  # time is the subject: it is kept in seconds
        cable.is_mute = True
        sent = hub.broadcast("last:cars", "3")
        await asyncio.sleep(0)  # the turn at whose end it leaves
        await asyncio.sleep(0)
        cable.cut()
        cable.mend()
        assert (await sent).position.offset == 4
        assert await read(client, 4) == ["0", "1", "2", "3"]


async def test_what_is_not_kept_and_not_confirmed_may_have_been_published(node, cable):
    hub = await node(cable.url)
    async with hub.test_client("/ws/cars"):
        cable.is_deaf = True
        sent = hub.broadcast("cars", "who knows")
        await asyncio.sleep(0.05)  # it is on its way
        cable.cut()
        with pytest.raises(BrokerUnavailable, match="may have been, or not"):
            await sent
        cable.mend()


async def test_an_engine_that_lost_its_data_begins_a_new_epoch(node, redis_server, caplog):
    hub = await node(redis_server.url)
    async with hub.test_client("/ws/kept:cars") as client:
        before = [(await hub.broadcast("kept:cars", str(n))).position for n in range(5)]
        redis_server.stop()
        await until(lambda: is_away(hub))
        redis_server.start()
        await until(lambda: is_back(hub))
        after = [(await hub.broadcast("kept:cars", str(n))).position for n in range(5, 11)]
        assert await read(client, 11) == [str(number) for number in range(11)]
        assert after[0].epoch != before[0].epoch
        assert (await hub.channel("kept:cars").history(since=before[-1])).lost
        await client.send({"channel": "kept:cars", "since": str(before[2])})
        assert await client.receive_json() == {"in": True, "lost": False}  # it is in already
    async with hub.test_client("/ws/lobby") as late:
        await late.send({"channel": "kept:cars", "since": str(before[2])})
        assert await late.receive_json() == {"in": True, "lost": True}
    assert "were lost" in caplog.text


async def test_an_engine_that_fell_back_begins_a_new_epoch(node, redis_server):
    """As after a failover to a replica that had not all: what was had is newer than what is there."""
    hub, other = await node(redis_server.url), await node(redis_server.url)
    async with hub.test_client("/ws/kept:cars") as client:
        for number in range(5):
            position = (await other.broadcast("kept:cars", str(number))).position
        await read(client, 5)
        with redis_server.client as engine:
            state = "backchannel:faults:{c:kept:cars}:state"
            engine.hset(state, "top", 3)
            engine.xtrim(state.replace(":state", ":entries"), maxlen=3)
            entries = state.replace(":state", ":entries")
            for entry in engine.xrevrange(entries, count=2):
                engine.xdel(entries, entry[0])
        page = await hub._broker.history("kept:cars", position, 10, had=True)
        assert page.lost
        assert page.top == (page.top.epoch, 3)
        assert page.top.epoch != position.epoch
        assert not (await other.channel("kept:cars").history(since=page.top)).lost


async def test_a_position_from_the_future_that_a_client_names_changes_nothing(node, redis_server):
    hub = await node(redis_server.url)
    position = (await hub.broadcast("kept:cars", "0")).position
    future = Position(position.epoch, 99)
    assert (await hub.channel("kept:cars").history(since=future)).lost
    assert not (await hub.channel("kept:cars").history(since=position)).lost


class Held:
    """Holds back the pages that fill a node's gap until it is told to go on."""

    def __init__(self, hub, monkeypatch):
        self.go_on, self.asked = asyncio.Event(), asyncio.Event()
        self._history = hub._broker.history
        monkeypatch.setattr(hub._broker, "history", self.history)

    async def history(self, channel, since, limit, *, had=False):
        page = await self._history(channel, since, limit, had=had)
        if had and since is not None:
            self.asked.set()
            await self.go_on.wait()
        return page


async def miss(hub, other, cable, count):
    """Let a node miss some; returns their positions."""
    cable.cut()
    await until(lambda: is_away(hub))
    positions = [(await other.broadcast("kept:cars", str(n))).position for n in range(count)]
    cable.mend()
    return positions


async def test_who_enters_while_a_gap_is_filled_gets_nothing_twice(
    node, cable, redis_server, monkeypatch
):
    """Its own history may be read sooner than the node has what the members have missed."""
    hub, other = await node(cable.url), await node(redis_server.url)
    async with hub.test_client("/ws/kept:cars") as member, hub.test_client("/ws/lobby") as late:
        held = Held(hub, monkeypatch)
        positions = await miss(hub, other, cable, 150)
        await held.asked.wait()
        await late.send({"channel": "kept:cars", "since": str(positions[-3])})
        assert await read(late, 2) == ["148", "149"]
        held.go_on.set()
        assert await late.receive_json() == {"in": True, "lost": False}
        await other.broadcast("kept:cars", "next")
        assert await late.receive() == "next"
        assert await read(member, 151) == [*map(str, range(150)), "next"]


async def test_a_gap_that_only_newcomers_find_is_filled_for_all(node, cable, redis_server):
    """As when the engine dropped something on its way to this node."""
    hub, other = await node(cable.url), await node(redis_server.url)
    async with hub.test_client("/ws/kept:cars") as member, hub.test_client("/ws/lobby") as late:
        first = (await other.broadcast("kept:cars", "0")).position
        assert await member.receive() == "0"
        hear, hub._broker._route.engine.link._hear = (
            hub._broker._route.engine.link._hear,
            lambda *_: None,
        )
        await other.broadcast("kept:cars", "1")
        await late.send({"channel": "kept:cars", "since": str(first)})
        assert await late.receive() == "1"
        hub._broker._route.engine.link._hear = hear
        assert await late.receive_json() == {"in": True, "lost": False}
        await other.broadcast("kept:cars", "2")
        assert await late.receive() == "2"
        assert await read(member, 2) == ["1", "2"]


async def test_who_enters_where_others_have_just_left_a_gap_gets_what_comes_from_then_on(
    node, cable, redis_server, monkeypatch
):
    hub, other = await node(cable.url), await node(redis_server.url)
    held = Held(hub, monkeypatch)
    async with hub.test_client("/ws/kept:cars"):
        await miss(hub, other, cable, 3)
        await held.asked.wait()
    await until(lambda: not hub.channels())
    async with hub.test_client("/ws/kept:cars") as client:
        held.go_on.set()
        await other.broadcast("kept:cars", "4")
        assert await client.receive() == "4"


async def test_what_was_not_confirmed_is_published_once_though_history_is_short(
    node, cable, redis_server
):
    hub, other = await node(cable.url), await node(redis_server.url)
    async with other.test_client("/ws/few:cars") as client:
        cable.is_deaf = True
        sent = [hub.broadcast("few:cars", text) for text in ("a", "b")]
        assert await read(client, 2) == ["a", "b"]
        for number in range(5):
            await other.broadcast("few:cars", str(number))
        assert await read(client, 5) == list("01234")
        cable.cut()
        cable.mend()
        assert [(await one).position for one in sent] == [None, None]
        assert (await hub.broadcast("few:cars", "next")).position.offset == 8
        assert await client.receive() == "next"


async def test_what_was_not_confirmed_by_an_engine_that_lost_it_is_not_published_again(
    node, cable, redis_server
):
    """Some may have got it already; whoever sent it is told that."""
    hub, other = await node(cable.url), await node(redis_server.url)
    async with other.test_client("/ws/kept:cars") as client:
        cable.is_deaf = True
        sent = hub.broadcast("kept:cars", "once")
        assert await client.receive() == "once"
        redis_server.stop()
        redis_server.start()
        cable.cut()
        cable.mend()
        with pytest.raises(BrokerUnavailable, match="may have been published, or not"):
            await sent
        await until(lambda: is_back(other))
        await other.broadcast("kept:cars", "next")
        assert await client.receive() == "next"


# ── who is told ───────────────────────────────────────────────────────────────────────────────


async def test_members_are_told_of_what_they_lost_before_what_comes_next(node, redis_server):
    hub = await node(redis_server.url)
    async with hub.test_client("/told/kept:cars") as client:
        await hub.broadcast("kept:cars", "before")
        redis_server.stop()
        await until(lambda: is_away(hub))
        redis_server.start()
        await until(lambda: is_back(hub))
        await hub.broadcast("kept:cars", "after")
        assert await client.receive() == "before"
        assert await read_json(client, 2) == [{"lost": None}, {"lost": "kept:cars"}]
        assert await client.receive() == "after"


async def test_a_busy_connection_is_told_of_what_it_lost_in_its_turn(node, redis_server):
    hub = await node(redis_server.url)
    async with (
        hub.test_client("/told-later/kept:cars") as busy,
        hub.test_client("/told-later/kept:cars") as idle,
    ):
        await hub.broadcast("kept:cars", "before")
        await busy.send("done")
        redis_server.stop()
        await until(lambda: is_away(hub))
        redis_server.start()
        assert await idle.receive() == "before"
        assert await read_json(idle, 2) == [{"lost": None}, {"lost": "kept:cars"}]
        busy.connection.state.go_on.set()
        assert await read(busy, 2) == ["before", "done"]
        assert await read_json(busy, 2) == [{"lost": None}, {"lost": "kept:cars"}]


async def test_who_entered_while_the_engine_was_away_is_told_that_some_may_be_lost(
    node, cable, redis_server
):
    hub, other = await node(cable.url), await node(redis_server.url)
    cable.cut()
    await until(lambda: is_away(hub))
    async with hub.test_client("/told/kept:cars") as client:
        await other.broadcast("kept:cars", "unheard")
        cable.mend()
        assert await read_json(client, 2) == [{"lost": None}, {"lost": "kept:cars"}]
        await other.broadcast("kept:cars", "heard")
        assert await client.receive() == "heard"


async def test_without_history_members_are_told_that_they_may_have_missed_some(
    node, cable, redis_server
):
    """Of each channel, and once of what may have been for their user, session or everyone."""
    hub, other = await node(cable.url), await node(redis_server.url)
    async with (
        hub.test_client("/told/cars?user=ana") as ana,
        hub.test_client("/told/boats") as bob,
        hub.test_client("/ws/cars?user=ana") as untold,
        other.test_client("/told/cars?user=ana") as elsewhere,
    ):
        await ana.send({"channel": "boats"})
        assert await ana.receive_json() == {"in": True}
        cable.cut()
        await until(lambda: is_away(hub))
        await other.broadcast("cars", "missed")
        await other.user("ana").send("missed")
        assert await read(elsewhere, 2) == ["missed"] * 2
        cable.mend()
        assert await read_json(ana, 3) == [{"lost": "cars"}, {"lost": "boats"}, {"lost": None}]
        assert await read_json(bob, 2) == [{"lost": "boats"}, {"lost": None}]
        assert (await other.everyone.send("heard")).reached == 4
        for client in (ana, bob, untold, elsewhere):
            assert await client.receive() == "heard"


async def test_what_is_published_once_they_were_told_is_heard(node, cable, redis_server):
    """Else a client that loads the present state would miss what comes while it does."""
    hub, other = await node(cable.url), await node(redis_server.url)
    async with hub.test_client("/told/cars?user=ana") as client:
        for number in range(5):
            cable.cut()
            await until(lambda: is_away(hub))
            cable.mend()
            assert await client.receive_json() == {"lost": "cars"}
            await other.broadcast("cars", f"{number}")
            await other.user("ana").send(f"{number} for ana")
            assert await client.receive_json() == {"lost": None}
            assert await read(client, 2) == [f"{number}", f"{number} for ana"]


async def test_many_are_told_while_others_have_their_turns(node, cable):
    hub = await node(cable.url)
    told, turns = [], 0

    @hub.endpoint("/slow/{channel}", share_channels=True)
    class Slow(Listener):
        def on_lost(self, ws, channel):
            time.sleep(0.002)  # what it does takes its time
            told.append((ws, channel))

    async with contextlib.AsyncExitStack() as stack:
        clients = [hub.test_client("/slow/cars") for _ in range(100)]
        for client in clients:
            await stack.enter_async_context(client)
        cable.cut()
        await until(lambda: is_away(hub))
        cable.mend()
        async with asyncio.timeout(10):
            while len(told) < 200:
                await asyncio.sleep(0)
                turns += bool(told)
        assert turns > 20
        assert {(client.connection, c) for client in clients for c in ("cars", None)} == {*told}


async def test_an_engine_that_was_told_to_forget_its_scripts_is_told_them_again(node, redis_server):
    hub = await node(redis_server.url)
    async with hub.test_client("/ws/kept:cars") as client:
        await hub.broadcast("kept:cars", "0")
        with redis_server.client as engine:
            engine.script_flush()
        sent = [hub.broadcast("kept:cars", str(number)) for number in range(1, 6)]
        assert [(await one).position.offset for one in sent] == [2, 3, 4, 5, 6]
        assert await read(client, 6) == [str(number) for number in range(6)]
        with redis_server.client as engine:
            engine.script_flush()
        assert len(await hub.channel("kept:cars").history()) == 6
        with redis_server.client as engine:
            engine.script_flush()
        assert await hub.channel("kept:cars").users() == []


async def test_history_of_megabytes_is_read_in_pages_that_the_engine_does_not_hang_up_at(
    node, redis_server, caplog
):
    """It hangs up on a subscriber for whom more than 32 MiB wait."""
    hub = await node(redis_server.url, max_outbox=1 << 30)
    for number in range(60):
        await hub.broadcast("kept:cars", f"{number} ".ljust(1_000_000, "x"))
    newest = await hub.channel("kept:cars").history(limit=60)
    assert 2 <= len(newest) < 10
    assert newest[-1].message.startswith("59 ")
    async with hub.test_client("/ws/lobby") as client:
        since = f"{newest.position.epoch}.1"
        await client.send({"channel": "kept:cars", "since": since})
        numbers = [(await client.receive()).partition(" ")[0] for _ in range(59)]
        assert numbers == [str(number) for number in range(1, 60)]
        assert await client.receive_json() == {"in": True, "lost": False}
    assert "is lost" not in caplog.text


# ── strangers ─────────────────────────────────────────────────────────────────────────────────


async def test_what_a_stranger_publishes_is_dropped_and_logged_once(node, redis_server, caplog):
    hub = await node(redis_server.url)
    async with hub.test_client("/ws/cars") as client, hub.test_client("/ws/kept:cars") as kept:
        with redis_server.client as engine:
            for topic in (b"c:cars", b"c:kept:cars", b"e:", f"n:{hub.node}".encode()):
                name = b"backchannel:faults:{" + topic + b"}"
                for data in (
                    b"", b"hello", b"T\xff", b"X\xc1", b"X\x93", b"Q\x01", b"A", b"@1 T", b"@ Tx",
                    b"@nonsense Tx", b"@e.1 @e.2 Tx", b"@e.1 A\x92\x01\x01", b"X\x94\x05\xc0\x90\xc0", b"Q\x93\x92\xa7channel\xa1x\x92\xa1a\x01\x90",
                ):  # fmt: skip
                    engine.publish(name, data)
        await hub.broadcast("cars", "one of us")
        assert await client.receive() == "one of us"
        await hub.broadcast("kept:cars", "us too")
        assert await kept.receive() == "us too"
    strangers = [r for r in caplog.records if "stranger" in r.getMessage()]
    assert len(strangers) == 1


async def test_hubs_of_other_names_never_meet(redis_server):
    hubs = [Hub(broker=redis_server.url, name=name) for name in ("one", "two")]
    for hub in hubs:
        hub.rule("{any}", history=10)
        hub.add("/ws/{channel}", Listener)
        await hub.start()
    one, two = hubs
    async with (
        one.test_client("/ws/cars", user="ana") as here,
        two.test_client("/ws/cars", user="ana") as there,
    ):
        await one.broadcast("cars", "to one")
        await one.user("ana").send("to ana of one")
        await one.everyone.send("to all of one")
        await two.broadcast("cars", "to two")
        assert await there.receive() == "to two"
        assert await read(here, 3) == ["to one", "to ana of one", "to all of one"]
        assert await one.user("ana").count() == 1
    for hub in hubs:
        await hub.stop()


# ── at the start ──────────────────────────────────────────────────────────────────────────────


async def test_an_engine_that_nobody_answers_at_is_an_error_in_one_line(free_port):
    hub = Hub(broker=f"redis://127.0.0.1:{free_port}/0", name="faults")
    with pytest.raises(BrokerUnavailable, match="can't be reached") as caught:
        await hub.start()
    assert f"redis://127.0.0.1:{free_port}/0" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not hub.is_running


async def test_a_hub_that_could_not_start_starts_once_its_engine_is_there(redis_server):
    redis_server.stop()
    hub = Hub(broker=redis_server.url, name="faults")
    hub.add("/ws/{channel}", Listener)
    with pytest.raises(BrokerUnavailable):
        await hub.start()
    redis_server.start()
    async with hub.test_client("/ws/cars") as client:
        await hub.broadcast("cars", "here")
        assert await client.receive() == "here"
    await hub.stop()


async def test_a_password_that_is_missing_or_wrong_is_told_and_not_shown(redis_server):
    with redis_server.client as engine:
        engine.config_set("requirepass", "opensesame")
    try:
        address = redis_server.url.partition("//")[2]
        with pytest.raises(BrokerUnusable, match="wants a password"):
            await Hub(broker=redis_server.url, name="faults").start()
        with pytest.raises(BrokerUnusable, match="refuses this password") as caught:
            await Hub(broker=f"redis://:wrongpass@{address}", name="faults").start()
        assert "wrongpass" not in str(caught.value)
        hub = Hub(broker=f"redis://:opensesame@{address}", name="faults")
        await hub.start()
        assert "opensesame" not in hub.health.broker
        await hub.stop()
    finally:
        redis_server.stop()
        redis_server.start()


async def test_an_engine_that_is_too_old_is_told_its_version():
    """None so old can be had: this one says what an old one says."""
    replies = [b"%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n"]
    replies += [b"$22\r\nredis_version:6.0.16\r\n\r\n", b"$13\r\nrole:master\r\n\r\n"]

    ended = asyncio.Event()

    async def serve(reader, writer):
        for reply in replies:
            await reader.read(1000)
            writer.write(reply)
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(BrokerUnusable, match=r"is Redis 6\.0\.16: 6\.2 or newer is needed"):
        await Hub(broker=f"redis://127.0.0.1:{port}", name="faults").start()
    server.close()
    await ended.wait()


async def test_a_hub_that_drains_waits_for_its_engine_as_long_as_it_may(node, cable):
    hub = await node(cable.url, broker_timeout=30.0)
    cable.cut()
    await until(lambda: is_away(hub))
    waiting = hub.broadcast("kept:1", "accepted")
    stopping = asyncio.create_task(hub.stop(drain=10))
    await until(lambda: hub.is_stopping)
    assert not hub.health.ready
    cable.mend()
    await stopping
    assert (await waiting).position is not None


async def test_a_hub_that_drains_gives_up_an_engine_that_stays_away(node, cable):
    hub = await node(cable.url, broker_timeout=30.0)
    cable.cut()
    await until(lambda: is_away(hub))
    waiting = hub.broadcast("kept:1", "accepted")
    async with asyncio.timeout(5):
        await hub.stop(drain=0.3)
    with pytest.raises(BrokerUnavailable, match="was not published"):
        await waiting


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:6379", "looks like redis://localhost:6379/0"),
        ("http://localhost", "looks like redis://localhost:6379/0"),
        ("redis://localhost:port", "looks like redis://localhost:6379/0"),
        ("redis://localhost:99999", "no host with a port from 1 to 65535; it looks like redis"),
        ("redis://localhost/abc", "the path is the number of a database"),
        ("redis:/localhost", r"'redis' is followed by ://; it looks like redis://localhost:6379/0"),
        (
            "redsi://localhost",
            r"begins with none of redis://, .*redis\+cluster.*: did you mean redis://\?",
        ),
        ("redis+sentinl://a", r"none of .*: did you mean redis\+sentinel://\?"),
        ("memory", "looks like redis://localhost:6379/0"),
        ("", "looks like redis://localhost:6379/0"),
    ],
)
def test_what_is_no_url_of_an_engine_is_refused_when_the_hub_is_made(url, words):
    with pytest.raises(BrokerUrlError, match=words) as caught:
        Hub(broker=url)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "password",
    ["opense@same", "@@", "open/same", "12/same", "open:same@x", "open?same@x", "open#same"],
)
@pytest.mark.parametrize("user", ["", "ana"])
async def test_no_part_of_a_password_is_shown_however_it_is_written(free_port, password, user):
    """Some characters would have to be written as %40 and the like, and are not."""
    url = f"redis://{user}:{password}@127.0.0.1:{free_port}/0"
    with pytest.raises((BrokerUrlError, BrokerUnavailable)) as caught:
        await Hub(broker=url, name="faults").start()
    said = str(caught.value)
    assert f"redis://{user}:…@127.0.0.1:{free_port}/0" in said
    assert [part for part in ("open", "same") if part in said] == []
    if not isinstance(caught.value, BrokerUnavailable):
        assert "is written as urllib.parse.quote(password, safe='') does" in said


@pytest.mark.parametrize("name", ["", "a b", "a{b}", "x" * 65, "a:b"])
def test_what_is_no_name_of_a_hub_is_refused(name):
    with pytest.raises(ValueError, match="letters, digits"):
        Hub(name=name)
