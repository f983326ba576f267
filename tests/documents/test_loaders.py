"""HTML, EPUB, DOCX and PDF as text; pages; files that are damaged or hostile."""

import io
import re
import zipfile

import pytest

from kvchat import documents
from kvchat.documents import ocr
from kvchat.errors import KvchatError

PAGE = """<!DOCTYPE html><html><head><title>T</title><style>p{}</style>
<meta charset="utf-8"></head><body><script>alert(1)</script>
<h1>The  harbour</h1><p>The keeper
counted <b>ships</b> &amp; stars.</p><ul><li>one</li><li>two</li></ul>
<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>
<pre>x = 1
  y = 2</pre><p>naïve &lt;tag&gt;<br>new line</p></body></html>"""


def zipped(**members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return data.getvalue()


def docx(text):
    return zipped(**{"word/document.xml": text})


def epub(chapters=("One", "Two", "Three"), spine=None):
    items = "".join(
        f'<item id="c{i}" href="text/ch%20{i}.xhtml" media-type="application/xhtml+xml"/>'
        for i in range(len(chapters))
    )
    refs = "".join(f'<itemref idref="c{i}"/>' for i in spine or range(len(chapters)))
    texts = {
        f"OEBPS/text/ch {i}.xhtml": f"<html><head><title>no</title></head><body><h2>{title}</h2>"
        f"<p>Text of {title}.</p></body></html>"
        for i, title in enumerate(chapters)
    }
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
    )
    package = (
        f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest>'
        f"<spine>{refs}</spine></package>"
    )
    return zipped(**{"META-INF/container.xml": container, "OEBPS/book.opf": package}, **texts)


W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
DOCX = f"""<w:document xmlns:w="{W}"><w:body>
<w:p><w:pPr><w:pStyle w:val="Heading2"/></w:pPr><w:r><w:t>The harbour</w:t></w:r></w:p>
<w:p><w:r><w:t xml:space="preserve">The keeper </w:t></w:r><w:r><w:t>counted.</w:t><w:br/>
<w:t>At night.</w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>
<w:p><w:pPr><w:numPr/></w:pPr><w:r><w:t>item</w:t></w:r></w:p>
<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>b</w:t></w:r>
</w:p></w:tc></w:tr></w:tbl></w:body></w:document>"""


