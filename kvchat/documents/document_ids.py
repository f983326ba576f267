"""The documents of a chat as token ids: composed, fitted into the context window, refused or cut
with numbers. Nothing is left out that was not asked for."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from itertools import accumulate

from kvchat.documents import Document, Place
from kvchat.documents.overflow import FRONT, Cut, ends, too_long
from kvchat.documents.passages import Source, best, label_at, marks, spans
from kvchat.documents.search import search
from kvchat.engine.sizes import Streamed, reserve_of
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.template_form import UNDATED
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.errors import KvchatError

PROBE = 16  # characters per token of the context window that are tokenised before the rest is
SUPPORT = 0.01  # of a head's attention, over an answer: less is no source
SHARE = 0.1  # of the attention to the documents: an answer from all over has no source


@dataclass(frozen=True)
class Book:
    """Documents with the ids that stand for them, and the system prompt of their chat.

    It stands behind the documents, in the first turn (`Dialogue.told`), or else at the end of the
    ids: where there is no document, or turns are compressed. `text` is that of the documents, as
    far as it is in the ids; `streamed` how they are read if they do not fit into the context window
    and nothing is to be cut. `added` are the texts of the last files, with their titles, if those
    came later: their ids stand behind the others'.
    """

    dialogue: Dialogue
    files: tuple[Document, ...] = ()
    system: str = ""
    text: str = ""
    ids: list[int] = field(default_factory=list)
    cut: Cut | None = None
    streamed: Streamed | None = None
    added: tuple[str, ...] = ()

    def told(self, system: str) -> "Book":
        """The same documents under another system prompt, which stands behind them: no id of them
        changes."""
        return replace(self, dialogue=self.dialogue.told(system), system=system)

    def whole(self, text: str) -> str:
        """A text of documents, and the system prompt if the ids have that too."""
        told = "" if self.dialogue.system else self.system
        return "\n\n".join(part for part in (text, told) if part)

    def with_added(self, files: Sequence[Document]) -> "Book":
        """The same book and other files behind it: no id of it changes."""
        texts = [f"\n\n# {file.title}\n\n{file.text}" for file in files]
        ids = [*self.ids, *(i for text in texts for i in self.dialogue.added(text))]
        return replace(self, files=(*self.files, *files), ids=ids, added=(*self.added, *texts))

    @property
    def parts(self) -> list[str]:
        """The text of each file, with what stands before it."""
        return [*headed(self.files[: len(self.files) - len(self.added)]), *self.added]

    def on(self, day: date) -> "Book":
        """The same book on another day, where the chat template writes the date."""
        if self.dialogue.day in (None, day):
            return self
        dialogue = self.dialogue.on(day)
        ids = dialogue.document(self.whole(self.text))
        ids += [i for text in self.added for i in dialogue.added(text)]
        streamed = replace(self.streamed, tokens=len(ids)) if self.streamed else None
        return replace(self, dialogue=dialogue, ids=ids, streamed=streamed)

    @property
    def saved(self) -> int:
        """Positions that the book takes less than it has tokens."""
        return 0 if self.streamed is None else len(self.ids) - self.streamed.room

    @property
    def undated(self) -> "Book":
        """The same book on no day, to be compared with that of another."""
        return self.on(UNDATED)

    @cached_property
    def begins(self) -> list[int]:
        """Where each of the ids begins in the joined `parts`, in characters; below 0 in what is
        not theirs."""
        at = len(self.text)
        found = [
            begin if begin < at else -1
            for begin in self.dialogue.document_begins(self.whole(self.text))
        ]
        for text in self.added:
            found += [at + begin for begin in self.dialogue.added_begins(text)]
            at += len(text)
        if self.cut is None:
            return found
        whole = sum(len(part) for part in self.parts)
        gone = whole - len(self.text)  # the end of the text stands where it stood, from its end
        front, end = self.cut.start, self.cut.start + self.cut.characters - gone
        return [at if at < front else at + gone if at >= end else -1 for at in found]

    @cached_property
    def passages(self) -> list[tuple[int, int]]:
        """What of the files can be cited: characters of the joined `parts` from and to."""
        found, at = [], 0
        for part, file in zip(self.parts, self.files, strict=True):
            at += len(part)
            first = at - len(file.text)
            found += [(first + a, first + b) for a, b in spans(file.text)]
        return found

    @cached_property
    def marks(self) -> list[tuple[Place, ...]]:
        """The pages or chapters of every file, by the names that they are cited by."""
        return [marks(file) for file in self.files]

    def sources(self, weights: Sequence[float]) -> list[Source]:
        """The passages that tokens attend to most, where `weights[t]` is the attention to id t.

        None if so little goes to any of them that the answer is from elsewhere or from all over.
        """
        # what stands before the text is the template's: the same in every chat
        total = sum(each for each, at in zip(weights, self.begins, strict=True) if at >= 0)
        found = best(weights, self.begins, self.passages) if total else []
        return [
            self._source(begin, end, worth / total)
            for begin, end, worth in found
            if worth >= max(SUPPORT, SHARE * total)
        ]

    def place_of(self, source: Source) -> int:
        """Where a source begins in the joined `parts`."""
        ends = accumulate(map(len, self.parts))
        for file, end in zip(self.files, ends, strict=True):
            if file.name == source.document:
                return end - len(file.text) + source.start
        return 0

    def found(self, wanted: str) -> list[Source]:
        """The passages that have the wanted words, best first; see `search`. They weigh nothing."""
        text = "".join(self.parts)
        numbers = search([text[a:b] for a, b in self.passages], wanted)
        return [self._source(*self.passages[number], 0.0) for number in numbers]

    def _source(self, begin: int, end: int, weight: float) -> Source:
        ends = list(accumulate(map(len, self.parts)))
        number = bisect_right(ends, begin)
        file = self.files[number]
        first = ends[number] - len(file.text)
        a, b = begin - first, end - first
        label = label_at(file, self.marks[number], a)
        return Source(file.name, a, b, label, file.text[a:b], round(weight, 4))

    @property
    def title(self) -> str:
        """What the conversation is about."""
        return ", ".join(file.title for file in self.files)


def compose(
    tokenizer: Tokenizer,
    files: Sequence[Document],
    system: str,
    limit: int,
    overflow: str = "error",
    ways: Callable[[int], Sequence[str]] = lambda needed: (),
    day: date | None = None,
    thinks: bool | None = None,
    folds: bool = False,
) -> Book:
    """The book of files and a system prompt. Raises KvchatError("too_long").

    `folds`: turns are to be compressed; the system prompt stands before them then, to stay.
    `ways(needed)` are further ways out for the error; `day` and `thinks` are for the `Dialogue`. A
    text that is far too long is measured by its beginning: tokenising a library takes minutes and
    gigabytes.
    """
    dialogue = Dialogue(
        tokenizer, bool(files or system), day, thinks, system if files and not folds else ""
    )
    text = joined(files)
    book = Book(dialogue, tuple(files), system, text)
    behind = dialogue.told_tokens
    room = limit - reserve_of(limit) - behind
    whole = book.whole(text)
    beginning = whole[: PROBE * limit]
    ids = dialogue.document(beginning)
    needed = len(ids) * max(len(whole), 1) // max(len(beginning), 1)
    streams = overflow == "stream"
    if len(beginning) < len(whole) and (streams or needed <= room):
        ids = dialogue.document(whole)
        needed = len(ids)
    if streams or needed <= room:
        return replace(book, ids=ids, streamed=Streamed.of(needed, limit))
    estimated = len(beginning) < len(whole)
    if overflow == "error" or not text:
        needed += behind
        raise too_long(book.title, files, needed, limit, estimated, ways(needed))
    return _cut(book, text, needed, room, overflow)


def joined(files: Sequence[Document]) -> str:
    """One text of several documents, each under its name; a single one stays as it is."""
    return "".join(headed(files))


def headed(files: Sequence[Document]) -> list[str]:
    """The text of each file, with what stands before it if there are several."""
    if len(files) == 1:
        return [files[0].text]
    gaps = ["", *["\n\n"] * (len(files) - 1)]
    return [f"{gap}# {f.title}\n\n{f.text}" for gap, f in zip(gaps, files, strict=False)]


def _cut(book: Book, text: str, needed: int, room: int, policy: str) -> Book:
    """The book with as much text as fits into `room` tokens, a mark where something is missing."""
    fixed = len(book.dialogue.document(book.whole("")))
    share = (room - fixed) / max(needed - fixed, 1)
    for _ in range(12):
        kept = max(int(len(text) * share), 0)
        front, back = ends(text, kept, FRONT[policy])
        left = len(text) - len(front) - len(back)
        mark = f"[{left:,} characters left out]"
        shortened = "\n\n".join(part for part in (front, mark, back) if part)
        ids = book.dialogue.document(book.whole(shortened))
        if len(ids) <= room:
            dropped = max(needed - len(ids), 0)
            cut = Cut(policy, dropped, left, needed, len(front))
            return replace(book, text=shortened, ids=ids, cut=cut)
        share *= 0.995 * room / len(ids)
    raise KvchatError(
        "too_long",
        f"the system prompt alone needs {fixed + book.dialogue.told_tokens:,} tokens; "
        f"{room + book.dialogue.told_tokens:,} are there",
    )
