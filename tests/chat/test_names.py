"""Names of chats, and chats that cannot be written: nobody's turn is lost in silence."""

import os
import threading

import pytest

from kvchat.chat import chatlog
from kvchat.chat.chatlog_names import HeldName
from kvchat.chat.chatlog_writer import ChatLogWriter
from kvchat.chat.prepare import prepare
from kvchat.chat.resume import open_or_resume
from kvchat.cli import oneshot
from tests.support.errors import refused
from tests.support.scene import Place, Scene


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def place(chat_folder, tmp_path, state):
    usual = {"method": "full", "prompt_cache": "off", "save": True, "max_tokens": 3}
    return Place(chat_folder("byte-level", "chatml"), tmp_path, **usual)


def opened(place, **values):
    return open_or_resume(prepare(place.options(**values), place.screen), place.screen)


def test_two_new_chats_of_one_name_are_never_made(place):
    """The second is told, before and after the first has written its first turn."""
    prepared = prepare(place.options(session="twin"), place.screen)
    chat, writer = opened(place, session="twin")
    with refused("session", "twin"):
        open_or_resume(prepared, place.screen)
    list(chat.session.ask("Who?", max_tokens=2))
    writer.turn(chat)
    with refused("session", "twin"):
        open_or_resume(prepared, place.screen)
    writer.close()
    assert [saved.name for saved in chatlog.chats()] == ["twin"]
    again, writer = opened(place, session="twin")
    writer.close()
    assert len(again.session.turns) == 1
    assert len(os.listdir(chatlog.folder())) == 1, "nothing is left of the lock"


def test_a_chat_that_does_not_open_gives_its_name_back(place):
    for _ in range(2):
        with refused("input"):
            opened(place, session="twin", files=["/nowhere/book.txt"])
        with refused("usage"):
            opened(place, session="twin", ctx_size=2**30)
    opened(place, session="twin")[1].close()


def test_one_of_many_gets_a_name(state):
    held, lock, go = [], threading.Lock(), threading.Barrier(8)

    def take():
        go.wait()
        for _ in range(20):
            try:
                name = HeldName("one")
            except Exception:
                continue
            with lock:
                held.append(1)
                assert len(held) == 1
                held.pop()
            name.free()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(chatlog.folder()) == []


def test_a_named_chat_that_cannot_be_saved_is_refused_before_it_is_read(place, state):
    state.write_text("a file where a folder should be")
    with refused("session", "twin"):
        opened(place, session="twin", quiet=True)
    assert opened(place, session="twin", save=False)[1].path is None


@pytest.mark.parametrize("quiet", [True, False])
def test_an_answer_that_is_not_saved_ends_in_an_error(place, monkeypatch, capsys, quiet):
    """-q is no reason to lose it in silence; the answer is there all the same."""
    place.screen.quiet = quiet
    options = place.options(session="twin", prompts=["Who?", "And?"], quiet=quiet)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chatlog.os, "fsync", full)
    with refused("session", "2 answers", "No space left on device"):
        oneshot.run(prepare(options, place.screen), place.screen)
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert place.shown().count("No space left on device") == 1


def test_a_chat_that_may_not_be_written_is_named(place, monkeypatch):
    chat, writer = opened(place, session="mine")
    list(chat.session.ask("Who?", max_tokens=2))
    writer.turn(chat)
    writer.close()

    def read_only(path, flags, *_):
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(chatlog.os, "open", read_only)
        for way in (
            lambda: ChatLogWriter.of(place.screen, chatlog.find("mine")),
            lambda: chatlog.remove("mine"),
        ):
            with refused("session", str(writer.path), "Permission denied"):
                way()
    assert len(chatlog.find("mine").turns) == 1


@pytest.fixture
def scene(chat_folder, state):
    return Scene(chat_folder("byte-level", "chatml"))


def test_a_name_that_was_given_up_still_finds_its_chat(scene):
    scene.ask("One?", "First.")
    scene.run("/save first")
    assert "'first'" in scene.run("/rename second")
    scene.context.writer.close()
    path = scene.context.writer.path
    assert chatlog.find("first", former=True).path == path == chatlog.find("second").path
    assert chatlog.named("first") is None, "--session first begins a chat of that name"
    with refused("session", "first"):
        chatlog.remove("first")
    other = Scene(scene.chat.model.path)
    other.ask("Two?", "Second.")
    other.run("/rename first")
    assert chatlog.find("first", former=True).path == other.context.writer.path != path


def test_clear_leaves_the_saved_chat_as_it_is(scene):
    """What was asked for hours is not gone with one word."""
    scene.ask("One?", "First.")
    scene.run("/save night")
    scene.ask("Two?", "Second.")
    before = scene.context.writer.path
    assert "night" in scene.run("/clear")
    assert scene.turns == [] and len(chatlog.find("night").turns) == 2
    scene.ask("Three?", "Third.")
    assert scene.context.writer.path != before
    assert {len(chat.turns) for chat in chatlog.chats()} == {1, 2}
    scene.run("/clear")
    there = len(chatlog.chats())
    scene.run("/clear")
    assert len(chatlog.chats()) == there == 2, "nothing was asked since"