def pdf(*pages):
    """A PDF by hand, a line of text per page."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects) + 2} 0 R"
            " /Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >>"
            " >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out = b"%PDF-1.4\n"
    places = []
    for number, text in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{text}\nendobj\n".encode()
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{place:010} 00000 n \n".encode() for place in places)
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\n".encode()
    return out + f"startxref\n{start}\n%%EOF\n".encode()


def test_html_is_readable_text():
    found = documents.decode("page.bin", PAGE.encode())
    assert found.text.startswith("# The harbour\n\nThe keeper counted ships & stars.")
    for part in ("- one\n- two", "a\tb\nc", "x = 1\ny = 2", "naïve <tag>\nnew"):
        assert part in found.text
    assert "alert" not in found.text and "p{}" not in found.text


def test_html_charset_is_believed_if_it_exists():
    page = '<html><meta charset="iso-8859-1"><body>caf\xe9</body></html>'
    assert documents.decode("a.html", page.encode("latin-1")).text == "café"
    strange = page.replace("iso-8859-1", "no-such-thing").encode("latin-1")
    assert documents.decode("a.html", strange).text == "café", "cp1252 with a notice"


def test_epub_follows_the_spine_and_names_chapters():
    found = documents.decode("book.epub", epub(spine=(2, 0, 1)))
    assert [place.name for place in found.places] == ["Three", "One", "Two"]
    assert found.text.index("Text of Three") < found.text.index("Text of One")
    assert found.unit == "chapters" and "no" not in found.text.split()
    for place in found.places:
        assert found.text[place.start :].startswith(f"## {place.name}")


def test_docx_keeps_headings_lists_and_tables():
    found = documents.decode("a.docx", docx(DOCX))
    want = "## The harbour\n\nThe keeper counted.\nAt night.\n\n- item\n\na\tb"
    assert found.text.replace("\n\n\n", "\n\n") == want and "gone" not in found.text


def test_pdf_pages():
    pytest.importorskip("pypdfium2")
    data = pdf(*(f"The keeper counted ships on page {n}." for n in range(1, 6)))
    found = documents.decode("a.pdf", data)
    assert found.unit == "pages" and len(found.places) == 5
    assert "on page 3." in found.text
    chosen = documents.decode("a.pdf", data, pages="2,4-")
    assert "page 2." in chosen.text and "page 1." not in chosen.text and "page 5." in chosen.text
    assert len(chosen.places) == 3 and "3 of 5" in chosen.notices[0]


def test_a_scan_and_a_damaged_pdf(monkeypatch):
    pytest.importorskip("pypdfium2")
    monkeypatch.setattr(ocr, "find_spec", lambda name: None)
    with pytest.raises(KvchatError, match=r"\b3 .*\b0 "):
        documents.decode("scan.pdf", pdf("", "", ""))
    with pytest.raises(KvchatError, match="pypdfium2"):
        documents.decode("bad.pdf", b"%PDF-1.4 nothing")


def test_a_pdf_that_one_reader_cannot_read_is_given_to_the_other(monkeypatch):
    from kvchat.documents import pdf as loader

    pytest.importorskip("pypdf")
    text = "The keeper counted the ships of the harbour."
    died = "import sys; sys.exit(3)"
    monkeypatch.setattr(loader, "CHILDREN", loader.CHILDREN | {"pypdfium2": died})
    monkeypatch.setattr(loader, "find_spec", lambda name: True)
    found = documents.decode("a.pdf", pdf(text))
    assert text in found.text
    assert re.search(r"pypdfium2.*\bpypdf\b", *found.notices)
    monkeypatch.setattr(loader, "find_spec", lambda name: name == "pypdf")
    assert text in documents.decode("a.pdf", pdf(text)).text
    with pytest.raises(KvchatError, match=r"\bpypdf\b"):
        documents.decode("bad.pdf", b"%PDF-1.4 nothing")


def test_a_pdf_without_the_reader_says_what_to_install(monkeypatch):
    from kvchat.documents import pdf as loader

    monkeypatch.setattr(loader, "find_spec", lambda name: None)
    with pytest.raises(KvchatError) as caught:
        documents.decode("a.pdf", pdf("x"))
    assert "pip install 'kvchat[pdf]'" in caught.value.tries


@pytest.mark.parametrize(
    ("pages", "want"), [("2", "B"), ("1-2", "AB"), ("-2", "AB"), ("3-,1", "ACD"), ("4, 2", "BD")]
)
def test_pages_of_a_text_with_form_feeds(pages, want):
    found = documents.decode("a.txt", b"A\fB\fC\fD", pages=pages)
    assert "".join(found.text.split()) == want


def test_pages_keep_their_numbers_beside_blank_ones():
    text = b"one\f\fthree\ffour"
    found = documents.decode("a.txt", text, pages="3")
    assert (found.text, [place.name for place in found.places]) == ("three", ["page 3"])
    assert documents.decode("a.txt", text, pages="2-4").text.split() == ["three", "four"]
    with pytest.raises(KvchatError) as caught:
        documents.decode("a.txt", text, pages="2")
    assert caught.value.code == "input"


@pytest.mark.parametrize("pages", ["0", "5", "3-2", "x", "1-9", "-"])
def test_pages_that_are_not_there(pages):
    with pytest.raises(KvchatError) as caught:
        documents.decode("a.txt", b"A\fB\fC\fD", pages=pages)
    assert caught.value.exit_code == 2


def test_pages_are_chosen_where_there_are_any():
    paged = documents.decode("a.txt", b"A\fB", pages="2")
    plain = documents.decode("b.txt", b"all", pages="2")
    assert (paged.text, plain.text) == ("B", "all")
    assert "b.txt" in plain.notices[0] and "--pages" in plain.notices[0]
    documents.require_pages([paged, plain], "2")
    documents.require_pages([plain], None)
    documents.require_pages([], "2")
    with pytest.raises(KvchatError, match=r"b\.txt") as caught:
        documents.require_pages([plain], "2")
    assert caught.value.exit_code == 2


BOMB = docx("<a>" + " " * 50_000_000 + "</a>")
ENTITIES = '<!DOCTYPE a [<!ENTITY b "c">]><w:document xmlns:w="w">&b;</w:document>'


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("bomb.docx", BOMB, "packed into"),
        ("entities.docx", docx(ENTITIES), "entities"),
        ("broken.docx", docx("<a"), "damaged"),
        ("empty.docx", docx("<a/>"), "body"),
        ("cut.epub", epub()[:300], "damaged"),
        ("nothing.epub", epub(chapters=()), "chapters"),
        ("other.zip", zipped(readme="x"), "zip archive"),
        ("old.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Office"),
        ("a.gz", b"\x1f\x8b\x08\x00", "gzip"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(name, data, part):
    with pytest.raises(KvchatError, match=part) as caught:
        documents.decode(name, data)
    assert caught.value.exit_code == 4


def test_a_loader_can_be_named():
    assert documents.decode("a.html", b"<html>x</html>", loader="text").text == "<html>x</html>"
    with pytest.raises(KvchatError, match="loader"):
        documents.decode("a.txt", b"x", loader="word")


SET = "The har\u00adbour o\ufb03ce of St. A\ufb02eck"
PLAIN = "The harbour office of St. Afleck"


def test_soft_hyphens_and_ligatures_of_typeset_kinds_are_letters():
    assert documents.decode("a.html", f"<html><p>{SET}".encode()).text == PLAIN
    assert documents.decode("a.docx", docx(DOCX.replace("The harbour", SET))).text.startswith(
        f"## {PLAIN}"
    )
    assert documents.decode("a.txt", SET.encode()).text == SET, "it may be meant"
    assert documents.decode("a.txt", f"{SET}\u200b".encode(), clean_pages=True).text == PLAIN


def test_words_that_lines_of_a_pdf_break_are_joined(monkeypatch):
    from kvchat.documents import pdf as loader

    page = "The har\ufffe\r\nbour has a light-\r\nhouse.\r\nIt is A-\r\n1 and twenty-\r\nOne."
    monkeypatch.setattr(loader, "find_spec", lambda name: True)
    monkeypatch.setattr(loader, "pages_of", lambda *given: [(page, False)])
    text = documents.decode("a.pdf", b"%PDF-1.7").text
    assert text == "The harbour has a lighthouse.\nIt is A-\n1 and twenty-\nOne."
