"""The hub: endpoints, audiences and the verbs on them, users, threads, starting and stopping."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import logging
import math
import threading
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backchannel import (
    Hub,
    Listener,
    ListenerError,
    Reject,
    Sent,
    TemplateError,
    UnsendableMessage,
    threaded,
)
from backchannel.testing import ConnectionClosed, HandshakeRefused


class WebSession(dict):
    """A session with an id, as a framework that keeps it on the server has."""

    def __init__(self, key):
        super().__init__()
        self.session_key = key


class Room(Listener):
    """Does nothing; its connections are sent to."""


@pytest.fixture
async def room(hub):
    """Ana on two devices, bob, and an anonymous; all but ana's second device in `cars`."""
    hub.add("/ws/{channel}", Room)
    hub.add("/quiet", Room)
    clients = {
        "ana1": await hub.test_client("/ws/cars", user="ana", session=WebSession("s1")).connect(),
        "ana2": await hub.test_client("/quiet", user="ana", session=WebSession("s2")).connect(),
        "bob": await hub.test_client("/ws/cars", user="bob", session=WebSession("s1")).connect(),
        "anonymous": await hub.test_client("/ws/cars").connect(),
    }
    yield clients
    for client in clients.values():
        await client.close()


def heard(room):
    """Return who has heard what, and forget it."""
    got = {name: client.received() for name, client in room.items()}
    return {name: frames for name, frames in got.items() if frames}


def to_all(names, message="hi"):
    return {name: [message] for name in names.split()}


# ── endpoints ─────────────────────────────────────────────────────────────────────────────────


async def test_a_class_an_instance_and_a_function_are_endpoints(hub):
    class Greeter(Listener):
        def __init__(self, word="hello"):
            self.word = word

        def on_message(self, ws, message):
            return f"{self.word} {message}"

    hub.endpoint("/class")(Greeter)
    hub.add("/instance", Greeter("hej"))

    @hub.endpoint("/function")
    def shout(ws, message: str):
        return message.upper()

    @hub.endpoint("/async")
    async def whisper(ws, message: str):
        await asyncio.sleep(0)
        return message.lower()

    @hub.endpoint("/thread")
    @threaded
    def think(ws, message: str):
        return threading.current_thread() is not threading.main_thread()

    answers = []
    for path in ("/class", "/instance", "/function", "/async", "/thread"):
        async with hub.test_client(path) as ws:
            await ws.send("Ana")
            answers.append(await ws.receive())
    assert answers == ["hello Ana", "hej Ana", "ANA", "ana", "true"]


async def test_the_decorator_returns_what_it_decorates(hub):
    assert hub.endpoint("/ws")(Room) is Room


@pytest.mark.parametrize("target", [Room, lambda ws, message: message])
async def test_an_endpoint_without_its_url_is_refused(hub, target):
    with pytest.raises(TypeError) as caught:
        hub.endpoint(target)
    assert '@hub.endpoint takes the URL, as in @hub.endpoint("/ws/chat/{channel}")' in str(
        caught.value
    )


async def test_what_can_not_serve_is_refused_at_registration(hub):
    with pytest.raises(ListenerError, match="inherit from"):
        hub.add("/a", int)
    with pytest.raises(ListenerError, match="needs a Listener or a function"):
        hub.add("/a", "chat")
    hub.add("/a", Room)
    with pytest.raises(TemplateError, match="registered already"):
        hub.add("/a", Room)


async def test_a_second_bare_channel_is_refused_unless_shared_on_purpose(hub):
    class Other(Listener):
        pass

    hub.add("/ws/{channel}", Room)
    with pytest.raises(TemplateError, match="/admin"):
        hub.add("/admin/{channel}", Other)
    hub.add("/admin/{channel}", Other, channel="admin:{channel}")
    hub.add("/also/{channel}", Other, share_channels=True)
    async with hub.test_client("/admin/x"), hub.test_client("/also/x"), hub.test_client("/ws/x"):
        assert hub.channels() == {"admin:x": 1, "x": 2}


async def test_no_url_leads_into_channels_that_another_endpoint_guards(hub):
    class Admin(Listener):
        pass

    hub.add("/ws/{channel}", Room)
    hub.add("/admin/{room}", Admin, channel="admin:{room}")
    with pytest.raises(HandshakeRefused) as refused:
        await hub.test_client("/ws/admin:x").connect()
    assert refused.value.status == 403
    assert hub.channels() == {}


async def test_replace_swaps_the_listener_under_its_connections(hub):
    class New(Listener):
        def on_message(self, ws, message):
            return f"new {message}, old state {ws.state.name}"

        def on_close(self, ws, reason):
            closed.append(reason.code)

    class Old(Listener):
        def on_open(self, ws):
            ws.state.name = "kept"

    closed = []
    hub.add("/ws/{channel}", Old)
    async with hub.test_client("/ws/cars") as ws:
        hub.replace("/ws/{channel}", New)
        await ws.send("x")
        assert await ws.receive() == "new x, old state kept"
        assert hub.channels() == {"cars": 1}
    assert closed == [1000]
    with pytest.raises(LookupError, match=r"/ws/\{channel\}"):
        hub.replace("/other", New)
    with pytest.raises(ListenerError):
        hub.replace("/ws/{channel}", int)


