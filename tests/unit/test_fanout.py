"""What a turn sends: whatever happens in which order, each client reads what a queue of its own
would have given it."""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
import types
import weakref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from backchannel import fanout, lanes
from backchannel.config import Settings
from backchannel.contracts import Publication, Target
from backchannel.fanout import Encoder, Fanout
from backchannel.history import Position
from backchannel.publishing import Publishing
from backchannel.roster import Roster
from backchannel.transport.native import NativeSocket, Taken
from backchannel.wire.frames import Reader

CHANNELS = ["a", "b", "c"]
channels = st.sampled_from(CHANNELS)
who = st.integers(0, 3)
names = (
    ["whisper"] * 4 + ["broadcast", "answer"] * 2 + ["subscribe", "unsubscribe", "release", "end"]
)
further = st.sampled_from([0, 0, 0, 1, 2, 3])
deeds = st.lists(st.tuples(st.sampled_from(names), further, channels), min_size=1, max_size=5)


class Client:
    """A connection and its link, as far as the fan-out knows them; remembers what was written."""

    def __init__(self, fan, *, shares, held, variant=0):
        self.fan = fan
        self.variant = variant  # these messages are too short to be compressed in any
        self.id = id(self)
        self.user = None
        self.session = types.SimpleNamespace(id=None)
        self.ws = self._link = self
        self.shares = shares
        self.is_due = False
        self.apart = True
        self._channels, self._alone = set(), None
        self._held = [] if held else None
        self.pending = []
        self.written = []
        self.expected = []
        self.gone = False
        self.writes = 0
        if shares:
            fan.came(variant)

    def _take(self, publication, position=None, channel=None):
        enclosed = self.variant & lanes.ENCLOSED
        frame = self.fan.enclose(publication, position) if enclosed else publication.frame
        return self._push(frame, channel)

    def _push(self, message, channel=None):
        if self._held is not None:
            self._held.append(message)
            return True
        return self.push(message)

    def push(self, message, channel=None):
        self.fan.due(self)
        self.pending.append(self.fan.encoder.encode(message, False))
        return True

    def take(self, frames):
        assert self.shares
        self.pending.extend(frames)

    def flush(self):
        data, self.pending = b"".join(self.pending), []
        if data:
            self.write(data)

    @staticmethod
    def write_each(due):
        for client, data in due:
            client.write(data)

    def write(self, data):
        self.writes += 1
        self.written.append(data)

    def rejoin(self):
        self.apart = not self.shares or self._held is not None

    def read(self):
        """Return the messages in what was written, in order."""
        data = b"".join(self.written)
        masked = bytearray()
        while data:
            size = data[1]
            masked += bytes([data[0], 0x80 | size, 0, 0, 0, 0]) + data[2 : 2 + size]
            data = data[2 + size :]
        return Reader(1000, deflate=bool(self.variant & lanes.COMPRESSED)).feed(bytes(masked))


class Turns(RuleBasedStateMachine):
    """Everything that can happen within turns, against a plain list for each client."""

    kind = Client

    def __init__(self):
        super().__init__()
        self.fan = None
        self.roster = Roster()
        self.number = 0
        self.queued = []

    @initialize(
        kinds=st.lists(
            st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)), min_size=4, max_size=4
        ),
        only=st.sampled_from([None, None, 0, 1, 2, 3]),
    )
    def connect(self, kinds, only):
        self.fan = Fanout(Encoder(1024, 12), self.queued.append)
        self.clients = [
            self.kind(self.fan, shares=s or n < 3, held=h, variant=v if only is None else only)
            for n, (s, h, v) in enumerate(kinds)
        ]
        for client in self.clients:
            client.rejoin()
            self.roster.admit(client)
            if client._held is None:
                for channel in CHANNELS[:2]:
                    self.roster.enter(client, channel)
                    self.fan.entered(client, channel)

    def message(self):
        self.number += 1
        return str(self.number)

    @rule(channel=channels, without=st.lists(who, max_size=2))
    def broadcast(self, channel, without):
        message = self.message()
        excluded = {self.clients[n] for n in without}
        members = self.roster._channels.get(channel, {})
        receivers = [ws for ws in members if ws not in excluded]
        position = Position("e", self.number) if channel == "b" else None
        for ws in receivers:
            ws.expected.append(enclosed(ws, channel, message, position))
        publication = Publication(Target("channel", channel), message)
        reached = self.fan.broadcast(publication, members, excluded, position)
        assert reached == len(receivers)

    @rule(n=who)
    def whisper(self, n):
        message = self.message()
        client = self.clients[n]
        if not client.gone:
            client.expected.append(message)
            client._push(message)

    @rule(n=who, channel=channels)
    def subscribe(self, n, channel):
        client = self.clients[n]
        if not client.gone and channel not in client._channels:
            self.roster.enter(client, channel)
            self.fan.entered(client, channel)

    @rule(n=who, channel=channels)
    def unsubscribe(self, n, channel):
        client = self.clients[n]
        if channel in client._channels and not client.gone:
            self.fan.leaving(client, (channel,))
            self.roster.leave(client, channel)

    @rule(n=who)
    def release(self, n):
        client = self.clients[n]
        if client._held is not None:
            held, client._held = client._held, None
            for message in held:
                client.push(message)
            self.fan.rejoin(client._link)

    @rule(n=who)
    def end(self, n):
        client = self.clients[n]
        if not client.gone and client._held is None:
            client.gone = True
            self.fan.ending(client)
            self.roster.remove(client)
            if client.shares:
                self.fan.went(client.variant)

    @rule(batch=st.sampled_from([1, 2, 64]), seconds=st.sampled_from([0.0, 1.0]))
    def next_turn(self, batch, seconds):
        callbacks, self.queued[:] = list(self.queued), []
        outer = lanes.BATCH, fanout.SLICE
        lanes.BATCH, fanout.SLICE = batch, seconds
        try:
            for callback in callbacks:
                callback()
        finally:
            lanes.BATCH, fanout.SLICE = outer

    @invariant()
    def nothing_is_out_of_order(self):
        if self.fan is not None:
            for client in self.clients:
                got = client.read()
                assert got == client.expected[: len(got)]

    def teardown(self):
        if self.fan is not None:
            for n in range(4):
                self.release(n)
            while self.queued:
                self.next_turn(64, 1.0)
            for client in self.clients:
                assert client.read() == client.expected


