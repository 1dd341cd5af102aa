"""Async callbacks begin in a task that they share, and nobody can tell: each has a real task."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import random
import threading
from contextvars import ContextVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from shared import turns

from backchannel import Hub
from backchannel.fanout import Fanout
from backchannel.runtime import Runtime

WHO: ContextVar[str] = ContextVar("who", default="nobody")
SEEN: ContextVar[int] = ContextVar("seen", default=0)


@contextlib.asynccontextmanager
async def crowd(hub, count, path="/ws"):
    """So many clients; what they send one after the other comes in one turn of the event loop."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(hub.test_client(path)) for _ in range(count)]


async def all_say(clients, *messages):
    for client, message in zip(clients, messages, strict=True):
        await client.send(message)


def errors_of(caplog):
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]


# ── many in one turn ──────────────────────────────────────────────────────────────────────────


async def test_many_that_have_to_wait_have_all_begun_within_a_few_turns(hub):
    begun, gate = [], asyncio.Event()

    @hub.endpoint("/ws")
    async def wait(ws, message: str):
        begun.append(message)
        await gate.wait()
        return message

    async with crowd(hub, 60) as clients:
        await all_say(clients, *map(str, range(60)))
        await turns(7)  # 1, 2, 4, 8, 16, 32 of them
        assert begun == [str(number) for number in range(60)]
        gate.set()
        for number, one in enumerate(clients):
            assert await one.receive() == str(number)


async def test_each_of_many_in_one_turn_gets_its_own_answer_in_order(hub):
    rng = random.Random(5)

    @hub.endpoint("/ws")
    async def echo(ws, message: str):
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
        if rng.random() < 0.2:
            await asyncio.sleep(0.001)
        return message

    async with crowd(hub, 40) as clients:
        for number in range(5):
            await all_say(clients, *(f"{number} of {one.id}" for one in clients))
        for one in clients:
            assert [await one.receive() for _ in range(5)] == [
                f"{number} of {one.id}" for number in range(5)
            ]


async def test_they_begin_in_the_order_in_which_their_messages_came(hub):
    began = []

    @hub.endpoint("/ws")
    async def note(ws, message: str):
        began.append(message)
        if int(message) % 3 == 0:
            await asyncio.Event().wait()

    async with crowd(hub, 20) as clients:
        await all_say(clients, *map(str, range(20)))
        await turns(20)
        assert began == [str(number) for number in range(20)]


async def test_giving_up_the_turn_lets_the_others_begin(hub):
    order = []

    @hub.endpoint("/ws")
    async def polite(ws, message: str):
        order.append(f"{message} began")
        await asyncio.sleep(0)
        order.append(f"{message} went on")

    async with crowd(hub, 2) as clients:
        await all_say(clients, "a", "b")
        await turns()
    assert order == ["a began", "b began", "a went on", "b went on"]


@pytest.mark.parametrize("wait", [0, 1, 7])
async def test_there_are_no_more_tasks_than_callbacks_that_wait(hub, wait):
    over = asyncio.Event()

    @hub.endpoint("/ws")
    async def some_wait(ws, message: str):
        if message == "wait":
            await over.wait()

    async with crowd(hub, 30) as clients:
        before = len(asyncio.all_tasks())
        await all_say(clients, *["wait"] * wait, *["go"] * (30 - wait))
        assert len(asyncio.all_tasks()) <= before + 1  # none of them has begun
        await turns(40)
        assert len(asyncio.all_tasks()) == before + wait
        over.set()
        await turns()
        assert len(asyncio.all_tasks()) == before


# ── a real task ───────────────────────────────────────────────────────────────────────────────


async def test_the_current_task_is_a_tasks_and_ones_own_as_soon_as_it_waits(hub):
    first, later, over = {}, {}, asyncio.Event()

    @hub.endpoint("/ws")
    async def look(ws, message: str):
        first[ws.id] = asyncio.current_task()
        await over.wait()
        later[ws.id] = asyncio.current_task()

    async with crowd(hub, 10) as clients:
        await all_say(clients, *["x"] * 10)
        await turns(20)
        over.set()
        await turns()
    assert first == later
    assert all(isinstance(task, asyncio.Task) for task in first.values())
    assert len(set(first.values())) == 10


