"""What fails: one thing after the other and several at a time, as a seed decides."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from deeds import Trouble
from roads import Road
from surroundings import Cable, Node, until

if TYPE_CHECKING:
    from chaos import Run

FAULTS = {
    "kill node": 3, "freeze node": 3, "cut cable": 4, "slow cable": 3, "deaf cable": 3,
    "mute cable": 2, "restart engine with its data": 2, "restart engine with older data": 2,
    "restart engine without data": 2, "freeze engine": 2, "storm": 3, "stalled readers": 3,
    "users away": 3, "cut road": 3, "slow road": 2, "torn road": 3, "half-closed road": 3,
}  # fmt: skip
"""What fails, and how often compared with the others."""


class Faults:
    """Lets things of a run fail.

    Args:
        run: the run.

    Attributes:
        log: what failed, when and for how long.
        has_lost_data: the engine came back without all of its data.
    """

    def __init__(self, run: Run):
        self.run = run
        self.log: list[str] = []
        self.has_lost_data = False
        self._busy: set[object] = set()
        self._began = 0.0

    async def happen(self, seconds: float) -> None:
        """Let things fail at the times that the seed says; what takes time goes on beside."""
        self._began = time.monotonic()
        rng = self.run.rng
        plan: list[tuple[float, str, float, float]] = []
        at = rng.uniform(0.3, 1)
        while at < seconds:
            kinds = {
                kind: often
                for kind, often in FAULTS.items()
                if "road" not in kind or self.run.roads
            }
            (what,) = rng.choices(list(kinds), list(kinds.values()))
            plan.append((at, what, rng.uniform(0.2, 3.5), rng.random()))
            at += rng.uniform(0.2, 1.8)
        async with asyncio.TaskGroup() as group:
            for at, what, lasting, pick in plan:
                group.create_task(self._one(at, what, lasting, pick))

    async def _one(self, at: float, what: str, lasting: float, pick: float) -> None:
        await asyncio.sleep(max(0.0, self._began + at - time.monotonic()))
        kind, _, thing = what.partition(" ")
        some = {
            "node": self.run.nodes, "cable": self.run.cables, "road": self.run.roads,
        }.get(thing, ())  # fmt: skip
        number = int(pick * len(some))
        victim: object = "engine" if "engine" in what else (thing, number) if some else what
        if victim in self._busy:
            return  # it suffers already
        self._busy.add(victim)
        shown = what + (f" {number}" if some else "")
        self.log.append(f"{time.monotonic() - self._began:5.2f} {shown}, {lasting:.1f} s")
        self.run.ledger.figures[f"× {what}"] += 1
        began, troubled = time.monotonic(), self._troubled(what, number)
        try:
            if thing == "node":
                await self._harm_node(self.run.nodes[number], kind, lasting)
            elif thing == "cable":
                await self._harm_cable(self.run.cables[number], kind, lasting)
            elif thing == "road":
                await self._harm_road(self.run.roads[number], kind, lasting, pick)
            elif "engine" in what:
                await self._harm_engine(what, lasting)
            elif what == "users away":
                await self._send_away(lasting, pick)
            elif what == "storm":
                for client in self.run.clients:
                    client.hang_up()
            else:
                await self._stall(lasting, pick)
        finally:
            self._busy.discard(victim)
            self.run.deeds.troubles += [Trouble(one, began, time.monotonic()) for one in troubled]

    def _troubled(self, what: str, number: int) -> list[int]:
        """Name the runs of nodes that can't tell others now what they did; 0 is all of them."""
        if "engine" in what:
            return [0]
        if "node" in what or ("cable" in what and number < len(self.run.nodes)):
            popen = self.run.nodes[number].popen
            return [] if popen is None else [popen.pid]
        return []

    @staticmethod
    async def _harm_road(road: Road, kind: str, lasting: float, pick: float) -> None:
        if kind == "torn":
            road.tear(int(pick * 3000))
        elif kind == "slow":
            road.delay = lasting / 10
        elif kind == "half-closed":
            road.half_close(node=pick < 0.5)
        else:
            road.is_closed = True
            road.cut()
        await asyncio.sleep(lasting)
        road.delay = 0.0
        if kind == "torn":  # where so little went over it that it is whole: it stays that
            road.tear(None)
        elif kind == "cut":
            road.is_closed = False

    async def _harm_node(self, node: Node, kind: str, lasting: float) -> None:
        if kind == "kill":
            node.kill()
            await asyncio.sleep(lasting)
            engine = self.run.engine
            # Without an engine a node does not start.
            await until(
                lambda: not engine.is_frozen and node.cable.is_whole and engine.answers(),
                f"{node.name} can start",
            )
            node.start()
            with contextlib.suppress(AssertionError):
                await until(node.listens, f"{node.name} listens")
            return
        node.freeze()
        await asyncio.sleep(lasting)
        node.thaw()

    @staticmethod
    async def _harm_cable(cable: Cable, kind: str, lasting: float) -> None:
        if kind == "cut":
            cable.cut()
        elif kind == "slow":
            cable.delay = lasting / 10
        elif kind == "deaf":
            cable.is_deaf = True
        else:
            cable.is_mute = True
        await asyncio.sleep(lasting)
        if kind != "slow":
            cable.cut()
        cable.mend()

    async def _harm_engine(self, what: str, lasting: float) -> None:
        """Stop it for a while, or start it anew with what it had at some moment.

        While it is looked through nothing is written, so that each publication's place is known in
        the epoch that it was stored in: what an older state has is found there again, at the same
        offset, under whatever epoch is the newest then.
        """
        engine = self.run.engine
        if what == "freeze engine":
            engine.freeze()
            await asyncio.sleep(lasting)
            engine.thaw()
            return
        if "older" in what:
            with engine.held():
                self.run.look_up_places()
                engine.save()
            await asyncio.sleep(min(lasting, 1.0))  # what comes meanwhile is accepted, and lost
        with engine.held():
            self.run.look_up_places()
            if "with its" in what:
                engine.save()
            elif "without" in what:
                engine.forget()
            engine.kill()
        self.has_lost_data |= "with its" not in what
        await asyncio.sleep(lasting / 3)
        await engine.come_up()

    async def _send_away(self, lasting: float, pick: float) -> None:
        """Let all devices of some users hang up, and come back only later."""
        users = sorted({client.who.user for client in self.run.clients})
        first = int(pick * len(users))
        gone = [one for one in self.run.clients if one.who.user in users[first : first + 2]]
        for client in gone:
            client.at_home.clear()
            client.hang_up()
        await asyncio.sleep(lasting)
        for client in gone:
            client.at_home.set()

    async def _stall(self, lasting: float, pick: float) -> None:
        clients = self.run.clients
        some = clients[:: 2 + int(pick * 4)]
        for client in some:
            client.reads.clear()
        others = [client for client in clients if client not in some]
        for number in range(60):  # more than sockets take
            talker = others[number % len(others)]
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1):
                    await talker.say("plain:d" if number % 6 else "room:a", size=60_000)
        await asyncio.sleep(lasting)
        for client in some:
            client.reads.set()
