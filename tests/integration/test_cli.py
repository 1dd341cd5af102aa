"""`backchannel run` as people run it: a process, a terminal, signals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from contextlib import AsyncExitStack
from urllib.parse import unquote

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

CHAT = """
import asyncio, sys, threading
from backchannel import Hub, Listener, threaded

hub = Hub()

@hub.endpoint("/ws/echo")
def echo(ws, message: str):
    return message

@hub.endpoint("/ws/chat/{channel}")
class Chat(Listener):
    def on_handshake(self, request):
        if "fail" in request.query:
            raise RuntimeError("secret detail")

    async def on_message(self, ws, message: str):
        if message == "hang":
            ws.send("hanging")
            await asyncio.Event().wait()
        if message == "hang on":
            ws.send("hanging")
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass
        ws.broadcast(message)

    def on_close(self, ws, reason):
        print(f"SAID closed {reason.code} {reason.by}", file=sys.stderr, flush=True)

@hub.endpoint("/ws/thread")
@threaded
def thread(ws, message: str):
    ws.send("hanging").result(5)
    threading.Event().wait()

hub.page("/", "page.html")
"""

BLOCKING = """
import socket, sqlite3, subprocess, sys, time
from backchannel import Hub, Listener, threaded

hub = Hub(slow_callback=60)
listening = socket.create_server(("127.0.0.1", 0))

def block(how):
    if how == "sleep":
        time.sleep(0.001)
    elif how == "sqlite3":
        sqlite3.connect(":memory:").execute("select 1")
    elif how == "socket":
        socket.create_connection(listening.getsockname()).close()
    elif how == "subprocess":
        subprocess.run([sys.executable, "-S", "-c", ""], check=True)

@hub.endpoint("/ws/def")
def plain(ws, message: str):
    block(message)
    return "went through"

@hub.endpoint("/ws/async")
async def asynchronous(ws, message: str):
    block(message)
    return "went through"

@hub.endpoint("/ws/threaded")
@threaded
def in_thread(ws, message: str):
    block(message)
    return "went through"
"""


@pytest.fixture
def folder(tmp_path):
    """Return a folder with the user's files."""
    (tmp_path / "chat.py").write_text(CHAT)
    (tmp_path / "page.html").write_text("<!doctype html><title>Chat</title>")
    return tmp_path


@pytest.fixture
def run(folder, process, make_server):
    """Start `backchannel run …` on a free port and wait until it says that it serves."""

    def start(*arguments):
        started = process("backchannel", "run", *arguments, "--port", "0", cwd=folder)
        base = started.wait_for_output(r"(?:http|ws)://localhost:(\d+)")
        started.wait_for_output("Ctrl-C to stop")
        return make_server("uvicorn-run", started, int(base[1]))

    return start


@pytest.fixture
def refused(folder, process):
    """Return what `backchannel run …` says when it can't serve; it ends by itself, and not with 0."""

    def start(*arguments):
        started = process("backchannel", "run", *arguments, cwd=folder)
        assert started.wait() != 0
        return started.output()

    return start


@pytest.fixture
def mistaken(folder, refused):
    """Return what `backchannel run` says of a file that can't be imported: a screenful at most, and
    no line of ours or Python's."""

    def start(content, lines=8):
        (folder / "broken.py").write_text(content)
        said = refused("broken.py", "--port", "0")
        assert len(said.splitlines()) <= lines, said
        files = re.findall(r'File "(.+?)"', said)
        assert files, said
        assert not [f for f in files if "site-packages" in f or "backchannel/" in f], said
        assert "importlib" not in said
        return said

    return start


async def close_of(client):
    try:
        while True:
            await asyncio.wait_for(client.recv(), 10)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 1006


# ── the beginning ─────────────────────────────────────────────────────────────────────────────


