"""A small server that speaks docs/protocol.md, so that cuts, lost answers and delays come as told.

It is made of the websockets library alone, and knows nothing of hubs: what a client does with it is
what it does with the specification.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from jsonschema import Draft202012Validator
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

SCHEMA = Path(__file__).parents[2] / "docs/protocol/client.schema.json"
VALID = Draft202012Validator(json.loads(SCHEMA.read_text()))


class Peer:
    """One connection of a client.

    Attributes:
        heard: the frames that came, in order.
        request: its handshake.
    """

    def __init__(self, speaker, socket):
        self.speaker, self.socket = speaker, socket
        self.request = socket.request
        self.heard = []
        self.session = None
        self._news = asyncio.Event()

    async def say(self, kind, *, binary=None, **fields):
        """Send a frame."""
        text = json.dumps({"type": kind, **fields})
        with suppress(ConnectionClosed):
            await self.socket.send(text if binary is None else text.encode() + b"\n" + binary)

    def hear(self, frame):
        self.heard.append(frame)
        self._news.set()

    async def expect(self, kind, count=1):
        """Wait for a frame of a type, the count-th on this connection."""
        while True:
            found = [frame for frame in self.heard if frame["type"] == kind]
            if len(found) >= count:
                return found[count - 1]
            self._news.clear()
            await self._news.wait()

    def of(self, *kinds):
        return [frame for frame in self.heard if frame["type"] in kinds]

    def cut(self):
        """End it as a network does."""
        self.socket.transport.abort()

    async def close(self, code, reason=""):
        await self.socket.close(code, reason)


class Session:
    """What outlives a connection."""

    def __init__(self):
        self.connection = secrets.token_hex(4)
        self.done = {}  # id -> the answer
        self.used = None  # the token that it was resumed with
        self.channels = set()


class Speaker:
    """The server.

    Attributes:
        url: where it is.
        peers: its connections, in the order in which they came.
        history: what was published to each channel; position n is "e.n".
        messages: what clients sent as messages, each once.
        forgets: it resumes no session.
        greets: it says hello by itself.
        before: called with a peer and each frame before anything is done with it; "cut" ends the
            connection at once, "drop" ignores the frame, "mute" does what it says but the answer.
        refuse: called with each handshake's request; returns (status, headers, text) or None.
        puts: channels that a connection is put into by itself.
        plain: channels without history.
        hello: more for its hello.
        renews: seconds until a token ends that was brought to it.
    """

    def __init__(self, ssl=None):
        self.ssl = ssl
        self.peers = []
        self.history = defaultdict(list)
        self.messages = []
        self.sessions = {}
        self.forgets = False
        self.greets = True
        self.before = lambda peer, frame: None
        self.refuse = lambda request: None
        self.puts = ()
        self.plain = set()
        self.hello = {}
        self.renews = 60
        self.events = {"add": lambda data: data["a"] + data["b"]}
        self.invalid = []  # what is wrong with clients' frames, by the schema
        self._news = asyncio.Event()

    async def __aenter__(self):
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            0,
            subprotocols=["backchannel.v1.json"],
            process_request=self._request,
            ssl=self.ssl,
            ping_interval=None,
            close_timeout=1,
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'wss' if self.ssl else 'ws'}://127.0.0.1:{self.port}/ws"
        return self

    async def __aexit__(self, *_):
        for peer in self.peers:
            peer.cut()
        self._server.close()
        await self._server.wait_closed()
        assert self.invalid == []

    def _request(self, connection, request):
        if (refusal := self.refuse(request)) is None:
            return None
        status, headers, text = refusal
        response = connection.respond(status, text)
        for name, value in headers.items():
            response.headers[name] = value
        return response

    async def peer(self, number=0):
        """Wait for a connection, by the order in which they came."""
        while len(self.peers) <= number:
            self._news.clear()
            await self._news.wait()
        return self.peers[number]

    async def publish(self, channel, data):
        """Publish, as somebody else would."""
        position = None
        if channel not in self.plain:
            self.history[channel].append(data)
            position = f"e.{len(self.history[channel])}"
        for peer in self.peers:
            if peer.session and channel in peer.session.channels and peer is peer.session.peer:
                await self._publication(peer, channel, data, position)
        return position

    async def _publication(self, peer, channel, data, position):
        more = {} if position is None else {"position": position}
        await peer.say("publication", channel=channel, data=data, **more)

    async def _serve(self, socket):
        peer = Peer(self, socket)
        self.peers.append(peer)
        self._news.set()
        with suppress(ConnectionClosed):
            async for message in socket:
                head, _, body = message.partition("\n" if isinstance(message, str) else b"\n")
                frame = json.loads(head)
                self.invalid += [error.message for error in VALID.iter_errors(frame)]
                if isinstance(message, bytes):
                    frame["data"] = body
                what = self.before(peer, frame)
                peer.hear(frame)
                if peer.session and what != "cut":  # it has its newer token
                    self.sessions.pop(peer.session.used, None)
                if what == "cut":
                    peer.cut()
                elif what != "drop":
                    peer.mute = what == "mute"
                    await getattr(self, f"_{frame['type']}")(peer, frame)

    async def _answer(self, peer, frame, kind, **fields):
        if "id" in frame:
            fields = {"id": frame["id"], **fields}
        if not peer.mute:
            await peer.say(kind, **fields)

    async def _hello(self, peer, frame):
        if self.greets:
            await self.greet(peer, frame)

    async def greet(self, peer, frame):
        known = None if self.forgets else self.sessions.get(frame.get("resume"))
        session = peer.session = known or Session()
        session.used = frame.get("resume")
        session.peer = peer
        session.channels |= set(self.puts)
        token = secrets.token_hex(8)
        self.sessions[token] = session
        await peer.say("hello", **{
            "connection": session.connection, "resumed": known is not None, "user": None,
            "resume": token, "window": 120, "channels": sorted(session.channels), "ping": 25,
            "max_message": 1 << 20, **self.hello,
        })  # fmt: skip
        positions = frame.get("positions", {}) if known else {}
        for channel in sorted(session.channels):
            await self._enter(peer, channel, positions.get(channel))

    async def _enter(self, peer, channel, since, **fields):
        history = self.history[channel]
        if since is not None:
            epoch, _, offset = since.partition(".")
            if epoch == "e" and int(offset) <= len(history):
                for number in range(int(offset) + 1, len(history) + 1):
                    await self._publication(peer, channel, history[number - 1], f"e.{number}")
            else:
                await peer.say("lost", channel=channel, position=f"e.{len(history)}")
        peer.session.channels.add(channel)
        more = {} if channel in self.plain else {"position": f"e.{len(history)}"}
        await peer.say("subscribed", channel=channel, **more, **fields)

    async def _subscribe(self, peer, frame):
        if frame["channel"].startswith("secret"):
            await self._answer(peer, frame, "error", code="refused", text="not for you")
        elif frame["channel"] in peer.session.channels:
            await self._answer(peer, frame, "subscribed", channel=frame["channel"])
        else:
            await self._enter(peer, frame["channel"], frame.get("since"), id=frame["id"])

    async def _unsubscribe(self, peer, frame):
        peer.session.channels.discard(frame["channel"])
        await self._answer(peer, frame, "unsubscribed", channel=frame["channel"])

    async def _message(self, peer, frame):
        id_ = frame.get("id")
        if id_ is None or id_ not in peer.session.done:
            self.messages.append(frame["data"])
            peer.session.done[id_] = {}
        if id_ is not None:
            await self._answer(peer, frame, "ack")

    async def _publish(self, peer, frame):
        done = peer.session.done
        if frame["id"] not in done:
            position = await self.publish(frame["channel"], frame["data"])
            done[frame["id"]] = {} if position is None else {"position": position}
        await self._answer(peer, frame, "ack", **done[frame["id"]])

    async def _call(self, peer, frame):
        event = self.events.get(frame["event"])
        if event is None:
            await self._answer(peer, frame, "error", code="unknown_type", text="no such event")
        else:
            await self._answer(peer, frame, "reply", data=event(frame.get("data")))

    async def _presence(self, peer, frame):
        users = [{"user": "ana", "devices": [{"connection": "c1", "meta": {"a": 1}}]}]
        await self._answer(peer, frame, "presence", channel=frame["channel"], users=users)

    async def _renew(self, peer, frame):
        await self._answer(peer, frame, "renewed", expires_in=self.renews)

    async def _ping(self, peer, frame):
        await self._answer(peer, frame, "pong")

    async def _reply(self, peer, frame):
        pass

    _error = _cancel = _reply