async def test_unknown_settings_are_named_with_the_nearest_known():
    with pytest.raises(TypeError, match="did you mean casefold_channels"):
        Hub(casefold_chanels=True)
    with pytest.raises(ValueError, match="cancel_grace"):
        Hub(cancel_grace=0)


# ── audiences ─────────────────────────────────────────────────────────────────────────────────


async def test_broadcast_reaches_everyone_in_the_channel_and_nobody_else(hub, room):
    assert hub.broadcast("cars", "hi").reached == 3
    assert heard(room) == to_all("ana1 bob anonymous")
    assert hub.broadcast("nobody-here", "hi").reached == 0


async def test_each_audience_sends_to_its_own(hub, room):
    expected = {
        hub.channel("cars"): "ana1 bob anonymous",
        hub.user("ana"): "ana1 ana2",
        hub.session("s1"): "ana1 bob",
        hub.connection(room["ana2"].id): "ana2",
        hub.everyone: "ana1 ana2 bob anonymous",
        hub.user("unknown"): "",
        hub.session("unknown"): "",
        hub.connection("unknown"): "",
        hub.channel("unknown"): "",
    }
    for audience, names in expected.items():
        assert audience.send("hi").reached == len(names.split())
        assert heard(room) == to_all(names)
        assert await audience.count() == len(names.split())
        assert [info.id for info in await audience.connections()] == [
            room[name].id for name in names.split()
        ]


async def test_users_are_each_once_and_without_the_anonymous(hub, room):
    assert await hub.everyone.users() == ["ana", "bob"]
    assert await hub.channel("cars").users() == ["ana", "bob"]
    assert await hub.session("s2").users() == ["ana"]


async def test_infos_tell_what_anyone_may_know(hub, room):
    room["ana1"].connection.meta["device"] = "phone"
    (info, _) = await hub.user("ana").connections()
    ws = room["ana1"].connection
    assert (info.id, info.user, info.endpoint, info.node) == (
        ws.id,
        "ana",
        "/ws/{channel}",
        hub.node,
    )
    assert info.opened_at == ws.opened_at
    assert info.meta == {"device": "phone"}
    ws.meta["device"] = "changed later"
    assert info.meta == {"device": "phone"}


@pytest.mark.parametrize(
    ("to", "names"),
    [
        (lambda hub, room: room["bob"].connection, "bob"),
        (lambda hub, room: room["bob"].id, "bob"),
        (lambda hub, room: hub.connection(room["bob"].id), "bob"),
        (lambda hub, room: hub.user("ana"), "ana1"),
        (lambda hub, room: hub.user("bob"), "bob"),
        (lambda hub, room: hub.session("s1"), "ana1 bob"),
        (lambda hub, room: [room["ana1"].id, hub.user("bob")], "ana1 bob"),
        (lambda hub, room: (room["ana1"].connection, room["bob"].connection), "ana1 bob"),
        (lambda hub, room: {room["ana1"].connection}, "ana1"),
        (lambda hub, room: (c.id for c in room.values()), "ana1 bob anonymous"),
        (lambda hub, room: [room["bob"].id, hub.user("bob"), room["bob"].connection], "bob"),
        (lambda hub, room: room["ana2"].connection, ""),
        (lambda hub, room: ["unknown", hub.user("unknown")], ""),
        (lambda hub, room: "", ""),
        (lambda hub, room: "ana", ""),
        (lambda hub, room: [], ""),
        (lambda hub, room: hub.everyone, "ana1 bob anonymous"),
    ],
    ids=range(17),
)
async def test_to_narrows_to_those_of_the_channel_each_once(hub, room, to, names):
    sent = hub.broadcast("cars", "hi", to=to(hub, room))
    assert heard(room) == to_all(names)
    assert sent.reached == len(names.split())


@pytest.mark.parametrize(
    ("exclude", "names"),
    [
        (lambda hub, room: room["bob"].connection, "ana1 anonymous"),
        (lambda hub, room: room["bob"].id, "ana1 anonymous"),
        (lambda hub, room: hub.user("ana"), "bob anonymous"),
        (lambda hub, room: hub.session("s1"), "anonymous"),
        (lambda hub, room: [room["ana1"].connection, hub.user("bob")], "anonymous"),
        (lambda hub, room: [], "ana1 bob anonymous"),
        (lambda hub, room: "unknown", "ana1 bob anonymous"),
        (lambda hub, room: hub.everyone, ""),
    ],
    ids=range(8),
)
async def test_exclude_leaves_out_in_all_forms(hub, room, exclude, names):
    assert hub.broadcast("cars", "hi", exclude=exclude(hub, room)).reached == len(names.split())
    assert heard(room) == to_all(names)
    hub.channel("cars").send("hi", exclude=exclude(hub, room))
    assert heard(room) == to_all(names)