WAYS = {}


def way(function):
    WAYS[function.__name__] = function
    return function


@way
async def timeout():
    try:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
    except TimeoutError:
        return "in time"


@way
async def timeout_at_once():
    try:
        async with asyncio.timeout(-1):
            await asyncio.sleep(10)
    except TimeoutError:
        return "in time"


@way
async def wait_for():
    try:
        await asyncio.wait_for(asyncio.Event().wait(), 0.01)
    except TimeoutError:
        return "in time"


@way
async def task_group():
    async with asyncio.TaskGroup() as group:
        works = [group.create_task(asyncio.sleep(0.001, number)) for number in range(3)]
    return "in time" if [one.result() for one in works] == [0, 1, 2] else "wrong"


@way
async def task_group_that_fails():
    async def fail():
        raise LookupError

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.Event().wait()
    except* LookupError:
        pass
    return "in time"


@way
async def anyio_move_on():
    with anyio.move_on_after(0.01) as scope:
        await anyio.sleep_forever()
    return "in time" if scope.cancelled_caught else "wrong"


@way
async def anyio_cancel_scope():
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anyio.lowlevel.checkpoint()
        return "wrong"
    return "in time"


@way
async def anyio_cancel_scope_nobody_waits_in():
    with anyio.CancelScope() as scope:  # noqa: ASYNC100
        scope.cancel()
    return "in time"


@way
async def anyio_task_group():
    seen = []

    async def work(number):
        await anyio.lowlevel.checkpoint()
        seen.append(number)

    async with anyio.create_task_group() as group:
        group.start_soon(work, 1)
        group.start_soon(work, 2)
    return "in time" if sorted(seen) == [1, 2] else "wrong"


@way
async def anyio_thread():
    thread = await anyio.to_thread.run_sync(threading.get_ident)
    return "wrong" if thread == threading.get_ident() else "in time"


@way
async def nothing():
    return "in time"


