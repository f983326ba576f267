"""`kvchat demo`: the bundled model reads the sample, compresses it and answers its questions."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from kvchat.app.models import CHECKOUT, PACKAGE
from kvchat.app.options import Options
from kvchat.app.screen import Screen
from kvchat.app.start import Chat, open_chat
from kvchat.app.text import clean, size, sizes
from kvchat.engine.cache.layer import KVCache
from kvchat.engine.events import TurnDone
from kvchat.engine.methods.full import Full
from kvchat.engine.prefill import Compression
from kvchat.errors import KvchatError

SAMPLE = "valley"
NEEDED = 10  # right answers with the full cache, or the demo has failed
MEANINGS = {
    "full": "full cache",
    "25 % unseen": "Ada-KV keeps 25 %, chosen before any question is known",
    "25 % seen": "Ada-KV keeps 25 %, chosen with the question in view",
}


def run(threads: int | None) -> int:
    """Read, compress, ask, mark. Exit code 1 under `NEEDED` right answers with the full cache."""
    document = sample_folder() / f"{SAMPLE}.txt"
    lines = document.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    questions = [pair["question"] for pair in pairs]
    expected = [pair["answer"] for pair in pairs]
    screen = Screen(plain=False, verbose=True)
    chat = open_chat(Options(model="demo", files=[str(document)], threads=threads), screen)
    session = chat.session
    held, full = session.memory().total, session.full_bytes()
    screen.say(
        f"Ada-KV freed {size(full - held)} of KV cache: {sizes(held, full)} are left", "bold"
    )

    screen.say(f"asking {len(questions)} questions; for comparison the document is read once more")
    unseen = answers(chat, questions, [session.cache] * len(questions), screen)
    caches = compared(chat, questions, screen)
    exact = answers(chat, questions, [caches[0]] * len(questions), screen)
    seen = answers(chat, questions, caches[1:], screen)

    columns = {"full": exact, "25 % unseen": unseen, "25 % seen": seen}
    screen.out.print(table(questions, expected, columns))
    right = {name: sum(map(str.__eq__, got, expected)) for name, got in columns.items()}
    for name, what in MEANINGS.items():
        screen.out.print(Text(f"{right[name]:>3} of {len(questions)} right · {what}"))
    if right["full"] < NEEDED:
        screen.warn(f"only {right['full']} right with the full cache; {NEEDED} are needed")
        return 1
    return 0


def sample_folder() -> Path:
    """Where the sample document is: inside the installed package, or in the checkout."""
    for folder in (PACKAGE / "samples", CHECKOUT / "samples"):
        if (folder / f"{SAMPLE}.txt").exists():
            return folder
    raise KvchatError("input", "the sample document is missing from this installation")


def compared(chat: Chat, questions: Sequence[str], screen: Screen) -> list[KVCache]:
    """One more reading for the full cache, and a compressed one per question with it in view."""
    in_view = [Compression(chat.method, probes=(i,)) for i in range(len(questions))]
    work = chat.session.read(chat.session.document, [Compression(Full()), *in_view], questions)
    return screen.watch(work, "reading", len(chat.session.document)).caches


def answers(
    chat: Chat, questions: Sequence[str], caches: Sequence[KVCache], screen: Screen
) -> list[str]:
    """The greedy answer to each question over its cache, each asked by itself."""
    session, greedy = chat.session, replace(chat.sampling, temperature=0.0)
    got = []
    for question, cache in zip(questions, caches, strict=True):
        cache.truncate(len(session.document))
        session.adopt(cache, session.document)
        for event in session.ask(question, greedy, max_tokens=40):
            if isinstance(event, TurnDone):
                got.append(event.answer.strip())
    return got


def table(
    questions: Sequence[str], expected: Sequence[str], columns: dict[str, list[str]]
) -> Table:
    """Questions with a mark per column; a wrong answer of the full cache is shown."""
    grid = Table(box=None, pad_edge=False)
    grid.add_column("question and answer")
    for name in columns:
        grid.add_column(name, justify="center")
    for number, (question, wanted) in enumerate(zip(questions, expected, strict=True)):
        text = Text(clean(question), style="bold")
        text.append(f"\n  {clean(wanted)}", style="not bold")
        if (got := columns["full"][number]) != wanted:
            text.append(f"\n  full cache says: {clean(got)}", style="not bold red")
        marks = [
            Text("✓ right", "green") if column[number] == wanted else Text("✗ wrong", "red")
            for column in columns.values()
        ]
        grid.add_row(text, *marks)
    return grid
