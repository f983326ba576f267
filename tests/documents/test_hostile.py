"""Documents that would stop us: each is read or refused, in bounded time and in one sentence."""

import gc
import time
from html import unescape

import pytest

from kvchat import documents
from kvchat.documents import archive, xml
from kvchat.documents.html import declared, text_of
from kvchat.documents.tags import Tag, tokens
from kvchat.errors import KvchatError
from tests.documents.hostile import STUBBORN, flipped, repeated, zipped
from tests.documents.test_loaders import DOCX, PAGE, W, docx, epub
from tests.support.errors import refused

SECONDS = 4.0  # of processor time for a megabyte; what is not linear takes minutes
FUZZED = 400  # inputs of each kind


@pytest.mark.parametrize("name", STUBBORN)
def test_a_megabyte_of_anything_is_read_in_linear_time(name, request):
    gc.freeze()  # what other tests left is not walked over again and again
    request.addfinalizer(gc.unfreeze)
    data = STUBBORN[name]
    title = "a.html" if data.startswith(b"<") else "a.txt"
    began = time.process_time()
    try:
        documents.decode(title, data, clean_pages=True)
    except KvchatError as error:
        assert error.code == "input"
    assert time.process_time() - began < SECONDS


def unpacked(kind):
    """A small document of each kind, with its members as they are."""
    if kind in ("html", "txt"):
        return {"html": PAGE.encode(), "txt": "naïve\n☃\fend".encode()}[kind]
    data = epub() if "epub" in kind else docx(DOCX)
    if kind.startswith("plain"):
        found = archive.Archive(kind, data)
        data = zipped({name: found.read(name) for name in found._zip.namelist()}, stored=True)
    return data


@pytest.mark.parametrize("kind", ["epub", "plain.epub", "docx", "plain.docx", "html", "txt"])
def test_damaged_documents_are_read_or_refused_in_one_sentence(kind):
    read = 0
    for data in flipped(unpacked(kind), FUZZED, seed=len(kind)):
        try:
            read += bool(documents.decode(f"a.{kind}", data, clean_pages=True).text)
        except KvchatError as error:
            assert error.exit_code == 4 and "\n" not in error.message
    assert read > 0, "some damage is outside of what is read"


@pytest.mark.parametrize("level", ["12" * 2500, "0", "Heading1", "١"])
def test_a_heading_of_no_level_is_a_paragraph(level):
    text = DOCX.replace("Heading2", f"Heading{level}")
    assert documents.decode("a.docx", docx(text)).text.startswith("The harbour\n")


def test_elements_inside_each_other_and_too_many_of_them(monkeypatch):
    deep = "<w:sdt>" * 300 + "</w:sdt>" * 300
    with refused("input", "200"):
        documents.decode("a.docx", docx(DOCX.replace("<w:body>", f"<w:body>{deep}")))
    monkeypatch.setattr(xml, "ELEMENTS_CAP", 10)
    with refused("input", " 10 "):
        documents.decode("a.docx", docx(DOCX))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_found_in_any_encoding(encoding):
    """One that expands to a gigabyte is a few hundred bytes long."""
    begin = f'<?xml version="1.0" encoding="{encoding}"?>'
    rest = f'<!DOCTYPE a [<!ENTITY b "c">]><w:document xmlns:w="{W}">&b;</w:document>'
    with refused("input", "entities (b)"):
        documents.decode("a.docx", docx((begin + rest).encode(encoding)))


def test_a_chapter_that_the_spine_repeats_is_read_once():
    found = documents.decode("a.epub", epub(spine=[0, 1] * 100))
    assert [place.name for place in found.places] == ["One", "Two"]


def test_the_members_of_an_archive_have_a_cap_together(monkeypatch):
    data = epub(["One", "Two", "x" * 600])
    monkeypatch.setattr(archive, "TOTAL_CAP", 1000)
    with refused("input", "1,000 bytes"):
        documents.decode("a.epub", data)
    monkeypatch.setattr(archive, "ENTRIES_CAP", 4)
    with refused("input", "5 members"):
        documents.decode("a.epub", data)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a < b and c > d", "a < b and c > d"),
        ("<p>a<!-- > <b> -->b<!-- never closed", "ab<!-- never closed"),
        ("<p title='a > b' x=\"'\">c</p", "c"),
        ("<p title=don't>a</p><p>b</p>", "a\n\nb"),
        ("<script>if (a < b) '</p>'</SCRIPT>c", "c"),
        ("<style/>a<title/>b", "ab"),
        ("a<![CDATA[<b> &amp;]]>c<?php x ?>d<!doctype y>e</>f", "a<b> &amp;cdef"),
        ("&lt;&#65;&#x42;&amp;lt;&#0;" + f"&#{'9' * 5000};", "<AB&lt;\ufffd\ufffd"),
        ("<H1>a</H1\n><BR/>b", "# a\n\nb"),
    ],
)
def test_tags_are_found_as_browsers_find_them(source, text):
    assert text_of(source) == text


def test_tags_and_texts_are_all_of_the_source():
    found = list(tokens(PAGE))
    assert found[0] == "" or found[0] == Tag("html", True, False)
    assert sum(isinstance(each, Tag) for each in found) == 42
    assert unescape("&lt;tag&gt;") in "".join(each for each in found if isinstance(each, str))


@pytest.mark.parametrize(
    ("claim", "encoding"),
    [("utf8", "utf-8"), ("latin1", "cp1252"), ("shift_jis", "cp932"), ("KOI8-R", "koi8-r")]
    + [(name, None) for name in ("punycode", "idna", "base64", "zlib", "utf-16", "utf-7", "no")],
)
def test_only_encodings_of_the_web_are_believed(claim, encoding):
    assert declared(f'<meta charset="{claim}">'.encode()) == encoding


def test_a_mark_counts_more_than_a_claim_and_is_no_text():
    page = b'\xef\xbb\xbf<html><meta charset="cp1251">caf\xc3\xa9'
    assert documents.decode("a.html", page).text == "café"
    assert documents.decode("a.txt", b"\xef\xbb\xbfa", "utf-8").text == "a"
    assert documents.decode("a.txt", b"a+2AA-b", "utf-7").text == "a\ufffdb"


def test_pages_of_any_number():
    data = b"a\fb"
    for pages in ("9" * 5000, f"1-{'9' * 5000}", " " * 100_000):
        with refused("usage"):
            documents.decode("a.txt", data, pages=pages)


def test_a_pdf_reader_that_writes_something_else(monkeypatch):
    from kvchat.documents import pdf

    noise = {"pypdf": "print('warning')"}
    monkeypatch.setattr(pdf, "CHILDREN", noise)
    monkeypatch.setattr(pdf, "find_spec", lambda name: True)
    with refused("input", "pypdf"):
        documents.decode("a.pdf", b"%PDF-1.7")


def test_what_is_repeated_is_a_megabyte():
    assert len(repeated("abc")) >= 999_999
