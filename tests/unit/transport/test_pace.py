"""Before the handshake is done: deadlines, turns and the truce with the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time

import pytest

from backchannel.transport.pace import CROWD, RUSH, Deadlines, Door, Truce, Turns, door_of


class Late:
    def __init__(self, ended):
        self.ended = ended

    def too_late(self):
        self.ended.append(self)


class Clock:
    """An event loop whose time passes when it is told to."""

    def __init__(self):
        self.now = 0.0
        self.armed = 0
        self.timers = []

    def time(self):
        return self.now

    def call_later(self, seconds, callback):
        return self.call_at(self.now + seconds, callback)

    def call_at(self, when, callback):
        self.armed += 1
        self.timers.append((when, callback))
        return object()

    def pass_time(self, seconds):
        end = self.now + seconds
        while self.timers and min(when for when, _ in self.timers) <= end:
            when, callback = timer = min(self.timers, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.now = when
            callback()
        self.now = end


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def loop():
    return asyncio.get_running_loop()


def test_each_has_the_same_time_from_its_own_beginning(clock):
    ended = []
    deadlines = Deadlines(clock, 10)
    first, second, in_time = Late(ended), Late(ended), Late(ended)
    deadlines.add(first)
    deadlines.add(in_time)
    clock.pass_time(4)
    deadlines.add(second)
    deadlines.add(first)  # keeps its deadline
    deadlines.discard(in_time)
    clock.pass_time(5.9)
    assert ended == []
    clock.pass_time(0.2)
    assert ended == [first]
    assert second in deadlines
    assert first not in deadlines
    clock.pass_time(3.8)
    assert ended == [first]
    clock.pass_time(0.2)
    assert ended == [first, second]
    assert len(deadlines) == 0


def test_one_timer_for_all_and_none_for_nobody(clock):
    deadlines = Deadlines(clock, 10)
    for one in [Late([]) for _ in range(1000)]:
        deadlines.add(one)
        deadlines.discard(one)
    assert clock.armed == 1
    clock.pass_time(100)  # it finds nobody, and is not armed again
    assert clock.armed == 1


def test_one_that_is_too_late_may_come_again_at_once(clock):
    class Persistent(Late):
        def too_late(self):
            super().too_late()
            deadlines.add(self)

    ended = []
    deadlines = Deadlines(clock, 10)
    deadlines.add(Persistent(ended))
    clock.pass_time(35)
    assert len(ended) == 3


async def test_requests_are_read_in_order_and_a_turn_ends_after_its_slice(loop):
    turns, read, others = Turns(loop, slice=0.005), [], []
    done = asyncio.Event()

    def slow(data):
        time.sleep(0.002)
        read.append(data)
        if len(read) == 50:
            done.set()

    def other():
        others.append(len(read))
        if len(read) < 50:
            loop.call_soon(other)

    loop.call_soon(other)
    for number in range(50):
        turns.take(slow, bytes([number]))
    assert 1 <= len(read) <= 3  # the first slice, at once
    await done.wait()
    assert read == [bytes([number]) for number in range(50)]
    steps = [b - a for a, b in itertools.pairwise(others)]
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


@pytest.fixture
def before():
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


def test_the_full_collection_waits_while_a_crowd_comes_in_but_not_for_ever(clock, before):
    newcomers = list(range(CROWD))
    truce = Truce(clock, newcomers)
    truce.keep()
    assert gc.get_threshold() == before  # no crowd yet
    newcomers.append(0)
    truce.keep()
    for _ in range(59):
        clock.pass_time(0.5)
        truce.keep()
        assert gc.get_threshold() == (*before[:2], 1_000_000)
    clock.pass_time(1)
    assert gc.get_threshold() == before
    for _ in range(57):  # the collector has as long
        truce.keep()
        assert gc.get_threshold() == before
        clock.pass_time(0.5)
    clock.pass_time(1.5)
    truce.keep()
    assert gc.get_threshold() != before


def test_the_truce_ends_when_the_crowd_is_in_and_the_next_has_its_own(clock, before):
    newcomers = list(range(CROWD + 1))
    truce = Truce(clock, newcomers)
    for _ in range(2):
        truce.keep()
        clock.pass_time(4)  # nobody more comes, but they are not in yet
        assert gc.get_threshold() != before
        crowd, newcomers[:] = list(newcomers), []
        clock.pass_time(2)
        assert gc.get_threshold() == before
        newcomers[:] = crowd


def test_many_that_come_one_after_the_other_are_a_crowd_too(clock, before):
    """Each is read in the turn that it came in: never are many of them new."""
    truce = Truce(clock, [])
    for _ in range(3 * RUSH):
        clock.pass_time(1.2 / RUSH)
        truce.keep()
    assert gc.get_threshold() == before  # so many come all the time
    for _ in range(20 * RUSH):
        clock.pass_time(0.4 / RUSH)
        truce.keep()
    assert gc.get_threshold() != before
    clock.pass_time(2)
    assert gc.get_threshold() == before


async def test_servers_have_doors_of_their_own_and_only_their_process_has_its_collector(loop):
    class Server:
        pass

    one, other = Server(), Server()
    door = door_of(one, loop, 1.0)
    assert door_of(one, loop, 1.0) is door
    assert door_of(other, loop, 1.0) is not door
    assert door.truce is None
    assert Door(loop, 1.0, owns_process=True).truce is not None
