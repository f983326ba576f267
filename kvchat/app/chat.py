"""`Chat`: a session with what the program knows around it."""

from dataclasses import dataclass, field

from kvchat.app.book import Book
from kvchat.app.models import Model
from kvchat.app.options import Options
from kvchat.app.readings import Found, Readings
from kvchat.app.settings import Settings
from kvchat.engine.cache.segment import Segment
from kvchat.engine.events import TurnDone
from kvchat.engine.methods.base import Method
from kvchat.engine.promise import Kept
from kvchat.engine.session import Session


@dataclass
class Chat:
    """One conversation over a book. `timings` are seconds of load, tokenize and prefill."""

    options: Options
    model: Model
    session: Session
    method: Method
    settings: Settings
    book: Book
    readings: Readings
    timings: dict[str, float] = field(default_factory=dict)
    restored: Found | None = None  # where the document was read before
    in_view: str = ""  # the question that the kept rows were chosen for; empty: the document's end
    promise: Kept | None = None  # how the budget was chosen, if it was
    last: TurnDone | None = None  # of the last answer
    leaving: int = 0  # the signal that asked the process to end

    @property
    def read_speed(self) -> float:
        """Tokens per second of the reading, or of the one that was restored; 0 if not known."""
        took = self.timings.get("prefill", 0.0)
        if self.restored is not None:
            took = self.restored.read_seconds
        return len(self.session.document) / took if took else 0.0

    def document_segments(self) -> list[list[Segment]]:
        """Per layer what is kept of the document; folded turns are apart."""
        end = len(self.session.document)
        layers = self.session.cache.layers
        return [[s for s in layer.segments if s.span[0] < end] for layer in layers]

    def document_rows(self) -> list[list[int]]:
        """Per layer and KV head the rows that are kept of the document."""
        end = len(self.session.document)
        return [layer.kept(end) if end else [] for layer in self.session.cache.layers]

    def document_kept(self) -> int:
        """Bytes of the document's rows, and of what stands beside them."""
        windows = sum(layer.window_bytes for layer in self.session.cache.layers)
        segments = (s for layer in self.document_segments() for s in layer)
        return windows + sum(s.memory().total for s in segments)

    def reads(self) -> str:
        """What a written token reads of the document, if it is not all that is kept: `10 %`."""
        cache = self.session.cache
        return f"{100 * cache.read / cache.kept:.3g} %" if cache.read < cache.kept else ""

    def document_full(self) -> int:
        """Bytes that the document would hold uncompressed."""
        return len(self.session.document) * self.session.engine.kv_bytes_per_token
