"""What docs/servers.md says of each server is tried out on it, row by row."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clients import blame
from websockets.exceptions import InvalidStatus

NATIVE = "--ws backchannel.transport.uvicorn:Protocol"
DOCUMENT = Path(__file__).parents[2] / "docs" / "servers.md"


def read_table():
    """Return {what: {server: cell}} of the table in docs/servers.md."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in DOCUMENT.read_text().splitlines()
        if line.startswith("|")
    ]
    names = rows[0][1:]
    return {what: dict(zip(names, cells, strict=True)) for what, *cells in rows[2:]}


TABLE = read_table()
CAPABILITIES = {}


def capability(what):
    """Register what finds out what a row of the table says."""

    def register(probe):
        CAPABILITIES[what] = probe
        return probe

    return register


@pytest.fixture
def pinging(start_once):
    """Return a server of the same kind that pings often, started once: ``pinging(server)``."""

    def find(server):
        command = {
            "uvicorn": "uvicorn served:app --port {port} "
            "--ws-ping-interval 0.3 --ws-ping-timeout 0.3",
            "native": f"uvicorn served:app --port {{port}} {NATIVE}",
            "hypercorn": "hypercorn served:app --bind 127.0.0.1:{port} --websocket-ping-interval 1",
        }[server.kind]
        settings = json.dumps({"ping_interval": 0.3, "ping_timeout": 0.3})
        return start_once(f"{server.kind}-pinging", command, env=(("SETTINGS", settings),))

    return find


def test_each_row_is_tried_out_on_each_server():
    assert list(TABLE) == list(CAPABILITIES)
    assert all(
        set(cells) == {"uvicorn", "native", "hypercorn", "granian"} for cells in TABLE.values()
    )


@pytest.mark.parametrize("what", CAPABILITIES)
@pytest.mark.logs("Invalid UTF-8 sequence", "Traceback", "^UnicodeDecodeError")  # uvicorn's
async def test_table(what, server, start, pinging, raw, make_raw):
    told = TABLE[what][server.kind]
    assert await CAPABILITIES[what](server, told, start, pinging, raw, make_raw) == told


async def how_it_ended(server, raw, tag, act):
    """Return the close code that the client saw, and what on_close was told."""
    async with raw(f"/ws/chat/end?tag={tag}") as client:
        await client.opened()
        await client.frame()
        await act(client)
        seen = await client.close_code()
    return seen, await server.told_of(tag, "on_close")


@capability("`on_close` is told the code that the client closed with")
async def _(server, told, start, pinging, raw, make_raw):
    for code in (1000, 1001, 3000, 4999):
        _, end = await how_it_ended(server, raw, f"c{code}", lambda c, code=code: c.close(code))
        answer = "yes" if blame(end) == f"{code} by client" else f"no: {blame(end)}"
        if answer != told:
            break
    return answer


@capability("`on_close` is told the reason that the client closed with")
async def _(server, told, start, pinging, raw, make_raw):
    _, end = await how_it_ended(server, raw, "reason", lambda c: c.close(4321, "bye – ünïcode"))
    return "yes" if end["text"] == "bye – ünïcode" else "no"


@capability("a close without a code is told from a lost connection")
async def _(server, told, start, pinging, raw, make_raw):
    _, end = await how_it_ended(server, raw, "codeless", lambda c: c.close())
    return "yes" if blame(end) == "1005 by client" else f"no: {blame(end)}"


def answered_with(code, seen, end):
    if seen == code and blame(end) == f"{code} by server":
        return "yes"
    return f"no: client {seen}, `on_close` {blame(end)}"


@capability("invalid UTF-8 is answered with 1007, and `on_close` says so")
async def _(server, told, start, pinging, raw, make_raw):
    return answered_with(
        1007, *await how_it_ended(server, raw, "utf-8", lambda c: c.send(b"\xff\xfe", 1))
    )


@capability("a broken frame is answered with 1002, and `on_close` says so")
async def _(server, told, start, pinging, raw, make_raw):
    unmasked = b"\x81\x05hello"
    return answered_with(
        1002, *await how_it_ended(server, raw, "unmasked", lambda c: c.write(unmasked))
    )


