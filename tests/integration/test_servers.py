"""The same suite on uvicorn, hypercorn and granian: messages, channels, bad input and the door.

How connections end is in test_endings, where the servers differ in test_server_table.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import AsyncExitStack

import pytest
from clients import blame
from websockets.exceptions import InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

MIB = 1024 * 1024


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


NARROW = [ClientPerMessageDeflateFactory(server_max_window_bits=9)]
"""Wants a smaller window than the one frame has that all receivers share."""


async def test_a_broadcast_is_the_same_to_who_takes_compression_and_who_does_not(server, peer):
    path = "/ws/chat/mixed"
    async with (
        peer(path, compression=None) as plain,
        peer(path) as deflated,
        peer(path, compression=None, extensions=NARROW) as narrow,
    ):
        if server.kind == "native":
            agreed = [bool(one.socket.protocol.extensions) for one in (plain, deflated, narrow)]
            assert agreed == [False, True, False]
        for text in ("short", "long " * 2000, "ü" * 3000, "z" * 200_000):
            await plain.send("say", text=text)
            for one in (plain, deflated, narrow):
                assert await one.read() == {"said": text}
        for one in (plain, deflated, narrow):
            await one.nothing_more()


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
