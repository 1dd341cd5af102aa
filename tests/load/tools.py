"""What the load programs share: the server in its own process, and frames by hand."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import resource
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SERVER = Path(__file__).parent / "server.py"
START = 30.0
"""Seconds that the server has to start, and to answer a question, on a busy machine."""


class ServedElsewhere:
    """A server in a process of its own. Whatever else it prints is an error."""

    def __init__(self, loop: str, settings: dict[str, Any], *options: str):
        self.process = subprocess.Popen(
            [
                *(sys.executable, str(SERVER), "--loop", loop),
                *("--attended", "--settings", json.dumps(settings), *options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.errors: list[str] = []
        self._answers: queue.Queue[list[str]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.port = int(self._answer("LISTENING"))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, _, rest = line.partition(" ")
            if word in {"LISTENING", "STATS"}:
                self._answers.put([word, rest])
            else:
                self.errors.append(line)
        self._answers.put(["ENDED", ""])

    def _answer(self, wanted: str) -> str:
        word, rest = self._answers.get(timeout=START)
        if word != wanted:
            raise RuntimeError(f"the server ended:\n{''.join(self.errors)}")
        return rest

    def stats(self) -> Any:
        """Ask for all counts; this takes the server a while."""
        return self._ask(signal.SIGUSR1)

    def figures(self) -> Any:
        """Ask for memory, CPU time and slow readers."""
        return self._ask(signal.SIGUSR2)

    def _ask(self, number: signal.Signals) -> Any:
        self.process.send_signal(number)
        return json.loads(self._answer("STATS"))

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self.errors.append("it had to be killed\n")


@contextlib.contextmanager
def serving(loop: str, settings: dict[str, Any], *options: str) -> Iterator[ServedElsewhere]:
    server = ServedElsewhere(loop, settings, *options)
    try:
        yield server
    finally:
        server.end()


def request(path: str, *, deflate: bool = False) -> bytes:
    """Return a handshake."""
    key = base64.b64encode(os.urandom(16)).decode()
    extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n" if deflate else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        f"Sec-WebSocket-Version: 13\r\n{extension}\r\n"
    ).encode()


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """Return a client's frame."""
    mask = os.urandom(4)
    size = len(payload)
    head = bytes([0x80 | opcode, 0x80 | size]) if size < 126 else (
        struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    )  # fmt: skip
    assert size < 65536
    repeated = (mask * (size // 4 + 1))[:size]
    return head + mask + (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(size)


class Frames:
    """Takes a server's frames out of what came."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield opcode and payload of each frame that has come whole."""
        buffer = self.buffer
        buffer += data
        while len(buffer) >= 2:
            size, start = buffer[1], 2
            if size == 126 and len(buffer) >= 4:
                (size,), start = struct.unpack_from("!H", buffer, 2), 4
            elif size == 127 and len(buffer) >= 10:
                (size,), start = struct.unpack_from("!Q", buffer, 2), 10
            elif size > 125:
                return
            if len(buffer) < start + size:
                return
            first, payload = buffer[0], bytes(buffer[start : start + size])
            del buffer[: start + size]
            if first & 0x40:
                payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
            yield first & 15, payload


def allow_files(wanted: int) -> None:
    """Raise the limit of open files, which the server then has too."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
