"""Backchannel's own sessions: a cookie with a random id, the rest in memory or in real Redis."""

from __future__ import annotations

import asyncio
import logging
import re
import sys

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from backchannel import Hub, Listener
from backchannel.auth import session_user
from backchannel.errors import HandshakeRefused, SessionReadOnly, UnsendableMessage
from backchannel.session import stores
from backchannel.session.server import ServerSessions

SECRET = "a secret of the tests, of 32 characters or more"


class Room(Listener):
    async def on_message(self, ws, message: str):
        name, _, value = message.partition("=")
        if name:
            ws.session[name] = value
            return {"saved": await ws.session.save()}
        return {"exists": await ws.session.refresh(), **ws.session}


@pytest.fixture(params=["memory", "redis"])
async def sessions(request, redis_server):
    url = "memory" if request.param == "memory" else redis_server.url
    sessions = ServerSessions(secret=SECRET, store=url)
    yield sessions
    await sessions.aclose()


@pytest.fixture
async def hub(sessions):
    hub = Hub(session=sessions, authenticate=session_user(), session_check=0.05)
    hub.add("/ws", Room)
    yield hub
    await hub.stop()
    assert hub.health.problems == ()


async def login(request):
    request.session["user_id"] = request.query_params["user"]
    return JSONResponse({"id": request.session.id})


async def logout(request):
    request.session.clear()
    return JSONResponse({})


async def forget(request):
    del request.session["user_id"]
    return JSONResponse({})


async def note(request):
    for name, value in request.query_params.items():
        request.session[name] = value
    return JSONResponse(dict(request.session))


async def plain(request):
    return JSONResponse({})


async def remembered(request):
    return JSONResponse({"id": await request.app.state.hub.remember(request)})


def browser(sessions, hub=None, scheme="http"):
    """An HTTP client with a cookie jar, of an app that is wrapped in the sessions."""
    routes = [
        Route(f"/{view.__name__}", view)
        for view in (login, logout, forget, note, plain, remembered)
    ]
    if hub is not None:
        routes.append(Mount("/live", hub))
    app = Starlette(routes=routes)
    app.state.hub = hub
    app.add_middleware(sessions.wrap)
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url=f"{scheme}://testserver")


def cookies(client):
    return {cookie.name: cookie.value for cookie in client.cookies.jar}


# ── over HTTP and in the socket ───────────────────────────────────────────────────────────────


async def test_the_socket_has_the_session_that_http_made_and_both_see_what_the_other_writes(
    hub, sessions
):
    async with browser(sessions) as http:
        await http.get("/login?user=ana")
        async with hub.test_client("/ws", cookies=cookies(http)) as client:
            assert client.connection.user == "ana"
            await client.send("color=teal")
            assert await client.receive_json() == {"saved": True}
            assert (await http.get("/note?size=3")).json() == {
                "user_id": "ana", "color": "teal", "size": "3",
            }  # fmt: skip
            await client.send("=")
            assert await client.receive_json() == {
                "exists": True, "user_id": "ana", "color": "teal", "size": "3",
            }  # fmt: skip


async def test_two_browsers_have_two_sessions(hub, sessions):
    async with browser(sessions) as one, browser(sessions) as two:
        await one.get("/login?user=ana")
        await two.get("/login?user=bob")
        for http, user in ((one, "ana"), (two, "bob")):
            async with hub.test_client("/ws", cookies=cookies(http)) as client:
                assert client.connection.user == user


async def test_a_cookie_holds_a_random_id_and_is_not_for_scripts_or_other_sites(sessions):
    async with browser(sessions) as http:
        line = (await http.get("/note?color=teal")).headers["set-cookie"]
        assert re.fullmatch(
            r"backchannel_session=[\w-]{43}\.[\w-]{43}; Path=/; Max-Age=1209600; "
            "HttpOnly; SameSite=Lax",
            line,
        )
        assert "teal" not in line


@pytest.mark.parametrize(
    ("scheme", "secure", "expected"),
    [("http", None, False), ("https", None, True), ("http", True, True), ("https", False, False)],
)
async def test_a_cookie_of_https_is_sent_over_https_only(scheme, secure, expected):
    sessions = ServerSessions(secret=SECRET, secure=secure)
    async with browser(sessions, scheme=scheme) as http:
        line = (await http.get("/note?a=1")).headers["set-cookie"]
        assert line.endswith("; Secure") is expected


