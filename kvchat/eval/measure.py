"""Measures cells (method, budget, question seen or not) against the full cache of one prefill."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from kvchat.bench.measure import share_of
from kvchat.documents import Document
from kvchat.documents.document_ids import Book
from kvchat.engine import attribution
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import drain
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of, options, spec_of
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.session import Session
from kvchat.engine.text.chat_template import Dialogue
from kvchat.eval.case import LONGEST, Case, Question
from kvchat.eval.report import Record

GROUP = 5  # questions whose compressed caches are alive at once


@dataclass(frozen=True)
class Cell:
    """What is compared: a method with its budget, and whether it sees the question."""

    method: Method
    seen: bool

    @property
    def name(self) -> str:
        """`adakv 25%`, `adakv:bits=4 25%`, or `full`."""
        spec = spec_of(self.method)
        takes_budget = "budget" in options(name_of(self.method))
        return f"{spec} {self.method.budget}" if takes_budget else spec


@dataclass(frozen=True)
class Answered:
    """A question over the full cache: its prompt, the greedy answer, and the logits along it."""

    prompt: list[int]
    ids: list[int]
    text: str
    logits: Tensor  # [len(ids), vocab]


def measure(session: Session, case: Case, cells: Sequence[Cell]) -> Iterator[Record]:
    """One record per question and cell; see `_record`. Yields as it goes."""
    book = book_of(session.dialogue, case.document)
    ids = book.ids
    unseen = [cell for cell in cells if not cell.seen]
    methods = [Full(), *(cell.method for cell in unseen)]
    full, *caches = drain(session.read(ids, list(map(Compression, methods)))).caches
    answered = [answer(session, full, question) for question in case.questions]
    exact = Cell(Full(), seen=False)
    for number, question in enumerate(case.questions):
        for cell, cache in zip([exact, *unseen], [full, *caches], strict=True):
            yield _record(session, cache, cell, number, question, answered[number], book)
    del caches, full, cache  # before the caches of questions in view are made
    seen = [cell for cell in cells if cell.seen and cell.method.needs.sees]
    for start in range(0, len(case.questions) if seen else 0, GROUP):
        group = case.questions[start : start + GROUP]
        wanted = [(cell, i) for i in range(len(group)) for cell in seen]
        compressions = [Compression(cell.method, probes=(i,)) for cell, i in wanted]
        in_view = drain(session.read(ids, compressions, [q.text for q in group]))
        for (cell, i), cache in zip(wanted, in_view.caches, strict=True):
            yield _record(session, cache, cell, start + i, group[i], answered[start + i], book)


def book_of(dialogue: Dialogue, text: str) -> Book:
    """A text as the only document."""
    file = Document("document", text, len(text), "utf-8")
    return Book(dialogue, (file,), text=text, ids=dialogue.document(text))


def answer(session: Session, cache: KVCache, question: Question) -> Answered:
    """The greedy answer over a cache, which is left as it was."""
    prompt = session.dialogue.exchange(question.text, question.begun)
    ids = generate(session, cache, prompt, question.longest)
    logits = session.engine.score(cache, prompt + ids[:-1])[len(prompt) - 1 :]
    return Answered(prompt, ids, session.dialogue.tokenizer.decode(ids), logits)


def generate(
    session: Session, cache: KVCache, prompt: Sequence[int], longest: int = LONGEST
) -> list[int]:
    """At most `longest` greedy tokens after `prompt`, the end token included.

    The cache is left as it was.
    """
    before = cache.position
    logits = drain(session.engine.extend(cache, prompt))
    ids: list[int] = []
    for token in session.engine.decode(cache, logits, Sampling()):
        ids.append(token)
        if token in session.ends or len(ids) == longest:
            break
    cache.truncate(before)
    return ids


def _record(
    session: Session,
    cache: KVCache,
    cell: Cell,
    number: int,
    question: Question,
    full: Answered,
    book: Book,
) -> Record:
    """The answer and its score, KL to the full cache, share of KV pairs kept, bytes really used.

    `score` is what the question's metric gives, 0 to 1, and `right` whether that is 1.

    The full cache's answer is forced: if each of its tokens is the likeliest here too, the greedy
    answer is the same and need not be generated. `kl` is the mean over its tokens of
    KL(full || cell) in nats, `cited` whether the first source of the answer has the fact.
    """
    fed = full.prompt + full.ids[:-1]
    logits = session.engine.score(cache, fed, len(full.ids) - 1)[len(full.prompt) - 1 :]
    ids = full.ids
    if logits.argmax(-1).tolist() != ids:
        ids = generate(session, cache, full.prompt, question.longest)
    text = session.dialogue.tokenizer.decode(ids)
    p, q = full.logits.float().log_softmax(-1), logits.float().log_softmax(-1)
    told: Record = {}
    if question.fact:
        told["cited"] = cited(session, cache, book, full.prompt, ids, question)
    return told | {
        "question": number,
        "kind": question.kind,
        "cell": cell.name,
        "seen": cell.seen,
        "metric": question.metric,
        "depth": question.depth,
        "right": question.is_right(text),
        "score": question.score(text),
        "asked": question.text,
        "expected": question.answer,
        "answer": text,
        "kl": float((p.exp() * (p - q)).sum(-1).mean()),
        "kept": share_of(cache.kept, cache),
        "bytes": sum(layer.kept_bytes for layer in cache.layers),
        "document_tokens": cache.frozen,
    }


def cited(
    session: Session,
    cache: KVCache,
    book: Book,
    prompt: Sequence[int],
    ids: Sequence[int],
    question: Question,
) -> bool:
    """Whether the passage that an answer of `ids` attends to most holds the fact."""
    before = cache.position
    fed = [*prompt, *ids[:-1]]
    drain(session.engine.extend(cache, fed))
    queries = attribution.replayed(session.engine.model, cache, fed)
    following = dict(enumerate([*fed[1:], *ids[-1:]], before))
    weights = attribution.attended(queries, following, book.ids)
    cache.truncate(before)
    return any(question.fact in source.text for source in book.sources(weights.tolist())[:1])
