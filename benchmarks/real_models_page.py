"""Writes docs/results.md from its prose (real_models_page.md) and docs/results/real-*.json."""

import json
import re
from pathlib import Path
from textwrap import fill
from typing import Any

from kvchat.terminal.text import size

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
PROSE = Path(__file__).with_suffix(".md")
PLACE = re.compile(r"\{(table|right|kl|kv|kept) ([\w.-]+) ([\w-]+)(?: ([^{}]+))?\}")
LOSS = re.compile(r"\{loss ([\w ]+)\}")

Found = dict[str, Any]


def page(prose: str, store: Path = STORE) -> str:
    """The prose with every `{table MODEL EXPERIMENT}`, `{right MODEL EXPERIMENT CELL}` (also `kl`,
    `kv` and `kept`) and `{loss POLICY ENTRIES}` put in.

    Raises KeyError for a figure that was not measured.
    """

    def put(match: re.Match[str]) -> str:
        what, model, experiment, cell = match.groups()
        table = of(json.loads((store / f"real-{model}.json").read_text("utf-8")), experiment)
        if what == "table":
            return "\n".join(_table(table))
        found = row(table, cell)
        if what == "kept":
            return f"{100 * found['kept']:.0f}"
        if what == "kl":
            return f"{found['kl']['mean']:.3f}"
        return size(found["bytes"]) if what == "kv" else f"{100 * found['score']['mean']:.0f}"

    def loss(match: re.Match[str]) -> str:
        found = json.loads((store / "real-endless.json").read_text("utf-8"))
        return f"{found['loss'][match[1]]:.3f}"

    text = LOSS.sub(loss, PLACE.sub(put, prose))
    return "\n\n".join(_filled(part) for part in text.split("\n\n"))


def of(found: Found, experiment: str) -> list[Found]:
    """The rows of an experiment."""
    for each in found["experiments"]:
        if each["experiment"]["name"] == experiment:
            rows: list[Found] = each["table"]
            return rows
    raise KeyError(f"{experiment} was not measured")


def row(table: list[Found], cell: str) -> Found:
    """The row of a cell. Raises KeyError."""
    for each in table:
        if each["cell"] == cell:
            return each
    raise KeyError(f"{cell} was not measured")


def _table(table: list[Found]) -> list[str]:
    """A line per cell, in the order in which they were asked for."""
    scored = "right, %" if table[0]["metric"] == "all" else "ROUGE-L, %"
    first = row(table, "full")
    asked = f"{first['questions']} questions about {first['documents']} documents"
    lines = [f"| {asked} | kept | KV | {scored} | KL |", "|---|---:|---:|---:|---:|"]
    for each in table:
        score = each["score"]
        told = f"{100 * score['mean']:.0f} ({100 * score['low']:.0f}–{100 * score['high']:.0f})"
        cells = f"{each['kept']:.1%}", size(each["bytes"]), told, f"{each['kl']['mean']:.3f}"
        lines.append(f"| {each['cell']} | {' | '.join(cells)} |")
    return lines


def _filled(part: str) -> str:
    """A paragraph of prose in lines of 100 characters; tables, headings, pictures as they are."""
    return part if part[0] in "|#!" else fill(part, 100, break_on_hyphens=False)


def write() -> None:
    """Write the page."""
    PAGE.write_text(page(PROSE.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
