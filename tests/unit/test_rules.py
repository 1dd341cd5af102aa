"""Rules by channel pattern: what may be registered, which of them holds, and who is let in."""

# ruff: noqa: A002, A006 - {id} is what patterns say

from __future__ import annotations

import asyncio
import functools
import logging

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from backchannel import Hub, Listener, ListenerError, Reject, TemplateError, threaded


def admitting(log=None):
    return lambda ws, channel: None if log is None else log.append((ws.user, channel))


def in_style(style, decide):
    """Return a rule's callable that decides in one of the ways that one can be written."""
    if style == "async def":

        async def ask(ws, channel):
            await asyncio.sleep(0)
            return decide(ws, channel)

    elif style == "threaded":

        @threaded
        def ask(ws, channel):
            return decide(ws, channel)

    elif style == "coroutine":

        async def later(ws, channel):
            await asyncio.sleep(0)
            return decide(ws, channel)

        def ask(ws, channel):
            return later(ws, channel)

    else:

        def ask(ws, channel):
            return decide(ws, channel)

    return ask


RULES = pytest.mark.parametrize("kind", ["def", "async def", "threaded", "coroutine"])


def refusals(how):
    def refuse(*_):
        if how == "False":
            return False
        if how == "returned":
            return Reject(403, "members only")
        if how == "raised":
            raise Reject("members only")
        raise ValueError("boom")

    return refuse


HOWS = pytest.mark.parametrize("how", ["False", "returned", "raised", "failed"])


def only_ana(ws, channel):
    return ws.user == "ana"


# ── what may be registered ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "pattern", ["lobby", "{x}", "{channel}", "thread:{id}", "a{x}b{y}", "{{}}"]
)
@pytest.mark.parametrize("what", ["subscribe", "publish"])
def test_a_rule_is_for_a_pattern_of_names(pattern, what):
    Hub().rule(pattern, **{what: only_ana})


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("thread:{id", ["rule 'thread:{id' is malformed"]),
        ("thread:{}", ["rule 'thread:{}'", "{} is no name for a variable", "{id}"]),
        ("thread:{0}", ["{0} is no name"]),
        ("{a.b}", ["{a.b} is no name"]),
        ("{id:int}", ["rule '{id:int}'", "the name alone"]),
        ("{id!r}", ["the name alone"]),
        ("{a}:{a}", ["the variable {a} twice"]),
        ("room:*", ["rule 'room:*'", "'*' would be taken literally", "written {name}"]),
        ("*", ["'*' would be taken literally"]),
        ("room:<id>", ["'<id>' would be taken literally", "written {id}"]),
        ("room:<int:id>:{user}", ["'<int:id>' would be taken literally", "written {id}"]),
        ("", ["rule '' fits no channel", "empty"]),
        ("$all", ["fits no channel", "Backchannel's own"]),
        ("a\n{x}", ["fits no channel", "control character"]),
        ("x" * 255 + "{a}", ["fits no channel", "256 bytes"]),
        ("user:{ws}", ["gets the connection as 'ws'", "another name"]),
        ("admin:{channel}", ["gets the whole name as 'channel'", "another name"]),
    ],
)
def test_a_pattern_that_is_none_is_refused_with_what_is_wrong_in_it(pattern, words):
    with pytest.raises(TemplateError) as caught:
        Hub().rule(pattern, subscribe=only_ana)
    for word in words:
        assert word in str(caught.value)


def test_a_pattern_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match=r'as in hub.rule\("thread:\{id\}", …\), not 5'):
        Hub().rule(5, subscribe=only_ana)


