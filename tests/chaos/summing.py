"""What runs come to: a line for each, and all of a file of them together."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

SHOWN = ("accepted", "got", "connections", "lost told", "told to have joined or left")


def line(result: dict[str, Any]) -> str:
    """Return a run in one line."""
    figures = result["figures"]
    faults = sum(count for name, count in figures.items() if name.startswith("×"))
    shown = ", ".join(f"{figures.get(name, 0)} {name}" for name in SHOWN)
    end = f"{len(result['wrong'])} WRONG" if result["wrong"] else "ok"
    return f"seed {result['seed']}, {result['seconds']:.0f} s: {faults} faults, {shown}: {end}"


def append(file: Path, result: dict[str, Any]) -> None:
    """Add a run to a file, as a line of JSON."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(result, ensure_ascii=False) + "\n")


def read(file: Path) -> list[dict[str, Any]]:
    """Return the runs of a file.

    Raises:
        SystemExit: there is no such file, or a line of it is no run; the text says which.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SystemExit(f"--sum takes a file that --results wrote: {error}") from error
    results: list[dict[str, Any]] = []
    for number, text in enumerate(lines, 1):
        try:
            result = json.loads(text)
            missing = {"seed", "seconds", "figures", "wrong"} - set(result)
        except (ValueError, TypeError):
            missing = {"JSON"}
        if missing:
            raise SystemExit(
                f"line {number} of {file} is no run, without {', '.join(sorted(missing))}: "
                "--sum takes a file that --results wrote"
            )
        results.append(result)
    return results


def summed(results: list[dict[str, Any]]) -> tuple[str, bool]:
    """Return runs in a few lines, and whether all were right."""
    if not results:
        return "no runs", False
    total: collections.Counter[str] = collections.Counter()
    for result in results:
        total.update(result["figures"])
    bad = [result for result in results if result["wrong"]]
    seeds = sorted({result["seed"] for result in results})
    took = sum(result["seconds"] for result in results)
    text = [
        (
            f"{len(results)} runs, {len(seeds)} seeds, {took / 60:.0f} minutes, "
            f"from seed {seeds[0]} to {seeds[-1]}"
        )
    ]
    text += [f"{count:9,} {name}" for name, count in sorted(total.items())]
    text += [f"WRONG: seed {one['seed']}: {what}" for one in bad for what in one["wrong"][:5]]
    text.append(f"{len(bad)} runs went WRONG" if bad else "OK")
    return "\n".join(text), not bad
