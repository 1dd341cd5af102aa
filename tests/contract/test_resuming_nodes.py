"""Sessions of v1 clients on several nodes: resumed on another one, with a real engine."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from speaking import Speaker

from backchannel import Hub, Listener, event
from backchannel.errors import ConnectionClosed


class Room(Listener):
    durable = ("name",)

    @event("name")
    def name(self, ws, message: dict):
        ws.state.name = message["name"]

    @event("whoami")
    def whoami(self, ws):
        return {"id": ws.id, "name": ws.state.get("name"), "resumed": ws.resumed}


def new_hub(url, **settings):
    hub = Hub(broker=url, name="resuming", broker_timeout=2.0, presence_moment=0.2, **settings)
    hub.add("/ws/{channel}", Room)
    hub.add("/plain", Room)
    hub.rule(
        "{name}", history=50, presence=True, subscribe=lambda ws: True, publish=lambda ws: True
    )
    return hub


@pytest.fixture
async def hubs(redis_server):
    """Two nodes of one hub."""
    both = [new_hub(redis_server.url) for _ in range(2)]
    for hub in both:
        await hub.start()
    yield both
    for hub in both:
        await hub.stop()


async def hear(speaker, kind, **wanted):
    """Return the next frame of a type, whatever else comes before it."""
    async with asyncio.timeout(5):
        while True:
            found = await speaker.hear()
            if found["type"] == kind and wanted.items() <= found.items():
                return found


@contextlib.asynccontextmanager
async def back(hub, speaker, positions=None, url="/ws/a", **named):
    hello = {"resume": speaker.greeting["resume"], "positions": positions or {}}
    async with Speaker(hub, url, hello=hello, **named) as again:
        yield again


async def test_a_session_goes_on_at_another_node(hubs):
    one, other = hubs
    async with Speaker(one, "/ws/a", user="ana") as ana:
        await hear(ana, "subscribed", channel="a")
        await ana.say("message", id=1, data={"type": "name", "name": "Ana"})
        await ana.say("subscribe", id=2, channel="b")
        there = (await hear(ana, "subscribed", channel="b"))["position"]
        await ana.say("publish", id=3, channel="a", data="mine")
        mine = (await hear(ana, "publication"))["position"]
        await hear(ana, "ack", id=3)
        await ana.drop()
        await other.broadcast("a", "while away")
        await one.broadcast("b", "there too")
        async with back(other, ana, {"a": mine, "b": there}, user="ana") as again:
            assert again.greeting["resumed"] is True
            assert again.greeting["connection"] == ana.greeting["connection"]
            for channel, data in (("a", "while away"), ("b", "there too")):
                assert (await hear(again, "publication", channel=channel))["data"] == data
                await hear(again, "subscribed", channel=channel)
            await again.say("publish", id=3, again=True, channel="a", data="mine")
            await again.say("call", id=4, event="whoami")
            reply = await hear(again, "reply")
            assert reply["data"] == {
                "id": ana.greeting["connection"], "name": "Ana", "resumed": True,
            }  # fmt: skip
            sent = await one.connection(ana.greeting["connection"]).send("found you")
            assert sent.reached == 1
            assert (await hear(again, "message"))["data"] == "found you"
            mine_only = await one.broadcast("b", "whisper", to=ana.greeting["connection"])
            got = await hear(again, "publication")
            assert (got["data"], got["position"]) == ("whisper", str(mine_only.position))
    kept = [entry.message for entry in await one.channel("a").history()]
    assert kept == ["mine", "while away"]


async def test_the_socket_at_the_first_node_ends_when_the_second_has_the_session(hubs):
    one, other = hubs
    async with Speaker(one, "/ws/a", user="ana") as ana:
        await hear(ana, "subscribed")
        async with back(other, ana, user="ana") as again:
            await hear(again, "subscribed")
            assert again.greeting["resumed"] is True
            assert ana.client.closed.code == 4005
            assert await one.everyone.count() == 1
            assert await one.channel("a").users() == ["ana"]
            # And back again.
            async with back(one, again, user="ana") as third:
                await hear(third, "subscribed")
                assert third.greeting["resumed"] is True
                with pytest.raises(ConnectionClosed, match="4005"):
                    await hear(again, "never")


async def test_nobody_has_left_who_came_back_at_another_node(hubs):
    one, other = hubs
    seen = []
    one.on_leave(lambda channel, user: seen.append(user))
    other.on_leave(lambda channel, user: seen.append(user))
    async with Speaker(other, "/ws/a", user="bob") as bob:
        await hear(bob, "join", user="bob")
        async with Speaker(one, "/ws/a", user="ana") as ana:
            await hear(bob, "join", user="ana")
            await ana.drop()
            async with back(other, ana, user="ana") as again:
                await hear(again, "subscribed")
                await asyncio.sleep(0.5)  # more than the moment that one may be away
                assert seen == []
                await again.say("presence", id=1, channel="a")
                users = (await hear(again, "presence"))["users"]
                assert sorted(each["user"] for each in users) == ["ana", "bob"]
        await hear(bob, "leave", user="ana")


async def test_a_publish_whose_node_died_before_it_was_known_appears_once(hubs):
    """The engine has it; the node's last word about the session does not say so."""
    one, other = hubs
    async with Speaker(one, "/ws/a") as ana:
        await hear(ana, "subscribed")
        await ana.say("publish", id=1, channel="a", data="once")
        first = await hear(ana, "ack")
        ana.ws.talk.pending.add(1)
        await ana.drop()
        for n in range(3):
            await other.broadcast("a", n)
        async with back(other, ana) as again:
            await hear(again, "subscribed")
            await again.say("publish", id=1, again=True, channel="a", data="once")
            assert await hear(again, "ack") == first
    assert [each.message for each in await one.channel("a").history()] == ["once", "0", "1", "2"]


