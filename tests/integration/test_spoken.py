"""A client written from docs/protocol.md and its schemas alone, at real servers.

It has nothing of backchannel: a WebSocket library, a JSON Schema validator, and the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import signal
from pathlib import Path

import jsonschema
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

SCHEMAS = Path(__file__).parents[2] / "docs" / "protocol"
NAME = "backchannel.v1.json"
COMMANDS = {
    "native": "uvicorn spoken:hub --port {port} --ws backchannel.transport.uvicorn:Protocol",
    "uvicorn": "uvicorn spoken:hub --port {port} --ws websockets-sansio",
    "hypercorn": "hypercorn spoken:hub --bind 127.0.0.1:{port}",
}


@pytest.fixture(params=list(COMMANDS))
def server(start_once, request):
    return start_once(f"spoken-{request.param}", COMMANDS[request.param])


def validator(sender):
    text = (SCHEMAS / f"{sender}.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


class Client:
    """What the page says, and no more."""

    SAID, HEARD = validator("client"), validator("server")

    def __init__(self, server, channel, user=None):
        query = "" if user is None else f"?user={user}"
        self.url = f"ws://127.0.0.1:{server.port}/ws/{channel}{query}"
        self.ids = itertools.count(1)
        self.token = None
        self.positions = {}
        self.unacknowledged = {}
        self.publications = []
        self.socket = None
        self.greeting = None

    async def __aenter__(self):
        self.socket = await connect(self.url, subprotocols=[NAME])
        assert self.socket.subprotocol == NAME
        hello = {"type": "hello"}
        if self.token is not None:
            hello |= {"resume": self.token, "positions": self.positions}
        await self.say(hello)
        self.greeting = await self.hear("hello")
        self.token = self.greeting["resume"]
        for frame in self.unacknowledged.values():
            await self.say({**frame, "again": True})
        return self

    async def __aexit__(self, *_):
        await self.socket.close()

    async def say(self, frame, data=None):
        self.SAID.validate(frame)
        text = json.dumps(frame)
        await self.socket.send(text if data is None else text.encode() + b"\n" + data)

    async def ask(self, kind, **fields):
        id_ = next(self.ids)
        await self.say({"type": kind, "id": id_, **fields})
        return id_

    async def keep(self, kind, **fields):
        """Say something that is to be acknowledged, however often it has to be said."""
        id_ = next(self.ids)
        self.unacknowledged[id_] = frame = {"type": kind, "id": id_, **fields}
        await self.say(frame)
        return id_

    async def hear(self, *kinds):
        """Return the next frame of these kinds; keep the account of all others."""
        async with asyncio.timeout(10):
            while True:
                frame = await self.socket.recv()
                head, _, data = (
                    frame.partition(b"\n") if isinstance(frame, bytes) else (frame, 0, None)
                )
                found = json.loads(head)
                self.HEARD.validate(found)
                if data is not None:
                    found["data"] = data
                if "position" in found and "channel" in found:
                    self.positions[found["channel"]] = found["position"]
                if found["type"] == "publication":
                    self.publications.append(found["data"])
                if found["type"] in {"ack", "error"} and "id" in found:
                    self.unacknowledged.pop(found["id"], None)
                if not kinds or found["type"] in kinds:
                    return found

    def vanish(self):
        self.socket.transport.abort()


async def test_messages_calls_and_channels(server):
    async with Client(server, "room:talk") as ana, Client(server, "room:talk") as bob:
        for each in (ana, bob):
            assert (await each.hear("subscribed"))["channel"] == "room:talk"
        for data in ("text", {"a": [1, None]}, 3, "", None):
            id_ = await ana.keep("message", data=data)
            answer = (await ana.hear("message"))["data"]
            assert answer == (data if isinstance(data, str) else json.dumps(data))
            assert (await ana.hear("ack"))["id"] == id_
        await ana.say({"type": "message"}, b"\0\n\xff")
        assert (await ana.hear("message"))["data"] == b"\0\n\xff"
        await ana.keep("publish", channel="room:talk", data={"hi": 1})
        acked = await ana.hear("ack")
        heard = await bob.hear("publication")
        assert (heard["data"], heard["position"]) == ({"hi": 1}, acked["position"])
        await ana.ask("subscribe", channel="room:secret")
        assert (await ana.hear("error"))["code"] == "refused"
        await ana.ask("call", event="add", data={"a": 1, "b": 2}, timeout=5)
        assert (await ana.hear("reply"))["data"] == 3
        await ana.ask("call", event="ask")
        question = await ana.hear("call")
        await ana.say({"type": "reply", "id": question["id"], "data": "blue"})
        assert (await ana.hear("reply"))["data"] == {"color": "blue", "name": "kept"}
        await ana.say({"type": "ping"})
        await ana.hear("pong")


async def test_who_is_there_who_comes_and_who_goes(server):
    channel = f"room:who-{server.port}"
    async with Client(server, channel, "ana") as ana:
        await ana.hear("subscribed")
        assert (await ana.hear("join"))["user"] == "ana"
        async with Client(server, channel, "bob") as bob:
            assert await ana.hear("join") == {"type": "join", "channel": channel, "user": "bob"}
            id_ = await bob.ask("presence", channel=channel)
            answer = await bob.hear("presence")
            assert (answer["id"], answer["channel"]) == (id_, channel)
            there = {one["user"]: one["devices"] for one in answer["users"]}
            assert there == {
                "ana": [{"connection": ana.greeting["connection"], "meta": {}}],
                "bob": [{"connection": bob.greeting["connection"], "meta": {}}],
            }
        assert await ana.hear("leave") == {"type": "leave", "channel": channel, "user": "bob"}
        await ana.ask("presence", channel="room:elsewhere")
        assert (await ana.hear("error", "presence"))["code"] == "refused"


async def test_who_leaves_a_channel_hears_no_more_of_it(server):
    channel = f"room:left-{server.port}"
    async with Client(server, "room:home") as ana, Client(server, channel) as bob:
        await bob.hear("subscribed")
        for _ in range(2):  # and may come again
            id_ = await ana.ask("subscribe", channel=channel)
            while (frame := await ana.hear("subscribed")).get("id") != id_:
                assert frame["channel"] == "room:home"
            await bob.keep("publish", channel=channel, data="heard")
            assert (await ana.hear("publication"))["data"] == "heard"
            id_ = await ana.ask("unsubscribe", channel=channel)
            gone = await ana.hear("unsubscribed")
            assert gone == {"type": "unsubscribed", "id": id_, "channel": channel}
            await bob.keep("publish", channel=channel, data="not heard")
            await bob.hear("ack")
        id_ = await ana.ask("unsubscribe", channel="room:never-entered")
        assert (await ana.hear("unsubscribed"))["id"] == id_
        await ana.say({"type": "ping"})
        await ana.hear("pong")
    assert ana.publications == ["heard", "heard"]


async def test_calls_are_cancelled_on_both_sides(server):
    async with Client(server, "room:cancel") as ana:
        waiting = await ana.ask("call", event="wait")
        assert (await ana.hear("message"))["data"] == "waiting"
        await ana.say({"type": "cancel", "id": waiting})
        heard = [await ana.hear("error", "message") for _ in range(2)]
        answer = next(frame for frame in heard if frame["type"] == "error")
        assert (answer["id"], answer["code"]) == (waiting, "cancelled")
        assert [frame["data"] for frame in heard if frame["type"] == "message"] == ["cancelled"]
        late = await ana.ask("call", event="wait", timeout=0.1)
        answer = await ana.hear("error")
        assert (answer["id"], answer["code"]) == (late, "timeout")
        id_ = await ana.ask("call", event="hurry")
        question = await ana.hear("call")
        assert (await ana.hear("cancel"))["id"] == question["id"]
        assert await ana.hear("reply") == {"type": "reply", "id": id_, "data": "too late"}
        await ana.say({"type": "reply", "id": question["id"], "data": "nobody waits for it"})
        id_ = await ana.ask("call", event="ask")
        question = await ana.hear("call")
        refusal = {"type": "error", "id": question["id"], "code": "unknown_type", "text": "what?"}
        await ana.say(refusal)
        answer = await ana.hear("error")
        assert (answer["id"], answer["code"]) == (id_, "failed")


@pytest.mark.parametrize(
    ("data", "field"),
    [("1e999", "$.data"), ("[1e999]", "$.data[0]"), ("[" * 10**5, "$"), ('"\\ud800"', "$")],
    ids=["number", "inside", "deep", "surrogate"],
)
async def test_an_answer_that_can_not_be_read_is_told_and_the_connection_kept(server, data, field):
    async with Client(server, "room:unread") as ana:
        for _ in range(3):
            asked = await ana.ask("call", event="ask")
            question = await ana.hear("call")
            await ana.socket.send(f'{{"type":"reply","id":{question["id"]},"data":{data}}}')
            told = await ana.hear("error")
            assert (told["id"], told["code"], told["field"]) == (question["id"], "invalid", field)
            answer = await ana.hear("error", "reply")  # of what called, which waits no longer
            assert (answer["id"], answer["code"]) == (asked, "failed")
        await ana.keep("message", data="alive")
        assert (await ana.hear("message"))["data"] == "alive"


async def test_a_newer_token_of_the_same_user_is_taken(server):
    async with Client(server, "room:token", "ana") as ana, Client(server, "room:token") as nobody:
        assert ana.greeting["user"] == "ana"
        assert 0 < ana.greeting["expires_in"] <= 60
        assert nobody.greeting["expires_in"] is None
        id_ = await ana.ask("renew", token="ana for 3600")
        answer = await ana.hear("renewed")
        assert answer["id"] == id_
        assert 3590 < answer["expires_in"] <= 3600
        for client, token in ((ana, "bob for 60"), (ana, "x"), (ana, "ana for -1"), (nobody, "x")):
            id_ = await client.ask("renew", token=token)
            answer = await client.hear("error", "renewed")
            assert (answer["id"], answer["code"]) == (id_, "refused")


async def test_a_snapshot_and_then_what_changes_it(server):
    channel = f"words:{server.port}"
    async with Client(server, "room:home", "ana") as ana, Client(server, "room:home") as bob:
        for word in ("one", "two"):
            await bob.keep("publish", channel=channel, data=word)
            last = (await bob.hear("ack"))["position"]
        id_ = await ana.ask("subscribe", channel=channel)
        state = await ana.hear("snapshot")
        assert (state["channel"], state["position"]) == (channel, last)
        assert state["data"] == {"words": ["one", "two"], "for": "ana"}
        while (entered := await ana.hear("subscribed")).get("id") != id_:
            pass
        assert entered["position"] == last
        await bob.keep("publish", channel=channel, data="three")
        assert (await ana.hear("publication"))["data"] == "three"
    assert ana.publications == ["three"]


async def test_what_is_not_there_any_more_is_lost(server):
    """Of a short history some, of none nobody knows; what comes after it comes."""
    short, plain = f"short:{server.port}", f"plain:{server.port}"
    async with Client(server, "room:home") as bob:
        ana = Client(server, "room:home")
        async with ana:
            for channel in (short, plain):
                id_ = await ana.ask("subscribe", channel=channel)
                while (await ana.hear("subscribed")).get("id") != id_:
                    pass
            await bob.keep("publish", channel=short, data=0)
            await bob.hear("ack")
            await ana.hear("publication")
            ana.vanish()
        for number in range(1, 6):
            await bob.keep("publish", channel=short, data=number)
            last = (await bob.hear("ack"))["position"]
        async with ana:
            assert ana.greeting["resumed"]
            lost, entered = {}, set()
            while not entered >= {short, plain}:
                frame = await ana.hear("lost", "subscribed")
                if frame["type"] == "lost":
                    lost[frame["channel"]] = frame.get("position")
                    assert frame["channel"] not in entered  # it is told first
                else:
                    entered.add(frame["channel"])
            assert lost == {short: last, plain: None}
            await bob.keep("publish", channel=short, data="after")
            while ana.publications[-1] != "after":
                await ana.hear("publication")
        assert ana.publications == [0, "after"]


@pytest.mark.parametrize("transport", ["native", "portable"])
async def test_a_server_that_stops_says_when_to_come_back(process, make_server, transport):
    options = ("--port", "0", "--transport", transport, "--drain", "1")
    started = process("backchannel", "run", "spoken.py", *options)
    port = int(started.wait_for_output(r"ws://localhost:(\d+)")[1])
    started.wait_for_output("Ctrl-C to stop")
    server = make_server("run", started, port)
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client(server, f"room:{n}", "ana")) for n in range(4)
        ]
        started.signal(signal.SIGTERM)
        told = []
        for client in clients:
            told.append((await client.hear("going_away"))["after"])
            with pytest.raises(ConnectionClosed) as closed:
                await client.hear("no more")
            assert closed.value.rcvd.code == 1012
    assert all(0 <= after < 60 for after in told)
    assert len(set(told)) == 4  # which differ from client to client
    assert await asyncio.to_thread(started.wait) == 0


def test_every_type_of_frame_is_spoken_here():
    """By name: a type that is new in the schemas needs a scenario in this file."""
    text = Path(__file__).read_text(encoding="utf-8")
    for sender in ("client", "server"):
        schema = json.loads((SCHEMAS / f"{sender}.schema.json").read_text(encoding="utf-8"))
        kinds = schema["discriminator"]["mapping"]
        verbs = "say|ask|keep" if sender == "client" else "hear"
        calls = [
            found[0]
            for found in re.finditer(rf"\.(?:{verbs})\([^\n]*|refusal = .*|hello = .*", text)
        ]
        assert {kind for kind in kinds if not any(f'"{kind}"' in call for call in calls)} == set()


async def test_a_network_that_goes_and_comes_loses_and_doubles_nothing(server):
    channel = f"room:cuts-{server.port}"
    ana, turns = Client(server, channel), 12
    got = ana.publications
    async with Client(server, channel) as bob:
        await bob.hear("subscribed")
        for turn in range(turns):
            async with ana:
                assert ana.greeting["resumed"] is (turn > 0)
                await ana.say({"type": "ping"})  # it has the newer token
                for number in range(3):
                    await bob.keep("publish", channel=channel, data=[turn, number])
                while [turn, 0] not in got:
                    await ana.hear("publication")
                await ana.keep("publish", channel=channel, data=[turn, "ana"])
                ana.vanish()  # what comes after the first may or may not have come
        async with ana:
            while len(got) < 4 * turns:
                assert (await ana.hear("publication", "lost"))["type"] == "publication"
            await bob.keep("publish", channel=channel, data="end")
            while got[-1] != "end":
                await ana.hear("publication")
    mine = [each for each in got[:-1] if each[1] == "ana"]
    assert mine == [[turn, "ana"] for turn in range(turns)]
    others = [each for each in got[:-1] if each[1] != "ana"]
    assert others == [[turn, number] for turn in range(turns) for number in range(3)]


async def test_unknown_versions_and_first_frames_are_refused(server):
    url = f"ws://127.0.0.1:{server.port}/ws/room:x"
    with pytest.raises(InvalidStatus) as refused:
        await connect(url, subprotocols=["backchannel.v7.json", "backchannel.v8.json"])
    assert refused.value.response.status_code == 400
    assert NAME in refused.value.response.body.decode()
    async with connect(url, subprotocols=["backchannel.v7.json", NAME]) as socket:
        assert socket.subprotocol == NAME
    async with connect(f"ws://127.0.0.1:{server.port}/ws/room:x", subprotocols=[NAME]) as socket:
        await socket.send('{"type":"ping"}')
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd.code == 1008
