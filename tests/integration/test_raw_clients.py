"""Clients that know nothing of Backchannel: each has the same conversation with both transports.

Text and bytes are echoed, a message to the channel comes back and reaches somebody else too, and
the server closes with a code and a reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import subprocess
from pathlib import Path

import aiohttp
import pytest
import websocket
import websockets
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

TEXT, BYTES, ALL = "grüße 👋", b"\x00\x01\xff", "all of you"
CLOSED = (4321, "that was all")
HEARD = [TEXT, BYTES, ALL, CLOSED]


@pytest.fixture(params=["native", "portable"])
def server(request, start_once):
    """A running server, with each transport."""
    command = f"backchannel run raw_clients.py --port {{port}} --transport {request.param}"
    return start_once(request.param, command)


def at(server):
    return f"ws://127.0.0.1:{server.port}"


@pytest.fixture
def other(server):
    """Have somebody else in a channel: ``other(name)()`` returns the first thing they hear there."""
    with contextlib.ExitStack() as stack:

        def enter(channel):
            client = stack.enter_context(connect(f"{at(server)}/ws/{channel}"))
            client.send("I am in")  # what comes back says so
            assert client.recv(timeout=15) == "I am in"
            return lambda: client.recv(timeout=15)

        yield enter


async def test_websockets(server, other):
    heard_by_other = other("websockets")
    heard = []
    async with websockets.connect(f"{at(server)}/ws/websockets") as client:
        for message in (TEXT, BYTES, ALL):
            await client.send(message)
            heard.append(await client.recv())
        await client.send("close")
        with pytest.raises(ConnectionClosed) as raised:
            await client.recv()
    heard.append((raised.value.rcvd.code, raised.value.rcvd.reason))
    assert heard == HEARD
    assert await asyncio.to_thread(heard_by_other) == ALL


async def test_aiohttp(server, other):
    heard_by_other = other("aiohttp")
    heard = []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{at(server)}/ws/aiohttp") as client,
    ):
        await client.send_str(TEXT)
        heard.append(await client.receive_str())
        await client.send_bytes(BYTES)
        heard.append(await client.receive_bytes())
        await client.send_str(ALL)
        heard.append(await client.receive_str())
        await client.send_str("close")
        closing = await client.receive()
        assert closing.type is aiohttp.WSMsgType.CLOSE
        heard.append((closing.data, closing.extra))
    assert heard == HEARD
    assert await asyncio.to_thread(heard_by_other) == ALL


def test_websocket_client(server, other):
    heard_by_other = other("websocket-client")
    client = websocket.create_connection(f"{at(server)}/ws/websocket-client", timeout=15)
    heard = []
    client.send(TEXT)
    heard.append(client.recv())
    client.send_binary(BYTES)
    heard.append(client.recv())
    client.send(ALL)
    heard.append(client.recv())
    client.send("close")
    opcode, payload = client.recv_data()
    assert opcode == websocket.ABNF.OPCODE_CLOSE
    heard.append((int.from_bytes(payload[:2], "big"), payload[2:].decode()))
    client.shutdown()  # close() leaves the socket of one that the server has closed
    assert heard == HEARD
    assert heard_by_other() == ALL


IN_A_PAGE = """url => new Promise((resolve) => {
    const socket = new WebSocket(url), heard = [];
    socket.binaryType = "arraybuffer";
    const say = [new Uint8Array([0, 1, 255]), "all of you", "close"];
    socket.onopen = () => socket.send("grüße 👋");
    socket.onmessage = ({ data }) => {
        heard.push(typeof data === "string" ? data : [...new Uint8Array(data)]);
        socket.send(say.shift());
    };
    socket.onclose = ({ code, reason }) => resolve([...heard, [code, reason]]);
})"""


async def test_the_web_socket_of_a_browser(server, other):
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser to test with: none of {', '.join(BROWSERS)} is installed")
    api = pytest.importorskip("playwright.async_api", reason="no playwright: pip install it")
    heard_by_other = other("browser")
    async with api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", "--no-proxy-server"]
        )
        page = await browser.new_page()
        await page.goto(f"http://127.0.0.1:{server.port}/")
        heard = await page.evaluate(IN_A_PAGE, f"{at(server)}/ws/browser")
        await browser.close()
    assert heard == [TEXT, list(BYTES), ALL, list(CLOSED)]
    assert await asyncio.to_thread(heard_by_other) == ALL


async def test_java(server, other):
    java = shutil.which("java")
    if java is None or shutil.which("javac") is None:
        pytest.skip("needs a JDK of Java 17 or newer")
    heard_by_other = other("java")
    command = [java, str(HERE / "RawClient.java"), f"{at(server)}/ws/java"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), 45)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert printed.decode().splitlines() == [
        f"text {TEXT}", f"bytes {BYTES.hex()}", f"text {ALL}", f"closed {CLOSED[0]} {CLOSED[1]}",
    ]  # fmt: skip
    assert await asyncio.to_thread(heard_by_other) == ALL


class Terminal:
    """A program at a terminal, since wscat says nothing of its connection without one."""

    def __init__(self, *command, env):
        pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
        self.screen, end = pty.openpty()
        self.printed = ""
        self.process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=env)
        os.close(end)

    def wait_for(self, text):
        """Return once it has printed a text, of what it had not printed before."""
        while text not in self.printed:
            ready, _, _ = select.select([self.screen], [], [], 20)
            assert ready, f"no {text!r} in:\n{self.printed}"
            try:
                part = os.read(self.screen, 4096)
            except OSError:  # it has ended, and its terminal with it
                part = b""
            assert part, f"it ended without {text!r}:\n{self.printed}"
            self.printed += part.decode()
        self.printed = self.printed.partition(text)[2]

    def type(self, line):
        os.write(self.screen, f"{line}\r".encode())

    def end(self):
        self.process.kill()
        self.process.wait(20)
        os.close(self.screen)


def test_wscat(server, other, npm):
    """It sends text alone. What it has got stands behind ``<``, what was typed does not."""
    heard_by_other = other("wscat")
    wscat = shutil.which("wscat", path=npm.env["PATH"])
    terminal = Terminal(wscat, "--no-color", "-c", f"{at(server)}/ws/wscat", env=npm.env)
    try:
        terminal.wait_for("Connected")
        for message in ("hello", ALL):
            terminal.type(message)
            terminal.wait_for(f"< {message}")
        terminal.type("close")
        terminal.wait_for('Disconnected (code: 4321, reason: "that was all")')
    finally:
        terminal.end()
    assert heard_by_other() == ALL
