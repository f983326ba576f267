"""OpenDocument, FictionBook, RTF, mails, slides and sheets: their text and nothing else."""

import io
import zipfile

import pytest

from kvchat import documents
from kvchat.documents import office
from kvchat.errors import KvchatError
from tests.documents.hostile import flipped, spoilt, zipped
from tests.documents.test_hostile import unpacked
from tests.support.errors import refused

OFFICE = "urn:oasis:names:tc:opendocument:xmlns:office:1.0"
NAMES = (
    f'xmlns:office="{OFFICE}" xmlns:text="t:text" xmlns:table="t:table" xmlns:draw="t:draw" '
    'xmlns:dc="t:dc"'
)


def odf(kind, body, styles=""):
    inner = f"<office:{kind}>{body}</office:{kind}>"
    text = f"<office:document-content {NAMES}>{styles}<office:body>{inner}"
    text += "</office:body></office:document-content>"
    mime = f"application/vnd.oasis.opendocument.{kind}"
    return zipped({"mimetype": mime.encode(), "content.xml": text.encode()}, stored=True)


ODT = odf(
    "text",
    "<text:tracked-changes><text:p>gone</text:p></text:tracked-changes>"
    '<text:h text:outline-level="2">The harbour</text:h><text:p>The<text:s text:c="2"/>keeper'
    "<text:tab/>counted<text:line-break/>"
    "<text:span>ships</text:span>.<text:note><text:note-citation>1</text:note-citation>"
    "<text:note-body><text:p>at night</text:p></text:note-body></text:note>"
    "<office:annotation><text:p>gone</text:p></office:annotation></text:p><text:list><text:list-item>"
    "<text:p>one</text:p></text:list-item></text:list><table:table><table:table-row><table:table-cell>"
    "<text:p>a</text:p></table:table-cell><table:table-cell><text:p>b</text:p></table:table-cell>"
    "</table:table-row></table:table>",
)
ODS = odf(
    "spreadsheet",
    '<table:table table:name="Rents"><table:table-row><table:table-cell><text:p>140</text:p>'
    '</table:table-cell></table:table-row></table:table><table:table table:name="None"/>',
)
FB2 = (
    '<?xml version="1.0" encoding="windows-1251"?><FictionBook xmlns="f"><description><genre>gone'
    "</genre></description><body><title><p>Книга</p></title><section><title><p>One</p><p>and a half"
    "</p></title><p>The <emphasis>captain</emphasis>.</p><section><title><p>In it</p></title>"
    "<poem><stanza><v>a</v><v>b</v></stanza></poem></section></section><section><p>Two.</p></section>"
    '</body><binary id="c">iVBORw0K</binary></FictionBook>'
).encode("cp1251")
RTF = (
    rb"{\rtf1\ansi\ansicpg1251{\fonttbl{\f0 Gone;}}{\*\generator gone;}{\info{\title gone}}\f0 "
    rb"\'ca\'e0\'ef\'e8\'f2\'e0\'ed\par The {\b ca}ptain\'97\u8212?{\uc2\u9731 ab}c\line x\tab y"
    b"\r\n z\\{\\}\\\\\\~{\\pict\\bin4 }}}}ff}\\cell d\\row{\\u-10179?\\u-8704?}}"
)
MAIL = b"""Received: from a
Subject: =?utf-8?q?F=C3=A4hre?=
From: Mara <mara@voss.org>
Content-Type: multipart/mixed; boundary="x"

--x
Content-Type: multipart/alternative; boundary="y"

--y
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: base64

SXQgbGVhdmVzIGF0IHNldmVuLg==
--y
Content-Type: text/html

<p>gone</p>
--y--
--x
Content-Type: text/html; charset=iso-8859-1

<p>caf\xe9</p>
--x
Content-Type: application/pdf; name="rent.pdf"
Content-Disposition: attachment; filename="rent.pdf"

JVBERi0=
--x--
"""
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def office_file(main, kind, members, more=None):
    """An archive whose main part names its slides or sheets, in the order of `members`."""
    folder, file = main.split("/")
    refs = "".join(f'<{kind} name="S{n}" r:id="r{n}"/>' for n in range(len(members)))
    related = "".join(
        f'<Relationship Id="r{n}" Target="{name}"/>' for n, name in enumerate(members)
    )
    found = {
        main: f'<a xmlns:r="{RELATIONS}"><list>{refs}</list></a>',
        f"{folder}/_rels/{file}.rels": f"<Relationships>{related}</Relationships>",
    }
    found |= {f"{folder}/{name}": text for name, text in members.items()} | (more or {})
    return zipped({name: text.encode() for name, text in found.items()}, stored=True)


