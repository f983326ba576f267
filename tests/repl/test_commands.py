"""Every command with a good, a bad and no argument, with and without a document."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from kvchat.chat import attach as attaching
from kvchat.chat import chatlog
from kvchat.chat.prepare import restored
from kvchat.chat.sources import open_document
from kvchat.chat.work import Dropped
from kvchat.engine.events import drain
from kvchat.engine.methods import AUTO, METHODS
from kvchat.errors import KvchatError
from kvchat.repl import repl
from kvchat.repl.commands import COMMANDS, MOVED, Quit, documents, find
from kvchat.repl.completion import SlashCompleter
from kvchat.settings.options import Options
from kvchat.terminal.interrupt import Interrupt, present
from tests.support.scene import STORY, Scene, shown, string_screen

MORE = "The harbour has a number: 4711. " * 4


@pytest.fixture(autouse=True)
def person(home, monkeypatch):
    """Answers yes, pastes nothing, and has an editor that changes nothing."""
    monkeypatch.setenv("EDITOR", "true")
    monkeypatch.setattr(documents, "typed_text", lambda title: None)  # Ctrl-C
    monkeypatch.setattr(documents, "choose", lambda *given: "y")
    (home / "b.txt").write_text(MORE)


def titles(scene):
    return [file.title for file in scene.chat.book.files]


def document(scene):
    return scene.chat.session.dialogue.tokenizer.decode(scene.chat.session.document)


def first(scene):
    """What the first turn put into the cache."""
    return scene.chat.session.dialogue.tokenizer.decode(scene.chat.session.turns[0].ids)


# what a command shows, or the error it raises, without an argument
ALONE = {
    "help": "/budget",
    "file": "story.txt",
    "drop": "usage",
    "search": "usage",
    "system": "",
    "model": "tiny",
    "method": "adakv",
    "budget": "50%",
    "select": "usage",
    "compare": "usage",
    "show": "tiny",
    "set": "temperature",
    "sources": "usage",
    "think": "no thoughts",
    "retry": "usage",
    "edit": "",
    "more": "usage",
    "undo": "usage",
    "clear": "0",
    "reset": "/file",
    "save": "0 turns",
    "rename": "usage",
    "load": "",
    "export": "0 turns",
    "copy": "usage",
    "quit": Quit,
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("story", [STORY, ""])
def test_without_an_argument_before_any_question(folder, name, story):
    scene, expected = Scene(folder, story=story), ALONE[name]
    if expected == "usage":
        assert scene.code(f"/{name}") == "usage"
    elif isinstance(expected, str):
        text = scene.run(f"/{name}")
        assert text and (expected in text or not story)
    else:
        with pytest.raises(expected):
            scene.run(f"/{name}")
    scene.ask("What?", "Ships.")
    assert scene.turns[-1] == ("What?", "Ships.")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_on_every_command(scene, name):
    text = scene.run(f"/help {name}")
    assert COMMANDS[name].summary in " ".join(text.split())
    assert scene.run(f"/{name}?") == scene.run(f"/help /{name}") == text
    assert len(COMMANDS[name].lines) > 1 or not COMMANDS[name].argument or name in ("rename",)


def test_help_is_one_screen(scene):
    lines = scene.run("/help").splitlines()
    assert len(lines) <= 22 and max(map(len, lines)) <= 80  # a prompt and a toolbar are below
    assert all(any(f"/{name}" in line for line in lines) for name in COMMANDS)
    assert "F2" in scene.run("/help keys")


def test_names_may_be_shortened_and_old_ones_point_to_new_ones(scene):
    assert find("meth") == "method" and find("bud") == "budget" and find("q") == "quit"
    assert find("mem") == find("memory") == "show memory"
    assert all(find(name) == name for name in COMMANDS)
    assert scene.run("/mem").splitlines()[0] == scene.run("/show memory").splitlines()[0]
    for name, form in MOVED.items():
        with pytest.raises(KvchatError) as caught:
            find(name)
        assert caught.value.tries == (form,)
        assert not form.startswith("/") or find(form[1:].split()[0]) in COMMANDS
    for wrong, close in {"budgte": "/budget", "coverge": "/show coverage", "xyz": "/help"}.items():
        with pytest.raises(KvchatError) as caught:
            find(wrong)
        assert close in caught.value.tries


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        *((line, "usage") for line in (
            "/nonsense", "/s", "/", "/help nonsense", "/file 'open", "/set temprature 1",
            "/set temperature hot", "/set temperature -1", "/set stats loud", "/set max_tokens 0",
            "/set stats blue", "/show weather", "/show memory now", "/show heads 99",
            "/show heads x", "/method adakw", "/method adakv:kernel=4", "/budget lots", "/undo 3",
            "/undo x", "/save ../up", "/rename ../up", "/drop 2", "/drop x", "/copy 1",
            "/compare adakv:window=8", "/compare full", "/export chat.doc", "/clear all",
        )),
        ("/file no/such/file.txt", "input"),
        ("/export /no/such/folder/chat.md", "input"),
        ("/load nothing", "session"),
    ],
)  # fmt: skip
def test_bad_arguments_change_nothing(scene, line, expected):
    before = (scene.chat.session.cache, scene.chat.method, scene.chat.options, scene.turns)
    assert scene.code(line) == expected
    session = scene.chat.session
    assert (session.cache, scene.chat.method, scene.chat.options, scene.turns) == before


def test_another_model_goes_on_with_documents_and_turns(scene, chat_folder):
    """Its tokens are others; nothing changes where it is not there."""
    scene.ask("What?", "Ships.")
    scene.ask("Why?", "Stars.")
    before = vars(scene.chat).copy()
    assert scene.code("/model nothing") == "model" and vars(scene.chat) == before
    text = scene.run(f"/model {chat_folder('sentencepiece', None)}")
    session = scene.chat.session
    assert "2 turns, story.txt" in text and titles(scene) == ["story.txt"]
    assert [(t.question, t.answer) for t in session.turns] == [("What?", "Ships."),
                                                              ("Why?", "Stars.")]  # fmt: skip
    ids = [*session.document, *(i for turn in session.turns for i in turn.ids)]
    assert session.cache.position == len(ids) and session.engine is not before["session"].engine
    told = session.dialogue.tokenizer.decode(ids)
    assert STORY.strip() in told and told.index("Ships.") < told.index("Why?") < told.index("Stars")
    assert scene.chat.options.model.endswith(scene.chat.model.path.name)


@pytest.mark.parametrize("line", ["/rename mine", "/retry", "/undo"])
def test_what_follows_another_model_is_saved_with_all_turns(scene, chat_folder, line):
    """There a new file begins, in the midst of a chat; and signals are the chat's affair still."""
    scene.ask("What?", "Ships.")
    scene.ask("Why?", "Stars.")
    with Interrupt() as calm:
        scene.run(f"/model {chat_folder('sentencepiece', None)}")
        assert present() is calm
    scene.run("/set max-tokens 4")
    scene.run(line)
    turns = [(turn.question, turn.answer) for turn in scene.chat.session.all_turns]
    assert len(turns) == (1 if line == "/undo" else 2)
    writer = scene.context.writer
    if line != "/undo":  # of which there is nothing to be written before the next turn
        found = chatlog.read(writer.path).turns
        assert [(turn["question"], turn["answer"]) for turn in found] == turns


