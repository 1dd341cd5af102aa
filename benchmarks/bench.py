"""Measure Backchannel beside other servers on this machine: `python benchmarks/bench.py`.

Each run starts a fresh server on one core and the load generator (loadgen/) on another. The
servers take turns, round by round, so that what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import make
import picture
import report
from figures import Runs
from peers import PEERS
from plan import SCENARIOS
from serve import FailedError, allow_many_files, one_run

RESULTS = make.HERE / "RESULTS.md"
PICTURE = make.HERE / "results.svg"
RAW = make.BUILD / "results.json"
CHOSEN = make.BUILD / "chosen.json"


def main() -> int:
    """Run what the command line asks for; 1 when a run failed."""
    options = read_arguments()
    if options.render:
        write_pages(options.json)
        return 0
    prepare()
    failures: list[str] = []
    for name in options.scenarios:
        peers = [peer for peer in SCENARIOS[name].peers if is_wanted(peer, options)]
        if not peers:
            continue
        runs = measure(name, peers, options, failures)
        if not runs:
            continue
        keep(options.json, name, runs, options)
        print(f"\n{report.section(name, runs)}\n", flush=True)
    for failure in failures:
        print(f"FAILED: {failure}\n")
    print(f"The raw figures are in {options.json}.")
    if options.write and not failures:
        write_pages(options.json)
    elif options.write:
        print(f"{RESULTS.name} was not written: {len(failures)} runs failed.")
    return 1 if failures else 0


def read_arguments() -> argparse.Namespace:
    """Read the command line; scenario and peer names come out as lists."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(SCENARIOS)
    known = {*SCENARIOS, *(group(name) for name in SCENARIOS)}
    parser.add_argument("scenarios", nargs="*", help=f"all when absent: {names}; or fanout, echo…")
    parser.add_argument("--peers", help=f"only these, with commas: {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, help="5, or what the scenario says")
    parser.add_argument("--seconds", type=float, help="of one run (2)")
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds before it (%(default)s)")
    parser.add_argument("--json", type=Path, help=f"raw figures, added to ({RAW.name})")
    parser.add_argument(
        "--write", action="store_true", help=f"write {RESULTS.name} and its picture"
    )
    parser.add_argument("--render", action="store_true", help="the same, without measuring")
    options = parser.parse_args()
    asked = options.scenarios or list(SCENARIOS)
    options.scenarios = [n for n in SCENARIOS if n in asked or group(n) in asked]
    # A few of the peers shall not take the place of all.
    options.json = options.json or (CHOSEN if options.peers else RAW)
    options.peers = options.peers.split(",") if options.peers else list(PEERS)
    if unknown := set(asked) - known:
        parser.error(f"unknown scenario {', '.join(sorted(unknown))}; there are {names}")
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"unknown peer {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    if (options.rounds or 1) < 1 or (options.seconds or 1) < 0.1 or options.warmup < 0:
        parser.error("--rounds must be at least 1, --seconds 0.1")
    if not options.json.parent.is_dir() and options.json.parent != make.BUILD:
        parser.error(f"there is no folder {options.json.parent}")
    return options


def group(name: str) -> str:
    """Return the part of a scenario's name that stands for several."""
    return name.partition("-")[0]


def prepare() -> None:
    """Build the load generator, allow thousands of sockets."""
    if sys.platform != "linux":
        sys.exit("The load generator needs Linux (epoll).")
    if lack := make.lack_of(make.loadgen):
        sys.exit(f"The load generator: {lack}")
    if lack := make.lack_of(make.own):
        sys.exit(lack)
    allow_many_files()
    if len(os.sched_getaffinity(0)) < 2:
        print("Only one core: server and load generator share it, rates will be low.")


def is_wanted(peer: str, options: argparse.Namespace) -> bool:
    """Tell whether a peer was asked for and can run; say once why it can't."""
    if peer not in options.peers:
        return False
    lack = make.lack_of(PEERS[peer].needs)
    if lack and peer not in skipped:
        skipped.add(peer)
        print(f"{peer} is skipped: {lack}", flush=True)
    return not lack


skipped: set[str] = set()


def measure(name: str, peers: list[str], options: argparse.Namespace, failures: list[str]) -> Runs:
    """Run one scenario: every peer once a round, A B A B. One that fails is out of it."""
    scenario = SCENARIOS[name]
    rounds = options.rounds or scenario.rounds or 5
    seconds = options.seconds or scenario.seconds or 2
    runs: Runs = {peer: [] for peer in peers}
    began = time.monotonic()
    for number in range(1, rounds + 1):
        for peer in list(runs):
            try:
                run = one_run(name, peer, seconds, options.warmup)
            except FailedError as failure:
                failures.append(f"{name}, {failure}")
                print(f"{name} {number}/{rounds} FAILED: {failure}", flush=True)
                del runs[peer]
                continue
            runs[peer].append(run)
            print(f"{name} {number}/{rounds} {peer}: {report.line(name, run)}", flush=True)
    print(f"{name} took {time.monotonic() - began:.0f} s", flush=True)
    return runs


def keep(path: Path, name: str, runs: Runs, options: argparse.Namespace) -> None:
    """Add a scenario's figures to the file, in place of those that it had."""
    everything = read(path)
    scenario = SCENARIOS[name]
    everything["about"] = report.about()
    everything["runs"][name] = runs
    everything["effort"][name] = {
        "seconds": options.seconds or scenario.seconds or 2,
        "warm_up": options.warmup,
        "date": everything["about"]["date"],
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(everything, indent=1) + "\n")
    temporary.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Read what was measured so far."""
    if not path.exists():
        return {"about": {}, "effort": {}, "runs": {}}
    everything: dict[str, Any] = json.loads(path.read_text())
    return everything


def write_pages(path: Path) -> None:
    """Make the page and the picture of what was measured."""
    if not path.exists():
        sys.exit(f"Nothing was measured yet: there is no {path}.")
    everything = read(path)
    measured = {name: everything["runs"][name] for name in SCENARIOS if name in everything["runs"]}
    RESULTS.write_text(report.page(everything["about"], everything["effort"], measured))
    PICTURE.write_text(picture.draw(measured))
    print(f"Wrote {RESULTS} and {PICTURE}.")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
