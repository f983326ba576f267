"""`Reader`: a conversation whose document is read, and read again in another way."""

from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import replace

from kvchat.engine.cache.layer import KVCache
from kvchat.engine.conversation import Conversation, require_fit
from kvchat.engine.engine import Engine
from kvchat.engine.events import Progress, Smaller, drain
from kvchat.engine.fold import folding
from kvchat.engine.methods.base import Method, Retrieves
from kvchat.engine.methods.needs import Kind
from kvchat.engine.prefill.archive_writer import Archiving
from kvchat.engine.prefill.prefill import Compression, Reading
from kvchat.engine.prefill.replay_texts import tellings
from kvchat.engine.selection import can_choose
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.turn import Turn


class Reader(Conversation):
    """A document, the turns about it, and the form that both have as tokens.

    `chooser` is the method that chose what is kept of the document.
    """

    def __init__(self, engine: Engine, dialogue: Dialogue, limit: int = 0, tail_budget: int = 0):
        super().__init__(engine, limit, tail_budget)
        self.dialogue = dialogue
        self.chooser: Method | None = None
        self.select_seconds = 0.0  # that compressing took at the last reading

    def read(
        self,
        ids: Sequence[int],
        compressions: Sequence[Compression],
        questions: Sequence[str] = (),
        archiving: Archiving | None = None,
    ) -> Generator[Progress | Smaller, None, Reading]:
        """Read a document once into one cache per compression; `questions` are its probes.

        `archiving` is given all entries, and the caches get what it makes of them. The session
        itself does not change: `adopt` one of the caches to talk over it.
        """
        require_fit(len(ids), self.limit)
        probes = [self.dialogue.first(question) for question in questions]
        kinds = frozenset[Kind]().union(*(c.method.needs.kinds for c in compressions))
        replays = tellings(self.dialogue, ids, kinds)
        with archiving or nullcontext():
            work = self.engine.prefill(ids, compressions, probes, replays, archiving)
            return (yield from work)

    def open(
        self,
        ids: Sequence[int],
        method: Method,
        folds: Method | None = None,
        archiving: Archiving | None = None,
        questions: Sequence[str] = (),
    ) -> Generator[Progress | Smaller, None, None]:
        """Read `ids` (of `Dialogue.document`) with a method and begin a conversation about them.

        Turns are folded with the same method, or with `folds`. With `questions` the method scores
        entries by them and not by the document's end. If the consumer stops in between,
        the session is as it was.
        """
        self.require_window(method)
        if not ids:
            self.chooser = None
            return self.adopt(self.engine.empty_cache(), ids, folds or method)
        compression = Compression(method, tuple(range(len(questions))))
        reading = yield from self.read(ids, [compression], questions, archiving)
        self.select_seconds, self.chooser = reading.select_seconds, method
        self.adopt(reading.caches[0], ids, folds or method)

    def use(
        self,
        method: Method,
        questions: Sequence[str] = (),
        document: Sequence[int] | None = None,
        dialogue: Dialogue | None = None,
        ready: KVCache | None = None,
        archiving: Archiving | None = None,
        folds: Method | None = None,
    ) -> Generator[Progress | Smaller, None, None]:
        """Read the document and the turns again, with another method or another document.

        With `questions` the method scores entries by them and not by the document's end. `dialogue`
        replaces the form of the conversation, `ready` is a cache of the document, which is then
        not read. Turns are folded with the same method, or with `folds`. If the consumer stops in
        between, the session is as it was. Raises KvchatError("too_long").
        """
        folds = folds or method
        if self.tail_budget:
            folding(folds, self.tail_budget)  # refused before anything is read
        ids = self.document if document is None else list(document)
        dialogue = dialogue or self.dialogue
        turns = self._turns_in(dialogue)
        talk = [i for turn in turns for i in turn.ids]
        if document is not None:
            require_fit(len(ids) + len(talk), self.limit, "the document with the conversation")
        cache, select = ready or self.engine.empty_cache(), 0.0
        if ids and not ready:
            compression = Compression(method, tuple(range(len(questions))))
            reading = yield from self.read(ids, [compression], questions, archiving)
            cache, select = reading.caches[0], reading.select_seconds
        self._watch(cache, len(ids), folds)
        if talk:
            yield from self.engine.extend(cache, talk)
        self.cache, self.document, self.turns = cache, ids, turns
        self.dialogue, self.select_seconds, self.method = dialogue, select, folds
        self.chooser = method
        self._fold()

    def choose(self, method: Method, question: str = "") -> bool:
        """Choose again what is kept of the document, with another method or budget, or for a
        question in view.

        Nothing is read: it needs an archive that holds all that the method wants to be shown, and
        is False, with nothing changed, without. Turns stay as they were read, and are folded as
        before.
        """
        self.require_window(method)
        if not self.document or not can_choose(self.cache, method):
            return False
        if question:
            ids = (self.dialogue.following if self.turns else self.dialogue.first)(question)
            before = self.cache.position
            _, self.select_seconds = drain(self.engine.extend_choosing(self.cache, ids, method))
            self._rewind(before)
        else:
            self.select_seconds = self.engine.choose(self.cache, method)
        self.chooser = method
        return True

    def require_window(self, method: Method) -> None:
        """Raise KvchatError("usage") where folded turns would slide into the document."""
        if self.tail_budget and isinstance(method, Retrieves):
            folding(method, self.tail_budget)

    def _turns_in(self, dialogue: Dialogue) -> list[Turn]:
        """The turns in another form: what opens the first one can differ, the rest stays."""
        if dialogue is self.dialogue or not self.turns:
            return self.turns
        first, *rest = self.turns
        ids = dialogue.first(first.question)
        changed = replace(first, ids=(*ids, *first.ids[first.asked :]), asked=len(ids))
        return [changed, *rest]
