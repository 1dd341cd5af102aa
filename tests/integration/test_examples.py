"""Each example, run the way its first lines say, and talked to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import sys
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 10.0
"""Seconds a test waits for what should come at once."""


@contextlib.asynccontextmanager
async def running(*arguments, cwd=EXAMPLES.parent, **env):
    """Run ``python -m …``; yields host and port it says it serves at; ends it like Ctrl-C does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, cwd=cwd, env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    log = []

    async def read_until(pattern):
        while line := (await process.stdout.readline()).decode():
            log.append(line)
            if found := re.search(pattern, line):
                return found[1]
        raise EOFError

    rest = None
    try:
        try:
            address = await asyncio.wait_for(read_until(r"(?:http|ws)://([\w.]+:\d+)"), 30)
        except (EOFError, TimeoutError):
            pytest.fail(f"{arguments} did not say where it serves:\n{''.join(log)}")
        rest = asyncio.create_task(process.stdout.read())
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), PATIENCE)
        except TimeoutError:
            process.kill()
            await process.wait()
            pytest.fail(f"{arguments} had to be killed")
        finally:
            if rest:
                log.append((await rest).decode())
    printed = "".join(log)
    # On a busy machine the process may be held up inside a callback, and the hub can't know why.
    bad = re.search(r"ERROR|WARNING(?!.*held the event loop)|Traceback", printed)
    assert bad is None, printed


UVICORN = {
    "native": [
        "--ws", "backchannel.transport.uvicorn:Protocol",
        "--http", "backchannel.transport.uvicorn:HttpProtocol",
    ],
    "portable": [],
}  # fmt: skip


@pytest.fixture(params=UVICORN)
def transport(request):
    return request.param


def example(transport, name, **env):
    return running(
        "backchannel", "run", str(EXAMPLES / name), "--port", "0", "--transport", transport, **env
    )


def uvicorn(transport, name, **options):
    return running("uvicorn", name, "--port", "0", *UVICORN[transport], **options)


class Client:
    """A client that speaks JSON."""

    def __init__(self, socket):
        self.socket = socket

    async def send(self, **message):
        await self.socket.send(json.dumps(message))

    async def get(self):
        return json.loads(await asyncio.wait_for(self.socket.recv(), PATIENCE))

    async def get_until(self, type_):
        """Return what comes up to the first message of a type, that one last."""
        messages = [await self.get()]
        while messages[-1]["type"] != type_:
            messages.append(await self.get())
        return messages


@contextlib.asynccontextmanager
async def client(address, path):
    # max_queue: a client that leaves with messages unread would otherwise not read the close frame.
    async with connect(f"ws://{address}{path}", proxy=None, max_queue=None) as socket:
        yield Client(socket)


class Person(Client):
    """A client of the chat who keeps the list of people as the page does."""

    def __init__(self, socket, welcome):
        super().__init__(socket)
        self.id = welcome["you"]
        self.people = welcome["people"]

    async def get(self):
        message = await super().get()
        if message["type"] == "joined":
            assert message["id"] not in self.people, "told twice of someone who joined"
            self.people[message["id"]] = message["name"]
        elif message["type"] == "left":
            assert message["id"] in self.people, "told of someone who left and was not here"
            del self.people[message["id"]]
        return message


async def enter(stack, address, name, channel="cars"):
    """Enter the chat; all that are in ``stack`` leave at its end."""
    path = f"/ws/chat/{channel}?{urlencode({'name': name})}"
    one = await stack.enter_async_context(client(address, path))
    *before, welcome = await one.get_until("welcome")
    assert {message["type"] for message in before} <= {"joined", "left"}
    assert welcome.keys() == {"type", "you", "people"}
    return Person(one.socket, welcome)


@pytest.fixture
async def chat(transport):
    async with example(transport, "chat.py") as address, contextlib.AsyncExitStack() as stack:

        async def come(name, channel="cars"):
            return await enter(stack, address, name, channel)

        come.address = address
        yield come


# ── echo ──────────────────────────────────────────────────────────────────────────────────────


