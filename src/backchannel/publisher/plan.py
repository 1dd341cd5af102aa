"""What is to be done to publish to a hub, and to ask its nodes: each a row of steps."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from backchannel.about import About
from backchannel.answers import fitting, is_count
from backchannel.broker.redis import parcel
from backchannel.broker.redis.keys import Keys
from backchannel.broker.redis.notice import read_notice
from backchannel.channel import check_channel
from backchannel.cluster import told
from backchannel.contracts import Publication, Receipt, Target
from backchannel.errors import BrokerUnavailable, BrokerUnusable
from backchannel.farewell import news_of
from backchannel.history import REMEMBERED, History, Position
from backchannel.info import User, attending
from backchannel.messages import check_size
from backchannel.publisher.attempts import Attempts, Errand
from backchannel.publisher.roaming import Roaming
from backchannel.publisher.steps import RUN, Hear, Leave, Pause, Work

if TYPE_CHECKING:
    from backchannel.answers import Fits
    from backchannel.broker.redis.door import Whereabouts
    from backchannel.history import Retention

__all__ = ["Plan"]

FRESH: Final = 5.0
"""Seconds that what was read of a hub is taken to hold."""

SILENCE: Final = 3.0
"""Seconds that a hub's nodes have to be heard again, where an engine may have been away."""

LOOK: Final = 0.05
"""Seconds between looking and looking again whether one was heard."""


