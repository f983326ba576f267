"""L-Eval's files (2307.11088): one document (`input`) with many questions (`instructions`), their
`outputs`, and in `evaluation` how answers are scored."""

import re
from collections import Counter
from pathlib import Path

from kvchat.eval.case import Case, Given, Question
from kvchat.eval.files.lines import Line, lines

FIELDS = "`input`, and as long as each other `instructions` and `outputs`, and `evaluation`"
SCORED = ("exam", "f1")
LETTERS = re.compile(r"\W*([A-D](?:(?:[,&\s]+(?:and\s+)?)?[A-D])*)(?=[).:,]|\s*$)")
JUDGED = ("True", "False")
LONG = 128  # tokens of an answer


def read(path: Path) -> Given:
    """A case per line; documents scored by ROUGE, a person or a model are left out."""
    cases, left_out = [], Counter[str]()
    for line in lines(path):
        scored = line.text("evaluation")
        if scored not in SCORED:
            left_out[f"evaluation {scored!r} (not computed)"] += 1
        elif not line.text("input", empty=True).strip():
            left_out["no document"] += 1
        else:
            cases.append(_case(line, scored))
    return Given(tuple(cases), left_out)


def _case(line: Line, scored: str) -> Case:
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
