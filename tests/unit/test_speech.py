"""Dialect v1 on the server: frames, states, channels, calls. docs/protocol.md, line by line."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from typing import Any

import msgspec
import pytest
from shared import turns
from speaking import Speaker

from backchannel import Hub, Listener, Reject, event
from backchannel.dialect import NAME
from backchannel.errors import CallFailed, ConnectionClosed, HandshakeRefused
from backchannel.speech.dispatch import MANY


class Echo(Listener):
    def on_message(self, ws, message):
        return message


def new_hub(listener=Echo, url="/ws", **settings):
    hub = Hub(**settings)
    hub.add(url, listener)
    return hub


def made(frame, id_=0):
    """Return a frame with an id where it says ID, and much too deep an array where it says DEEP."""
    if isinstance(frame, bytes):
        return frame.replace(b"ID", str(id_).encode())
    return frame.replace("ID", str(id_)).replace("DEEP", "[" * 100_000 + "]" * 100_000)


# ── states ────────────────────────────────────────────────────────────────────────────────────


async def test_hello_comes_first_and_tells_who_it_is():
    hub = new_hub(url="/ws/{channel}")
    async with Speaker(hub, "/ws/a", user="ana") as ana:
        assert ana.client.connection.subprotocol == NAME
        greeting = ana.greeting
        assert greeting["connection"] == ana.ws.id
        assert greeting["user"] == "ana"
        assert greeting["resumed"] is False
        assert greeting["channels"] == ["a"]
        assert len(greeting["resume"]) == 32
        assert await ana.hear() == {"type": "subscribed", "channel": "a"}


async def test_nothing_of_the_listener_runs_before_hello():
    opened = []

    class Chat(Listener):
        def on_open(self, ws):
            opened.append(ws)
            ws.send("welcome")

    async with Speaker(new_hub(Chat), hello=None) as ana:
        assert not opened
        await ana.say("hello")
        assert (await ana.hear())["type"] == "hello"
        assert opened
        assert await ana.hear() == {"type": "message", "data": "welcome"}


@pytest.mark.parametrize("first", ['{"type":"message","data":1}', "{", '{"type":"what"}', b"\0"])
async def test_a_first_frame_that_is_no_hello_ends_it(first):
    async with Speaker(new_hub(), hello=None) as ana:
        await ana.client.send(first)
        with pytest.raises(ConnectionClosed, match="1008 the first frame is hello"):
            await ana.client.receive()


async def test_who_says_no_hello_in_time_is_closed():
    async with Speaker(new_hub(handshake_timeout=0.05), hello=None) as ana:
        with pytest.raises(ConnectionClosed, match="1008 said no hello in time"):
            await ana.client.receive()


async def test_a_second_hello_is_out_of_order():
    async with Speaker(new_hub()) as ana:
        await ana.say("hello")
        assert (await ana.hear("error"))["code"] == "out_of_order"


async def test_an_unknown_version_is_refused_with_the_known_ones():
    hub = new_hub()
    client = hub.test_client("/ws", subprotocols=["backchannel.v9.json"])
    with pytest.raises(HandshakeRefused, match=r"HTTP 400: .*v9.*speaks backchannel.v1.json"):
        await client.connect()
    async with hub.test_client("/ws", subprotocols=["backchannel.v9.json", NAME]) as client:
        assert client.connection.subprotocol == NAME


async def test_a_client_that_on_open_refuses_gets_a_code_and_no_hello():
    class Closed(Listener):
        def on_open(self, ws):
            return Reject("not now")

    async with Speaker(new_hub(Closed), hello=None) as ana:
        await ana.say("hello")
        with pytest.raises(ConnectionClosed, match="1008 not now"):
            await ana.client.receive()


async def test_a_raw_client_of_the_same_endpoint_is_left_alone():
    hub = new_hub(url="/ws/{channel}")
    async with Speaker(hub, "/ws/a") as ana, hub.test_client("/ws/a") as raw:
        await ana.hear("subscribed")
        await hub.broadcast("a", {"n": 1})
        await hub.broadcast("a", "1")
        await hub.broadcast("a", b"\n\0")
        assert [await raw.receive() for _ in range(3)] == ['{"n":1}', "1", b"\n\0"]
        got = [await ana.hear("publication") for _ in range(3)]
        assert [one["data"] for one in got] == [{"n": 1}, "1", b"\n\0"]


# ── messages ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("data", [{"a": [1, None]}, "text", "", '{"x":1}', 3, None, [], "\u2028é"])
async def test_what_is_sent_arrives_as_what_it_is(data):
    got = []

    class Keep(Listener):
        def on_message(self, ws, message):
            got.append(message)
            ws.send(data)

    async with Speaker(new_hub(Keep)) as ana:
        await ana.say("message", data=data)
        answer = await ana.hear("message")
        assert answer["data"] == data
        assert got[0] == data or type(data) is not str


async def test_bytes_travel_both_ways():
    async with Speaker(new_hub()) as ana:
        await ana.say("message", b"\n\0\xff")
        assert await ana.hear() == {"type": "message", "data": b"\n\0\xff"}
        await ana.say("message", b"", id=1)
        assert await ana.hear() == {"type": "message", "data": b""}
        assert await ana.hear() == {"type": "ack", "id": 1}


async def test_an_acknowledged_message_is_acknowledged_after_the_listener():
    class Slow(Listener):
        async def on_message(self, ws, message):
            await asyncio.sleep(0.01)
            return "done"

    async with Speaker(new_hub(Slow)) as ana:
        await ana.say("message", id=1, data="x")
        assert (await ana.hear())["data"] == "done"
        assert await ana.hear() == {"type": "ack", "id": 1}


async def test_a_listener_that_raises_or_rejects_is_told_as_an_error(caplog):
    caplog.set_level(logging.CRITICAL)

    class Bad(Listener):
        @event("raise")
        def raises(self, ws):
            raise KeyError("secret")

        @event("reject")
        async def rejects(self, ws):
            raise Reject("not yours")

        @event("typed")
        def typed(self, ws, message: dict[str, int]):
            return message

    async with Speaker(new_hub(Bad)) as ana:
        for number, (kind, code, text) in enumerate(
            [("raise", "failed", "the listener failed"), ("reject", "refused", "not yours")], 1
        ):
            await ana.say("message", id=number, data={"type": kind})
            assert await ana.hear() == {"type": "error", "id": number, "code": code, "text": text}
        await ana.say("message", id=3, data={"type": "typed"})
        error = await ana.hear("error")
        assert (error["id"], error["code"], error["field"]) == (3, "invalid", "$.data[...]")
        await ana.say("message", id=4, data={"type": "nope"})
        assert (await ana.hear("error"))["code"] == "unknown_type"
        await ana.say("message", data={"type": "nope"})
        error = await ana.hear("error")
        assert "id" not in error
        assert error["code"] == "unknown_type"


async def test_a_listener_of_its_own_mind_about_invalid_messages_keeps_it():
    class Own(Listener):
        def on_message(self, ws, message: int):
            return message

        def on_invalid(self, ws, error):
            ws.send("my own words")

    async with Speaker(new_hub(Own)) as ana:
        await ana.say("message", data="x")
        assert (await ana.hear("message"))["data"] == "my own words"
        await ana.say("message", id=1, data="x")
        assert (await ana.hear("message"))["data"] == "my own words"
        assert (await ana.hear("error"))["id"] == 1


@pytest.mark.parametrize(
    ("frame", "code", "field"),
    [
        ("{", "invalid", "$"),
        ("[]", "invalid", "$.type"),
        ('{"type":"what","id":3}', "unknown_type", "$.type"),
        ('{"type":"publish","id":1}', "invalid", "$.channel"),
        ('{"type":"message","id":0,"data":1}', "invalid", "$.id"),
        ('{"type":"subscribe","id":1,"channel":"a","since":5}', "invalid", "$.since"),
        ('{"type":"subscribe","id":1,"channel":"a\\u0000"}', "invalid", "$.channel"),
        ('{"type":"message","id":1,"data":"\\ud800"}', "invalid", "$"),
        ('{"type":"publish","channel":"r","data":["\\ud800x"],"id":3}', "invalid", "$"),
        ('{"type":"message","id":3,"data":DEEP}', "invalid", "$"),
        ('{"type":"message","data":DEEP}', "invalid", "$"),
        ('{"type":"call","id":1,"event":"a","data":', "invalid", "$"),
        (b"no line feed", "invalid", "$"),
        (b"\xff\n", "invalid", "$"),
    ],
)
async def test_a_frame_that_is_none_is_answered_and_the_connection_kept(frame, code, field):
    async with Speaker(new_hub()) as ana:
        await ana.client.send(made(frame))
        error = await ana.hear("error")
        assert (error["code"], error["field"]) == (code, field)
        assert error["text"]
        # Who sent it may wait for an answer.
        assert error.get("id") == {'"id":1': 1, '"id":3': 3}.get(
            next(iter(re.findall(r'"id":[13]', str(frame))), "")
        )
        await ana.say("message", unknown=1, data="alive")
        assert (await ana.hear("message"))["data"] == "alive"


async def test_ids_count_up():
    async with Speaker(new_hub()) as ana:
        await ana.say("message", id=5, data="a")
        await ana.hear("message")
        await ana.hear("ack")
        await ana.say("message", id=5, data="b")
        error = await ana.hear("error")
        assert (error["id"], error["code"]) == (5, "out_of_order")
        await ana.say("message", id=5, again=True, data="a")
        assert await ana.hear() == {"type": "ack", "id": 5}  # it was done


async def test_ping_is_answered_while_a_callback_runs():
    class Busy(Listener):
        async def on_message(self, ws, message):
            await asyncio.Event().wait()

    async with Speaker(new_hub(Busy)) as ana:
        await ana.say("message", data=1)
        await ana.say("ping")
        await ana.hear("pong")


# ── channels ──────────────────────────────────────────────────────────────────────────────────


async def test_a_client_may_not_subscribe_or_publish_by_itself():
    async with Speaker(new_hub()) as ana:
        await ana.say("subscribe", id=1, channel="news")
        error = await ana.hear("error")
        assert (error["id"], error["code"]) == (1, "refused")
        await ana.say("publish", id=2, channel="news", data=1)
        error = await ana.hear("error")
        assert (error["id"], error["code"]) == (2, "refused")
        assert not ana.ws.channels


async def test_a_rule_lets_it():
    hub = new_hub()
    hub.rule(
        "room:{name}",
        subscribe=lambda ws, name: name != "secret",
        publish=lambda ws, channel: channel in ws.channels,
        history=10,
    )
    async with Speaker(hub) as ana, Speaker(hub) as bob:
        for each in (ana, bob):
            await each.say("subscribe", id=1, channel="room:a")
            told = await each.hear("subscribed")
            assert (told["id"], told["channel"]) == (1, "room:a")
        epoch = told["position"].rpartition(".")[0]
        assert told["position"] == f"{epoch}.0"
        await ana.say("subscribe", id=2, channel="room:secret")
        assert (await ana.hear("error"))["code"] == "refused"
        await ana.say("publish", id=3, channel="room:a", data={"text": "hi"})
        assert await bob.hear() == {
            "type": "publication", "channel": "room:a", "position": f"{epoch}.1",
            "data": {"text": "hi"},
        }  # fmt: skip
        assert (await ana.hear("publication"))["data"] == {"text": "hi"}
        assert await ana.hear() == {"type": "ack", "id": 3, "position": f"{epoch}.1"}
        await ana.say("publish", id=4, channel="room:b", data=1)
        assert (await ana.hear("error"))["code"] == "refused"
        await ana.say("unsubscribe", id=5, channel="room:a")
        assert await ana.hear() == {"type": "unsubscribed", "id": 5, "channel": "room:a"}
        await ana.say("unsubscribe", id=6, channel="room:a")
        assert await ana.hear() == {"type": "unsubscribed", "id": 6, "channel": "room:a"}


async def test_a_listener_that_says_yes_lets_it():
    class Yes(Listener):
        def on_subscribe(self, ws, channel):
            return channel == "open" or None

    hub = new_hub(Yes)
    hub.add("/other/{channel}", Echo, channel="other:{channel}")
    async with Speaker(hub) as ana:
        await ana.say("subscribe", id=1, channel="open")
        assert await ana.hear() == {"type": "subscribed", "id": 1, "channel": "open"}
        await ana.say("subscribe", id=2, channel="open")
        assert await ana.hear() == {"type": "subscribed", "id": 2, "channel": "open"}
        await ana.say("subscribe", id=3, channel="undecided")
        assert (await ana.hear("error"))["code"] == "refused"
        await ana.ws.subscribe("undecided")  # what the server wants needs no yes
        assert await ana.hear() == {"type": "subscribed", "channel": "undecided"}


async def test_another_endpoints_channels_are_behind_its_door():
    class Yes(Listener):
        def on_subscribe(self, ws, channel):
            return True

    hub = new_hub(Yes)
    hub.add("/other/{channel}", Echo, channel="other:{channel}")
    async with Speaker(hub) as ana:
        await ana.say("subscribe", id=1, channel="other:x")
        assert (await ana.hear("error"))["code"] == "refused"


async def test_what_was_missed_comes_before_subscribed():
    hub = new_hub()
    hub.rule("r", subscribe=lambda ws: True, history=3)
    async with Speaker(hub) as ana:
        await ana.say("subscribe", id=1, channel="r")
        start = (await ana.hear("subscribed"))["position"]
        await ana.say("unsubscribe", id=2, channel="r")
        await ana.hear("unsubscribed")
        for n in range(2):
            await hub.broadcast("r", n)
        await ana.say("subscribe", id=3, channel="r", since=start)
        assert [(await ana.hear("publication"))["data"] for _ in range(2)] == [0, 1]
        at = (await ana.hear("subscribed"))["position"]
        assert at.endswith(".2")
        await ana.say("unsubscribe", id=4, channel="r")
        await ana.hear("unsubscribed")
        for n in range(4):
            await hub.broadcast("r", n)
        await ana.say("subscribe", id=5, channel="r", since=at)
        lost = await ana.hear("lost")
        assert lost["position"].endswith(".6")
        assert (await ana.hear("subscribed"))["position"].endswith(".6")


@pytest.mark.parametrize("since", ["other.1", "{epoch}.99"])
async def test_positions_of_another_epoch_or_from_the_future_are_lost(since):
    hub = new_hub()
    hub.rule("r", subscribe=lambda ws: True, history=3)
    await hub.start()
    sent = await hub.broadcast("r", 1)
    async with Speaker(hub) as ana:
        await ana.say("subscribe", id=1, channel="r", since=since.format(epoch=sent.position.epoch))
        assert (await ana.hear("lost"))["position"] == str(sent.position)
        assert (await ana.hear("subscribed"))["position"] == str(sent.position)
        await ana.say("unsubscribe", id=2, channel="r")
        await ana.hear("unsubscribed")
        await ana.say("subscribe", id=3, channel="r", since="nonsense")
        error = await ana.hear("error")
        assert (error["code"], error["field"]) == ("invalid", "$.since")


async def test_it_is_told_when_the_application_takes_it_out():
    hub = new_hub()
    async with Speaker(hub, user="ana") as ana:
        await hub.user("ana").subscribe("x")
        assert await ana.hear() == {"type": "subscribed", "channel": "x"}
        await hub.user("ana").unsubscribe("x")
        assert await ana.hear() == {"type": "unsubscribed", "channel": "x"}


async def test_so_many_channels_and_no_more():
    hub = new_hub(max_subscriptions=2)
    hub.rule("r{n}", subscribe=lambda ws: True)
    async with Speaker(hub) as ana, Speaker(hub) as bob:
        for n in range(1, 4):
            await ana.say("subscribe", id=n, channel=f"r{n}")
        assert [(await ana.hear())["type"] for _ in range(2)] == ["subscribed", "subscribed"]
        error = await ana.hear("error")
        assert (error["id"], error["code"], error["field"]) == (3, "too_many_channels", "$.channel")
        assert "2 channels" in error["text"]
        await ana.say("unsubscribe", id=4, channel="r1")
        await ana.hear("unsubscribed")
        await ana.say("subscribe", id=5, channel="r3")
        await ana.hear("subscribed")
        await bob.say("subscribe", id=1, channel="r1")  # it is counted for each
        await bob.hear("subscribed")


async def test_a_flood_of_subscribes_counts_as_messages_and_ends_nobody_else():
    hub = new_hub(max_messages_per_second=5)
    async with Speaker(hub) as ana, Speaker(hub) as bob:
        for n in range(1, 20):
            await ana.say("subscribe", id=n, channel="r")
            if ana.client.closed:
                break
        assert ana.client.closed.code == 4003
        await bob.say("ping")
        assert await bob.hear() == {"type": "pong"}


async def test_what_comes_while_too_much_waits_is_refused_and_can_be_sent_again():
    hub = new_hub()

    class Asking(Listener):
        @event("ask")
        async def ask(self, ws):
            return await ws.call("question", timeout=60)

    hub.add("/asking", Asking)
    hub.rule("r", subscribe=lambda ws: True)
    async with Speaker(hub, "/asking") as ana, Speaker(hub) as bob:
        await ana.say("call", id=1, event="ask")
        question = await ana.hear("call")
        for n in range(2, MANY + 3):
            await ana.say("subscribe", id=n, channel="r")
        error = await ana.hear("error")
        assert (error["id"], error["code"]) == (MANY + 2, "too_many")
        await bob.say("message", data="alive")
        assert (await bob.hear("message"))["data"] == "alive"
        await ana.say("reply", id=question["id"], data="answer")
        assert (await ana.hear("reply"))["data"] == "answer"
        assert {(await ana.hear())["type"] for _ in range(MANY)} == {"subscribed"}
        await ana.say("subscribe", id=MANY + 3, channel="r")
        assert (await ana.hear("subscribed"))["id"] == MANY + 3


@pytest.mark.parametrize("acknowledged", [True, False])
async def test_few_large_frames_are_too_much_where_a_callback_waits_for_the_client(acknowledged):
    hub, seen = new_hub(), []

    class Asking(Listener):
        @event("ask")
        async def ask(self, ws):
            return await ws.call("question", timeout=60)

        def on_message(self, ws, message):
            seen.append(len(message))

    hub.add("/asking", Asking)
    async with Speaker(hub, "/asking") as ana:
        await ana.say("call", id=1, event="ask")
        question = await ana.hear("call")
        for n in range(2, 8):  # 4 MiB are exceeded by the fifth
            await ana.say("message", data="x" * 1_000_000, **({"id": n} if acknowledged else {}))
        error = await ana.hear("error")
        assert (error.get("id"), error["code"]) == (7 if acknowledged else None, "too_many")
        await ana.say("reply", id=question["id"], data="answer")
        assert (await ana.hear("reply"))["data"] == "answer"
        if acknowledged:
            assert [(await ana.hear("ack"))["id"] for _ in range(5)] == [2, 3, 4, 5, 6]
        await ana.client.settled()
        assert seen == [1_000_000] * 5


@pytest.mark.parametrize("count", [5, 100])
@pytest.mark.parametrize("acknowledged", [True, False])
async def test_a_callback_that_asks_the_client_gets_its_answer_however_much_waits(
    acknowledged, count
):
    """Also what stands behind so much that nothing more was read."""
    hub, go, seen = new_hub(), asyncio.Event(), []

    class Asking(Listener):
        @event("ask")
        async def ask(self, ws):
            await go.wait()
            return await ws.call("question", timeout=5)

        def on_message(self, ws, message):
            seen.append(message[:3])

    hub.add("/asking", Asking)
    async with Speaker(hub, "/asking") as ana:
        await ana.say("call", id=1, event="ask")

        async def pour():
            for n in range(2, count + 2):
                id_ = {"id": n} if acknowledged else {}
                await ana.say("message", data=f"{n:<{500_000 // count}}", **id_)

        pouring = asyncio.create_task(pour())
        await turns(500)
        assert not pouring.done()
        go.set()
        question = await ana.hear("call")
        await asyncio.wait_for(pouring, 5)
        await ana.say("reply", id=question["id"], data="answer")
        assert (await ana.hear("reply"))["data"] == "answer"
        await ana.client.settled()
    assert [int(n) for n in seen] == list(range(2, count + 2))


async def test_a_whisper_has_its_channel_and_position_for_those_alone():
    hub = new_hub(url="/ws/{channel}")
    hub.rule("a", history=5)
    async with Speaker(hub, "/ws/a", user="ana") as ana, Speaker(hub, "/ws/a", user="bob") as bob:
        await ana.hear("subscribed")
        await bob.hear("subscribed")
        sent = await hub.broadcast("a", "psst", to=hub.user("bob"))
        got = await bob.hear("publication")
        assert (got["channel"], got["position"]) == ("a", str(sent.position))
        assert await ana.heard() == []


# ── presence ──────────────────────────────────────────────────────────────────────────────────


async def test_members_may_ask_who_is_there_and_are_told_who_comes_and_goes():
    hub = new_hub(url="/ws/{channel}", presence_moment=0.01)
    hub.rule("a", presence=True)
    async with Speaker(hub, "/ws/a", user="ana") as ana:
        await ana.hear("subscribed")
        assert await ana.hear() == {"type": "join", "channel": "a", "user": "ana"}
        async with Speaker(hub, "/ws/a", user="bob") as bob, hub.test_client("/ws/a") as raw:
            bob.ws.meta["device"] = "phone"
            assert await ana.hear() == {"type": "join", "channel": "a", "user": "bob"}
            await ana.say("presence", id=1, channel="a")
            told = await ana.hear("presence")
            assert [one["user"] for one in told["users"]] == ["ana", "bob"]
            assert told["users"][0]["devices"] == [{"connection": ana.ws.id, "meta": {}}]
            await ana.say("presence", id=2, channel="b")
            assert (await ana.hear("error"))["code"] == "refused"
            assert raw.received() == []
        assert await ana.hear() == {"type": "leave", "channel": "a", "user": "bob"}


async def test_where_joins_wait_the_answer_has_those_who_were_told_to_have_joined():
    """Else a page would keep who came for so short a time that no leave is ever told."""
    hub = new_hub(url="/ws/{channel}", presence_moment=0.3)
    hub.rule("a", presence="settled")

    ids = itertools.count(1)

    async def there(speaker):
        await speaker.say("presence", id=next(ids), channel="a")
        return [one["user"] for one in (await speaker.hear("presence"))["users"]]

    async with Speaker(hub, "/ws/a", user="ana") as ana:
        await ana.hear("subscribed")
        assert await there(ana) == []
        assert await ana.hear() == {"type": "join", "channel": "a", "user": "ana"}
        assert await there(ana) == ["ana"]
        async with Speaker(hub, "/ws/a", user="bob"):
            assert await hub.channel("a").users() == ["ana", "bob"]
            assert await there(ana) == ["ana"]
        async with asyncio.timeout(5):
            while await hub.channel("a").count_users() == 2:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        assert await there(ana) == ["ana"]
        async with Speaker(hub, "/ws/a", user="eve"):
            assert await ana.hear() == {"type": "join", "channel": "a", "user": "eve"}
            assert await there(ana) == ["ana", "eve"]
        assert await ana.hear() == {"type": "leave", "channel": "a", "user": "eve"}


# ── calls ─────────────────────────────────────────────────────────────────────────────────────


class Calc(Listener):
    @event("add")
    def add(self, ws, message: dict):
        return message["a"] + message["b"]

    @event("whole")
    def whole(self, ws, message):
        return {"got": message}

    @event("text")
    def text(self, ws, message: str):
        return message.upper()

    @event("nothing")
    async def nothing(self, ws):
        await asyncio.sleep(0)

    @event("wait")
    async def wait(self, ws):
        try:
            ws.send("waits")
            await asyncio.Event().wait()
        finally:
            ws.state.stopped = True

    @event("bytes")
    def bytes(self, ws, message):
        return bytes(reversed(message))

    @event("ask")
    async def ask(self, ws):
        return {"answer": await ws.call("color", {"of": "sky"})}


async def test_a_call_is_answered_by_the_event_method_of_its_name():
    async with Speaker(new_hub(Calc)) as ana:
        await ana.say("call", id=1, event="add", data={"a": 1, "b": 2})
        assert await ana.hear() == {"type": "reply", "id": 1, "data": 3}
        await ana.say("call", id=2, event="nothing")
        assert await ana.hear() == {"type": "reply", "id": 2, "data": None}
        await ana.say("call", id=3, event="whole", data={"x": 1})
        assert (await ana.hear())["data"] == {"got": '{"type":"whole","x": 1}'}
        await ana.say("call", b"\1\2", id=4, event="bytes")
        assert await ana.hear() == {"type": "reply", "id": 4, "data": b"\2\1"}
        await ana.say("call", id=5, event="nope")
        error = await ana.hear("error")
        assert (error["id"], error["code"], error["field"]) == (5, "unknown_type", "$.event")
        await ana.say("call", id=6, event="add", data=[1])
        assert (await ana.hear("error"))["code"] == "invalid"
        for number, text in enumerate(["hi", '{"a":1}', "5"], 7):
            await ana.say("call", id=number, event="text", data=text)
            assert (await ana.hear("reply"))["data"] == text.upper()
        for number, data in enumerate([{"a": 1}, 5, ["x"], None], 10):
            await ana.say("call", id=number, event="text", data=data)
            error = await ana.hear("error")
            assert (error["code"], error["field"], error["text"]) == (
                "invalid", "$.data", "expected text",
            )  # fmt: skip


class Point(msgspec.Struct):
    x: int


TEXTS = ["5", "[1]", '{"x":1}', "null", '"hi"', "hi", ""]


@pytest.mark.parametrize("annotation", [int, list, dict, Point, int | None, Point | list])
async def test_text_is_no_json_for_a_call_whose_method_takes_something_else(annotation):
    async with Speaker(new_hub(taking(annotation))) as ana:
        for number, text in enumerate(TEXTS, 1):
            await ana.say("call", id=number, event="take", data=text)
            error = await ana.hear("error")
            assert (error["id"], error["code"], error["field"]) == (number, "invalid", "$.data")
            assert "got `str`" in error["text"], text


@pytest.mark.parametrize("annotation", [str, str | None, str | int, str | list, Any, str | bytes])
async def test_text_is_text_for_a_call_whose_method_takes_that_among_others(annotation):
    async with Speaker(new_hub(taking(annotation))) as ana:
        for number, text in enumerate(TEXTS, 1):
            await ana.say("call", id=number, event="take", data=text)
            assert await ana.hear() == {"type": "reply", "id": number, "data": {"took": text}}


def taking(annotation):
    """Return a listener that answers what it was called with."""

    def take(self, ws, message):
        return {"took": message}

    take.__annotations__["message"] = annotation
    return type("Taking", (Listener,), {"take": event("take")(take)})


@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_a_call_that_takes_too_long_is_cancelled(how):
    async with Speaker(new_hub(Calc)) as ana:
        timeout = {"timeout": 0.02} if how == "timeout" else {}
        await ana.say("call", id=1, event="wait", **timeout)
        await ana.hear("message")
        if how == "cancelled":
            await ana.say("cancel", id=1)
        error = await ana.hear("error")
        assert (error["id"], error["code"]) == (1, how)
        assert ana.ws.state.stopped
        await ana.say("call", id=2, event="nothing")  # it goes on
        await ana.hear("reply")
        await ana.say("cancel", id=77)  # of no call: ignored
        await ana.say("ping")
        await ana.hear("pong")


async def test_a_call_that_waits_for_its_turn_can_be_stopped_too():
    async with Speaker(new_hub(Calc)) as ana:
        await ana.say("call", id=1, event="wait")
        await ana.hear("message")
        await ana.say("call", id=2, event="nothing")
        await ana.say("call", id=3, event="nothing", timeout=0.02)
        await ana.say("call", id=4, event="nothing")
        await ana.say("cancel", id=2)
        for id_, code in [(2, "cancelled"), (3, "timeout")]:
            error = await ana.hear("error")
            assert (error["id"], error["code"]) == (id_, code)
        await ana.say("cancel", id=1)
        assert (await ana.hear("error"))["id"] == 1
        assert (await ana.hear("reply"))["id"] == 4


async def test_the_server_calls_the_client_from_inside_a_callback():
    async with Speaker(new_hub(Calc)) as ana:
        await ana.say("call", id=1, event="ask")
        call = await ana.hear("call")
        assert (call["event"], call["data"], call["timeout"]) == ("color", {"of": "sky"}, 5.0)
        await ana.say("reply", id=call["id"], data="blue")
        assert await ana.hear() == {"type": "reply", "id": 1, "data": {"answer": "blue"}}
        await ana.say("reply", id=call["id"], data="red")  # nobody waits: ignored
        await ana.say("reply", id=99)
        await ana.say("ping")
        await ana.hear("pong")


@pytest.mark.parametrize(
    ("data", "field", "text"),
    [
        ("1e999", "$.data", "Number out of range"),
        ("-1e999", "$.data", "Number out of range"),
        ("1" * 5000, "$.data", "Integer value out of range"),
        ("[0,[1e999]]", "$.data[1][0]", "Number out of range"),
        ('{"a":1e999}', "$.data[...]", "Number out of range"),
    ],
)
async def test_an_answer_that_can_not_be_read_fails_the_call_and_the_client_is_told(
    data, field, text
):
    async with Speaker(new_hub(Calc)) as ana:
        for _ in range(2):  # as often as it likes
            asking = asyncio.ensure_future(ana.ws.call("color"))
            number = (await ana.hear("call"))["id"]
            await ana.client.send(f'{{"type":"reply","id":{number},"data":{data}}}')
            error = await ana.hear("error")
            told = {"code": "invalid", "id": number, "text": text, "field": field}
            assert error == {"type": "error", **told}
            with pytest.raises(CallFailed, match=f"invalid: .*{text}") as caught:
                await asking
            assert caught.value.code == "invalid"
        await ana.client.send(f'{{"type":"reply","id":99,"data":{data}}}')  # to no call: ignored
        await ana.say("ping")
        await ana.hear("pong")


@pytest.mark.parametrize(
    ("answer", "field", "text"),
    [
        ('{"type":"reply","id":ID,"data":DEEP}', "$", "nested too deeply"),
        ('{ "id" : ID , "type" : "reply",\n"data":{"a":DEEP}}', "$", "nested too deeply"),
        ('{"type":"reply","id":ID,"data":"\\ud800"}', "$", "half a surrogate pair"),
        ('{"type":"reply","id":ID,"data":NaN}', "$", "invalid character"),
        ('{"type":"reply","id":ID,"data":', "$", "not valid JSON"),
        ('{"type":"error","id":ID,"code":5}', "$.code", "Expected `str`"),
        (b'{"type":"error","id":ID,"code":"\xff"}\n', "$", "not UTF-8"),
    ],
)
async def test_an_answer_that_is_no_frame_fails_the_call_too(answer, field, text):
    async with Speaker(new_hub(Calc)) as ana:
        asking = asyncio.ensure_future(ana.ws.call("color"))
        number = (await ana.hear("call"))["id"]
        await ana.client.send(made(answer, number))
        error = await ana.hear("error")
        assert (error["code"], error["id"], error["field"]) == ("invalid", number, field)
        assert text in error["text"]
        with pytest.raises(CallFailed, match="invalid: its answer can't be read"):
            await asking
        await ana.say("ping")
        await ana.hear("pong")


async def test_a_call_of_the_server_fails_clearly():
    hub = new_hub(Calc)
    async with Speaker(hub) as ana:
        ws = ana.ws
        asking = asyncio.ensure_future(ws.call("x", b"\0", timeout=0.02))
        call = await ana.hear("call")
        assert call["data"] == b"\0"
        with pytest.raises(TimeoutError, match=r"did not answer 'x' in 0\.02 s"):
            await asking
        assert await ana.hear() == {"type": "cancel", "id": call["id"]}
        asking = asyncio.ensure_future(ws.call("x"))
        call = await ana.hear("call")
        await ana.say("error", id=call["id"], code="unknown_type", text="no x here")
        with pytest.raises(CallFailed, match="unknown_type: no x here"):
            await asking
        asking = asyncio.ensure_future(ws.call("x"))
        await ana.hear("call")
        await ana.drop()
        with pytest.raises(CallFailed, match="closed"):
            await asking
        with pytest.raises(CallFailed, match="closed"):
            await ws.call("x")
    async with hub.test_client("/ws") as raw:
        with pytest.raises(RuntimeError, match="needs a client that speaks v1"):
            await raw.connection.call("x")


async def test_a_call_in_on_open_is_an_error_that_says_why(caplog):
    caplog.set_level(logging.CRITICAL)

    class Early(Listener):
        async def on_open(self, ws):
            try:
                await ws.call("x")
            except RuntimeError as error:
                ws.send(str(error))

    async with Speaker(new_hub(Early)) as ana:
        assert "ask later" in (await ana.hear("message"))["data"]


# ── renewal, going away ───────────────────────────────────────────────────────────────────────


async def test_a_token_is_renewed_by_on_renew_or_verify():
    class Tokens:
        def __call__(self, request):
            return "ana"

        def verify(self, token):
            if token != "newer":
                raise ValueError("no")
            return "ana"

    class Own(Listener):
        async def on_renew(self, ws, token):
            if token == "bad":
                raise Reject("expired already")
            return token

    hub = new_hub(authenticate=Tokens())
    hub.add("/own", Own)
    hub.add("/none", Echo, authenticate=lambda request: "ana")
    async with Speaker(hub) as ana:
        await ana.say("renew", id=1, token="newer")
        assert await ana.hear() == {"type": "renewed", "id": 1, "expires_in": None}
        await ana.say("renew", id=2, token="older")
        error = await ana.hear("error")
        assert (error["code"], error["field"]) == ("refused", "$.token")
        assert "older" not in error["text"]
    async with Speaker(hub, "/own") as ana:
        await ana.say("renew", id=1, token="ana")
        await ana.hear("renewed")
        for number, token in enumerate(["bad", "bob"], 2):
            await ana.say("renew", id=number, token=token)
            assert (await ana.hear("error"))["code"] == "refused"
    async with Speaker(hub, "/none") as ana:
        await ana.say("renew", id=1, token="x")
        assert "on_renew" in (await ana.hear("error"))["text"]


async def test_a_hub_that_stops_says_how_long_to_wait():
    hub = new_hub()
    async with Speaker(hub) as ana:
        await hub.stop(1012)
        told = await ana.hear("going_away")
        assert 0 <= told["after"] <= 10
        with pytest.raises(ConnectionClosed, match="1012"):
            await ana.client.receive()
