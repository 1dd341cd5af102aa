"""A client of v1 for tests, frame by frame; each is validated against docs/protocol's schemas."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

from backchannel.dialect import NAME

SCHEMAS = Path(__file__).parents[2] / "docs" / "protocol"
VALID = {
    sender: jsonschema.Draft202012Validator(
        json.loads((SCHEMAS / f"{sender}.schema.json").read_text(encoding="utf-8"))
    )
    for sender in ("client", "server")
}


class Speaker:
    """Says and hears frames over a test client.

    Args:
        hub: the hub to connect to.
        url: path and query.
        hello: fields of its hello; None says none.
        named: more for the test client.
    """

    def __init__(self, hub, url="/ws", hello=(), **named):
        self.client = hub.test_client(url, subprotocols=[NAME], **named)
        self.hello = hello
        self.greeting = None

    async def __aenter__(self):
        await self.client.connect()
        if self.hello is not None:
            await self.say("hello", **dict(self.hello))
            self.greeting = await self.hear("hello")
        return self

    async def __aexit__(self, *_):
        await self.client.close()

    @property
    def ws(self):
        return self.client.connection

    async def say(self, kind, raw=None, /, **fields):
        frame = {"type": kind, **fields}
        VALID["client"].validate(frame)
        text = json.dumps(frame)
        await self.client.send(text if raw is None else text.encode() + b"\n" + raw)

    async def hear(self, kind=None):
        frame = await self.client.receive()
        found = self.read(frame)
        assert kind is None or found["type"] == kind, found
        return found

    async def heard(self):
        """Return all that has come, once nothing runs."""
        await self.client.settled()
        return [self.read(frame) for frame in self.client.received()]

    @staticmethod
    def read(frame):
        head, _, data = frame.partition(b"\n") if isinstance(frame, bytes) else (frame, "", None)
        found = json.loads(head)
        VALID["server"].validate(found)
        return found if data is None else {**found, "data": data}

    async def drop(self):
        await self.client.drop()
