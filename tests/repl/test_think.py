"""Thoughts in the chat: what is drawn and said of them, and where they are not."""

import pytest

from kvchat.chat import chatlog
from kvchat.repl.commands import chats
from tests.support.scene import Scene
from tests.support.terminal import DONE, Terminal

THINKS = "At sea.\n</think>\n\nShips."


@pytest.fixture
def folder(chat_folder):
    """A model whose template opens a thought."""
    return chat_folder("byte-level", "opens")


def held(scene) -> str:
    session = scene.chat.session
    return session.dialogue.tokenizer.hf.decode(session.engine.tokens_in(session.cache))


def test_a_thought_is_no_part_of_the_answer(scene, monkeypatch, tmp_path):
    copied = []
    monkeypatch.setattr(chats.clipboard, "copy", lambda text: copied.append(text) or "x")
    scene.ask("What?", THINKS)
    assert scene.turns == [("What?", "Ships.")]
    scene.run("/copy")
    assert copied == ["Ships."]
    for name, there in (("a.md", False), ("a.txt", False), ("a.json", True)):
        scene.run(f"/export {tmp_path / name}")
        assert ("At sea." in (tmp_path / name).read_text()) == there
    assert "At sea." in scene.run("/think")


def test_think_off_closes_a_thought_at_once_and_show_lets_it_think(scene):
    said = scene.run("/think off")
    assert "empty" in said and scene.chat.options.thinks is False
    scene.ask("What?", "Ships.")
    assert held(scene).endswith("<think>\n\n</think>\n\nShips.")
    scene.run("/think show")
    scene.ask("And?", THINKS)
    assert scene.turns[-1] == ("And?", "Ships.") and "</think>" not in held(scene).split("And?")[0]
    assert scene.chat.session.turns[-1].reasoning == "At sea."
    assert scene.code("/think loud") == "usage"


def test_the_way_of_a_template_with_a_switch_or_without_thoughts(chat_folder, home):
    assert "switch" in Scene(chat_folder("byte-level", "hybrid")).run("/think off")
    named = Scene(chat_folder("byte-level", "named"))
    assert "processed again" in named.run("/think off")
    assert "processed again" not in named.run("/think hide")
    plain = Scene(chat_folder("byte-level", "chatml"))
    assert "no thoughts" in plain.run("/think hide")
    assert "dropped from history" in Scene(chat_folder("byte-level", "hybrid")).run(
        "/show template"
    )


def test_saved_chats_keep_thoughts_and_drop_them_from_history_again(scene, folder):
    scene.ask("One?", THINKS)
    scene.run("/save mine")
    scene.ask("Two?", THINKS)
    scene.run("/save copy")
    scene.ask("Three?", THINKS)
    scene.context.writer.close()
    assert [turn["reasoning"] for turn in chatlog.find("copy").turns] == ["At sea."] * 3
    for name, turns in (("mine", 2), ("copy", 3)):
        other = Scene(folder)
        other.run(f"/load {name}")
        assert [t.reasoning for t in other.chat.session.turns] == ["At sea."] * turns
        assert held(other).count("At sea.") == 1, "the last one's, until the next question"
        other.ask("Next?", THINKS)
        other.context.writer.close()
        if turns == 3:
            scene.ask("Next?", THINKS)
            assert held(other) == held(scene)


def test_a_thought_without_an_answer_says_so(scene):
    scene.run("/set max_tokens 3")
    scene.ask("What?", THINKS)
    assert scene.turns == [("What?", "")] and scene.chat.last.finish_reason == "length"
    scene.run("/set max_tokens 300")
    scene.script(THINKS[3:])
    scene.run("/more")
    assert scene.turns == [("What?", "Ships.")] and scene.chat.last.reasoning == "At sea."


@pytest.fixture
def start(tmp_path, folder):
    """A chat in a terminal whose answers are written down."""
    running = []

    def run(*answers, until="Ask about", arguments=(), step=0.05):
        (tmp_path / "story.txt").write_text("The keeper counted ships. " * 10)
        given = ["-m", str(folder), str(tmp_path / "story.txt"), *arguments]
        script = {"answers": [f"{text}<|im_end|>" for text in answers], "token_seconds": step}
        running.append(Terminal(given, tmp_path, script=script))
        running[-1].wait(until)
        return running[-1]

    yield run
    for terminal in running:
        terminal.child.close(force=True)


def test_in_a_terminal_a_thought_is_dim_and_folds_to_a_line(start):
    terminal = start("Hm. I look at the sea.\n</think>\n\nShips it is.")
    terminal.send("What?\r")
    terminal.wait("thinking · ")
    terminal.wait("I look")
    text = terminal.wait(DONE)
    after = text.split("What?")[1]
    assert "I look" not in after and "Ships it is." in after
    assert after.count("thought for") == 1 and after.index("thought for") < after.index("Ships")


def test_in_a_terminal_a_hidden_thought_is_not_drawn(start):
    terminal = start("Hm. I look at the sea.\n</think>\n\nShips.", arguments=("--think", "hide"))
    seen = []
    original = terminal.screen.draw
    terminal.screen.draw = lambda data: (seen.append(data), original(data))[1]
    terminal.send("What?\r")
    terminal.wait("thinking · ")
    text = terminal.wait(DONE)
    assert "thought for" in text and "look" not in "".join(seen)
