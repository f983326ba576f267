"""Reading files: encodings, and everything that is not a document."""

import random

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


HARBOUR = {  # a sentence in each of them is enough
    "cp1252": "Der Hafenwärter zählte jede Nacht die Schiffe.",
    "cp1251": "Капитан корабля смотрел на море. Ночью он считал звёзды.",
    "koi8_r": "Капитан корабля смотрел на море. Ночью он считал звёзды.",
    "cp1253": "Ο φύλακας του λιμανιού μετρούσε κάθε νύχτα τα πλοία.",
    "cp932": "渡し船は毎朝七時に東の桟橋を出る。船長は小田武郎。",
    "euc_jp": "渡し船は毎朝七時に東の桟橋を出る。船長は小田武郎。",
    "gb18030": "港口的看守人每天晚上数船只，然后看星星。",
    "big5": "港口的看守人每天晚上看船，然後看星星。他住在燈塔裡。",
    "cp949": "항구의 파수꾼은 매일 밤 배의 수를 세었습니다.",
}


@pytest.mark.parametrize("encoding", HARBOUR)
@pytest.mark.parametrize("times", [1, 200])
def test_other_encodings_are_found_and_said(encoding, times):
    text = f"{HARBOUR[encoding]}\n" * times
    found = documents.decode("a.txt", text.encode(encoding))
    assert (found.text, found.encoding) == (text, encoding)
    [notice] = found.notices
    assert encoding in notice and "--encoding" in notice


def test_an_encoding_is_guessed_from_the_beginning_and_what_does_not_fit_is_counted():
    text = f"{HARBOUR['gb18030']}\n" * 20_000
    found = documents.decode("a.txt", text.encode("gb18030") + b"\xff\xff")
    assert found.encoding == "gb18030" and found.text.startswith(text)
    assert found.notices[1].startswith(f"a.txt: {found.text.count(chr(0xFFFD))} ")
    assert documents.decode("a.txt", b"caf\xe9").text == "café"


def test_bytes_of_no_encoding_are_refused():
    draw = random.Random(0)
    with pytest.raises(KvchatError) as caught:
        documents.decode("a.txt", bytes(draw.randrange(1, 256) for _ in range(400)))
    assert caught.value.exit_code == 4 and "--encoding" in caught.value.tries[0]


def test_a_given_encoding_is_taken_and_what_does_not_fit_is_counted():
    found = documents.decode("a.txt", b"a\xff\xfeb", "utf-8")
    assert found.text == "a\ufffd\ufffdb" and "a.txt: 2 " in found.notices[0]
    assert documents.decode("a.txt", "ё".encode("cp1251"), "cp1251").notices == ()
    with pytest.raises(KvchatError) as caught:
        documents.decode("a.txt", b"a", "klingon")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system_are_the_same(end):
    assert documents.decode("a.txt", f"a{end}b{end}{end}c".encode()).text == "a\nb\n\nc"


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "empty"),
        (b" \n\t", "3 bytes"),
        (b"abc\x00def", "offset 3"),
        (b"%PDF-1.7 xyz", "pypdfium2"),
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
    with pytest.raises(KvchatError, match=r"reprot\.txt") as caught:
        documents.read(str(tmp_path / "reprot.txt"))
    assert any("report.txt" in way for way in caught.value.tries)


def test_a_folder_is_no_neighbour(tmp_path):
    (tmp_path / "models").mkdir()
    with pytest.raises(KvchatError) as caught:
        documents.read(str(tmp_path / "modles"))
    assert not caught.value.tries


def test_directory_and_size_cap(tmp_path, monkeypatch):
    with pytest.raises(KvchatError, match=str(tmp_path)):
        documents.read(str(tmp_path))
    monkeypatch.setattr(documents, "SIZE_CAP", 3)
    (tmp_path / "a.txt").write_text("four")
    with pytest.raises(KvchatError, match=" 3 bytes"):
        documents.read(str(tmp_path / "a.txt"))


def test_several_files_are_one_document_with_headings():
    two = [documents.decode(name, name.encode()) for name in ("a.txt", "b.txt")]
    assert joined(two) == "# a.txt\n\na.txt\n\n# b.txt\n\nb.txt"
    assert joined(two[:1]) == "a.txt"