async def test_prints_what_is_served_and_serves_it(run):
    server = run("chat.py")
    printed = server.printed()
    assert "serves chat.py:hub" in printed
    base = rf"localhost:{server.port}"
    assert re.search(rf"page +http://{base}/\s", printed)
    assert re.search(rf"endpoint +ws://{base}/ws/echo +echo, chat\.py:\d+\n", printed)
    assert re.search(rf"endpoint +ws://{base}/ws/chat/{{channel}} +Chat, chat\.py:\d+\n", printed)
    assert "Chat</title>" in (await server.get("/")).text
    for host in ("127.0.0.1", "localhost"):
        async with server.connect("/ws/echo", host) as client:
            await client.send("hello")
            assert await client.recv() == "hello"


NESTED = """
from starlette.routing import Mount, Router
app = Router([Mount('/deep', routes=[Mount('/live', hub)])])
"""

APPS_AROUND = {
    "FastAPI": ("/live", "from fastapi import FastAPI\napp = FastAPI()\napp.mount('/live', hub)\n"),
    "Starlette": ("/deep/live", NESTED),
    "wrapped": ("", "async def site(scope, receive, send): ...\napp = hub.wrap(site)\n"),
}


@pytest.mark.parametrize(("mount", "app"), APPS_AROUND.values(), ids=APPS_AROUND)
async def test_what_is_shown_is_what_a_client_has_to_dial(run, folder, mount, app):
    (folder / "around.py").write_text(CHAT + app)
    server = run("around.py")
    printed = server.printed()
    base = f"localhost:{server.port}{mount}"
    shown = re.findall(r"(?:page|endpoint) +(\S+)", printed)
    assert shown == [f"http://{base}/", f"ws://{base}/ws/echo",
                     f"ws://{base}/ws/chat/{{channel}}", f"ws://{base}/ws/thread"]  # fmt: skip
    assert "below where the app mounts its hub" not in printed
    assert "Chat</title>" in (await server.get(f"{mount}/")).text
    async with server.connect(f"{mount}/ws/echo") as client:
        await client.send("hello")
        assert await client.recv() == "hello"


async def test_where_the_app_does_not_tell_where_its_hub_is_that_is_said(run, folder):
    (folder / "live.py").write_text(APP.replace("live = hub.wrap(site)\n", ""))
    printed = run("live.py").printed()
    assert re.search(r"endpoint +ws://localhost:\d+/ws/echo ", printed)
    assert "(endpoints are shown as they are below where the app mounts its hub)" in printed


@pytest.mark.parametrize("name", ["hub", "other", "app"])
async def test_file_and_name(run, folder, name):
    (folder / "several.py").write_text(
        "from backchannel import Hub\n"
        "hub, other = Hub(), Hub()\n"
        "hub.add('/ws/hub', lambda ws, message: 'hub')\n"
        "other.add('/ws/other', lambda ws, message: 'other')\n"
        "async def app(scope, receive, send):\n"
        "    await (hub if 'hub' in scope.get('path', 'hub') else other)(scope, receive, send)\n"
    )
    server = run(f"several.py:{name}")
    for path in {"hub": ["hub"], "other": ["other"], "app": ["hub", "other"]}[name]:
        async with server.connect(f"/ws/{path}") as client:
            await client.send("?")
            assert await client.recv() == path


def test_no_hub(refused, folder):
    (folder / "empty.py").write_text("x = 1\n")
    said = refused("empty.py")
    assert "empty.py has no hub named 'hub'" in said
    assert "write `hub = Hub()`" in said
    assert "Traceback" not in said


def test_several_hubs(refused, folder):
    (folder / "several.py").write_text("from backchannel import Hub\na = Hub()\nb = Hub()\n")
    said = refused("several.py")
    assert "its hubs are a, b" in said
    assert "backchannel run several.py:a" in said
    said = refused("several.py:c")
    assert "several.py has no 'c'; its hubs are a, b" in said


