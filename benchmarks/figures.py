"""The figures that are made of what loadgen counted, for each kind of scenario."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Run = dict[str, Any]  # what loadgen prints
Runs = dict[str, list[Run]]  # of each peer, in the order of the rounds
Measured = dict[str, Runs]  # of each scenario

SUSTAINED = 0.98  # of the rate that was asked for
WHOLE = ("not_resumed", "lost", "missed", "doubled")  # of v1, all of them are 0


@dataclass(frozen=True)
class Figure:
    """A column: how it is made of a run, and with how many servers it is compared."""

    title: str
    of: Callable[[Run], float]
    form: str
    compared: int = 0


def count(run: Run) -> int:
    """Return what was delivered or answered in the measured time."""
    for key in ("deliveries", "messages", "handshakes"):
        if key in run:
            return run[key]
    raise KeyError("deliveries")


def rate(run: Run) -> float:
    """Deliveries, messages or handshakes a second."""
    return count(run) / run["seconds"]


def cost(run: Run) -> float:
    """Microseconds of the server's CPU time for one of them."""
    return run["server_cpu_s"] * 1e6 / count(run)


def p50(run: Run) -> float:
    """Half took less than so many milliseconds."""
    return run["p50_us"] / 1000


def p99(run: Run) -> float:
    """One of a hundred took longer than so many milliseconds."""
    return run["p99_us"] / 1000


def longest(run: Run) -> float:
    """The longest, in milliseconds."""
    return run["max_us"] / 1000


def core(run: Run) -> float:
    """Percentage of its core that the server used."""
    return 100 * run["server_cpu_s"] / run["seconds"]


def sustained(run: Run) -> float:
    """Percentage of the rate asked for that was delivered."""
    return 100 * rate(run) / run["asked_rate"]


def connection_bytes(run: Run) -> float:
    """Bytes of the server's memory that a WebSocket connection took."""
    return (run["rss_after"] - run["rss_before"]) / run["clients"]


def plain_bytes(run: Run) -> float:
    """Bytes that a TCP connection took which said nothing."""
    return connection_bytes(run["plain"])


def over_plain_bytes(run: Run) -> float:
    """Bytes that a WebSocket connection took over what a TCP connection took."""
    return connection_bytes(run) - plain_bytes(run)


def channels(run: Run) -> int:
    """Return how many channels the server said it has."""
    return run["server"]["channels"]


def membership_bytes(run: Run) -> float:
    """Bytes that a channel with one subscriber took."""
    return (run["rss_after"] - run["rss_open"]) / channels(run)


def pairs(run: Run) -> float:
    """Comings and leavings a second; each message asked for a hundred."""
    return 100 * rate(run)


def call_time(run: Run) -> float:
    """Nanoseconds that the call of `send` took."""
    return run["server"]["ns_a_call"]


def storm_rate(run: Run) -> float:
    """Handshakes a second in the storm."""
    return run["stormed"] / run["seconds"]


def publications(run: Run) -> float:
    """Publications a second, each of which all the clients got."""
    return rate(run) / run["clients"]


def publishing_cost(run: Run) -> float:
    """Microseconds of the publishing node's CPU time for a publication."""
    return run["server_cpu_s"] * 1e6 / (publications(run) * run["seconds"])


def hearing_cost(run: Run) -> float:
    """Microseconds of the other node's CPU time for a publication."""
    return run["watched_cpu_s"][0] * 1e6 / (publications(run) * run["seconds"])


def engine_cost(run: Run) -> float:
    """Microseconds of the engine's CPU time for a publication."""
    return run["watched_cpu_s"][1] * 1e6 / (publications(run) * run["seconds"])


def each(run: Run) -> float:
    """Microseconds of a program's CPU time for one of what it did."""
    return run["cpu_s"] * 1e6 / run["count"]


def channel_bytes(run: Run) -> float:
    """Bytes that a channel takes."""
    return run["bytes"] / run["count"]


def resuming_cost(run: Run) -> float:
    """Microseconds of the node's CPU time for a client that came back."""
    return run["server_cpu_s"] * 1e6 / run["clients"]


def resuming_engine_cost(run: Run) -> float:
    """Microseconds of the engine's."""
    return run["engine_cpu_s"] * 1e6 / run["clients"]


def session_bytes(run: Run) -> float:
    """Bytes that a session takes whose client is away."""
    return run["bytes"] / run["count"]


def handled(unit: str, plural: str) -> list[Figure]:
    """Return the figures of a server that does as much as it can."""
    return [
        Figure(f"{plural}/s", rate, ",.0f", 3),
        Figure(f"CPU µs a {unit}", cost, ".2f", 1),
        Figure("p50 ms", p50, ".2f"),
        Figure("p99 ms", p99, ".2f"),
    ]


