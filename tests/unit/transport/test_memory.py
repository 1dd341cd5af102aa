"""The test client: it does what a real client would, and shows what came back."""

from __future__ import annotations

import asyncio

import pytest

from backchannel import Hub, Listener
from backchannel.testing import ConnectionClosed, HandshakeRefused, MemoryClient


def echo(ws, message):
    return message


@pytest.fixture
async def hub():
    hub = Hub(max_message=64)
    hub.add("/echo", echo)
    yield hub
    await hub.stop()


async def test_the_block_begins_when_the_client_is_admitted_and_ends_when_it_is_gone(hub):
    order = []

    class Chat(Listener):
        async def on_open(self, ws):
            await asyncio.sleep(0)
            order.append("open")

        async def on_close(self, ws, reason):
            await asyncio.sleep(0)
            order.append(f"close {reason.code} {reason.by}")

    hub.add("/ws/{channel}", Chat)
    async with hub.test_client("/ws/cars") as client:
        assert isinstance(client, MemoryClient)
        assert order == ["open"]
        assert hub.channels() == {"cars": 1}
    assert order == ["open", "close 1000 client"]
    assert hub.channels() == {}


async def test_an_error_in_the_block_still_closes(hub):
    with pytest.raises(LookupError):
        async with hub.test_client("/echo") as client:
            raise LookupError
    assert client.closed.code == 1000
    assert hub.health.connections == 0


async def test_messages_keep_their_kind(hub):
    async with hub.test_client("/echo") as client:
        for message, back in (("text", "text"), (b"bytes", b"bytes"), ({"a": 1}, '{"a":1}')):
            await client.send(message)
            assert await client.receive() == back
        await client.send([1, None])
        assert await client.receive_json() == [1, None]


async def test_receive_gives_up_in_time(hub):
    async with hub.test_client("/echo") as client:
        with pytest.raises(TimeoutError):
            await client.receive(timeout=0.001)
        await client.send("still there")
        assert await client.receive() == "still there"


async def test_received_is_what_came_and_was_not_read(hub):
    async with hub.test_client("/echo") as client:
        assert client.received() == []
        for number in range(3):
            await client.send(str(number))
        assert await client.receive() == "0"
        assert client.received() == ["1", "2"]
        assert client.received() == []


async def test_after_the_end_what_was_sent_before_can_be_read(hub):
    async with hub.test_client("/echo") as client:
        await client.send("one")
        await client.send("two")
        client.connection.close(4100, "done")
        assert await client.receive() == "one"
        assert client.received() == ["two"]
        for _ in range(2):
            with pytest.raises(ConnectionClosed) as closed:
                await client.receive()
            assert (closed.value.code, closed.value.reason) == (4100, "done")
        with pytest.raises(ConnectionClosed, match="4100 done"):
            await client.send("three")


async def test_iterating_ends_with_the_connection(hub):
    async with hub.test_client("/echo") as client:
        for number in range(3):
            await client.send(str(number))
        client.connection.close()
        assert [frame async for frame in client] == ["0", "1", "2"]


async def test_a_waiting_receive_hears_of_the_end(hub):
    async with hub.test_client("/echo") as client:
        waiting = asyncio.create_task(client.receive(5))
        await asyncio.sleep(0)
        client.connection.close(4100)
        with pytest.raises(ConnectionClosed):
            await waiting


@pytest.mark.parametrize(
    ("message", "size"), [("x" * 65, 65), (b"x" * 65, 65), ("ä" * 33, 66), ({"k": "x" * 60}, 68)]
)
async def test_a_message_over_the_limit_closes_with_1009(hub, message, size):
    async with hub.test_client("/echo") as client:
        await client.send(message)
        assert client.closed.code == 1009
        assert client.closed.reason == f"message of {size} bytes is over the limit of 64"
        assert client.received() == []


@pytest.mark.parametrize("message", ["x" * 64, b"x" * 64, "ä" * 32])
async def test_a_message_at_the_limit_is_let_through(hub, message):
    async with hub.test_client("/echo") as client:
        await client.send(message)
        assert await client.receive() == message


async def test_close_and_drop_wait_for_on_close(hub):
    reasons = []

    class Chat(Listener):
        async def on_close(self, ws, reason):
            await asyncio.sleep(0)
            reasons.append((reason.code, reason.text, reason.by))

    hub.add("/ws", Chat)
    closing = await hub.test_client("/ws").connect()
    await closing.close(3001, "bye")
    await closing.close(3002, "again")
    assert reasons == [(3001, "bye", "client")]
    dropping = await hub.test_client("/ws").connect()
    await dropping.drop()
    await dropping.close()
    assert reasons[1:] == [(1006, "connection lost", "network")]


async def test_a_client_can_not_close_with_what_no_client_could_send(hub):
    async with hub.test_client("/echo") as client:
        with pytest.raises(ValueError, match="1006"):
            await client.close(1006)
        assert client.closed is None


async def test_connect_may_return_before_on_open_has_run(hub):
    order = []

    class Chat(Listener):
        async def on_open(self, ws):
            order.append("open")

    hub.add("/ws", Chat)
    client = await hub.test_client("/ws").connect(wait=False)
    assert order == []
    await client.settled()
    assert order == ["open"]
    await client.close()


async def test_who_is_not_connected_is_told_so(hub):
    client = hub.test_client("/echo")
    with pytest.raises(RuntimeError, match="async with"):
        await client.send("x")
    with pytest.raises(RuntimeError, match="async with"):
        client.id  # noqa: B018
    assert client.closed is None
    with pytest.raises(HandshakeRefused):
        async with hub.test_client("/nowhere"):
            pass


async def test_the_path_may_be_encoded(hub):
    hub.add("/ws/{channel}", echo)
    async with hub.test_client("/ws/caf%C3%A9%20%2F%20bar?q=%C3%A4") as client:
        assert client.connection.channels == {"café / bar"}
        assert client.connection.query["q"] == "ä"


async def test_it_admits_whom_the_test_names_without_asking_authenticate():
    def authenticate(request):
        asked.append(1)

    asked = []
    hub = Hub(authenticate=authenticate)
    hub.add("/echo", echo)
    async with hub.test_client("/echo", user="ana") as client:
        assert client.connection.user == "ana"
    assert asked == []
    async with hub.test_client("/echo") as client:
        assert client.connection.user is None
    assert asked == [1]
    await hub.stop()


async def test_two_clients_of_one_test_have_each_their_own_identity(hub):
    async with hub.test_client("/echo") as one, hub.test_client("/echo") as two:
        assert one.id != two.id
        await one.send("one")
        await two.send("two")
        assert (one.received(), two.received()) == (["one"], ["two"])
