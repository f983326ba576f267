"""The synthetic world as token ids: documents of prose with facts woven in, and questions on them.

A document is a function of its seed. Training draws seeds below HELD_OUT, evaluation and samples
use seeds from HELD_OUT on, so no document is ever in both.
"""

import re
from dataclasses import dataclass
from random import Random

from kvchat.eval import words as w

HELD_OUT = 10**12
SPECIALS = ["<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<pad>"]
BOS, SYSTEM, USER, ASSISTANT, END, PAD = range(6)
PIECE = re.compile(r"\{\w+\}| ?\w+|\n|[^\w\s]")  # cuts world text exactly as the tokenizer does


def _pieces() -> list[str]:
    """Every word of the world with the spaces it can carry, in a fixed order without repeats."""
    out = []
    for group in [w.FIRST, w.LAST, w.RELATIONS, *w.VALUES.values(), *w.SLOTS.values()]:
        out += [f" {word}" for word in group]
    out += w.FIRST  # a name may open a paragraph, and so a string without a leading space
    for text in [*w.FILLER, *w.LEADS, *w.TAILS, *w.QUESTIONS, w.FACT, w.ANSWER, w.UNKNOWN]:
        for piece in PIECE.findall(text):
            if piece[0].isalpha():
                out += [piece, f" {piece}"]
            elif piece[0] == " ":
                out.append(piece)
    return list(dict.fromkeys(out))