async def test_timeouts_task_groups_and_anyio_work_and_nobody_feels_those_of_others(hub):
    @hub.endpoint("/ws")
    async def do(ws, message: str):
        return await WAYS[message]()

    rng = random.Random(3)
    async with crowd(hub, 66) as clients:
        for _ in range(3):
            chosen = [*WAYS] * (66 // len(WAYS))
            rng.shuffle(chosen)
            await all_say(clients, *chosen)
            answers = [await one.receive(5) for one in clients]
            assert dict(zip(chosen, answers, strict=True)) == dict.fromkeys(WAYS, "in time")


# ── context variables ─────────────────────────────────────────────────────────────────────────


async def test_context_variables_are_the_connections_own_before_and_after_waiting(hub, diary):
    async def on_message(ws, message):
        seen = [WHO.get(), SEEN.get()]
        SEEN.set(SEEN.get() + 1)
        if message == "wait":
            await asyncio.sleep(0.001)
        elif message == "turn":
            await asyncio.sleep(0)
        ws.send([*seen, WHO.get(), SEEN.get()])

    acts = {"on_handshake": lambda request: WHO.set(request.query["name"]) and None}
    hub.add("/ws", diary.listener("async def", on_message=on_message, **acts))
    async with contextlib.AsyncExitStack() as stack:
        names = [f"client {number}" for number in range(20)]
        clients = [
            await stack.enter_async_context(hub.test_client(f"/ws?name={name.replace(' ', '%20')}"))
            for name in names
        ]
        for number in range(3):
            await all_say(clients, *(("wait", "turn", "go") * 7)[:20])
            for client, name in zip(clients, names, strict=True):
                assert await client.receive_json() == [name, number, name, number + 1]
    assert (WHO.get(), SEEN.get()) == ("nobody", 0)


# ── cancelling ────────────────────────────────────────────────────────────────────────────────


def keeps_tasks(hub):
    """Each callback keeps its task; "wait" waits until it is let go, "cancel x" cancels x's."""
    tasks, over, ends = {}, asyncio.Event(), {}

    @hub.endpoint("/ws")
    async def keep(ws, message: str):
        if message.startswith("cancel "):
            tasks[message.removeprefix("cancel ")].cancel()
            message = "wait"
        tasks[ws.id] = asyncio.current_task()
        if message == "wait":
            try:
                await over.wait()
                ends[ws.id] = "went on"
            except asyncio.CancelledError:
                ends[ws.id] = "cancelled"
                raise

    return tasks, over, ends


async def test_cancelling_the_task_of_one_that_has_ended_cancels_no_other(hub):
    """It is the task that another callback, which began in the same turn, might be waiting in."""
    tasks, over, ends = keeps_tasks(hub)
    async with crowd(hub, 6) as clients:
        await all_say(clients, "go", "wait", "go", "wait", "go", "go")
        await turns(20)
        for number in (0, 2, 4, 5):
            tasks[clients[number].id].cancel()
        await turns()
        over.set()
        await turns()
        assert ends == {clients[1].id: "went on", clients[3].id: "went on"}


async def test_one_that_cancels_the_task_of_one_that_has_ended_is_not_cancelled(hub):
    _, over, ends = keeps_tasks(hub)
    async with crowd(hub, 3) as clients:
        await all_say(clients, "go", f"cancel {clients[0].id}", "wait")
        await turns(20)
        over.set()
        await turns()
        assert ends == {clients[1].id: "went on", clients[2].id: "went on"}


async def test_one_that_cancels_itself_without_waiting_cancels_no_other(hub):
    order = []

    @hub.endpoint("/ws")
    async def work(ws, message: str):
        if message == "cancel":
            asyncio.current_task().cancel()
        else:
            await asyncio.sleep(0.001)
        order.append(message)

    async with crowd(hub, 4) as clients:
        await all_say(clients, "cancel", "one", "cancel", "two")
        for one in clients:
            await one.settled()
        await all_say(clients, "a", "b", "c", "d")  # they are as before
        for one in clients:
            await one.settled()
    assert order == ["cancel", "cancel", "one", "two", "a", "b", "c", "d"]


async def test_cancelling_one_that_waits_cancels_it_alone_and_its_connection_goes_on(hub):
    tasks, over, ends = keeps_tasks(hub)
    async with crowd(hub, 3) as clients:
        await all_say(clients, "wait", "wait", "wait")
        await turns()
        await clients[1].send("wait")  # is not for the cancelled one: it takes its turn after it
        cancelled = tasks[clients[1].id]
        cancelled.cancel()
        await turns()
        assert ends == {clients[1].id: "cancelled"}
        assert tasks[clients[1].id] is not cancelled
        over.set()
        await turns()
        assert ends == dict.fromkeys([one.id for one in clients], "went on")


async def test_a_task_that_is_cancelled_before_its_first_step_loses_no_message(hub):
    answers = []

    @hub.endpoint("/ws")
    async def answer(ws, message: str):
        answers.append(message)

    async with crowd(hub, 3) as clients:
        before = asyncio.all_tasks()
        await all_say(clients, "a", "b", "c")
        (made,) = asyncio.all_tasks() - before
        made.cancel()
        for one in clients:
            await one.settled()
    assert answers == ["a", "b", "c"]


async def test_a_connection_that_ends_gives_up_what_has_not_begun(hub, diary):
    async def on_message(ws, message):
        diary.append(f"{message} began")

    hub.add("/ws", diary.listener("async def", on_message=on_message))
    async with crowd(hub, 3) as (first, second, third):
        await all_say((first, second, third), "first", "second", "third")
        await second.drop()
        for one in (first, third):
            await one.settled()
        assert [entry for entry in diary if entry.endswith("began")] == [
            "first began",
            "third began",
        ]
    assert diary.count_of("on_close") == 3


async def test_a_connection_that_ends_cancels_what_waits_and_that_alone(hub, diary):
    over = asyncio.Event()

    async def on_message(ws, message):
        try:
            await over.wait()
            diary.append(f"{message} went on")
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            diary.append(f"{message} cancelled")
            raise

    hub.add("/ws", diary.listener("async def", on_message=on_message))
    async with crowd(hub, 3) as (first, second, third):
        await all_say((first, second, third), "first", "second", "third")
        await turns()
        await second.drop()
        assert diary[-2:] == ["second cancelled", "on_close 1006"]
        over.set()
        await turns()
        assert diary[-2:] == ["first went on", "third went on"]


# ── raising ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, TimeoutError])
async def test_one_that_raises_is_reported_once_and_all_go_on(hub, caplog, error, waits):
    @hub.endpoint("/ws")
    async def work(ws, message: str):
        if waits:
            await asyncio.sleep(0)
        if message == "raise":
            raise error("on purpose")
        return message

    async with crowd(hub, 4) as clients:
        await all_say(clients, "one", "raise", "two", "raise")
        assert [await clients[number].receive() for number in (0, 2)] == ["one", "two"]
        await all_say(clients, "a", "b", "c", "d")
        assert [await one.receive() for one in clients] == ["a", "b", "c", "d"]
    said = errors_of(caplog)
    assert len(said) == 2
    assert all("work" in line and "raised" in line for line in said)


# ── what begins it ────────────────────────────────────────────────────────────────────────────


class Odd(BaseException):
    """What no callback may raise, and one did."""


async def test_what_nobody_catches_is_reported_and_others_begin_all_the_same():
    hub, answers = Hub(), []

    @hub.endpoint("/ws")
    async def answer(ws, message: str):
        if message == "odd":
            raise Odd
        answers.append(message)

    async with crowd(hub, 3) as clients:
        await all_say(clients, "odd", "a", "b")
        for one in clients:
            await one.settled()
        await turns()
    assert answers == ["a", "b"]
    assert [problem for problem in hub.health.problems if "Odd" in problem]
    await hub.stop()


class Steps:
    """Work of one step, and the writer of what it answers: notes what happens, and when."""

    task = None
    context = contextvars.copy_context()

    def __init__(self, *, fails=False):
        self.seen, self.fails = [], fails

    def begin(self):
        self.seen.append("begun")
        if self.fails:
            raise Odd

    def ended(self):
        self.seen.append("ended")

    def gather(self):
        self.seen.append("gathers")

    def release(self):
        self.seen.append("released")


@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_answered_is_written_when_the_steps_are_taken_also_after_an_error(fails):
    steps = Steps(fails=fails)
    runtime = Runtime(steps)
    runtime.bind(steps)
    runtime.runner.start(steps)
    await turns(3)
    assert steps.seen == ["gathers", "begun", "ended", "released"]
    assert len(runtime.problems) == fails


async def test_a_hub_gathers_what_its_own_connections_are_answered_also_when_it_starts_again(
    hub, monkeypatch
):
    gathering = set()

    def gather(fan):
        gathering.add(fan)

    monkeypatch.setattr(Fanout, "gather", gather)

    @hub.endpoint("/ws")
    async def echo(ws, message: str):
        return message

    for _ in range(2):
        await hub.start()
        async with crowd(hub, 1) as (one,):
            await one.send("a")
            assert await one.receive() == "a"
            assert gathering == {hub.fanout}
        await hub.stop()
        gathering.clear()


def eager(loop, work, **options):
    """A factory of tasks that begin at once, where Python has one."""
    begin = getattr(asyncio, "eager_task_factory", None)
    return begin(loop, work, **options) if begin else asyncio.Task(work, loop=loop, **options)


async def test_a_loop_of_eager_tasks_runs_callbacks_that_wait_and_others(hub):
    gate = asyncio.Event()

    @hub.endpoint("/ws")
    async def answer(ws, message: str):
        if message == "wait":
            await gate.wait()
        return message

    loop = asyncio.get_running_loop()
    loop.set_task_factory(eager)
    try:
        async with crowd(hub, 3) as clients:
            await all_say(clients, "wait", "a", "b")
            assert [await one.receive() for one in clients[1:]] == ["a", "b"]
            gate.set()
            assert await clients[0].receive() == "wait"
    finally:
        loop.set_task_factory(None)
    assert hub.health.problems == ()
