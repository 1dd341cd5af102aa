"""Frames: what is read in any chunking, what is refused, and that another library agrees."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Opcode, apply_mask
from websockets.protocol import State
from websockets.server import ServerProtocol

from backchannel.wire import frames
from backchannel.wire.frames import Close, Ping, Pong, Reader, Violation

LIMIT = 500
KEY = b"\x01\x02\x03\x04"


def masked(first, payload=b"", key=KEY):
    """Return a client's frame."""
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65536:
        head = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + key + (apply_mask(payload, key) if payload else b"")


def read(stream, *, limit=LIMIT, sizes=None):
    """Feed a stream in pieces; return all events."""
    reader, events, at = Reader(limit), [], 0
    for size in sizes or [len(stream)]:
        events += reader.feed(stream[at : at + size])
        at += size
    return events


# ── what is read ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 127, 65535, 65536])
def test_each_way_to_write_a_length_is_read(size):
    assert read(masked(0x82, b"x" * size), limit=70000) == [b"x" * size]


def test_a_message_in_fragments_with_control_frames_in_between():
    stream = b"".join(
        [
            masked(0x01, "grü".encode()[:3]),
            masked(0x89, b"are you there"),
            masked(0x00, "grü".encode()[3:]),
            masked(0x8A),
            masked(0x80, "ße".encode()),
        ]
    )
    expected = [Ping(b"are you there"), Pong(b""), "grüße"]
    assert read(stream) == expected
    assert read(stream, sizes=[1] * len(stream)) == expected


def test_after_a_close_nothing_more_is_read():
    stream = masked(0x88, b"\x03\xe8bye") + masked(0x81, b"too late")
    assert read(stream) == [Close(1000, "bye")]


def test_a_close_without_a_code_is_1005():
    assert read(masked(0x88)) == [Close(1005, "")]


# ── what is refused ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("stream", "code", "word"),
    [
        (b"\x81\x05hello", 1002, "masked"),
        (masked(0xC1, b"x"), 1002, "reserved"),
        (masked(0x83, b"x"), 1002, "opcode 3"),
        (masked(0x8B, b"x"), 1002, "opcode 11"),
        (masked(0x09, b"x"), 1002, "fragmented"),
        (masked(0x89, b"x" * 126), 1002, "125"),
        (masked(0x80, b"x"), 1002, "continuation"),
        (masked(0x01, b"x") + masked(0x81, b"y"), 1002, "before the last one ended"),
        (masked(0x88, b"\x03"), 1002, "code"),
        (masked(0x88, b"\x03\xed"), 1002, "code"),
        (masked(0x88, b"\x03\xe8\xff"), 1007, "UTF-8"),
        (masked(0x81, b"\xff"), 1007, "UTF-8"),
        (masked(0x82, b"x" * 501), 1009, "501"),
        (b"\x82\xff" + b"\xff" * 8, 1002, "first bit"),
    ],
)
def test_a_broken_rule_ends_in_the_right_code(stream, code, word):
    for sizes in ([len(stream)], [1] * len(stream)):
        (violation,) = read(stream, sizes=sizes)
        assert violation.code == code
        assert word in violation.reason


def test_fragments_together_are_measured_against_the_limit():
    stream = masked(0x02, b"x" * 300) + masked(0x80, b"x" * 201)
    assert read(stream) == [Violation(1009, "message of 501 bytes is over the limit of 500")]


def test_text_that_can_not_be_utf_8_any_more_is_refused_before_the_frame_is_whole():
    start = masked(0x81, b"ok\xff" + b"x" * 100)[:9]
    (violation,) = read(start)
    assert violation.code == 1007


def test_an_oversized_frame_is_refused_at_its_header():
    header = masked(0x82, b"x" * 600)[:4]
    (violation,) = read(header)
    assert violation.code == 1009


# ── what is written ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_what_is_written_is_unmasked_and_whole(size):
    text = "x" * size
    frame = frames.text_frame(text)
    client = ServerProtocol(state=State.OPEN)  # reads frames; only masking differs
    assert frame[0] == 0x81
    assert not frame[1] & 0x80
    assert frame.endswith(text.encode())
    assert len(frame) - size == (2 if size < 126 else 4 if size < 65536 else 10)
    assert client.state is State.OPEN