SEVERAL = """
from backchannel import Hub
hub, other, empty = Hub(), Hub(), Hub()
also_other = other
hub.add("/ws/hub", lambda ws, message: "hub")
other.add("/ws/other", lambda ws, message: "other")
other.add("/ws/more/{x}", lambda ws, message: "other")
"""

APP = """
from backchannel import Hub
hub = Hub()
hub.add("/ws/echo", lambda ws, message: message)
class Framework:
    async def __call__(self, scope, receive, send):
        await hub(scope, receive, send)
site = Framework()
live = hub.wrap(site)
async def helper(scope): ...
"""


@pytest.mark.parametrize(
    ("target", "said", "not_said"),
    [
        ("several.py",
         ["Not served: several.py:other (/ws/other, /ws/more/{x}), several.py:empty",
          "backchannel run several.py:other"],
         ["also_other", "no endpoint"]),
        ("several.py:other", ["Not served: several.py:hub (/ws/hub), several.py:empty"], []),
        ("several.py:empty", ["no endpoint", '@hub.endpoint("/ws/echo")', "Not served: "], []),
        ("live.py", ["serves live.py:live", "live has hub in it", "backchannel run live.py:hub"],
         ["Not served"]),
        ("live.py:hub", ["Not served: live.py:site, live.py:live"], []),
        ("live.py:live", [], ["Not served", "no endpoint"]),
        ("chat.py", [], ["Not served", "no endpoint"]),
    ],
)  # fmt: skip
async def test_what_of_a_file_is_not_served_is_said(run, folder, target, said, not_said):
    (folder / "several.py").write_text(SEVERAL)
    (folder / "live.py").write_text(APP)
    printed = run(target).printed()
    assert f"serves {target}" in printed  # or the app of the file, whose name follows
    assert [words for words in said if words not in printed] == []
    assert [words for words in not_said if words in printed] == []


def test_no_such_file(refused):
    assert "there is no file chat; did you mean chat.py?" in refused("chat")
    assert "there is no file nowhere.py" in refused("nowhere.py")


def test_port_in_use(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused("chat.py", "--host", "127.0.0.1", "--port", port)
    assert f"port {port} of 127.0.0.1 is in use by another program" in said
    assert f"--port {port + 1}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("content", "message", "line"),
    [
        ("def broken(:\n", "SyntaxError: ", 1),
        ("x = 1\n\nraise RuntimeError('in the file')\n", "RuntimeError: in the file", 3),
        ("\nimport nowhere_to_be_found\n", "No module named 'nowhere_to_be_found'", 2),
        (
            "from backchannel import *\nhub = Hub()\nhub.add('/x', object())\n",
            "an endpoint needs a Listener or a function",
            3,
        ),
    ],
)
def test_mistakes_in_the_users_file(mistaken, content, message, line):
    said = mistaken(content)
    assert message in said
    assert re.search(rf'broken\.py", line {line}\b', said)


CLASH = """
from backchannel import Hub, Listener

hub = Hub()

def define():
    @hub.endpoint("/ws/chat")
    class Chat(Listener):
        %s

define()
"""


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("def on_connect(self, ws): ...", "Chat.on_connect (broken.py:9) is no callback; did you"),
        ("def on_open(self): ...", "Chat.on_open (broken.py:9) must take (ws), but takes ()"),
        ("def on_message(self, ws, m: 'Nope'): ...", "name 'Nope' is not defined"),
    ],
)
def test_a_definition_error_is_its_message_and_where_the_user_wrote_it(mistaken, written, message):
    said = mistaken(CLASH % written)
    assert said.startswith("Error: ")
    assert message in said.splitlines()[0]
    assert re.search(r'broken\.py", line 7, in define\n', said)
    assert re.search(r'broken\.py", line 11, in <module>\n', said)
    assert "Traceback" not in said


