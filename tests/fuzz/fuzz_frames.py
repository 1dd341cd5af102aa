"""Fuzzes the frame reader, by itself and against the websockets library. See README.md here.

python tests/fuzz/fuzz_frames.py --runs 1000000
python tests/fuzz/fuzz_frames.py --runs 1000000 --engine random --seed 7
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import time
import zlib
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from tempfile import gettempdir

HERE = Path(__file__).resolve().parent
LONGEST_TAPE = 160


def say(text: str) -> None:
    """Print a line at once, also into a file."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Run:
    """Checks one input after the other, and counts."""

    def __init__(self, runs: int, headline: str):
        import agreement
        import inputs

        self.make = inputs.make
        self.agreement = agreement
        self.runs = runs
        self.headline = headline
        self.done = 0
        self.counts: Counter[str] = Counter()
        self.began = time.time()

    def one(self, tape: bytes) -> None:
        """Check the input that a tape stands for; raises where something is wrong."""
        given = self.make(tape)
        try:
            ours = self.agreement.check_alone(given)
            name = self.agreement.compare(given, ours)
        except BaseException:
            say(f"Try it alone: fuzz_frames.py --tape {tape.hex()}")
            raise
        self.counts[name or "the two agree"] += 1
        self.done += 1
        if self.done % 250_000 == 0 and self.done < self.runs:
            say(f"{self.done:,} inputs, {self.rate():,.0f} a second")

    def rate(self) -> float:
        """Return inputs a second."""
        return self.done / (time.time() - self.began)

    def report(self) -> None:
        """Print what was seen, as a table for RESULTS.md."""
        say(f"\n{self.headline}, {self.done:,} inputs, {self.rate():,.0f} a second\n")
        say("| inputs | what the two readers made of it |\n|---:|---|")
        for name, count in self.counts.most_common():
            say(f"| {count:,} | {name} |")
        say("\nNo crash, and no difference without an explanation.")


def with_random(run: Run, seed: int) -> None:
    """Try tapes as they fall."""
    rng = random.Random(seed)
    while run.done < run.runs:
        run.one(rng.randbytes(rng.choice((20, 40, 80, 160))))


def with_atheris(run: Run, seed: int, corpus: list[str]) -> None:
    """Try tapes that reach code which none before has reached. Does not return."""
    import atheris

    def one(tape: bytes) -> None:
        run.one(tape)
        if run.done == run.runs:
            run.report()
            os._exit(0)  # libFuzzer ends no other way without being told that something is wrong

    options = [
        f"-seed={seed}",
        f"-max_len={LONGEST_TAPE}",
        "-len_control=0",
        f"-artifact_prefix={gettempdir()}/",
    ]
    atheris.Setup([sys.argv[0], *options, *corpus], one)
    atheris.Fuzz()


def main() -> None:
    """Fuzz as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs to try")
    parser.add_argument("--seed", type=int, default=1, help="of what is random")
    parser.add_argument("--engine", choices=("atheris", "random"), default="atheris")
    parser.add_argument("--tape", help="try one tape only, in hexadecimal digits")
    parser.add_argument(
        "corpus", nargs="*", help="folders for libFuzzer: the first one is added to"
    )
    given = parser.parse_args()
    sys.path.insert(0, str(HERE))
    if given.engine == "atheris" and given.tape is None:
        import atheris

        with atheris.instrument_imports(include=["backchannel.wire"]):
            import agreement  # noqa: F401 - from here on, it is watched
    versions = f"CPython {platform.python_version()}, zlib {zlib.ZLIB_RUNTIME_VERSION}, websockets {version('websockets')}"
    run = Run(given.runs, f"{given.engine}, seed {given.seed}, {versions}")
    if given.tape is not None:
        run.one(bytes.fromhex(given.tape))
        run.report()
    elif given.engine == "atheris":
        with_atheris(run, given.seed, given.corpus)
    else:
        with_random(run, given.seed)
        run.report()


if __name__ == "__main__":
    main()
