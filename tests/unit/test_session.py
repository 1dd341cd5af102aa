"""The web session: asked, not copied; written where it can be; ended where it has ended."""

from __future__ import annotations

import asyncio
import logging

import pytest
from starlette.requests import Request as StarletteRequest

from backchannel import Hub, Listener
from backchannel.errors import HandshakeRefused, SessionReadOnly, SessionUnavailable
from backchannel.session.web import NO_SESSION, REMEMBERED, Session


class Store:
    """Sessions on a server, as a framework keeps them; may be down."""

    def __init__(self, **sessions):
        self.sessions = sessions
        self.is_down = False
        self.loads = 0
        self.touches = 0
        self.extends = True

    async def load(self, key):
        self.loads += 1
        self._check()
        found = self.sessions.get(key)
        return None if found is None else dict(found)

    async def save(self, key, changed, removed):
        self._check()
        if key not in self.sessions:
            return False
        self.sessions[key].update(changed)
        for name in removed:
            self.sessions[key].pop(name, None)
        return True

    async def touch(self, key):
        self.touches += 1
        self._check()
        return key in self.sessions

    async def find(self, request):
        key = request.cookies.get("sid")
        try:
            data = await self.load(key)
        except OSError as error:
            raise SessionUnavailable(str(error)) from error
        return NO_SESSION if data is None else Session(data, id=key, store=self)

    def _check(self):
        if self.is_down:
            raise OSError("connection refused")


class Room(Listener):
    def on_message(self, ws, message: str):
        return dict(ws.session)


@pytest.fixture
def store():
    return Store(s1={"name": "Ana", "cart": 1})


@pytest.fixture
async def hub(store):
    hub = Hub(session=store)
    hub.add("/ws", Room)
    yield hub
    await hub.stop()


# ── reading ───────────────────────────────────────────────────────────────────────────────────


async def test_the_session_of_the_cookie_is_there_before_any_check(store):
    seen = []
    hub = Hub(session=store, authenticate=lambda request: seen.append(dict(request.session)))
    hub.add("/ws", Room)
    async with hub.test_client("/ws", cookies={"sid": "s1"}) as client:
        assert dict(client.connection.session) == {"name": "Ana", "cart": 1}
        assert client.connection.session.id == "s1"
    assert seen == [{"name": "Ana", "cart": 1}]
    await hub.stop()


@pytest.mark.parametrize("cookies", [{}, {"sid": "forged"}])
async def test_without_a_session_it_is_empty_and_has_no_id(hub, cookies):
    async with hub.test_client("/ws", cookies=cookies) as client:
        session = client.connection.session
        assert (dict(session), session.id, session.is_writable) == ({}, None, False)
        assert not await session.refresh()


async def test_refresh_sees_what_http_has_changed_since(hub, store):
    async with hub.test_client("/ws", cookies={"sid": "s1"}) as client:
        session = client.connection.session
        store.sessions["s1"]["cart"] = 2
        assert session["cart"] == 1
        assert await session.refresh()
        assert session["cart"] == 2


async def test_a_session_that_was_deleted_is_empty_and_no_ghost(hub, store):
    async with hub.test_client("/ws", cookies={"sid": "s1"}) as client:
        session = client.connection.session
        del store.sessions["s1"]
        assert not await session.refresh()
        assert dict(session) == {}
        session["cart"] = 5
        assert not await session.save()
        assert dict(session) == {}
        assert store.sessions == {}  # not made anew


async def test_a_session_deleted_between_the_handshake_and_on_open_is_empty_once_asked(hub, store):
    class Late(Listener):
        async def on_open(self, ws):
            store.sessions.clear()
            ws.state.exists = await ws.session.refresh()

    hub.add("/late", Late)
    async with hub.test_client("/late", cookies={"sid": "s1"}) as client:
        assert client.connection.state.exists is False
        assert dict(client.connection.session) == {}


# ── writing ───────────────────────────────────────────────────────────────────────────────────


async def test_what_is_written_and_saved_is_seen_by_http(hub, store):
    async with hub.test_client("/ws", cookies={"sid": "s1"}) as client:
        session = client.connection.session
        session["cart"] = 7
        del session["name"]
        assert dict(session) == {"cart": 7}
        assert len(session) == 1
        assert store.sessions["s1"] == {"name": "Ana", "cart": 1}  # not yet
        assert await session.save()
        assert store.sessions["s1"] == {"cart": 7}
        assert dict(session) == {"cart": 7}