def enclosed(client, channel, message, position):
    """Return what a client is to read of a message."""
    if not client.variant & lanes.ENCLOSED:
        return message
    place = f'"position":"{position}",' if position else ""
    return f'{{"type":"publication","channel":"{channel}",{place}"data":"{message}"}}'


def said(message, channel="a"):
    return Publication(Target("channel", channel), message)


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)


def nothing():
    """Answer nothing, as a dispatch says that."""
    return False


class SocketClient(Client):
    """A connection with a native socket, its transport and its dispatch in one."""

    def __init__(self, fan, *, shares, held, variant=0):
        self.hub = types.SimpleNamespace(fanout=fan, settings=Settings())
        self.socket = NativeSocket(Taken(self, [], b"", set()), self.hub)
        super().__init__(fan, shares=True, held=held, variant=variant)
        self._link = self.socket
        self.socket.ws = self.socket._dispatch = self
        self.socket.variant = variant
        self.deeds = []
        self.answer = nothing

    is_due = property(lambda self: self.socket.is_due, lambda *_: None)
    apart = property(lambda self: self.socket.apart, lambda *_: None)

    def push(self, message, channel=None):
        return self.socket.push(message, channel)

    def rejoin(self):
        self.socket.rejoin()

    def feed(self, message):
        for deed in self.deeds:
            deed()
        return self.answer()

    def reads(self, count, *deeds, answer=nothing):
        """Let so many messages come at once; what is done for each, and answered."""
        self.deeds, self.answer = deeds, answer
        self.socket.data_received(count * b"\x81\x81\0\0\0\0x")

    # as its transport

    def get_extra_info(self, _name):
        return None

    def is_closing(self):
        return False

    def get_write_buffer_size(self):
        return 0


class Readings(Turns):
    """The same on native sockets, and inside the reading of messages and the calls for them."""

    kind = SocketClient

    def done(self, who, deeds):
        """Return deeds to do for a client, mostly: each a rule and what it takes."""
        takes = {"broadcast": ("channel",), "subscribe": ("n", "channel"), "end": ("n",),
                 "unsubscribe": ("n", "channel"), "whisper": ("n",), "release": ("n",),
                 "answer": ("n",)}  # fmt: skip
        for name, further, channel in deeds:
            n = (who + further) % 4
            given = {"n": n, "channel": channel}
            arguments = {key: given[key] for key in takes[name]}
            if name == "broadcast":
                arguments["without"] = [n] * (n < 2)
            yield functools.partial(getattr(self, name), **arguments)

    def answering(self, n):
        """Return what a callback answers, unless it has ended its connection."""
        if self.clients[n].gone:
            return False
        message = self.message()
        self.clients[n].expected.append(message)
        return message

    @rule(n=who)
    def answer(self, n):
        """Outside the reading too: whenever it is done, nothing overtakes."""
        if message := self.answering(n):
            self.clients[n].socket.answer(message)

    @rule(n=who, deeds=deeds, count=st.integers(1, 2), answers=st.booleans())
    def message_comes(self, n, deeds, count, answers):
        if not self.clients[n].gone:
            answer = functools.partial(self.answering, n) if answers else nothing
            self.clients[n].reads(count, *self.done(n, deeds), answer=answer)

    @rule(n=who, deeds=deeds, before=st.lists(who, max_size=2), after=st.lists(who, max_size=2))
    def first_steps_are_taken(self, n, deeds, before, after):
        """Async callbacks in one task, and what they do beside it."""
        self.fan.gather()
        for each in before:
            self.answer(each)
        for deed in self.done(n, deeds):
            deed()
        for each in after:
            self.answer(each)
        self.fan.release()


