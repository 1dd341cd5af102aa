"""Traffic keeps a session on the server alive: its real stores, asked at most once a minute."""

from __future__ import annotations

import asyncio

import pytest
from flask import Flask
from flask_session import Session as FlaskSession
from litestar.stores.file import FileStore
from litestar.stores.memory import MemoryStore
from litestar.stores.redis import RedisStore as LitestarRedis
from redis.asyncio import Redis
from shared import request_with
from starlette.applications import Starlette
from starsessions import CookieStore
from starsessions import SessionMiddleware as StarsessionsMiddleware
from starsessions.serializers import JsonSerializer
from starsessions.session import SessionHandler
from starsessions.stores.redis import RedisStore as StarsessionsRedis

from backchannel import Hub, Listener
from backchannel.guard import Keeping, KeepingMetered
from backchannel.session import flask, litestar, scope, touch
from backchannel.session.web import Session


class Room(Listener):
    def on_message(self, ws, message: str):
        return message


class Store:
    """Sessions that a test can end; counts how often each was touched."""

    def __init__(self, *keys, extends=True):
        self.touched = dict.fromkeys(keys, 0)
        self.extends = extends
        self.is_down = False

    async def find(self, request):
        return Session({"user": 1}, id=request.cookies["sid"], store=self)

    async def load(self, key):
        return {"user": 1} if key in self.touched else None

    async def save(self, key, changed, removed):
        raise AssertionError("a touch writes nothing")

    async def touch(self, key):
        if self.is_down:
            raise OSError("connection refused")
        self.touched[key] += 1
        return True


@pytest.fixture
def clock(monkeypatch):
    """The clock that says when a minute is over."""
    now = [1000.0]
    for module in ("session.touch", "guard"):
        monkeypatch.setattr(f"backchannel.{module}.monotonic", lambda: now[0])
    return now


async def idle(hub):
    """Wait until what the hub does in the background is done."""
    while hub.runtime._tasks:
        await asyncio.wait(set(hub.runtime._tasks))


async def say(client, hub, times=1):
    for _ in range(times):
        await client.send("hello")
        assert await client.receive() == "hello"
    await idle(hub)


# ── how often ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "settings", [{}, {"max_messages_per_second": 1000}, {"max_connections_per_user": 5}]
)
async def test_messages_touch_a_session_at_most_once_a_minute(clock, settings):
    store = Store("s1")
    hub = Hub(session=store, **settings)
    hub.add("/ws", Room)
    async with hub.test_client("/ws", cookies={"sid": "s1"}) as client:
        assert store.touched["s1"] == 0  # the handshake is none
        await say(client, hub, times=10)
        assert store.touched["s1"] == 1
        clock[0] += touch.TOUCH_EVERY - 0.5
        await say(client, hub, times=10)
        assert store.touched["s1"] == 1
        clock[0] += 1
        await say(client, hub, times=10)
        assert store.touched["s1"] == 2
        clock[0] += 10 * touch.TOUCH_EVERY
        await idle(hub)
        assert store.touched["s1"] == 2  # silence is no use
    await hub.stop()


async def test_a_session_with_many_sockets_is_touched_as_often_as_one(clock):
    store = Store("s1", "s2")
    hub = Hub(session=store)
    hub.add("/ws", Room)
    keys = ["s1"] * 5 + ["s2"]
    clients = [await hub.test_client("/ws", cookies={"sid": key}).connect() for key in keys]
    for expected in (1, 2, 3):
        for client in clients:
            await say(client, hub, times=2)
        assert store.touched == {"s1": expected, "s2": expected}
        clock[0] += touch.TOUCH_EVERY
    await hub.stop()


async def test_touch_session_off_and_sessions_that_end_at_their_time_cost_nothing():
    for store, settings in (
        (Store("s1"), {"touch_session": False}),
        (Store("s1", extends=False), {}),
    ):
        hub = Hub(session=store, **settings)
        hub.add("/ws", Room)
        async with hub.test_client("/ws", cookies={"sid": "s1"}) as client:
            assert not isinstance(client.connection._dispatch, Keeping | KeepingMetered)
            await say(client, hub)
            assert store.touched["s1"] == 0
        await hub.stop()


