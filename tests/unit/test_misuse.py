"""What is written wrongly is answered in public words: which call, what was wrong, what was meant."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from shared import Room, lines_of

from backchannel import Connection, Hub, Listener, Reject, event, threaded
from backchannel.auth import JWT
from backchannel.errors import ListenerError
from backchannel.testing import HandshakeRefused


def may(ws):
    return True


OPTIONS = {
    "a setting of the hub": ({"require_user": True}, r"require_user= is a setting of the hub, for all its endpoints: Hub\(require_user=…\)"),
    "a setting, misspelt": ({"allowed_origin": "x"}, r"did you mean allowed_origins= of the hub"),
    "misspelt": ({"idletimeout": 3}, "did you mean idle_timeout="),
    "nothing of the kind": ({"colour": 3}, "known are channel=, share_channels=, tag=, subprotocols="),
    "ours": ({"callbacks": 3}, "has no option callbacks="),
}  # fmt: skip


@pytest.mark.parametrize(("options", "said"), OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda hub, options: hub.add("/ws", Room, **options), "hub.add"),
        (lambda hub, options: hub.endpoint("/ws", **options)(Room), "hub.endpoint"),
    ],
    ids=["add", "endpoint"],
)
def test_an_option_that_endpoints_do_not_have_is_explained(hub, options, said, call, name):
    with pytest.raises(TypeError, match=said) as error:
        call(hub, options)
    assert str(error.value).startswith(f"{name} has no option {next(iter(options))}=")
    assert "'/ws'" in str(error.value)
    assert hub.endpoints.get("/ws") is None


async def test_hub_serve_explains_its_options_too(hub):
    class Socket:
        scope = MappingProxyType({"type": "websocket", "path": "/ws", "headers": []})

    with pytest.raises(
        TypeError, match=r"hub\.serve has no option idle_timout=.*mean idle_timeout="
    ):
        await hub.serve(Socket(), Room, idle_timout=3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda hub: hub.rule("x", may), r"say what it is for: hub.rule\('x', subscribe=may\) or publish="),
        (lambda hub: hub.rule("x", may, may), "say what it is for"),
        (lambda hub: hub.rule("x", subscibe=may), "hub.rule has no subscibe=; did you mean subscribe="),
        (lambda hub: hub.rule("x", on_publish=may), "hub.rule has no on_publish=; did you mean publish="),
        (lambda hub: hub.rule("x", users=may), "hub.rule has no users=; it has subscribe= and publish="),
    ],
)  # fmt: skip
def test_a_rule_that_is_written_another_way_is_explained(hub, call, said):
    with pytest.raises(TypeError, match=said):
        call(hub)
    assert not hub.rules.some


@pytest.mark.parametrize(
    "call",
    [
        lambda hub: hub.endpoint("/ws", "cars"),
        lambda hub: hub.add("/ws"),
        lambda hub: hub.rule(),
        lambda hub: hub.broadcast("cars"),
        lambda hub: hub.broadcast("cars", "hi", too=[]),
        lambda hub: hub.channel(),
        lambda hub: hub.ticket(),
    ],
)
def test_no_internal_name_is_in_an_error_of_a_call(hub, call):
    with pytest.raises(TypeError, match=r"^Hub\.\w+\(\)"):
        call(hub)


# ── rules that guard nothing ──────────────────────────────────────────────────────────────────


def doors(*endpoints):
    hub = Hub()
    for url, channel in endpoints:
        hub.add(url, type("Door", (Room,), {}), channel=channel)
    return hub


@pytest.mark.parametrize(
    ("rule", "endpoint", "meant"),
    [
        ("rooms:{id}", ("/ws/{id}", "room:{id}"), "room:{id}"),
        ("room-{id}", ("/ws/{id}", "room:{id}"), "room:{id}"),
        ("Room:{id}", ("/ws/{id}", "room:{id}"), "room:{id}"),
        ("loby", ("/ws", "lobby"), "lobby"),
    ],
)
async def test_a_rule_beside_the_channels_that_it_was_probably_meant_for_is_named_at_the_start(
    caplog, rule, endpoint, meant
):
    hub = doors(endpoint)
    hub.rule(rule, subscribe=may)
    await hub.start()
    (line,) = lines_of(caplog, logging.WARNING, "backchannel.hub")
    assert line.startswith(f"rule {rule!r} (")
    assert Path(__file__).name in line
    assert f"did you mean {meant!r}" in line
    assert repr(endpoint[0]) in line
    caplog.clear()
    await hub.start()  # it runs already
    assert lines_of(caplog, logging.WARNING) == []
    await hub.stop()


@pytest.mark.parametrize(
    ("rules", "endpoints"),
    [
        (["rooms:{id}"], [("/ws/{channel}", None)]),  # any name
        (["rooms:{id}"], []),  # ws.subscribe may use any name
        (["user:{id}"], [("/ws/{id}", "room:{id}")]),
        (["a:{id}"], [("/ws/{id}", "b:{id}")]),
        (["room:{id}"], [("/ws/{id}", "room:{id}")]),
        (["room:{id}"], [("/ws/{kind}/{id}", "{kind}:{id}")]),
        (["room:{id}", "rooms:{id}"], [("/ws/{id}", "room:{id}")]),  # that one has a rule
        (["room:x{id}", "rooms:{id}"], [("/ws/{id}", "room:{id}")]),  # and here in part
    ],
)
async def test_a_rule_that_may_be_meant_as_it_is_gets_no_warning(caplog, rules, endpoints):
    hub = doors(*endpoints)
    for rule in rules:
        hub.rule(rule, subscribe=may)
    await hub.start()
    assert lines_of(caplog, logging.WARNING) == []
    await hub.stop()


async def test_with_casefold_channels_case_is_no_mistake(caplog):
    hub = Hub(casefold_channels=True)
    hub.add("/ws/{id}", Room, channel="room:{id}")
    hub.rule("Room:{id}", subscribe=may)
    await hub.start()
    assert lines_of(caplog, logging.WARNING) == []
    await hub.stop()


# ── who is refused stands in the log ──────────────────────────────────────────────────────────

SECRET = "a secret for tests that is long enough for HS256"


def refuse(request):
    raise Reject(402, "Pay first.")


@pytest.mark.parametrize(
    ("settings", "listener", "headers", "said"),
    [
        ({"require_user": True}, Room, {}, "401 by require_user: 'Not authenticated.'"),
        ({"authenticate": lambda r: False}, Room, {}, "401 by authenticate: 'Not authenticated.'"),
        ({"authenticate": refuse}, Room, {}, "402 by authenticate: 'Pay first.'"),
        ({"authenticate": JWT(SECRET, ["HS256"])}, Room, {"authorization": "Bearer secret.of.mine"},
         "401 by authenticate: 'The token is malformed.'"),
        ({}, type("No", (Room,), {"on_handshake": lambda self, request: False}), {},
         "403 by on_handshake: 'Refused.'"),
    ],
)  # fmt: skip
async def test_a_refused_handshake_is_logged_with_its_reason(
    caplog, settings, listener, headers, said
):
    hub = Hub(**settings)
    hub.add("/ws/me", listener)
    with caplog.at_level(logging.INFO, "backchannel"), pytest.raises(HandshakeRefused):
        await hub.test_client("/ws/me?key=secret", headers=headers).connect()
    (line,) = lines_of(caplog, logging.INFO, "backchannel.handshake")
    assert re.fullmatch(rf"refused '/ws/me' from \S+ with {re.escape(said)}", line), line
    await hub.stop()


async def test_a_refused_ticket_is_logged_without_it(caplog, hub):
    hub.add("/ws/me", Room)
    with caplog.at_level(logging.INFO, "backchannel"), pytest.raises(HandshakeRefused):
        await hub.test_client("/ws/me?ticket=bct_" + "x" * 43).connect()
    (line,) = lines_of(caplog, logging.INFO, "backchannel.handshake")
    assert "with 401 by its ticket: 'The ticket is not valid" in line
    assert "bct_" not in line


# ── what has to be awaited is no answer by itself ─────────────────────────────────────────────

NO_ANSWER = {
    "subscribe": (lambda hub, ws: ws.subscribe("boats"), "`if await ws.subscribe(…):`"),
    "subscribe to where it is": (lambda hub, ws: ws.subscribe("cars"), "await it first"),
    "unsubscribe": (lambda hub, ws: ws.unsubscribe("boats"), "await it first"),
    "others": (lambda hub, ws: hub.everyone.subscribe("boats"), ".subscribe(…)).reached:`"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "said"), NO_ANSWER.values(), ids=NO_ANSWER)
async def test_what_was_not_awaited_is_neither_true_nor_false(hub, call, said):
    seen = asyncio.Queue()

    class Door(Room):
        async def on_message(self, ws, message):
            result = call(hub, ws)
            try:
                seen.put_nowait(bool(result))
            except TypeError as error:
                seen.put_nowait(str(error))
            await result

    hub.add("/ws/{channel}", Door)
    async with hub.test_client("/ws/cars", user="ana") as ws, asyncio.timeout(5):
        await ws.send("go")
        assert said in await seen.get()


async def test_what_was_awaited_says_so(hub):
    said = []

    class Door(Room):
        async def on_message(self, ws, message):
            said.append(await ws.subscribe("boats"))
            said.append((await hub.everyone.unsubscribe("boats")).reached)
            said.append((await hub.broadcast("boats", "hi")).reached)
            return "done"

    hub.add("/ws/{channel}", Door)
    async with hub.test_client("/ws/cars") as ws:
        await ws.send("go")
        assert await ws.receive(timeout=5) == "done"
    assert said == [True, 1, 0]


# ── decorators that are written another way ───────────────────────────────────────────────────

MEMBERS = ["on_join", "on_leave"]
USERS = ["on_user_online", "on_user_offline"]


@pytest.mark.parametrize("name", [*MEMBERS, *USERS])
@pytest.mark.parametrize("given", [(), ("greet",), (None,), (3,)])
def test_a_decorator_without_a_function_says_how_it_is_written(hub, name, given):
    takes = "channel, user" if name in MEMBERS else "user"
    with pytest.raises(ListenerError, match=rf"^hub\.{name} takes a function") as error:
        getattr(hub, name)(*given)
    said = f"put @hub.{name}, without parentheses, above a function that takes ({takes})"
    assert said in str(error.value)


@pytest.mark.parametrize("name", USERS)
def test_a_callback_of_users_that_takes_something_else_is_refused(hub, name):
    with pytest.raises(ListenerError, match=rf"hub\.{name} calls greet\(user\), which it can't"):

        @getattr(hub, name)
        def greet(): ...


@pytest.mark.parametrize("given", [(), ("blocking",), (None,), (3,)])
def test_threaded_without_a_function_says_how_it_is_written(given):
    with pytest.raises(TypeError, match="put @threaded, without parentheses, above a blocking def"):
        threaded(*given)


def test_event_without_a_type_says_how_it_is_written():
    with pytest.raises(TypeError, match=r"@event takes the message type, as in @event\(.typing.\)"):
        event()


@pytest.mark.parametrize("target", [3, None, "typing", Room, ("a", "b")])
def test_event_above_something_else_says_where_it_goes(target):
    with pytest.raises(
        TypeError, match=r"^@event\('say'\) goes above a method \(self, ws, message\)"
    ):
        event("say")(target)


@dataclass
class Said:
    text: str


def by_dict(self, message: dict): ...
def by_struct(self, said: Said): ...
def by_text(self, text: "str"): ...  # noqa: UP037 - as with `from __future__ import annotations`
def by_name(self, message): ...
def by_another(self, data): ...


@pytest.mark.parametrize("method", [by_dict, by_struct, by_text, by_name, by_another])
def test_an_event_method_without_ws_is_refused_where_it_is_bound(hub, method):
    chat = type("Chat", (Listener,), {"say": event("say")(method)})
    with pytest.raises(ListenerError) as error:
        hub.add("/ws", chat)
    assert str(error.value).startswith("Chat.say (")
    assert Path(__file__).name in str(error.value)
    assert "has no ws: it must take (ws, message), or (ws) alone" in str(error.value)


def by_connection(self, connection: Connection): ...
def by_nothing(self, _): ...
def by_socket(self, socket): ...
def by_any(self, client: Any): ...
def by_unknown(self, ws: Unheard): ...  # noqa: F821 - imported for type checkers only


@pytest.mark.parametrize("method", [by_connection, by_nothing, by_socket, by_any, by_unknown])
def test_an_event_method_may_call_its_ws_as_it_likes(hub, method):
    hub.add("/ws", type("Chat", (Listener,), {"say": event("say")(method)}))
    assert set(hub.endpoints.get("/ws").callbacks.events) == {"say"}


@pytest.mark.parametrize("name", ["say", "on_message", "on_lost"])
def test_a_method_without_self_is_named(hub, name):
    def method(): ...

    chat = type("Chat", (Listener,), {name: event("say")(method) if name == "say" else method})
    with pytest.raises(ListenerError, match=rf"Chat\.{name} \(.*signature can't be read"):
        hub.add("/ws", chat)
