"""What waits at a connection: when it is full, and when there is room again."""

from __future__ import annotations

import asyncio

import pytest
from shared import turns

from backchannel.inbox import FULL, FULL_SIZE, Inbox, Rest, nothing

LARGE = "x" * (FULL_SIZE // 2)


@pytest.fixture
async def inbox():
    return Inbox(asyncio.get_running_loop())


async def test_what_is_put_back_counts(inbox):
    inbox.put(LARGE)
    inbox.put_first(Rest(nothing, nothing, len(LARGE)))
    assert inbox.is_full
    inbox.take()
    assert not inbox.is_full


async def test_what_is_given_up_counts_no_more(inbox):
    for item in (LARGE, LARGE.encode(), Rest(nothing, nothing, len(LARGE))):
        inbox.put(item)
    inbox.give_up(keep_messages=True)
    assert inbox.is_full
    inbox.give_up()
    assert (inbox.has(1, 1), bool(inbox)) == (False, False)
    inbox.put(LARGE)
    assert not inbox.is_full


@pytest.mark.parametrize("item", ["", "x" * (FULL_SIZE // FULL + 1)])
async def test_there_is_room_again_when_a_quarter_is_left(inbox, item):
    for _ in range(FULL):
        inbox.put(item)
    assert inbox.is_full
    waiting = asyncio.create_task(inbox.room())
    taken = 0
    while not waiting.done():
        inbox.take()
        taken += 1
        await turns()
    assert FULL - taken in {FULL // 4 - 1, FULL // 4}
