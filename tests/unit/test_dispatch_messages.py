"""What callbacks are given and what they give back: typed messages, events, replies."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from shared import lines_of, turns

from backchannel import Listener, event, threaded

# ── what comes back ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "frames"),
    [
        (None, []),
        ("text", ["text"]),
        ("", [""]),
        (b"bytes", [b"bytes"]),
        ({"a": 1}, ['{"a":1}']),
        ([], ["[]"]),
        (False, ["false"]),
        (0, ["0"]),
    ],
    ids=repr,
)
async def test_what_on_message_returns_unless_none_goes_to_the_sender(
    hub, diary, style, answer, frames
):
    hub.add("/ws/{channel}", diary.listener(style, on_message=lambda *_: answer))
    async with hub.test_client("/ws/cars") as other, hub.test_client("/ws/cars") as ws:
        await ws.send("x")
        await ws.settled()
        assert ws.received() == frames
        assert other.received() == []


@pytest.mark.parametrize("verb", ["send", "broadcast", "hub", "close", "subscribe", "audience"])
async def test_what_a_verb_returned_is_no_reply(hub, diary, verb):
    def act(ws, message):
        return {
            "send": lambda: ws.send("sent"),
            "broadcast": lambda: ws.broadcast("sent"),
            "hub": lambda: hub.broadcast("cars", "sent"),
            "close": ws.close,
            "subscribe": lambda: ws.subscribe("other"),
            "audience": lambda: hub.everyone.subscribe("other"),
        }[verb]()

    hub.add("/ws/{channel}", diary.listener("def", on_message=act))
    ws = await hub.test_client("/ws/cars").connect()
    await ws.send("x")
    await ws.settled()
    assert ws.received() == (["sent"] if verb in {"send", "broadcast", "hub"} else [])
    assert diary.count_of("on_error") == 0
    await ws.close()


async def test_a_def_that_returns_a_coroutine_is_awaited(hub, diary):
    """A decorator without functools.wraps makes an async def look like a def."""

    def undressed(function):
        def plain(self, *arguments):
            return function(self, *arguments)

        return plain

    class Chat(Listener):
        @undressed
        async def on_open(self, ws):
            await turns(2)
            diary.write("on_open")

        @undressed
        async def on_subscribe(self, ws, channel):
            async with asyncio.timeout(5):
                await turns(2)
            diary.write("on_subscribe")

        async def on_close(self, ws, reason):
            diary.write("on_close")

        def on_message(self, ws, message):
            return self.answer(ws, message)

        async def answer(self, ws, message):
            await turns(2)
            return message

    hub.add("/ws/{channel}", Chat)
    async with hub.test_client("/ws/cars") as ws:
        await ws.send("x")
        assert await ws.receive() == "x"
        assert await ws.connection.subscribe("later")
        assert ws.connection.channels == {"cars", "later"}
    assert diary == ["on_open", "on_subscribe", "on_subscribe", "on_close"]


# ── typed messages, events ────────────────────────────────────────────────────────────────────


class Move(msgspec.Struct):
    x: int
    y: int = 0


async def test_a_message_arrives_as_its_annotation_says(hub, style):
    class Game(Listener):
        if style == "async def":

            async def on_message(self, ws, message: Move):
                return message.x + message.y

        elif style == "threaded":

            @threaded
            def on_message(self, ws, message: Move):
                return message.x + message.y

        else:

            def on_message(self, ws, message: Move):
                return message.x + message.y

    hub.add("/ws", Game)
    async with hub.test_client("/ws") as ws:
        await ws.send({"x": 1, "y": 2})
        assert await ws.receive_json() == 3


async def test_invalid_input_never_reaches_the_callback_and_names_the_field(hub):
    seen = []

    class Game(Listener):
        def on_message(self, ws, message: Move):
            seen.append(message)

    hub.add("/ws", Game)
    async with hub.test_client("/ws") as ws:
        for wrong in ({"x": "1"}, {"y": 1}, "no json", [1]):
            await ws.send(wrong)
        answers = [await ws.receive_json() for _ in range(4)]
        assert ws.connection.is_open
    assert seen == []
    assert all(a["type"] == "error" and a["code"] == "invalid_message" for a in answers)
    assert answers[0]["field"] == "$.x"
    assert not any("Traceback" in a["text"] or "/" in a["text"] for a in answers)


async def test_the_wrong_kind_is_invalid_input(hub):
    hub.add("/text", _text_only)
    hub.add("/binary", _binary_only)
    async with hub.test_client("/text") as ws:
        await ws.send(b"binary")
        assert "expected a text message" in (await ws.receive_json())["text"]
        await ws.send("text")
        assert await ws.receive() == "text"
    async with hub.test_client("/binary") as ws:
        await ws.send("text")
        assert "expected a binary message" in (await ws.receive_json())["text"]
        await ws.send(b"binary")
        assert await ws.receive() == b"binary"


def _text_only(ws, message: str):
    return message


async def _binary_only(ws, message: bytes):
    return message


async def test_an_own_on_invalid_answers_in_its_place(hub, diary, style):
    kind = diary.listener(
        style, on_invalid=lambda ws, error: ws.send(f"no: {error.field}") and None
    )

    def on_message(self, ws, message: Move):
        diary.append("reached")

    kind.on_message = on_message
    hub.add("/ws", kind)
    async with hub.test_client("/ws") as ws:
        await ws.send({"x": "1"})
        assert await ws.receive() == "no: $.x"
        assert ws.connection.is_open
    assert "reached" not in diary
    assert "on_invalid InvalidMessage" in diary


async def test_events_are_routed_by_the_type_field(hub, style):
    class Game(Listener):
        if style == "async def":

            @event("move")
            async def moves(self, ws, message: Move):
                return message.x

            @event("ping")
            async def pings(self, ws):
                return "pong"

        elif style == "threaded":

            @event("move")
            @threaded
            def moves(self, ws, message: Move):
                return message.x

            @threaded
            @event("ping")
            def pings(self, ws):
                return "pong"

        else:

            @event("move")
            def moves(self, ws, message: Move):
                return message.x

            @event("ping")
            def pings(self, ws):
                return "pong"

    hub.add("/ws", Game)
    async with hub.test_client("/ws") as ws:
        await ws.send({"type": "move", "x": 7})
        assert await ws.receive_json() == 7
        await ws.send({"type": "ping"})
        assert await ws.receive() == "pong"
        await ws.send({"type": "move", "x": "seven"})
        assert (await ws.receive_json())["field"] == "$.x"
        await ws.send({"type": "jump"})
        unknown = await ws.receive_json()
        assert unknown["code"] == "unknown_type"
        assert unknown["text"] == "unknown type 'jump'; known are move, ping"
        for frame, field in (
            ("no json", "$"),
            ("[]", "$"),
            ("{}", "$.type"),
            ('{"type": 5}', "$.type"),
        ):
            await ws.send(frame)
            answer = await ws.receive_json()
            assert "move, ping" in answer["text"]
            assert (answer["field"], answer["code"]) == (field, "invalid_message")
        assert ws.connection.is_open


async def test_events_without_a_method_go_to_on_message(hub):
    class Game(Listener):
        @event("ping")
        def pings(self, ws):
            return "pong"

        def on_message(self, ws, message):
            return "other"

    hub.add("/ws", Game)
    async with hub.test_client("/ws") as ws:
        for message in ({"type": "jump"}, "no json", {"no": "type"}, b"\x00"):
            await ws.send(message)
            assert await ws.receive() == "other"
        await ws.send({"type": "ping"})
        assert await ws.receive() == "pong"


async def test_another_tag_may_be_named(hub):
    class Game(Listener):
        @event("ping")
        def pings(self, ws):
            return "pong"

    hub.add("/ws", Game, tag="msgType")
    async with hub.test_client("/ws") as ws:
        await ws.send({"msgType": "ping", "type": "other"})
        assert await ws.receive() == "pong"
        await ws.send({"msgType": "jump"})
        assert (await ws.receive_json())["text"] == "unknown msgType 'jump'; known are ping"
        await ws.send({"type": "ping"})
        assert (await ws.receive_json())["field"] == "$.msgType"


async def test_an_event_that_raises_is_reported_under_its_own_name(hub, caplog):
    class Game(Listener):
        @event("ping")
        def pings(self, ws):
            raise ValueError

    hub.add("/ws", Game)
    async with hub.test_client("/ws") as ws:
        await ws.send({"type": "ping"})
        assert ws.connection.is_open
    assert "Game.pings" in lines_of(caplog)[0]
