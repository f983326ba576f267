"""Names of documents: folders, patterns, addresses, and questions in the place of a file."""

import pytest

from kvchat.chat.paths import MOST, expanded
from kvchat.errors import KvchatError


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """Two notes, a picture and a hidden file in a folder, and one below it."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.md", "a.txt", "z.png", ".hidden.md", "deep/c.md", "a[1].txt"):
        path = tmp_path / "notes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


@pytest.mark.parametrize(
    "path, files",
    [
        ("notes/b.md", ["notes/b.md"]),
        ("no/such.txt", ["no/such.txt"]),
        ("-", ["-"]),
        ("notes", ["notes/a.txt", "notes/a[1].txt", "notes/b.md"]),
        ("notes/*.md", ["notes/b.md"]),
        ("notes/**/*.md", ["notes/b.md", "notes/deep/c.md"]),
        ("notes/?.*", ["notes/a.txt", "notes/b.md", "notes/z.png"]),
        ("notes/a[1].txt", ["notes/a[1].txt"]),
        ("C:/x y.txt", ["C:/x y.txt"]),
    ],
)
def test_what_a_name_stands_for(notes, path, files):
    assert expanded(path) == files


def test_suffixes_of_the_person_s_own_loaders_count_in_folders(notes):
    assert "notes/z.png" in expanded("notes", frozenset({".png"}))


@pytest.mark.parametrize(
    "path, way",
    [
        ("https://example.org/a/book.txt?x=1", "curl -L -o book.txt?x=1"),
        ("http://example.org/", "curl -L -o example.org"),
        ("notes/*.pdf", None),
        ("empty", None),
        ("Who is the captain?", '-p "Who is the captain?"'),
        ("Tell me all", '-p "Tell me all"'),
        ("~nobody-of-that-name/x.txt", None),
    ],
)
def test_what_stands_for_nothing(notes, tmp_path, path, way):
    (tmp_path / "empty").mkdir()
    with pytest.raises(KvchatError) as caught:
        expanded(path)
    assert caught.value.code == "input"
    assert way is None or caught.value.tries[0].startswith(way)


def test_not_a_whole_disk_at_once(tmp_path):
    for number in range(MOST + 1):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(KvchatError) as caught:
        expanded(str(tmp_path))
    assert f"{MOST + 1}" in caught.value.message