def test_a_system_prompt_that_takes_turns_says_so_and_one_that_leaves_no_room_is_refused(scene):
    for number in range(20):
        scene.ask(f"Q{number}?")
    session, screen = scene.chat.session, scene.context.screen
    assert scene.code(f"/system {'word ' * session.limit}") == "too_long" and len(scene.turns) == 20
    session.limit = session.cache.position + 100
    warned = len(screen.warnings)
    scene.run(f"/system {'word ' * 40}")
    assert session.forgotten and len(session.all_turns) == 20
    assert len(screen.warnings) == warned + 1


def test_a_file_that_is_there_is_in_the_book_whenever_it_is_interrupted(scene, monkeypatch):
    scene.ask("What?")
    before, real = len(scene.chat.session.document), attaching.run

    def stopped(chat, work, label, tokens, **more):
        for _ in work:
            if len(chat.session.document) > before:
                work.close()
                raise Dropped

    monkeypatch.setattr(attaching, "run", stopped)
    scene.run("/file b.txt")
    monkeypatch.setattr(attaching, "run", real)
    assert len(scene.chat.session.document) == len(scene.chat.book.ids)
    scene.ask("Why?")
    assert len(scene.turns) == 2


def test_a_conversation_without_end_takes_no_room_from_documents(scene, folder):
    scene.chat.options = replace(scene.chat.options, tail="cascade:3x16", ctx_size=900)
    scene.ask("What?")
    scene.run("/save one")
    scene.context.writer.close()
    other = Scene(folder)
    other.run("/load one")
    for number in range(45):
        other.ask(f"What of the ship number {number}?", "It is so.")
    session = other.chat.session
    assert sum(len(turn.ids) for turn in session.turns) > session.limit == 900
    other.run("/file b.txt")
    other.run("/system Be brief.")
    assert titles(other) == ["story.txt", "b.txt"] and other.chat.book.system == "Be brief."


