"""What tests of several nodes share."""

from __future__ import annotations

import asyncio

import pytest


class Cable:
    """A connection between a node and its engine that can be cut, and made deaf or mute."""

    def __init__(self, port):
        self.port = port
        self.is_cut = self.is_deaf = self.is_mute = False
        self.pause = 0.0  # after each 64 KiB that the engine says
        self.writers = []
        self.serving = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}/0"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.cut()
        if self.serving:
            await asyncio.wait(self.serving)

    async def _serve(self, reader, writer):
        self.serving.add(asyncio.current_task())
        if self.is_cut:
            writer.transport.abort()
            return
        there, away = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers += [writer, away]
        if self.is_cut:  # meanwhile
            self.cut()
        await asyncio.gather(self._pass(reader, away), self._pass(there, writer, back=True))

    async def _pass(self, reader, writer, *, back=False):
        try:
            while data := await reader.read(1 << 16):
                if not (self.is_deaf if back else self.is_mute):
                    writer.write(data)
                if back and self.pause:
                    await asyncio.sleep(self.pause)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    def cut(self):
        """Cut it, and let nobody connect."""
        self.is_cut = True
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    def mend(self):
        """Let connect again."""
        self.is_cut = self.is_deaf = self.is_mute = False


@pytest.fixture
async def cable(redis_server):
    async with Cable(int(redis_server.url.rpartition(":")[2].partition("/")[0])) as cable:
        yield cable
