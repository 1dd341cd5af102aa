"""The client, against a small server that speaks the specification."""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import ssl
import subprocess
import sys
from dataclasses import dataclass

import msgspec
import pytest
import trustme
from speaker import Speaker

from backchannel.client import (
    CallTimeout,
    Closed,
    Join,
    Leave,
    Lost,
    Member,
    NotAdmitted,
    NotRead,
    NotUnderstood,
    OutcomeUnknown,
    Publication,
    QueueExpired,
    QueueFull,
    ServerError,
    Snapshot,
    Unreachable,
    Unsubscribed,
    channels,
    connect,
    line,
    returning,
)
from backchannel.client.frames import decoded, unpack
from backchannel.client.outbox import Kind, Request
from backchannel.errors import InvalidMessage, Reject, UnsendableMessage


@pytest.fixture
async def speaker():
    async with Speaker() as speaker:
        yield speaker


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Come back at once: how long it waits has tests of its own."""
    monkeypatch.setattr(returning, "FIRST", 0.01)


@pytest.fixture
def states():
    """What on_state was told, with a way to wait for a state."""

    class States(list):
        def __call__(self, state):
            self.append(state)
            for future in self.waiting.pop(state, []):
                future.set_result(None)

        waiting: dict = {}  # noqa: RUF012

        async def wait(self, state):
            future = asyncio.get_running_loop().create_future()
            self.waiting.setdefault(state, []).append(future)
            await future

    return States()


async def refusals(speaker, *answers):
    """Refuse the next handshakes, then let in."""
    left = list(answers)
    speaker.refuse = lambda _: left.pop(0) if left else None


# ── messages ────────────────────────────────────────────────────────────────────────────────


async def test_messages_go_both_ways_as_text_json_and_bytes(speaker):
    async with connect(speaker.url) as client:
        for data in ("text", {"a": [1, None]}, b"\n\x00bytes", 7):
            await client.send(data)
        peer = await speaker.peer()
        await peer.expect("message", 4)
        await peer.say("message", data="text")
        await peer.say("message", binary=b"\n\x00bytes")
        await peer.say("message", data={"n": 1})
        assert [await client.receive() for _ in range(3)] == ["text", b"\n\x00bytes", {"n": 1}]
    assert speaker.messages == ["text", {"a": [1, None]}, b"\n\x00bytes", 7]


async def test_a_delivered_message_is_acknowledged_and_a_refused_one_says_why(speaker):
    async with connect(speaker.url) as client:
        await client.deliver("hi")
        peer = await speaker.peer()
        speaker.before = lambda *_: "drop"
        refused = asyncio.create_task(client.deliver({"age": "x"}))
        frame = await peer.expect("message", 2)
        await peer.say(
            "error", id=frame["id"], code="invalid", text="expected int", field="$.data.age"
        )
        with pytest.raises(ServerError, match=r"invalid: \$\.data\.age: expected int") as error:
            await refused
        assert (error.value.code, error.value.field) == ("invalid", "$.data.age")


class Said(msgspec.Struct, tag="said"):
    text: str


def nested(levels):
    return "[" * levels + "]" * levels


def below(levels, function, *arguments):
    """Call a function with so many calls around it."""
    if levels:
        return below(levels - 1, function, *arguments)
    return function(*arguments)


def test_what_a_server_can_pass_on_is_read_however_deep_the_application_is():
    frame = f'{{"type":"message","data":{nested(600)}}}'
    received = below(sys.getrecursionlimit() // 2, unpack, frame)
    assert bytes(received.data).decode() == nested(600)
    assert str(decoded(received.data)) == nested(600)


def test_data_of_which_nothing_can_be_made_is_invalid():
    deep = msgspec.Raw(nested(100_000).encode())
    for data, text, field in [
        (deep, "nested too deeply", "$"),
        (msgspec.Raw(b"[1e999]"), "Number out of range", "$[0]"),
        (msgspec.Raw(b'"\xff"'), "can't decode byte 0xff", "$"),
    ]:
        with pytest.raises(InvalidMessage, match=text) as error:
            decoded(data)
        assert error.value.field == field


async def test_what_can_not_be_read_is_told_to_who_reads_it_and_the_rest_goes_on(speaker):
    async with connect(speaker.url) as client:
        peer = await speaker.peer()
        client.answer("any")(lambda data: data)
        await peer.socket.send('{"type":"message","data":[1e999]}')
        with pytest.raises(InvalidMessage, match="out of range"):
            await client.receive()
        await peer.socket.send('{"type":"call","id":1,"event":"any","data":1e999}')
        assert (await peer.expect("error"))["code"] == "invalid"
        speaker.before = lambda peer, frame: "drop" if frame["type"] != "hello" else None
        for number, users in enumerate(['"x"', "[1e999]", '[{"user":1}]'], 1):
            asking = asyncio.create_task(client.presence("chat"))
            asked = await peer.expect("presence", number)
            await peer.socket.send(f'{{"type":"presence","id":{asked["id"]},"users":{users}}}')
            with pytest.raises(NotUnderstood, match="no list of users"):
                await asking
        calling = asyncio.create_task(client.call("add"))
        asked = await peer.expect("call")
        await peer.socket.send(f'{{"type":"reply","id":{asked["id"]},"data":1e999}}')
        with pytest.raises(InvalidMessage, match="out of range"):
            await calling
        await peer.say("message", data="still here")
        assert await client.receive() == "still here"


@dataclass
class News:
    headline: str


async def test_messages_are_decoded_as_what_the_application_says(speaker):
    async with connect(speaker.url) as client:
        peer = await speaker.peer()
        await peer.say("message", data={"type": "said", "text": "hi"})
        await peer.say("message", data={"type": "said"})
        await peer.say("message", binary=b"\x01")
        await peer.say("message", data={"type": "said", "text": "still here"})
        messages = client.messages(type=Said)
        assert await anext(messages) == Said("hi")
        with pytest.raises(InvalidMessage, match="text") as error:
            await anext(messages)
        assert error.value.field == "$"
        with pytest.raises(InvalidMessage, match="expected Said, got 1 bytes"):
            await anext(messages)
        assert await anext(messages) == Said("still here")


async def test_on_message_is_called_for_each_and_goes_on_after_an_error(speaker, caplog):
    heard, enough = [], asyncio.Event()
    async with connect(speaker.url) as client:

        @client.on_message
        async def hear(message):
            heard.append(message)
            if message == "bad":
                raise ZeroDivisionError
            if message == "last":
                enough.set()

        peer = await speaker.peer()
        for data in ("one", "bad", "last"):
            await peer.say("message", data=data)
        await enough.wait()
    assert heard == ["one", "bad", "last"]
    assert "what on_message was given raised" in caplog.text


async def test_what_cannot_be_sent_raises_and_sends_nothing(speaker):
    speaker.hello = {"max_message": 1000}
    async with connect(speaker.url) as client:
        with pytest.raises(UnsendableMessage, match=r"\$\.x is nan"):
            await client.send({"x": float("nan")})
        with pytest.raises(UnsendableMessage, match="the server takes 1000"):
            await client.send("x" * 2000)
        with pytest.raises(UnsendableMessage, match="frame of 10"):
            await client.deliver("x" * 990)  # with its envelope
        with pytest.raises(ValueError, match="is empty"):
            await client.publish("", 1)
        await client.deliver("after")
    assert speaker.messages == ["after"]


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
async def test_lone_surrogates_are_refused_at_the_call_and_nothing_is_sent(speaker, text):
    async with connect(speaker.url) as client:
        for sending in (
            client.send(text),
            client.send({"a": [text]}),
            client.deliver(text),
            client.deliver({text: 1}),
            client.publish("news", {"a": text}),
            client.call("add", {"a": text}),
        ):
            with pytest.raises(UnsendableMessage, match=r"surrogate|which JSON can't have"):
                await sending
        for asking in (client.publish(text, 1), client.presence(text), client.call(text)):
            with pytest.raises(ValueError, match="lone surrogate"):
                await asking
        with pytest.raises(ValueError, match=r"renew\(\): a token is printable ASCII"):
            await client.renew(text)
        for entering in (lambda: client.subscribe(text), lambda: client.channel(text)):
            with pytest.raises(ValueError, match="lone surrogate"):
                entering()
        with pytest.raises(ValueError, match=r"subscribe\('news', since=…\) has a lone surrogate"):
            client.subscribe("news", since=text)
        with pytest.raises(ValueError, match="UTF-8"):
            await client.close(4100, text)
        await client.deliver("after")
        assert [frame["type"] for frame in speaker.peers[0].heard] == ["hello", "ping", "message"]
    assert speaker.messages == ["after"]


async def test_what_is_no_text_is_refused_where_text_belongs(speaker):
    async with connect(speaker.url) as client:
        with pytest.raises(TypeError, match=r"call\(\): the event is a str, not 7"):
            await client.call(7)
        with pytest.raises(TypeError, match=r"subscribe\('news', since=…\) is a str, not 7"):
            client.subscribe("news", since=7)
        with pytest.raises(TypeError, match=r"renew\(\): a token is a str, not a bytes"):
            await client.renew(b"secret")
        await client.deliver("after")


async def test_an_answer_that_is_no_utf_8_fails_alone(speaker):
    async with connect(speaker.url) as client:
        client.answer("gives")(lambda _: "\ud800")

        @client.answer("rejects")
        def reject(_):
            raise Reject("no \ud800")

        peer = await speaker.peer()
        await peer.say("call", id=1, event="gives", data=None)
        assert (await peer.expect("error"))["code"] == "failed"
        await peer.say("call", id=2, event="rejects", data=None)
        assert (await peer.expect("error", 2))["text"] == "no \\ud800"
        await client.deliver("after")


async def test_a_bug_in_what_is_written_ends_the_client_rather_than_let_it_wait(speaker, caplog):
    async with connect(speaker.url) as client:
        waiting = asyncio.create_task(client.receive())
        client._add(Request(Kind.PLAIN, {"type": "message", "no": "\ud800"}))
        with pytest.raises(UnicodeEncodeError):
            await waiting
    assert "the client has a bug; it is closed" in caplog.text


async def test_that_the_server_gave_up_a_call_too_is_not_logged(speaker, caplog):
    speaker.before = lambda peer, frame: "drop" if frame["type"] == "call" else None
    async with connect(speaker.url) as client:
        peer = await speaker.peer()
        with pytest.raises(CallTimeout):
            await client.call("add", timeout=0.05)
        await peer.say("error", id=(await peer.expect("call"))["id"], code="timeout")
        await peer.say("message", data="seen")
        assert await client.receive() == "seen"
    assert caplog.text == ""


async def test_an_error_that_answers_nothing_is_logged(speaker, caplog):
    async with connect(speaker.url) as client:
        peer = await speaker.peer()
        await peer.say("error", code="invalid", text="no frame")
        await peer.say("message", data="seen")
        assert await client.receive() == "seen"
    assert "the server says: invalid: no frame" in caplog.text


async def test_unknown_frames_and_fields_and_answers_to_nobody_are_ignored(speaker):
    async with connect(speaker.url) as client:
        peer = await speaker.peer()
        await peer.say("weather", user={"not": "a string"}, id="x")
        await peer.say("ack", id=99)
        await peer.say("reply", id=99, data=1)
        await peer.say("cancel", id=99)
        await peer.say("message", data="seen", more=True)
        assert await client.receive() == "seen"


@pytest.mark.parametrize(
    "sent",
    [
        "no json", "[1]", '{"no": "type"}', '{"type": "ack", "id": "x"}',
        b'{"type": "ack", "position": "\xff"}\n', "DEEP",
    ],
)  # fmt: skip
async def test_a_server_that_speaks_no_v1_ends_the_client_with_a_word(speaker, sent):
    async with connect(speaker.url) as client:
        peer = await speaker.peer()
        deep = f'{{"type":"message","data":{nested(100_000)}}}'
        await peer.socket.send(deep if sent == "DEEP" else sent)
        with pytest.raises(NotUnderstood, match="no frame of v1"):
            await client.receive()
        with pytest.raises(NotUnderstood):
            await client.send("x")
        await peer.socket.wait_closed()
        assert peer.socket.close_code == 1002


def test_the_clients_frames_have_what_the_servers_frames_have():
    from backchannel.client import frames
    from backchannel.dialect.frames import FromServer

    fields = {field.name for field in msgspec.structs.fields(frames.Incoming)}
    for kind in FromServer.__args__:
        assert kind.__struct_config__.tag in frames._KNOWN
        assert {field.name for field in msgspec.structs.fields(kind)} - {"again"} <= fields
    assert len(frames._KNOWN) == len(FromServer.__args__)


# ── coming back ─────────────────────────────────────────────────────────────────────────────


async def test_what_was_not_acknowledged_is_sent_again_in_order_and_done_once(speaker):
    async with connect(speaker.url) as client:
        peer = await speaker.peer()
        speaker.before = lambda peer, frame: "mute"
        sending = [asyncio.create_task(client.deliver(n)) for n in range(3)]
        await peer.expect("message", 3)
        speaker.before = lambda peer, frame: None
        peer.cut()
        await asyncio.gather(*sending)
        new = asyncio.create_task(client.deliver("new"))
        second = await speaker.peer(1)
        await new
        again = [(f["id"], f.get("again"), f["data"]) for f in second.of("message")]
        assert again == [(1, True, 0), (2, True, 1), (3, True, 2), (5, None, "new")]
    assert speaker.messages == [0, 1, 2, "new"]


async def test_a_publish_whose_ack_was_lost_appears_once_and_has_its_position(speaker):
    async with connect(speaker.url) as client:
        events = client.subscribe("news")
        await events.ready()
        speaker.before = lambda peer, frame: (
            "mute" if frame["type"] == "publish" and not frame.get("again") else None
        )
        publishing = asyncio.create_task(client.publish("news", "once"))
        assert (await anext(events)).data == "once"
        (await speaker.peer()).cut()
        assert await publishing == "e.1"
        await speaker.publish("news", "next")
        assert (await anext(events)).data == "next"
    assert speaker.history["news"] == ["once", "next"]


async def test_a_cut_before_a_frame_is_done_loses_nothing(speaker):
    cuts = 0

    def cut_each_once(peer, frame):
        nonlocal cuts
        if frame["type"] == "publish" and not frame.get("again"):
            cuts += 1
            return "cut"
        return None

    speaker.before = cut_each_once
    async with connect(speaker.url) as client:
        for n in range(5):
            await client.publish("news", n)
    assert cuts == 5
    assert speaker.history["news"] == list(range(5))


async def test_where_the_session_is_gone_the_outcome_is_unknown_or_it_is_sent_as_new(speaker):
    async with connect(speaker.url) as client:
        speaker.before = lambda peer, frame: "mute" if frame["type"] == "message" else None
        peer = await speaker.peer()
        unknown = asyncio.create_task(client.deliver("unknown"))
        harmless = asyncio.create_task(client.deliver("harmless", retry=True))
        await peer.expect("message", 2)
        speaker.before = lambda *_: None
        speaker.forgets = True
        peer.cut()
        with pytest.raises(OutcomeUnknown, match="may have been done, or not"):
            await unknown
        await harmless
        assert client.resumed is False
    assert "again" not in speaker.peers[1].of("message")[0]
    assert speaker.messages == ["unknown", "harmless", "harmless"]


async def test_a_call_is_not_sent_again(speaker):
    async with connect(speaker.url) as client:
        speaker.before = lambda peer, frame: "cut" if frame["type"] == "call" else None
        with pytest.raises(OutcomeUnknown, match="before the reply"):
            await client.call("add", {"a": 1, "b": 2})
        speaker.before = lambda *_: None
        assert await client.call("add", {"a": 1, "b": 2}) == 3
        assert len(speaker.peers[1].of("call")) == 1


async def test_questions_are_asked_again(speaker):
    async with connect(speaker.url) as client:
        speaker.before = lambda peer, frame: (
            "cut" if frame["type"] == "presence" and len(speaker.peers) == 1 else None
        )
        (member,) = await client.presence("chat")
        assert member == Member("ana", member.devices)
        assert member.devices[0].meta == {"a": 1}


async def test_a_token_that_arrived_is_confirmed_by_the_next_frame(speaker):
    async with connect(speaker.url):
        peer = await speaker.peer()
        await peer.expect("ping")
        first = set(speaker.sessions)
        speaker.before = lambda peer, frame: "cut" if frame["type"] == "hello" else None
        peer.cut()  # and then in the hello, before there is a newer token
        await (await speaker.peer(1)).expect("hello")
        speaker.before = lambda *_: None
        third = await speaker.peer(2)
        await third.expect("ping")
        assert third.of("hello")[0]["resume"] in first
        assert not first & set(speaker.sessions)


async def test_ids_count_up_over_connections(speaker):
    async with connect(speaker.url) as client:
        await client.deliver(1)
        (await speaker.peer()).cut()
        await speaker.peer(1)
        await client.deliver(2)
        speaker.forgets = True
        (await speaker.peer(1)).cut()
        await speaker.peer(2)
        await client.deliver(3)
    ids = [[frame.get("id") for frame in peer.of("hello", "message")] for peer in speaker.peers]
    assert ids == [[None, 1], [2, 3], [4, 5]]


async def test_a_server_that_is_cut_during_its_hello_is_tried_again(speaker):
    speaker.before = lambda peer, frame: "cut" if len(speaker.peers) < 3 else None
    async with connect(speaker.url) as client:
        assert client.state == "open"
    assert len(speaker.peers) == 3


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1008, 1009, 1010, 4004, 4005, 4100, 4999])
async def test_codes_that_say_so_end_the_client(speaker, code, states):
    async with connect(speaker.url, on_state=states) as client:
        events = client.subscribe("news")
        await events.ready()
        await (await speaker.peer()).close(code, "goodbye")
        if code == 1000:
            assert [m async for m in client] == []
            assert [e async for e in events] == []
            await client.wait_closed()
        else:
            for iterating in (anext(aiter(client)), anext(events), client.wait_closed()):
                with pytest.raises(Closed, match="goodbye") as error:
                    await iterating
                assert error.value.code == code
        with pytest.raises(Closed, match=str(code)):
            await client.send("x")
        with pytest.raises(Closed, match=str(code)):
            client.subscribe("other")
    assert states == ["connecting", "open", "closed"]
    assert len(speaker.peers) == 1


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1014, 4001, 4002, 4003, 4006, 4008, 3000])
async def test_after_all_other_codes_it_comes_back(speaker, code, states):
    async with connect(speaker.url, on_state=states) as client:
        await (await speaker.peer()).close(code)
        await speaker.peer(1)
        await client.deliver("back")
        assert client.resumed
    assert states == ["connecting", "open", "waiting", "connecting", "open", "closed"]


async def test_after_an_expired_token_it_comes_back_with_another(speaker):
    tokens = iter(["one", "two"])

    async def token():
        return next(tokens)

    async with connect(speaker.url, token=token) as client:
        await (await speaker.peer()).close(4007)
        await speaker.peer(1)
        await client.deliver("back")
    sent = [peer.request.headers["Authorization"] for peer in speaker.peers]
    assert sent == ["Bearer one", "Bearer two"]


async def test_an_expired_token_that_is_all_there_is_ends_it(speaker):
    async with connect(speaker.url, token="only") as client:
        await (await speaker.peer()).close(4007, "expired")
        with pytest.raises(Closed, match=r"pass connect\(token=…\) what can be called"):
            await client.receive()


async def test_going_away_says_when_to_come_back(speaker, monkeypatch):
    waits = []

    def wait(pace, real=returning.Pace.wait):
        waits.append(real(pace))
        return 0.0

    monkeypatch.setattr(returning.Pace, "wait", wait)
    async with connect(speaker.url) as client:
        peer = await speaker.peer()
        await peer.say("going_away", after=1.7)
        await peer.close(1012)
        await speaker.peer(1)
        await client.deliver("back")
    assert waits == [1.7]


def test_waits_are_full_jitter_and_grow_until_a_connection_lasted(monkeypatch):
    longest = []
    monkeypatch.setattr(returning, "FIRST", 0.5)
    monkeypatch.setattr(returning.random, "uniform", lambda low, high: longest.append(high) or high)
    pace = returning.Pace()
    for _ in range(8):
        pace.wait()
    assert longest == [0.5, 1, 2, 4, 8, 16, 20, 20]
    pace.lasted(9.9)
    pace.wait()
    pace.lasted(10)
    pace.wait()
    pace.ended(1013, None)  # as if the next attempt had failed already
    pace.wait()
    assert longest[8:] == [20, 0.5, 2]
    pace.refused(60)
    assert pace.wait() == 60
    pace.ended(1001, 0.2)
    assert pace.wait() == 0.2


# ── handshakes ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [400, 401, 403, 404, 426])
async def test_a_refused_handshake_is_final_and_has_the_servers_text(speaker, status):
    await refusals(speaker, (status, {}, "not like this\n"), (status, {}, "again"))
    with pytest.raises(NotAdmitted, match=f"HTTP {status}: not like this") as error:
        await connect(speaker.url).__aenter__()
    assert (error.value.status, error.value.text) == (status, "not like this")


async def test_a_server_that_is_busy_is_waited_for_as_long_as_it_says(speaker, monkeypatch):
    noted = []

    def refused(pace, after):
        noted.append(after)

    monkeypatch.setattr(returning.Pace, "refused", refused)
    busy = {"Retry-After": "3"}
    await refusals(
        speaker, (429, busy, "slowly"), (503, busy, "soon"), (500, {}, "id 7"), (502, {}, "")
    )
    async with connect(speaker.url) as client:
        await client.deliver("in")
    assert noted == [3, 3, 0, 0]


def test_retry_after_is_seconds_or_a_date(monkeypatch):
    monkeypatch.setattr(returning.time, "time", lambda: 784111777.0)
    assert returning.retry_after("120") == 120
    assert returning.retry_after("Sun, 06 Nov 1994 08:49:47 GMT") == 10
    assert returning.retry_after("Sun, 06 Nov 1994 08:49:17 GMT") == 0
    assert [returning.retry_after(v) for v in (None, "", "soon", "-1", "²")] == [0] * 5


async def test_a_first_connection_that_does_not_come_is_given_up(free_port):
    with pytest.raises(Unreachable, match=r"within 0\.2 s .*Connect call failed") as error:
        await connect(f"ws://127.0.0.1:{free_port}/?t=secret", first_seconds=0.2).__aenter__()
    assert isinstance(error.value, ConnectionError)
    assert "secret" not in str(error.value)


async def test_a_server_without_the_dialect_is_said_to_have_none():
    from websockets.asyncio.server import serve

    async with serve(lambda socket: socket.wait_closed(), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(NotUnderstood, match=r"does not speak backchannel\.v1\.json"):
            await connect(f"ws://127.0.0.1:{port}/").__aenter__()


async def test_headers_cookies_and_tokens_are_sent(speaker):
    async with connect(
        speaker.url, token="t1", headers={"X-App": "bot"}, cookies={"a": "1", "b": "2"}
    ):
        headers = (await speaker.peer()).request.headers
    assert headers["Authorization"] == "Bearer t1"
    assert headers["X-App"] == "bot"
    assert headers["Cookie"] == "a=1; b=2"


async def test_a_token_that_cannot_be_had_is_asked_for_again(speaker, caplog):
    answers = iter([OSError("no network"), "t2"])

    def token():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with connect(speaker.url, token=token):
        assert (await speaker.peer()).request.headers["Authorization"] == "Bearer t2"
    assert "connect(token=…) raised" in caplog.text


# ── newer tokens ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tokens():
    """What a token= is that counts, with a way to wait until it was asked so often."""

    class Tokens:
        asked = 0
        waiting: dict = {}  # noqa: RUF012

        def __call__(self):
            self.asked += 1
            if self.asked in self.waiting:
                self.waiting.pop(self.asked).set()
            return f"secret-{self.asked}"

        async def wait(self, count):
            if self.asked < count:
                event = self.waiting[count] = asyncio.Event()
                await event.wait()

    return Tokens()


async def test_a_newer_token_is_brought_before_the_old_one_ends(
    speaker, tokens, states, monkeypatch
):
    monkeypatch.setattr("backchannel.client.tokens.SOONEST", 0.01)
    speaker.hello, speaker.renews = {"expires_in": 0.1}, 0.1
    async with connect(speaker.url, token=tokens, on_state=states) as client:
        peer = await speaker.peer()
        assert (await peer.expect("renew"))["token"] == "secret-2"
        assert (await peer.expect("renew", 2))["token"] == "secret-3"
        speaker.renews = None  # for ever
        assert await client.renew("by hand") is None
        count = len(peer.of("renew"))
        assert client._renewal._timer is None
        await client.deliver("and nothing more")
        assert len(peer.of("renew")) == count
    assert states == ["connecting", "open", "closed"]


@pytest.mark.parametrize(("left", "after"), [(10, 5), (120, 60), (3600, 3540), (0.2, 0.5)])
async def test_it_is_brought_at_half_time_or_a_minute_before(speaker, tokens, left, after):
    speaker.hello = {"expires_in": left}
    async with connect(speaker.url, token=tokens) as client:
        planned = client._renewal._timer.when() - asyncio.get_running_loop().time()
        assert after - 1 < planned <= after
    assert client._renewal._timer is None


@pytest.mark.parametrize(("token", "left"), [("only", 10), (None, 10), (lambda: "t", None)])
async def test_where_there_is_no_other_token_or_no_end_none_is_brought(speaker, token, left):
    speaker.hello = {"expires_in": left}
    async with connect(speaker.url, token=token) as client:
        assert client._renewal._timer is None


@pytest.mark.parametrize("answer", [OSError("no network"), None, b"bytes", "a line\n"])
async def test_a_newer_token_that_cannot_be_had_costs_nothing_but_the_next_connection(
    speaker, caplog, monkeypatch, answer
):
    monkeypatch.setattr("backchannel.client.tokens.SOONEST", 0.01)
    speaker.hello = {"expires_in": 0.02}
    asked = asyncio.Event()
    answers = iter(["t1", answer, "t3"])

    async def token():
        found = next(answers)
        if found == answer:
            asked.set()
        if isinstance(found, Exception):
            raise found
        return found

    async with connect(speaker.url, token=token) as client:
        await asked.wait()
        await client.deliver("still open")
        speaker.hello = {}
        peer = await speaker.peer()
        assert peer.of("renew") == []
        await peer.close(4007)
        assert (await speaker.peer(1)).request.headers["Authorization"] == "Bearer t3"
        await client.deliver("back")
    (said,) = [r.getMessage() for r in caplog.records if "no newer token came" in r.getMessage()]
    assert "a line" not in said


async def test_a_newer_token_that_the_server_refuses_is_told(speaker, tokens, caplog, monkeypatch):
    monkeypatch.setattr("backchannel.client.tokens.SOONEST", 0.01)
    speaker.hello = {"expires_in": 0.02}
    speaker.before = lambda peer, frame: "drop" if frame["type"] == "renew" else None
    async with connect(speaker.url, token=tokens) as client:
        peer = await speaker.peer()
        frame = await peer.expect("renew")
        await peer.say("error", id=frame["id"], code="refused", text="no on_renew")
        await client.deliver("still open")
    assert "(4007) and is followed by another: refused: no on_renew" in caplog.text
    assert "Traceback" not in caplog.text
    assert "secret-2" not in caplog.text


async def test_a_token_that_is_waited_for_ends_with_its_connection(speaker, monkeypatch, caplog):
    monkeypatch.setattr("backchannel.client.tokens.SOONEST", 0.01)
    speaker.hello = {"expires_in": 0.02}
    asked, given_up = asyncio.Event(), asyncio.Event()
    count = 0

    async def token():
        nonlocal count
        count += 1
        if count == 2:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                given_up.set()
        return f"t{count}"

    async with connect(speaker.url, token=token) as client:
        await asked.wait()
        speaker.hello = {}
        (await speaker.peer()).cut()
        await given_up.wait()
        await speaker.peer(1)
        await client.deliver("back")
        assert [peer.of("renew") for peer in speaker.peers] == [[], []]
    assert "no newer token came" not in caplog.text


async def test_no_token_stands_in_a_log_line(speaker, caplog):
    caplog.set_level(logging.DEBUG)
    async with connect(speaker.url, token="secret-1") as client:
        await client.renew("secret-2")
        resume = client._resume
        (await speaker.peer()).cut()
        await speaker.peer(1)
        await client.deliver("x")
    lines = [r.getMessage() for r in caplog.records if r.name != "websockets.server"]
    assert any("connecting again" in line for line in lines)
    for word in ("secret-1", "secret-2", resume):
        assert word not in str(lines)


async def test_a_certificate_is_checked_and_who_signed_it_can_be_said():
    authority = trustme.CA()
    ours, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(ours)
    authority.configure_trust(trusting)
    async with Speaker(ssl=ours) as speaker:
        with pytest.raises(Unreachable, match=r"not to be trusted, .*pass connect\(ssl=…\)"):
            await connect(speaker.url).__aenter__()
        async with connect(speaker.url, ssl=trusting, proxy=False) as client:
            await client.deliver("safe")
    assert speaker.messages == ["safe"]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"url": 7}, TypeError, "takes a URL"),
        ({"url": "http://x"}, ValueError, "starts with ws:// or wss://"),
        ({"url": "ws://"}, ValueError, "ws://"),
        ({"url": "ws://x", "patience": 0}, ValueError, r"patience=…\) is seconds above 0, not 0"),
        ({"url": "ws://x", "queue_bytes": "1"}, TypeError, r"queue_bytes=…\) is a number"),
        ({"url": "ws://x", "max_unread": None}, TypeError, r"max_unread=…\)"),
        ({"url": "ws://x", "queue_seconds": float("nan")}, ValueError, "queue_seconds"),
        ({"url": "ws://x", "on_state": 1}, TypeError, r"on_state=…\) is what can be called, not 1"),
        ({"url": "ws://x", "on_lost": "f"}, TypeError, r"on_lost=…\) is what can be called"),
        ({"url": "ws://x", "token": b"t"}, TypeError, r"token=…\): a token is a str, not a bytes"),
        ({"url": "ws://x", "token": "t1\n"}, ValueError, r"character 2 is '\\n': strip\(\)"),
        ({"url": "ws://x", "token": "\ud800"}, ValueError, "a token is printable ASCII"),
    ],
)
def test_what_a_client_cannot_be_made_with(arguments, error, text):
    with pytest.raises(error, match=text):
        connect(**arguments)


async def test_a_client_is_used_once_and_not_before_it_is_entered(speaker):
    client = connect(speaker.url)
    with pytest.raises(RuntimeError, match="not connected yet"):
        await client.send("x")
    async with client:
        pass
    with pytest.raises(RuntimeError, match="used before"):
        await client.__aenter__()


def test_a_client_imports_no_hub_and_no_server():
    code = (
        "import sys, backchannel.client, backchannel.client.blocking\n"
        "print([n for n in ('uvicorn', 'backchannel.hub', 'backchannel.app') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ── the queue ───────────────────────────────────────────────────────────────────────────────


async def offline(speaker, client, states):
    """Cut the connection, and let none be made."""
    speaker.refuse = lambda _: (503, {}, "away")
    waiting = asyncio.create_task(states.wait("waiting"))
    await asyncio.sleep(0)
    (await speaker.peer()).cut()
    await waiting
    assert client.state != "open"


async def test_what_is_sent_without_a_connection_leaves_with_the_next_in_order(speaker, states):
    async with connect(speaker.url, on_state=states) as client:
        await offline(speaker, client, states)
        await client.send("one")
        two = asyncio.create_task(client.deliver("two"))
        await asyncio.sleep(0)
        await client.send("three")
        assert client.state != "open"
        speaker.refuse = lambda _: None
        await two
        await client.deliver("four")
    assert speaker.messages == ["one", "two", "three", "four"]


async def test_the_queue_has_a_bound_in_messages_and_in_bytes(speaker, states):
    async with connect(speaker.url, on_state=states, queue_messages=3, queue_bytes=5000) as client:
        await offline(speaker, client, states)
        await client.send("x" * 3000)
        with pytest.raises(QueueFull, match="raise queue_bytes"):
            await client.send("x" * 3000)
        await client.send("2")
        await client.send("3")
        with pytest.raises(QueueFull, match="raise queue_messages"):
            await client.send("4")
        speaker.refuse = lambda _: None
        await client.wait_open()
        await client.deliver("5")
    assert [len(m) for m in speaker.messages] == [3000, 1, 1, 1]


async def test_what_waited_too_long_is_not_sent(speaker, states, caplog):
    async with connect(speaker.url, on_state=states, queue_seconds=0.05) as client:
        await offline(speaker, client, states)
        await client.send("dropped")
        with pytest.raises(QueueExpired, match="was not sent"):
            await client.deliver("expired")
        speaker.refuse = lambda _: None
        await client.wait_open()
        await client.deliver("after")
    assert speaker.messages == ["after"]
    assert "1 messages waited" in caplog.text


async def test_what_the_next_server_finds_too_large_is_not_sent(speaker, states, caplog):
    async with connect(speaker.url, on_state=states) as client:
        await offline(speaker, client, states)
        speaker.hello = {"max_message": 1000}
        await client.send("x" * 2000)
        delivering = asyncio.create_task(client.deliver("x" * 2000))
        await asyncio.sleep(0)
        speaker.refuse = lambda _: None
        with pytest.raises(UnsendableMessage, match="the server takes 1000"):
            await delivering
        await client.deliver("after")
    assert speaker.messages == ["after"]
    assert "was not sent" in caplog.text


async def test_a_call_waits_for_a_connection_no_longer_than_its_timeout(speaker, states):
    async with connect(speaker.url, on_state=states) as client:
        await offline(speaker, client, states)
        with pytest.raises(CallTimeout, match=r"nothing could be sent within 0\.05 s"):
            await client.call("add", {"a": 1, "b": 2}, timeout=0.05)
        speaker.refuse = lambda _: None
        assert await client.call("add", {"a": 1, "b": 2}) == 3
    assert len(speaker.peers[1].of("call")) == 1


# ── calls ───────────────────────────────────────────────────────────────────────────────────


async def test_calls_are_answered_decoded_or_fail_with_what_the_server_says(speaker):
    async with connect(speaker.url) as client:
        assert await client.call("add", {"a": 1, "b": 2}, type=int) == 3
        with pytest.raises(InvalidMessage, match="Expected `str`"):
            await client.call("add", {"a": 1, "b": 2}, type=str)
        with pytest.raises(ServerError, match="unknown_type: no such event"):
            await client.call("subtract")


async def test_a_call_without_an_answer_ends_in_time_and_a_cancelled_one_tells_the_server(speaker):
    speaker.before = lambda peer, frame: "drop" if frame["type"] == "call" else None
    async with connect(speaker.url) as client:
        peer = await speaker.peer()
        with pytest.raises(CallTimeout, match=r"call\('add'\): nothing was answered within 0.05 s"):
            await client.call("add", timeout=0.05)
        assert peer.of("call")[0]["timeout"] == pytest.approx(0.05, abs=0.02)
        calling = asyncio.create_task(client.call("add", timeout=None))
        call = await peer.expect("call", 2)
        assert "timeout" not in call
        calling.cancel()
        assert (await peer.expect("cancel"))["id"] == call["id"]
        calling = asyncio.create_task(client.call("add"))
        call = await peer.expect("call", 3)
        await peer.say("error", id=call["id"], code="timeout", text="too slow")
        with pytest.raises(CallTimeout, match="too slow"):
            await calling


@pytest.mark.parametrize("seconds", [float("inf"), 1e300, 2.0**31])
async def test_times_without_an_end_are_long(speaker, states, seconds):
    # None is a queue for ever, and an infinite number is refused.
    async with connect(speaker.url, on_state=states, queue_seconds=min(seconds, 1e300)) as client:
        await offline(speaker, client, states)
        waiting = asyncio.create_task(client.deliver("waits"))
        calling = asyncio.create_task(client.call("add", {"a": 1, "b": 2}, timeout=seconds))
        speaker.refuse = lambda _: None
        await waiting
        assert await calling == 3


async def test_the_servers_calls_are_answered(speaker):
    async with connect(speaker.url) as client:
        peer = await speaker.peer()

        @client.answer("confirm", type=News)
        async def confirm(news):
            if news.headline == "no":
                raise Reject("not that")
            return {"ok": news.headline == "x"}

        @client.answer("raise")
        def fail(data):
            raise ZeroDivisionError("secret of the client")

        @client.answer("bytes")
        def double(data):
            return data * 2

        with pytest.raises(ValueError, match="answered already"):
            client.answer("bytes")(double)
        await peer.say("call", id=1, event="confirm", data={"headline": "x"}, timeout=5)
        assert await peer.expect("reply") == {"type": "reply", "id": 1, "data": {"ok": True}}
        await peer.say("call", id=2, event="bytes", binary=b"ab")
        assert (await peer.expect("reply", 2))["data"] == b"abab"
        answers = []
        for id_, event, data in [
            (3, "confirm", {"headline": "no"}), (4, "confirm", {}), (5, "raise", 1), (6, "none", 1),
        ]:  # fmt: skip
            await peer.say("call", id=id_, event=event, data=data)
            error = await peer.expect("error", len(answers) + 1)
            answers.append((error["id"], error["code"], error.get("field")))
        assert answers == [
            (3, "refused", None), (4, "invalid", "$"), (5, "failed", None), (6, "unknown_type", None),
        ]  # fmt: skip
        assert "secret" not in str(peer.heard)


async def test_an_answer_is_of_no_use_on_another_connection(speaker):
    """Where the server counts its calls anew, it would answer another one."""
    async with connect(speaker.url) as client:
        peer = await speaker.peer()
        began, go_on = asyncio.Event(), asyncio.Event()

        @client.answer("slow")
        async def slow(data):
            began.set()
            try:
                await go_on.wait()
            finally:
                go_on.set()

        await peer.say("call", id=1, event="slow", data=None)
        await began.wait()
        peer.cut()
        await go_on.wait()
        second = await speaker.peer(1)
        await client.deliver("sync")
        assert second.of("reply") == second.of("error") == []


async def test_an_answer_nobody_waits_for_is_cancelled(speaker):
    async with connect(speaker.url) as client:
        peer = await speaker.peer()
        began, ended = asyncio.Event(), []

        @client.answer("long")
        async def long(data):
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(data)

        for n, stop in enumerate((lambda: peer.say("cancel", id=1), client.close)):
            began.clear()
            await peer.say("call", id=n + 1, event="long", data=n)
            await began.wait()
            await stop()
        await asyncio.sleep(0)
        assert ended == [0, 1]
        assert peer.of("reply") == peer.of("error") == []


# ── channels ────────────────────────────────────────────────────────────────────────────────


async def test_everything_of_a_channel_is_told_in_order(speaker):
    async with connect(speaker.url) as client:
        events = client.subscribe("news", type=News, snapshot=list[int])
        await events.ready()
        peer = await speaker.peer()
        await peer.say("snapshot", channel="news", data=[1, 2], position="e.7")
        await peer.say("join", channel="news", user="bob")
        await peer.say("publication", channel="news", data={"headline": "x"}, position="e.8")
        await peer.say("lost", channel="news", position="e.12")
        await peer.say("leave", channel="news", user="bob")
        await peer.say("unsubscribed", channel="news", text="signed out")
        assert [event async for event in events] == [
            Snapshot("news", [1, 2], "e.7"),
            Join("news", "bob"),
            Publication("news", News("x"), "e.8"),
            Lost("news", "e.12"),
            Leave("news", "bob"),
            Unsubscribed("news", "signed out"),
        ]
        assert not events.is_in
        assert events.position == "e.12"


async def test_since_brings_what_was_missed(speaker):
    for n in range(3):
        await speaker.publish("news", n)
    async with connect(speaker.url) as client:
        events = await client.subscribe("news", since="e.1").ready()
        assert [(await anext(events)).data for _ in range(2)] == [1, 2]
        await speaker.publish("news", 3)
        assert await anext(events) == Publication("news", 3, "e.4")


async def test_since_sets_nothing_back_in_a_channel_that_it_was_in(speaker, states):
    speaker.puts = ("chat:1",)
    async with connect(speaker.url, on_state=states) as client:
        chat = await client.channel("chat:1").ready()
        for n in range(1, 4):
            await speaker.publish("chat:1", n)
        assert [(await anext(chat)).data for _ in range(3)] == [1, 2, 3]
        await offline(speaker, client, states)
        client.subscribe("chat:1", since="e.1")
        speaker.refuse = lambda _: None
        await speaker.publish("chat:1", 4)
        assert (await anext(chat)).data == 4
    assert speaker.peers[1].of("hello")[0]["positions"] == {"chat:1": "e.3"}


async def test_a_refused_subscription_raises_where_it_is_used(speaker):
    async with connect(speaker.url) as client:
        secret = client.subscribe("secret")
        with pytest.raises(ServerError, match="refused: not for you"):
            await secret.ready()
        with pytest.raises(ServerError, match="refused: not for you"):
            async for _ in secret:
                pass
        with pytest.raises(ServerError, match="refused"):
            async with client.subscribe("secret"):
                pass
        assert await client.call("add", {"a": 1, "b": 1}) == 2


@pytest.mark.parametrize("code", ["unavailable", "too_many"])
async def test_a_channel_that_can_not_be_had_just_now_is_asked_for_again(
    speaker, monkeypatch, code
):
    monkeypatch.setattr(channels, "LATER", 0.01)
    asked = []

    def before(peer, frame):
        if frame["type"] == "subscribe":
            asked.append(frame["id"])
            if len(asked) < 3:
                answering.append(
                    asyncio.ensure_future(peer.say("error", id=frame["id"], code=code))
                )
                return "drop"
        return None

    answering = []
    speaker.before = before
    async with connect(speaker.url) as client:
        events = await client.subscribe("news").ready()
        assert len(asked) == 3
        await speaker.publish("news", 1)
        assert (await anext(events)).data == 1


async def test_too_many_channels_are_final(speaker):
    def before(peer, frame):
        if frame["type"] == "subscribe":
            fields = {"id": frame["id"], "code": "too_many_channels", "text": "1000 at most"}
            answering.append(asyncio.ensure_future(peer.say("error", **fields)))
            return "drop"
        return None

    answering = []
    speaker.before = before
    async with connect(speaker.url) as client:
        with pytest.raises(ServerError, match="too_many_channels: 1000 at most"):
            await client.subscribe("news").ready()
        assert len(speaker.peers[0].of("subscribe")) == 1


async def test_a_channel_is_left_and_entered_again(speaker):
    async with connect(speaker.url) as client:
        async with client.subscribe("news") as first:
            assert client.subscribe("news") is first
            await speaker.publish("news", 1)
            assert (await anext(first)).data == 1
        assert [event async for event in first] == []
        await speaker.publish("news", 2)
        async with client.subscribe("news") as second:
            assert second is not first
            await speaker.publish("news", 3)
            assert (await anext(second)).data == 3
    types = [frame["type"] for frame in speaker.peers[0].heard]
    assert types == ["hello", "ping", "subscribe", "unsubscribe", "subscribe", "unsubscribe"]


async def test_leaving_without_a_connection_holds_and_is_said_later(speaker, states):
    async with connect(speaker.url, on_state=states) as client:
        events = await client.subscribe("news").ready()
        await offline(speaker, client, states)
        await events.unsubscribe()
        again = client.subscribe("news")
        speaker.refuse = lambda _: None
        await again.ready()
        await speaker.publish("news", 1)
        assert (await anext(again)).data == 1
        assert [event async for event in events] == []
    types = [frame["type"] for frame in speaker.peers[1].heard]
    assert types == ["hello", "unsubscribe", "subscribe"]


async def test_a_subscription_in_flight_survives_a_cut(speaker):
    speaker.before = lambda peer, frame: (
        "cut" if frame["type"] == "subscribe" and len(speaker.peers) == 1 else None
    )
    async with connect(speaker.url) as client:
        events = await client.subscribe("news").ready()
        await speaker.publish("news", 1)
        assert (await anext(events)).data == 1


async def test_channels_of_the_url_are_there_with_what_came_before_one_asked(speaker):
    speaker.puts = ("chat:1",)
    async with connect(speaker.url) as client:
        await speaker.publish("chat:1", "early")
        await client.deliver("sync")
        chat = client.channel("chat:1")
        assert await anext(chat) == Publication("chat:1", "early", "e.1")
        assert chat.is_in
        await client.subscribe("chat:1").ready()  # which asks for nothing
        assert speaker.peers[0].of("subscribe") == []


async def test_what_nobody_asked_for_is_dropped_from_the_oldest_and_told(speaker):
    speaker.puts = ("chat:1",)
    async with connect(speaker.url, max_unread=20_000) as client:
        for n in range(100):
            await speaker.publish("chat:1", [n, "x" * 1000])
            await (await speaker.peer()).say("message", data=[n, "x" * 1000])
        await client.deliver("sync")  # is answered: nothing was held up
        chat = client.channel("chat:1")
        assert await anext(chat) == Lost("chat:1")
        kept = [(await anext(chat)).data[0] for _ in range(3)]
        assert kept == [97, 98, 99]
        assert [(await client.receive())[0] for _ in range(3)] == [97, 98, 99]


@pytest.mark.parametrize("forgets", [False, True])
async def test_what_was_missed_comes_once_in_order_whether_or_not_the_session_is_there(
    speaker, forgets, states
):
    async with connect(speaker.url, on_state=states) as client:
        events = await client.subscribe("news").ready()
        await speaker.publish("news", 1)
        await offline(speaker, client, states)
        speaker.forgets = forgets
        await speaker.publish("news", 2)
        await speaker.publish("news", 3)
        speaker.refuse = lambda _: None
        got = [await anext(events) for _ in range(3)]
        await speaker.publish("news", 4)
        got.append(await anext(events))
        assert [event.data for event in got] == [1, 2, 3, 4]
        assert client.resumed is not forgets


async def test_what_is_not_there_any_more_is_told_as_lost(speaker, states):
    async with connect(speaker.url, on_state=states) as client:
        events = await client.subscribe("news").ready()
        await speaker.publish("news", 1)
        assert (await anext(events)).data == 1
        await offline(speaker, client, states)
        speaker.history["news"].clear()  # another epoch, in effect
        speaker.refuse = lambda _: None
        assert await anext(events) == Lost("news", "e.0")
        await speaker.publish("news", 2)
        assert (await anext(events)).data == 2


async def test_a_new_session_tells_of_a_gap_where_there_may_be_one(speaker, states):
    """In a channel without history, and in one that the URL enters, of which it can't ask."""
    speaker.puts, speaker.plain = ("url", "idle"), {"plain"}
    async with connect(speaker.url, on_state=states) as client:
        plain = await client.subscribe("plain").ready()
        url, idle = client.channel("url"), client.channel("idle")
        await speaker.publish("url", 1)
        assert (await anext(url)).data == 1
        await offline(speaker, client, states)
        speaker.forgets = True
        await speaker.publish("url", "missed")
        speaker.refuse = lambda _: None
        assert await anext(plain) == Lost("plain")
        assert await anext(url) == Lost("url", "e.2")
        await client.deliver("sync")
        for channel, events in (("plain", plain), ("url", url), ("idle", idle)):
            await speaker.publish(channel, "next")
            assert (await anext(events)).data == "next"  # and idle has missed nothing