async def test_to_and_exclude_go_together(hub, room):
    hub.broadcast("cars", "hi", to=hub.session("s1"), exclude=hub.user("bob"))
    assert heard(room) == to_all("ana1")


async def test_an_info_addresses_its_connection(hub, room):
    (info,) = await hub.user("bob").connections()
    hub.broadcast("cars", "hi", to=info)
    assert heard(room) == to_all("bob")
    hub.broadcast("cars", "hi", exclude=await hub.user("bob").connections())
    assert heard(room) == to_all("ana1 anonymous")


@pytest.mark.parametrize(
    "nobody", [None, 42, b"id", {"id": 1}, [None], [["id"]], [42], object()], ids=repr
)
@pytest.mark.parametrize("argument", ["to", "exclude"])
async def test_what_addresses_nobody_raises_and_nothing_is_sent(hub, room, argument, nobody):
    with pytest.raises(TypeError, match=argument):
        hub.broadcast("cars", "hi", **{argument: nobody})
    with pytest.raises(TypeError):
        room["bob"].connection.broadcast("hi", **{argument: nobody})
    assert heard(room) == {}


@pytest.mark.parametrize("wrong", [None, True, 1.5, b"ana", ["ana"]], ids=repr)
async def test_what_is_no_user_raises(hub, wrong):
    with pytest.raises(TypeError):
        hub.user(wrong)


async def test_what_names_nobody_raises(hub):
    for wrong in (lambda: hub.user(""), lambda: hub.session("")):
        with pytest.raises(ValueError, match="empty"):
            wrong()
    for wrong in (lambda: hub.session(None), lambda: hub.connection(None), lambda: hub.channel(7)):
        with pytest.raises(TypeError):
            wrong()


async def test_a_user_by_number_is_the_user_by_text(hub):
    hub.add("/ws", Room)
    async with hub.test_client("/ws", user=42) as ws:
        assert ws.connection.user == "42"
        assert hub.user(42).send("hi").reached == hub.user("42").send("hi").reached == 1


async def test_an_audience_closes_its_connections(hub, room):
    assert hub.user("ana").close(4100, "signed out").reached == 2
    await room["ana1"].settled()
    assert [room[n].closed and room[n].closed.code for n in room] == [4100, 4100, None, None]
    with pytest.raises(ValueError, match="1005"):
        hub.everyone.close(1005)
    assert room["bob"].closed is None


@pytest.mark.parametrize(
    "name", ["", "a" * 256, "ä" * 128, "with\nnewline", "\x7f", "$presence", "\ud800"], ids=ascii
)
async def test_a_channel_name_that_can_not_be_raises_everywhere(hub, room, name):
    ws = room["bob"].connection
    for act in (
        lambda: hub.broadcast(name, "hi"),
        lambda: hub.channel(name),
        lambda: ws.subscribe(name),
        lambda: ws.unsubscribe(name),
        lambda: ws.broadcast("hi", channel=name),
        lambda: hub.everyone.subscribe(name),
        lambda: hub.everyone.unsubscribe(name),
    ):
        with pytest.raises(ValueError, match="channel name"):
            act()
    assert heard(room) == {}


@pytest.mark.parametrize("name", ["a", "ä" * 127, "a b", "日本", "a:b/c", "x$"])
async def test_any_other_channel_name_will_do(hub, room, name):
    assert await room["bob"].connection.subscribe(name)
    assert hub.broadcast(name, "hi").reached == 1
    assert heard(room) == to_all("bob")


async def test_channel_names_keep_their_case_unless_told_otherwise(hub):
    hub.add("/ws/{channel}", Room)
    async with hub.test_client("/ws/Cars"), hub.test_client("/ws/cars"):
        assert hub.channels() == {"Cars": 1, "cars": 1}


async def test_with_casefold_channels_case_makes_no_difference(diary):
    hub = Hub(casefold_channels=True)
    hub.add("/ws/{channel}", diary.listener())
    async with hub.test_client("/ws/CARS") as one, hub.test_client("/ws/cars") as two:
        assert hub.channels() == {"cars": 2}
        assert one.connection.channel == "cars"
        assert hub.broadcast("Cars", "hi").reached == 2
        assert await hub.channel("cARS").count() == 2
        assert two.connection.broadcast("hi", channel="CARs").reached == 2
        assert await one.connection.unsubscribe("cArs")
        assert hub.channels() == {"cars": 1}
    assert diary.count_of("on_channel_open") == diary.count_of("on_channel_close") == 1
    await hub.stop()


async def test_channels_are_those_with_members(hub, room):
    assert hub.channels() == {"cars": 3}
    await room["ana2"].connection.subscribe("boats")
    assert hub.channels() == {"cars": 3, "boats": 1}
    await room["ana2"].close()
    assert hub.channels() == {"cars": 3}


