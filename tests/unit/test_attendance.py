"""Presence: who is in a channel, told when a user's first device comes and the last one goes."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import pickle
import threading

import pytest

from backchannel import Hub, Listener, ListenerError, User, threaded

MOMENT = 0.05


@pytest.fixture
async def hub():
    hub = Hub(authenticate=lambda request: request.query.get("user"), presence_moment=MOMENT)
    hub.rule("room:{name}", presence=True)

    @hub.endpoint("/ws/{channel}")
    class Room(Listener):
        def on_open(self, ws):
            ws.meta["device"] = ws.query.get("device", "")

        async def on_message(self, ws, message: dict):
            if "enter" in message:
                await ws.subscribe(message["enter"])
            if "leave" in message:
                await ws.unsubscribe(message["leave"])
            return {"channels": sorted(ws.channels)}

    yield hub
    assert hub.health.problems == ()
    await hub.stop()


@pytest.fixture
def told(hub):
    """What on_join and on_leave are told, in order."""
    told = asyncio.Queue()
    hub.on_join(lambda channel, user: told.put_nowait(f"{user} joined {channel}"))
    hub.on_leave(lambda channel, user: told.put_nowait(f"{user} left {channel}"))

    async def following(*wanted):
        for one in wanted:
            assert await asyncio.wait_for(told.get(), 5) == one

    following.nothing_more = told.empty
    return following


async def test_a_user_is_in_from_the_first_device_to_the_last(hub, told):
    room = hub.channel("room:a")
    async with hub.test_client("/ws/room:a?user=ana&device=phone") as phone:
        async with hub.test_client("/ws/room:a?user=ana&device=laptop") as laptop:
            (ana,) = await room.users()
            assert ana == "ana"
            assert [(one.id, one.meta) for one in ana.devices] == [
                (phone.id, {"device": "phone"}),
                (laptop.id, {"device": "laptop"}),
            ]
            assert ana.devices == await room.connections()
        (ana,) = await room.users()
        assert [one.id for one in ana.devices] == [phone.id]
    await told("ana joined room:a", "ana left room:a")
    assert await room.users() == []
    assert await room.count_users() == 0


async def test_users_come_in_the_order_of_their_first_devices(hub):
    async with contextlib.AsyncExitStack() as stack:
        for user in ("zoe", "ana", "bob", "zoe"):
            await stack.enter_async_context(hub.test_client(f"/ws/room:a?user={user}"))
        assert await hub.channel("room:a").users() == ["zoe", "ana", "bob"]


async def test_who_enters_and_leaves_by_a_callback_is_told_of(hub, told):
    async with hub.test_client("/ws/lobby?user=ana") as client:
        await client.send({"enter": "room:b"})
        await told("ana joined room:b")
        await client.send({"leave": "room:b"})
        await told("ana left room:b")
    assert told.nothing_more()


async def test_who_is_put_in_and_taken_out_by_an_audience_is_told_of(hub, told):
    async with hub.test_client("/ws/lobby?user=ana"), hub.test_client("/ws/lobby?user=bob"):
        await hub.everyone.subscribe("room:c")
        await told("ana joined room:c", "bob joined room:c")
        await hub.user("ana").unsubscribe("room:c")
        await told("ana left room:c")
        assert await hub.channel("room:c").users() == ["bob"]


async def test_a_page_that_is_loaded_anew_is_neither_left_nor_joined(hub, told):
    for _ in range(3):
        async with hub.test_client("/ws/room:a?user=ana"):
            pass
        (ana,) = await hub.channel("room:a").users()
        assert (ana, ana.devices) == ("ana", [])
    await told("ana joined room:a", "ana left room:a")
    assert told.nothing_more()


async def test_who_comes_and_goes_is_told_of_once_however_often_within_the_moment(hub, told):
    """A join waits for nothing, so that a short visit is told of as both."""
    async with hub.test_client("/ws/room:a?user=ana"):
        await told("ana joined room:a")
    for _ in range(5):
        async with hub.test_client("/ws/room:a?user=ana"):
            assert told.nothing_more()
    await told("ana left room:a")
    assert told.nothing_more()


async def test_a_callback_can_wait_to_see_who_stays(hub):
    """As docs/presence.md says; what comes next about the user waits for it."""
    waits = {"ana": asyncio.Event(), "bob": asyncio.Event()}
    told = asyncio.Queue()

    @hub.on_join
    async def joined(channel, user):
        await waits[user].wait()
        members = {str(one): one.devices for one in await hub.channel(channel).users()}
        if members.get(user):
            told.put_nowait(f"{user} stays")

    hub.on_leave(lambda channel, user: told.put_nowait(f"{user} left"))
    async with hub.test_client("/ws/room:a?user=bob"):
        async with hub.test_client("/ws/room:a?user=ana"):
            pass
        waits["ana"].set()
        assert await asyncio.wait_for(told.get(), 5) == "ana left"
        waits["bob"].set()
        assert await asyncio.wait_for(told.get(), 5) == "bob stays"


async def test_who_comes_back_later_has_left_and_joined(hub, told):
    for _ in range(2):
        async with hub.test_client("/ws/room:a?user=ana"):
            await told("ana joined room:a")
        await told("ana left room:a")
    assert told.nothing_more()


# ── joins that wait ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def settled(hub):
    hub.rule("quiet:{name}", presence="settled")
    return hub.channel("quiet:a")


async def test_of_a_short_visit_nobody_is_told_where_joins_wait(hub, settled, told):
    """Who is there is known at once all the same."""
    for _ in range(3):
        async with hub.test_client("/ws/quiet:a?user=ana"):
            assert await settled.users() == ["ana"]
            assert await settled.count_users() == 1
        (ana,) = await settled.users()
        assert (ana, ana.devices) == ("ana", [])
    async with hub.test_client("/ws/room:a?user=bob"):
        pass
    await told("bob joined room:a", "bob left room:a")  # ana was seen off before
    assert await settled.users() == []
    assert told.nothing_more()


async def test_who_stays_is_told_of_though_the_page_was_loaded_anew(hub, settled, told):
    async with hub.test_client("/ws/quiet:a?user=ana"):
        pass
    async with hub.test_client("/ws/quiet:a?user=ana"):
        await told("ana joined quiet:a")
    await told("ana left quiet:a")
    assert told.nothing_more()


async def test_who_is_away_when_the_join_is_due_is_told_of_when_back(settled, hub, told):
    """Then the visit has lasted for longer than the moment."""
    hub._broker._moment = 30
    async with hub.test_client("/ws/quiet:a?user=ana"):
        pass
    hub._broker._welcome("quiet:a", "ana")  # as the clock would
    assert told.nothing_more()
    async with hub.test_client("/ws/quiet:a?user=ana"):
        await told("ana joined quiet:a")
        hub._broker._moment = MOMENT
    await told("ana left quiet:a")
    assert told.nothing_more()


async def test_the_most_specific_rule_says_whether_joins_wait(hub, settled, told):
    hub.rule("quiet:not:{name}", presence=True)
    async with (
        hub.test_client("/ws/quiet:a?user=ana"),
        hub.test_client("/ws/quiet:not:a?user=ana"),
    ):
        await told("ana joined quiet:not:a", "ana joined quiet:a")


async def test_a_hub_that_stops_before_a_join_was_due_tells_nothing(hub, settled, told):
    async with hub.test_client("/ws/quiet:a?user=ana"):
        await hub.stop()
    assert hub._broker._joining == {}
    assert told.nothing_more()


async def test_who_is_online_is_told_at_once_whatever_rules_say():
    told = asyncio.Queue()
    hub = Hub(authenticate=lambda request: "ana", presence_moment=30)
    hub.rule("{any}", presence="settled")
    hub.add("/ws", Listener)
    hub.on_user_online(told.put_nowait)
    async with hub.test_client("/ws"):
        assert await asyncio.wait_for(told.get(), 5) == "ana"
    await hub.stop()


# ── channels ──────────────────────────────────────────────────────────────────────────────────


async def test_each_channel_has_its_own_members(hub, told):
    async with hub.test_client("/ws/room:a?user=ana"), hub.test_client("/ws/room:b?user=bob"):
        assert await hub.channel("room:a").users() == ["ana"]
        assert await hub.channel("room:b").users() == ["bob"]
        assert await hub.channel("room:c").users() == []
        await told("ana joined room:a", "bob joined room:b")


async def test_anonymous_connections_are_counted_and_are_no_users(hub, told):
    async with hub.test_client("/ws/room:a"), hub.test_client("/ws/room:a?user=ana"):
        assert await hub.channel("room:a").count() == 2
        assert await hub.channel("room:a").count_users() == 1
        assert await hub.channel("room:a").users() == ["ana"]
    await told("ana joined room:a", "ana left room:a")


async def test_who_is_refused_was_never_there(hub, told):
    hub.rule("room:shut", presence=True, subscribe=lambda ws: False)
    async with hub.test_client("/ws/lobby?user=ana") as client:
        await client.send({"enter": "room:shut"})
        assert await client.receive_json() == {"channels": ["lobby"]}
        await client.send({"enter": "room:open"})
        await told("ana joined room:open")


async def test_a_channel_without_the_rule_is_as_ever(hub, told):
    async with hub.test_client("/ws/lobby?user=ana"), hub.test_client("/ws/lobby?user=bob"):
        users = await hub.channel("lobby").users()
        assert users == ["ana", "bob"]
        assert await hub.channel("lobby").count_users() == 2
        with pytest.raises(AttributeError, match=r'hub\.rule\("room:\{name\}", presence=True\)'):
            _ = users[0].devices
        assert await hub.everyone.users() == ["ana", "bob"]
        async with hub.test_client("/ws/room:a?user=eve"):
            await told("eve joined room:a")


async def test_without_such_a_rule_the_broker_is_not_asked(monkeypatch):
    hub = Hub(authenticate=lambda request: "ana")
    hub.rule("room:{name}", history=10)
    hub.add("/ws/{channel}", Listener)
    monkeypatch.setattr(hub._broker, "announce", None)
    async with hub.test_client("/ws/room:a"):
        assert await hub.channel("room:a").users() == ["ana"]


@pytest.mark.parametrize("style", ["def", "async def", "threaded"])
async def test_callbacks_may_be_written_in_any_way(hub, style):
    told = asyncio.Queue()
    loop, here = asyncio.get_running_loop(), threading.get_ident()

    def note(channel, user):
        loop.call_soon_threadsafe(told.put_nowait, (channel, user, threading.get_ident() == here))

    if style == "async def":

        @hub.on_join
        async def joined(channel, user):
            await asyncio.sleep(0)
            note(channel, user)

    else:
        joined = threaded(note) if style == "threaded" else note
        assert hub.on_join(joined) is joined
    async with hub.test_client("/ws/room:a?user=ana"):
        expected = ("room:a", "ana", style != "threaded")
        assert await asyncio.wait_for(told.get(), 5) == expected


async def test_a_slow_callback_keeps_the_order_of_one_user_and_nobody_else_waiting(hub):
    told, go_on = asyncio.Queue(), asyncio.Event()

    @hub.on_join
    async def joined(channel, user):
        if user == "ana":
            await go_on.wait()
        told.put_nowait(f"{user} joined")

    @hub.on_leave
    def left(channel, user):
        told.put_nowait(f"{user} left")

    async with hub.test_client("/ws/room:a?user=ana"):
        pass
    async with hub.test_client("/ws/room:a?user=bob"):
        assert await asyncio.wait_for(told.get(), 5) == "bob joined"
    assert await asyncio.wait_for(told.get(), 5) == "bob left"
    go_on.set()
    assert [await asyncio.wait_for(told.get(), 5) for _ in range(2)] == ["ana joined", "ana left"]


async def test_a_callback_that_raises_is_logged_and_the_next_one_is_called(hub, caplog):
    told = asyncio.Queue()

    @hub.on_join
    def joined(channel, user):
        told.put_nowait(user)
        raise LookupError("on purpose")

    async with hub.test_client("/ws/room:a?user=ana"), hub.test_client("/ws/room:a?user=bob"):
        assert [await told.get() for _ in range(2)] == ["ana", "bob"]
    assert "'room:a', 'ana'" in caplog.text


async def test_on_join_finds_the_user_in_and_on_leave_out(hub):
    seen = asyncio.Queue()

    @hub.on_join
    async def joined(channel, user):
        seen.put_nowait(("joined", await hub.channel(channel).users()))

    @hub.on_leave
    async def left(channel, user):
        seen.put_nowait(("left", await hub.channel(channel).users()))

    async with hub.test_client("/ws/room:a?user=bob"):
        assert await seen.get() == ("joined", ["bob"])
        async with hub.test_client("/ws/room:a?user=ana"):
            assert await seen.get() == ("joined", ["bob", "ana"])
        assert await seen.get() == ("left", ["bob"])


async def test_metadata_that_cannot_travel_is_left_out_and_named(hub, caplog):
    @hub.endpoint("/odd/{channel}", share_channels=True)
    class Odd(Listener):
        def on_open(self, ws):
            ws.meta["socket"] = object()

    async with hub.test_client("/odd/room:a?user=ana"), hub.test_client("/ws/room:a?user=ana") as b:
        (ana,) = await hub.channel("room:a").users()
        assert [one.meta for one in ana.devices] == [{}, {"device": ""}]
        assert b.connection.is_open
    assert "ws.meta" in caplog.text


async def test_a_user_is_the_id_wherever_it_goes(hub):
    async with hub.test_client("/ws/room:a?user=ana&device=phone") as client:
        (ana,) = await hub.channel("room:a").users()
        assert isinstance(ana, User)
        assert {ana: 1}["ana"] == 1
        assert json.dumps([ana]) == '["ana"]'
        hub.user(ana).send({"users": [ana], ana: None})
        assert await client.receive_json() == {"users": ["ana"], "ana": None}
        for one in (pickle.loads(pickle.dumps(ana)), copy.deepcopy(ana)):
            assert (one, one.devices) == (ana, ana.devices)


async def test_a_hub_that_starts_anew_has_nobody_from_before(hub, told):
    async with hub.test_client("/ws/room:a?user=ana"):
        await told("ana joined room:a")
        await hub.stop()
    await hub.start()
    assert await hub.channel("room:a").users() == []
    async with hub.test_client("/ws/room:a?user=ana"):
        await told("ana joined room:a")


def test_a_misspelt_rule_is_told_what_was_meant():
    with pytest.raises(TypeError, match=r"no presense=; did you mean presence=\?"):
        Hub().rule("room:{name}", presense=True)


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "error"),
    [(1, TypeError), (None, TypeError), ("yes", ValueError), ("Settled", ValueError)],
)
def test_presence_that_is_something_else_is_refused(value, error):
    said = rf"""rule 'room:\{{name\}}': presence= is True, False or "settled", not {value!r}"""
    with pytest.raises(error, match=said):
        Hub().rule("room:{name}", presence=value)


@pytest.mark.parametrize("name", ["on_join", "on_leave", "on_user_online", "on_user_offline"])
def test_a_second_function_is_refused_and_the_first_one_named(name):
    hub = Hub()

    def first(user, channel=None):
        """Be told."""

    register = getattr(hub, name)
    register(first)
    assert register(first) is first
    with pytest.raises(
        ListenerError, match=rf"hub\.{name} calls one function, and that is first \("
    ):
        register(lambda user, channel=None: None)


@pytest.mark.parametrize("name", ["on_join", "on_leave"])
def test_a_callback_that_takes_something_else_is_refused(name):
    decorate = getattr(Hub(), name)
    with pytest.raises(ListenerError, match=rf"hub\.{name} calls greet\(channel, user\)"):

        @decorate
        def greet(user): ...


async def test_callbacks_without_a_rule_are_warned_of(caplog):
    hub = Hub()
    hub.on_join(lambda channel, user: None)
    await hub.start()
    await hub.stop()
    assert "hub.on_join will never be called" in caplog.text
    assert "presence=True" in caplog.text


@pytest.mark.parametrize("name", ["presence_lease", "presence_moment"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_times_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Hub(**{name: value})


def test_a_lease_too_short_to_be_renewed_is_refused():
    with pytest.raises(ValueError, match=r"presence_lease=…\) is at least 0\.1 s, not 0\.05"):
        Hub(presence_lease=0.05)
