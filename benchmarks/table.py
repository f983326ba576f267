"""Writes docs/bench/README.md: the tables of what the JSON files there hold.

python benchmarks/table.py
"""

import json
from datetime import UTC, datetime

from pairs import FOLDER

HEAD = """# Speed, measured

Made by `benchmarks/table.py` from the JSON files beside it, which `make bench-decode` writes.
Ways of one table ran in turn, in one process, on the same weights. Milliseconds are medians, with
the least in brackets; "times" is the median over the pairs of the last way's time by this one's,
in brackets the ratio of the least times. `cpu` is what the threads of the process worked: with one
thread it leaves out what other processes took from the machine, with several it counts waiting.
"""


def lines(path) -> list[str]:
    """The tables of one kind of machine."""
    found = json.loads(path.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    out = [f"## {found['cpu']}", "", f"{found['capability']}, {found['system']}, {versions}.", ""]
    for cell, runs in found.get("pairs", {}).items():
        for threads, run in runs.items():
            day = datetime.fromtimestamp(run["time"], UTC).date()
            out += [f"### {cell}, {threads}, {day}", ""]
            out += ["| | wall ms | times | cpu ms | times |", "|---|---|---|---|---|"]
            for way, clocks in run["ways"].items():
                row = [way]
                for clock in ("wall", "cpu"):
                    c = clocks[clock]
                    row.append(f"{c['median_ms']:,.1f} ({c['min_ms']:,.1f})")
                    row.append(f"{c['times_faster']:.2f} ({c['times_faster_min']:.2f})")
                out.append(f"| {' | '.join(row)} |")
            out.append("")
    for name, run in found.get("errors", {}).items():
        columns = list(next(iter(run["ways"].values())))
        out += [f"### {name}, {datetime.fromtimestamp(run['time'], UTC).date()}", ""]
        out += [f"| | {' | '.join(c.replace('_', ' ') for c in columns)} |"]
        out += ["|---" * (len(columns) + 1) + "|"]
        for way, figures in run["ways"].items():
            out.append(f"| {way} | {' | '.join(f'{figures[c]:,}' for c in columns)} |")
        out.append("")
    return out


def main() -> None:
    """Write the file anew."""
    parts = [HEAD]
    for path in sorted(FOLDER.glob("*.json")):
        parts += lines(path)
    (FOLDER / "README.md").write_text("\n".join(parts).rstrip() + "\n")


if __name__ == "__main__":
    main()
