"""What was to be reached, and what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import figures
from figures import Measured, Run
from plan import LIMITS, NATIVE, OURS, RUN, SPINNING

Value = Callable[[Measured], float]


@dataclass(frozen=True)
class Goal:
    """A figure of Backchannel's native transport, and its bounds: the needed and the wished."""

    title: str
    value: Value
    needed: float
    wished: float | None = None
    at_most: bool = False
    form: str = ".2f"
    unit: str = ""


def own(scenario: str, of: Callable[[Run], float], server: str = NATIVE) -> Value:
    """Take the median of a figure."""
    return lambda measured: figures.median(of, measured[scenario][server])


def over(scenario: str, other: str, of: Callable[[Run], float] = figures.rate) -> Value:
    """Take the median of the ratios to another server."""
    return lambda measured: ratio(measured, scenario, other, of)


def ratio(measured: Measured, scenario: str, other: str, of: Callable[[Run], float]) -> float:
    """Compare round by round, then take the median."""
    runs = measured[scenario]
    return statistics.median(figures.ratios(of, runs[NATIVE], runs[other]))


def over_best(scenario: str, *besides: str) -> Value:
    """Take the ratio to the fastest of the others."""

    def value(measured: Measured) -> float:
        others = [p for p in measured[scenario] if p not in {*LIMITS, *OURS, *besides}]
        return min(ratio(measured, scenario, other, figures.rate) for other in others)

    return value


def p99_over_best(scenario: str) -> Value:
    """Take the ratio of the 99th percentile to the least of those that kept up."""

    def value(measured: Measured) -> float:
        runs = measured[scenario]
        others = [
            peer
            for peer in runs
            if peer not in {*LIMITS, *OURS, SPINNING} and figures.is_sustained(runs[peer])
        ]
        if not figures.is_sustained(runs[NATIVE]) or not others:
            raise KeyError(scenario)
        return max(ratio(measured, scenario, other, figures.p99) for other in others)

    return value


def cost_over_best(scenario: str, of: Callable[[Run], float]) -> Value:
    """Take the ratio of a cost to the least that another system has."""

    def value(measured: Measured) -> float:
        others = [p for p in measured[scenario] if p not in {*LIMITS, *OURS, "redis-py"}]
        return max(ratio(measured, scenario, other, of) for other in others)

    return value


def p99_over_least(scenario: str) -> Value:
    """Take the ratio of the 99th percentile to the least of the others, whatever they deliver."""

    def value(measured: Measured) -> float:
        others = [p for p in measured[scenario] if p not in {*LIMITS, *OURS}]
        return max(ratio(measured, scenario, other, figures.p99) for other in others)

    return value


def against_raw(scenario: str) -> Value:
    """Take the median of the ratios of what v1 costs to what raw does."""

    def value(measured: Measured) -> float:
        runs = measured[scenario]
        return statistics.median(figures.ratios(figures.cost, runs["backchannel-v1"], runs[NATIVE]))

    return value


def grown(run: Run) -> float:
    """Compare the call's time at 15,000 connected with that at 15."""
    return figures.call_time(run) / figures.call_time(run["few"])


def round_trip_grown(run: Run) -> float:
    """Compare the round trip's time."""
    return run["p50_us"] / run["few"]["p50_us"]


