"""What is read of a listener at registration, and what is said of those that can't serve."""

import contextlib
import dataclasses
import functools
import types
from typing import Any

import msgspec
import pytest

from backchannel import Listener, event, threaded
from backchannel.callbacks import _PARAMETERS, Callbacks, read_listener
from backchannel.errors import InvalidMessage, ListenerError
from backchannel.places import where_defined

CALLBACKS = list(_PARAMETERS)


class Say(msgspec.Struct):
    text: str


def module(source, name="listeners_under_test"):
    """Return a module made of source, as if it were imported from a file."""
    made = types.ModuleType(name)
    exec(compile(source, f"{name}.py", "exec"), made.__dict__)
    return made


FUTURE = "from __future__ import annotations\nimport msgspec, typing\nfrom backchannel import *\n"


def refused(target, *words, names=None):
    """Check that a listener is refused and that the error says all of the words."""
    with pytest.raises(ListenerError) as caught:
        read_listener(target, names)
    for word in words:
        assert word in str(caught.value)


def decoded(callback, frame):
    return frame if callback.decode is None else callback.decode(frame)


# ── what can serve ────────────────────────────────────────────────────────────────────────────


def test_all_callbacks_are_optional_and_only_those_written_are_called():
    class Quiet(Listener):
        pass

    callbacks = read_listener(Quiet)
    assert callbacks.name == "Quiet"
    assert {name for name in CALLBACKS if getattr(callbacks, name)} == {"on_invalid"}
    assert callbacks.events == {}


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("style", ["def", "async def", "@threaded def"])
def test_each_callback_may_be_def_async_or_threaded(name, style):
    head, _, keyword = style.rpartition(" ")
    source = "class Chat(Listener):\n"
    source += "    @threaded\n" if head == "@threaded" else ""
    source += "    async " if head == "async" else "    "
    source += f"{keyword} {name}(self, {_PARAMETERS[name]}): return 5\n"
    callback = getattr(read_listener(module(FUTURE + source).Chat), name)
    assert callback.name == f"Chat.{name}"
    assert callback.is_async is (style == "async def")
    assert callback.in_thread is (style == "@threaded def")
    assert callback.returns_at_once is (style == "def")


def test_the_documented_parameters_are_those_of_the_base_class():
    for name, parameters in _PARAMETERS.items():
        code = getattr(Listener, name).__code__
        assert ", ".join(code.co_varnames[1 : code.co_argcount]) == parameters


def test_every_callback_has_its_place_among_the_callbacks_read():
    fields = {field.name for field in dataclasses.fields(Callbacks) if field.init}
    assert fields == {"name", "where", "about", "events", "durable", "sends", *CALLBACKS}


def test_a_callback_is_bound_to_its_instance_and_knows_its_place():
    class Chat(Listener):
        def on_open(self, ws):
            return self, ws

    chat = Chat()
    callback = read_listener(chat).on_open
    assert callback.function("ws") == (chat, "ws")
    assert callback.where.endswith(f"test_listener.py:{Chat.on_open.__code__.co_firstlineno}")


def test_inherited_callbacks_count_and_may_be_overridden():
    class Base(Listener):
        def on_open(self, ws):
            return "base"

        def on_message(self, ws, message: str):
            return "base"

    class Child(Base):
        def on_open(self, ws):
            return super().on_open(ws) + "+child"

    callbacks = read_listener(Child)
    assert callbacks.on_open.function(None) == "base+child"
    assert callbacks.on_message.name == "Child.on_message"


def test_static_and_class_methods_serve_too():
    class Chat(Listener):
        @staticmethod
        def on_message(ws, message: Say):
            return message.text

        @classmethod
        def on_open(cls, ws):
            return cls

    callbacks = read_listener(Chat)
    assert callbacks.on_message.function(None, decoded(callbacks.on_message, '{"text":"a"}')) == "a"
    assert callbacks.on_open.function(None) is Chat


def test_more_parameters_will_do_when_they_have_defaults():
    class Chat(Listener):
        def on_open(self, ws, greeting="hi", *more, loud=False, **rest):
            return greeting

        def on_message(self, *arguments):
            return arguments

    callbacks = read_listener(Chat)
    assert callbacks.on_open.function("ws") == "hi"
    assert callbacks.on_message.function("ws", "x") == ("ws", "x")
    assert callbacks.on_message.decode is None