async def test_a_channel_that_a_new_session_is_not_in_any_more_ends(speaker):
    speaker.puts = ("chat:1",)
    async with connect(speaker.url) as client:
        chat = client.channel("chat:1")
        await client.deliver("sync")
        speaker.puts, speaker.forgets = (), True
        (await speaker.peer()).cut()
        assert [event async for event in chat] == [Unsubscribed("chat:1", "another session")]


# ── what is told of losses ──────────────────────────────────────────────────────────────────


@pytest.fixture
def lost():
    """What on_lost was told, to wait for."""
    return asyncio.Queue()


async def test_losses_are_told_whether_or_not_the_channel_is_read(speaker, states, lost):
    speaker.plain = {"plain"}
    async with connect(speaker.url, on_state=states, on_lost=lost.put_nowait) as client:
        news = await client.subscribe("news").ready()
        await client.subscribe("plain").ready()
        left = await client.subscribe("left").ready()
        peer = await speaker.peer()
        await peer.say("lost", channel="news", position="e.7")
        assert await lost.get() == Lost("news", "e.7")
        await peer.say("lost")
        assert await lost.get() == Lost(None)
        assert await anext(news) == Lost("news", "e.7")  # and in its place in the stream
        speaker.before = lambda peer, frame: "drop" if frame["type"] == "unsubscribe" else None
        leaving = asyncio.create_task(left.unsubscribe())
        await peer.expect("unsubscribe")
        await peer.say("lost", channel="left")
        await peer.say("unsubscribed", channel="left", id=peer.of("unsubscribe")[0]["id"])
        await leaving
        await offline(speaker, client, states)
        speaker.forgets = True
        speaker.refuse = lambda _: None
        assert await lost.get() == Lost("news", "e.0")  # of a position that is not there
        assert await lost.get() == Lost("plain")  # of which nobody knows, in a new session
        await client.deliver("sync")
        assert lost.empty()