def test_control_frames_are_written():
    assert frames.ping_frame(b"a") == b"\x89\x01a"
    assert frames.pong_frame(b"b") == b"\x8a\x01b"
    assert frames.close_frame(1000, "bye") == b"\x88\x05\x03\xe8bye"
    assert frames.close_frame(1005) == b"\x88\x00"
    assert frames.binary_frame(b"c") == b"\x82\x01c"


# ── another implementation agrees ─────────────────────────────────────────────────────────────


def verdict_of_websockets(stream, sizes):
    """Return what the websockets library makes of a stream."""
    protocol, at = ServerProtocol(state=State.OPEN, max_size=LIMIT), 0
    for size in sizes:
        protocol.receive_data(stream[at : at + size])
        at += size
        if protocol.parser_exc or protocol.close_rcvd:
            break
    events, parts, kind = [], [], None
    for frame in protocol.events_received():
        if frame.opcode is Opcode.PING:
            events.append(Ping(bytes(frame.data)))
        elif frame.opcode is Opcode.PONG:
            events.append(Pong(bytes(frame.data)))
        elif frame.opcode is Opcode.CLOSE:
            close = protocol.close_rcvd
            return [*events, Close(close.code, close.reason)]
        else:
            if frame.opcode is not Opcode.CONT:
                parts, kind = [], frame.opcode
            parts.append(bytes(frame.data))
            if frame.fin:
                whole = b"".join(parts)
                try:
                    events.append(whole.decode() if kind is Opcode.TEXT else whole)
                except UnicodeDecodeError:
                    return [*events, "refused"]
    return [*events, "refused"] if protocol.parser_exc else events


def our_verdict(stream, sizes):
    events = read(stream, sizes=sizes)
    return ["refused" if isinstance(event, Violation) else event for event in events]


payloads = st.one_of(
    st.binary(max_size=140),
    st.text(max_size=60).map(str.encode),
    st.sampled_from([b"\x03\xe8", b"\x03\xed", b"\x0f\xa0bye", b"\xf0\x9f", b"x" * 300]),
)
one_frame = st.builds(
    masked,
    st.one_of(st.sampled_from([0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8A, 0x88]),
              st.integers(0, 255)),
    payloads,
    st.binary(min_size=4, max_size=4),
)  # fmt: skip


@given(st.lists(one_frame, max_size=6), st.randoms(use_true_random=False), st.booleans())
def test_another_library_comes_to_the_same_verdict_in_any_chunking(streams, rng, damage):
    """We may refuse earlier: text that can't be UTF-8 any more, before its message has ended."""
    stream = bytearray(b"".join(streams))
    if damage and stream:
        stream[rng.randrange(len(stream))] = rng.randrange(256)
    stream, sizes = bytes(stream), []
    while sum(sizes) < len(stream):
        sizes.append(rng.choice([1, 2, 3, 7, 50, 1000]))
    theirs, ours = verdict_of_websockets(stream, sizes), our_verdict(stream, sizes)
    if ours != theirs and ours[-1:] == ["refused"]:
        (violation,) = [e for e in read(stream, sizes=sizes) if isinstance(e, Violation)]
        assert violation.code == 1007
        assert theirs[: len(ours) - 1] == ours[:-1]
    else:
        assert ours == theirs


@given(st.binary(max_size=300), st.integers(1, 20))
def test_no_bytes_whatever_make_it_raise(stream, size):
    pieces = [size] * (len(stream) // size + 1)
    for event in read(stream, sizes=pieces):
        assert isinstance(event, str | bytes | Ping | Pong | Close | Violation)


@given(
    st.lists(st.one_of(st.text(max_size=200), st.binary(max_size=200)), max_size=8), st.randoms()
)
def test_messages_come_out_as_they_went_in_however_they_are_cut(messages, rng):
    stream = b""
    for message in messages:
        data = message.encode() if isinstance(message, str) else message
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(3)))
        parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        opcode = 1 if isinstance(message, str) else 2
        for index, part in enumerate(parts):
            first = (0x80 if index == len(parts) - 1 else 0) | (0 if index else opcode)
            stream += masked(first, part, random.Random(index).randbytes(4))
    sizes = []
    while sum(sizes) < len(stream):
        sizes.append(rng.choice([1, 5, 64, 4096]))
    assert read(stream, limit=1000, sizes=sizes) == messages