# ── Sent ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_sent_may_be_ignored_awaited_or_asked(hub, room):
    sent = hub.broadcast("cars", "hi")
    assert isinstance(sent, Sent)
    assert await sent is sent
    assert await sent is sent  # again
    assert (sent.reached, sent.position) == (3, None)
    assert sent.result(0) is sent


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (math.nan, r"\$ "),
        ({"a": [1, math.inf]}, r"\$\.a\[1\]"),
        ({"a": object()}, r"\$\.a"),
        ("\ud800", r"\$"),
        ({"a": "\ud800"}, r"\$\.a"),
    ],
    ids=["nan", "infinity", "object", "surrogate", "nested surrogate"],
)
async def test_what_can_not_be_json_raises_at_the_call_and_nothing_was_sent(
    hub, room, message, path
):
    ws = room["bob"].connection
    for act in (
        lambda: hub.broadcast("cars", message),
        lambda: hub.everyone.send(message),
        lambda: ws.send(message),
        lambda: ws.broadcast(message),
        lambda: hub.broadcast("nobody-here", message),
    ):
        with pytest.raises(UnsendableMessage, match=path):
            act()
    assert heard(room) == {}


async def test_kinds_of_messages_reach_clients_as_kinds_of_frames(hub, room):
    for message in ("text", b"\x00", bytearray(b"\x01"), {"k": [1, None]}, 0, None):
        hub.user("bob").send(message)
    assert heard(room) == {"bob": ["text", b"\x00", b"\x01", '{"k":[1,null]}', "0", "null"]}


class FailingBroker:
    def bind(self, deliver):
        pass

    def publish(self, publication, keep):
        raise ConnectionError("the broker is away")


async def test_a_failure_is_raised_where_the_sent_is_awaited(caplog):
    hub = Hub(broker=FailingBroker())
    hub.add("/ws", Room)
    async with hub.test_client("/ws"):
        with pytest.raises(ConnectionError):
            await hub.broadcast("cars", "hi")
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(lambda: hub.broadcast("cars", "hi").result(1))
    await hub.stop()


async def test_a_failure_that_nobody_awaited_is_logged_once_and_shown_in_health(caplog):
    hub = Hub(broker=FailingBroker())
    hub.add("/ws", Room)
    async with hub.test_client("/ws"):
        hub.broadcast("cars", "hi")
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()
        assert len(hub.health.problems) == 1
        assert "the broker is away" in hub.health.problems[0]
        assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 1
    await hub.stop()


# ── threads ───────────────────────────────────────────────────────────────────────────────────


async def test_every_verb_works_from_another_thread(hub, room):
    ws = room["bob"].connection

    def elsewhere():
        return [
            hub.broadcast("cars", "1").result(1).reached,
            ws.send("2").result(1).reached,
            ws.broadcast("3").result(1).reached,
            hub.user("bob").send("4").result(1).reached,
            ws.subscribe("boats").result(1),
            hub.everyone.subscribe("boats").result(1).reached,
            ws.unsubscribe("boats").result(1),
            hub.everyone.unsubscribe("boats").result(1).reached,
            hub.user("ana").close(4100).result(1).reached,
        ]

    assert await asyncio.to_thread(elsewhere) == [3, 1, 3, 1, True, 4, True, 3, 2]
    assert room["bob"].received() == ["1", "2", "3", "4"]


async def test_a_sent_from_another_thread_may_be_awaited_in_the_loop(hub, room):
    sent = await asyncio.to_thread(lambda: hub.broadcast("cars", "hi"))
    assert (await sent).reached == 3


async def test_reached_before_it_is_sent_says_so(hub, room):
    begun = threading.Event()
    caught = []

    def elsewhere():
        sent = hub.broadcast("cars", "hi")
        try:
            caught.append(sent.reached)
        except RuntimeError as error:
            caught.append(str(error))
        begun.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    begun.wait(5)  # the loop stands still: nothing can have been sent
    thread.join(5)
    assert "not sent yet" in caught[0]


async def test_result_in_the_event_loop_would_wait_for_itself_and_says_so(hub, room):
    sent = []
    thread = threading.Thread(target=lambda: sent.append(hub.broadcast("cars", "hi")))
    thread.start()
    thread.join(5)
    with pytest.raises(RuntimeError, match="await"):
        sent[0].result(1)
    assert (await sent[0]).reached == 3


async def test_what_raises_at_the_call_raises_in_the_thread_that_calls(hub, room):
    def elsewhere():
        with pytest.raises(UnsendableMessage):
            hub.broadcast("cars", math.nan)
        with pytest.raises(TypeError):
            hub.broadcast("cars", "hi", to=None)
        with pytest.raises(ValueError, match="channel name"):
            room["bob"].connection.subscribe("$x")
        with pytest.raises(ValueError, match="close code"):
            room["bob"].connection.close(99)

    await asyncio.to_thread(elsewhere)
    assert heard(room) == {}