async def test_on_lost_may_wait_and_use_the_client_and_ends_with_it(speaker, lost, caplog):
    begun, ended = asyncio.Event(), asyncio.Event()

    async def load(what):
        if what.channel == "bad":
            raise ZeroDivisionError
        if what.channel == "slow":
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
        await client.deliver(f"load {what.channel}")
        lost.put_nowait(what)

    async with connect(speaker.url, on_lost=load) as client:
        peer = await speaker.peer()
        for name in ("bad", "slow", "news"):
            await peer.say("lost", channel=name)
        assert (await lost.get()).channel == "news"
        await begun.wait()
    assert ended.is_set()
    assert speaker.messages == ["load news"]
    assert caplog.text.count("what connect(on_lost=…) was given raised") == 1


async def test_what_raises_at_a_loss_holds_nothing_up_and_silence_is_said(speaker, caplog):
    def fail(what):
        raise ZeroDivisionError

    for on_lost, said in ((fail, "was given raised"), (None, "may have been lost")):
        async with connect(speaker.url, on_lost=on_lost) as client:
            peer = speaker.peers[-1]
            await peer.say("lost")
            await peer.say("message", data="seen")
            assert await client.receive() == "seen"
        assert said in caplog.text


# ── backpressure and liveness ───────────────────────────────────────────────────────────────