TestReadings = Readings.TestCase
TestReadings.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)


def test_answers_to_what_is_read_at_once_are_one_write():
    queued = []
    fan = Fanout(Encoder(1024, 12), queued.append)
    client = SocketClient(fan, shares=True, held=False)
    client.rejoin()
    answers = iter("abcd")
    client.reads(2, lambda: client.push(next(answers)), lambda: client.push(next(answers)))
    queued.pop()()
    assert (client.read(), client.writes, queued) == (["a", "b", "c", "d"], 1, [])


def test_an_answer_waits_for_what_the_client_was_sent_before():
    queued = []
    fan = Fanout(Encoder(1024, 12), queued.append)
    client = SocketClient(fan, shares=True, held=False)
    client.rejoin()
    client.push("1")
    client.reads(1, lambda: client.push("2"))
    queued.pop()()
    assert (client.read(), client.writes, queued) == (["1", "2"], 1, [])


def test_an_answer_waits_for_what_its_channel_was_sent_before():
    """What comes after goes after."""
    queued = []
    fan = Fanout(Encoder(1024, 12), queued.append)
    client = SocketClient(fan, shares=True, held=False)
    client.rejoin()
    client._channels.add("a")
    members = {client: client._link}
    client.reads(
        1,
        lambda: client.push("1"),
        lambda: fan.broadcast(said("2"), members),
        lambda: client.push("3"),
    )
    client.reads(1, lambda: client.push("4"))
    queued.pop()()
    assert (client.read(), client.writes, queued) == (["1", "2", "3", "4"], 2, [])


def test_many_answers_do_not_wait_for_the_end_of_the_turn():
    queued = []
    fan = Fanout(Encoder(1024, 12), queued.append)
    clients = [SocketClient(fan, shares=True, held=False) for _ in range(fanout.ANSWERS + 1)]
    for client in clients:
        client.rejoin()
        client.reads(1, answer=lambda: "yes")
    assert [client.read() for client in clients] == fanout.ANSWERS * [["yes"]] + [[]]
    queued.pop()()
    assert (clients[-1].read(), queued) == (["yes"], [])


def test_what_is_answered_while_it_gathers_needs_no_end_of_a_turn():
    queued = []
    fan = Fanout(Encoder(1024, 12), queued.append)
    clients = [SocketClient(fan, shares=True, held=False) for _ in range(2)]
    fan.gather()
    for client in clients:
        client.rejoin()
        client.socket.answer("yes")
    assert [client.read() for client in clients] == [[], []]
    fan.release()
    assert ([client.read() for client in clients], queued) == ([["yes"], ["yes"]], [])
    clients[0].socket.answer("later")
    queued.pop()()
    assert (clients[0].read(), queued) == (["yes", "later"], [])


async def test_many_messages_to_a_channel_are_one_write_to_each_member():
    fan = Fanout(Encoder(1024, 12))
    clients = [Client(fan, shares=True, held=False) for _ in range(3)]
    members = {client: client._link for client in clients}
    for client in clients:
        client.rejoin()
        client._channels.add("a")
    for number in range(50):
        assert fan.broadcast(said(f"{number}"), members) == 3
    await asyncio.sleep(0)
    for client in clients:
        assert client.writes == 1
        assert client.read() == [str(number) for number in range(50)]
    assert clients[0].written[0] is clients[1].written[0]  # the very same bytes


def two_channels():
    """Return a fan-out, the list of what it is to call, clients of two kinds, and the channels."""
    queued = []
    fan = Fanout(Encoder(40, 12), queued.append)
    plain, again, compressing = (
        Client(fan, shares=True, held=False, variant=v) for v in (0, 0, lanes.COMPRESSED)
    )
    clients = [plain, again, compressing]
    for client in clients:
        client.rejoin()
        client._channels.update("ab")
    return fan, queued, clients, {client: client._link for client in clients}


@pytest.mark.parametrize(
    ("order", "size", "shares"), [("ab", 1, False), ("ab", lanes.FEW_BYTES, True), ("aba", 1, True)]
)
def test_who_is_in_the_same_channels_is_written_the_same_in_one_piece(order, size, shares):
    """The very same bytes, unless a copy for each takes less time than to find that out."""
    fan, queued, (plain, again, _), members = two_channels()
    for channel in order:
        fan.broadcast(said(channel * size, channel), members)
    queued.pop()()
    assert (plain.writes, again.writes) == (1, 1)
    assert plain.written == again.written
    assert (plain.written[0] is again.written[0]) == shares
    assert len(plain.written[0]) > len(order) * size


