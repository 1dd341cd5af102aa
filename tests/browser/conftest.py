"""A real browser for all tests, and the examples that it visits, run as their first lines say.

The browser is started once: starting one costs more than most tests. People are told apart by
contexts, which share nothing, like profiles. So these tests run in one event loop, the browser's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import pytest_asyncio

EXAMPLES = Path(__file__).parents[2] / "examples"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 10.0
"""Seconds a test waits for what should come at once."""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium():
    """The one browser."""
    if BROWSER is None:
        pytest.skip(f"no browser to test with: none of {', '.join(BROWSERS)} is installed")
    reason = "no playwright: pip install it"
    playwright_api = pytest.importorskip("playwright.async_api", reason=reason)
    playwright_api.expect.set_options(timeout=PATIENCE * 1000)
    async with playwright_api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def new_context(chromium):
    """Make profiles: ``await new_context(viewport=…)``. They are gone after the test."""
    made = []

    async def make(**options):
        context = await chromium.new_context(**options)
        context.set_default_timeout(PATIENCE * 1000)
        made.append(context)
        return context

    yield make
    for context in made:
        await context.close()


class App:
    """An example that runs; it can be stopped and started again at the same port."""

    def __init__(self, target, **env):
        self.target, self.env, self.port = target, env, 0

    @property
    def url(self):
        return f"http://localhost:{self.port}/"

    async def start(self):
        self.log = []
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "backchannel", "run", str(EXAMPLES / self.target),
            "--port", str(self.port),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self.env},
        )  # fmt: skip
        try:
            self.port = int(await asyncio.wait_for(self._port(), 30))
        except (EOFError, TimeoutError):
            pytest.fail(f"{self.target} did not say where it serves:\n{''.join(self.log)}")
        finally:
            self.rest = asyncio.create_task(self.process.stdout.read())

    async def _port(self):
        while line := (await self.process.stdout.readline()).decode():
            self.log.append(line)
            if found := re.search(r"(?:http|ws)://[\w.]+:(\d+)", line):
                return found[1]
        raise EOFError

    async def stop(self, how=signal.SIGINT):
        if self.process.returncode is None:
            self.process.send_signal(how)
        try:
            await asyncio.wait_for(self.process.wait(), PATIENCE)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            pytest.fail(f"{self.target} had to be killed")
        finally:
            self.log.append((await self.rest).decode())
        printed = "".join(self.log)
        # On a busy machine the process may be held up inside a callback; the hub can't know why.
        bad = re.search(r"ERROR|WARNING(?!.*held the event loop)|Traceback", printed)
        assert bad is None, printed


@pytest.fixture(scope="session")
def make_app():
    """Make the App of an example: ``make_app("chat.py")``; a name and value are its environment."""
    return App


# ── the browser's client ──────────────────────────────────────────────────────────────────────

SET_UP = """async ([path, file, options]) => {
    const { connect } = await import(`/backchannel/${file}`);
    window.connect = connect;
    window.client = connect(path, options);
    window.log = { states: [], messages: [], lost: [], got: [], dropped: [] };
    client.on("state", ({ state, resumed }) => log.states.push(state + (resumed ? "+" : "")));
    client.on("message", (message) => log.messages.push(message));
    client.on("lost", (lost) => log.lost.push(lost));
    client.on("dropped", ({ data }) => log.dropped.push(data));
    client.on("publication", ({ data }) => log.got.push(data));
    window.until = async (holds) => {
        while (!holds()) await new Promise((then) => client.on("state", then) && setTimeout(then, 20));
    };
    await until(() => client.state === "open");
}"""


class Wire:
    """A TCP proxy before a port: it cuts, in three ways, it delays, and can hold what the server says.

    Attributes:
        target: the port that the next connection leads to.
        delays: seconds that what is said takes: up to the server, and down from it.
        connections: how many there were.
    """

    def __init__(self, port):
        self.target, self.pairs = port, []
        self.truncating, self.half_closed = None, set()
        self.delays, self.connections = {"up": 0.0, "down": 0.0}, 0
        self.flowing, self.came = asyncio.Event(), asyncio.Condition()
        self.flowing.set()

    async def start(self):
        self.server = await asyncio.start_server(self._serve, "localhost", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://localhost:{self.port}/"
        return self

    async def _serve(self, reader, writer):
        pair = [writer]  # so that it is cut also before the other end is there
        self.pairs.append(pair)
        self.connections += 1
        async with self.came:
            self.came.notify_all()
        try:
            back, forth = await asyncio.open_connection("localhost", self.target)
            pair.append(forth)
            await asyncio.gather(
                self._pump(reader, forth, pair, "up"),
                self._pump(back, writer, pair, "down"),
            )
        except OSError:
            writer.transport.abort()
        finally:
            self.pairs.remove(pair)

    async def _pump(self, reader, writer, pair, way):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if way == "down":
                    await self.flowing.wait()
                if self.delays[way]:
                    await asyncio.sleep(self.delays[way])  # it is the delay itself
                if writer in self.half_closed:
                    continue
                if self.truncating is not None:
                    writer.write(data[: int(len(data) * self.truncating)])
                    break
                writer.write(data)
                await writer.drain()
        for each in pair:
            each.close()
        self.half_closed.difference_update(pair)

    def cut(self):
        for pair in self.pairs:
            for writer in pair:
                writer.transport.abort()

    def half_close(self, rng):
        """End one direction of each connection, or both; the socket stays open."""
        for pair in self.pairs:
            for writer in [each for each in pair if rng.random() < 0.7] or pair:
                self.half_closed.add(writer)
                with contextlib.suppress(OSError):
                    writer.write_eof()

    def forget(self):
        """Pass on nothing any more of what is connected, and tell nobody, as routers do."""
        self.half_closed.update(*self.pairs)

    async def next(self):
        """Wait until someone connects."""
        async with self.came:
            await self.came.wait()

    async def stop(self):
        self.server.close()
        self.flowing.set()
        self.cut()
        await self.server.wait_closed()


@pytest_asyncio.fixture(loop_scope="session")
async def client_server(make_app):
    """Serve the hub of client_app.py."""
    server = make_app(Path(__file__).with_name("client_app.py"))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
def make_wire():
    """Make a network before a port: ``await make_wire(port).start()``."""
    return Wire


@pytest_asyncio.fixture(loop_scope="session")
async def wire(client_server):
    """Put a breakable network before it."""
    wire = await Wire(client_server.port).start()
    yield wire
    await wire.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def visit(wire, new_context):
    """Open pages with a client: ``await visit(path, file=…)``; in one profile where given."""
    problems = []

    async def go(path="/ws/main", *, file="client.js", context=None, url=None, **options):
        page = await (context or await new_context()).new_page()
        evaluate, page.sockets = page.evaluate, []

        async def soon(*arguments):
            return await asyncio.wait_for(evaluate(*arguments), 2 * PATIENCE)

        page.evaluate = soon
        page.on("websocket", lambda socket: page.sockets.append(socket))  # noqa: PLW0108 - Playwright wants a function
        page.on("pageerror", lambda error: problems.append(str(error)))
        # Cut again and again, a client waits up to 20 seconds: here a hundredth of that.
        await page.add_init_script("Math.random = () => 0.01")
        await page.goto(url or wire.url)
        await page.evaluate(SET_UP, [path, file, options])
        return page

    yield go
    assert problems == []