async def test_an_application_that_does_not_read_stops_the_socket_and_loses_nothing(speaker):
    async with connect(speaker.url, max_unread=100_000) as client:
        events = await client.subscribe("news").ready()
        peer = await speaker.peer()
        sent, noise = 0, secrets.token_hex(25_000)  # which no compression makes small

        async def flood():
            nonlocal sent
            for n in range(600):
                await speaker.publish("news", [n, noise])
                sent += 1

        flooding = asyncio.create_task(flood())
        last = -1
        while sent != last:  # until nothing moves any more
            last = sent
            await asyncio.sleep(0.3)
        assert sent < 600
        assert client._unread.used < 100_000 + 60_000
        assert not peer.socket.transport.is_closing()
        assert [(await anext(events)).data[0] for _ in range(600)] == list(range(600))
        await flooding


async def test_who_waits_for_an_answer_behind_what_is_not_read_is_told(
    speaker, monkeypatch, caplog
):
    monkeypatch.setattr(line, "STALLED", 0.1)
    async with connect(speaker.url, max_unread=10_000) as client:
        events = await client.subscribe("news").ready()
        speaker.before = lambda peer, frame: "drop" if frame["type"] == "message" else None
        delivering = asyncio.create_task(client.deliver("x"))
        frame = await (await speaker.peer()).expect("message")
        for n in range(30):
            await speaker.publish("news", [n, "x" * 1000])
        await speaker.peers[0].say("ack", id=frame["id"])
        with pytest.raises(NotRead, match=r"of channel 'news'; read it in a task of its own"):
            await delivering
        assert [(await anext(events)).data[0] for _ in range(30)] == list(range(30))
        speaker.before = lambda *_: None
        await client.deliver("y")
    assert "reads no more from its socket" in caplog.text


