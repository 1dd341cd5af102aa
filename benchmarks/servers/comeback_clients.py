"""Clients that come back by themselves, and check what they get; as cheap as Python allows.

What they send was made before, and of what comes they read no more than has to be checked, so that
thousands of them take a small part of a core.
"""

from __future__ import annotations

import asyncio
import json
import random
from time import monotonic_ns

SIZE = 64
PADDING = b"x" * (SIZE - 30)
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """Return a client's frame; its mask is zeros."""
    head = bytes([0x80 | opcode])
    if len(payload) < 126:
        head += bytes([0x80 | len(payload)])
    else:
        head += bytes([0x80 | 126]) + len(payload).to_bytes(2)
    return head + bytes(4) + payload


def publication(room: int, number: int, due: int) -> bytes:
    """Return 64 bytes that say what they are: the room, the number in it, the time."""
    return b"%02d%08d%020d" % (room, number, due) + PADDING


class Crew:
    """What clients have in common: where they go, when they come back, and what went wrong.

    Attributes:
        port: where they connect.
        comes_back: they do so when a connection is lost; else that is a failure.
        is_over: connections are lost because the program ends.
        spread: seconds before the first attempt, by chance between 0 and this.
        pause: seconds before that.
        heard: of each publication, when it was due and the nanoseconds that it took; None: nobody
            wants to know.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.comes_back = self.is_over = False
        self.spread = self.pause = 0.0
        self.heard: list[tuple[int, int]] | None = None
        self.failures: list[str] = []
        self.missed = self.doubled = self.lost = self.retries = self.deliveries = 0
        self.not_resumed = 0
        self.last_reason = ""
        self._awaited = 0
        self._all = asyncio.Event()

    def expect(self, count: int) -> None:
        """Begin to count those that have settled."""
        self._awaited = count
        self._all.clear()

    def settled(self) -> None:
        """Count one of them."""
        self._awaited -= 1
        if self._awaited == 0:
            self._all.set()

    def fail(self, text: str) -> None:
        """Note what makes the run worthless."""
        self.failures.append(text)
        self._all.set()

    async def all_settled(self, seconds: float) -> None:
        """Wait until all that were expected have settled."""
        try:
            async with asyncio.timeout(seconds):
                await self._all.wait()
        except TimeoutError:
            self.fail(
                f"{self._awaited} clients were not there after {seconds:g} s; {self.retries} "
                f"attempts had failed, the last since: {self.last_reason}"
            )
        self.check()

    def check(self) -> None:
        """End the program where something went wrong."""
        if self.failures:
            raise SystemExit(f"{len(self.failures)} failures, the first: {self.failures[0]}")


class Client(asyncio.Protocol):
    """One client in a room; its dialect is a subclass.

    Attributes:
        number: that of the last publication it has; each room's count from 1.
        resumed: when its session went on, by the monotonic clock in nanoseconds; 0 before.
        whole: when it had all that it had missed.
        is_settled: it is in its room.
    """

    request = headers = ""

    def __init__(self, crew: Crew, room: int) -> None:
        self.crew = crew
        self.room = room
        self.number = self.resumed = self.whole = self.attempt = 0
        self.is_settled = self.is_open = self.is_new = False
        self.rest, self.refusal = b"", ""
        self.tag = b"%02d" % room
        self.asking = (
            f"GET {self.request.format(room=f'{room:02}')} HTTP/1.1\r\nHost: bench\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"{self.headers}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        ).encode()

    # ── the connection ────────────────────────────────────────────────────────────────────────

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self, "127.0.0.1", self.crew.port)
        except OSError as error:
            self.come_back(error)

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.rest, self.is_open, self.refusal = b"", False, ""
        transport.write(self.asking)

    def connection_lost(self, exc) -> None:
        if not self.crew.is_over:
            self.come_back(exc)

    def come_back(self, why) -> None:
        """Connect again after the time that the protocol says, counted from the first attempt."""
        crew = self.crew
        if not crew.comes_back:
            crew.fail(f"a client of room {self.room} lost its connection: {why}")
            return
        if self.attempt == 0:
            wait = crew.pause + random.uniform(0, crew.spread)
        else:
            crew.retries += 1
            crew.last_reason = self.refusal or f"{why}"
            wait = random.uniform(0, min(20, 0.5 * 2**self.attempt))
        self.attempt += 1
        self.is_settled = False
        loop = asyncio.get_running_loop()
        if wait:
            loop.call_later(wait, self.begin)
        else:
            self.begin()

    def begin(self) -> None:
        self.connecting = asyncio.get_running_loop().create_task(self.connect())

    # ── frames ────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        at = 0
        if not self.is_open:
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                self.rest = data
                return
            if not data.startswith(b"HTTP/1.1 101"):
                self.refused(f"the handshake got {data[:60]!r}")
                return
            self.is_open = True
            self.opened()
        size = len(data)
        while size - at >= 2:
            length, start = data[at + 1], at + 2
            if length > 125:
                start = at + (4 if length == 126 else 10)
                if start > size:
                    break
                length = int.from_bytes(data[at + 2 : start])
            if start + length > size:
                break
            self.take_frame(data[at], data[start : start + length])
            at = start + length
        self.rest = data[at:]

    def take_frame(self, first: int, payload: bytes) -> None:
        if first == 0x80 | TEXT:
            self.take_text(payload)
        elif first == 0x80 | PING:
            self.transport.write(frame(payload, PONG))
        elif first == 0x80 | CLOSE:
            self.refused(f"the server closed: {int.from_bytes(payload[:2])} {payload[2:]!r}")
        else:
            self.crew.fail(f"a frame begins with {first:#x}")

    def refused(self, text: str) -> None:
        """Take a refusal: one while coming back is a reason to come again."""
        self.refusal = text
        if not self.crew.comes_back:
            self.crew.fail(text)
        self.transport.abort()

    def take(self, content: bytes) -> None:
        """Check a publication."""
        crew, now = self.crew, monotonic_ns()
        if len(content) != SIZE or content[:2] != self.tag or content[30:] != PADDING:
            crew.fail(f"a client of room {self.room} got {content!r}")
            return
        number, due = int(content[2:10]), int(content[10:30])
        if number <= self.number:
            crew.doubled += 1
            return
        if number > self.number + 1 and not self.is_new:
            crew.missed += number - self.number - 1
        self.is_new = False
        self.number = number
        crew.deliveries += 1
        if due <= self.resumed:
            self.whole = now
        if crew.heard is not None:
            crew.heard.append((due, now - due))

    def settle(self, *, goes_on: bool) -> None:
        """Be in the room: with the session that was, or with a new one."""
        if self.attempt:
            self.resumed = self.whole = monotonic_ns()
            if not goes_on:
                self.crew.not_resumed += 1
                self.is_new = True  # what it missed can't be known
        self.is_settled = True
        self.crew.settled()

    def opened(self) -> None:
        raise NotImplementedError

    def take_text(self, payload: bytes) -> None:
        raise NotImplementedError

    def publish(self, content: bytes) -> None:
        raise NotImplementedError


class V1(Client):
    """Speaks Backchannel's v1: a token and positions."""

    request = "/ws/live/{room}"
    headers = "Sec-WebSocket-Protocol: backchannel.v1.json\r\n"
    PING = frame(b'{"type":"ping"}')

    def __init__(self, crew: Crew, room: int) -> None:
        super().__init__(crew, room)
        self.prefix = b'{"type":"publication","channel":"live:%02d","position":"' % room
        self.token = self.position = b""
        self.id = ""
        self.goes_on = False

    def opened(self) -> None:
        if not self.token:
            self.transport.write(frame(b'{"type":"hello"}'))
            return
        hello = b'{"type":"hello","resume":"%b","positions":{"live:%02d":"%b"}}'
        self.transport.write(frame(hello % (self.token, self.room, self.position)))

    def take_text(self, payload: bytes) -> None:
        if payload.startswith(self.prefix):
            start = len(self.prefix)
            end = payload.index(b'"', start)
            self.position = payload[start:end]
            if payload[end : end + 10] != b'","data":"' or payload[-2:] != b'"}':
                self.crew.fail(f"no publication: {payload!r}")
            self.take(payload[end + 10 : -2])
            return
        told = json.loads(payload)
        if told["type"] == "hello":
            self.take_hello(told)
        elif told["type"] == "subscribed":
            self.position = told["position"].encode()
            self.settle(goes_on=self.goes_on)
        elif told["type"] == "lost":
            self.crew.lost += 1
            self.is_new = True
        elif told["type"] != "pong":
            self.crew.fail(f"unexpected: {payload!r}")

    def take_hello(self, hello) -> None:
        self.goes_on = hello["resumed"]
        if self.goes_on and hello["connection"] != self.id:
            self.crew.fail(f"{self.id} was resumed as {hello['connection']}")
        self.id = hello["connection"]
        self.token = (hello["resume"] or "").encode()
        self.transport.write(self.PING)  # which tells the server that the new token is here

    def publish(self, content: bytes) -> None:
        self.transport.write(frame(b'{"type":"message","data":"%b"}' % content))


