"""Servers in processes of their own: started on a free port, asked over HTTP, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from ports import free_port
from websockets.asyncio.client import connect

PROGRAMS = Path(__file__).parents[1]
"""Where the programs are that tests start, unless they say another folder."""

START = 20.0
"""Seconds a server may take to start on a busy machine."""

PATIENCE = 15.0
"""Seconds a test waits for what should come at once."""


def program(name):
    """Return what starts a program: our own script as people start it, whose path has no folder."""
    if name == "backchannel":
        return [str(Path(sys.executable).with_name(name))]
    return [sys.executable, name] if name.endswith(".py") else [sys.executable, "-m", name]


class Process:
    """A program that a test started, with what it printed."""

    def __init__(self, arguments, log, *, cwd=PROGRAMS, env=None):
        self.log = Path(log)
        with self.log.open("wb") as out:
            self.popen = subprocess.Popen(
                [*program(arguments[0]), *arguments[1:]],
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
        # Certificates, which it would load each time, are of no use here and cost 35 ms.
        async with httpx.AsyncClient(trust_env=False, timeout=30, verify=False) as client:
            return await client.request(method, self.http + path, headers=headers, **options)

    async def get(self, path, *, headers=(), **query):
        return await self.request("GET", path, headers=dict(headers), params=query)

    async def post(self, path, **body):
        answer = await self.request("POST", path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def stats(self):
        return (await self.get("/stats")).json()

    async def until_ready_is(self, status):
        """Return what ``/readyz`` says as soon as it has this status; polls, since nothing tells."""
        async with asyncio.timeout(PATIENCE):
            while (answer := await self.get("/readyz")).status_code != status:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return answer.json()

    async def settled(self, wanted, within=PATIENCE):
        """Return the stats as soon as they are as wanted; polls, since nothing tells."""
        deadline = time.monotonic() + within
        while not wanted(stats := await self.stats()):
            assert time.monotonic() < deadline, f"did not come to it: {stats}"
            await asyncio.sleep(0.05)
        return stats


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
