"""Servers in processes of their own, and the clients that talk to them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

HERE = Path(__file__).parent
START = 20.0
"""Seconds a server may take to start on a busy machine."""

PATIENCE = 15.0
"""Seconds a test waits for what should come at once."""

NATIVE = "--ws backchannel.transport.uvicorn:Protocol"
PATIENT = "--http backchannel.transport.uvicorn:HttpProtocol"
COMMANDS = {
    "uvicorn-asyncio": "uvicorn served:app --port {port} --ws websockets-sansio --loop asyncio",
    "uvicorn-uvloop": "uvicorn served:app --port {port} --ws websockets-sansio --loop uvloop",
    "native-asyncio": f"uvicorn served:app --port {{port}} {NATIVE} --loop asyncio",
    "native-uvloop": f"uvicorn served:app --port {{port}} {NATIVE} {PATIENT} --loop uvloop",
    "hypercorn": "hypercorn served:app --bind 127.0.0.1:{port}",
    "granian": "granian --interface asgi served:app --port {port}",
}


class Process:
    """A program that a test started, with what it printed."""

    def __init__(self, arguments, log, *, cwd=HERE, env=None):
        self.log = Path(log)
        with self.log.open("wb") as out:
            self.popen = subprocess.Popen(
                [sys.executable, *([] if arguments[0].endswith(".py") else ["-m"]), *arguments],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200", **dict(env or {})},
                start_new_session=True,  # so that Ctrl-C in the tests is not for it too
            )

    @property
    def pid(self):
        return self.popen.pid

    def output(self):
        return self.log.read_text(errors="replace")

    def wait_for_output(self, pattern, timeout=START):
        """Return the match of a pattern in what it printed; nothing tells when a file grows."""
        deadline = time.monotonic() + timeout
        while not (found := re.search(pattern, self.output())):
            code = self.popen.poll()
            assert code is None, (
                f"ended with {code} before it printed {pattern!r}:\n{self.output()}"
            )
            assert time.monotonic() < deadline, f"did not print {pattern!r}:\n{self.output()}"
            time.sleep(0.02)
        return found

    def wait_for_port(self, port):
        deadline = time.monotonic() + START
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            code = self.popen.poll()
            assert code is None, f"ended with {code} before it listened:\n{self.output()}"
            assert time.monotonic() < deadline, f"does not listen:\n{self.output()}"
            time.sleep(0.02)

    def signal(self, number):
        self.popen.send_signal(number)

    def wait(self, timeout=PATIENCE):
        return self.popen.wait(timeout)

    def end(self):
        """End it and what it started; returns its exit code."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        code = self.popen.wait(PATIENCE)
        with contextlib.suppress(ProcessLookupError):  # nothing it started is left
            os.killpg(self.popen.pid, signal.SIGKILL)
        return code