async def test_before_the_start_nobody_is_reached_and_nothing_raises():
    hub = Hub()
    hub.add("/ws", Room)
    assert hub.broadcast("cars", "hi").reached == 0
    assert hub.everyone.send("hi").reached == 0
    assert hub.everyone.close().reached == 0
    assert hub.channels() == {}
    assert await hub.everyone.count() == 0
    assert hub.health.running is False


CALLS = st.lists(st.sampled_from(["send", "broadcast", "whisper", "user", "reply"]), max_size=30)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls=CALLS, in_thread=st.booleans(), style=st.sampled_from(["def", "async", "threaded"]))
def test_messages_of_one_caller_arrive_in_the_order_of_the_calls(calls, in_thread, style):
    """From a callback of any style, or from another thread, whatever verb is used."""

    async def scenario():
        hub = Hub()

        def pour(ws):
            for number, call in enumerate(calls):
                text = str(number)
                if call == "send":
                    ws.send(text)
                elif call == "broadcast":
                    ws.broadcast(text)
                elif call == "whisper":
                    hub.broadcast("cars", text, to=ws.id)
                elif call == "user":
                    hub.user("ana").send(text)
                else:
                    hub.connection(ws.id).send(text)
            return "end"

        class Pour(Listener):
            if style == "def":

                def on_message(self, ws, message):
                    return pour(ws)

            elif style == "async":

                async def on_message(self, ws, message):
                    await asyncio.sleep(0)
                    return pour(ws)

            else:

                @threaded
                def on_message(self, ws, message):
                    return pour(ws)

        hub.add("/ws/{channel}", Pour)
        async with (
            hub.test_client("/ws/cars", user="ana") as ws,
            hub.test_client("/ws/cars", user="bob") as other,
        ):
            if in_thread:

                def from_thread():
                    pour(ws.connection)
                    ws.connection.send("end").result(5)

                await asyncio.to_thread(from_thread)
            else:
                await ws.send("go")
                await ws.settled()
            assert ws.received() == [*map(str, range(len(calls))), "end"]
            wanted = [str(n) for n, call in enumerate(calls) if call == "broadcast"]
            assert other.received() == wanted
        await hub.stop()

    asyncio.run(scenario())


async def test_several_threads_each_keep_their_own_order(hub, room):
    def pour(name):
        sent = [hub.broadcast("cars", f"{name} {n}") for n in range(200)]
        sent[-1].result(5)

    await asyncio.gather(*(asyncio.to_thread(pour, name) for name in "abc"))
    frames = room["bob"].received()
    assert len(frames) == 600
    for name in "abc":
        assert [f for f in frames if f[0] == name] == [f"{name} {n}" for n in range(200)]


# ── two hubs, two loops ───────────────────────────────────────────────────────────────────────


async def test_two_hubs_with_the_same_names_never_touch(diary):
    hubs = [Hub(), Hub()]
    clients = []
    for hub in hubs:
        hub.add("/ws/{channel}", diary.listener())
        client = hub.test_client("/ws/cars", user="ana", session=WebSession("s1"))
        clients.append(await client.connect())
    one, two = hubs
    assert diary.count_of("on_first_open") == diary.count_of("on_channel_open") == 2
    for audience in (one.channel("cars"), one.user("ana"), one.session("s1"), one.everyone):
        assert audience.send("one").reached == 1
        assert await audience.count() == 1
    assert one.connection(clients[1].id).send("one").reached == 0
    assert one.broadcast("cars", "one", to=clients[1].id).reached == 0
    assert clients[1].received() == []
    await one.stop()
    assert clients[0].closed is not None
    assert clients[1].closed is None
    assert two.channels() == {"cars": 1}
    await two.stop()


async def test_a_connection_or_audience_of_another_hub_is_refused():
    one, two = Hub(), Hub()
    for hub in (one, two):
        hub.add("/ws/{channel}", Room)
    async with one.test_client("/ws/cars") as ws:
        for other in (ws.connection, one.user("ana"), one.everyone, [one.channel("cars")]):
            for argument in ("to", "exclude"):
                with pytest.raises(ValueError, match="another hub"):
                    two.broadcast("cars", "hi", **{argument: other})
        assert ws.received() == []
    await one.stop()


async def test_one_hub_in_two_event_loops_is_a_clear_error(hub):
    hub.add("/ws", Room)

    def elsewhere():
        async def connect():
            await hub.test_client("/ws").connect()

        with pytest.raises(RuntimeError, match="another event loop already; one Hub serves one"):
            asyncio.run(connect())

    async with hub.test_client("/ws") as ws:
        await asyncio.to_thread(elsewhere)
        assert ws.connection.is_open
        assert hub.everyone.send("hi").reached == 1


