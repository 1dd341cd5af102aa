"""The native transport's hazards in every interleaving: real sockets, a turn for each write.

Small socket buffers and a choice of sizes make the kernel take all of a write, a part of it or nothing;
clients that go free their descriptors for those who come, while a round is being written.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from taken import take_over

from backchannel import Hub, Listener, fanout, lanes

LOOPS = pytest.mark.parametrize(
    "loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
SIZES = [8, 1_000, 5_000, 60_000]
BUFFER = 4_608
"""Bytes that a socket may hold: the least that Linux grants."""


class Person:
    """A client's end, and what it is to read."""

    def __init__(self, end, descriptor):
        self.end = end
        self.descriptor = descriptor
        self.expected = deque()
        self.unread = bytearray()

    def read(self):
        """Read what is there, and compare; returns whether there was anything."""
        try:
            data = self.end.recv(1 << 20)
        except BlockingIOError:
            return False
        self.unread += data
        while (frame := self._frame()) is not None:
            assert frame == self.expected.popleft()
        return bool(data)

    def _frame(self):
        unread = self.unread
        if len(unread) < 2 or (len(unread) < 4 and unread[1] == 126):
            return None
        head, size = (4, int.from_bytes(unread[2:4])) if unread[1] == 126 else (2, unread[1])
        if len(unread) < head + size:
            return None
        payload = bytes(unread[head : head + size])
        del unread[: head + size]
        return payload


class People:
    """A hub and its clients, for the length of a test."""

    def __init__(self):
        self.hub = Hub(max_outbox=1 << 26, ping_interval=600, slow_callback=60)
        self.hub.add("/ws/{channel}", Listener)
        self.all = {}
        self.number = 0

    async def come(self):
        """Take a connection over, as from a server."""
        ours, theirs = socket.socketpair()
        for one in (ours, theirs):
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        descriptor, known = theirs.fileno(), set(self.hub.roster.everyone)
        await take_over(self.hub, "/ws/all", theirs)
        (ws,) = set(self.hub.roster.everyone) - known
        self.all[ws] = Person(ours, descriptor)

    def message(self, size):
        self.number += 1
        return f"{self.number} ".ljust(size, "x").encode()

    def broadcast(self, size):
        message = self.message(size)
        for person in self._members():
            person.expected.append(message)
        self.hub.broadcast("all", message)

    def send(self, n, size):
        if (found := self._chosen(n)) is not None:
            ws, person = found
            message = self.message(size)
            person.expected.append(message)
            ws.send(message)

    def vanish(self, n):
        """Let a client go without a word; what it has not read is nobody's."""
        if (found := self._chosen(n)) is not None:
            ws, person = found
            person.end.close()
            del self.all[ws]

    def close(self, n, code):
        """End a client; it reads to the end, which is the close frame."""
        if (found := self._chosen(n)) is not None:
            ws, person = found
            ws.close(code)
            person.expected.append(code.to_bytes(2))

    def look(self, n):
        if (found := self._chosen(n)) is not None:
            found[1].read()

    def _members(self):
        return [person for ws, person in self.all.items() if ws.is_open]

    def _chosen(self, n):
        alive = [(ws, person) for ws, person in self.all.items() if ws.is_open]
        return alive[n % len(alive)] if alive else None

    async def all_have_all(self):
        async with asyncio.timeout(10):
            while any(person.expected for person in self.all.values()):
                reading = [person.read() for person in self.all.values()]
                await asyncio.sleep(0 if any(reading) else 0.001)  # it may be the kernel's turn
        for person in self.all.values():
            person.read()  # and nothing that is another's comes after
            assert person.unread == b""

    async def over(self):
        for person in self.all.values():
            person.end.close()
        await self.hub.stop(timeout=1.0)


@contextlib.contextmanager
def a_turn_for_each_write():
    outer = lanes.BATCH, fanout.SLICE
    lanes.BATCH, fanout.SLICE = 1, 0.0
    try:
        yield
    finally:
        lanes.BATCH, fanout.SLICE = outer


def in_loop(make_loop, test):
    """Run a test with people in an event loop of its own."""

    async def run():
        people = People()
        try:
            await test(people)
        finally:
            await people.over()

    with asyncio.Runner(loop_factory=make_loop) as runner, a_turn_for_each_write():
        runner.run(run())


# ── any interleaving ──────────────────────────────────────────────────────────────────────────

who = st.integers(0, 7)
sizes = st.sampled_from(SIZES)
step = st.one_of(
    st.tuples(st.just("broadcast"), sizes),
    st.tuples(st.just("send"), who, sizes),
    st.tuples(st.just("vanish"), who),
    st.tuples(st.just("close"), who, st.sampled_from([1000, 4000])),
    st.tuples(st.just("look"), who),
    st.tuples(st.just("come")),
    st.tuples(st.just("turns"), st.integers(1, 4)),
)


@LOOPS
@given(steps=st.lists(step, max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_each_reads_its_own_in_order_whoever_comes_and_goes(loop, steps):
    async def test(people):
        for _ in range(4):
            await people.come()
        for name, *arguments in steps:
            if name == "turns":
                for _ in range(arguments[0]):
                    await asyncio.sleep(0)
            elif name == "come":
                await people.come()
            else:
                getattr(people, name)(*arguments)
        await people.all_have_all()

    in_loop(loop, test)


@LOOPS
@pytest.mark.parametrize("verb", ["broadcast", "send"])
def test_what_the_kernel_has_no_room_for_comes_when_it_has(loop, verb):
    """Writes that just fit, until the next one is refused as a whole: EAGAIN."""

    async def test(people):
        await people.come()
        for _ in range(60):
            people.broadcast(1_000) if verb == "broadcast" else people.send(0, 1_000)
            await asyncio.sleep(0)
        await people.all_have_all()

    in_loop(loop, test)


# ── a descriptor that is somebody else's by now ───────────────────────────────────────────────


async def closed(descriptor):
    """Wait until a descriptor is nobody's."""
    async with asyncio.timeout(5):
        while True:
            try:
                os.fstat(descriptor)
            except OSError:
                return
            await asyncio.sleep(0)


@contextlib.contextmanager
def again(descriptor):
    """A new connection, of which one end has this descriptor; yields it and the other end."""
    with contextlib.ExitStack() as stack:
        ends = ()
        while descriptor not in [end.fileno() for end in ends]:  # the lowest that are free
            ends = [stack.enter_context(end) for end in socket.socketpair()]
        for end in ends:
            end.setblocking(False)
        yield sorted(ends, key=lambda end: end.fileno() != descriptor)


@LOOPS
@pytest.mark.parametrize("unread", [False, True], ids=["by FIN", "by RST"])
def test_who_is_lost_while_a_round_is_written_leaves_its_bytes_to_nobody(loop, unread):
    """Its descriptor is used again at once, and only then is its turn to be written to."""

    async def test(people):
        for _ in range(60):
            await people.come()
        lost = list(people.all.values())[-1]
        if unread:
            people.send(-1, 8)
            await asyncio.sleep(0.01)  # it is there, and not read; nothing tells
        people.broadcast(8)
        await asyncio.sleep(0)  # the first is written to, and one more in each turn
        people.vanish(-1)
        await closed(lost.descriptor)
        assert any(person.expected and not person.read() for person in people.all.values())
        with again(lost.descriptor) as (_new, other):
            await people.all_have_all()
            with pytest.raises(BlockingIOError):
                other.recv(1)

    in_loop(loop, test)
