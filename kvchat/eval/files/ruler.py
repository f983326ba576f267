"""RULER's files (2404.06654): `input` with document and question in one, `outputs`.

What its `prepare.py` writes: TASK/validation.jsonl with a sample per line.
"""

from pathlib import Path

from kvchat.eval.case import Case, Given, Question
from kvchat.eval.files.lines import Line, lines

FIELDS = "`input` (document, line break, question), `outputs`, perhaps `answer_prefix`"
LONG = 128  # tokens of an answer
ONE_OF = "Answer:"  # how the input of its qa tasks ends, whose outputs are ways to say one thing


def read(path: Path) -> Given:
    """A case per line, with one question."""
    return Given(tuple(_case(line) for line in lines(path)))


def _case(line: Line) -> Case:
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
