"""Ten thousand random byte strings through everything that prints: the terminal stays safe."""

import io
import json
import random
import sys
from contextlib import nullcontext
from itertools import islice
from types import SimpleNamespace

import pytest
from rich.console import Console

from kvchat import documents
from kvchat.chat import chatlog as saved
from kvchat.cli import chats as saved_list
from kvchat.cli import models as shelf
from kvchat.cli import oneshot
from kvchat.engine.budget import Budget
from kvchat.engine.methods.specs import parse_spec
from kvchat.errors import KvchatError
from kvchat.hub.places import Found
from kvchat.repl import views
from kvchat.repl.commands import find
from kvchat.settings.options import live_option
from kvchat.terminal.answer_view import LiveAnswer, PlainAnswer
from kvchat.terminal.markdown import rendered
from kvchat.terminal.text import CONTROL, clean
from kvchat.terminal.toolbar import State, toolbar
from tests.support.scene import shown, string_screen
from tests.terminal.test_blocks import blocks_of

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


def batched(texts, count=50):
    """The same, several at once: what is drawn together is drawn sooner."""
    texts = iter(texts)
    while batch := list(islice(texts, count)):
        yield batch


def safe(text):
    """No control character but line ends; what colours are made of is switched off here."""
    return not CONTROL.search(text)


def test_messages_errors_and_columns():
    screen = string_screen()
    for texts in batched(strings(1)):
        text = "\n".join(texts)
        screen.say(text)
        screen.tell(text)
        screen.warn(text)
        screen.whisper(text)
        screen.error(KvchatError("input", text, text))
        screen.columns((text, text) for text in texts)
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
        live.think(text)
        for line in live._frame().renderables:
            assert safe(line.plain)
        live.fold("")
        live.write(text)
        for line in live._frame().renderables:
            assert safe(line.plain)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_answers_and_json_on_a_terminal(monkeypatch):
    target = Terminal()
    monkeypatch.setattr(sys, "stdout", target)
    with PlainAnswer(nullcontext(lambda: None)) as answer:
        for text in strings(4):
            answer.write(text)
    for text in strings(11):
        oneshot.emit({"event": "token", "text": text})
    assert safe(target.getvalue())


def test_plain_answers_and_json_in_a_pipe(monkeypatch):
    """What is written to a file is shown by a terminal later; JSON means what the model wrote."""
    target = io.StringIO()
    monkeypatch.setattr(sys, "stdout", target)
    with PlainAnswer(nullcontext(lambda: None)) as answer:
        for text in strings(12):
            answer.write(text)
    assert safe(target.getvalue())
    target, texts = io.StringIO(), list(strings(13))
    monkeypatch.setattr(sys, "stdout", target)
    for text in texts:
        oneshot.emit({"event": "token", "text": text})
    assert safe(target.getvalue())
    lines = target.getvalue().split("\n")
    assert [json.loads(line)["text"] for line in lines[:-1]] == texts


def test_plain_answers_as_they_are_where_that_is_asked(monkeypatch):
    text = "".join(SEEDS)
    for target, whole in ((io.StringIO(), True), (Terminal(), False)):
        monkeypatch.setattr(sys, "stdout", target)
        with PlainAnswer(nullcontext(lambda: None), raw=True) as answer:
            answer.write(text)
        assert (target.getvalue() == text + "\n") == whole
        assert safe(target.getvalue()) != whole


@pytest.mark.parametrize("pieces", [["a\r\nb"], ["a\r", "\nb"], ["a", "\r", "", "\nb"]])
def test_a_line_end_of_two_characters_may_come_in_pieces(monkeypatch, pieces):
    target = io.StringIO()
    monkeypatch.setattr(sys, "stdout", target)
    with PlainAnswer(nullcontext(lambda: None)) as answer:
        for piece in pieces:
            answer.write(piece)
    assert target.getvalue() == "a\nb\n"


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
    for texts in batched(strings(6)):
        found = views.slices([1, 0, 1], 3, 1, 3)
        for a, b, c, d, e in zip(*[iter(texts)] * 5, strict=True):
            lines = views.coverage(found, [a, b, c], [(d, 0), (e, 1)], True)
            screen.tell("\n".join(lines))
    assert safe(shown(screen))


def test_saved_chats_and_what_they_say(tmp_path, capsys, monkeypatch):
    """Names, questions and models as a file may have them, whoever wrote it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = tmp_path / "kvchat" / "sessions"
    folder.mkdir(parents=True)
    screen, path = string_screen(), folder / "one.jsonl"
    for texts in batched(strings(8)):
        lines = []
        for text in texts:
            turn, document = {"question": text, "answer": text}, {"files": [{"name": text}]}
            chat = saved.Saved(path, {"model": text}, text, document, turns=[turn])
            lines.append(saved.summary(chat))
        screen.tell("\n".join(lines))
    events = [{"event": "chat", "schema": 1, "name": lines[0], "model": lines[1]},
              {"event": "document", "files": [{"name": line} for line in lines]}]  # fmt: skip
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    saved_list.show()
    listed = capsys.readouterr().out
    assert listed.strip() and safe(listed) and safe(shown(screen))


def test_tables_of_models_and_of_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    names = list(islice(strings(9), 2_000))
    found = [Found(name, tmp_path / "nowhere", "models/") for name in names]
    monkeypatch.setattr(shelf, "at_hand", lambda aliases: found)
    shelf.show(SimpleNamespace(invoked_subcommand=None))
    assert safe(capsys.readouterr().out)
    for name in names:
        with pytest.raises(KvchatError) as caught:
            parse_spec(f"no{name}")
        assert safe(caught.value.message)


def test_errors_about_what_was_typed():
    """Every error is cleaned where it is printed, whatever it quotes."""
    screen = string_screen()
    for text in islice(strings(10), 500):
        for wrong in (live_option, find, Budget.parse):
            try:
                wrong(text)
            except KvchatError as error:
                screen.error(error)
    assert safe(shown(screen))


@pytest.mark.parametrize("width", [40, 79, 121, 200])
def test_toolbar_with_any_model_name(width):
    for text in list(strings(7))[:2000]:
        state = State(clean(text), clean(text), 1, 2, 1, 2, 3, 4)
        assert len(toolbar(state, width)) <= width
