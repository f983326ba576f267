"""Documents that were read before: mapped from disk in place of reading, saved in the background
after it. A reading that cannot be used or saved is told once and costs nothing else.
"""

import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from types import TracebackType

from kvchat.app import library
from kvchat.app.book import Book
from kvchat.app.models import Model
from kvchat.app.screen import Screen
from kvchat.app.text import clean, size
from kvchat.engine.cache.layer import KVCache
from kvchat.engine.engine import Engine
from kvchat.engine.events import Progress, Restored, Smaller
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.spec import name_of
from kvchat.engine.session import Session
from kvchat.engine.store import Refused, header
from kvchat.engine.store.book import layers_of, load_book, save_book
from kvchat.engine.store.identity import fingerprint, reading_parts
from kvchat.engine.store.tensors import Stopped

POLICIES = ("on", "off", "read")
Run = Callable[[Generator[Progress | Smaller, None, None]], None]
# Parts of a reading that say which one it is meant to be; if they agree, another difference means
# that it was made obsolete.
ASKED = ("document", "method", "questions")
NAMES = {"weights": "the weights", "config": "config.json", "kvchat": "the version of kvchat"}


@dataclass(frozen=True)
class Found:
    """A document as it was read before: when, and how long that took and this (seconds)."""

    cache: KVCache
    created: datetime
    read_seconds: float
    seconds: float


class Save:
    """A reading that is being written by a thread; `outcome` says how it ended."""

    def __init__(self, work: Callable[[Callable[[], bool]], str]):
        self._stop = threading.Event()
        self._work = work
        self.outcome: str | OSError | None = None
        self.told = False
        self._thread = threading.Thread(target=self._run, name="save")
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it is still being written."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Give it up; nothing of it stays."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it has ended, or for some seconds."""
        self._thread.join(seconds)

    def _run(self) -> None:
        with suppress(Stopped):
            try:
                self.outcome = self._work(self._stop.is_set)
            except OSError as error:
                self.outcome = error


class Readings:
    """A context around a chat; at its end what is still being saved is waited for."""

    def __init__(self, screen: Screen, policy: str = "off", root: Path | None = None):
        self._screen = screen
        self._root = root or library.folder()
        self.reads, self.saves = policy != "off", policy == "on"
        self._running: list[Save] = []

    def __enter__(self) -> "Readings":
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
    ) -> Found | None:
        """Begin a conversation over a book: over a saved reading, which is returned, or a new one.

        `run` runs the reading. See `Session.open`.
        """
        if found := self.find(session.engine, model, book, method):
            session.adopt(found.cache, book.ids, folds or method)
            return found
        begin = perf_counter()
        run(session.open(book.ids, method, folds))
        self.save(session, model, book, method, perf_counter() - begin)
        return None

    def find(self, engine: Engine, model: Model, book: Book, method: Method) -> Found | None:
        """The cache of a book that was read before; says why one that is there is of no use."""
        if not self.reads or not book.files:
            return None
        begin, ids = perf_counter(), book.ids
        try:
            parts = reading_parts(engine, model.folder, ids, method)
        except OSError:  # the model's folder is gone since it was loaded
            return None
        name = fingerprint(parts)
        path = library.place(self._root, name)
        try:
            about = library.noted(header.read(path))
            cache = load_book(path, engine, ids, name)
            created = datetime.fromisoformat(about["created"])
            found = Found(cache, created, about["read_seconds"], perf_counter() - begin)
        except FileNotFoundError:
            if others := library.differences(self._root, parts, ASKED):
                names = ", ".join(NAMES.get(part, f"the {part}") for part in others)
                self._screen.say(f"this document was read before, but since then {names} changed")
            return None
        except (Refused, OSError, KeyError, ValueError, TypeError) as error:
            reason = getattr(error, "strerror", None) or str(error) or repr(error)
            self._screen.warn(f"the saved reading {path} is not used: {reason}; reading again")
            return None
        library.use(path)
        held = cache.memory().total
        self._screen.observer(Restored(len(ids), engine.config.num_layers, held, found.seconds))
        return found

    def save(
        self,
        session: Session,
        model: Model,
        book: Book,
        method: Method,
        read_seconds: float,
    ) -> None:
        """Save what the session has kept of a book that it has read, in the background."""
        engine, ids = session.engine, book.ids
        layers = layers_of(session.cache, len(ids)) if self.saves and book.files else None
        if layers is None:
            return
        about = {
            "model": model.name,
            "documents": [file.title for file in book.files],
            "method": name_of(method),
            "budget": str(method.budget),
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "tokens": len(ids),
            "read_seconds": round(read_seconds, 3),
            "full_bytes": len(ids) * engine.kv_bytes_per_token,
        }

        held = session.memory().total

        def work(stopped: Callable[[], bool]) -> str:
            parts = reading_parts(engine, model.folder, ids, method)
            path = library.place(self._root, fingerprint(parts))
            library.require_space(self._root, held)
            save_book(path, engine, layers, ids, path.stem, about | {"parts": parts}, stopped)
            library.prune(self._root, library.CAP, keep=path)
            return f"saved for the next time: {size(path.stat().st_size)} (kvchat cache list)"

        self._running.append(Save(work))

    def tell(self) -> None:
        """Say which savings have ended since the last time, where a person may read it."""
        for save in [save for save in self._running if not save.running]:
            self._running.remove(save)
            if isinstance(save.outcome, OSError):
                reason = save.outcome.strerror or str(save.outcome)
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
