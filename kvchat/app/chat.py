"""`Chat`: a session with what the program knows around it."""

from dataclasses import dataclass, field

from kvchat.app.book import Book
from kvchat.app.models import Model
from kvchat.app.options import Options
from kvchat.app.settings import Settings
from kvchat.engine.events import TurnDone
from kvchat.engine.methods.base import Method
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
    timings: dict[str, float] = field(default_factory=dict)
    in_view: str = ""  # the question that the kept rows were chosen for; empty: the document's end
    last: TurnDone | None = None  # of the last answer
    leaving: int = 0  # the signal that asked the process to end

    @property
    def read_speed(self) -> float:
        """Tokens per second of the last reading; 0 if nothing was read."""
        return len(self.session.document) / max(self.timings.get("prefill", 0.0), 1e-6)

    def document_kept(self) -> int:
        """Bytes of the compressed document."""
        return sum(segment.memory().total for segment in self.session.cache.segments())

    def document_full(self) -> int:
        """Bytes that the document would hold uncompressed."""
        return len(self.session.document) * self.session.engine.kv_bytes_per_token
