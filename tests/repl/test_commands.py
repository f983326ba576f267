"""Every command with a good, a bad and no argument, with and without a document."""

import json

import pytest

from kvchat.chat import chatlog as saved
from kvchat.engine.methods import METHODS
from kvchat.errors import KvchatError
from kvchat.repl.commands import ALIASES, COMMANDS, Quit, documents, find
from kvchat.repl.completion import SlashCompleter
from tests.support.scene import STORY, Scene


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("EDITOR", "true")  # an editor that changes nothing
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setattr(documents, "typed_text", lambda title: None)  # Ctrl-C
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder(chat_folder):
    return chat_folder("byte-level", "chatml")


@pytest.fixture
def scene(folder):
    return Scene(folder)


@pytest.fixture
def bare(folder):
    """A chat without a document."""
    return Scene(folder, story="")


def turns(scene):
    return [(turn.question, turn.answer) for turn in scene.chat.session.turns]


# what a command shows, or the error it raises, without an argument
ALONE = {
    "help": "/budget",
    "keys": "Alt-Enter",
    "file": KvchatError,
    "paste": "nothing was pasted",
    "drop": KvchatError,
    "files": "story.txt",
    "system": "no system text",
    "set": "temperature",
    "show": "tiny",
    "method": "now: adakv",
    "budget": "budget 50%",
    "reread": KvchatError,
    "compare": KvchatError,
    "memory": "KV kept",
    "heads": "head 0",
    "coverage": "share of entries kept",
    "ctx": "story.txt",
    "retry": KvchatError,
    "more": KvchatError,
    "edit": "nothing has changed",
    "undo": KvchatError,
    "clear": "forgotten",
    "reset": "forgotten",
    "save": "0 turns",
    "rename": KvchatError,
    "fork": KvchatError,
    "load": "no saved chats",
    "sessions": "no saved chats",
    "export": "0 turns",
    "copy": KvchatError,
    "bench": "writing",
    "quit": Quit,
}


def test_the_table_is_complete():
    assert ALONE.keys() == COMMANDS.keys()
    for name, command in COMMANDS.items():
        assert command.summary and len(command.summary) <= 48, name


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("document", [True, False])
def test_without_an_argument_before_any_question(folder, name, document):
    scene = Scene(folder, story=STORY if document else "")
    expected = ALONE[name]
    if isinstance(expected, str):
        text = scene.run(f"/{name}")
        assert expected in text if document else text
    else:
        with pytest.raises(expected):
            scene.run(f"/{name}")
    scene.ask("What?", "Ships.")
    assert turns(scene)[-1] == ("What?", "Ships.")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_on_every_command(scene, name):
    assert COMMANDS[name].lines[0] in " ".join(scene.run(f"/help {name}").split())
    assert scene.run(f"/{name}?") == scene.run(f"/help {name}")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("/nonsense", "unknown command /nonsense"),
        ("/budgte", "did you mean /budget"),
        ("/s", "did you mean"),
        ("/", "unknown command /"),
        ("/help nonsense", "unknown command"),
        ("/file no/such/file.txt", "does not exist"),
        ("/file 'open", "quotation"),
        ("/set temprature 1", "no setting"),
        ("/set temperature hot", "is not a number"),
        ("/set temperature -1", "must be 0 or more"),
        ("/set stats loud", "off, short, long"),
        ("/set max_tokens 0", "at least 1"),
        ("/show weather", "/show has no"),
        ("/method adakw", "unknown method"),
        ("/budget lots", "not a budget"),
        ("/compare full QUESTION", ""),
        ("/heads 99", "layers 0–1"),
        ("/heads x", "layers 0–1"),
        ("/undo 3", "nothing has been asked"),
        ("/undo x", "number of turns"),
        ("/save ../up", "is not a name"),
        ("/rename ../up", "is not a name"),
        ("/fork", "nothing has been asked"),
        ("/drop 2", "from 1 to 1"),
        ("/drop x", "from 1 to 1"),
        ("/copy 1", "nothing has been asked"),
        ("/set theme blue", "dark or light"),
        ("/load nothing", "no saved chat"),
        ("/export chat.doc", "ends with none of"),
        ("/export /no/such/folder/chat.md", "cannot be written"),
        ("/memory now", "takes nothing after it"),
        ("/clear all", "takes nothing after it"),
    ],
)
def test_bad_arguments_change_nothing(scene, line, part):
    before = (scene.chat.session.cache, scene.chat.method, scene.chat.settings, turns(scene))
    if part:
        with pytest.raises(KvchatError, match=part.replace("?", r"\?")):
            scene.run(line)
    session = scene.chat.session
    assert (session.cache, scene.chat.method, scene.chat.settings, turns(scene)) == before