def test_the_same_channels_have_one_rule_and_the_error_names_both_places():
    hub = Hub()
    hub.rule("thread:{id}", subscribe=only_ana)
    with pytest.raises(TemplateError) as caught:
        hub.rule("thread:{number}", publish=only_ana)
    text = str(caught.value)
    assert "'thread:{id}' (" in text
    assert "'thread:{number}' (" in text
    assert text.count("test_rules.py:") == 2
    assert "one rule for each pattern" in text


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("ab:{x}", "{y}:cd", "ab:cd"),
        ("a{x}", "{x}a", "aa"),
        ("{x}", "{x}{y}", "xx"),
        ("a:{x}b", "a:{x}{y}b", "a:xxb"),
    ],
)
def test_two_rules_of_which_neither_is_the_more_specific_are_refused(first, second, name):
    hub = Hub()
    hub.rule(first, subscribe=only_ana)
    with pytest.raises(TemplateError, match="neither is the more specific") as caught:
        hub.rule(second, subscribe=only_ana)
    text = str(caught.value)
    assert text.count("test_rules.py:") == 2
    assert repr(name) in text
    assert [rule.pattern.text for rule in hub.rules] == [first]


@pytest.mark.parametrize(
    ("first", "second"),
    [("ab{x}", "cd{x}"), ("a", "b"), ("{x}a", "{x}b"), ("a{x}b", "a{x}c"), ("aa", "a{x}b")],
)
def test_as_specific_rules_that_fit_no_common_name_are_fine(first, second):
    hub = Hub()
    hub.rule(first, subscribe=only_ana)
    hub.rule(second, subscribe=only_ana)
    assert len(list(hub.rules)) == 2


def test_ignoring_case_makes_two_rules_one():
    hub = Hub(casefold_channels=True)
    hub.rule("Thread:{id}", subscribe=only_ana)
    with pytest.raises(TemplateError, match="for the same channels"):
        hub.rule("thread:{id}", subscribe=only_ana)


class Policy:
    def may(self, ws, id):
        return ws.user == id

    def __call__(self, ws):
        return ws.user == "7"


@pytest.mark.parametrize(
    "function",
    [
        lambda ws: ws.user == "7",
        lambda ws, id: ws.user == id,
        lambda ws, channel: channel == f"thread:{ws.user}",
        lambda ws, id, channel: channel == f"thread:{id}" and ws.user == id,
        lambda connection, *, id: connection.user == id,
        lambda ws, id, suffix="": ws.user == id + suffix,
        lambda ws, **names: names == {"channel": "thread:7", "id": "7"} and ws.user == "7",
        lambda *arguments, id: arguments[0].user == id,
        functools.partial(lambda users, ws, id: ws.user in users and ws.user == id, ["7", "8"]),
        functools.partial(lambda ws, id, db: ws.user == id and db == "db", db="db"),
        Policy().may,
        Policy(),
    ],
)
async def test_what_is_asked_gets_the_connection_and_by_name_what_it_names(hub, function):
    hub.rule("thread:{id}", subscribe=function)
    hub.add("/ws", Listener())
    async with hub.test_client("/ws", user="7") as seven, hub.test_client("/ws", user="8") as eight:
        assert await seven.connection.subscribe("thread:7") is True
        assert await eight.connection.subscribe("thread:7") is False


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: None, ["must take (ws), but takes ()"]),
        (lambda ws, thread: None, ["'thread'", "rules do not know", "channel, id"]),
        (lambda ws, *, thread: None, ["'thread'", "rules do not know"]),
        (lambda id: None, ["must take (ws, id), but takes (id)", "multiple values"]),
        (lambda channel, ws: None, ["'ws'", "rules do not know"]),
        (lambda channel, id: None, ["but takes (channel, id)", "multiple values"]),
        (lambda ws, channel, /: None, ["must take (ws, channel)", "positional"]),
        ("may_see", ["takes a function that is asked, not 'may_see'"]),
        (True, ["takes a function that is asked, not True"]),
        (Policy, ["takes a function that is asked, not <class"]),
    ],
)
@pytest.mark.parametrize("what", ["subscribe", "publish"])
def test_what_can_not_be_asked_is_refused_at_registration(function, words, what):
    hub = Hub()
    with pytest.raises(ListenerError) as caught:
        hub.rule("thread:{id}", **{what: function})
    for word in [f"{what}= of rule 'thread:{{id}}'", *words]:
        assert word in str(caught.value)
    assert list(hub.rules) == []


