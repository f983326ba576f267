"""Text of pictures: pages that were scanned, and image files. rapidocr recognises it, in a process
of its own that also draws the pages.

Optional: `pip install 'kvchat[ocr]'`. Its models come with it; nothing is downloaded.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from threading import Timer

from kvchat.documents.child import LIMIT, SECONDS
from kvchat.documents.cleaning import as_letters, joined
from kvchat.documents.section import WHOLE, Section, Sections
from kvchat.errors import KvchatError
from kvchat.files import private_folder

EXTRA = "pip install 'kvchat[ocr]'"
NEEDED = ("rapidocr", "onnxruntime", "pypdfium2")
NAMED = 6  # pages that a notice names
APART = 0.6  # of a line's height: what is farther below the line before begins a paragraph
VERSION = 1  # of what is kept of a page
Line = tuple[str, float, float]  # a text, and where it begins and ends from the top

# stdin: the file; arguments: its pages, from 0. stdout: per page a list of `Line` as JSON, or a
# message.
CHILD = """
import io, json, sys
import numpy, pypdfium2
from PIL import Image
from rapidocr import RapidOCR
data, pages = sys.stdin.buffer.read(), [int(page) for page in sys.argv[1:]]
read = RapidOCR(params={"Global.log_level": "critical"})
def drawn():
    if data.startswith(b"%PDF"):
        pdf = pypdfium2.PdfDocument(data)
        for number in pages:
            page = pdf[number]
            # 150 dots per inch, and no more than 4,000 for a poster
            yield page.render(scale=min(150 / 72, 4000 / max(page.get_size()))).to_numpy()
    else:
        yield numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[:, :, ::-1]
try:
    for picture in drawn():
        found = read(picture)
        boxes = [] if found.boxes is None else found.boxes
        lines = [(text, float(box[:, 1].min()), float(box[:, 1].max()))
                 for text, box in zip(found.txts or (), boxes)]
        print(json.dumps(lines), flush=True)
except Exception as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
"""


@dataclass(frozen=True)
class Pictures:
    """What is done about pictures: `seen` is told how many are read of how many, `folder` keeps
    what was recognised, so that a file is looked at once."""

    seen: Callable[[int, int], object] = lambda done, total: None
    folder: Path | None = None


UNTOLD = Pictures()


def with_text(
    name: str, data: bytes, sections: Sections, wanted: Sequence[int], pictures: Pictures
) -> Sections:
    """The same sections with the text of those that are pictures, as far as they are wanted.

    Raises KvchatError("input") where nothing else is there and nobody can read them.
    """
    unread = [number for number in sections.unread if number in set(wanted)]
    if not unread:
        return sections
    if not all(find_spec(each) for each in NEEDED):
        return _without(name, sections, unread, len(wanted))
    parts, found = list(sections.parts), _known(pictures, data)
    missing = [number for number in unread if number not in found]
    if missing:
        pictures.seen(len(unread) - len(missing), len(unread))
    try:
        for number, lines in zip(missing, _recognised(name, data, missing), strict=True):
            found[number] = joined(as_letters(text_of(lines)))[0]
            pictures.seen(sum(each in found for each in unread), len(unread))
    finally:  # what was recognised by now is not looked at again
        if missing:
            _remember(pictures, data, found)
    for number in unread:
        parts[number] = Section(parts[number].name, found[number])
    what = f"{len(unread):,} of {len(parts):,} pages" if len(parts) > 1 else "all of it"
    note = f"{name}: {what} recognised from pictures (OCR); letters may be wrong"
    return replace(sections, parts=tuple(parts), notices=(*sections.notices, note))


def _without(name: str, sections: Sections, unread: Sequence[int], wanted: int) -> Sections:
    """The sections without what is in pictures. Raises KvchatError("input") if that is all."""
    if len(sections.parts) == 1 and sections.unit == WHOLE:
        raise KvchatError(
            "input", f"{name} is a picture; the reader for it is not installed", EXTRA
        )
    if len(unread) == wanted:
        characters = sum(len(part.text.strip()) for part in sections.parts)
        raise KvchatError(
            "input",
            f"{name}: {wanted:,} pages, {characters:,} characters of text: probably scanned",
            EXTRA,
            "run OCR first, for instance ocrmypdf",
        )
    named = ", ".join(str(number + 1) for number in unread[:NAMED])
    more = ", …" if len(unread) > NAMED else ""
    note = (
        f"{name}: {len(unread):,} of {wanted:,} pages are pictures and are not read "
        f"({named}{more}); {EXTRA} reads them"
    )
    return replace(sections, notices=(*sections.notices, note))


def _recognised(name: str, data: bytes, pages: Sequence[int]) -> Iterator[list[Line]]:
    """The lines of every page as they come. Raises KvchatError("input")."""
    if not pages:
        return
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        command = [sys.executable, "-c", LIMIT + CHILD, *map(str, pages)]
        child = subprocess.Popen(
            command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert child.stdout is not None
        try:
            for _ in pages:
                clock = Timer(SECONDS, child.kill)
                clock.start()
                line = child.stdout.readline()
                clock.cancel()
                found = json.loads(line) if line else "the recogniser died on it"
                if isinstance(found, str):
                    raise KvchatError("input", f"{name} cannot be recognised: {found}")
                yield [(str(text), float(top), float(end)) for text, top, end in found]
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def text_of(lines: Sequence[Line]) -> str:
    """The text of a page: a line where a line is, an empty one where a paragraph begins."""
    pieces, last = [], None
    for text, top, end in lines:
        if last is not None:
            apart = top - last > APART * (end - top)
            pieces.append("\n\n" if apart else "\n")
        pieces.append(text)
        last = end
    return "".join(pieces)


def _kept(pictures: Pictures, data: bytes) -> Path | None:
    digest = hashlib.sha256(data).hexdigest()
    return pictures.folder / f"{digest}.json" if pictures.folder else None


def _known(pictures: Pictures, data: bytes) -> dict[int, str]:
    """What an earlier start recognised."""
    path = _kept(pictures, data)
    if path is None:
        return {}
    try:
        kept = json.loads(path.read_text("utf-8"))
        return {
            int(n): str(text) for n, text in kept["pages"].items() if kept["version"] == VERSION
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _remember(pictures: Pictures, data: bytes, found: dict[int, str]) -> None:
    """Keep what was recognised, for the user alone; a full disk is no reason to stop."""
    path = _kept(pictures, data)
    if path is None or not found:
        return
    text = json.dumps({"version": VERSION, "pages": found})
    with suppress(OSError):
        private_folder(path.parent)
        number, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
