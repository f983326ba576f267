"""The documents of a server: read once each, kept in memory while there is room, found again on
disk. Lives on the event loop; the reading itself is work for the engine's thread."""

import asyncio
import logging
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from kvchat.chat.attach import first_method
from kvchat.chat.chat import Chat
from kvchat.chat.recompress import require_room
from kvchat.chat.setup import chosen_method
from kvchat.documents import Document
from kvchat.documents.document_ids import Book, compose
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.events import Progress
from kvchat.engine.methods.base import Method
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.session import Session
from kvchat.errors import KvchatError
from kvchat.serve import document as documents
from kvchat.serve.document import FAILED, READING, READY, Served
from kvchat.serve.refusals import Refusal
from kvchat.serve.scheduler import Scheduler

LOG = logging.getLogger("kvchat.serve")
MOST, MOST_LONG = 200, 32  # documents that are listed, and long messages that are remembered
MOST_BYTES = 2**29  # of the texts of all of them


class Library:
    """Documents by id. `chat` is one without a document: model, options, prompt cache.

    `folder` is where documents that clients send are kept; None: nowhere.
    """

    def __init__(self, chat: Chat, scheduler: Scheduler, folder: Path | None):
        self.chat, self.scheduler, self.folder = chat, scheduler, folder
        self.engine, self.limit = chat.session.engine, chat.session.limit
        self.documents: dict[str, Served] = {}
        self._reading: dict[str, asyncio.Future[Any]] = {}
        # texts are tokenised one after the other, beside the event loop
        self.texts = ThreadPoolExecutor(1, "kvchat-texts")
        self.read = self.restored = 0  # documents since the start

    # Which documents there are

    @property
    def listed(self) -> list[Served]:
        """Those that everybody may see."""
        return [each for each in self.documents.values() if each.listed]

    def named(self, name: str) -> Served | None:
        """The document that is asked by a name, or by its id."""
        if (found := self.documents.get(name)) is not None:
            return found
        return next((each for each in self.listed if each.name == name), None)

    def add(
        self,
        document: Document,
        listed: bool = True,
        sent: bool = False,
        method: str = "",
        budget: str = "",
    ) -> Served:
        """A document, new or as it is known. Raises Refusal if there are too many."""
        name = documents.identity(document.text, document.title if listed else "", method, budget)
        if (known := self.documents.get(name)) is not None:
            known.used = time.monotonic()
            known.listed, known.sent = known.listed or listed, known.sent or sent
            return known
        if method or budget:
            self._method(method, budget)  # refused now
        others = [each for each in self.documents.values() if each.listed == listed]
        if not listed:
            idle = [each for each in others if not each.users and each.id not in self._reading]
            idle.sort(key=lambda each: each.used)
            for old in idle[: max(0, len(others) - MOST_LONG + 1)]:
                del self.documents[old.id]
        elif len(others) >= MOST:
            raise Refusal(429, f"{MOST} documents are there; delete one first", code="too_many")
        held = sum(len(each.document.text) for each in self.documents.values())
        if held + len(document.text) > MOST_BYTES:
            raise Refusal(
                429, f"documents have {held:,} characters by now; delete one first", code="too_many"
            )
        taken = self._taken()
        found = Served(
            name, documents.slug(document.title, taken), document, listed, sent, method, budget,
            used=time.monotonic(),
        )  # fmt: skip
        self.documents[name] = found
        return found

    def _taken(self) -> set[str]:
        """Names that a request can ask for already: documents', and two of the model alone."""
        return {each.name for each in self.documents.values()} | {self.chat.model.name, "default"}

    def recall(self) -> int:
        """Take in documents of earlier runs; how many."""
        count = 0
        for each in documents.kept(self.folder) if self.folder is not None else ():
            taken = self._taken()
            if each.id not in self.documents and count < MOST:
                if each.name in taken:
                    each.name = documents.slug(each.name, taken)
                self.documents[each.id] = each
                count += 1
        return count

    async def take(self, document: Document, method: str, budget: str) -> Served:
        """A document that a client sends, once it is tokenised. Raises KvchatError, Refusal."""
        served = self.add(document, True, True, method, budget)
        if served.book is None:
            try:
                served.book = await self.tokenise(partial(self._book, document))
            except BaseException:
                self.documents.pop(served.id, None)
                raise
        await self.keep(served)
        return served

    async def keep(self, served: Served) -> None:
        """Keep a document's text for the next run, where there is a place for it."""
        if self.folder is not None and served.sent:
            try:
                await asyncio.to_thread(documents.keep, self.folder, served)
            except OSError as error:
                LOG.warning("%s is not kept: %s", served.document.title, error.strerror or error)
            if served.deleted:  # meanwhile
                await asyncio.to_thread(documents.forget, self.folder, served)

    async def remove(self, served: Served) -> None:
        """Forget a document. Who is asking about it goes on; else it is not read any further."""
        served.deleted = True
        self.documents.pop(served.id, None)
        self._reading.pop(served.id, None)  # it may be sent again while this goes on
        if self.folder is not None and served.sent:
            await asyncio.to_thread(documents.forget, self.folder, served)

    # Reading

    async def ready(self, served: Served) -> None:
        """Wait until a document is read, and have it read if nobody has. Raises KvchatError."""
        served.used = time.monotonic()
        if served.cache is not None:
            return
        if (running := self._reading.get(served.id)) is None:
            running = asyncio.ensure_future(self._ready(served))
            self._reading[served.id] = running
            running.add_done_callback(lambda done: self._read_once(served, done))
        await asyncio.shield(running)

    def _read_once(self, served: Served, done: "asyncio.Future[Any]") -> None:
        if self._reading.get(served.id) is done:
            del self._reading[served.id]
        if not done.cancelled():
            done.exception()  # whoever waited has it
        self.chat.cache.tell()

    async def _ready(self, served: Served) -> None:
        served.state, served.error, served.begun = READING, None, time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            if served.book is None:
                served.book = await self.tokenise(partial(self._book, served.document))
            if served.chosen is None:
                served.chosen = self._chosen(served, served.book)
            self._make_room(served)
            work = self._work(served, served.book, served.chosen, loop)
            cache = await asyncio.wrap_future(self.scheduler.read(work))
            served.cache, served.state = cache, READY
        except BaseException as error:
            served.state = FAILED
            served.error = error if isinstance(error, KvchatError | Refusal) else Refusal.of(error)
            raise
        finally:
            served.progress = None
            served.tell()

    def _book(self, document: Document) -> Book:
        tokenizer = self.chat.session.dialogue.tokenizer
        return compose(tokenizer, [document], "", self.limit, self.chat.options.overflow)

    def _method(self, method: str, budget: str) -> Method:
        options = self.chat.options
        if method:
            options = options.changed("method", method, "flag")
        if budget:
            options = options.changed("budget", budget, "flag")
        return chosen_method(options, self.engine.gate is not None)

    def _chosen(self, served: Served, book: Book) -> Method:
        if served.method or served.budget:
            return self._method(served.method, served.budget)
        return first_method(self.chat, book)

    def _make_room(self, served: Served) -> None:
        """Let go of documents that nobody asks about until this one can be read, the oldest first.

        They are found again on disk. Raises KvchatError("memory").
        """
        assert served.chosen is not None
        idle = [each for each in self.documents.values() if each.cache and not each.users]
        idle.sort(key=lambda each: each.used, reverse=True)
        while True:
            try:
                require_room(self.chat, served.chosen, served.tokens)
                return
            except KvchatError:
                if not idle:
                    raise
                oldest = idle.pop()
                oldest.cache, oldest.state = None, documents.NEW

    def _work(
        self, served: Served, book: Book, method: Method, loop: asyncio.AbstractEventLoop
    ) -> Generator[Any, None, KVCache]:
        """Find the document's cache on disk, or read the document: on the engine's thread."""
        begin = perf_counter()
        cache = self.chat.cache
        if (found := cache.find(book, method)) is not None:
            served.book, served.restored = found.book, True
            served.seconds = found.seconds
            self.restored += 1
            return found.cache
        ends, streams = [*self.chat.session.ends], self.chat.options.streams
        session = Session(self.engine, book.dialogue, ends, self.limit, streams=streams)
        work = session.read(book.ids, [Compression(method)])
        while True:
            try:
                event = next(work)
            except StopIteration as done:
                reading = done.value
                break
            if served.deleted and not served.users:
                work.close()
                raise Refusal(404, "the document was deleted", code="file_not_found")
            if isinstance(event, Progress):
                served.progress = event
                loop.call_soon_threadsafe(served.tell)
            yield event
        served.seconds, served.restored = perf_counter() - begin, False
        self.read += 1
        session.adopt(reading.caches[0], book.ids)
        cache.save(session, book, method, served.seconds)
        kept: KVCache = reading.caches[0]
        for layer in kept.layers:
            layer.archive = None  # nobody chooses again
        return kept

    def tokenise(self, work: "partial[Any]") -> "asyncio.Future[Any]":
        """Have work on texts done, in its turn."""
        return asyncio.get_running_loop().run_in_executor(self.texts, work)

    @property
    def kv_bytes(self) -> int:
        """Bytes of all documents that are in memory."""
        caches = (each.cache for each in self.documents.values())
        return sum(cache.memory().total for cache in caches if cache is not None)
