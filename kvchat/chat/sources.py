"""Where the documents of a chat come from: named files, a pipe, or what a saved chat remembers."""

import os
import stat
import sys

from kvchat import documents
from kvchat.settings.options import Options
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import unicode

SAVED = "-:"  # before the name of a text that a saved chat has


def read_documents(options: Options, screen: Screen) -> list[documents.Document]:
    """The named files, or what is piped in, or nothing; their notices are said.

    An empty pipe is an error, for whatever should have filled it has failed; /dev/null is not.
    Raises KvchatError("input").
    """
    paths = [unicode(path) for path in options.files]
    if not paths and not stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode):
        paths = [documents.STDIN]
    files = [open_document(path, options) for path in paths]
    for file in files:
        for notice in file.notices:
            screen.warn(notice)
    return files


def open_document(path: str, options: Options) -> documents.Document:
    """One document; what was piped or pasted into a saved chat comes from there.

    Raises KvchatError.
    """
    if path in options.texts:
        name, text = path.removeprefix(SAVED), options.texts[path]
        return documents.decode(name, text.encode("utf-8", "replace"))
    return documents.read(
        path, options.encoding, options.pages, options.loader, options.loaders, options.clean
    )
