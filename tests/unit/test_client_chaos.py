"""Whatever the network does: what is published and delivered arrives once and in order."""

from __future__ import annotations

import asyncio
import random

import pytest
from speaker import Speaker

from backchannel.client import Publication, connect, returning


@pytest.mark.parametrize("seed", range(10))
async def test_cuts_at_any_frame_lose_and_double_nothing(seed, monkeypatch):
    """A cut before a frame is done, after it, before or after its answer, and in a hello."""
    monkeypatch.setattr(returning, "FIRST", 0.002)
    monkeypatch.setattr(returning, "STEADY", 0)
    dice = random.Random(seed)

    def before(peer, frame):
        what = dice.choices([None, "cut", "mute"], [20, 1, 1])[0]
        if what == "mute":
            asyncio.get_running_loop().call_soon(peer.cut)
        return what

    async def publish(client, sender):
        for n in range(60):
            await client.publish("news", [sender, n])

    async def deliver(client):
        for n in range(60):
            await client.deliver(n)

    async with Speaker() as speaker, connect(speaker.url) as client, connect(speaker.url) as other:
        events = await client.subscribe("news").ready()
        speaker.before = before
        async with asyncio.TaskGroup() as tasks:
            for sender, by in enumerate((client, other, other)):
                tasks.create_task(publish(by, sender))
            tasks.create_task(deliver(client))
            tasks.create_task(deliver(other))
            got = [await anext(events) for _ in range(180)]
        assert [type(event) for event in got] == [Publication] * 180
        assert [event.position for event in got] == [f"e.{n + 1}" for n in range(180)]
        assert [event.data for event in got] == speaker.history["news"]
        for sender in range(3):
            of_one = [n for by, n in speaker.history["news"] if by == sender]
            assert of_one == list(range(60))
        assert sorted(speaker.messages) == sorted([*range(60), *range(60)])
        assert len(speaker.peers) > 10
