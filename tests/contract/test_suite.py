"""The contract suite catches each broker that breaks the contract in one way."""

from __future__ import annotations

import contextlib
import inspect

import msgspec
import pytest

from backchannel.broker.redis import RedisBroker
from backchannel.broker.redis.resumes import RedisResumes
from backchannel.contracts import Receipt
from backchannel.errors import BrokerUnavailable
from backchannel.history import Page, Position
from backchannel.testing.broker import BrokerContract
from backchannel.testing.recording import started


class Suite(BrokerContract):
    """With little patience, since here things are waited for that never come."""

    lease = 0.9
    patience = 1.5
    late = 0.5


class PatientSuite(BrokerContract):
    lease = 0.9


class LastingLeases(RedisBroker):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **{**settings, "lease": 1e6})


class ForgetsKeys(RedisBroker):
    def publish(self, publication, keep):
        return super().publish(msgspec.structs.replace(publication, key="", again=False), keep)


class KnowsNoTurns(RedisBroker):
    def publish(self, publication, keep):
        return super().publish(msgspec.structs.replace(publication, turn=0), keep)


class UnsureAndPublished(ForgetsKeys):
    def publish(self, publication, keep):
        outcome = super().publish(publication, keep)
        if publication.again:
            outcome = self._node.outcome()
            outcome.set_exception(BrokerUnavailable("who knows", unsure=True))
        return outcome


class BelievesNobody(RedisBroker):
    async def history(self, channel, since, limit, *, had=False):
        return await super().history(channel, since, limit)


class NeverLosesAnything(RedisBroker):
    async def history(self, channel, since, limit, *, had=False):
        return (await super().history(channel, since, limit))._replace(lost=False)


class TakesAnyHub(RedisBroker):
    def bind(self, node):
        super().bind(node)
        self._node.check_about = lambda found: None


class TellsNothingLater(RedisBroker):
    def about_changed(self):
        pass


class NeverInterrupted(RedisBroker):
    def missed(self, topics):
        pass


class ForgetsWhatItShallHear(RedisBroker):
    def listen(self, target):
        return super().listen(target) if self.is_connected else None


class AnnouncesNothingAnew(RedisBroker):
    def bind(self, node):
        super().bind(node)
        node.attending = list

    def disconnected(self, lane):
        super().disconnected(lane)
        self._roll._dirty.clear()
        self._roll._held.clear()


class AnnouncesAllAsNew(RedisBroker):
    def connected(self, lane, *, again):
        self._roll._held.clear()
        super().connected(lane, again=again)


class TellsJoinsAtOnce(RedisBroker):
    def bind(self, node):
        super().bind(node)
        node.settles = lambda channel: False


class ListsWhoIsNotTold(RedisBroker):
    async def members(self, channel, *, told=False):
        return await super().members(channel)


class TellsLeavesAtOnce(RedisBroker):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **{**settings, "moment": 0.001})


class StartsAnyway(RedisBroker):
    async def start(self):
        with contextlib.suppress(BrokerUnavailable):
            await super().start()


class AcceptsWhileAway(RedisBroker):
    def publish(self, publication, keep):
        if self.is_connected:
            return super().publish(publication, keep)
        outcome = self._node.outcome()
        outcome.set_result(Receipt(None))
        return outcome


class AcceptsWhileAwayWhatIsNotKept(AcceptsWhileAway):
    def publish(self, publication, keep):
        publish = super().publish if keep is None else super(AcceptsWhileAway, self).publish
        return publish(publication, keep)


class AnswersWhileAway(RedisBroker):
    """Subclasses name what is answered as if there were nothing."""

    def __init_subclass__(cls, *, verb, answer):
        async def answered(self, *arguments, **options):
            try:
                return await getattr(super(cls, self), verb)(*arguments, **options)
            except BrokerUnavailable:
                return answer

        setattr(cls, verb, answered)


