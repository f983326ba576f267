"""Writes docs/results-demo.md from its prose (results_page.md) and docs/results/*.json."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any

from kvchat.terminal.text import size

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "docs" / "results"
PROSE = Path(__file__).with_suffix(".md")
PLACE = re.compile(r"\{([a-z]+)(?: ([a-z0-9-]+)(?: ([^{}]+))?)?\}")
KINDS = ("answerable", "unanswerable")

Found = dict[str, Any]


def page(prose: str, store: Path = STORE) -> str:
    """The prose with every `{claims}`, `{right unseen-4096 kvzip 25%}` … put in.

    Raises KeyError for a figure that was not measured.
    """
    made = {"claims": claims, "tables": tables, "right": right, "kl": kl, "asked": asked}
    made["times"] = times

    def put(match: re.Match[str]) -> str:
        what, name, rest = match.groups()
        found = json.loads((store / f"{name}.json").read_text(encoding="utf-8"))
        return made[what](found, rest)

    return "\n\n".join(_filled(part) for part in PLACE.sub(put, prose).split("\n\n"))


def _filled(part: str) -> str:
    """A paragraph of prose in lines of 100 characters; tables, headings, pictures as they are."""
    return part if part[0] in "|#!" else fill(part, 100, break_on_hyphens=False)


def right(found: Found, cell: str) -> str:
    """Right answers to answerable questions in per cent."""
    return f"{100 * _row(found, cell)['right']['mean']:.1f}"


def kl(found: Found, cell: str) -> str:
    """Mean KL to the full cache over answerable questions, in nats."""
    return f"{_row(found, cell)['kl']['mean']:.3f}"


def asked(found: Found, kind: str | None) -> str:
    """`160 questions about 8 documents`."""
    row = _row(found, "full", kind or KINDS[0])
    return f"{row['questions']} questions about {row['documents']} documents"


def claims(found: Found, _: str | None) -> str:
    """A row per claim, a column per budget: difference in points, its interval, the verdict."""
    tried = found["claims"]
    names = list(dict.fromkeys((c["better"], c["worse"], c["source"]) for c in tried))
    budgets = _descending({c["budget"] for c in tried})
    by_cell = {(c["better"], c["worse"], c["budget"]): c for c in tried}
    lines = [f"| claim | {' | '.join(budgets)} |", "|---" * (len(budgets) + 1) + "|"]
    for better, worse, source in names:
        cells = [_claim(by_cell.get((better, worse, budget))) for budget in budgets]
        lines.append(f"| {better} ≥ {worse} ({source}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(found: Found, _: str | None) -> str:
    """Right answers and KL by kind of question, then KV pairs kept and bytes used."""
    budgets = _descending({_split(r["cell"])[1] for r in found["table"]} - {""})
    parts = []
    for kind in KINDS:
        full = _row(found, "full", kind)
        parts.append(
            f"**{kind.capitalize()}**, {asked(found, kind)}. Full cache: {_answers(full)}."
        )
        parts.append(_grid(found, kind, budgets, _quality))
    full = _row(found, "full")
    parts.append(f"**KV pairs kept and bytes used.** Full cache: {size(full['bytes'])}.")
    parts.append(_grid(found, KINDS[0], budgets, _used))
    return "\n\n".join(parts)


def times(found: Found, _: str | None) -> str:
    """Seconds of the experiments of a run."""
    lines = [f"{found['machine']}, {found['processes']} processes of one thread each.", ""]
    lines += ["| experiment | documents | seconds each |", "|---|---:|---:|"]
    for name, seconds in found["seconds"].items():
        lines.append(f"| {name} | {len(seconds)} | {min(seconds):.0f} to {max(seconds):.0f} |")
    return "\n".join(lines)


def _grid(found: Found, kind: str, budgets: list[str], text: Callable[[Found], str]) -> str:
    rows = {_split(r["cell"]): r for r in found["table"] if r["kind"] == kind}
    lines = [f"| method | {' | '.join(budgets)} |", "|---|" + "---:|" * len(budgets)]
    for method in dict.fromkeys(method for method, budget in rows if budget):
        cells = [rows.get((method, budget)) for budget in budgets]
        lines.append(f"| {method} | {' | '.join(text(r) if r else '' for r in cells)} |")
    return "\n".join(lines)


def _claim(claim: Found | None) -> str:
    if claim is None:
        return ""
    by = claim["right"]
    low, high = 100 * by["low"], 100 * by["high"]
    return f"{100 * by['mean']:+.1f} ({low:+.1f} to {high:+.1f}) {claim['verdict']}"


def _quality(row: Found) -> str:
    return f"{_answers(row)} · {row['kl']['mean']:.3f}"


def _used(row: Found) -> str:
    return f"{row['kept']:.1%} · {size(row['bytes'])}"


def _answers(row: Found) -> str:
    by = row["right"]
    return f"{100 * by['mean']:.1f} ({100 * by['low']:.0f}–{100 * by['high']:.0f})"


def _row(found: Found, cell: str, kind: str = KINDS[0]) -> Found:
    for row in found["table"]:
        if row["cell"] == cell and row["kind"] == kind:
            return row
    raise KeyError(f"{cell!r}, {kind}: not measured in {found['experiment']['name']}")


def _split(cell: str) -> tuple[str, str]:
    method, _, budget = cell.partition(" ")
    return method, budget


def _descending(budgets: set[str]) -> list[str]:
    return sorted(budgets, key=lambda budget: -float(budget.rstrip("%")))


def write() -> None:
    """Write the page."""
    made = page(PROSE.read_text(encoding="utf-8"))
    (ROOT / "docs" / "results-demo.md").write_text(made, encoding="utf-8")


if __name__ == "__main__":
    write()
