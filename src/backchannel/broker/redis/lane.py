"""The way to one engine: what waits for it goes out in order, in one write a turn."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import hiredis
from redis.crc import key_slot

from backchannel.answers import is_count
from backchannel.broker.redis import parcel
from backchannel.broker.redis.engine import Engine
from backchannel.broker.redis.link import pack_command
from backchannel.broker.redis.posting import Keeping, Posting, Question
from backchannel.contracts import Receipt
from backchannel.errors import BrokerUnavailable
from backchannel.history import REMEMBERED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from backchannel.broker.redis.door import Door
    from backchannel.broker.redis.link import Link
    from backchannel.broker.redis.route import Origin, Owner, Steward, Words
    from backchannel.contracts import Target
    from backchannel.history import Position

__all__ = ["Lane"]

KEYED: Final = 3600.0
"""Seconds that an earlier attempt of what has a key of its own may be ago, at most."""


class Lane:
    """One engine and what waits for it. Where there is only one, this is all the broker needs.

    Args:
        door: where the engine is.
        origin: who publishes.
        owner: told what becomes of it.
        steward: in a cluster, told what belongs elsewhere.

    Attributes:
        engine: it.
        shown: where it is, for people.
        address: host and port.
        host: the machine that it is on.
        unsent: bytes that wait or are under way.
        inherited: in a cluster, by slot, other engines' runs of data that it came from, whole.
    """

    def __init__(self, door: Door, origin: Origin, owner: Owner, steward: Steward | None = None):
        self._origin = origin
        self._owner = owner
        self._steward = steward
        self._verb = b"SPUBLISH" if door.is_sharded else b"PUBLISH"
        hear = origin.hear if steward is None or door.is_sharded else self._hear_own
        self.engine = Engine(door, origin.timeout, hear, self)
        self.shown = self.engine.shown
        self.host, _ = self.address = door.address
        self.unsent = 0
        self.inherited: dict[int, tuple[str, ...]] = {}
        self._waiting: deque[Posting | Question] = deque()
        self._retries: list[Posting] = []
        self._resent: list[Posting | Question] = []
        self._until = 0.0
        self._last: tuple[Target | None, bytes, bytes] = (None, b"", b"")
        self._is_scheduled = False
        self._is_held = False
        self._run = ""

    # ── as the way to everything there is ─────────────────────────────────────────────────────

    is_sharded: bool | None = None  # there it makes no difference

    @property
    def pending(self) -> int:
        """Bytes that wait or are under way."""
        return self.unsent

    @property
    def waiting(self) -> int:
        """How many publications wait."""
        return len(self._waiting)

    @property
    def is_connected(self) -> bool:
        """The engine is there."""
        return self.engine.link is not None

    @property
    def is_there(self) -> bool:
        """The engine is, and has not gone just now."""
        return (link := self.engine.link) is not None and not link.lost.done()

    @property
    def state(self) -> str:
        """How it is doing, for people."""
        if self.engine.link is not None:
            silent = f", {silence}" if (silence := self.silence) else ""
            return f"connected to {self.shown}{silent}"
        role = f": it is {self.engine.role}" if self.engine.role else ""
        return f"{self.shown} is away{role}; {len(self._waiting)} publications wait"

    @property
    def silence(self) -> str:
        """For how long an engine that is there gives no sign of life, for people; or empty."""
        seconds = self.engine.silence
        return f"{self.shown} has not answered for {seconds:.0f} s" if seconds >= 1 else ""

    async def start(self, *, classic: bool = False) -> None:  # noqa: ARG002 - the door says so
        """Connect for the first time; raises as ``Engine.start`` does."""
        await self.engine.start()

    async def stop(self) -> None:
        """Publish what waits, and disconnect."""
        self._is_held = False
        self.flush()
        await self.engine.stop()
        self._take_back_retries()
        self._expire(everything=True)

    def link_of(self, key: bytes) -> Link | None:  # noqa: ARG002 - all keys are there
        """Return the connection to where a key is; None while it is away."""
        return self.engine.link

    def listen(self, topic: bytes) -> asyncio.Future[Any] | None:
        """Hear a topic from now on; None where the engine is away: then when it is back."""
        return self.engine.hear(topic)

    def unlisten(self, topic: bytes) -> None:
        """Hear no more of it."""
        self.engine.leave(topic)

    def _hear_own(self, topic: bytes, data: bytes) -> None:
        """Hear a classic topic where it is this master's; it is said at all of them.

        No engine ends what is heard where its slot was, and a connection that is lost while the
        slot goes comes back with it: it would be heard twice.
        """
        if self._steward is None or self._steward.of(topic) is self:
            self._origin.hear(topic, data)
        else:
            self.engine.leave(topic)

    def heard_at(self, lane: Lane) -> None:
        """Return what is heard at one engine: all there is."""

    def say(self, topic: bytes, data: bytes) -> None:
        """Publish something that may be lost."""
        if (link := self.engine.link) is not None:
            link.call(self._verb, topic, data)

    async def call(self, key: bytes, *command: Words) -> Any:  # noqa: ARG002 - all keys are there
        """Send a command about a key; return its reply.

        Raises:
            BrokerUnavailable: the engine is away.
            hiredis.ReplyError: it refused.
        """
        if (link := self.engine.link) is None:
            raise BrokerUnavailable(f"{self.shown} is away")
        return await link.call(*command)

    async def evaluate(
        self,
        name: str,
        keys: Sequence[bytes],
        words: Callable[[tuple[str, ...]], Sequence[Words]],
        *,
        whole: bool = False,  # noqa: ARG002 - it always is
    ) -> Any:
        """Run a script; return its reply.

        Args:
            name: of the script.
            keys: its keys.
            words: returns its arguments, given the name of the engine's run of data, and those of
                others from which it has these keys, whole.
            whole: it looks at more keys than it names: not while only some of them are there.

        Raises:
            BrokerUnavailable: the engine is away.
            hiredis.ReplyError: it refused.
        """
        return await self.engine.evaluate(name, len(keys), *keys, *words(self.runs(keys[0])))

    def runs(self, key: bytes) -> tuple[str, ...]:
        """Name the engine's run of data, and others from which it has a key, whole."""
        if self._steward is None:
            return (self.engine.run,)
        owner = self._steward.of(key)
        inherited = self.inherited.get(key_slot(key), ()) if self.inherited else ()
        more = () if owner is self else owner.runs(key)  # of which it gets the slot just now
        return (self.engine.run, *(run for run in (*inherited, *more) if run != self.engine.before))

    # ── what is published ─────────────────────────────────────────────────────────────────────

    def post(self, posting: Posting | Question) -> None:
        """Publish at the end of this turn of the event loop, or when the engine is back."""
        if self.unsent + posting.size > self._origin.max_unsent and self.unsent:
            posting.fail(BrokerUnavailable(self._too_much))
            return
        posting.owner = self
        self._waiting.append(posting)
        self.unsent += posting.size
        if self.engine.link is None:
            posting.until = asyncio.get_running_loop().time() + self._origin.timeout
            self._schedule_expiry()
            return
        if not self._is_scheduled:
            self._is_scheduled = True
            loop = asyncio.get_running_loop()
            self._until = loop.time() + self._origin.timeout  # for all of this turn
            loop.call_soon(self.flush)
        posting.until = self._until

    @property
    def _too_much(self) -> str:
        what = f"{len(self._waiting)} publications wait for {self.shown}"
        if self.engine.link is not None:
            what = f"{self.shown} has not answered {self.unsent} bytes so far"
        return f"{what}; with this one it would be over max_unsent={self._origin.max_unsent} bytes"

    def take_over(self, postings: Iterable[Posting | Question]) -> None:
        """Publish what waited for another engine."""
        for posting in postings:
            posting.owner = self
            self._waiting.append(posting)
            self.unsent += posting.size
        self.flush()
        self._schedule_expiry()

    def takes_back(self, posting: Posting | Question, reply: hiredis.ReplyError) -> bool:
        """Publish a posting again: the engine forgot its script, or it belongs elsewhere.

        A replica refuses what is kept: that is published first when there is a master again.
        """
        link = self.engine.link
        if link is not None and link.turned_down(reply) and isinstance(posting, Keeping):
            return self._waits_for_a_master(posting)
        if not str(reply).startswith("NOSCRIPT"):
            steward = self._steward
            return steward is not None and steward.turned_back(self, posting, reply)
        if not self._resent:
            self.engine.reload()
        self._resent.append(posting)
        self.unsent += posting.size
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)
        return True

    def _waits_for_a_master(self, posting: Keeping) -> bool:
        if posting.until <= asyncio.get_running_loop().time():
            return False
        if not posting.is_retry:
            posting.run = ""  # this was no attempt
        self.retry(posting)
        return True

    def retry(self, posting: Posting) -> None:
        """Publish a posting again once the engine is back, before what came after it."""
        self._retries.append(posting)
        self.unsent += posting.size

    def flush(self) -> None:
        """Hand what waits to the connection, in order, in one write."""
        self._is_scheduled = False
        if (link := self.engine.link) is None or link.lost.done() or self._is_held:
            return
        self._waiting.extendleft(reversed(self._resent))
        self._resent.clear()
        waiting, self._waiting = self._waiting, deque()
        link.send_packed([self.pack(posting) for posting in waiting], waiting)

    async def hold(self, seconds: float | None) -> bool:
        """Keep what is to be published, and return when the outcome of the rest is known.

        Args:
            seconds: it may take, before the connection is given up; None is for ever.

        Returns:
            The engine is there.
        """
        self._is_held = True
        if await self.answered(seconds):
            return True
        if (link := self.engine.link) is not None:
            link.close()
            await link.lost
        return False

    async def answered(self, seconds: float | None = None) -> bool:
        """Wait until all that was said is answered, or the connection is lost.

        Args:
            seconds: to wait; None is for ever.

        Returns:
            All was answered.
        """
        if (link := self.engine.link) is None:
            return False
        answer = link.call("PING")
        await asyncio.wait({answer}, timeout=seconds)
        return answer.done() and answer.exception() is None

    def release(self, leaves: Callable[[Posting | Question], bool]) -> list[Posting | Question]:
        """Go on publishing; return what is another engine's by now, in order.

        Args:
            leaves: tells what is.
        """
        self._is_held = False
        if self.engine.link is None or self.engine.link.lost.done():
            self._take_back_retries()
        kept: deque[Posting | Question] = deque()
        leaving: list[Posting | Question] = []
        for posting in (*self._resent, *self._waiting):
            (leaving if leaves(posting) else kept).append(posting)
        self._resent.clear()
        self._waiting = kept
        self.unsent -= sum(posting.size for posting in leaving)
        self.flush()
        self._schedule_expiry()
        return leaving

    def publish(
        self, posting: Posting | Question, *, asking: bool = False
    ) -> asyncio.Future[Any] | None:
        """Publish at once, and let the caller see to the reply; None where the engine is away.

        Args:
            posting: it.
            asking: of a slot that is only on its way here.
        """
        if (link := self.engine.link) is None or link.lost.done():
            return None
        if asking:
            link.call("ASKING")
        return link.call_packed(self.pack(posting))

    def tell(self, posting: Keeping, position: Position) -> asyncio.Future[Any] | None:
        """Publish to those who hear it what is kept elsewhere; None where the engine is away."""
        if (link := self.engine.link) is None:
            return None
        keys, node = self._origin.keys, self._origin.node
        data = parcel.placed(position, posting.pack(node.id))
        return link.call(self._verb, keys.heard(posting.target), data)

    def pack(self, posting: Posting | Question) -> bytes:
        """Return the command that publishes a posting."""
        target = posting.target
        if target != self._last[0]:  # mostly several to one channel come one after the other
            topic = self._origin.keys.heard(target)
            self._last = (target, topic, parcel.opening(topic, self._verb))
        is_answered = False
        if not isinstance(posting, Posting):
            is_answered = True
        elif target.kind != "channel":
            self._count_where_wanted(posting)
            is_answered = posting.inquiry is not None
        elif isinstance(posting, Keeping):
            return self._pack_to_keep(posting, self._last[1])
        if is_answered and self._verb == b"PUBLISH":  # of shards there are no patterns
            data, script = posting.pack(self._origin.node.id), self.engine.scripts["ask"]
            return pack_command(("EVALSHA", script, 0, self._last[1], data))
        return parcel.command(self._last[2], posting.pack(self._origin.node.id))

    def _pack_to_keep(self, posting: Keeping, topic: bytes) -> bytes:
        keep, node = posting.keep, self._origin.node.id
        runs = self.runs(topic)
        if not posting.run:
            posting.run = runs[0]
        again = (1 if posting.run in runs else 2) if posting.is_retry else 0
        by, number, age = node, str(posting.number), 0.0
        if key := posting.publication.key:  # its publisher may try again at another node
            by, number, age = "", key, min(posting.publication.age or KEYED, KEYED)
            if again == 1 or (posting.publication.again and not again):
                again = 3 if self._is_of_this_run(posting, age) else 1
        more = () if self._steward is None else (self._verb, *runs[1:])
        return pack_command((
            "EVALSHA", self.engine.scripts["publish"], 2, *self._origin.keys.of_history(topic),
            topic, posting.pack(node), keep.size, keep.ttl, REMEMBERED, secrets.token_hex(4),
            runs[0], by, number, again, age, posting.publication.turn, *more,
        ))  # fmt: skip

    def _is_of_this_run(self, posting: Keeping, age: float) -> bool:
        """Tell whether attempts that may be so many seconds ago all were in the engine's run."""
        if not posting.publication.again:
            return posting.run == self.engine.run
        return self.engine.run_since < asyncio.get_running_loop().time() - age - 1

    def _count_where_wanted(self, posting: Posting) -> None:
        """Ask how many a publication reached where that is known only elsewhere, and awaited."""
        outcome = posting.outcome
        if not outcome.is_wanted or posting.inquiry is not None:
            return

        def done(answers: list[Any], _missing: int) -> None:
            if not outcome.done():
                outcome.set_result(Receipt(sum(filter(None, answers))))

        posting.inquiry = self._origin.inquiries.open(done, is_count)

    def _take_back_retries(self) -> None:
        self._waiting.extendleft(reversed((*self._resent, *self._retries)))
        self._resent.clear()
        self._retries.clear()

    def _schedule_expiry(self) -> None:
        if self._waiting and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_at(self._waiting[0].until, self._expire)

    def _expire(self, *, everything: bool = False) -> None:
        """Give up what has waited for too long."""
        self._is_scheduled = False
        now = asyncio.get_running_loop().time()
        while self._waiting and (everything or self._waiting[0].until <= now):
            posting = self._waiting.popleft()
            self.unsent -= posting.size
            unsure = posting.is_retry
            what = "may have been published, or not" if unsure else "was not published"
            text = f"{self.shown} is away: this {what}"
            posting.fail(BrokerUnavailable(text, unsure=unsure))
        if self.engine.link is None:
            self._schedule_expiry()
        elif self._waiting:
            self.flush()

    # ── what the engine's connection tells ────────────────────────────────────────────────────

    @property
    def topics(self) -> Iterable[bytes]:
        """What is to be heard."""
        return self._owner.topics_of(self)

    def connected(self, *, again: bool) -> None:
        """Publish what waits."""
        if self._run not in {"", self.engine.run}:
            self.inherited.clear()  # it may have lost some of what it had
        self._run = self.engine.run
        self.flush()
        self._owner.connected(self, again=again)

    def disconnected(self) -> None:
        """Keep what may have been published, before what was to be published after it."""
        self._take_back_retries()
        self._schedule_expiry()
        self._owner.disconnected(self)

    def dropped(self, topic: bytes) -> None:
        """Pass it on."""
        if self._steward is not None:
            self._steward.dropped(self, topic)

    def failed(self, text: str, error: Exception) -> None:
        """Pass it on."""
        self._owner.failed(text, error)
