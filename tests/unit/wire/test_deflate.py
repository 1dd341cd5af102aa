"""permessage-deflate: what is agreed on, what is written, what is read, and where that stops."""

from __future__ import annotations

import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs import masked
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.headers import parse_extension
from websockets.protocol import Protocol, Side

from backchannel.wire import deflate, frames
from backchannel.wire.deflate import Inflater, compress, negotiate
from backchannel.wire.frames import Ping, Reader, Violation

LIMIT = 1000
PLAIN = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
SQUARES = " ".join(str(number * number) for number in range(200)).encode()
HELLO = bytes.fromhex("f248cdc9c90700")


def read(stream, *, limit=LIMIT):
    """Read a stream in one piece and byte by byte, which must come to the same."""
    events = Reader(limit, deflate=True).feed(stream)
    reader, again = Reader(limit, deflate=True), []
    for byte in stream:
        again += reader.feed(bytes((byte,)))
    assert again == events
    return events


def squeezed(data, *, flush=zlib.Z_SYNC_FLUSH, bits=15):
    squeezer = zlib.compressobj(wbits=-bits)
    return squeezer.compress(data) + squeezer.flush(flush)


# ── the handshake ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        # Chromium and Firefox; Safari; websockets; autobahn.
        ("permessage-deflate; client_max_window_bits", PLAIN),
        ("permessage-deflate", PLAIN),
        ("permessage-deflate; client_no_context_takeover; client_max_window_bits", PLAIN),
        ("permessage-deflate; server_no_context_takeover", PLAIN),
        ("permessage-deflate; client_max_window_bits=8", PLAIN),
        ("permessage-deflate; server_max_window_bits=15", f"{PLAIN}; server_max_window_bits=12"),
        ("permessage-deflate; server_max_window_bits=12", f"{PLAIN}; server_max_window_bits=12"),
        ('permessage-deflate; server_max_window_bits="13"', f"{PLAIN}; server_max_window_bits=12"),
        # An offer that leaves out our window; the next one that fits is taken.
        ("permessage-deflate; server_max_window_bits=11", None),
        ("permessage-deflate; server_max_window_bits=8", None),
        ("permessage-deflate; server_max_window_bits=9, permessage-deflate", PLAIN),
        ("x-webkit-deflate-frame, permessage-deflate", PLAIN),
        (" , permessage-deflate ,", PLAIN),
        # RFC 7692 §7.1: such an offer is declined.
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits=012", None),
        ("permessage-deflate; client_max_window_bits=7", None),
        ("permessage-deflate; client_max_window_bits=1e1", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits=9", None),
        ("permessage-deflate; unheard_of", None),
        ("permessage-deflate; unheard_of, permessage-deflate", PLAIN),
        # Nothing that could be accepted.
        ("", None),
        (" , ", None),
        ("permessage-bzip2", None),
        ("permessage-deflate;", None),
        ("permessage-deflate, ===", None),
        ('permessage-deflate; server_max_window_bits="1 2"', None),
    ],
)
def test_the_first_offer_that_fits_is_accepted(offers, answer):
    assert negotiate(offers) == answer


def test_another_window_admits_other_offers():
    offer = "permessage-deflate; server_max_window_bits=9"
    assert negotiate(offer, 9) == f"{PLAIN}; server_max_window_bits=9"
    assert negotiate(offer, 10) is None


@given(st.text(max_size=80))
def test_no_header_whatever_makes_it_raise(offers):
    assert negotiate(offers) in {None, PLAIN}
    assert negotiate(f"permessage-deflate; {offers}") in {None, PLAIN}


@pytest.mark.parametrize("server_bits", [None, 12, 15])
@pytest.mark.parametrize("client_bits", [None, True, 9, 15])
@pytest.mark.parametrize("takeover", [False, True])
def test_another_librarys_client_takes_the_answer_and_both_ways_work(
    server_bits, client_bits, takeover
):
    factory = ClientPerMessageDeflateFactory(takeover, takeover, server_bits, client_bits)
    offer = "; ".join(
        ["permessage-deflate", *(f"{n}={v}" if v else n for n, v in factory.get_request_params())]
    )
    ((_, answer),) = parse_extension(negotiate(offer))
    client = Protocol(Side.CLIENT)
    client.extensions = [factory.process_response_params(answer, [])]
    reader = Reader(10_000, deflate=True)
    for text in ("grüße " * 300, "", "short", "grüße " * 300):
        frame = frames.compressed(frames.message_frame(text), 0)
        client.receive_data(frame)
        client.send_text(text.encode())
        assert reader.feed(b"".join(client.data_to_send())) == [text]
    assert [bytes(f.data).decode()[:6] for f in client.events_received()] == [
        "grüße ", "", "short", "grüße ",
    ]  # fmt: skip


