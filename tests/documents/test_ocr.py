"""Text of pictures: by a recogniser that a test writes, and by the real one where there is one."""

import io
import textwrap
from importlib.util import find_spec

import pytest

from kvchat import documents
from kvchat.documents import ocr
from kvchat.documents.ocr import Pictures
from kvchat.errors import KvchatError

pypdfium2 = pytest.importorskip("pypdfium2")
image = pytest.importorskip("PIL.Image")
FACT = "The monthly rent is 1,840 euros."
# Says which page it was asked for; a page has two paragraphs.
CHILD = """
import json, sys
sys.stdin.buffer.read()
for page in sys.argv[1:]:
    print(json.dumps([[f"Page {page} says", 10, 20], ["hel-", 22, 32], ["lo.", 34, 44],
                      ["The end.", 70, 80]]), flush=True)
"""


def drawn(text=FACT):
    """A page as a scanner sees it."""
    from PIL import ImageDraw, ImageFont

    page = image.new("RGB", (1240, 400), "white")
    lines = "\n".join(textwrap.wrap(text, 60))
    ImageDraw.Draw(page).text((90, 90), lines, fill="black", font=ImageFont.load_default(32))
    return page


def scan(pages=1):
    """A PDF of pictures."""
    data = io.BytesIO()
    first, *others = [drawn()] * pages
    first.save(data, "PDF", save_all=True, append_images=others, resolution=150)
    return data.getvalue()


def mixed(*order):
    """A PDF of pages with text ("t"), scanned ones ("s") and blank ones ("b")."""
    from tests.documents.test_loaders import pdf

    made = pypdfium2.PdfDocument.new()
    for kind in order:
        if kind == "b":
            made.new_page(612, 792)
        else:
            page = (
                scan() if kind == "s" else pdf("The keeper counted the ships of the harbour. " * 3)
            )
            made.import_pages(pypdfium2.PdfDocument(page))
    data = io.BytesIO()
    made.save(data)
    return data.getvalue()


@pytest.fixture
def fake(monkeypatch):
    """A recogniser that answers at once; the pages that it was asked for."""
    monkeypatch.setattr(ocr, "find_spec", lambda name: True)
    monkeypatch.setattr(ocr, "CHILD", CHILD)


@pytest.fixture
def missing(monkeypatch):
    monkeypatch.setattr(ocr, "find_spec", lambda name: None)


def test_scanned_pages_have_their_text_in_their_places(fake):
    seen = []
    pictures = Pictures(lambda *given: seen.append(given))
    found = documents.decode("a.pdf", mixed(*"tsbs"), pictures=pictures)
    assert found.unit == "pages" and [place.name for place in found.places] == [
        f"page {n}" for n in (1, 2, 3, 4)
    ]
    for number, place in ((1, found.places[1]), (3, found.places[3])):
        assert found.text[place.start :].startswith(f"Page {number} says\nhello.\n\nThe end.")
    assert "ships" in found.text[: found.places[1].start]
    assert seen == [(0, 2), (1, 2), (2, 2)] and "2 of 4" in found.notices[-1]


def test_pages_that_nobody_wants_are_not_recognised(fake):
    found = documents.decode("a.pdf", mixed(*"tsss"), pages="1,3")
    assert "Page 2 says" in found.text and "Page 1" not in found.text and len(found.places) == 2


def test_what_was_recognised_is_kept_page_by_page(fake, tmp_path, monkeypatch):
    pictures, data = Pictures(folder=tmp_path / "ocr"), scan(3)
    monkeypatch.setattr(ocr, "CHILD", CHILD.replace("sys.argv[1:]", "sys.argv[1:3]"))
    with pytest.raises(KvchatError):  # it dies at the third page
        documents.decode("a.pdf", data, pictures=pictures)
    [kept] = (tmp_path / "ocr").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(ocr, "CHILD", CHILD.replace("Page", "Late page"))
    text = documents.decode("a.pdf", data, pictures=pictures).text
    assert "Page 0" in text and "Page 1" in text and "Late page 2" in text
    monkeypatch.setattr(ocr, "CHILD", "raise SystemExit(1)")
    assert documents.decode("a.pdf", data, pictures=pictures).text == text
    kept.write_text("{damaged")
    with pytest.raises(KvchatError):
        documents.decode("a.pdf", data, pictures=pictures)


def test_an_image_file_is_a_document(fake, missing, monkeypatch):
    for kind in ("PNG", "JPEG", "TIFF"):
        data = io.BytesIO()
        drawn().save(data, kind)
        with pytest.raises(KvchatError) as caught:
            documents.decode("a.bin", data.getvalue())
        assert caught.value.code == "input" and ocr.EXTRA in caught.value.tries
        with monkeypatch.context() as there:
            there.setattr(ocr, "find_spec", lambda name: True)
            assert "says\nhello." in documents.decode("a.bin", data.getvalue()).text


def test_without_the_recogniser_the_way_out_is_named(missing):
    with pytest.raises(KvchatError, match=r"\b2 pages, 0 ") as caught:
        documents.decode("a.pdf", scan(2))
    assert ocr.EXTRA in caught.value.tries
    found = documents.decode("a.pdf", mixed(*"tsts"))
    assert found.text.count("ships") == 4 and ocr.EXTRA in found.notices[0]
    assert "2 of 4" in found.notices[0] and "(2, 4)" in found.notices[0]
    assert not documents.decode("a.pdf", mixed(*"tb")).notices, "a blank page is no picture"


def test_a_recogniser_that_fails_is_an_error(fake, monkeypatch):
    for child in ("import json; print(json.dumps('OSError: no memory'))", "import os; os._exit(9)"):
        monkeypatch.setattr(ocr, "CHILD", child)
        with pytest.raises(KvchatError) as caught:
            documents.decode("a.pdf", scan())
        assert caught.value.code == "input"


@pytest.mark.skipif(not all(map(find_spec, ocr.NEEDED)), reason="kvchat[ocr] is not installed")
def test_the_real_recogniser_reads_a_scan():
    found = documents.decode("a.pdf", mixed(*"ts"))
    assert FACT in found.text[found.places[1].start :]
