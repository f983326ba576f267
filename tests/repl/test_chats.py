"""Commands about saved chats, and the clipboard."""

import base64
import io
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kvchat.chat import chatlog
from kvchat.chat.resume import same_text
from kvchat.errors import KvchatError
from kvchat.settings.options import INSTRUCTION
from kvchat.terminal import clipboard
from tests.support.scene import Scene


def loaded(scene, folder, **options):
    """Another chat that goes on with this one."""
    scene.ask("One?")
    scene.run("/save mine")
    scene.context.writer.close()
    other = Scene(folder, **options)
    other.said = other.run("/load mine")
    return other


def test_saved_chats_come_back(scene, folder):
    scene.ask("One?", "First.")
    scene.run("/save night watch")
    assert Scene(folder).code("/load night watch") == "session", "it is open elsewhere"
    scene.ask("Two?", "Second.")
    scene.run("/undo")
    scene.ask("Three?", "Third.")
    scene.run("/set seed 7")
    scene.context.writer.close()
    other = Scene(folder)
    assert "night watch" in other.run("/load")
    held = scene.chat.session.engine.tokens_in(scene.chat.session.cache)
    other.run("/load night watch")
    assert other.turns == scene.turns
    session = other.chat.session
    assert session.engine.tokens_in(session.cache)[-20:] == held[-20:]
    assert other.chat.options.sampling.seed == 7
    other.ask("Four?", "Fourth.")
    assert len(chatlog.find("night watch").turns) == 3
    assert other.code("/load night watch") == "usage", "it is this one"


def test_another_chat_is_read_as_it_was_and_not_as_the_present_one(scene, folder):
    scene.ask("One?")
    scene.run("/save one")
    scene.context.writer.close()
    chosen = {"encoding": "latin-1", "ctx_size": 900}
    other = Scene(folder, **chosen, origins=dict.fromkeys(chosen, "flag"))
    other.run("/set temperature 1.7")
    other.run("/load one")
    options, session = other.chat.options, other.chat.session
    assert (options.encoding, options.ctx_size) == (None, None)
    assert session.limit == session.engine.config.context_limit
    assert options.sampling.temperature == scene.chat.options.sampling.temperature


def test_save_names_a_chat_or_goes_on_in_a_copy(scene):
    scene.run("/save empty")
    scene.run("/save a")  # a copy of a chat without turns
    scene.ask("One?", "First.")
    assert scene.context.writer.name == "a"
    scene.run("/save a")
    assert len(chatlog.listing()) == 2, "it is this chat"
    scene.run("/save b")
    scene.ask("Two?", "Second.")
    assert scene.code("/save a") == scene.code("/rename a") == "session"
    scene.run("/rename c")
    scene.context.writer.close()
    counts = {chat.name: len(chat.turns) for chat in chatlog.listing()}
    assert counts == {"empty": 0, "a": 1, "c": 2}
    scene.context.writer.path = None
    assert scene.code("/save d") == "session"


def test_documents_of_one_name_are_told_apart():
    told = []
    files = [SimpleNamespace(title="x", path=f"/{n}/x", digest=str(n)) for n in (1, 2)]
    kept = [{"name": "x", "path": file.path, "sha256": file.digest} for file in files]
    found, screen = SimpleNamespace(document={"files": kept}), SimpleNamespace(warn=told.append)
    same_text(files, found, screen, interactive=False)
    assert not told
    kept[1]["sha256"] = "another"
    same_text(files, found, screen, interactive=False)
    assert len(told) == 1


def test_a_chat_that_comes_back_says_what_its_entries_were_selected_for(scene, folder):
    scene.run("/select Where is the sea?")
    other = loaded(scene, folder)
    assert "'Where is the sea?'" in other.said and other.chat.in_view == ""


def test_a_loaded_chat_has_its_own_window_and_tail_budget(scene, folder):
    scene.chat.options = replace(scene.chat.options, ctx_size=900)
    scene.chat.session.tail_budget = 300
    session = loaded(scene, folder).chat.session
    assert (session.tail_budget, session.limit) == (300, 900)


def test_a_loaded_chat_without_end_has_none_either(scene, folder):
    """Its levels are those that it had, and `/show window` has what is still seen."""
    scene.chat.options = replace(scene.chat.options, tail="cascade:3x16")
    other = loaded(scene, folder)
    session = other.chat.session
    assert (session.cascade.levels, session.cascade.size) == (3, 16)
    for number in range(6):
        other.ask(f"What of {number}?", "It is so.")
    assert session.levels() and session.cache.saved > 0
    said = other.run("/show window")
    assert all(str(level) in said for level in session.levels())
    other.run("/clear")
    assert session.cache.saved == 0 and not session.levels()


def test_a_loaded_chat_is_selected_by_the_instruction_too(scene, folder):
    other = loaded(scene, folder, select="instruction")
    assert other.chat.in_view == INSTRUCTION and other.kept() != scene.kept()
    assert repr(INSTRUCTION) in other.run("/show settings")


def test_the_document_event_has_what_else_decides_the_text(scene):
    scene.ask("One?")
    [chat] = chatlog.listing()
    assert chat.document["clean"] is False and chat.document["chat_template"] is None


CODE = "Look:\n\n```py\nx = 1\ny = 2\n```\n\nor\n\n```\nz\n```\n"


class Tty(io.StringIO):
    def isatty(self):
        return True


def test_copy_through_the_terminal(scene, monkeypatch):
    scene.ask("How?", "No code.")
    assert scene.code("/copy 1") == "usage"
    scene.ask("How?", CODE)
    terminal = Tty()
    monkeypatch.setattr(sys, "stderr", terminal)
    for line in ("/copy", "/copy 1", "/copy 2"):
        assert "OSC 52" in scene.run(line)
    sent = [base64.b64decode(part.split(";")[2]).decode() for part in
            terminal.getvalue().split("\x07")[:-1]]  # fmt: skip
    assert sent == [CODE.strip(), "x = 1\ny = 2", "z"]
    assert scene.code("/copy 3") == "usage"
    with pytest.raises(KvchatError):
        clipboard.copy("x" * 80_000)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(KvchatError):
        scene.run("/copy")


def test_copy_by_a_program_of_the_desktop(home, monkeypatch):
    program = home / "xclip"
    program.write_text(f"#!/bin/sh\ncat > {home}/copied\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert clipboard.copy("ünï") == "xclip"
    assert (home / "copied").read_text() == "ünï"
    monkeypatch.setenv("SSH_CONNECTION", "somewhere")
    assert clipboard.desktop() is None