async def test_a_message_that_may_have_been_published_says_so(hubs):
    """So much came since that nobody can know any more."""
    one, other = hubs
    one.rule("short", history=2, publish=lambda ws: True)
    other.rule("short", history=2, publish=lambda ws: True)
    async with Speaker(one, "/ws/a") as ana:
        await hear(ana, "subscribed")
        await ana.say("publish", id=1, channel="short", data="once")
        await hear(ana, "ack")
        ana.ws.talk.pending.add(1)
        await ana.drop()
        for n in range(4):
            await other.broadcast("short", n)
        async with back(other, ana) as again:
            await hear(again, "subscribed")
            await again.say("publish", id=1, again=True, channel="short", data="once")
            assert (await hear(again, "error", id=1))["code"] == "unsure"


async def test_while_the_engine_is_away_who_comes_back_is_told_to_come_later(hubs, redis_server):
    one, _ = hubs
    async with Speaker(one, "/ws/a") as ana:
        await hear(ana, "subscribed")
        await ana.drop()
        redis_server.stop()
        again = Speaker(one, "/ws/a", hello={"resume": ana.greeting["resume"]})
        with pytest.raises(ConnectionClosed, match="1013"):
            await again.__aenter__()
        redis_server.start()


@contextlib.asynccontextmanager
async def looked_up_slowly(hub, speaker, server):
    """Come back at a time when the engine takes commands and does not do them, until the end."""
    again = Speaker(hub, "/ws/a", hello=None)
    await again.client.connect()
    with server.client as client:
        client.client_pause(60_000, all=False)
        try:
            await again.say("hello", resume=speaker.greeting["resume"])
            async with asyncio.timeout(5):
                # Nothing tells when the engine has the command.
                while not any("b" in each["flags"] for each in client.client_list()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            yield again
        finally:
            client.client_unpause()


async def test_who_goes_again_while_its_session_is_looked_up_can_still_come_back(
    hubs, redis_server
):
    one, other = hubs
    async with Speaker(one, "/ws/a") as ana:
        await hear(ana, "subscribed")
        await ana.drop()
        async with looked_up_slowly(other, ana, redis_server) as hasty:
            await hasty.drop()
        async with back(other, ana) as again:
            assert again.greeting["resumed"] is True
            assert again.greeting["connection"] == ana.greeting["connection"]


async def test_a_session_that_the_engine_gave_away_too_late_is_not_lost(hubs, redis_server):
    one, other = hubs
    async with Speaker(one, "/ws/a") as ana:
        await hear(ana, "subscribed")
        await ana.drop()
        async with looked_up_slowly(other, ana, redis_server) as early:
            with pytest.raises(ConnectionClosed, match="1013"):  # after its broker_timeout, 2 s
                await early.client.receive(timeout=5)
        async with back(other, ana) as again:
            assert again.greeting["resumed"] is True


async def test_a_session_begun_while_the_engine_is_away_can_be_resumed_once_it_is_back(
    hubs, redis_server
):
    one, other = hubs
    redis_server.stop()
    async with Speaker(one, "/plain") as ana:
        redis_server.start()
        async with asyncio.timeout(10):
            while not one.health.ready or one.resumes._todo:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await ana.drop()
        async with back(other, ana, url="/plain") as again:
            assert again.greeting["resumed"] is True
