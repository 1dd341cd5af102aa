"""The wheel: each connection is asked when it is due, and nothing holds one that has ended."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import time
import weakref

import pytest

from backchannel.heartbeat import Heartbeat


class Peer:
    def __init__(self, answers, done=None):
        self.beats = []
        self.answers = list(answers)
        self.done = done

    def beat(self):
        self.beats.append(time.monotonic())
        answer = self.answers.pop(0) if self.answers else None
        if answer is None and self.done:
            self.done.set()
        return answer


async def test_a_connection_is_asked_after_the_interval_and_then_when_it_says():
    done = asyncio.Event()
    peer = Peer([0.1, 0.05, None], done)
    began = time.monotonic()
    Heartbeat(interval=0.2, timeout=0.1).add(peer)

    await asyncio.wait_for(done.wait(), 5)

    first, second, third = (beat - began for beat in peer.beats)
    assert 0.15 < first < 1
    assert 0.05 < second - first < 1
    assert 0.02 < third - second < 1


async def test_who_answers_none_is_not_asked_again():
    done = asyncio.Event()
    heartbeat, once = Heartbeat(0.04, 0.04), Peer([None])
    heartbeat.add(once)
    heartbeat.add(Peer([0.04] * 5, done))

    await asyncio.wait_for(done.wait(), 5)

    assert len(once.beats) == 1


async def test_who_is_discarded_is_not_asked_and_not_kept_alive():
    done = asyncio.Event()
    heartbeat, gone = Heartbeat(0.04, 0.04), Peer([0.04] * 9)
    heartbeat.add(gone)
    heartbeat.discard(gone)
    heartbeat.discard(gone)  # twice is no error
    heartbeat.add(Peer([0.04] * 3, done))
    was = weakref.ref(gone)

    await asyncio.wait_for(done.wait(), 5)

    assert gone.beats == []
    del gone
    gc.collect()
    assert was() is None


async def test_thousands_share_one_timer():
    done, loop = asyncio.Event(), asyncio.get_running_loop()
    heartbeat = Heartbeat(0.05, 0.05)
    scheduled = len(loop._scheduled)
    peers = [Peer([None]) for _ in range(4999)]
    for peer in peers:
        heartbeat.add(peer)
    heartbeat.add(Peer([None], done))
    assert len(loop._scheduled) == scheduled + 1

    await asyncio.wait_for(done.wait(), 5)

    assert all(len(peer.beats) == 1 for peer in peers)


@pytest.mark.parametrize("never", [1e9, math.inf])
async def test_an_interval_that_means_never_takes_no_memory_for_it(never):
    for heartbeat in (Heartbeat(never, 20.0), Heartbeat(25.0, never)):
        assert len(heartbeat._slots) < 2000
        heartbeat.add(peer := Peer([None]))
        heartbeat.discard(peer)


async def test_nobody_is_asked_before_the_time_that_it_said():
    done, wanted = asyncio.Event(), (0.031, 0.104, 0.047)
    peer = Peer([*wanted, None], done)
    Heartbeat(interval=0.1, timeout=0.1).add(peer)

    await asyncio.wait_for(done.wait(), 5)

    for seconds, (before, after) in zip(wanted, itertools.pairwise(peer.beats), strict=True):
        assert after - before >= seconds - 0.002  # the loop's clock is no finer
