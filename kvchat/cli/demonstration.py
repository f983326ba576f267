"""First act of `kvchat demo`: the bundled model reads a sample and answers its questions."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.padding import Padding
from rich.text import Text

from kvchat.chat.chat import Chat
from kvchat.chat.open import open_chat
from kvchat.chat.prepare import prepare
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.events import TurnDone
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.window import AdaKV
from kvchat.engine.prefill.prefill import Compression
from kvchat.errors import KvchatError
from kvchat.hub.places import CHECKOUT, PACKAGE
from kvchat.settings.options import Options
from kvchat.terminal.colours import ERROR
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean, size, sizes

SAMPLE = "valley"
LONGEST = 40  # tokens of an answer
NEEDED = 10  # right answers with the full cache, or the demo has failed
MEANINGS = {
    "full": "full cache",
    "kvzip": "KVzip keeps 25 %, before any question is known",
    "adakv": "Ada-KV keeps 25 %, before any question is known",
    "in view": "Ada-KV keeps 25 %, with the question in view",
}


def run(threads: int | None, weights: str = "auto") -> int:
    """Read, compress, ask, mark. Exit code 1 under `NEEDED` right answers with the full cache."""
    document, pairs = sample(SAMPLE)
    questions = [pair["question"] for pair in pairs]
    screen = Screen(plain=False, verbose=True)
    options = Options(
        model="demo", files=[str(document)], threads=threads, weights=weights, prompt_cache="off"
    )
    chat = open_chat(prepare(options, screen), screen)
    default = chat.session.cache
    held, full = default.memory().total, chat.session.full_bytes()
    screen.say(f"KVzip freed {size(full - held)} of KV cache: {sizes(held, full)} are left", "bold")

    screen.say("for comparison one more prefill, with the questions in view")
    exact, blind, *in_view = compared(chat, questions, screen)
    right = dict.fromkeys(MEANINGS, 0)
    screen.out.print(Text("".join(f"{name:<8}" for name in MEANINGS) + "question", "bold"))
    for pair, seen in zip(pairs, in_view, strict=True):
        caches = dict(zip(MEANINGS, (exact, default, blind, seen), strict=True))
        given = {
            name: asked(chat, pair["question"], cache).answer.strip()
            for name, cache in caches.items()
        }
        for name, text in given.items():
            right[name] += text == pair["answer"]
        show(screen, pair["question"], pair["answer"], given)
    for name, what in MEANINGS.items():
        screen.out.print(Text(f"{right[name]:>3} of {len(pairs)} right · {what}"))
    if right["full"] < NEEDED:
        screen.warn(f"only {right['full']} right with the full cache; {NEEDED} are needed")
        return 1
    return 0


def sample(name: str) -> tuple[Path, list[dict[str, str]]]:
    """A sample document and its questions with their answers, of the package or the checkout."""
    for folder in (PACKAGE / "samples", CHECKOUT / "samples"):
        if (folder / f"{name}.txt").exists():
            document = Path(os.path.relpath(folder / f"{name}.txt"))
            lines = document.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
            return document, [json.loads(line) for line in lines]
    raise KvchatError("input", "the sample document is missing from this installation")


def compared(chat: Chat, questions: Sequence[str], screen: Screen) -> list[KVCache]:
    """One more prefill: the full cache, Ada-KV's, and Ada-KV's with each question in view."""
    in_view = [Compression(AdaKV(), probes=(i,)) for i in range(len(questions))]
    others = [Compression(Full()), Compression(AdaKV()), *in_view]
    session = chat.session
    work = session.read(session.document, others, questions)
    return screen.watch(work, "comparing", len(session.document)).caches


def asked(chat: Chat, question: str, cache: KVCache) -> TurnDone:
    """The greedy answer to a question over a cache, asked by itself."""
    session = chat.session
    cache.truncate(len(session.document))
    session.adopt(cache, session.document)
    greedy = replace(chat.options.sampling, temperature=0.0)
    done = [e for e in session.ask(question, greedy, LONGEST) if isinstance(e, TurnDone)]
    return done[-1]


def show(screen: Screen, question: str, expected: str, given: dict[str, str]) -> None:
    """A question with a mark for each cache; the answer, and the full cache's if it is wrong."""
    line = Text()
    for text in given.values():
        good = text == expected
        line.append(f"{'right' if good else 'WRONG':<8}", style="" if good else ERROR)
    screen.out.print(line.append(clean(question)))
    notes = [Text(clean(expected), style="dim")]
    if given["full"] != expected:
        notes.append(Text(f"full cache: {clean(given['full'])}", style=ERROR))
    for note in notes:
        screen.out.print(Padding(note, (0, 0, 0, 8 * len(given))))