def test_a_comparison_leaves_the_turns_as_they_were(scene):
    """Also where the window has no room for one more."""
    for number in range(6):
        scene.ask(f"Q{number}?")
    session, turns = scene.chat.session, scene.turns
    session.limit = session.cache.position + 60
    scene.script("Ships.")
    scene.run("/compare full What is it that the keeper of the tower counted when nobody looked?")
    assert scene.turns == turns and not session.forgotten


def test_a_chat_is_known_by_its_former_name_and_its_seed_is_saved(scene):
    scene.ask("What?")
    scene.run("/save one")
    scene.run("/rename two")
    assert scene.code("/load one") == "usage", "it is this one"
    scene.script("Stars.")
    scene.run("/retry")
    saved = chatlog.read(scene.context.writer.path)
    assert saved.settings["seed"] == scene.chat.options.sampling.seed > 0


def test_a_second_document_is_read_behind_the_first(scene):
    """`/drop` reads what is left again."""
    scene.ask("What?", "Ships.")
    chat = scene.chat
    segment, ids = chat.session.cache.layers[0].segments[0], list(chat.session.document)
    scene.run("/file b.txt")
    assert chat.session.cache.layers[0].segments[0] is segment
    assert chat.session.document[: len(ids)] == ids and MORE.strip() in document(scene)
    assert len(chat.book.begins) == len(chat.session.document) and len(scene.turns) == 1
    assert "line 1" in chat.book.found("harbour number")[0].label
    scene.run("/method full")
    assert chat.session.document[: len(ids)] == ids and len(scene.turns) == 1
    scene.run("/drop 1")
    assert titles(scene) == ["b.txt"] and STORY.strip() not in document(scene)


def test_passages_are_found_by_their_words(scene):
    text = scene.run("/search the STARS")
    assert "[line 1]" in text and "counted the stars above" in text and "1 passage more" in text
    assert "no passage" in scene.run("/search zebra crossing")


def test_the_passages_of_an_answer_are_shown(scene, monkeypatch):
    """What the tiny model attends to says nothing: the passage is given."""
    scene.ask("What?", "Ships.")
    session, book = scene.chat.session, scene.chat.book
    weights = torch.zeros(len(book.ids))
    monkeypatch.setattr(session, "attended", lambda: weights)
    scene.chat.cited = None
    assert len(scene.run("/sources").splitlines()) == 1, "no passage stands out"
    weights[-5:-1] = 1.0  # the last token is a space
    scene.chat.cited = None
    text = scene.run("/sources")
    assert "100%" in text and STORY.strip()[-8:] in text
    scene.run("/set sources off")
    assert not scene.chat.options.sources


def test_an_error_in_the_chat_is_two_lines(scene):
    repl.obey(scene.context, "/set foo 1")
    said = shown(scene.context.screen)
    assert "'foo'" in said and not said.startswith("kvchat") and "top_k" in said
    assert said.count("try:") <= 1


def test_undo_retry_more_clear(scene):
    scene.ask("One?", "First.")
    scene.ask("Two?", "Second.")
    scene.script("Again.")
    scene.run("/retry")
    assert scene.turns == [("One?", "First."), ("Two?", "Again.")]
    assert scene.chat.options.sampling.seed == 1
    assert "'Two?'" in scene.run("/undo")
    scene.run("/set max_tokens 3")
    scene.ask("Three?", "abcdef")
    assert scene.turns[-1] == ("Three?", "abc")
    scene.run("/set max_tokens 20")
    scene.script("def")
    scene.run("/more")
    assert scene.turns[-1] == ("Three?", "abcdef")
    assert scene.code("/more") == "usage"
    scene.run("/clear")
    assert scene.turns == [] and scene.chat.session.document


