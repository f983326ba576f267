"""Needle in a haystack with a needle and texts of one's own, after LLMTest_NeedleInAHaystack: a
JSON file with its names (`needle` or `needles`, `retrieval_question`, `haystack_dir`) and
`answers`, since no model judges here."""

import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

from kvchat.errors import KvchatError
from kvchat.eval.case import Case, Draw, Question
from kvchat.eval.files.lines import content, parsed
from kvchat.eval.tasks.needles import joined
from kvchat.terminal.text import clean

FIELDS = "`needle` or `needles`, `retrieval_question`, `answers`, `haystack_dir` (its .txt files)"
SENTENCE = re.compile(r"(?<=[.!?])\s+")
CHARACTERS = 4  # of a token, about
LONG = 128  # tokens of an answer


@dataclass(frozen=True)
class Haystack:
    """A task: the needles at a depth in as much of the texts as a document shall have."""

    needles: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    sentences: tuple[str, ...]

    def __call__(self, draw: Draw) -> Case:
        """The first needle as deep as the draw says, further ones evenly in what follows.

        The text begins at a sentence that the seed draws and repeats where it ends.
        """
        at = Random(draw.seed).randrange(len(self.sentences))
        prose: list[str] = []
        left = draw.tokens * CHARACTERS - sum(len(needle) + 1 for needle in self.needles)
        while left > 0:
            prose.append(self.sentences[at % len(self.sentences)])
            left -= len(prose[-1]) + 1
            at += 1
        step = (1 - draw.depth) / len(self.needles)
        depths = [draw.depth + step * number for number in range(len(self.needles))]
        text, _ = joined(prose, self.needles, [round(depth * len(prose)) for depth in depths])
        metric = "part" if len(self.answers) > 1 else "all"
        asked = Question(self.question, self.answers, "niah", metric, draw.depth, longest=LONG)
        return Case(text, (asked,))


def read(path: Path) -> Haystack:
    """The task of a file and its folder of texts. Raises KvchatError("input")."""
    line = parsed(path, content(path))
    needles = line.texts("needles") if "needles" in line.fields else (line.text("needle"),)
    # a relative folder is beside the JSON file
    folder = path.parent / Path(line.text("haystack_dir")).expanduser()
    texts = map(content, sorted(folder.glob("*.txt")))
    sentences = tuple(part for text in texts for part in SENTENCE.split(text) if part.strip())
    if not sentences:
        raise KvchatError("input", f"no .txt files with text in {clean(str(folder))}")
    return Haystack(needles, line.text("retrieval_question"), line.texts("answers"), sentences)