def test_a_hub_may_run_again_after_its_loop_is_closed(diary):
    hub = Hub()
    hub.add("/ws/{channel}", diary.listener())

    async def once():
        async with hub.test_client("/ws/cars", user="ana") as ws:
            assert hub.broadcast("cars", "hi").reached == 1
            assert ws.received() == ["hi"]
            return hub.node

    nodes = {asyncio.run(once()) for _ in range(3)}
    assert len(nodes) == 3
    assert diary.count_of("on_first_open") == diary.count_of("on_last_close") == 3
    assert hub.broadcast("cars", "hi").reached == 0


def test_a_loop_that_died_under_its_connections_leaves_no_ghosts():
    hub = Hub()
    hub.add("/ws/{channel}", Room)

    async def leave_open():
        await hub.test_client("/ws/cars", user="ana").connect()

    async def look():
        async with hub.test_client("/ws/boats"):
            return hub.channels(), await hub.everyone.count(), await hub.user("ana").count()

    asyncio.run(leave_open())
    assert asyncio.run(look()) == ({"boats": 1}, 1, 0)


# ── starting and stopping ─────────────────────────────────────────────────────────────────────


async def test_start_may_be_repeated(hub):
    await hub.start()
    node = hub.node
    await hub.start()
    assert hub.node == node
    assert hub.health.running


async def test_stop_closes_every_connection_and_runs_every_on_close(hub, diary, style):
    hub.add("/ws/{channel}", diary.listener(style))
    clients = [await hub.test_client(f"/ws/{n % 3}").connect() for n in range(9)]
    await hub.stop()
    assert {client.closed.code for client in clients} == {1001}
    assert diary.count_of("on_close") == 9
    assert diary.count_of("on_channel_open") == diary.count_of("on_channel_close") == 3
    assert diary.count_of("on_last_close") == 1
    assert hub.health.running is False
    assert (hub.health.connections, hub.channels()) == (0, {})
    await hub.stop()
    assert diary.count_of("on_close") == 9


async def test_stop_takes_a_code_and_a_reason(hub):
    hub.add("/ws", Room)
    ws = await hub.test_client("/ws").connect()
    with pytest.raises(ValueError, match="1006"):
        await hub.stop(1006)
    assert ws.connection.is_open
    await hub.stop(1012, "back soon")
    assert (ws.closed.code, ws.closed.reason) == (1012, "back soon")


async def test_stop_does_not_wait_for_ever_for_a_hanging_on_close(diary, caplog):
    hub = Hub(cancel_grace=0.05)

    async def hang(*_):
        await asyncio.Event().wait()

    hub.add("/ws", diary.listener("async def", on_close=hang))
    await hub.test_client("/ws").connect()
    await asyncio.wait_for(hub.stop(timeout=0.1), 2)
    assert any("did not end in time" in r.getMessage() for r in caplog.records)
    assert diary.count_of("on_close") == 1
    assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]


async def test_stop_inside_a_callback_ends_in_time(diary):
    hub = Hub(cancel_grace=0.1)
    stopped = asyncio.Event()

    async def stop(ws, message):
        try:
            await hub.stop(timeout=0.5)
        finally:
            stopped.set()

    hub.add("/ws/{channel}", diary.listener("async def", on_message=stop))
    clients = [await hub.test_client("/ws/cars").connect() for _ in range(3)]
    await clients[0].send("stop")
    await asyncio.wait_for(stopped.wait(), 2)
    for client in clients:
        await asyncio.wait_for(client.settled(), 2)
    assert diary.count_of("on_close") == 3
    assert {client.closed.code for client in clients} == {1001}


async def test_who_shakes_hands_while_the_hub_stops_is_refused(hub):
    began, go = asyncio.Event(), asyncio.Event()

    class Slow(Listener):
        async def on_handshake(self, request):
            began.set()
            await go.wait()

    hub.add("/ws", Slow)
    connecting = asyncio.create_task(hub.test_client("/ws").connect())
    await began.wait()
    await hub.stop()
    go.set()
    with pytest.raises(HandshakeRefused) as refused:
        await connecting
    assert refused.value.status == 503
    assert hub.health.connections == 0


async def test_who_comes_while_the_hub_stops_is_refused(hub):
    began, go = asyncio.Event(), asyncio.Event()

    class Slow(Listener):
        async def on_close(self, ws, reason):
            began.set()
            await go.wait()

    hub.add("/ws", Slow)
    await hub.test_client("/ws").connect()
    stopping = asyncio.create_task(hub.stop())
    await began.wait()
    with pytest.raises(HandshakeRefused) as refused:
        await hub.test_client("/ws").connect()
    assert refused.value.status == 503
    go.set()
    await stopping


async def test_a_stopped_hub_may_be_started_again(hub, diary):
    hub.add("/ws", diary.listener())
    await hub.test_client("/ws").connect()
    await hub.stop()
    await hub.start()
    async with hub.test_client("/ws") as ws:
        assert hub.everyone.send("hi").reached == 1
        assert ws.received() == ["hi"]
    assert diary.count_of("on_first_open") == diary.count_of("on_last_close") == 2


