"""Ten thousand random byte strings through everything that prints: the terminal stays safe."""

import io
import random
import sys

import pytest
from rich.console import Console

from app.scene import shown, string_screen
from app.test_blocks import blocks_of
from kvchat.app import documents, views
from kvchat.app.answer import LiveAnswer, PlainAnswer
from kvchat.app.markdown import rendered
from kvchat.app.text import CONTROL, clean
from kvchat.app.toolbar import State, toolbar
from kvchat.errors import KvchatError

COUNT = 10_000
SEEDS = [
    "\x1b]0;title\x07",
    "\x1b[2J",
    "[/foo]",
    "[bold]",
    "\x9b31m",
    "\u202e",
    "```",
    "|a|\n|-|\n",
]


def strings(seed):
    draw = random.Random(seed)
    for _ in range(COUNT):
        data = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 60)))
        text = data.decode(draw.choice(("utf-8", "cp1252", "latin-1")), "replace")
        yield draw.choice(SEEDS) + text if draw.random() < 0.3 else text


def safe(text):
    """No control character but line ends; what colours are made of is switched off here."""
    return not CONTROL.search(text)


def test_messages_errors_and_columns():
    screen = string_screen()
    for text in strings(1):
        screen.say(text)
        screen.tell(text)
        screen.warn(text)
        screen.error(KvchatError("input", text, text))
        screen.rows([(text, text)])
    assert safe(shown(screen))


def test_answers_as_markdown():
    console = Console(file=io.StringIO(), width=60, color_system=None, markup=False)
    for text in strings(2):
        for block in blocks_of([text]):
            if (found := rendered(block)) is not None:
                console.print(found)
    assert safe(console.file.getvalue())


def test_answers_while_they_are_written():
    console = Console(file=io.StringIO(), width=60, color_system=None, force_terminal=False)
    live = LiveAnswer(console, lambda: "status")
    for text in strings(3):
        live.write(text)
        for line in live._frame().renderables:
            assert safe(line.plain)


def test_plain_answers_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    target = Terminal()
    monkeypatch.setattr(sys, "stdout", target)
    from contextlib import nullcontext

    with PlainAnswer(nullcontext(lambda: None)) as answer:
        for text in strings(4):
            answer.write(text)
    assert safe(target.getvalue())


def test_documents_and_their_names():
    for text in strings(5):
        name = clean(text)
        try:
            found = documents.decode(name, text.encode("utf-8", "replace"))
        except KvchatError as error:
            assert safe(error.message)
            continue
        assert safe(found.title) and all(safe(notice) for notice in found.notices)


def test_coverage_words_through_the_screen():
    screen = string_screen()
    for text in strings(6):
        found = views.slices([1, 0, 1], 3, 1, 3)
        for line in views.coverage(found, [text] * 3, [(text, 0), (text, 1)], True):
            screen.tell(line)
    assert safe(shown(screen))


@pytest.mark.parametrize("width", [40, 79, 121, 200])
def test_toolbar_with_any_model_name(width):
    for text in list(strings(7))[:2000]:
        state = State(clean(text), clean(text), 1, 2, 1, 2, 3, 4)
        assert len(toolbar(state, width)) <= width
