"""Writes docs/bench/README.md: the tables of what the JSON files there hold.

python benchmarks/table.py
"""

import json
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

from pairs import FOLDER

HEAD = """# Speed, measured

Made by `benchmarks/table.py` from the JSON files beside it, which `decode.py`, `ragged.py --flex`
and `low_bit.py` write (`make bench-decode` runs the first). Ways of one measurement ran in turn, in
one process, on the same weights. Milliseconds are medians, with the least in brackets; "times" is
the median over the pairs of one way's time (that with 1.00) by this one's, in brackets the ratio of
the least times. `cpu` is what the threads of the process worked: with one thread it leaves out what
other processes took from the machine, with several it counts waiting.
"""
CLOCKS = ["", "", "wall ms", "times", "cpu ms", "times"]


def lines(path: Path) -> list[str]:
    """The tables of one kind of machine."""
    found = json.loads(path.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    out = [f"## {found['cpu']}", "", f"{found['capability']}, {found['system']}, {versions}.", ""]
    timed: dict[str, list[list[str]]] = defaultdict(lambda: [CLOCKS])
    for cell, runs in found.get("pairs", {}).items():
        for threads, run in runs.items():
            heading = f"Times, {threads}, {day(run)}"
            for number, (way, clocks) in enumerate(run["ways"].items()):
                row = ["" if number else cell, way]
                for c in (clocks["wall"], clocks["cpu"]):
                    row.append(f"{c['median_ms']:,.1f} ({c['min_ms']:,.1f})")
                    row.append(f"{c['times_faster']:.2f} ({c['times_faster_min']:.2f})")
                timed[heading].append(row)
    errors: dict[str, list[list[str]]] = {}
    for cell, run in found.get("errors", {}).items():
        names = list(next(iter(run["ways"].values())))
        titles = ["", "", *(name.replace("_", " ") for name in names)]
        rows = errors.setdefault(f"Error in logits, {day(run)}", [titles])
        for number, (way, figures) in enumerate(run["ways"].items()):
            rows.append(["" if number else cell, way, *(f"{figures[name]:,}" for name in names)])
    for heading, (titles, *rows) in (timed | errors).items():
        out += [f"### {heading}", "", *map(line, (titles, ["---"] * len(titles), *rows)), ""]
    return out


def day(run: dict) -> str:
    """When it was measured."""
    return str(datetime.fromtimestamp(run["time"], UTC).date())


def line(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the file anew."""
    parts = [HEAD]
    for path in sorted(FOLDER.glob("*.json")):
        parts += lines(path)
    (FOLDER / "README.md").write_text("\n".join(parts).rstrip() + "\n")


if __name__ == "__main__":
    main()