def test_a_mistake_in_a_module_of_the_users_shows_the_way_there(mistaken, folder):
    (folder / "rooms.py").write_text("def f():\n    return 1 / 0\n\n\nx = f()\n")
    said = mistaken("import rooms\n", lines=12)
    for place in ['broken.py", line 1', 'rooms.py", line 5', 'rooms.py", line 2']:
        assert place in said
    assert "ZeroDivisionError: division by zero" in said


def test_the_cause_of_a_users_error_is_shown(mistaken):
    cause = (
        "try:\n    {}['key']\nexcept KeyError as error:\n    raise ValueError('bad') from error\n"
    )
    said = mistaken(cause, lines=14)
    assert "KeyError: 'key'" in said
    assert "ValueError: bad" in said


@pytest.mark.parametrize("written", ["hub = Hub(debgu=True)", "hub.page('/', 'nowhere.html')"])
def test_a_wrong_call_of_the_hub_is_a_definition_error_too(mistaken, written):
    said = mistaken(f"from backchannel import Hub\nhub = Hub()\n{written}\n")
    assert re.search(r'^Error: .+\n +File ".*broken\.py", line 3', said)


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["--version"]])
def test_help(process, command):
    started = process("backchannel", *command)
    assert started.wait() == 0
    said = started.output()
    if command == ["--help"]:
        assert re.search(r"\n +run +Serve the hub in a Python file", said)
        assert re.search(r"\n +doctor +", said)
    elif command == ["--version"]:
        assert re.fullmatch(r"backchannel, version \d+\.\d+\.\d+\n", said)
    else:
        for option in ["host", "port", "reload", "log-level", "log-file", "debug", "open"]:
            assert f"--{option} " in said, option


# ── the log ───────────────────────────────────────────────────────────────────────────────────


async def a_life(server):
    async with server.connect("/ws/chat/cars") as client:
        await client.send("the contents")
        assert await client.recv() == "the contents"
        await client.close(4321, "bye")
    server.process.wait_for_output("SAID closed 4321 client")


async def test_log_file_and_one_line_for_each_event(run, folder):
    server = run("chat.py", "--log-level", "debug", "--log-file", "log.txt")
    await a_life(server)
    ws = r"<Connection \S+ '/ws/chat/cars'"
    for log in (server.printed(), (folder / "log.txt").read_text()):
        lines = [line for line in log.splitlines() if " backchannel." in line]
        for event in [
            rf"{ws}> open, client 127\.0\.0\.1:\d+$",
            rf"{ws}> received 'the contents'$",
            r"publish to channel 'cars': 'the contents'$",
            rf"{ws}> entered 'cars'$",
            rf"{ws} ended=4321> ended by the client: 4321 'bye'$",
        ]:
            assert len([line for line in lines if re.search(event, line)]) == 1, (event, lines)


FORGED = "%0a2030-01-01%2000:00:00%20ERROR%20backchannel.hub:%20forged"


async def test_no_client_can_forge_a_line(run, folder):
    (folder / "log.py").write_text(
        "from backchannel import Hub\nhub = Hub()\n"
        "@hub.endpoint('/ws/{x}')\ndef echo(ws, message: dict): ws.close(4100, message['text'])\n"
    )
    server = run("log.py", "--log-level", "debug")
    forged = unquote(FORGED)
    for path, headers in [
        (f"/ws/x{FORGED}", {"Origin": "http://evil.example"}),
        (f"/nowhere{FORGED}", {}),
    ]:
        with pytest.raises(InvalidStatus):
            await server.connect(path, additional_headers=headers).__aenter__()
    async with server.connect(f"/ws/x{FORGED}") as client:
        await client.send(json.dumps({"text": forged, forged: 1}))
        assert await close_of(client) == 4100
    async with server.connect("/ws/x") as client:
        await client.send(json.dumps([forged]))
        await client.close(4100, forged)
    server.process.wait_for_output("ended by the client: 4100 ")
    printed = server.printed()
    assert printed.count("forged") >= 7
    assert not [line for line in printed.splitlines() if line.startswith("2030")]


