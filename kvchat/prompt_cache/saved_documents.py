"""Documents that were read before: mapped from disk in place of reading, saved in the background
after it. A reading that cannot be used or saved is told once and costs nothing else.
"""

from collections.abc import Callable, Generator, Sequence
from datetime import datetime
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, TypeVar

from kvchat.documents.document_ids import Book
from kvchat.engine.cache.layer import KVCache
from kvchat.engine.engine import Engine
from kvchat.engine.events import Progress, Restored, Smaller
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import spec_of
from kvchat.engine.prefill.archive_writer import InMemory
from kvchat.engine.session import Session
from kvchat.engine.store import Refused, cached_document, header
from kvchat.engine.store.archive import OnDisk, load_archives
from kvchat.engine.store.cached_document import layers_of
from kvchat.engine.store.identity import Parts, fingerprint, parts_of
from kvchat.errors import KvchatError
from kvchat.hub.find import Model
from kvchat.machine import resources as machine
from kvchat.machine.plan import Plan, require_copy
from kvchat.prompt_cache import library
from kvchat.prompt_cache.background import Save
from kvchat.prompt_cache.found import Found
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean, size

POLICIES = ("on", "off", "read")
T = TypeVar("T")
Run = Callable[[Generator[Progress | Smaller, None, None]], None]
# Parts of a reading that say which one it is meant to be; if they agree, another difference means
# that it was made obsolete.
ASKED = ("document", "method", "questions")
NAMES = {"weights": "the weights", "config": "config.json", "kvchat": "the version of kvchat"}