async def test_echo_sends_text_and_bytes_back_as_they_came(transport):
    async with (
        example(transport, "echo.py") as address,
        connect(f"ws://{address}/ws/echo", proxy=None) as socket,
    ):
        for message in ("hello", "", '{"a":  1}', "žluťoučký 🐎", b"", b"\x00\xff"):
            await socket.send(message)
            assert await socket.recv() == message


# ── chat ──────────────────────────────────────────────────────────────────────────────────────


async def test_chat_shows_who_is_here_and_follows_who_comes_and_goes(chat):
    ana = await chat("Ana")
    assert ana.people == {ana.id: "Ana"}
    ben = await chat("Ben")
    assert ben.people == {ana.id: "Ana", ben.id: "Ben"}
    assert await ana.get() == {"type": "joined", "id": ben.id, "name": "Ben"}
    await chat("Cleo", "music")  # another channel: nobody here hears of it
    await ben.socket.close()
    assert await ana.get() == {"type": "left", "id": ben.id}
    assert (await chat("Dario")).people.keys() > {ana.id}


async def test_chat_notices_a_client_that_vanishes_without_a_word(chat):
    ana, ben = await chat("Ana"), await chat("Ben")
    await ana.get()
    ben.socket.transport.abort()
    assert await ana.get() == {"type": "left", "id": ben.id}


async def test_chat_says_to_all_of_the_channel_the_sender_included(chat):
    ana, ben = await chat("Ana"), await chat("Ben")
    dario = await chat("Dario", "music")
    await ana.get()
    await ana.send(type="say", text="hello <b>all</b>")
    for one in (ana, ben):
        assert await one.get() == {"type": "said", "by": ana.id, "text": "hello <b>all</b>"}
    await dario.send(type="say", text="la la")
    assert await dario.get() == {"type": "said", "by": dario.id, "text": "la la"}


async def test_a_whisper_reaches_one_connection_of_that_channel_and_nobody_else(chat):
    ana, ben, cleo = [await chat(name) for name in ("Ana", "Ben", "Cleo")]
    ben_elsewhere = await chat("Ben", "music")
    await ana.get_until("joined")
    await ana.get_until("joined")
    await ben.get_until("joined")
    await ana.send(type="whisper", to=ben.id, text="psst")
    delivery = {"type": "delivery", "to": ben.id, "text": "psst", "delivered": True}
    assert await ana.get() == delivery
    assert await ben.get() == {"type": "whispered", "by": ana.id, "text": "psst"}
    # What comes next to each is a message sent later: there was no whisper before it.
    await ana.send(type="say", text="after")
    for one in (ana, ben, cleo):
        assert await one.get() == {"type": "said", "by": ana.id, "text": "after"}
    await ben_elsewhere.send(type="say", text="after")
    assert (await ben_elsewhere.get())["text"] == "after"


async def test_a_whisper_to_someone_who_is_not_in_the_channel_is_not_delivered(chat):
    ana, ben = await chat("Ana"), await chat("Ben")
    dario = await chat("Dario", "music")
    await ben.socket.close()
    await ana.get_until("left")
    for to in (ben.id, dario.id, "nobody", ""):
        await ana.send(type="whisper", to=to, text="psst")
        answer = {"type": "delivery", "to": to, "text": "psst", "delivered": False}
        assert await ana.get() == answer
    await dario.send(type="say", text="quiet here")
    assert (await dario.get())["text"] == "quiet here"


async def test_typing_is_told_to_the_others_only(chat):
    ana, ben = await chat("Ana"), await chat("Ben")
    await ana.get()
    await ana.send(type="typing")
    await ana.send(type="say", text="done")
    assert (await ana.get())["type"] == "said"
    assert await ben.get() == {"type": "typing", "by": ana.id}
    assert (await ben.get())["type"] == "said"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (None, "Please tell us your name."),
        ("", "Please tell us your name."),
        (" \t\u200b ", "Please tell us your name."),
        ("A" * 25, "A name can have 24 characters at most."),
    ],
)
async def test_a_name_that_will_not_do_is_refused_with_the_reason(chat, name, reason):
    ana = await chat("Ana")
    query = "" if name is None else "?" + urlencode({"name": name})
    async with client(chat.address, "/ws/chat/cars" + query) as refused:
        with pytest.raises(ConnectionClosed) as closed:
            await refused.get()
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, reason)
    await ana.send(type="say", text="nobody came")
    assert (await ana.get())["text"] == "nobody came"


