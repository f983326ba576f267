"""`kvchat eval`: reads documents, measures cells, writes every answer, resumes where it stopped."""

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, time
from typing import Any

import torch

from kvchat import __version__
from kvchat.app import machine, process
from kvchat.app.eval import markdown
from kvchat.app.eval.claims import claims, screen_claims
from kvchat.app.eval.measure import Cell, measure
from kvchat.app.eval.report import rows, screen_tables
from kvchat.app.eval.tasks import TASKS, Case
from kvchat.app.interrupt import Interrupt
from kvchat.app.models import find_model
from kvchat.app.screen import Screen
from kvchat.app.text import seconds
from kvchat.engine.budget import Budget
from kvchat.engine.dialogue import Dialogue
from kvchat.engine.engine import Engine
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.session import Session
from kvchat.engine.tokenizer import Tokenizer
from kvchat.errors import KvchatError

VIEWS = {"unseen": False, "seen": True}
OUTPUTS = ("table", "md")


@dataclass(frozen=True)
class Settings:
    """Options of `kvchat eval`."""

    model: str | None
    tasks: list[str]
    lengths: list[int]
    methods: list[str]
    budgets: list[str]
    views: list[str]
    questions: int
    per_document: int
    seed: int
    out: str
    device: str
    dtype: str
    weights: str
    threads: int | None
    output: str = "table"


def run(settings: Settings) -> int:
    """Measure what is not measured yet, then print the table. Returns the exit code."""
    process.interruptible()
    check(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    screen = Screen(verbose=True)
    found = find_model(settings.model)
    config = ModelConfig.load(found.folder)
    dialogue = Dialogue(Tokenizer.load(found.folder))
    loading = Engine.load(found.folder, config, settings.dtype, settings.device, settings.weights)
    session = Session(screen.watch(loading, "loading"), dialogue)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    records = resume(out, describe(settings, found.name, session))
    done = {(r["task"], r["length"], r["document"]) for r in records}
    with Interrupt() as interrupt, (out / "answers.jsonl").open("a", encoding="utf-8") as file:
        for new in measured(settings, session, done, screen, interrupt):
            # a document at once: what is in the file is complete
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in new)
            file.flush()
            records += new
        if interrupt.asked():
            screen.say(f"stopped; the same command goes on from {out}")
    table, tried = rows(records), claims(records)
    (out / "table.json").write_text(json.dumps([asdict(row) for row in table], indent=1) + "\n")
    if settings.output == "md":
        for line in (*markdown.tables(table), *markdown.claim_table(tried)):
            print(line)
    else:
        for part in (*screen_tables(table), *screen_claims(tried)):
            screen.out.print(part)
    return 130 if interrupt.asked() else 0


def check(settings: Settings) -> None:
    """Raise KvchatError("usage") for names that do not exist."""
    given = (
        ("task", settings.tasks, TASKS),
        ("view", settings.views, VIEWS),
        ("output", [settings.output], OUTPUTS),
    )
    for what, names, known in given:
        for name in names:
            if name not in known:
                raise KvchatError("usage", f"unknown {what} {name!r}; there are {', '.join(known)}")


def cells_of(settings: Settings) -> list[Cell]:
    """The cross product of methods, budgets and views."""
    return [
        Cell(parse_method(spec, Budget.parse(budget)), VIEWS[view])
        for view in settings.views
        for spec in settings.methods
        for budget in settings.budgets
    ]


def measured(
    settings: Settings,
    session: Session,
    done: set[tuple[str, int, int]],
    screen: Screen,
    interrupt: Interrupt,
) -> Iterator[list[dict[str, Any]]]:
    """The records of one document after another, until all questions are asked or Ctrl-C."""
    cells = cells_of(settings)
    for task in settings.tasks:
        for length in settings.lengths:
            asked = number = 0
            while asked < settings.questions and not interrupt.asked():
                asked_of = settings.seed, length, number, settings.per_document
                case = case_of(session, task, *asked_of)
                if (task, length, number) not in done:
                    begin = perf_counter()
                    where = {"task": task, "length": length, "document": number}
                    found = []
                    for record in measure(session, case, cells):
                        found.append(where | record)
                        if interrupt.asked():
                            return
                    took = seconds(perf_counter() - begin)
                    screen.say(f"{task} · {length:,} tokens · document {number} · {took}")
                    yield found
                asked += len(case.questions)
                number += 1


def case_of(
    session: Session, task: str, seed: int, length: int, number: int, questions: int
) -> Case:
    """The document of a number, scaled so that this model's tokenizer makes `length` of it."""
    seed = seed * 10**6 + length * 1000 + number
    case = TASKS[task](seed, length, questions)
    tokens = len(session.dialogue.document(case.document))
    if tokens > 1.05 * length or tokens < 0.9 * length:
        case = TASKS[task](seed, round(length * length / tokens), questions)
    return case


def describe(settings: Settings, model: str, session: Session) -> dict[str, Any]:
    """What a result depends on, and what it was measured with."""
    return {
        "settings": asdict(settings) | {"model": model, "out": ""},
        "versions": {"kvchat": __version__, "torch": torch.__version__},
        "cpu": machine.processor(),
        "platform": platform.platform(),
        "dtype": str(session.engine.dtype).removeprefix("torch."),
        "weights": session.engine.weights,
        "parameters": session.engine.config.parameters,
    }


def resume(out: Path, description: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of an earlier run with the same settings; its description is written if new.

    Raises KvchatError("session") if the folder holds another experiment.
    """
    path, answers = out / "run.json", out / "answers.jsonl"
    if path.exists():
        before = json.loads(path.read_text())
        free = {
            "questions",
            "lengths",
            "tasks",
            "threads",
            "out",
            "output",
        }  # may grow or do not matter
        old, new = (
            {k: v for k, v in d["settings"].items() if k not in free} for d in (before, description)
        )
        if old != new:
            changed = [key for key in new if old.get(key) != new[key]]
            raise KvchatError(
                "session",
                f"{out} holds another experiment: {', '.join(changed)} differ",
                "--out ANOTHER-FOLDER",
            )
    path.write_text(json.dumps(description | {"time": int(time())}, indent=1) + "\n")
    if not answers.exists():
        return []
    return [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