def test_a_rule_with_a_yield_would_never_run_and_is_refused():
    def ask(ws):
        yield True

    with pytest.raises(ListenerError, match=r"subscribe= of rule 'x' \(.*test_rules.py.* yield"):
        Hub().rule("x", subscribe=ask)


# ── the most specific one holds ───────────────────────────────────────────────────────────────


async def test_the_most_specific_rule_alone_decides_whatever_the_order(hub):
    asked = []
    for pattern in ["{x}", "thread:private", "thread:{id}", "{x}:{y}"]:
        hub.rule(pattern, subscribe=lambda ws, channel, pattern=pattern: asked.append(pattern))
    hub.add("/ws", Listener())
    async with hub.test_client("/ws") as ws:
        for name in ["thread:private", "thread:7", "thread:", "a:b", "cars"]:
            assert await ws.connection.subscribe(name) is True
    assert asked == ["thread:private", "thread:{id}", "{x}", "{x}:{y}", "{x}"]


async def test_a_more_specific_rule_opens_what_a_wider_one_closes(hub):
    hub.rule("{anything}", subscribe=lambda ws: False)
    hub.rule("public:{x}")
    hub.add("/ws", Listener())
    async with hub.test_client("/ws") as ws:
        assert await ws.connection.subscribe("public:x") is True
        assert await ws.connection.subscribe("private:x") is False


LITERALS = st.text("ab:", max_size=3)


@st.composite
def patterns(draw):
    """Draw a pattern as its literal parts; between two of them is a variable."""
    parts = draw(st.lists(LITERALS, min_size=1, max_size=4))
    return parts if parts != [""] else ["a"]


def written(parts):
    return "".join(part + f"{{v{i}}}" for i, part in enumerate(parts[:-1])) + parts[-1]


def fits(parts, name):
    """Tell by trying everything whether a name is these literals with something between them."""
    if not parts:
        return name == ""
    if not name.startswith(parts[0]):
        return False
    rest = name[len(parts[0]) :]
    if len(parts) == 1:
        return rest == ""
    return any(fits(parts[1:], rest[cut:]) for cut in range(1, len(rest) + 1))


@given(st.lists(patterns(), max_size=5), st.lists(st.text("ab:", min_size=1, max_size=8)))
@example([["a:", ""], ["", ":b"]], ["a::b"])
@example([["", "", ""], ["", ""]], ["aa", "a"])
def test_the_most_specific_rule_that_fits_is_found_and_there_is_never_a_tie(chosen, names):
    hub, accepted = Hub(), []
    for parts in chosen:
        try:
            hub.rule(written(parts), subscribe=only_ana)
        except TemplateError:
            rivals = [p for p in accepted if sum(map(len, p)) == sum(map(len, parts))]
            assert rivals
        else:
            accepted.append(parts)
    for name in names:
        fitting = sorted((sum(map(len, p)), p) for p in accepted if fits(p, name))
        found = hub.rules.find(name)
        assert (found and found.pattern.text) == (written(fitting[-1][1]) if fitting else None)
        assert len({length for length, _ in fitting}) == len(fitting)
        assert hub.rules.find(name) is found  # from what is kept


@given(patterns(), patterns(), st.text("ab:", min_size=1, max_size=8))
def test_two_rules_are_refused_only_when_there_is_a_name_that_both_fit(one, two, name):
    hub = Hub()
    hub.rule(written(one), subscribe=only_ana)
    try:
        hub.rule(written(two), subscribe=only_ana)
    except TemplateError as error:
        if one != two:
            shared = str(error).partition("a channel such as '")[2].partition("'")[0]
            assert fits(one, shared)
            assert fits(two, shared)
    else:
        same = sum(map(len, one)) == sum(map(len, two))
        assert not (same and fits(one, name) and fits(two, name))


