"""Where the documents of an evaluation come from: tasks made from seeds, files of benchmarks."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

from kvchat.documents.overflow import FRONT, ends
from kvchat.engine.text.chat_template import Dialogue
from kvchat.errors import KvchatError
from kvchat.eval.case import Case, Draw, Given, Task
from kvchat.eval.files import load
from kvchat.eval.tasks import TASKS

AS_IT_IS = 0  # the length of a document that a file gives
TRIES = 6  # a text is made again until it has the tokens that are wanted


def met(tokens: int, length: int) -> bool:
    """Whether a document of so many tokens is as long as it was meant to be."""
    return 0.9 * length <= tokens <= 1.05 * length


@dataclass(frozen=True)
class Source:
    """Documents with at most `questions` about each: made by a task, of the wanted lengths (tokens)
    and depths (0 to 1), or given by a file, one after the other."""

    name: str
    questions: int
    seed: int = 0
    lengths: tuple[int, ...] = (AS_IT_IS,)
    depths: tuple[float, ...] = (0.5,)
    task: Task | None = None
    given: Given = field(default_factory=Given)

    def case(self, dialogue: Dialogue, length: int, number: int) -> Case | None:
        """The document of a number, None after the last; made ones walk through the depths."""
        if self.task is not None:
            return self._made(self.task, dialogue, length, number)
        if number >= len(self.given.cases):
            return None
        case = self.given.cases[number]
        return Case(case.document, case.questions[: self.questions])

    def _made(self, task: Task, dialogue: Dialogue, length: int, number: int) -> Case:
        """A document scaled so that this model's tokenizer makes `length` tokens of it."""
        seed = self.seed * 10**6 + length * 1000 + number
        draw = Draw(seed, length, self.questions, self.depths[number % len(self.depths)])
        for _ in range(TRIES):
            case = task(draw)
            tokens = len(dialogue.document(case.document))
            if met(tokens, length):
                break
            draw = replace(draw, tokens=max(1, round(draw.tokens * length / tokens)))
        return case

    @property
    def digest(self) -> str:
        """SHA-256 of what a file gave: another text is another experiment."""
        found = sha256()
        for part in self.given.cases if self.task is None else (self.task,):
            found.update(repr(part).encode("utf-8", "backslashreplace"))
        return found.hexdigest()


def sources(tasks: Sequence[str], data: Sequence[str], made: Source) -> list[Source]:
    """Tasks by their names, then `KIND:FILE`s; `made` has what all that are made from seeds share.

    Raises KvchatError("usage" or "input").
    """
    found = [replace(made, name=name, task=TASKS[name]) for name in tasks]
    for spec in data:
        loaded = load(spec)
        if isinstance(loaded, Given):
            found.append(Source(spec, made.questions, given=loaded))
        else:
            found.append(replace(made, name=spec, task=loaded))
    return found


def fitted(case: Case, dialogue: Dialogue, limit: int, overflow: str) -> Case:
    """The case with as much of its document as the context window holds beside questions and
    answers; `limit` in tokens.

    `overflow` is the part that is cut; `stream` cuts none. Raises KvchatError("too_long") if it
    is `error`.
    """
    talk = max(len(dialogue.exchange(q.text, q.begun)) + q.longest for q in case.questions)
    needed, room = len(dialogue.document(case.document)), limit - talk
    if needed <= room or (overflow == "stream" and talk <= limit // 2):
        return case
    if overflow == "error" or room < 1:
        raise KvchatError(
            "too_long",
            f"a document of {needed:,} tokens with a question and its answer ({talk:,}) does not "
            f"fit into the context window of {limit:,}",
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