PPTX = office_file(
    "ppt/presentation.xml",
    "sldId",
    {
        "slides/slide2.xml": "<s><p><r><t>First</t></r><br/><r><t>slide</t></r></p><p/></s>",
        "slides/slide1.xml": "<s><p><t>Second</t></p></s>",
        "slides/slide3.xml": "<s/>",
    },
)
SHEET = (
    '<w><sheetData><row><c r="A1" t="s"><v>1</v></c><c r="C1"><v>4.5</v></c></row><row>'
    '<c r="A2" t="inlineStr"><is><t>in</t></is></c><c t="s"><v>99</v></c></row></sheetData></w>'
)
SHARED = {"xl/sharedStrings.xml": "<sst><si><t>no</t></si><si><r><t>ye</t></r><t>s</t></si></sst>"}
XLSX = office_file("xl/workbook.xml", "sheet", {"worksheets/sheet1.xml": SHEET}, SHARED)
ALL = {"odt": ODT, "ods": ODS, "fb2": FB2, "rtf": RTF, "mail": MAIL, "pptx": PPTX, "xlsx": XLSX}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            "odt",
            "## The harbour\n\nThe  keeper\tcounted\nships. (at night)\n\n- one\n\na\tb",
        ),
        ("ods", "140"),
        (
            "fb2",
            "# Книга\n\n# One and a half\n\nThe captain.\n\n## In it\n\na\nb\n\nTwo.",
        ),
        (
            "rtf",
            "Капитан\n\nThe captain\u2014\u2014\u2603c\nx\ty z{}\\\u00a0\td\n\U0001f600",
        ),
        (
            "mail",
            "Subject: Fähre\nFrom: Mara <mara@voss.org>\n\nIt leaves at seven.\n\ncafé",
        ),
        ("pptx", "First\nslide\n\nSecond"),
        ("xlsx", "# S0\n\nyes\t\t4.5\nin"),
    ],
)
def test_the_text_of_each_kind_and_nothing_else(kind, text):
    found = documents.decode("without-a-name", ALL[kind])
    assert found.text == text


def test_parts_have_names():
    assert [place.name for place in documents.decode("a", FB2).places] == ["Книга", "Two."]
    assert [place.name for place in documents.decode("a", PPTX).places] == ["slide 1", "slide 2"]
    sheets = documents.decode("a", ODS)
    assert [place.name for place in sheets.places] == ["Rents"] and sheets.unit == "sheets"
    assert documents.decode("a", PPTX, pages="2").text == "Second"


def test_what_is_attached_is_said():
    [notice] = documents.decode("a.eml", MAIL).notices
    assert "1 " in notice and "rent.pdf" in notice


def test_cells_and_rows_that_are_stored_once_stand_as_often_as_they_do():
    def cell(text, times):
        said = f"<text:p>{text}</text:p>" if text else ""
        return (
            f'<table:table-cell table:number-columns-repeated="{times}">{said}</table:table-cell>'
        )

    rows = (
        f"<table:table-row>{cell('rent', 1)}{cell('500', 2)}{cell('700', 1)}</table:table-row>",
        f"<table:table-row>{cell('gas', 1)}{cell('', 2)}{cell('90', 1)}</table:table-row>",
        f'<table:table-row table:number-rows-repeated="2">{cell("fee", 1)}{cell("1", 2)}'
        "</table:table-row>",
        f'<table:table-row table:number-rows-repeated="1048576">{cell("", 16384)}'
        "</table:table-row>",
    )
    data = odf("spreadsheet", f'<table:table table:name="A">{"".join(rows)}</table:table>')
    lines = documents.decode("a.ods", data).text.splitlines()
    assert lines == ["rent\t500\t500\t700", "gas\t\t\t90", "fee\t1\t1", "fee\t1\t1"]
    many = f"<table:table-row>{cell('x' * 1000, 99_999_999)}</table:table-row>"
    data = odf("spreadsheet", f'<table:table table:name="A">{many}</table:table>')
    assert len(documents.decode("a.ods", data).text) < 102_000


def test_numbers_that_are_too_large_are_no_trouble(monkeypatch):
    spaces = '<text:p>a<text:s text:c="999999999"/><text:s text:c="9999"/>b</text:p>'
    assert documents.decode("a", odf("text", spaces)).text == f"a{' ' * 101}b"
    wide = SHEET.replace("C1", "ZZZ1")
    data = office_file("xl/workbook.xml", "sheet", {"s.xml": wide}, SHARED)
    assert documents.decode("a", data).text.count("\t") <= office.COLUMNS_CAP
    monkeypatch.setattr(office, "TOTAL_CAP", 5)
    with refused("input", " 5 "):
        documents.decode("a", XLSX)
    with refused("input", "10,001"):
        documents.decode("a", b"{\\rtf" + b"{" * 20_000)


@pytest.mark.parametrize("data", [odf("text", ""), odf("drawing", "<draw:page/>")])
def test_without_text_it_is_refused(data):
    with refused("input"):
        documents.decode("a.odt", data)


@pytest.mark.parametrize("kind", ALL)
def test_damaged_ones_are_read_or_refused_in_one_sentence(kind):
    read = 0
    for data in flipped(ALL[kind], 400, seed=len(ALL[kind])):
        try:
            read += bool(documents.decode(f"a.{kind}", data).text)
        except KvchatError as error:
            assert error.exit_code == 4 and "\n" not in error.message
    assert read > 0


@pytest.mark.parametrize("kind", ["epub", "docx", "odt", "ods", "pptx", "xlsx"])
def test_archives_whose_members_are_odd(kind):
    """Their sums are right: what is wrong is found by whoever reads them."""
    data = unpacked(kind) if kind in ("epub", "docx") else ALL[kind]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    read = refusals = 0
    for each in spoilt(members, 400, seed=len(data)):
        try:
            read += bool(documents.decode(f"a.{kind}", each).text)
        except KvchatError as error:
            refusals += 1
            assert error.exit_code == 4 and "\n" not in error.message
    assert read > 40 and refusals > 40
