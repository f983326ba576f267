"""Ctrl-C and signals at the seams: between Enter and the answer, between the answer and its saving.
Each press is sent by the process to itself, at exactly the moment in question."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import DummyCompleter
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.input.typeahead import get_typeahead
from prompt_toolkit.output import DummyOutput

from kvchat.chat import chatlog as saved
from kvchat.repl import repl
from kvchat.terminal import key_prompt, line_editor
from kvchat.terminal.interrupt import Interrupt
from kvchat.terminal.line_editor import Lines
from tests.support.scene import Scene, shown


def press(count: int = 1, number: int = signal.SIGINT) -> None:
    for _ in range(count):
        os.kill(os.getpid(), number)


class Typed:
    """Lines that are typed one after the other, or what happens in place of one; then Ctrl-D."""

    sent, shows_memory, is_paste, pasted = 0.0, False, False, ()

    def __init__(self, *typed, early=False):
        self.typed, self.early = list(typed), early

    def read(self, toolbar=None, changes=False):
        if not self.typed:
            raise EOFError
        line = self.typed.pop(0)
        return line() if callable(line) else line

    def stop_typed(self):
        return self.early


@pytest.fixture
def scene(tmp_path, monkeypatch, chat_folder):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before = signal.getsignal(signal.SIGINT)
    ends = (signal.SIGTERM, signal.SIGHUP)  # nohup has those it starts ignore one
    held = {number: signal.signal(number, signal.SIG_DFL) for number in ends}
    yield Scene(chat_folder("byte-level", "chatml"))
    for number, handler in held.items():
        signal.signal(number, handler)
    assert signal.getsignal(signal.SIGINT) is before


def at(monkeypatch, scene, moment, act):
    """Do `act` right before or after the keeper writes a turn."""
    keeper = scene.context.writer
    write = keeper.turn

    def turn(*arguments):
        if moment == "before":
            act()
        write(*arguments)
        if moment == "after":
            act()

    monkeypatch.setattr(keeper, "turn", turn)


def press_with_every_line(scene, monkeypatch):
    """Ctrl-C right before whatever the screen says."""
    tell = scene.context.screen.tell

    def pressed(text, **style):
        press()
        tell(text, **style)

    monkeypatch.setattr(scene.context.screen, "tell", pressed)


def on_disk():
    [chat] = saved.listing()
    return [(turn["question"], turn["answer"]) for turn in chat.turns]


def test_two_presses_at_the_prompt_leave_wherever_the_second_falls(scene, monkeypatch):
    """In the prompt as a key, between two prompts or right before one as a signal."""

    def cleared():
        raise KeyboardInterrupt

    for act in (cleared, press):  # nothing was sent yet
        with pytest.raises(KeyboardInterrupt):
            repl.talk(scene.context, Typed(act, act))
    moments = iter((lambda: None, press))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(scene.chat.cache, "tell", lambda: next(moments)())
        repl.talk(scene.context, Typed(cleared, "never read"))
    press_with_every_line(scene, monkeypatch)
    left = Typed(cleared, "never read")
    with pytest.raises(KeyboardInterrupt):
        repl.talk(scene.context, left)
    assert left.typed == ["never read"], "it did not wait for another line"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_press_between_an_answer_and_its_saving_loses_nothing(scene, monkeypatch, moment):
    at(monkeypatch, scene, moment, press)
    scene.script("Ships.")
    assert repl.talk(scene.context, Typed("What?")) == 0
    assert on_disk() == [("What?", "Ships.")]
    scene.script("Stars.")
    assert repl.talk(scene.context, Typed("And at night?")) == 0
    assert on_disk()[1:] == [("And at night?", "Stars.")], "an old press does not stop a new answer"


def test_presses_while_a_turn_is_written_leave_it_whole(scene, monkeypatch):
    append = saved.Record.append

    def slowly(self, *events):
        press(3)
        append(self, *events)
        press(3)

    monkeypatch.setattr(saved.Record, "append", slowly)
    scene.script("Ships.")
    assert repl.talk(scene.context, Typed("What?")) == 0
    assert on_disk() == [("What?", "Ships.")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_between_an_answer_and_its_saving_saves_first(scene, monkeypatch, number):
    at(monkeypatch, scene, "before", lambda: press(1, number))
    scene.script("Ships.")
    with pytest.raises(SystemExit) as left:
        repl.talk(scene.context, Typed("What?", "never asked"))
    assert left.value.code == 128 + number and on_disk() == [("What?", "Ships.")]


def test_a_press_right_behind_enter_stops_the_question(scene):
    scene.script("Ships.")
    assert repl.talk(scene.context, Typed("What?", early=True)) == 0
    assert not saved.listing() and not scene.chat.session.turns


def test_two_presses_break_off_and_a_third_does_not_end_the_chat(scene, monkeypatch):
    press_with_every_line(scene, monkeypatch)
    monkeypatch.setattr(repl.commands, "run", lambda line, context: press(2))
    assert repl.talk(scene.context, Typed("/show")) == 0
    assert "interrupted" in shown(scene.context.screen)


# A live area, and a stream that is told to stop in the midst of a write. In a session of its own
# nobody could continue the process, so the kernel does not stop it.
STOPPED = """
import io, os, signal, sys, time
from rich.console import Console
from rich.live import Live
from kvchat import process
from kvchat.terminal.live import shown

