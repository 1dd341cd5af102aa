"""How connections end on each server, whoever ends them and whenever, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from clients import blame
from websockets.exceptions import ConnectionClosed

STALLS = (
    "on_handshake", "on_first_open", "on_open", "on_channel_open", "on_subscribe", "on_message",
    "event", "on_invalid", "on_error", "on_close", "on_unsubscribe", "on_channel_close",
    "on_last_close",
)  # fmt: skip
AFTER_THE_END = {"on_close", "on_unsubscribe", "on_channel_close", "on_last_close"}


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


# ── no leaks ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(120)
@pytest.mark.logs("without completing handshake")  # uvicorn alone, of who went before the 101
async def test_thousands_of_connects_and_disconnects(server, raw):
    count = 2000  # a leak of one object for each connection is 1500 of them

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
    assert all(after["objects"][kind] <= count for kind, count in before["objects"].items())
    assert after["fds"] <= before["fds"]
    if after["rss"]:
        # What leaks a kilobyte with each connection is found.
        assert after["rss"] - before["rss"] < 1024 * (count - count // 4)
