"""Before the handshake is done: deadlines, turns and the truce with the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest

from backchannel.transport.pace import CROWD, Deadlines, Door, Truce, Turns, door_of


class Late:
    def __init__(self, ended):
        self.ended = ended

    def too_late(self):
        self.ended.append(self)


@pytest.fixture
def loop():
    return asyncio.get_running_loop()


async def test_each_has_the_same_time_from_its_own_beginning(loop):
    ended = []
    deadlines = Deadlines(loop, 0.1)
    first, second, in_time = Late(ended), Late(ended), Late(ended)
    deadlines.add(first)
    deadlines.add(in_time)
    await asyncio.sleep(0.05)  # real time is the subject
    deadlines.add(second)
    deadlines.add(first)  # keeps its deadline
    deadlines.discard(in_time)
    began = loop.time()
    while not ended:
        await asyncio.sleep(0.005)
    assert (ended, loop.time() - began < 0.09) == ([first], True)
    assert second in deadlines
    assert first not in deadlines
    while len(ended) < 2:
        await asyncio.sleep(0.005)
    assert ended == [first, second]
    assert len(deadlines) == 0


async def test_one_timer_for_all_and_none_for_nobody(loop):
    armed = []

    class Counting:
        time = loop.time

        def call_later(self, seconds, callback):
            armed.append(loop.call_later(seconds, callback))
            return armed[-1]

        def call_at(self, when, callback):
            armed.append(loop.call_at(when, callback))
            return armed[-1]

    deadlines = Deadlines(Counting(), 0.05)
    some = [Late([]) for _ in range(1000)]
    for one in some:
        deadlines.add(one)
        deadlines.discard(one)
    assert len(armed) == 1
    await asyncio.sleep(0.1)  # it finds nobody, and is not armed again
    assert len(armed) == 1


async def test_requests_are_read_in_order_and_a_turn_ends_after_its_slice(loop):
    turns, read, others = Turns(loop, slice=0.005), [], []

    def slow(data):
        time.sleep(0.002)
        read.append(data)

    def other():
        others.append(len(read))
        if len(read) < 50:
            loop.call_soon(other)

    loop.call_soon(other)
    for number in range(50):
        turns.take(slow, bytes([number]))
    assert 1 <= len(read) <= 3  # the first slice, at once
    while len(read) < 50:
        await asyncio.sleep(0)
    assert read == [bytes([number]) for number in range(50)]
    steps = [b - a for a, b in zip(others, others[1:], strict=False)]
    assert max(steps) <= 4  # what else the loop has to do has its turn in between


async def test_a_reader_that_raises_does_not_stop_the_others(loop):
    turns, read, problems = Turns(loop, slice=1e-9), [], []
    loop.set_exception_handler(lambda _, context: problems.append(context["exception"]))

    def fails(data):
        raise ValueError(data)

    turns.take(read.append, b"first")
    turns.take(fails, b"second")
    turns.take(read.append, b"third")
    for _ in range(5):
        await asyncio.sleep(0)
    assert read == [b"first", b"third"]
    assert [str(problem) for problem in problems] == ["b'second'"]


async def test_the_full_collection_waits_while_a_crowd_comes_in_but_not_for_ever(loop):
    before = gc.get_threshold()
    newcomers = list(range(CROWD))
    truce = Truce(loop, newcomers, patience=0.8)
    truce.keep()
    assert gc.get_threshold() == before  # no crowd yet
    newcomers.append(0)
    truce.keep()
    truce.keep()
    assert gc.get_threshold() == (*before[:2], 1_000_000)
    began = loop.time()
    while gc.get_threshold() != before:
        await asyncio.sleep(0.01)
    assert 0.7 < loop.time() - began < 3
    truce.keep()
    assert gc.get_threshold() == before  # the collector has its time, too


async def test_the_truce_ends_when_the_crowd_is_in_and_the_next_has_its_own(loop):
    before = gc.get_threshold()
    newcomers = list(range(CROWD + 1))
    truce = Truce(loop, newcomers, patience=60)
    for _ in range(2):
        newcomers.append(0)
        truce.keep()
        assert gc.get_threshold() != before
        crowd, newcomers[:] = list(newcomers), []
        while gc.get_threshold() != before:
            await asyncio.sleep(0.01)
        newcomers[:] = crowd


async def test_servers_have_doors_of_their_own_and_only_their_process_has_its_collector(loop):
    class Server:
        pass

    one, other = Server(), Server()
    door = door_of(one, loop, 1.0)
    assert door_of(one, loop, 1.0) is door
    assert door_of(other, loop, 1.0) is not door
    assert door.truce is None
    assert Door(loop, 1.0, owns_process=True).truce is not None
