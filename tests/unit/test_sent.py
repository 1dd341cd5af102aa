"""What a sending verb returns: to ignore, to await, or to wait for in another thread."""

import asyncio
import threading

import pytest

from backchannel.contracts import Receipt
from backchannel.sent import MISSED, REACHED, Outcome, Sent


class Reports(list):
    """What was reported of failures that nobody asked for."""

    def outcome(self):
        return Outcome(self.append)


@pytest.fixture
def reports():
    return Reports()


def failing():
    raise LookupError("the broker is away")


def settled(outcome, work):
    outcome.settle(work)
    return Sent(outcome)


async def test_a_sent_that_is_done_is_itself_when_awaited():
    sent = Sent(Receipt(3))
    assert await sent is sent
    assert sent.result() is sent
    assert sent.reached == 3
    assert sent.position is None


def test_reached_may_be_unknown():
    assert Sent(Receipt(None)).reached is None


def test_one_client_was_reached_or_missed():
    assert (REACHED.reached, MISSED.reached) == (1, 0)


def test_a_sent_shows_how_far_it_is(reports):
    outcome = reports.outcome()
    sent = Sent(outcome)
    assert repr(Sent(Receipt(2))) == "<Sent reached=2>"
    assert repr(sent) == "<Sent, under way>"
    outcome.settle(lambda: Receipt(2))
    assert repr(sent) == "<Sent, done>"


def test_reached_before_the_work_is_done_says_what_to_do_first(reports):
    with pytest.raises(RuntimeError, match=r"not sent yet: await it, or call \.result\(timeout\)"):
        Sent(reports.outcome()).reached  # noqa: B018


def test_another_thread_waits_for_the_result(reports):
    outcome = reports.outcome()
    sent = Sent(outcome)
    thread = threading.Thread(target=outcome.settle, args=(lambda: Receipt(5),))
    thread.start()
    assert sent.result(10) is sent
    thread.join()
    assert sent.reached == 5


def test_another_thread_waits_no_longer_than_it_said(reports):
    with pytest.raises(TimeoutError):
        Sent(reports.outcome()).result(0.001)


async def test_waiting_in_the_event_loop_for_itself_is_refused_with_what_to_do(reports):
    with pytest.raises(
        RuntimeError, match=r"\.result\(\) would make the event loop wait .* use await"
    ):
        Sent(reports.outcome()).result()


async def test_a_result_that_is_there_can_be_had_in_the_event_loop_too(reports):
    assert settled(reports.outcome(), lambda: Receipt(1)).result().reached == 1


async def test_awaiting_waits_for_the_work(reports):
    outcome = reports.outcome()
    sent = Sent(outcome)
    waiting = asyncio.ensure_future(sent)
    await asyncio.sleep(0)
    assert not waiting.done()
    outcome.settle(lambda: Receipt(4))
    assert (await waiting).reached == 4


async def test_a_failure_is_raised_where_it_is_awaited_and_reported_nowhere_else(reports):
    sent = settled(reports.outcome(), failing)
    with pytest.raises(LookupError, match="broker is away"):
        await sent
    with pytest.raises(LookupError, match="broker is away"):
        sent.result()
    with pytest.raises(LookupError, match="broker is away"):
        sent.reached  # noqa: B018
    del sent
    assert reports == []


def test_a_failure_that_nobody_asked_for_is_reported_once(reports):
    Sent(outcome := reports.outcome())
    outcome.settle(failing)
    assert reports == []
    del outcome
    assert [str(error) for error in reports] == ["the broker is away"]


def test_success_that_nobody_asked_for_is_not_reported(reports):
    settled(reports.outcome(), lambda: Receipt(1))
    Sent(reports.outcome())
    assert reports == []


async def test_who_stops_waiting_does_not_stop_the_sending(reports):
    """Cancelled waits must neither undo the work nor break the one who does it."""
    outcome, done = reports.outcome(), []
    sent = Sent(outcome)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await sent
    outcome.settle(lambda: done.append(1) or Receipt(2))
    assert done == [1]
    assert (await sent).reached == 2


async def test_a_failure_after_the_one_who_waited_gave_up_is_reported(reports):
    outcome = reports.outcome()
    waiting = asyncio.ensure_future(Sent(outcome))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    outcome.settle(failing)
    await asyncio.sleep(0)
    del outcome, waiting
    assert [str(error) for error in reports] == ["the broker is away"]


def test_an_outcome_that_is_not_known_yet_says_so(reports):
    with pytest.raises(RuntimeError, match="not known yet"):
        reports.outcome().result()


async def test_another_event_loop_may_wait_for_it(reports):
    outcome = reports.outcome()
    began = threading.Event()

    async def wait():
        asyncio.get_running_loop().call_soon(began.set)
        return (await Sent(outcome)).reached

    waiting = asyncio.create_task(asyncio.to_thread(asyncio.run, wait()))
    await asyncio.to_thread(began.wait, 10)
    outcome.settle(lambda: Receipt(6))
    assert await waiting == 6


def test_all_who_wait_hear_of_it_whenever_they_began(reports):
    """Threads begin to wait in the very moment in which another one settles it."""
    for number in range(300):
        outcome = reports.outcome()
        together = threading.Barrier(4)
        heard = []

        def wait(outcome=outcome, together=together, heard=heard):
            together.wait(10)
            heard.append(Sent(outcome).result(10).reached)

        waiting = [threading.Thread(target=wait) for _ in range(3)]
        for thread in waiting:
            thread.start()
        together.wait(10)
        outcome.set_result(Receipt(number))
        for thread in waiting:
            thread.join()
        assert heard == [number] * 3


def test_a_failure_that_came_from_another_outcome_is_reported_once(reports):
    inner, outer = reports.outcome(), reports.outcome()
    outer.settle([inner].pop)
    assert not outer.done()
    inner.set_exception(LookupError("the broker is away"))
    assert outer.done()
    del inner
    assert reports == []
    del outer
    assert [str(error) for error in reports] == ["the broker is away"]


async def test_what_waits_for_another_outcome_says_that_it_is_wanted(reports):
    inner, outer = reports.outcome(), reports.outcome()
    waiting = asyncio.ensure_future(Sent(outer))
    await asyncio.sleep(0)
    outer.settle(lambda: inner)
    assert inner.is_wanted
    inner.set_result(Receipt(3))
    assert (await waiting).reached == 3
