"""What the engine knows of who is in which channel, kept true for this node.

A node has a lease, on the engine's clock, and a fencing number. It announces how things are, not
what has changed, so that whatever may not have arrived is announced again. Whoever looks first
after a lease has run out removes what that node held. See ``presence.lua``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import secrets
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import hiredis
import msgspec

from backchannel.errors import BrokerUnavailable
from backchannel.observe import BROKER

if TYPE_CHECKING:
    from backchannel.broker.redis.keys import Keys
    from backchannel.broker.redis.link import Link
    from backchannel.broker.redis.route import Route
    from backchannel.contracts import Node

__all__ = ["Roll"]

BATCH: Final = 500
"""Users of channels that are announced in one step."""

LOOK: Final = 1.0
"""Seconds after which a node looks, at the latest, whether another one's lease has run out."""

PAUSE: Final = 1.0
"""Seconds to wait after something that should not happen."""

Pair = tuple[str, str]
_event: Final = msgspec.msgpack.Decoder(tuple[int, bool, str, str])


class _RefusedError(Exception):
    """The fencing number is an old one: what this node held was removed."""


class Roll:
    """One node's part of it. One task says all there is to say, one step after the other.

    Args:
        route: the way to where it is kept.
        keys: what its keys are called.
        lease: seconds after which a node that was not heard of is as good as dead.
        moment: seconds that a leave waits for the user to come back, and that joins wait in
            channels of which the node says so.
    """

    def __init__(self, route: Route, keys: Keys, lease: float, moment: float):
        self._route = route
        self._key = keys.presence
        self._lease = lease
        self._moment = moment
        self._interval = min(LOOK, lease / 3)
        self._node: Node
        self._working: asyncio.Task[None] | None = None
        self._forget()

    def _forget(self) -> None:
        self._wake = asyncio.Event()
        self._fence = 0
        self._epoch = ""
        self._numbering = 0  # how often the engine's numbers began anew
        self._refusal = ""
        self._is_settled = True
        self._takes = True
        self._wait = self._interval
        self._dirty: dict[Pair, bool] = {}  # True: the engine knew of it, before it lost its data
        self._held: dict[Pair, float] = {}  # what the engine knows of; when the join is due, or 0
        self._left: dict[Pair, float] = {}  # what it knew of; when the leave is due
        self._asked: deque[tuple[str, str, asyncio.Future[Any]]] = deque()
        self._heard = 0  # when it answered last; by the engine's clock, as what is due
        self._seen = self._done = self._confirmed = 0
        self._open: dict[int, None] = {}  # told and not done, by number

    def bind(self, node: Node) -> None:
        """Remember the node."""
        self._node = node

    def connected(self) -> None:
        """Announce everything anew, where there is presence."""
        self._fence = 0
        if self._node.keeps_presence or self._working is not None:
            self._stir()

    def disconnected(self) -> None:
        """Let nobody wait for an engine that is away."""
        self._wake.set()

    async def stop(self) -> None:
        """Announce what is left to announce, and give the rest to other nodes."""
        if self._working is None:
            return
        self._working.cancel()
        await asyncio.wait({self._working})
        self._working = None
        self._takes = False
        with contextlib.suppress(
            BrokerUnavailable, hiredis.ReplyError, _RefusedError, TimeoutError
        ):
            async with asyncio.timeout(1):
                if self._fence:
                    await self._announce()
                    await self._call("bye")
        self._fail_asked()
        self._forget()

    def announce(self, channel: str, user: str) -> None:
        """Announce a user's devices here, at the end of this turn or when the engine is back."""
        self._dirty.setdefault((channel, user), False)
        self._stir()

    async def ask(self, verb: str, channel: str) -> Any:
        """Ask the engine, after what was announced before.

        Args:
            verb: ``"members"``, ``"told"`` or ``"count"``.
            channel: the channel.

        Raises:
            BrokerUnavailable: the engine is away.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append((verb, channel, answer))
        self._stir()
        return await answer

    # ── the task ──────────────────────────────────────────────────────────────────────────────

    def _stir(self) -> None:
        self._wake.set()
        if self._working is None:
            self._working = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while True:
            try:
                await self._say_all()
                await self._rest()
            except _RefusedError:
                self._fence = 0
            except BrokerUnavailable as error:
                self._fence = 0
                if self._link is not None:  # it is not whole just now: its slot moves
                    self._fail_asked(str(error))
            except hiredis.ReplyError as error:
                self._fence = 0
                why = str(error).partition(" script:")[0]  # without where in it
                self._complain(f"{self._route.shown} refuses to keep presence: {why}")
                await asyncio.sleep(PAUSE)
            except Exception as error:  # noqa: BLE001 - a bug must not end this for good
                self._fence = 0
                self._fail_asked(f"keeping presence failed: {error!r}")
                self._node.report(f"keeping presence failed: {error!r}", error)
                await asyncio.sleep(PAUSE)

    async def _say_all(self) -> None:
        self._wake.clear()
        if self._link is None:
            self._fail_asked()
            return
        if not self._fence:
            await self._enroll()
        await self._announce()
        while not self._is_settled:
            self._is_settled = await self._call("settle") == 0
        while self._asked:
            await self._announce()  # what came meanwhile was announced before it was asked
            verb, channel, answer = self._asked[0]
            found = await self._call(verb, channel)
            self._asked.popleft()
            if not answer.done():
                answer.set_result(found)
        if self._done != self._confirmed:
            await self._call("beat")

    async def _rest(self) -> None:
        """Wait for something to say; what is always to be said is that this node is alive."""
        if self._link is None:
            await self._wake.wait()
            return
        try:
            async with asyncio.timeout(min(self._interval, self._wait)):
                await self._wake.wait()
        except TimeoutError:
            await self._call("beat")

    def _complain(self, text: str) -> None:
        """Say what the engine refuses, once until it does not."""
        if self._refusal != text:
            self._refusal = text
            BROKER.error("%s", text)
        self._fail_asked(text)

    def _fail_asked(self, why: str = "") -> None:
        while self._asked:
            answer = self._asked.popleft()[2]
            if not answer.done():
                answer.set_exception(BrokerUnavailable(why or f"{self._route.shown} is away"))

    async def _enroll(self) -> None:
        """Get a fencing number, and announce everything anew."""
        comes_back, heard = self._epoch != "", self._heard
        known = [pair for pair, was_known in self._dirty.items() if was_known]
        said = await self._call("enroll", int(comes_back), secrets.token_hex(8))
        fence, epoch, is_older = said
        is_new = comes_back and epoch.decode() != self._epoch
        lost = is_new or bool(is_older)
        self._fence, self._epoch = fence, epoch.decode()
        if is_new:  # its numbers begin anew
            self._numbering += 1
            self._seen = self._done = self._confirmed = 0
            self._open.clear()
        self._dirty = dict.fromkeys(self._node.attending(), False)
        # Whose leave was due is told to have left, or has devices elsewhere.
        left = [pair for pair, due in self._left.items() if due > heard or not lost]
        self._dirty.update(dict.fromkeys((*self._held, *left), lost))
        if lost:  # whose join was not told yet: it is to be told
            for pair in [one for one, due in self._held.items() if due > heard]:
                self._dirty[pair] = False
                self._held[pair] = math.inf
        if self._heard - heard <= self._lease * 1000:  # else they may have been told to have left
            self._dirty.update(dict.fromkeys(known, True))
        self._is_settled = False

    async def _announce(self) -> None:
        long_ago = self._heard - self._lease * 1000
        while self._left and next(iter(self._left.values())) < long_ago:
            del self._left[next(iter(self._left))]
        while self._dirty:
            said: dict[Pair, bytes] = {}
            words: list[str | bytes | int] = []
            known: set[Pair] = set()
            for pair in list(islice(self._dirty, BATCH)):
                if was_known := self._dirty.pop(pair):
                    known.add(pair)
                devices = said[pair] = self._node.devices(*pair)
                words += [*pair, devices, int(was_known), int(self._node.settles(pair[0]))]
            try:
                due = dict(await self._call("set", *words))
            except BaseException:
                self._dirty.update(dict.fromkeys(known, True))
                raise
            for index, (pair, devices) in enumerate(said.items()):
                self._note(pair, due.get(index, 0), is_here=devices != b"")
                if pair in known and pair not in self._held:  # others have a lease to announce them
                    self._left[pair] = self._heard + max(self._lease, self._moment) * 1000

    def _note(self, pair: Pair, due: int, *, is_here: bool) -> None:
        """Keep what the engine knows now.

        Args:
            pair: the channel and the user.
            due: when it tells of the join, in milliseconds of its clock; 0 where it has.
            is_here: this node has devices of the user.
        """
        if is_here:
            self._held[pair] = due
            self._left.pop(pair, None)
        elif self._held.pop(pair, math.inf) <= self._heard:  # else nobody knows that they came
            self._left[pair] = self._heard + self._moment * 1000

    @property
    def _link(self) -> Link | None:
        """The connection; None where it is lost, also before the engine has noticed."""
        link = self._route.link_of(self._key)
        return None if link is None or link.lost.done() else link

    # ── one step ──────────────────────────────────────────────────────────────────────────────

    async def _call(self, verb: str, *words: str | bytes | int) -> Any:
        done, began = self._done, asyncio.get_running_loop().time()
        if self._link is None:
            raise BrokerUnavailable(f"{self._route.shown} is away")
        said = (
            verb, self._node.id, self._fence, round(self._lease * 1000), round(self._moment * 1000),
            self._seen, done, int(self._takes), *words,
        )  # fmt: skip
        reply = await self._route.evaluate("presence", (self._key,), lambda _: said, whole=True)
        # What is heard only after a lease, as by a process that was stopped meanwhile, another node
        # may have been given since; what was not is given again.
        if not reply[0] or asyncio.get_running_loop().time() - began > self._lease:
            raise _RefusedError
        _, wait, news, answer, now = reply
        self._confirmed, self._heard = done, now
        self._refusal = ""
        self._wait = wait / 1000 if wait >= 0 else self._interval
        for event in news:
            self._take(event)
        return answer

    def _take(self, event: bytes) -> None:
        """Let the application know, unless it was told already: replies may overlap."""
        number, joined, channel, user = _event.decode(event)
        if number > self._seen:
            self._seen = number
            self._open[number] = None
            done = functools.partial(self._finished, number, self._numbering)
            self._node.tell_of(channel, user, done, joined=joined)

    def _finished(self, number: int, numbering: int) -> None:
        if numbering == self._numbering and self._open.pop(number, 0) is None:
            self._done = next(iter(self._open)) - 1 if self._open else self._seen
            self._wake.set()
