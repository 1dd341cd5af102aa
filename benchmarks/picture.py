"""The results as an SVG picture: bars, one panel a scenario."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import figures
from figures import Measured, Run
from peers import PEERS
from plan import OURS, RUN, SPINNING

WIDTH, BAR, GAP, LABELS, VALUES, HEAD = 900, 18, 6, 330, 90, 46
PANELS: list[tuple[str, str, Callable[[Run], float], str]] = [
    ("fanout-1", "Fan-out 1 → 1,000, one message in flight: deliveries/s", figures.rate, ",.0f"),
    ("fanout-16", "The same, 16 in flight", figures.rate, ",.0f"),
    ("fanout-64", "The same, 64 in flight", figures.rate, ",.0f"),
    ("many-publishers", "64 publishers in a channel of 1,000: deliveries/s", figures.rate, ",.0f"),
    ("many-channels", "20 publishers in 100 channels: deliveries/s", figures.rate, ",.0f"),
    ("echo-sync", "Echo, 100 clients: messages/s", figures.rate, ",.0f"),
    ("echo-json", "JSON echo, 100 clients: messages/s", figures.rate, ",.0f"),
    ("latency-60k", "p99 at 60,000 deliveries/s, ms (less is better)", figures.p99, ".1f"),
    (
        "memory", "Idle memory a connection, bytes (less is better)", figures.connection_bytes,
        ",.0f",
    ),
]  # fmt: skip
STYLE = """\
<style>
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .title { font-weight: 600; font-size: 15px }
  .bar { fill: #9aa7b5 } .ours { fill: #d9480f } .page { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .bar { fill: #6e7b8a } .page { fill: #0d1117 } .ours { fill: #ff8a4c }
  }
</style>"""


def draw(measured: Measured) -> str:
    """Draw every panel that was measured, one under the other."""
    parts: list[str] = []
    top = 10
    for name, title, of, form in PANELS:
        if name in measured:
            bars = bars_of(measured, name, of)
            parts.append(panel(top, title, bars, form))
            top += HEAD + len(bars) * (BAR + GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" '
        f'height="{top}" role="img" aria-label="Benchmark results">\n{STYLE}\n'
        f'<rect class="page" width="{WIDTH}" height="{top}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def bars_of(measured: Measured, name: str, of: Callable[[Run], float]) -> list[tuple[str, float]]:
    """Return the servers and their medians, the best first; not those that did not keep up."""
    runs = measured[name]
    kept = [
        peer for peer in runs if not name.startswith("latency") or figures.is_sustained(runs[peer])
    ]
    bars = [(peer, figures.median(of, runs[peer])) for peer in kept]
    less_is_better = of in {figures.p99, figures.connection_bytes}
    return sorted(bars, key=lambda bar: bar[1], reverse=not less_is_better)


def panel(top: int, title: str, bars: list[tuple[str, float]], form: str) -> str:
    """Draw one panel."""
    parts = [f'<text class="title" x="10" y="{top + 20}">{escape(title)}</text>']
    longest = max((value for _, value in bars), default=1) or 1
    for number, (peer, value) in enumerate(bars):
        y = top + 32 + number * (BAR + GAP)
        length = max(1, (WIDTH - LABELS - VALUES - 20) * value / longest)
        kind = "bar ours" if peer in {*OURS, RUN, SPINNING} else "bar"
        label = escape(PEERS[peer].label.replace("*", ""))
        parts += [
            f'<text x="{LABELS - 8}" y="{y + 14}" text-anchor="end">{label}</text>',
            f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}"/>',
            f'<text x="{LABELS + length + 6:.1f}" y="{y + 14}">{value:{form}}</text>',
        ]
    return "\n".join(parts)
