"""Colours: only those that can be read on white and on black, and none where none are wanted."""

import re

import pytest

from kvchat.terminal.colours import console
from kvchat.terminal.markdown import Blocks, rendered
from tests.support import forked
from tests.support.terminal import DONE, PROMPT, Terminal

STORY = "The keeper counted ships. At night he counted the stars above the sea.\n" * 8
ANSWER = """# Head

Some `code`, **bold**, a [link](http://a.b) and ~~no~~.

> a quote

1. one
2. two

and

    indented = "code"

---

| a | b |
|---|---|
| 1 | 2 |

```python
# remark
def f(x: int) -> str:
    return "text" + str(4711)
```
"""
READABLE = {"default", "red", "magenta", "767676"}
COLOUR = re.compile(r"\x1b\[[\d;]*?\b(?:3[0-8]|4[0-8]|9\d|10\d)[\d;]*m")


def drawn(color="auto", **options):
    with console(color, width=60, **options).capture() as found:
        out = found._console
        blocks = Blocks()
        for block in [*blocks.push(ANSWER), *blocks.close()]:
            if (shown := rendered(block)) is not None:
                out.print(shown)
    return found.get()


def test_an_answer_has_readable_colours_alone(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = drawn(force_terminal=True, color_system="standard")
    written = ";".join(re.findall(r"\x1b\[([\d;]*)m", text))
    codes = {int(code) for code in written.split(";") if code}
    assert "\n\x1b[1mHead" in f"\n{text}", "at the left"
    assert 35 in codes and codes <= {0, 1, 2, 3, 4, 9, 31, 35, 49}, codes


@pytest.mark.parametrize(("color", "environment", "is_coloured"), [
    ("auto", {"NO_COLOR": "1"}, False), ("auto", {"FORCE_COLOR": "1"}, True), ("auto", {}, False),
    ("always", {"NO_COLOR": "1"}, True), ("never", {"FORCE_COLOR": "1"}, False),
    ("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ("auto", {"FORCE_COLOR": "1", "TERM": "dumb"}, False),
])  # fmt: skip
def test_the_environment_decides_where_no_flag_does(monkeypatch, color, environment, is_coloured):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm"} | environment).items():
        monkeypatch.setenv(name, value)
    assert bool(COLOUR.search(drawn(color))) == is_coloured


@pytest.fixture
def seen(tmp_path, chat_folder):
    """`seen(*arguments, **environment)`: what a short chat wrote, and the colours on its screen."""

    def run(*arguments, **environment):
        (tmp_path / "story.txt").write_text(STORY)
        given = ["-m", str(chat_folder("byte-level", "chatml")), "-f", str(tmp_path / "story.txt")]
        script = {"answers": [f"{ANSWER}<|im_end|>"], "token_seconds": 0.001}
        terminal = Terminal([*given, *arguments], tmp_path, script=script, **environment)
        written = bytearray()
        feed = terminal.stream.feed
        terminal.stream.feed = lambda data: (written.extend(data), feed(data))
        terminal.wait(PROMPT)
        terminal.send("What?\r", DONE)
        terminal.send("/nonsense\r", "unknown command")
        terminal.send("/he", "help")
        buffers = [*terminal.screen.history.top, *terminal.screen.buffer.values()]
        colours = {cell.fg for line in buffers for cell in line.values() if cell.data.strip()}
        terminal.child.close(force=True)
        return bytes(written).decode(errors="replace"), colours

    return run


def test_a_chat_has_readable_colours_alone(seen):
    _, colours = seen()
    assert {"red", "magenta"} <= colours


@pytest.mark.parametrize(("arguments", "environment"), [
    ([], {"NO_COLOR": "1"}), (["--color", "never"], {}), ([], {"TERM": "dumb"}),
])  # fmt: skip
def test_a_chat_has_no_colours_where_none_are_wanted(seen, arguments, environment):
    text, colours = seen(*arguments, **environment)
    assert not COLOUR.search(text) and colours == {"default"}


@pytest.mark.parametrize("arguments", [["chat", "--help"], ["sessions"], ["plan", "-h"]])
def test_help_has_readable_colours_alone(arguments):
    text = forked.kvchat(*arguments, FORCE_COLOR="1", TERM="xterm").stdout.decode()
    found = {int(code) for code in re.findall(r"\x1b\[(?:\d;)*(\d\d)m", text)}
    assert "\x1b[1m" in text and found <= {31, 35}