@capability("a refused handshake is answered with our status, headers and text")
async def _(server, told, start, pinging, raw, make_raw):
    with pytest.raises(InvalidStatus) as caught:
        await server.connect("/ws/refuse/handshake/401").__aenter__()
    answer = caught.value.response
    ours = (answer.status_code, answer.headers.get("x-why"), answer.body.decode())
    return "yes" if ours == (401, "test", "no entry: 401") else "no"


@capability("messages are compressed (permessage-deflate)")
async def _(server, told, start, pinging, raw, make_raw):
    async with server.connect("/ws/echo", compression="deflate") as client:
        await client.send("x" * 10_000)
        assert await client.recv() == "x" * 10_000
        return "yes" if client.protocol.extensions else "no"


@capability("the hub sends pings, and so knows `ws.latency`")
async def _(server, told, start, pinging, raw, make_raw):
    async with raw("/raw/ping") as client:
        await client.opened()
        assert (await client.frame())[1].startswith(b"can't")  # no ASGI app can
    asked = pinging(server) if server.kind == "native" else server
    async with asked.connect("/ws/facts/x/1") as client:
        for _ in range(200 if asked is not server else 1):
            await client.send("?")
            latency = json.loads(await client.recv())["latency"]
            if latency is not None:
                return "yes" if 0 < latency < 5 else f"no: {latency}"
            await asyncio.sleep(0.05)  # real time is the subject: a ping is under way
    return "no"


def options_about_pings(server):
    if server.kind == "native":
        return ["ping_interval", "ping_timeout"]  # settings of the hub
    shown = subprocess.run(
        [sys.executable, "-m", server.kind, "--help"], capture_output=True, text=True, check=True
    ).stdout
    return sorted(set(re.findall(r"--[\w-]*ping[\w-]*", shown)))


@capability("the server sends pings")
async def _(server, told, start, pinging, raw, make_raw):
    options = options_about_pings(server)
    if not options:
        return "no"
    pings = pinging(server)
    async with make_raw(pings, "/ws/echo") as client:
        await client.opened()
        opcode, _ = await client.frame()
        assert opcode == 9
    return f"yes: `{options[0]}`"


@capability("a client that answers no ping is dropped")
async def _(server, told, start, pinging, raw, make_raw):
    options = options_about_pings(server)
    if not options:
        return "no"
    pings = pinging(server)
    async with make_raw(pings, f"/ws/chat/pinged?tag=pinged-{server.name}") as client:
        await client.opened()
        opcodes = [0]
        while opcodes.count(9) < 3 and opcodes[-1] != 8:
            opcodes.append((await client.frame())[0])
        if opcodes[-1] == 8:
            assert opcodes.count(9) == 1
            end = "4002 by server" if server.kind == "native" else "1006 by network"
            assert blame(await pings.told_of(f"pinged-{server.name}", "on_close")) == end
            return f"yes: `{options[1]}`"
        await client.send('{"type": "say", "text": "still here"}')
        while (await client.frame()) != (1, b'{"said":"still here"}'):
            pass
    return "no"


async def stopped(server, start, make_raw):
    """Return what a client sees when its server is told to stop, and what that server printed."""
    command = {
        "uvicorn": "uvicorn served:app --port {port}",
        "native": f"uvicorn served:app --port {{port}} {NATIVE}",
        "hypercorn": "hypercorn served:app --bind 127.0.0.1:{port} --graceful-timeout 1",
        "granian": "granian --interface asgi served:app --port {port}",
    }[server.kind]
    stopping = start(f"{server.kind}-stopping", command)
    async with make_raw(stopping, "/ws/chat/stop?log=1") as client:
        await client.opened()
        await client.frame()
        stopping.process.popen.terminate()
        seen = await client.close_code()
    await asyncio.to_thread(stopping.process.wait)
    assert "Lifespan errored" not in stopping.printed()
    return seen, stopping.printed()


@capability("when the server stops, clients get a code that says come back")
async def _(server, told, start, pinging, raw, make_raw):
    seen, _ = await stopped(server, start, make_raw)
    return f"yes: {seen}" if seen in {1001, 1012} else f"no: {seen}"


@capability("when the server stops, every `on_close` runs")
async def _(server, told, start, pinging, raw, make_raw):
    _, printed = await stopped(server, start, make_raw)
    return "yes" if printed.count("LOGGED on_close") == 1 else "no"
