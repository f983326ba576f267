"""Documents with questions, made from seeds. A task is a function of a `Draw`.

`world` speaks the demo model's language; the others are plain English for any chat model.
"""

from random import Random

from kvchat.errors import KvchatError
from kvchat.eval import world
from kvchat.eval.case import Case, Draw, Question, Task
from kvchat.eval.tasks.lists import common_words, frequent_words, key_value
from kvchat.eval.tasks.needles import (
    multi_key,
    multi_query,
    multi_value,
    needle,
    passkey,
    variables,
)

UNKNOWN_SHARE = 0.2
LEAST = 256  # tokens in which something is told of somebody


def about_the_world(draw: Draw) -> Case:
    """Questions about people of the demo world, a fifth of them unanswerable."""
    rng = Random(draw.seed)
    document = world.document(world.HELD_OUT + draw.seed, draw.tokens)
    if not document.facts:
        raise KvchatError(
            "usage",
            f"a document of {draw.tokens:,} tokens of the demo world tells nothing of anybody",
            f"--length {LEAST}",
        )
    text = world.text(document.ids)
    questions = []
    for number in range(draw.questions):
        unknown = number < round(UNKNOWN_SHARE * draw.questions)
        asked, answer, _ = world.ask(document, rng, unknown=float(unknown))
        given = world.text(answer)
        fact = given.removeprefix("The").removesuffix(".")  # as the document has it
        questions.append(
            Question(
                world.text(asked),
                (given,),
                "unanswerable" if unknown else "answerable",
                metric="verbatim",
                depth=None if unknown else round(text.index(fact) / len(text), 4),
            )
        )
    return Case(text, tuple(questions))


TASKS: dict[str, Task] = {
    "world": about_the_world,
    "needle": needle,
    "multi-key": multi_key,
    "multi-value": multi_value,
    "multi-query": multi_query,
    "key-value": key_value,
    "variable-tracking": variables,
    "passkey": passkey,
    "common-words": common_words,
    "frequent-words": frequent_words,
}
