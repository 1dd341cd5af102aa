"""Who signs out on one node while a handshake is under way on another does not come in after all."""

from __future__ import annotations

import asyncio

import pytest

from backchannel import AsyncPublisher, Hub, Listener

NAME = "farewells"


class WebSession(dict):
    session_key = "s1"


class Waiting:
    """An authenticate that waits until it is let go on."""

    def __init__(self):
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, request):
        self.asked.set()
        await self.go_on.wait()
        return request.query.get("user")


@pytest.fixture
def waiting():
    return Waiting()


@pytest.fixture
async def hubs(redis_server, waiting):
    """Two nodes; handshakes of the first one wait."""
    both = []
    for authenticate in (waiting, lambda request: request.query.get("user")):
        hub = Hub(broker=redis_server.url, name=NAME, authenticate=authenticate)
        hub.add("/ws/{channel}", Listener)
        both.append(hub)
        await hub.start()
    yield both
    for hub in both:
        await hub.stop()


async def come_in(hub, waiting, closing):
    client = hub.test_client("/ws/cars?user=ana", session=WebSession())
    coming = asyncio.create_task(client.connect())
    await waiting.asked.wait()
    await closing()
    waiting.go_on.set()
    await coming
    return client


AUDIENCES = {
    "user": lambda owner: owner.user("ana"),
    "session": lambda owner: owner.session("s1"),
}


@pytest.mark.parametrize("of", AUDIENCES.values(), ids=AUDIENCES)
async def test_who_is_closed_elsewhere_during_the_handshake_is_closed_here(hubs, waiting, of):
    here, there = hubs
    client = await come_in(here, waiting, lambda: of(there).close(4004, "signed out"))
    assert (client.closed.code, client.closed.reason) == (4004, "signed out")
    assert client.received() == []
    assert await there.user("ana").count() == 0


@pytest.mark.parametrize("of", AUDIENCES.values(), ids=AUDIENCES)
async def test_so_it_is_where_nobody_waits_for_the_closing(hubs, waiting, of):
    here, there = hubs

    async def close():
        of(there).close(4004, "signed out")
        await there.channel("boats").send("what is said after it has been said")

    assert (await come_in(here, waiting, close)).closed.code == 4004


@pytest.mark.parametrize("of", AUDIENCES.values(), ids=AUDIENCES)
async def test_a_publisher_signs_out_whoever_is_on_the_way_in(hubs, waiting, redis_server, of):
    async with AsyncPublisher(redis_server.url, NAME) as publisher:
        client = await come_in(hubs[0], waiting, lambda: of(publisher).close(4004))
        assert client.closed.code == 4004


async def test_another_device_elsewhere_is_counted_once(hubs, waiting, redis_server):
    here, there = hubs
    async with there.test_client("/ws/cars?user=ana") as device:
        closed = []

        async def close():
            closed.append(await there.user("ana").close(4004))

        client = await come_in(here, waiting, close)
        assert client.closed.code == 4004
        assert (closed[0].reached, device.closed.code) == (1, 4004)
    async with (
        AsyncPublisher(redis_server.url, NAME) as publisher,
        there.test_client("/ws/cars?user=ana"),
    ):
        assert (await publisher.user("ana").close(4004)).reached == 1


async def test_others_come_in(hubs, waiting):
    here, there = hubs

    async def close():
        await there.user("bob").close(4004)
        await there.session("s2").close(4004)
        await there.channel("cars").close(4004)

    client = await come_in(here, waiting, close)
    assert client.closed is None
    await client.close()
    assert not here.farewells._coming


async def test_who_comes_back_after_the_sign_out_comes_in(hubs, waiting):
    here, there = hubs
    waiting.go_on.set()
    async with here.test_client("/ws/boats?user=bob"):
        await there.user("ana").close(4004)
        await there.everyone.send("so that it has been heard")
        async with here.test_client("/ws/cars?user=ana") as client:
            assert client.closed is None
            assert (await there.user("ana").send("hello")).reached == 1
