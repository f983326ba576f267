"""Measures everything that docs/results-demo.md shows, and writes it: `make results-demo`.

Each document of each experiment is a piece of work of its own, measured in a process with one
thread and kept under `.results/`; a run that was stopped goes on with what is missing. What the
pieces say goes to docs/results/*.json, and from these the page is made. Nothing was ever chosen by
looking at the seed of this report.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import results_page
from claims import claims

from kvchat.engine.model.read import load_config
from kvchat.eval.pictures import Panel, panels, render_panels
from kvchat.eval.report import Estimate, Row, rows
from kvchat.machine.resources import processor

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".results"
STORE = ROOT / "docs" / "results"
SEED = 11
BUDGETS = ("50%", "35%", "25%", "10%", "6.25%")
SHOWN = ("full", "streamingllm", "snapkv", "adakv", "h2o", "kvmerger", "kvzip")
WINDOW = ("snapkv", "pyramidkv", "adakv", "ada-pyramid", "criticalkv", "critical-adakv")


@dataclass(frozen=True)
class Experiment:
    """Documents of one length, the questions about each, and the cells that answer them."""

    name: str
    length: int
    documents: int
    questions: int  # about each document
    seen: bool
    cells: tuple[tuple[str, str], ...]  # method spec, budget

    @property
    def key(self) -> str:
        """What a piece of work depends on: the experiment but its number of documents, the code."""
        parts = asdict(self) | {"documents": 0, "seed": SEED, "code": code()}
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def cells(methods: Iterable[str], budgets: Iterable[str] = BUDGETS) -> tuple[tuple[str, str], ...]:
    """The cross product."""
    return tuple((method, budget) for method in methods for budget in budgets)


ONCE = ("streamingllm", *WINDOW, "defensivekv", "h2o", "tova", "knorm", "expected-attention")
EXPERIMENTS = (
    Experiment(
        "unseen-4096",
        4096,
        documents=8,
        questions=25,
        seen=False,
        cells=cells((*ONCE, "kvmerger", "cam", "kvzip", "kvzip+", "askall"))
        + cells(["pqcache"], ("25%", "20%", "10%")),
    ),
    Experiment(
        "seen-4096",
        4096,
        documents=8,
        questions=10,
        seen=True,
        cells=cells((*WINDOW, "defensivekv", "h2o", "kvmerger")),
    ),
    Experiment(
        "unseen-8192",
        8192,
        documents=6,
        questions=25,
        seen=False,
        cells=cells(("streamingllm", "snapkv", "adakv", "h2o", "kvmerger", "cam", "kvzip"))
        + cells(["pqcache"], ("20%", "10%")),
    ),
    Experiment(
        "seen-8192",
        8192,
        documents=6,
        questions=10,
        seen=True,
        cells=cells(("snapkv", "adakv", "h2o", "kvmerger")),
    ),
    Experiment(
        "unseen-16384",
        16384,
        documents=3,
        questions=25,
        seen=False,
        cells=cells(("streamingllm", "adakv", "kvzip"), ("25%", "10%", "6.25%"))
        + cells(["pqcache"], ("20%", "10%")),
    ),
)


def code() -> str:
    """A digest of what decides the quality columns: the engine, the tasks, the demo model."""
    files = [
        *(ROOT / "kvchat/engine").rglob("*.py"),
        *(ROOT / "kvchat/kernels").rglob("*.py"),
        *(ROOT / "kvchat/eval").rglob("*.py"),
        ROOT / "models/demo/model.safetensors",
    ]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def measured(experiment: Experiment, number: int) -> float:
    """Measure one document and keep its records. Returns the seconds that took."""
    from kvchat.engine.budget import Budget
    from kvchat.engine.events import drain
    from kvchat.engine.loading import load_engine
    from kvchat.engine.methods.build import parse_method
    from kvchat.engine.session import Session
    from kvchat.engine.text.chat_template import Dialogue
    from kvchat.engine.text.tokenizer import Tokenizer
    from kvchat.eval.measure import Cell, measure
    from kvchat.eval.sources import Source
    from kvchat.eval.tasks import TASKS
    from kvchat.hub.find import demo_model

    begin = time.perf_counter()
    folder = demo_model().path
    engine = drain(load_engine(folder, load_config(folder), device="cpu"))
    session = Session(engine, Dialogue(Tokenizer.load(folder)))
    source = Source("world", experiment.questions, SEED, task=TASKS["world"])
    case = source.case(session.dialogue, experiment.length, number)
    assert case is not None, "a task makes any number of documents"
    asked = [
        Cell(parse_method(spec, Budget.parse(budget)), experiment.seen)
        for spec, budget in experiment.cells
    ]
    where = {"task": "world", "length": experiment.length, "document": number}
    records = [where | record for record in measure(session, case, asked)]
    took = time.perf_counter() - begin
    write(piece(experiment, number), {"seconds": took, "records": records})
    return took


def piece(experiment: Experiment, number: int) -> Path:
    """The file of one document's records."""
    return WORK / f"{experiment.name}-{experiment.key}" / f"{number}.json"


