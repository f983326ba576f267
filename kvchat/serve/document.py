"""A document that is served: what it is, how far it is read, and its file between two runs."""

import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kvchat.documents import Document, Place
from kvchat.documents.document_ids import Book
from kvchat.documents.section import WHOLE
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.engine import Engine
from kvchat.engine.events import Progress
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of, spec_of
from kvchat.engine.store.atomic import NewFile

LOG = logging.getLogger("kvchat.serve")
NEW, READING, READY, FAILED = "uploaded", "processing", "processed", "error"
FORMAT = 1
ID = re.compile(r"file-[0-9a-f]{24}")


@dataclass
class Served:
    """A document with the name that it is asked by, as a model of its own.

    `listed` ones are shown to everybody; the others are long messages, known to who sends them
    again. `method, budget` are what was asked for it, empty: as the server chooses. `users` are
    requests that need its cache now.
    """

    id: str
    name: str
    document: Document
    listed: bool = True
    sent: bool = False  # by a client, so that it is kept for the next run
    method: str = ""
    budget: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    book: Book | None = None
    chosen: Method | None = None
    cache: KVCache | None = None
    state: str = NEW
    error: Exception | None = None
    restored: bool = False
    seconds: float = 0.0  # that reading it took
    progress: Progress | None = None
    begun: float = 0.0
    used: float = 0.0
    users: int = 0
    deleted: bool = False
    watchers: set[Callable[[], None]] = field(default_factory=set)

    @cached_property
    def counts(self) -> Counter[int]:
        """How often it has each token."""
        return Counter(self.book.ids if self.book else ())

    @property
    def tokens(self) -> int:
        """Of the document; 0 before it is tokenised."""
        return len(self.book.ids) if self.book else 0

    def describe(self, engine: Engine) -> dict[str, Any]:
        """In the form of OpenAI's files, with what is known here beside."""
        found: dict[str, Any] = {
            "id": self.id,
            "object": "file",
            "bytes": self.document.size,
            "created_at": self.created,
            "filename": self.document.title,
            "purpose": "user_data",
            "status": self.state,
            "status_details": str(self.error) if self.error else None,
            "model": self.name,
        }
        return found | {"kvchat": self.about(engine)}

    def about(self, engine: Engine) -> dict[str, Any]:
        """What is read and kept of it: tokens, entries, bytes, method, progress."""
        method, tokens = self.chosen, self.tokens
        found: dict[str, Any] = {
            "tokens": tokens,
            "characters": len(self.document.text),
            "method": name_of(method) if method else self.method or None,
            "budget": str(method.budget) if method else self.budget or None,
            "spec": spec_of(method) if method else None,
            "restored": self.restored,
            "seconds": round(self.seconds, 3),
        }
        if (cache := self.cache) is not None:
            entries = tokens * engine.config.full_heads
            memory = cache.memory()
            found |= {
                "kept_share": round(cache.kept / entries, 4) if entries and cache.kept else 1.0,
                "kv_bytes": memory.total,
                "full_bytes": engine.kv_bytes(tokens),
                "is_full": method == Full(),
            }
        if self.state == READING and (at := self.progress) is not None:
            share = at.done / max(at.total, 1)
            spent = time.monotonic() - self.begun
            found |= {
                "progress": round(share, 4),
                "kv_bytes": at.kv_bytes,
                "seconds": round(spent, 3),
                "seconds_left": round(spent / share - spent, 1) if share > 0.02 else None,
            }
        return found

    def tell(self) -> None:
        """Something about it has changed."""
        for watcher in list(self.watchers):
            watcher()


def identity(*parts: str) -> str:
    """An id for a document: of its text, and of what else makes it another one."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "replace")
        digest.update(len(data).to_bytes(8, "little") + data)
    return f"file-{digest.hexdigest()[:24]}"


def slug(title: str, taken: set[str]) -> str:
    """A name for a model: of a document's title, and none of those that are `taken`."""
    stem = title.rsplit(".", 1)[0] if "." in title[1:] else title
    name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower())[:60].strip("-.") or "document"
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def keep(folder: Path, served: Served) -> None:
    """Write a document's file, which the next run finds. Raises OSError."""
    about = {
        "format": FORMAT,
        "name": served.name,
        "title": served.document.title,
        "size": served.document.size,
        "encoding": served.document.encoding,
        "text": served.document.text,
        "unit": served.document.unit,
        "places": [[place.name, place.start] for place in served.document.places],
        "method": served.method,
        "budget": served.budget,
        "created": served.created,
    }
    with NewFile(folder / f"{served.id}.json") as file:
        file.write(json.dumps(about).encode())


def forget(folder: Path, served: Served) -> None:
    """Delete a document's file. Raises OSError."""
    (folder / f"{served.id}.json").unlink(missing_ok=True)


def kept(folder: Path) -> Iterator[Served]:
    """Documents of earlier runs, the oldest first; files that are damaged are left alone."""
    found = []
    for path in folder.glob("file-*.json") if folder.is_dir() else ():
        if not ID.fullmatch(path.stem):
            continue
        try:
            raw = json.loads(path.read_bytes())
            if raw["format"] != FORMAT:
                continue
            texts = (raw[name] for name in ("title", "text", "encoding", "name", "method"))
            title, text, encoding, name, method = map(str, texts)
            places = tuple(Place(str(name), int(start)) for name, start in raw.get("places", ()))
            unit, size = str(raw.get("unit", WHOLE)), int(raw["size"])
            document = Document(title, text, size, encoding, places=places, unit=unit)
            served = Served(path.stem, name, document, sent=True, method=method)
            served.budget, served.created = str(raw["budget"]), int(raw["created"])
            found.append(served)
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            LOG.warning("%s is not used: %s", path, error)
    return iter(sorted(found, key=lambda each: each.created))