@pytest.mark.parametrize("written", ["class", "instance"])
def test_a_class_is_made_without_arguments_and_an_instance_is_taken_as_it_is(written):
    class Chat(Listener):
        def __init__(self, db="own"):
            self.db = db

        def on_open(self, ws):
            return self.db

    target = Chat if written == "class" else Chat("given")
    wanted = "own" if written == "class" else "given"
    assert read_listener(target).on_open.function(None) == wanted


def test_one_instance_may_be_read_twice():
    chat = Listener()
    assert read_listener(chat).name == read_listener(chat).name == "Listener"


# ── functions and other callables ─────────────────────────────────────────────────────────────


async def echo(ws, message: Say):
    return message.text


class Answer:
    def __init__(self, word):
        self.word = word

    async def __call__(self, ws, message: Say):
        return self.word

    def method(self, ws, message: bytes):
        return message


def with_database(db, ws, message: Say):
    return db, message


@threaded
def slow(ws, message: str):
    return message


@pytest.mark.parametrize(
    ("target", "name", "is_async", "in_thread", "typed"),
    [
        (echo, "echo", True, False, True),
        (slow, "slow", False, True, True),
        (Answer("x"), "Answer", True, False, True),
        (Answer("x").method, "method", False, False, True),
        (functools.partial(with_database, "db"), "with_database", False, False, True),
        (functools.partial(functools.partial(echo)), "echo", True, False, True),
        (functools.partial(Answer("x")), "Answer", True, False, True),
        (lambda ws, message: message, "<lambda>", False, False, False),
        (lambda ws, *rest: rest, "<lambda>", False, False, False),
        (print, "print", False, False, False),
    ],
)
def test_any_callable_that_takes_ws_and_message_is_an_endpoint(
    target, name, is_async, in_thread, typed
):
    callbacks = read_listener(target)
    message = callbacks.on_message
    assert (callbacks.name, message.name) == (name, name)
    assert (message.is_async, message.in_thread) == (is_async, in_thread)
    assert (message.decode is not None) is typed
    assert callbacks.on_invalid is not None
    assert callbacks.on_open is None


@pytest.mark.parametrize("target", [echo, Answer("x"), functools.partial(with_database, "db")])
def test_a_function_is_found_in_the_file_through_whatever_is_around_it(target):
    function = {echo: echo}.get(target) or getattr(target, "func", Answer.__call__)
    line = function.__code__.co_firstlineno
    assert read_listener(target).where.endswith(f"test_listener.py:{line}")


@pytest.mark.parametrize(
    "target", [lambda: None, lambda ws: None, lambda ws, message, more: None, len, abs]
)
def test_a_function_with_other_parameters_is_refused_and_shown(target):
    refused(target, "must take (ws, message), but takes (")


def test_a_function_whose_message_is_keyword_only_is_refused():
    refused(lambda ws, *, message: None, "must take (ws, message)")


@pytest.mark.parametrize("target", [5, None, "Chat", ["Chat"], object()])
def test_what_can_not_be_called_is_no_endpoint(target):
    refused(target, "needs a Listener or a function", repr(target))


def test_a_class_that_is_no_listener_is_refused_with_what_to_do():
    class Chat:
        def on_message(self, ws, message):
            pass

    refused(Chat, "Chat must inherit from backchannel.Listener")


def test_a_class_that_wants_arguments_is_refused_with_what_to_do():
    class Chat(Listener):
        def __init__(self, db):
            self.db = db

    refused(Chat, "Chat can't be made without arguments", "db", "hub.add(", "Chat(…)")


def test_an_error_of_the_constructor_itself_passes_as_it_is():
    class Chat(Listener):
        def __init__(self):
            raise LookupError("no database")

    with pytest.raises(LookupError, match="no database"):
        read_listener(Chat)


# ── signatures and names ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("parameters", ["", "ws, message, more, most", "*, ws"])
def test_a_callback_with_other_parameters_is_refused_by_name_with_the_right_ones(name, parameters):
    chat = module(
        f"{FUTURE}class Chat(Listener):\n    def {name}({f'self, {parameters}'.rstrip(', ')}): ...\n"
    ).Chat
    where = "(listeners_under_test.py:5)"
    more = ", position" if name == "on_lost" and "most" in parameters else ""
    refused(chat, f"Chat.{name} {where} must take ({_PARAMETERS[name]}{more}), but takes (")


