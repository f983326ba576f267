"""Pages that word processors mark: where they broke when laid out, and where they have to."""

import pytest

from kvchat import documents
from kvchat.documents.paged import FORCED, LAID, PAGE, paged
from kvchat.documents.passages import label_at, marks
from tests.documents.test_formats import odf
from tests.documents.test_loaders import W, docx

L, F = LAID, FORCED
DOCX = f"""<w:document xmlns:w="{W}"><w:body>
<w:p><w:r><w:t>The keeper counted</w:t></w:r>
<w:r><w:lastRenderedPageBreak/><w:t xml:space="preserve"> the ships.</w:t></w:r></w:p>
<w:p><w:r><w:br w:type="page"/></w:r></w:p>
<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr>
<w:r><w:lastRenderedPageBreak/><w:t>The rent</w:t></w:r></w:p>
<w:p><w:pPr><w:pageBreakBefore/></w:pPr><w:r><w:t>It is 140 crowns.</w:t></w:r></w:p>
<w:p><w:pPr><w:pageBreakBefore w:val="0"/></w:pPr><w:r><w:t>The end.</w:t></w:r></w:p>
</w:body></w:document>"""
STYLES = """<office:automatic-styles xmlns:style="s" xmlns:fo="f"><style:style style:name="P1">
<style:paragraph-properties fo:break-before="page"/></style:style><style:style style:name="P2">
<style:paragraph-properties fo:break-after="page"/></style:style></office:automatic-styles>"""


@pytest.mark.parametrize(("text", "pages"), [
    (f"One{L} two.\n\n{L}Three", ["One ", "two.\n\n", "Three"]),
    (f"One.\n\n{F}\n\n{L}Two.", ["One.\n\n", "Two."]),
    (f"One.{F}{F}Two.", ["One.", "", "Two."]),
    (f"{L}{F}One.{L}", ["One."]),
    (f"wa{L}ter", ["wa", "ter"]),
    (f"{'x' * PAGE}{F}{'y' * (PAGE + 1)}", ["x" * PAGE + "y" * (PAGE + 1)]),
    (f"{'x' * PAGE}{L}{'y' * (PAGE + 1)}", ["x" * PAGE, "y" * (PAGE + 1)]),
])  # fmt: skip
def test_breaks_are_where_pages_begin(text, pages):
    found = paged("a", text, "docx")
    assert [part.text for part in found.parts] == [page for page in pages if page]
    numbers = [f"page {n}" for n, page in enumerate(pages, 1) if page]
    assert [part.name for part in found.parts] == (numbers if len(pages) > 1 else ["a"])


def at(found, text):
    return label_at(found, marks(found), found.text.index(text))


def test_a_docx_has_pages_beside_a_text_that_they_do_not_change():
    found = documents.decode("a.docx", docx(DOCX))
    assert (
        found.text == "The keeper counted the ships.\n\n# The rent\n\nIt is 140 crowns.\n\nThe end."
    )
    assert [at(found, each) for each in ("keeper", "ships", "rent", "140", "end")] == [
        f"p. {n}" for n in (1, 2, 3, 4, 4)
    ]
    assert "140" not in documents.decode("a.docx", docx(DOCX), pages="1-3").text


def test_an_odt_has_pages_too():
    body = (
        "<text:p>One <text:soft-page-break/>two.</text:p>"
        '<text:p text:style-name="P1">Three</text:p><text:p text:style-name="P2">Four</text:p>'
        "<text:soft-page-break/><text:p>Five</text:p>"
    )
    data = odf("text", body, STYLES)
    found = documents.decode("a.odt", data)
    assert found.text == "One two.\n\nThree\n\nFour\n\nFive"
    assert [at(found, each) for each in ("One", "two", "Three", "Four", "Five")] == [
        f"p. {n}" for n in (1, 2, 3, 3, 4)
    ]
