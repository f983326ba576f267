"""A cached document is mapped, not prefilled; what cannot be used or saved is told."""

import json
import os
import shutil
import threading
from datetime import date

import pytest
from typer.testing import CliRunner

from kvchat.chat import chatlog
from kvchat.chat.open import open_chat
from kvchat.chat.prepare import prepare
from kvchat.chat.resume import open_or_resume
from kvchat.cli import oneshot
from kvchat.cli.json_events import Reporter
from kvchat.cli.main import app
from kvchat.engine.events import drain
from kvchat.engine.store import atomic, identity
from kvchat.engine.store.tensors import Mapped, write
from kvchat.engine.text import chat_template
from kvchat.prompt_cache import documents as readings
from kvchat.prompt_cache import files as library
from kvchat.prompt_cache import parts as files_of
from tests.support.scene import Place, Scene

METHOD = "adakv:budget=50%,window=8"


@pytest.fixture
def place(chat_folder, tmp_path):
    return Place(chat_folder("byte-level", "chatml"), tmp_path, method=METHOD)


def entries(chat):
    return [t for s in chat.session.cache.segments() for t in s.tensors().values()]


def test_the_second_start_maps_what_the_first_has_read(place):
    first = place.opened()
    assert len(place.files()) == 1
    second = place.opened()
    assert first.restored is None and second.restored.read_seconds > 0
    assert all((a == b).all() for a, b in zip(entries(first), entries(second), strict=True))
    assert second.session.document == first.session.document and len(place.files()) == 1
    answers = [list(chat.session.ask("Who?", max_tokens=6))[-1].answer for chat in (first, second)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "change",
    [
        {"method": "adakv:budget=40%,window=8"},
        {"system": "Be brief.", "tail_budget": 64},
        {"dtype": "bf16"},
    ],
)
def test_another_reading_is_another_file(place, change):
    place.opened()
    assert place.opened(**change).restored is None and len(place.files()) == 2


def test_a_system_prompt_is_no_part_of_what_is_read(place):
    before = place.opened()
    chat = place.opened(system="Be brief.")
    assert chat.restored and len(place.files()) == 1
    assert chat.session.document == before.session.document
    turn = chat.session.dialogue.tokenizer.decode(chat.session.dialogue.first("Who?"))
    assert turn.count("Be brief.") == 1


def test_policies(place, monkeypatch):
    assert place.opened(prompt_cache="off").restored is None and not place.root.exists()
    place.opened(prompt_cache="readonly")
    assert not place.files()
    place.opened()
    assert (
        place.opened(prompt_cache="readonly").restored
        and not place.opened(prompt_cache="off").restored
    )
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert place.opened(files=[], system="Be brief.").restored is None
    assert len(place.files()) == 1, "a chat without a document saves nothing"


def test_a_damaged_reading_is_told_read_again_and_replaced(place):
    place.opened()
    (path,) = place.files()
    data = bytearray(path.read_bytes())
    data[-200] ^= 4
    path.write_bytes(data)
    place.shown()
    assert place.opened().restored is None
    assert any(path.name in text for text in place.screen.warnings)
    assert place.opened().restored


def test_an_older_format_is_told_and_replaced(place):
    place.opened()
    (path,) = place.files()
    mapped = Mapped(path)
    copies = {name: tensor.clone() for name, tensor in mapped.tensors.items()}
    write(path, copies, mapped.header.metadata | {"format": "0"})
    assert place.opened().restored is None
    assert any("format 0" in text for text in place.screen.warnings)
    assert place.opened().restored


