"""First in and last out take turns, whoever comes, goes, fails or is cancelled meanwhile."""

import asyncio
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backchannel.turn import Occupancy


class Door:
    """Steps that wait to be let go on, and a record of what they did."""

    def __init__(self):
        self.log = []
        self.occupancy = Occupancy()
        self.waiting = []

    def step(self, name):
        async def run():
            assert not self.busy, f"{name} while another one runs: {self.log}"
            self.log.append(name)
            future = asyncio.get_running_loop().create_future()
            self.waiting.append(future)
            try:
                await future
            except BaseException:
                self.log.append(f"{name} failed")
                raise
            else:
                self.log.append(f"{name} done")
            finally:
                self.waiting.remove(future)

        return run

    @property
    def busy(self):
        return bool(self.waiting)

    def let_go(self):
        self.waiting[0].set_result(None)

    def fail(self):
        self.waiting[0].set_exception(LookupError("no"))

    async def visit(self, stay):
        """Come, stay, go: as the dispatch does, leave follows enter whatever became of it."""
        try:
            await self.occupancy.enter(self.step("open"))
            await stay.wait()
        finally:
            await self.occupancy.leave(self.step("close"))


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def door():
    return Door()


async def test_the_first_opens_and_the_last_closes_and_none_between(door):
    occupancy, log = door.occupancy, []

    async def note(what):
        log.append(what)

    await occupancy.enter(partial(note, "open"))
    await occupancy.enter(partial(note, "open"))
    await occupancy.leave(partial(note, "close"))
    assert log == ["open"]
    assert (occupancy.is_open, occupancy.holders) == (True, 1)
    await occupancy.leave(partial(note, "close"))
    assert log == ["open", "close"]
    assert (occupancy.is_open, occupancy.holders) == (False, 0)


async def test_without_steps_nothing_has_to_be_awaited(door):
    """A coroutine that never waits ends at the first send: memberships rely on it."""
    for change in (door.occupancy.enter, door.occupancy.leave):
        with pytest.raises(StopIteration):
            change(None).send(None)
    assert not door.occupancy.is_open


async def test_who_comes_during_the_opening_waits_for_its_end(door):
    stay = asyncio.Event()
    visits = [asyncio.create_task(door.visit(stay)) for _ in range(3)]
    await turns()
    assert door.log == ["open"]
    assert not door.occupancy.is_calm
    assert not door.occupancy.is_open
    assert door.occupancy.holders == 3
    door.let_go()
    await turns()
    assert door.log == ["open", "open done"]
    assert door.occupancy.is_open
    stay.set()
    await turns()
    door.let_go()
    await asyncio.gather(*visits)
    assert door.log == ["open", "open done", "close", "close done"]
    assert door.occupancy.is_calm


async def test_who_comes_during_the_closing_waits_and_opens_again(door):
    gone, stay = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(door.visit(gone))
    await turns()
    door.let_go()
    gone.set()
    await turns()
    second = asyncio.create_task(door.visit(stay))
    await turns()
    assert door.log[-1] == "close"
    door.let_go()
    await first
    await turns()
    assert door.log[-2:] == ["close done", "open"]
    door.let_go()
    stay.set()
    await turns()
    door.let_go()
    await second
    assert door.log[-2:] == ["close", "close done"]


async def test_an_opening_that_raises_leaves_it_closed_and_the_next_one_tries_again(door):
    stay = asyncio.Event()
    first, second = (asyncio.create_task(door.visit(stay)) for _ in range(2))
    await turns()
    door.fail()
    await turns()
    assert door.log == ["open", "open failed", "open"]
    with pytest.raises(LookupError, match="no"):
        await first
    door.let_go()
    stay.set()
    await turns()
    door.let_go()
    await second
    assert door.log[2:] == ["open", "open done", "close", "close done"]
    assert door.occupancy.holders == 0


async def test_a_closing_that_raises_passes_its_error_and_leaves_it_closed(door):
    async def refuse():
        raise LookupError("no")

    await door.occupancy.enter(None)
    with pytest.raises(LookupError, match="no"):
        await door.occupancy.leave(refuse)
    assert (door.occupancy.is_open, door.occupancy.is_calm) == (False, True)
    await door.occupancy.enter(None)
    assert door.occupancy.is_open


