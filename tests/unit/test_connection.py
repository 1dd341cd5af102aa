"""`ws` as callbacks see it: who it is, its state, and what can be done with it."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from datetime import UTC, datetime, timedelta

import pytest
from shared import lines_of

from backchannel import CloseReason, Connection, Listener, UnsendableMessage, threaded
from backchannel.testing import ConnectionClosed


class Room(Listener):
    """Does nothing."""


# ── who it is ─────────────────────────────────────────────────────────────────────────────────


async def test_a_connection_knows_its_handshake(hub):
    hub.add("/ws/{channel}/{number:int}", Room)
    async with hub.test_client(
        "/ws/cars/7?a=1&a=2&empty=",
        user="ana",
        headers={"X-Device": "phone"},
        cookies={"theme": "dark"},
        session={"cart": [1]},
    ) as client:
        ws = client.connection
        assert isinstance(ws, Connection)
        assert ws.params == {"channel": "cars", "number": 7}
        assert (ws.query["a"], ws.query.getlist("a"), ws.query["empty"]) == ("1", ["1", "2"], "")
        assert ws.headers["x-device"] == ws.headers["X-DEVICE"] == "phone"
        assert ws.cookies["theme"] == "dark"
        assert dict(ws.session) == {"cart": [1]}
        assert ws.client == ("127.0.0.1", 50000)
        assert ws.user == ws.identity == "ana"
        assert ws.endpoint == "/ws/{channel}/{number:int}"
        assert ws.channel == "cars"
        assert ws.channels == {"cars"}
        assert ws.hub is hub
        assert ws.app is None
        assert ws.latency is None
        assert ws.subprotocol is None
        assert ws.is_open
        assert ws.opened_at.tzinfo is not None
        assert abs(datetime.now(UTC) - ws.opened_at) < timedelta(seconds=60)
        assert ws.id == client.id
        assert ws.id in repr(ws)


async def test_an_anonymous_connection_has_no_user(hub):
    hub.add("/ws", Room)
    async with hub.test_client("/ws") as client:
        assert client.connection.user is None
        assert client.connection.identity is None


async def test_ids_are_unique_text(hub):
    hub.add("/ws", Room)
    ids = set()
    for _ in range(50):
        async with hub.test_client("/ws") as client:
            assert isinstance(client.id, str)
            ids.add(client.id)
    assert len(ids) == 50


@pytest.mark.parametrize("name", ["params", "query", "headers", "cookies", "session"])
async def test_what_came_with_the_handshake_is_read_only(hub, name):
    hub.add("/ws/{channel}", Room)
    async with hub.test_client("/ws/cars?a=1", session={"a": 1}) as client:
        facts = getattr(client.connection, name)
        with pytest.raises(TypeError):
            facts["a"] = "2"
        with pytest.raises(AttributeError):
            setattr(client.connection, name, {})


async def test_channels_can_not_be_changed_by_hand(hub):
    hub.add("/ws/{channel}", Room)
    async with hub.test_client("/ws/cars") as client:
        assert isinstance(client.connection.channels, frozenset)
        with pytest.raises(AttributeError):
            client.connection.channels = {"boats"}


async def test_state_is_the_same_as_items_and_as_attributes(hub):
    hub.add("/ws", Room)
    async with hub.test_client("/ws") as client, hub.test_client("/ws") as other:
        state = client.connection.state
        state["x"] = 1
        state.y = [2]
        assert (state.x, state["y"], len(state), dict(state)) == (1, [2], 2, {"x": 1, "y": [2]})
        assert "x" in state
        assert state.get("z") is None
        del state.x
        del state["y"]
        assert not state
        with pytest.raises(AttributeError, match="state has no 'z'"):
            state.z  # noqa: B018
        with pytest.raises(KeyError):
            state["z"]
        assert getattr(state, "z", "default") == "default"
        assert len(other.connection.state) == 0


async def test_meta_is_shown_in_info(hub):
    class Chat(Listener):
        def on_open(self, ws):
            ws.meta["name"] = ws.query["name"]

    hub.add("/ws/{channel}", Chat)
    async with hub.test_client("/ws/cars?name=Ana"), hub.test_client("/ws/cars?name=Bob"):
        infos = await hub.channel("cars").connections()
        assert [info.meta["name"] for info in infos] == ["Ana", "Bob"]


async def test_the_chosen_subprotocol_is_the_clients_first_that_is_spoken(hub):
    hub.add("/ws", Room, subprotocols=["chat.v1", "chat.v2"])
    for offered, chosen in ((["x", "chat.v2", "chat.v1"], "chat.v2"), (["x"], None), ([], None)):
        async with hub.test_client("/ws", subprotocols=offered) as client:
            assert client.connection.subprotocol == chosen


async def test_a_shared_listener_refuses_attributes(hub):
    class Chat(Listener):
        def on_open(self, ws):
            self.last = ws

    hub.add("/ws", Chat)
    client = await hub.test_client("/ws").connect()
    assert client.closed.code == 1011


# ── sending ───────────────────────────────────────────────────────────────────────────────────


async def test_send_reaches_this_client_alone(hub):
    hub.add("/ws/{channel}", Room)
    async with hub.test_client("/ws/cars") as one, hub.test_client("/ws/cars") as two:
        assert one.connection.send("hi").reached == 1
        assert (one.received(), two.received()) == (["hi"], [])


async def test_sending_after_the_end_raises_nothing_and_says_not_delivered(hub, style):
    answers = []

    class Chat(Listener):
        def on_close(self, ws, reason):
            answers.append(ws.send("too late").reached)

    hub.add("/ws/{channel}", Chat)
    async with hub.test_client("/ws/cars") as client:
        pass
    ws = client.connection
    assert answers == [0]
    assert ws.send("x").reached == 0
    assert (await ws.send("x")).reached == 0
    assert ws.broadcast("x").reached == 0
    assert ws.close().reached == 0
    assert await asyncio.to_thread(lambda: ws.send("x").result(1).reached) == 0
    with pytest.raises(UnsendableMessage):
        ws.send(math.nan)


async def test_broadcast_is_to_the_endpoints_own_channel_sender_included(hub):
    hub.add("/ws/{channel}", Room)
    async with (
        hub.test_client("/ws/cars") as one,
        hub.test_client("/ws/cars") as two,
        hub.test_client("/ws/boats") as three,
    ):
        ws = one.connection
        assert ws.broadcast("all").reached == 2
        assert ws.broadcast("others", exclude=ws).reached == 1
        assert ws.broadcast("whisper", to=two.id).reached == 1
        assert ws.broadcast("there", channel="boats").reached == 1
        assert ws.broadcast("not in it", channel="boats", to=two.id).reached == 0
        assert one.received() == ["all"]
        assert two.received() == ["all", "others", "whisper"]
        assert three.received() == ["there"]


async def test_broadcast_without_a_channel_anywhere_raises(hub):
    hub.add("/ws", Room)
    async with hub.test_client("/ws") as client:
        with pytest.raises(LookupError, match=r"/ws has no \{channel\}"):
            client.connection.broadcast("x")
        await client.connection.subscribe("cars")
        assert client.connection.broadcast("x", channel="cars").reached == 1


async def test_the_own_channel_may_be_named_by_a_pattern(hub):
    hub.add("/support/{room:int}", Room, channel="support:{room}")
    async with hub.test_client("/support/7") as client:
        assert client.connection.channels == {"support:7"}
        assert client.connection.broadcast("x").reached == 1
        assert hub.broadcast("support:7", "x").reached == 1


async def test_a_message_changed_after_the_call_is_sent_as_it_was(hub):
    hub.add("/ws", Room)
    async with hub.test_client("/ws") as client:
        message, data = {"a": 1}, bytearray(b"one")
        client.connection.send(message)
        client.connection.send(data)
        message["a"] = 2
        data[:] = b"two"
        assert [json.loads(client.received()[0])] == [{"a": 1}]


# ── closing ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1011, 1014, 3000, 4100, 4999])
async def test_close_takes_the_codes_that_can_be_sent(hub, code):
    hub.add("/ws", Room)
    client = await hub.test_client("/ws").connect()
    assert client.connection.close(code, "why").reached == 1
    assert (client.closed.code, client.closed.reason) == (code, "why")
    assert client.connection.reason == CloseReason(code, "why", "server")


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, -1])
async def test_close_refuses_other_codes_and_nothing_is_closed(hub, code):
    hub.add("/ws", Room)
    async with hub.test_client("/ws") as client:
        with pytest.raises(ValueError, match=f"close code {code}"):
            client.connection.close(code)
        assert client.connection.is_open


async def test_a_reason_has_at_most_123_bytes(hub):
    hub.add("/ws", Room)
    async with hub.test_client("/ws") as client:
        for reason in ("x" * 124, "ä" * 62):
            with pytest.raises(ValueError, match="124 bytes"):
                client.connection.close(1000, reason)
        with pytest.raises(ValueError, match="UTF-8"):
            client.connection.close(1000, "\ud800")
        for wrong in ("1000", 1000.0, True, None):
            with pytest.raises(TypeError):
                client.connection.close(wrong)
        assert client.connection.is_open
        client.connection.close(1000, "ä" * 61 + "x")
        assert client.closed.reason == "ä" * 61 + "x"


async def test_what_was_sent_before_the_close_arrives_and_the_first_close_counts(hub):
    class Chat(Listener):
        def on_message(self, ws, message):
            ws.send("last words")
            ws.close(4100, "first")
            ws.close(4200, "second")
            ws.send("too late")

    hub.add("/ws", Chat)
    client = await hub.test_client("/ws").connect()
    await client.send("x")
    assert await client.receive() == "last words"
    with pytest.raises(ConnectionClosed) as closed:
        await client.receive()
    assert (closed.value.code, closed.value.reason) == (4100, "first")


async def test_a_close_of_a_client_that_closes_too_is_the_servers(hub):
    reasons = []

    class Chat(Listener):
        def on_close(self, ws, reason):
            reasons.append(reason)

    hub.add("/ws", Chat)
    client = await hub.test_client("/ws").connect()
    client.connection.close(4100, "ours")
    await client.close(1000, "theirs")
    assert reasons == [CloseReason(4100, "ours", "server")]


# ── spawn ─────────────────────────────────────────────────────────────────────────────────────


async def test_spawned_work_runs_beside_the_messages(hub):
    class Chat(Listener):
        async def on_message(self, ws, message):
            if message == "stream":
                ws.spawn(self.stream(ws))
                return "started"
            self_gate.set()
            return "answered"

        async def stream(self, ws):
            await self_gate.wait()
            ws.send("streamed")

    self_gate = asyncio.Event()
    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as client:
        await client.send("stream")
        await client.send("other")
        assert [await client.receive() for _ in range(3)] == ["started", "answered", "streamed"]


async def test_what_is_no_coroutine_is_not_spawned(hub, caplog):
    async def work():
        """Be called first."""

    hub.add("/ws", lambda ws, message: ws.spawn(work if message == "work" else 5))
    async with hub.test_client("/ws") as client:
        await client.send("work")
        await client.send("5")
        await client.settled()
    first, second = lines_of(caplog)
    assert "TypeError: spawn() takes a coroutine, not <function" in first
    assert "call it, as in spawn(self.tick())" in first
    assert "TypeError: spawn() takes a coroutine, not 5 [" in second


async def test_spawned_work_is_cancelled_at_the_end(hub):
    ended, started = asyncio.Event(), asyncio.Event()

    class Chat(Listener):
        def on_open(self, ws):
            ws.state.task = ws.spawn(self.work())

        async def work(self):
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as client:
        await started.wait()
    await asyncio.wait_for(ended.wait(), 2)
    assert client.connection.state.task.cancelled()


async def test_spawned_work_that_closes_its_connection_is_not_cut_off(hub):
    done = asyncio.Event()

    class Chat(Listener):
        def on_open(self, ws):
            ws.spawn(self.work(ws))

        async def work(self, ws):
            ws.close(4100)
            await asyncio.sleep(0)
            done.set()

    hub.add("/ws", Chat)
    client = await hub.test_client("/ws").connect()
    await asyncio.wait_for(done.wait(), 2)
    await client.settled()
    assert client.closed.code == 4100


async def test_what_spawned_work_raises_is_logged_and_the_connection_kept(hub, caplog):
    async def fail():
        raise ValueError("spawned and failed")

    hub.add("/ws", Room)
    async with hub.test_client("/ws") as client:
        task = client.connection.spawn(fail())
        with pytest.raises(ValueError, match="spawned"):
            await task
        await asyncio.sleep(0)
        assert client.connection.is_open
        (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
        assert client.id in line
        assert "spawned and failed" in line


async def test_work_spawned_after_the_end_never_goes_far(hub):
    ran = []

    async def work():
        ran.append(1)

    hub.add("/ws", Room)
    async with hub.test_client("/ws") as client:
        pass
    task = client.connection.spawn(work())
    await asyncio.wait({task})
    assert task.cancelled()
    assert ran == []


async def test_spawn_in_a_threaded_callback_says_so(hub):
    async def work():
        """Never begins."""

    class Chat(Listener):
        @threaded
        def on_message(self, ws, message):
            try:
                ws.spawn(work())
            except RuntimeError as error:
                return str(error)

    hub.add("/ws", Chat)
    async with hub.test_client("/ws") as client:
        await client.send("x")
        assert "event loop" in await client.receive()


# ── logging ───────────────────────────────────────────────────────────────────────────────────


async def test_contents_of_messages_are_logged_at_debug_level_only(hub, caplog):
    hub.add("/ws/{channel}", lambda ws, message: ws.broadcast({"text": "secret two"}) and "secret")
    for level, shown in ((logging.INFO, False), (logging.DEBUG, True)):
        caplog.clear()
        caplog.set_level(level, logger="backchannel")
        async with hub.test_client("/ws/cars") as client:
            await client.send("secret one")
            hub.broadcast("cars", "secret three")
        assert ("secret" in caplog.text) is shown


async def test_at_debug_level_each_event_is_one_line_with_the_connection(hub, caplog):
    caplog.set_level(logging.DEBUG, logger="backchannel")
    hub.add("/ws/{channel}", lambda ws, message: "multi\nline")
    async with hub.test_client("/ws/cars") as client:
        await client.send("multi\nline")
    lines = [r.getMessage() for r in caplog.records if r.name == "backchannel.connection"]
    mine = [line for line in lines if client.id in line]
    assert len(mine) >= 4  # open, entered, received, send, ended
    assert not any("\n" in line for line in lines)
