"""`--keep-full` and `--select`: questions choose for themselves, and changes read nothing."""

import json
from copy import copy

import pytest

from kvchat.chat import prefill as reading
from kvchat.chat.open import open_chat
from kvchat.chat.prepare import prepare
from kvchat.chat.work import Dropped
from kvchat.cli import oneshot
from kvchat.errors import KvchatError
from kvchat.machine.plan import Plan, require_copy
from kvchat.prompt_cache import files as library
from kvchat.settings.options import INSTRUCTION, Options
from tests.support.errors import refused
from tests.support.scene import Place, shown, string_screen

ADAKV = "adakv:budget=50%,window=8"


@pytest.fixture
def place(chat_folder, tmp_path):
    return Place(chat_folder("byte-level", "chatml"), tmp_path, method=ADAKV)


def kept(chat):
    return [(s.lengths, s.position.tolist()) for s in chat.session.cache.segments()]


def beside(place):
    """Another chat over the same place."""
    other = copy(place)
    other.screen = string_screen()
    return other


@pytest.mark.parametrize(
    ("options", "copy", "by_question"),
    [
        ({}, "off", False),
        ({"select": "document"}, "off", False),
        ({"select": "question"}, "host", True),
        ({"keep_full": "disk"}, "disk", True),
        ({"keep_full": "host", "select": "document"}, "host", False),
        ({"keep_full": "off", "select": "question"}, "off", False),
    ],
)
def test_what_the_flags_mean(options, copy, by_question):
    found = Options(**options)
    assert (found.full_copy, found.by_question) == (copy, by_question)


@pytest.mark.parametrize("where", ["host", "disk"])
def test_budget_and_method_change_without_a_prefill(place, where, monkeypatch):
    chat = place.opened(keep_full=where)
    assert f"65.00 KiB on {where}" in shown(place.screen)
    engine, begun = chat.session.engine, []
    prefill = engine.prefill
    monkeypatch.setattr(engine, "prefill", lambda *given: begun.append(1) or prefill(*given))
    for line, spec in (
        ("/budget 80%", "adakv:budget=80%,window=8"),
        ("/method snapkv:budget=30%,window=8", "snapkv:budget=30%,window=8"),
    ):
        place.run(line)
        assert not begun
        assert kept(chat) == kept(Place.opened(beside(place), method=spec, prompt_cache="off"))
    place.run("/method h2o:budget=30%")
    assert begun == [1], "its column sums were not observed"
    place.run("/method h2o:budget=20%")
    place.run("/select Who?")
    assert begun == [1] and chat.in_view == "Who?"
    place.run("/select -")
    assert begun == [1, 1]


def test_what_is_on_disk_serves_every_later_start(place):
    place.opened(keep_full="disk")
    assert len(list(place.root.iterdir())) == 2  # all entries, and those that were kept
    chat = place.opened(keep_full="disk")
    assert chat.restored and chat.session.cache.archived().disk > 0
    other = place.opened(keep_full="disk", method="snapkv:budget=30%,window=8")
    assert other.restored
    fresh = Place.opened(beside(place), method="snapkv:budget=30%,window=8", prompt_cache="off")
    assert kept(other) == kept(fresh)
    assert place.opened(keep_full="disk", method="h2o:budget=30%").restored is None
    assert place.opened(keep_full="host").restored is None, "memory is filled by reading"


def test_json_and_memory_tell_device_host_and_disk_apart(place, capsys):
    found = []
    for where in ("off", "host", "disk"):
        options = place.options(keep_full=where, prompts=["Who?"], max_tokens=3, json=True)
        assert oneshot.run(prepare(options, place.screen), place.screen) == 0
        found.append(json.loads(capsys.readouterr().out)["kv"])
    off, host, disk = found
    assert [each["keep_full"] for each in found] == ["off", "host", "disk"]
    assert [each["select"] for each in found] == ["document", "question", "question"]
    assert off["bytes"] == host["bytes"] == disk["bytes"]
    assert off["host_bytes"] == off["disk_bytes"] == host["disk_bytes"] == disk["host_bytes"] == 0
    entries = len(place.opened().session.document) * place.chat.session.engine.kv_bytes(1)
    assert host["host_bytes"] == disk["disk_bytes"] > entries
    place.opened(keep_full="disk")
    assert "disk, mapped" in place.run("/memory")
    assert place.chat.session.by_question


