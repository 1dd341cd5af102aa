"""Programs that run no hub and publish all the same, each over a cable that may fail."""

from __future__ import annotations

import asyncio
import random

from ledger import Ledger, Place, Said
from people import DIRECT, Crowd, audience

from backchannel import AsyncPublisher
from backchannel.errors import BrokerUnavailable, BrokerUnusable

PAUSE = (0.05, 0.4)
"""Seconds between two publications."""


class Sender:
    """Publishes one thing after the other.

    Args:
        name: its own.
        url: of the engine, by way of the cable.
        channels: what it publishes to.
        crowd: whom it publishes to.
        ledger: told what it publishes.
        rng: decides what it does.
    """

    def __init__(
        self, name: str, url: str, channels: list[str], crowd: Crowd, ledger: Ledger,
        rng: random.Random,
    ):  # fmt: skip
        self.name, self.url, self.channels = name, url, channels
        self.crowd, self.ledger, self.rng = crowd, ledger, rng
        self.publisher = AsyncPublisher(url, hub="chaos", timeout=1.5)
        self.numbers = self.times = 0
        self.talks = True

    async def live(self) -> None:
        """Publish until cancelled."""
        async with self.publisher:
            while True:
                await asyncio.sleep(self.rng.uniform(*PAUSE))
                if self.talks:
                    channel = self.rng.choice([*self.channels, DIRECT])
                    await self.say(channel, *self.crowd.choose(channel))

    async def say(
        self, channel: str, to: list[str] | None = None, exclude: list[str] | None = None
    ) -> str:
        """Publish something to a channel, or past all channels; return its id."""
        self.numbers += 1
        said = Said(
            f"{self.name}-{self.numbers}", channel, f"{self.name}/{self.times}", self.numbers,
            to, exclude,
        )  # fmt: skip
        self.ledger.say(said)
        self.ledger.figures["said by senders"] += 1
        try:
            await self._publish(said)
        except BrokerUnavailable as error:
            never = "may have been" not in str(error)
            self.ledger.failed(said.id, never=never)
            # What was lost on the way may arrive after what follows, over another connection.
            self.times += not never
        except BrokerUnusable:  # the engine has lost its data, and nodes have not come back yet
            self.ledger.failed(said.id, never=True)
        return said.id

    async def _publish(self, said: Said) -> None:
        what = {"id": said.id, "channel": said.channel, "pad": ""}
        some = {
            key: [audience(self.publisher, one) for one in addresses]
            for key, addresses in (("to", said.to), ("exclude", said.exclude))
            if addresses is not None
        }
        if said.channel == DIRECT:
            (whom,) = some.pop("to")
            sent = await whom.send(what, **some)
        else:
            sent = await self.publisher.broadcast(said.channel, what, **some)
        place = None if sent.position is None else Place.read(str(sent.position))
        self.ledger.accepted(said.id, place, sent.reached)