async def test_a_session_in_a_cookie_and_none_at_all_cost_nothing(hub):
    hub.add("/ws", Room)
    for session in ({"user": 1}, None):
        async with hub.test_client("/ws", session=session) as client:
            assert not isinstance(client.connection._dispatch, Keeping | KeepingMetered)
            assert not await client.connection.session.touch()


async def test_many_sessions_are_not_remembered_for_longer_than_a_minute(clock):
    kept = []
    touches = touch.Touches(lambda work: kept.append(work.close()))
    for number in range(5000):
        clock[0] += 1
        touches.heard(Session({}, id=str(number), store=Store()))
    assert len(kept) == 5000
    assert len(touches._due) < 2000


# ── a store that is down ──────────────────────────────────────────────────────────────────────


async def test_a_store_that_is_down_is_named_once_and_the_connection_lives_on(clock, caplog):
    store = Store("s1")
    hub = Hub(session=store)
    hub.add("/ws", Room)
    store.is_down = True
    async with hub.test_client("/ws", cookies={"sid": "s1"}) as client:
        for _ in range(3):
            await say(client, hub)
            clock[0] += touch.TOUCH_EVERY
        lines = [line for line in caplog.messages if "sessions are not kept alive" in line]
        assert len(lines) == 1
        assert "the session store does not answer: OSError('connection refused')" in lines[0]
        store.is_down = False
        await say(client, hub)
        assert store.touched["s1"] == 1
    await hub.stop()


# ── real stores ───────────────────────────────────────────────────────────────────────────────


class FlaskIn:
    """Flask-Session in Redis."""

    def __init__(self, url, lifetime, **config):
        import redis

        self.client = redis.Redis.from_url(url)
        self.app = Flask("kept")
        self.app.config.update(
            SESSION_TYPE="redis", SESSION_REDIS=self.client,
            PERMANENT_SESSION_LIFETIME=lifetime, **config,
        )  # fmt: skip
        FlaskSession(self.app)
        self.app.post("/write")(self.write)
        self.browser = self.app.test_client()

    def write(self):
        from flask import request, session

        session.update(request.args)
        return {}

    async def begin(self):
        await self.http(name="ana")
        self.key = self.browser.get_cookie("session").value
        return await flask.FlaskSessions(self.app).find(request_with({"session": self.key}))

    async def http(self, **values):
        answer = await asyncio.to_thread(self.browser.post, "/write", query_string=values)
        assert answer.status_code == 200

    async def end(self):
        self.client.delete(self.app.session_interface._get_store_id(self.key))

    async def aclose(self):
        self.client.close()


class LitestarIn:
    """Litestar's server-side sessions, in a store of its own."""

    def __init__(self, store, lifetime):
        self.store = store
        self.lifetime = lifetime

    async def begin(self):
        await self.http(name="ana")
        store = litestar._Store(self.store, self.lifetime)
        return Session(await store.load("key"), id="key", store=store)

    async def http(self, **values):
        import msgspec

        await self.store.set("key", msgspec.json.encode(values), expires_in=self.lifetime)

    async def end(self):
        await self.store.delete("key")

    async def aclose(self):
        if isinstance(self.store, LitestarRedis):
            await self.store._redis.aclose()


class StarsessionsIn:
    """starsessions in Redis, behind its own middleware in a Starlette app."""

    def __init__(self, url, lifetime, *, rolling=True):
        self.client = Redis.from_url(url)
        self.store = StarsessionsRedis(connection=self.client)
        self.lifetime = lifetime
        self.app = Starlette()
        self.app.add_middleware(
            StarsessionsMiddleware, store=self.store, lifetime=lifetime, rolling=rolling
        )

    async def begin(self):
        await self.http(name="ana")
        handler = SessionHandler(None, "key", self.store, JsonSerializer(), self.lifetime)
        return await scope.in_scope({"session_handler": handler, "app": self.app})

    async def http(self, **values):
        data = JsonSerializer().serialize(values)
        await self.store.write("key", data, self.lifetime, self.lifetime)

    async def end(self):
        await self.store.remove("key")

    async def aclose(self):
        await self.client.aclose()