LATENCIES = ("latency-20k", "latency-60k", "latency-100k", "latency-idle")
WHERE = ("at 20,000/s", "at 60,000/s", "at 100,000/s", "at 20,000/s beside 10,000 idle")
GOALS = [
    Goal("Fan-out, 1 in flight, ÷ C loop", over("fanout-1", "limit-send"), 0.85, 0.95),
    Goal("the same ÷ fastest peer", over_best("fanout-1"), 1),
    Goal("Fan-out, 16 in flight, ÷ uWebSockets", over("fanout-16", "socketify"), 1.5, 3),
    Goal("Fan-out, 64 in flight, ÷ uWebSockets", over("fanout-64", "socketify"), 1.5, 3),
    Goal("64 publishers ÷ uWebSockets", over("many-publishers", "socketify"), 1, 2),
    Goal("20 publishers in 100 channels ÷ uWebSockets", over("many-channels", "socketify"), 1, 2),
    Goal("Echo, `def`, ÷ C loop", over("echo-sync", "limit-send"), 0.65, 0.8),
    Goal("the same ÷ picows", over("echo-sync", "picows"), 0.9),
    Goal("the same ÷ fastest other peer", over_best("echo-sync", "picows"), 1),
    Goal("Echo, `async def`, ÷ C loop", over("echo-async", "limit-send"), 0.5, 0.7),
    Goal("JSON echo ÷ Starlette", over("echo-json", "starlette"), 2),
    Goal("the same ÷ Node `ws`", over("echo-json", "ws"), 1),
    Goal(
        "Idle memory a connection, over plain TCP",
        own("memory", figures.over_plain_bytes), 3000, 2000, at_most=True, form=",.0f", unit=" B",
    ),
    Goal(
        "the same, all of it",
        own("memory", figures.connection_bytes), 3000, 2000, at_most=True, form=",.0f", unit=" B",
    ),
    Goal(
        "Memory a membership, 100,000 channels",
        own("memberships-100k", figures.membership_bytes), 500, at_most=True, form=",.0f",
        unit=" B",
    ),
    Goal(
        "Memory a membership, 1,000,000 channels",
        own("memberships-1m", figures.membership_bytes), 500, at_most=True, form=",.0f",
        unit=" B",
    ),
    Goal(
        "Subscribe + unsubscribe pairs a second",
        own("memberships-pairs", figures.pairs), 300_000, form=",.0f",
    ),
    Goal(
        "Targeted send by connection id: call at 15,000 ÷ at 15",
        own("target-connection", grown), 1.2, at_most=True,
    ),
    Goal("the same, by user", own("target-user", grown), 1.2, at_most=True),
    Goal(
        "its round trip, by connection id", own("target-connection", round_trip_grown), 1.2,
        at_most=True,
    ),
    *(
        Goal(f"p99 {where} ÷ best peer that keeps up", p99_over_best(name), 1, at_most=True)
        for name, where in zip(LATENCIES, WHERE, strict=True)
    ),
    Goal(
        "CPU a handshake ÷ Starlette, one at a time",
        over("handshake-1", "starlette", figures.cost), 1.1, 1, at_most=True,
    ),
    Goal(
        "the same, 50 at a time",
        over("handshake-50", "starlette", figures.cost), 1.1, 1, at_most=True,
    ),
    Goal(
        "p99 of deliveries in a storm of 10,000 handshakes",
        own("storm", figures.p99, RUN), 50, at_most=True, form=".1f", unit=" ms",
    ),
    Goal(
        "CPU a publication through the broker ÷ bare redis-py",
        over("broker-publish", "redis-py", figures.each), 2, 1, at_most=True,
    ),
    Goal(
        "the same, heard by the node itself",
        over("broker-hear", "redis-py", figures.each), 2, 1, at_most=True,
    ),
    Goal(
        "the same, unheard ÷ cheapest other system",
        cost_over_best("broker-publish", figures.each), 1, at_most=True,
    ),
    Goal(
        "Fan-out to v1 clients ÷ to raw ones, CPU a delivery",
        against_raw("dialect-1"), 1.1, at_most=True,
    ),
    Goal("the same, 16 in flight", against_raw("dialect-16"), 1.1, at_most=True),
    Goal(
        "5,000 v1 clients whose node was killed: seconds until all are whole again",
        own("resume-kill", lambda run: run["seconds"], "backchannel-run-v1"), 10,
        at_most=True, form=".1f", unit=" s",
    ),
    Goal(
        "the same, p99 of deliveries to others meanwhile",
        own("resume-kill", figures.p99, "backchannel-run-v1"), 100, at_most=True, form=".1f",
        unit=" ms",
    ),
    Goal("Two nodes: publications/s ÷ fastest other", over_best("cluster-publish"), 1),
    Goal("Two nodes: fan-out 2 × 500 ÷ fastest other", over_best("cluster-fanout"), 1),
    Goal("the same, p99 ÷ least of the others", p99_over_least("cluster-fanout"), 1, at_most=True),
    Goal(
        "Two nodes: p99 at 5,000/s ÷ best that keeps up", p99_over_best("cluster-latency"), 1,
        at_most=True,
    ),
    Goal(
        "Two nodes: CPU µs at the one that has nobody in the channel",
        own("cluster-unheard", figures.hearing_cost), 0.5, at_most=True, form=".2f", unit=" µs",
    ),
    Goal(
        "CPU to enter one of 10,000 channels ÷ cheapest other system",
        cost_over_best("broker-channels", figures.each), 1, at_most=True,
    ),
    Goal(
        "the same, bytes that it takes ÷ least of other systems",
        cost_over_best("broker-channels", figures.channel_bytes), 1, at_most=True,
    ),
    Goal(
        "CPU to bring a client what it missed ÷ Socket.IO's recovery",
        lambda measured: statistics.median(
            figures.ratios(
                figures.each,
                measured["broker-recover"]["backchannel-v1"],
                measured["broker-recover"]["socketio-recovery"],
            )
        ),
        1, at_most=True,
    ),
    Goal(
        "Memory of a connection whose session can be resumed ÷ Socket.IO's, without recovery",
        lambda measured: statistics.median(
            figures.ratios(
                figures.connection_bytes,
                measured["memory-v1"]["backchannel-v1"],
                measured["memory-v1"]["socketio-node"],
            )
        ),
        1, at_most=True,
    ),
]  # fmt: skip


def table(measured: Measured) -> str:
    """Render the goals that were measured, and say of the others that they were not."""
    lines = ["| figure | needed | wished | measured | |", "|---|---|---|---|---|"]
    for goal in GOALS:
        sign = "≤" if goal.at_most else "≥"
        needed, wished = (
            "" if bound is None else f"{sign} {bound:{goal.form}}{goal.unit}"
            for bound in (goal.needed, goal.wished)
        )
        try:
            value = goal.value(measured)
        except KeyError:
            lines.append(f"| {goal.title} | {needed} | {wished} | not measured | |")
            continue
        shown = f"{value:{goal.form}}{goal.unit}"
        lines.append(f"| {goal.title} | {needed} | {wished} | {shown} | {verdict(goal, value)} |")
    return "\n".join(lines)


def verdict(goal: Goal, value: float) -> str:
    """Say which bound a value keeps."""

    def keeps(bound: float) -> bool:
        return value <= bound if goal.at_most else value >= bound

    if goal.wished is not None and keeps(goal.wished):
        return "beyond"
    return "reached" if keeps(goal.needed) else "**missed**"