def test_changed_weights_are_told(place, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(place.folder, folder)
    place.folder = folder
    place.opened()
    os.utime(folder / "model.safetensors", ns=(1, 1))
    place.shown()
    assert place.opened().restored is None
    assert "weights" in place.shown()


def test_a_document_of_another_version_is_told(place, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(identity, "__version__", "0.0.1")
        place.opened()
    assert place.opened(method="adakv:budget=30%,window=8").restored is None
    assert "version" in place.shown()


def test_a_full_disk_is_told_once_and_the_chat_goes_on(place, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    chat = place.opened()
    text = " ".join(place.shown().split())
    assert text.count("No space left on device") == 1
    assert list(chat.session.ask("Who?", max_tokens=3))[-1].completion_tokens == 3
    assert os.listdir(place.root) == [] and not chat.cache.saves


def test_a_part_of_the_disk_stays_free(place, monkeypatch):
    monkeypatch.setattr(library, "LEAVE", 2**60)
    place.opened()
    assert "stay free" in " ".join(place.shown().split()) and not place.files()


def test_an_error_ends_a_save_and_a_clean_end_waits_for_it(place, monkeypatch):
    begun, go = threading.Event(), threading.Event()
    save = files_of.save

    def slow(*arguments):
        begun.set()
        go.wait(10)
        return save(*arguments)

    monkeypatch.setattr(files_of, "save", slow)
    for prompt_cache_dir, error, count in (
        (place.root / "a", True, 0),
        (place.root / "b", False, 1),
    ):
        begun.clear(), go.clear()
        chat = open_chat(
            prepare(place.options(prompt_cache_dir=str(prompt_cache_dir)), place.screen),
            place.screen,
        )
        assert begun.wait(10)
        threading.Timer(0.4, go.set).start()
        try:
            with chat.cache:
                if error:
                    raise SystemExit(143)
        except SystemExit:
            pass
        assert len(list(prompt_cache_dir.glob("*"))) == count
    assert "Ctrl-C" in place.shown()


def test_the_least_lately_used_go_first(place):
    sizes = []
    for number, budget in enumerate(("50%", "40%", "30%")):
        place.opened(method=f"adakv:budget={budget},window=8")
        new = library.entries(place.root)[0]
        os.utime(new.path, (1000 + number, 1000 + number))
        sizes.append(new.size)
    place.opened(method="adakv:budget=50%,window=8")  # used now
    gone = library.prune(place.root, sizes[0] + sizes[2])
    assert [entry.about["budget"] for entry in gone] == ["40%"]
    assert library.prune(place.root, 0, keep=[library.entries(place.root)[0].path])
    assert [entry.about["budget"] for entry in library.entries(place.root)] == ["50%"]


def test_files_of_others_are_neither_counted_nor_removed(place):
    """A folder may be anything: another program's weights and temporary files stay in it."""
    place.opened()
    (ours,) = place.files()
    other = b'{"w":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}'
    names = ("lora.safetensors", f"{'ab' * 16}.safetensors", ".draft.tmp", ".ab12-x.tmp")
    for name in names:
        path = place.root / name
        path.write_bytes(len(other).to_bytes(8, "little") + other + b"123456789")
        os.utime(path, (1, 1))
    os.mkfifo(place.root / f"{'cd' * 16}.safetensors")
    assert [entry.path for entry in library.entries(place.root)] == [ours]
    assert [entry.path for entry in library.prune(place.root, 0)] == [ours]
    assert all((place.root / name).exists() for name in names) and not ours.exists()


@pytest.mark.parametrize(
    "about",
    [{"parts": [1]}, {"documents": 5}, {"documents": [5]}, {"tokens": "many"}, {"created": 3}, [],
     {"parts": {"document": 1}}, {"read_seconds": "x"}, {"read_seconds": True}],
)  # fmt: skip
def test_one_file_with_a_mistyped_header_stops_no_other(place, about):
    place.opened()
    (ours,) = place.files()
    data = ours.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    noted = json.loads(table["__metadata__"]["about"])
    table["__metadata__"]["about"] = json.dumps(noted | about if about else about)
    head = json.dumps(table).encode()
    bad = place.root / f"{'ab' * 16}.safetensors"
    bad.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])
    assert [entry.path for entry in library.entries(place.root)] == [ours]
    assert place.opened(method="adakv:budget=30%,window=8").restored is None
    assert place.opened().restored


@pytest.fixture
def scene(chat_folder, tmp_path):
    """A chat whose readings are saved."""
    scene = Scene(chat_folder("byte-level", "chatml"), prompt_cache="on")
    scene.chat.cache = readings.PromptCache(
        scene.context.screen, scene.chat.session.engine, scene.chat.model, "on", tmp_path / "kv"
    )
    yield scene
    with scene.chat.cache:
        pass


def test_a_method_that_was_used_before_needs_no_reading(scene):
    scene.ask("Who?")
    position = scene.chat.session.cache.position
    for line in ("/method adakv:budget=60%,window=8", "/method streamingllm"):
        scene.run(line)
        assert scene.chat.restored is None
    scene.chat.cache.wait()
    scene.run("/method adakv:budget=60%,window=8")
    assert scene.chat.restored
    assert scene.chat.session.cache.position == position and len(scene.chat.session.turns) == 1
    scene.run("/select -")
    assert scene.chat.restored is None
    scene.ask("And?")
    other = Scene(scene.chat.model.path)
    drain(other.chat.session.recompress(scene.chat.method))
    kept = [s.lengths for s in other.chat.session.cache.segments()]
    assert kept == [s.lengths for s in scene.chat.session.cache.segments()]


def test_one_shot_says_so_in_its_json(place, capsys):
    place.opened()
    options = place.options(prompts=["Why?"], max_tokens=2, jsonl=True)
    place.screen.observer = Reporter().see
    assert oneshot.run(prepare(options, place.screen), place.screen) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (prefill,) = [event for event in events if event["event"] == "prefill"]
    last, tokens = events[-1], events[-1]["usage"]["document_tokens"]
    assert prefill["cache"] == prefill["processed"] == prefill["total"] == tokens
    assert last["usage"]["cached_tokens"] == tokens and last["timings"]["prefill_ms"] == 0


def test_the_cache_commands(place, monkeypatch):
    monkeypatch.setenv("KVCHAT_PROMPT_CACHE_DIR", str(place.root))
    monkeypatch.setenv("COLUMNS", "120")

    def said(*arguments):
        done = CliRunner().invoke(app, ["cache", *arguments])
        return done.exit_code, done.output

    assert said("list")[1].startswith("0 cached documents")
    place.opened()
    (path,) = place.files()
    (place.root / "foreign.safetensors").write_text("no")
    code, listed = said("list")
    assert code == 0 and "story.txt" in listed and "adakv:window=8 50%" in listed
    assert "1 cached document," in listed
    assert "read_seconds" in said("show", path.stem[:6])[1]
    assert said("rm", "nothing")[0] and said("prune", "--max-size", "x")[0]
    assert said("rm", "story.txt")[1].startswith("removed") and not path.exists()
    place.opened()
    assert "removed 1" in said("prune", "--max-size", "0")[1]
    assert [file.name for file in place.files()] == ["foreign.safetensors"]


DATED = """{{- bos_token }}{%- for m in messages %}{%- if m.role == 'system' %}
{{- '[' + strftime_now('%d %b %Y') + '] ' + m.content }}{%- else %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def test_a_template_with_a_date_finds_its_document_the_next_day(place, tmp_path, monkeypatch):
    template = tmp_path / "date.jinja"
    template.write_text(DATED)
    first = place.opened(chat_template=str(template), keep_full="disk")
    assert first.restored is None and first.book.dialogue.day == date.today()

    class Tomorrow(date):
        @classmethod
        def today(cls):
            return date.fromordinal(date.today().toordinal() + 1)

    monkeypatch.setattr(chat_template, "date", Tomorrow)
    second = place.opened(chat_template=str(template), keep_full="disk")
    assert second.restored and second.session.document == first.session.document
    assert second.book.dialogue.day == second.session.dialogue.day == date.today()
    assert str(date.today()) in place.run("/show settings"), "of the day on which it was read"
    third = place.opened(chat_template=str(template), prompt_cache="off")
    assert third.session.document != first.session.document, "without a cache it is the day's"
    assert len(place.files()) == 2, "the document and its full copy, once"


def test_a_chat_that_is_resumed_without_a_cache_keeps_its_day(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    template, today = tmp_path / "date.jinja", date.today()
    template.write_text(DATED)
    asked = {"chat_template": str(template), "prompt_cache": "off", "save": True}

    def opened(**options):
        prepared = prepare(place.options(**asked, **options), place.screen)
        return open_or_resume(prepared, place.screen)

    first, writer = opened()
    list(first.session.ask("Who?", max_tokens=3))
    writer.turn(first)
    writer.close()
    assert chatlog.saved_day(chatlog.find(None)) == today

    class Tomorrow(date):
        @classmethod
        def today(cls):
            return date.fromordinal(today.toordinal() + 1)

    monkeypatch.setattr(chat_template, "date", Tomorrow)
    second, writer = opened(last=True)
    assert second.book.dialogue.day == today and second.session.document == first.session.document
    assert second.session.turns == first.session.turns
    writer.close()
    assert opened()[0].book.dialogue.day == Tomorrow.today(), "a new chat has its own"
