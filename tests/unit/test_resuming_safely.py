"""Resuming gives nobody what a new connection would not get; docs/protocol.md, "Resume"."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest
from shared import turns
from speaking import Speaker

from backchannel import Hub, Listener, Reject, event


def back(hub, speaker, url, positions=None, **named):
    """Come back with a speaker's token."""
    hello = {"resume": speaker.greeting["resume"], "positions": positions or {}}
    return Speaker(hub, url, hello=hello, **named)


@pytest.mark.parametrize("asked", ["on_handshake", "on_open"])
async def test_a_session_goes_on_at_its_own_url_only(asked):
    """Else who may not come to one room any more would get into it by the door of another."""
    members = {"secret": {"ana"}, "lobby": {"ana"}}

    class Room(Listener):
        def on_handshake(self, request):
            if asked == "on_handshake" and request.user not in members[request.params["channel"]]:
                raise Reject(403, "members only")

        def on_open(self, ws):
            if asked == "on_open" and ws.user not in members[ws.params["channel"]]:
                raise Reject("members only")

    hub = Hub()
    hub.add("/ws/{channel}", Room)
    async with Speaker(hub, "/ws/secret", user="ana") as ana:
        await ana.heard()
        await ana.drop()
        members["secret"].clear()
        async with back(hub, ana, "/ws/lobby", user="ana") as again:
            assert again.greeting["resumed"] is False
            assert again.greeting["channels"] == ["lobby"]
            await hub.broadcast("secret", "not for ana")
            assert await again.heard() == [{"type": "subscribed", "channel": "lobby"}]


async def test_authenticate_is_asked_when_a_session_is_resumed():
    users = {"1": "ana"}
    hub = Hub(authenticate=lambda request: users.get(request.query["key"]) or Reject(401, "who?"))
    hub.add("/ws/{channel}", Listener)
    async with Speaker(hub, "/ws/a?key=1") as ana:
        await ana.heard()
        await ana.drop()
        users["1"] = "bob"
        async with back(hub, ana, "/ws/a?key=1") as again:
            assert (again.greeting["resumed"], again.greeting["user"]) == (False, "bob")
            await again.drop()
        users["2"] = "ana"  # the query is no part of where a session is
        async with back(hub, ana, "/ws/a?key=2") as again:
            assert (again.greeting["resumed"], again.greeting["user"]) == (True, "ana")


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("how", ["def", "async def", "not awaited"])
async def test_what_on_open_gave_comes_back_only_if_on_open_gives_it_again(how, kept):
    admins = {"ana"}
    hub = Hub()

    class Desk(Listener):
        if how == "async def":

            async def on_open(self, ws):
                if ws.user in admins:
                    await ws.subscribe("admins")
        elif how == "def":

            def on_open(self, ws):
                if ws.user in admins:
                    ws.subscribe("admins")
        else:

            async def on_open(self, ws):
                if ws.user in admins:
                    ws.subscribe("admins")
                await asyncio.sleep(0)

        async def on_subscribe(self, ws, channel):
            await asyncio.sleep(0)

    hub.add("/ws", Desk)
    if kept:
        hub.rule("admins", history=10)
    async with Speaker(hub, "/ws", user="ana") as ana:
        at = next(one for one in await ana.heard() if one["type"] == "subscribed").get("position")
        await hub.user("ana").subscribe("invited")
        await ana.heard()
        await ana.drop()
        positions = {"admins": at} if kept else {}
        await hub.broadcast("admins", 1)
        async with back(hub, ana, "/ws", positions, user="ana") as again:
            assert again.greeting["resumed"] is True
            assert again.greeting["channels"] == ["admins", "invited"]
            told = [(one["type"], one.get("channel")) for one in await again.heard()]
            missed = "publication" if kept else "lost"
            assert sorted(told) == sorted(
                [(missed, "admins"), ("subscribed", "admins"), ("lost", "invited"),
                 ("subscribed", "invited")]
            )  # fmt: skip
            await again.drop()
        admins.clear()
        async with back(hub, again, "/ws", positions, user="ana") as third:
            assert third.greeting["resumed"] is True
            told = [(one["type"], one.get("channel")) for one in await third.heard()]
            assert ("unsubscribed", "admins") in told
            assert third.ws.channels == {"invited"}
            await hub.broadcast("admins", 2)
            assert await third.heard() == []


async def test_who_is_lost_before_on_open_is_asked_again_is_still_asked_the_next_time():
    gate, waits = asyncio.Event(), asyncio.Event()
    admins = {"ana"}

    class Desk(Listener):
        async def on_open(self, ws):
            if ws.resumed:
                waits.set()
                await gate.wait()
            if ws.user in admins:
                await ws.subscribe("admins")

    hub = Hub()
    hub.add("/ws", Desk)
    async with Speaker(hub, "/ws", user="ana") as ana:
        await ana.heard()
        await ana.drop()
        second = back(hub, ana, "/ws", user="ana")
        connecting = asyncio.create_task(second.__aenter__())
        await waits.wait()
        await second.drop()
        connecting.cancel()
        admins.clear()
        gate.set()
        async with back(hub, ana, "/ws", user="ana") as third:
            assert third.greeting["resumed"] is True
            await third.heard()
            assert third.ws.channels == frozenset()


async def test_nothing_is_taken_between_the_two_hellos():
    """What was done before is known only then: it would be done once more."""
    done = []

    class Shop(Listener):
        @event("order")
        def order(self, ws):
            done.append("order")

    hub = Hub()
    hub.add("/ws", Shop)
    async with Speaker(hub, "/ws") as ana:
        await ana.say("message", id=1, data={"type": "order"})
        await ana.hear("ack")
        await ana.drop()
        again = Speaker(hub, "/ws", hello=None)
        async with again:
            order = {"id": 1, "data": {"type": "order"}, "again": True}
            await asyncio.gather(
                again.say("hello", resume=ana.greeting["resume"]), again.say("message", **order)
            )
            assert (await again.hear("hello"))["resumed"] is True
            error = await again.hear("error")
            assert (error["code"], error["id"]) == ("out_of_order", 1)
            assert "hello" in error["text"]
            await again.say("message", **order)
            assert await again.hear() == {"type": "ack", "id": 1}
    assert done == ["order"]


