"""What must hold once nothing fails any more: all are in, hear what is said, and are counted."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import time
from typing import TYPE_CHECKING

from clients import Client
from deeds import unanswered
from joins import Told, unbalanced
from people import DIRECT, Who
from surroundings import LEASE, until

if TYPE_CHECKING:
    from chaos import Run

CALM = 20.0
"""Seconds in which everything has to be well again, once nothing fails any more."""

ROOMS = ["room:a", "room:b"]
"""The channels that keep who is in them."""


class Settling:
    """Looks at a run whose faults are over.

    Args:
        run: the run.
        channels: which there are.
        has_lost_data: the engine came back without all of its data: then some may never have been
            told to have joined or left.
    """

    def __init__(self, run: Run, channels: list[str], *, has_lost_data: bool):
        self.run, self.channels, self.ledger = run, channels, run.ledger
        self.has_lost_data = has_lost_data
        self.end = time.monotonic() + CALM
        self.wrong: list[str] = []

    async def look(self) -> list[str]:
        """Return what is wrong.

        Raises:
            TimeoutError: it does not calm down.
        """
        for one in (*self.run.clients, *self.run.senders):
            one.talks = False
        while not await self._has_calmed():
            if time.monotonic() > self.end:
                raise TimeoutError(f"did not calm down within {CALM:g} s: {self._who_is_out()}")
            await asyncio.sleep(0.1)
        await self._last_words()
        await self._counts()
        await self._newcomer()
        await self._return()
        await self._answers()
        await self._balance()
        return self.wrong

    async def _has_calmed(self) -> bool:
        if not all(client.is_in for client in self.run.clients):
            return False
        told = [await self._asked(one) for one in self.run.clients]
        return not any("away" in answer.get("broker", "away") for answer in told)

    def _who_is_out(self) -> str:
        return ", ".join(
            f"{one.who.name} {f'is refused: {one.refused}' if one.socket else 'is gone'}"
            for one in self.run.clients if not one.is_in
        )  # fmt: skip

    @staticmethod
    async def _asked(client: Client) -> dict:
        try:
            return await client.ask_counts([])
        except Exception:  # noqa: BLE001 - then it is asked again
            return {}

    # ── what is said now comes to all ─────────────────────────────────────────────────────────

    async def _last_words(self) -> None:
        """Say to each channel and audience what all must hear, since nothing fails any more."""
        crowd, rng = self.run.crowd, self.run.rng
        direct = [*crowd.users, *crowd.sessions, "everyone"]
        direct += [f"connection:{one}" for one in crowd.connections()]
        words: list[tuple[str, list[str] | None]] = [(one, None) for one in self.channels]
        words += [(DIRECT, [address]) for address in direct]
        said = [
            await rng.choice(some).say(channel, to)
            for channel, to in words for some in (self.run.clients, self.run.senders)
        ]  # fmt: skip

        def missing() -> list[str]:
            return [text for id_ in said if (text := self._misses(id_))]

        with contextlib.suppress(TimeoutError):
            await until(lambda: not missing(), "", max(3.0, self.end - time.monotonic()))
        self.wrong += missing()

    def _misses(self, id_: str) -> str:
        """Return what is wrong with a last word, "" where it came to all it was for."""
        word = self.ledger.said[id_]
        meant = [
            one.who for one in self.run.clients
            if word.to is None or word.is_for(one.who.addresses(one.id or ""))
        ]  # fmt: skip
        out = {
            who.name: self.ledger.had[who, word.channel][-3:] for who in meant
            if not any(had.id == id_ for had in self.ledger.had[who, word.channel][-300:])
        }  # fmt: skip
        is_counted = word.state == "accepted" and word.reached == (
            len(meant) if word.channel == DIRECT else None
        )
        if not out and is_counted:
            return ""
        whom = word.channel if word.to is None else word.to
        return (
            f"the last word to {whom} ({id_}, {word.state}) did not reach {out}, which is what they "
            f"had last; it was said to have reached {word.reached} of {len(meant)}"
        )

    # ── who is there is counted ───────────────────────────────────────────────────────────────

    async def _counts(self) -> None:
        """All nodes must count those who are there, and nobody else."""
        users = sorted({client.who.user for client in self.run.clients})
        wanted = {name: [len(self.run.clients), len(users), users] for name in self.channels}
        while True:
            clients = self.run.clients
            answers = [(await one.ask_counts(self.channels))["counts"] for one in clients]
            if all(answer == wanted for answer in answers):
                return
            if time.monotonic() > self.end:
                self.wrong.append(f"ghosts: {answers}, not {wanted}")
                return
            await asyncio.sleep(0.2)

    # ── joins and leaves ──────────────────────────────────────────────────────────────────────

    def _told(self) -> list[Told]:
        """Return all that nodes were told so far."""
        files = [node.told for node in self.run.nodes if node.told.exists()]
        return [one for file in files for one in Told.read(file.read_text(encoding="utf-8"))]

    async def _newcomer(self) -> None:
        """Let somebody come and go: it is told once, by whichever node."""
        who = Who("new", "new", "new-0")
        one = Client(
            who, self.channels, self.run.ports, self.run.crowd, self.ledger, random.Random(0)
        )
        one.talks = False

        def told() -> collections.Counter[tuple[bool, str]]:
            return collections.Counter(
                (one.joined, one.channel) for one in self._told() if one.user == who.user
            )

        wanted = collections.Counter((True, room) for room in ROOMS)
        living = asyncio.create_task(one.live())
        try:
            await until(lambda: one.is_in and told() >= wanted, "a newcomer is told to have joined")
            one.is_over = True
            one.hang_up()
            wanted.update((False, room) for room in ROOMS)
            await until(lambda: told() >= wanted, "a newcomer is told to have left")
        except TimeoutError as error:
            self.wrong.append(f"{error}: {told()}")
        finally:
            one.is_over = True
            one.hang_up()
            await living
        if told() > wanted:
            self.wrong.append(f"a newcomer came and went once, and was told of as {told()}")
        await self._members_were_told(who.user)

    async def _members_were_told(self, user: str) -> None:
        """Members that speak v1 hear of a newcomer what the callbacks do."""
        wanted = {(room, user, joined): 1 for room in ROOMS for joined in (True, False)}

        def wrong() -> list[str]:
            found = {
                one.who.name: {key: n for key, n in one.told.items() if key[1] == user}
                for one in self.run.speakers
            }
            return [
                f"{name} was told of a newcomer as {told}"
                for name, told in found.items()
                if told != wanted
            ]

        with contextlib.suppress(TimeoutError):
            await until(lambda: not wrong(), "", max(3.0, self.end - time.monotonic()))
        self.wrong += wrong()

    # ── sessions and calls ────────────────────────────────────────────────────────────────────

    async def _return(self) -> None:
        """Let all that speak v1 lose their connection: each goes on with its session."""
        some = self.run.speakers
        before = {one.who.name: (one.id, one.opened) for one in some}
        for one in some:
            one.hang_up()

        def is_back() -> bool:
            return all(one.is_in and one.opened > before[one.who.name][1] for one in some)

        try:
            await until(is_back, f"all are back: {self._who_is_out()}")
        except TimeoutError as error:
            self.wrong.append(str(error))
            return
        for one in some:
            assert one.client is not None
            if not one.client.resumed or one.id != before[one.who.name][0]:
                self.wrong.append(
                    f"{one.who.name} hung up when nothing failed, and came back as {one.id} "
                    f"(resumed {one.client.resumed}) after {before[one.who.name][0]}"
                )
        ids = collections.Counter(one.id for one in self.run.clients)
        self.wrong += [f"{count} clients are {id_}" for id_, count in ids.items() if count > 1]
        await self._counts()

    async def _answers(self) -> None:
        """What nodes asked of clients has come to its end."""
        killed = {pid for node in self.run.nodes for pid in node.killed}

        def wrong() -> list[str]:
            return unanswered(self.run.did(), killed)

        with contextlib.suppress(TimeoutError):
            await until(lambda: not wrong(), "", 7.0)
        self.wrong += wrong()

    async def _balance(self) -> None:
        """Whoever joined has left before joining again."""
        if self.has_lost_data:
            return
        there = {(room, client.who.user) for client in self.run.clients for room in ROOMS}
        lost = {pid for node in self.run.nodes for pid in node.killed}
        # Others can't tell one that was out of reach for about a lease from a dead one.
        troubles = self.run.deeds.troubles
        lost |= {one.of for one in troubles if one.ended - one.began > LEASE * 2 / 3}

        def wrong() -> list[str]:
            return unbalanced(self._told(), lost, there)

        with contextlib.suppress(TimeoutError):
            await until(lambda: not wrong(), "", max(3.0, self.end - time.monotonic()))
        self.wrong += wrong()
        self.ledger.figures["runs whose joins were balanced"] += 1