KINDS = {
    "flask in redis": FlaskIn,
    "litestar in redis": lambda url, lifetime: LitestarIn(
        LitestarRedis(Redis.from_url(url)), lifetime
    ),
    "litestar in memory": lambda url, lifetime: LitestarIn(MemoryStore(), lifetime),
    "starsessions in redis": StarsessionsIn,
}


@pytest.fixture(params=KINDS)
async def kept(request, redis_server):
    """A framework's sessions that live for two seconds, in a real store."""
    sessions = KINDS[request.param](redis_server.url, 2)
    yield sessions
    await sessions.aclose()


async def talk(client, seconds):
    """Send messages for a while."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        await client.send("hello")
        assert await client.receive() == "hello"
        await asyncio.sleep(0.1)


async def test_a_session_lives_while_messages_come_and_ends_when_they_stop(kept, monkeypatch):
    """Real time is the subject."""
    monkeypatch.setattr(touch, "TOUCH_EVERY", 0.3)
    session = await kept.begin()

    class Found:
        async def find(self, request):
            return session

    hub = Hub(session=Found(), session_check=0.2)
    hub.add("/ws", Room)
    loop = asyncio.get_running_loop()
    async with hub.test_client("/ws") as client:
        await talk(client, 2.6)
        assert await session.refresh()
        stopped = loop.time()
        with pytest.raises(Exception, match="closed with 4004 session ended"):
            await client.receive(timeout=10)
        assert loop.time() - stopped >= 1
    await hub.stop()


async def test_a_session_ends_at_its_time_where_traffic_does_not_count(kept):
    """Real time is the subject."""
    session = await kept.begin()

    class Found:
        async def find(self, request):
            return session

    hub = Hub(session=Found(), session_check=0.2, touch_session=False)
    hub.add("/ws", Room)
    loop = asyncio.get_running_loop()
    async with hub.test_client("/ws") as client:
        began = loop.time()
        with pytest.raises(Exception, match="closed with 4004 session ended"):
            await talk(client, 10)
        assert loop.time() - began < 4
    await hub.stop()


async def test_a_touch_brings_back_no_session_that_was_deleted(kept):
    session = await kept.begin()
    assert await session.touch()
    await kept.end()
    assert not await session.touch()
    assert not await session.refresh()
    assert dict(session) == {}


async def test_a_touch_leaves_what_http_writes_at_the_same_time(kept):
    session = await kept.begin()
    for number in range(20):
        writing = asyncio.create_task(kept.http(name=str(number)))
        await asyncio.gather(writing, *(session.touch() for _ in range(5)))
        assert await session.refresh()
        assert session["name"] == str(number)


# ── where use does not move the end ───────────────────────────────────────────────────────────


async def test_a_session_whose_end_is_fixed_is_not_extended(redis_server, tmp_path):
    fixed = StarsessionsIn(redis_server.url, 60, rolling=False)
    unmoved = FlaskIn(redis_server.url, 60, SESSION_REFRESH_EACH_REQUEST=False)
    in_files = LitestarIn(FileStore(tmp_path), 60)
    for kind in (fixed, unmoved, in_files):
        session = await kind.begin()
        assert session.is_writable
        assert not session.is_extendable
        assert not await session.touch()
        await kind.aclose()


async def test_how_starsessions_was_set_up_is_not_known_everywhere(redis_server):
    """Then a session ends when it would anyway."""
    kind = StarsessionsIn(redis_server.url, 60)
    kind.app = Starlette()
    assert not (await kind.begin()).is_extendable
    await kind.aclose()


async def test_starsessions_in_cookies_are_no_sessions_on_a_server():
    store = CookieStore("the secret")
    key = await store.write("", JsonSerializer().serialize({"name": "ana"}), 60, 60)
    handler = SessionHandler(None, key, store, JsonSerializer(), 60)
    session = await scope.in_scope({"session_handler": handler})
    assert dict(session) == {"name": "ana"}
    assert not session.is_extendable
