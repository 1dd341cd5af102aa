"""The way to the engines of a cluster, each of which has some of the slots that keys belong to.

Who does not have a slot any more says so: by what it answers, or by ending what is heard there.
Then the table is read anew, what was heard there is heard at the new owner, and what was not heard
meanwhile is filled. What was turned back is brought by a detour (``detour.py``), in its order.

Before Redis 7.0 topics are classic ones: what is said at one master is heard at all, and none ends
what is heard there. So the table is read every now and then, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import hiredis
from redis.crc import key_slot

from backchannel.broker.redis.detour import PAUSE, Detour
from backchannel.broker.redis.door import NoShards
from backchannel.broker.redis.errand import Errand
from backchannel.broker.redis.lane import Lane
from backchannel.broker.redis.slots import SLOTS, Redirect, Served
from backchannel.broker.redis.survey import PATIENCE, Survey
from backchannel.errors import BrokerUnavailable, BrokerUnusable
from backchannel.observe import BROKER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

    from backchannel.broker.redis.door import Door
    from backchannel.broker.redis.link import Link
    from backchannel.broker.redis.posting import Posting, Question
    from backchannel.broker.redis.route import Origin, Owner, Words
    from backchannel.broker.redis.slots import Address
    from backchannel.contracts import Target

__all__ = ["Shards"]

LOOK: Final = 0.25
"""Seconds between two looks at the slots while a master is away."""

GLANCE: Final = 1.0
"""Seconds between two looks at the slots where topics are classic ones."""

RUNS: Final = 8
"""Masters that a slot came by which are remembered; of those before them an epoch begins anew."""

LINGER: Final = 30.0
"""Seconds that a node is stayed connected to that has no slots, maybe not yet."""


class Shards:
    """All masters of a cluster; see ``route.Route``.

    Args:
        door: how its nodes are spoken to, and some of them.
        origin: who publishes.
        owner: told what becomes of it.

    Attributes:
        shown: the URL without its password, for people.
    """

    def __init__(self, door: Door, origin: Origin, owner: Owner):
        self._door = door
        self._origin = origin
        self._owner = owner
        self.shown = door.shown
        self._survey = Survey(door)
        self._forget()

    def _forget(self) -> None:
        self._lanes: dict[Address, Lane] = {}
        self._asked_for: dict[Address, float] = {}
        self._served: list[Served] = []
        self._table: list[Lane] = []
        self._wanted: dict[int, set[bytes]] = {}
        self._unheard: set[bytes] = set()
        self._detours: dict[int, Detour] = {}
        self._tasks: set[asyncio.Task[Any]] = set()  # that end with it
        self._saying: set[asyncio.Task[Any]] = set()  # that end with what they wait for
        self._wake = asyncio.Event()
        self._informant: Lane | None = None
        self._last: tuple[Target | None, int] = (None, 0)

    # ── how it is doing ───────────────────────────────────────────────────────────────────────

    @property
    def masters(self) -> list[Lane]:
        """Those that have slots."""
        return [self._lanes[address] for address in {one.address for one in self._served}]

    @property
    def is_connected(self) -> bool:
        """Most of the masters are there."""
        masters = self.masters
        return 2 * sum(lane.is_connected for lane in masters) > len(masters)

    @property
    def state(self) -> str:
        """How it is doing, for people."""
        masters = self.masters
        away = sorted(lane.shown for lane in masters if not lane.is_connected)
        if masters and not away:
            silent = [f", {silence}" for lane in masters if (silence := lane.silence)]
            return f"connected to {self.shown}, {len(masters)} masters{''.join(sorted(silent))}"
        waiting = sum(lane.waiting for lane in masters) + sum(
            len(detour) for detour in self._detours.values()
        )
        which = f", of {self.shown}," if away else self.shown
        return f"{', '.join(away)}{which} is away; {waiting} publications wait"

    @property
    def pending(self) -> int:
        """Bytes that wait or are under way."""
        detours = sum(detour.unsent for detour in self._detours.values())
        return detours + sum(lane.unsent for lane in self._lanes.values())

    @property
    def is_sharded(self) -> bool:
        """Topics are those of shards."""
        return self._door.is_sharded

    # ── starting and stopping ─────────────────────────────────────────────────────────────────

    async def start(self, *, classic: bool = False) -> None:
        """Connect to all masters, for the first time; see ``route.Route``."""
        try:
            await self._begin(is_sharded=not classic)
        except NoShards as error:
            BROKER.info("classic topics are used: %s", error)
            await self._begin(is_sharded=False)

    async def _begin(self, *, is_sharded: bool) -> None:
        self._forget()
        self._door.is_sharded = is_sharded
        self._served = await self._survey.ask(self._door.nodes)
        if sum(one.last - one.first + 1 for one in self._served) < SLOTS:
            raise BrokerUnavailable(f"{self.shown}: not all of the {SLOTS} slots have a master")
        for topic in self._owner.topics_of(None):
            self._wanted.setdefault(key_slot(topic), set()).add(topic)
        for address in {one.address for one in self._served}:
            self._lanes[address] = self._lane(address)
        self._table = [
            self._lanes[of] for first, last, of in self._served for _ in range(first, last + 1)
        ]
        starting = [asyncio.ensure_future(lane.start()) for lane in self._lanes.values()]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            await asyncio.wait(starting)
            await asyncio.gather(*[lane.stop() for lane in self._lanes.values()])
            raise
        self._keep(self._tend())

    async def stop(self) -> None:
        """Publish what waits, and disconnect."""
        for lane in self._lanes.values():
            lane.flush()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for detour in self._detours.values():
            detour.give_up()
        self._detours.clear()
        await asyncio.gather(*[lane.stop() for lane in self._lanes.values()])

    def _lane(self, address: Address) -> Lane:
        return Lane(self._door.of_node(address), self._origin, self, self)

    def _keep(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _look_after(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something whose failure is no bug, and which need not be awaited."""
        task = asyncio.get_running_loop().create_task(work)
        self._saying.add(task)

        def done(task: asyncio.Task[Any]) -> None:
            self._saying.discard(task)
            if not task.cancelled():
                task.exception()

        task.add_done_callback(done)
        return task

    # ── what is where ─────────────────────────────────────────────────────────────────────────

    def of(self, key: bytes) -> Lane:
        """Return the way to the master that has a key."""
        return self._table[key_slot(key)]

    def link_of(self, key: bytes) -> Link | None:
        """Return the connection to where a key is; None while it is away."""
        return self.of(key).engine.link if self._table else None

    def runs(self, key: bytes) -> tuple[str, ...]:
        """Name the run of data of where a key is, and others from which it came, whole."""
        return self.of(key).runs(key) if self._table else ()

    def slot_of(self, target: Target) -> int:
        """Return the slot of what a target's publications need."""
        if target != self._last[0]:
            self._last = target, key_slot(self._origin.keys.heard(target))
        return self._last[1]

    def owner_of(self, slot: int) -> Lane:
        """Return the way to a slot's master."""
        return self._table[slot]

    def at(self, address: Address) -> Lane:
        """Return the way to a node, which may have no slots yet."""
        self._asked_for[address] = asyncio.get_running_loop().time()
        if (lane := self._lanes.get(address)) is None:
            lane = self._lanes[address] = self._lane(address)
            lane.engine.stay()
        return lane

    # ── what is published ─────────────────────────────────────────────────────────────────────

    def post(self, posting: Posting | Question) -> None:
        """Publish at the end of this turn of the event loop, or when the engine is back."""
        slot = self.slot_of(posting.target)
        if (detour := self._detours.get(slot)) is None:
            self._table[slot].post(posting)
        elif detour.unsent + posting.size > self._origin.max_unsent:
            posting.fail(BrokerUnavailable(f"too much waits while {self.shown} moves its slots"))
        else:
            posting.until = asyncio.get_running_loop().time() + self._origin.timeout
            detour.join(posting)

    def say(self, topic: bytes, data: bytes) -> None:
        """Publish something that may be lost."""
        verb = "SPUBLISH" if self._door.is_sharded else "PUBLISH"
        self._look_after(self.call(topic, verb, topic, data))

    def turned_back(self, lane: Lane, posting: Posting | Question, why: hiredis.ReplyError) -> bool:
        """Publish a posting where it belongs, in its place; see ``lane.Steward``."""
        redirect = Redirect.read(why, lane.host)
        if redirect is None:
            return False
        if redirect.kind != "ASK":
            self.look(lane)
        slot = self.slot_of(posting.target)
        if (detour := self._detours.get(slot)) is None:
            detour = self._detours[slot] = Detour(slot, self)
            self._keep(self._bring(slot, detour, lane))
        detour.turn_back(posting)
        return True

    async def _bring(self, slot: int, detour: Detour, lane: Lane) -> None:
        try:
            await lane.answered()  # then all that it turns back is here
            await detour.bring_all()
        except Exception as error:  # noqa: BLE001 - a bug; who waits is told
            self._owner.failed(f"a detour of publications failed: {error!r}", error)
            detour.give_up()
        del self._detours[slot]
        self.look(lane)  # what was turned back for a while is taken: something is settled

    # ── what is heard ─────────────────────────────────────────────────────────────────────────

    def topics_of(self, lane: Lane | None) -> list[bytes]:
        """Return what is to be heard at a master."""
        wanted = self._wanted.items()
        return [topic for slot, of in wanted if self._table[slot] is lane for topic in of]

    heard_at = topics_of

    def listen(self, topic: bytes) -> Awaitable[Any] | None:
        """Hear a topic from now on; None where its master is away: then when it is back."""
        slot = key_slot(topic)
        self._wanted.setdefault(slot, set()).add(topic)
        hearing = self._table[slot].listen(topic)
        return None if hearing is None else self._look_after(self._hear(topic, hearing))

    async def _hear(self, topic: bytes, hearing: asyncio.Future[Any] | None) -> None:
        deadline = asyncio.get_running_loop().time() + self._origin.timeout
        while hearing is not None:
            try:
                await hearing
            except hiredis.ReplyError as error:
                if Redirect.read(error, "") is None or self._is_late(deadline):
                    raise BrokerUnavailable(f"{self.shown} refuses {topic!r}: {error}") from error
                self.look(self.of(topic))
                await asyncio.sleep(PAUSE)
                hearing = self.of(topic).listen(topic) if self._wants(topic) else None
            else:
                return

    def unlisten(self, topic: bytes) -> None:
        """Hear no more of it."""
        slot = key_slot(topic)
        if topic in (there := self._wanted.get(slot, set())):
            there.discard(topic)
            if not there:
                del self._wanted[slot]
        self._unheard.discard(topic)
        self._table[slot].unlisten(topic)

    def _wants(self, topic: bytes) -> bool:
        return topic in self._wanted.get(key_slot(topic), ())

    def dropped(self, lane: Lane, topic: bytes) -> None:
        """Hear a topic where it is now; see ``lane.Steward``."""
        if self._wants(topic):
            self._unheard.add(topic)
            self.look(lane)

    # ── what is asked ─────────────────────────────────────────────────────────────────────────

    async def call(self, key: bytes, *command: Words) -> Any:
        """Send a command about a key; return its reply; see ``route.Route``."""
        return await Errand(key, self, self._origin.timeout).call(*command)

    async def evaluate(
        self,
        name: str,
        keys: Sequence[bytes],
        words: Callable[[tuple[str, ...]], Sequence[Words]],
        *,
        whole: bool = False,
    ) -> Any:
        """Run a script; return its reply; see ``route.Route``."""
        errand = Errand(keys[0], self, self._origin.timeout, whole=whole)
        return await errand.evaluate(name, keys, words)

    async def joined(self, address: Address) -> Lane | None:
        """Return the way to a node that slots are moved to, once it is connected; or None."""
        lane = self.at(address)
        for _ in range(20):
            if lane.is_there:
                return lane
            await asyncio.sleep(PAUSE)
        return None

    @staticmethod
    def _is_late(deadline: float) -> bool:
        return asyncio.get_running_loop().time() >= deadline

    # ── finding out ───────────────────────────────────────────────────────────────────────────

    def look(self, informant: Lane | None) -> None:
        """Find out where slots are.

        Args:
            informant: who knows of a change first, and is asked first; None is nobody.
        """
        self._informant = informant or self._informant
        self._wake.set()

    async def _tend(self) -> None:
        """Follow the slots: at every sign, and while something is not as it should be."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause):
                    await self._wake.wait()
            self._wake.clear()
            try:
                first, self._informant = self._informant, None
                await self._act_on(await self._look_around(first))
                await self._hear_again()
            except (BrokerUnavailable, BrokerUnusable) as error:
                BROKER.warning("%s", error)
                await asyncio.sleep(LOOK)
            except Exception as error:  # noqa: BLE001 - a bug must not end this for good
                self._owner.failed(f"following the slots of {self.shown} failed: {error!r}", error)
                await asyncio.sleep(PATIENCE)

    async def _look_around(self, first: Lane | None) -> list[Served]:
        """Return who has which slots."""
        served = await self._survey.look(first, self._lanes.values())
        news = set(served).difference(self._served)
        if not self._door.is_sharded and first is None and news:
            # Whoever was asked may not know yet what has long moved; who has come by it does.
            return await self._survey.look(self.at(news.pop().address), self._lanes.values())
        return served

    @property
    def _pause(self) -> float | None:
        """How many seconds nobody looks, where there is no sign; None is for ever."""
        masters = self.masters
        if self._unheard or not all(lane.is_connected for lane in masters):
            return LOOK
        if not self._door.is_sharded:
            return GLANCE
        return LINGER if len(masters) < len(self._lanes) else None

    # ── acting on it ──────────────────────────────────────────────────────────────────────────

    async def _act_on(self, served: list[Served]) -> None:
        """Give each slot that has another master now to that."""
        moves: dict[Lane, dict[int, Lane]] = {}
        for first, last, address in served if served != self._served else ():
            new = self.at(address)
            for slot in range(first, last + 1):
                if (old := self._table[slot]) is not new:
                    moves.setdefault(old, {})[slot] = new
        staying = {self._lanes[one.address] for one in served}
        await asyncio.gather(
            *[self._move(old, slots, stays=old in staying) for old, slots in moves.items()]
        )
        self._served = served
        now = asyncio.get_running_loop().time()
        for address in self._lanes.keys() - {one.address for one in served}:
            if self._asked_for.get(address, 0.0) < now - LINGER:
                self._look_after(self._lanes.pop(address).stop())

    async def _move(self, old: Lane, slots: dict[int, Lane], *, stays: bool) -> None:
        """Give slots of one master to others, with what waits for them; in order."""
        # What comes later is not to overtake what it has to answer yet.
        run = old.engine.run
        is_there = await old.hold(None if stays else PATIENCE)
        if stays and not is_there:  # only the connection may be lost
            is_there = await self.joined(old.address) is old and old.engine.run == run
        for slot, new in slots.items():
            inherited = (old.engine.run, *old.inherited.pop(slot, ()))
            if is_there:  # who is away may have been followed by a replica that had less
                others = dict.fromkeys(run for run in inherited if run != new.engine.run)
                new.inherited[slot] = tuple(others)[:RUNS]
            self._table[slot] = new
            self._unheard |= self._wanted.get(slot, set())
            if not self._door.is_sharded:  # else the engine has ended it
                for topic in self._wanted.get(slot, ()):
                    old.unlisten(topic)
        leaving = old.release(lambda posting: self.slot_of(posting.target) in slots)
        for posting in leaving:
            slot = self.slot_of(posting.target)
            if (detour := self._detours.get(slot)) is not None:
                detour.join(posting)
            else:
                slots[slot].take_over((posting,))

    async def _hear_again(self) -> None:
        """Hear what was heard elsewhere, where it is now; tell that it was not heard meanwhile."""
        found = [(topic, self.of(topic).listen(topic)) for topic in self._unheard]
        todo = {hearing: topic for topic, hearing in found if hearing is not None}
        if not todo:
            return
        done, _ = await asyncio.wait(todo, timeout=PATIENCE)
        heard = [todo[one] for one in done if one.exception() is None]
        self._unheard.difference_update(heard)
        if heard:
            self.missed(heard)

    # ── what masters tell ─────────────────────────────────────────────────────────────────────

    def connected(self, lane: Lane, *, again: bool) -> None:
        """Pass it on."""
        self._owner.connected(lane, again=again)

    def disconnected(self, lane: Lane) -> None:
        """Look who takes its place."""
        self.look(None)
        self._owner.disconnected(lane)

    def missed(self, topics: Iterable[bytes] | None) -> None:
        """Pass it on."""
        self._owner.missed(topics)

    def failed(self, text: str, error: Exception) -> None:
        """Pass it on."""
        self._owner.failed(text, error)
