"""What tests of a cluster share: which slot something has, and moving it to another master."""

from __future__ import annotations

import asyncio
import contextlib

from redis.crc import key_slot


def slot(channel, kind="c", hub="chat"):
    """Return the slot of a channel; of a user with kind ``u``."""
    return key_slot(f"backchannel:{hub}:{{{kind}:{channel}}}".encode())


def channels_at(cluster, port, count, prefix="", hub="chat", **credentials):
    """Return names of channels whose slots a master has."""
    found = (f"{prefix}{n}" for n in range(10_000))
    at = [
        range(first, last + 1)
        for first, last, master, *_ in cluster.ask(port, "CLUSTER", "SLOTS", **credentials)
        if master[1] == port
    ]
    names = (name for name in found if any(slot(name, hub=hub) in slots for slots in at))
    return [next(names) for _ in range(count)]


class Move:
    """A slot on its way from one master to another, step by step."""

    def __init__(self, cluster, which, source, target):
        self.cluster, self.slot, self.source, self.target = cluster, which, source, target

    def begin(self):
        ask, ids = self.cluster.ask, self.cluster.id_of
        ask(self.target, "CLUSTER", "SETSLOT", self.slot, "IMPORTING", ids(self.source))
        ask(self.source, "CLUSTER", "SETSLOT", self.slot, "MIGRATING", ids(self.target))

    def move_keys(self, count=1000):
        """Move some keys; return how many."""
        keys = self.cluster.ask(self.source, "CLUSTER", "GETKEYSINSLOT", self.slot, count)
        if keys:
            self.cluster.ask(
                self.source, "MIGRATE", "127.0.0.1", self.target, "", 0, 5000, "KEYS", *keys
            )
        return len(keys)

    def finish(self):
        while self.move_keys():
            pass
        for port in (self.target, self.source, *self.cluster.masters):
            self.cluster.ask(
                port, "CLUSTER", "SETSLOT", self.slot, "NODE", self.cluster.id_of(self.target)
            )

    async def whole(self):
        for step in (self.begin, self.move_keys, self.finish):
            await asyncio.to_thread(step)


@contextlib.contextmanager
def moved_back(cluster, which, source, target):
    """Let a slot be moved; at the end it is where it was."""
    try:
        yield Move(cluster, which, source, target)
    finally:
        if any(
            first <= which <= last and master[1] == target
            for first, last, master, *_ in cluster.ask(target, "CLUSTER", "SLOTS")
        ):
            back = Move(cluster, which, target, source)
            back.begin()
            back.finish()


async def until(is_so, seconds=10):
    """Wait for what nothing tells of."""
    async with asyncio.timeout(seconds):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