async def test_a_client_at_a_path_that_there_is_not_is_told_of(run):
    server = run("chat.py")
    with pytest.raises(InvalidStatus) as caught:
        await server.connect("/ws/eccho").__aenter__()
    assert caught.value.response.status_code == 404
    server.process.wait_for_output(
        r"INFO +backchannel.handshake: refused '/ws/eccho' from \S+ with 404: no endpoint has this "
        r"URL; the nearest are /ws/echo,"
    )


async def test_a_close_without_a_reason_leaves_nothing_at_the_end_of_its_line(run):
    server = run("chat.py")
    async with server.connect("/ws/echo") as client:
        await client.close(1000)
    server.process.wait_for_output(r"ended by the client: 1000\n")


@pytest.mark.parametrize("level", ["info", "warning"])
async def test_contents_are_not_logged_above_debug(run, folder, level):
    server = run("chat.py", "--log-level", level, "--log-file", "log.txt")
    await a_life(server)
    for log in (server.printed(), (folder / "log.txt").read_text()):
        assert "the contents" not in log
        assert ("ended by the client: 4321 'bye'" in log) == (level == "info")


def test_log_file_that_can_not_be_written(refused):
    said = refused("chat.py", "--port", "0", "--log-file", "nowhere/log.txt")
    assert "--log-file nowhere/log.txt: No such file or directory" in said
    assert "Traceback" not in said


# ── --debug ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("debug", [True, False])
async def test_debug_tells_clients_what_failed(run, debug):
    server = run("chat.py", *["--debug"] * debug)
    with pytest.raises(InvalidStatus) as caught:
        await server.connect("/ws/chat/cars?fail=1").__aenter__()
    answer = caught.value.response
    assert answer.status_code == 500
    body = answer.body.decode()
    error_id = re.search("error id ([0-9a-f]{8})", body)[1]
    server.process.wait_for_output(f"error id {error_id}.*secret detail")
    assert ("RuntimeError: secret detail" in body) == debug
    assert ("Traceback (most recent call last)" in body) == debug
    foreign = await server.get("/ws/eccho", headers={"Host": "chat.example.com"})
    assert foreign.status_code == 404
    assert ("/ws/echo" in foreign.text) == debug


BLOCKS = ["sleep", "sqlite3", "socket", "subprocess"]


async def test_debug_forbids_blocking_calls_in_callbacks(run, folder):
    (folder / "blocking.py").write_text(BLOCKING)
    server = run("blocking.py", "--debug")
    for kind in ("def", "async"):
        async with server.connect(f"/ws/{kind}") as client:
            for how in BLOCKS:
                mark = len(server.printed())
                await client.send(how)
                await client.send("end of round")
                assert await client.recv() == "went through", how  # the second one's answer
                told = server.printed()[mark:]
                said = re.search(r"raised BlockingError: Blocking call to (.+) \[", told)
                assert said, (kind, how)
                assert "put @threaded on a plain def, or await an async library" in said[1]
                assert re.search(r'blocking\.py", line \d+, in block', told), (kind, how)
    async with server.connect("/ws/threaded") as client:
        for how in BLOCKS:
            await client.send(how)
            assert await client.recv() == "went through", how


async def test_without_debug_blocking_calls_are_only_slow(run, folder):
    (folder / "blocking.py").write_text(BLOCKING)
    server = run("blocking.py")
    async with server.connect("/ws/async") as client:
        for how in BLOCKS:
            await client.send(how)
            assert await client.recv() == "went through", how


