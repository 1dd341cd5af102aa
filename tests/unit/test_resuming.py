"""Sessions of v1 clients that outlive their socket; docs/protocol.md, "Resume"."""

from __future__ import annotations

import asyncio
import contextlib
import json

import msgspec
import pytest
from speaking import Speaker

from backchannel import Hub, Listener, Reject, event
from backchannel.connection import CloseReason


class Typed(msgspec.Struct):
    age: int


class Room(Listener):
    durable = ("name", "cart")

    def on_open(self, ws):
        ws.send({"resumed": ws.resumed, "name": ws.state.get("name"), "other": "other" in ws.state})

    @event("name")
    def name(self, ws, message: dict):
        ws.state.name = message["name"]
        ws.state["other"] = 1

    @event("count")
    def count(self, ws):
        ws.hub.counted = getattr(ws.hub, "counted", 0) + 1


def new_hub(listener=Room, **settings):
    hub = Hub(**settings)
    hub.add("/ws/{channel}", listener)
    hub.add("/plain", listener)
    hub.rule("{name}", history=20, subscribe=lambda ws: True, publish=lambda ws: True)
    return hub


@contextlib.asynccontextmanager
async def back(hub, speaker, url="/ws/a", positions=None, token=None, **named):
    """Come back with a speaker's token."""
    token = token or speaker.greeting["resume"]
    async with Speaker(
        hub, url, hello={"resume": token, "positions": positions or {}}, **named
    ) as again:
        yield again


async def test_a_client_that_comes_back_is_who_it_was_and_where_it_was():
    hub = new_hub()
    async with Speaker(hub, "/ws/a", user="ana") as ana:
        await ana.hear("message")
        at = (await ana.hear("subscribed"))["position"]
        await ana.say("message", id=1, data={"type": "name", "name": "Ana"})
        await ana.hear("ack")
        await ana.say("subscribe", id=2, channel="b")
        there = (await ana.hear("subscribed"))["position"]
        await ana.drop()
        for n in range(3):
            await hub.broadcast("a", n)
            await hub.broadcast("b", n)
        async with back(hub, ana, user="ana", positions={"a": at, "b": there}) as again:
            assert again.greeting["resumed"] is True
            assert again.greeting["connection"] == ana.greeting["connection"]
            assert again.greeting["channels"] == ["a", "b"]
            assert again.greeting["resume"] != ana.greeting["resume"]
            told = [await again.hear() for _ in range(9)]
    assert told[0]["data"] == {"resumed": True, "name": "Ana", "other": False}
    for channel, some in (("a", told[1:5]), ("b", told[5:])):
        assert [one["channel"] for one in some] == [channel] * 4
        assert [one["type"] for one in some] == ["publication"] * 3 + ["subscribed"]
        assert [one["data"] for one in some[:3]] == [0, 1, 2]
        assert some[3]["position"] == some[2]["position"]


async def test_what_is_addressed_to_the_connection_reaches_it_after_it_came_back():
    hub = new_hub()
    async with Speaker(hub, "/ws/a") as ana:
        await ana.drop()
        async with back(hub, ana) as again:
            await again.heard()
            assert (await hub.connection(ana.greeting["connection"]).send("you")).reached == 1
            assert (await again.hear("message"))["data"] == "you"


@pytest.mark.parametrize(
    "how", ["forged", "other user", "other endpoint", "used", "expired", "off"]
)
async def test_a_token_that_is_not_good_begins_a_new_session(how):
    hub = new_hub(resume_window=0.01 if how == "expired" else None if how == "off" else 120)
    async with Speaker(hub, "/ws/a", user="ana") as ana:
        await ana.heard()
        if how == "off":
            assert ana.greeting["resume"] is None
        token = "x" * 32 if how in {"forged", "off"} else ana.greeting["resume"]
        await ana.drop()
    user = "eve" if how == "other user" else "ana"
    url = "/plain" if how == "other endpoint" else "/ws/a"
    if how == "expired":
        await asyncio.sleep(0.05)  # time is the subject
    if how == "used":
        async with back(hub, ana, user="ana") as second:
            assert second.greeting["resumed"] is True
            await second.say("ping")  # the newer one has arrived
            await second.heard()
            await second.drop()
    async with back(hub, ana, url, user=user, token=token) as again:
        assert again.greeting["resumed"] is False
        assert again.greeting["connection"] != ana.greeting["connection"]
    if how in {"other user", "other endpoint"}:  # and it is still worth something to whose it is
        async with back(hub, ana, user="ana") as again:
            assert again.greeting["resumed"] is True


