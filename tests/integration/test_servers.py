"""The same suite on uvicorn, hypercorn and granian; docs/servers.md says where they differ."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

DOCUMENT = Path(__file__).parents[2] / "docs" / "servers.md"
MIB = 1024 * 1024
STALLS = (
    "on_handshake", "on_first_open", "on_open", "on_channel_open", "on_subscribe", "on_message",
    "event", "on_invalid", "on_error", "on_close", "on_unsubscribe", "on_channel_close",
    "on_last_close",
)  # fmt: skip
AFTER_THE_END = {"on_close", "on_unsubscribe", "on_channel_close", "on_last_close"}


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


# ── what the table says ───────────────────────────────────────────────────────────────────────


def test_each_row_is_tried_out_on_each_server():
    assert list(TABLE) == list(CAPABILITIES)
    assert all(
        set(cells) == {"uvicorn", "native", "hypercorn", "granian"} for cells in TABLE.values()
    )


@pytest.mark.parametrize("what", CAPABILITIES)
@pytest.mark.logs("Invalid UTF-8 sequence", "Traceback", "^UnicodeDecodeError")  # uvicorn's
async def test_table(what, server, start, raw, make_raw):
    told = TABLE[what][server.kind]
    assert await CAPABILITIES[what](server, told, start, raw, make_raw) == told


async def how_it_ended(server, raw, tag, act):
    """Return the close code that the client saw, and what on_close was told."""
    async with raw(f"/ws/chat/end?tag={tag}") as client:
        await client.opened()
        await client.frame()
        await act(client)
        seen = await client.close_code()
    return seen, await server.told_of(tag, "on_close")


def blame(told):
    return f"{told['code']} by {told['by']}"


@capability("`on_close` is told the code that the client closed with")
async def _(server, told, start, raw, make_raw):
    for code in (1000, 1001, 3000, 4999):
        _, end = await how_it_ended(server, raw, f"c{code}", lambda c, code=code: c.close(code))
        answer = "yes" if blame(end) == f"{code} by client" else f"no: {blame(end)}"
        if answer != told:
            break
    return answer


@capability("`on_close` is told the reason that the client closed with")
async def _(server, told, start, raw, make_raw):
    _, end = await how_it_ended(server, raw, "reason", lambda c: c.close(4321, "bye – ünïcode"))
    return "yes" if end["text"] == "bye – ünïcode" else "no"


@capability("a close without a code is told from a lost connection")
async def _(server, told, start, raw, make_raw):
    _, end = await how_it_ended(server, raw, "codeless", lambda c: c.close())
    return "yes" if blame(end) == "1005 by client" else f"no: {blame(end)}"


def answered_with(code, seen, end):
    if seen == code and blame(end) == f"{code} by server":
        return "yes"
    return f"no: client {seen}, `on_close` {blame(end)}"


@capability("invalid UTF-8 is answered with 1007, and `on_close` says so")
async def _(server, told, start, raw, make_raw):
    return answered_with(
        1007, *await how_it_ended(server, raw, "utf-8", lambda c: c.send(b"\xff\xfe", 1))
    )


@capability("a broken frame is answered with 1002, and `on_close` says so")
async def _(server, told, start, raw, make_raw):
    unmasked = b"\x81\x05hello"
    return answered_with(
        1002, *await how_it_ended(server, raw, "unmasked", lambda c: c.write(unmasked))
    )


@capability("a refused handshake is answered with our status, headers and text")
async def _(server, told, start, raw, make_raw):
    with pytest.raises(InvalidStatus) as caught:
        await server.connect("/ws/refuse/handshake/401").__aenter__()
    answer = caught.value.response
    ours = (answer.status_code, answer.headers.get("x-why"), answer.body.decode())
    return "yes" if ours == (401, "test", "no entry: 401") else "no"


@capability("messages are compressed (permessage-deflate)")
async def _(server, told, start, raw, make_raw):
    async with server.connect("/ws/echo", compression="deflate") as client:
        await client.send("x" * 10_000)
        assert await client.recv() == "x" * 10_000
        return "yes" if client.protocol.extensions else "no"


@capability("the hub sends pings, and so knows `ws.latency`")
async def _(server, told, start, raw, make_raw):
    async with raw("/raw/ping") as client:
        await client.opened()
        assert (await client.frame())[1].startswith(b"can't")  # no ASGI app can
    asked = pinging(server, start) if server.kind == "native" else server
    async with asked.connect("/ws/facts/x/1") as client:
        for _ in range(200 if asked is not server else 1):
            await client.send("?")
            latency = json.loads(await client.recv())["latency"]
            if latency is not None:
                return "yes" if 0 < latency < 5 else f"no: {latency}"
            await asyncio.sleep(0.05)  # real time is the subject: a ping is under way
    return "no"


NATIVE = "--ws backchannel.transport.uvicorn:Protocol"


def options_about_pings(server):
    if server.kind == "native":
        return ["ping_interval", "ping_timeout"]  # settings of the hub
    shown = subprocess.run(
        [sys.executable, "-m", server.kind, "--help"], capture_output=True, text=True, check=True
    ).stdout
    return sorted(set(re.findall(r"--[\w-]*ping[\w-]*", shown)))


def pinging(server, start):
    command = {
        "uvicorn": "uvicorn served:app --port {port} --ws-ping-interval 0.3 --ws-ping-timeout 0.3",
        "native": f"uvicorn served:app --port {{port}} {NATIVE}",
        "hypercorn": "hypercorn served:app --bind 127.0.0.1:{port} --websocket-ping-interval 1",
    }[server.kind]
    settings = json.dumps({"ping_interval": 0.3, "ping_timeout": 0.3})
    return start(f"{server.kind}-pinging", command, env={"SETTINGS": settings})


@capability("the server sends pings")
async def _(server, told, start, raw, make_raw):
    options = options_about_pings(server)
    if not options:
        return "no"
    pings = pinging(server, start)
    async with make_raw(pings, "/ws/echo") as client:
        await client.opened()
        opcode, _ = await client.frame()
        assert opcode == 9
    return f"yes: `{options[0]}`"


@capability("a client that answers no ping is dropped")
async def _(server, told, start, raw, make_raw):
    options = options_about_pings(server)
    if not options:
        return "no"
    pings = pinging(server, start)
    async with make_raw(pings, "/ws/chat/pinged?tag=pinged") as client:
        await client.opened()
        opcodes = [0]
        while opcodes.count(9) < 3 and opcodes[-1] != 8:
            opcodes.append((await client.frame())[0])
        if opcodes[-1] == 8:
            assert opcodes.count(9) == 1
            end = "4002 by server" if server.kind == "native" else "1006 by network"
            assert blame(await pings.told_of("pinged", "on_close")) == end
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
async def _(server, told, start, raw, make_raw):
    seen, _ = await stopped(server, start, make_raw)
    return f"yes: {seen}" if seen in {1001, 1012} else f"no: {seen}"


@capability("when the server stops, every `on_close` runs")
async def _(server, told, start, raw, make_raw):
    _, printed = await stopped(server, start, make_raw)
    return "yes" if printed.count("LOGGED on_close") == 1 else "no"


# ── messages ──────────────────────────────────────────────────────────────────────────────────


def test_it_is_the_event_loop_we_asked_for(server):
    if server.kind == "uvicorn":
        loop = asyncio.run(server.stats())["loop"]
        assert ("uvloop" in loop) == (server.name == "uvicorn-uvloop")


@pytest.mark.parametrize(
    "message",
    ["hello", "", "grüße 👋\0", b"", b"\x00\xff\xfe", "x" * MIB, b"y" * MIB, "ü" * (MIB // 2)],
    ids=["text", "empty", "unicode", "no bytes", "bytes", "1 MiB", "1 MiB of bytes", "1 MiB of ü"],
)
async def test_echo(server, message):
    async with server.connect("/ws/echo", max_size=2 * MIB) as client:
        await client.send(message)
        assert await client.recv() == message


async def test_echo_in_order_and_in_fragments(server, raw):
    async with server.connect("/ws/echo") as client:
        for number in range(500):
            await client.send(str(number))
        assert [await client.recv() for _ in range(500)] == [str(n) for n in range(500)]
    async with raw("/ws/echo") as client:
        await client.opened()
        await client.send("frag", final=False)
        await client.send(b"ment", 0, final=False)
        await client.send(b"ping between", 9)
        await client.send(b"ed", 0)
        assert await client.frame() == (10, b"ping between")
        assert await client.frame() == (1, b"fragmented")


async def test_ping_is_answered(server):
    async with server.connect("/ws/echo") as client:
        latency = await asyncio.wait_for(await client.ping(), 10)
        assert latency > 0


async def test_facts_of_the_handshake(server):
    headers = {"X-Test": "yes", "Cookie": "a=b; c=d=e"}
    path = "/ws/facts/caf%C3%A9/7?q=1&q=a%20b&user=ana"
    async with server.connect(path, additional_headers=headers) as client:
        await client.send("?")
        told = json.loads(await client.recv())
        assert told == {
            "params": {"name": "café", "number": 7},
            "query": ["1", "a b"],
            "header": "yes",
            "cookies": {"a": "b", "c": "d=e"},
            "user": "ana",
            "client": list(client.local_address),
            "endpoint": "/ws/facts/{name}/{number:int}",
            "latency": None,
        }


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/ws/slash/a%2Fb", {"name": "a/b"}),
        ("/ws/slash/50%25", {"name": "50%"}),
        ("/ws/slash/%F0%9F%91%8B", {"name": "👋"}),
        ("/ws/files/a/b%2Fc/d", {"rest": "a/b/c/d"}),
    ],
)
async def test_encoded_paths(server, path, params):
    async with server.connect(path) as client:
        await client.send("?")
        assert json.loads(await client.recv()) == params


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["chat.v1", "chat.v2"], "chat.v1"), (["x", "chat.v2"], "chat.v2"), (["x"], None)],
)
async def test_subprotocol(server, offered, chosen):
    async with server.connect("/ws/spoken", subprotocols=offered) as client:
        assert client.subprotocol == chosen
        if chosen:
            await client.send("?")
            assert await client.recv() == chosen


# ── channels ──────────────────────────────────────────────────────────────────────────────────


async def test_chat(server, peer):
    async with (
        peer("/ws/chat/cars") as ana,
        peer("/ws/chat/cars") as bob,
        peer("/ws/chat/cars?user=cem") as cem,
        peer("/ws/chat/cars?user=cem") as cem_too,
        peer("/ws/chat/boats?user=cem") as elsewhere,
    ):
        everyone = [ana, bob, cem, cem_too, elsewhere]
        await ana.send("say", text="hello")
        assert [await one.read() for one in everyone[:4]] == [{"said": "hello"}] * 4
        await bob.send("others", text="not to me")
        assert [await one.read() for one in (ana, cem, cem_too)] == [{"said": "not to me"}] * 3
        await ana.send("whisper", to=[bob.id, "unknown", elsewhere.id, ana.id], text="psst")
        assert [await bob.read(), await ana.read()] == [{"whispered": "psst"}] * 2
        assert await ana.read() == {"reached": 2}
        await ana.send("whisper", to=["user:cem"], text="both devices")
        assert [await cem.read(), await cem_too.read()] == [{"whispered": "both devices"}] * 2
        assert await ana.read() == {"reached": 2}
        await ana.send("whisper", to=[], text="nobody")
        assert await ana.read() == {"reached": 0}
        for one in everyone:
            await one.nothing_more()


@pytest.mark.parametrize("in_thread", [False, True], ids=["in the loop", "in a thread"])
async def test_http_handler_of_the_same_app_sends(server, peer, in_thread):
    async with peer("/ws/chat/news") as ana, peer("/ws/chat/news") as bob:
        for number in range(20):
            ask = {"channel": "news", "message": {"n": number}, "in_thread": in_thread}
            assert await server.post("/broadcast", **ask) == {"reached": 2}
        for one in (ana, bob):
            assert [await one.read() for _ in range(20)] == [{"n": n} for n in range(20)]
        only = {"channel": "news", "message": {"for": "ana"}, "in_thread": in_thread}
        assert await server.post("/broadcast", **only, to=ana.id) == {"reached": 1}
        assert await server.post("/broadcast", **only, exclude=[bob.id]) == {"reached": 1}
        assert [await ana.read(), await ana.read()] == [{"for": "ana"}] * 2
        await ana.nothing_more()
        await bob.nothing_more()


async def test_many_members_get_all_in_order(server):
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(server.connect(f"/ws/chat/crowd?tag=crowd{n}"))
            for n in range(100)
        ]
        for client in clients:
            await client.recv()
        answer = await server.post("/flood", channel="crowd", count=20, size=1000)
        assert answer["reached"] == [100] * 20
        for client in clients:
            got = [(await client.recv()).partition(" ")[0] for _ in range(20)]
            assert got == [str(n) for n in range(20)]


async def test_a_slow_reader_is_closed_and_nobody_else_notices(server, peer, raw):
    async with peer("/ws/chat/flood") as ana, peer("/ws/chat/flood") as bob:
        async with raw("/ws/chat/flood?tag=slow", receive_buffer=4096) as slow:
            await slow.opened()
            await slow.frame()
            # Rounds smaller than an outbox: who reads is never slow, however busy the machine.
            for _ in range(100):
                await server.post("/flood", channel="flood", count=8, size=100_000)
                for one in (ana, bob):
                    got = [(await one.read()).partition(" ")[0] for _ in range(8)]
                    assert got == [str(n) for n in range(8)]
                told = [e for e in await server.told("slow") if e["callback"] == "on_close"]
                if told:
                    break
            assert [(e["code"], e["by"]) for e in told] == [(4001, "server")]
            assert told[0]["text"] == "reads slower than it is sent to"
            assert told[0]["counted"] == 2
        await ana.nothing_more()
        await bob.nothing_more()


# ── the end ───────────────────────────────────────────────────────────────────────────────────


async def test_life(server, peer):
    before = sum(e["callback"] == "on_first_open" for e in await server.told("chat"))
    async with peer("/ws/chat/life", tag="life") as ana:
        await ana.send("something else", n=1)
    told = await server.told("life", "on_unsubscribe")
    assert [e["callback"] for e in told] == [
        "on_handshake", "on_open", "on_subscribe", "on_message", "on_close", "on_unsubscribe",
    ]  # fmt: skip
    end = told[4]
    assert end["channels"] == ["life"]
    assert end["state"] == {"greeting": "kept"}
    assert end["counted"] == 0
    assert not end["is_open"]
    channel = await server.told("channel life", "on_channel_close")
    assert [e["callback"] for e in channel] == ["on_channel_open", "on_channel_close"]
    endpoint = await server.told("chat", "on_last_close", times=before + 1)
    assert [e["callback"] for e in endpoint] == ["on_first_open", "on_last_close"] * (before + 1)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (4500, "höflich"), (1013, "x" * 123)])
async def test_server_closes(server, peer, code, reason):
    async with peer("/ws/chat/closing") as ana, peer("/ws/chat/closing") as bob:
        await ana.send("close", code=code, reason=reason)
        assert await ana.read() == "last words"
        assert await ana.ended() == (code, reason)
        end = await server.told_of(ana.tag, "on_close")
        assert (end["code"], end["text"], end["by"]) == (code, reason, "server")
        assert await server.post("/close", id=bob.id, code=code, reason=reason) == {"reached": 1}
        assert await bob.ended() == (code, reason)
        end = await server.told_of(bob.tag, "on_close")
        assert (end["code"], end["text"], end["by"]) == (code, reason, "server")
        assert await server.post("/close", id=bob.id, code=code, reason=reason) == {"reached": 0}


@pytest.mark.parametrize("how", ["abort", "vanish"])
async def test_lost_connection(server, raw, how):
    async with raw(f"/ws/chat/lost?tag={how}") as client:
        await client.opened()
        await client.frame()
        getattr(client, how)()
        end = await server.told_of(how, "on_close")
        assert (end["code"], end["text"], end["by"]) == (1006, "connection lost", "network")
        assert end["counted"] == 0


async def test_server_closes_while_the_client_floods(server, raw):
    before = (await server.settled(lambda stats: stats["connections"] == 0))["fds"]
    async with raw("/ws/chat/flooding?tag=flooding") as client:
        await client.opened()
        await client.send('{"type": "close", "code": 4321, "reason": "enough"}')
        with contextlib.suppress(OSError):
            for _ in range(3000):
                await client.send('{"type": "anything"}')
        seen = await client.close_code()
        # granian does not wait for the client, and a TCP reset can overtake its close frame
        assert seen == 4321 or (server.kind, seen) == ("granian", 1006)
    assert blame(await server.told_of("flooding", "on_close")) == "4321 by server"
    # hypercorn would keep the socket for 5 s or more while it has messages that nobody receives
    await server.settled(lambda stats: stats["fds"] <= before and not stats["dispatches"], 3)


@pytest.mark.parametrize("answers", [True, False])
async def test_closing_handshake(server, raw, answers):
    """The server closes the TCP connection after the client's answer, or without one."""
    before = (await server.settled(lambda stats: stats["connections"] == 0))["fds"]
    async with raw("/ws/chat/bye?tag=bye") as client:
        await client.opened()
        await client.send('{"type": "close", "code": 4321, "reason": ""}')
        assert await client.close_code() == 4321
        if answers:
            await client.close(4321)
        with pytest.raises((EOFError, ConnectionError)):
            await client.frame()
        await server.settled(lambda stats: stats["fds"] <= before)