class Server:
    """A server under test, at an address."""

    def __init__(self, name, process, port):
        self.name = name
        self.kind = name.partition("-")[0]
        self.process = process
        self.port = port
        self.mark = 0

    def __repr__(self):
        return f"<Server {self.name}>"

    @property
    def http(self):
        return f"http://127.0.0.1:{self.port}"

    def printed(self):
        """Return what it printed since the test began."""
        return self.process.output()[self.mark :]

    def connect(self, path, host="127.0.0.1", **options):
        """Open a WebSocket with the websockets library: ``async with server.connect(path)``."""
        return connect(
            f"ws://{host}:{self.port}{path}",
            proxy=None,
            open_timeout=PATIENCE,
            close_timeout=PATIENCE,
            **options,
        )

    async def told(self, tag, until="", times=1):
        """Return what callbacks saw of a tag, once it has the named entry so many times."""
        answer = await self.get("/told", tag=tag, until=until, times=times)
        assert answer.status_code == 200, f"no {times} × {until} came: {answer.text}"
        return answer.json()

    async def told_of(self, tag, callback, times=1):
        """Return the last entry of a callback, once there are so many."""
        return [e for e in await self.told(tag, callback, times) if e["callback"] == callback][-1]

    async def request(self, method, path, **options):
        # Kept-alive connections would be counted among the server's descriptors.
        headers = {"Connection": "close", **options.pop("headers", {})}
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            return await client.request(method, self.http + path, headers=headers, **options)

    async def get(self, path, *, headers=(), **query):
        return await self.request("GET", path, headers=dict(headers), params=query)

    async def post(self, path, **body):
        answer = await self.request("POST", path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def stats(self):
        return (await self.get("/stats")).json()

    async def settled(self, wanted, within=PATIENCE):
        """Return the stats as soon as they are as wanted; polls, since nothing tells."""
        deadline = time.monotonic() + within
        while not wanted(stats := await self.stats()):
            assert time.monotonic() < deadline, f"did not come to it: {stats}"
            await asyncio.sleep(0.05)
        return stats


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
        message = await asyncio.wait_for(self.socket.recv(), PATIENCE)
        return json.loads(message) if isinstance(message, str) and message[:1] == "{" else message

    async def ended(self):
        """Read to the end; returns the close code and reason, 1006 when there was no close."""
        try:
            while True:
                await self.read()
        except ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")

    async def nothing_more(self):
        """Nothing is on its way: a message by this very connection overtakes nothing."""
        await self.send("whisper", to=[self.id], text="the end")
        assert await self.read() == {"whispered": "the end"}
        assert await self.read() == {"reached": 1}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(name, command, log, **options):
    """Start a server and wait until it listens; another program may have taken the port."""
    for attempt in range(3):
        port = free_port()
        process = Process(command.format(port=port).split(), log, **options)
        try:
            process.wait_for_port(port)
        except AssertionError:
            process.end()
            if attempt == 2 or "in use" not in process.output():
                raise
        else:
            break
    try:
        yield Server(name, process, port)
    finally:
        process.end()


@pytest.fixture(scope="session", params=list(COMMANDS))
def session_server(request, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / f"{request.param}.log"
    with running(request.param, COMMANDS[request.param], log) as server:
        yield server


@pytest.fixture
def server(session_server, request):
    """A running server; what it prints of errors that the test did not announce fails the test."""
    session_server.mark = len(session_server.process.output())
    yield session_server
    expected = [pattern for marker in request.node.iter_markers("logs") for pattern in marker.args]
    bad = [
        line
        for line in session_server.printed().splitlines()
        if re.search(r"ERROR|CRITICAL|Traceback|never awaited|never retrieved|Warning:", line)
        and not any(re.search(pattern, line) for pattern in expected)
    ]
    assert not bad, f"{session_server.name} printed errors:\n{session_server.printed()}"


def starter(folder, stack):
    def start_one(name, command, **options):
        log = folder / f"{name}-{next(numbers)}.log"
        return stack.enter_context(running(name, command, log, **options))

    numbers = itertools.count()
    return start_one


@pytest.fixture
def start(tmp_path):
    """Start more servers: ``start("uvicorn", "uvicorn served:app --port {port}")``."""
    with contextlib.ExitStack() as stack:
        yield starter(tmp_path, stack)


@pytest.fixture(scope="session")
def start_once(tmp_path_factory):
    """Start servers for the whole session, each command once."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(starter(tmp_path_factory.mktemp("servers"), stack))


@pytest.fixture
def process(tmp_path):
    """Start programs: ``process("backchannel", "run", "chat.py")``; they are ended after the test."""
    with contextlib.ExitStack() as stack:
        numbers = itertools.count()

        def start_one(*arguments, **options):
            log = tmp_path / f"{Path(arguments[0]).name}-{next(numbers)}.log"
            started = Process([str(one) for one in arguments], log, **options)
            stack.callback(started.end)
            return started

        yield start_one


def pytest_configure(config):
    config.addinivalue_line("markers", "logs(*patterns): errors that the server may print")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Show with a failed test what its servers printed."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Server):
                report.sections.append((f"{value.name} printed", value.printed()[-6000:]))


@pytest.fixture
def make_server():
    """Make the Server of a process that listens: ``make_server(name, process, port)``."""
    return Server


@pytest.fixture
def make_raw():
    """Make clients without manners of any server: ``make_raw(server, "/ws/echo")``."""
    return Raw


@pytest.fixture
def raw(server):
    """Make clients without manners: ``async with raw("/ws/echo") as client``."""
    return functools.partial(Raw, server)


@pytest.fixture
def peer(server):
    """Make chat clients: ``async with peer("/ws/chat/cars") as ana``."""
    return functools.partial(Peer, server)
