"""`kvchat calibrate`: fits what a method wants on documents, and goes on where it was stopped."""

from collections.abc import Generator, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import Any, Protocol

import torch

from kvchat import process
from kvchat.calibrate.settings import MAPS, Settings
from kvchat.calibrate.texts import HELD_OUT, documents
from kvchat.chat.paths import expanded
from kvchat.documents import read
from kvchat.engine import features, gates
from kvchat.engine.engine import Engine
from kvchat.engine.features import fit as maps
from kvchat.engine.gates.fit import Fit
from kvchat.engine.loading import load_engine
from kvchat.engine.methods.kvzip import KVzip
from kvchat.engine.methods.options import WHOLE
from kvchat.engine.model.read import load_config
from kvchat.engine.text.chat_template import Dialogue
from kvchat.errors import KvchatError
from kvchat.hub.find import Model
from kvchat.hub.tokenizer import load_tokenizer
from kvchat.machine import resources as machine
from kvchat.terminal.interrupt import Interrupt
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean, counted

EVERY = 6  # of own texts one is held out, to judge by


Text = tuple[str, str, bool]  # name, text, and whether it is held out


def run(model: Model, texts: Sequence[str], settings: Settings) -> int:
    """Fit and save what a method wants. Returns the exit code. Raises KvchatError."""
    process.interruptible()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    screen = Screen(verbose=True)
    given = _own(texts) if texts else [(name, text, name in HELD_OUT) for name, text in documents()]
    config = load_config(model.path)
    loading = load_engine(
        model.path, config, settings.dtype, settings.device, settings.weights, kernels="torch"
    )
    engine = screen.watch(loading, "loading")
    dialogue = Dialogue(load_tokenizer(model))
    root = Path(settings.out) if settings.out else gates.folder()
    suffix = features.SUFFIX if settings.purpose == MAPS else gates.SUFFIX
    place = root / f"{gates.digest_of(engine.model)}{suffix}"
    if place.exists() and not settings.again:
        what = "maps" if settings.purpose == MAPS else "a gate"
        screen.say(f"{model.name} has {what}: {clean(str(place))} (--again fits anew)")
        return 0
    kind = MapsJob if settings.purpose == MAPS else GateJob
    job = kind(engine, dialogue, place, settings.again)
    room = config.context_limit
    with Interrupt() as interrupt:
        for number, (name, text, held_out) in enumerate(given, start=1):
            mark = sha256(f"{held_out} {text}".encode()).hexdigest()
            ids = dialogue.document(text)[: room * 3 // 4]
            label = f"{clean(name)}, {number} of {len(given)}"
            if not job.has(mark, held_out):
                screen.watch(job.read(ids, held_out, mark), label, len(ids))
            if interrupt.asked():
                return _stopped(screen)
        for said in job.finish(model.name, len(given)):
            screen.say(said)
            if interrupt.asked():
                return _stopped(screen)
    print(place)
    machine.release(engine.device)
    return 0


def _stopped(screen: Screen) -> int:
    screen.say("interrupted; the same command goes on from there")
    return process.CTRL_C


class Job(Protocol):
    """Something in the making: documents are read, each once, then it is fitted and saved."""

    def __init__(self, engine: Engine, dialogue: Dialogue, place: Path, again: bool): ...

    def has(self, mark: str, held_out: bool) -> bool:
        """Whether a document was read before."""

    def read(self, ids: Sequence[int], held_out: bool, mark: str) -> Generator[Any, None, None]:
        """Read a document, and keep what was learnt so that another run goes on."""

    def finish(self, name: str, texts: int) -> Iterator[str]:
        """Fit and save; yields what there is to say."""


class GateJob:
    """The gate of kvzap."""

    def __init__(self, engine: Engine, dialogue: Dialogue, place: Path, again: bool):
        # Texts are short: replays that see all of one cost little more and tell a little better.
        self.fit = Fit(engine, dialogue, KVzip(tell=WHOLE))
        self.place, self.part = place, place.with_suffix(".part")
        if again:
            self.part.unlink(missing_ok=True)
        self.done = self.fit.resume(self.part)

    def has(self, mark: str, held_out: bool) -> bool:
        """See `Job.has`."""
        return mark in self.done

    def read(self, ids: Sequence[int], held_out: bool, mark: str) -> Generator[Any, None, None]:
        """See `Job.read`."""
        yield from self.fit.read(ids, held_out)
        self.fit.note(mark, self.part)

    def finish(self, name: str, texts: int) -> Iterator[str]:
        """See `Job.finish`."""
        gate = self.fit.gate(model=name, texts=texts)
        gates.save(gate, self.fit.engine.model, self.place.parent)
        self.part.unlink(missing_ok=True)
        if scores := [float(each) for each in str(gate.about.get("r2", "")).split()]:
            yield "R² by layer on held-out text: " + " ".join(f"{each:.2f}" for each in scores)
            yield f"mean {sum(scores) / len(scores):.2f}"
        yield f"fitted to {counted(gate.about['entries'], 'token')}"


class MapsJob:
    """The maps of less."""

    def __init__(self, engine: Engine, dialogue: Dialogue, place: Path, again: bool):
        folder = place.with_suffix(".parts")
        if again:
            rmtree(folder, ignore_errors=True)
        self.fit, self.place = maps.Fit(engine, folder), place
        self.marks: dict[bool, list[str]] = {False: [], True: []}  # by whether it is held out

    def has(self, mark: str, held_out: bool) -> bool:
        """See `Job.has`."""
        self.marks[held_out].append(mark)
        return self.fit.has(mark)

    def read(self, ids: Sequence[int], held_out: bool, mark: str) -> Generator[Any, None, None]:
        """See `Job.read`."""
        yield from self.fit.read(ids, mark)

    def finish(self, name: str, texts: int) -> Iterator[str]:
        """See `Job.finish`."""
        left = []
        for number, error in enumerate(self.fit.layers(self.marks[False], self.marks[True]), 1):
            left.append(error)
            yield f"layer {number}: {error:.0%} of the error of evicting is left"
        about = {"model": name, "texts": texts, "left": " ".join(f"{each:.3f}" for each in left)}
        features.save(self.place, self.fit.found(), about)
        self.fit.forget()
        yield f"{sum(left) / len(left):.0%} is left on the mean of all layers, on held-out text"


def _own(paths: Sequence[str]) -> list[Text]:
    """A person's texts: name, text, and whether it is held out. Raises KvchatError."""
    paths = [file for path in paths for file in expanded(path)]
    if len(paths) < 2:
        raise KvchatError(
            "usage",
            "one text is not enough: a second one says how good the gate is",
            "kvchat calibrate MODEL A.txt B.txt …",
            "kvchat calibrate MODEL  (the texts that come with kvchat)",
        )
    step = min(EVERY, len(paths))
    return [
        (Path(path).name, read(path).text, number % step == step - 1)
        for number, path in enumerate(paths)
    ]
