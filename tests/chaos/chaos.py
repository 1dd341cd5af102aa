#!/usr/bin/env python3
"""Everything fails, at random and again and again; what was promised must hold all the same.

    python tests/chaos/chaos.py                       # 20 runs of 12 seconds
    python tests/chaos/chaos.py --runs 1 --seed 7     # one that went wrong, once more
    python tests/chaos/chaos.py --speaking v1         # all clients, not half of them
    python tests/chaos/chaos.py --script 0            # none of them in Node, which is not needed then
    python tests/chaos/chaos.py --results FILE        # a line of JSON for each run besides
    python tests/chaos/chaos.py --sum FILE            # all of them together

Each run has nodes, an engine, and clients that talk and come back. Its seed decides what fails and
when; how that meets what the processes do is up to the machine, so that a seed is not a proof. In
the end all is mended, and the ledger judges. README.md here says what is checked.
"""

# ruff: noqa: T201 - what it prints is what it is for
from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import summing
import uvloop
from clients import Client
from deeds import Deeds, Did
from faults import Faults
from ledger import Ledger, Place
from people import Crowd, Who
from roads import Road
from scripted import Script, ScriptedSpeaker, find_node
from senders import Sender
from settling import ROOMS, Settling
from speakers import Speaker
from surroundings import Cable, Engine, Node, until

from backchannel.broker.redis import parcel
from backchannel.broker.redis.keys import Keys
from backchannel.contracts import Publication, Target

CHANNELS = ["room:a", "room:b", "short:c", "plain:d"]
USERS = ["ana", "bob", "cleo", "dan", "eve"]


class Run:
    """One run.

    Args:
        seed: decides what fails, when and for how long.
        seconds: in which it does.
        folder: for what the processes write.
        nodes: how many there are.
        speaking: what clients speak: "raw", "v1", or "mixed", half of them each.
        script: the share of those that speak v1 which do by clients/js, in Node; 0 to 1.
        clients: how many there are.
    """

    def __init__(
        self, seed: int, seconds: float, folder: Path, speaking: str = "mixed",
        script: float = 0.0, nodes: int = 3, clients: int = 12,
    ):  # fmt: skip
        self.rng = random.Random(seed)
        self.seconds = seconds
        self.engine = Engine(folder)
        self.cables = [Cable(self.engine.port) for _ in range(nodes + 1)]
        self.folder = folder
        self.ledger, self.deeds = Ledger(), Deeds()
        self.speaking = speaking
        # Dice of its own: what fails is the same with it and without.
        self.share, self.dice = script, random.Random(f"{seed} script")
        self.script = Script(folder / "script.log")
        self.faults = Faults(self)
        self.took: dict[str, float] = {}
        self.wrong: list[str] = []
        self.nodes: list[Node] = []
        self.clients: list[Client | Speaker] = []
        self.senders: list[Sender] = []
        # Two of a user's devices are of one session, the third is of another.
        self.who = [
            Who(f"c{n}", user := USERS[n % 5], f"{user}-{n // 5 % 2}") for n in range(clients)
        ]
        self.crowd = Crowd(self.who, self._connections, random.Random(seed))

    @property
    def ports(self) -> list[int]:
        """Where nodes listen."""
        return [node.port for node in self.nodes]

    @property
    def speakers(self) -> list[Speaker]:
        """Those of the clients that speak v1."""
        return [one for one in self.clients if isinstance(one, Speaker)]

    @property
    def roads(self) -> list[Road]:
        """What lies between these and the nodes."""
        return [one.road for one in self.speakers]

    def did(self) -> list[Did]:
        """Return what nodes wrote that they did for these."""
        files = [node.did for node in self.nodes if node.did.exists()]
        return [one for file in files for one in Did.read(file.read_text(encoding="utf-8"))]

    def _connections(self) -> list[str]:
        return [client.id for client in self.clients if client.id is not None]

    async def play(self) -> list[str]:
        """Return what is wrong in the end."""
        living: list[asyncio.Task[None]] = []
        try:
            began = time.monotonic()
            await self._begin()
            living = [asyncio.create_task(one.live()) for one in (*self.clients, *self.senders)]
            await until(lambda: all(one.is_in for one in self.clients), "all clients are in")
            self.took["to start"] = time.monotonic() - began
            await self.faults.happen(self.seconds)
            self.took["with faults"] = time.monotonic() - began - sum(self.took.values())
            settling = Settling(self, CHANNELS, has_lost_data=self.faults.has_lost_data)
            self.wrong += await settling.look()
            self.look_up_places()
            self.took["to settle"] = time.monotonic() - began - sum(self.took.values())
        except TimeoutError as error:
            self.wrong.append(str(error))
        finally:
            for client in self.clients:
                client.is_over = True
                client.hang_up()
            for task in living:
                task.cancel()
            results = await asyncio.gather(*living, return_exceptions=True)
            await self.script.stop()
            for cable in self.cables:
                await cable.take_away()
            for program in (*self.nodes, self.engine):
                program.kill()
        self.wrong += [
            f"who talks failed: {''.join(traceback.format_exception(result)[-4:])}" for result in results
            if isinstance(result, Exception)
        ]  # fmt: skip
        wrong = [*self.wrong, *self.ledger.judge(ROOMS), *self.deeds.judge(self.did())]
        return [*wrong, *self._complaints()]

    async def _begin(self) -> None:
        await self.engine.come_up()
        for cable in self.cables:
            await cable.lay()
        *own, last = self.cables
        self.nodes += [Node(number, cable, self.folder) for number, cable in enumerate(own)]
        await asyncio.gather(*[node.come_up() for node in self.nodes])
        for number, who in enumerate(self.who):
            rng = random.Random(self.rng.random())
            some = (who, CHANNELS, self.ports, self.crowd, self.ledger)
            if self.speaking == "v1" or (self.speaking == "mixed" and number % 2):
                self.clients.append(await self._speaker(*some, self.deeds, rng))
            else:
                self.clients.append(Client(*some, rng))
        for name in ("s0", "s1"):
            rng = random.Random(self.rng.random())
            self.senders.append(Sender(name, last.url, CHANNELS, self.crowd, self.ledger, rng))

    async def _speaker(self, *some: Any) -> Speaker:
        """Make one that speaks v1, by either client."""
        if self.dice.random() >= self.share:
            return Speaker(*some)
        if not self.script.is_running:
            await self.script.start()
        self.ledger.figures["clients in Node"] += 1
        return ScriptedSpeaker(self.script, *some)

    def look_up_places(self) -> None:
        """Note where each publication stands that the engine still has."""
        keys = Keys("chaos", 0)
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

    def _complaints(self) -> list[str]:
        """Return what nodes say of bugs."""
        wrong = [f"the script says: {line}" for line in self.script.complaints()]
        for node in self.nodes:
            lines = node.log.read_text(errors="replace").splitlines()
            wrong += [
                f"{node.name} says: {line}" for line in lines
                if any(word in line for word in BUGS) and "BrokerUnavailable" not in line
            ]  # fmt: skip
            self.ledger.figures["losses in the nodes' logs"] += sum("were lost" in x for x in lines)
            told = node.told.read_text(encoding="utf-8") if node.told.exists() else ""
            self.ledger.figures["told to have joined or left"] += len(told.splitlines())
        return wrong[:20]