async def test_a_channel_that_was_left_holds_nothing_up(speaker, monkeypatch):
    monkeypatch.setattr(line, "STALLED", 0.05)
    async with connect(speaker.url, max_unread=10_000) as client:
        left = await client.subscribe("news").ready()
        for n in range(30):
            await speaker.publish("news", [n, "x" * 1000])
        with pytest.raises(NotRead):
            await client.deliver("sync")
        await left.unsubscribe()
        await client.deliver("sync")
        assert client._unread.used == 0
        kept = [event.data[0] async for event in left]
        assert kept == list(range(len(kept)))
        assert 0 < len(kept) < 30
        assert client._unread.used == 0


async def test_closing_does_not_wait_for_what_is_not_read(speaker):
    async with connect(speaker.url, max_unread=10_000) as client:
        await client.subscribe("news").ready()
        for n in range(100):
            await speaker.publish("news", [n, "x" * 1000])
        async with asyncio.timeout(2):
            await client.close()


async def test_a_connection_that_is_silent_is_asked_and_given_up(speaker, states):
    speaker.hello = {"ping": 0.1}
    async with connect(speaker.url, patience=0.2, on_state=states) as client:
        peer = await speaker.peer()
        await peer.expect("ping", 3)  # answered, and stays
        assert len(speaker.peers) == 1
        speaker.before = lambda peer, frame: "drop" if peer is speaker.peers[0] else None
        await speaker.peer(1)
        await client.deliver("back")
        assert client.resumed


