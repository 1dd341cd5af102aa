"""Sessions of v1 clients on several nodes: resumed on another one, with a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from shared import until
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


async def until_ready(hub):
    """Wait until the engine is back and has all sessions."""
    async with asyncio.timeout(10):
        while not hub.health.ready or hub.resumes._todo:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await hub.resumes.finish(5)


async def kept(hub):
    """Wait until the engine has all that is to be kept of sessions."""
    await until(lambda: hub.resumes._writing is None)


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


async def test_sessions_of_those_who_stayed_can_be_resumed_though_the_engine_lost_all(
    hubs, redis_server
):
    one, other = hubs
    async with Speaker(one, "/plain") as ana:
        await one.resumes.finish(5)
        redis_server.stop()
        async with asyncio.timeout(10):
            while any(hub.health.ready for hub in hubs):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        redis_server.start()
        for hub in hubs:
            await until_ready(hub)
        await ana.drop()
        async with back(other, ana, url="/plain") as again:
            assert again.greeting["resumed"] is True


async def test_what_another_node_still_does_is_not_done_again(redis_server):
    done, begun, go_on = [], asyncio.Event(), asyncio.Event()

    class Slow(Room):
        @event("slow")
        async def slow(self, ws):
            begun.set()
            await go_on.wait()
            ws.state.name = "Ana"
            done.append(ws.id)

    both = [
        Hub(broker=redis_server.url, name="slow", broker_timeout=2.0, cancel_on_close=False)
        for _ in range(2)
    ]
    for hub in both:
        hub.add("/ws", Slow)
        await hub.start()
    async with Speaker(both[0], "/ws") as ana:
        await ana.say("message", id=1, data={"type": "slow"})
        await begun.wait()
        again = Speaker(both[1], "/ws", hello=None)
        await again.client.connect()
        await again.say("hello", resume=ana.greeting["resume"])
        async with asyncio.timeout(5):
            while ana.ws.reason is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        go_on.set()
        assert (await again.hear("hello"))["resumed"] is True
        await again.say("message", id=1, again=True, data={"type": "slow"})
        await hear(again, "ack", id=1)
        await again.say("call", id=2, event="whoami")
        assert (await hear(again, "reply"))["data"]["name"] == "Ana"
        assert len(done) == 1
        await again.client.close()
    for hub in both:
        await hub.stop()


@pytest.fixture
async def quick_hubs(redis_server, cable):
    """Two nodes, the first by way of the cable; and the nodes that did something."""
    done = []

    class Quick(Room):
        @event("quick")
        def quick(self, ws):
            done.append(ws.hub.node)

    urls = cable.url, redis_server.url
    both = [Hub(broker=url, name="quick", broker_timeout=2.0) for url in urls]
    for hub in both:
        hub.add("/ws", Quick)
        await hub.start()
    yield *both, done
    for hub in both:
        await hub.stop()


async def test_what_was_done_is_not_done_again_though_the_last_word_of_it_is_under_way(
    quick_hubs, cable
):
    one, other, done = quick_hubs
    for number in range(1, 6):
        async with Speaker(one, "/ws") as ana:
            await kept(one)
            cable.delay = number / 10  # 0.5 s are a lot, and less than the nodes' patience
            await ana.say("message", id=1, data={"type": "quick"})
            await hear(ana, "ack", id=1)
            await ana.drop()
            began = time.monotonic()
            async with back(other, ana, url="/ws") as again:
                assert time.monotonic() - began < 1.9  # it did not wait in vain
                assert again.greeting["resumed"] is True
                await again.say("message", id=1, again=True, data={"type": "quick"})
                await hear(again, "ack", id=1)
            cable.delay = 0.0
        assert done == [one.node] * number


async def test_what_is_done_between_the_taking_of_a_session_and_the_question_is_not_done_again(
    quick_hubs,
):
    one, other, done = quick_hubs
    taken, go_on = asyncio.Event(), asyncio.Event()
    take = other.resumes.take

    async def take_slowly(*asked):
        found = await take(*asked)
        taken.set()
        await go_on.wait()  # the way to the engine is slow just now
        return found

    other.resumes.take = take_slowly
    async with Speaker(one, "/ws") as ana:
        again = Speaker(other, "/ws", hello=None)
        await again.client.connect()
        await again.say("hello", resume=ana.greeting["resume"])
        await taken.wait()
        await ana.say("message", id=1, data={"type": "quick"})
        await hear(ana, "ack", id=1)
        await ana.drop()
        await kept(one)
        go_on.set()
        assert (await again.hear("hello"))["resumed"] is True
        await again.say("message", id=1, again=True, data={"type": "quick"})
        await hear(again, "ack", id=1)
        await again.client.close()
    assert done == [one.node]


async def test_the_last_word_of_an_earlier_connection_is_not_newer_than_what_is_kept_since(
    quick_hubs, cable
):
    """It is asked still; the one after it was at a node that is gone, and can't be."""
    gone, first, done = quick_hubs
    async with Speaker(first, "/ws") as ana:
        await kept(first)
        await ana.drop()
        async with back(gone, ana, url="/ws") as second:
            await second.say("message", id=1, data={"type": "quick"})
            await hear(second, "ack", id=1)
            await kept(gone)
            cable.cut()
            await until(lambda: not gone.health.ready)
            async with back(first, second, url="/ws") as third:
                assert third.greeting["resumed"] is True
                await third.say("message", id=1, again=True, data={"type": "quick"})
                await hear(third, "ack", id=1)
    assert done == [gone.node]


