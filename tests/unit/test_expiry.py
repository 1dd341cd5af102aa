"""Connections end when what they were let in with does, and live on when it is renewed."""

from __future__ import annotations

import asyncio
import gc
import math
import time
import weakref
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from backchannel import Hub, Listener, event, expiry, threaded
from backchannel.expiry import Expiry
from backchannel.testing import ConnectionClosed, HandshakeRefused


class Room(Listener):
    """Does nothing."""


def someone(seconds, user="ana", kind=float):
    """Return an identity that holds for so many seconds."""
    at = time.time() + seconds
    if kind is datetime:
        return SimpleNamespace(id=user, expires_at=datetime.fromtimestamp(at, UTC))
    return SimpleNamespace(id=user, expires_at=at)


async def ended(client):
    """Wait for the end of a connection; returns its code and reason."""
    with pytest.raises(ConnectionClosed) as closed:
        await client.receive(timeout=10)
    return closed.value.code, closed.value.reason


@pytest.mark.parametrize("kind", [float, datetime])
async def test_a_connection_ends_when_its_identity_does(hub, diary, kind):
    hub.add("/ws/{channel}", diary.listener())
    who = someone(0.3, kind=kind)
    async with hub.test_client("/ws/cars", user=who) as client:
        assert await ended(client) == (4007, "token expired")
        await client.settled()
        until = who.expires_at
        assert time.time() >= (until.timestamp() if kind is datetime else until)
        assert client.connection.reason.by == "server"
        assert diary.only("on_close") == ["on_close 4007"]
        assert hub.channels() == {}


async def test_what_authenticate_returns_counts_too():
    hub = Hub(authenticate=lambda request: someone(0.3))
    hub.add("/ws", Room)
    async with hub.test_client("/ws") as client:
        assert await ended(client) == (4007, "token expired")
    await hub.stop()


async def test_who_has_expired_already_is_not_let_in(hub):
    hub.add("/ws", Room)
    with pytest.raises(HandshakeRefused) as error:
        await hub.test_client("/ws", user=someone(0)).connect()
    assert (error.value.status, error.value.text) == (401, "The token has expired.")


async def test_a_wrong_time_fails_closed(hub):
    hub.add("/ws", Room)
    naive = SimpleNamespace(id="ana", expires_at=datetime(2090, 1, 1))  # noqa: DTZ001 - what is wrong
    with pytest.raises(HandshakeRefused) as error:
        await hub.test_client("/ws", user=naive).connect()
    assert error.value.status == 500


async def test_each_ends_at_its_own_time_and_nobody_else_with_it(hub):
    hub.add("/ws", Room)
    async with (
        hub.test_client("/ws", user=someone(0.8)) as later,
        hub.test_client("/ws", user=someone(0.3)) as sooner,
        hub.test_client("/ws", user="ana") as never,
        hub.test_client("/ws", user=someone(math.inf)) as endless,
    ):
        await ended(sooner)
        assert later.connection.is_open
        await ended(later)
        assert never.connection.is_open
        assert endless.connection.is_open


# ── renewal ───────────────────────────────────────────────────────────────────────────────────


class Renewing(Listener):
    """Takes a newer identity, as a client's message says."""

    @event("renew")
    def renew(self, ws, message: dict):
        sent = ws.renew(someone(message["seconds"], message.get("user", "ana")))
        return {"reached": sent.reached}

    @event("renew in a thread")
    @threaded
    def renew_in_thread(self, ws, message: dict):
        return {"reached": ws.renew(someone(message["seconds"])).result(5).reached}

    def on_error(self, ws, error):
        ws.send({"error": str(error)})


@pytest.mark.parametrize("how", ["renew", "renew in a thread"])
async def test_renewal_in_place_keeps_a_connection(hub, how):
    hub.add("/ws", Renewing)
    async with (
        hub.test_client("/ws", user=someone(0.8)) as renewed,
        hub.test_client("/ws", user=someone(0.9)) as other,
    ):
        before = renewed.connection.identity
        await renewed.send({"type": how, "seconds": 60})
        assert await renewed.receive_json() == {"reached": 1}
        assert renewed.connection.identity.expires_at > before.expires_at
        await ended(other)  # later than the first identity of the renewed one
        assert renewed.connection.is_open


async def test_renewal_may_also_bring_the_end_nearer(hub):
    hub.add("/ws", Renewing)
    async with hub.test_client("/ws", user=someone(60)) as client:
        await client.send({"type": "renew", "seconds": 0.1})
        assert await client.receive_json() == {"reached": 1}
        assert await ended(client) == (4007, "token expired")


