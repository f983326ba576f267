"""The texts of replays: the document's own for kvzip, its sentences as questions for askall."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from kvchat.engine.methods.needs import Kind
from kvchat.engine.methods.options import ASK, REPEAT, WHOLE
from kvchat.engine.prefill.replay import Replay
from kvchat.engine.sizes import REPLAY
from kvchat.engine.text.chat_template import Dialogue

ENDS = (".", "!", "?", "…", "。", "！", "？")
SHORTEST, LONGEST = 4, 48  # tokens of a sentence
PART = 0.7  # of a sentence's words are the question, the others the answer


def replays_of(dialogue: Dialogue, document: Sequence[int], kinds: Iterable[Kind]) -> list[Replay]:
    """The replays of these kinds of a document's ids; what stands before its text is left out."""
    first = _first(dialogue, document)
    return [
        replay
        for kind in sorted(kinds)
        for replay in KINDS[kind[0]](dialogue, document, first, kind)
    ]


def repeated(
    dialogue: Dialogue, document: Sequence[int], first: int, kind: Kind
) -> Iterator[Replay]:
    """The text from token `first` on, so many tokens at a time, each part after an instruction to
    repeat it (KVzip, arXiv 2505.23416, section 3.2)."""
    for start, end in _parts(document, first, kind):
        asked = "Repeat the previous context exactly."
        if start > first:
            lead = dialogue.tokenizer.decode(document[start - 8 : start])
            asked = f"Repeat the part of the previous context that begins with: {lead}"
        # as an answer without a thought, where the template has thoughts
        told = [*dialogue.exchange(asked, ""), *document[start:end]]
        yield Replay(kind, (told,), start, end)


def asked(dialogue: Dialogue, document: Sequence[int], first: int, kind: Kind) -> Iterator[Replay]:
    """Every sentence from token `first` on as a first question and its answer.

    The sentence's beginning is the question, its end the answer: so the model looks for what a
    question will need, in the way in which it will be asked, and needs nobody to think of one.
    """
    for start, end in _parts(document, first, kind):
        turns: list[list[int]] = []
        for a, b in sentences(dialogue, document[start:end]):
            text = dialogue.tokenizer.decode(document[start + a : start + b])
            question, answer = _cut(text, PART)
            if answer:
                turns.append(dialogue.exchange(question, answer))
            if sum(map(len, turns)) >= REPLAY:
                yield Replay(kind, tuple(turns), start, end)
                turns = []
        if turns:
            yield Replay(kind, tuple(turns), start, end)


KINDS = {REPEAT: repeated, WHOLE: repeated, ASK: asked}


def sentences(dialogue: Dialogue, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where sentences and lines begin and end in `ids`; long ones are cut."""
    texts = {i: dialogue.tokenizer.decode([i]) for i in set(ids)}
    start = 0
    for end, token in enumerate(ids, start=1):
        text, length = texts[token], end - start
        ends = "\n" in text or text.rstrip("\"'”’)]» ").endswith(ENDS)
        if (ends and length >= SHORTEST) or length == LONGEST or end == len(ids):
            yield start, end
            start = end


def _parts(document: Sequence[int], first: int, kind: Kind) -> Iterator[tuple[int, int]]:
    """Where the parts that replays of a kind are about begin and end."""
    _, chunk = kind
    for start in range(first, len(document), chunk):
        yield start, min(start + chunk, len(document))


def _first(dialogue: Dialogue, document: Sequence[int]) -> int:
    """Where the text of a document begins."""
    pairs = zip(dialogue.document(""), document, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _cut(text: str, part: float) -> tuple[str, str]:
    """A sentence as a question, of `part` of its words, and the answer to it; both are empty for
    one that is too short to be cut."""
    words = text.split()
    if len(words) > 1:
        cut = min(len(words) - 1, max(1, round(part * len(words))))
        return f"{' '.join(words[:cut])}?", " ".join(words[cut:])
    text = text.strip()  # a script without spaces
    cut = round(part * len(text))
    return (f"{text[:cut]}?", text[cut:]) if 0 < cut < len(text) else ("", "")
