#!/usr/bin/env python3
"""Everything fails, at random and again and again; what was promised must hold all the same.

    python tests/chaos/chaos.py                       # 20 runs of 12 seconds
    python tests/chaos/chaos.py --runs 1 --seed 7     # one that went wrong, once more

Each run has nodes, an engine, and clients that talk and come back. Its seed decides what fails and
when; how that meets what the processes do is up to the machine, so that a seed is not a proof. In
the end all is mended, and the ledger judges. README.md here says what is checked.
"""

# ruff: noqa: T201 - what it prints is what it is for
from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from clients import Client
from ledger import Ledger, Place
from surroundings import Cable, Engine, Node, until

from backchannel.broker.redis import parcel
from backchannel.broker.redis.keys import Keys
from backchannel.contracts import Publication, Target

CHANNELS = ["room:a", "room:b", "short:c", "plain:d"]
USERS = ["ana", "bob", "cleo", "dan", "eve"]
CALM = 20.0
"""Seconds in which everything has to be well again, once nothing fails any more."""

FAULTS = {
    "kill node": 3, "freeze node": 3, "cut cable": 4, "slow cable": 3, "deaf cable": 3,
    "mute cable": 2, "restart engine with its data": 2, "restart engine with older data": 2,
    "restart engine without data": 2, "freeze engine": 2, "storm": 3, "stalled readers": 3,
}  # fmt: skip
"""What fails, and how often compared with the others."""


