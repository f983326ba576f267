"""Cached documents: mapped from disk in place of a prefill, saved in the background after one. One
that cannot be used or saved is told once and costs nothing else.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, TypeVar

from kvchat.documents.document_ids import Book
from kvchat.engine.cache.archive import Archive
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.engine import Engine
from kvchat.engine.events import Progress, Restored, Smaller
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import spec_of
from kvchat.engine.prefill.archive_writer import GATED, OBSERVED, InMemory
from kvchat.engine.session import Session
from kvchat.engine.store import Refused, header
from kvchat.engine.store.archive import OnDisk, load_archives
from kvchat.engine.store.cached_document import layers_of
from kvchat.engine.store.contents import Shape
from kvchat.engine.store.identity import Identity, Parts, fingerprint
from kvchat.errors import KvchatError
from kvchat.hub.find import Model
from kvchat.prompt_cache import files
from kvchat.prompt_cache.background import BackgroundSave
from kvchat.prompt_cache.parts import COUNT, opened, place, stored, written
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean, size

T = TypeVar("T")
Run = Callable[[Generator[Progress | Smaller, None, None]], None]
# Parts of an identity that say which document it is meant to be; if they agree, another difference
# means that it was made obsolete.
ASKED = ("document", "method", "questions")
NAMES = {
    "weights": "the weights",
    "config": "config.json",
    "kvchat": "the version of kvchat",
    COUNT: "the number of devices",
    "fitted": "what `kvchat calibrate` fitted",
}


@dataclass(frozen=True)
class Found:
    """A cached document: when it was made, how long its prefill took, and loading it (seconds).

    `book` has the ids of the day on which it was made, if the template writes a date.
    """

    created: datetime
    read_seconds: float
    seconds: float
    book: Book
    cache: KVCache


class PromptCache:
    """The prompt cache of one loaded model. A context around a chat: at its end what is still
    being saved is waited for.

    `policy` is on, off or readonly; `full_copy` says where all entries of a document stay: off,
    host or disk.
    """

    def __init__(
        self,
        screen: Screen,
        engine: Engine,
        model: Model,
        policy: str = "off",
        root: Path | None = None,
        full_copy: str = "off",
    ):
        self._screen, self._engine, self._model = screen, engine, model
        self.root, self.full_copy = root or files.folder(), full_copy
        self.reads, self.saves = policy != "off", policy == "on"
        self._running: list[BackgroundSave] = []

    def __enter__(self) -> "PromptCache":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:  # the person or a signal wants to be gone
            for save in self._running:
                save.stop()
        self.wait()

    def open(
        self,
        session: Session,
        book: Book,
        method: Method,
        folds: Method | None,
        run: Run,
        questions: Sequence[str] = (),
    ) -> Found | None:
        """Begin a conversation over a book: over a cached one, which is returned, or a new one.

        `run` runs the prefill; `questions` choose what is kept. See `Session.prefill`.
        """
        session.require_window(method)
        if found := self.find(book, method, questions):
            session.dialogue = found.book.dialogue
            session.adopt(found.cache, found.book.ids, folds or method)
            session.chooser = method
            return found
        begin = perf_counter()
        archiving = self.archiving(book, method)
        run(session.prefill(book.ids, method, folds, archiving, questions))
        self.kept(archiving)
        self.save(session, book, method, perf_counter() - begin, questions)
        return None

    def find(self, book: Book, method: Method, questions: Sequence[str] = ()) -> Found | None:
        """A book's cache, if there is one; says why one that is there is of no use."""
        if not self.reads or not book.files or self._copies(method) == "host":
            return None  # a copy in memory comes from a prefill
        begin = perf_counter()
        try:
            parts = self._parts(book, method, questions)
        except OSError:  # the model's folder is gone since it was loaded
            return None

        def mapped(path: Path, name: str, dated: Book) -> KVCache:
            about = self.root, parts, dated.ids, dated.saved
            found = self._engine.everywhere(opened, *about)
            if isinstance(found, Exception):
                raise found
            return found

        there = self._opened(parts, book, mapped)
        if self._copies(method) == "disk":
            there = self._with_archives(book, method, there)
        if there is None:
            if others := files.differences(self.root, parts, ASKED):
                if COUNT in others:  # each computes another part then
                    others = [COUNT]
                names = ", ".join(NAMES.get(part, f"the {part}") for part in others)
                self._screen.say(f"this document is cached, but since then {names} changed")
            return None
        cache, about, book = there
        created, seconds = datetime.fromisoformat(about["created"]), perf_counter() - begin
        layers, held = self._engine.config.num_layers, cache.memory().total
        self._screen.observer(Restored(len(book.ids), layers, held, seconds))
        return Found(created, about.get("read_seconds", 0.0), seconds, book, cache)

    def archiving(self, book: Book, method: Method) -> InMemory | OnDisk | None:
        """What keeps all entries of a book during its prefill; None if nothing is to."""
        where = self._copies(method)
        if where == "off" or not book.files:
            return None
        needs = OBSERVED if self._engine.gate is None else GATED
        if where == "host":
            return InMemory(needs)
        parts = self._parts(book)
        about = self._about(book) | {"method": "all entries", "parts": parts}
        name, layers = fingerprint(parts), len(self._engine.config.full_layers)
        on_disk = OnDisk(files.place(self.root, name), layers, book.ids, name, about, needs)
        try:
            files.require_space(self.root, about["full_bytes"])
        except OSError as error:
            on_disk.problem = error
        return on_disk

    def kept(self, archiving: InMemory | OnDisk | None) -> None:
        """Say what became of a full copy, after the prefill."""
        if isinstance(archiving, OnDisk) and (problem := archiving.problem):
            reason = clean(problem.strerror or str(problem))
            self._screen.warn(f"no full copy is kept in {self.root}: {reason}")

    def save(
        self,
        session: Session,
        book: Book,
        method: Method,
        read_seconds: float,
        questions: Sequence[str] = (),
    ) -> None:
        """Save what the session has kept of a book after its prefill, in the background."""
        ids, engine = book.ids, self._engine
        layers = layers_of(session.cache, len(ids)) if self.saves and book.files else None
        if layers is None:
            return
        count = engine.peers.count
        about = self._about(book) | {
            "method": spec_of(method),
            "budget": str(method.budget),
            "read_seconds": round(read_seconds, 3),
        }
        held, cache = session.memory().total, session.cache

        def work(stopped: Callable[[], bool]) -> str:
            parts = self._parts(book, method, questions)
            where = self.root, parts, ids, about, book.saved
            if count == 1:
                took = written(engine, layers, held, *where, stopped)
            else:
                found = engine.everywhere(stored, cache, *where)
                if isinstance(found, Exception):
                    raise found
                took = found
            archive = files.place(self.root, fingerprint(self._parts(book)))
            own = [place(self.root, parts, rank) for rank in range(count)]
            files.prune(self.root, files.CAP, keep=(*own, archive))
            return f"cached for the next time: {size(took)} (kvchat cache list)"

        with self._screen.busy("caching the document") if count > 1 else nullcontext():
            # what several ranks do, they do one after the other
            self._running.append(BackgroundSave(work, at_once=count > 1))

    def tell(self) -> None:
        """Say which savings have ended since the last time, where a person may read it."""
        for save in [save for save in self._running if not save.running]:
            self._running.remove(save)
            if isinstance(save.outcome, Exception):
                reason = getattr(save.outcome, "strerror", None) or repr(save.outcome)
                self._screen.warn(f"nothing can be cached in {self.root}: {clean(reason)}")
                self.saves = False  # once is enough
            elif save.outcome:
                self._screen.say(save.outcome, "dim")

    @cached_property
    def _identity(self) -> Identity:
        return Identity(self._engine, self._model.path)

    def _parts(
        self, book: Book, method: Method | None = None, questions: Sequence[str] = ()
    ) -> Parts:
        """The identity of a book with a method, the same on every day."""
        undated = book.undated
        probes = [undated.dialogue.first(question) for question in questions]
        parts = self._identity.parts(undated.ids, method, probes, undated.streamed)
        count = self._engine.peers.count
        return parts | {COUNT: str(count)} if count > 1 else parts

    def _opened(
        self, parts: Parts, book: Book, load: Callable[[Path, str, Book], T]
    ) -> tuple[T, Any, Book] | None:
        """What a file of these parts holds, what it notes, and the book on its day; None if it is
        not there or bad."""
        name = fingerprint(parts)
        path = files.place(self.root, name)
        try:
            about = header.read(path).about
            datetime.fromisoformat(about["created"])
            dated = book.on(date.fromisoformat(about["day"])) if about.get("day") else book
            found = load(path, name, dated)
        except FileNotFoundError:
            return None
        except (Refused, OSError, KeyError, ValueError, TypeError) as error:
            reason = getattr(error, "strerror", None) or str(error) or repr(error)
            self._screen.warn(f"the cached document {path} is not used: {reason}")
            return None
        files.use(path)
        return found, about, dated

    def _with_archives(
        self, book: Book, method: Method, there: tuple[KVCache, Any, Book] | None
    ) -> tuple[KVCache, Any, Book] | None:
        """A cache with its archives beside it, chosen from them if there is none."""
        parts, config = self._parts(book), self._engine.config
        shape = Shape(config.num_kv_heads, config.head_dim, self._engine.dtype)

        def mapped(path: Path, name: str, dated: Book) -> list[Archive]:
            return load_archives(path, dated.ids, name, len(config.full_layers), shape)

        found = self._opened(parts, book, mapped)
        if found is None:
            return None
        archives, about, dated = found
        if there is None:
            try:
                cache = self._engine.chosen(archives, method)
            except KvchatError as error:
                self._screen.warn(f"{error.message}; the document is prefilled again")
                return None
            return None if cache is None else (cache, about, dated)
        for layer, archive in zip(there[0].layers, archives, strict=True):
            layer.archive = archive
        return there

    def _copies(self, method: Method) -> str:
        """Where all entries stay with a method: one that keeps them needs no copy."""
        return "off" if method.retrieves or method == Full() else self.full_copy

    def _about(self, book: Book) -> dict[str, Any]:
        """What a file notes for the person."""
        return {
            "model": self._model.name,
            "documents": [file.title for file in book.files],
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "day": str(book.dialogue.day or ""),
            "tokens": len(book.ids),
            "full_bytes": self._engine.kv_bytes(len(book.ids)),
        }

    def wait(self) -> None:
        """Wait for what is being saved; Ctrl-C gives it up."""
        try:
            for save in self._running:
                save.wait(0.2)
            if any(save.running for save in self._running):
                self._screen.say("caching the document for the next time · Ctrl-C gives it up")
            for save in self._running:
                save.wait()
        except KeyboardInterrupt:
            for save in self._running:
                save.stop()
            for save in self._running:
                save.wait()
        self.tell()
