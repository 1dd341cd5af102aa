"""Who is in which audience, against a model that is too simple to be wrong."""

from collections.abc import Mapping
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from backchannel.contracts import Publication, Target
from backchannel.roster import Roster

USERS, SESSIONS, CHANNELS = ["ana", "bob"], ["s1", "s2"], ["cars", "boats", "ana"]
IDS = [f"c{number}" for number in range(8)]


class Fake:
    """As much of a connection as the roster looks at."""

    def __init__(self, name, user=None, session=None):
        self.id, self.user, self.session = name, user, SimpleNamespace(id=session)
        self._channels, self._alone, self._link = set(), None, object()

    def __repr__(self):
        return self.id


def target(kind, key=""):
    return Target(kind, key)


TARGETS = st.one_of(
    st.sampled_from([target("user", user) for user in [*USERS, "nobody"]]),
    st.sampled_from([target("session", session) for session in [*SESSIONS, "none"]]),
    st.sampled_from([target("channel", channel) for channel in [*CHANNELS, "empty"]]),
    st.sampled_from([target("connection", name) for name in [*IDS, "gone"]]),
    st.just(target("everyone")),
)


class Rosters(RuleBasedStateMachine):
    """Random comings and goings; the model is a dict from connection to its plain facts."""

    def __init__(self):
        super().__init__()
        self.roster = Roster()
        self.facts = {}  # by connection, in order of arrival: (user, session, channels)
        self.entered = {}  # by channel, its connections in order of entering

    def audience(self, target):
        """Go through all connections and ask each."""
        if target.kind == "channel":
            return list(self.entered.get(target.key, ()))
        return [
            ws
            for ws, (user, session, _) in self.facts.items()
            if target.kind == "everyone"
            or (target.kind == "user" and user == target.key)
            or (target.kind == "session" and session == target.key)
            or (target.kind == "connection" and ws.id == target.key)
        ]

    def someone(self, data):
        return data.draw(st.sampled_from(list(self.facts))) if self.facts else None

    @rule(
        name=st.sampled_from(IDS),
        user=st.sampled_from([None, *USERS]),
        session=st.sampled_from([None, *SESSIONS]),
    )
    def admit(self, name, user, session):
        if any(ws.id == name for ws in self.facts):
            return
        ws = Fake(name, user, session)
        self.roster.admit(ws)
        self.facts[ws] = (user, session, set())

    @rule(data=st.data())
    def remove(self, data):
        if ws := self.someone(data):
            self.roster.remove(ws)
            _, _, channels = self.facts.pop(ws)
            assert ws._channels == channels, "the last view stays readable"
            for name in channels:
                self.entered[name].remove(ws)

    @rule(data=st.data(), channel=st.sampled_from(CHANNELS))
    def enter(self, data, channel):
        if ws := self.someone(data):
            self.roster.enter(ws, channel)
            self.facts[ws][2].add(channel)
            self.entered.setdefault(channel, [])
            if ws not in self.entered[channel]:
                self.entered[channel].append(ws)

    @rule(data=st.data(), channel=st.sampled_from(CHANNELS))
    def leave(self, data, channel):
        if ws := self.someone(data):
            self.roster.leave(ws, channel)
            if channel in self.facts[ws][2]:
                self.facts[ws][2].remove(channel)
                self.entered[channel].remove(ws)

    @rule(data=st.data(), session=st.sampled_from(SESSIONS))
    def get_another_session_id(self, data, session):
        """A framework does so at a login; the connection stays where it was admitted."""
        if ws := self.someone(data):
            ws.session.id = session

    @rule(
        audience=TARGETS,
        to=st.none() | st.lists(TARGETS, max_size=4).map(tuple),
        exclude=st.lists(TARGETS, max_size=3).map(tuple),
    )
    def publish(self, audience, to, exclude):
        got = self.roster.receivers(Publication(audience, "x", to, exclude))
        named = (
            {ws for one in to for ws in self.audience(one)} if to is not None else set(self.facts)
        )
        left_out = {ws for one in exclude for ws in self.audience(one)}
        wanted = [ws for ws in self.audience(audience) if ws in named and ws not in left_out]
        assert set(got) == set(wanted)
        assert len(got) == len(wanted), "each receiver once"
        if to is None:
            assert got == wanted, "in the order of their coming"

    @invariant()
    def every_audience_is_as_the_model_says(self):
        for kind, keys in (
            ("user", USERS), ("session", SESSIONS), ("channel", CHANNELS), ("connection", IDS),
            ("everyone", [""]),
        ):  # fmt: skip
            for key in keys:
                members = self.roster.members(target(kind, key))
                assert isinstance(members, Mapping)
                assert list(members) == self.audience(target(kind, key))

    @invariant()
    def the_channels_that_have_members_are_counted_and_no_others(self):
        counts = {name: len(inside) for name, inside in self.entered.items() if inside}
        assert self.roster.counts() == counts
        for ws, (_, _, channels) in self.facts.items():
            assert ws._channels == channels

    def teardown(self):
        """When the last one has gone, nothing at all is left: no key, no empty set."""
        for ws in list(self.facts):
            self.roster.remove(ws)
        assert [name for name, kept in vars(self.roster).items() if kept] == []