@pytest.mark.parametrize("order", ["ab", "aba"])
def test_who_had_the_same_before_is_not_given_what_another_kind_of_client_takes(order):
    """A short message is the same for those who take compressed ones and those who do not."""
    fan, queued, clients, members = two_channels()
    plain, _, compressing = clients
    for channel in order:
        fan.broadcast(said("short" if channel == "a" else "long " * 20, channel), members)
    queued.pop()()
    read = [client.read() for client in clients]
    assert read == 3 * [["short" if c == "a" else "long " * 20 for c in order]]
    assert len(compressing.written[0]) < len(plain.written[0])


@pytest.mark.parametrize("shares", [True, False])
def test_nothing_is_kept_of_who_was_apart_in_a_channel_and_is_gone(shares):
    """As those are that have not opened, and all of a portable transport."""
    queued = []
    fan = Fanout(Encoder(1024, 12), queued.append)
    client = Client(fan, shares=shares, held=True)
    client._channels.add("a")
    fan.entered(client, "a")
    fan.broadcast(said("1"), {client: client._link})
    fan.ending(client)
    while queued:
        queued.pop()()
    gone = weakref.ref(client)
    client.ws = client._link = None  # it refers to itself
    del client
    assert gone() is None


class Looked(Client):
    """Counts how often it was asked whether it is apart."""

    looks = 0

    @property
    def apart(self):
        Looked.looks += 1
        return self.is_apart

    @apart.setter
    def apart(self, is_apart):
        self.is_apart = is_apart


def test_nobody_is_looked_at_one_by_one_when_all_who_were_apart_have_joined():
    queued = []
    fan = Fanout(Encoder(1024, 12), queued.append)
    clients = [Looked(fan, shares=True, held=True) for _ in range(20)]
    members = {client: client._link for client in clients}
    for client in clients:
        fan.entered(client, "a")
    for client in clients:  # one has something due, as after its on_open
        client._held = None
        if client is clients[0]:
            client.push("welcome")
        fan.rejoin(client)
    queued.pop()()
    before = Looked.looks
    assert fan.broadcast(said("1"), members) == 20
    assert Looked.looks == before
    queued.pop()()
    assert [client.read() for client in clients[:2]] == [["welcome", "1"], ["1"]]


async def test_a_long_flush_is_done_in_slices(monkeypatch):
    """Others have their turn in between, and what they send comes after."""
    monkeypatch.setattr(fanout, "SLICE", 0.0)
    fan = Fanout(Encoder(1024, 12))
    clients = [Client(fan, shares=True, held=False) for _ in range(1000)]
    members = {client: client._link for client in clients}
    for client in clients:
        client.rejoin()
        client._channels.add("a")
    fan.broadcast(said("first"), members)
    await asyncio.sleep(0)
    served = sum(client.writes for client in clients)
    assert 0 < served < 1000
    fan.broadcast(said("second"), members)
    clients[-1]._push("third")
    while fan._scheduled:  # noqa: ASYNC110 - turns are the subject
        await asyncio.sleep(0)
    assert all(client.read()[:2] == ["first", "second"] for client in clients)
    assert clients[-1].read() == ["first", "second", "third"]


def steps(function):
    """Count the steps of bytecode that a call takes, which is the same on any machine."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    gc.disable()  # those who are told of a collection would be counted too
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def steps_of_a_broadcast(size, blocked):
    """Count those of a node's second delivery in a turn to a room, without so many users."""
    fan, roster = Fanout(Encoder(1024, 12), lambda _: None), Roster()
    for number in range(size):
        client = Client(fan, shares=True, held=False)
        client.user = f"user {number}"
        client.rejoin()
        roster.admit(client)
        roster.enter(client, "a")
    publication = Publication(
        Target("channel", "a"),
        "hello",
        exclude=tuple(Target("user", f"user {number}") for number in range(blocked)),
    )
    hub = types.SimpleNamespace(fanout=fan, roster=roster)
    fan.broadcast(said("the first"), roster.members(publication.target))
    reached = []
    taken = steps(lambda: reached.append(Publishing._deliver(hub, publication, None)))
    assert reached == [size - blocked]
    return taken


@pytest.mark.parametrize("blocked", [1, 10])
def test_a_block_list_costs_by_the_number_blocked_not_by_the_size_of_the_room(blocked):
    steps_of_a_broadcast(20, blocked)  # from 3.12 on, the first time counts only a part
    small, large = (steps_of_a_broadcast(size, blocked) for size in (20, 10_000))
    assert small == large
    none = steps_of_a_broadcast(10_000, 0)
    one = steps_of_a_broadcast(10_000, 1)
    assert large - none <= blocked * (one - none) * 1.1
