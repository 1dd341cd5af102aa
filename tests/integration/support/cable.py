"""A network between a client and a server that can be cut, and end at another server."""

from __future__ import annotations

import asyncio


class Cable:
    """A TCP proxy.

    Attributes:
        port: of the server behind it; another one from the next connection on.
        is_cut: nobody gets through.
        opened: connections that were made through it.
    """

    def __init__(self, port):
        self.port = port
        self.is_cut = False
        self.opened = 0
        self.writers = set()
        self.serving = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.own_port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.cut()
        if self.serving:
            await asyncio.wait(self.serving)

    def url(self, path):
        return f"ws://127.0.0.1:{self.own_port}{path}"

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)
        self.writers.add(writer)
        try:
            there, away = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.transport.abort()
            return
        self.writers.add(away)
        self.opened += 1
        if self.is_cut:
            self.cut()
        await asyncio.gather(self._pass(reader, away), self._pass(there, writer))
        self.writers -= {writer, away}

    async def _pass(self, reader, writer):
        try:
            while data := await reader.read(1 << 14):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()

    def cut(self, *, and_hold=True):
        """Cut what is open; with ``and_hold`` let nobody through until it is mended."""
        self.is_cut = and_hold
        for writer in list(self.writers):
            writer.transport.abort()

    def mend(self):
        self.is_cut = False
