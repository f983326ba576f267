"""`kvchat eval`: prefills documents, measures cells, writes every answer, resumes where it
stopped."""

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from time import perf_counter

import torch

from kvchat import __version__, process
from kvchat.engine.budget import Budget
from kvchat.engine.devices import resolve_device
from kvchat.engine.engine import Engine
from kvchat.engine.loading import load_engine
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.simple import Full
from kvchat.engine.model.read import load_config
from kvchat.engine.peers import ALONE, Peers
from kvchat.engine.session import Session
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.errors import KvchatError
from kvchat.eval.answers import Answers, default_folder
from kvchat.eval.case import Case
from kvchat.eval.measure import Cell, measure
from kvchat.eval.report import Record, rows, sized, tables
from kvchat.eval.settings import Settings
from kvchat.eval.sources import Source, fitted, met, sources
from kvchat.eval.tasks import TASKS
from kvchat.hub.find import find_model
from kvchat.machine import ranks
from kvchat.machine import resources as machine
from kvchat.terminal.interrupt import Interrupt
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean, counted, seconds

Place = tuple[str, int, int]  # task, length, and number of a document
VIEWS = {"unseen": False, "seen": True}


def run(settings: Settings) -> int:
    """Measure what is not measured yet, then print the table. Returns the exit code."""
    process.interruptible()
    check(settings)
    if settings.plot:
        # matplotlib behind it is optional
        from kvchat.eval import pictures

        pictures.folder(settings.plot)
    asked_in(settings)
    if settings.out:  # refused before anything is looked for or loaded
        Answers(Path(settings.out))
    with ranks.team(settings.devices, part, settings) as peers:
        return part(settings, peers)


def asked_in(settings: Settings) -> list[Source]:
    """Where the documents and questions are from. Raises KvchatError."""
    shares = tuple(depth / 100 for depth in settings.depths)
    made = Source("", settings.per_document, settings.seed, tuple(settings.lengths), shares)
    return sources(settings.tasks, settings.data, made)


def part(settings: Settings, peers: Peers) -> int:
    """The part of one of `peers`; the first has the answers of all. Returns the exit code."""
    process.interruptible()
    asked = asked_in(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    screen = Screen(quiet=peers.rank > 0, verbose=True)
    for source in asked:
        for reason, count in source.given.left_out.items():
            screen.say(f"{clean(source.name)}: {counted(count, 'line')} left out: {clean(reason)}")
    found = find_model(settings.model)
    digests = {source.name: source.digest for source in asked if source.name in settings.data}
    described = asdict(settings) | {"model": found.name, "out": "", "data": digests}
    del described["devices"]  # however many, the answers are the same
    answers = (
        None
        if peers.rank
        else Answers(Path(settings.out) if settings.out else default_folder(described))
    )
    config = load_config(found.path)
    dialogue = Dialogue(Tokenizer.load(found.path))
    device = str(resolve_device(settings.device, peers))  # each has all of the model
    loading = load_engine(found.path, config, settings.dtype, device, settings.weights)
    session = Session(
        screen.watch(loading, "loading"), dialogue, streams=settings.overflow == "stream"
    )
    description = {"settings": described} | describe(session.engine)
    if answers is not None:
        answers.resume(description)
    done = peers.exchanged(answers.done if answers is not None else set())[0]
    with Interrupt() as interrupt:
        for new in measured(settings, asked, session, done, screen, interrupt, peers):
            if answers is not None:
                answers.add(new)
        if answers is None:  # the first rank has all of them
            return 0
        if interrupt.asked():
            screen.say("interrupted; the same command goes on from there")
    screen.say(f"answers in {clean(str(answers.folder))}")
    table = rows(answers.records)
    listed = [asdict(row) for row in table]
    (answers.folder / "table.json").write_text(json.dumps(listed, indent=1) + "\n")
    if settings.output == "json":
        print(json.dumps({"run": description, "table": listed}, indent=1))
    else:
        print(*tables(table), sep="\n")
    if settings.plot:
        from kvchat.eval import pictures

        for path in pictures.render(table, pictures.folder(settings.plot)):
            screen.say(f"picture in {clean(str(path))}")
    return process.CTRL_C if interrupt.asked() else 0


def check(settings: Settings) -> None:
    """Raise KvchatError("usage") for unknown names, and for what is no cell."""
    for flag, names, known in (
        ("--task", settings.tasks, TASKS),
        ("--view", settings.views, VIEWS),
    ):
        for name in set(names) - known.keys():
            message = f"{flag} {name!r} is unknown; there are {', '.join(known)}"
            raise KvchatError("usage", message, f"{flag} {next(iter(known))}")
    cells_of(settings)


def cells_of(settings: Settings) -> list[Cell]:
    """The cross product of methods, budgets and views; the full cache is measured anyway."""
    cells = [
        Cell(parse_method(spec, Budget.parse(budget)), VIEWS[view])
        for view in settings.views
        for spec in settings.methods
        for budget in settings.budgets
    ]
    known = {(cell.name, cell.seen): cell for cell in cells if cell.method != Full()}
    return list(known.values())


def waiting(
    settings: Settings, asked: list[Source], session: Session, done: set[Place]
) -> Iterator[tuple[Source, Place, Case]]:
    """The documents that are not measured yet, until all questions are asked."""
    for source, length in [(each, length) for each in asked for length in each.lengths]:
        questions = number = 0
        while questions < settings.questions:
            case = source.case(session.dialogue, length, number)
            if case is None:
                break
            if (place := (source.name, length, number)) not in done:
                yield source, place, case
            questions += len(case.questions)
            number += 1


def measured(
    settings: Settings,
    asked: list[Source],
    session: Session,
    done: set[Place],
    screen: Screen,
    interrupt: Interrupt,
    peers: Peers = ALONE,
) -> Iterator[list[Record]]:
    """The records of one document after another, until all questions are asked or Ctrl-C.

    Of `peers` each takes one of as many documents.
    """
    cells, left = cells_of(settings), waiting(settings, asked, session, done)
    while turn := list(islice(left, peers.count)):
        own = turn[peers.rank : peers.rank + 1]
        found = [one_measured(settings, *each, session, cells, interrupt) for each in own]
        every = peers.exchanged(([], "") if not found else found[0])
        for records, said in every:
            if records:
                screen.say(said)
                yield records
        if any(peers.exchanged(interrupt.asked())):
            return


def one_measured(
    settings: Settings,
    source: Source,
    place: Place,
    case: Case,
    session: Session,
    cells: list[Cell],
    interrupt: Interrupt,
) -> tuple[list[Record], str]:
    """The records of one document, none after Ctrl-C; and what is said of it."""
    begin, (_, length, number) = perf_counter(), place
    fits = fitted(case, session.dialogue, session.limit, settings.overflow)
    named: Record = dict(zip(("task", "length", "document"), place, strict=True))
    found = []
    for record in measure(session, fits, cells):
        found.append(named | record)
        if interrupt.asked():
            return [], ""
    note = "" if fits is case else f" · cut at its {settings.overflow}"
    tokens = found[0]["document_tokens"]
    if length and not met(tokens, length):
        note = f" · it has {tokens:,}, for it cannot be as long as was asked for"
    name = f"{clean(source.name)} · {sized(length)} · document {number}"
    return found, f"{name}{note} · {seconds(perf_counter() - begin)}"


def describe(engine: Engine) -> Record:
    """What a result depends on beside the settings."""
    return {
        "versions": {"kvchat": __version__, "torch": torch.__version__},
        "cpu": machine.processor(),
        "platform": platform.platform(),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "weights": engine.weights,
        "parameters": engine.config.parameters,
    }
