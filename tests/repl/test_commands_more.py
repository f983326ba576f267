"""Commands that write, copy, measure and branch; and what a `/reread` chose, through later ones."""

import base64
import io
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kvchat.chat import chatlog as saved
from kvchat.chat.resume import restored, same_text
from kvchat.chat.sources import open_document
from kvchat.errors import KvchatError
from kvchat.repl import measuring, repl
from kvchat.repl.commands import documents
from kvchat.settings.options import INSTRUCTION, Options
from kvchat.terminal import clipboard
from tests.support.scene import STORY, Scene


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("VISUAL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(measuring, "SECONDS", 0.2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def scene(chat_folder):
    return Scene(chat_folder("byte-level", "chatml"))


def turns(scene):
    return [(turn.question, turn.answer) for turn in scene.chat.session.turns]


def editor(home, monkeypatch, text):
    """An editor in which a person replaces everything by `text`."""
    script = home / "editor.py"
    script.write_text(f"import sys; open(sys.argv[1], 'w').write({text!r})")
    monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")


def test_edit_asks_in_place_of_the_last_question(scene, home, monkeypatch):
    editor(home, monkeypatch, "Who counts?\n")
    scene.script("A keeper.")
    assert "> Who counts?" in scene.run("/edit")
    assert turns(scene) == [("Who counts?", "A keeper.")]
    editor(home, monkeypatch, "What does he count?")
    scene.script("Ships.")
    scene.run("/edit")
    assert turns(scene) == [("What does he count?", "Ships.")]
    [chat] = saved.listing()
    assert [turn["answer"] for turn in chat.turns] == ["Ships."]
    assert "nothing has changed" in scene.run("/edit")
    monkeypatch.setenv("EDITOR", "no-such-editor")
    with pytest.raises(KvchatError, match="cannot be run"):
        scene.run("/edit")
    monkeypatch.setenv("EDITOR", "false")
    with pytest.raises(KvchatError, match="ended with 1"):
        scene.run("/edit")
    assert turns(scene) == [("What does he count?", "Ships.")]


def test_a_pasted_text_is_a_document_and_comes_back(scene, monkeypatch):
    monkeypatch.setattr(documents, "typed_text", lambda title: "The harbour has 4711 boats.")
    scene.run("/paste")
    scene.run("/paste")
    assert "pasted 1" in scene.run("/files") and "pasted 2" in scene.run("/files")
    text = scene.chat.session.dialogue.tokenizer.decode(scene.chat.session.document)
    assert text.count("4711") == 2
    scene.ask("One?")
    options = restored(Options(), saved.find(None))
    assert open_document(options.files[2], options).text == "The harbour has 4711 boats."
    assert open_document(options.files[2], options).title == "pasted 2"


@pytest.mark.parametrize("key", ["a", "s", ""])
def test_a_large_paste_is_a_document_or_a_question(scene, monkeypatch, key):
    monkeypatch.setattr(repl, "choose", lambda *given, refused: key)
    scene.script("Yes.")
    repl.obey(scene.context, "/not a command\nbut 4711 pasted lines", is_paste=True)
    titles = [file.title for file in scene.chat.book.files]
    asked = [question for question, _ in turns(scene)]
    if key == "a":
        assert titles == ["story.txt", "pasted 1"] and not asked
    else:
        sent = ["/not a command\nbut 4711 pasted lines"] if key else []
        assert titles == ["story.txt"] and asked == sent


def test_the_last_document_goes_where_turns_are_folded_too(scene):
    """Nothing is kept whole then, but turns are still folded as before."""
    session = scene.chat.session
    session.tail_budget, folds = 200, session.method
    assert "story.txt dropped" in scene.run("/drop 1")
    assert "system text changed" in scene.run("/system Be brief.")
    assert session.method == folds and "nothing has changed" in scene.run("/system Be brief.")


def test_documents_of_one_name_are_told_apart(scene):
    told = []
    files = [SimpleNamespace(title="x", path=f"/{n}/x", digest=str(n)) for n in (1, 2)]
    kept = [{"name": "x", "path": file.path, "sha256": file.digest} for file in files]
    found, screen = SimpleNamespace(document={"files": kept}), SimpleNamespace(warn=told.append)
    same_text(files, found, screen, interactive=False)
    assert not told
    kept[1]["sha256"] = "another"
    same_text(files, found, screen, interactive=False)
    assert told == ["x has changed since the chat; the new text was read"]


def test_drop_takes_a_document_away(scene, home):
    (home / "b.txt").write_text("The harbour has a number: 4711. " * 4)
    scene.run("/file b.txt")
    scene.ask("What?", "Ships.")
    assert "story.txt dropped" in scene.run("/drop 1")
    assert scene.chat.book.title == "b.txt" and turns(scene) == [("What?", "Ships.")]
    scene.run("/drop 1")
    assert not scene.chat.book.files and "4711" not in scene.run("/show prompt")
    scene.ask("And now?", "Nothing.")
    with pytest.raises(KvchatError, match="no document to drop"):
        scene.run("/drop 1")


def test_fork_and_rename(scene):
    scene.ask("One?", "First.")
    scene.run("/rename night watch")
    assert "night watch stays as it is" in scene.run("/fork day watch")
    scene.ask("Two?", "Second.")
    scene.context.keeper.close()
    counts = {chat.name: len(chat.turns) for chat in saved.listing()}
    assert counts == {"night watch": 1, "day watch": 2}
    with pytest.raises(KvchatError, match="called 'night watch' already"):
        scene.run("/fork night watch")


CODE = "Look:\n\n```py\nx = 1\ny = 2\n```\n\nor\n\n```\nz\n```\n"


class Tty(io.StringIO):
    def isatty(self):
        return True


def test_copy_through_the_terminal(scene, monkeypatch):
    scene.ask("How?", CODE)
    terminal = Tty()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert "OSC 52" in scene.run("/copy")
    assert "3 characters" not in scene.run("/copy 1")
    assert "1 character copied" in scene.run("/copy 2")
    sent = [base64.b64decode(part.split(";")[2]).decode() for part in
            terminal.getvalue().split("\x07")[:-1]]  # fmt: skip
    assert sent == [CODE.strip(), "x = 1\ny = 2", "z"]
    with pytest.raises(KvchatError, match="has 2 code blocks"):
        scene.run("/copy 3")
    with pytest.raises(KvchatError, match="too many"):
        clipboard.copy("x" * 80_000)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(KvchatError, match="without a terminal"):
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


def test_bench_measures_and_leaves_no_trace(scene):
    scene.ask("What?", "Ships.")
    session = scene.chat.session
    before = (session.cache.position, session.memory(), turns(scene))
    text = scene.run("/bench")
    assert "reading" in text and "writing" in text and "tok/s" in text
    assert (session.cache.position, session.memory(), turns(scene)) == before


def test_what_a_question_chose_stays_chosen(scene, home):
    scene.run("/reread Where is the sea?")
    for line in ("/budget 25%", "/system Be brief."):
        scene.run(line)
        assert scene.chat.in_view == "Where is the sea?", line
    (home / "b.txt").write_text(STORY)
    scene.run("/file b.txt")
    assert scene.chat.in_view == "Where is the sea?"
    scene.ask("What?")
    chat = saved.find(None)
    assert chat.method["in_view"] == "Where is the sea?"
    text = " ".join(scene.run("/method snapkv:window=8").split())
    assert "chosen by the document's end again" in text and not scene.chat.in_view


def test_a_chat_that_comes_back_says_what_its_rows_were_chosen_for(scene, chat_folder):
    scene.ask("One?")
    scene.run("/reread Where is the sea?")
    scene.run("/save mine")
    scene.context.keeper.close()
    other = Scene(chat_folder("byte-level", "chatml"))
    text = " ".join(other.run("/load mine").split())
    assert "had been chosen for 'Where is the sea?', now by the document's end" in text


def test_a_loaded_chat_has_its_own_window_and_tail_budget(scene, chat_folder):
    scene.chat.options = replace(scene.chat.options, ctx_size=900)
    scene.chat.session.tail_budget = 300
    scene.ask("One?")
    scene.run("/save mine")
    scene.context.keeper.close()
    other = Scene(chat_folder("byte-level", "chatml"))
    other.run("/load mine")
    assert (other.chat.session.tail_budget, other.chat.session.limit) == (300, 900)


def test_a_loaded_chat_is_chosen_by_the_instruction_too(scene, chat_folder):
    def kept(chat):
        return [s.position.tolist() for s in chat.session.cache.segments()]

    scene.ask("One?")
    scene.run("/save mine")
    scene.context.keeper.close()
    other = Scene(chat_folder("byte-level", "chatml"), select="instruction")
    assert "had been chosen" not in other.run("/load mine")
    assert other.chat.in_view == INSTRUCTION and kept(other.chat) != kept(scene.chat)
    assert f"for {INSTRUCTION!r}" in other.run("/show config")


def test_the_document_event_has_what_else_decides_the_text(scene):
    scene.ask("One?")
    [chat] = saved.listing()
    event = json.loads(json.dumps(chat.document))
    assert event["clean"] is False and event["chat_template"] is None


@pytest.mark.parametrize("stored", ["", ",bits=8"])
def test_heads_tell_how_many_tokens_merged_rows_stand_for(scene, stored):
    assert "merged" not in scene.run("/heads")
    scene.run(f"/method kvmerger:budget=40%,skip=0+0{stored}")
    chat = scene.chat
    tokens = len(chat.session.document)
    sets = chat.merge_sets()
    for layer, rows in zip(sets, chat.document_entries(), strict=True):
        assert [len(head) for head in layer] == rows, "a size for every row"
        assert all(sum(head) == tokens for head in layer), "every token is in one set"
    sizes = [size for layer in sets for head in layer for size in head]
    merged, largest = sum(size > 1 for size in sizes), max(sizes)
    text = " ".join(scene.run("/heads").split())
    assert (
        f"{merged:,} of {len(sizes):,} entries were merged" in text and f"{largest} at most" in text
    )
    assert f"sets ≤ {max(sets[1][0])}" in scene.run("/heads 1")
