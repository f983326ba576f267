"""The tables of an evaluation as Markdown, for `docs/results.md`."""

from collections import defaultdict
from collections.abc import Iterator

from kvchat.eval.claims import Claim
from kvchat.eval.report import Row, sized
from kvchat.terminal.text import clean, size


def tables(rows: list[Row]) -> Iterator[str]:
    """A heading and a table per task, length and kind of question."""
    groups: dict[tuple[str, int, str], dict[str, dict[bool, Row]]] = defaultdict(dict)
    for row in rows:
        groups[row.task, row.length, row.kind].setdefault(row.cell, {})[row.seen] = row
    for cells in groups.values():
        one = next(iter(next(iter(cells.values())).values()))
        yield f"### {one.title}\n"
        yield f"| cell | rows kept | KV | unseen: {one.figure} | KL | seen: {one.figure} | KL |"
        yield "|---|---:|---:|---:|---:|---:|---:|"
        for cell, views in cells.items():
            row = next(iter(views.values()))
            parts = [f"{row.kept:.1%}", size(row.bytes), *_view(views.get(False))]
            yield f"| {cell} | {' | '.join([*parts, *_view(views.get(True))])} |"
        yield ""


def claim_table(claims: list[Claim]) -> Iterator[str]:
    """One line per claim, budget and view."""
    yield "| claim | task | budget | question | difference | verdict | KL: difference | verdict |"
    yield "|---|---|---:|---|---:|---|---:|---|"
    for claim in claims:
        view = "seen" if claim.seen else "unseen"
        right, kl = claim.right, claim.kl
        yield (
            f"| {claim.better} ≥ {claim.worse} | {clean(claim.task)}, {sized(claim.length)} | "
            f"{claim.budget} | {view} | "
            f"{100 * right.mean:+.1f} ({100 * right.low:+.0f} to {100 * right.high:+.0f}) | "
            f"{claim.verdict} | {kl.mean:+.3f} ({kl.low:+.3f} to {kl.high:+.3f}) | "
            f"{claim.kl_verdict} |"
        )


def _view(row: Row | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    mark = "?" if row.verdict else ""
    score = row.score
    figure = f"{mark}{100 * score.mean:.1f}"
    if row.documents > 1:
        figure += f" ({100 * score.low:.0f}–{100 * score.high:.0f})"
    return figure, f"{row.kl.mean:.3f}"
