"""Documents of a chat: named files together with what is piped in."""

import os

import pytest

from kvchat.chat.sources import read_documents
from kvchat.errors import KvchatError
from kvchat.settings.options import Options
from tests.support.scene import string_screen


@pytest.fixture
def files(tmp_path):
    (tmp_path / "paged.txt").write_text("one\ftwo")
    (tmp_path / "plain.txt").write_text("all of it")
    return str(tmp_path / "paged.txt"), str(tmp_path / "plain.txt")


@pytest.fixture
def piped(monkeypatch):
    """Put bytes into a pipe in place of standard input."""

    def pipe(data):
        source, target = os.pipe()
        os.write(target, data)
        os.close(target)
        monkeypatch.setattr("sys.stdin", os.fdopen(source, encoding="utf-8"))

    return pipe


def texts(*paths, **others):
    return [
        file.text for file in read_documents(Options(files=[*paths], **others), string_screen())
    ]


def test_what_is_piped_is_read_beside_the_files(piped, files):
    piped(b"and this")
    assert texts(files[1]) == ["all of it", "and this"]
    piped(b"and this")
    assert texts("-", files[1]) == ["and this", "all of it"], "it was named"
    piped(b"and this")
    assert texts(files[1], origins={"files": "chat"}) == ["all of it"], "a saved chat is complete"


def test_an_empty_pipe_is_an_error_only_where_nothing_else_is_read(piped, files):
    piped(b"\n")
    assert texts(files[1]) == ["all of it"]
    piped(b"")
    with pytest.raises(KvchatError) as caught:
        texts()
    assert caught.value.exit_code == 4


def test_pages_are_for_the_documents_that_have_them(piped, files):
    piped(b"")
    assert texts(*files, pages="2") == ["two", "all of it"]
    piped(b"")
    with pytest.raises(KvchatError) as caught:
        texts(files[1], pages="2")
    assert caught.value.exit_code == 2
