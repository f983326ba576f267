"""PDF pages by pypdfium2, or else pypdf, in a process of its own: foreign bytes meet code there.

Optional: `pip install 'kvchat[pdf]'`.
"""

import json
import subprocess
import sys
from importlib.util import find_spec

from kvchat.documents.child import LIMIT, SECONDS
from kvchat.documents.cleaning import as_letters, joined
from kvchat.documents.section import Section, Sections
from kvchat.errors import KvchatError

LEAST_PER_PAGE = 20  # characters; below that it is a scan

# stdin: the file. stdout: per page its text, and whether there are pictures, as JSON; or a message.
CHILDREN = {
    "pypdfium2": """
import json, sys
import pypdfium2
try:
    pdf = pypdfium2.PdfDocument(sys.stdin.buffer.read())
    found = [
        (page.get_textpage().get_text_bounded(), any(page.get_objects([3], max_depth=2)))
        for page in pdf
    ]
except pypdfium2.PdfiumError as error:
    found = str(error)
print(json.dumps(found))
""",
    "pypdf": """
import io, json, logging, sys
import pypdf
logging.disable()
try:
    pdf = pypdf.PdfReader(io.BytesIO(sys.stdin.buffer.read()))
    found = [
        (page.extract_text(), "/XObject" in (page.get("/Resources") or {})) for page in pdf.pages
    ]
except Exception as error:
    found = f"password: {error}" if "ecrypt" in str(error) else f"{type(error).__name__}: {error}"
print(json.dumps(found))
""",
}


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """The text of every page. Raises KvchatError("input")."""
    readers = [reader for reader in CHILDREN if find_spec(reader)]
    if not readers:
        raise KvchatError(
            "input",
            f"{name} is a PDF; the reader for it is not installed",
            "pip install 'kvchat[pdf]'",
            f"pdftotext -layout {name} - | kvchat -p …",
        )
    first, *others = readers
    notices: tuple[str, ...] = ()
    try:
        found = pages_of(name, data, first)
    except KvchatError as error:
        if not others or "password" in error.message:
            raise
        try:
            found = pages_of(name, data, others[0])
        except KvchatError:
            raise error from None
        notices = (f"{error.message}; read with {others[0]} instead",)
    pages = [joined(as_letters(text.replace("\r\n", "\n")))[0] for text, _ in found]
    characters = sum(len(page.strip()) for page in pages)
    scanned = characters < min(LEAST_PER_PAGE * len(pages), 200)
    unread = (
        number
        for number, (text, has_pictures) in enumerate(found)
        if len(text.strip()) < LEAST_PER_PAGE and (has_pictures or scanned)
    )
    parts = (Section(f"page {number}", text) for number, text in enumerate(pages, 1))
    return Sections(tuple(parts), "pages", "pdf", notices, tuple(unread))


def pages_of(name: str, data: bytes, reader: str) -> list[tuple[str, bool]]:
    """The text of every page that one reader finds, and whether it has pictures.

    Raises KvchatError("input").
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", LIMIT + CHILDREN[reader]],
            input=data,
            capture_output=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise KvchatError("input", f"{name}: reading took more than {SECONDS} s") from None
    if done.returncode:
        raise KvchatError("input", f"{name} is damaged: {reader} died on it")
    try:
        found: list[tuple[str, bool]] | str = json.loads(done.stdout)
    except ValueError:
        raise KvchatError("input", f"{name} is damaged: {reader} stumbled over it") from None
    if isinstance(found, str):
        locked = "password" in found.lower()
        why = "is locked with a password" if locked else f"cannot be read by {reader}: {found}"
        way = ("save it without a password",) if locked else ()
        raise KvchatError("input", f"{name} {why}", *way)
    return found
