"""The broker over Redis or Valkey: what the engine publishes is what each node delivers.

A topic for each channel, user and session, which a node listens to while it has someone there, and
one for each node. Counting on the engine's subscriptions makes a directory that is never stale: a
node that dies is out of it when its connection is.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from typing import TYPE_CHECKING, Any

import hiredis

from backchannel.answers import anything
from backchannel.broker.redis import parcel
from backchannel.broker.redis.asking import Inquiries
from backchannel.broker.redis.door import Door
from backchannel.broker.redis.keys import Keys
from backchannel.broker.redis.lane import Lane
from backchannel.broker.redis.notice import Classic, Notice
from backchannel.broker.redis.posting import Keeping, Posting, Question
from backchannel.broker.redis.resumes import RedisResumes
from backchannel.broker.redis.roll import Roll
from backchannel.broker.redis.route import Origin
from backchannel.broker.redis.shards import Shards
from backchannel.broker.redis.tickets import RedisTickets
from backchannel.contracts import Publication, Target
from backchannel.errors import BrokerUnavailable
from backchannel.history import REMEMBERED, Page, Position
from backchannel.observe import excerpt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection, Iterable

    from backchannel.answers import Fits
    from backchannel.broker.redis.route import Route
    from backchannel.contracts import Node
    from backchannel.history import Retention
    from backchannel.sent import Outcome

__all__ = ["RedisBroker"]


class RedisBroker:
    """Carries publications between the nodes of one hub.

    Args:
        url: ``redis://user:password@host:6379/0``, ``rediss://…`` for TLS, ``unix:///path?db=0``;
            ``redis+sentinel://host:26379,host:26379/service/0`` for the master that sentinels know;
            ``redis+cluster://host:6379,host:6379`` for a cluster, by some of its nodes.
        hub: the hub's name; hubs of different names, or in different databases, share nothing.
        timeout: seconds that a publication may wait for an engine that is away, and that a question
            may wait for the other nodes' answers.
        max_unsent: bytes of publications that are not answered, for each master of a cluster.
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
        door = Door(url)
        keys = self._keys = Keys(hub, door.database)
        self._inquiries = Inquiries(timeout)
        self._origin = Origin(keys, self._inquiries, self._hear, timeout, max_unsent)
        way = Shards if door.nodes else Lane
        self._route: Route = way(door, self._origin, self)
        self.tickets = RedisTickets(self._route, keys, timeout)
        self.resumes = RedisResumes(self._route, keys, timeout)
        self._roll = Roll(self._route, keys, lease, moment)
        self._node: Node
        self._notice: Notice
        self._targets: dict[bytes, Target] = {}

    @property
    def state(self) -> str:
        """How it is doing, for people."""
        return self._route.state

    @property
    def is_connected(self) -> bool:
        """The engine is there; of a cluster most of its masters."""
        return self._route.is_connected

    def bind(self, node: Node) -> None:
        """Remember the node."""
        self._node = self._origin.node = node
        self._notice = Notice(self._route, self._keys.about, node)
        self._roll.bind(node)
        self._deliver = node.deliver

    async def start(self) -> None:
        """Connect, for the first time; see ``contracts.Broker``."""
        everyone = Target("everyone")
        topics = (self._keys.topic(everyone), self._keys.node(self._node.id))
        self._targets = dict.fromkeys(topics, everyone)
        await self._route.start()
        try:
            await self._begin()
        except BaseException:
            await self._route.stop()
            raise

    async def _begin(self) -> None:
        try:
            await self._notice.begin()
        except Classic:  # nodes that began while a master was older, or know of one
            await self._route.stop()
            await self._route.start(classic=True)
            await self._notice.begin()

    def about_changed(self) -> None:
        """Tell those who publish without a hub what holds now."""
        self._notice.renew()

    async def finish(self, seconds: float) -> None:
        """Wait until nothing waits or is under way."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._route.pending and loop.time() < deadline:  # noqa: ASYNC110 - telling would cost each
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Publish what waits, and disconnect."""
        await self._roll.stop()
        await self._route.stop()

    # ── what the engine's connection tells ────────────────────────────────────────────────────

    def topics_of(self, lane: Lane | None) -> Iterable[bytes]:  # noqa: ARG002 - there is one
        """Return what is to be heard."""
        return self._targets

    def connected(self, lane: Lane, *, again: bool) -> None:
        """See to what was missed meanwhile."""
        link = lane.engine.link
        if self._route.link_of(self._keys.presence) is link:
            self._roll.connected()
        if again:
            if self._route.link_of(self._keys.about) is link:
                self._notice.connected()
            self.missed(self._route.heard_at(lane))

    def missed(self, topics: Iterable[bytes] | None) -> None:
        """Fill the gaps of some topics, or of all, which may not have been heard for a while."""
        if topics is None:
            self._node.interrupted()
            return
        if found := [self._targets[topic] for topic in topics if topic in self._targets]:
            self._node.interrupted(found)

    def disconnected(self, lane: Lane) -> None:  # noqa: ARG002 - whichever
        """Let nobody wait for it."""
        self._roll.disconnected()

    def failed(self, text: str, error: Exception) -> None:
        """Report a bug."""
        self._node.report(text, error)

    # ── what is published ─────────────────────────────────────────────────────────────────────

    def publish(self, publication: Publication, keep: Retention | None) -> Outcome:
        """Publish at the end of this turn of the event loop, or when the engine is back."""
        outcome = self._node.outcome()
        if keep is None:
            posting = Posting(publication, outcome)
        else:
            number = next(self._inquiries.numbers)
            posting = Keeping(publication, outcome, keep=keep, number=number)
        self._route.post(posting)
        return outcome

    def ask(
        self, target: Target, words: list[Any], fits: Fits = anything
    ) -> asyncio.Future[tuple[list[Any], int]]:
        """Ask all nodes that listen to a target, at the end of this turn of the event loop."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[list[Any], int]] = loop.create_future()

        def settle(answers: list[Any], missing: int) -> None:
            if done.done():
                return
            if inquiry.was_heard:
                done.set_result((answers, missing))
            else:
                done.set_exception(self._unasked())

        inquiry = self._inquiries.open(settle, fits)
        self._route.post(Question(target, words, inquiry, done))
        return done

    def _unasked(self) -> BrokerUnavailable:
        """Return why nobody is known to have heard a question when its time is over."""
        if self._route.is_connected:
            text = f"{self._route.shown} did not answer: it may have been asked, or not"
            return BrokerUnavailable(text, unsure=True)
        return BrokerUnavailable(f"{self._route.shown} is away: nobody was asked")

    # ── what is heard ─────────────────────────────────────────────────────────────────────────

    def listen(self, target: Target) -> Awaitable[Any] | None:
        """Hear what is published to a target from now on.

        Returns:
            Done when the engine has confirmed; None where it is away: then it is told when it is
            back.
        """
        topic = self._keys.topic(target)
        self._targets[topic] = target
        return self._route.listen(topic)

    def unlisten(self, target: Target) -> None:
        """Hear no more of a target."""
        topic = self._keys.topic(target)
        if self._targets.pop(topic, None) is not None:
            self._route.unlisten(topic)

    def _hear(self, topic: bytes, data: bytes) -> None:
        target = self._targets.get(topic)
        if target is None:  # no longer listened to, with this under way
            self._route.unlisten(topic)
            return
        try:
            heard = parcel.unpack(target, data)
        except Exception as error:  # noqa: BLE001 - whatever a stranger published there
            self._drop("publishes to", topic, data, error)
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
        elif not self._inquiries.take(heard.number, heard.words):
            text = "a stranger answers %s, which nobody asked for, and which is dropped"
            self._node.drop("answers", text, excerpt(repr(heard.words)))

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
        self._route.say(self._keys.node(asking.node), parcel.pack_answer(asking.number, words))

    def _drop(self, where: str, name: bytes, data: bytes, error: Exception) -> None:
        text = f"a stranger {where} %r, which is dropped: %s (%s)"
        self._node.drop(where, text, name, excerpt(data), error)

    # ── presence ──────────────────────────────────────────────────────────────────────────────

    def announce(self, channel: str, user: str) -> None:
        """Announce a user's devices here, at the end of this turn of the event loop."""
        self._roll.announce(channel, user)

    async def members(self, channel: str, *, told: bool = False) -> dict[str, list[bytes]]:
        """Read who is in a channel, in one step."""
        found = await self._roll.ask("told" if told else "members", channel)
        return {user.decode(): devices for user, *devices in found}

    async def count_members(self, channel: str) -> int:
        """Read how many users are in a channel, which costs the same for any number."""
        return int(await self._roll.ask("count", channel))

    # ── history ───────────────────────────────────────────────────────────────────────────────

    async def history(
        self, channel: str, since: Position | None, limit: int, *, had: bool = False
    ) -> Page[Publication]:
        """Read a channel's history in one step."""
        place = ("", "") if since is None else since
        target = Target("channel", channel)
        keep = self._node.keeping(channel)
        ttl = REMEMBERED if keep is None else keep.ttl
        keys = self._keys.of_history(self._keys.topic(target))

        def words(runs: tuple[str, ...]) -> tuple[str | float, ...]:
            run, *inherited = runs
            new = secrets.token_hex(4)
            return (
                *place,
                limit,
                ttl,
                new,
                run,
                REMEMBERED,
                int(had),
                parcel.PAGE_BYTES,
                *inherited,
            )

        try:
            reply = await self._route.evaluate("history", keys, words)
        except hiredis.ReplyError as error:
            raise BrokerUnavailable(f"the history of {channel!r} can't be read: {error}") from error
        return parcel.unpack_page(
            target, since, reply, lambda data, error: self._drop("wrote to", keys[1], data, error)
        )

    async def tops(self, channels: Collection[str]) -> dict[str, Position | None]:
        """Return the newest positions of channels, asked for in one write."""
        asked: dict[str, asyncio.Future[Any]] = {}
        for channel in channels:
            topic = self._keys.topic(Target("channel", channel))
            state, _ = self._keys.of_history(topic)
            if (link := self._route.link_of(state)) is not None:
                asked[channel] = link.call("HMGET", state, "epoch", "top")
        if asked:
            await asyncio.wait(asked.values())
        found: dict[str, Position | None] = {}
        for channel, answer in asked.items():
            if answer.exception() is None:  # else it is elsewhere by now, or away
                epoch, top = answer.result()
                is_there = None not in (epoch, top)
                found[channel] = Position(epoch.decode(), int(top)) if is_there else None
        return found