async def test_an_identity_without_an_end_takes_the_end_away(hub):
    hub.add("/ws", Room)
    async with (
        hub.test_client("/ws", user=someone(0.4)) as renewed,
        hub.test_client("/ws", user=someone(0.5)) as other,
    ):
        renewed.connection.renew("ana")
        assert renewed.connection.identity == "ana"
        await ended(other)
        assert renewed.connection.is_open


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"seconds": 60, "user": "bob"}, "another user's"),
        ({"seconds": -1}, "has expired already"),
    ],
)
async def test_what_can_not_renew_changes_nothing(hub, asked, text):
    hub.add("/ws", Renewing)
    async with hub.test_client("/ws", user=someone(0.4)) as client:
        before = client.connection.identity
        await client.send({"type": "renew", **asked})
        assert text in (await client.receive_json())["error"]
        assert client.connection.identity is before
        assert await ended(client) == (4007, "token expired")


async def test_nobody_signs_in_by_renewal_and_what_was_given_is_not_shown(hub):
    hub.add("/ws", Room)
    async with hub.test_client("/ws") as client:
        with pytest.raises(ValueError, match="another user's") as error:
            client.connection.renew("eyJhbGciOiJIUzI1NiJ9.e30.c2VjcmV0")
        assert "eyJ" not in str(error.value)
        with pytest.raises(TypeError, match=r"ws\.renew got a NoneType"):
            client.connection.renew(None)
        assert client.connection.user is None


async def test_what_has_ended_can_not_be_renewed(hub):
    hub.add("/ws", Room)
    async with hub.test_client("/ws", user=someone(0.3)) as client:
        await ended(client)
        assert client.connection.renew(someone(60)).reached == 0


# ── the timer ─────────────────────────────────────────────────────────────────────────────────


class Peer:
    def __init__(self):
        self.ended = asyncio.Event()

    def expire(self):
        self.ended.set()


async def test_without_ends_there_is_no_timer_and_with_the_last_it_goes(hub):
    hub.add("/ws", Room)
    async with hub.test_client("/ws", user="ana"):
        assert hub.expiry._timer is None
    async with hub.test_client("/ws", user=someone(60)), hub.test_client("/ws", user=someone(30)):
        assert hub.expiry._timer is not None
    assert hub.expiry._timer is None


async def test_who_has_left_is_not_kept_alive():
    ends = Expiry()
    stays, gone = Peer(), Peer()
    ends.set(stays, time.time() + 60)
    ends.set(gone, time.time() + 30)
    ends.discard(gone)
    watched = weakref.ref(gone)
    del gone
    gc.collect()
    assert watched() is None
    ends.discard(stays)


async def test_many_renewals_and_departures_leave_little_behind():
    ends = Expiry()
    stays = Peer()
    for number in range(10_000):
        ends.set(stays, time.time() + 60 + number)
        leaves = Peer()
        ends.set(leaves, time.time() + 3600)
        ends.discard(leaves)
    assert len(ends._queue) <= 110
    ends.discard(stays)
    assert (ends._queue, ends._timer) == ([], None)


async def test_many_that_end_together_let_others_run_in_between():
    ends, peers, turns = Expiry(), [Peer() for _ in range(1000)], 0
    at = time.time() + 0.05
    for peer in peers:
        ends.set(peer, at)
    await peers[0].ended.wait()
    while not all(peer.ended.is_set() for peer in peers):
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 5
    assert ends._timer is None


async def test_a_clock_that_is_set_forward_is_noticed(monkeypatch):
    """So is the time that a machine slept, which the event loop's own clock does not count."""
    monkeypatch.setattr(expiry, "LONGEST_NAP", 0.02)
    ends, peer = Expiry(), Peer()
    ends.set(peer, time.time() + 3600)
    ahead = time.time() + 7200
    monkeypatch.setattr(expiry, "time", lambda: ahead)
    await asyncio.wait_for(peer.ended.wait(), 5)


async def test_a_clock_that_is_set_back_ends_nobody_too_early(monkeypatch):
    monkeypatch.setattr(expiry, "LONGEST_NAP", 0.02)
    now = [1000.0]
    monkeypatch.setattr(expiry, "time", lambda: now[0])
    ends, peer, other = Expiry(), Peer(), Peer()
    ends.set(peer, 1000.01)
    now[0] = 900.0
    ends.set(other, 900.01)
    now[0] = 900.02
    await asyncio.wait_for(other.ended.wait(), 5)
    assert not peer.ended.is_set()
    now[0] = 1000.02
    await asyncio.wait_for(peer.ended.wait(), 5)