async def test_a_spawned_task_runs_until_the_hub_stops(hub, caplog):
    ended = []

    async def work(name):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def fail():
        raise ValueError("spawned and failed")

    await hub.start()
    task = hub.spawn(work("forever"))
    failing = hub.spawn(fail())
    with pytest.raises(ValueError, match="spawned"):
        await failing
    assert [r.getMessage() for r in caplog.records if "spawned and failed" in r.getMessage()]
    assert not task.done()
    await hub.stop()
    assert ended == ["forever"]
    assert task.cancelled()


async def test_spawn_outside_the_loop_says_so(hub):
    async def work():
        """Never begins."""

    with pytest.raises(RuntimeError, match="event loop"):
        hub.spawn(work())
    await hub.start()

    def elsewhere():
        with pytest.raises(RuntimeError, match="event loop"):
            hub.spawn(work())

    await asyncio.to_thread(elsewhere)


async def test_a_task_spawned_in_a_callback_outlives_its_connection(hub):
    go, done = asyncio.Event(), asyncio.Event()

    class Chat(Listener):
        def on_message(self, ws, message):
            hub.spawn(self.later(ws))

        async def later(self, ws):
            await go.wait()
            assert not ws.is_open
            done.set()

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as ws:
        await ws.send("x")
    go.set()
    await asyncio.wait_for(done.wait(), 2)


# ── users ─────────────────────────────────────────────────────────────────────────────────────


def presence(hub, style):
    told = []
    if style == "async def":

        @hub.on_user_online
        async def online(user):
            await asyncio.sleep(0)
            told.append(f"{user} online")

        @hub.on_user_offline
        async def offline(user):
            await asyncio.sleep(0)
            told.append(f"{user} offline")

    else:

        def online(user):
            told.append(f"{user} online")
            threads.append(threading.get_ident())

        def offline(user):
            told.append(f"{user} offline")

        mark = threaded if style == "threaded" else lambda function: function
        assert hub.on_user_online(mark(online)) is online
        hub.on_user_offline(mark(offline))
    threads = []
    return told, threads


async def test_a_user_is_online_from_the_first_device_to_the_last(hub, style):
    told, threads = presence(hub, style)
    hub.add("/a", Room)
    hub.add("/b", Room)
    async with hub.test_client("/a", user="ana"):
        assert told == ["ana online"]
        async with hub.test_client("/b", user="ana"), hub.test_client("/a", user="bob"):
            assert told == ["ana online", "bob online"]
        assert told == ["ana online", "bob online", "bob offline"]
    assert told == ["ana online", "bob online", "bob offline", "ana offline"]
    async with hub.test_client("/a"):
        pass
    assert len(told) == 4
    if style != "async def":
        assert all((ident == threading.get_ident()) == (style == "def") for ident in threads)


async def test_who_is_refused_never_was_online(hub, style):
    told, _ = presence(hub, style)

    class Closed(Listener):
        def on_open(self, ws):
            return Reject("no")

    class Guarded(Listener):
        def on_subscribe(self, ws, channel):
            return False

    hub.add("/a", Closed)
    hub.add("/b/{channel}", Guarded)
    await hub.test_client("/a", user="ana").connect()
    await hub.test_client("/b/cars", user="ana").connect()
    assert told == []


async def test_online_and_offline_balance_when_the_client_leaves_meanwhile(hub):
    told, began, go = [], asyncio.Event(), asyncio.Event()

    @hub.on_user_online
    async def online(user):
        began.set()
        await go.wait()
        told.append("online")

    @hub.on_user_offline
    def offline(user):
        told.append("offline")

    hub.add("/ws", Room)
    ws = await hub.test_client("/ws", user="ana").connect(wait=False)
    await began.wait()
    leaving = asyncio.create_task(ws.drop())
    for _ in range(10):
        await asyncio.sleep(0)
    go.set()
    await leaving
    assert told == ["online", "offline"]


async def test_a_user_who_comes_online_may_be_subscribed_and_waited_for(hub):
    """On all devices, also those that come meanwhile."""
    entered = []

    @hub.on_user_online
    async def online(user):
        await asyncio.sleep(0)
        entered.append((await hub.user(user).subscribe(f"inbox:{user}")).reached)

    hub.add("/ws", Room)
    one = await hub.test_client("/ws", user="ana").connect(wait=False)
    two = await hub.test_client("/ws", user="ana").connect(wait=False)
    await asyncio.wait_for(asyncio.gather(one.settled(), two.settled()), 5)
    assert entered in ([1], [2])
    assert hub.channels() == {"inbox:ana": entered[0]}
    await one.close()
    await two.close()


async def test_who_listens_late_for_users_hears_of_those_that_come_then(hub):
    hub.add("/ws", Room)
    early = await hub.test_client("/ws", user="ana").connect()
    told, _ = presence(hub, "def")
    late = await hub.test_client("/ws", user="ana").connect()
    await early.close()
    assert told == ["ana online"]
    await late.close()
    assert told == ["ana online", "ana offline"]