@given(st.lists(LITERALS, min_size=1, max_size=4), st.data())
def test_the_variables_of_a_name_make_that_name_again(parts, data):
    assume(parts != [""])
    got = []
    hub = Hub()
    hub.rule(written(parts), subscribe=lambda ws, **names: got.append(names))
    values = [data.draw(st.text("ab:", min_size=1, max_size=3)) for _ in parts[:-1]]
    name = "".join(map("".join, zip(parts, [*values, ""], strict=True)))
    hub.rules.asking(name).function(None, name)
    assert got[0].pop("channel") == name
    made = written(parts).format(**got[0])
    assert made == name
    assert all(got[0].values())


def test_names_that_clients_choose_neither_fill_the_memory_nor_take_long():
    hub = Hub()
    hub.rule("{a}:{b}:{c}:{d}:{e}!", subscribe=only_ana)
    for number in range(10_000):
        assert hub.rules.find(f"{number}" + ":" * 250) is None
    assert len(hub.rules._found) <= 4096


# ── every way in ──────────────────────────────────────────────────────────────────────────────


@RULES
async def test_ws_subscribe_asks_the_rule(hub, diary, style, kind):
    hub.rule("thread:{id}", subscribe=in_style(kind, only_ana))
    hub.add("/ws", diary.listener(style))
    async with hub.test_client("/ws", user="ana") as ana, hub.test_client("/ws", user="bob") as bob:
        assert await ana.connection.subscribe("thread:7") is True
        assert await bob.connection.subscribe("thread:7") is False
        assert bob.connection.is_open
        assert await bob.connection.subscribe("cars") is True
        assert hub.channels() == {"thread:7": 1, "cars": 1}
        assert await ana.connection.unsubscribe("thread:7") is True
    assert diary.only("on_subscribe") == ["on_subscribe thread:7", "on_subscribe cars"]


@RULES
async def test_a_listener_that_subscribes_inside_a_callback_is_answered_there(hub, style, kind):
    class Chat(Listener):
        if style == "threaded":

            @threaded
            def on_message(self, ws, message):
                return ws.subscribe("thread:7").result(5)

        else:

            async def on_message(self, ws, message):
                return await ws.subscribe("thread:7")

    hub.rule("thread:{id}", subscribe=in_style(kind, only_ana))
    hub.add("/ws", Chat)
    async with hub.test_client("/ws", user="ana") as ana, hub.test_client("/ws", user="bob") as bob:
        await ana.send("go")
        await bob.send("go")
        assert await ana.receive_json() is True
        assert await bob.receive_json() is False
        assert await hub.channel("thread:7").users() == ["ana"]


@RULES
async def test_an_audience_that_is_subscribed_is_asked_about_one_by_one(hub, diary, style, kind):
    hub.rule("thread:{id}", subscribe=in_style(kind, only_ana))
    hub.add("/ws", diary.listener(style))
    async with hub.test_client("/ws", user="ana"), hub.test_client("/ws", user="bob"):
        assert (await hub.everyone.subscribe("thread:7")).reached == 1
        assert await hub.channel("thread:7").users() == ["ana"]


@RULES
async def test_subscribing_from_a_thread_asks_the_rule(hub, diary, style, kind):
    hub.rule("thread:{id}", subscribe=in_style(kind, only_ana))
    hub.add("/ws", diary.listener(style))
    async with hub.test_client("/ws", user="ana") as ana, hub.test_client("/ws", user="bob") as bob:

        def work():
            changes = [c.connection.subscribe("thread:7") for c in (ana, bob)]
            return [change.result(5) for change in changes]

        assert await asyncio.to_thread(work) == [True, False]