async def test_a_name_that_is_taken_gets_a_number_and_is_free_again_afterwards(chat):
    ana, second, third = await chat("Ana"), await chat("ana"), await chat("ANA")
    assert third.people == {ana.id: "Ana", second.id: "ana 2", third.id: "ANA 3"}
    elsewhere = await chat("Ana", "music")
    assert elsewhere.people == {elsewhere.id: "Ana"}
    await second.socket.close()
    await ana.get_until("left")
    fourth = await chat("Ana")
    assert fourth.people[fourth.id] == "Ana 2"


async def test_a_name_is_one_line_without_what_can_not_be_seen(chat):
    eve = await chat(" E\u202ev\x00 \n e ")
    assert eve.people[eve.id] == "E v e"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ('{"type": "say", "text": "  "}', "$.text"),
        ('{"type": "say", "text": ""}', "$.text"),
        (json.dumps({"type": "say", "text": "x" * 2001}), "$.text"),
        ('{"type": "whisper", "to": null, "text": "x"}', "$.to"),
        ('{"type": "whisper", "to": ["a"], "text": "x"}', "$.to"),
        ('{"type": "shout"}', "$.type"),
        ("hello", "$"),
    ],
)
async def test_a_message_that_will_not_do_is_refused_and_the_connection_kept(chat, message, field):
    ana = await chat("Ana")
    await ana.socket.send(message)
    error = await ana.get()
    assert (error["type"], error["field"]) == ("error", field)
    await ana.send(type="say", text="still here")
    assert (await ana.get())["text"] == "still here"


async def test_everyone_sees_the_same_people_after_many_came_and_went_at_once(chat):
    """Each of the others is in each one's list once: from its welcome on, whatever the order."""
    rng = random.Random(7)
    watcher = await chat("Watcher")

    async def visit(number):
        async with contextlib.AsyncExitStack() as stack:
            one = await enter(stack, chat.address, f"Visitor {number % 5}")
            for _ in range(rng.randrange(3)):
                await one.send(type="typing")
            if rng.random() < 0.3:
                one.socket.transport.abort()

    async def stay(number):
        return await chat(f"Guest {number % 5}")

    work = [visit(number) for number in range(60)] + [stay(number) for number in range(20)]
    rng.shuffle(work)
    done = await asyncio.gather(*work)
    guests = [watcher, *(one for one in done if one is not None)]
    wanted = {one.id for one in guests}
    for one in guests:
        while one.people.keys() != wanted:
            await one.get()
        assert len(set(one.people.values())) == len(wanted), "a name twice"
        assert one.people == watcher.people
    await watcher.send(type="say", text="that is all")
    for one in guests:  # and nothing more comes that would change it
        await one.get_until("said")
        assert one.people.keys() == wanted


class Page:
    """A client of the chat that speaks v1 and keeps the list of people as the page does."""

    def __init__(self, socket):
        self.socket, self.people = socket, None

    async def get(self):
        frame = json.loads(await asyncio.wait_for(self.socket.recv(), PATIENCE))
        data = frame.get("data") or {"type": ""}
        if data["type"] == "welcome":
            self.id, self.people = data["you"], data["people"]
        elif data["type"] == "joined" and self.people is not None:
            self.people[data["id"]] = data["name"]
        elif data["type"] == "left" and self.people is not None:
            self.people.pop(data["id"], None)
        return data

    async def get_until(self, type_):
        while (await self.get())["type"] != type_:
            pass