def test_a_copy_that_does_not_fit_is_refused_with_a_way_out():
    plan = Plan(weights=10, kv_full=100, kv_kept=5, dense_layer=5, hidden=5, workspace=5, tail=5)
    require_copy(plan, plan.prefill + 100, beside=True)
    require_copy(plan, 100, beside=False)
    for free, beside in ((plan.prefill + 99, True), (99, False)):
        with pytest.raises(KvchatError, match="full copy") as caught:
            require_copy(plan, free, beside)
        assert caught.value.exit_code == 6 and "--keep-full disk" in caught.value.tries


def test_what_makes_no_sense_is_said(place):
    with refused("usage", "--prompt-cache"):
        place.opened(keep_full="disk", prompt_cache="off")
    place.opened(keep_full="host", method="full")
    assert place.screen.warnings
    place.opened(keep_full="host", method="streamingllm")
    assert len(place.screen.warnings) > 1


def test_a_full_disk_ends_the_copy_and_not_the_reading(place, monkeypatch):
    monkeypatch.setattr(library, "LEAVE", 2**60)
    chat = place.opened(keep_full="disk")
    assert any(str(place.root) in text for text in place.screen.warnings)
    assert list(chat.session.ask("Who?", max_tokens=2))[-1].completion_tokens == 2


def test_prompts_that_are_known_choose_at_the_one_reading(place):
    """Without a copy: all of `-p` are in view while the document is read, and are part of what a
    saved reading is."""
    asked = ["What is the harbour?", "Who keeps the light?"]
    chat = place.opened(select="question", prompts=asked)
    assert chat.session.cache.layers[0].archive is None
    by_questions = kept(chat)
    assert by_questions != kept(place.opened(prompts=asked)), "by the document's end"
    assert place.opened(select="question", prompts=asked[:1]).restored is None
    again = place.opened(select="question", prompts=asked)
    assert again.restored is not None
    assert kept(again) == by_questions
    assert again.in_view == "What is the harbour? / Who keeps the light?"


def test_an_instruction_can_stand_for_the_questions(place):
    """Known before anything is asked, in a chat too, and no copy is kept."""
    chat = place.opened(select="instruction")
    assert chat.in_view == INSTRUCTION
    assert chat.session.cache.layers[0].archive is None
    assert kept(chat) != kept(place.opened())
    assert place.opened(select="instruction").restored is not None


def test_a_chat_needs_a_copy_to_choose_by_questions(place):
    with refused("usage", "--keep-full"):
        place.opened(select="question", keep_full="off")
    assert place.opened(select="question").cache.full_copy == "host"


def test_a_comparison_takes_the_other_cache_from_the_copy(place, monkeypatch):
    chat = place.opened(keep_full="host", select="document", max_tokens=3)
    before = kept(chat)
    monkeypatch.setattr(chat.session.engine, "prefill", None)  # nothing is read
    text = place.run("/compare snapkv:budget=30%,window=8 What did he count?")
    assert "full copy" in text and "adakv 50%" in text
    assert "snapkv 30%" in text and kept(chat) == before and not chat.session.turns
    full = place.run("/compare full What did he count?")
    assert "full copy" in full and "full 100%" in full


def test_a_document_that_is_dropped_leaves_the_system_text(place, monkeypatch):
    def dropped(*_):
        raise Dropped

    monkeypatch.setattr(reading, "restore", dropped)
    chat = open_chat(
        prepare(place.options(system="Be brief."), place.screen), place.screen, interactive=True
    )
    assert "document dropped" in place.shown() and not chat.book.files
    text = chat.session.dialogue.tokenizer.decode(chat.session.document)
    assert chat.book.system == "Be brief." and "Be brief." in text and "ships" not in text
