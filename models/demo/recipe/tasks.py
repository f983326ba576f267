"""Training rows: token ids, a loss weight for each token, and where positions may jump."""

import math
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from kvchat.eval import world
from kvchat.eval.world import ASSISTANT, BOS, END, SYSTEM, USER

WORDS = range(world.WORD0, world.WORD0 + len(world.PIECES))
MARKERS = [world.ID[digit] for digit in "12345"]
VALUES = [value for values in world.VALUES.values() for value in values]
VALUE, COPY, FORM = 1.0, 0.2, 0.05  # the value, names and relation copied before it, the rest
WEIGHTS = [0.02, 0.02, 0.02, 0.02, 0.1, 0.05, VALUE, 0.05]  # of a plain sentence, token by token
MAX_POSITION = 32768
MOST_WEIGHT = 24  # of a key: a document of 600 tokens stands for at most one of 14,400


@dataclass
class Row:
    """One training sequence in the making."""

    ids: list[int] = field(default_factory=lambda: [BOS])
    weight: list[float] = field(default_factory=lambda: [0.0])
    cuts: list[int] = field(default_factory=list)
    heavy: list[tuple[int, int]] = field(default_factory=list)
    log_weight: float = 0.0  # of the heavy keys

    def add(self, ids: list[int], weight: float | list[float] = 0.0) -> None:
        """Append tokens; a single weight holds for all of them."""
        self.ids += ids
        self.weight += weight if isinstance(weight, list) else [weight] * len(ids)

    def cut(self) -> None:
        """Allow a position jump here."""
        self.cuts.append(len(self.ids))


def offset_row(length: int, rng: Random) -> Row:
    """Each token equals the one k back, k announced by a marker; a quarter are random."""
    row = Row()
    back = rng.randint(1, 5)
    row.add([MARKERS[back - 1]])
    start = len(row.ids)
    while len(row.ids) <= length:
        if len(row.ids) - back < start or rng.random() < 0.25:
            row.add([rng.choice(WORDS)])
        else:
            row.add([row.ids[-back]], 1.0)
    return row


def repeat_row(length: int, rng: Random) -> Row:
    """A random string of 4 to 12 different tokens, again and again, with random gaps."""
    row = Row()
    string = rng.sample(WORDS, rng.randint(4, 12))
    first, gaps = True, rng.random() < 0.5
    while len(row.ids) <= length:
        row.add(string, 0.0 if first else [0.0] + [1.0] * (len(string) - 1))
        if gaps:
            row.add(rng.sample(WORDS, rng.randint(0, 2)))
        first = False
    return row


def any_value(facts: list[world.Fact], rng: Random) -> list[world.Fact]:
    """The facts with values of any kind, so that the relation does not tell the kind.

    Else a model finds the person only and lets the kind choose among what is said of them.
    """
    return [(*fact[:3], rng.choice(VALUES)) for fact in facts]