async def test_the_socket_of_a_client_that_never_reads_is_freed_when_it_goes(server, raw):
    before = (await server.settled(lambda stats: stats["connections"] == 0))["fds"]
    async with raw("/ws/chat/stuck?tag=stuck", receive_buffer=4096) as client:
        await client.opened()
        await client.frame()
        while not any(e["callback"] == "on_close" for e in await server.told("stuck")):
            await server.post("/flood", channel="stuck", count=10, size=100_000)
        assert blame(await server.told_of("stuck", "on_close")) == "4001 by server"
    await server.settled(lambda stats: stats["fds"] <= before and not stats["dispatches"])


@pytest.mark.parametrize("where", [*STALLS, "threaded"])
@pytest.mark.logs("failed on purpose", "Traceback")
async def test_client_leaves_in_the_middle_of(server, raw, where):
    async with raw(f"/ws/stall/{where}?tag={where}") as client:
        if where != "on_handshake":
            await client.opened()
        if where in {"on_message", "on_error"}:
            await client.send("{}")
        elif where == "event":
            await client.send('{"type": "typed"}')
        elif where == "on_invalid":
            await client.send("no JSON")
        elif where == "threaded":
            await client.send("go")
        elif where in AFTER_THE_END:
            await server.told(where, "on_subscribe")
            await client.close(1000)
        await server.told(where, "on_message" if where == "threaded" else where)
        client.abort()
    if where not in {*AFTER_THE_END, "on_handshake", "threaded"}:
        await server.told(where, "cancelled")
    if where == "threaded":
        assert blame(await server.told_of(where, "on_close")) == "1006 by network"
    await server.request("POST", f"/open-gate?gate={where}")
    stats = await server.settled(lambda stats: not stats["dispatches"])
    assert not stats["connections"]
    assert f"stall:{where}" not in stats["channels"]
    assert stats["problems"] == []
    told = [e["callback"] for e in await server.told(where)]
    assert told.count("on_close") == (1 if where == "threaded" else told.count("on_open"))
    assert told.count("on_unsubscribe") <= told.count("on_subscribe")
    # What was cancelled in its opening has not opened.
    assert told.count("on_channel_close") == (
        0 if where == "on_channel_open" else told.count("on_channel_open")
    )
    if where in AFTER_THE_END:
        assert told.count("went on") == 1
        assert told[-1] == "over"
    if where not in {"on_handshake", "on_first_open", "threaded"}:
        assert told.count("on_first_open") == told.count("over") == 1


