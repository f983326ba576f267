"""PDF pages through pypdfium2, in a process of its own: native code meets foreign bytes there.

Optional: `pip install 'kvchat[pdf]'`.
"""

import pickle
import subprocess
import sys
from importlib.util import find_spec

from kvchat.app.documents.section import Section, Sections
from kvchat.errors import KvchatError

SECONDS = 300
LEAST_PER_PAGE = 20  # characters; below that it is a scan

# stdin: the file. stdout: a pickled list of page texts, or a message.
CHILD = """
import pickle, sys
import pypdfium2
try:
    pdf = pypdfium2.PdfDocument(sys.stdin.buffer.read())
    found = [page.get_textpage().get_text_bounded() for page in pdf]
except pypdfium2.PdfiumError as error:
    found = str(error)
sys.stdout.buffer.write(pickle.dumps(found))
"""


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """The text of every page. Raises KvchatError("input")."""
    if find_spec("pypdfium2") is None:
        raise KvchatError(
            "input",
            f"{name} is a PDF; the reader for it is not installed",
            "pip install 'kvchat[pdf]'",
            f"pdftotext -layout {name} - | kvchat -p …",
        )
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD], input=data, capture_output=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise KvchatError("input", f"{name}: reading took more than {SECONDS} s") from None
    if done.returncode:
        raise KvchatError("input", f"{name} is damaged: the PDF reader died on it")
    found = pickle.loads(done.stdout)
    if isinstance(found, str):
        locked = "password" in found.lower()
        why = "is locked with a password" if locked else f"cannot be read: {found}"
        way = ("save it without a password",) if locked else ()
        raise KvchatError("input", f"{name} {why}", *way)
    pages = [text.replace("\r\n", "\n").replace("\ufffe", "") for text in found]
    characters = sum(len(page.strip()) for page in pages)
    if characters < min(LEAST_PER_PAGE * len(pages), 200) and len(pages):
        raise KvchatError(
            "input",
            f"{name}: {len(pages):,} pages, {characters:,} characters of text: probably scanned",
            "run OCR first, for instance ocrmypdf",
        )
    parts = (Section(f"page {number}", text) for number, text in enumerate(pages, 1))
    return Sections(tuple(parts), "pages", "pdf")
