"""The picture of a benchmark: speed of decoding and bytes of KV against the context."""

from collections.abc import Sequence
from pathlib import Path

from kvchat import plots
from kvchat.bench.measure import Record
from kvchat.terminal.text import clean

MARKERS = "os^DvP*X"


def render(path: Path, records: Sequence[Record]) -> None:
    """A line per method over the depths at which it decoded; KV beside an uncompressed cache.

    Raises KvchatError("usage") if the file cannot be written.
    """
    whole = sorted({(r["n_depth"] + r["n_gen"], r["kv_full_bytes"]) for r in records})
    name, unit = ("GiB", 2**30) if whole[-1][1] >= 2**30 else ("MiB", 2**20)
    lines: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r["n_depth"]):
        lines.setdefault(label(record, records), []).append(record)
    with plots.figure(path, columns=2) as (speed, kv):
        for number, (text, points) in enumerate(lines.items()):
            context = [r["n_depth"] + r["n_gen"] for r in points]
            averages, spreads = ([r[key] for r in points] for key in ("avg_ts", "stddev_ts"))
            # where lines are one upon the other, the lower ones show at the edges
            width, marker = 1.5 + len(lines) - 1 - number, MARKERS[number % len(MARKERS)]
            look = {"linewidth": width, "marker": marker, "label": text}
            speed.errorbar(context, averages, spreads, capsize=3, elinewidth=1, **look)
            kv.plot(context, [r["kv_bytes"] / unit for r in points], **look)
        tokens, sizes = zip(*whole, strict=True)
        uncompressed = {"linestyle": "--", "color": "gray", "marker": "", "zorder": 1}
        kv.plot(tokens, [count / unit for count in sizes], label="uncompressed", **uncompressed)
        speed.set_title(f"Decoding · {clean(records[0]['model'])}")
        speed.set_ylabel("tokens per second")
        kv.set_title("KV cache, preallocated room included")
        kv.set_ylabel(name)
        for axes in (speed, kv):
            axes.set_xlabel("context, tokens")
            axes.set_ylim(bottom=0)
            axes.legend()


def label(record: Record, records: Sequence[Record]) -> str:
    """What tells a record's line from the others: method, budget, and options that differ."""
    text = record["spec"] if record["method"] == "full" else f"{record['spec']} {record['budget']}"
    for key, form in (("n_gen", "tg{}"), ("n_threads", "{} threads")):
        if len({other[key] for other in records}) > 1:
            text += ", " + form.format(record[key])
    return text