@RULES
@HOWS
async def test_a_url_that_leads_where_a_rule_refuses_is_closed_with_1008(
    hub, diary, style, kind, how
):
    hub.rule("thread:{id}", subscribe=in_style(kind, refusals(how)))
    hub.add("/ws/{id}", diary.listener(style), channel="thread:{id}")
    ws = await hub.test_client("/ws/7").connect()
    text = "members only" if how in {"returned", "raised"} else "subscription to 'thread:7' refused"
    assert (ws.closed.code, ws.closed.reason) == (1008, text)
    assert hub.channels() == {}
    assert diary.count_of("on_subscribe") == diary.count_of("on_channel_open") == 0
    assert diary.count_of("on_close") == 1
    assert diary.count_of("on_error") == (how == "failed")


async def test_a_route_of_a_framework_asks_the_rule_too(hub):
    hub.rule("thread:{id}", subscribe=only_ana)
    sent, first, closed = [], [{"type": "websocket.connect"}], asyncio.Event()

    class Socket:
        scope = {"type": "websocket", "path": "/t/7", "headers": [], "query_string": b""}  # noqa: RUF012

        async def receive(self):
            if first:
                return first.pop()
            await closed.wait()
            return {"type": "websocket.disconnect", "code": 1008}

        async def send(self, message):
            sent.append(message)
            if message["type"] == "websocket.close":
                closed.set()

    options = {"channel": "thread:{id}", "params": {"id": "7"}, "user": "bob"}
    await asyncio.wait_for(hub.serve(Socket(), Listener, **options), 5)
    assert [(m["type"], m.get("code")) for m in sent] == [
        ("websocket.accept", None),
        ("websocket.close", 1008),
    ]


async def test_the_rule_is_asked_first_and_both_must_admit(hub, diary, style):
    def asked(ws, channel):
        diary.append(f"rule {channel}")
        return channel != "thread:7"

    hub.rule("thread:{id}", subscribe=asked)
    hub.add("/ws", diary.listener(style, on_subscribe=lambda ws, channel: channel != "thread:8"))
    async with hub.test_client("/ws") as ws:
        answers = [await ws.connection.subscribe(f"thread:{number}") for number in (7, 8, 9)]
    assert answers == [False, False, True]
    assert [
        entry for entry in diary if entry.startswith(("rule", "on_sub", "on_channel_open"))
    ] == [
        "rule thread:7",
        "rule thread:8",
        "on_channel_open thread:8",
        "on_subscribe thread:8",
        "rule thread:9",
        "on_channel_open thread:9",
        "on_subscribe thread:9",
    ]


@RULES
async def test_who_is_in_a_channel_is_not_asked_about_it_again(hub, kind):
    asked = []
    hub.rule("{x}", subscribe=in_style(kind, admitting(asked)))
    hub.add("/ws/{channel}", Listener())
    async with hub.test_client("/ws/cars", user="ana") as ws:
        assert await ws.connection.subscribe("cars") is True
        assert (await hub.everyone.subscribe("cars")).reached == 1
    assert asked == [("ana", "cars")]


@RULES
@HOWS
async def test_a_later_refusal_keeps_the_connection_and_is_logged_when_it_raised(
    hub, diary, style, kind, how, caplog
):
    hub.rule("thread:{id}", subscribe=in_style(kind, refusals(how)))
    hub.add("/ws", diary.listener(style))
    async with hub.test_client("/ws") as ws:
        assert await ws.connection.subscribe("thread:7") is False
        await ws.settled()
        assert ws.connection.is_open
        assert hub.channels() == {}
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert diary.only("on_error") == (["on_error ValueError"] if how == "failed" else [])
    assert len(errors) == (how == "failed")
    for text in errors:
        assert text.startswith("subscribe= of rule 'thread:{id}' (")
        assert "test_rules.py:" in text.partition(")")[0]
        assert "raised ValueError: boom" in text


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_rule_that_awaits_what_was_cancelled_refuses(hub, kind, caplog):
    async def cancelled(ws):
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    def raises(ws):
        raise asyncio.CancelledError

    hub.rule("thread:{id}", subscribe=raises if kind == "def" else cancelled)
    hub.add("/ws", Listener())
    async with hub.test_client("/ws") as ws:
        assert await ws.connection.subscribe("thread:7") is False
    assert "awaited something that was cancelled" in caplog.text