async def test_only_what_was_changed_is_written(hub, store):
    async with hub.test_client("/ws", cookies={"sid": "s1"}) as client:
        session = client.connection.session
        session["cart"] = 7
        store.sessions["s1"]["name"] = "Anna"  # by HTTP, meanwhile
        await session.save()
        assert store.sessions["s1"] == {"name": "Anna", "cart": 7}


async def test_refresh_keeps_what_is_not_saved_yet(hub, store):
    async with hub.test_client("/ws", cookies={"sid": "s1"}) as client:
        session = client.connection.session
        session["cart"] = 7
        await session.refresh()
        assert session["cart"] == 7


async def test_a_change_survives_a_store_that_is_down(hub, store):
    async with hub.test_client("/ws", cookies={"sid": "s1"}) as client:
        session = client.connection.session
        session["cart"] = 7
        store.is_down = True
        with pytest.raises(SessionUnavailable, match="does not answer: OSError"):
            await session.save()
        with pytest.raises(SessionUnavailable):
            await session.refresh()
        assert session["cart"] == 7
        store.is_down = False
        await session.save()
        assert store.sessions["s1"]["cart"] == 7


async def test_a_session_in_a_cookie_is_read_only_and_says_why(hub):
    async with hub.test_client("/ws", session={"a": 1}) as client:
        session = client.connection.session
        with pytest.raises(SessionReadOnly, match="lives in a cookie, which only an HTTP response"):
            session["a"] = 2
        with pytest.raises(TypeError, match="keep sessions on the server"):
            del session["a"]
        with pytest.raises(SessionReadOnly):
            await session.save()
        assert await session.refresh()
        assert session == {"a": 1}


async def test_writing_where_there_is_no_session_says_so(hub):
    async with hub.test_client("/ws") as client:
        with pytest.raises(SessionReadOnly, match="this client has none"):
            client.connection.session["a"] = 2


def test_deleting_what_is_not_there_is_a_key_error():
    session = Session({"a": 1}, id="s", store=Store())
    with pytest.raises(KeyError):
        del session["b"]
    del session["a"]
    with pytest.raises(KeyError):
        del session["a"]
    with pytest.raises(KeyError):
        session["a"]


def test_its_repr_tells_neither_id_nor_values():
    text = repr(Session({"token": "secret"}, id="s3cr3t", store=Store()))
    assert text == "<Session on the server, 1 keys>"


# ── a store that is down ──────────────────────────────────────────────────────────────────────


async def test_a_handshake_while_the_store_is_down_is_answered_503_and_others_live_on(
    hub, store, caplog
):
    async with hub.test_client("/ws", cookies={"sid": "s1"}) as client:
        store.is_down = True
        with pytest.raises(HandshakeRefused) as refused:
            await hub.test_client("/ws", cookies={"sid": "s1"}).connect()
        assert refused.value.status == 503
        assert "Sessions can't be read at the moment" in refused.value.text
        await client.send("hello")
        assert await client.receive_json() == {"name": "Ana", "cart": 1}
    assert "refused '/ws' with 503" in caplog.text


async def test_a_store_that_fails_otherwise_refuses_with_an_error_id(caplog):
    class Broken:
        async def find(self, request):
            raise KeyError("a bug")

    hub = Hub(session=Broken())
    hub.add("/ws", Room)
    with pytest.raises(HandshakeRefused) as refused:
        await hub.test_client("/ws").connect()
    assert refused.value.status == 500
    await hub.stop()


@pytest.mark.parametrize("wrong", ["django", object(), dict])
def test_a_session_setting_without_find_is_refused(wrong):
    with pytest.raises(TypeError, match=r"Hub\(session=…\) takes an object with find\(request\)"):
        Hub(session=wrong)


# ── sessions that end ─────────────────────────────────────────────────────────────────────────


