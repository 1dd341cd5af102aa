"""The broker over Redis or Valkey: what the engine publishes is what each node delivers.

A topic for each channel, user and session, which a node listens to while it has someone there, and
one for each node. Counting on the engine's subscriptions makes a directory that is never stale: a
node that dies is out of it when its connection is.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import secrets
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import hiredis

from backchannel.broker.redis import parcel
from backchannel.broker.redis.engine import Engine
from backchannel.broker.redis.keys import Keys
from backchannel.broker.redis.link import pack_command
from backchannel.broker.redis.notice import Notice
from backchannel.broker.redis.posting import Inquiry, Keeping, Posting, Question
from backchannel.broker.redis.resumes import RedisResumes
from backchannel.broker.redis.roll import Roll
from backchannel.broker.redis.tickets import RedisTickets
from backchannel.contracts import Publication, Receipt, Target
from backchannel.errors import BrokerUnavailable
from backchannel.history import REMEMBERED, Page, Position
from backchannel.observe import BROKER, excerpt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from backchannel.broker.redis.link import Link
    from backchannel.contracts import Node
    from backchannel.history import Retention
    from backchannel.sent import Outcome

__all__ = ["RedisBroker"]

KEYED: Final = 3600
"""Seconds that an earlier attempt of what has a key of its own may be ago."""


class RedisBroker:
    """Carries publications between the nodes of one hub.

    Args:
        url: ``redis://user:password@host:6379/0``, ``rediss://…`` for TLS, ``unix:///path?db=0``.
        hub: the hub's name; hubs of different names share nothing.
        timeout: seconds that a publication may wait for an engine that is away, and that a question
            may wait for the other nodes' answers.
        max_unsent: bytes of publications that may wait.
        lease: seconds after which what a node that died has announced is removed.
        moment: seconds that a user may be away from a channel without having left it.

    Raises:
        BrokerUrlError: it is no such URL.
    """

    shared = True

    def __init__(
        self,
        url: str,
        hub: str,
        *,
        timeout: float = 5.0,
        max_unsent: int = 16 * 1024 * 1024,
        lease: float = 10.0,
        moment: float = 1.0,
    ):
        self._engine = Engine(url, timeout, self._hear, self)
        self._keys = Keys(hub)
        self.tickets = RedisTickets(self._engine, self._keys, timeout)
        self.resumes = RedisResumes(self._engine, self._keys, timeout)
        self._roll = Roll(self._engine, self._keys, lease, moment)
        self._timeout = timeout
        self._max_unsent = max_unsent
        self._node: Node
        self._notice: Notice
        self._targets: dict[bytes, Target] = {}
        self._numbers = itertools.count(1)
        self._waiting: deque[Posting | Question] = deque()
        self._retries: list[Posting] = []
        self._resent: list[Posting] = []
        self.unsent = 0  # bytes that wait or are under way
        self._until = 0.0
        self._last: tuple[Target | None, bytes, bytes] = (None, b"", b"")
        self._is_scheduled = False
        self._inquiries: dict[int, Inquiry] = {}
        self._foreign = 0

    @property
    def state(self) -> str:
        """How it is doing, for people."""
        if self._engine.link is not None:
            return f"connected to {self._engine.shown}"
        return f"{self._engine.shown} is away; {len(self._waiting)} publications wait"

    @property
    def is_connected(self) -> bool:
        """The engine is there."""
        return self._engine.link is not None

    def bind(self, node: Node) -> None:
        """Remember the node."""
        self._node = node
        self._notice = Notice(self._engine, self._keys.about, node)
        self._roll.bind(node)
        self._deliver = node.deliver

    async def start(self) -> None:
        """Connect, for the first time; see ``contracts.Broker``."""
        everyone = Target("everyone")
        topics = (self._keys.topic(everyone), self._keys.node(self._node.id))
        self._targets = dict.fromkeys(topics, everyone)
        await self._engine.start()
        try:
            await self._notice.begin()
        except BaseException:
            await self._engine.stop()
            raise

    def about_changed(self) -> None:
        """Tell those who publish without a hub what holds now."""
        self._notice.renew()

    async def finish(self, seconds: float) -> None:
        """Wait until nothing waits or is under way."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self.unsent and loop.time() < deadline:  # noqa: ASYNC110 - telling would cost each
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Publish what waits, and disconnect."""
        self._flush()
        await self._roll.stop()
        await self._engine.stop()
        self._take_back_retries()
        self._expire(everything=True)

    # ── what the engine's connection tells ────────────────────────────────────────────────────

    @property
    def topics(self) -> Iterable[bytes]:
        """What is to be heard."""
        return self._targets

    def connected(self, *, again: bool) -> None:
        """Publish what waits; see to what was missed meanwhile."""
        self._flush()
        self._roll.connected()
        if again:
            self._notice.connected()
            self._node.interrupted()

    def disconnected(self) -> None:
        """Keep what may have been published, before what was to be published after it."""
        self._take_back_retries()
        self._schedule_expiry()
        self._roll.disconnected()

    def failed(self, text: str, error: Exception) -> None:
        """Report a bug."""
        self._node.report(text, error)

    def _take_back_retries(self) -> None:
        self._waiting.extendleft(reversed(self._resent + self._retries))
        self._resent.clear()
        self._retries.clear()

    # ── what is published ─────────────────────────────────────────────────────────────────────

    def publish(self, publication: Publication, keep: Retention | None) -> Outcome:
        """Publish at the end of this turn of the event loop, or when the engine is back."""
        outcome = self._node.outcome()
        if keep is None:
            posting = Posting(publication, outcome, self)
        else:
            number = next(self._numbers)
            posting = Keeping(publication, outcome, self, keep=keep, number=number)
        self._post(posting)
        return outcome

    def ask(self, target: Target, words: list[Any]) -> asyncio.Future[tuple[list[Any], int]]:
        """Ask all nodes that listen to a target, at the end of this turn of the event loop."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[list[Any], int]] = loop.create_future()
        number = next(self._numbers)

        def settle(answers: list[Any], missing: int) -> None:
            timer.cancel()
            self._inquiries.pop(number, None)
            if not done.done():
                done.set_result((answers, missing))

        inquiry = self._inquiries[number] = Inquiry(number, settle)
        timer = loop.call_later(self._timeout, inquiry.give_up)
        self._post(Question(target, words, inquiry, done, self))
        return done

    def _post(self, posting: Posting | Question) -> None:
        if self.unsent + posting.size > self._max_unsent and self._waiting:
            posting.fail(
                BrokerUnavailable(
                    f"{len(self._waiting)} publications wait for {self._engine.shown}; with this "
                    f"one they would be over {self._max_unsent} bytes"
                )
            )
            return
        self._waiting.append(posting)
        self.unsent += posting.size
        if self._engine.link is None:
            posting.until = asyncio.get_running_loop().time() + self._timeout
            self._schedule_expiry()
            return
        if not self._is_scheduled:
            self._is_scheduled = True
            loop = asyncio.get_running_loop()
            self._until = loop.time() + self._timeout  # for all of this turn
            loop.call_soon(self._flush)
        posting.until = self._until

    def resend(self, posting: Posting) -> None:
        """Publish a posting again, whose script the engine was told to forget, in its place."""
        if not self._resent:
            self._engine.reload()
        self._resent.append(posting)
        self.unsent += posting.size
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def retry(self, posting: Posting) -> None:
        """Publish a posting again once the engine is back, before what came after it."""
        self._retries.append(posting)
        self.unsent += posting.size

    def _flush(self) -> None:
        """Hand what waits to the connection, in order, in one write."""
        self._is_scheduled = False
        if (link := self._engine.link) is None or link.lost.done():
            return
        self._waiting.extendleft(reversed(self._resent))
        self._resent.clear()
        waiting, self._waiting = self._waiting, deque()
        link.send_packed([self._packed(posting) for posting in waiting], waiting)

    def _packed(self, posting: Posting | Question) -> bytes:
        """Return the command that publishes a posting."""
        target = posting.target
        if target != self._last[0]:  # mostly several to one channel come one after the other
            topic = self._keys.heard(target)
            self._last = (target, topic, parcel.opening(topic))
        if isinstance(posting, Posting):
            if target.kind != "channel":
                self._count_where_wanted(posting)
            elif isinstance(posting, Keeping):
                return self._packed_to_keep(posting, self._last[1])
        return parcel.command(self._last[2], posting.pack(self._node.id))

    def _packed_to_keep(self, posting: Keeping, topic: bytes) -> bytes:
        keep, node, run = posting.keep, self._node.id, self._engine.run
        if not posting.run:
            posting.run = run
        again = (1 if posting.run == run else 2) if posting.is_retry else 0
        by, number, age = node, str(posting.number), 0
        if key := posting.publication.key:  # its publisher may try again at another node
            by, number, age = "", key, KEYED
            again = max(again, int(posting.publication.again))
        return pack_command((
            "EVALSHA", self._engine.scripts["publish"], 2, *self._keys.of_history(topic),
            topic, posting.pack(node), keep.size, keep.ttl, REMEMBERED, secrets.token_hex(4),
            run, by, number, again, age,
        ))  # fmt: skip

    def _count_where_wanted(self, posting: Posting) -> None:
        """Ask how many a publication reached where that is known only elsewhere, and awaited."""
        outcome = posting.outcome
        if not outcome.is_wanted:
            return
        number = next(self._numbers)

        def done(answers: list[Any], _missing: int) -> None:
            self._inquiries.pop(number, None)
            if not outcome.done():
                outcome.set_result(Receipt(sum(answers)))

        inquiry = posting.inquiry = self._inquiries[number] = Inquiry(number, done)
        asyncio.get_running_loop().call_later(self._timeout, inquiry.give_up)

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
            text = f"{self._engine.shown} is away: this {what}"
            posting.fail(BrokerUnavailable(text, unsure=unsure))
        if self._engine.link is None:
            self._schedule_expiry()
        elif self._waiting:
            self._flush()

    # ── what is heard ─────────────────────────────────────────────────────────────────────────

    def listen(self, target: Target) -> asyncio.Future[Any] | None:
        """Hear what is published to a target from now on.

        Returns:
            Done when the engine has confirmed; None where it is away: then it is told when it is
            back.
        """
        topic = self._keys.topic(target)
        self._targets[topic] = target
        return None if self._engine.link is None else self._subscribe(self._engine.link, topic)

    def unlisten(self, target: Target) -> None:
        """Hear no more of a target."""
        topic = self._keys.topic(target)
        if self._targets.pop(topic, None) is not None and self._engine.link is not None:
            self._engine.link.call("UNSUBSCRIBE", topic)

    def _subscribe(self, link: Link, topic: bytes) -> asyncio.Future[Any]:
        return link.call("SUBSCRIBE", topic)

    def _hear(self, topic: bytes, data: bytes) -> None:
        target = self._targets.get(topic)
        if target is None:  # no longer listened to, with this under way
            if self._engine.link is not None:
                self._engine.link.call("UNSUBSCRIBE", topic)
            return
        try:
            heard = parcel.unpack(target, data)
        except Exception as error:  # noqa: BLE001 - whatever a stranger published there
            self._take_foreign(topic, data, error)
            return
        try:
            if isinstance(heard, Publication):
                self._deliver(heard, None)
            else:
                self._take(heard)
        except Exception as error:  # noqa: BLE001 - a bug; what comes after it is heard all the same
            self._node.report(f"delivering from the broker failed: {error!r}", error)

    def _take(self, heard: parcel.Heard | parcel.Question | parcel.Answer) -> None:
        if isinstance(heard, parcel.Heard):
            reached = self._deliver(heard.publication, heard.position)
            if heard.asking is not None:
                self._answer(heard.asking, reached)
        elif isinstance(heard, parcel.Question):
            self._take_question(heard)
        elif (inquiry := self._inquiries.get(heard.number)) is not None:
            inquiry.take(heard.words)

    def _take_question(self, question: parcel.Question) -> None:
        asking = question.asking
        try:
            answer = self._node.answer(asking.node, question.target, question.words)
        except Exception:
            self._answer(asking, None)
            raise
        if inspect.isawaitable(answer):
            self._node.keep(self._answer_later(asking, answer))
        else:
            self._answer(asking, answer)

    async def _answer_later(self, asking: parcel.Asking, answer: Awaitable[Any]) -> None:
        words = None
        try:
            words = await answer
        finally:  # who asks does not wait for an answer that fails
            self._answer(asking, words)

    def _answer(self, asking: parcel.Asking, words: Any) -> None:
        if self._engine.link is not None:
            data = parcel.pack_answer(asking.number, words)
            self._engine.link.call("PUBLISH", self._keys.node(asking.node), data)

    def _take_foreign(self, topic: bytes, data: bytes, error: Exception) -> None:
        self._foreign += 1
        if self._foreign == 1:
            shown = excerpt(data)
            BROKER.error(
                "a stranger publishes to %r, which is dropped: %s (%s)", topic, shown, error
            )

    # ── presence ──────────────────────────────────────────────────────────────────────────────

    def announce(self, channel: str, user: str) -> None:
        """Announce a user's devices here, at the end of this turn of the event loop."""
        self._roll.announce(channel, user)

    async def members(self, channel: str) -> dict[str, list[bytes]]:
        """Read who is in a channel, in one step."""
        found = await self._roll.ask("members", channel)
        return {user.decode(): devices for user, *devices in found}

    async def count_members(self, channel: str) -> int:
        """Read how many users are in a channel, which costs the same for any number."""
        return int(await self._roll.ask("count", channel))

    # ── history ───────────────────────────────────────────────────────────────────────────────

    async def history(
        self, channel: str, since: Position | None, limit: int, *, had: bool = False
    ) -> Page[Publication]:
        """Read a channel's history in one step."""
        epoch, offset = ("", "") if since is None else (since.epoch, since.offset)
        target = Target("channel", channel)
        keep = self._node.keeping(channel)
        ttl = REMEMBERED if keep is None else keep.ttl
        try:
            reply = await self._engine.evaluate(
                "history", 2,
                *self._keys.of_history(self._keys.topic(target)),
                epoch, offset, limit, ttl, secrets.token_hex(4), self._engine.run, REMEMBERED,
                int(had), parcel.PAGE_BYTES,
            )  # fmt: skip
        except hiredis.ReplyError as error:
            raise BrokerUnavailable(f"the history of {channel!r} can't be read: {error}") from error
        return parcel.unpack_page(target, reply)
