"""Records as a Markdown table, also for the eye: it fits the terminal if it can."""

import os
from collections.abc import Sequence
from dataclasses import replace
from textwrap import fill

import torch

from kvchat.bench.columns import Column, columns_of, narrow, unusual
from kvchat.bench.record import Record
from kvchat.bench.settings import Settings
from kvchat.bench.subject import Subject
from kvchat.engine.methods.base import Retrieves
from kvchat.engine.methods.stage import plain
from kvchat.machine import resources as machine
from kvchat.terminal.text import clean, counted, size

CROWD = 0.5  # processes more than there are processors: they disturb what is measured
OTHERS = 2**30  # bytes of a card, held by other processes
TEXT = 80  # columns of what stands around a table that goes into a file
CAVEATS = (
    "One sequence, no batch, no prefix reused; greedy, the end of a turn is ignored; tokenising is "
    "not counted. TTFT is a whole reading, TPOT a written token, both in ms. Clocks wait for the "
    "device. The peak begins anew for each test"
)
WARNING = "Speed and memory say nothing about quality: see kvchat eval, and /compare in a chat."


class Markdown:
    """A table that begins with what was measured and ends with what the numbers are not."""

    def __init__(self, settings: Settings, subject: Subject, width: int | None):
        self.settings, self.subject = settings, subject
        self.width = width or TEXT
        self.columns, self.gap = layout(columns_of(settings, subject), width)
        self.begun = False
        self.noted: list[Record] = []

    def row(self, record: Record) -> str:
        """The next line, heading and titles before the first."""
        before, self.begun = "" if self.begun else self._head(), True
        if record["error"] or record["prefill_chunk"] < self.subject.engine.chunk:
            self.noted.append(record)
        return before + self._line([column.cell(record) for column in self.columns])

    def end(self) -> str:
        """What was not measured, and the caveats."""
        lines = [fill(clean(noted(r)), self.width, subsequent_indent="  ") for r in self.noted]
        about = fill(clean(caveats(self.settings, self.subject)), self.width)
        blocks = [*(["\n".join(lines)] if lines else []), about, fill(WARNING, self.width)]
        return "".join(f"\n{block}\n" for block in blocks)

    def _head(self) -> str:
        titles = [column.title for column in self.columns]
        marks = ["-" * (c.columns - 1) + ("-" if c.left else ":") for c in self.columns]
        heading = fill(clean(introduction(self.settings, self.subject)), self.width)
        return f"{heading}\n\n{self._line(titles)}{self._line(marks)}"

    def _line(self, cells: Sequence[str]) -> str:
        found, beyond = [], 0
        for column, cell in zip(self.columns, cells, strict=True):
            text, width = clean(cell).replace("|", "\\|"), column.columns
            if not text:  # gives its room to a long one before it
                width, beyond = max(width - beyond, 0), max(beyond - width, 0)
            found.append(text.ljust(width) if column.left else text.rjust(width))
            beyond += len(found[-1]) - width
        return f"|{self.gap}" + f"{self.gap}|{self.gap}".join(found) + f"{self.gap}|\n"


def layout(columns: list[Column], width: int | None) -> tuple[list[Column], str]:
    """The columns that a terminal of so many columns has room for, and the gap beside a bar.

    What is too wide loses first what the heading says, then long titles and gaps, then a column.
    """
    own = [column for column in columns if not column.constant]
    short = [replace(column, title=column.short or column.title) for column in own]
    for found, gap in ((columns, " "), (own, " "), (short, " "), (own, ""), (short, "")):
        if width is None or 1 + sum(c.columns + 1 + 2 * len(gap) for c in found) <= width:
            return found, gap
    return narrow(short), ""


def introduction(settings: Settings, subject: Subject) -> str:
    """A line about the model and the machine."""
    engine = subject.engine
    parts = [
        f"{subject.name} · {engine.config.family}, {engine.config.parameters / 1e6:,.1f} M "
        f"parameters, {'random ' if settings.dummy else ''}weights {size(engine.weights_bytes)} "
        f"in {engine.weights}",
        machine.device_name(engine.device),
        *(f"{name} {value}" for name, value in unusual(settings) if name != "weights"),
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
    if any(isinstance(plain(test.method), Retrieves) for test in settings.tests()):
        parts.append("pqcache keeps every row; its budget is what a written token reads.")
    if (others := machine.others(engine.device)) > OTHERS:
        parts.append(f"OTHER PROCESSES hold {size(others)} of the card.")
    crowd = subject.busy + torch.get_num_threads() - (os.cpu_count() or 1)
    if not cuda and crowd >= CROWD:
        parts.append(
            f"THE MACHINE WAS BUSY: a load of {subject.busy:.1f} before this began, so times are "
            "not to be trusted."
        )
    return " ".join(parts)


def noted(record: Record) -> str:
    """What memory did to a test: why its cell is empty, or how it was read after all."""
    cell = f"{record['spec']} {record['budget']} {record['test']}"
    if not record["error"]:
        chunk = record["prefill_chunk"]
        return f"- {cell}: memory was short, so it was read {chunk} tokens at once"
    needed, free = size(record["needed_bytes"]), size(record["free_bytes"])
    if record["free_bytes"] >= record["needed_bytes"]:
        return f"- {cell}: out of memory, it was refused though {free} seemed to be free"
    return f"- {cell}: out of memory, needs {needed} or more (estimated), {free} can be had"