class Run:
    """One run.

    Args:
        seed: decides what fails, when and for how long.
        seconds: in which it does.
        folder: for what the processes write.
    """

    def __init__(self, seed: int, seconds: float, folder: Path, nodes: int = 3, clients: int = 12):
        self.rng = random.Random(seed)
        self.seconds = seconds
        self.engine = Engine(folder)
        self.cables = [Cable(self.engine.port) for _ in range(nodes)]
        self.folder = folder
        self.ledger = Ledger()
        self.log: list[str] = []
        self.wrong: list[str] = []
        self.busy: set[object] = set()
        self.nodes: list[Node] = []
        self.clients: list[Client] = []
        self.count = clients
        self.began = 0.0

    async def play(self) -> list[str]:
        """Return what is wrong in the end."""
        living: list[asyncio.Task[None]] = []
        try:
            await self._begin()
            living = [asyncio.create_task(client.live()) for client in self.clients]
            await until(lambda: all(one.is_in for one in self.clients), "all clients are in")
            self.began = time.monotonic()
            await self._fail()
            await self._settle()
        except TimeoutError as error:
            self.wrong.append(str(error))
        finally:
            for client in self.clients:
                client.is_over = True
                client.hang_up()
            for task in living:
                task.cancel()
            results = await asyncio.gather(*living, return_exceptions=True)
            for cable in self.cables:
                await cable.take_away()
            for program in (*self.nodes, self.engine):
                program.kill()
        self.wrong += [
            f"a client failed: {result!r}" for result in results
            if isinstance(result, Exception)
        ]  # fmt: skip
        return [*self.wrong, *self.ledger.judge(), *self._complaints()]

    async def _begin(self) -> None:
        await self.engine.come_up()
        for number, cable in enumerate(self.cables):
            await cable.lay()
            self.nodes.append(Node(number, cable, self.folder))
        await asyncio.gather(*[node.come_up() for node in self.nodes])
        ports = [node.port for node in self.nodes]
        for number in range(self.count):
            rng = random.Random(self.rng.random())
            name, user = f"c{number}", USERS[number % len(USERS)]
            self.clients.append(Client(name, user, CHANNELS, ports, self.ledger, rng, USERS))

    # ── what fails ────────────────────────────────────────────────────────────────────────────

    async def _fail(self) -> None:
        """Let things fail at the times that the seed says; what takes time goes on beside."""
        plan: list[tuple[float, str, float, float]] = []
        at = self.rng.uniform(0.3, 1)
        while at < self.seconds:
            (what,) = self.rng.choices(list(FAULTS), list(FAULTS.values()))
            plan.append((at, what, self.rng.uniform(0.2, 3.5), self.rng.random()))
            at += self.rng.uniform(0.2, 1.8)
        async with asyncio.TaskGroup() as group:
            for at, what, lasting, pick in plan:
                group.create_task(self._one(at, what, lasting, pick))

    async def _one(self, at: float, what: str, lasting: float, pick: float) -> None:
        await asyncio.sleep(max(0.0, self.began + at - time.monotonic()))
        kind, _, thing = what.partition(" ")
        number = int(pick * len(self.nodes))
        victim: object = self.engine if "engine" in what else (
            (thing, number) if thing in {"node", "cable"} else what
        )  # fmt: skip
        if victim in self.busy:
            return  # it suffers already
        self.busy.add(victim)
        shown = what + (f" {number}" if thing in {"node", "cable"} else "")
        self.log.append(f"{time.monotonic() - self.began:5.2f} {shown}, {lasting:.1f} s")
        self.ledger.figures[f"× {what}"] += 1
        try:
            if thing == "node":
                await self._harm_node(self.nodes[number], kind, lasting)
            elif thing == "cable":
                await self._harm_cable(self.cables[number], kind, lasting)
            elif "engine" in what:
                await self._harm_engine(what, lasting)
            elif what == "storm":
                for client in self.clients:
                    client.hang_up()
            else:
                await self._stall(lasting, pick)
        finally:
            self.busy.discard(victim)

    async def _harm_node(self, node: Node, kind: str, lasting: float) -> None:
        if kind == "kill":
            node.kill()
            await asyncio.sleep(lasting)
            # Without an engine a node does not start.
            await until(
                lambda: not self.engine.is_frozen and node.cable.is_whole and self.engine.answers(),
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
        if what == "freeze engine":
            self.engine.freeze()
            await asyncio.sleep(lasting)
            self.engine.thaw()
            return
        if "older" in what:
            self.engine.save()
            await asyncio.sleep(min(lasting, 1.0))  # what comes meanwhile is accepted, and lost
        self.look_up_places()
        if "with its" in what:
            self.engine.save()
        elif "without" in what:
            self.engine.forget()
        self.engine.kill()
        await asyncio.sleep(lasting / 3)
        await self.engine.come_up()

    async def _stall(self, lasting: float, pick: float) -> None:
        some = self.clients[:: 2 + int(pick * 4)]
        for client in some:
            client.reads.clear()
        others = [client for client in self.clients if client not in some]
        for number in range(60):  # more than sockets take
            talker = others[number % len(others)]
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1):
                    await talker.say("plain:d" if number % 6 else "room:a", size=60_000)
        await asyncio.sleep(lasting)
        for client in some:
            client.reads.set()

    # ── what is looked at ─────────────────────────────────────────────────────────────────────

    def look_up_places(self) -> None:
        """Note where each publication stands that the engine still has."""
        keys = Keys("chaos")
        with self.engine.client as client:
            for channel in CHANNELS:
                state, entries = keys.of_history(keys.topic(Target("channel", channel)))
                epoch = client.hget(state, "epoch")
                for number, fields in client.xrange(entries):
                    heard = parcel.unpack(Target("channel", channel), fields[b"parcel"])
                    kept = heard if isinstance(heard, Publication) else heard.publication
                    id_ = str(kept.frame).split('"')[3]
                    offset = int(number.partition(b"-")[0])
                    self.ledger.place(id_, Place(epoch.decode(), offset))

    async def _settle(self) -> None:
        """Mend all; then everyone must have all, and be counted."""
        for client in self.clients:
            client.talks = False
        end = time.monotonic() + CALM
        while not await self._has_calmed():
            if time.monotonic() > end:
                raise TimeoutError(f"did not calm down within {CALM:g} s: {self._who_is_out()}")
            await asyncio.sleep(0.1)
        for channel in CHANNELS:
            await self._last_word(channel, end)
        await self._counts(end)
        self.look_up_places()

    async def _has_calmed(self) -> bool:
        if not all(client.is_in for client in self.clients):
            return False
        told = [await self._asked(one) for one in self.clients]
        return not any("away" in answer.get("broker", "away") for answer in told)

    def _who_is_out(self) -> str:
        return ", ".join(
            f"{one.name} {f'is refused: {one.refused}' if one.socket else 'is gone'}"
            for one in self.clients if not one.is_in
        )  # fmt: skip

    @staticmethod
    async def _asked(client: Client) -> dict:
        try:
            return await client.ask_counts([])
        except Exception:  # noqa: BLE001 - then it is asked again
            return {}

    async def _last_word(self, channel: str, end: float) -> None:
        """Say something that all must hear, since nothing fails any more."""
        talker = self.rng.choice(self.clients)
        said = await talker.say(channel)

        def is_with_all() -> bool:
            return all(
                any(had.id == said for had in self.ledger.had[one.name, one.user, channel][-300:])
                for one in self.clients
            )

        with contextlib.suppress(TimeoutError):
            await until(is_with_all, "", max(3.0, end - time.monotonic()))
            return
        missing = [
            one.name for one in self.clients
            if not any(had.id == said for had in self.ledger.had[one.name, one.user, channel])
        ]  # fmt: skip
        state = self.ledger.said[said].state
        self.wrong.append(f"the last word in {channel} ({said}, {state}) did not reach {missing}")

    async def _counts(self, end: float) -> None:
        """All nodes must count those who are there, and nobody else."""
        users = sorted({client.user for client in self.clients})
        wanted = {channel: [len(self.clients), users] for channel in CHANNELS}
        while True:
            answers = [(await client.ask_counts(CHANNELS))["counts"] for client in self.clients]
            if all(answer == wanted for answer in answers):
                return
            if time.monotonic() > end:
                self.wrong.append(f"ghosts: {answers}, not {wanted}")
                return
            await asyncio.sleep(0.2)

    def _complaints(self) -> list[str]:
        """Return what nodes say of bugs."""
        wrong = []
        for node in self.nodes:
            lines = node.log.read_text(errors="replace").splitlines()
            wrong += [
                f"{node.name} says: {line}" for line in lines
                if any(word in line for word in BUGS) and "BrokerUnavailable" not in line
            ]  # fmt: skip
            self.ledger.figures["losses in the nodes' logs"] += sum("were lost" in x for x in lines)
        return wrong[:20]


