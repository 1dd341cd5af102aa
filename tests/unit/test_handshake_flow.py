"""The handshake's checks: who it is, whether it may come in, and what a failure answers."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from shared import lines_of

from backchannel import Hub, Listener, Reject, Request, threaded
from backchannel.testing import HandshakeRefused


class Room(Listener):
    """Does nothing."""


def in_style(style, function):
    """Return a function as def, async def or @threaded def."""
    if style == "async def":

        async def asynchronous(*arguments):
            await asyncio.sleep(0)
            return function(*arguments)

        return asynchronous
    if style == "threaded":
        return _blocking(function)
    return function


def _blocking(function):
    @threaded
    def blocking(*arguments):
        return function(*arguments)

    return blocking


async def refused(hub, url="/ws", **options):
    with pytest.raises(HandshakeRefused) as error:
        await hub.test_client(url, **options).connect()
    return error.value


# ── authenticate ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "user"),
    [
        (None, None),
        ("ana", "ana"),
        (42, "42"),
        (SimpleNamespace(id="ana"), "ana"),
        (SimpleNamespace(id=7), "7"),
        (SimpleNamespace(pk=8), "8"),
        (SimpleNamespace(user_id="u9"), "u9"),
    ],
    ids=str,
)
async def test_authenticate_says_who_it_is(style, answer, user):
    hub = Hub(authenticate=in_style(style, lambda request: answer))
    hub.add("/ws", Room)
    async with hub.test_client("/ws") as client:
        assert client.connection.user == user
        assert client.connection.identity is answer
        if user:
            assert hub.user(user).send("hi").reached == 1
    await hub.stop()


async def test_authenticate_sees_the_handshake():
    seen = []

    def authenticate(request):
        assert isinstance(request, Request)
        seen.append(
            (
                request.path,
                dict(request.params),
                request.query["token"],
                request.headers["x-key"],
                request.cookies["c"],
                dict(request.session),
                request.client,
            )
        )

    hub = Hub(authenticate=authenticate)
    hub.add("/ws/{channel}", Room)
    async with hub.test_client(
        "/ws/cars?token=t", headers={"X-Key": "k"}, cookies={"c": "1"}, session={"s": 2}
    ):
        pass
    assert seen == [
        ("/ws/cars", {"channel": "cars"}, "t", "k", "1", {"s": 2}, ("127.0.0.1", 50000))
    ]
    await hub.stop()


@pytest.mark.parametrize("how", ["False", "returned", "raised"])
async def test_authenticate_refuses(diary, style, how):
    def authenticate(request):
        if how == "raised":
            raise Reject(402, "pay first")
        return Reject(402, "pay first") if how == "returned" else False

    hub = Hub(authenticate=in_style(style, authenticate))
    hub.add("/ws", diary.listener())
    answer = await refused(hub)
    wanted = (401, "Not authenticated.") if how == "False" else (402, "pay first")
    assert (answer.status, answer.text) == wanted
    assert diary == []
    await hub.stop()


async def test_the_anonymous_are_admitted_unless_a_user_is_required(diary):
    for require_user in (False, True):
        hub = Hub(authenticate=lambda request: request.query.get("who"), require_user=require_user)
        hub.add("/ws", diary.listener())
        async with hub.test_client("/ws?who=ana") as client:
            assert client.connection.user == "ana"
        if require_user:
            diary.clear()
            assert (await refused(hub)).status == 401
            assert (await refused(hub, user=None)).status == 401
            assert diary == []
        else:
            async with hub.test_client("/ws") as client:
                assert client.connection.user is None
        await hub.stop()


async def test_a_user_is_required_also_where_nothing_authenticates():
    hub = Hub(require_user=True)
    hub.add("/ws", Room)
    assert (await refused(hub)).status == 401
    await hub.stop()


async def test_on_handshake_sees_who_it_is(hub, style):
    seen = []
    kind = type("Door", (Listener,), {})

    def look(self, request):
        seen.append((request.user, request.identity, request.params["channel"], request.path))

    kind.on_handshake = in_style(style, look) if style != "def" else look
    hub.add("/ws/{channel}", kind)
    someone = SimpleNamespace(id="ana")
    async with hub.test_client("/ws/cars", user=someone):
        pass
    assert seen == [("ana", someone, "cars", "/ws/cars")]


# ── on_handshake ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["False", "returned", "raised"])
async def test_on_handshake_refuses_and_nothing_else_runs(hub, diary, style, how):
    def refuse(request):
        if how == "raised":
            raise Reject(418, "a teapot")
        return Reject(418, "a teapot") if how == "returned" else False

    hub.add("/ws/{channel}", diary.listener(style, on_handshake=refuse))
    answer = await refused(hub, "/ws/cars")
    assert (answer.status, answer.text) == (
        (403, "Refused.") if how == "False" else (418, "a teapot")
    )
    assert diary == ["on_handshake"]
    assert hub.health.connections == 0


async def test_who_is_refused_says_why_without_an_error_in_the_log(hub, caplog):
    class Door(Listener):
        def on_handshake(self, request):
            return Reject("no")

    hub.add("/ws", Door)
    answer = await refused(hub)
    assert (answer.status, answer.text) == (403, "no")
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


# ── when it fails ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["authenticate", "on_handshake"])
@pytest.mark.parametrize(
    "error", [ValueError("secret"), TimeoutError("secret"), KeyError("secret")]
)
async def test_a_failing_check_answers_500_with_an_error_id_that_stands_in_the_log(
    diary, style, where, error, caplog
):
    def fail(request):
        raise error

    hub = Hub(authenticate=in_style(style, fail) if where == "authenticate" else None)
    acts = {"on_handshake": fail} if where == "on_handshake" else {}
    hub.add("/ws", diary.listener(style, **acts))
    answer = await refused(hub)
    assert answer.status == 500
    (error_id,) = re.findall(r"error id (\w+)", answer.text)
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert error_id in record.getMessage()
    assert "secret" in record.getMessage()
    assert "/ws" in record.getMessage()
    assert record.exc_info[1] is error
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert diary[-1] == f"on_error {type(error).__name__}"
    assert diary.count_of("on_open") == 0
    await hub.stop()


async def test_with_debug_the_answer_has_the_traceback():
    def fail(request):
        raise ValueError("shown")

    hub = Hub(debug=True, authenticate=fail)
    hub.add("/ws", Room)
    answer = await refused(hub)
    assert "Traceback" in answer.text
    assert "ValueError: shown" in answer.text
    await hub.stop()


async def test_on_error_is_told_of_a_failing_handshake_without_a_connection(hub, style):
    told = []

    def fail(self, request):
        raise ValueError("boom")

    def on_error(self, ws, error):
        told.append((ws, str(error), threading.get_ident() == threading.main_thread().ident))

    kind = type("Door", (Listener,), {"on_handshake": fail, "on_error": in_style(style, on_error)})
    if style == "async def":

        async def waiting(self, ws, error):
            await asyncio.sleep(0)
            on_error(self, ws, error)

        kind.on_error = waiting
    elif style == "threaded":
        kind.on_error = threaded(on_error)
    hub.add("/ws", kind)
    assert (await refused(hub)).status == 500
    assert told == [(None, "boom", style != "threaded")]


async def test_an_on_error_that_raises_too_still_answers_500(hub, diary, style, caplog):
    def fail(*_):
        raise ValueError("boom")

    hub.add("/ws", diary.listener(style, on_handshake=fail, on_error=fail))
    answer = await refused(hub)
    (error_id,) = re.findall(r"error id (\w+)", answer.text)
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert all(error_id in line for line in errors)


@pytest.mark.parametrize("answer", [True, 1.5, ["ana"], SimpleNamespace(name="ana"), ""], ids=repr)
async def test_an_answer_that_names_nobody_fails_closed(answer):
    hub = Hub(authenticate=lambda request: answer)
    hub.add("/ws", Room)
    assert (await refused(hub)).status == 500
    await hub.stop()


@pytest.mark.parametrize("where", ["authenticate", "on_handshake"])
async def test_a_check_that_takes_too_long_answers_503(diary, where, caplog):
    cancelled = []

    async def hang(request):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(where)

    hub = Hub(handshake_timeout=0.02, authenticate=hang if where == "authenticate" else None)
    acts = {"on_handshake": hang} if where == "on_handshake" else {}
    hub.add("/ws", diary.listener("async def", **acts))
    answer = await asyncio.wait_for(refused(hub), 2)
    assert answer.status == 503
    assert cancelled == [where]
    assert any("handshake_timeout=0.02" in r.getMessage() for r in caplog.records)
    assert diary.count_of("on_open") == 0
    await hub.stop()


@pytest.mark.parametrize("where", ["authenticate", "on_handshake"])
async def test_a_check_that_awaits_something_cancelled_answers_500(diary, where):
    async def cancelled(request):
        gone = asyncio.get_running_loop().create_future()
        gone.cancel()
        await gone

    hub = Hub(authenticate=cancelled if where == "authenticate" else None)
    acts = {"on_handshake": cancelled} if where == "on_handshake" else {}
    hub.add("/ws", diary.listener("async def", **acts))
    assert (await refused(hub)).status == 500
    await hub.stop()


async def test_a_client_that_gives_up_during_the_handshake_leaves_nothing_behind(hub, diary):
    began, cancelled = asyncio.Event(), []

    async def hang(request):
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    hub.add("/ws", diary.listener("async def", on_handshake=hang))
    connecting = asyncio.create_task(hub.test_client("/ws").connect())
    await began.wait()
    connecting.cancel()
    await asyncio.wait({connecting})
    assert connecting.cancelled()
    assert cancelled == [1]
    assert diary == ["on_handshake"]


@pytest.mark.parametrize("style", ["def", "async def"])
@pytest.mark.parametrize("where", ["authenticate", "on_handshake"])
async def test_a_check_that_holds_the_loop_is_named(where, style, caplog):
    def block(*_):
        time.sleep(0.03)

    async def block_later(*_):
        await asyncio.sleep(0)
        time.sleep(0.03)  # noqa: ASYNC251 - what must not be done

    check = block if style == "def" else block_later
    hub = Hub(authenticate=check if where == "authenticate" else None)
    acts = {"on_handshake": check} if where == "on_handshake" else {}
    hub.add("/ws", type("Door", (Listener,), acts))
    async with hub.test_client("/ws"):
        lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    name = "Door.on_handshake" if where == "on_handshake" else check.__qualname__
    place = f"{Path(__file__).name}:{check.__code__.co_firstlineno}"
    assert any(name in line and place in line for line in lines)
    await hub.stop()


# ── origin and path ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("origin", "comes_in"),
    [
        ("http://testserver", True),
        ("http://testserver:80", True),
        ("http://evil.example", False),
        ("http://testserver.evil.example", False),
        ("null", False),
        (None, True),
    ],
)
async def test_a_browsers_page_must_be_of_the_same_origin(hub, origin, comes_in, caplog):
    hub.add("/ws", Room)
    headers = {"origin": origin} if origin else {}
    if comes_in:
        async with hub.test_client("/ws", headers=headers) as client:
            assert client.connection.is_open
    else:
        answer = await refused(hub, headers=headers)
        assert answer.status == 403
        assert "allowed_origins" in answer.text
        (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert repr(origin) in line
        assert "'testserver'" in line
        assert "allowed_origins=" in line


async def test_allowed_origins_add_to_the_pages_own():
    hub = Hub(allowed_origins=["https://app.example.com", "https://*.example.org"])
    hub.add("/ws", Room)
    for origin in ("https://app.example.com", "https://a.b.example.org", "http://testserver"):
        async with hub.test_client("/ws", headers={"origin": origin}) as client:
            assert client.connection.is_open
    for origin in ("https://other.example.com", "http://app.example.com", "https://example.org"):
        assert (await refused(hub, headers={"origin": origin})).status == 403
    await hub.stop()


async def test_a_refused_origin_asks_nobody(diary):
    asked = []
    hub = Hub(authenticate=lambda request: asked.append(1))
    hub.add("/ws", diary.listener())
    await refused(hub, headers={"origin": "http://evil.example"})
    assert (asked, diary) == ([], [])
    await hub.stop()


async def test_an_unknown_path_answers_404_and_names_the_nearest(hub):
    hub.add("/ws/chat/{channel}", Room)
    answer = await refused(hub, "/ws/chat")
    assert answer.status == 404
    assert "/ws/chat/{channel}" in answer.text


async def knock(hub, path, mount="", headers=()):
    """Ask for a WebSocket as an ASGI server does, below a mount; return what it is to answer."""
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(event):
        sent.append(event)

    scope = {
        "type": "websocket", "path": mount + path, "root_path": mount, "headers": headers,
        "query_string": b"token=secret", "client": ("127.0.0.1", 5123),
        "extensions": {"websocket.http.response": {}},
    }  # fmt: skip
    await hub(scope, receive, send)
    return sent


@pytest.mark.parametrize("mount", ["", "/live"])
async def test_an_unknown_path_is_logged_with_those_that_are_known(hub, caplog, mount):
    hub.add("/ws/chat/{channel}", Room)
    hub.add("/ws/echo", lambda ws, message: None)
    with caplog.at_level(logging.INFO, "backchannel"):
        sent = await knock(hub, "/ws/eccho", mount)
    assert sent[0]["status"] == 404
    (line,) = lines_of(caplog, logging.INFO, "backchannel.handshake")
    assert line == (
        f"refused '{mount}/ws/eccho' from 127.0.0.1:5123 with 404: no endpoint has this URL; the "
        f"nearest are {mount}/ws/echo, {mount}/ws/chat/{{channel}}"
    )


async def test_a_foreign_origin_is_logged_with_the_path_that_was_asked_for(hub, caplog):
    hub.add("/ws/echo", Room)
    headers = [(b"host", b"a.example"), (b"origin", b"https://b.example")]
    sent = await knock(hub, "/ws/echo", "/live", headers)
    assert sent[0]["status"] == 403
    (line,) = lines_of(caplog, logging.WARNING, "backchannel.handshake")
    assert line.startswith("refused '/live/ws/echo' from 127.0.0.1:5123: its Origin")


async def test_an_unknown_path_is_logged_for_the_test_client_too(hub, caplog):
    hub.add("/ws/echo", Room)
    with caplog.at_level(logging.INFO, "backchannel"):
        await refused(hub, "/ws/eccho?token=secret")
    (line,) = lines_of(caplog, logging.INFO, "backchannel.handshake")
    assert re.fullmatch(r"refused '/ws/eccho' from \S+ with 404: no endpoint .* are /ws/echo", line)


async def test_an_unknown_path_can_make_up_no_line_and_a_hub_without_endpoints_says_so(hub, caplog):
    with caplog.at_level(logging.INFO, "backchannel"):
        await knock(hub, "/ws/\nERROR made up/" + "x" * 500)
    (line,) = lines_of(caplog, logging.INFO, "backchannel.handshake")
    assert "\n" not in line
    assert len(line) < 400
    assert line.endswith("with 404: no endpoint has this URL; this hub has none yet")


@pytest.mark.parametrize("name", ["%24presence", "a" * 256, "%0a"])
async def test_a_url_whose_channel_can_not_be_answers_400(hub, diary, name):
    hub.add("/ws/{channel}", diary.listener())
    answer = await refused(hub, f"/ws/{name}")
    assert answer.status == 400
    assert "channel name" in answer.text
    assert diary.count_of("on_open") == 0