class Plan:
    """What is to be done for one hub.

    Args:
        address: where its engine is.
        hub: its name.
        timeout: seconds that each piece of work may take.
        patience: seconds that connecting may take.
    """

    def __init__(self, address: Whereabouts, hub: str, timeout: float, patience: float):
        self._shown = address.shown
        self._hub = hub
        self._keys = Keys(hub, address.database)
        self._timeout = timeout
        self._about: tuple[float, About] | None = None
        self._silence: str | bytes = "-"  # the newest one that was waited for
        if address.nodes:
            self._engine: Attempts = Roaming(address.shown, hub, patience, address.nodes)
        else:
            self._engine = Attempts(address.shown, hub, patience)

    def publish(self, publication: Publication) -> Work[Receipt]:
        """Publish, in one step with keeping it where a rule of the hub says so.

        Raises:
            UnsendableMessage: the message is larger than the hub's ``max_publication``.
            BrokerUnavailable: the engine does not answer.
            BrokerUnusable: it knows no such hub.
        """
        deadline = monotonic() + self._timeout
        about = yield from self._read_about(deadline)
        check_size(publication.frame, about.max_publication, publication.audience_size)
        publication = _folded(publication, about)
        if publication.target.kind != "channel":
            data = _packer(publication)
            answers, _ = yield from self._ask(publication.target, data, deadline, is_count)
            return Receipt(sum(filter(None, answers)))
        keep = about.rules.keeping(publication.target.key)
        if keep is not None:
            return (yield from self._keep(publication, keep, deadline))
        topic = self._keys.heard(publication.target)
        heard = yield from self._tell(topic, parcel.pack(publication), deadline)
        return Receipt(None if heard else 0)

    def ask(self, target: Target, *words: Any) -> Work[tuple[list[Any], int]]:
        """Ask all nodes that have someone of a target.

        Returns:
            Their answers, and how many nodes did not answer in time.

        Raises:
            BrokerUnavailable: the engine does not answer.
            BrokerUnusable: it knows no such hub.
        """
        deadline = monotonic() + self._timeout
        target = _folded_target(target, (yield from self._read_about(deadline)))
        return (yield from self._ask_nodes(target, words, deadline))

    def users(self, target: Target) -> Work[list[User]]:
        """Read who is in a channel, with devices, where a rule keeps that; else ask the nodes.

        Raises:
            BrokerUnavailable: the engine does not answer.
            BrokerUnusable: it knows no such hub.
        """
        deadline = monotonic() + self._timeout
        about = yield from self._read_about(deadline)
        target = _folded_target(target, about)
        if _has_presence(target, about):
            found = yield from self._look("members", target.key, deadline)
            return attending({user.decode(): devices for user, *devices in found})
        answers = told(target, *(yield from self._ask_nodes(target, ("users",), deadline)))
        return [User(id_) for id_ in dict.fromkeys(user for users in answers for user in users)]

    def count_users(self, target: Target) -> Work[int]:
        """Return how many ``users`` has; for any number at the same cost where a rule keeps them.

        Raises as ``users`` does.
        """
        deadline = monotonic() + self._timeout
        about = yield from self._read_about(deadline)
        target = _folded_target(target, about)
        if _has_presence(target, about):
            return int((yield from self._look("count", target.key, deadline)))
        answers = told(target, *(yield from self._ask_nodes(target, ("users",), deadline)))
        return len({user for users in answers for user in users})

    def close(self, target: Target, code: int, reason: str) -> Work[tuple[list[Any], int]]:
        """Ask all nodes to close a target, and whoever of it is on the way in; see ``ask``."""
        news = news_of(target, code, reason)
        if news is not None:
            deadline = monotonic() + self._timeout
            yield from self._read_about(deadline)
            everyone = Target("everyone")
            nobody = parcel.Asking(secrets.token_hex(8), 0)  # whose answers nobody hears
            data = parcel.pack_question(everyone, nobody, ["all", *news])
            yield from self._tell(self._keys.heard(everyone), data, deadline)
        return (yield from self.ask(target, "close", code, reason))

    def history(self, target: Target, since: Position | None, limit: int) -> Work[History]:
        """Read what was kept of a channel, as far as it was for everyone.

        Args:
            target: the channel.
            since: after which position; None is the newest.
            limit: publications that are looked at.

        Raises:
            BrokerUnavailable: the engine does not answer.
            BrokerUnusable: it knows no such hub.
        """
        deadline = monotonic() + self._timeout
        about = yield from self._read_about(deadline)
        target = _folded_target(target, about)
        keep = about.rules.keeping(target.key)
        ttl = REMEMBERED if keep is None else keep.ttl
        hash_ = yield from self._engine.loaded("history", deadline)
        topic = self._keys.topic(target)
        words = (
            "EVALSHA", hash_, 2, *self._keys.of_history(topic), *(since or ("", "")), limit, ttl,
            secrets.token_hex(4), RUN, REMEMBERED, 0, parcel.PAGE_BYTES,
        )  # fmt: skip
        reading = Errand(lambda of: (*words, *of.runs), topic, deadline, changes=False)
        reply = yield from self._engine.do(reading)
        return History.of(parcel.unpack_page(target, since, reply), lambda _: False)

    # ── what holds for the hub ────────────────────────────────────────────────────────────────

    def _read_about(self, deadline: float) -> Work[About]:
        """Return what nodes wrote about their hub, as of some seconds ago."""
        if self._about is not None and monotonic() < self._about[0]:
            return self._about[1]
        key = self._keys.about
        data = yield from self._engine.do(
            Errand(lambda _: ("GET", key), key, deadline, changes=False)
        )
        if data is None:
            raise BrokerUnusable(
                f"{self._shown} knows no hub {self._hub!r}: none of its nodes has started with "
                f"this engine; hub= is what Hub(name=…) says there, and the URL names the same "
                "database"
            )
        is_sharded, data = read_notice(data)
        try:
            about = About.read(data)
        except ValueError as error:
            raise BrokerUnusable(
                f"{self._shown} has at {self._keys.about.decode()!r} what no hub of this version "
                f"wrote: {error}"
            ) from error
        self._engine.told(is_sharded=is_sharded)
        self._about = (monotonic() + FRESH, about)
        return about

    # ── publishing ────────────────────────────────────────────────────────────────────────────

    def _keep(self, publication: Publication, keep: Retention, deadline: float) -> Work[Receipt]:
        """Publish what is kept: a second attempt finds the first one by its id."""
        topic, data = self._keys.heard(publication.target), parcel.pack(publication)
        id_, epoch = secrets.token_hex(8), secrets.token_hex(4)
        began = monotonic()
        hash_ = yield from self._engine.loaded("publish", deadline)

        def words(errand: Errand) -> tuple[Any, ...]:
            again = self._engine.again(errand)
            return (
                "EVALSHA", hash_, 2, *self._keys.of_history(topic),
                topic, data, keep.size, keep.ttl, REMEMBERED, epoch, RUN, "", id_,
                again, monotonic() - began, int(again != 0), self._engine.verb, *errand.runs,
            )  # fmt: skip

        errand = Errand(words, topic, deadline)
        began_epoch, offset, heard = yield from self._engine.do(errand)
        position = Position(began_epoch.decode(), offset)
        if errand.is_early:  # those who hear it do so where the slot is still
            heard += yield from self._tell_again(topic, parcel.placed(position, data), deadline)
        return Receipt(None if heard or errand.lost else 0, position)

    def _tell_again(self, topic: bytes, data: bytes, deadline: float) -> Work[int]:
        """Publish what is kept already, as often as need be: nodes know it by its position."""
        words = (self._engine.verb, topic, data)
        try:
            return int((yield from self._engine.do(Errand(lambda _: words, topic, deadline))))
        except BrokerUnavailable:  # then they find it in the history
            return 1

    def _tell(self, topic: bytes, data: bytes, deadline: float) -> Work[int]:
        """Publish what is not kept; return how many nodes heard it."""
        words = (self._engine.verb, topic, data)
        errand = Errand(lambda _: words, topic, deadline, may_repeat=False)
        return int((yield from self._engine.do(errand)))

    def _look(self, verb: str, channel: str, deadline: float) -> Work[Any]:
        """Look into what nodes have announced; a publisher is no node, and changes nothing there.

        Where leases have run out and no node was heard since, all of them have died, or the engine
        was away, and they have yet to say that they live: they are waited for, once.
        """
        key = self._keys.presence
        until = monotonic() + min(SILENCE, (deadline - monotonic()) / 2)
        silence = self._silence
        hash_ = yield from self._engine.loaded("presence", deadline)

        def words(_: Errand) -> tuple[Any, ...]:
            return ("EVALSHA", hash_, 1, key, verb, "", silence, *(0,) * 5, channel)

        while True:
            looking = Errand(words, key, deadline, changes=False, whole=True)
            is_known, answer = yield from self._engine.do(looking)
            if is_known:
                return answer
            if monotonic() >= until:
                silence = self._silence = answer
            else:
                yield Pause(LOOK)

    def _ask_nodes(
        self, target: Target, words: tuple[Any, ...], deadline: float
    ) -> Work[tuple[list[Any], int]]:
        """Ask all nodes that have someone of a target; see ``ask``."""

        def pack(asking: parcel.Asking) -> bytes:
            return parcel.pack_question(target, asking, ["all", *words])

        return (yield from self._ask(target, pack, deadline, fitting(words[0])))

    def _tell_counting(self, topic: bytes, data: bytes, deadline: float) -> Work[int]:
        """Publish what is answered; return how many nodes heard it, and nobody else."""
        if self._engine.is_sharded:  # there are no patterns
            return (yield from self._tell(topic, data, deadline))
        hash_ = yield from self._engine.loaded("ask", deadline)
        words = ("EVALSHA", hash_, 0, topic, data)
        errand = Errand(lambda _: words, topic, deadline, may_repeat=False)
        return int((yield from self._engine.do(errand)))

    def _ask(
        self,
        target: Target,
        pack: Callable[[parcel.Asking], bytes],
        deadline: float,
        fits: Fits,
    ) -> Work[tuple[list[Any], int]]:
        """Publish something that is answered; return the answers and how many are missing."""
        me = secrets.token_hex(8)
        inbox = yield from self._engine.listen(self._keys.node(me), deadline)
        try:
            data = pack(parcel.Asking(me, 1))
            heard = yield from self._tell_counting(self._keys.heard(target), data, deadline)
            answers: list[Any] = []
            while len(answers) < heard:
                said = yield Hear(inbox, max(0.0, deadline - monotonic()))
                if said is None:
                    break
                answers.extend(_answers(said, fits))
            return answers, heard - len(answers)
        finally:
            yield Leave(inbox)


def _answers(said: bytes, fits: Fits) -> list[Any]:
    """Read an answer; what a stranger says there is none."""
    try:
        answer = parcel.unpack(Target("everyone"), said)
    except ValueError:
        return []
    return [answer.words] if isinstance(answer, parcel.Answer) and fits(answer.words) else []


def _packer(publication: Publication) -> Callable[[parcel.Asking], bytes]:
    return lambda asking: parcel.pack(publication, asking)


def _folded(publication: Publication, about: About) -> Publication:
    """Return a publication with channel names as the hub keeps them."""
    if not about.casefold:
        return publication

    def fold(targets: tuple[Target, ...]) -> tuple[Target, ...]:
        return tuple(_folded_target(target, about) for target in targets)

    return Publication(
        _folded_target(publication.target, about),
        publication.frame,
        None if publication.to is None else fold(publication.to),
        fold(publication.exclude),
        publication.form,
    )


def _has_presence(target: Target, about: About) -> bool:
    return target.kind == "channel" and about.rules.has_presence(target.key)


def _folded_target(target: Target, about: About) -> Target:
    if target.kind != "channel" or not about.casefold:
        return target
    return Target("channel", check_channel(target.key, casefold=True))