def test_prefixes_are_unique_and_aliases_work():
    assert find("mem") == "memory" and find("bud") == "budget" and find("q") == "quit"
    assert {find(name) for name in ALIASES} == {"quit"}
    for name in COMMANDS:
        assert find(name) == name


def test_method_and_budget_read_again_and_keep_the_turns(scene):
    scene.ask("What?")
    assert "kept" in scene.run("/method snapkv:window=8") and turns(scene)
    assert "now: snapkv:budget=50%" in scene.run("/method")
    text = scene.run("/budget 25%")
    assert "takes about" in text and "kept" in text
    assert str(scene.chat.method.budget) == "25%"
    scene.run("/method full")
    with pytest.raises(KvchatError, match="takes no budget"):
        scene.run("/budget 25%")
    assert turns(scene) == [("What?", "Ships.")]


def test_reread_chooses_for_a_question(scene):
    def kept():
        return [s.position.tolist() for s in scene.chat.session.cache.segments()]

    before = kept()
    assert "chosen for 'Where is the sea?'" in scene.run("/reread Where is the sea?")
    assert kept() != before and scene.chat.in_view == "Where is the sea?"
    scene.ask("What?")
    assert "chosen for 'What?'" in scene.run("/reread")
    scene.run("/method adakv:window=8")
    assert scene.chat.in_view == ""


def test_compare_answers_twice_and_changes_nothing(scene):
    scene.ask("What?", "Ships.")
    held, before = scene.chat.session.memory(), turns(scene)
    scene.script("Ships.")
    scene.chat.session.engine.script *= 2
    text = scene.run("/compare")
    assert "adakv 50%" in text and "full 100%" in text and "the same, token by token" in text
    scene.script("Stars.")
    first = list(scene.chat.session.engine.script)
    scene.script("Stays.")
    scene.chat.session.engine.script = first + scene.chat.session.engine.script
    text = scene.run("/compare snapkv:budget=20% And at night?")
    assert "first different token: number 4, 'r' and 'y'" in text
    assert turns(scene) == before and scene.chat.session.memory() == held
    with pytest.raises(KvchatError, match="is what the chat uses"):
        scene.run("/compare adakv:window=8")


def test_undo_retry_more_clear(scene):
    scene.ask("One?", "First.")
    scene.ask("Two?", "Second.")
    scene.script("Again.")
    scene.run("/retry")
    assert turns(scene) == [("One?", "First."), ("Two?", "Again.")]
    assert scene.chat.settings.sampling.seed == 1
    assert "from 'Two?' on" in scene.run("/undo")
    scene.chat.settings = scene.chat.settings.changed("max_tokens", 3, "/set")
    scene.ask("Three?", "abcdef")
    assert turns(scene)[-1] == ("Three?", "abc")
    scene.chat.settings = scene.chat.settings.changed("max_tokens", 20, "/set")
    scene.script("def")
    scene.run("/more")
    assert turns(scene)[-1] == ("Three?", "abcdef")
    with pytest.raises(KvchatError, match="has ended"):
        scene.run("/more")
    scene.run("/clear")
    assert turns(scene) == [] and scene.chat.session.document


def test_set_shows_and_changes_with_origin(scene):
    assert "0.7" in scene.run("/set temp 0.7") and scene.chat.settings.sampling.temperature == 0.7
    assert "/set" in scene.run("/set temperature")
    scene.run("/set stop END, \\n\\n")
    assert scene.chat.settings.stop == ("END", "\n\n")
    scene.run("/set stats long")
    scene.ask("What?")
    scene.run("/set markdown off")
    assert scene.chat.settings.markdown is False