async def test_a_request_that_uses_no_session_gets_no_cookie_and_no_session(sessions):
    async with browser(sessions) as http:
        answer = await http.get("/plain")
        assert "set-cookie" not in answer.headers
        assert "vary" not in answer.headers
        empty = await http.get("/note")
        assert "set-cookie" not in empty.headers
        assert empty.headers["vary"] == "Cookie"


async def test_writes_at_the_same_time_do_not_undo_each_other(hub, sessions):
    async with browser(sessions) as http:
        await http.get("/login?user=ana")
        async with hub.test_client("/ws", cookies=cookies(http)) as client:
            for number in range(20):
                await client.send(f"socket{number}=x")
                await asyncio.gather(http.get(f"/note?http{number}=y"), client.receive_json())
            await client.send("=")
            told = await client.receive_json()
    assert len(told) == 2 + 40


# ── no fixation ───────────────────────────────────────────────────────────────────────────────


async def test_a_login_makes_the_cookie_worthless_that_was_there_before(hub, sessions):
    async with browser(sessions) as attacker, browser(sessions) as victim:
        await attacker.get("/note?basket=1")
        planted = cookies(attacker)
        victim.cookies.update(planted)
        await victim.get("/login?user=victim")
        assert cookies(victim) != planted
        async with hub.test_client("/ws", cookies=cookies(victim)) as client:
            assert client.connection.user == "victim"
            assert client.connection.session["basket"] == "1"  # what was in it stays
        async with hub.test_client("/ws", cookies=planted) as client:
            assert client.connection.user is None
            assert dict(client.connection.session) == {}
        assert (await attacker.get("/note")).json() == {}


async def test_remember_gives_another_id_too(sessions):
    hub = Hub(session=sessions)
    hub.add("/ws", Room)
    async with browser(sessions, hub) as http:
        first = (await http.get("/remembered")).json()["id"]
        before = cookies(http)
        second = (await http.get("/remembered")).json()["id"]
        assert first != second
        async with (
            hub.test_client("/ws", cookies=cookies(http)) as client,
            hub.test_client("/ws", cookies=before) as old,
        ):
            assert client.connection.session.id == second
            assert await hub.session(second).count() == 1
            assert dict(old.connection.session) == {}
    await hub.stop()


async def test_who_has_signed_in_can_not_be_changed_by_a_socket(hub, sessions):
    cookie = {sessions.cookie: await sessions.issue(color="teal")}
    async with hub.test_client("/ws", cookies=cookie) as client:
        session = client.connection.session
        with pytest.raises(SessionReadOnly, match="'user_id' says who has signed in"):
            session["user_id"] = "ana"
        with pytest.raises(SessionReadOnly):
            del session["user_id"]


# ── cookies that are no good ──────────────────────────────────────────────────────────────────


async def test_a_forged_or_truncated_cookie_is_no_session_and_asks_no_store(
    hub, sessions, monkeypatch
):
    good = await sessions.issue(user_id="ana")
    key, _, signature = good.partition(".")
    asked = []
    monkeypatch.setattr(sessions.store, "load", asked.append)
    forged = [
        "", ".", key, f"{key}.", f".{signature}", good[:-1], good[1:], f"{good}x", f"{key}x.{signature}",
        f"{key}.{signature[::-1]}", "x" * 5000, f"{key}.é", ServerSessions(secret="x" * 32).signed(key),
    ]  # fmt: skip
    for value in forged:
        async with hub.test_client("/ws", cookies={sessions.cookie: value}) as client:
            assert client.connection.user is None
            assert dict(client.connection.session) == {}
            assert client.connection.session.id is None
    assert asked == []


async def test_the_good_one_of_two_cookies_counts(hub, sessions):
    """A page of a neighbouring host can set a cookie of the same name."""
    good = await sessions.issue(user_id="ana")
    header = f"{sessions.cookie}=planted.x; other=1; {sessions.cookie}={good}"
    async with hub.test_client("/ws", headers={"cookie": header}) as client:
        assert client.connection.user == "ana"


async def test_a_cookie_of_before_the_logout_is_worthless(hub, sessions):
    for leave in ("/logout", "/forget"):
        async with browser(sessions) as http:
            await http.get("/login?user=ana")
            before = cookies(http)
            async with hub.test_client("/ws", cookies=before) as client:
                answer = await http.get(leave)
                with pytest.raises(Exception, match="closed with 4004 session ended"):
                    await client.receive(timeout=10)
            if leave == "/logout":
                assert "backchannel_session=; Path=/; Max-Age=0" in answer.headers["set-cookie"]
                assert cookies(http) == {}
            async with hub.test_client("/ws", cookies=before) as client:
                assert client.connection.user is None
                assert not await client.connection.session.refresh()


