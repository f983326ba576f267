"""Documents of a chat: named files together with what is piped in."""

import os
import threading
import time

import pytest

from kvchat.chat.sources import open_document, read_documents
from kvchat.errors import KvchatError
from kvchat.settings.options import Options
from tests.support.errors import refused
from tests.support.scene import shown, string_screen


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


def test_a_named_pipe_without_a_writer_says_that_it_waits(monkeypatch, tmp_path):
    monkeypatch.setattr("kvchat.chat.sources.SOON", 0.05)
    pipe, screen, found = tmp_path / "pipe.txt", string_screen(width=1000), []
    os.mkfifo(pipe)
    reader = threading.Thread(
        target=lambda: found.append(open_document(str(pipe), Options(), screen)), daemon=True
    )
    reader.start()
    end = time.monotonic() + 10
    said = screen.err.file.getvalue  # `shown` would drop what comes while it looks
    while "pipe.txt" not in said() and time.monotonic() < end:
        time.sleep(0.01)
    assert "pipe.txt" in said() and not found
    pipe.write_text("it has come")
    reader.join(10)
    assert [file.text for file in found] == ["it has come"]


def test_a_file_does_not_say_that_it_waits(monkeypatch, files):
    monkeypatch.setattr("kvchat.chat.sources.SOON", 0.0)
    screen = string_screen()
    open_document(files[1], Options(), screen)
    time.sleep(0.05)
    assert shown(screen) == ""


@pytest.mark.parametrize("name", ["a\0b", "~nobody-here/a.txt", "n" * 5000, "/dev/null/a"])
def test_names_that_no_file_can_have(name):
    with refused("input"):
        open_document(name, Options(), string_screen())


def test_neighbours_in_a_folder_that_cannot_be_listed(monkeypatch, tmp_path):
    def unreadable(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", unreadable)
    with refused("input", "gone.txt"):
        open_document(str(tmp_path / "gone.txt"), Options(), string_screen())