async def test_a_user_callback_that_raises_is_logged_and_keeps_nobody_away(hub, caplog):
    @hub.on_user_online
    def online(user):
        raise ValueError("boom")

    hub.on_user_offline(functools.partial(lambda word, user: 1 / 0, "x"))
    hub.add("/ws", Room)
    async with hub.test_client("/ws", user="ana") as ws:
        assert ws.connection.is_open
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert "ValueError" in errors[0]
    assert "ZeroDivisionError" in errors[1]


# ── nothing stays behind ──────────────────────────────────────────────────────────────────────


class Failing(Listener):
    """Fails in all the ways there are, by the number in the URL."""

    opened = 0
    closed = 0

    def on_first_open(self, hub):
        pass

    def on_open(self, ws):
        Failing.opened += 1
        number = ws.params["number"]
        ws.state.junk = "x" * 100
        if number == 1:
            raise ValueError
        if number == 2:
            return Reject("no")
        return None

    async def on_subscribe(self, ws, channel):
        if ws.params["number"] == 3:
            return False
        if ws.params["number"] == 4:
            raise ValueError
        return None

    async def on_message(self, ws, message):
        if ws.params["number"] == 5:
            raise ValueError
        if ws.params["number"] == 6:
            ws.close(4100)
        if ws.params["number"] == 7:
            ws.spawn(asyncio.Event().wait())
            await asyncio.Event().wait()
        await ws.subscribe(f"more {message}")

    def on_close(self, ws, reason):
        Failing.closed += 1
        if ws.params["number"] == 8:
            raise ValueError


async def _one_after_the_other(hub, count):
    for number in range(count):
        kind = number % 10
        client = await hub.test_client(f"/ws/{kind}/{number % 7}", user=f"u{number % 11}").connect()
        if client.closed is None:
            await client.send(str(number))
            if kind == 9:
                await client.drop()
        await client.close()


async def test_ten_thousand_connects_and_disconnects_leave_nothing_behind(caplog):
    hub = Hub()
    hub.on_user_online(lambda user: None)
    hub.on_user_offline(lambda user: None)
    hub.add("/ws/{number:int}/{room}", Failing, channel="room:{room}")
    caplog.set_level(logging.CRITICAL + 1, logger="backchannel")
    Failing.opened = Failing.closed = 0
    await _one_after_the_other(hub, 500)  # what is made once is made
    gc.collect()
    objects, tasks = len(gc.get_objects()), len(asyncio.all_tasks())
    await _one_after_the_other(hub, 8_000)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    await _one_after_the_other(hub, 1_500)  # tracing is slow
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert Failing.opened == Failing.closed == 10_000
    assert len(asyncio.all_tasks()) == tasks
    assert hub.channels() == {}
    assert await hub.everyone.count() == 0
    assert hub.health.connections == hub.health.channels == 0
    assert len(hub.dispatches) == 0
    assert len(hub.membership._channels) == 0
    assert hub.presence._users == {}
    assert len(gc.get_objects()) - objects < 500
    assert after - before < 100_000
    assert hub.health.problems == ()
    await hub.stop()


async def test_an_idle_connection_has_no_task(hub, diary):
    hub.add("/ws/{channel}", diary.listener("async def"))
    clients = [await hub.test_client("/ws/cars").connect() for _ in range(10)]
    assert asyncio.all_tasks() == {asyncio.current_task()}
    for client in clients:
        await client.close()


async def test_a_crowd_that_comes_and_goes_at_once_balances(hub, diary):
    hub.add("/ws/{channel}", diary.listener("async def"))

    async def visit(number):
        client = await hub.test_client(f"/ws/{number % 4}").connect(wait=number % 2 == 0)
        if number % 3:
            await client.drop()
        else:
            await client.close()
            with pytest.raises(ConnectionClosed):
                await client.send("too late")

    await asyncio.gather(*(visit(number) for number in range(200)))
    assert diary.count_of("on_open") == diary.count_of("on_close")
    assert diary.count_of("on_first_open") == diary.count_of("on_last_close")
    assert diary.count_of("on_channel_open") == diary.count_of("on_channel_close")
    assert hub.channels() == {}


async def test_one_receivers_failure_never_affects_another(hub, room):
    class Broken:
        closed = None
        apart = True

        def push(self, frame, channel=None):
            return False

        def close(self, code, reason):
            """Its client is gone."""

    room["ana1"].connection._link = Broken()
    assert hub.broadcast("cars", "hi").reached == 2
    assert heard(room) == to_all("bob anonymous")


async def test_a_future_of_another_thread_is_no_deadlock_for_the_loop(hub, room):
    """Many threads wait for results while the loop goes on."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        loop = asyncio.get_running_loop()
        work = [
            loop.run_in_executor(pool, lambda: hub.broadcast("cars", "x").result(5).reached)
            for _ in range(64)
        ]
        assert await asyncio.gather(*work) == [3] * 64
