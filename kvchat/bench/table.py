"""Records as they come: a Markdown table that fits the terminal if it can, csv, jsonl."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Sequence
from math import floor, log10
from textwrap import fill
from typing import NamedTuple, TextIO

import torch

from kvchat.bench.measure import Record, cases_of
from kvchat.bench.settings import Settings
from kvchat.bench.subject import Subject
from kvchat.engine.methods.specs import name_of, spec_of
from kvchat.machine import resources as machine
from kvchat.terminal.text import clean, counted, size

FASTER = 1.25  # times as fast as the full cache, for which losing entries is worth it
CROWD = 0.5  # processes more than there are processors: they disturb what is measured
OTHERS = 2**30  # bytes of a card, used by other processes
TEXT = 80  # columns of what stands around a table that goes into a file
CAVEATS = (
    "One sequence, no batch, no prompt cache; greedy, end tokens are ignored; tokenization is not "
    "counted. TTFT is a whole prefill, TPOT a decoded token, both in ms. Clocks wait for the "
    "device. The peak begins anew for each test"
)
WARNING = "Speed and memory say nothing about quality: see kvchat eval, and /compare in a chat."


class Lines:
    """An object per line."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def row(self, record: Record) -> None:
        """Write the next record."""
        print(json.dumps(record), file=self.stream, flush=True)

    def end(self) -> None:
        """Write what comes after the last."""


class Csv(Lines):
    """A line of names, then one per test; lists are JSON inside their cell."""

    writer: "csv.DictWriter[str] | None" = None

    def row(self, record: Record) -> None:
        """Write the next record, the names before the first."""
        if self.writer is None:
            self.writer = csv.DictWriter(self.stream, list(record), lineterminator="\n")
            self.writer.writeheader()
        self.writer.writerow(record)
        self.stream.flush()


class Column(NamedTuple):
    """A title, the widest usual content, and a cell of it; numbers stand right."""

    title: str
    width: int
    cell: Callable[[Record], str]
    left: bool = False

    @property
    def columns(self) -> int:
        """How wide it is; Markdown wants three dashes."""
        return max(self.width, len(self.title), 3)


class Table(Lines):
    """A table that begins with what was measured and ends with what the numbers are not."""

    def __init__(self, stream: TextIO, settings: Settings, subject: Subject, width: int | None):
        super().__init__(stream)
        self.settings, self.subject = settings, subject
        self.width = width or TEXT
        self.columns = columns_of(settings, subject)
        whole = 1 + sum(column.columns + 3 for column in self.columns)
        self.gap = " " if width is None or whole <= width else ""
        self.begun = False
        self.noted: list[Record] = []
        self.records: list[Record] = []

    def row(self, record: Record) -> None:
        """Write the next line, heading and titles before the first."""
        if not self.begun:
            self.begun = True
            self._print(introduction(self.settings, self.subject), "")
            self._line([column.title for column in self.columns])
            self._line(["-" * (c.columns - 1) + ("-" if c.left else ":") for c in self.columns])
        self.records.append(record)
        if record["error"] or record["prefill_chunk"] < self.subject.engine.chunk:
            self.noted.append(record)
        self._line([column.cell(record) for column in self.columns])

    def end(self) -> None:
        """Write what was not measured, and the caveats."""
        self._print("", *map(noted, self.noted), *([""] if self.noted else []))
        self._print(caveats(self.settings, self.subject), "", WARNING)
        self._print(*filter(None, [recommendation(self.records)]))

    def _print(self, *texts: str) -> None:
        for text in texts:
            folded = fill(clean(text), self.width, subsequent_indent="  " * text.startswith("- "))
            print(folded, file=self.stream, flush=True)

    def _line(self, cells: Sequence[str]) -> None:
        both = zip(self.columns, map(clean, cells), strict=True)
        found = [c.ljust(at.columns) if at.left else c.rjust(at.columns) for at, c in both]
        bar = f"{self.gap}|{self.gap}"
        print(f"{bar}{bar.join(found)}{bar}".strip(), file=self.stream, flush=True)


def writer(name: str, stream: TextIO, settings: Settings, subject: Subject) -> Lines:
    """What writes records to a stream in the format of a name (a key of FORMATS)."""
    if name == "md":
        width = shutil.get_terminal_size().columns if stream.isatty() else None
        return Table(stream, settings, subject, width)
    return Csv(stream) if name == "csv" else Lines(stream)


def recommendation(records: Sequence[Record]) -> str:
    """Which of the measured methods to take: the one that keeps everything, unless another decodes
    much faster behind the longest document. Empty if nothing was decoded."""
    decoded = [each for each in records if each["n_gen"] and not each["error"]]
    if not decoded:
        return ""
    depth = max(each["n_depth"] for each in decoded)
    there = [each for each in decoded if each["n_depth"] == depth]
    fastest = max(there, key=lambda each: float(each["avg_ts"]))
    whole = [each for each in there if each["method"] == "full"]
    best, ratio = fastest, 1.0
    if whole:
        ratio = fastest["avg_ts"] / whole[0]["avg_ts"]
        best = fastest if ratio >= FASTER else whole[0]
    budget = "" if best["method"] == "full" else f" --budget {best['budget']}"
    than = f", {ratio:.1f} times as fast as full" if whole and best is not whole[0] else ""
    return (
        f"recommended here behind {depth:,} tokens: --method {best['spec']}{budget} "
        f"({best['avg_ts']:.0f} tok/s{than})"
    )


