"""The broker over Redis or Valkey: what the engine publishes is what each node delivers.

A topic for each channel, user and session, which a node listens to while it has someone there, and
one for each node. Counting on the engine's subscriptions makes a directory that is never stale: a
node that dies is out of it when its connection is.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import random
import secrets
from collections import deque
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import hiredis

from backchannel.broker.redis import parcel
from backchannel.broker.redis.door import Door
from backchannel.broker.redis.keys import Keys
from backchannel.broker.redis.posting import Inquiry, Posting
from backchannel.contracts import Publication, Receipt, Target
from backchannel.errors import BrokerUnavailable, BrokerUnusable
from backchannel.history import REMEMBERED, Page, Position
from backchannel.observe import BROKER, excerpt

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from backchannel.broker.redis.link import Link
    from backchannel.contracts import Node
    from backchannel.history import Retention
    from backchannel.sent import Outcome

__all__ = ["RedisBroker"]

BACK_OFF: Final = (0.05, 2.0)
"""Seconds before the second attempt to connect, and at most between two."""

BEAT: Final = 2.0
"""Seconds between two signs of life that the engine is asked for."""

_SCRIPTS: Final = {
    name: files("backchannel.broker.redis").joinpath(f"{name}.lua").read_text()
    for name in ("publish", "history")
}


class RedisBroker:
    """Carries publications between the nodes of one hub.

    Args:
        url: ``redis://user:password@host:6379/0``, ``rediss://…`` for TLS, ``unix:///path?db=0``.
        hub: the hub's name; hubs of different names share nothing.
        timeout: seconds that a publication may wait for an engine that is away, and that a question
            may wait for the other nodes' answers.
        max_unsent: bytes of publications that may wait.

    Raises:
        ValueError: it is no such URL.
    """

    shared = True

    def __init__(
        self, url: str, hub: str, *, timeout: float = 5.0, max_unsent: int = 16 * 1024 * 1024
    ):
        self._door = Door(url)
        self._keys = Keys(hub)
        self._timeout = timeout
        self._max_unsent = max_unsent
        self._node: Node
        self._link: Link | None = None
        self._run = ""
        self._hashes: dict[str, str] = {}
        self._topics: dict[bytes, Target] = {}
        self._numbers = itertools.count(1)
        self._waiting: deque[Posting] = deque()
        self._retries: list[Posting] = []
        self._unsent = 0  # bytes that wait or are under way
        self._is_scheduled = False
        self._inquiries: dict[int, Inquiry] = {}
        self._connecting: asyncio.Task[None] | None = None
        self._foreign = 0

    @property
    def state(self) -> str:
        """How it is doing, for people."""
        if self._link is not None:
            return f"connected to {self._door.shown}"
        return f"{self._door.shown} is away; {len(self._waiting)} publications wait"

    def bind(self, node: Node) -> None:
        """Remember the node."""
        self._node = node

    async def start(self) -> None:
        """Connect, for the first time.

        Raises:
            BrokerUnavailable: nobody answers there.
            BrokerUnusable: who answers will not do.
        """
        everyone = Target("everyone")
        self._topics = {
            self._keys.topic(everyone): everyone,
            self._keys.node(self._node.id): everyone,
        }
        await self._connect()
        self._connecting = asyncio.create_task(self._stay_connected())

    async def stop(self) -> None:
        """Publish what waits, and disconnect."""
        self._flush()
        if self._link is not None and not self._link.lost.done():
            try:
                async with asyncio.timeout(1):
                    await self._link.call("PING")  # what was published before it has left
            except (TimeoutError, BrokerUnavailable, hiredis.ReplyError):
                BROKER.debug("the engine did not answer at the end")
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        if self._link is not None:
            self._link.close()
            self._link = None
        self._expire(everything=True)

    # ── the connection ────────────────────────────────────────────────────────────────────────

    async def _stay_connected(self) -> None:
        """Connect again whenever the connection is lost."""
        while True:
            try:
                await self._watch()
                await self._connect_again()
            except Exception as error:  # noqa: BLE001 - a bug must not end this for good
                self._node.report(f"the broker's connection failed: {error!r}", error)
                await asyncio.sleep(BACK_OFF[1])

    async def _watch(self) -> None:
        """Return when the connection is lost, or the engine gives no sign of life."""
        while (link := self._link) is not None:
            await asyncio.wait({link.lost}, timeout=BEAT)
            if not link.lost.done():
                try:
                    async with asyncio.timeout(self._timeout):
                        await link.call("PING")
                    continue
                except (TimeoutError, BrokerUnavailable, hiredis.ReplyError):
                    link.close()
                    await link.lost
            self._link = None
            self._waiting.extendleft(reversed(self._retries))
            self._retries.clear()
            BROKER.error("%s is lost; connections stay open", self._door.shown)
            self._schedule_expiry()

    async def _connect_again(self) -> None:
        wait, longest = BACK_OFF
        problem = ""
        while self._link is None:
            try:
                await self._connect()
            except (BrokerUnavailable, BrokerUnusable) as error:
                if str(error) != problem:
                    problem = str(error)
                    BROKER.warning("still away: %s", problem)
                await asyncio.sleep(random.uniform(0, wait))  # noqa: S311 - full jitter
                wait = min(2 * wait, longest)
        BROKER.info("%s is back", self._door.shown)
        self._node.interrupted()

    async def _connect(self) -> None:
        link, run = await self._door.open(self._hear, self._timeout)
        try:
            async with asyncio.timeout(self._timeout):
                for name, script in _SCRIPTS.items():
                    self._hashes[name] = (await link.call("SCRIPT", "LOAD", script)).decode()
                confirmed = [self._subscribe(link, topic) for topic in self._topics]
                for one in confirmed:
                    await one
        except (TimeoutError, hiredis.ReplyError, BrokerUnavailable) as error:
            link.close()
            raise BrokerUnavailable(f"{self._door.shown} can't be used: {error!r}") from error
        self._run, self._link = run, link
        self._flush()

    # ── what is published ─────────────────────────────────────────────────────────────────────

    def publish(self, publication: Publication, keep: Retention | None) -> Outcome:
        """Publish at the end of this turn of the event loop, or when the engine is back."""
        outcome = self._node.outcome()
        self._post(
            Posting(
                publication.target,
                number=next(self._numbers),
                until=asyncio.get_running_loop().time() + self._timeout,
                owner=self,
                publication=publication,
                keep=keep,
                outcome=outcome,
            )
        )
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

        inquiry = self._inquiries[number] = Inquiry(settle)
        timer = loop.call_later(self._timeout, inquiry.give_up)
        self._post(
            Posting(
                target,
                number=number,
                until=loop.time() + self._timeout,
                owner=self,
                words=words,
                inquiry=inquiry,
                asked=done,
            )
        )
        return done

    def _post(self, posting: Posting) -> None:
        if self._unsent + posting.size > self._max_unsent and self._waiting:
            posting.fail(
                BrokerUnavailable(
                    f"{len(self._waiting)} publications wait for {self._door.shown}; with this one "
                    f"they would be over {self._max_unsent} bytes"
                )
            )
            return
        self._waiting.append(posting)
        self._unsent += posting.size
        if self._link is None:
            self._schedule_expiry()
        elif not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def landed(self, posting: Posting) -> None:
        """Take note that a posting is no longer under way."""
        self._unsent -= posting.size

    def retry(self, posting: Posting) -> None:
        """Publish a posting again once the engine is back, before what came after it."""
        self._retries.append(posting)
        self._unsent += posting.size

    def _flush(self) -> None:
        """Hand what waits to the connection, in order."""
        self._is_scheduled = False
        if (link := self._link) is None or link.lost.done():
            return
        waiting, self._waiting = self._waiting, deque()
        for posting in waiting:
            self._send(link, posting)

    def _send(self, link: Link, posting: Posting) -> None:
        self._count_where_wanted(posting)
        data, topic = posting.pack(self._node.id), self._topic(posting.target)
        if (keep := posting.keep) is None:
            link.send(posting, "PUBLISH", topic, data)
            return
        channel = posting.target.key
        link.send(
            posting,
            "EVALSHA", self._hashes["publish"], 2,
            self._keys.state(channel), self._keys.entries(channel),
            topic, data, keep.size, keep.ttl, REMEMBERED, secrets.token_hex(4), self._run,
            f"{self._node.id}:{posting.number}", int(posting.is_retry),
        )  # fmt: skip

    def _count_where_wanted(self, posting: Posting) -> None:
        """Ask how many a publication reached where that is known only elsewhere, and awaited."""
        outcome = posting.outcome
        if outcome is None or not outcome.is_wanted or posting.target.kind == "channel":
            return

        def done(answers: list[Any], _missing: int) -> None:
            self._inquiries.pop(posting.number, None)
            if not outcome.done():
                outcome.set_result(Receipt(sum(answers)))

        inquiry = posting.inquiry = self._inquiries[posting.number] = Inquiry(done)
        asyncio.get_running_loop().call_later(self._timeout, inquiry.give_up)

    def _topic(self, target: Target) -> bytes:
        if target.kind == "connection":
            return self._keys.node(target.key.partition(".")[0])
        return self._keys.topic(target)

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
            self._unsent -= posting.size
            what = "may have been published, or not" if posting.is_retry else "was not published"
            posting.fail(BrokerUnavailable(f"{self._door.shown} is away: this {what}"))
        if self._link is None:
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
        self._topics[topic] = target
        return None if self._link is None else self._subscribe(self._link, topic)

    def unlisten(self, target: Target) -> None:
        """Hear no more of a target."""
        topic = self._keys.topic(target)
        if self._topics.pop(topic, None) is not None and self._link is not None:
            self._link.call("UNSUBSCRIBE", topic)

    def _subscribe(self, link: Link, topic: bytes) -> asyncio.Future[Any]:
        return link.call("SUBSCRIBE", topic)

    def _hear(self, topic: bytes, data: bytes) -> None:
        try:
            self._take(topic, data)
        except Exception as error:  # noqa: BLE001 - a bug; what comes after it is heard all the same
            self._node.report(f"delivering from the broker failed: {error!r}", error)

    def _take(self, topic: bytes, data: bytes) -> None:
        target = self._topics.get(topic)
        if target is None:
            return  # unlistened to, with this under way
        try:
            heard = parcel.unpack(target, data)
        except Exception as error:  # noqa: BLE001 - whatever a stranger published there
            self._take_foreign(topic, data, error)
            return
        if isinstance(heard, parcel.Heard):
            reached = self._node.deliver(heard.publication, heard.position)
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
        if self._link is not None:
            data = parcel.pack_answer(asking.number, words)
            self._link.call("PUBLISH", self._keys.node(asking.node), data)

    def _take_foreign(self, topic: bytes, data: bytes, error: Exception) -> None:
        self._foreign += 1
        if self._foreign == 1:
            shown = excerpt(data)
            BROKER.error(
                "a stranger publishes to %r, which is dropped: %s (%s)", topic, shown, error
            )

    # ── history ───────────────────────────────────────────────────────────────────────────────

    async def history(
        self, channel: str, since: Position | None, limit: int, *, had: bool = False
    ) -> Page[Publication]:
        """Read a channel's history in one step."""
        link = self._link
        if link is None:
            raise BrokerUnavailable(f"{self._door.shown} is away")
        epoch, offset = ("", "") if since is None else (since.epoch, since.offset)
        target = Target("channel", channel)
        keep = self._node.keeping(channel)
        ttl = REMEMBERED if keep is None else keep.ttl
        try:
            epoch, top, lost, *entries = await link.call(
                "EVALSHA", self._hashes["history"], 2,
                self._keys.state(channel), self._keys.entries(channel),
                epoch, offset, limit, ttl, secrets.token_hex(4), self._run, REMEMBERED, int(had),
            )  # fmt: skip
        except hiredis.ReplyError as error:
            raise BrokerUnavailable(f"the history of {channel!r} can't be read: {error}") from error
        found = []
        for number, data in zip(entries[::2], entries[1::2], strict=True):
            heard = parcel.unpack(target, data)
            if isinstance(heard, parcel.Heard):
                found.append((number, heard.publication))
        return Page(Position(epoch.decode(), top), tuple(found), bool(lost))