def test_a_callback_that_forgot_self_is_refused():
    class Chat(Listener):
        def on_open(ws):  # noqa: N805
            pass

    refused(Chat, f"Chat.on_open ({where_defined(Chat.on_open)}) must take (ws)")


def test_a_callback_that_is_no_function_is_refused_by_name():
    class Chat(Listener):
        on_message = None

    refused(Chat, "Chat.on_message", "None")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("onMessage", "on_message"), ("onOpen", "on_open"), ("OnClose", "on_close"),
        ("on_mesage", "on_message"), ("on_massage", "on_message"), ("onmessage", "on_message"),
        ("on_messages", "on_message"), ("on_Message", "on_message"), ("on__message", "on_message"),
        ("onFirstOpen", "on_first_open"), ("on_firstopen", "on_first_open"),
        ("onLastClose", "on_last_close"), ("on_hand_shake", "on_handshake"),
        ("onHandshake", "on_handshake"), ("on_opened", "on_open"), ("on_closed", "on_close"),
        ("onSubscribe", "on_subscribe"), ("on_unsubscribed", "on_unsubscribe"),
        ("on_unsubcribe", "on_unsubscribe"), ("on_channel_opened", "on_channel_open"),
        ("on_chanel_close", "on_channel_close"), ("on_errors", "on_error"), ("onError", "on_error"),
        ("on_invalid_", "on_invalid"),
    ],
)  # fmt: skip
def test_a_misspelt_callback_is_refused_with_the_one_that_was_meant(written, meant):
    kind = type("Chat", (Listener,), {written: lambda self, *arguments: None})
    where = where_defined(getattr(kind, written))
    refused(kind, f"Chat.{written} ({where}) is no callback; did you mean {meant}?", *WAY_OUT)


WAY_OUT = ["a name without on_", "leading underscore", "@event"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("on_connect", "on_open"), ("on_connected", "on_open"), ("on_connection", "on_open"),
        ("onConnect", "on_open"), ("on_disconnect", "on_close"), ("on_disconnected", "on_close"),
        ("on_receive", "on_message"), ("on_received", "on_message"), ("onReceive", "on_message"),
        ("on_data", "on_message"), ("on_join", "on_subscribe"), ("on_leave", "on_unsubscribe"),
        ("on_upgrade", "on_handshake"),
    ],
)  # fmt: skip
def test_a_callback_of_another_framework_is_refused_with_the_one_of_this(written, meant):
    kind = type("Chat", (Listener,), {written: lambda self, *arguments: None})
    refused(kind, f"Chat.{written} (", f"is no callback; did you mean {meant}?", *WAY_OUT)


@pytest.mark.parametrize("kind_of", [lambda f: f, staticmethod, classmethod, threaded])
@pytest.mark.parametrize("name", ["on_air", "on_call", "on_top_of_it", "on_"])
def test_whatever_is_named_like_a_callback_and_would_never_be_called_is_refused(name, kind_of):
    class Base(Listener):
        pass

    setattr(Base, name, kind_of(lambda *arguments: None))
    refused(type("Chat", (Base,), {}), f"Chat.{name} (", "no callback", "on_channel_open", *WAY_OUT)


@pytest.mark.parametrize("name", ["on_air", "on_connect"])
def test_what_is_no_function_is_the_applications_own(name):
    read_listener(type("Chat", (Listener,), {name: True}))


def test_an_event_may_be_named_like_a_callback():
    class Chat(Listener):
        @event("connect")
        def on_connect(self, ws):
            pass

    assert read_listener(Chat).events["connect"].name == "Chat.on_connect"


@pytest.mark.parametrize(
    "name",
    ["online", "on", "one", "once", "only", "_on_message", "_onMessage", "_on_connect", "message",
     "open", "close", "connect", "only_open", "handle_message", "ontology"],
)  # fmt: skip
def test_a_method_that_resembles_no_callback_is_the_applications_own(name):
    assert read_listener(type("Chat", (Listener,), {name: lambda self: None})).on_message is None