async def test_a_first_one_that_is_cancelled_in_the_opening_lets_the_next_one_open(door):
    stay = asyncio.Event()
    first, second = (asyncio.create_task(door.visit(stay)) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    assert first.cancelled()
    assert door.log == ["open", "open failed", "open"]
    door.let_go()
    stay.set()
    await turns()
    door.let_go()
    await second


async def test_a_waiting_one_that_is_cancelled_as_the_only_holder_goes_still_closes(door):
    """It was let in by nobody and closes what the other one opened: else it would stay open."""
    gone = asyncio.Event()
    gone.set()
    first = asyncio.create_task(door.visit(gone))
    second = asyncio.create_task(door.visit(asyncio.Event()))
    await turns()
    door.let_go()
    while door.occupancy.holders == 2:  # noqa: ASYNC110 - the very turn in which it goes
        await asyncio.sleep(0)
    second.cancel()
    await turns()
    if door.busy:
        door.let_go()
    await asyncio.wait([first, second])
    assert second.cancelled()
    assert door.log == ["open", "open done", "close", "close done"]
    assert not door.occupancy.is_open


async def test_an_endpoint_with_only_a_last_callback_closes_what_opened_silently(door):
    await door.occupancy.enter(None)
    leaving = asyncio.create_task(door.occupancy.leave(door.step("close")))
    await turns()
    assert door.log == ["close"]
    late = asyncio.create_task(door.occupancy.enter(None))
    await turns()
    assert not late.done()
    door.let_go()
    await asyncio.gather(leaving, late)
    assert door.occupancy.is_open


async def test_who_comes_just_before_a_late_leaver_has_its_turn_is_not_closed_upon(door):
    occupancy = door.occupancy
    await occupancy.enter(None)
    leaving = asyncio.create_task(occupancy.leave(door.step("close")))
    await turns()
    waiting = asyncio.create_task(occupancy.enter(None))
    await turns()
    waiting.cancel()
    await asyncio.wait([waiting])
    late = asyncio.create_task(occupancy.leave(door.step("close")))
    await turns()
    assert not late.done()
    door.let_go()
    while not occupancy.is_calm:  # noqa: ASYNC110 - the very turn between the two
        await asyncio.sleep(0)
    await occupancy.enter(None)
    assert not late.done()
    await asyncio.gather(leaving, late)
    assert door.log == ["close", "close done"]
    assert (occupancy.is_open, occupancy.holders) == (True, 1)


async def test_whom_an_opening_lets_in_itself_does_not_wait_for_its_end():
    occupancy = Occupancy()

    async def opening():
        await occupancy.enter(None)
        assert not occupancy.is_open

    async with asyncio.timeout(5):
        await occupancy.enter(opening)
    assert (occupancy.is_open, occupancy.holders) == (True, 2)


async def test_what_an_opening_started_waits_for_later_openings_like_anyone(door):
    occupancy, later = door.occupancy, asyncio.Event()

    async def come_later():
        await later.wait()
        await occupancy.enter(None)

    async def opening():
        tasks.append(asyncio.create_task(come_later()))

    tasks = []
    await occupancy.enter(opening)
    await occupancy.leave(None)
    tasks.append(asyncio.create_task(occupancy.enter(door.step("open"))))
    await turns()
    later.set()
    await turns()
    assert not any(task.done() for task in tasks)
    door.let_go()
    await asyncio.gather(*tasks)
    assert occupancy.holders == 2


STEPS = st.sampled_from(["come", "go", "cancel", "let go", "fail", "turn", "turns"])


@settings(max_examples=400)
@given(st.lists(st.tuples(STEPS, st.integers(0, 9)), max_size=40))
def test_openings_and_closings_alternate_and_balance_in_every_interleaving(steps):
    asyncio.run(interleave(steps))


async def interleave(steps):
    door, visits = Door(), []
    for step, number in steps:
        alive = [visit for visit in visits if not visit[0].done()]
        if step == "come":
            stay = asyncio.Event()
            visits.append((asyncio.create_task(door.visit(stay)), stay))
        elif step == "go" and alive:
            alive[number % len(alive)][1].set()
        elif step == "cancel" and alive:
            alive[number % len(alive)][0].cancel()
        elif step == "let go" and door.busy and not door.waiting[0].done():
            door.let_go()
        elif step == "fail" and door.busy and not door.waiting[0].done() and door.log[-1] == "open":
            door.fail()
        elif step.startswith("turn"):
            await turns(number if step == "turns" else 1)
        check(door)
    for _, stay in visits:
        stay.set()
    while any(not task.done() for task, _ in visits):
        if door.busy and not door.waiting[0].done():
            door.let_go()
        await asyncio.sleep(0)
        check(door)
    await asyncio.gather(*(task for task, _ in visits), return_exceptions=True)
    occupancy = door.occupancy
    assert (occupancy.holders, occupancy.is_open, occupancy.is_calm) == (0, False, True)
    assert door.log.count("open done") == door.log.count("close")


def check(door):
    """What was done so far alternates: only an opened door is closed, only a closed one opened."""
    is_open = False
    for entry in door.log:
        if entry == "open":
            assert not is_open, door.log
        elif entry == "close":
            assert is_open, door.log
            is_open = False
        elif entry == "open done":
            is_open = True
