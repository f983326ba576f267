"""`kvchat calibrate`: fits the gate of a model on documents, and goes on where it was stopped."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import torch

from kvchat import process
from kvchat.calibrate.settings import Settings
from kvchat.calibrate.texts import HELD_OUT, documents
from kvchat.chat.paths import expanded
from kvchat.documents import read
from kvchat.engine import gates
from kvchat.engine.engine import Engine
from kvchat.engine.gates.fit import Fit
from kvchat.engine.methods.kvzip import KVzip
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


def run(model: Model, texts: Sequence[str], settings: Settings) -> int:
    """Fit and save the gate. Returns the exit code. Raises KvchatError."""
    process.interruptible()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    screen = Screen(verbose=True)
    given = _own(texts) if texts else [(name, text, name in HELD_OUT) for name, text in documents()]
    config = load_config(model.path)
    loading = Engine.load(
        model.path, config, settings.dtype, settings.device, settings.weights, kernels="torch"
    )
    engine = screen.watch(loading, "loading")
    dialogue = Dialogue(load_tokenizer(model))
    fit = Fit(engine, dialogue, KVzip())
    root = Path(settings.out) if settings.out else gates.folder()
    place = root / f"{gates.digest_of(engine.model)}{gates.SUFFIX}"
    part = place.with_suffix(".part")
    if settings.again:
        part.unlink(missing_ok=True)
    elif place.exists():
        screen.say(f"{model.name} has a gate: {clean(str(place))} (--again fits another)")
        return 0
    done = fit.resume(part)
    room = config.context_limit
    with Interrupt() as interrupt:
        for number, (name, text, held_out) in enumerate(given, start=1):
            mark = sha256(f"{held_out} {text}".encode()).hexdigest()
            ids = dialogue.document(text)[: room * 3 // 4]
            label = f"{clean(name)}, {number} of {len(given)}"
            if mark in done:
                continue
            screen.watch(fit.read(ids, held_out), label, len(ids))
            fit.note(mark, part)
            if interrupt.asked():
                screen.say("interrupted; the same command goes on from there")
                return process.CTRL_C
    gate = fit.gate(model=model.name, texts=len(given))
    saved = gates.save(gate, engine.model, root)
    part.unlink(missing_ok=True)
    if scores := [float(each) for each in str(gate.about.get("r2", "")).split()]:
        screen.say("R² by layer on held-out text: " + " ".join(f"{each:.2f}" for each in scores))
        screen.say(f"mean {sum(scores) / len(scores):.2f}")
    screen.say(f"fitted to {counted(gate.about['entries'], 'token')}")
    print(saved)
    machine.release(engine.device)
    return 0


def _own(paths: Sequence[str]) -> list[tuple[str, str, bool]]:
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