@pytest.mark.parametrize("resumes", [True, False])
async def test_positions_of_channels_that_it_is_not_in_are_not_kept(resumes):
    hub = Hub()
    hub.add("/ws/{channel}", Listener)
    hub.rule("{name}", history=5, subscribe=lambda ws: True)
    positions = {f"channel {n}": f"epoch{n}.{n}" for n in range(5000)}
    async with Speaker(hub, "/ws/a") as ana:
        at = (await ana.hear("subscribed"))["position"]
        await ana.drop()
        await hub.broadcast("a", 1)
        hello = {"positions": {**positions, "a": at}}
        if resumes:
            hello["resume"] = ana.greeting["resume"]
        async with Speaker(hub, "/ws/a", hello=hello) as again:
            assert [one["type"] for one in await again.heard()] == ["publication", "subscribed"]
            assert again.ws.talk.positions == {}


@pytest.mark.parametrize("text", ["{epoch}.99", "other.1", "nonsense", "e" * 5000 + ".1", ""])
async def test_positions_in_hello_that_cannot_be_are_lost(text):
    hub = Hub()
    hub.add("/ws/{channel}", Listener)
    hub.rule("{name}", history=5)
    async with Speaker(hub, "/ws/a") as ana:
        at = (await ana.hear("subscribed"))["position"]
        await ana.drop()
        positions = {"a": text.format(epoch=at.partition(".")[0])}
        async with back(hub, ana, "/ws/a", positions) as again:
            told = [(one["type"], one["position"]) for one in await again.heard()]
            assert told == [("lost", at), ("subscribed", at)]


@pytest.mark.parametrize("how", ["resume", "renew"])
async def test_no_token_stands_in_the_log(caplog, how):
    caplog.set_level(logging.DEBUG)
    token = "OPAQUE-s3cret-token-123456"

    class Room(Listener):
        def on_renew(self, ws, token):
            return ws.user

    hub = Hub()
    hub.add("/ws", Room)
    async with Speaker(hub, "/ws", user="ana") as ana:
        if how == "renew":
            await ana.say("renew", id=1, token=token)
            await ana.hear("renewed")
        else:
            token = ana.greeting["resume"]
            await ana.drop()
            async with back(hub, ana, "/ws", user="ana") as again:
                assert again.greeting["resumed"]
    assert token not in caplog.text


async def test_who_is_lost_while_it_enters_with_history_enters_nothing(caplog):
    """What is acknowledged is not cut short by that, and goes on entering."""
    gates = [asyncio.Event(), asyncio.Event()]
    asked = []

    async def rule(ws):
        asked.append(ws)
        if len(asked) > 1:
            gates[1].set()
            await gates[0].wait()
        return True

    class Room(Listener):
        @event("enter")
        async def enter(self, ws):
            return {"in": await ws.subscribe("kept:a")}

        async def on_subscribe(self, ws, channel):
            await ws.hub.channel("kept:b").recheck()  # so that the rule is asked again

    hub = Hub()
    hub.add("/ws", Room)
    hub.rule("kept:{name}", history=5, subscribe=rule)
    async with Speaker(hub, "/ws") as ana:
        await ana.say("message", id=1, data={"type": "enter"})
        await gates[1].wait()
        dropping = asyncio.create_task(ana.drop())
        await turns()
        gates[0].set()
        await dropping
    assert hub.channels() == {}
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []
    assert hub.health.problems == ()


async def test_what_the_listener_gave_while_much_is_still_being_sent_is_no_gift_of_on_open():
    """A client that has much to read is in, and what a message makes of it comes back."""

    class Room(Listener):
        @event("join")
        def join(self, ws):
            ws.subscribe("later")

    hub = Hub()
    hub.add("/ws/{channel}", Room)
    hub.rule("room", history=200, replay=200)
    await hub.start()
    for number in range(200):
        await hub.broadcast("room", f"{number} " + "x" * 1000)
    async with Speaker(hub, "/ws/room", hello=None) as ana:
        await asyncio.gather(ana.say("hello"), ana.say("message", data={"type": "join"}))
        ana.greeting = await ana.hear("hello")
        await ana.heard()
        assert ana.ws.channels == {"room", "later"}
        await ana.drop()
        async with back(hub, ana, "/ws/room") as again:
            assert again.greeting["channels"] == ["room", "later"]
            await again.heard()
            assert again.ws.channels == {"room", "later"}


async def test_that_many_close_while_sessions_are_written_costs_each_the_same():
    looks = 0
    hub, many, go = Hub(), 200, asyncio.Event()
    hub.add("/ws", Listener)
    async with contextlib.AsyncExitStack() as stack:
        all_ = [await stack.enter_async_context(Speaker(hub, "/ws")) for _ in range(many)]
        await hub.resumes.finish(5)
        put = hub.resumes._store.put

        async def put_slowly(*records, **named):
            await go.wait()
            await put(*records, **named)

        let_go = hub.resumes._let_go

        def look():
            nonlocal looks
            looks += len(hub.resumes._closed)
            let_go()

        hub.resumes._store.put, hub.resumes._let_go = put_slowly, look
        await asyncio.gather(*[one.drop() for one in all_])
        assert looks <= many
        go.set()
        await hub.resumes.finish(5)
    assert hub.resumes._staying == {}
