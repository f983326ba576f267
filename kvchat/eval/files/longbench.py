"""LongBench's files (2308.14508): `context`, `input`, `answers`, `dataset`, `all_classes`.

The instructions are ours, so figures compare methods here and not with published tables.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from kvchat.eval.case import Case, Given, Question
from kvchat.eval.files.lines import Line, lines

FIELDS = "`context`, `input`, `answers`, `dataset`, and `all_classes` where classes are asked for"


class Asked(NamedTuple):
    """How a data set's input becomes a question, what scores it, how long an answer may be."""

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


def read(path: Path) -> Given:
    """A case per line with one question; lines of data sets that are not scored are left out."""
    cases, left_out = [], Counter[str]()
    for line in lines(path):
        name = line.text("dataset").removesuffix("_e")  # of LongBench-E
        if name in NOT_SCORED:
            left_out[f"{name} ({NOT_SCORED[name]} is not computed)"] += 1
        elif name in DATA_SETS:
            cases.append(_case(line, name))
        else:
            known = ", ".join([*DATA_SETS, *NOT_SCORED])
            raise line.error(f"'dataset' {name!r} is none of {known}")
    return Given(tuple(cases), left_out)


def _case(line: Line, name: str) -> Case:
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