def test_retry_of_a_greedy_answer_is_drawn_and_says_so(scene, monkeypatch):
    asked = []
    decode = type(scene.chat.session.engine).decode

    def seen(engine, cache, logits, sampling, drawn=(), form=None):
        asked.append((sampling.temperature, sampling.seed))
        return decode(engine, cache, logits, sampling, drawn, form)

    monkeypatch.setattr(type(scene.chat.session.engine), "decode", seen)
    scene.ask("One?", "First.")
    scene.script("Again.")
    said = scene.run("/retry")
    assert asked == [(0, 0), (0.7, 1)] and "0.7" in said and "seed 1" in said
    scene.ask("Two?", "Second.")
    assert asked[-1] == (0, 1), "the temperature was for one answer"
    scene.run("/set temperature 0.3")
    scene.script("Again.")
    assert "0.7" not in scene.run("/retry") and asked[-1] == (0.3, 2)


def test_a_full_window_drops_turns_and_says_so_once(scene, home):
    session = scene.chat.session
    session.limit = session.cache.position + 150
    for number in range(12):
        scene.ask(f"{number}?", "Ships and stars.")
        if session.forgotten:
            break
    said = shown(scene.context.screen)
    assert said.count("context window full") == 1 and f"{len(session.forgotten)} turn" in said
    there = len(session.all_turns)
    scene.run("/export all.txt")
    assert Path("all.txt").read_text().count("> ") == there
    [chat] = chatlog.listing()
    assert len(chat.turns) == there == number + 1
    scene.script("Again.")
    scene.run("/retry")
    assert len(session.all_turns) == there and scene.turns[-1][1] == "Again."
    scene.run("/clear")
    assert session.all_turns == [] and [len(each.turns) for each in chatlog.listing()] == [there]


def test_edit_asks_in_place_of_the_last_question(scene, home, monkeypatch):
    for question, answer in (("Who counts?", "A keeper."), ("What does he count?", "Ships.")):
        script = home / "editor.py"
        script.write_text(f"import sys; open(sys.argv[1], 'w').write('{question}\\n')")
        monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")
        scene.script(answer)
        assert question in scene.run("/edit")
        assert scene.turns == [(question, answer)]
    [chat] = chatlog.listing()
    assert [turn["answer"] for turn in chat.turns] == ["Ships."]
    scene.run("/edit")
    for broken in ("no-such-editor", "false"):
        monkeypatch.setenv("EDITOR", broken)
        assert scene.code("/edit") == "usage"
    assert scene.turns == [("What does he count?", "Ships.")]


def test_set_shows_and_changes_with_origin(scene):
    assert "0.7" in scene.run("/set temp 0.7") and scene.chat.options.sampling.temperature == 0.7
    assert "(/set)" in scene.run("/set temperature")
    scene.run("/set stop END, \\n\\n")
    assert scene.chat.options.stop == ("END", "\n\n")
    scene.run("/set stats long")
    scene.ask("What?")
    scene.run("/set markdown off")
    assert scene.chat.options.markdown is False


def test_files_and_system_prompt(scene, home, folder):
    scene.ask("What?")
    (home / "a b.txt").write_text(MORE)
    scene.run("/file 'a b.txt'")
    assert "a b.txt" in scene.run("/file") and "a b.txt" in scene.run("/show window")
    assert scene.turns == [("What?", "Ships.")]
    assert "4711" in document(scene) and "ships" in document(scene)
    read, kept = document(scene), scene.kept()
    scene.run("/system Be brief.")
    assert scene.run("/system").strip() == "Be brief."
    assert document(scene) == read and scene.kept() == kept and first(scene).count("Be brief.") == 1
    again = Scene(folder)
    drain(again.chat.session.restore(scene.chat.session.turns))
    assert "Be brief." not in first(again), "a saved chat opens under the system prompt of now"
    told = scene.chat.session.dialogue.told_tokens
    assert re.search(rf"system prompt +{told} ", scene.run("/show window"))
    scene.run("/system -")
    assert not scene.chat.book.system and "Be brief." not in first(scene)
    assert scene.turns == [("What?", "Ships.")]


def test_a_system_prompt_stays_where_old_turns_are_compressed(scene):
    scene.chat.options = replace(scene.chat.options, tail_budget=200)
    scene.run("/system Be brief.")
    assert document(scene).count("Be brief.") == 1
    scene.ask("What?")
    assert "Be brief." not in first(scene)