def test_files_and_system_text(scene, home):
    scene.ask("What?")
    (home / "a b.txt").write_text("The harbour has a number: 4711. " * 4)
    assert "window" in scene.run("/file 'a b.txt'")
    assert "a b.txt" in scene.run("/files") and "a b.txt" in scene.run("/ctx")
    assert turns(scene) == [("What?", "Ships.")]
    text = scene.chat.session.dialogue.tokenizer.decode(scene.chat.session.document)
    assert "4711" in text and "ships" in text
    scene.run("/system Be brief.")
    assert scene.run("/system").strip() == "Be brief."
    document = scene.chat.session.document
    assert scene.chat.session.dialogue.tokenizer.decode(document).count("Be brief.") == 1
    scene.run("/system -")
    assert "no system text" in scene.run("/system")


def test_a_first_document_in_a_chat_that_had_none(bare, home):
    bare.ask("Who are you?", "A model.")
    (home / "b.txt").write_text(STORY)
    bare.run("/file b.txt")
    assert turns(bare) == [("Who are you?", "A model.")]
    assert bare.chat.book.title == "b.txt" and str(bare.chat.method.budget) == "25%"
    bare.ask("What?")
    bare.run("/reset")
    assert turns(bare) == [] and not bare.chat.book.files
    bare.ask("And now?", "Nothing.")


def test_show_has_the_exact_prompt(scene):
    scene.ask("What did he count?", "Ships.")
    text = scene.run("/show prompt")
    assert "<|im_start|>" in text and "What did he count?" in text and "tokens" in text
    assert "opening" in scene.run("/show template")


def test_saved_chats_come_back(scene, folder):
    scene.ask("One?", "First.")
    scene.run("/save night watch")
    scene.ask("Two?", "Second.")
    scene.run("/undo")
    scene.ask("Three?", "Third.")
    scene.run("/set seed 7")
    scene.context.keeper.close()
    other = Scene(folder)
    assert "night watch" in other.run("/sessions") and "2 turns" in other.run("/load")
    held = scene.chat.session.engine.tokens_in(scene.chat.session.cache)
    assert "going on with night watch" in other.run("/load night watch")
    assert turns(other) == turns(scene)
    session = other.chat.session
    assert session.engine.tokens_in(session.cache)[-20:] == held[-20:]
    assert other.chat.settings.sampling.seed == 7
    other.ask("Four?", "Fourth.")
    assert len(saved.find("night watch").turns) == 3
    with pytest.raises(KvchatError, match="is this chat"):
        other.run("/load night watch")


def test_a_chat_that_is_open_elsewhere_is_not_loaded(scene, folder):
    scene.ask("One?")
    scene.run("/save mine")
    with pytest.raises(KvchatError, match="open in another"):
        Scene(folder).run("/load mine")


@pytest.mark.parametrize("suffix", ["md", "txt", "json"])
def test_export(scene, home, suffix):
    scene.ask("One?", "First.")
    scene.run(f"/export out.{suffix}")
    text = (home / f"out.{suffix}").read_text()
    assert "One?" in text and "First." in text
    assert suffix != "json" or json.loads(text)["turns"][0]["answer"] == "First."
    with pytest.raises(KvchatError, match="exists already"):
        scene.run(f"/export out.{suffix}")


def completed(scene, text):
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    found = SlashCompleter(scene.context).get_completions(
        Document(text, len(text)), CompleteEvent(completion_requested=True)
    )
    return [completion.text for completion in found]


def test_completion(scene, home):
    assert completed(scene, "/met") == ["method"]
    assert completed(scene, "/method a") == [m for m in METHODS if m.startswith("a")]
    assert "adakv:window=" in completed(scene, "/method adakv:w")
    assert completed(scene, "/set temp") == ["temperature"]
    assert completed(scene, "/set stats l") == ["stats long"]
    (home / "booklet.txt").write_text("x")
    assert completed(scene, "/file bookl") == ["et.txt"]
    scene.ask("One?")
    scene.run("/save night")
    assert completed(scene, "/load n") == ["night"]
    assert completed(scene, "hello /met") == [] and completed(scene, "/zzz a") == []