def nothing(*arguments):
    pass


@pytest.mark.parametrize(
    ("name", "meant"),
    [("connect", "on_open"), ("disconnect", "on_close"), ("receive", "on_message"),
     ("receive_json", "on_message")],
)  # fmt: skip
def test_a_listener_with_another_frameworks_names_alone_is_warned_of(name, meant, caplog):
    read_listener(type("Chat", (Listener,), {name: nothing}))
    (record,) = caplog.records
    line = record.getMessage()
    assert f"Chat.{name} ({where_defined(nothing)}) is never called; did you mean {meant}" in line


@pytest.mark.parametrize(
    "others", [{"on_message": nothing}, {"said": event("say")(lambda s, w: 1)}]
)
def test_a_listener_with_callbacks_may_have_methods_of_any_name(others, caplog):
    read_listener(type("Chat", (Listener,), {"connect": nothing, "receive": nothing, **others}))
    read_listener(type("Chat", (Listener,), {"poll": nothing}))
    assert caplog.records == []


@pytest.mark.parametrize("style", ["def", "async def"])
def test_a_callback_with_a_yield_is_refused_since_it_would_do_nothing(style):
    source = f"class Chat(Listener):\n    {style} on_message(self, ws, message):\n        yield 1\n"
    refused(
        module(FUTURE + source).Chat,
        "Chat.on_message (listeners_under_test.py:5) has a yield",
        "ws.send(…)",
        "ws.spawn(…)",
    )


def test_a_decorator_that_consumes_a_generator_makes_a_callback_of_it():
    def streamed(function):
        @functools.wraps(function)
        async def run(self, ws, message):
            return [part async for part in function(self, ws, message)]

        return run

    class Chat(Listener):
        @streamed
        async def on_message(self, ws, message: Say):
            yield message.text

    callback = read_listener(Chat).on_message
    assert callback.is_async
    assert decoded(callback, '{"text":"a"}') == Say("a")


@pytest.mark.parametrize("outer", ["def", "async def"])
@pytest.mark.parametrize("inner", ["def", "async def"])
def test_a_decorated_callback_is_async_when_it_or_what_it_wraps_is(outer, inner):
    chat = module(
        f"{FUTURE}import functools\n"
        "def noted(function):\n"
        "    @functools.wraps(function)\n"
        f"    {outer} run(*arguments): return function(*arguments)\n"
        "    return run\n"
        "class Chat(Listener):\n"
        "    @noted\n"
        f"    {inner} on_subscribe(self, ws, channel): ...\n"
    ).Chat
    callbacks = read_listener(chat)
    assert callbacks.on_subscribe.is_async is ("async def" in {outer, inner})
    assert callbacks.membership_is_immediate is (outer == inner == "def")


# ── annotations ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("annotation", "frame", "message"),
    [
        ("str", '{"text":"a"}', """'{"text":"a"}'"""),
        ("bytes", b"x", "b'x'"),
        ("str | bytes", b"x", "b'x'"),
        ("typing.Any", "x", "'x'"),
        ("dict", '{"text":"a"}', "{'text': 'a'}"),
        ("dict[str, int]", '{"a":1}', "{'a': 1}"),
        ("list[Say]", '[{"text":"a"}]', "[Say('a')]"),
        ("Say", '{"text":"a"}', "Say('a')"),
        ("'Say'", '{"text":"a"}', "Say('a')"),
        ("Either", "5", "5"),
        ("typing.Annotated[Say, 'note']", '{"text":"a"}', "Say('a')"),
    ],
)
@pytest.mark.parametrize("future", [True, False])
@pytest.mark.parametrize("form", ["method", "function", "event", "object"])
def test_annotations_resolve_at_registration_also_under_the_future_import(
    annotation, frame, message, future, form
):
    source = {
        "method": f"class Chat(Listener):\n    def on_message(self, ws, message: {annotation}): ...\n",
        "function": f"def Chat(ws, message: {annotation}): ...\n",
        "event": f"class Chat(Listener):\n    @event('a')\n    def a(self, ws, message: {annotation}): ...\n",
        "object": f"class Kind:\n    def __call__(self, ws, message: {annotation}): ...\nChat = Kind()\n",
    }[form]
    head = FUTURE if future else FUTURE.partition("\n")[2]
    shapes = "class Say(msgspec.Struct):\n    text: str\nEither = int | Say\n"
    made = module(head + shapes + source)
    message = eval(message, made.__dict__)
    callbacks = read_listener(made.Chat)
    callback = callbacks.events["a"] if form == "event" else callbacks.on_message
    assert decoded(callback, frame) == message


