"""Answers and KL of real chat models by method and budget: what docs/results.md shows.

    python benchmarks/real_models.py --texts FOLDER MODEL…

FOLDER has stories.jsonl and meetings.jsonl: lines with `text` and `questions` with `references`
(SQuALITY and QMSum in this form; docs/eval.md says more). `less` wants its maps: `kvchat calibrate
MODEL --for less` before. Facts are hidden in pieces of these texts
by a seed on which nothing was tuned. A document is a piece of work of its own, kept under
`.results/`; a run that was stopped goes on with the documents and cells that are missing. `--only`
names experiments, and what is stored of others stays. `--page` writes the page alone.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import real_models_page
from results import write

from kvchat.engine.budget import Budget
from kvchat.engine.methods.build import parse_method
from kvchat.eval.measure import Cell
from kvchat.eval.pictures import Panel, panels, render_panels
from kvchat.eval.report import Record, rows
from kvchat.machine.resources import processor

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".results"
STORE = ROOT / "docs" / "results"
SEED = 23
LENGTH = 2000
HEAD = ("kvzap", "kvzip", "kvzip@paper", "pqcache", "adakv")
REST = ("snapkv", "streamingllm", "h2o", "cam", "kvmerger", "expected-attention", "knorm")
SYSTEMS = (
    ("kvcompress", "25%"), ("kvcompress", "10%"),
    ("full:bits=4", "100%"), ("full:bits=2", "100%"),
    ("kvzap:bits=4", "25%"), ("kvzap:bits=2", "25%"), ("kvzap:bits=4", "10%"),
    ("qaq", "25%"), ("qaq", "10%"),
    ("squeezed", "25%"), ("squeezed", "10%"), ("pqcache", "10%"),
    ("kcache", "25%"), ("kcache", "10%"),
    ("corm", "25%"), ("corm@paper", "100%"),
    ("elastic", "25%"), ("elastic", "10%"),
)  # fmt: skip
BYTES = (  # a quarter and a tenth of the bytes of everything in 16 bits
    ("kvzap:bits=4", "72%"), ("kvzap:bits=4", "29%"),
    ("kvzip:bits=4", "72%"), ("kvzip:bits=4", "29%"),
)  # fmt: skip
SYSTEMS_SEEN = (("kvcompress", "10%"), ("corm", "10%"), ("qaq", "10%"))
LESS = (("h2o", "25%"), ("less", "25%"), ("h2o", "10%"), ("less", "10%"))
DRAWN = ("facts", "facts-seen")
SEEN = ("kvzap", "adakv", "snapkv", "pyramidkv")
SHARES = ("adakv", "ada-pyramid", "snapkv", "pyramidkv")


@dataclass(frozen=True)
class Experiment:
    """Documents of one kind, questions about each, and what answers them."""

    name: str
    source: str  # KIND:FILE in the folder of texts
    documents: int
    questions: int  # about each document
    seen: bool
    cells: tuple[tuple[str, str], ...]  # method spec, budget
    length: int = LENGTH  # tokens of a document

    def named(self) -> dict[str, tuple[str, str]]:
        """Its cells by what a record calls them."""
        return {
            Cell(parse_method(spec, Budget.parse(budget)), False).name: (spec, budget)
            for spec, budget in self.cells
        }


def cells(methods: tuple[str, ...], *budgets: str) -> tuple[tuple[str, str], ...]:
    """The cross product."""
    return tuple((method, budget) for method in methods for budget in budgets)


EXPERIMENTS = (
    Experiment("facts", "facts:stories.jsonl", 15, 10, False,
        cells(HEAD, "50%", "25%", "10%", "5%")),
    Experiment("facts-bytes", "facts:stories.jsonl", 15, 10, False, BYTES),
    Experiment("facts-rest", "facts:stories.jsonl", 6, 10, False, cells(REST, "50%", "35%", "25%")),
    Experiment("facts-systems", "facts:stories.jsonl", 6, 10, False, SYSTEMS),
    Experiment("facts-less", "facts:stories.jsonl", 3, 10, False, LESS),
    Experiment("facts-seen", "facts:meetings.jsonl", 6, 10, True, cells(SEEN, "10%", "5%")),
    Experiment("facts-systems-seen", "facts:meetings.jsonl", 3, 10, True, SYSTEMS_SEEN),
    Experiment("facts-shares", "facts:meetings.jsonl", 4, 10, True,
        cells(SHARES, "1024", "512", "256", "128"), 4000),
    Experiment("facts-long", "facts:meetings.jsonl", 2, 10, True,
        cells(("kvzap",), "10%", "3%"), 16000),
    Experiment("stories", "references:stories.jsonl", 3, 3, False, cells(HEAD, "25%", "10%")),
    Experiment("stories-bytes", "references:stories.jsonl", 3, 3, False, BYTES),
    Experiment("meetings", "references:meetings.jsonl", 3, 3, False, cells(HEAD, "25%", "10%")),
)  # fmt: skip


def measured(model: str, texts: str, experiment: Experiment, number: int, place: str) -> float:
    """Measure what is missing of a document and keep its records. Returns the seconds that took."""
    import torch

    from kvchat.engine.events import drain
    from kvchat.engine.loading import load_engine
    from kvchat.engine.model.read import load_config
    from kvchat.engine.session import Session
    from kvchat.engine.text.chat_template import Dialogue
    from kvchat.engine.text.tokenizer import Tokenizer
    from kvchat.eval.case import Case
    from kvchat.eval.measure import measure
    from kvchat.eval.sources import Source, sources

    torch.set_num_threads(1)
    begin, folder = time.perf_counter(), Path(model)
    engine = drain(load_engine(folder, load_config(folder), device="cpu"))
    session = Session(engine, Dialogue(Tokenizer.load(folder)))
    kind, _, file = experiment.source.partition(":")
    made = Source("", experiment.questions, SEED, (experiment.length,))
    (source,) = sources([], [f"{kind}:{Path(texts) / file}"], made)
    case = source.case(session.dialogue, experiment.length, number)
    assert case is not None, f"{file} has fewer than {experiment.documents} texts"
    if source.task is None:  # the beginning of the text, in whole words
        words, ids = case.document.split(), session.dialogue.document(case.document)
        case = Case(" ".join(words[: len(words) * experiment.length // len(ids)]), case.questions)
    before = held(Path(place))
    asked = [
        Cell(parse_method(spec, Budget.parse(budget)), experiment.seen)
        for spec, budget in lacking(experiment, before)
    ]
    where = {"task": experiment.name, "length": experiment.length, "document": number}
    records = [where | record for record in measure(session, case, asked)]
    names = {record["cell"] for record in records}
    records += [record for record in before["records"] if record["cell"] not in names]
    order = ["full", *experiment.named()]
    records.sort(key=lambda record: (record["question"], order.index(record["cell"])))
    took = before["seconds"] + time.perf_counter() - begin
    write(Path(place), {"seconds": took, "records": records})
    return took


def held(place: Path) -> dict[str, Any]:
    """A piece of work as it is so far."""
    nothing = {"seconds": 0.0, "records": []}
    found: dict[str, Any] = json.loads(place.read_text("utf-8")) if place.exists() else nothing
    return found


def lacking(experiment: Experiment, found: dict[str, Any]) -> list[tuple[str, str]]:
    """The cells that a piece of work has no records of."""
    there = {record["cell"] for record in found["records"]}
    return [cell for name, cell in experiment.named().items() if name not in there]


def piece(model: str, experiment: Experiment, number: int) -> Path:
    """The file of one document's records."""
    return WORK / f"real-{Path(model).name}-{experiment.name}" / f"{number}.json"


