"""A prefill that is interrupted, left for later, and gone on with."""

import pytest

from kvchat.chat import work
from kvchat.chat.open import open_chat
from kvchat.chat.prepare import prepare
from kvchat.repl.commands import Context, run
from kvchat.settings.options import Options
from tests.support.program import DEMO
from tests.support.scene import shown, string_screen

STORY = "The boat of Mara Voss is Endeavour. " + "The mill stands by the river. " * 60
QUESTION = "What is the boat of Mara Voss?"


class Pressed(work.Interrupt):
    """Ctrl-C once, at the third step."""

    steps = 0

    def asked(self):
        Pressed.steps += 1
        return Pressed.steps == 3


@pytest.fixture
def chat(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "story.txt").write_text(STORY)
    Pressed.steps = 0
    monkeypatch.setattr(work, "Interrupt", Pressed)
    screen = string_screen()
    options = Options(model=str(DEMO), files=[str(tmp_path / "story.txt")], method="adakv",
                      budget="60%", prompt_cache="off", save=False)  # fmt: skip

    def build(key):
        monkeypatch.setattr(work, "choose", lambda *given: key)
        return open_chat(prepare(options, screen, piped=False), screen, interactive=True), screen

    return build


def ask(chat, text):
    *_, done = chat.session.ask(text, max_tokens=8)
    return done.answer


def test_what_is_read_is_kept_and_the_prefill_goes_on(chat):
    """As if it had never stopped; a turn that came meanwhile stands behind it."""
    whole, _ = chat("c")
    wanted = ask(whole, QUESTION)
    Pressed.steps = 0
    waiting, screen = chat("l")
    assert waiting.waiting and not waiting.book.files and "/more" in shown(screen)
    ask(waiting, "Who is Mara Voss?")
    run("/more", Context(waiting, screen, Silent()))
    assert waiting.waiting is None and waiting.book.title == "story.txt"
    assert [turn.question for turn in waiting.session.turns] == ["Who is Mara Voss?"]
    assert waiting.session.document == whole.session.document
    assert waiting.kept_share() == whole.kept_share()
    waiting.session.clear()
    assert ask(waiting, QUESTION) == wanted


def test_what_is_dropped_is_gone(chat):
    dropped, screen = chat("d")
    assert dropped.waiting is None and not dropped.book.files
    assert "/file" in shown(screen)


class Silent:
    """Writes nothing down."""

    def changed(self, chat):
        """Nothing."""
