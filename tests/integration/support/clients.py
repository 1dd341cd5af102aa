"""WebSocket clients of the servers in processes.py: without manners, of the chat, or any."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import socket
import struct
from urllib.parse import quote

from processes import PATIENCE
from websockets.exceptions import ConnectionClosed


async def read(client):
    """Return the next message of a websockets client, parsed where it is a JSON object."""
    message = await asyncio.wait_for(client.recv(), PATIENCE)
    return json.loads(message) if isinstance(message, str) and message[:1] == "{" else message


async def ended(client):
    """Read a websockets client to its end; returns the close code and reason, 1006 without a close."""
    try:
        while True:
            await read(client)
    except ConnectionClosed as closed:
        return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")


def blame(told):
    """Return how a connection ended, of what the server's diary says of its on_close."""
    return f"{told['code']} by {told['by']}"


class Raw:
    """A WebSocket client without manners: bytes on a TCP connection."""

    def __init__(self, server, path, *, receive_buffer=None, host=None, headers=()):
        self.server, self.path, self.headers = server, path, headers
        self.host = host or f"127.0.0.1:{server.port}"
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.setblocking(False)
        self.buffer = b""

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.socket, ("127.0.0.1", self.server.port))
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {self.path} HTTP/1.1",
            f"Host: {self.host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            *self.headers,
        ]
        await self.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        return self

    async def __aexit__(self, *_):
        self.socket.close()

    async def opened(self):
        """Read the response to the handshake; returns its status line."""
        head = await self.read_until(b"\r\n\r\n")
        status = head.split(b"\r\n")[0].decode()
        assert " 101" in status, head
        return status

    async def write(self, data):
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def send(self, payload, opcode=None, *, final=True):
        """Send one masked frame; a str is text, bytes are binary."""
        if opcode is None:
            opcode = 1 if isinstance(payload, str) else 2
        data = payload.encode() if isinstance(payload, str) else payload
        mask = b"\x01\x02\x03\x04"
        if len(data) < 126:
            size = bytes([0x80 | len(data)])
        elif len(data) < 65536:
            size = bytes([0x80 | 126]) + struct.pack("!H", len(data))
        else:
            size = bytes([0x80 | 127]) + struct.pack("!Q", len(data))
        repeated = (mask * (len(data) // 4 + 1))[: len(data)]
        masked = int.from_bytes(data) ^ int.from_bytes(repeated)
        head = bytes([(0x80 if final else 0) | opcode])
        await self.write(head + size + mask + masked.to_bytes(len(data)))

    async def close(self, code=None, reason=""):
        """Send a close frame."""
        await self.send(b"" if code is None else struct.pack("!H", code) + reason.encode(), 8)

    async def _more(self):
        read = asyncio.get_running_loop().sock_recv(self.socket, 1 << 16)
        data = await asyncio.wait_for(read, PATIENCE)
        if not data:
            raise EOFError(f"the server closed the connection after {self.buffer!r}")
        self.buffer += data

    async def read_until(self, end):
        while end not in self.buffer:
            await self._more()
        data, _, self.buffer = self.buffer.partition(end)
        return data

    async def read(self, size):
        while len(self.buffer) < size:
            await self._more()
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    async def frame(self):
        """Return (opcode, payload) of the next frame."""
        head = await self.read(2)
        size = head[1]
        if size == 126:
            (size,) = struct.unpack("!H", await self.read(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.read(8))
        return head[0] & 15, await self.read(size)

    async def close_code(self):
        """Read to the close frame; returns its code, 1005 without one, 1006 when none comes."""
        try:
            while True:
                opcode, payload = await self.frame()
                if opcode == 8:
                    return struct.unpack("!H", payload[:2])[0] if payload else 1005
        except TimeoutError:  # an OSError too, but nothing has ended
            raise
        except (EOFError, OSError):
            return 1006

    def abort(self):
        """Drop the connection with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def vanish(self):
        """Close the TCP connection without a WebSocket close."""
        self.socket.close()


class Peer:
    """A client of the chat endpoint, by the websockets library.

    Attributes:
        id: its connection id at the server.
        tag: what the server's diary knows it by.
    """

    tags = itertools.count(1)

    def __init__(self, server, path, *, tag=None, **options):
        self.server = server
        self.tag = tag or f"peer {next(self.tags)}"
        separator = "&" if "?" in path else "?"
        self._connect = server.connect(f"{path}{separator}tag={quote(self.tag)}", **options)

    async def __aenter__(self):
        self.socket = await self._connect.__aenter__()
        self.id = (await self.read())["you"]
        return self

    async def __aexit__(self, *error):
        await self._connect.__aexit__(*error)

    async def send(self, type_, **message):
        await self.socket.send(json.dumps({"type": type_, **message}))

    async def read(self):
        return await read(self.socket)

    async def ended(self):
        """Read to the end; returns the close code and reason, 1006 when there was no close."""
        return await ended(self.socket)

    async def nothing_more(self):
        """Nothing is on its way: a message by this very connection overtakes nothing."""
        await self.send("whisper", to=[self.id], text="the end")
        assert await self.read() == {"whispered": "the end"}
        assert await self.read() == {"reached": 1}
