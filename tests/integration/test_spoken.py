"""A client written from docs/protocol.md and its schemas alone, at real servers.

It has nothing of backchannel: a WebSocket library, a JSON Schema validator, and the page.
"""

from __future__ import annotations

import asyncio
import itertools
import json
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

    def __init__(self, server, channel):
        self.url = f"ws://127.0.0.1:{server.port}/ws/{channel}"
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
    with pytest.raises(InvalidStatus) as refused:
        await connect(
            f"ws://127.0.0.1:{server.port}/ws/room:x", subprotocols=["backchannel.v7.json"]
        )
    assert refused.value.response.status_code in {400, 403}
    async with connect(f"ws://127.0.0.1:{server.port}/ws/room:x", subprotocols=[NAME]) as socket:
        await socket.send('{"type":"ping"}')
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd.code == 1008