@pytest.mark.parametrize(
    ("how", "code", "text"),
    [("false", 1008, "refused"), ("reject", 1008, "not you"), ("raise", 1011, "listener failed")],
)
@pytest.mark.logs(r"RefuseOpen\.on_open .* failed on purpose", "Traceback", "^RuntimeError")
async def test_refused_by_on_open(server, how, code, text):
    async with server.connect(f"/ws/refuse/open/{how}?tag=refused-{how}") as client:
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (code, text)
    told = await server.told(f"refused-{how}", "on_close")
    assert told == [
        {"callback": "on_open"},
        {"callback": "on_close", "code": code, "text": text, "by": "server"},
    ]


# ── bad input ─────────────────────────────────────────────────────────────────────────────────


async def test_malformed_messages_are_answered_and_the_connection_is_kept(server, peer):
    async with peer("/ws/chat/typed") as ana:
        for bad in ("{", "[1]", "", b"\xff", "null"):
            await ana.socket.send(bad)
            answer = await ana.read()
            assert (answer["type"], answer["code"]) == ("error", "invalid_message"), bad
        await ana.send("say", text="still here")
        assert await ana.read() == {"said": "still here"}


@pytest.mark.logs(r"Chat\.fail .* failed on purpose", "Traceback", "^RuntimeError")
async def test_failing_callback_is_logged_once_and_the_connection_is_kept(server, peer):
    async with peer("/ws/chat/failing") as ana:
        await ana.send("fail")
        await ana.send("say", text="still here")
        assert await ana.read() == {"said": "still here"}
        host, port = ana.socket.local_address
        server.process.wait_for_output(f"connection {re.escape(ana.id)}, client .*{port}")
    (line,) = [line for line in server.printed().splitlines() if "Chat.fail" in line]
    assert re.search(r"Chat\.fail \(served\.py:\d+\) raised RuntimeError: failed on purpose", line)
    assert f"'/ws/chat/failing', connection {ana.id}" in line
    assert host in line


