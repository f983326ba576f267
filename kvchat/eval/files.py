"""Files of public benchmarks that a user has on disk. Nothing is ever downloaded.

`ruler`, `longbench`, `leval` and `references` give documents as they are; `niah` and `facts` are
tasks whose documents are made to a length. docs/eval.md says what has to be in the files.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

from kvchat.errors import KvchatError
from kvchat.eval import own
from kvchat.eval.case import Case, Draw, Given, Question, Task
from kvchat.eval.lines import Line, content, lines, parsed
from kvchat.eval.tasks.needles import joined
from kvchat.terminal.text import clean

LONG = 128  # tokens of an answer, where a data set says no other number


# How the input of RULER's qa tasks ends, whose outputs are ways to say one thing.
ONE_OF = "Answer:"


def ruler(path: Path) -> Given:
    """RULER's files (2404.06654): `input` with document and question in one, `outputs`.

    What its `prepare.py` writes: TASK/validation.jsonl with a sample per line.
    """
    return Given(tuple(map(_sample, lines(path))))


def _sample(line: Line) -> Case:
    """The document is all but the last line of `input`, which asks the question.

    Its templates for chat models put a turn around all of this, which is not undone here.
    """
    document, found, question = line.text("input").rstrip().rpartition("\n")
    if not found or not document.strip():
        raise line.error(
            "'input' has no line break between document and question",
            "prepare.py without --remove_newline_tab",
        )
    outputs = line.texts("outputs")
    begun = line.text("answer_prefix", empty=True).strip() if "answer_prefix" in line.fields else ""
    one_of = (begun or question).endswith(ONE_OF)
    metric, depth = ("any", None) if one_of else ("part", _depth(document, outputs))
    asked = Question(question, outputs, "ruler", metric, depth, longest=LONG, begun=begun)
    return Case(document.rstrip(), (asked,))


def _depth(document: str, outputs: tuple[str, ...]) -> float | None:
    """Where a single output stands, as a share of the characters before it."""
    if len(outputs) > 1 or document.count(outputs[0]) != 1:
        return None
    return round(document.index(outputs[0]) / max(1, len(document) - len(outputs[0])), 4)


class Asked(NamedTuple):
    """How an input of LongBench becomes a question, what scores it, how long an answer may be."""

    template: str
    metric: str
    longest: int = 64


BRIEF = "{input}\nAnswer in a few words and do not explain."
ABSTRACT = (
    "Which of the numbered paragraphs is this a summary of?\n{input}\nName its number and no other."
)
EXAMPLES = (
    "The document has examples of how to answer. Answer this in the same way, in one line:\n{input}"
)
CODE = "{input}\nWrite the next line of the code, only this line."
DATA_SETS = {
    "narrativeqa": Asked(BRIEF, "f1", 128),
    "qasper": Asked(f"{BRIEF} If the document does not say it: unanswerable.", "f1", 128),
    "multifieldqa_en": Asked(BRIEF, "f1"),
    "hotpotqa": Asked(BRIEF, "f1"),
    "2wikimqa": Asked(BRIEF, "f1"),
    "musique": Asked(BRIEF, "f1"),
    "triviaqa": Asked(EXAMPLES, "f1-line"),
    "trec": Asked(EXAMPLES, "category"),
    "lsht": Asked(EXAMPLES, "category"),
    "passage_count": Asked("How many different paragraphs are there? Name a number.", "number"),
    "passage_retrieval_en": Asked(ABSTRACT, "number"),
    "passage_retrieval_zh": Asked(ABSTRACT, "number"),
    "lcc": Asked(CODE, "code"),
    "repobench-p": Asked(CODE, "code"),
}
ROUGE = ("gov_report", "qmsum", "multi_news", "samsum", "dureader", "vcsum")
NOT_SCORED = dict.fromkeys(ROUGE, "ROUGE") | {"multifieldqa_zh": "F1 of Chinese words"}


def longbench(path: Path) -> Given:
    """LongBench's files (2308.14508): `context`, `input`, `answers`, `dataset`, `all_classes`.

    Lines of data sets that are not scored are left out. The instructions are ours, so figures
    compare methods here and not with published tables.
    """
    cases, left_out = [], Counter[str]()
    for line in lines(path):
        name = line.text("dataset").removesuffix("_e")  # of LongBench-E
        if name in NOT_SCORED:
            left_out[f"{name} ({NOT_SCORED[name]} is not computed)"] += 1
        elif name in DATA_SETS:
            cases.append(_asked(line, name))
        else:
            known = ", ".join([*DATA_SETS, *NOT_SCORED])
            raise line.error(f"'dataset' {name!r} is none of {known}")
    return Given(tuple(cases), left_out)


def _asked(line: Line, name: str) -> Case:
    asked, answers = DATA_SETS[name], line.texts("answers")
    if asked.metric == "number":
        answers = tuple("".join(filter(str.isdecimal, answer)) for answer in answers)
        if not all(answers):
            raise line.error(f"'answers' of {name} hold no number")
    choices = line.texts("all_classes") if asked.metric == "category" else ()
    # completion of code and counting have nothing to ask but what the template says
    text = asked.template.replace("{input}", line.text("input", empty=True)).strip()
    question = Question(text, answers, name, asked.metric, choices=choices, longest=asked.longest)
    return Case(line.text("context"), (question,))


# L-Eval
SCORED = ("exam", "f1")
LETTERS = re.compile(r"\W*([A-D](?:(?:[,&\s]+(?:and\s+)?)?[A-D])*)(?=[).:,]|\s*$)")
JUDGED = ("True", "False")


def leval(path: Path) -> Given:
    """L-Eval's files (2307.11088): one document (`input`) with many questions (`instructions`),
    their `outputs`, and in `evaluation` how answers are scored.

    Documents scored by ROUGE, a person or a model are left out.
    """
    cases, left_out = [], Counter[str]()
    for line in lines(path):
        scored = line.text("evaluation")
        if scored not in SCORED:
            left_out[f"evaluation {scored!r} (not computed)"] += 1
        elif not line.text("input", empty=True).strip():
            left_out["no document"] += 1
        else:
            cases.append(_exam(line, scored))
    return Given(tuple(cases), left_out)


def _exam(line: Line, scored: str) -> Case:
    asked, outputs = line.texts("instructions"), line.texts("outputs")
    if len(asked) != len(outputs):
        raise line.error(f"{len(asked)} 'instructions' and {len(outputs)} 'outputs'")
    ask = _examined if scored == "exam" else _answered
    return Case(
        line.text("input"),
        tuple(ask(text, output) for text, output in zip(asked, outputs, strict=True)),
    )


def _answered(text: str, output: str) -> Question:
    brief = f"{text.strip()}\nAnswer in about {len(output.split())} words."  # as its authors advise
    return Question(brief, (output,), "leval", "f1", longest=4 * len(output.split()) + LONG)


def _examined(text: str, output: str) -> Question:
    """Letters of a multiple choice, true or false, or a text that the answer has to hold."""
    text, output = text.strip(), output.strip()
    if found := LETTERS.match(output):
        right = "".join(sorted(set(found[1]) & {*"ABCD"}))
        text += "\nAnswer only with the letter, or the letters if several are right."
        return Question(text, (right,), "leval", "letters", longest=LONG)
    first = output.partition("[")[0].strip()  # sci_fi: what the story says, then [fact: …]
    if first in JUDGED:
        return Question(text, (first,), "leval", "choice", choices=JUDGED, longest=LONG)
    return Question(f"{text}\nAnswer briefly.", (output,), "leval", "all", longest=LONG)


SENTENCE = re.compile(r"(?<=[.!?])\s+")
CHARACTERS = 4  # of a token, about


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


def niah(path: Path) -> Haystack:
    """Needle in a haystack with a needle and texts of one's own, after LLMTest_NeedleInAHaystack: a
    JSON file with its names (`needle` or `needles`, `retrieval_question`, `haystack_dir`) and
    `answers`, since no model judges here. Raises KvchatError("input")."""
    line = parsed(path, content(path))
    needles = line.texts("needles") if "needles" in line.fields else (line.text("needle"),)
    # a relative folder is beside the JSON file
    folder = path.parent / Path(line.text("haystack_dir")).expanduser()
    texts = map(content, sorted(folder.glob("*.txt")))
    sentences = tuple(part for text in texts for part in SENTENCE.split(text) if part.strip())
    if not sentences:
        raise KvchatError("input", f"no .txt files with text in {clean(str(folder))}")
    return Haystack(needles, line.text("retrieval_question"), line.texts("answers"), sentences)


LOADERS: dict[str, tuple[Callable[[Path], Given | Task], str]] = {
    "ruler": (
        ruler,
        "every line has `input` (document, line break, question), `outputs`, perhaps "
        "`answer_prefix`",
    ),
    "longbench": (
        longbench,
        "every line has `context`, `input`, `answers`, `dataset`, and `all_classes` where classes "
        "are asked for",
    ),
    "leval": (
        leval,
        "every line has `input`, and as long as each other `instructions` and `outputs`, and "
        "`evaluation`",
    ),
    "niah": (
        niah,
        "a JSON file with `needle` or `needles`, `retrieval_question`, `answers`, `haystack_dir` "
        "(its .txt files)",
    ),
    "facts": (own.hidden, "a text, or lines (.jsonl) with `text`: facts are hidden in it"),
    "references": (
        own.referenced,
        "every line has `text` and `questions`, each with `question` and `references`",
    ),
}
"""What reads a kind of file, and what the file has to hold."""


def load(spec: str) -> Given | Task:
    """What `KIND:FILE` holds. Raises KvchatError("usage" or "input")."""
    kind, found, name = spec.partition(":")
    if not found or not name or kind not in LOADERS:
        raise KvchatError(
            "usage",
            f"--data {clean(spec)!r} is no KIND:FILE; kinds are {', '.join(LOADERS)}",
            f"--data {clean(kind if kind in LOADERS else 'ruler')}:{clean(name) or 'FILE'}",
        )
    read, holds = LOADERS[kind]
    try:
        loaded = read(Path(name).expanduser())
    except KvchatError as error:
        raise KvchatError("input", error.message, *error.tries, f"{kind}: {holds}") from None
    if isinstance(loaded, Given) and not loaded.cases:
        reasons = ", ".join(f"{count:,} × {why}" for why, count in loaded.left_out.items())
        why = f"only {reasons}" if reasons else "it is empty"
        raise KvchatError("input", f"{clean(name)} has no question that can be scored: {why}")
    return loaded