async def test_a_token_stays_good_until_the_next_one_has_arrived():
    """The answer to a hello may be lost with the network that just came back."""
    hub = new_hub()
    async with Speaker(hub, "/ws/a") as ana:
        await ana.drop()
        async with back(hub, ana) as second:
            await second.heard()
            await second.drop()  # without a word: it may not have got the new one
        async with back(hub, ana) as third:
            assert third.greeting["resumed"] is True
            assert third.greeting["connection"] == ana.greeting["connection"]
        async with back(hub, second) as late:
            assert late.greeting["resumed"] is False


async def test_of_two_at_once_the_later_one_has_the_session():
    hub = new_hub()
    async with Speaker(hub, "/ws/a") as ana:
        await ana.drop()
    token = ana.greeting["resume"]
    both = [Speaker(hub, "/ws/a", hello=None) for _ in range(2)]
    for each in both:
        await each.client.connect()
    await asyncio.gather(*[each.say("hello", resume=token) for each in both])
    second = await both[1].hear("hello")
    assert second["connection"] == ana.greeting["connection"]
    await both[1].heard()
    assert both[0].client.closed.code == 4005
    assert await hub.everyone.count() == 1
    await both[1].client.close()


async def test_a_hello_that_was_held_up_takes_nothing_from_the_one_after_it():
    """As one in a socket that its client has given up on, until a server came to read it."""
    hub = new_hub()
    async with Speaker(hub, "/ws/a") as ana:
        await ana.drop()
    token = ana.greeting["resume"]
    async with Speaker(hub, "/ws/a", hello={"id": 2, "resume": token}) as again:
        assert again.greeting["resumed"] is True
        async with Speaker(hub, "/ws/a", hello={"id": 1, "resume": token}) as late:
            assert late.greeting["resumed"] is False
            assert late.greeting["connection"] != ana.greeting["connection"]
        await again.heard()
        assert again.client.closed is None
        await again.drop()
    # Nor is the token worth less for it: what the server said of the newer one may be lost.
    async with Speaker(hub, "/ws/a", hello={"id": 3, "resume": token}) as third:
        assert third.greeting["resumed"] is True
        assert third.greeting["connection"] == ana.greeting["connection"]


@pytest.mark.parametrize("id_", [0, -1, 2**53, 1.5, "1", None])
async def test_a_hello_counts_as_other_frames_do(id_):
    hub = new_hub()
    async with Speaker(hub, "/ws/a", hello=None) as ana:
        await ana.client.send(json.dumps({"type": "hello", "id": id_}))
        await ana.client.settled()
        assert ana.client.closed.code == 1008


async def test_resuming_ends_the_socket_that_is_still_open():
    closed = []

    class Noted(Room):
        def on_open(self, ws):
            closed.append(("open", ws.resumed))

        def on_close(self, ws, reason):
            closed.append(("close", reason.code))

    hub = new_hub(Noted)
    async with Speaker(hub, "/ws/a") as ana, back(hub, ana) as again:
        assert again.greeting["resumed"] is True
        assert ana.client.closed.code == 4005
        assert closed == [("open", False), ("close", 4005), ("open", True)]
        assert await hub.everyone.count() == 1


async def test_who_goes_again_while_the_socket_that_is_still_open_ends_can_still_come_back():
    ending, let_go = asyncio.Event(), asyncio.Event()

    class Slow(Room):
        async def on_close(self, ws, reason):
            if not ending.is_set():
                ending.set()
                await let_go.wait()

    hub = new_hub(Slow)
    async with Speaker(hub, "/ws/a") as ana:
        hasty = Speaker(hub, "/ws/a", hello=None)
        await hasty.client.connect()
        await hasty.say("hello", resume=ana.greeting["resume"])
        await ending.wait()
        await hasty.drop()
        let_go.set()
        async with back(hub, ana) as again:
            assert again.greeting["resumed"] is True
            assert again.greeting["connection"] == ana.greeting["connection"]