def write(path: Path, found: Any) -> None:
    """As JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def missing(experiments: Iterable[Experiment]) -> Iterator[tuple[Experiment, int]]:
    """The documents that no finished piece of work holds, the longest first."""
    for experiment in sorted(experiments, key=lambda e: -e.length):
        for number in range(experiment.documents):
            if not piece(experiment, number).exists():
                yield experiment, number


def finished(experiment: Experiment) -> list[dict[str, Any]]:
    """Its pieces of work."""
    return [json.loads(piece(experiment, n).read_text()) for n in range(experiment.documents)]


def render() -> None:
    """The picture of some methods at 4,096 tokens, for the page and the README."""
    found: list[Panel] = []
    for experiment in EXPERIMENTS:
        if experiment.length == 4096:
            stored = json.loads((STORE / f"{experiment.name}.json").read_text(encoding="utf-8"))
            found += panels(_row(row) for row in stored["table"] if _shown(row))
    render_panels(STORE / "answers.png", found)


def _shown(row: dict[str, Any]) -> bool:
    return row["cell"].partition(" ")[0] in SHOWN and row["kind"] == "answerable"


def _row(stored: dict[str, Any]) -> Row:
    return Row(**stored | {name: Estimate(**stored[name]) for name in ("right", "kl", "score")})


def store(experiment: Experiment) -> list[float]:
    """Tables and claims of a finished experiment for the repository. Returns seconds per document.

    What is stored repeats exactly with the same code on the same kind of processor.
    """
    pieces = finished(experiment)
    records = [record for found in pieces for record in found["records"]]
    result = {
        "experiment": asdict(experiment) | {"seed": SEED, "code": code()},
        "table": [asdict(row) for row in rows(records)],
        "claims": claims(records),
    }
    write(STORE / f"{experiment.name}.json", result)
    return [found["seconds"] for found in pieces]


def main() -> None:
    """Measure what is missing, store it, write the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    chosen = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come: sums in one order
    fresh = get_context("spawn")
    begin, work = time.perf_counter(), list(missing(EXPERIMENTS))
    with ProcessPoolExecutor(chosen.processes, fresh) as pool:
        running = {pool.submit(measured, *item): item for item in work}
        for number, future in enumerate(as_completed(running), 1):
            experiment, document = running[future]
            print(
                f"{number} of {len(work)}: {experiment.name}, document {document}, "
                f"{future.result():.0f} s; {(time.perf_counter() - begin) / 60:.1f} minutes",
                flush=True,
            )
    seconds = {experiment.name: store(experiment) for experiment in EXPERIMENTS}
    times = {"machine": processor(), "processes": chosen.processes, "seconds": seconds}
    write(STORE / "times.json", times)
    render()
    results_page.write()


if __name__ == "__main__":
    main()
