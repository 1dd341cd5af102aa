"""One-time tickets: worth one handshake, and nothing afterwards."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time

import jwt as pyjwt
import pytest

from backchannel import Hub, Listener, Reject, event, tickets
from backchannel.auth import JWT
from backchannel.observe import excerpt
from backchannel.testing import ConnectionClosed, HandshakeRefused
from backchannel.tickets import MemoryTickets

NOT_VALID = (401, "The ticket is not valid: unknown, used already, or expired.")


class Room(Listener):
    """Does nothing."""


@pytest.fixture
def clock(monkeypatch):
    """The clock that tickets look at."""
    now = [1000.0]
    monkeypatch.setattr(tickets, "monotonic", lambda: now[0])
    return now


async def refused(hub, url="/ws", **options):
    with pytest.raises(HandshakeRefused) as error:
        await hub.test_client(url, **options).connect()
    return error.value.status, error.value.text


async def test_a_ticket_lets_its_user_in_once_and_authenticate_is_not_asked(diary):
    asked = []
    hub = Hub(require_user=True, authenticate=lambda request: asked.append(1))
    hub.add("/ws", diary.listener())
    ticket = await hub.ticket("ana")
    async with hub.test_client(f"/ws?room=1&ticket={ticket}") as client:
        assert client.connection.user == client.connection.identity == "ana"
        assert hub.user("ana").send("hi").reached == 1
        assert await refused(hub, f"/ws?ticket={ticket}") == NOT_VALID
    assert await refused(hub, f"/ws?ticket={ticket}") == NOT_VALID
    assert asked == []
    assert diary.count_of("on_open") == 1
    await hub.stop()


async def test_a_ticket_holds_a_hundred_and_twenty_eight_random_bits_or_more(hub):
    made = {await hub.ticket(42) for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"bct_[A-Za-z0-9_-]{22,}", ticket) for ticket in made)


async def test_a_ticket_expires(hub, clock):
    hub.add("/ws", Room)
    late, in_time = await hub.ticket("ana"), await hub.ticket("ana", ttl=30.5)
    clock[0] += 30
    assert await refused(hub, f"/ws?ticket={late}") == NOT_VALID
    async with hub.test_client(f"/ws?ticket={in_time}") as client:
        assert client.connection.user == "ana"


@pytest.mark.parametrize(
    "change",
    [
        lambda ticket: ticket[:-1],
        lambda ticket: ticket + "A",
        lambda ticket: ticket[:10] + ("A" if ticket[10] != "A" else "B") + ticket[11:],
        lambda ticket: "bct_",
        lambda ticket: "bct_%00",
        lambda ticket: "bct_" + "A" * 32,
    ],
    ids=["truncated", "longer", "forged", "empty", "zero", "guessed"],
)
async def test_another_ticket_is_worth_nothing_and_the_real_one_stays(hub, change):
    hub.add("/ws", Room)
    ticket = await hub.ticket("ana")
    assert await refused(hub, f"/ws?ticket={change(ticket)}") == NOT_VALID
    async with hub.test_client(f"/ws?ticket={ticket}") as client:
        assert client.connection.user == "ana"


async def test_of_two_at_the_same_time_one_gets_in(hub):
    hub.add("/ws", Room)
    ticket = await hub.ticket("ana")
    clients = [hub.test_client(f"/ws?ticket={ticket}") for _ in range(5)]
    answers = await asyncio.gather(*(c.connect() for c in clients), return_exceptions=True)
    wrong = [answer for answer in answers if isinstance(answer, HandshakeRefused)]
    assert len(wrong) == 4
    assert {(answer.status, answer.text) for answer in wrong} == {NOT_VALID}


async def test_two_tickets_are_refused_and_neither_is_used_up(hub):
    hub.add("/ws", Room)
    one, two = await hub.ticket("ana"), await hub.ticket("bob")
    for url in (f"/ws?ticket={one}&ticket={two}", f"/ws?ticket=x&ticket={two}"):
        assert await refused(hub, url) == (
            401,
            "The URL has more than one ticket; it may have one.",
        )
    for ticket, user in ((one, "ana"), (two, "bob")):
        async with hub.test_client(f"/ws?ticket={ticket}") as client:
            assert client.connection.user == user


async def test_a_ticket_of_another_hub_is_worth_nothing(hub):
    other = Hub()
    for each in (hub, other):
        each.add("/ws", Room)
    ticket = await other.ticket("ana")
    assert await refused(hub, f"/ws?ticket={ticket}") == NOT_VALID
    async with other.test_client(f"/ws?ticket={ticket}") as client:
        assert client.connection.user == "ana"
    await other.stop()


@pytest.mark.parametrize(
    "query", ["ticket=concert", "ticket=", "Ticket=bct_x", "t=bct_x", "ticket=xbct_"]
)
async def test_other_fields_are_the_applications_own(query):
    hub = Hub(authenticate=lambda request: "ana")
    hub.add("/ws", Room)
    async with hub.test_client(f"/ws?{query}") as client:
        assert client.connection.user == "ana"
    await hub.stop()


async def test_who_is_known_already_uses_no_ticket_up(hub):
    hub.add("/ws", Room)
    ticket = await hub.ticket("ana")
    async with hub.test_client(f"/ws?ticket={ticket}", user="bob") as client:
        assert client.connection.user == "bob"
    async with hub.test_client(f"/ws?ticket={ticket}") as client:
        assert client.connection.user == "ana"


async def test_a_page_of_another_origin_can_not_use_a_ticket_up(hub):
    hub.add("/ws", Room)
    ticket = await hub.ticket("ana")
    headers = {"origin": "https://evil.example"}
    assert (await refused(hub, f"/ws?ticket={ticket}", headers=headers))[0] == 403
    async with hub.test_client(f"/ws?ticket={ticket}") as client:
        assert client.connection.user == "ana"


async def test_a_later_refusal_has_used_it_up(hub):
    class Door(Listener):
        def on_handshake(self, request):
            return Reject(423, f"not now, {request.user}")

    hub.add("/ws", Door)
    ticket = await hub.ticket("ana")
    assert await refused(hub, f"/ws?ticket={ticket}") == (423, "not now, ana")
    assert await refused(hub, f"/ws?ticket={ticket}") == NOT_VALID


@pytest.mark.parametrize(
    ("user", "ttl", "error"),
    [
        (None, 30, TypeError),
        (True, 30, TypeError),
        (object(), 30, TypeError),
        ("", 30, ValueError),
        ("ana", "30", TypeError),
        ("ana", True, TypeError),
        ("ana", None, TypeError),
        ("ana", 0, ValueError),
        ("ana", -1, ValueError),
        ("ana", math.nan, ValueError),
        ("ana", math.inf, ValueError),
    ],
)
async def test_no_ticket_without_a_user_and_an_end(hub, user, ttl, error):
    with pytest.raises(error):
        await hub.ticket(user, ttl)


async def test_a_store_that_fails_refuses(hub, caplog):
    class Broken:
        async def put(self, key, user, ttl):
            pass

        async def take(self, key):
            raise OSError("the store is away")

    hub.tickets = Broken()
    hub.add("/ws", Room)
    ticket = await hub.ticket("ana")
    status, text = await refused(hub, f"/ws?ticket={ticket}")
    assert status == 500
    assert "away" not in text
    assert ticket not in caplog.text


async def test_a_store_that_hangs_refuses_in_time():
    class Hanging:
        async def take(self, key):
            await asyncio.Event().wait()

    hub = Hub(handshake_timeout=0.02)
    hub.tickets = Hanging()
    hub.add("/ws", Room)
    assert (await refused(hub, "/ws?ticket=bct_x"))[0] == 503
    await hub.stop()


# ── the store ─────────────────────────────────────────────────────────────────────────────────


async def test_tickets_are_not_kept_as_they_are(hub):
    ticket = await hub.ticket("ana")
    assert ticket not in repr(hub.tickets._held)
    assert ticket[4:] not in repr(hub.tickets._held)


async def test_those_that_wait_are_bounded_and_the_error_says_so(clock):
    store = MemoryTickets(limit=3)
    for number in range(3):
        await store.put(bytes([number]), "ana", 30)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="3 tickets wait"):
            await store.put(b"more", "ana", 30)
    assert await store.take(b"\0") == "ana"
    await store.put(b"more", "bob", 30)
    assert await store.take(b"more") == "bob"
    assert await store.take(b"more") is None


async def test_expired_ones_make_room(clock):
    store = MemoryTickets(limit=3)
    for number in range(3):
        await store.put(bytes([number]), "ana", 10 + number)
    clock[0] += 11
    await store.put(b"more", "ana", 30)
    assert len(store) == 2
    assert await store.take(b"\1") is None
    assert await store.take(b"\2") == "ana"


async def test_what_nobody_used_does_not_pile_up(clock):
    store = MemoryTickets()
    for number in range(50_000):
        await store.put(number.to_bytes(4), "ana", 1)
        clock[0] += 0.01
    assert len(store) <= 1100


# ── log lines ─────────────────────────────────────────────────────────────────────────────────


SECRET = "a secret for tests that is long enough for HS256"


def token(seconds, secret=SECRET):
    from time import time

    return pyjwt.encode({"sub": "ana", "exp": int(time() + seconds)}, secret, "HS256")


async def test_no_token_and_no_ticket_stands_in_any_log_line(caplog, diary):
    caplog.set_level(logging.DEBUG)
    jwt = JWT(SECRET, ["HS256"], cookie="token")

    class Renewing(Listener):
        @event("renew")
        def renew(self, ws, message: dict):
            ws.renew(jwt.verify(message["token"]))
            ws.broadcast(message, channel="all")
            return message

    hub = Hub(authenticate=jwt)
    hub.add("/ws", Renewing)
    good, fresh, late, forged = token(60), token(120), token(-5), token(60, SECRET[::-1])
    used, unknown = await hub.ticket("ana"), "bct_" + "A" * 32
    for options in (
        {"headers": {"authorization": f"Bearer {good}"}},
        {"cookies": {"token": good}},
        {"subprotocols": ["backchannel.jwt", good]},
    ):
        async with hub.test_client("/ws", **options) as client:
            await client.connection.subscribe("all")
            for sent in (fresh, late, forged, "nonsense"):
                await client.send({"type": "renew", "token": sent})
                await client.settled()
            assert client.connection.identity.claims["exp"] == jwt.verify(fresh).claims["exp"]
            assert len(client.received()) == 2
    for bad in (late, forged):
        for options in (
            {"headers": {"authorization": f"Bearer {bad}"}},
            {"subprotocols": ["backchannel.jwt", bad]},
        ):
            assert (await refused(hub, **options))[0] == 401
    async with hub.test_client(f"/ws?ticket={used}"):
        pass
    for ticket in (used, unknown):
        assert await refused(hub, f"/ws?ticket={ticket}") == NOT_VALID
    await hub.stop()
    formatter = logging.Formatter()
    lines = [formatter.format(record) for record in caplog.records]
    assert any("[hidden]" in line for line in lines)
    assert len(lines) > 30
    secrets = [part for jwt in (good, fresh, late, forged) for part in jwt.split(".")]
    for secret in (*secrets, used, unknown):
        assert not [line for line in lines if secret[5:25] in line]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("hello", "'hello'"),
        (b"bct_abc-DEF_1", "b'[hidden]'"),
        ('{"t":"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.x-_y"}', """'{"t":"[hidden]"}'"""),
        ("one\neyJhbGciOiJIUzI1NiJ9.eyJzdWIi", "'one\\n[hidden]'"),
        ("the keyboard, the eyelid", "'the keyboard, the eyelid'"),
    ],
)
def test_credentials_are_left_out_of_excerpts(message, shown):
    assert excerpt(message) == shown


@pytest.mark.parametrize("before", range(150, 200))
def test_credentials_that_are_cut_are_left_out_too(before):
    good = token(60)
    shown = excerpt("." * before + good)
    assert good[25:35] not in shown


# ── a ticket of an identity that ends ─────────────────────────────────────────────────────────


class Signed:
    """Who a token says that it is."""

    def __init__(self, name, expires_at):
        self.id = name
        self.expires_at = expires_at


async def test_a_tickets_connection_ends_with_the_identity_it_was_asked_with(hub):
    hub.add("/ws", Room)
    until = time.time() + 0.2
    ticket = await hub.ticket(Signed(42, until))
    async with hub.test_client(f"/ws?ticket={ticket}") as client:
        ws = client.connection
        assert (ws.user, ws.identity.id, ws.identity.expires_at) == ("42", "42", until)
        with pytest.raises(ConnectionClosed, match="4007 token expired"):
            await client.receive(timeout=10)
        assert time.time() >= until


async def test_an_identity_without_an_end_is_the_users_id(hub):
    hub.add("/ws", Room)
    ticket = await hub.ticket(Signed("ana", None))
    async with hub.test_client(f"/ws?ticket={ticket}") as client:
        assert client.connection.identity == "ana"


async def test_a_ticket_of_an_identity_that_ended_before_it_was_used_is_refused(hub, monkeypatch):
    hub.add("/ws", Room)
    ticket = await hub.ticket(Signed("ana", time.time() + 60))
    later = time.time() + 61
    monkeypatch.setattr("backchannel.handshake.time", lambda: later)
    assert await refused(hub, f"/ws?ticket={ticket}") == (401, "The token has expired.")


async def test_an_identity_that_has_ended_gets_no_ticket(hub):
    with pytest.raises(ValueError, match=r"hub.ticket\(…\): this identity has expired already"):
        await hub.ticket(Signed("ana", time.time() - 1))


@pytest.mark.parametrize("wrong", [object(), Signed(None, None)])
async def test_a_ticket_for_nobody_is_refused_and_says_what_a_user_is(hub, wrong):
    with pytest.raises(TypeError, match=r"hub.ticket got a .* that names nobody; a user is"):
        await hub.ticket(wrong)