def test_only_the_messages_annotation_is_resolved():
    chat = module(
        FUTURE + "class Chat(Listener):\n"
        "    def on_message(self: Nowhere, ws: AlsoNowhere, message: str) -> Never: ...\n"
        "    def on_open(self, ws: Nowhere) -> Nothing: ...\n"
    ).Chat
    assert decoded(read_listener(chat).on_message, "x") == "x"


@pytest.mark.parametrize("form", ["class Chat(Listener):\n    def on_message(self, ", "def Chat("])
def test_a_name_that_only_type_checkers_know_is_refused_with_its_place_and_what_to_do(form):
    chat = module(
        FUTURE + "if typing.TYPE_CHECKING:\n    from shapes import Move\n"
        f"{form}ws, message: Move): ...\n"
    ).Chat
    refused(chat, "on_message" if "class" in form else "Chat", "listeners_under_test.py:",
            "'message', 'Move'", "can't be resolved", "'Move' is not defined", "TYPE_CHECKING")  # fmt: skip


@pytest.mark.parametrize("annotation", ["'Say['", "'1 +'", "'msgspec.Nothing'", "'5'"])
def test_an_annotation_that_is_no_type_is_refused_by_name(annotation):
    chat = module(f"{FUTURE}def Chat(ws, message: {annotation}): ...\n").Chat
    refused(chat, "Chat (listeners_under_test.py:4): the annotation of 'message'")


def test_an_annotation_that_nothing_decodes_is_refused_with_callback_and_place():
    class Chat(Listener):
        def on_message(self, ws, message: complex):
            pass

    refused(Chat, "Chat.on_message", "test_listener.py:", "complex", "msgspec Struct")


def test_a_local_class_may_be_a_message():
    made = module(
        FUTURE + "def make():\n"
        "    class Move(msgspec.Struct):\n        x: int\n"
        "    class Chat(Listener):\n        def on_message(self, ws, message: Move): ...\n"
        "    return Chat, locals()\n"
    )
    chat, names = made.make()
    assert decoded(read_listener(chat, names).on_message, '{"x":1}').x == 1
    refused(chat, "'Move' is not defined")


def test_a_local_name_hides_one_of_the_module_and_a_closure_is_seen():
    made = module(
        FUTURE + "Move = int\n"
        "def make(Other):\n"
        "    Move = list\n"
        "    def first(ws, message: Move): ...\n"
        "    def second(ws, message: Other): return Other\n"
        "    return first, second, {'Move': Move}\n"
    )
    first, second, names = made.make(dict)
    assert decoded(read_listener(first, names).on_message, "[1]") == [1]
    assert decoded(read_listener(second).on_message, '{"a":1}') == {"a": 1}


def test_where_a_listener_is_registered_changes_nothing_of_what_its_module_means():
    chat = module(
        FUTURE + "class Move(msgspec.Struct):\n    x: int\n"
        "class Chat(Listener):\n    def on_message(self, ws, message: Move): ...\n"
    ).Chat
    callback = read_listener(chat, {"Move": str, "int": str}).on_message
    assert decoded(callback, '{"x":1}').x == 1


def test_a_class_inside_the_listener_may_be_a_message():
    chat = module(
        FUTURE + "class Chat(Listener):\n"
        "    class Move(msgspec.Struct):\n        x: int\n"
        "    def on_message(self, ws, message: Move): ...\n"
        "    def list(self): ...\n"
        "    @event('all')\n    def all(self, ws, message: list): ...\n"
    ).Chat
    callbacks = read_listener(chat)
    assert decoded(callbacks.on_message, '{"x":1}').x == 1
    assert decoded(callbacks.events["all"], "[1]") == [1]


# ── @event and @threaded ──────────────────────────────────────────────────────────────────────


