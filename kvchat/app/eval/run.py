"""`kvchat eval`: reads documents, measures cells, writes every answer, resumes where it stopped."""

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter, time
from typing import Any

import torch

from kvchat import __version__
from kvchat.app import machine, process
from kvchat.app.eval import markdown
from kvchat.app.eval.claims import claims, screen_claims
from kvchat.app.eval.measure import Cell, measure
from kvchat.app.eval.report import rows, screen_tables, sized
from kvchat.app.eval.sources import Source, digests, fitted, sources
from kvchat.app.eval.tasks import TASKS
from kvchat.app.inputs import require_choices
from kvchat.app.interrupt import Interrupt
from kvchat.app.models import find_model
from kvchat.app.screen import Screen
from kvchat.app.text import clean, counted, seconds
from kvchat.engine.budget import Budget
from kvchat.engine.dialogue import Dialogue
from kvchat.engine.engine import Engine
from kvchat.engine.methods.full import Full
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.session import Session
from kvchat.engine.tokenizer import Tokenizer
from kvchat.errors import KvchatError

VIEWS = {"unseen": False, "seen": True}
OUTPUTS = ("table", "md", "json")
DEPTHS = range(0, 101, 10)


@dataclass(frozen=True)
class Settings:
    """Options of `kvchat eval`; `depths` in per cent."""

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
    data: list[str] = field(default_factory=list)
    depths: list[int] = field(default_factory=lambda: list(DEPTHS))
    overflow: str = "error"
    plot: str | None = None


def run(settings: Settings) -> int:
    """Measure what is not measured yet, then print the tables. Returns the exit code."""
    process.interruptible()
    check(settings)
    if settings.plot:
        from kvchat.app.eval import pictures  # matplotlib is optional

        folder = pictures.folder(settings.plot)
    asked = sources(
        settings.tasks,
        settings.data,
        settings.lengths,
        settings.depths,
        settings.seed,
        settings.per_document,
    )
    if settings.threads:
        torch.set_num_threads(settings.threads)
    screen = Screen(verbose=True)
    for source in asked:
        for reason, count in source.left_out:
            screen.say(f"{clean(source.name)}: {counted(count, 'line')} left out: {clean(reason)}")
    found = find_model(settings.model)
    config = ModelConfig.load(found.folder)
    dialogue = Dialogue(Tokenizer.load(found.folder))
    loading = Engine.load(found.folder, config, settings.dtype, settings.device, settings.weights)
    session = Session(screen.watch(loading, "loading"), dialogue)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    description = describe(settings, found.name, session)
    description["settings"]["data"] = digests(asked, settings.data)
    records = resume(out, description)
    done = {(r["task"], r["length"], r["document"]) for r in records}
    with Interrupt() as interrupt, (out / "answers.jsonl").open("a", encoding="utf-8") as file:
        for new in measured(settings, asked, session, done, screen, interrupt):
            # a document at once: what is in the file is complete
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in new)
            file.flush()
            records += new
        if interrupt.asked():
            screen.say(f"stopped; the same command goes on from {out}")
    report(settings, description, records, out, screen)
    if settings.plot:
        for path in pictures.draw(records, folder):
            screen.say(f"drawn: {clean(str(path))}")
    return 130 if interrupt.asked() else 0


def report(
    settings: Settings,
    description: dict[str, Any],
    records: list[dict[str, Any]],
    out: Path,
    screen: Screen,
) -> None:
    """Write `table.json` and print tables and claims."""
    table, tried = rows(records), claims(records)
    listed = [asdict(row) for row in table]
    (out / "table.json").write_text(json.dumps(listed, indent=1) + "\n")
    if settings.output == "json":
        found = {"run": description, "table": listed, "claims": [asdict(c) for c in tried]}
        print(json.dumps(found, indent=1))
    elif settings.output == "md":
        for line in (*markdown.tables(table), *markdown.claim_table(tried)):
            print(line)
    else:
        for part in (*screen_tables(table), *screen_claims(tried)):
            screen.out.print(part)


def check(settings: Settings) -> None:
    """Raise KvchatError("usage") for names that do not exist and depths that are none."""
    given = (
        ("task", settings.tasks, TASKS),
        ("view", settings.views, VIEWS),
        ("output", [settings.output], OUTPUTS),
    )
    for what, names, known in given:
        for name in names:
            if name not in known:
                raise KvchatError("usage", f"unknown {what} {name!r}; there are {', '.join(known)}")
    for depth in settings.depths:
        if depth > 100:
            raise KvchatError("usage", f"--depth {depth} is beyond 100 %", "--depth 0,50,100")
    require_choices({"overflow": settings.overflow})


def cells_of(settings: Settings) -> list[Cell]:
    """The cross product of methods, budgets and views; the full cache is measured anyway."""
    cells = [
        Cell(parse_method(spec, Budget.parse(budget)), VIEWS[view])
        for view in settings.views
        for spec in settings.methods
        for budget in settings.budgets
    ]
    return [cell for cell in cells if not isinstance(cell.method, Full)]


def measured(
    settings: Settings,
    asked: Sequence[Source],
    session: Session,
    done: set[tuple[str, int, int]],
    screen: Screen,
    interrupt: Interrupt,
) -> Iterator[list[dict[str, Any]]]:
    """The records of one document after another, until all questions are asked or Ctrl-C."""
    cells = cells_of(settings)
    for source in asked:
        for length in source.lengths:
            questions = number = 0
            while questions < settings.questions and not interrupt.asked():
                case = source.case(session.dialogue, length, number)
                if case is None:
                    break
                if (source.name, length, number) not in done:
                    begin = perf_counter()
                    fits = fitted(case, session.dialogue, session.limit, settings.overflow)
                    where = {"task": source.name, "length": length, "document": number}
                    found = []
                    for record in measure(session, fits, cells):
                        found.append(where | record)
                        if interrupt.asked():
                            return
                    took = seconds(perf_counter() - begin)
                    cut = "" if fits is case else f" · cut at its {settings.overflow}"
                    name = f"{clean(source.name)} · {sized(length)} · document {number}"
                    screen.say(f"{name}{cut} · {took}")
                    yield found
                questions += len(case.questions)
                number += 1


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


GROWS = {"questions", "lengths", "tasks", "threads", "out", "output", "plot"}
"""Settings that a run may go on with in another way: they add to it, or do not matter."""


def resume(out: Path, description: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of an earlier run with the same settings; its description is written if new.

    Raises KvchatError("session") if the folder holds another experiment.
    """
    path, answers = out / "run.json", out / "answers.jsonl"
    if path.exists():
        before = json.loads(path.read_text())
        old, new = (_fixed(found["settings"]) for found in (before, description))
        changed = [key for key in new if key in old and old[key] != new[key]]
        changed += [key for key in old.keys() ^ new.keys() if not key.startswith("data ")]
        if changed:
            raise KvchatError(
                "session",
                f"{out} holds another experiment: {clean(', '.join(changed))} differ",
                "--out ANOTHER-FOLDER",
            )
        files = before["settings"]["data"]
        description["settings"]["data"] = files | description["settings"]["data"]
    path.write_text(json.dumps(description | {"time": int(time())}, indent=1) + "\n")
    if not answers.exists():
        return []
    text = answers.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def _fixed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that must not change; further files may be added, each stays what it was."""
    files = {f"data {name}": found for name, found in settings.get("data", {}).items()}
    return {k: v for k, v in settings.items() if k not in GROWS | {"data"}} | files
