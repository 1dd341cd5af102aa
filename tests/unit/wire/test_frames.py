"""Frames: what is read in any chunking, what is refused, what is written."""

from __future__ import annotations

import gc
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs import masked
from websockets.protocol import State
from websockets.server import ServerProtocol

from backchannel.wire import deflate, frames
from backchannel.wire.frames import Close, Ping, Pong, Reader, Violation

LIMIT = 500


def read(stream, *, limit=LIMIT, sizes=None, deflate=False):
    """Feed a stream in pieces; return all events."""
    reader, events, at = Reader(limit, deflate=deflate), [], 0
    for size in sizes or [len(stream)]:
        events += reader.feed(stream[at : at + size])
        at += size
    return events


# ── what is read ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 127, 65535, 65536])
def test_each_way_to_write_a_length_is_read(size):
    assert read(masked(0x82, b"x" * size), limit=70000) == [b"x" * size]


@pytest.mark.parametrize("size", [60, 100, 300])
def test_what_looks_like_a_message_within_one_is_a_part_of_it(size):
    inner = masked(0x82, b"x" * size)
    head = bytes([0x82, 0xFE]) + (2 * len(inner)).to_bytes(2, "big") + bytes(4)
    stream = head + 2 * inner
    assert read(stream, limit=1000, sizes=[8, len(inner), len(inner)]) == [2 * inner]


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


def test_a_reader_between_messages_holds_nothing_of_its_own():
    reader = Reader(LIMIT, deflate=True)
    for stream in (
        masked(0x81, b"hello"),
        masked(0x01, b"he") + masked(0x80, b"llo"),
        masked(0xC1, deflate.compress(b"hello")),
        masked(0x41, deflate.compress(b"hello")) + masked(0x80, b""),
    ):
        for byte in stream[:-1]:
            assert reader.feed(bytes((byte,))) == []
        assert reader.feed(stream[-1:]) == ["hello"]
        held = [thing for thing in gc.get_referents(reader) if thing is not Reader]
        assert all(thing in {LIMIT, True, 132, b"", None} for thing in held), held
        assert not hasattr(reader, "__dict__")


@pytest.mark.parametrize("first", [0x01, 0x02, 0x41])
def test_a_message_in_tiny_fragments_takes_no_more_memory_than_its_bytes(first):
    size, payload = 50_000, b"xy" * 25_000
    if first == 0x41:
        payload = deflate.compress(random.Random(1).randbytes(size // 2).hex().encode())
    reader = Reader(size, deflate=True)
    stream = masked(first) + b"".join(
        masked(0, payload[at : at + 2]) for at in range(0, len(payload), 2)
    )
    tracemalloc.start()
    try:
        assert reader.feed(stream) == []
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 1.3 * size + 64_000 * (first == 0x41)  # zlib's window
    assert len(reader.feed(masked(0x80))) == 1


# ── what is refused ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("stream", "code", "word"),
    [
        (b"\x81\x05hello", 1002, "masked"),
        (masked(0xC1, b"x"), 1002, "reserved"),
        (masked(0xA1, b"x"), 1002, "reserved"),
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
        (masked(0x82, b"x" * 125, width=2), 1002, "few bytes"),
        (masked(0x82, b"x" * 125, width=8), 1002, "few bytes"),
        (masked(0x82, b"x" * 200, width=8), 1002, "few bytes"),
        (b"\x82\xff" + (65535).to_bytes(8, "big"), 1002, "few bytes"),
        (b"\x82\xff" + b"\xff" * 8, 1002, "first bit"),
    ],
)
def test_a_broken_rule_ends_in_the_right_code(stream, code, word):
    for sizes in ([len(stream)], [1] * len(stream)):
        (violation,) = read(stream, sizes=sizes)
        assert violation.code == code
        assert word in violation.reason


def test_the_shortest_frames_are_measured_against_the_limit_too():
    assert read(masked(0x81, b"x" * 10), limit=10) == ["x" * 10]
    expected = [Violation(1009, "message of 11 bytes is over the limit of 10")]
    assert read(masked(0x81, b"x" * 11), limit=10) == expected


@pytest.mark.parametrize(
    ("stream", "word"),
    [
        (masked(0xE1, b"x"), "no extension uses"),
        (masked(0xA1, b"x"), "no extension uses"),
        (masked(0x91, b"x"), "no extension uses"),
        (masked(0xC9, b"x"), "starts no message"),
        (masked(0xC8, b""), "starts no message"),
        (masked(0x41, b"\x00") + masked(0xC0, b"\x00"), "starts no message"),
        (masked(0x01, b"x") + masked(0xC0, b"\x00"), "starts no message"),
    ],
)
def test_only_a_messages_first_frame_can_be_marked_as_compressed(stream, word):
    (violation,) = read(stream, deflate=True)
    assert violation.code == 1002
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
    frame = frames.message_frame(text)
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
    assert frames.message_frame(b"c") == b"\x82\x01c"


# ── whatever comes ────────────────────────────────────────────────────────────────────────────


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
