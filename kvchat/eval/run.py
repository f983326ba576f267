"""`kvchat eval`: reads documents, measures cells, writes every answer, resumes where it stopped."""

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch

from kvchat import __version__, process
from kvchat.engine.budget import Budget
from kvchat.engine.engine import Engine
from kvchat.engine.methods.full import Full
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.session import Session
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.errors import KvchatError
from kvchat.eval import markdown
from kvchat.eval.answers import Answers
from kvchat.eval.claims import claims, screen_claims
from kvchat.eval.measure import Cell, measure
from kvchat.eval.report import rows, screen_tables, sized
from kvchat.eval.sources import Source, digests, fitted, met, sources
from kvchat.eval.tasks import TASKS
from kvchat.hub.find import find_model
from kvchat.machine import resources as machine
from kvchat.terminal.interrupt import Interrupt
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean, counted, seconds

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
        from kvchat.eval import pictures

        folder = pictures.folder(settings.plot)
    asked = sources(
        settings.tasks,
        settings.data,
        settings.lengths,
        settings.depths,
        settings.seed,
        settings.per_document,
    )
    answers = Answers(settings.out)
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
    description = describe(settings, found.name, session)
    description["settings"]["data"] = digests(asked, settings.data)
    answers.resume(description)
    with Interrupt() as interrupt:
        for new in measured(settings, asked, session, answers.done, screen, interrupt):
            answers.add(new)
        if interrupt.asked():
            screen.say(f"stopped; the same command goes on from {clean(settings.out)}")
    report(settings, description, answers, screen)
    if settings.plot:
        for path in pictures.draw(answers.records, folder):
            screen.say(f"drawn: {clean(str(path))}")
    return 130 if interrupt.asked() else 0


def report(
    settings: Settings,
    description: dict[str, Any],
    answers: Answers,
    screen: Screen,
) -> None:
    """Write `table.json` and print tables and claims."""
    table, tried = rows(answers.records), claims(answers.records)
    listed = [asdict(row) for row in table]
    (answers.folder / "table.json").write_text(json.dumps(listed, indent=1) + "\n")
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
    """Raise KvchatError("usage") for names that do not exist, and for what is no depth or cell."""
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
    cells_of(settings)


def cells_of(settings: Settings) -> list[Cell]:
    """The cross product of methods, budgets and views; the full cache is measured anyway."""
    cells = [
        Cell(parse_method(spec, Budget.parse(budget)), VIEWS[view])
        for view in settings.views
        for spec in settings.methods
        for budget in settings.budgets
    ]
    known = {(cell.name, cell.seen): cell for cell in cells if not isinstance(cell.method, Full)}
    return list(known.values())


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
                    where: dict[str, Any] = {
                        "task": source.name,
                        "length": length,
                        "document": number,
                    }
                    found = []
                    for record in measure(session, fits, cells):
                        found.append(where | record)
                        if interrupt.asked():
                            return
                    took = seconds(perf_counter() - begin)
                    name = f"{clean(source.name)} · {sized(length)} · document {number}"
                    cut = "" if fits is case else f" · cut at its {settings.overflow}"
                    tokens = found[0]["document_tokens"]
                    if length and not met(tokens, length):
                        cut = f" · it has {tokens:,}, for it cannot be as long as was asked for"
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
