"""Streamed Markdown: the same blocks for every way of cutting the stream, nothing lost."""

import io
import random
import time

import pyte
import pytest
from rich.console import Console
from rich.live import Live

from kvchat.terminal import answer_view as answer
from kvchat.terminal.answer_view import LIVE_LINES, LiveAnswer
from kvchat.terminal.markdown import Blocks, Code, Prose, rendered

ANSWER = """# The harbour

The keeper **counts** ships,
and at night the stars.

1. first

2. second

   still the second

3. third

| ship | number |
|------|--------|
| Orion | 4711 |

```python
def count(ships):

    return len(ships)
```
After the code. <b>Tags</b> and [links](http://example.org) and ![pictures](p.png) stay.
~~~
tilde fence
~~~

- loose

[name]: http://example.org
last line without an end"""


def blocks_of(pieces):
    blocks = Blocks()
    found = [block for piece in pieces for block in blocks.push(piece)]
    return found + blocks.close()


def cut(text, draw):
    pieces = []
    while text:
        size = draw.choice((1, 1, 2, 3, 7, 40))
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def test_every_cut_gives_the_same_blocks():
    want = blocks_of([ANSWER])
    draw = random.Random(0)
    for _ in range(200):
        assert blocks_of(cut(ANSWER, draw)) == want
    text = " ".join(block.text for block in want)
    assert set(ANSWER.split()) - set(text.split()) == {"```python", "```", "~~~"}
    assert Code("    return len(ships)", "python") in want
    assert Prose("2. second\n\n   still the second") in want
    assert sum(isinstance(block, Code) and block.last for block in want) == 2


def test_a_block_is_out_as_soon_as_the_next_begins():
    blocks = Blocks()
    assert blocks.push("one\n\n") == []
    assert blocks.push("t") == [Prose("one")]
    assert blocks.rest == "t"


def printed(block, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    shown = rendered(block)
    if shown is not None:
        console.print(shown)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_what_the_model_wrote_is_on_the_screen(width):
    text = "".join(printed(block, width) for block in blocks_of([ANSWER]))
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for part in ("<b>Tags</b>", "http://example.org", "pictures", "p.png", "[name]:", "4711"):
        assert part in "".join(lines) or part in text.replace("\n", "")
    assert "counts ships,\n" in text.replace("  ", "").replace(" \n", "\n"), "line breaks stay"
    assert [line for line in lines if line.startswith(" 2 ")], "numbers of split lists stay"


def drawn(pieces, width=40, markdown=True):
    """What a terminal shows after a live answer, and the most lines that were live at once."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    live = LiveAnswer(console, lambda: "▌ status", markdown)
    most = 0
    with live:
        for piece in pieces:
            live.write(piece)
            most = max(most, len(live._frame().renderables))
    return file.getvalue(), most


@pytest.mark.parametrize(
    "before, more, shown",
    [
        ("One.\n\nTwo **bo", "ld** three.", "Two bold three."),
        ("One.\n\n", "Two.", "Two."),
        ("One.\n\n```py\nx = 1\ny =", " 2\n```\n", "y = 2"),
        ("- a\n- **b", "c**\n- d\n", "• a\n • bc\n • d"),
    ],
)
def test_more_of_an_answer_renders_its_last_block_again(before, more, shown):
    file = io.StringIO()
    console = Console(file=file, width=40, force_terminal=True, color_system=None)
    with LiveAnswer(console, lambda: "", before=before) as live:
        live.write(more)
    assert on_screen(file.getvalue(), 40) == shown


def on_screen(text, columns):
    """The lines that a terminal of so many columns shows, with those that scrolled away."""
    screen = pyte.HistoryScreen(columns, 24, history=2000)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    above = ["".join(line[x].data for x in range(columns)) for line in screen.history.top]
    return "\n".join(line.rstrip() for line in [*above, *screen.display]).strip()


@pytest.mark.parametrize("markdown", [True, False])
def test_the_live_area_is_small_and_leaves_nothing(markdown):
    answer = "A line of words that is long enough to wrap in forty columns.\n" * 30 + "\nThe end."
    text, most = drawn(cut(answer, random.Random(1)), markdown=markdown)
    assert most <= LIVE_LINES + 1
    whole = on_screen(text, 40)
    assert "status" not in whole and whole.count("The end.") == 1
    assert whole.count("A line of words") == 30, "nothing twice, nothing missing"


def test_many_paragraphs_cost_little():
    answer = "".join(f"Paragraph {number} about the sea.\n\n" for number in range(100))
    text, _ = drawn(cut(answer, random.Random(2)), width=80)
    assert text.count("about the sea.") < 250, "append-only: printed once, drawn a few times"


def test_frames_never_come_between_a_block_and_its_place(monkeypatch):
    """Short answers, drawn as often as can be, with time between where a place is cleared and what
    is printed there: nothing of the live lines stays."""
    cleared = Live.process_renderables

    def slowly(self, renderables):
        found = cleared(self, renderables)
        time.sleep(0.002)
        return found

    monkeypatch.setattr(Live, "process_renderables", slowly)
    monkeypatch.setattr(answer, "FRAMES", 10_000)
    target = io.StringIO()
    console = Console(file=target, width=80, force_terminal=True, color_system=None)
    for number in range(30):
        with LiveAnswer(console, lambda: "▌ the numbers") as view:
            view.write(f"answer {number}\n\n")
            time.sleep(0.005)
            view.write("and the end")
    want = "\n".join(f"answer {number}\n\nand the end" for number in range(30))
    assert on_screen(target.getvalue(), 80) == want