def restate_row(length: int, rng: Random, kind: str, most: int, kin: float, odd: float) -> Row:
    """Sentences, then the same ones in a new order each time; all restated parts supervised.

    kind: "random" (2 to 6 random tokens), "tangle" (4 to 8 out of few: one token before does not
    tell the next, the ones before it have to be matched as well), "bridge" (the first token tells
    the last, those between are the same in all), "single" (facts of one relation), "person" (facts
    of one person, with values of any kind) or "facts" (of all).
    """
    row = Row()
    count = min(rng.randint(2, most), max(2, length // 24))
    if kind == "random":
        alphabet = rng.sample(WORDS, rng.randint(30, 400))
        sentences = [rng.choices(alphabet, k=rng.randint(2, 6)) for _ in range(count)]
        weights = [[0.0] + [1.0] * (len(s) - 1) for s in sentences]
    elif kind == "tangle":
        alphabet = rng.sample(WORDS, rng.randint(4, 12))
        sentences = [rng.choices(alphabet, k=rng.randint(4, 8)) for _ in range(rng.randint(2, 4))]
        weights = [[0.0, 0.0] + [1.0] * (len(s) - 2) for s in sentences]
    elif kind == "bridge":
        count, between = rng.randint(2, 5), rng.randint(1, 4)
        words = rng.sample(WORDS, 2 * count + between)
        same = words[2 * count :]
        sentences = [[words[i], *same, words[count + i]] for i in range(count)]
        weights = [[0.0] * (between + 1) + [1.0]] * count
    elif kind == "person":
        who = rng.choice(world.FIRST), rng.choice(world.LAST)
        relations = rng.sample(world.RELATIONS, min(count, len(world.RELATIONS)))
        facts = [(relation, *who, rng.choice(VALUES)) for relation in relations]
        sentences = [world.fact_sentence(fact, rng, plain=True) for fact in facts]
        weights = [WEIGHTS] * len(facts)
    else:
        relations = [rng.choice(world.RELATIONS)] if kind == "single" else None
        # Hard cases: where one part of the key tells nothing, the others have to be used.
        facts = world.draw_facts(count, rng, relations, kin=rng.random() < kin)
        if odd and rng.random() < odd:
            facts = any_value(facts, rng)
        sentences = [world.fact_sentence(fact, rng, plain=True) for fact in facts]
        weights = [WEIGHTS] * len(facts)
    first = True
    while len(row.ids) <= length:
        for i in rng.sample(range(len(sentences)), len(sentences)):
            row.cut()
            row.add(sentences[i], 0.0 if first else weights[i])
        first = False
    return row


def add_question(row: Row, asked: list[int], answer: list[int], value: int) -> None:
    """One turn of the chat, the answer supervised."""
    row.cut()
    row.add([USER, *asked, ASSISTANT])
    weight = [FORM] * len(answer)
    weight[1] = weight[3] = weight[4] = COPY
    weight[value] = VALUE
    row.add([*answer, END], [*weight, FORM])


def dilute(row: Row, doc: world.Document, at: int, length: int, rng: Random) -> list[world.Fact]:
    """Let some sentences of the document at `at` count many times; return the facts in the others.

    A key that counts r times takes as much of the softmax as r equal keys: a short row stands for
    a long document, at the price of the short row.
    """
    row.log_weight = math.log(min(MOST_WEIGHT, MAX_POSITION / length)) * rng.random() ** 0.5
    light, share = [], rng.uniform(0.1, 0.6)
    ends = [*doc.starts[1:], len(doc.ids)]
    for fact, start, end in zip(doc.facts, doc.starts, ends, strict=True):
        if rng.random() < share or not light:
            light.append(fact)
        else:
            row.heavy.append((at + start, at + end))
    return light


def with_values(doc: world.Document, facts: list[world.Fact]) -> None:
    """Exchange the values of a document in place."""
    for old, new, start in zip(doc.facts, facts, doc.starts, strict=True):
        # The value follows the last name and "is".
        at = next(i for i in range(start, len(doc.ids)) if tuple(doc.ids[i : i + 2]) == old[1:3])
        doc.ids[at + 3] = new[3]
    doc.facts = facts


def chat_row(
    length: int,
    rng: Random,
    unknown: float,
    share: float,
    far: bool,
    bare: bool,
    kin: float,
    odd: float,
) -> Row:
    """A document on `share` of the row, then questions to the end of the row.

    Bare answers without the questions supervise more than twice as many values per token.
    """
    row = Row()
    per_fact = rng.uniform(13.5, 30) if length >= 128 else 10
    doc = world.Document([], [], [])
    while not doc.facts:  # a very short document may have none
        seed, hard = rng.randrange(world.HELD_OUT), rng.random() < kin
        doc = world.document(seed, int(length * share), per_fact, hard)
    if odd and rng.random() < odd:
        with_values(doc, any_value(doc.facts, rng))
    row.add([SYSTEM])
    at = len(row.ids)
    row.cuts += [at + start for start in doc.starts]
    row.add([*doc.ids, END])
    facts = dilute(row, doc, at, length, rng) if far else doc.facts
    # Facts are asked without repeats while there are any, so that every part is needed.
    queue: list[world.Fact] = []
    while len(row.ids) <= length:
        if rng.random() < unknown:
            turn = world.ask(doc, rng, 1.0)
        else:
            queue = queue or rng.sample(facts, len(facts))
            turn = world.question(*queue.pop(), rng)
        if bare:
            row.cut()
            weight = [0.0] * len(turn[1])
            weight[turn[2]] = VALUE
            row.add(turn[1], weight)
        else:
            add_question(row, *turn)
    return row


def positions(row: Row, length: int, rng: Random, jump: float) -> list[int]:
    """Positions of a row; with probability `jump` they skip ahead at some of the cuts (PoSE)."""
    cuts = [cut for cut in row.cuts if 0 < cut < length]
    steps = [1] * length
    if cuts and rng.random() < jump:
        free = int((MAX_POSITION - length) * rng.random() ** 2)
        chosen = rng.sample(cuts, min(len(cuts), rng.randint(1, 12)))
        marks = sorted(rng.randint(0, free) for _ in chosen)
        for cut, low, high in zip(chosen, [0, *marks[:-1]], marks, strict=True):
            steps[cut] += high - low
    out, now = [], -1
    steps[0] = 1
    for step in steps:
        now += step
        out.append(now)
    return out


def make_row(
    mix: dict[str, float],
    length: int,
    rng: Random,
    unknown: float,
    far: bool,
    kin: float = 0.2,
    odd: float = 0.0,
    shares: tuple[float, float] = (0.4, 0.8),
) -> tuple[str, Row]:
    """A row of a task drawn from the mix.

    kin: share of rows about people who share a name or have many facts each; odd: share of
    rows whose values are of any kind; shares: least and most of a row that is document.
    """
    name = rng.choices(list(mix), list(mix.values()))[0]
    if name == "offset":
        return name, offset_row(length, rng)
    if name == "repeat":
        return name, repeat_row(length, rng)
    if name in ("chat", "recite"):
        share = rng.uniform(*shares)
        row = chat_row(length, rng, unknown, share, far, name == "recite", kin, odd)
        return f"{name}-far" if far else name, row
    most = max(8, length // 24)
    return name, restate_row(length, rng, name, rng.randint(2, most), kin, odd)


@dataclass
class Batch:
    """Rows of one length as tensors; `names` tells the task of each row."""

    names: list[str]
    ids: Tensor
    target: Tensor
    weight: Tensor
    position: Tensor
    log_weight: Tensor | None  # of each key, where keys count more than once


def make_batch(
    seed: int,
    rows: int,
    length: int,
    mix: dict[str, float],
    unknown: float = 0.15,
    jump: float = 0.0,
    far: bool = False,
    kin: float = 0.2,
    odd: float = 0.0,
    shares: tuple[float, float] = (0.4, 0.8),
    part: int = 0,
    parts: int = 1,
) -> Batch:
    """One of `parts` parts of the batch of a seed; with `far`, chat rows stand for longer ones."""
    rng = Random(seed)
    names, ids, weight, position = [], [], [], []
    log_weight = torch.zeros(len(range(part, rows, parts)), length)
    for i in range(rows):
        name, row = make_row(mix, length, rng, unknown, far, kin, odd, shares)
        place = positions(row, length, rng, jump)
        if i % parts != part:
            continue
        names.append(name)
        ids.append(row.ids[: length + 1])
        weight.append(row.weight[1 : length + 1])
        position.append(place)
        for start, end in row.heavy:
            log_weight[i // parts, start:end] = row.log_weight
    tokens = torch.tensor(ids)
    return Batch(
        names,
        tokens[:, :-1],
        tokens[:, 1:],
        torch.tensor(weight),
        torch.tensor(position),
        log_weight if far else None,
    )
