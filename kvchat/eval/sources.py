"""Where the documents of an evaluation come from: tasks made from seeds, files of benchmarks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from kvchat.documents.document_ids import FRONT, ends
from kvchat.engine.text.chat_template import Dialogue
from kvchat.errors import KvchatError
from kvchat.eval.case import Case, Draw, Task
from kvchat.eval.files import load
from kvchat.eval.files.given import Given
from kvchat.eval.tasks import TASKS

AS_IT_IS = 0  # the length of a document that a file gives
TRIES = 6  # a text is made again until it has the tokens that are wanted


def case_of(
    dialogue: Dialogue,
    task: Task,
    seed: int,
    length: int,
    number: int,
    questions: int,
    depth: float = 0.5,
) -> Case:
    """The document of a number, scaled so that this model's tokenizer makes `length` of it."""
    draw = Draw(seed * 10**6 + length * 1000 + number, length, questions, depth)
    for _ in range(TRIES):
        case = task(draw)
        tokens = len(dialogue.document(case.document))
        if met(tokens, length):
            break
        draw = replace(draw, tokens=max(1, round(draw.tokens * length / tokens)))
    return case


def met(tokens: int, length: int) -> bool:
    """Whether a document of so many tokens is as long as it was meant to be."""
    return 0.9 * length <= tokens <= 1.05 * length


@dataclass(frozen=True)
class Made:
    """Documents made from seeds, of the wanted lengths and depths."""

    name: str
    task: Task
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    seed: int
    questions: int
    left_out: tuple[tuple[str, int], ...] = ()

    def case(self, dialogue: Dialogue, length: int, number: int) -> Case:
        """The document of a number; documents walk through the depths one after the other."""
        depth = self.depths[number % len(self.depths)]
        return case_of(dialogue, self.task, self.seed, length, number, self.questions, depth)


@dataclass(frozen=True)
class Read:
    """Documents of a file, one after the other, with at most `questions` about each."""

    name: str
    given: Given
    questions: int
    lengths: tuple[int, ...] = (AS_IT_IS,)

    @property
    def left_out(self) -> tuple[tuple[str, int], ...]:
        """Lines of the file that cannot be asked, by the reason."""
        return self.given.left_out

    def case(self, dialogue: Dialogue, length: int, number: int) -> Case | None:
        """The document of a number, None after the last."""
        if number >= len(self.given.cases):
            return None
        case = self.given.cases[number]
        return Case(case.document, case.questions[: self.questions])


Source = Made | Read


def sources(
    tasks: Sequence[str],
    data: Sequence[str],
    lengths: Sequence[int],
    depths: Sequence[int],
    seed: int,
    questions: int,
) -> list[Source]:
    """Tasks by their names, then `KIND:FILE`s; depths in per cent, `questions` per document.

    Raises KvchatError("usage" or "input").
    """
    sizes, shares = tuple(lengths), tuple(depth / 100 for depth in depths)

    def made(name: str, task: Task) -> Made:
        return Made(name, task, sizes, shares, seed, questions)

    found: list[Source] = [made(name, TASKS[name]) for name in tasks]
    for spec in data:
        loaded = load(spec)
        if isinstance(loaded, Given):
            found.append(Read(spec, loaded, questions))
        else:
            found.append(made(spec, loaded))
    return found


def digests(found: Sequence[Source], data: Sequence[str]) -> dict[str, str]:
    """SHA-256 of what each `KIND:FILE` gave: another text is another experiment."""
    return {source.name: _digest(source) for source in found if source.name in data}


def _digest(source: Source) -> str:
    parts = source.given.cases if isinstance(source, Read) else (source.task,)
    found = sha256()
    for part in parts:
        found.update(repr(part).encode("utf-8", "backslashreplace"))
    return found.hexdigest()


def fitted(case: Case, dialogue: Dialogue, limit: int, overflow: str) -> Case:
    """The case with as much of its document as the window holds beside questions and answers.

    `overflow` is the part that is cut. Raises KvchatError("too_long") if it is `error`.
    """
    talk = max(len(dialogue.exchange(q.text, q.begun)) + q.longest for q in case.questions)
    needed, room = len(dialogue.document(case.document)), limit - talk
    if needed <= room:
        return case
    if overflow == "error" or room < 1:
        raise KvchatError(
            "too_long",
            f"a document of {needed:,} tokens with a question and its answer ({talk:,}) does not "
            f"fit into the window of {limit:,}",
            "--overflow middle  (cuts the middle of what is too long)",
            needed=needed + talk,
            limit=limit,
        )
    text, share = case.document, room / needed
    while needed > room and text:
        parts = ends(case.document, int(len(case.document) * share), FRONT[overflow])
        text = "\n\n".join(part for part in parts if part)
        needed = len(dialogue.document(text))
        share *= 0.995 * room / needed
    return replace(case, document=text)