Rosters.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestRoster = Rosters.TestCase


@pytest.fixture
def roster():
    return Roster()


def admitted(roster, *arguments):
    ws = Fake(*arguments)
    roster.admit(ws)
    return ws


def reached(roster, audience, to=None, exclude=()):
    return roster.receivers(Publication(audience, "x", to, exclude))


def test_to_reaches_only_those_of_the_channel(roster):
    inside, outside = admitted(roster, "c1", "ana"), admitted(roster, "c2", "ana")
    roster.enter(inside, "cars")
    assert reached(roster, target("channel", "cars"), (target("user", "ana"),)) == [inside]
    assert reached(roster, target("channel", "cars"), (target("connection", outside.id),)) == []


def test_an_empty_to_reaches_nobody(roster):
    admitted(roster, "c1")
    assert reached(roster, target("everyone"), ()) == []


def test_who_is_named_three_times_gets_it_once(roster):
    ws = admitted(roster, "c1", "ana", "s1")
    roster.enter(ws, "cars")
    to = (target("connection", "c1"), target("user", "ana"), target("session", "s1"))
    assert reached(roster, target("channel", "cars"), to) == [ws]


def test_exclude_wins_over_to(roster):
    ana, bob = admitted(roster, "c1", "ana"), admitted(roster, "c2", "bob")
    to = (target("connection", ana.id), target("connection", bob.id))
    assert reached(roster, target("everyone"), to, (target("user", "ana"),)) == [bob]


def test_an_anonymous_client_belongs_to_no_user_and_no_session(roster):
    admitted(roster, "c1")
    for kind in ("user", "session"):
        for key in ("", "None"):
            assert list(roster.members(target(kind, key))) == []


def test_what_members_returns_for_nobody_can_not_be_written_to(roster):
    with pytest.raises(TypeError):
        roster.members(target("channel", "cars"))[Fake("x")] = None


def test_receivers_are_a_list_of_their_own_which_later_goings_do_not_change(roster):
    ws = admitted(roster, "c1")
    got = reached(roster, target("everyone"))
    roster.remove(ws)
    assert got == [ws]


def test_a_connection_that_was_refused_before_it_was_admitted_is_taken_out_of_its_channels(roster):
    ws = Fake("c1")
    roster.enter(ws, "cars")
    roster.remove(ws)
    assert roster.counts() == {}
    assert ws._channels == {"cars"}


def test_removing_twice_changes_nothing(roster):
    ws, other = admitted(roster, "c1", "ana"), admitted(roster, "c2", "ana")
    roster.enter(ws, "cars")
    roster.remove(ws)
    roster.remove(ws)
    assert list(roster.members(target("user", "ana"))) == [other]
    assert ws._channels == {"cars"}


def test_who_was_removed_can_not_come_into_a_channel_again(roster):
    ws = admitted(roster, "c1")
    roster.remove(ws)
    with pytest.raises(AttributeError):
        roster.enter(ws, "cars")
    assert roster.counts() == {}