# ── what is written ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("window", range(9, 16))
def test_what_is_compressed_stays_in_its_window(window):
    payload = b"".join(str(number).encode() for number in range(9000)) * 2
    inflater = zlib.decompressobj(-window)
    assert inflater.decompress(compress(payload, window) + b"\x00\x00\xff\xff") == payload


@given(st.binary(max_size=600), st.integers(0, 700), st.booleans())
def test_a_compressed_frame_is_the_smaller_one_and_reads_the_same(data, threshold, repeat):
    plain = frames.message_frame(data * (1 + 50 * repeat))
    frame = frames.compressed(plain, threshold)
    size = len(data) * (1 + 50 * repeat)
    if frame is not plain:
        assert size >= threshold
        assert len(frame) < len(plain)
        assert frame[0] == 0xC2
    client = Protocol(Side.CLIENT)
    client.extensions = [ClientPerMessageDeflateFactory().process_response_params([], [])]
    client.receive_data(frame)
    (event,) = client.events_received()
    assert (event.opcode, bytes(event.data)) == (Opcode.BINARY, data * (1 + 50 * repeat))


@pytest.mark.parametrize("size", [1024, 65535, 65536, 70_000])
def test_the_threshold_is_measured_in_bytes_of_the_message(size):
    plain = frames.message_frame("x" * size)
    assert frames.compressed(plain, size + 1) is plain
    frame = frames.compressed(plain, size)
    assert frame[0] == 0xC1
    assert len(frame) < size // 10


def test_what_does_not_get_smaller_is_left_as_it_is():
    noise = frames.message_frame(bytes(range(256)) * 4)
    assert frames.compressed(noise, 0) is not noise
    noise = frames.message_frame(random.Random(1).randbytes(2000))
    assert frames.compressed(noise, 0) is noise


# ── what is read ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        pytest.param(HELLO.hex(), "Hello", id="7.2.3.1: one block"),
        pytest.param("000500faff48656c6c6f00", "Hello", id="7.2.3.3: not compressed"),
        pytest.param("f348cdc9c9070000", "Hello", id="7.2.3.4: BFINAL"),
        pytest.param("f2480500 0000ffff cac9c90700", "Hello", id="7.2.3.5: two blocks"),
        pytest.param("00", "", id="7.2.3.6: empty"),
        pytest.param("f348cdc9c90700 f348cdc9c90700 00", "HelloHello", id="two last blocks"),
        pytest.param("f348cdc9c90700", "Hello", id="BFINAL, and not filled up"),
        pytest.param("f248cdc9c90700 0000ffff", "Hello", id="the tail is not left out"),
        pytest.param("010000ffff", "", id="an empty last block that looks like a tail"),
        pytest.param("", "", id="nothing at all"),
    ],
)  # fmt: skip
def test_what_clients_make_of_a_message_is_read(payload, text):
    assert read(masked(0xC1, bytes.fromhex(payload))) == [text]


def test_fragments_are_cut_anywhere_and_only_the_first_is_marked():
    # RFC 7692 §7.2.3.1 and §7.2.3.2
    for cut in range(len(HELLO) + 1):
        stream = masked(0x41, HELLO[:cut]) + masked(0x89) + masked(0x80, HELLO[cut:])
        assert read(stream) == [Ping(b""), "Hello"]
        assert read(stream + masked(0x81, b"plain")) == [Ping(b""), "Hello", "plain"]


def test_a_message_does_not_know_the_one_before():
    squeezer = zlib.compressobj(wbits=-15)
    first = squeezer.compress(b"Hello") + squeezer.flush(zlib.Z_SYNC_FLUSH)
    second = squeezer.compress(b"Hello") + squeezer.flush(zlib.Z_SYNC_FLUSH)
    assert len(second) < len(first)
    events = read(masked(0xC1, first[:-4]) + masked(0xC1, second[:-4]))
    assert events == ["Hello", Violation(1007, "compressed message is damaged")]


@pytest.mark.parametrize("bits", range(9, 16))
def test_clients_may_use_any_window(bits):
    data = random.Random(1).randbytes((1 << bits) - 300)  # found again as far back as it goes
    payload = squeezed(data * 2, bits=bits)[:-4]
    assert len(payload) < 1.3 * len(data)
    assert read(masked(0xC2, payload), limit=70_000) == [data * 2]
    started_anew = masked(0xC2, squeezed(b"Hello", flush=zlib.Z_FINISH) + payload)
    assert read(started_anew, limit=70_000) == [b"Hello" + data * 2]


