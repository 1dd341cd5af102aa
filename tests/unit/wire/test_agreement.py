"""Our reader against another library's, on inputs that clients could send and on others.

The longer runs are in tests/fuzz; so are the inputs, and the differences that are explained.
"""

from __future__ import annotations

import random
import sys
import types
import zlib
from pathlib import Path

import agreement
import pytest
from agreement import EXPLAINED, DisagreementError, check_alone, compare
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import LIMIT, Input, make, masked

from backchannel.wire import deflate, frames

HELLO = deflate.compress(b"Hello")


def squeezed(data, level=6, flush=zlib.Z_SYNC_FLUSH):
    squeezer = zlib.compressobj(level, wbits=-15)
    return squeezer.compress(data) + squeezer.flush(flush)


@settings(max_examples=400)
@given(st.binary(max_size=200))
def test_it_comes_to_the_same_verdict_as_another_library_in_any_chunking(tape):
    given = make(tape)
    events = check_alone(given, [len(given.stream)], [1] * len(given.stream), [7] * 400)
    compare(given, events)


@settings(max_examples=200)
@given(st.binary(max_size=120), st.booleans(), st.lists(st.integers(1, 40), max_size=40))
def test_it_comes_to_the_same_verdict_on_bytes_that_mean_nothing(stream, deflate, sizes):
    given = Input(stream, [*sizes, len(stream) or 1], deflate)
    compare(given, check_alone(given))


@pytest.mark.parametrize("deflate", [False, True])
def test_most_inputs_have_something_in_them(deflate):
    """Or the properties above would pass for want of anything to read."""
    rng, kinds = random.Random(5), dict.fromkeys(["str", "bytes", "Ping", "Pong", "Close"], 0)
    codes = dict.fromkeys([1002, 1007, 1009], 0)
    for _ in range(3000):
        given = make(rng.randbytes(rng.choice((20, 40, 80, 160))))
        for event in agreement.read(given) if given.deflate == deflate else ():
            if isinstance(event, frames.Violation):
                codes[event.code] += 1
            else:
                kinds[type(event).__name__] += 1
    assert min(*kinds.values(), *codes.values()) > 30, (kinds, codes)


# ── each difference, by an example ────────────────────────────────────────────────────────────

DIFFERENCES = {
    "a length that is written in more bytes than it needs": masked(0x81, b"hi", width=2),
    "a close between the fragments of a message": masked(0x01, b"hi") + masked(0x88),
    "several rules broken by one frame": masked(0x91, b"x" * (LIMIT + 1)),
    "a frame refused before it has come whole": masked(0x91, b"hi")[:3],
    "text refused before its message has ended": masked(0x01, b"\xff") + masked(0x89),
    "damaged compressed data": masked(0xC1, b"\xff\xff\xff"),
    "compressed data cut short": masked(0xC1, HELLO[:4]),
    "a message with more after a last block": masked(
        0xC1, squeezed(b"Hello", flush=zlib.Z_FINISH) * 2 + b"\x00"
    ),
    "a message within the limit that is sent in more bytes": masked(
        0xC2, squeezed(bytes(range(256)) + bytes(LIMIT - 256), level=0)[:-4]
    ),
    "a control frame in a message that is nearly at the limit": (
        masked(0x01, b"x" * (LIMIT - 1)) + masked(0x89, b"ping") + masked(0x80, b"x")
    ),
    "a message over the limit when inflated": (
        masked(0x42, squeezed(b"x" * (LIMIT + 1))[:-6]) + masked(0x89)
    ),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_each_difference_exists(name):
    stream = DIFFERENCES[name]
    for sizes in ([len(stream)], [1] * len(stream)):
        assert compare(Input(stream, sizes, deflate=True)) == name


# ── it can fail ───────────────────────────────────────────────────────────────────────────────

MISTAKES = {
    "masks are not turned": ("message.mask[turn:] + message.mask[:turn]", "message.mask"),
    "a header that came in two pieces is lost": ("self._tail + data, b", "data, b"),
    "unmasked frames are read": ("if second < _MASKED", "if False"),
    "the end of a fragment ends the message": ("message.final and not message.left", "not message.left"),
    "one byte too few fits": ("if size > most:", "if size >= most:"),
    "control frames may have 126 bytes": ("if size > 125:\n            raise", "if size > 126:\n            raise"),
    "compressed continuations are read": ("if opcode not in {_TEXT, _BINARY}", "if opcode >= _CLOSE"),
    "after a close it reads on": ("self._tail = self._message = None\n        return", "pass\n        return"),
    "close code 5000 is valid": ("code <= 4999", "code <= 5000"),
    "half a character is not UTF-8": ("last and not is_over and not fault", "True"),
    "half a character is UTF-8": ("last and not is_over and not fault", "False"),
    "half a character is lost": ("data = self.rest + chunk", "data = chunk"),
    "UTF-8 is passed over": ('"strict", last', '"replace", last'),
    "inflation has no limit": ("is_over = self.size > most", "is_over = False"),
    "what follows a last block is lost": ("data = self._zlib.unused_data", 'data = b""'),
    "a cut message is delivered": ("if last and self._came", "if False and self._came"),
    "what came before the damage is lost": ("_until_damage(before, data, most)", 'b""'),
    "a tail that was not left out is an error": ("_END if self._came == _TAIL else ", ""),
}  # fmt: skip


@pytest.fixture
def broken_reader(request, monkeypatch):
    """Our reader with a mistake in it."""
    right, wrong = MISTAKES[request.param]
    modules = []
    for original in (deflate, frames):
        text = Path(original.__file__).read_text()
        modules.append((types.ModuleType(f"broken_{original.__name__}"), text))
    assert sum(right in text for _, text in modules) == 1, "the mistake can't be made any more"
    for module, text in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(text.replace(right, wrong), module.__name__, "exec"), module.__dict__)
    module = modules[1][0]
    module.deflate = modules[0][0]
    for name in ("Ping", "Pong", "Close", "Violation"):
        setattr(module, name, getattr(frames, name))
    monkeypatch.setattr(agreement, "Reader", module.Reader)


def compare_many(runs):
    rng = random.Random(11)
    for _ in range(runs):
        given = make(rng.randbytes(rng.choice((20, 40, 80, 160))))
        compare(given, check_alone(given))


@pytest.mark.parametrize("broken_reader", MISTAKES, indirect=True)
@pytest.mark.usefixtures("broken_reader")
def test_a_reader_with_a_mistake_is_found_out():
    with pytest.raises(DisagreementError):
        compare_many(20_000)


def test_reserved_bits_on_a_frame_that_is_over_the_limit_with_its_tail_are_two_rules_broken():
    payload = b"\x9b\xea\xfeB\xff\xea!\xf1Q\xca4\xf4N\xc5"  # 269 bytes; with the tail, over 300
    stream = masked(0xE2, payload)
    given = Input(stream, [len(stream)], deflate=True)
    assert compare(given) == "several rules broken by one frame"