async def test_an_expired_session_is_empty_and_can_not_be_written(redis_server):
    """Real time is the subject."""
    for url in ("memory", redis_server.url):
        sessions = ServerSessions(secret=SECRET, store=url, max_age=1)
        hub = Hub(session=sessions, authenticate=session_user(), touch_session=False)
        hub.add("/ws", Room)
        cookie = {sessions.cookie: await sessions.issue(user_id="ana")}
        async with hub.test_client("/ws", cookies=cookie) as client:
            assert client.connection.user == "ana"
            await asyncio.sleep(1.2)
            await client.send("=")
            assert await client.receive_json() == {"exists": False}
            await client.send("ghost=1")
            assert await client.receive_json() == {"saved": False}
            assert not await client.connection.session.touch()
        async with hub.test_client("/ws", cookies=cookie) as client:
            assert client.connection.user is None
        await hub.stop()


async def test_a_session_that_is_used_lives_on(redis_server, monkeypatch):
    """Real time is the subject."""
    monkeypatch.setattr("backchannel.session.touch.TOUCH_EVERY", 0.2)
    for url in ("memory", redis_server.url):
        sessions = ServerSessions(secret=SECRET, store=url, max_age=2)
        hub = Hub(session=sessions, session_check=0.1)
        hub.add("/ws", Room)
        cookie = {sessions.cookie: await sessions.issue(color="teal")}
        async with hub.test_client("/ws", cookies=cookie) as client:
            for _ in range(26):
                await client.send("=")
                assert await client.receive_json() == {"exists": True, "color": "teal"}
                await asyncio.sleep(0.1)
            with pytest.raises(Exception, match="closed with 4004 session ended"):
                await client.receive(timeout=10)
        await hub.stop()


async def test_a_session_deleted_meanwhile_does_not_come_back(sessions):
    value = await sessions.issue(color="teal")
    key = value.partition(".")[0]
    store = sessions.store
    await store.delete(key)
    assert not await store.touch(key)
    assert not await store.save(key, {"a": 1}, ())
    assert not await store.rename(key, "new", {"a": 1}, ())
    assert await store.load(key) is None
    assert await store.load("new") is None


async def test_an_older_secret_still_counts_and_a_dropped_one_does_not():
    old = ServerSessions(secret=SECRET)
    value = await old.issue(user_id="ana")
    for secrets, user in ((["n" * 32, SECRET], "ana"), (["n" * 32], None)):
        sessions = ServerSessions(secret=secrets)
        sessions.store = old.store
        hub = Hub(session=sessions, authenticate=session_user())
        hub.add("/ws", Room)
        async with hub.test_client("/ws", cookies={sessions.cookie: value}) as client:
            assert client.connection.user == user
        await hub.stop()


# ── a store that is down ──────────────────────────────────────────────────────────────────────


async def test_while_redis_is_down_new_clients_get_503_and_the_others_live_on(redis_server, caplog):
    sessions = ServerSessions(secret=SECRET, store=redis_server.url)
    hub = Hub(session=sessions, authenticate=session_user(), session_check=0.05)
    hub.add("/ws", Room)
    cookie = {sessions.cookie: await sessions.issue(user_id="ana")}
    async with (
        hub.test_client("/ws", cookies=cookie) as client,
        browser(sessions) as http,
    ):
        redis_server.stop()
        with pytest.raises(HandshakeRefused) as refused:
            await hub.test_client("/ws", cookies=cookie).connect()
        assert refused.value.status == 503
        assert refused.value.text == (
            "Sessions can't be read at the moment. Try again in a few seconds."
        )
        answer = await http.get(
            "/note", headers={"cookie": "; ".join(f"{k}={v}" for k, v in cookie.items())}
        )
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        answer = await http.get("/login?user=bob")  # has none yet, and can't get one
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.text == refused.value.text
        client.connection.send("still here")
        assert await client.receive() == "still here"
        assert client.closed is None
        redis_server.start()
        back = {sessions.cookie: await sessions.issue(user_id="ana")}
        async with hub.test_client("/ws", cookies=back) as other:
            assert other.connection.user == "ana"
        with pytest.raises(Exception, match="closed with 4004 session ended"):
            await client.receive(timeout=10)  # its session went with the server's memory
    await hub.stop()
    assert "answered '/note' with 503" in caplog.text