def columns_of(settings: Settings, subject: Subject) -> list[Column]:
    """Method, test and results; threads only if there are several numbers of them."""
    tests, engine = list(cases_of(settings)), subject.engine
    whole = engine.weights_bytes + engine.kv_bytes(settings.longest)
    name, unit = ("MiB", 2**20) if whole < 2**30 else ("GiB", 2**30)
    threads = [Column("-t", 3, lambda r: str(r["n_threads"]))]
    return [
        *(threads if len(set(settings.threads)) > 1 else []),
        Column("method", max(len(spec_of(t.method)) for t in tests), lambda r: r["spec"], True),
        Column("kept", 4, kept),
        Column("test", max(len(test.name) for test in tests), lambda r: r["test"]),
        Column("t/s", 11, speed),
        Column("TTFT/TPOT", 7, lambda r: figures(r["ttft_ns"] or r["tpot_ns"], 1e6)),
        Column(f"KV {name}", 5, lambda r: figures(r["kv_bytes"], unit)),
        Column("full", 5, lambda r: figures(r["kv_full_bytes"], unit)),
        Column(
            "peak", 5, lambda r: figures(r["peak_decode_bytes"] or r["peak_prefill_bytes"], unit)
        ),
    ]


def kept(record: Record) -> str:
    """The share of the KV pairs that are kept."""
    share = record["kept_fraction"]
    return "" if share is None else f"{share:.0%}" if share >= 0.1 else f"{100 * share:.3g}%"


def speed(record: Record) -> str:
    """Tokens per second with their spread, or that memory was not enough."""
    if record["error"]:
        return "OOM"
    average, spread = record["avg_ts"], record["stddev_ts"]
    decimals = min(max(2 - floor(log10(average)), 0), 3)
    return f"{average:.{decimals}f} ± {spread:.{decimals}f}"


def figures(count: float | None, unit: float) -> str:
    """A number in a unit with figures enough: `296`, `16.56`, `0.0156`; nothing for None."""
    if count is None:
        return ""
    value = count / unit
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def introduction(settings: Settings, subject: Subject) -> str:
    """A line about the model and the machine, with options about them that were given."""
    engine = subject.engine
    given = {
        "dtype": settings.dtype,
        "attention": settings.attention,
        "prefill_chunk": str(settings.chunk or "auto"),
    }
    parts = [
        f"{subject.name} · {engine.config.family}, {engine.config.parameters / 1e6:,.1f} M "
        f"parameters, {'random ' if settings.dummy else ''}weights {size(engine.weights_bytes)} "
        f"in {engine.weights}",
        machine.device_name(engine.device),
        *(f"{name} {value}" for name, value in given.items() if value != "auto"),
    ]
    if len(set(settings.threads)) < 2:
        parts.append(counted(torch.get_num_threads(), "thread"))
    return " · ".join(parts)


def caveats(settings: Settings, subject: Subject) -> str:
    """What the numbers are."""
    engine, text = subject.engine, settings.text
    cuda = engine.device.type == "cuda"
    whose = "what torch allocated" if cuda else "this process in RAM, libraries too"
    parts = [f"{CAVEATS}: {whose}."]
    parts.append(f"The tokens are those of {text}." if text else "The tokens are random.")
    parts.append("One warm-up before each test." if settings.warmup else "No warm-up.")
    if any(test.method.retrieves for test in cases_of(settings)):
        names = sorted({name_of(t.method) for t in cases_of(settings) if t.method.retrieves})
        parts.append(
            f"{', '.join(names)}: every KV pair is kept, the budget is what a token attends to."
        )
    if (others := machine.others(engine.device)) > OTHERS:
        parts.append(f"OTHER PROCESSES use {size(others)} of the card.")
    crowd = subject.busy + torch.get_num_threads() - (os.cpu_count() or 1)
    if not cuda and crowd >= CROWD:
        parts.append(
            f"THE MACHINE WAS BUSY: a load of {subject.busy:.1f} before this began, so times are "
            "not to be trusted."
        )
    return " ".join(parts)


def noted(record: Record) -> str:
    """What memory did to a test: why its cell is empty, or that its chunks became smaller."""
    cell = f"{record['spec']} {record['budget']} {record['test']}"
    if not record["error"]:
        return f"- {cell}: memory was short, so the chunk was {record['prefill_chunk']} tokens"
    needed, free = size(record["needed_bytes"]), size(record["free_bytes"])
    if record["free_bytes"] >= record["needed_bytes"]:
        return f"- {cell}: out of memory, it was refused though {free} seemed to be free"
    return f"- {cell}: out of memory, needs {needed} or more (estimated), {free} are free"
