"""This hub as one node of several: what it listens to, what others ask of it, and it of others."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextvars import Context
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Literal

from backchannel.about import About, Mark
from backchannel.answers import fitting
from backchannel.channel import check_channel
from backchannel.codes import check_close
from backchannel.connection import CloseReason
from backchannel.contracts import Broker, Publication, Receipt, Target
from backchannel.errors import BrokerUnavailable, BrokerUnusable
from backchannel.farewell import news_of
from backchannel.history import Follower, Position, Retention
from backchannel.info import packed
from backchannel.observe import BROKER, excerpt
from backchannel.sent import Outcome
from backchannel.strangers import Strangers
from backchannel.watch import Unread, Watch

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from backchannel.connection import Connection
    from backchannel.hub import HubCore

__all__ = ["Cluster", "told"]

PAGE: Final = 100
"""Publications that are read at a time to fill a gap."""

AT_ONCE: Final = 64
"""Channels whose gaps are filled at the same time when the broker is back."""

SLICE: Final = 0.005
"""Seconds in which connections are told of gaps before others have their turn."""


class Cluster:
    """A hub's side of its broker: the Node that the broker is bound to.

    Args:
        hub: the hub.
        broker: carries what is for other nodes.

    Attributes:
        is_shared: there may be other nodes; else nothing here costs anything.
        strangers: counts what was heard that no node says.
        deliver: hands a publication to the connections of this node; see ``contracts.Node``.
    """

    def __init__(self, hub: HubCore, broker: Broker):
        self._hub = hub
        self._broker = broker
        self.is_shared = broker.shared
        self.deliver = self._deliver if broker.shared else hub._deliver
        self._followers: dict[str, Follower[Publication]] = {}
        self._filling: dict[Follower[Publication], asyncio.Task[None]] = {}
        self._held: Counter[Target] = Counter()
        self._confirming: dict[Target, asyncio.Future[None]] = {}
        self._holders: dict[Connection, tuple[Target, ...]] = {}
        self._found = Mark()
        self._is_warned = False
        self.strangers = Strangers()
        self._watch = Watch(broker, self._followers, self._fill)
        self._unread = Unread(broker, self._followers, self._fill)

    def begin_anew(self) -> None:
        """Forget what was of an earlier event loop."""
        self._watch.end()
        self._unread.end()
        self._followers.clear()
        self._filling.clear()
        self._held.clear()
        self._confirming.clear()
        self._holders.clear()
        self._found = Mark()
        self._is_warned = False

    @property
    def state(self) -> str:
        """How the broker is doing, for people."""
        why = self._unread.why
        return f"{self._broker.state}; {why}" if why else self._broker.state

    # ── as the broker's node ──────────────────────────────────────────────────────────────────

    @property
    def id(self) -> str:
        """This node's id."""
        return self._hub.node

    def _deliver(self, publication: Publication, position: Position | None) -> int:
        if position is not None:
            channel = publication.target.key
            follower = self._followers.get(channel)
            if follower is not None and not follower.hear(position, publication):
                if follower.asks:
                    self._fill(channel, follower)
                return 0
        return self._hub._deliver(publication, position)

    @property
    def keeps_presence(self) -> bool:
        """Some rule says presence, or somebody wants to know who is online."""
        return self._hub.rules.presence or self._hub.presence.is_wanted

    def attending(self) -> Iterable[tuple[str, str]]:
        """Name who is in the channels with presence here."""
        return self._hub.attendance.attending()

    def devices(self, channel: str, user: str) -> bytes:
        """Describe a user's connections here that are in a channel."""
        return self._hub.attendance.devices(channel, user)

    def tell_of(self, channel: str, user: str, done: Callable[[], None], *, joined: bool) -> None:
        """Tell the application that a user has joined or left a channel."""
        self._hub.attendance.tell_of(channel, user, done, joined=joined)

    def settles(self, channel: str) -> bool:
        """Tell whether a rule lets joins in a channel wait for the moment."""
        return self._hub.attendance.settles(channel)

    def outcome(self) -> Outcome:
        """Return what is settled when a publication has been taken."""
        return self._hub.runtime.outcome()

    def keeping(self, channel: str) -> Retention | None:
        """Return how much of a channel's history is kept."""
        return self._hub.rules.keeping(channel)

    def about(self) -> bytes:
        """Return what others have to know of this hub; see ``contracts.Node``."""
        settings, mark = self._hub.settings, self._mark
        about = About(
            self._hub.rules,
            casefold=settings.casefold_channels,
            max_publication=settings.max_publication,
            # A hub that has no endpoints yet leaves standing what its own will be compared with.
            mark=mark if mark.endpoints else self._found,
        )
        return about.pack()

    @property
    def _mark(self) -> Mark:
        templates = sorted(endpoint.template.text for endpoint in self._hub.endpoints)
        return Mark(tuple(templates), self._hub.is_named)

    def check_about(self, found: bytes) -> None:
        """Check what stands where ``about()`` is to be written; see ``contracts.Node``."""
        try:
            other = About.read(found).mark
        except ValueError as error:
            raise BrokerUnusable(f"is no notice that this version writes ({error})") from error
        own = self._mark
        if not own.may_be(other):
            raise BrokerUnusable(
                f"was written by a hub with the endpoints {other}, and this one has {own}: two "
                "applications, or two versions of one that have no endpoint in common"
            )
        if own.has_none_of(other) and not self._is_warned:
            self._is_warned = True
            BROKER.warning(
                "this hub has the endpoints %s, and another node of the hub named %r, as both say, "
                "has %s: where these are two applications, each wants a name of its own, or what "
                "one publishes reaches clients of the other",
                own, self._hub.settings.name, other,
            )  # fmt: skip
        self._found = other

    def keep(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something of the broker's."""
        self._hub.runtime.keep(work, Context())

    def report(self, text: str, error: BaseException | None = None) -> None:
        """Log a problem, and show it in the hub's health."""
        self._hub.runtime.report(text, error)

    def drop(self, source: str, text: str, *words: object) -> None:
        """Count something that was heard and that no node says; log the first of its source."""
        self.strangers.take(source, text, *words)

    def interrupted(self, targets: Collection[Target] | None = None) -> None:
        """Fill the gaps: not all that was published to these may have been heard."""
        followers: Mapping[str, Follower[Publication]] = self._followers
        if targets is not None:
            names = [target.key for target in targets if target.kind == "channel"]
            followers = {name: followers[name] for name in names if name in followers}
        for follower in followers.values():
            follower.interrupt()
        self._hub.resumes.keep_again()  # they may be lost too
        self.keep(self._tell_of_gaps(targets or (Target("everyone"),)))
        self.keep(self._fill_all(followers))

    async def _tell_of_gaps(self, targets: Collection[Target]) -> None:
        """Tell those who want to know that what no history has may have been missed."""
        began = perf_counter()
        for target in targets:
            for ws in list(self._hub.roster.members(target)):
                dispatch = ws._dispatch
                if dispatch.endpoint.callbacks.on_lost is None and not ws._speaks:
                    continue
                names = (target.key,) if target.kind == "channel" else ()
                for channel in tuple(ws._channels) if target.kind == "everyone" else names:
                    if channel not in self._followers:
                        dispatch.tell_lost(channel)
                if target.kind != "channel":
                    dispatch.tell_lost(None)  # of its user, its session, everyone
                if perf_counter() - began > SLICE:
                    await asyncio.sleep(0)
                    began = perf_counter()

    # ── channels ──────────────────────────────────────────────────────────────────────────────

    def listen(self, channel: str) -> asyncio.Future[Any] | None:
        """Hear a channel of which no history is kept; see ``contracts.Broker.listen``."""
        try:
            heard = self._broker.listen(Target("channel", channel))
        except Exception as error:  # noqa: BLE001 - a broker may raise anything
            heard = asyncio.get_running_loop().create_future()
            heard.set_exception(error)
        if heard is None or isinstance(heard, asyncio.Future):
            return heard
        return asyncio.ensure_future(heard)

    async def open(self, channel: str) -> None:
        """Hear a channel from now on; returns when that is so, or the broker is away."""
        confirmed = self._broker.listen(Target("channel", channel))
        follower: Follower[Publication] | None = None
        if self.keeping(channel) is not None:
            follower = self._followers[channel] = Follower(None)
            self._watch.begin(self._hub.runtime.keep)
        await _confirmed(confirmed)
        if follower is not None:
            await asyncio.shield(self._fill(channel, follower))

    def is_level(self, channel: str, position: Position | None) -> bool:
        """Tell whether this node has delivered a channel up to a position, and nothing beyond it.

        Who enters with history that the node's members have yet to get would get it twice.
        """
        follower = self._followers.get(channel)
        return follower is None or (not follower.asks and follower.position == position)

    async def level(self, channel: str) -> None:
        """Deliver all that history has of a channel.

        Raises:
            BrokerUnavailable: the broker is away.
        """
        if (follower := self._followers.get(channel)) is not None:
            follower.interrupt()
            await asyncio.shield(self._fill(channel, follower))
            if follower.asks and self._followers.get(channel) is follower:
                raise BrokerUnavailable(f"the history of {channel!r} can't be read")

    def announce(self) -> None:
        """Tell others that rules or endpoints of this hub have changed."""
        if self.is_shared:
            self._broker.about_changed()

    def close(self, channel: str) -> None:
        """Hear a channel no more."""
        self._followers.pop(channel, None)
        self._broker.unlisten(Target("channel", channel))

    def _fill(self, channel: str, follower: Follower[Publication]) -> asyncio.Task[None]:
        """Read what was not heard, and deliver it in order; done when that is so, or given up."""
        filling = self._filling.get(follower)
        if filling is None:
            filling = self._hub.runtime.keep(self._read(channel, follower), Context())
            self._filling[follower] = filling
        return filling

    async def _read(self, channel: str, follower: Follower[Publication]) -> None:
        try:
            while follower.asks and self._followers.get(channel) is follower:
                is_new = follower.position is None
                limit = 0 if is_new else PAGE
                page = await self._broker.history(channel, follower.since, limit, had=True)
                if self._followers.get(channel) is not follower:
                    return  # everyone has left; who is there now came later
                ready, lost = follower.learn(page)
                members = self._hub.roster.members(Target("channel", channel))
                if lost or (is_new and members):  # who entered while the broker was away
                    self._tell_lost(channel, members, follower.position)
                for position, publication in ready:
                    self._hub._deliver(publication, position)
        except BrokerUnavailable as error:
            self._unread.put_off(channel, follower, error, self._hub.runtime.keep)
        finally:
            self._filling.pop(follower, None)

    @staticmethod
    def _tell_lost(channel: str, members: Iterable[Connection], position: Position | None) -> None:
        BROKER.warning("publications to %r were lost; it goes on from now", channel)
        for ws in list(members):
            ws._dispatch.tell_lost(channel, position)

    async def _fill_all(self, followers: Mapping[str, Follower[Publication]]) -> None:
        todo = iter(list(followers.items()))

        async def work() -> None:
            for channel, follower in todo:
                await asyncio.shield(self._fill(channel, follower))

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())

    # ── users and sessions ────────────────────────────────────────────────────────────────────

    def holds_all(self, ws: Connection) -> bool:
        """Tell whether a connection's user and session are heard already."""
        return all(self._held[t] and t not in self._confirming for t in _belongs_to(ws))

    async def hold(self, ws: Connection) -> None:
        """Hear a connection's user and session; returns when that is so."""
        self._holders[ws] = targets = _belongs_to(ws)
        await self.hear(targets)

    async def hear(self, targets: Collection[Target]) -> None:
        """Hear users, sessions and connections; returns when that is so."""
        self._held.update(targets)
        for target in targets:
            if self._held[target] == 1 and (listening := self._broker.listen(target)) is not None:
                confirming = asyncio.ensure_future(_confirmed(listening))
                self._confirming[target] = confirming
                confirming.add_done_callback(functools.partial(self._settled, target))
        # Also what another device of the same user has begun, and is not in force yet.
        for target in targets:
            if (pending := self._confirming.get(target)) is not None:
                await asyncio.shield(pending)

    def _settled(self, target: Target, confirming: asyncio.Future[None]) -> None:
        if self._confirming.get(target) is confirming:
            del self._confirming[target]

    def holds(self, ws: Connection) -> bool:
        """Tell whether a connection's user and session are heard because of it."""
        return ws in self._holders

    def release(self, ws: Connection) -> None:
        """Hear a connection's user and session no more, where it was the last one."""
        self.hear_no_more(self._holders.pop(ws, ()))

    def stay(self, target: Target) -> None:
        """Go on to hear what is heard already, until ``hear_no_more``."""
        self._held[target] += 1

    def hear_no_more(self, targets: Collection[Target]) -> None:
        """Hear users, sessions and connections no more, where nobody else does."""
        for target in targets:
            if target not in self._held:
                continue  # the hub has begun anew since
            self._held[target] -= 1
            if not self._held[target]:
                del self._held[target]
                self._broker.unlisten(target)

    # ── what nodes ask one another ────────────────────────────────────────────────────────────

    async def ask(self, target: Target, *words: Any) -> list[Any]:
        """Ask the other nodes that have someone of a target.

        Raises:
            BrokerUnavailable: the broker is away.
        """
        asking = self._broker.ask(target, ["others", *words], fitting(words[0]))
        return told(target, *await asking)

    def tell(self, target: Target, whom: Literal["all", "others"], *words: Any) -> Outcome:
        """Let the nodes that have someone of a target do something.

        Args:
            target: whom it is about.
            whom: ``"others"`` leaves this node out.
            words: what to do.

        Returns:
            Of its receipt ``reached`` tells to how many connections it was done.
        """
        asking = self._broker.ask(target, [whom, *words], fitting(words[0]))
        outcome = self.outcome()

        def settle(done: asyncio.Future[tuple[list[Any], int]]) -> None:
            outcome.settle(lambda: Receipt(sum(told(target, *done.result()))))

        asking.add_done_callback(settle)
        return outcome

    def close_all(self, target: Target, code: int, reason: str) -> Outcome:
        """Close a target's connections on all nodes, and those that are on the way in."""
        news = news_of(target, code, reason)
        if news is not None:
            asking = self._broker.ask(Target("everyone"), ["others", *news])
            # That the engine is away, the closing itself tells.
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self.tell(target, "all", "close", code, reason)

    def answer(self, asker: str, target: Target, words: list[Any]) -> Any:
        """Answer what a node asks; None where this one is not meant or does not understand."""
        if words[:1] == ["others"] and asker == self.id:
            return None
        members = self._hub.roster.members(target)
        match words[1:]:
            case ["close", int(code), str(reason)] if _can_close(code, reason):
                ending = CloseReason(code, reason, "server")
                self._hub.farewells.note(target, ending)
                return sum([ws._dispatch.end(ending) for ws in list(members)])
            case ["replace", int(turn)]:  # another connection goes on with its session
                live: Any = [ws._dispatch for ws in members]
                return self._hub.resumes.hand_over(target.key, turn, live, self._hub.grace)
            case ["farewell", "user" | "session" as kind, str(key), int(code), str(reason)] if (
                _can_close(code, reason)
            ):
                closed = Target(kind, key)
                self._hub.farewells.note(closed, CloseReason(code, reason, "server"))
                return None
            case ["count"]:
                return len(members)
            case ["users"]:
                return list(dict.fromkeys(ws.user for ws in members if ws.user is not None))
            case ["connections"]:
                return [packed(self._hub.info(ws)) for ws in members]
            case ["subscribe" | "unsubscribe" as verb, str(channel)] if _is_channel(channel):
                return self._change(target, channel, entering=verb == "subscribe")
            case ["recheck"]:
                return self._recheck(target)
            case _:
                verb = excerpt(str(words[1]) if words[1:] else "", 80)
                text = "node %s asks what this one does not understand: %s"
                self.drop(f"{asker} {verb}", text, excerpt(asker, 80), verb)
                return None

    async def _change(self, target: Target, channel: str, *, entering: bool) -> int:
        changes = self._hub.change_all(
            lambda: list(self._hub.roster.members(target)), channel, entering=entering
        )
        return (await changes).reached or 0

    async def _recheck(self, target: Target) -> list[Any]:
        return [packed(self._hub.info(ws)) for ws in await self._hub.recheck(target)]


def _can_close(code: int, reason: str) -> bool:
    try:
        check_close(code, reason)
    except (TypeError, ValueError):
        return False
    return True


def _is_channel(name: str) -> bool:
    try:
        check_channel(name)
    except ValueError:
        return False
    return True


def _belongs_to(ws: Connection) -> tuple[Target, ...]:
    moves = ws.id if ws._speaks else None  # others' ids name their node
    named = (("user", ws.user), ("session", ws.session.id), ("connection", moves))
    return tuple(Target(kind, key) for kind, key in named if key is not None)  # type: ignore[arg-type]


def told(target: Target, answers: list[Any], missing: int) -> list[Any]:
    """Return what nodes answered, without those that were not meant; warn of those that did not."""
    if missing:
        BROKER.warning("%d nodes that have someone of %s did not answer", missing, target.kind)
    return [answer for answer in answers if answer is not None]


async def _confirmed(confirmed: Awaitable[Any] | None) -> None:
    """Wait until the broker listens; one that is away does when it is back."""
    if confirmed is not None:
        with contextlib.suppress(BrokerUnavailable):
            await confirmed