@pytest.mark.parametrize(
    ("code", "lives"), [(1000, False), (1001, True), (4004, False), (1012, True)]
)
async def test_the_close_code_says_whether_the_session_lives_on(code, lives):
    hub = new_hub()
    async with Speaker(hub, "/ws/a") as ana:
        if code in {1000, 1001}:
            await ana.client.close(code)
        else:
            await hub.everyone.close(code)
    async with back(hub, ana) as again:
        assert again.greeting["resumed"] is lives


async def test_rules_are_asked_again():
    hub = Hub()
    banned = set()
    hub.add("/plain", Room)
    hub.rule("{name}", subscribe=lambda ws, name: name not in banned)
    async with Speaker(hub, "/plain") as ana:
        await ana.hear("message")
        for number, name in enumerate(("a", "b"), 1):
            await ana.say("subscribe", id=number, channel=name)
            await ana.hear("subscribed")
        await ana.drop()
        banned.add("b")
        async with back(hub, ana, "/plain") as again:
            await again.hear("message")
            assert await again.hear() == {"type": "lost", "channel": "a"}  # it keeps no history
            assert await again.hear() == {"type": "subscribed", "channel": "a"}
            told = await again.hear("unsubscribed")
            assert told["channel"] == "b"
            assert "refused" in told["text"]
            assert again.ws.channels == {"a"}


async def test_what_was_acknowledged_is_done_once_however_often_it_is_sent():
    hub = new_hub()
    async with Speaker(hub, "/ws/a") as ana:
        await ana.heard()
        for number in (1, 2):
            await ana.say("message", id=number, data={"type": "count"})
        await ana.say("publish", id=3, channel="a", data="once")
        await ana.heard()  # the acknowledgements; as if they had been lost
        await ana.drop()
        async with back(hub, ana) as again:
            await again.heard()
            for number in (1, 2):
                await again.say("message", id=number, again=True, data={"type": "count"})
            await again.say("publish", id=3, again=True, channel="a", data="once")
            await again.say("message", id=4, data={"type": "count"})
            acks = [one["id"] for one in await again.heard()]
            assert acks == [1, 2, 3, 4]
    assert hub.counted == 3
    assert [kept.message for kept in await hub.channel("a").history()] == ["once"]


async def test_what_was_cut_short_is_done_again():
    begun = []

    class Slow(Room):
        @event("slow")
        async def slow(self, ws):
            begun.append(ws.id)
            ws.send("begun")
            await asyncio.sleep(0 if len(begun) > 1 else 60)

    hub = new_hub(Slow, cancel_grace=0.05)
    async with Speaker(hub, "/ws/a") as ana:
        await ana.heard()
        await ana.say("message", id=1, data={"type": "slow"})
        await ana.hear("message")
        await ana.drop()
        async with back(hub, ana) as again:
            await again.heard()
            await again.say("message", id=1, again=True, data={"type": "slow"})
            await again.hear("message")
            assert (await again.hear("ack"))["id"] == 1
    assert len(begun) == 2


async def test_what_waits_when_its_connection_is_lost_comes_to_its_end_and_is_not_done_twice():
    """As a callback that waits for the broker: what it did before must not be done again."""
    done, go_on = [], asyncio.Event()

    class Saying(Room):
        @event("say")
        async def say(self, ws):
            done.append("begun")
            ws.send("begun")
            await go_on.wait()
            done.append("ended")

    hub = new_hub(Saying)
    async with Speaker(hub, "/ws/a") as ana:
        await ana.heard()
        await ana.say("message", id=1, data={"type": "say"})
        await ana.hear("message")
        ana.ws._dispatch.end(CloseReason(1006, "connection lost", "network"))
        again = Speaker(hub, "/ws/a", hello=None)
        await again.client.connect()
        await again.say("hello", resume=ana.greeting["resume"])
        await asyncio.sleep(0)
        go_on.set()
        assert (await again.hear("hello"))["resumed"] is True
        await again.heard()
        await again.say("message", id=1, again=True, data={"type": "say"})
        assert [one["type"] for one in await again.heard()] == ["ack"]
        await again.client.close()
    assert done == ["begun", "ended"]


