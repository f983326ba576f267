"""Where the documents of a chat come from: named files, a pipe, or what a saved chat remembers."""

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from select import select
from threading import Timer
from time import perf_counter

from kvchat import documents
from kvchat.chat.paths import expanded
from kvchat.documents.ocr import Pictures
from kvchat.prompt_cache.files import folder
from kvchat.settings.options import Options
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean, seconds, unicode

SOON = 1.0  # seconds in which something should come through a pipe
SAVED = "-:"  # before the name of a text that a saved chat has


def read_documents(options: Options, screen: Screen) -> list[documents.Document]:
    """The named files and what is piped in, or nothing; their notices are said.

    A pipe alone that is empty is an error, for whatever should have filled it has failed; /dev/null
    is not. Raises KvchatError("input").
    """
    paths = [unicode(path) for path in options.files]
    piped = _piped()
    if piped and not paths:
        paths = [documents.STDIN]
    files = open_documents(paths, options, screen)
    # what a saved chat remembers is complete
    if piped and documents.STDIN not in paths and "files" not in options.origins:
        if not select([sys.stdin], [], [], SOON)[0]:
            screen.say("waiting for the end of standard input, which is read beside the files")
        data = documents.capped("stdin", sys.stdin.buffer)
        if data.strip():  # an empty one beside files is how many a script starts us
            how = (options.encoding, options.pages, options.loader)
            files.append(documents.decode("stdin", data, *how, clean_pages=options.clean))
    documents.require_pages(files, options.pages)
    for file in files:
        for notice in file.notices:
            screen.warn(notice)
    return files


def _piped() -> bool:
    """Whether standard input is a pipe or a file: neither a terminal nor /dev/null."""
    try:
        return not stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError):  # closed, or not a file at all
        return False


def open_documents(
    paths: Sequence[str], options: Options, screen: Screen
) -> list[documents.Document]:
    """The documents that were named, those of folders and patterns too. Raises KvchatError."""
    more = frozenset(options.loaders)
    return [
        open_document(each, options, screen)
        for path in paths
        for each in ([path] if path in options.texts else expanded(path, more))
    ]


def open_document(path: str, options: Options, screen: Screen) -> documents.Document:
    """One document; what was piped or pasted into a saved chat comes from there.

    Raises KvchatError.
    """
    if path in options.texts:
        name, text = path.removeprefix(SAVED), options.texts[path]
        return documents.decode(name, text.encode("utf-8", "replace"))
    how = (options.encoding, options.pages, options.loader, options.loaders, options.clean)
    with _patiently(path, screen), ExitStack() as area:
        return documents.read(path, *how, pictures_of(path, options, screen, area))


def pictures_of(path: str, options: Options, screen: Screen, area: ExitStack) -> Pictures:
    """How a document's pictures are read: a live line in `area` says how far it is; what is
    recognised stays in the prompt cache's folder, unless nothing is to be kept."""
    title, begin = Path(path).name, perf_counter()
    keeps = options.prompt_cache != "off"
    known: list[int] = []  # how many at first
    show: Callable[[str], None] | None = None

    def seen(done: int, total: int) -> None:
        nonlocal show
        show = show or area.enter_context(screen.still())
        known.append(done)
        new, took = done - known[0], perf_counter() - begin
        left = f" · {seconds(took / new * (total - done))} left" if new and total > done else ""
        page = f"page {min(done + 1, total):,} of {total:,}" if total > 1 else "the picture"
        show(f"recognising {title}: {page}{left} · Ctrl-C stops")

    return Pictures(seen, folder(options.prompt_cache_dir) / "ocr" if keeps else None)


@contextmanager
def _patiently(path: str, screen: Screen) -> Iterator[None]:
    """Say so if what is no plain file keeps us waiting: a named pipe may never get a writer."""
    try:
        mode = os.stat(Path(path).expanduser()).st_mode
        waits = not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    except (OSError, RuntimeError, ValueError):  # reading it says what is wrong
        waits = False
    line = f"waiting for what will be written to {clean(path)} (Ctrl-C: leave)"
    # a script that stands still says why too
    timer = Timer(SOON, screen.say if screen.quiet else screen.tell, (line,))
    timer.daemon = True
    if waits:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