async def test_sign_out_closes_all_sockets_of_the_session_and_no_other(hub, store):
    store.sessions["s2"] = {}
    async with (
        hub.test_client("/ws", cookies={"sid": "s1"}) as first,
        hub.test_client("/ws", cookies={"sid": "s1"}) as second,
        hub.test_client("/ws", cookies={"sid": "s2"}) as other,
    ):
        hub.session("s1").close(4004, "signed out")
        assert (first.closed.code, first.closed.reason) == (4004, "signed out")
        assert second.closed.code == 4004
        assert other.closed is None


async def test_the_sockets_of_a_session_that_expires_are_closed_within_the_set_time(store):
    hub = Hub(session=store, session_check=0.01)
    hub.add("/ws", Room)
    store.sessions["s2"] = {}
    async with (
        hub.test_client("/ws", cookies={"sid": "s1"}) as first,
        hub.test_client("/ws", cookies={"sid": "s1"}) as second,
        hub.test_client("/ws", cookies={"sid": "s2"}) as other,
    ):
        del store.sessions["s1"]
        for client in (first, second):
            with pytest.raises(Exception, match="closed with 4004 session ended"):
                await client.receive()
        assert other.closed is None
    await hub.stop()


async def test_a_store_that_is_down_ends_no_session_and_is_named_once(store, caplog):
    hub = Hub(session=store, session_check=0.01)
    hub.add("/ws", Room)
    async with hub.test_client("/ws", cookies={"sid": "s1"}) as client:
        store.is_down = True
        before = store.loads
        while store.loads < before + 4:  # noqa: ASYNC110 - real time is the subject
            await asyncio.sleep(0.01)
        assert client.closed is None
        lines = [r for r in caplog.records if "open connections stay" in r.getMessage()]
        assert len(lines) == 1
        store.is_down = False
        del store.sessions["s1"]
        with pytest.raises(Exception, match="4004"):
            await client.receive()
    await hub.stop()


async def test_a_session_is_asked_for_once_however_many_sockets_it_has(store):
    hub = Hub(session=store, session_check=0.01)
    hub.add("/ws", Room)
    clients = [await hub.test_client("/ws", cookies={"sid": "s1"}).connect() for _ in range(20)]
    before = store.loads
    while store.loads == before:  # noqa: ASYNC110 - real time is the subject
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert store.loads == before + 1
    for client in clients:
        await client.close()
    await hub.stop()


# ── naming a session that lives in a cookie ───────────────────────────────────────────────────


class Request:
    def __init__(self, session):
        self.session = session
        self.scope = {}


async def test_remember_names_a_session_in_a_cookie_anew_at_each_login(hub):
    cookie = {"name": "Ana"}
    first = await hub.remember(Request(cookie))
    assert cookie[REMEMBERED] == first
    assert len(first) >= 22  # 128 bits
    async with hub.test_client("/ws", session=cookie) as client:
        assert client.connection.session.id == first
        assert await hub.session(first).count() == 1
    assert await hub.remember(Request(cookie)) != first


async def test_remember_without_a_session_says_what_is_missing(hub):
    with pytest.raises(TypeError, match="is the session middleware installed"):
        await hub.remember(Request(None))


async def test_remember_without_starlettes_middleware_says_what_is_missing(hub):
    request = StarletteRequest({"type": "http", "headers": []})
    with pytest.raises(TypeError, match="is the session middleware installed"):
        await hub.remember(request)


def test_addressing_a_session_without_an_id_says_how_it_gets_one(hub):
    with pytest.raises(TypeError, match=r"`await hub.remember\(request\)` was called at login"):
        hub.session(None)


# ── what is logged ────────────────────────────────────────────────────────────────────────────


async def test_no_session_id_or_value_is_ever_logged(store, caplog):
    caplog.set_level(logging.DEBUG)
    store.sessions["k3yk3yk3y"] = {"password": "s3cr3t"}
    hub = Hub(session=store, session_check=0.01)
    hub.add("/ws", Room)
    async with hub.test_client("/ws", cookies={"sid": "k3yk3yk3y"}) as client:
        session = client.connection.session
        logging.getLogger("backchannel.hub").info("%r %s", session, session)
        hub.session("k3yk3yk3y").send("hello")
        assert await client.receive() == "hello"
        del store.sessions["k3yk3yk3y"]
        with pytest.raises(Exception, match="4004"):
            await client.receive()
    await hub.stop()
    assert "k3yk3yk3y" not in caplog.text
    assert "s3cr3t" not in caplog.text
