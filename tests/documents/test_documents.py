"""Reading files: encodings, and everything that is not a document."""

import pytest

from kvchat import documents
from kvchat.documents.document_ids import joined
from kvchat.errors import KvchatError


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("naïve ☃".encode(), "utf-8"),
        (b"\xef\xbb\xbf" + "naïve ☃".encode(), "utf-8-sig"),
        ("naïve ☃".encode("utf-16"), "utf-16"),
    ],
)
def test_unicode_is_recognised(tmp_path, data, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    read = documents.read(str(path))
    assert (read.text, read.encoding, read.notices) == ("naïve ☃", encoding, ())


def test_other_bytes_are_cp1252_and_said(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    read = documents.read(str(path))
    assert read.text == "café"
    assert "offset 3" in read.notices[0] and "cp1252" in read.notices[0]


def test_a_given_encoding_replaces_with_a_count(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\xff\xfeb")
    assert "2 characters were not utf-8" in documents.read(str(path), "utf-8").notices[0]


def test_newlines_are_the_same_everywhere(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\r\nb")
    assert documents.read(str(path)).text == "a\nb"


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "empty"),
        (b" \n\t", "no text"),
        (b"abc\x00def", "offset 3"),
        (b"%PDF-1.7 xyz", "cannot be read"),
        (b"PK\x03\x04rest", "zip"),
    ],
)
def test_what_is_not_text_is_refused(tmp_path, data, part):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(KvchatError, match=part) as caught:
        documents.read(str(path))
    assert caught.value.exit_code == 4


def test_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "report.txt").write_text("x")
    with pytest.raises(KvchatError, match="does not exist") as caught:
        documents.read(str(tmp_path / "reprot.txt"))
    assert any("report.txt" in way for way in caught.value.tries)


def test_directory_and_size_cap(tmp_path, monkeypatch):
    with pytest.raises(KvchatError, match="directory"):
        documents.read(str(tmp_path))
    monkeypatch.setattr(documents, "SIZE_CAP", 3)
    (tmp_path / "a.txt").write_text("four")
    with pytest.raises(KvchatError, match="more than 3 bytes"):
        documents.read(str(tmp_path / "a.txt"))


def test_several_files_are_one_document_with_headings():
    two = [documents.decode(name, name.encode()) for name in ("a.txt", "b.txt")]
    assert joined(two) == "# a.txt\n\na.txt\n\n# b.txt\n\nb.txt"
    assert joined(two[:1]) == "a.txt"