async def test_pages_that_come_and_go_at_once_know_who_is_here_with_a_broker(
    transport, redis_server
):
    """Entering takes a moment there: whoever comes or goes in it is not missed."""
    rng = random.Random(7)
    async with (
        example(transport, "chat.py", BROKER=redis_server.url) as address,
        contextlib.AsyncExitStack() as stack,
    ):

        async def come(number):
            path = f"/ws/chat/cars?name=P{number % 5}"
            connecting = connect(
                f"ws://{address}{path}", proxy=None, max_queue=None,
                subprotocols=["backchannel.v1.json"],
            )  # fmt: skip
            page = Page(await stack.enter_async_context(connecting))
            await page.socket.send('{"type": "hello"}')
            await page.get_until("welcome")
            if rng.random() < 0.5:
                await page.socket.close()
                return None
            return page

        stayed = [one for one in await asyncio.gather(*map(come, range(60))) if one is not None]
        wanted = {one.id for one in stayed}
        while stayed[0].people.keys() != wanted:
            await stayed[0].get()
        await stayed[0].socket.send('{"type": "message", "data": {"type": "say", "text": "all"}}')
        for one in stayed:
            await one.get_until("said")
            assert one.people == stayed[0].people
        assert len(set(stayed[0].people.values())) == len(stayed), "a name twice"


async def test_the_chat_page_is_served_and_needs_nothing_from_elsewhere(chat):
    async with httpx.AsyncClient(verify=False, trust_env=False) as http:
        answer = await http.get(f"http://{chat.address}/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    links = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s'\"]*", answer.text))
    assert links == {"http://www.w3.org/2000/svg"}, "only the icon's XML namespace, no address"
    assert "innerHTML" not in answer.text


# ── FastAPI ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "run",
    [
        lambda transport: uvicorn(transport, "examples.fastapi_app:app"),
        lambda transport: uvicorn(transport, "fastapi_app:app", cwd=EXAMPLES),
        lambda transport: example(transport, "fastapi_app.py:app"),
    ],
    ids=["uvicorn", "uvicorn-in-its-folder", "backchannel"],
)
async def test_a_post_to_the_fastapi_app_reaches_the_channel(run, transport):
    async with run(transport) as address, contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            httpx.AsyncClient(verify=False, trust_env=False, base_url=f"http://{address}")
        )
        listeners = []
        for channel in ("orders", "orders", "weather"):
            one = await stack.enter_async_context(client(address, f"/live/ws/{channel}"))
            assert await one.get() == {"listening": channel}
            listeners.append(one)
        assert (await http.get("/channels")).json() == {"orders": 2, "weather": 1}
        answer = await http.post("/channels/orders", json={"text": "Number 42 is ready"})
        assert (answer.status_code, answer.json()) == (200, {"reached": 2})
        for one in listeners[:2]:
            assert await one.get() == {"text": "Number 42 is ready"}
        answer = await http.post("/channels/weather", json={"text": "sun"})
        assert answer.json() == {"reached": 1}
        assert await listeners[2].get() == {"text": "sun"}
        assert (await http.post("/channels/empty", json={"text": "?"})).json() == {"reached": 0}
        assert (await http.post("/channels/orders", json={"text": ""})).status_code == 422
        assert (await http.post("/channels/a%20b", json={"text": "x"})).status_code == 422


# ── private chat ──────────────────────────────────────────────────────────────────────────────


async def test_private_chat_speaks_as_the_demo_does(transport):
    async with (
        example(transport, "private_chat.py") as address,
        contextlib.AsyncExitStack() as stack,
    ):

        async def come():
            return await stack.enter_async_context(client(address, "/ws/privatechat"))

        async def users(asker, name):
            await asker.send(msgType="userlist", username=name)
            answer = await asker.get()
            assert answer.keys() == {"msgType", "username", "msg"}
            assert (answer["msgType"], answer["username"]) == ("userlist", name)
            return answer["msg"]

        ana = await come()
        (ana_id,) = await users(ana, "Ana")
        assert await users(ana, "Ana") == {ana_id: "UNREGISTERED"}
        await ana.send(msgType="connect", username="Ana", msg="Ana")
        assert await ana.get() == {"msgType": "connect", "username": "Ana", "msg": "Ana"}

        ben, cleo = await come(), await come()
        await ben.send(msgType="connect", username="Ben", msg="Ben")
        for one in (ana, ben, cleo):
            assert await one.get() == {"msgType": "connect", "username": "Ben", "msg": "Ben"}
        found = await users(cleo, "Cleo")
        assert sorted(found.values()) == ["Ana", "Ben", "UNREGISTERED"]
        assert found[ana_id] == "Ana"
        ben_id = next(id_ for id_, name in found.items() if name == "Ben")

        await ana.send(msgType="public", username="Ana", msg="hello")
        for one in (ana, ben, cleo):
            assert await one.get() == {"msgType": "public", "username": "Ana", "msg": "hello"}
        await ana.send(msgType="public", username="Ana")  # the page leaves an empty msg out
        for one in (ana, ben, cleo):
            assert await one.get() == {"msgType": "public", "username": "Ana"}

        psst = {"msgType": "private", "username": "Ana", "msg": "psst"}
        await ana.send(**psst, destinationWebSocketID=ben_id)
        assert await ana.get() == psst
        assert await ben.get() == psst
        await ana.send(**psst, destinationWebSocketID=ana_id)  # to herself: once
        assert await ana.get() == psst
        await ana.send(**psst, destinationWebSocketID="gone")
        assert await ana.get() == psst

        await ben.socket.close()
        for one in (ana, cleo):  # and Cleo's next frame is this one: no whisper before it
            assert await one.get() == {"msgType": "disconnect", "username": "Ben"}
        await cleo.socket.close()
        assert await ana.get() == {"msgType": "disconnect", "username": "UNREGISTERED"}
        assert await users(ana, "Ana") == {ana_id: "Ana"}