# ── the end ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 1001), (signal.SIGTERM, 1012)], ids=["Ctrl-C", "SIGTERM"]
)
async def test_signals_close_every_socket_and_end_within_3_s(run, make_raw, number, code):
    server = run("chat.py", "--drain", "0")
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(server.connect(f"/ws/chat/room{n % 3}"))
            for n in range(20)
        ]
        await clients[0].send("hang")
        assert await clients[0].recv() == "hanging"
        silent = await stack.enter_async_context(make_raw(server, "/ws/chat/silent"))
        await silent.opened()
        deaf = await stack.enter_async_context(
            make_raw(server, "/ws/chat/deaf", receive_buffer=4096)
        )
        await deaf.opened()
        talker = await stack.enter_async_context(server.connect("/ws/chat/deaf"))
        for _ in range(5):  # more than fits into what the operating system buffers
            await talker.send("x" * 900_000)
            await talker.recv()
        began = time.monotonic()
        server.process.signal(number)
        closes = await asyncio.gather(*(close_of(client) for client in [*clients, talker]))
        assert closes == [code] * 21
        assert await silent.close_code() == code  # and it never answers
        await asyncio.to_thread(server.process.wait)
        assert time.monotonic() - began < 3
    printed = server.printed()
    slow = printed.count("SAID closed 4001 server")  # the deaf one, if its outbox was full
    assert printed.count(f"SAID closed {code} server") == 23 - slow
    assert slow <= 1
    assert "Traceback" not in printed
    assert server.process.popen.returncode == 0


@pytest.mark.parametrize("trouble", ["refuse to be cancelled", "block a thread"])
async def test_ends_within_3_s_also_when_a_callback_never_does(run, trouble):
    server = run("chat.py")
    path = "/ws/thread" if trouble == "block a thread" else "/ws/chat/x"
    async with server.connect(path) as client:
        await client.send("hang on")
        assert await client.recv() == "hanging"
        began = time.monotonic()
        server.process.signal(signal.SIGINT)
        assert await close_of(client) == 1001
        await asyncio.to_thread(server.process.wait)
        assert time.monotonic() - began < 3
    printed = server.printed()
    assert "Traceback" not in printed
    assert "a task or thread of the application does not end" in printed
    if trouble != "block a thread":
        assert printed.count("SAID closed 1001 server") == 1
        assert "still runs though its connection ended" in printed


@pytest.mark.timeout(90)
async def test_reload_serves_the_new_behaviour(run, folder):
    server = run("chat.py", "--reload")
    async with server.connect("/ws/echo") as client:
        await client.send("hello")
        assert await client.recv() == "hello"
        mark = len(server.printed())
        changed = CHAT.replace("return message", "return message.upper()")
        (folder / "chat.py").write_text(changed)
        assert await close_of(client) == 1012
    server.process.wait_for_output(rf"(?s)\A.{{{mark}}}.*Ctrl-C to stop")
    async with server.connect("/ws/echo") as client:
        await client.send("hello")
        assert await client.recv() == "HELLO"
        began = time.monotonic()
        os.killpg(server.process.pid, signal.SIGINT)  # as a terminal does
        assert await close_of(client) == 1001
        await asyncio.to_thread(server.process.wait)
        assert time.monotonic() - began < 3
    assert "Traceback" not in server.printed()


@pytest.mark.timeout(90)
async def test_reload_survives_a_mistake_in_the_file(run, folder):
    server = run("chat.py", "--reload")
    (folder / "chat.py").write_text("def broken(:\n")
    said = server.process.wait_for_output(r"(?s)SyntaxError: .*?\n").string
    assert "Traceback" not in said
    (folder / "chat.py").write_text("x = 1\n")
    said = server.process.wait_for_output("chat.py has no hub named 'hub'").string
    assert "Traceback" not in said
    mark = len(server.printed())
    (folder / "chat.py").write_text(CHAT)
    server.process.wait_for_output(rf"(?s)\A.{{{mark}}}.*Ctrl-C to stop")
    async with server.connect("/ws/echo") as client:
        await client.send("hello")
        assert await client.recv() == "hello"


# ── sessions of its own ───────────────────────────────────────────────────────────────────────