@pytest.mark.parametrize("message", ["x" * (MIB + 1), b"y" * (MIB + 1), "ü" * (MIB // 2 + 1)])
async def test_oversized_message(server, peer, message):
    async with peer("/ws/chat/big", compression=None) as ana:
        await ana.socket.send(message)
        code, reason = await ana.ended()
        assert code == 1009
        size = len(message.encode() if isinstance(message, str) else message)
        assert reason == f"message of {size} bytes is over the limit of {MIB}"
        assert blame(await server.told_of(ana.tag, "on_close")) == "1009 by server"


async def test_a_small_message_that_inflates_over_the_limit(server, peer):
    async with peer("/ws/chat/bomb", compression="deflate") as ana:
        await ana.socket.send("x" * (MIB + 1))
        code, reason = await ana.ended()
        assert code == 1009
        assert f"over the limit of {MIB}" in reason
        assert blame(await server.told_of(ana.tag, "on_close")) == "1009 by server"


# ── the door ──────────────────────────────────────────────────────────────────────────────────


async def refusal(server, path, **headers):
    with pytest.raises(InvalidStatus) as caught:
        await server.connect(path, additional_headers=headers).__aenter__()
    answer = caught.value.response
    return answer.status_code, (answer.body or b"").decode()


@pytest.mark.parametrize("status", [302, 401, 403, 404, 429, 500, 503])
async def test_refused_handshake(server, raw, status):
    assert await refusal(server, f"/ws/refuse/handshake/{status}") == (
        status,
        f"no entry: {status}",
    )


async def test_handshake_that_returns_false(server):
    assert await refusal(server, "/ws/refuse/handshake/false") == (403, "Refused.")


@pytest.mark.logs("error id", "Traceback", "^RuntimeError")
async def test_failed_handshake_has_an_id_that_is_in_the_log(server):
    status, text = await refusal(server, "/ws/refuse/handshake/raise")
    assert status == 500
    error_id = re.search("error id ([0-9a-f]{8}):", text)[1]
    assert "secret" not in text
    assert "Traceback" not in text
    server.process.wait_for_output(f"error id {error_id}: .*secret detail")
    assert server.printed().count(f"error id {error_id}") == 1


async def test_refused_origin(server):
    status, text = await refusal(server, "/ws/echo", Origin="https://evil.example")
    assert (status, "allowed_origins" in text) == (403, True)
    server.process.wait_for_output(
        rf"WARNING .*'https://evil\.example' is not the Host '127\.0\.0\.1:{server.port}'"
    )
    own = {"Origin": f"https://127.0.0.1:{server.port}"}
    async with server.connect("/ws/echo", additional_headers=own) as client:
        await client.send("in")
        assert await client.recv() == "in"


async def test_plain_http_on_an_endpoint(server):
    answer = await server.get("/ws/echo")
    assert answer.status_code == 426
    assert answer.headers["upgrade"] == "websocket"
    assert "/ws/echo speaks WebSocket" in answer.text


async def test_what_is_not_the_hubs_is_passed_on(server):
    assert (await server.get("/nothing")).text == "Not Found"  # Starlette's
    assert (await refusal(server, "/ws/eccho"))[0] == 403  # Starlette closes what it doesn't know


@pytest.mark.parametrize("speaks", ["http", "websocket"])
async def test_near_misses_are_told_to_developers_only(server, speaks):
    async def ask(**headers):
        if speaks == "websocket":
            return await refusal(server, "/bare/ws/eccho", **headers)
        answer = await server.get("/bare/ws/eccho", headers=headers)
        return answer.status_code, answer.text

    status, text = await ask()
    assert status == 404
    assert "/bare/ws/eccho" in text
    assert "/ws/echo" in text.partition("nearest")[2]
    for name, value in [
        ("X-Forwarded-For", "127.0.0.1"),
        ("Forwarded", "for=127.0.0.1"),
        ("X-Real-IP", "127.0.0.1"),
        ("Via", "1.1 proxy"),
        ("X-Forwarded-Host", "localhost"),
    ]:
        assert await ask(**{name: value}) == (404, "Nothing is served at /bare/ws/eccho.\n"), name
    if speaks == "http":
        told = await ask(Host="chat.example.com")
        assert told == (404, "Nothing is served at /bare/ws/eccho.\n")


# ── no leaks ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(120)
@pytest.mark.logs("without completing handshake")  # uvicorn alone, of who went before the 101
async def test_thousands_of_connects_and_disconnects(server, raw):
    count = 5000 if server.kind == "uvicorn" else 2000

    async def come_and_go():
        for number in numbers:
            async with raw("/ws/counted") as client:
                if number % 5 == 0:
                    client.abort()  # maybe before the 101
                    continue
                await client.opened()
                assert await client.frame() == (1, b"welcome")
                if number % 5 == 1:
                    client.abort()
                elif number % 5 == 2:
                    client.vanish()
                elif number % 5 == 3:
                    await client.close()
                    await client.close_code()
                else:
                    await client.send("x")
                    await client.frame()
                    await client.close(1000)
                    await client.close_code()

    def nobody(stats):
        return not stats["dispatches"] and stats["tasks"] <= tasks

    tasks = (await server.settled(lambda stats: not stats["dispatches"]))["tasks"]
    was = (await server.stats())["totals"]
    numbers = iter(range(count // 4))
    await asyncio.gather(*(come_and_go() for _ in range(8)))
    before = await server.settled(nobody)
    numbers = iter(range(count - count // 4))
    await asyncio.gather(*(come_and_go() for _ in range(8)))
    after = await server.settled(nobody)
    came = after["totals"]["open"] - was["open"]
    assert came == after["totals"]["close"] - was["close"]
    assert came >= count * 4 // 5
    assert after["channels"] == {}
    assert after["problems"] == []
    assert after["objects"] == before["objects"]
    assert after["fds"] <= before["fds"]
    if after["rss"]:
        # What leaks a kilobyte with each connection is found.
        assert after["rss"] - before["rss"] < 1024 * (count - count // 4)