class PromptCache:
    """A context around a chat; at its end what is still being saved is waited for."""

    def __init__(
        self, screen: Screen, policy: str = "off", root: Path | None = None, full_copy: str = "off"
    ):
        self._screen, self.full_copy = screen, full_copy
        self._root = root or library.folder()
        self.reads, self.saves = policy != "off", policy == "on"
        self._running: list[Save] = []

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
        self._wait()

    def open(
        self,
        session: Session,
        model: Model,
        book: Book,
        method: Method,
        folds: Method | None,
        run: Run,
        questions: Sequence[str] = (),
    ) -> Found | None:
        """Begin a conversation over a book: over a saved reading, which is returned, or a new one.

        `run` runs the reading; `questions` choose what is kept. See `Session.open`.
        """
        session.require_window(method)
        probes = [session.dialogue.first(question) for question in questions]
        if before := self.find(session.engine, model, book, method, probes):
            cache, found = before
            session.adopt(cache, book.ids, folds or method)
            session.chooser = method
            return found
        begin = perf_counter()
        archiving = self.archiving(session.engine, model, book, method)
        run(session.prefill(book.ids, method, folds, archiving, questions))
        self.kept(archiving)
        self.save(session, model, book, method, perf_counter() - begin, probes)
        return None

    def archiving(
        self, engine: Engine, model: Model, book: Book, method: Method
    ) -> InMemory | OnDisk | None:
        """What keeps all entries of a book that is going to be read; None if nothing is to."""
        where = self._copies(method)
        if where == "off" or not book.files:
            return None
        if where == "host":
            return InMemory()
        parts = parts_of(engine, model.folder, book.ids)
        about = self._about(engine, model, book) | {"method": "all entries", "parts": parts}
        name, layers = fingerprint(parts), engine.config.num_layers
        path = library.place(self._root, name)
        on_disk = OnDisk(path, layers, book.ids, name, about)
        try:
            library.require_space(self._root, about["full_bytes"])
        except OSError as error:
            on_disk.problem = error
        return on_disk

    def kept(self, archiving: InMemory | OnDisk | None) -> None:
        """Say what became of a full copy, after the reading."""
        if isinstance(archiving, OnDisk) and (problem := archiving.problem):
            reason = clean(problem.strerror or str(problem))
            self._screen.warn(f"no full copy is kept in {self._root}: {reason}")

    def find(
        self,
        engine: Engine,
        model: Model,
        book: Book,
        method: Method,
        probes: Sequence[Sequence[int]] = (),
    ) -> tuple[KVCache, Found] | None:
        """The cache of a book that was read before; says why one that is there is of no use."""
        if not self.reads or not book.files or self._copies(method) == "host":
            return None  # a copy in memory comes from reading
        begin, ids = perf_counter(), book.ids
        try:
            parts = parts_of(engine, model.folder, ids, method, probes)
        except OSError:  # the model's folder is gone since it was loaded
            return None
        opened = self._opened(
            parts, lambda path, name: cached_document.load(path, engine, ids, name)
        )
        if self._copies(method) == "disk":
            opened = self._with_archives(engine, model, book, method, opened)
        if opened is None:
            if others := library.differences(self._root, parts, ASKED):
                names = ", ".join(NAMES.get(part, f"the {part}") for part in others)
                self._screen.say(f"this document was read before, but since then {names} changed")
            return None
        cache, about = opened
        took = perf_counter() - begin
        created = datetime.fromisoformat(about["created"])
        held = cache.memory().total
        self._screen.observer(Restored(len(ids), engine.config.num_layers, held, took))
        return cache, Found(created, about.get("read_seconds", 0.0), took)

    def save(
        self,
        session: Session,
        model: Model,
        book: Book,
        method: Method,
        read_seconds: float,
        probes: Sequence[Sequence[int]] = (),
    ) -> None:
        """Save what the session has kept of a book that it has read, in the background."""
        engine, ids = session.engine, book.ids
        layers = layers_of(session.cache, len(ids)) if self.saves and book.files else None
        if layers is None:
            return
        about = self._about(engine, model, book) | {
            "method": spec_of(method),
            "budget": str(method.budget),
            "read_seconds": round(read_seconds, 3),
        }
        held = session.memory().total

        def work(stopped: Callable[[], bool]) -> str:
            parts = parts_of(engine, model.folder, ids, method, probes)
            path = library.place(self._root, fingerprint(parts))
            library.require_space(self._root, held)
            cached_document.save(
                path, engine, layers, ids, path.stem, about | {"parts": parts}, stopped
            )
            entries = library.place(self._root, fingerprint(parts_of(engine, model.folder, ids)))
            library.prune(self._root, library.CAP, keep=(path, entries))
            return f"saved for the next time: {size(path.stat().st_size)} (kvchat cache list)"

        self._running.append(Save(work))

    def _opened(self, parts: Parts, load: Callable[[Path, str], T]) -> tuple[T, Any] | None:
        """What a file of these parts holds, and what it notes; None if it is not there or bad."""
        name = fingerprint(parts)
        path = library.place(self._root, name)
        try:
            about = library.noted(header.read(path))
            datetime.fromisoformat(about["created"])
            found = load(path, name)
        except FileNotFoundError:
            return None
        except (Refused, OSError, KeyError, ValueError, TypeError) as error:
            reason = getattr(error, "strerror", None) or str(error) or repr(error)
            self._screen.warn(f"the saved reading {path} is not used: {reason}; reading again")
            return None
        library.use(path)
        return found, about

    def _with_archives(
        self,
        engine: Engine,
        model: Model,
        book: Book,
        method: Method,
        opened: tuple[KVCache, Any] | None,
    ) -> tuple[KVCache, Any] | None:
        """A cache with its archives beside it, chosen from them if there is none."""
        parts, ids = parts_of(engine, model.folder, book.ids), book.ids
        found = self._opened(parts, lambda path, name: load_archives(path, ids, name))
        if found is None:
            return None
        archives, about = found
        if opened is None:
            try:
                cache = engine.chosen(archives, method)
            except KvchatError as error:
                self._screen.warn(f"{error.message}; reading again")
                return None
            return None if cache is None else (cache, about)
        for layer, archive in zip(opened[0].layers, archives, strict=True):
            layer.archive = archive
        return opened

    def _copies(self, method: Method) -> str:
        """Where all entries stay with a method: one that keeps them needs no copy."""
        return "off" if method.retrieves or method == Full() else self.full_copy

    @staticmethod
    def _about(engine: Engine, model: Model, book: Book) -> dict[str, Any]:
        """What a file notes for the person."""
        return {
            "model": model.name,
            "documents": [file.title for file in book.files],
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "tokens": len(book.ids),
            "full_bytes": len(book.ids) * engine.kv_bytes_per_token,
        }

    def tell(self) -> None:
        """Say which savings have ended since the last time, where a person may read it."""
        for save in [save for save in self._running if not save.running]:
            self._running.remove(save)
            if isinstance(save.outcome, Exception):
                reason = getattr(save.outcome, "strerror", None) or repr(save.outcome)
                self._screen.warn(f"the reading cannot be saved in {self._root}: {clean(reason)}")
                self.saves = False  # once is enough
            elif save.outcome:
                self._screen.say(save.outcome, "dim")

    def _wait(self) -> None:
        """Wait for what is being saved; Ctrl-C gives it up."""
        try:
            for save in self._running:
                save.wait(0.2)
            if any(save.running for save in self._running):
                self._screen.say("saving the reading for the next time · Ctrl-C gives it up")
            for save in self._running:
                save.wait()
        except KeyboardInterrupt:
            for save in self._running:
                save.stop()
            for save in self._running:
                save.wait()
        self.tell()


def plan_copy(
    screen: Screen, where: str, method: Method, plan: Plan, device: machine.Device
) -> None:
    """Say what a full copy takes beside the plan. Raises KvchatError("memory")."""
    if method == Full():
        screen.warn("full keeps every entry: a full copy has nothing to add")
        return
    screen.say(f"      and a full copy of the KV, {size(plan.kv_full)} on {where}")
    if where == "host":
        free = machine.free(machine.CPU)
        require_copy(plan, free, beside=device.type == "cpu")
