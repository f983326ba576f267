"""`Chat`: a session with what the program knows around it."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from kvchat.documents.document_ids import Book
from kvchat.documents.passages import Source
from kvchat.engine.events import Turn, TurnDone
from kvchat.engine.methods.base import Method
from kvchat.engine.session import Session
from kvchat.hub.find import Model
from kvchat.prompt_cache.documents import Found, PromptCache
from kvchat.settings.options import Options
from kvchat.terminal.screen import Screen


@dataclass(frozen=True)
class Waiting:
    """A prefill that was interrupted and can go on: its work, and the seconds that it took; then
    the book that it reads, the method, and the questions that choose what is kept."""

    work: Generator[Any, None, None]
    seconds: float
    book: Book | None = None
    method: Method | None = None
    asked: Sequence[str] = ()


@dataclass
class Chat:
    """One conversation over a book. `timings` are seconds of load, tokenize and prefill."""

    options: Options
    model: Model
    session: Session
    method: Method
    book: Book
    cache: PromptCache
    screen: Screen
    timings: dict[str, float] = field(default_factory=dict)
    restored: Found | None = None  # where the document came from the prompt cache
    in_view: str = ""  # the question that the kept entries were selected for, if one was
    last: TurnDone | None = None  # of the last answer
    cited: tuple[Turn, list[Source]] | None = None  # the passages that an answer is from
    waiting: Waiting | None = None  # a prefill of documents that are not there yet
    interactive: bool = False  # a person can be asked, and presses Ctrl-C

    @contextmanager
    def saving(self) -> Iterator[None]:
        """At the end what is still being saved is waited for, unless something went wrong."""
        try:
            yield
        except BaseException as error:
            self.cache.__exit__(type(error), error, error.__traceback__)
            raise
        self.cache.__exit__(None, None, None)

    @property
    def chosen_for(self) -> list[str]:
        """Questions that another document or budget selects entries by, as before."""
        return [self.in_view] if self.in_view else []

    @property
    def read_speed(self) -> float:
        """Tokens per second of the prefill, or of the cached one; 0 if not known."""
        took = self.timings.get("prefill", 0.0)
        if self.restored is not None:
            took = self.restored.read_seconds
        return len(self.session.document) / took if took and self.book.files else 0.0

    def document_segments(self) -> list[list[Any]]:
        """Per layer what is kept of the document; compressed turns are apart."""
        end = len(self.session.document)
        layers = self.session.cache.layers
        return [[s for s in layer.segments if s.span[0] < end] for layer in layers]

    def document_entries(self) -> list[list[int]]:
        """Per layer and KV head the entries that are kept of the document."""
        end, session = len(self.session.document), self.session
        return (
            session.engine.kept(session.cache, end) if end else [[] for _ in session.cache.layers]
        )

    def merge_sets(self) -> list[list[list[int]]]:
        """Per layer and KV head how many tokens each kept entry stands for, if entries were
        merged.
        """
        found = []
        for segments in self.document_segments():
            heads: list[list[int]] = []
            for held in (segment.tensors() for segment in segments):
                for name in [name for name in held if name.rpartition(".")[2] == "count"]:
                    sizes, ends = held[name].tolist(), held[name[: -len("count")] + "cu"].tolist()
                    cut = [sizes[a:b] for a, b in pairwise(ends)]
                    heads = [a + b for a, b in zip(heads or [[]] * len(cut), cut, strict=True)]
            found.append(heads)
        return found

    def document_kept(self) -> int:
        """Bytes of the document's entries, and of what stands beside them."""
        return sum(self.document_held())

    def document_held(self) -> list[int]:
        """The same on each device."""
        session = self.session
        return session.engine.held(session.cache, len(session.document))

    def attended_share(self) -> str:
        """What a written token reads of the document, if it is not all that is kept: `10 %`."""
        cache = self.session.cache
        return f"{100 * cache.read / cache.kept:.3g} %" if cache.read < cache.kept else ""

    def kept_share(self) -> float:
        """Share of the document's entries that is kept."""
        config = self.session.engine.config
        whole = len(self.session.document) * config.full_heads
        return sum(map(sum, self.document_entries())) / whole if whole else 1.0

    def document_full(self) -> int:
        """Bytes that the document would hold uncompressed."""
        return self.session.engine.kv_bytes(len(self.session.document))