KINDS: dict[str, list[Figure]] = {
    "delivery": handled("delivery", "deliveries"),
    "message": handled("message", "messages"),
    "publication": [
        Figure("publications/s", publications, ",.0f", 3),
        Figure("CPU µs a publication: its node", publishing_cost, ",.1f", 3),
        Figure("the other node", hearing_cost, ",.1f"),
        Figure("Valkey", engine_cost, ",.1f"),
        Figure("p50 ms", p50, ".2f"),
        Figure("p99 ms", p99, ".2f"),
    ],
    "path": [
        Figure("CPU µs a publication", each, ".1f", 4),
        Figure("publications/s", lambda run: run["count"] / run["seconds"], ",.0f"),
    ],
    "subscriptions": [
        Figure("CPU µs a channel", each, ".1f", 2),
        Figure("ms for all", lambda run: 1000 * run["seconds"], ",.0f", 2),
        Figure("bytes a channel", channel_bytes, ",.0f"),
    ],
    "catch-up": [
        Figure("CPU µs a message", each, ".1f", 1),
        Figure("messages/s", lambda run: run["count"] / run["seconds"], ",.0f"),
        Figure("ms until all had all", lambda run: 1000 * run["seconds"], ",.0f"),
    ],
    "comeback": [
        Figure("s until half were whole", lambda run: run["half_s"], ".2f"),
        Figure("until all were", lambda run: run["seconds"], ".2f", 1),
        Figure("CPU µs a client", resuming_cost, ",.0f", 1),
        Figure("Valkey, CPU µs a client", resuming_engine_cost, ",.0f"),
        Figure("not resumed", lambda run: run["not_resumed"], ",.0f"),
        Figure("told of a loss", lambda run: run["lost"], ",.0f"),
        Figure("missed, untold", lambda run: run["missed"], ",.0f"),
        Figure("doubled", lambda run: run["doubled"], ",.0f"),
        Figure("attempts that failed", lambda run: run["retries"], ",.0f"),
        Figure("the others: p50 ms", p50, ".1f"),
        Figure("p99 ms", p99, ".1f", 1),
        Figure("p99 ms before", lambda run: run["p99_before_us"] / 1000, ".1f"),
    ],
    "kept": [Figure("bytes of the process a session", session_bytes, ",.0f")],
    "kept-engine": [
        Figure("bytes of Valkey a session", session_bytes, ",.0f"),
        Figure("of it, by `MEMORY USAGE` of its key", lambda run: run["record_bytes"], ",.0f"),
    ],
    "latency": [
        Figure("delivered %", sustained, ".0f"),
        Figure("p50 ms", p50, ".2f"),
        Figure("p99 ms", p99, ".2f", 1),
        Figure("longest ms", longest, ".1f"),
        Figure("core used %", core, ".0f"),
    ],
    "memory": [
        Figure("bytes a connection", connection_bytes, ",.0f"),
        Figure("of it, as plain TCP", plain_bytes, ",.0f"),
        Figure("over plain TCP", over_plain_bytes, ",.0f"),
    ],
    "weight": [Figure("bytes a connection", connection_bytes, ",.0f", 1)],
    "membership": [
        Figure("channels", channels, ",.0f"),
        Figure("bytes a membership", membership_bytes, ",.0f"),
    ],
    "pairs": [
        Figure("pairs/s", pairs, ",.0f"),
        Figure("CPU µs a pair", lambda run: cost(run) / 100, ".2f"),
    ],
    "target": [
        Figure("ns a call, of 15", lambda run: call_time(run["few"]), ",.0f"),
        Figure("of 15,000", call_time, ",.0f"),
        Figure("ratio", lambda run: call_time(run) / call_time(run["few"]), ".2f"),
        Figure("round trip µs, of 15", lambda run: run["few"]["p50_us"], ".0f"),
        Figure("of 15,000", lambda run: run["p50_us"], ".0f"),
        Figure("ratio", lambda run: run["p50_us"] / run["few"]["p50_us"], ".2f"),
    ],
    "handshake": [
        Figure("CPU µs a handshake", cost, ".0f", 1),
        Figure("handshakes/s", rate, ",.0f", 1),
        Figure("p99 ms", p99, ".2f"),
    ],
    "storm": [
        Figure("p99 ms of deliveries", p99, ".1f", 1),
        Figure("longest ms", longest, ".1f"),
        Figure("handshakes/s", storm_rate, ",.0f", 1),
        Figure("seconds it took", lambda run: run["seconds"], ".1f"),
    ],
}


def check(kind: str, run: Run) -> str | None:
    """Say what is wrong with a run that loadgen could not know of."""
    server = run.get("server")
    if kind == "membership" and not server["came"] == server["channels"] > 0:
        return f"not every channel had its on_subscribe: {server}"
    if kind == "comeback" and run["dialect"] == "v1" and any(run[key] for key in WHOLE):
        return f"not all were whole again: { {key: run[key] for key in WHOLE} }"
    if kind == "pairs" and not server["came"] == server["left"] == 100 * run["total_messages"]:
        return f"not every pair was told of: {server}, {run['total_messages']} messages"
    if kind == "target" and server["calls"] != run["total_messages"]:
        return f"{run['total_messages']} messages came of {server['calls']} calls"
    return None


def median(of: Callable[[Run], float], runs: list[Run]) -> float:
    """Return the middle of the rounds."""
    return statistics.median(of(run) for run in runs)


def ratios(of: Callable[[Run], float], runs: list[Run], others: list[Run]) -> list[float]:
    """Compare a figure with another server's of the same round."""
    return [of(a) / of(b) for a, b in zip(runs, others, strict=True)]


def is_sustained(runs: list[Run]) -> bool:
    """Tell whether the rate that was asked for was delivered."""
    return median(sustained, runs) >= 100 * SUSTAINED
