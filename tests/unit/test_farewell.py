"""Who signs out while a handshake is under way does not come in after all."""

from __future__ import annotations

import asyncio

import pytest

from backchannel import Hub, Listener
from backchannel.errors import HandshakeRefused


class Waiting:
    """An authenticate that waits until it is let go on."""

    def __init__(self):
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, request):
        self.asked.set()
        await self.go_on.wait()
        return request.query.get("user")


class WebSession(dict):
    session_key = "s1"


@pytest.fixture
def waiting():
    return Waiting()


@pytest.fixture
def hub(waiting):
    hub = Hub(authenticate=waiting)

    @hub.endpoint("/ws/{channel}")
    class Room(Listener):
        def on_open(self, ws):
            ws.send("welcome")

    return hub


async def come_in(hub, waiting, meanwhile, **options):
    client = hub.test_client("/ws/cars?user=ana", **options)
    coming = asyncio.create_task(client.connect())
    await waiting.asked.wait()
    meanwhile()
    waiting.go_on.set()
    await coming
    return client


@pytest.mark.parametrize(
    "close",
    [
        lambda hub: hub.user("ana").close(4004, "signed out"),
        lambda hub: hub.session("s1").close(4004, "signed out"),
        lambda hub: hub.everyone.close(4004, "signed out"),
    ],
    ids=["user", "session", "everyone"],
)
async def test_who_signs_out_during_the_handshake_is_closed_as_if_in(hub, waiting, close):
    client = await come_in(hub, waiting, lambda: close(hub), session=WebSession())
    assert (client.closed.code, client.closed.reason) == (4004, "signed out")
    assert client.received() == []
    assert await hub.user("ana").count() == 0


@pytest.mark.parametrize(
    "close",
    [
        lambda hub: hub.user("bob").close(4004),
        lambda hub: hub.session("s2").close(4004),
        lambda hub: hub.channel("cars").close(4004),
    ],
    ids=["another user", "another session", "a channel"],
)
async def test_others_come_in(hub, waiting, close):
    client = await come_in(hub, waiting, lambda: close(hub), session=WebSession())
    assert client.closed is None
    assert client.received() == ["welcome"]
    await client.close()


async def test_a_sign_out_of_before_the_handshake_is_nothing_to_it(hub, waiting):
    waiting.go_on.set()
    async with hub.test_client("/ws/cars?user=bob"):
        hub.user("ana").close(4004, "signed out")
        async with hub.test_client("/ws/cars?user=ana") as client:
            assert client.closed is None


async def test_nothing_is_kept_once_nobody_is_on_the_way_in(hub, waiting):
    client = await come_in(hub, waiting, lambda: hub.user("bob").close(4004))
    assert not hub.farewells._recent
    assert not hub.farewells._coming
    await client.close()
    refused = Hub(require_user=True)
    refused.add("/ws", Listener)
    with pytest.raises(HandshakeRefused):
        await refused.test_client("/ws").connect()
    assert not refused.farewells._coming


async def test_who_signs_out_while_on_open_waits_is_closed():
    hub = Hub()
    opening, go_on = asyncio.Event(), asyncio.Event()

    @hub.endpoint("/ws")
    class Slow(Listener):
        async def on_open(self, ws):
            opening.set()
            await go_on.wait()

    client = hub.test_client("/ws", user="ana")
    coming = asyncio.create_task(client.connect())
    await opening.wait()
    hub.user("ana").close(4004, "signed out")
    go_on.set()
    await coming
    assert client.closed.code == 4004