class SocketIO(Client):
    """Speaks Socket.IO's packets, with connection state recovery: a private id and an offset."""

    request = "/socket.io/?EIO=4&transport=websocket&path=/ws/live/{room}"

    def __init__(self, crew: Crew, room: int) -> None:
        super().__init__(crew, room)
        self.pid = self.offset = ""

    def opened(self) -> None:
        """Wait for its packet ``0``."""

    def take_text(self, payload: bytes) -> None:
        if payload.startswith(b'42["m","'):
            self.take(payload[8 : 8 + SIZE])
            if payload[8 + SIZE :] == b'"]':
                return  # what its adapter could not write to the stream has no offset
            if payload[8 + SIZE : 11 + SIZE] != b'","' or payload[-2:] != b'"]':
                self.crew.fail(f"no publication: {payload!r}")
            self.offset = payload[11 + SIZE : -2].decode()
        elif payload == b"2":
            self.transport.write(frame(b"3"))
        elif payload.startswith(b"0{"):
            known = json.dumps({"pid": self.pid, "offset": self.offset}) if self.pid else ""
            self.transport.write(frame(b"40" + known.encode()))
        elif payload.startswith(b"40{"):
            pid = json.loads(payload[2:])["pid"]
            goes_on, self.pid = pid == self.pid, pid
            self.settle(goes_on=goes_on)
        else:
            self.crew.fail(f"unexpected: {payload!r}")

    def publish(self, content: bytes) -> None:
        self.transport.write(frame(b'42["m","%b"]' % content))


DIALECTS = {"v1": V1, "socketio": SocketIO}