class NoHistoryWhileAway(
    AnswersWhileAway, verb="history", answer=Page(Position("e", 0), (), lost=False)
):
    pass


class NobodyWhileAway(AnswersWhileAway, verb="members", answer={}):
    pass


class NoneWhileAway(AnswersWhileAway, verb="count_members", answer=0):
    pass


class NoAnswersWhileAway(AnswersWhileAway, verb="ask", answer=([], 0)):
    pass


class OwnResumes(RedisBroker):
    """Subclasses say what is wrong with where it keeps sessions."""

    kind: type[RedisResumes]

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.resumes = self.kind(self._route, self._keys, 1.0)


class GivesTwice(OwnResumes):
    class kind(RedisResumes):  # noqa: N801
        async def take(self, key, turn):
            kept = await self._route.call(key, "GET", self._keys.resume(key))
            return None if kept is None else bytes(kept).partition(b" ")[2]


class TakesLaterTurns(OwnResumes):
    class kind(RedisResumes):  # noqa: N801
        async def take(self, key, turn):
            return await super().take(key, 0)


class KeepsAgain(OwnResumes):
    class kind(RedisResumes):  # noqa: N801
        async def put(self, records, ttl, *, new):
            await super().put(records, ttl, new=True)


class KeepsForLonger(OwnResumes):
    class kind(RedisResumes):  # noqa: N801
        async def put(self, records, ttl, *, new):
            await super().put(records, 3600, new=new)


class ExtendsNothing(OwnResumes):
    class kind(RedisResumes):  # noqa: N801
        async def extend(self, keys, ttl):
            pass


class DropsNothing(OwnResumes):
    class kind(RedisResumes):  # noqa: N801
        async def drop(self, keys):
            pass


class HasNoResumesWhileAway(OwnResumes):
    class kind(RedisResumes):  # noqa: N801
        async def take(self, key, turn):
            try:
                return await super().take(key, turn)
            except BrokerUnavailable:
                return None


SAYS_SO = "all_that_a_node_asks_while_it_is_cut_off_says_so"
SHORT_VISIT = "of_a_visit_shorter_than_the_moment_nobody_is_told_where_joins_wait"
ITS_TIME = "a_session_ends_when_its_time_is_over"
WEAK = [
    (LastingLeases, "a_node_that_died_has_nobody_in_channels_when_its_lease_is_over"),
    (LastingLeases, "a_node_that_was_cut_off_for_longer_than_its_lease_announces_anew"),
    (ForgetsKeys, "a_second_attempt_is_none"),
    (KnowsNoTurns, "what_a_session_had_on_its_way_is_none_once_it_has_gone_on_elsewhere"),
    (ForgetsKeys, "a_second_attempt_does_not_come_behind_what_its_session_said_later"),
    (UnsureAndPublished, "a_second_attempt_whose_first_did_not_arrive_appears_once_or_is_unsure"),
    (BelievesNobody, "a_later_position_that_was_really_had_begins_a_new_epoch"),
    (NeverLosesAnything, "an_engine_that_lost_its_data_begins_a_new_epoch"),
    (TakesAnyHub, "another_hubs_node_is_refused"),
    (TellsNothingLater, "what_a_node_told_last_of_its_hub_is_what_others_find"),
    (NeverInterrupted, "a_node_that_was_cut_off_is_told_that_it_may_have_missed_some"),
    (ForgetsWhatItShallHear, "a_node_that_was_cut_off_is_told_that_it_may_have_missed_some"),
    (AnnouncesNothingAnew, "an_engine_that_lost_its_data_learns_anew_who_is_there"),
    (AnnouncesNothingAnew, "a_node_that_was_cut_off_for_longer_than_its_lease_announces_anew"),
    (AnnouncesNothingAnew, "who_is_at_a_node_that_was_cut_off_for_a_while_has_not_left"),
    (AnnouncesAllAsNew, "an_engine_that_lost_its_data_learns_anew_who_is_there"),
    (TellsJoinsAtOnce, "a_join_that_waits_is_told_of_who_stays"),
    (TellsJoinsAtOnce, SHORT_VISIT),
    (TellsJoinsAtOnce, "a_join_that_waits_goes_on_waiting_where_a_page_is_loaded_anew"),
    (ListsWhoIsNotTold, "a_join_that_waits_is_told_of_who_stays"),
    (ListsWhoIsNotTold, SHORT_VISIT),
    (TellsLeavesAtOnce, "who_comes_from_a_node_that_stops_to_another_has_not_left"),
    (StartsAnyway, "a_node_that_starts_while_it_is_cut_off_says_so"),
    (AcceptsWhileAway, "what_is_published_around_an_outage_is_kept_once_or_it_failed"),
    (AcceptsWhileAway, SAYS_SO),
    (AcceptsWhileAwayWhatIsNotKept, SAYS_SO),
    (NoHistoryWhileAway, SAYS_SO),
    (NobodyWhileAway, SAYS_SO),
    (NoneWhileAway, SAYS_SO),
    (NoAnswersWhileAway, SAYS_SO),
    (HasNoResumesWhileAway, SAYS_SO),
    (GivesTwice, "a_session_is_taken_once_on_whatever_node"),
    (TakesLaterTurns, "a_session_is_not_taken_by_who_is_of_an_earlier_turn"),
    (KeepsAgain, "a_session_that_was_taken_is_not_kept_again_by_who_had_it"),
    (KeepsForLonger, ITS_TIME),
    (ExtendsNothing, ITS_TIME),
    (DropsNothing, ITS_TIME),
]