async def test_a_session_goes_on_after_the_engine_came_back_with_an_older_one(
    quick_hubs, redis_server
):
    """Its last connection has closed, and is of a later turn than what the engine knows."""
    one, other, _ = quick_hubs
    async with Speaker(one, "/ws") as ana:
        await kept(one)
        with redis_server.client as engine:
            older = {key: engine.dump(key) for key in engine.scan_iter("*{r:*")}
            assert older
        async with back(one, ana, url="/ws") as second, back(one, second, url="/ws") as third:
            await third.drop()
        await kept(one)
        with redis_server.client as engine:
            for key, data in older.items():
                engine.restore(key, 60_000, data, replace=True)
        async with back(other, ana, url="/ws") as again:
            assert again.greeting["resumed"] is True


async def test_of_two_that_resume_at_once_on_two_nodes_one_has_the_session(hubs):
    one, _ = hubs
    async with Speaker(one, "/plain") as ana:
        await ana.drop()
    for n in range(1, 11):
        both = [Speaker(hub, "/plain", hello=None) for hub in hubs]
        for each in both:
            await each.client.connect()
        await asyncio.gather(*[each.say("hello", resume=ana.greeting["resume"]) for each in both])
        left = []
        for each in both:
            with contextlib.suppress(ConnectionClosed):
                each.greeting = await each.hear("hello")
                await each.say("ping")
                await hear(each, "pong")
        for each in both:  # which of them has been told to go by then
            with contextlib.suppress(ConnectionClosed):
                await each.say("call", id=n, event="whoami")
                await hear(each, "reply")
                left.append(each)
        ids = [each.greeting["connection"] for each in left]
        assert len(set(ids)) == len(ids)
        (ana,) = [each for each in left if each.greeting["resumed"]]
        for each in both:
            await each.drop()


@pytest.mark.parametrize("is_older", [False, True])
async def test_a_hello_that_was_held_up_takes_nothing_from_the_one_after_it(
    quick_hubs, redis_server, is_older
):
    """Its node was stopped, say; also where the engine knows nothing of the later one any more."""
    late, one, done = quick_hubs
    async with Speaker(one, "/ws") as ana:
        await kept(one)
        token = ana.greeting["resume"]
        with redis_server.client as engine:
            kept_first = {key: engine.dump(key) for key in engine.scan_iter("*{r:*")}
        await ana.drop()
    async with Speaker(one, "/ws", hello={"id": 2, "resume": token}) as again:
        assert again.greeting["resumed"] is True
        await kept(one)
        if is_older:
            with redis_server.client as engine:
                for key, data in kept_first.items():
                    engine.restore(key, 60_000, data, replace=True)
        held_up = Speaker(late, "/ws", hello=None)
        await held_up.client.connect()
        await held_up.say("hello", id=1, resume=token)
        if is_older:
            with pytest.raises(ConnectionClosed, match="4005"):
                await held_up.hear("hello")
        else:
            assert (await held_up.hear("hello"))["resumed"] is False
            await held_up.client.close()
        await again.say("message", id=3, data={"type": "quick"})
        await hear(again, "ack", id=3)
        await again.drop()
    async with Speaker(late, "/ws", hello={"id": 4, "resume": again.greeting["resume"]}) as last:
        assert last.greeting["resumed"] is True
        assert last.greeting["connection"] == ana.greeting["connection"]
        await last.say("message", id=3, again=True, data={"type": "quick"})
        await hear(last, "ack", id=3)
    assert done == [one.node]