async def test_a_server_that_says_no_hello_is_left(speaker):
    speaker.greets = False
    with pytest.raises(Unreachable, match="did not say hello"):
        await connect(speaker.url, patience=0.1, first_seconds=0.3).__aenter__()


async def test_a_larger_message_than_is_taken_ends_the_client_with_a_word(speaker):
    async with connect(speaker.url, max_message=1000) as client:
        await (await speaker.peer()).say("message", data="x" * 2000)
        with pytest.raises(Closed, match="more than max_message=1000 bytes: raise it"):
            await client.receive()


# ── its end ─────────────────────────────────────────────────────────────────────────────────


async def test_closing_ends_the_session_and_tells_everyone_who_waits(speaker):
    async with connect(speaker.url) as client:
        events = client.subscribe("news")
        await events.ready()
        speaker.before = lambda *_: "drop"
        peer = await speaker.peer()
        sent = asyncio.create_task(client.deliver("x"))
        await peer.expect("message")
        reading = asyncio.create_task(anext(events, "end"))
        receiving = asyncio.create_task(client.receive())
        await asyncio.sleep(0)
        await client.send("last")
        await client.close()
        await peer.socket.wait_closed()
        assert peer.socket.close_code == 1000
        assert (await peer.expect("message", 2))["data"] == "last"
        with pytest.raises(OutcomeUnknown, match="by the client"):
            await sent
        assert await reading == "end"
        with pytest.raises(Closed):
            await receiving
        with pytest.raises(Closed, match="by the client"):
            await client.deliver("y")
        await client.close()  # which does nothing
        assert client.state == "closed"