BUGS = ("never retrieved", "never awaited", "failed: ", "raised ", "stranger", "Warning: ")


async def play(seed: int, seconds: float) -> tuple[list[str], Run]:
    """Play one run; print it where it went wrong."""
    me = asyncio.current_task()
    assert me is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # what was started is ended all the same
        asyncio.get_running_loop().add_signal_handler(number, me.cancel)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(seed, seconds, Path(folder))
        wrong = await run.play()
        return wrong, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, help="of the first; each has the next one")
    parser.add_argument("--seconds", type=float, default=12.0, help="in which things fail")
    asked = parser.parse_args()
    first = random.randrange(1_000_000) if asked.seed is None else asked.seed
    total: collections.Counter[str] = collections.Counter()
    bad: list[int] = []
    for seed in range(first, first + asked.runs):
        began = time.monotonic()
        wrong, run = uvloop.run(play(seed, asked.seconds))
        total += run.ledger.figures
        figures = {k: v for k, v in sorted(run.ledger.figures.items()) if k[0] != "×"}
        print(f"seed {seed}, {time.monotonic() - began:.0f} s: {figures}")
        print("   " + "; ".join(run.log))
        for text in wrong[:30]:
            print(f"   WRONG: {text}")
        if wrong:
            bad.append(seed)
        sys.stdout.flush()
    print(f"{asked.runs} runs from seed {first}: {dict(sorted(total.items()))}")
    print(f"WRONG in {bad}" if bad else "OK")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
