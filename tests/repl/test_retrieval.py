"""A chat over a cache that keeps every entry: what views, toolbar and JSON say of it."""

import json
from types import SimpleNamespace

import pytest

from kvchat.cli.json_answer import report
from kvchat.errors import KvchatError
from kvchat.repl.repl import toolbar_of
from tests.support.scene import Scene

SPEC = "pqcache:budget=25%,dense_below=0,code_bits=4,sinks=3,block=8"  # short documents too


@pytest.fixture
def scene(chat_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return Scene(chat_folder("byte-level", "chatml"))


def test_every_view_tells_what_is_kept_from_what_is_read(scene):
    said = " ".join(scene.run(f"/method {SPEC}").split())
    assert "pqcache kept every entry" in said and "a written token reads 24.6 %" in said
    scene.ask("What?", "Ships, and stars above the sea, every night of the year.")
    chat = scene.chat
    assert chat.session.cache.layers[0].segments[0].steps > 5
    memory = scene.run("/memory")
    assert "codes and codebooks" in memory and "KV index" in memory
    assert "of the document · " in memory and "of the attention, by codes" in memory
    assert "keeps 100 % of entries, of bytes all of it · a written token reads" in " ".join(
        scene.run("/budget").split()
    )
    assert "mean" in (heads := scene.run("/heads")) and "100.0%" in heads
    assert "100%" in scene.run("/coverage")
    assert "pqcache reads 25%" in toolbar_of(scene.context, SimpleNamespace(shows_memory=False))()
    kv = report(chat, chat.last, [])["kv"]
    assert kv["kept_fraction"] == 1 and kv["read_fraction"] == pytest.approx(0.25, abs=0.01)
    assert 0 < kv["captured_mass"] <= 1 and json.dumps(kv)


def test_turns_are_taken_back_over_the_window_s_edge(scene):
    scene.run(f"/method {SPEC}")
    held = scene.chat.session.cache.position
    for number in range(4):
        scene.ask(f"And {number}? " * 5)
    session = scene.chat.session
    assert session.folded == 0
    moved = session.cache.layers[0].segments[0].late.length
    assert moved >= 8
    scene.run("/undo")
    assert len(session.turns) == 3 and session.cache.layers[0].segments[0].late.length < moved
    scene.run("/clear")
    assert session.cache.position == held
    assert session.cache.layers[0].segments[0].late.length == 0
    scene.ask("What?")
    assert scene.chat.session.turns[-1].answer == "Ships."


def test_a_chat_that_folds_takes_no_pqcache(scene):
    scene.chat.session.tail_budget = 200
    with pytest.raises(KvchatError, match="pqcache keeps every entry"):
        scene.run(f"/method {SPEC}")
    scene.ask("What?")
    with pytest.raises(KvchatError, match="pqcache keeps every entry"):
        scene.run(f"/compare {SPEC}")