def test_an_event_method_may_have_any_name_take_a_message_or_none_and_be_of_any_kind():
    class Chat(Listener):
        @event("typing")
        def onTyping(self, ws):  # noqa: N802
            return "typing"

        @event("say")
        async def say(self, ws, message: Say):
            pass

        @event("save")
        @threaded
        def save(self, ws, message):
            pass

        @threaded
        @event("load")
        def load(self, ws):
            pass

        @staticmethod
        @event("ping")
        def ping(ws):
            return "pong"

        @event("pong")
        @classmethod
        def pong(cls, ws, message: dict):
            return cls

    events = read_listener(Chat).events
    assert set(events) == {"typing", "say", "save", "load", "ping", "pong"}
    assert {name for name, callback in events.items() if callback.in_thread} == {"save", "load"}
    assert events["typing"].function("ws", {}) == "typing"
    assert events["ping"].function("ws", {}) == "pong"
    assert events["pong"].function("ws", {}) is Chat
    assert events["say"].name == "Chat.say"
    assert decoded(events["say"], '{"text":"a"}') == Say("a")


def test_two_methods_for_one_type_are_refused_and_both_are_named():
    class Chat(Listener):
        @event("say")
        def first(self, ws):
            pass

        @event("say")
        def second(self, ws):
            pass

    refused(Chat, "Chat", "first", "second", "both take 'say'")


def test_two_types_for_one_method_are_refused():
    with pytest.raises(TypeError, match=r"takes one type: it has @event\('b'\) and @event\('a'\)"):

        class Chat(Listener):
            @event("a")
            @event("b")
            def both(self, ws):
                pass


def test_an_inherited_event_may_be_overridden():
    class Base(Listener):
        @event("say")
        def say(self, ws):
            return "base"

    class Child(Base):
        @event("say")
        def say(self, ws):
            return "child"

    assert read_listener(Child).events["say"].function(None, None) == "child"
    assert read_listener(Base).events["say"].function(None, None) == "base"


@pytest.mark.parametrize("parameters", ["self", "self, ws, message, more", "self, *, ws"])
def test_an_event_method_with_other_parameters_is_refused_by_name(parameters):
    chat = module(
        f"{FUTURE}class Chat(Listener):\n    @event('say')\n    def say({parameters}): ...\n"
    ).Chat
    refused(chat, "Chat.say (listeners_under_test.py:5) must take (ws, message)")


@pytest.mark.parametrize("name", [None, 5, b"say", lambda self, ws: None])
def test_event_wants_the_type_as_a_str(name):
    with pytest.raises(TypeError, match=r"@event takes the message type, as in @event\(.typing.\)"):
        event(name)


def test_threaded_on_async_def_is_refused_by_name():
    async def wait(self, ws):
        pass

    with pytest.raises(TypeError, match=r"@threaded is for a blocking def; .*wait is async def"):
        threaded(wait)


def test_threaded_under_an_async_decorator_is_refused_at_registration():
    def noted(function):
        @functools.wraps(function)
        async def run(*arguments):
            return function(*arguments)

        return run

    class Chat(Listener):
        @noted
        @threaded
        def on_open(self, ws):
            pass

    refused(Chat, "Chat.on_open (", "is both @threaded and async", "blocking def")


# ── one instance for all ──────────────────────────────────────────────────────────────────────


class Counter(Listener):
    def __init__(self):
        self.made = True

    def count(self):
        self.number = 1


def test_after_registration_setting_an_attribute_says_where_it_belongs():
    counter = Counter()
    counter.early = 1
    read_listener(counter)
    for change in (counter.count, lambda: setattr(counter, "made", False)):
        with pytest.raises(
            AttributeError, match=r"one Counter serves all connections: use ws\.state"
        ):
            change()
    with pytest.raises(AttributeError, match="can't set 'made': one Counter serves all"):
        del counter.made
    assert (counter.made, counter.early) == (True, 1)


def test_a_listener_that_was_refused_is_not_sealed():
    class Chat(Counter):
        def on_open(self):
            pass

    chat = Chat()
    with contextlib.suppress(ListenerError):
        read_listener(chat)
    chat.count()
    assert chat.number == 1


