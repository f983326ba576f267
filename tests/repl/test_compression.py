"""Commands that change or show what is kept of the KV cache."""

import json
from types import SimpleNamespace

import pytest

from kvchat.chat import chatlog
from kvchat.cli.json_answer import report
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.specs import name_of
from kvchat.errors import KvchatError
from kvchat.repl import memory
from kvchat.repl.commands.compression import method_of
from kvchat.repl.repl import toolbar_of
from kvchat.settings.options import SAVED_CHAT
from tests.support.scene import STORY, Scene

PQ = "pqcache:budget=25%,dense_below=0,code_bits=4,sinks=3,block=8"  # short documents too


def test_method_and_budget_keep_the_turns(scene):
    scene.ask("What?")
    scene.run("/method snapkv:window=8")
    assert name_of(scene.chat.method) == "snapkv" and "budget=50%" in scene.run("/method")
    scene.run("/budget 25%")
    assert str(scene.chat.method.budget) == "25%" and "25%" in scene.run("/budget")
    scene.run("/method full")
    assert str(scene.chat.method.budget) == "100%"
    scene.run("/budget 25%")  # of what keeps everything: the default that keeps some
    assert name_of(scene.chat.method) in ("kvzip", "kvzap")
    assert str(scene.chat.method.budget) == "25%"
    scene.run("/method auto")
    assert name_of(scene.chat.method) == "full"
    assert scene.turns == [("What?", "Ships.")]


def test_a_new_method_keeps_bits_and_options(folder):
    """As `--kv-bits`, `-O` and `[methods.NAME]` say, unless the spec says otherwise."""
    usual = {"adakv": {"kernel": 5}, "snapkv": {"sinks": 2}}
    given = ["window=8", "floor=0.3"]
    scene = Scene(folder, method_options=given, kv_bits="4", method_defaults=usual)
    scene.chat.method = parse_method("adakv:budget=50%", None, scene.chat.options.method_pairs)
    scene.run("/method snapkv")
    assert scene.chat.method == parse_method("snapkv:budget=50%,window=8,sinks=2,bits=4")
    assert method_of(scene.chat, "adakv") == parse_method(
        "adakv:budget=50%,window=8,floor=0.3,kernel=5,bits=4"
    )
    assert method_of(scene.chat, "full").bits == 4
    assert method_of(scene.chat, PQ).bits == 16
    scene.run("/method snapkv:bits=16,window=16")
    assert method_of(scene.chat, "snapkv").window == 8 and scene.chat.method.bits == 16
    assert method_of(scene.chat, "adakv").bits == 16, "the present method's, not the start's"
    scene.run(f"/method {PQ}")
    assert method_of(scene.chat, "adakv").bits == 4
    object.__setattr__(scene.chat.options, "origins", {"method_options": SAVED_CHAT})
    assert method_of(scene.chat, "snapkv") == parse_method("snapkv:budget=25%,sinks=2")


def test_select_chooses_for_a_question(scene, home):
    before = scene.kept()
    scene.run("/select Where is the sea?")
    assert scene.kept() != before and scene.chat.in_view == "Where is the sea?"
    (home / "b.txt").write_text(STORY)
    for line in ("/budget 25%", "/system Be brief.", "/file b.txt"):
        scene.run(line)
        assert scene.chat.in_view == "Where is the sea?", line
    scene.ask("What?")
    assert chatlog.find(None).method["in_view"] == "Where is the sea?"
    scene.run("/select")
    assert scene.chat.in_view == "What?"
    scene.run("/select -")
    assert scene.chat.in_view == ""
    scene.run("/select")
    scene.run("/method knorm")
    assert scene.chat.in_view == ""
    with pytest.raises(KvchatError) as caught:
        scene.run("/select Why?")
    assert caught.value.tries[0] == "/method adakv"


def test_compare_answers_twice_and_changes_nothing(scene):
    scene.ask("What?", "Ships.")
    held, before, chat = scene.chat.session.memory(), scene.turns, scene.chat
    scene.script("Ships.")
    chat.session.engine.script *= 2
    text = scene.run("/compare")
    assert "adakv 50%" in text and "full 100%" in text and "number" not in text
    scene.script("Stars.")
    first = list(chat.session.engine.script)
    scene.script("Stays.")
    chat.session.engine.script = first + chat.session.engine.script
    assert "number 4, 'r' and 'y'" in scene.run("/compare snapkv:budget=20% And at night?")
    assert scene.turns == before and chat.session.memory() == held


def test_what_is_kept_is_told_from_what_is_attended_to(scene):
    """A chat over a cache that keeps every entry: what views, toolbar and JSON say of it."""
    assert "24.6 %" in scene.run(f"/method {PQ}")
    scene.ask("What?", "Ships, and stars above the sea, every night of the year.")
    chat = scene.chat
    assert chat.session.cache.layers[0].segments[0].steps > 5
    found = memory.breakdown(chat)
    assert found.index and found.read and 0 < found.captured <= 1
    assert "KV index" in scene.run("/memory") and found.read in scene.run("/budget")
    heads = scene.run("/show heads")
    assert "100.0%" in heads and found.read in heads
    assert "100%" in scene.run("/show coverage")
    assert "pqcache reads 25%" in toolbar_of(scene.context, SimpleNamespace(shows_memory=False))()
    kv = report(chat, "?", chat.last, [])["kv"]
    assert kv["kept_fraction"] == 1 and kv["read_fraction"] == pytest.approx(0.25, abs=0.01)
    assert 0 < kv["captured_mass"] <= 1 and json.dumps(kv)


def test_turns_are_removed_over_the_window_s_edge(scene):
    scene.run(f"/method {PQ}")
    session, segments = scene.chat.session, scene.chat.session.cache.layers[0].segments
    held = session.cache.position
    for number in range(4):
        scene.ask(f"And {number}? " * 5)
    moved = segments[0].late.length
    assert session.compacted == 0 and moved >= 8
    scene.run("/undo")
    assert len(session.turns) == 3 and segments[0].late.length < moved
    scene.run("/clear")
    assert session.cache.position == held and segments[0].late.length == 0
    scene.ask("What?")
    assert scene.turns == [("What?", "Ships.")]


@pytest.mark.parametrize("command", ["/method", "/compare"])
def test_a_chat_that_folds_takes_no_pqcache(scene, command):
    scene.ask("What?")
    scene.chat.session.tail_budget = 200
    assert scene.code(f"{command} {PQ}") == "usage"


@pytest.mark.parametrize("stored", ["", ",bits=8"])
def test_heads_tell_how_many_tokens_merged_entries_stand_for(scene, stored):
    scene.run(f"/method kvmerger:budget=40%,skip=0+0{stored}")
    chat = scene.chat
    tokens, sets = len(chat.session.document), chat.merge_sets()
    for layer, entries in zip(sets, chat.document_entries(), strict=True):
        assert [len(head) for head in layer] == entries, "a size for every entry"
        assert all(sum(head) == tokens for head in layer), "every token is in one set"
    sizes = [size for layer in sets for head in layer for size in head]
    merged, largest = sum(size > 1 for size in sizes), max(sizes)
    text = " ".join(scene.run("/show heads").split())
    assert f"{merged:,} of {len(sizes):,}" in text and f"{largest} at most" in text
    assert f"≤ {max(sets[1][0])}" in scene.run("/show heads 1")