# 256 byte tokens follow the specials; the words follow the bytes.
BYTE0 = len(SPECIALS)
PIECES = _pieces()
WORD0 = BYTE0 + 256
VOCAB = -(-(WORD0 + len(PIECES)) // 64) * 64  # padded to a round matrix size
ID = {piece: WORD0 + i for i, piece in enumerate(PIECES)}
ID |= {chr(byte): BYTE0 + byte for byte in range(128) if chr(byte) not in ID}
TEXT = {i: piece for piece, i in ID.items()}

FIRST = [ID[f" {word}"] for word in w.FIRST]
LAST = [ID[f" {word}"] for word in w.LAST]
RELATIONS = [ID[f" {word}"] for word in w.RELATIONS]
VALUES = {ID[f" {r}"]: [ID[f" {v}"] for v in values] for r, values in w.VALUES.items()}
SLOTS = {name: [ID[f" {word}"] for word in group] for name, group in w.SLOTS.items()}
NEWLINE, UNKNOWN_WORD = ID["\n"], ID[" unknown"]
UNSPACED = {ID[p]: ID[p[1:]] for p in PIECES if p[0] == " " and p[1:] in ID}
SPACED = {bare: spaced for spaced, bare in UNSPACED.items()}


def compile_template(text: str) -> list[int | str]:
    """Ids of a template; a slot stays a string. A space before a slot belongs to its words."""
    parts = PIECE.findall(re.sub(r" (?=\{)", "", text))
    return [part[1:-1] if part[0] == "{" else ID[part] for part in parts]


FILLER = [compile_template(text) for text in w.FILLER]
LEADS = [compile_template(text) for text in w.LEADS]
TAILS = [compile_template(text) for text in w.TAILS]
QUESTIONS = [compile_template(text) for text in w.QUESTIONS]
FACT, ANSWER, UNKNOWN = map(compile_template, (w.FACT, w.ANSWER, w.UNKNOWN))
THE, THE_INSIDE = ID["The"], ID[" the"]
PLAIN_FILLER = [t for t in FILLER if "first" not in t]

Fact = tuple[int, int, int, int]  # relation, first name, last name, value


def fill(template: list[int | str], rng: Random, **known: int) -> list[int]:
    """Replace the slots by the known ids, or by a random word of the slot's list."""
    out = []
    for part in template:
        if isinstance(part, str):
            part = known[part] if part in known else rng.choice(SLOTS[part])
        out.append(part)
    return out


def fact_sentence(fact: Fact, rng: Random, plain: bool = False) -> list[int]:
    """One fact as a sentence, with an introduction and an ending half of the time."""
    relation, first, last, value = fact
    lead = [] if plain or rng.random() < 0.6 else fill(rng.choice(LEADS), rng)
    tail = TAILS[0] if plain else rng.choice(TAILS)
    slots = {"relation": relation, "first": first, "last": last, "value": value}
    core = fill(FACT, rng, the=THE_INSIDE if lead else THE, **slots)
    return lead + core + fill(tail, rng)


def people(count: int, rng: Random, kin: bool = False) -> list[tuple[int, int]]:
    """Different people; the longer the list, the more share a name. Kin all share one."""
    if kin:
        count = min(count, len(FIRST))
        first, last = rng.choice(FIRST), rng.choice(LAST)
        if rng.random() < 0.3:
            return [(first, name) for name in rng.sample(LAST, count)]
        return [(name, last) for name in rng.sample(FIRST, count)]
    found: dict[tuple[int, int], None] = {}
    while len(found) < count:
        found[rng.choice(FIRST), rng.choice(LAST)] = None
    return list(found)


def draw_facts(
    count: int, rng: Random, relations: list[int] | None = None, kin: bool = False
) -> list[Fact]:
    """Facts in random order, on average one to three about each person.

    kin: the hard cases only, people who share a name or have four to eight facts each.
    """
    relations = relations or RELATIONS
    per_person = rng.uniform(1, min(3, len(relations)))
    if kin and len(relations) > 1 and rng.random() < 0.6:
        kin, per_person = False, rng.uniform(4, len(relations))
    crowd = people(max(2, round(count / per_person)), rng, kin)
    pairs = [(r, *p) for p in crowd for r in rng.sample(relations, len(relations))]
    chosen = rng.sample(pairs, min(count, len(pairs)))
    return [(*pair, rng.choice(VALUES[pair[0]])) for pair in chosen]


@dataclass
class Document:
    """Token ids of the prose, the facts in it, and where the sentence of each starts."""

    ids: list[int]
    facts: list[Fact]
    starts: list[int]

    def index(self) -> None:
        """Note who is in the document and which facts it gives of them."""
        self.known = {fact[:3] for fact in self.facts}
        self.crowd = list(dict.fromkeys(fact[1:3] for fact in self.facts))

    def missing(self, rng: Random) -> tuple[int, int, int]:
        """A (relation, first, last) that the document does not give, near to one that it does."""
        while True:
            first, last = rng.choice(self.crowd)
            kind = rng.random()
            if kind >= 0.6:  # a person who is not in the document
                first = first if kind > 0.95 else rng.choice(FIRST)
                last = last if kind < 0.65 else rng.choice(LAST)
                if (first, last) in self.crowd:
                    continue
            relation = rng.choice(RELATIONS)
            if (relation, first, last) not in self.known:
                return relation, first, last


def document(seed: int, tokens: int, per_fact: float = 36.0, kin: bool = False) -> Document:
    """Prose of at most `tokens` tokens with about one fact in `per_fact` tokens."""
    rng = Random(seed)
    facts = draw_facts(max(2, int(tokens / per_fact)), rng, kin=kin)
    crowd = list(dict.fromkeys(fact[1:3] for fact in facts))
    # More sentences than fit: the document ends where the next one would not.
    filler = max(0, round((tokens - 12 * len(facts)) / 10))
    plan: list[Fact | None] = [*facts, *[None] * filler]
    rng.shuffle(plan)
    doc = Document([], [], [])
    left = 0  # sentences left in the paragraph
    for fact in plan:
        if fact:
            sentence = fact_sentence(fact, rng)
        else:
            first, last = rng.choice(crowd)
            template = rng.choice(FILLER if rng.random() < 0.4 else PLAIN_FILLER)
            sentence = fill(template, rng, first=first, last=last)
        bare = UNSPACED if left == 0 else SPACED
        sentence[0] = bare.get(sentence[0], sentence[0])
        if left == 0 and doc.ids:
            sentence = [NEWLINE, NEWLINE, *sentence]
        if len(doc.ids) + len(sentence) > tokens:
            break
        if fact:
            doc.facts.append(fact)
            doc.starts.append(len(doc.ids))
        doc.ids += sentence
        left = left - 1 if left else rng.randint(2, 6)
    doc.index()
    return doc


def ask(doc: Document, rng: Random, unknown: float) -> tuple[list[int], list[int], int]:
    """A question, its answer, and the index of the value in the answer.

    A share `unknown` of the questions has no answer in the document.
    """
    if rng.random() < unknown:
        relation, first, last = doc.missing(rng)
        return question(relation, first, last, UNKNOWN_WORD, rng)
    return question(*rng.choice(doc.facts), rng)


def question(
    relation: int, first: int, last: int, value: int, rng: Random
) -> tuple[list[int], list[int], int]:
    """One wording of the question for a fact, with its answer."""
    slots = {"relation": relation, "first": first, "last": last}
    asked = fill(rng.choice(QUESTIONS), rng, **slots)
    if value == UNKNOWN_WORD:
        answer = fill(UNKNOWN, rng, **slots)
    else:
        answer = fill(ANSWER, rng, value=value, **slots)
    return asked, answer, 6


def text(ids: list[int]) -> str:
    """The characters of ids of the world."""
    return "".join(TEXT[i] for i in ids)
