"""The chat in a real terminal: a pty, keys, and what a screen shows."""

import os
import stat

import pytest

from tests.support.program import SAMPLE
from tests.support.terminal import DONE, TOOLBAR, Terminal


@pytest.fixture
def chat(tmp_path):
    story = tmp_path / "story.txt"
    story.write_text(SAMPLE.read_text()[:2000])
    terminal = Terminal(["--file", str(story), "--temp", "0"], tmp_path)
    terminal.wait("Ask about")
    terminal.wait("(?m)^>")
    yield terminal
    terminal.child.close(force=True)


def test_a_conversation_with_commands(chat, tmp_path):
    drawn = chat.send("What is the home of Nobody Here?\r", DONE)
    assert "tok/s · first" in drawn and "KV" in drawn
    chat.wait(TOOLBAR)  # the toolbar is the last line again
    chat.send("/budget 50%\r", r"kept\s+50 % of entries")
    chat.send("/method snapkv:window=8\r", r"(?s)snapkv:window.*kept 50")
    chat.send("/memory\r", "runtime overhead")
    chat.send("/met\t", "> /method")
    chat.send("\r", "now: snapkv:budget=50%, sinks=4, window=8")
    chat.send("/clear\r", "removed 1 turn")
    chat.send("/nonsense\r", r"(?s)/nonsense\n.*try:")
    chat.send("/method adakv:kernel=4\r", "odd")
    chat.send("/q\r")
    assert chat.close() == 0
    history = tmp_path / "state" / "kvchat" / "history"
    assert stat.S_IMODE(os.stat(history).st_mode) == 0o600
    assert "Nobody Here" in history.read_text()


def test_ctrl_c_keeps_the_partial_answer_and_the_chat(chat):
    chat.send("/method streamingllm:budget=5%\r")  # a cache that makes it ramble or stop: both end
    chat.wait(r"(?s)streamingllm.*kept\s+5")
    chat.wait(TOOLBAR)  # between two lines Ctrl-C would discard what is typed ahead
    chat.send("Tell me about everything, everyone and everywhere.\r")
    chat.send("\x03")
    # wherever it falls, it stops this answer: it does not wait for the next prompt
    chat.wait(f"{DONE}|interrupted")
    chat.send("/help\r")
    assert "Ctrl-C again" not in chat.wait("/budget")
    chat.send("\x04")
    assert chat.close() == 0


def test_ctrl_c_at_the_prompt_leaves_at_the_second_press(chat):
    chat.send("\x03", "Ctrl-C again")
    chat.send("\x03")
    assert chat.close() == 130


def test_ctrl_c_with_text_typed_clears_the_line_alone(chat):
    chat.send("half a question", "half a question")
    chat.send("\x03")
    chat.send("another half", "another half")
    chat.send("\x03/show window\r")
    assert "Ctrl-C again" not in chat.wait("context window: ")
    chat.wait(TOOLBAR)
    chat.send("\x04")
    assert chat.close() == 0


def test_presses_while_it_ends_leave_no_traceback(chat):
    chat.send("\x03", "Ctrl-C again")
    chat.send("\x03\x03\x03\x03\x03\x03")
    assert chat.close() == 130
    assert "Traceback" not in chat.text() and "KeyboardInterrupt" not in chat.text()


def test_alt_enter_breaks_the_line(chat):
    drawn = chat.send("first line\x1b\rsecond line", "second line")
    lines = [line.rstrip() for line in drawn.splitlines()]
    assert lines.index("> first line") + 1 == lines.index("  second line")
    chat.send("\x03")
    chat.send("\x04")
    assert chat.close() == 0


def test_narrow_terminal_keeps_context_and_kv(tmp_path):
    story = tmp_path / "story.txt"
    story.write_text("The mill stands by the river. " * 10)
    terminal = Terminal([str(story)], tmp_path, columns=50)
    terminal.wait("ctx .*KV")
    terminal.send("\x04")
    assert terminal.close() == 0
