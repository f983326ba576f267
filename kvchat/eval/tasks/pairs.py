"""Key-value retrieval: nothing but pairs, which no language model can guess."""

from random import Random

from kvchat.eval.case import Case, Draw, Question
from kvchat.eval.tasks.haystack import codes

PAIR_TOKENS = 24  # of the demo tokenizer, which has a token per digit


def key_value(draw: Draw) -> Case:
    """a list of random keys and values that fills the document"""
    rng = Random(draw.seed)
    count = max(1, draw.tokens // PAIR_TOKENS)
    keys, values = codes(rng, count), codes(rng, count)
    lines = [f"The value of key {k} is {v}." for k, v in zip(keys, values, strict=True)]
    asked = rng.sample(range(count), min(draw.questions, count))
    return Case(
        "\n".join(lines),
        tuple(
            Question(
                f"What is the value of key {keys[at]}?",
                (values[at],),
                "key-value",
                depth=round(at / max(1, count - 1), 4),
            )
            for at in asked
        ),
    )