async def test_a_channel_that_is_being_left_when_the_client_closes_is_left(speaker):
    speaker.before = lambda _, frame: "drop" if frame["type"] == "unsubscribe" else None
    async with connect(speaker.url) as client:
        peer = await speaker.peer()
        events = await client.subscribe("news").ready()
        leaving = asyncio.create_task(events.unsubscribe())
        await peer.expect("unsubscribe")
        await client.close()
        await leaving
        await events.unsubscribe()


async def test_a_channel_left_without_a_connection_is_left_when_the_client_closes(speaker, states):
    unheard = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    async with connect(speaker.url, on_state=states) as client:
        events = await client.subscribe("news").ready()
        await offline(speaker, client, states)
        await events.unsubscribe()
    del client, events
    gc.collect()
    assert unheard == []


async def test_it_closes_with_the_applications_code_if_that_is_one(speaker):
    async with connect(speaker.url) as client:
        with pytest.raises(ValueError, match="only ever reported"):
            await client.close(1006)
        with pytest.raises(ValueError, match="124 bytes"):
            await client.close(1000, "x" * 124)
        await client.deliver("still open")

        @client.on_message
        async def leave(message):
            await client.close(4100, message)

        peer = await speaker.peer()
        await peer.say("message", data="bye")
        await client.wait_closed()  # which is no error: the application closed it
        assert [message async for message in client] == []
        await peer.socket.wait_closed()
        assert (peer.socket.close_code, peer.socket.close_reason) == (4100, "bye")


async def test_closing_while_there_is_no_connection_is_at_once(speaker, states):
    async with connect(speaker.url, on_state=states) as client:
        await offline(speaker, client, states)
        waiting = asyncio.create_task(client.deliver("x"))
        await asyncio.sleep(0)
        async with asyncio.timeout(1):
            await client.close()
        with pytest.raises(Closed):
            await waiting


async def test_who_is_cancelled_while_it_receives_misses_nothing(speaker):
    async with connect(speaker.url) as client:
        for n in range(50):
            receiving = asyncio.create_task(client.receive())
            await asyncio.sleep(0)
            await (await speaker.peer()).say("message", data=n)
            receiving.cancel()
            try:
                got = await receiving
            except asyncio.CancelledError:
                got = await client.receive()
            assert got == n


async def test_two_readers_share_what_comes(speaker):
    async with connect(speaker.url) as client:
        got = []

        async def read():
            got.extend([message async for message in client])

        readers = [asyncio.create_task(read()) for _ in range(2)]
        for n in range(20):
            await (await speaker.peer()).say("message", data=n)
        await client.deliver("sync")
        await client.close()
        await asyncio.gather(*readers)
        assert sorted(got) == list(range(20))