# ── where reading stops ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\xff\xff\xff", "compressed message is damaged"),
        (HELLO[:4], "compressed message is cut short"),
        (squeezed(b"x" * 40 + b"y" * 40, bits=9)[:6], "compressed message is cut short"),
        (compress(SQUARES)[:12], "compressed message is cut short"),  # within a block's header
        (b"\x03", "compressed message is cut short"),  # the tail would complete a last block
        (b"\x00\x05\x00\xfa\xffHel", "compressed message is cut short"),
        (b"\x00\x04\x00\xfb\xff", "compressed message is cut short"),  # the tail would fill it
        (b"\x03\x00" * 300, "compressed message has more than 256 last blocks"),
        (compress(b"fine, and then \xff"), "text is not valid UTF-8"),
        (compress("cut é".encode()[:-1]), "text is not valid UTF-8"),
    ],
)
def test_what_can_not_be_inflated_to_text_is_1007(payload, reason):
    assert read(masked(0xC1, payload)) == [Violation(1007, reason)]
    assert read(masked(0x41, payload) + masked(0x80)) == [Violation(1007, reason)]


def test_text_that_can_not_be_utf_8_any_more_is_refused_before_the_message_has_come():
    flushed = squeezed(b"fine, and then \xff")
    events = Reader(LIMIT, deflate=True).feed(
        masked(0x41, flushed + b"and so on")[: len(flushed) + 6]
    )
    assert events == [Violation(1007, "text is not valid UTF-8")]


def test_a_message_is_measured_as_it_is_inflated():
    over = [Violation(1009, "message is over the limit of 1000 bytes when it is inflated")]
    assert read(masked(0xC1, compress(b"x" * 1000))) == ["x" * 1000]
    assert read(masked(0xC1, compress(b"x" * 1001))) == over
    halves = compress(b"x" * 1001)
    assert read(masked(0x41, halves[:5]) + masked(0x80, halves[5:])) == over
    assert read(masked(0xC1, squeezed(b"x" * 600, flush=zlib.Z_FINISH) * 2)) == over


def test_what_can_not_be_compressed_may_be_a_little_larger_as_it_is_sent():
    data = random.Random(1).randbytes(LIMIT)
    stored = zlib.compressobj(0, wbits=-15)
    payload = (stored.compress(data) + stored.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(payload) > LIMIT
    assert read(masked(0xC2, payload)) == [data]


def test_empty_blocks_without_end_are_refused():
    (violation,) = read(masked(0x42, b"\x00\x00\x00\xff\xff" * 500))
    assert violation == Violation(
        1009, "compressed message of 2500 bytes is over the limit of 1000"
    )
    stream = (
        masked(0x42, b"\x00\x00\x00\xff\xff" * 20) + masked(0, b"\x00\x00\x00\xff\xff" * 20) * 30
    )
    (violation,) = read(stream)
    assert violation.code == 1009


def test_a_bomb_costs_no_more_than_the_limit():
    limit = 1 << 16
    bomb = masked(0xC2, squeezed(bytes(64 << 20))[:-4])
    assert len(bomb) < limit * 2
    tracemalloc.start()
    try:
        events = []
        reader = Reader(limit, deflate=True)
        for at in range(0, len(bomb), 4096):
            events += reader.feed(bomb[at : at + 4096])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert events == [
        Violation(1009, f"message is over the limit of {limit} bytes when it is inflated")
    ]
    assert peak < 8 * limit


@given(
    st.lists(
        st.one_of(st.binary(max_size=30), st.builds(compress, st.binary(max_size=300))), max_size=5
    ),
    st.integers(0, 200),
    st.sampled_from([zlib.Z_SYNC_FLUSH, zlib.Z_FINISH]),
)
def test_an_inflater_never_gives_more_than_one_byte_too_many(pieces, room, flush):
    inflater, left = Inflater(), room
    for piece in [*pieces, squeezed(b"x" * 20, flush=flush) * 20]:
        inflated = inflater.feed(piece, left, last=False)
        assert len(inflated) <= left + 1
        left -= len(inflated)
        if left < 0 or inflater.fault:
            break


def test_nothing_is_inflated_that_was_not_agreed_on():
    (violation,) = Reader(LIMIT).feed(masked(0xC1, HELLO))
    assert violation.code == 1002
    assert deflate.WINDOW_BITS == 12
