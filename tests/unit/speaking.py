"""A client of v1 for tests, frame by frame."""

from __future__ import annotations

import json

from backchannel.dialect import NAME


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
        text = json.dumps({"type": kind, **fields})
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
        if isinstance(frame, bytes):
            head, _, data = frame.partition(b"\n")
            return {**json.loads(head), "data": data}
        return json.loads(frame)

    async def drop(self):
        await self.client.drop()