VISITS = """
from backchannel import Hub, Listener
from backchannel.session.server import ServerSessions

hub = Hub(session=ServerSessions({arguments}))
hub.page("/", "page.html")

@hub.endpoint("/ws")
class Visits(Listener):
    async def on_open(self, ws):
        ws.session["visits"] = ws.session.get("visits", 0) + 1
        await ws.session.save()
        ws.send(str(ws.session["visits"]))
"""


async def visits(server, cookie):
    async with server.connect("/ws", additional_headers={"Cookie": cookie}) as socket:
        return await asyncio.wait_for(socket.recv(), 10)


async def test_the_page_gives_a_session_and_the_socket_writes_to_it(run, folder):
    (folder / "visits.py").write_text(VISITS.format(arguments=""))
    server = run("visits.py")
    first, second = [
        (await server.get("/")).headers["set-cookie"].partition(";")[0] for _ in range(2)
    ]
    assert await visits(server, first) == "1"
    assert await visits(server, first) == "2"
    assert await visits(server, second) == "1"
    assert "ServerSessions has no secret" in server.printed()


async def test_sessions_in_redis_outlive_the_server(run, folder, redis_server):
    arguments = f'secret="{"s" * 32}", store="{redis_server.url}"'
    (folder / "visits.py").write_text(VISITS.format(arguments=arguments))
    server = run("visits.py")
    cookie = (await server.get("/")).headers["set-cookie"].partition(";")[0]
    assert await visits(server, cookie) == "1"
    server.process.end()
    assert await visits(run("visits.py"), cookie) == "2"
    assert not re.search("secret|Traceback|Warning", server.printed())


# ── forwarded addresses ───────────────────────────────────────────────────────────────────────

COUNTED = """
from backchannel import Hub

hub = Hub(max_connections_per_address=1, trusted_proxies={proxies!r})


@hub.endpoint("/ws")
def where(ws, message: str):
    return ws.client[0]
"""


@pytest.mark.parametrize("transport", ["native", "portable"])
async def test_a_forwarded_address_counts_only_from_a_trusted_proxy(folder, run, transport):
    (folder / "counted.py").write_text(COUNTED.format(proxies=[]))
    server = run("counted.py", "--transport", transport)
    async with server.connect("/ws") as client:
        for forged in ("6.6.6.6", "6.6.6.7"):
            headers = {"X-Forwarded-For": forged, "Forwarded": f"for={forged}"}
            with pytest.raises(InvalidStatus) as caught:
                async with server.connect("/ws", additional_headers=headers):
                    pass
            assert caught.value.response.status_code == 429
        await client.send("?")
        assert await client.recv() == "127.0.0.1"
    assert "6.6.6" not in server.printed()


async def test_a_proxy_that_is_trusted_says_who_the_client_is(folder, run):
    (folder / "counted.py").write_text(COUNTED.format(proxies=["127.0.0.0/8"]))
    server = run("counted.py")
    async with (
        server.connect("/ws", additional_headers={"X-Forwarded-For": "6.6.6.6"}) as one,
        server.connect("/ws", additional_headers={"X-Forwarded-For": "6.6.6.7"}) as two,
    ):
        for client, address in ((one, "6.6.6.6"), (two, "6.6.6.7")):
            await client.send("?")
            assert await client.recv() == address


# ── packages ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("target", ["site/live.py:hub", "site.live:hub"])
def test_a_file_in_a_package_imports_its_own_package(folder, run, target):
    target = target.replace("site", "mysite")
    (folder / "mysite").mkdir()
    (folder / "mysite/__init__.py").write_text("")
    (folder / "mysite/names.py").write_text("PATH = '/ws'\n")
    (folder / "mysite/live.py").write_text(
        "from backchannel import Hub, Listener\nfrom mysite.names import PATH\n\n"
        "hub = Hub()\nhub.add(PATH, Listener)\n"
    )
    assert "ws://localhost" in run(target).printed()
