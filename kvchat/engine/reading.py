"""`Reading`: the document of a session, prefilled, read behind another, compressed anew."""

from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import replace

from kvchat.engine.answering import (
    Answering,
)
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.compaction import folding
from kvchat.engine.context_window import ids_of, require_fit, tokens_of
from kvchat.engine.conversation import Work
from kvchat.engine.events import Progress, Smaller, drain
from kvchat.engine.gates.check import Check
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.needs import Kind
from kvchat.engine.methods.simple import Full
from kvchat.engine.prefill.archive_writer import Archiving, Notes
from kvchat.engine.prefill.prefill import Compression, Prefill
from kvchat.engine.prefill.replay_texts import replays_of
from kvchat.engine.selection import can_choose
from kvchat.engine.sizes import Streamed
from kvchat.engine.text.chat_template import Dialogue
from kvchat.errors import KvchatError


class Reading(Answering):
    """The document in front of the turns: what is kept of it, and how it is read."""

    chooser: Method | None = None  # that chose what is kept of the document
    select_seconds = 0.0  # that compressing took at the last prefill
    gate_correlation: float | None = None  # of what a gate told of the document; see Check

    def read(
        self,
        ids: Sequence[int],
        compressions: Sequence[Compression],
        questions: Sequence[str] = (),
        archiving: Archiving | None = None,
        beside: int = 0,
    ) -> Generator[Progress | Smaller, None, Prefill]:
        """Prefill a document once into one cache per compression; `questions` are its probes.

        `archiving` is given all entries, and the caches get what it makes of them; from one that
        keeps all of them others can be chosen later. The session itself does not change: `adopt`
        one of the caches to talk over it. What does not fit into the window, with `beside` tokens
        of turns, is read part by part if the session `streams`, once per compression. Raises
        KvchatError("too_long").
        """
        probes = [self.dialogue.first(question) for question in questions]
        if streamed := self._streamed(len(ids), beside):
            if archiving is not None:
                raise KvchatError(
                    "usage",
                    f"no full copy can be kept of a document of {len(ids):,} tokens that is read "
                    f"in {len(streamed.parts)} parts",
                    "-p QUESTION  (known before the prefill: nothing need be kept for it)",
                    "--keep-full off",
                    "--method pqcache  (keeps every entry by itself)",
                )
            return (yield from self._in_parts(ids, compressions, probes, streamed))
        require_fit(len(ids) + beside, self.limit)
        kinds = frozenset[Kind]().union(*(c.method.needs.kinds for c in compressions))
        replays = replays_of(self.dialogue, ids, kinds)
        notes = Notes(self.engine.gate is not None)
        whole = archiving is None and all(isinstance(each.method, Full) for each in compressions)
        check = Check() if any(each.method.needs.gate for each in compressions) else None
        wanted = list(compressions)
        if check is not None:
            wanted, replays = [*wanted, Compression(check)], [*replays, check.replay(ids)]
        with archiving or nullcontext():
            noting = notes if whole else archiving
            found = yield from self.engine.prefill(ids, wanted, probes, replays, noting)
        self.gate_correlation = None if check is None else check.correlation
        del found.caches[len(compressions) :]
        return found

    def _streamed(self, tokens: int, beside: int = 0) -> Streamed | None:
        """How a document is read that does not fit beside so many tokens of turns."""
        room = self.limit - beside
        return Streamed.of(tokens, room) if self.streams and room >= self.limit // 2 else None

    def _in_parts(
        self,
        ids: Sequence[int],
        compressions: Sequence[Compression],
        probes: Sequence[Sequence[int]],
        streamed: Streamed,
    ) -> Generator[Progress | Smaller, None, Prefill]:
        found = []
        for each in compressions:
            kinds = each.method.needs.kinds
            how = replace(streamed, replayed=bool(kinds))
            parts = [ids[a:b] for a, b in how.parts] if kinds else []
            replays = [replays_of(self.dialogue, part, kinds) for part in parts]
            found.append((yield from self.engine.stream(ids, each, how, probes, replays)))
        caches, seconds = [f.caches[0] for f in found], sum(f.select_seconds for f in found)
        return Prefill(caches, found[-1].logits, seconds, found[-1].asides)

    def prefill(
        self,
        ids: Sequence[int],
        method: Method,
        folds: Method | None = None,
        archiving: Archiving | None = None,
        questions: Sequence[str] = (),
    ) -> Work:
        """Prefill `ids` (of `Dialogue.document`) with a method and begin a conversation about them.

        Turns are compressed by the same method, or by `folds`. With `questions` the method scores
        entries by them and not by the document's end. If the consumer stops in between, the
        session is as it was. Raises KvchatError("too_long").
        """
        self.require_window(method)
        if not ids:
            return self.adopt(self.engine.empty_cache(), ids, folds or method)
        compression = Compression(method, tuple(range(len(questions))))
        reading = yield from self.read(ids, [compression], questions, archiving)
        self.adopt(reading.caches[0], ids, folds or method)
        self.select_seconds, self.chooser = reading.select_seconds, method

    def append(self, ids: Sequence[int], method: Method) -> Work:
        """Read `ids` behind the document, which stays as it is kept, and compress them by a method;
        the turns follow.

        If the consumer stops in between, the session is as it was; or it has all of the document,
        and the turns follow with the next question. Raises KvchatError("too_long").
        """
        self.require_window(method)
        before = len(self.document)
        talk = 0 if self.cascade else tokens_of(self.turns)
        require_fit(before + len(ids) + talk, self.limit, "all of it")
        self._rewind(before)
        self._part = []  # the turns are fed again when they are wanted, now or later
        replays = replays_of(self.dialogue, ids, method.needs.kinds)
        self.select_seconds = yield from self.engine.append(self.cache, ids, method, replays)
        self.document = [*self.document, *ids]
        self.chooser = None
        self._watch(self.cache, self.method)
        yield from self._holding(self.turns)

    def adopt(self, cache: KVCache, ids: Sequence[int], folds: Method | None = None) -> None:
        """Talk over this cache of the document `ids` from now on; earlier turns are forgotten."""
        assert cache.position == len(ids), f"{cache.position} tokens prefilled of {len(ids)}"
        self._cache, self.document, self.turns, self.method = cache, list(ids), [], folds
        self.forgotten, self._part, self.chooser, self._saved = [], None, None, cache.saved
        self._watch(cache, folds)

    def recompress(
        self,
        method: Method,
        questions: Sequence[str] = (),
        document: Sequence[int] | None = None,
        dialogue: Dialogue | None = None,
        ready: KVCache | None = None,
        archiving: Archiving | None = None,
        folds: Method | None = None,
    ) -> Work:
        """Prefill document and turns again, with another method or another document.

        `dialogue` replaces the form of the conversation; `ready` is a cache of the document, which
        then needs no prefill. The rest is as for `prefill`. If the consumer stops in between, the
        session is as it was. Raises KvchatError("too_long").
        """
        folds = folds or method
        self.require_window(method)
        if self.tail_budget:
            folding(folds, self.tail_budget)  # refused now if it cannot
        ids = self.document if document is None else list(document)
        dialogue = dialogue or self.dialogue
        turns = self.turns if dialogue is self.dialogue else self._opening(self.turns, dialogue)
        talk = ids_of(turns)
        beside = 0 if self.cascade else len(talk)
        if document is not None and not self._streamed(len(ids), beside):
            require_fit(len(ids) + beside, self.limit, "the document with the conversation")
        cache, select = ready or self.engine.empty_cache(), 0.0
        if ids and not ready:
            compression = Compression(method, tuple(range(len(questions))))
            reading = yield from self.read(ids, [compression], questions, archiving, beside)
            cache, select = reading.caches[0], reading.select_seconds
        self._watch(cache, folds, len(ids))
        saved = cache.saved
        for item in self._feed(cache, len(ids), turns, 0, folds) if talk else ():
            if not isinstance(item, int):
                yield item
        self._cache, self._saved, self.document, self.turns, self._part = (
            cache,
            saved,
            ids,
            turns,
            None,
        )
        self.dialogue, self.select_seconds, self.method = dialogue, select, folds
        self.chooser = method
        self._fold()

    def choose(self, method: Method, question: str = "") -> bool:
        """Choose again what is kept of the document, with another method or budget, or for a
        question in view; turns stay as they are.

        Needs an archive that holds all that the method wants to be shown: without one it is False,
        and nothing has changed.
        """
        self.require_window(method)
        if not self.document or not can_choose(self.cache, method):
            return False
        drain(self._holding(self.turns))
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
        """Raise KvchatError("usage") where compressed turns would slide into the document."""
        if (self.tail_budget or self.cascade) and method.retrieves:
            folding(method, self.tail_budget)