@pytest.mark.parametrize(
    ("name", "password", "place"),
    [("ana", "chat", "/"), ("ana", "wrong", "/?failed"), ("ána", "pässword", "/?failed")],
)
async def test_the_fastapi_login_answers_any_name_and_password(transport, name, password, place):
    async with (
        example(transport, "fastapi_login.py:app") as address,
        httpx.AsyncClient(trust_env=False, base_url=f"http://{address}") as http,
    ):
        answer = await http.post("/login", data={"name": name, "password": password})
        assert (answer.status_code, answer.headers["location"]) == (303, place)


# ── three servers ─────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def cluster(end):
    """Run the example as its first lines say; yields its three addresses, and sees all ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "cluster.py", "--port", "0", cwd=EXAMPLES,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    log = ""
    try:
        async with asyncio.timeout(60):
            while "Ctrl-C to stop" not in log:
                line = (await process.stdout.readline()).decode()
                assert line, f"ended too early:\n{log}"
                log += line
        addresses = re.findall(r"http://(localhost:\d+)/", log)
        yield addresses
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(end)
        try:
            rest, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
        except TimeoutError:
            process.terminate()
            raise
    assert process.returncode == 0
    assert rest.strip() == b""  # Ctrl-C of the servers prints line ends
    for address in addresses:
        with pytest.raises(OSError):
            await asyncio.open_connection(*address.split(":"))


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
async def test_the_cluster_is_one_chat_on_three_servers(end):
    async with cluster(end) as addresses, contextlib.AsyncExitStack() as stack:
        assert len(set(addresses)) == 3
        people = []
        for number, address in enumerate(addresses, 1):
            path = "/ws/chat/cars?" + urlencode({"name": f"P{number}"})
            one = await stack.enter_async_context(client(address, path))
            welcome = (await one.get_until("welcome"))[-1]
            people.append((one, welcome["you"]))
            assert len(welcome["people"]) == number
        names = [f"P{number} (server {number})" for number in (1, 2, 3)]
        assert sorted(welcome["people"].values()) == names
        (ana, ana_id), (ben, ben_id), (cleo, cleo_id) = people
        assert [one["id"] for one in (await ana.get(), await ana.get())] == [ben_id, cleo_id]
        await ana.send(type="whisper", to=cleo_id, text="psst")
        assert await cleo.get() == {"type": "whispered", "by": ana_id, "text": "psst"}
        delivery = {"type": "delivery", "to": cleo_id, "text": "psst", "delivered": True}
        assert await ana.get() == delivery
        await ana.send(type="say", text="hello")
        assert (await ben.get_until("said"))[-1] == {"type": "said", "by": ana_id, "text": "hello"}
        assert await cleo.get() == {"type": "said", "by": ana_id, "text": "hello"}
        await ben.socket.close()
        assert await cleo.get() == {"type": "left", "id": ben_id}
        async with httpx.AsyncClient(trust_env=False) as http:
            for address in addresses:
                assert "<title>Backchannel chat" in (await http.get(f"http://{address}/")).text
