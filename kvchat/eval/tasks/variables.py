"""Variable tracking: what a name is worth has to be followed through a chain of assignments."""

from itertools import pairwise
from random import Random
from string import ascii_uppercase

from kvchat.eval.case import Case, Draw, Question
from kvchat.eval.tasks.haystack import codes, hidden, most

HOPS = 4  # from the first name of a chain, which is given the value, to the last
LETTERS = 5
LONG = 64  # tokens of an answer


def variables(draw: Draw) -> Case:
    """chains of assignments in prose; a question asks for all names with one value"""
    rng = Random(draw.seed)
    count = most(draw.tokens // (HOPS + 1), max(2, draw.questions), least=2)
    names = _names(rng, count * (HOPS + 1))
    chains = [names[i : i + HOPS + 1] for i in range(0, len(names), HOPS + 1)]
    values = codes(rng, count)
    text, _ = hidden(rng, draw.tokens, _interleaved(rng, chains, values))
    return Case(
        text,
        tuple(
            Question(
                f"Which variables have the value {value}? Name all {len(chain)} of them.",
                tuple(chain),
                "variable-tracking",
                metric="part",
                longest=LONG,
            )
            for chain, value in list(zip(chains, values, strict=True))[: draw.questions]
        ),
    )


def _interleaved(rng: Random, chains: list[list[str]], values: list[str]) -> list[str]:
    """The assignments of all chains, mixed, each after the one it builds on."""
    told = [
        [
            f"Variable {chain[0]} is {value}.",
            *(f"Variable {b} is the same as {a}." for a, b in pairwise(chain)),
        ]
        for chain, value in zip(chains, values, strict=True)
    ]
    order = [number for number, chain in enumerate(told) for _ in chain]
    rng.shuffle(order)
    left = [iter(chain) for chain in told]
    return [next(left[number]) for number in order]


def _names(rng: Random, count: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choices(ascii_uppercase, k=LETTERS))] = None
    return list(names)