@pytest.fixture
def run(redis_server, cabled):
    """Run one test of the suite with brokers of some kind: ``await run(kind, name)``."""

    async def cut(node):
        node.broker.door.cut()

    async def mend(node):
        node.broker.door.mend()

    async def lose_data():
        redis_server.stop()
        redis_server.start()

    async def run(kind, name, **hooks):
        def make_broker():
            return cabled(redis_server.url, kind, timeout=0.4, lease=Suite.lease, moment=0.3)

        async with started(make_broker) as nodes:
            known = {
                "make_broker": make_broker, "nodes": nodes, "cut": cut, "mend": mend, "kill": cut,
                "lose_data": lose_data, **hooks,
            }  # fmt: skip
            suite = PatientSuite() if kind is RedisBroker else Suite()
            test = getattr(suite, f"test_{name}")
            await test(**{word: known[word] for word in inspect.signature(test).parameters})

    return run


@pytest.mark.parametrize(("kind", "name"), WEAK)
async def test_a_broker_that_breaks_the_contract_is_caught(run, kind, name):
    with pytest.raises((AssertionError, TimeoutError, BrokerUnavailable, pytest.fail.Exception)):
        await run(kind, name)


@pytest.mark.parametrize("name", sorted({name for _, name in WEAK}))
async def test_one_that_keeps_it_is_not(run, name):
    await run(RedisBroker, name)


@pytest.mark.parametrize(
    ("hook", "name"),
    [
        ("cut", SAYS_SO),
        ("mend", SAYS_SO),
        ("kill", "a_node_that_died_has_nobody_in_channels_when_its_lease_is_over"),
        ("lose_data", "an_engine_that_lost_its_data_begins_a_new_epoch"),
    ],
)
async def test_what_can_not_be_tried_is_skipped_and_the_hook_named(run, hook, name):
    with pytest.raises(pytest.skip.Exception, match=f"hook {hook}:"):
        await run(RedisBroker, name, **{hook: None})


async def test_a_shared_broker_that_keeps_no_sessions_is_skipped_and_that_said(run):
    class Leaves(RedisBroker):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            self.resumes = None

    with pytest.raises(pytest.skip.Exception, match="resumes is None"):
        await run(Leaves, "a_session_is_taken_once_on_whatever_node")