async def test_whoever_leaves_while_its_rule_is_asked_enters_nothing(hub, diary):
    asked, go = asyncio.Event(), asyncio.Event()

    async def ask(ws):
        asked.set()
        await go.wait()

    hub.rule("thread:{id}", subscribe=ask)
    hub.add("/ws", diary.listener("async def"))
    ws = await hub.test_client("/ws").connect()
    change = ws.connection.subscribe("thread:7")
    await asked.wait()
    dropping = asyncio.create_task(ws.drop())
    await asyncio.sleep(0)
    go.set()
    await dropping
    assert await change is False
    assert diary.count_of("on_channel_open") == diary.count_of("on_subscribe") == 0
    assert len(hub.membership._channels) == 0


async def test_a_rule_that_ends_the_connection_lets_nobody_in(hub, diary, style):
    hub.rule("thread:{id}", subscribe=lambda ws: ws.close(4100) and None)
    hub.add("/ws", diary.listener(style))
    ws = await hub.test_client("/ws").connect()
    assert await ws.connection.subscribe("thread:7") is False
    await ws.settled()
    assert diary.count_of("on_subscribe") == diary.count_of("on_channel_open") == 0
    assert diary.count_of("on_close") == 1


async def test_a_rule_that_lets_its_own_connection_in_elsewhere_is_fine(hub, style):
    if style == "async def":

        async def ask(ws, channel):
            return await ws.subscribe("lobby")

    elif style == "threaded":

        @threaded
        def ask(ws, channel):
            return ws.subscribe("lobby").result(5)

    else:

        def ask(ws, channel):
            return ws.subscribe("lobby").result()

    hub.rule("thread:{id}", subscribe=ask)
    hub.add("/ws", Listener())
    async with hub.test_client("/ws") as ws:
        assert await asyncio.wait_for(ws.connection.subscribe("thread:7"), 5) is True
        assert ws.connection.channels == {"lobby", "thread:7"}


async def test_a_rule_made_later_holds_for_who_comes_later(hub):
    hub.add("/ws", Listener())
    async with hub.test_client("/ws", user="bob") as one, hub.test_client("/ws", user="bob") as two:
        assert await one.connection.subscribe("thread:7") is True
        hub.rule("thread:{id}", subscribe=only_ana)
        assert await two.connection.subscribe("thread:7") is False
        assert await one.connection.subscribe("thread:8") is False
        assert await hub.channel("thread:7").count() == 1


async def test_rules_hold_after_the_hub_was_stopped_and_started_again(hub):
    hub.rule("thread:{id}", subscribe=only_ana)
    hub.add("/ws/{id}", Listener(), channel="thread:{id}")
    await hub.start()
    await hub.stop()
    await hub.start()
    ws = await hub.test_client("/ws/7", user="bob").connect()
    assert ws.closed.code == 1008


async def test_two_hubs_have_rules_of_their_own(hub):
    other = Hub()
    hub.rule("thread:{id}", subscribe=only_ana)
    for one in (hub, other):
        one.add("/ws", Listener())
    async with hub.test_client("/ws") as ours, other.test_client("/ws") as theirs:
        assert await ours.connection.subscribe("thread:7") is False
        assert await theirs.connection.subscribe("thread:7") is True
        other.rule("thread:{id}", subscribe=only_ana)
        assert [info.id for info in await other.everyone.recheck()] == [theirs.id]
        assert await hub.everyone.recheck() == []
    await other.stop()


