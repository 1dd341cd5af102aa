"""The hub: endpoints, several hubs and event loops, starting and stopping."""

from __future__ import annotations

import asyncio
import threading

import pytest
from shared import Room, WebSession

from backchannel import (
    Hub,
    Listener,
    ListenerError,
    TemplateError,
    threaded,
)
from backchannel.testing import HandshakeRefused

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
