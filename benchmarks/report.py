"""Figures for people: one line a run, one table a scenario, one page for RESULTS.md."""

from __future__ import annotations

import os
import platform
import statistics
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plan import BASELINE, PEERS, SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable

Run = dict[str, Any]  # what loadgen.c prints
Runs = dict[str, list[Run]]  # of each peer, in the order of the rounds
Measured = dict[str, Runs]  # of each scenario

PACKAGES = ("backchannel", "uvicorn", "uvloop", "starlette", "websockets")
# Above the first and below the second, the server was waiting for the generator.
BUSY_GENERATOR, BUSY_SERVER = 90, 95


def rate(scenario: str, run: Run) -> float:
    """Deliveries or messages a second."""
    return run[SCENARIOS[scenario].count_key] / run["seconds"]


def cost(scenario: str, run: Run) -> float:
    """Microseconds of the server's CPU time for one delivery or message."""
    return run["server_cpu_s"] * 1e6 / run[SCENARIOS[scenario].count_key]


def line(scenario: str, run: Run) -> str:
    """Sum one run up."""
    unit = SCENARIOS[scenario].unit
    return (
        f"{rate(scenario, run):,.0f} {SCENARIOS[scenario].count_key}/s, "
        f"{cost(scenario, run):.2f} µs CPU a {unit}, "
        f"p50 {run['p50_us'] / 1000:.2f} ms, p99 {run['p99_us'] / 1000:.2f} ms"
    )


def section(name: str, runs: Runs) -> str:
    """Render one scenario's heading and table."""
    scenario = SCENARIOS[name]
    head = (
        f"| server | {scenario.count_key}/s | vs Starlette | CPU µs a {scenario.unit} "
        "| vs Starlette | p50 ms | p99 ms | core used: server, generator |"
    )
    rows = [row(name, peer, runs) for peer in runs]
    return "\n".join(
        [f"### {scenario.title}", "", head, "|---|---|---|---|---|---|---|---|", *rows]
    )


def row(name: str, peer: str, runs: Runs) -> str:
    """Render one server's line of a table."""
    own = runs[peer]
    cells = [
        PEERS[peer].label,
        spread([rate(name, run) for run in own], ",.0f"),
        ratio(rate, name, peer, runs),
        spread([cost(name, run) for run in own], ".2f"),
        ratio(cost, name, peer, runs),
        spread([run["p50_us"] / 1000 for run in own], ".2f"),
        spread([run["p99_us"] / 1000 for run in own], ".2f"),
        core_use(own),
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: list[float], form: str) -> str:
    """Median, and the least and greatest where there are several."""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}}-{max(values):{form}})"


def ratio(figure: Callable[[str, Run], float], name: str, peer: str, runs: Runs) -> str:
    """Compare a figure of a peer with the baseline's of the same round."""
    if peer == BASELINE or BASELINE not in runs:
        return ""
    pairs = zip(runs[peer], runs[BASELINE], strict=True)
    return spread([figure(name, a) / figure(name, b) for a, b in pairs], ".2f")


def core_use(own: list[Run]) -> str:
    """How busy both sides were; marked where the generator may have been the limit."""
    server, generator = (
        statistics.median(100 * run[key] / run["seconds"] for run in own)
        for key in ("server_cpu_s", "loadgen_cpu_s")
    )
    mark = " ⚠" if generator > BUSY_GENERATOR and server < BUSY_SERVER else ""
    return f"{server:.0f} %, {generator:.0f} %{mark}"


def missing_packages() -> list[str]:
    """Name what the servers need and this Python has not."""
    have = {distribution.name.lower() for distribution in metadata.distributions()}
    return [name for name in PACKAGES if name not in have]


def about(rounds: int, seconds: int) -> dict[str, str]:
    """Describe the machine, the versions and the effort."""
    cpu = Path("/proc/cpuinfo").read_text().partition("model name")[2].splitlines()[0].strip(" :\t")
    control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{cpu}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()}, TCP {control}",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "effort": f"{rounds} rounds of {seconds} s, after 1 s of warm-up each",
    }


def page(facts: dict[str, str], measured: Measured) -> str:
    """Render RESULTS.md."""
    sections = "\n\n".join(section(name, runs) for name, runs in measured.items())
    peak = max(
        100 * run["loadgen_cpu_s"] / run["seconds"]
        for runs in measured.values()
        for own in runs.values()
        for run in own
    )
    listed = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    return PAGE.format(facts=listed, sections=sections, peak=peak)


PAGE = """\
# Benchmark results

Written by `python benchmarks/bench.py --write`. Run it on your machine: absolute figures differ
from machine to machine, and on a shared one from minute to minute. The ratios hold better.

{facts}

## Figures

Medians over the rounds, least and greatest in parentheses. "vs Starlette" compares the figure
before it with Starlette's of the same round, then takes the median of those ratios: more is better
for the rate, less for the CPU time, which is the one to trust when the machine was not quiet.

{sections}

## Method

- Each run starts a fresh server, one process pinned to one core; the load generator (`loadgen.c`)
  has another core, and they talk over TCP loopback. Servers take turns within a round (A B A B).
- Same uvicorn settings for all that run on it: `websockets-sansio`, uvloop, no compression, no
  access log. The code of the servers is in `servers/`.
- **Fan-out**: 1,000 clients in one channel; one of them sends, all receive, the sender included.
  "In flight" is how many messages are unfinished at a time; one is finished when all have it.
  What becomes due to be sent in one read goes out in one write, so that messages in flight reach
  the server together; a server that handles what it read in one go can gain by that, one that
  handles each message by itself cannot.
- **Echo**: each client sends its next message when it has its answer.
- Every delivery is checked: content, order, nothing twice, nothing lost. One mistake fails the
  run. Latency is from the send call to the read, for each delivery; with so many messages under
  way it is mostly time spent in queues, and falls as the rate rises.
- CPU µs is the server process's own CPU time (user and system, from its CPU clock at both ends of
  the measured time), divided by deliveries. A part of the kernel's work for TCP loopback
  is in it: there the sender also does the receiver's interrupt work.
- **Is the load generator the bottleneck?** It used at most {peak:.0f} % of its core. For every
  delivery its kernel reads and acknowledges a packet, which costs about what the server's write
  costs, so a server nearly as fast as a bare C loop keeps it nearly as busy as itself. The last
  column tells who waited for whom: at a server near 100 % the server is the limit. ⚠ marks the rows
  where the generator was over 90 % busy and the server under 95 %; there the server may be faster
  than the figure says. Where both are far from 100 %, something else used the machine.
"""
