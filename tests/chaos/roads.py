"""The road between a client and its nodes: cut, slow, torn in the middle of a frame, half closed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket

SMALL = 8192
"""Bytes that its sockets take, so that what is not read waits in the server."""


class Road:
    """Passes on what a client and a node say; each new connection leads to some node.

    Args:
        ports: of the nodes.
        rng: decides which.

    Attributes:
        is_closed: nobody gets through.
        delay: seconds that everything takes.
    """

    def __init__(self, ports: list[int], rng: random.Random):
        self.ports, self.rng = ports, rng
        self.is_closed = False
        self.delay = 0.0
        self.port = 0
        self._left: int | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._closed: set[asyncio.StreamWriter] = set()
        self._towards: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def lay(self) -> None:
        door = socket.create_server(("127.0.0.1", 0))
        door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        self._server = await asyncio.start_server(self._serve, sock=door, limit=SMALL)
        self.port = door.getsockname()[1]

    async def take_away(self) -> None:
        self.is_closed = True
        self._server.close()
        self.cut()
        if self._serving:
            await asyncio.wait(self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._serving.add(me)
        me.add_done_callback(self._serving.discard)
        away: asyncio.StreamWriter | None = None
        try:
            if self.is_closed:
                return
            self._ends.add(writer)
            there, away = await self._node()
            self._ends.add(away)
            self._towards.append((writer, away))
            await asyncio.gather(self._carry(reader, away), self._carry(there, writer))
        except OSError:
            pass  # the node is not there
        finally:
            for end in (writer, away):
                if end is not None:
                    self._ends.discard(end)
                    self._closed.discard(end)
                    end.transport.abort()
            self._towards = [both for both in self._towards if both[0] is not writer]

    async def _node(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to some node."""
        way = socket.socket()
        way.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        way.setblocking(False)
        try:
            async with asyncio.timeout(2):
                where = ("127.0.0.1", self.rng.choice(self.ports))
                await asyncio.get_running_loop().sock_connect(way, where)
        except OSError:
            way.close()
            raise
        return await asyncio.open_connection(sock=way, limit=SMALL)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(SMALL):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if self._left is not None:
                    data = data[: self._left]
                    self._left -= len(data)
                if writer.is_closing():
                    break
                if writer in self._closed:
                    continue
                writer.write(data)
                await writer.drain()
                if self._left == 0:
                    self._left = None
                    self.cut()
        writer.close()  # the end is passed on behind what came before it

    # ── what befalls it ───────────────────────────────────────────────────────────────────────

    def cut(self) -> None:
        """End what goes over it; who comes next gets through."""
        for end in self._ends:
            end.transport.abort()

    def tear(self, after: int | None) -> None:
        """Cut it once so many bytes more have gone over it, in whichever direction; None: never."""
        self._left = after

    def half_close(self, *, node: bool) -> None:
        """Let one side believe that the other says nothing any more; it still hears it.

        Args:
            node: whether that is the node, or the client.
        """
        for client, away in self._towards:
            end = away if node else client
            with contextlib.suppress(OSError, RuntimeError):  # it is closing already
                if end.can_write_eof():
                    end.write_eof()
                    self._closed.add(end)