BUGS = ("never retrieved", "never awaited", "failed: ", "raised ", "stranger", "Warning: ")


async def play(seed: int, seconds: float, speaking: str, script: float) -> tuple[list[str], Run]:
    """Play one run; return what went wrong in it, and what it was."""
    me = asyncio.current_task()
    assert me is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # what was started is ended all the same
        asyncio.get_running_loop().add_signal_handler(number, me.cancel)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(seed, seconds, Path(folder), speaking, script)
        wrong = await run.play()
        return wrong, run


def one(seed: int, seconds: float, speaking: str, script: float) -> dict[str, Any]:
    """Play one run, and print it; return what it came to."""
    began = time.monotonic()
    wrong, run = uvloop.run(play(seed, seconds, speaking, script))
    result = {
        "seed": seed, "speaking": speaking, "script": script, "seconds": round(time.monotonic() - began, 1), "faulty": seconds,
        "took": {name: round(value, 1) for name, value in run.took.items()},
        "figures": dict(sorted(run.ledger.figures.items())), "faults": run.faults.log,
        "wrong": wrong,
    }  # fmt: skip
    print(summing.line(result))
    if wrong:
        print("   " + "; ".join(run.faults.log))
    for text in wrong[:30]:
        print(f"   WRONG: {text}")
    sys.stdout.flush()
    return result


def share(text: str) -> float:
    """Read a share.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a share is a number from 0 to 1, not {text!r}")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, help="of the first; each has the next one")
    parser.add_argument("--seconds", type=float, default=12.0, help="in which things fail")
    parser.add_argument(
        "--speaking", choices=("raw", "v1", "mixed"), default="mixed", help="what clients speak"
    )
    parser.add_argument(
        "--script", type=share, default=0.5, metavar="SHARE",
        help="of those that speak v1, who do by clients/js, in Node: 0 to 1, 0.5 unless said",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, metavar="FILE", help="add a line of JSON a run")
    parser.add_argument("--sum", type=Path, metavar="FILE", help="sum up such a file, and run none")
    asked = parser.parse_args()
    results: list[dict[str, Any]] = [] if asked.sum is None else summing.read(asked.sum)
    if asked.script and asked.speaking != "raw" and find_node() is None:
        parser.error("clients of clients/js need Node 20 or newer; --script 0 does without")
    first = random.randrange(1_000_000) if asked.seed is None else asked.seed
    for seed in range(first, first + (asked.runs if asked.sum is None else 0)):
        results.append(one(seed, asked.seconds, asked.speaking, asked.script))
        if asked.results is not None:
            summing.append(asked.results, results[-1])
    text, is_right = summing.summed(results)
    print(text)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