async def test_hellos_that_count_go_on_after_the_engine_came_back_with_an_older_one(
    quick_hubs, redis_server
):
    """Each is later than the one before, whatever the engine knows of that."""
    one, other, _ = quick_hubs
    async with Speaker(one, "/ws") as ana:
        token = ana.greeting["resume"]
        await kept(one)
        with redis_server.client as engine:
            older = {key: engine.dump(key) for key in engine.scan_iter("*{r:*")}
        async with (
            Speaker(one, "/ws", hello={"id": 5, "resume": token}) as second,
            Speaker(one, "/ws", hello={"id": 6, "resume": token}) as third,
        ):
            assert third.greeting["resumed"] is True
            await kept(one)
            with redis_server.client as engine:
                for key, data in older.items():
                    engine.restore(key, 60_000, data, replace=True)
            async with Speaker(other, "/ws", hello={"id": 7, "resume": token}) as again:
                assert again.greeting["resumed"] is True
                assert again.greeting["connection"] == ana.greeting["connection"]
                assert [each.client.closed.code for each in (second, third)] == [4005, 4005]


async def test_a_state_from_before_the_engine_lost_its_data_lets_in(new_redis_server):
    """It has the position that was stored with it, of a history that is gone."""
    engine = new_redis_server()
    engine.start()
    hub = new_hub(engine.url)
    stored = []
    hub.rule(
        "doc:{id}", history=50, subscribe=lambda ws: True, snapshot=lambda ws: ("state", *stored)
    )
    await hub.start()
    stored.append(str((await hub.broadcast("doc:1", "in the state")).position))
    engine.stop()
    await until(lambda: not hub.health.ready)
    engine.start()
    await until_ready(hub)
    later = await hub.broadcast("doc:1", "later")
    assert str(later.position).partition(".")[0] != stored[0].partition(".")[0]
    async with Speaker(hub, "/plain") as ana:
        await ana.say("subscribe", id=1, channel="doc:1")
        assert (await ana.hear("snapshot"))["data"] == "state"
        assert (await ana.hear("publication"))["data"] == "later"
        assert (await ana.hear("subscribed"))["position"] == str(later.position)
    await hub.stop()


async def test_a_channel_whose_history_can_not_be_read_just_now_is_not_lost(redis_server):
    hub = new_hub(redis_server.url)
    goes = []

    def admits(ws):
        if goes:
            goes.pop()()
        return True

    hub.rule("asked:{name}", history=5, subscribe=admits)
    await hub.start()
    async with Speaker(hub, "/plain") as ana:
        await ana.say("subscribe", id=1, channel="asked:a")
        await hear(ana, "subscribed", channel="asked:a")
        goes.append(redis_server.stop)
        await ana.say("subscribe", id=2, channel="asked:b")
        assert (await hear(ana, "error", id=2))["code"] == "unavailable"
        redis_server.start()
        await until_ready(hub)
        await ana.drop()
        goes.append(redis_server.stop)
        async with back(hub, ana, url="/plain") as again:
            with pytest.raises(ConnectionClosed, match="1013"):
                await hear(again, "never")
        redis_server.start()
        await until_ready(hub)
        async with back(hub, ana, url="/plain") as again:
            assert again.greeting["resumed"] is True
            assert again.greeting["channels"] == ["asked:a"]
            await hear(again, "subscribed", channel="asked:a")
    await hub.stop()


async def test_a_node_that_stops_leaves_its_last_word_about_sessions(hubs, redis_server):
    one, other = hubs
    async with Speaker(one, "/plain") as ana:
        await one.resumes.finish(5)
        with redis_server.client as client:
            client.client_pause(500, all=True)
        for n, name in enumerate(("first", "last"), 1):  # the second waits for the first
            await ana.say("message", id=n, data={"type": "name", "name": name})
            await hear(ana, "ack", id=n)
        await one.stop()
        async with back(other, ana, url="/plain") as again:
            await again.say("call", id=3, event="whoami")
            assert (await hear(again, "reply"))["data"]["name"] == "last"
