"""Clients that don't read: each policy on real sockets, on every transport of uvicorn."""

from __future__ import annotations

import json

import pytest

COMMANDS = {
    "portable": "uvicorn slow:hub --port {port} --ws websockets-sansio --ws-ping-interval 600",
    "native-uvloop": "uvicorn slow:hub --port {port} --ws backchannel.transport.uvicorn:Protocol",
    "native-asyncio": "uvicorn slow:hub --port {port} --loop asyncio "
    "--ws backchannel.transport.uvicorn:Protocol",
}
COUNT, SIZE = 600, 20_000


@pytest.fixture(params=COMMANDS)
def server(start, request):
    return start(request.param, COMMANDS[request.param])


async def flood(sender, sleeper):
    """Send far more than socket buffers take; the sleeper reads nothing meanwhile."""
    await sleeper.opened()
    assert await sleeper.frame() == (1, b"welcome")
    await sender.send(json.dumps({"first": 0, "count": 1, "size": 10}))
    first = 1
    while first < COUNT:
        await sender.send(json.dumps({"first": first, "count": 5, "size": SIZE}))
        while (await sender.frame())[1] != b"done":
            pass
        first += 5
    return first - 1


async def heard(sleeper, until):
    """Read numbers of each channel up to the last that is to come."""
    numbers = {}
    while True:
        payload = (await sleeper.frame())[1]
        number, channel, _ = payload.split(b" ", 2)
        numbers.setdefault(channel.decode(), []).append(int(number))
        if int(number) == until and channel == b"other":
            return numbers


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "latest"])
async def test_a_slow_client_stays_and_misses_only_what_the_policy_drops(server, make_raw, policy):
    path = f"/ws/{policy}/own"
    async with (
        make_raw(server, path) as sender,
        make_raw(server, path, receive_buffer=4096) as sleeper,
    ):
        last = await flood(sender, sleeper)
        await sender.send(json.dumps({"first": 1_000_000, "count": 1, "size": 20}))
        # With drop_newest the very last one may be among what was dropped: it is sent until heard.
        if policy == "drop_newest":
            numbers = await heard_in_the_end(sender, sleeper)
        else:
            numbers = await heard(sleeper, 1_000_000)
        for channel in ("own", "other"):
            got = [number for number in numbers[channel] if number < 1_000_000]
            assert got == sorted(set(got))  # in order, nothing twice
            assert len(got) < COUNT  # and not all
            if policy == "drop_newest":
                assert got == list(range(len(got)))  # the first ones
            elif policy == "drop_oldest":
                assert got[-1] == last  # up to the newest
            else:  # of each channel only one waited, in the end the very last
                assert numbers[channel][-1] == 1_000_000


async def heard_in_the_end(sender, sleeper):
    numbers = {"own": [], "other": []}
    goal = 1_000_000
    while True:
        payload = (await sleeper.frame())[1]
        number, channel, _ = payload.split(b" ", 2)
        numbers[channel.decode()].append(int(number))
        if int(number) >= goal:
            return numbers
        await sender.send(json.dumps({"first": 1_000_000, "count": 1, "size": 20}))


async def test_by_default_it_is_closed_and_the_others_get_everything(server, make_raw):
    path = "/ws/close/own"
    async with (
        make_raw(server, path) as sender,
        make_raw(server, path, receive_buffer=4096) as sleeper,
    ):
        await flood(sender, sleeper)
        server.process.wait_for_output("ENDED 4001 by server")
        assert await sleeper.close_code() in {4001, 1006}  # 1006: the frame waited behind the rest
        assert server.printed().count("ENDED") == 1


@pytest.mark.parametrize(
    ("server", "policy"),
    [*((each, "") for each in COMMANDS), ("native-uvloop", "dropping/")],
    indirect=["server"],
)
async def test_an_error_while_writing_to_one_does_not_silence_the_others(server, make_raw, policy):
    path = f"/ws/buggy/{policy}own"
    async with (
        make_raw(server, path) as sender,
        make_raw(server, path, receive_buffer=4096) as sleeper,
    ):
        await flood(sender, sleeper)
        server.process.wait_for_output("a bug in a filter of the log")
        for number in range(3):
            await sender.send(json.dumps({"first": COUNT + number, "count": 1, "size": 20}))
            last = b"%d other " % (COUNT + number)
            while not (await sender.frame())[1].startswith(last):
                pass
