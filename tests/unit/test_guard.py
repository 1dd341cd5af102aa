"""A hub's limits: who is let in, whose connection ends with which code, what the log is told."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random

import pytest

from backchannel import Hub, Listener, Reject
from backchannel.dispatch import Dispatch
from backchannel.testing import ConnectionClosed, HandshakeRefused, MemoryClient


def echo(ws, message: str | bytes):
    return message


def made(**settings):
    """Return a hub with an echo at /ws and a chat in channels."""
    hub = Hub(cancel_grace=0.3, **settings)
    hub.add("/ws", echo)
    hub.add("/ws/chat/{channel}", Listener)
    return hub


def from_(hub, address, url="/ws", **options):
    """Return a client that comes from an address."""
    return MemoryClient(hub, url, client=address and (address, 5000), **options)


async def status(client):
    """Connect; return 101 or the status that refuses."""
    try:
        await client.connect()
    except HandshakeRefused as refused:
        return refused.status
    return 101


def counts(hub):
    return hub.guard._addresses, hub.guard._users


async def ended(client):
    """Read to the end; return how it ended."""
    with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012
        while True:
            await client.receive(timeout=10)
    return closed.value


@pytest.fixture
def told(caplog):
    """Return the warnings so far, as text."""
    caplog.set_level(logging.WARNING, logger="backchannel")
    return lambda: [record.getMessage() for record in caplog.records]


# ── messages and bytes ────────────────────────────────────────────────────────────────────────


async def test_too_many_messages_end_the_connection_with_4003(diary):
    hub = Hub(max_messages_per_second=5)
    hub.add("/ws", diary.listener())
    async with hub.test_client("/ws") as client:
        for number in range(8):
            if client.closed is None:
                await client.send(str(number))
        end = await ended(client)
        assert (end.code, end.reason) == (4003, "more than 5 messages a second")
        await client.settled()
    assert diary.only("on_message", "on_close") == [
        *(f"on_message {number}" for number in range(5)),
        "on_close 4003",
    ]
    await hub.stop()


async def test_a_limit_is_of_one_connection_alone():
    hub = made(max_messages_per_second=5)
    async with hub.test_client("/ws") as loud, hub.test_client("/ws") as calm:
        for number in range(6):
            await loud.send(str(number))
        assert (await ended(loud)).code == 4003
        for number in range(5):
            await calm.send(str(number))
            assert await calm.receive() == str(number)
    await hub.stop()


async def test_a_rate_below_one_admits_one_message():
    hub = made(max_messages_per_second=0.01)
    async with hub.test_client("/ws") as client:
        await client.send("one")
        assert await client.receive() == "one"
        await client.send("two")
        assert (await ended(client)).code == 4003
    await hub.stop()


@pytest.mark.parametrize("message", ["x" * 1200, b"x" * 1200, "é" * 600], ids=["text", "b", "é"])
async def test_too_many_bytes_end_the_connection_with_4006(message):
    hub = made(max_bytes_per_second=1000, max_message=2000)
    async with hub.test_client("/ws") as client:
        await client.send(message)
        assert await client.receive() == message
        await client.send(message)
        end = await ended(client)
        assert (end.code, end.reason) == (4006, "more than 1000 bytes a second")
    await hub.stop()


async def test_a_message_of_the_largest_size_always_fits():
    hub = made(max_bytes_per_second=10, max_message=100_000)
    async with hub.test_client("/ws") as client:
        await client.send("x" * 100_000)
        assert len(await client.receive()) == 100_000
    await hub.stop()


async def test_what_comes_late_because_a_callback_held_it_up_is_not_held_against_the_client():
    gate, seen, hub = asyncio.Event(), [], Hub(max_messages_per_second=65, cancel_grace=0.3)

    @hub.endpoint("/ws")
    async def slow(ws, message: str):
        await gate.wait()
        seen.append(message)

    async with hub.test_client("/ws") as client:

        async def send(count, message):
            for _ in range(count):
                await client.send(message)

        sending = asyncio.create_task(send(65, "early"))  # the last one waits for room
        await asyncio.sleep(1.4)  # real time is the subject
        gate.set()
        await sending
        await send(80, "late")
        await client.settled()
        assert client.closed is None
        assert seen.count("late") == 80
    await hub.stop()


async def test_without_limits_nothing_looks_at_messages():
    hub = made()
    async with hub.test_client("/ws", user="ana") as client:
        assert type(client.connection._dispatch) is Dispatch
    hub = made(max_handshakes_per_second=5)
    async with hub.test_client("/ws", user="ana") as client:
        assert type(client.connection._dispatch) is Dispatch
    hub = made(max_connections_per_address=5, max_connections_per_user=5)
    async with hub.test_client("/ws", user="ana") as client:
        assert type(client.connection._dispatch).feed is Dispatch.feed


# ── addresses ─────────────────────────────────────────────────────────────────────────────────


async def test_an_address_with_enough_connections_gets_429_and_others_are_served():
    hub = made(max_connections_per_address=2)
    async with from_(hub, "192.0.2.1") as first, from_(hub, "192.0.2.1"):
        with pytest.raises(HandshakeRefused) as refused:
            await from_(hub, "192.0.2.1").connect()
        assert refused.value.status == 429
        assert refused.value.text == "There are too many connections from your address."
        async with from_(hub, "192.0.2.2"):
            pass
        await first.close()
        async with from_(hub, "192.0.2.1"):
            assert await status(from_(hub, "192.0.2.1")) == 429
    assert counts(hub) == ({}, {})
    await hub.stop()


async def test_ipv6_clients_count_by_their_network():
    hub = made(max_connections_per_address=1)
    async with from_(hub, "2001:db8:1:2::1"):
        assert await status(from_(hub, "2001:db8:1:2:ffff::9")) == 429
        async with from_(hub, "2001:db8:1:3::1"):
            pass
    await hub.stop()


@pytest.mark.parametrize("address", [None, "testclient", "/run/app.sock"])
async def test_what_has_no_address_is_not_limited_by_it(address):
    hub = made(max_connections_per_address=1, max_handshakes_per_second=1)
    async with from_(hub, address), from_(hub, address), from_(hub, address):
        pass
    await hub.stop()


async def test_behind_a_trusted_proxy_the_forwarded_address_counts():
    hub = made(max_connections_per_address=1, trusted_proxies="10.0.0.0/8")

    def behind(forwarded, proxy="10.0.0.1"):
        return from_(hub, proxy, headers={"x-forwarded-for": forwarded})

    async with behind("192.0.2.1"), behind("192.0.2.2"):
        assert await status(behind("192.0.2.1")) == 429
        assert await status(behind("192.0.2.9, 192.0.2.1, 10.9.9.9")) == 429  # made up by it
    await hub.stop()


async def test_a_forwarded_address_of_anyone_else_is_ignored():
    hub = made(max_connections_per_address=1, trusted_proxies="10.0.0.0/8")
    async with from_(hub, "192.0.2.1", headers={"x-forwarded-for": "198.51.100.1"}):
        other = from_(hub, "192.0.2.1", headers={"x-forwarded-for": "198.51.100.2"})
        assert await status(other) == 429
    await hub.stop()


async def test_a_handshake_counts_while_it_runs():
    gate = asyncio.Event()

    async def authenticate(request):
        await gate.wait()

    hub = made(max_connections_per_address=2, authenticate=authenticate)
    clients = [from_(hub, "192.0.2.1") for _ in range(6)]
    coming = [asyncio.create_task(status(client)) for client in clients]
    await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
    gate.set()
    assert sorted(await asyncio.gather(*coming)) == [101, 101, 429, 429, 429, 429]
    await hub.stop()
    assert counts(hub) == ({}, {})


async def test_handshakes_above_the_rate_get_429_and_are_not_counted():
    hub = made(max_handshakes_per_second=3)
    answers = [await status(from_(hub, "192.0.2.1")) for _ in range(5)]
    assert answers == [101, 101, 101, 429, 429]
    assert await status(from_(hub, "192.0.2.2")) == 101
    answer = hub.guard.enter(("192.0.2.1", 1))
    assert isinstance(answer, Reject)
    assert answer.headers == {"Retry-After": "1"}
    assert answer.text == "Too many handshakes from your address. Try again in 1 s."
    await hub.stop()


async def test_handshakes_that_are_refused_for_another_reason_count_too():
    hub = made(max_handshakes_per_second=3, require_user=True)
    answers = [await status(from_(hub, "192.0.2.1")) for _ in range(5)]
    assert answers == [401, 401, 401, 429, 429]
    await hub.stop()


@pytest.mark.parametrize("rate", [0.25, 1e-9])
async def test_retry_after_says_when_one_gets_in_again(rate):
    hub = made(max_handshakes_per_second=rate)
    assert await status(from_(hub, "192.0.2.1")) == 101
    answer = hub.guard.enter(("192.0.2.1", 1))
    assert int(answer.headers["Retry-After"]) == min(1 / rate, 86_400)
    await hub.stop()


async def test_two_hubs_never_share_counts():
    one, two = (
        made(max_connections_per_address=1, max_connections_per_user=1, max_handshakes_per_second=1)
        for _ in range(2)
    )
    async with (
        from_(one, "192.0.2.1", user="ana") as first,
        from_(two, "192.0.2.1", user="ana") as second,
    ):
        assert first.closed is None
        assert second.closed is None
    await one.stop()
    await two.stop()


# ── users ─────────────────────────────────────────────────────────────────────────────────────


async def test_the_newest_connection_of_a_user_wins(diary):
    hub = Hub(max_connections_per_user=2)
    hub.add("/ws", diary.listener())
    hub.add("/ws/other", echo)
    async with (
        hub.test_client("/ws", user="ana") as first,
        hub.test_client("/ws/other", user="ana") as second,
        hub.test_client("/ws", user="bob") as stranger,
        hub.test_client("/ws") as nobody,
    ):
        assert first.closed is None
        async with hub.test_client("/ws/other", user="ana") as third:
            end = await ended(first)
            assert (end.code, end.reason) == (4005, "replaced by a newer connection")
            await first.settled()
            assert diary.only("on_close") == ["on_close 4005"]
            assert await hub.user("ana").count() == 2
            assert [c.closed for c in (second, third, stranger, nobody)] == [None] * 4
        async with hub.test_client("/ws/other", user="ana"):
            assert second.closed is None  # the third has gone, there was room
    assert counts(hub) == ({}, {})
    await hub.stop()


async def test_the_old_connection_is_out_of_its_channels_before_the_new_one_opens():
    seen, hub = [], Hub(max_connections_per_user=1)

    @hub.endpoint("/ws/{channel}")
    class Chat(Listener):
        def on_open(self, ws):
            seen.append(hub.channels())

    async with hub.test_client("/ws/cars", user="ana"), hub.test_client("/ws/cars", user="ana"):
        assert seen == [{}, {}]
        assert hub.channels() == {"cars": 1}
    await hub.stop()


async def test_a_user_that_is_full_is_refused_where_that_is_wanted():
    hub = made(max_connections_per_user=1, when_user_is_full="refuse")
    async with hub.test_client("/ws", user="ana") as first:
        with pytest.raises(HandshakeRefused) as refused:
            await hub.test_client("/ws", user="ana").connect()
        assert refused.value.status == 429
        assert first.closed is None
        async with hub.test_client("/ws", user="bob"), hub.test_client("/ws"):
            pass
    async with hub.test_client("/ws", user="ana"):
        pass
    assert counts(hub) == ({}, {})
    await hub.stop()


@pytest.mark.parametrize("when", ["replace", "refuse"])
async def test_many_at_once_never_are_more_than_the_limit(when):
    async def authenticate(request):
        await asyncio.sleep(0)
        return "ana"

    most = 0

    class Looks(Listener):
        def on_handshake(self, request):
            self.look()

        def on_open(self, ws):
            self.look()

        def look(self):
            nonlocal most
            most = max(most, sum(not d.ws.reason for d in hub.dispatches))

    hub = Hub(max_connections_per_user=3, when_user_is_full=when, authenticate=authenticate)
    hub.add("/ws", Looks)
    clients = [hub.test_client("/ws") for _ in range(20)]
    answers = await asyncio.gather(*map(status, clients))
    assert answers.count(101) == (20 if when == "replace" else 3)
    assert most == 3
    assert await hub.user("ana").count() == 3
    await hub.stop()
    assert counts(hub) == ({}, {})


# ── nothing is left behind ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("when", ["replace", "refuse"])
async def test_counts_return_to_nothing_however_a_connection_came_and_went(when):
    chance = random.Random(7)
    ends = ("in", "refuse", "raise", "no channel", "refuse open", "cancel", "late")

    class Fickle(Listener):
        async def on_handshake(self, request):
            how = request.query["how"]
            if how in {"cancel", "late"}:
                await asyncio.sleep(0 if how == "late" else 30)
            if how == "raise":
                raise RuntimeError("on purpose")
            return how != "refuse"

        def on_open(self, ws):
            return ws.query["how"] != "refuse open"

    hub = Hub(
        max_connections_per_address=3,
        max_connections_per_user=2,
        when_user_is_full=when,
        cancel_grace=0.3,
    )
    hub.add("/ws/{channel}", Fickle)
    answers = set()

    async def one(number):
        how = chance.choice(ends)
        channel = "$no" if how == "no channel" else f"c{number % 3}"
        address, user = f"192.0.2.{chance.randrange(5)}", chance.choice(["ana", "bob", None])
        client = from_(hub, address, f"/ws/{channel}?how={how}", user=user)
        coming = asyncio.create_task(status(client))
        if how == "cancel":
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            coming.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            answers.add(answer := await coming)
            if answer == 101:
                for _ in range(chance.randrange(5)):
                    await asyncio.sleep(0)
                await (client.close() if chance.random() < 0.5 else client.drop())

    for _ in range(20):
        await asyncio.gather(*(one(number) for number in range(15)))
    assert answers == {101, 400, 403, 429, 500}
    assert counts(hub) == ({}, {})
    await hub.stop()


async def test_a_hub_that_stopped_with_clients_begins_with_no_counts():
    hub = made(max_connections_per_address=1, max_connections_per_user=1)
    await from_(hub, "192.0.2.1", user="ana").connect()
    await hub.stop()
    assert counts(hub) == ({}, {})
    await hub.start()
    async with from_(hub, "192.0.2.1", user="ana"):
        pass
    await hub.stop()


def test_a_hub_whose_event_loop_died_begins_with_no_counts():
    hub = made(max_connections_per_address=1, max_connections_per_user=1)
    hub.add("/ws/idle", echo, idle_timeout=30)
    for _ in range(2):
        asyncio.run(from_(hub, "192.0.2.1", "/ws/idle", user="ana").connect())
    assert [len(table) for table in counts(hub)] == [1, 1]


# ── the log ───────────────────────────────────────────────────────────────────────────────────


async def test_an_offender_is_worth_one_line_with_the_setting_and_its_value(told, monkeypatch):
    now = itertools.count(1000.0, 1e-6)
    later = [0.0]
    monkeypatch.setattr("backchannel.guard.monotonic", lambda: next(now) + later[0])
    hub = made(max_handshakes_per_second=1, max_connections_per_address=9)
    for _ in range(9):
        await status(from_(hub, "192.0.2.1"))
    await status(from_(hub, "192.0.2.2"))
    line = "refused a handshake with 429: 192.0.2.1 went over max_handshakes_per_second=1"
    assert told() == [line]
    later[0] = 61.0
    for _ in range(5):
        await status(from_(hub, "192.0.2.1"))
    assert told() == [line, f"{line}; 7 times more since the last such line"]
    await hub.stop()


async def test_a_closed_connection_is_named_and_its_user_is_the_offender(told):
    hub = made(max_messages_per_second=2, max_connections_per_user=1)
    for _ in range(3):
        async with hub.test_client("/ws", user="ana") as client:
            for number in range(3):
                await client.send(str(number))
            await ended(client)
    (line,) = told()
    assert line.startswith("closed <Connection ")
    assert line.endswith("with 4003: user 'ana' went over max_messages_per_second=2")
    async with hub.test_client("/ws", user="ana"), hub.test_client("/ws", user="ana"):
        pass
    assert told()[1].endswith("with 4005: user 'ana' went over max_connections_per_user=1")
    await hub.stop()


async def test_an_anonymous_client_is_told_by_its_address_else_by_its_connection(told):
    hub = made(max_messages_per_second=1)
    for address in ("2001:db8::1", "2001:db8::2", None, None):
        async with from_(hub, address) as client:
            for number in range(2):
                await client.send(str(number))
            await ended(client)
    lines = told()
    assert len(lines) == 3
    assert ": 2001:db8::/64 went over" in lines[0]
    assert ": connection " in lines[1]
    await hub.stop()


# ── idle clients ──────────────────────────────────────────────────────────────────────────────


async def test_a_client_that_sends_nothing_is_closed_with_4008(diary):
    hub = Hub()
    hub.add("/ws", diary.listener(), idle_timeout=0.2)
    hub.add("/ws/patient", echo)
    async with hub.test_client("/ws") as client, hub.test_client("/ws/patient") as other:
        end = await ended(client)
        assert (end.code, end.reason) == (4008, "no message for 0.2 s")
        await client.settled()
        assert diary.only("on_close") == ["on_close 4008"]
        assert other.closed is None
    await hub.stop()


async def test_messages_keep_a_connection_and_what_is_sent_to_it_does_not():
    hub = Hub()
    hub.add("/ws", echo, idle_timeout=1.0)
    loop = asyncio.get_running_loop()
    async with hub.test_client("/ws") as talks, hub.test_client("/ws") as listens:
        began = loop.time()
        while listens.closed is None:
            hub.everyone.send("news")
            await talks.send("still here")
            await asyncio.sleep(0.05)  # real time is the subject
            assert loop.time() - began < 20
        assert loop.time() - began >= 1.0
        assert listens.closed.code == 4008
        assert talks.closed is None
    await hub.stop()


async def test_a_client_whose_messages_wait_for_us_is_not_idle():
    gate, hub = asyncio.Event(), Hub(cancel_grace=0.3)

    @hub.endpoint("/ws", idle_timeout=0.1)
    async def slow(ws, message: str):
        await gate.wait()
        return message

    async with hub.test_client("/ws") as client:
        await client.send("one")
        await client.send("two")
        await asyncio.sleep(0.5)  # real time is the subject
        assert client.closed is None
        gate.set()
        assert [await client.receive(), await client.receive()] == ["one", "two"]
        assert (await ended(client)).code == 4008
    await hub.stop()


async def test_whoever_has_ended_is_not_kept_until_it_would_have_been_idle():
    hub = Hub()
    hub.add("/ws", echo, idle_timeout=3600)
    async with hub.test_client("/ws"):
        wheel = hub.endpoints.get("/ws").idle
        assert sum(map(len, wheel._slots)) == 1
    assert not any(wheel._slots)
    await hub.stop()


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_an_idle_timeout_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match=f"idle_timeout is more than 0 seconds, .* not {value}"):
        Hub().add("/ws", echo, idle_timeout=value)


@pytest.mark.parametrize("value", ["60", True, [60]])
def test_an_idle_timeout_that_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match="idle_timeout is a number of seconds or None, not "):
        Hub().add("/ws", echo, idle_timeout=value)