async def test_a_hub_that_ignores_case_asks_by_the_name_it_keeps():
    hub, got = Hub(casefold_channels=True), []
    hub.rule("Thread:{Id}", subscribe=lambda ws, channel, Id: got.append((channel, Id)))  # noqa: N803
    hub.add("/ws", Listener())
    async with hub.test_client("/ws") as ws:
        assert await ws.connection.subscribe("THREAD:Seven") is True
    assert got == [("thread:seven", "seven")]
    await hub.stop()


@RULES
async def test_a_rule_runs_in_the_context_of_its_connections_handshake(hub, kind):
    from contextvars import ContextVar

    variable, seen = ContextVar("variable", default=None), []

    class Chat(Listener):
        def on_handshake(self, request):
            variable.set(request.query["name"])

    hub.rule("{x}", subscribe=in_style(kind, lambda ws, channel: seen.append(variable.get())))
    hub.add("/ws", Chat)
    async with hub.test_client("/ws?name=ana") as ana, hub.test_client("/ws?name=bob") as bob:
        await ana.connection.subscribe("cars")
        await bob.connection.subscribe("cars")
        await hub.everyone.recheck()
    assert seen == ["ana", "bob"] * 2


# ── publishing ────────────────────────────────────────────────────────────────────────────────


@RULES
async def test_may_publish_tells_what_the_rule_says(hub, kind):
    hub.rule("thread:{id}", publish=in_style(kind, only_ana))
    hub.add("/ws", Listener())
    async with hub.test_client("/ws", user="ana") as ana, hub.test_client("/ws", user="bob") as bob:
        assert await hub.may_publish(ana.connection, "thread:7") is True
        assert await hub.may_publish(bob.connection, "thread:7") is False
        assert await bob.connection.subscribe("thread:7") is True  # publish= is no subscribe=


@RULES
@HOWS
async def test_what_refuses_a_publication_and_what_raises(hub, diary, kind, how):
    hub.rule("thread:{id}", publish=in_style(kind, refusals(how)))
    hub.add("/ws", diary.listener())
    async with hub.test_client("/ws") as ws:
        assert await hub.may_publish(ws.connection, "thread:7") is False
        assert ws.connection.is_open
    assert diary.count_of("on_error") == (how == "failed")


async def test_nobody_publishes_where_no_rule_says_so(hub):
    hub.rule("thread:{id}", subscribe=admitting())
    hub.rule("{x}", publish=admitting())
    hub.add("/ws", Listener())
    ws = await hub.test_client("/ws").connect()
    assert await hub.may_publish(ws.connection, "thread:7") is False
    assert await hub.may_publish(ws.connection, "cars") is True
    await ws.close()
    assert await hub.may_publish(ws.connection, "cars") is False


async def test_what_is_no_channel_and_whose_connection_it_is_not(hub):
    other = Hub()
    other.add("/ws", Listener())
    async with other.test_client("/ws") as ws:
        with pytest.raises(ValueError, match="belongs to another hub"):
            await hub.may_publish(ws.connection, "cars")
        with pytest.raises(ValueError, match="empty"):
            await other.may_publish(ws.connection, "")
    await other.stop()


async def test_a_listener_passes_on_what_a_client_may_say(hub):
    class Chat(Listener):
        async def on_message(self, ws, message: dict):
            if await hub.may_publish(ws, message["to"]):
                hub.broadcast(message["to"], message["text"])
            else:
                ws.send("refused")

    hub.rule("thread:{id}", publish=lambda ws, channel: channel in ws.channels)
    hub.add("/ws/{id}", Chat, channel="thread:{id}")
    async with hub.test_client("/ws/7") as ana, hub.test_client("/ws/7") as bob:
        await ana.send({"to": "thread:7", "text": "hello"})
        await ana.send({"to": "thread:8", "text": "hello"})
        assert [await ana.receive(), await ana.receive()] == ["hello", "refused"]
        assert await bob.receive() == "hello"
