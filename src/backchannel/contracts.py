"""The seams: what the hub is promised by brokers and transports, order and failure spelled out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

import msgspec

from backchannel.history import Page, Position, Retention
from backchannel.messages import Frame, size_of

if TYPE_CHECKING:
    import asyncio

    from backchannel.sent import Outcome
    from backchannel.stores import ResumeStore, TicketStore

__all__ = [
    "Broker",
    "Form",
    "Link",
    "Node",
    "Publication",
    "Receipt",
    "Target",
    "TargetKind",
]

TargetKind = Literal["channel", "user", "session", "connection", "everyone"]


Form = Literal["plain", "json", "event"]
"""What a publication's frame is: ``plain`` text or bytes as such; ``json``, what a message was made
into that was neither; ``event``, a whole frame of a dialect, for those alone who speak it."""


class Target(NamedTuple):
    """Whom a publication is for: plain values, so that it can travel between nodes.

    Args:
        kind: what ``key`` names.
        key: channel name, user id, session id or connection id; empty for everyone.
    """

    kind: TargetKind
    key: str = ""


NAMED: Final = 16
"""Bytes that a target takes beside its key where it travels, at most."""


class Publication(msgspec.Struct, frozen=True, gc=False):
    """One message on its way to an audience.

    Args:
        target: the audience.
        frame: the encoded message.
        to: only those of the audience that one of these names; None does not narrow, an empty
            tuple reaches nobody.
        exclude: not those of the audience that one of these names.
        form: what the frame is.
        key: its publisher's own name for it, by which a second attempt is known for one; empty
            where there is none. Those of a session are its name, a colon, and numbers that count
            up. It does not travel.
        again: there may have been an attempt already.
        age: seconds that this one may be ago at most; 0 where that is not known.
        turn: how often its session had gone on elsewhere by then. Once one of a later turn is kept
            in a channel, what comes from an earlier one is not any more.
    """

    target: Target
    frame: Frame
    to: tuple[Target, ...] | None = None
    exclude: tuple[Target, ...] = ()
    form: Form = "plain"
    key: str = ""
    again: bool = False
    age: float = 0.0
    turn: int = 0

    @property
    def audience_size(self) -> int:
        """Bytes that ``to`` and ``exclude`` take as they travel, roughly."""
        if not self.to and not self.exclude:
            return 0
        return sum([NAMED + size_of(key) for _, key in (*(self.to or ()), *self.exclude)])


class Receipt(NamedTuple):
    """What is known once the broker has a publication.

    Args:
        reached: connections it was queued for; None where other nodes may have more.
        position: where it stands in the channel's history; None where none is kept, or where it was
            kept no more when that was known.
    """

    reached: int | None
    position: Position | None = None


class Node(Protocol):
    """A hub, as its broker sees it: one of the places that publications are delivered at.

    Order: what is delivered reaches connections in the order of the calls.
    Failure: nothing here raises because of a client.
    """

    @property
    def id(self) -> str:
        """Another one at each start."""
        ...

    @property
    def deliver(self) -> Callable[[Publication, Position | None], int]:
        """Hand a publication to this node's connections: ``deliver(publication, position)``.

        The position is None where no history is kept. With one, what comes twice is dropped, and
        what is missing is read from history first.

        Returns:
            How many connections it was queued for.
        """
        ...

    def answer(self, asker: str, target: Target, words: list[Any]) -> Any:
        """Answer a question that ``ask`` on some node asked; may return an awaitable.

        Args:
            asker: id of the node that asks.
            target: whom it is about.
            words: what is asked: plain values.

        Returns:
            A plain value.
        """
        ...

    def interrupted(self, targets: Collection[Target] | None = None) -> None:
        """Take note that some of what was listened to may not have been heard; it is now.

        Args:
            targets: of what; None is all there is.
        """
        ...

    def keeping(self, channel: str) -> Retention | None:
        """Return how much of a channel's history is kept."""
        ...

    def about(self) -> bytes:
        """Return what other nodes, and whoever publishes without a hub, have to know of it."""
        ...

    def check_about(self, found: bytes) -> None:
        """Check what stands where ``about()`` is to be written.

        Raises:
            BrokerUnusable: another hub wrote it, or none as this one. The text goes on after what
                is checked: "was written by …".
        """
        ...

    @property
    def keeps_presence(self) -> bool:
        """There are channels of which it is kept who is in them."""
        ...

    def attending(self) -> Iterable[tuple[str, str]]:
        """Name all that is to be announced: channels with presence, each user in them here."""
        ...

    def devices(self, channel: str, user: str) -> bytes:
        """Describe a user's connections here that are in a channel now; empty: there are none."""
        ...

    def settles(self, channel: str) -> bool:
        """Tell whether a join in a channel is told only of who has stayed for a moment."""
        ...

    def tell_of(self, channel: str, user: str, done: Callable[[], None], *, joined: bool) -> None:
        """Tell the application that a user has joined or left a channel.

        Returns at once. What is told of one user in one channel is told in the order of the calls.

        Args:
            channel: the channel.
            user: the user.
            done: called when the application knows. A node that stops may never call it: then
                another one is to be told.
            joined: False when the user has left.
        """
        ...

    def outcome(self) -> Outcome:
        """Return what is settled when a publication was taken, or was not."""
        ...

    def keep(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine; what it raises is reported."""
        ...

    def report(self, text: str, error: BaseException | None = None) -> None:
        """Log a problem, and show it in the hub's health."""
        ...

    def drop(self, source: str, text: str, *words: object) -> None:
        """Count something that was heard and that no node says; log the first of its source.

        Args:
            source: who says it, or where.
            text: for the log, with ``%s`` in it for the words.
            words: what it is about.
        """
        ...


class Broker(Protocol):
    """Carries every publication, on one node too: there is one delivery path.

    Order: each node hears the publications of one publisher to one target, and its questions about
    it, in the order of its calls; where one engine carries all, those to all targets. Those of a
    channel whose history is kept have one order for all: their offsets count up without gaps, and
    what history() has of them is what deliver() was given, audience and all.
    Failure: publish() raises, or its outcome fails, when the broker did not take the publication;
    then nobody got it, unless the error says that it may have been published. An engine that is
    away ends no connection: the broker comes back by itself and says ``node.interrupted()``.

    Attributes:
        shared: there may be other nodes. Where there are none, nothing but publish(), history() and
            what is of presence is called while the hub runs.
        tickets: keeps the hub's one-time tickets; None leaves them to this process.
        resumes: keeps the sessions that may be resumed; None leaves them to this process.
    """

    shared: bool

    @property
    def tickets(self) -> TicketStore | None:  # noqa: D102 - described above
        ...

    @property
    def resumes(self) -> ResumeStore | None:  # noqa: D102 - described above
        ...

    @property
    def state(self) -> str:
        """How it is doing, in a few words for people."""
        ...

    @property
    def is_connected(self) -> bool:
        """What is published goes out at once; False while the engine is away."""
        ...

    def bind(self, node: Node) -> None:
        """Tell the broker what it delivers to; called once, before anything else."""
        ...

    async def start(self) -> None:
        """Be ready for all that follows; called in the hub's event loop.

        Raises:
            BrokerUnavailable: the engine does not answer.
            BrokerUnusable: it answers, and will not do; or ``node.check_about`` says so.
        """
        ...

    def about_changed(self) -> None:
        """Tell others ``node.about()``, which has changed.

        It is told at the start too. What a node told last holds.
        """
        ...

    async def finish(self, seconds: float) -> None:
        """Wait until the outcome of all that was published is known; then it is stopped.

        Args:
            seconds: to wait, such as for an engine that is away; then what it is no longer matters.
        """
        ...

    async def stop(self) -> None:
        """Let what was published leave, and forget this node; it may be started again."""
        ...

    def listen(self, target: Target) -> Awaitable[Any] | None:
        """Hear what is published to a channel, user or session from now on.

        What is for everyone and for connections of this node is heard without it.

        Returns:
            What to await until that is so; None where it is already, or the engine is away: then
            it is so before ``node.interrupted()``.
        """
        ...

    def unlisten(self, target: Target) -> None:
        """Hear no more of it."""
        ...

    def ask(
        self, target: Target, words: list[Any], fits: Callable[[Any], bool] = ...
    ) -> asyncio.Future[tuple[list[Any], int]]:
        """Ask all nodes that listen to a target; in its order with what is published.

        Args:
            target: whose nodes.
            words: what is asked: plain values.
            fits: tells of an answer whether it is one. Any other is a stranger's: it is dropped
                with ``node.drop``, and waited for all the same. Left out, anything is one.

        Returns:
            Their answers, and how many nodes did not answer in time. It fails with
            BrokerUnavailable where the engine is away.
        """
        ...

    def publish(self, publication: Publication, keep: Retention | None) -> Receipt | Outcome:
        """Take a publication, keep it, and see to its delivery on every node: in one step.

        Called in the hub's event loop. Delivery on this node may happen before it returns.

        Args:
            publication: it. Where it has a key and is kept, a second attempt (``again``) is none,
                as long as the first is in the history. Where that may have been lost with it,
                it fails with an error that is ``unsure``; where there was none, and what its
                session said later is there already, with one that is not.
            keep: how much of the channel's history is to be there, this one included; None keeps
                nothing, and is always so for what goes to no channel.
        """
        ...

    async def history(
        self, channel: str, since: Position | None, limit: int, *, had: bool = False
    ) -> Page[Publication]:
        """Read a channel's history in one step.

        Args:
            channel: its name.
            since: return what came after this, from the oldest; None returns the newest.
            limit: publications at most; 0 only tells the position.
            had: this node really had ``since``: where it is later than the newest, the engine has
                lost some, and a new epoch begins.

        Raises:
            BrokerUnavailable: the engine does not answer.

        Returns:
            What can't be read is ``unreadable``, and nothing else is lost by it; ``lost`` where
            anything between ``since`` and the newest is not there any more, or
            ``since`` is of another epoch or later than the newest. An epoch never comes again.
            Positions that were told stay known for an hour longer than what is published now.
        """
        ...

    async def tops(self, channels: Collection[str]) -> dict[str, Position | None]:
        """Return the positions of the newest publications of channels whose history is kept.

        Nodes ask for those in which nothing is heard, to find what was dropped on its way to them.

        Raises:
            BrokerUnavailable: the engine does not answer.

        Returns:
            Of each channel it; None where nothing is known of it. Those are left out of which that
            can't be known just now.
        """
        ...

    # Presence: who is in a channel, on all nodes.
    # Order: a join is told at once, to one node; a leave when the user was on no node for a moment.
    # Of one user in one channel the two alternate. Who comes back within the moment has neither
    # left nor joined, and is a member all the while. Where ``node.settles(channel)`` a join waits
    # for the moment too: of a user who was seen off before, neither is told; of one who is away
    # when it is due, once the user is back.
    # Failure: what a node announced is removed when that node has not been heard of for the time of
    # its lease; the moment after that it is told who has left. A node that comes back announces all
    # there is anew, and so does one whose engine was away or has lost its data: then nobody joins
    # or leaves who was there before and is there now, unless it was told meanwhile that they had
    # left. Where a node dies while it tells, another tells it again.

    def announce(self, channel: str, user: str) -> None:
        """Take note that a user's connections in a channel may be other ones: ``node.devices``.

        Called in the hub's event loop. Where the engine is away it is announced when it is back.
        """
        ...

    async def members(self, channel: str, *, told: bool = False) -> dict[str, list[bytes]]:
        """Return the users in a channel, with what each node's ``devices`` described.

        It has what was announced before by this node. A user who is away for a moment has none.

        Args:
            channel: the channel.
            told: for who goes on by what is told: those who were told to have joined and not to
                have left. It lacks whose join waits, and has those who were on a node whose lease
                has run out, for the moment until it is told that they have left.

        Raises:
            BrokerUnavailable: the engine does not answer.
        """
        ...

    async def count_members(self, channel: str) -> int:
        """Return how many users ``members`` has, at a cost that does not grow with them.

        Raises:
            BrokerUnavailable: the engine does not answer.
        """
        ...


class Link(Protocol):
    """One client's end of a transport, as its connection sees it.

    Order: what was pushed leaves in that order, the close last.
    Failure: none of these ever raises because of the client, and none waits for it.

    Attributes:
        apart: what goes to a whole channel is pushed to it by itself; False only for a socket
            that can take bytes made for many (``lanes.Sharing``).
        is_due: it has something to send at the end of this turn.
    """

    apart: bool
    is_due: bool

    def rejoin(self) -> None:
        """Set ``apart``, when a turn or the opening of its connection is over."""
        ...

    def push(self, frame: Frame, channel: str | None = None) -> bool:
        """Queue a frame.

        Args:
            frame: the message.
            channel: what it was sent to, where that was a channel.

        Returns:
            False when the client is gone or was just dropped for being too slow.
        """
        ...

    def answer(self, text: str) -> None:
        """Send what a callback answered; as ``push``, but what was asked for may go first of all.

        Args:
            text: the answer, ASCII only; its connection is open.
        """
        ...

    def close(self, code: int, reason: str) -> None:
        """Close after what was pushed before; later calls do nothing."""
        ...

    async def drained(self) -> None:
        """Wait until nothing of what was flushed waits for the client, or it is gone."""
        ...

    async def finished(self) -> None:
        """Wait until the close has left or was given up; only the end of a hub waits for it."""
        ...