class Raw(io.RawIOBase):
    armed = False
    def writable(self):
        return True
    def write(self, data):
        if self.armed:
            self.armed = False
            os.kill(os.getpid(), signal.SIGTSTP)
        return len(data)

raw, stops = Raw(), []
sys.stderr = sys.__stderr__ = io.TextIOWrapper(io.BufferedWriter(raw))
process.prepare()
process.show_cursor = lambda: stops.append(raw.armed)
with shown(Live("x", console=Console(file=sys.stderr, force_terminal=True), auto_refresh=False)):
    raw.armed = True
    sys.stderr.write("y")
    sys.stderr.flush()
    end = time.monotonic() + 20
    while not stops and time.monotonic() < end:
        time.sleep(0.01)
print(stops)
"""


def test_ctrl_z_in_the_midst_of_a_write_waits_for_its_end():
    command = [sys.executable, "-c", STOPPED]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
    assert (done.stdout, done.returncode) == ("[False]\n", 0)


def test_contexts_nest():
    with Interrupt() as outer:
        press()
        with Interrupt() as inner:
            assert inner.asked(), "who is inside stops too"
            inner.forget()
            assert not outer.asked()
            press(1, signal.SIGTERM)
        assert outer.asked()
        with pytest.raises(SystemExit, match="143"):
            outer.leave_if_told()


@pytest.mark.parametrize(("keys", "stop", "after"), [("\x03", True, ""), ("next", False, "next"),
                                                     ("ne\x03xt", True, "next")])  # fmt: skip
def test_keys_typed_behind_enter(monkeypatch, tmp_path, keys, stop, after):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with create_pipe_input() as typed, create_app_session(input=typed, output=DummyOutput()):
        monkeypatch.setattr(line_editor, "create_input", lambda **_: typed)
        lines = Lines(DummyCompleter(), keep_history=False)
        typed.send_text("Why?\r" + keys)
        assert lines.read() == "Why?" and lines.sent > 0
        assert lines.stop_typed() == stop
        typed.send_text("\r")
        assert lines.read() == after


@contextmanager
def asked(monkeypatch, early, typed):
    """A question before which `early` was typed, and `typed` once it is there."""

    class Asked(PromptSession):
        def prompt(self, *given):
            source.send_text(typed)
            return super().prompt(*given)

    with create_pipe_input() as source, create_app_session(source, DummyOutput()):
        monkeypatch.setattr(key_prompt, "create_input", lambda **_: source)
        monkeypatch.setattr(key_prompt, "PromptSession", Asked)
        source.send_text(early)
        yield source


def test_what_is_typed_before_a_question_does_not_answer_it(monkeypatch):
    """It waits for the next line, in front of what is typed behind the answer."""
    with asked(monkeypatch, "no rain", "y now") as source:
        assert key_prompt.choose("?", "yn", "n", "n") == "y"
        later = [*get_typeahead(source), *source.read_keys()]
        assert "".join(key.data for key in later) == "no rain now"


@pytest.mark.parametrize(
    ("typed", "said"), [("\r", "y"), ("\x03", "n"), ("\x04", "n"), ("N", "n"), ("xy", "y")]
)
def test_keys_that_answer_a_question(monkeypatch, typed, said):
    with asked(monkeypatch, "", typed):
        assert key_prompt.choose("?", "yn", "y", "n") == said


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("a\r\x1b[200~b\r\nc\x1b[201~\r\x04", "a\nb\nc\n"),
        ("a\x04b\r\x04", "ab\n"),
        ("a\x03", None),
    ],
)
def test_a_text_ends_with_ctrl_d_on_an_empty_line(monkeypatch, typed, text):
    with asked(monkeypatch, "", typed):
        assert key_prompt.typed_text("title") == text
