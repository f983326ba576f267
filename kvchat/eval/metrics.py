"""What an answer is worth, 0 to 1. Each metric is told the answer that was given, the right ones,
and what there was to choose from."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

Strings = Sequence[str]
PUNCTUATION = str.maketrans("", "", string.punctuation)
PART = 0.25  # of a point for some of several right letters and none that is wrong
COMMENTS = ("`", "#", "//")


def verbatim(given: str, answers: Strings, choices: Strings) -> float:
    """The same to the last character."""
    return float(given.strip() in answers)


def every(given: str, answers: Strings, choices: Strings) -> float:
    """All answers stand in what was given, whatever their case."""
    return float(share(given, answers, choices) == 1)


def some(given: str, answers: Strings, choices: Strings) -> float:
    """One of the answers stands in what was given; RULER's (2404.06654) for its qa tasks."""
    return float(share(given, answers, choices) > 0)


def share(given: str, answers: Strings, choices: Strings) -> float:
    """The share of the answers that stand in what was given; RULER's for all its other tasks."""
    found = given.casefold()
    return sum(answer.casefold() in found for answer in answers) / len(answers)


def f1(given: str, answers: Strings, choices: Strings) -> float:
    """Words in common with the best of the answers, normalised as in SQuAD."""
    return max(_f1(normalised(given).split(), normalised(answer).split()) for answer in answers)


def f1_line(given: str, answers: Strings, choices: Strings) -> float:
    """F1 of the first line: what comes after it is a model that goes on with the examples."""
    return f1(_first_line(given), answers, choices)


def category(given: str, answers: Strings, choices: Strings) -> float:
    """One over the number of choices that the first line names, if the right one is among them.

    A choice whose name is a part of the right one's does not count (LongBench, 2308.14508).
    """
    line = _first_line(given)
    best = 0.0
    for answer in answers:
        named = [c for c in choices if c in line and (c == answer or c not in answer)]
        best = max(best, 1 / len(named) if answer in named else 0.0)
    return best


def number(given: str, answers: Strings, choices: Strings) -> float:
    """The share of the numbers in what was given that are the right one (LongBench)."""
    numbers = re.findall(r"\d+", given)
    return max(numbers.count(answer) / len(numbers) if numbers else 0.0 for answer in answers)


def choice(given: str, answers: Strings, choices: Strings) -> float:
    """The choice that is named first, as a word of its own, is the right one."""
    pattern = "|".join(re.escape(name) for name in choices)
    named = re.search(rf"(?<!\w)(?:{pattern})(?!\w)", given, re.IGNORECASE)
    return float(named is not None and named[0].casefold() in [a.casefold() for a in answers])


def letters(given: str, answers: Strings, choices: Strings) -> float:
    """The right letters of a multiple choice, a quarter for some of several (L-Eval, 2307.11088).

    Letters count where they stand alone (`B`, `(B)`, `A, C`, `AC`); where one is right, the first.
    """
    right = set(answers[0])
    runs = re.findall(r"(?<!\w)[A-D]{1,4}(?!\w)", given)
    named = set("".join(runs[:1] if len(right) == 1 else runs))
    return 1.0 if named == right else PART if named and named < right else 0.0


def code(given: str, answers: Strings, choices: Strings) -> float:
    """How alike the first line that is no comment is to the right one (LongBench).

    Twice the characters of the matching blocks over those of both, as `difflib` finds them.
    """
    lines = given.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in COMMENTS)), "")
    return max(SequenceMatcher(None, line, answer).ratio() for answer in answers)


def rouge_l(given: str, answers: Strings, choices: Strings) -> float:
    """F1 of the longest common subsequence of words, with the best of the answers (ROUGE-L)."""
    return max(_rouge(normalised(given).split(), normalised(answer).split()) for answer in answers)


METRICS: dict[str, Callable[[str, Strings, Strings], float]] = {
    "verbatim": verbatim,
    "all": every,
    "any": some,
    "part": share,
    "f1": f1,
    "f1-line": f1_line,
    "category": category,
    "number": number,
    "choice": choice,
    "letters": letters,
    "code": code,
    "rouge-l": rouge_l,
}


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and double spaces."""
    plain = text.lower().translate(PUNCTUATION)
    return " ".join(re.sub(r"\b(?:an?|the)\b", " ", plain).split())


def _f1(given: Strings, right: Strings) -> float:
    common = sum((Counter(given) & Counter(right)).values())
    return 2 * common / (len(given) + len(right)) if common else 0.0


def _rouge(given: Strings, right: Strings) -> float:
    row = [0] * (len(right) + 1)  # longest common subsequences with the first words of `right`
    for word in given:
        before = 0  # of the row above, one word earlier
        for at, other in enumerate(right, start=1):
            above, row[at] = row[at], before + 1 if word == other else max(row[at], row[at - 1])
            before = above
    return 2 * row[-1] / (len(given) + len(right)) if row[-1] else 0.0


def _first_line(text: str) -> str:
    return text.lstrip("\n").split("\n")[0]
