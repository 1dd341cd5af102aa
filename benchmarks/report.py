"""Figures for people: one line a run, one table a scenario, one page for RESULTS.md."""

from __future__ import annotations

import os
import platform
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import goals
import make
from figures import KINDS, Figure, Measured, Run, Runs, is_sustained, ratios
from peers import PEERS
from plan import SCENARIOS

# Above the first and below the second, the server was waiting for the generator.
BUSY_GENERATOR, BUSY_SERVER = 90, 95
SHORT = {
    "limit-send": "C loop", "socketify": "uWebSockets", "starlette": "Starlette",
    "starlette-msgspec": "Starlette+msgspec", "picows": "picows", "ws": "Node ws",
    "redis-py": "redis-py", "python-socketio": "python-socketio", "channels": "Channels",
    "socketio-node": "Socket.IO", "socketio-recovery": "Socket.IO", "backchannel-native": "raw",
}  # fmt: skip


def line(scenario: str, run: Run) -> str:
    """Sum one run up."""
    figures = KINDS[SCENARIOS[scenario].kind]
    return ", ".join(f"{figure.title} {figure.of(run):{figure.form}}" for figure in figures)


def section(name: str, runs: Runs) -> str:
    """Render one scenario's heading and table."""
    scenario = SCENARIOS[name]
    figures = KINDS[scenario.kind]
    head = ["server"]
    for figure in figures:
        head += [figure.title, *(f"÷ {SHORT[other]}" for other in compared(figure, name, runs))]
    if has_cores(runs):
        head.append("core used: server, generator")
    rows = [row(name, peer, runs) for peer in runs]
    rounds = max(len(own) for own in runs.values())
    note = f"{rounds} rounds." if rounds > 1 else "One round."
    if loads := [run["load"] for own in runs.values() for run in own if "load" in run]:
        note += f" The machine's load when they began was {spread(loads, '.1f')}."
    return "\n".join(
        [f"### {scenario.title}", "", note, "", cells(head), cells(["---"] * len(head)), *rows]
    )


def cells(texts: list[str]) -> str:
    """Render a line of a table."""
    return f"| {' | '.join(texts)} |"


def compared(figure: Figure, name: str, runs: Runs) -> list[str]:
    """Return the servers that a figure is compared with."""
    return [other for other in SCENARIOS[name].versus[: figure.compared] if other in runs]


def row(name: str, peer: str, runs: Runs) -> str:
    """Render one server's line of a table."""
    own = runs[peer]
    late = SCENARIOS[name].kind == "latency" and not is_sustained(own)
    texts = [PEERS[peer].label + (" (did not keep up)" if late else "")]
    for figure in KINDS[SCENARIOS[name].kind]:
        texts.append(spread([figure.of(run) for run in own], figure.form))
        texts += [
            "" if other == peer else spread(ratios(figure.of, own, runs[other]), ".2f")
            for other in compared(figure, name, runs)
        ]
    if has_cores(runs):
        texts.append(core_use(own))
    return cells(texts)


def spread(values: list[float], form: str) -> str:
    """Median, and the least and greatest where there are several."""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}}-{max(values):{form}})"


def has_cores(runs: Runs) -> bool:
    """Tell whether it was measured how busy both sides were."""
    return all("loadgen_cpu_s" in run for own in runs.values() for run in own)


def core_use(own: list[Run]) -> str:
    """How busy both sides were; marked where the generator may have been the limit."""
    server, generator = (
        statistics.median(100 * run[key] / run["seconds"] for run in own)
        for key in ("server_cpu_s", "loadgen_cpu_s")
    )
    mark = " ⚠" if generator > BUSY_GENERATOR and server < BUSY_SERVER else ""
    return f"{server:.0f} %, {generator:.0f} %{mark}"


def about() -> dict[str, str]:
    """Describe the machine and the versions."""
    cpu = Path("/proc/cpuinfo").read_text().partition("model name")[2].splitlines()[0].strip(" :\t")
    control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{cpu}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()}, TCP {control}",
        "versions": make.versions(),
    }


def page(facts: dict[str, str], effort: dict[str, Any], measured: Measured) -> str:
    """Render RESULTS.md."""
    sections = "\n\n".join(section(name, runs) for name, runs in measured.items())
    busiest = max(
        100 * run["loadgen_cpu_s"] / run["seconds"]
        for runs in measured.values()
        for own in runs.values()
        for run in own
        if "loadgen_cpu_s" in run
    )
    lengths = sorted({each["seconds"] for each in effort.values()})
    warm_ups = sorted({each["warm_up"] for each in effort.values()})
    facts = facts | {
        "effort": f"runs of {spoken(lengths)} s, after {spoken(warm_ups)} s of warm-up "
        "(Node 1 s, Tomcat 2.5 s: they compile meanwhile)"
    }
    listed = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    absent = sorted({p for n in measured for p in SCENARIOS[n].peers if p not in measured[n]})
    if absent:
        listed += f"\n- not measured in every scenario that names them: {', '.join(absent)}"
    return PAGE.format(facts=listed, goals=goals.table(measured), sections=sections, peak=busiest)


def spoken(values: list[float]) -> str:
    """Join numbers."""
    return " or ".join(f"{value:g}" for value in values)


PAGE = (make.HERE / "results.template.md").read_text()
