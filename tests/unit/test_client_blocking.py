"""The client without an event loop, against a small server that speaks the specification."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from speaker import Speaker

from backchannel.client import (
    Closed,
    Lost,
    NotAdmitted,
    OutcomeUnknown,
    Publication,
    ServerError,
    returning,
    tokens,
)
from backchannel.client.blocking import connect


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(returning, "FIRST", 0.01)


class Running:
    """A Speaker in a thread of its own."""

    def __init__(self):
        self.speaker = Speaker()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self(self.speaker.__aenter__())
        self.url = self.speaker.url

    def __call__(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def cut(self, number=0):
        async def cut():
            (await self.speaker.peer(number)).cut()

        self(cut())

    def stop(self):
        self(self.speaker.__aexit__())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def running():
    running = Running()
    yield running
    running.stop()


def test_everything_is_there(running):
    with connect(running.url) as client:
        assert client.state == "open"
        client.send("one")
        client.deliver({"two": 2}, timeout=5)
        assert client.call("add", {"a": 1, "b": 2}, type=int) == 3
        events = client.subscribe("news").ready(timeout=5)
        assert client.publish("news", "x") == "e.1"
        assert events.receive(timeout=5) == Publication("news", "x", "e.1")
        assert (events.channel, events.position, events.is_in) == ("news", "e.1", True)
        assert events.publish("y") == "e.2"
        for event in events:
            assert event.data == "y"
            break
        assert [member.user for member in events.presence()] == ["ana"]
        assert client.renew("t") == 60
        events.unsubscribe()
        assert list(events) == []
        with pytest.raises(ServerError, match="refused"), client.subscribe("secret"):
            pass
        peer = running.speaker.peers[0]
        running(peer.say("message", data="hi"))
        assert client.receive(timeout=5) == "hi"
        with pytest.raises(TimeoutError):
            client.receive(timeout=0.01)
        running(peer.say("message", data="late"))
        running(peer.say("message", data="later"))
        assert [next(iter(client)) for _ in range(2)] == ["late", "later"]
        events = client.subscribe("more")
    assert client.state == "closed"
    assert list(client) == list(events) == []
    client.wait_closed()
    assert running.speaker.messages == ["one", {"two": 2}]
    assert not [t for t in threading.enumerate() if t.name == "backchannel client"]


def test_it_comes_back_with_what_was_missed(running):
    with connect(running.url) as client:
        events = client.subscribe("news").ready()
        running.cut()
        for n in range(3):
            running(running.speaker.publish("news", n))
        assert [events.receive(timeout=5).data for _ in range(3)] == [0, 1, 2]
        client.wait_open(timeout=5)
        assert client.resumed


def test_many_threads_use_one_client_while_it_is_cut(running):
    with connect(running.url) as client:
        events = client.subscribe("news").ready()

        def publish(thread):
            return [client.publish("news", [thread, n], timeout=20) for n in range(20)]

        with ThreadPoolExecutor(5) as threads:
            publishing = [threads.submit(publish, n) for n in range(4)]
            got = []
            for count in range(80):
                got.append(events.receive(timeout=20).data)
                if count % 20 == 10:
                    running.cut(len(running.speaker.peers) - 1)
            positions = [p for future in publishing for p in future.result()]
        assert len(set(positions)) == 80
        for thread in range(4):
            assert [n for t, n in got if t == thread] == list(range(20))


def test_closing_in_another_thread_ends_what_waits(running):
    with connect(running.url) as client, ThreadPoolExecutor(4) as threads:
        running.speaker.before = lambda *_: "drop"
        iterating = threads.submit(list, client)
        receiving = threads.submit(client.receive)
        threads.submit(client.close).result(10)
        assert iterating.result(10) == []
        with pytest.raises(Closed):
            receiving.result(10)
        with pytest.raises(Closed):
            client.send("x")
        client.close()


def test_answers_and_tokens_may_block_and_use_the_client(running):
    asked = []

    def token():
        asked.append(threading.current_thread().name)
        return "t1"

    with connect(running.url, token=token) as client:

        @client.answer("sum")
        def answer(data):
            return client.call("add", data)

        peer = running.speaker.peers[0]
        running(peer.say("call", id=1, event="sum", data={"a": 1, "b": 2}))
        assert running(peer.expect("reply"))["data"] == 3
    assert peer.request.headers["Authorization"] == "Bearer t1"
    assert asked != ["backchannel client"]


def test_a_token_that_blocks_is_asked_for_newer_ones_in_time(running, monkeypatch):
    monkeypatch.setattr(tokens, "SOONEST", 0.01)
    running.speaker.hello, running.speaker.renews = {"expires_in": 0.02}, None
    asked = []

    def token():
        asked.append(threading.current_thread().name)
        return f"t{len(asked)}"

    with connect(running.url, token=token) as client:
        peer = running.speaker.peers[0]
        assert running(peer.expect("renew"))["token"] == "t2"
        client.deliver("after")
        assert client.state == "open"
    assert "backchannel client" not in asked


def test_on_lost_may_block_and_use_the_client(running):
    told = queue.Queue()

    def load(lost):
        client.deliver("load")
        told.put((lost, threading.current_thread().name))

    with connect(running.url, on_lost=load) as client:
        peer = running.speaker.peers[0]
        for channel, fields in (("news", {"channel": "news"}), (None, {})):
            running(peer.say("lost", **fields))
            lost, thread = told.get(timeout=10)
            assert lost == Lost(channel)
            assert thread != "backchannel client"
    assert running.speaker.messages == ["load", "load"]


def test_on_lost_may_close_the_client(running):
    with connect(running.url, on_lost=lambda _: client.close()) as client:
        running(running.speaker.peers[0].say("lost"))
        client.wait_closed()
        assert list(client) == []


def test_an_answer_may_close_the_client(running):
    with connect(running.url) as client:

        @client.answer("go")
        def answer(data):
            client.close()

        running(running.speaker.peers[0].say("call", id=1, event="go", data=None))
        client.wait_closed()
        assert list(client) == []


def test_calls_of_other_threads_end_when_it_is_closed(running):
    """Whatever they do at that moment: none waits for an event loop that has ended."""
    for _ in range(20):
        with connect(running.url) as client, ThreadPoolExecutor(3) as threads:

            def use(client=client):
                try:
                    while True:
                        client.send("x")
                        client.deliver("y")
                except (Closed, OutcomeUnknown) as error:
                    return error

            using = [threads.submit(use) for _ in range(3)]
            client.deliver("z")
            client.close()
            for future in using:
                assert future.result(10) is not None


def test_what_would_wait_for_itself_raises(running):
    problems = []

    def on_state(state):
        try:
            client.send(state)
        except RuntimeError as error:
            problems.append(str(error))

    client = connect(running.url, on_state=on_state)
    with client:
        pass
    assert problems
    assert all("would wait for itself" in problem for problem in problems)


def test_a_refusal_raises_and_leaves_no_thread(running):
    running.speaker.refuse = lambda _: (403, {}, "no")
    client = connect(running.url)
    with pytest.raises(RuntimeError, match="not connected yet"):
        client.send("x")
    with pytest.raises(NotAdmitted, match="HTTP 403: no"), client:
        pass
    with pytest.raises(RuntimeError, match="used before"):
        client.__enter__()
    assert not [t for t in threading.enumerate() if t.name == "backchannel client"]