async def test_a_publish_that_was_stored_without_anybody_knowing_appears_once():
    """Its node died between the two: the next one finds it by its key."""
    hub = new_hub()
    async with Speaker(hub, "/ws/a") as ana:
        await ana.heard()
        await ana.say("publish", id=1, channel="a", data="once")
        first = (await ana.heard())[-1]
        ana.ws.talk.pending.add(1)  # as its node's last record had it
        await ana.drop()
        async with back(hub, ana) as again:
            await again.heard()
            await again.say("publish", id=1, again=True, channel="a", data="once")
            assert await again.hear() == first
    assert len(await hub.channel("a").history()) == 1


@pytest.mark.parametrize("code", ["failed", "refused", "invalid", "unknown_type"])
async def test_an_error_whose_answer_was_lost_is_answered_again(code):
    """An ack would say that it was done."""

    class Failing(Room):
        @event("fail")
        def fail(self, ws):
            raise Reject(403, "no") if code == "refused" else RuntimeError("bug")

        @event("typed")
        def typed(self, ws, message: Typed):
            pass

    hub = new_hub(Failing)
    kind = {"invalid": "typed", "unknown_type": "nothing"}.get(code, "fail")
    async with Speaker(hub, "/ws/a") as ana:
        await ana.heard()
        await ana.say("message", id=1, data={"type": kind})
        (error,) = await ana.heard()
        assert error["code"] == code
        await ana.drop()
        token = ana.greeting["resume"]
        for _ in range(2):  # however often
            async with back(hub, ana, token=token) as again:
                await again.heard()
                await again.say("message", id=1, again=True, data={"type": kind})
                (error,) = await again.heard()
                assert (error["type"], error["id"], error["code"]) == ("error", 1, code)
                token = again.greeting["resume"]
                await again.drop()


async def test_a_publish_that_was_refused_is_not_acknowledged_later():
    hub = new_hub()
    hub.rule("locked", publish=lambda ws: False)
    async with Speaker(hub, "/ws/a") as ana:
        await ana.heard()
        for id_, channel in ((1, "locked"), (2, "\n")):
            await ana.say("publish", id=id_, channel=channel, data=1)
        assert [one["code"] for one in await ana.heard()] == ["refused", "invalid"]
        await ana.drop()
        async with back(hub, ana) as again:
            await again.heard()
            for id_, channel in ((1, "locked"), (2, "\n")):
                await again.say("publish", id=id_, again=True, channel=channel, data=1)
            assert [one["code"] for one in await again.heard()] == ["refused", "invalid"]


async def test_who_is_lost_before_all_channels_are_back_has_them_next_time():
    hub, asked, open_ = new_hub(), [], asyncio.Event()

    async def admits(ws):
        asked.append(ws)
        if len(asked) == 2:
            await open_.wait()
        return True

    hub.rule("slow", history=5, subscribe=admits)
    async with Speaker(hub, "/ws/a") as ana:
        await ana.say("subscribe", id=1, channel="slow")
        await ana.heard()
        await ana.drop()
        async with back(hub, ana) as second:
            assert second.greeting["channels"] == ["a", "slow"]
            await second.hear("message")
            await second.drop()
        async with back(hub, ana) as third:
            assert third.greeting["channels"] == ["a", "slow"]
            await third.heard()
            assert third.ws.channels == {"a", "slow"}


