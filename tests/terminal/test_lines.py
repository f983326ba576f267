"""Keys at the prompt, through prompt-toolkit's own pipe input."""

import os
import re
import stat
from contextlib import contextmanager

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import DummyCompleter
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from kvchat.terminal.line_editor import Lines, private_history
from tests.support.intime import in_time


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@contextmanager
def editor(history=False, vi=False):
    """A line editor, and the way to type into it."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        lines = Lines(DummyCompleter(), history, vi)
        lines.session.app.input = pipe
        yield lines, pipe.send_text


def typed(keys, history=False):
    """What `read` returns once these keys were typed."""
    with editor(history) as (lines, send):
        send(keys)
        return lines.read(lambda: "toolbar")


PASTE = "\x1b[200~{}\x1b[201~"
LARGE = "\n".join(f"line {number} of a long text" for number in range(500))


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("hello\r", "hello"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ('"""one\rtwo"""\r', "one\ntwo"),
        ('"""\rdef f():\r    pass\r"""\r', "def f():\n    pass"),
        (PASTE.format("a\r\nb") + "\r", "a\nb"),
        ("see " + PASTE.format(LARGE) + " end\r", f"see {LARGE} end"),
        (PASTE.format(LARGE) + PASTE.format(LARGE + "!") + "\r", LARGE + LARGE + "!"),
        ("ab\x7fc\r", "ac"),
    ],
)
def test_what_is_typed_is_what_is_read(keys, text):
    assert typed(keys) == text


@pytest.mark.parametrize(("key", "error"), [("\x03", KeyboardInterrupt), ("\x04", EOFError)])
def test_leaving(key, error):
    with pytest.raises(error):
        typed(key)


def test_history_is_private_and_forgets_lines_with_a_space_in_front(home):
    typed("remember this\r", history=True)
    typed(" but not this\r", history=True)
    path = home / "kvchat" / "history"
    assert "remember this" in path.read_text() and "not this" not in path.read_text()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    path.chmod(0o644)
    private_history()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_what_a_search_in_the_history_finds_is_taken_with_enter():
    typed("Who is the captain?\r", history=True)
    with in_time():
        assert typed("\x12capt\r\r", history=True) == "Who is the captain?"


def test_without_a_place_for_history_it_stays_in_memory(home, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "file"))
    assert typed("hello\r", history=True) == "hello"


def test_f2_switches_the_line_of_memory():
    with editor() as (lines, send):
        seen = []
        send("a\x1bOQb\r")
        assert lines.read(lambda: seen.append(lines.shows_memory) or "toolbar", True) == "ab"
        assert lines.shows_memory
        send("\x1bOQ\r")
        assert lines.read() == "" and not lines.shows_memory


def test_vi_keys():
    with editor(vi=True) as (lines, send):
        lines.session.app.ttimeoutlen = 0.01
        send("one two\x1b")
        send("bcwthree\r")
        assert lines.read() == "one three"


@pytest.mark.parametrize("keys", ["\x18\x05", "\x07"])
def test_an_editor_is_a_key_away(monkeypatch, keys):
    monkeypatch.setattr(Buffer, "open_in_editor", lambda self, **_: self.insert_text(" and more"))
    assert typed(f"one{keys}\r") == "one and more"


def test_a_line_that_is_a_paste_and_nothing_else():
    with editor() as (lines, send):
        for keys, alone in ((PASTE.format(LARGE), True), (f"About {PASTE.format(LARGE)}", False)):
            send(f"{keys}\r")
            assert LARGE in lines.read() and lines.is_paste == alone
            assert lines.pasted == [LARGE]


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_large_paste_is_shown_as_its_lines(monkeypatch, end):
    text, shown = LARGE + end, []
    monkeypatch.setattr(Lines, "expanded", lambda self, text: shown.append(text) or text)
    typed(PASTE.format(text) + "\r")
    counts, _, first = shown[0].partition(": ")
    assert re.findall(r"\d[\d,]*", counts) == ["500", f"{len(text):,}"]
    assert first == f"{text.splitlines()[0]}]"