def missing(models: list[str], only: list[str]) -> Iterator[tuple[str, Experiment, int]]:
    """The documents of which something is not measured."""
    for experiment in EXPERIMENTS:
        if only and experiment.name not in only:
            continue
        for model in models:
            for number in range(experiment.documents):
                if lacking(experiment, held(piece(model, experiment, number))):
                    yield model, experiment, number


def store(model: str) -> None:
    """The tables of a model, of the documents that are done, for the repository."""
    name, found, drawn = Path(model).name, list[dict[str, Any]](), list[Panel]()
    place = STORE / f"real-{name}.json"
    stored = json.loads(place.read_text("utf-8"))["experiments"] if place.exists() else []
    before = {each["experiment"]["name"]: each for each in stored}
    for experiment in EXPERIMENTS:
        paths = [piece(model, experiment, n) for n in range(experiment.documents)]
        pieces = [json.loads(path.read_text("utf-8")) for path in paths if path.exists()]
        given = {name: " ".join(cell) for name, cell in experiment.named().items()}
        records: list[Record] = [
            record | {"cell": given.get(record["cell"], record["cell"])}
            for each in pieces
            for record in each["records"]
        ]
        if not records and experiment.name in before:
            found.append(before[experiment.name])
        if not records:
            continue
        table = rows(records)
        drawn += panels(table) if experiment.name in DRAWN else []
        found.append(
            {
                "experiment": asdict(experiment),
                "seconds": [each["seconds"] for each in pieces],
                "table": [asdict(row) for row in table],
            }
        )
    if drawn:
        render_panels(STORE / f"real-{name}.png", drawn)
    about = {"model": name, "seed": SEED, "length": LENGTH, "machine": processor()}
    write(place, about | {"experiments": found})


def main() -> None:
    """Measure what is missing, store it, write the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("models", nargs="*")
    options.add_argument("--texts", default="")
    options.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options.add_argument("--only", nargs="*", default=[], metavar="EXPERIMENT")
    options.add_argument("--page", action="store_true", help="write the page of what is stored")
    chosen = options.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    begin, work = (
        time.perf_counter(),
        [] if chosen.page else list(missing(chosen.models, chosen.only)),
    )
    with ProcessPoolExecutor(chosen.processes, get_context("spawn")) as pool:
        running = {
            pool.submit(measured, model, chosen.texts, experiment, number, str(place)): place
            for model, experiment, number in work
            for place in [piece(model, experiment, number)]
        }
        for number, future in enumerate(as_completed(running), 1):
            place = running[future].relative_to(WORK)
            minutes = (time.perf_counter() - begin) / 60
            print(f"{number} of {len(work)}: {place}, {future.result():.0f} s; {minutes:.1f} min")
    for model in chosen.models:
        store(model)
    real_models_page.write()


if __name__ == "__main__":
    main()