# ── pages ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_page_of_the_hub_begins_a_session_for_who_has_none(tmp_path, sessions):
    (tmp_path / "chat.html").write_text("<!doctype html>")
    hub = Hub(session=sessions)
    hub.page("/", tmp_path / "chat.html")
    hub.add("/ws", Room)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=hub), base_url="https://testserver"
    ) as http:
        first = await http.get("/")
        assert first.text == "<!doctype html>"
        assert first.headers["set-cookie"].endswith("HttpOnly; SameSite=Lax; Secure")
        before = cookies(http)
        async with hub.test_client("/ws", cookies=before) as client:
            await client.send("name=Ana")
            assert await client.receive_json() == {"saved": True}
        await http.get("/")
        assert cookies(http) == before  # not another one
        assert "set-cookie" not in (await http.get("/nothing")).headers
    await hub.stop()


async def test_without_such_sessions_a_page_sets_no_cookie(tmp_path):
    (tmp_path / "chat.html").write_text("<!doctype html>")
    hub = Hub()
    hub.page("/", tmp_path / "chat.html")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=hub), base_url="http://testserver"
    ) as http:
        assert "set-cookie" not in (await http.get("/")).headers


# ── set up ────────────────────────────────────────────────────────────────────────────────────


async def test_without_a_secret_one_is_made_when_it_is_needed_and_the_log_says_so(caplog):
    one, two = ServerSessions(), ServerSessions()
    assert one._keys is None  # worker processes that are forked have one each
    value = await one.issue(user_id="ana")
    await one.issue()
    lines = [line for line in caplog.messages if "no secret" in line]
    assert len(lines) == 1
    assert "sessions end with this process" in lines[0]
    assert "ServerSessions(secret=os.environ" in lines[0]
    assert two.signed(value.partition(".")[0]) != value


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"secret": "short"}, ValueError, "at least 32 characters"),
        ({"secret": ""}, ValueError, "at least 32 characters"),
        ({"secret": []}, TypeError, "takes a str, or a list of some"),
        ({"secret": 7}, TypeError, "takes a str, or a list of some"),
        ({"secret": [7]}, TypeError, "takes a str, or a list of some"),
        ({"store": "postgres://u:pw@host"}, ValueError, '"memory", or where Redis is'),
        ({"store": None}, ValueError, '"memory", or where Redis is'),
        ({"max_age": 0}, ValueError, "whole seconds above 0, not 0"),
        ({"max_age": 1.5}, ValueError, "whole seconds above 0, not 1.5"),
        ({"max_age": True}, ValueError, "whole seconds above 0, not True"),
        ({"cookie": "my session"}, ValueError, "is no cookie's name"),
        ({"cookie": "a=b"}, ValueError, "is no cookie's name"),
        ({"cookie": ""}, ValueError, "is no cookie's name"),
    ],
)
def test_what_can_not_be_is_refused_and_says_what_can(options, error, text):
    with pytest.raises(error, match=text) as refused:
        ServerSessions(**options)
    assert "pw" not in str(refused.value)


def test_redis_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ImportError, match=r"need the extra \[redis\]: pip install redis"):
        ServerSessions(secret=SECRET, store="redis://localhost")


async def test_what_is_no_json_is_refused_where_it_is_written(hub, sessions):
    cookie = {sessions.cookie: await sessions.issue(color="teal")}
    async with hub.test_client("/ws", cookies=cookie) as client:
        with pytest.raises(UnsendableMessage):
            client.connection.session["color"] = object()
    with pytest.raises(UnsendableMessage):
        await sessions.issue(color=float("nan"))


async def test_memory_holds_so_many_and_the_oldest_make_room(monkeypatch, caplog):
    monkeypatch.setattr(stores, "MOST", 3)
    store = stores.MemorySessions(60)
    for key in "abc":
        await store.begin(key, {})
    await store.touch("a")
    await store.begin("d", {})
    assert [key for key in "abcd" if await store.load(key) is not None] == ["a", "c", "d"]
    assert len(store) == 3
    assert "3 sessions are kept in memory: the oldest make room" in caplog.text


async def test_no_id_and_no_value_is_ever_logged(hub, sessions, caplog):
    caplog.set_level(logging.DEBUG)
    async with browser(sessions) as http:
        await http.get("/login?user=ana")
        await http.get("/note?pin=s3cr3t")
        value = cookies(http)[sessions.cookie]
        async with hub.test_client("/ws", cookies=cookies(http)) as client:
            await client.send("=")
            await client.receive_json()
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("backchannel")]
    text = "\n".join(line for line in ours if "received" not in line and " send " not in line)
    assert value.partition(".")[0] not in text
    assert "s3cr3t" not in text