def test_drop_takes_a_document_away(scene):
    scene.run("/file b.txt")
    scene.ask("What?", "Ships.")
    scene.run("/drop 1")
    assert titles(scene) == ["b.txt"] and scene.turns == [("What?", "Ships.")]
    scene.run("/drop 1")
    assert not titles(scene) and "4711" not in scene.run("/show prompt")
    scene.ask("And now?", "Nothing.")
    assert scene.code("/drop 1") == "usage"


def test_a_first_document_in_a_chat_that_had_none(folder, monkeypatch):
    scene = Scene(folder, story="")
    scene.ask("Who are you?", "A model.")
    scene.run("/file b.txt")
    assert scene.turns == [("Who are you?", "A model.")]
    assert titles(scene) == ["b.txt"] and str(scene.chat.method.budget) == "25%"
    monkeypatch.setattr(documents, "choose", lambda *given: "n")
    scene.run("/reset")
    assert scene.turns and titles(scene) == ["b.txt"], "it asks first"
    monkeypatch.setattr(documents, "choose", lambda *given: "y")
    scene.run("/reset")
    assert scene.turns == [] and not titles(scene)
    scene.ask("And now?", "Nothing.")


def test_the_last_document_goes_where_turns_are_folded_too(scene):
    """Nothing is kept whole then, but turns are still folded as before."""
    session = scene.chat.session
    session.tail_budget, folds = 200, session.method
    scene.run("/drop 1")
    scene.run("/system Be brief.")
    assert session.method == folds and scene.chat.book.system == "Be brief."


def test_a_pasted_text_is_a_document_and_comes_back(scene, monkeypatch):
    monkeypatch.setattr(documents, "typed_text", lambda title: "The harbour has 4711 boats.")
    scene.run("/file -")
    scene.run("/file -")
    assert titles(scene) == ["story.txt", "pasted 1", "pasted 2"]
    assert document(scene).count("4711") == 2
    scene.ask("One?")
    options = restored(Options(), chatlog.find(None))
    last = open_document(options.files[2], options, string_screen())
    assert (last.title, last.text) == ("pasted 2", "The harbour has 4711 boats.")


@pytest.mark.parametrize("key", ["a", "s", ""])
def test_a_large_paste_is_a_document_or_a_question(scene, monkeypatch, key):
    monkeypatch.setattr(repl, "choose", lambda *given, refused: key)
    scene.script("Yes.")
    text = "/not a command\nbut 4711 pasted lines"
    repl.obey(scene.context, text, is_paste=True)
    assert titles(scene) == ["story.txt", "pasted 1"][: 1 + (key == "a")]
    assert [question for question, _ in scene.turns] == [text] * (key == "s")


def test_show_has_the_exact_prompt(scene):
    scene.ask("What did he count?", "Ships.")
    text = scene.run("/show prompt")
    assert "<|im_start|>" in text and "What did he count?" in text
    assert "opening" in scene.run("/show template")


@pytest.mark.parametrize("suffix", ["md", "txt", "json"])
def test_export(scene, home, suffix):
    scene.ask("One?", "First.")
    scene.run(f"/export out.{suffix}")
    text = (home / f"out.{suffix}").read_text()
    assert "One?" in text and "First." in text
    assert suffix != "json" or json.loads(text)["turns"][0]["answer"] == "First."
    assert scene.code(f"/export out.{suffix}") == "input"


def completed(scene, text):
    found = SlashCompleter(scene.context).get_completions(
        Document(text, len(text)), CompleteEvent(completion_requested=True)
    )
    return [completion.text for completion in found]


def test_completion(scene):
    assert completed(scene, "/met") == ["method"]
    assert completed(scene, "/method a") == [m for m in (AUTO, *METHODS) if m.startswith("a")]
    assert "adakv:window=" in completed(scene, "/method adakv:w")
    assert completed(scene, "/set temp") == ["temperature"]
    assert completed(scene, "/set stats l") == ["stats long"]
    assert completed(scene, "/show cov") == ["coverage"]
    assert completed(scene, "/file b.t") == ["xt"]
    scene.ask("One?")
    scene.run("/save night")
    assert completed(scene, "/load n") == ["night"]
    assert completed(scene, "hello /met") == [] and completed(scene, "/zzz a") == []