async def test_a_session_is_not_lost_with_a_connection_that_ends_in_the_midst_of_resuming():
    """It waits for the callbacks of the former one; what was taken must be there for the next."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Leaving(Room):
        async def on_close(self, ws, reason):
            begun.set()
            await go_on.wait()

    hub = new_hub(Leaving)
    async with Speaker(hub, "/ws/a") as ana:
        await ana.heard()
        await hub.resumes.finish(5)
        second = Speaker(hub, "/ws/a", hello=None)
        await second.client.connect()
        await second.say("hello", resume=ana.greeting["resume"])
        await begun.wait()
        dropping = asyncio.create_task(second.drop())
        for _ in range(10):  # turns in which it would be cut short
            await asyncio.sleep(0)
        third = Speaker(hub, "/ws/a", hello=None)
        await third.client.connect()
        await third.say("hello", resume=ana.greeting["resume"])
        go_on.set()
        await dropping
        greeting = await third.hear("hello")
        assert greeting["resumed"] is True
        assert greeting["connection"] == ana.greeting["connection"]
        await third.heard()
        assert await hub.everyone.count() == 1
        await third.client.close()


@pytest.mark.parametrize("is_lost", [False, True])
async def test_what_the_former_connection_still_does_is_not_done_again(is_lost):
    done, begun, go_on = [], asyncio.Event(), asyncio.Event()

    class Slow(Room):
        @event("slow")
        async def slow(self, ws):
            begun.set()
            await go_on.wait()
            ws.state.name = "Ana"
            done.append(ws.id)

    hub = new_hub(Slow, cancel_on_close=False)
    async with Speaker(hub, "/ws/a") as ana:
        await ana.heard()
        await ana.say("message", id=1, data={"type": "slow"})
        await begun.wait()
        if is_lost:
            ana.ws._dispatch.end(CloseReason(1006, "connection lost", "network"))
        again = Speaker(hub, "/ws/a", hello=None)
        await again.client.connect()
        await again.say("hello", resume=ana.greeting["resume"])
        go_on.set()
        assert (await again.hear("hello"))["resumed"] is True
        assert (await again.hear("message"))["data"]["name"] == "Ana"
        await again.heard()
        await again.say("message", id=1, again=True, data={"type": "slow"})
        assert [one["type"] for one in await again.heard()] == ["ack"]
        assert len(done) == 1
        await again.client.close()


async def test_what_was_done_after_the_connection_was_lost_is_known_later():
    done, begun, go_on = [], asyncio.Event(), asyncio.Event()

    class Slow(Room):
        @event("slow")
        async def slow(self, ws):
            begun.set()
            await go_on.wait()
            done.append(ws.id)

    hub = new_hub(Slow, cancel_on_close=False)
    async with Speaker(hub, "/ws/a") as ana:
        await ana.heard()
        await ana.say("message", id=1, data={"type": "slow"})
        await begun.wait()
        dropping = asyncio.create_task(ana.drop())
        while ana.ws.reason is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        go_on.set()
        await dropping
        async with back(hub, ana) as again:
            await again.heard()
            await again.say("message", id=1, again=True, data={"type": "slow"})
            assert [one["type"] for one in await again.heard()] == ["ack"]
    assert len(done) == 1


async def test_state_that_is_no_plain_value_does_not_come_back_and_says_so(caplog):
    hub = new_hub()
    async with Speaker(hub, "/ws/a") as ana:
        await ana.heard()
        ana.ws.state.cart = object()
        ana.ws.state.name = "Ana"
        await ana.drop()
        assert "durable state" in caplog.text
        caplog.clear()
        async with back(hub, ana) as again:
            assert again.greeting["resumed"] is True


async def test_positions_that_are_none_are_lost_and_nothing_else_happens():
    hub = new_hub()
    async with Speaker(hub, "/ws/a") as ana:
        await ana.heard()
        await ana.drop()
        await hub.broadcast("a", 1)
        async with back(hub, ana, positions={"a": "nonsense", "b\0": "x", "zz": "e.1"}) as again:
            told = [one["type"] for one in await again.heard()]
            assert told == ["message", "lost", "subscribed"]


# ── snapshots ─────────────────────────────────────────────────────────────────────────────────


class Board:
    """A document whose state and position belong together."""

    def __init__(self, hub):
        self.hub = hub
        self.words = []
        self.position = None
        self.asked = 0
        self.gate = None

    async def add(self, word):
        sent = await self.hub.broadcast("doc:1", word)
        self.words.append(word)
        self.position = sent.position

    async def snapshot(self, channel, ws):
        self.asked += 1
        state = (
            list(self.words),
            self.position or (await self.hub.channel(channel).history()).position,
        )
        if self.gate is not None:
            await self.gate.wait()
        return state


def new_board(history=100):
    hub = Hub()
    hub.add("/plain", Listener)
    board = Board(hub)
    hub.rule("doc:{id}", history=history, subscribe=lambda ws: True, snapshot=board.snapshot)
    return hub, board


async def test_the_snapshot_and_then_exactly_what_came_later():
    hub, board = new_board()
    await hub.start()
    await board.add("a")
    board.gate = asyncio.Event()
    async with Speaker(hub, "/plain") as ana:
        await ana.say("subscribe", id=1, channel="doc:1")
        while not board.asked:  # noqa: ASYNC110 - until it is under way
            await asyncio.sleep(0)
        await board.add("b")
        await board.add("c")
        board.gate.set()
        snapshot = await ana.hear("snapshot")
        assert snapshot["data"] == ["a"]
        assert [(await ana.hear("publication"))["data"] for _ in range(2)] == ["b", "c"]
        await ana.hear("subscribed")
        await board.add("d")
        assert (await ana.hear("publication"))["data"] == "d"


async def test_who_comes_back_in_time_needs_no_snapshot_and_who_does_not_gets_one():
    hub, board = new_board(history=2)
    async with Speaker(hub, "/plain") as ana:
        await ana.say("subscribe", id=1, channel="doc:1")
        await ana.hear("snapshot")
        at = (await ana.hear("subscribed"))["position"]
        await ana.drop()
        await board.add("a")
        async with back(hub, ana, "/plain", {"doc:1": at}) as again:
            assert [one["type"] for one in await again.heard()] == ["publication", "subscribed"]
            await again.drop()
        for word in "bcd":
            await board.add(word)
        async with back(hub, again, "/plain", {"doc:1": at}) as third:
            told = await third.heard()
            assert [one["type"] for one in told] == ["lost", "snapshot", "subscribed"]
            assert told[1]["data"] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("since_then", [[], ["b", "c"]])
async def test_a_state_from_before_the_history_began_is_one_from_before_all_of_it(since_then):
    """As one of a database, after the hub was started again, or nobody said anything for long."""
    hub, board = new_board()
    await hub.start()
    board.words, board.position = ["a"], "0ther.17"
    for word in since_then:
        await hub.broadcast("doc:1", word)
    async with Speaker(hub, "/plain") as ana:
        await ana.say("subscribe", id=1, channel="doc:1")
        told = await ana.heard()
        kinds = ["snapshot", *["publication"] * len(since_then), "subscribed"]
        assert [one["type"] for one in told] == kinds
        assert [one["data"] for one in told[:-1]] == [["a"], *since_then]
        await board.add("d")
        assert (await ana.hear("publication"))["data"] == "d"
    assert board.asked == 1


async def test_a_state_from_before_a_history_of_which_some_is_gone_is_too_old(caplog):
    hub, board = new_board(history=1)
    await hub.start()
    board.position = "0ther.17"
    for n in range(2):
        await hub.broadcast("doc:1", n)
    async with Speaker(hub, "/plain") as ana:
        await ana.say("subscribe", id=1, channel="doc:1")
        assert (await ana.heard())[-1]["code"] == "refused"
    assert "3 snapshots of 'doc:1' were older than its history" in caplog.text
    assert "Store the state with each publication" in caplog.text


async def test_a_snapshot_that_is_always_too_old_is_refused_and_logged(caplog):
    hub, board = new_board(history=1)
    await hub.start()
    await board.add("a")
    board.position = board.position._replace(offset=0)
    for n in range(3):
        await hub.broadcast("doc:1", n)
    async with Speaker(hub, "/plain") as ana:
        await ana.say("subscribe", id=1, channel="doc:1")
        told = await ana.heard()
        assert told[-1]["code"] == "refused"
        assert "older than its history" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("state", "returns (state, position), not 'state'"),
        (("state", None), "not ('state', None): a position is a str, such as"),
        (("state", "x"), "not ('state', 'x'): 'x' is no position, such as"),
    ],
)
async def test_a_snapshot_hook_that_returns_something_else_says_what_it_should(caplog, found, said):
    hub = Hub()
    hub.add("/plain", Listener)
    hub.rule("d", history=1, subscribe=lambda ws: True, snapshot=lambda: found)
    async with Speaker(hub, "/plain") as ana:
        await ana.say("subscribe", id=1, channel="d")
        assert (await ana.heard())[-1]["code"] == "refused"
        assert said in caplog.text
        caplog.clear()


def test_a_snapshot_wants_history():
    with pytest.raises(ValueError, match="history has to be kept"):
        Hub().rule("d", snapshot=lambda: None)