def test_shared_true_lifts_the_guard_for_the_class_and_its_children():
    class Shared(Counter):
        shared = True

    class Child(Shared):
        pass

    for kind in (Shared, Child):
        counter = kind()
        read_listener(counter)
        counter.count()
        del counter.made
        assert counter.number == 1


def test_what_is_shared_is_set_as_on_any_object():
    class Shared(Counter):
        shared = True

    class Child(Shared):
        pass

    for kind in (Shared, Child):
        read_listener(kind)
        assert (kind.__setattr__, kind.__delattr__) == (object.__setattr__, object.__delattr__)


def test_a_child_that_is_not_shared_is_guarded_again():
    class Shared(Counter):
        shared = True

    class Alone(Shared):
        shared = False

    alone = Alone()
    read_listener(alone)
    for change in (alone.count, lambda: delattr(alone, "made")):
        with pytest.raises(AttributeError, match=r"ws\.state"):
            change()


def test_a_class_may_be_made_shared_later():
    class Late(Counter):
        pass

    counter = Late()
    read_listener(counter)
    Late.shared = True
    counter.count()
    assert counter.number == 1


class Noting:
    """A mixin that has something to do whenever an attribute is set."""

    def __setattr__(self, name, value):
        super().__setattr__("noted", name)
        super().__setattr__(name, value)


@pytest.mark.parametrize("bases", [(Listener, Noting), (Noting, Listener)])
def test_what_an_application_does_when_attributes_are_set_is_done(bases):
    kind = type("Shared", bases, {"shared": True})
    listener = type("Child", (kind,), {})()
    read_listener(listener)
    listener.number = 1
    assert (listener.noted, listener.number) == ("number", 1)


def test_a_listener_may_be_a_frozen_dataclass():
    class Shared(Listener):
        shared = True

    for base, is_shared in ((Listener, False), (Listener, True), (Shared, True)):

        @dataclasses.dataclass(frozen=True)
        class Greeter(base):
            shared = is_shared
            greeting: str = "hello"

            def on_open(self, ws):
                ws.send(self.greeting)

        greeter = Greeter("hi")
        assert read_listener(greeter).on_open is not None
        with pytest.raises(dataclasses.FrozenInstanceError):
            greeter.greeting = "bye"


def test_each_instance_is_sealed_by_itself():
    sealed, free = Counter(), Counter()
    read_listener(sealed)
    free.count()
    assert free.number == 1


def test_the_default_on_invalid_tells_the_sender_what_was_wrong():
    sent: list[Any] = []
    ws = types.SimpleNamespace(send=sent.append)
    error = InvalidMessage("expected int", field="$.age")
    for target in (Listener, echo):
        read_listener(target).on_invalid.function(ws, error)
    wanted = {"type": "error", "code": "invalid_message", "text": "expected int", "field": "$.age"}
    assert sent == [wanted, wanted]


# ── on_lost, with the position or without ─────────────────────────────────────────────────────


class Told:
    def __init__(self):
        self.words = None


class Without(Listener):
    shared = True

    def on_lost(self, ws, channel):
        ws.words = (channel,)


class Optional(Listener):
    def on_lost(self, ws, channel, position=None):
        ws.words = (channel, position)


class Required(Listener):
    async def on_lost(self, ws, channel, position):
        ws.words = (channel, position)


@pytest.mark.parametrize(
    ("kind", "words"), [(Without, ("a",)), (Optional, ("a", "e.1")), (Required, ("a", "e.1"))]
)
async def test_on_lost_is_given_the_position_where_it_takes_one(kind, words):
    on_lost = read_listener(kind).on_lost
    ws = Told()
    done = on_lost.function(ws, ("a", "e.1"))
    if on_lost.is_async:
        await done
    assert ws.words == words


def test_an_on_lost_that_takes_too_much_is_refused():
    class Chat(Listener):
        def on_lost(self, ws, channel, position, why):
            pass

    with pytest.raises(ListenerError, match=r"on_lost .* must take \(ws, channel, position\)"):
        read_listener(Chat)


def test_an_on_lost_that_takes_too_little_is_refused():
    class Chat(Listener):
        def on_lost(self, ws):
            pass

    with pytest.raises(ListenerError, match=r"on_lost .* must take \(ws, channel\), but takes"):
        read_listener(Chat)
