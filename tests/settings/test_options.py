"""Options about the model's text, documents, memory and output: each does what its help says."""

import json
import os
import re
import shutil
import stat
import sys

import pytest

from kvchat.documents import read
from kvchat.documents.document_ids import compose
from kvchat.engine.budget import Budget
from kvchat.engine.methods.specs import parse_spec
from kvchat.hub.find import Model
from kvchat.hub.offer import with_text
from kvchat.hub.tokenizer import load_tokenizer
from kvchat.machine import resources as machine
from kvchat.settings import config, text_files
from kvchat.settings.options import Options
from kvchat.terminal import log, screen
from kvchat.terminal.text import fitted
from kvchat.terminal.toolbar import State, toolbar
from tests.support.errors import refused
from tests.support.forked import kvchat
from tests.support.program import DEMO
from tests.support.scene import Scene, shown, string_screen

QUESTION = "What is the home of Mara Voss?"


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("The mill stands by the river. " * 10)
    return str(path)


def test_another_tokenizer_and_template(chat_folder, tmp_path):
    folder, other = chat_folder("byte-level", "chatml"), chat_folder("byte-level", "user-only")
    template = tmp_path / "template.jinja"
    template.write_text((other / "chat_template.jinja").read_text())
    model = Model("tiny", tmp_path / "no tokenizer here")
    options = Options(tokenizer=str(folder), chat_template=str(template))
    chosen = with_text(model, options)
    assert chosen.text_path == folder and load_tokenizer(chosen).hf.chat_template
    leads = {}
    for given in (None, str(template), ""):
        tokenizer = load_tokenizer(with_text(Model("tiny", folder), Options(chat_template=given)))
        book = compose(tokenizer, [], "Be brief.", 512)
        leads[given] = book.dialogue.form
    assert leads[None].is_template and not leads[""].is_template
    assert leads[None].lead != leads[str(template)].lead
    with refused("model", "nowhere"):
        with_text(model, Options(tokenizer="nowhere"))
    with refused("input", "nowhere"):
        load_tokenizer(with_text(Model("tiny", folder), Options(chat_template="nowhere")))


def test_a_missing_tokenizer_names_the_way_out(tmp_path, story):
    shutil.copytree(DEMO, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "recipe"))
    bare = str(tmp_path / "bare")
    done = kvchat("-m", bare, story, "-p", "Why?")
    assert done.returncode == 3 and b"--tokenizer FOLDER" in done.stderr
    done = kvchat("-m", bare, "--tokenizer", str(DEMO), story, "-p", "Why?", "-n", "2")
    assert done.returncode == 0, done.stderr


def test_no_template_is_no_surprise_where_it_was_asked_for(story):
    done = kvchat(story, "-p", "Why?", "-n", "2", "--chat-template", "none")
    assert done.returncode == 0 and b"--chat-template" not in done.stderr


def test_a_memory_limit_holds_in_the_plan(story, tmp_path, chat_folder):
    done = kvchat(story, "-p", "Why?", "--mem-limit", "64MiB")
    assert done.returncode == 6 and b"--mem-limit 64.00 MiB" in done.stderr
    assert kvchat(story, "-p", "Why?", "--mem-limit", "lots").returncode == 2
    scene = Scene(chat_folder("byte-level", "chatml"), mem_limit=machine.resident())
    with refused("memory"):
        scene.run("/budget 25%")


def test_a_log_has_notices_and_errors_but_no_questions(story, tmp_path):
    file = tmp_path / "log"
    asked = ("-p", "A secret?", "-n", "2", "--method", "full", "--keep-full", "host")
    done = kvchat(
        story, *asked, "--log-file", str(file)
    )  # a copy that has nothing to add: a notice
    assert done.returncode == 0
    assert kvchat("-f", "/no/such/file", "-p", "x", "--log-file", str(file)).returncode == 4
    text = file.read_text()
    assert "WARNING" in text and "ERROR /no/such/file" in text
    assert "tok/s" in text and "secret" not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with refused("input", "/no/such/folder/log"):
        log.open_log("/no/such/folder/log")


def test_a_log_that_was_there_is_made_private(tmp_path, monkeypatch):
    monkeypatch.setattr(log.LOG, "handlers", [])
    file = tmp_path / "log"
    file.write_text("earlier\n")
    file.chmod(0o644)
    log.open_log(str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.read_text() == "earlier\n"
    mode = os.stat(os.devnull).st_mode
    log.open_log(os.devnull)
    assert os.stat(os.devnull).st_mode == mode, "a device belongs to all"


def test_an_answer_at_once_is_the_same_answer(story):
    parts, whole = (
        [json.loads(line) for line in kvchat(story, "-p", QUESTION, "-n", "6", "--jsonl", *more)
         .stdout.splitlines()]
        for more in ((), ("--no-stream",))
    )  # fmt: skip
    texts = [[e["text"] for e in found if e["event"] == "token"] for found in (parts, whole)]
    assert len(texts[0]) > 1 and texts[1] == ["".join(texts[0])]


def test_offline_is_passed_on(story):
    done = kvchat("--offline", story, "-p", "Why?", "-n", "2")
    assert done.returncode == 0, done.stderr


TEXT = "\n\nThe keeper lives in a light-\nhouse and counts ships.\n\n"
PAGES = [f"MY BOOK{TEXT}{number}" for number in range(4)]


def test_clean_says_what_it_left_out(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\f".join(PAGES))
    plain, clean = read(str(path)), read(str(path), clean_pages=True)
    assert plain.text.count("MY BOOK") == 4 and "light-\nhouse" in plain.text
    assert "MY BOOK" not in clean.text and clean.text.count("lighthouse and counts ships.") == 4
    [notice] = clean.notices
    assert {"8", "40", "4"} <= set(re.findall(r"\d+", notice))
    assert [place.name for place in clean.places] == [place.name for place in plain.places]
    path.write_text("MY BOOK\n\nOne page.\n\n1")
    assert read(str(path), clean_pages=True).text.startswith("MY BOOK"), "a page alone repeats none"


def test_a_loader_of_one_s_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "kvchat").mkdir()
    program = "import sys; print(open(sys.argv[1]).read().upper()); sys.exit({})"
    good, bad = ([sys.executable, "-c", program.format(code), "{}"] for code in (0, 3))
    toml = tmp_path / "kvchat" / "config.toml"
    toml.write_text(f'[loaders]\n".odd" = {json.dumps(good)}\n".bad" = {json.dumps(bad)}\n')
    commands = config.load().loaders
    for name in ("a.odd", "b.bad"):
        (tmp_path / name).write_text("ships and $(stars)")
    found = read(str(tmp_path / "a.odd"), commands=commands)
    assert found.text.strip() == "SHIPS AND $(STARS)" and "python" in found.encoding
    with refused("input", "3"):
        read(str(tmp_path / "b.bad"), commands=commands)
    with refused("input", "no-such-program"):
        read(str(tmp_path / "a.odd"), commands={".odd": ["no-such-program", "{}"]})
    assert read(str(tmp_path / "b.bad"), loader="text", commands=commands).text.startswith("ships")
    for wrong in ('".odd" = "cat"', '".odd" = ["cat"]', 'odd = ["cat", "{}"]'):
        toml.write_text(f"[loaders]\n{wrong}\n")
        with refused("usage", "line 2"):
            config.load()


def test_the_end_of_a_long_reading_is_announced(monkeypatch):
    def work():
        yield from ()

    for notify, sent in (("off", ""), ("bell", "\a"), ("osc9", "\x1b]9;")):
        monkeypatch.setattr(screen.sys.stderr, "isatty", lambda: True, raising=False)
        shows = screen.Screen(notify=notify)
        silent = string_screen()
        shows.err, shows.live = silent.err, False
        shows.watch(work(), "reading")
        assert sent == "" or sent not in shown(silent), "a short one is not"
        monkeypatch.setattr(screen, "LONG", -1.0)
        shows.watch(work(), "reading")
        assert shown(silent).startswith(sent)
        monkeypatch.setattr(screen, "LONG", 10.0)


@pytest.mark.parametrize(
    ("spec", "given", "kept"),
    [("kvmerger@35", None, "35%"), ("kvmerger@50", None, "50%"), ("adakv", None, "25%"),
     ("kvmerger@35:budget=10%", None, "10%"), ("kvmerger@35", "20%", "20%")],
)  # fmt: skip
def test_the_plan_knows_a_preset_s_own_budget(spec, given, kept):
    assert str(parse_spec(spec, Budget.parse(given) if given else None).budget) == kept


def test_lines_leave_out_what_matters_least():
    parts = [("12 tokens", 1), ("first 0.1 s", 2), ("KV 1 MiB", 0), ("end of turn", 0)]
    assert fitted(parts, 60) == "12 tokens · first 0.1 s · KV 1 MiB · end of turn"
    assert fitted(parts, 40) == "12 tokens · KV 1 MiB · end of turn"
    assert fitted(parts, 30) == "KV 1 MiB · end of turn"
    assert fitted(parts, 5) == "KV 1 MiB · end of turn", "these two always"


def test_the_toolbar_tells_of_a_fallback_for_a_while(monkeypatch):
    shows = string_screen()
    shows.warn("out of memory: going on with chunks of 128 tokens", "chunk 128")
    assert shows.fallback == "chunk 128"
    monkeypatch.setattr(screen, "FRESH", 0.0)
    assert shows.fallback == ""


@pytest.mark.parametrize("width", [40, 60, 80, 130])
def test_the_toolbar_has_room_for_a_notice(width):
    state = State("demo", "adakv 25%", 500, 1000, 10**9, 4 * 10**9, 10**9, 10**10, notice="chunk 9")
    line = toolbar(state, width)
    assert len(line) <= width and "ctx" in line and "KV" in line
    assert "! chunk 9" in line


def test_a_system_text_alone_needs_no_budget():
    done = kvchat("-s", "Be brief.", "-p", "Why?", "-n", "2", "--method", "adakv:budget=2,window=8")
    assert done.returncode == 0, done.stderr


def test_marks_of_windows_editors_are_no_text(tmp_path, monkeypatch):
    """A byte-order mark before questions, system prompt, template and config.toml."""
    mark = "\ufeff"
    for name, text in (("prompts", "One?\n"), ("system", "Be brief."), ("template", "{{ x }}")):
        (tmp_path / name).write_text(mark + text)
    assert text_files.prompts_of(str(tmp_path / "prompts")) == ["One?"]
    assert text_files.system_prompt(Options(system_file=str(tmp_path / "system"))) == "Be brief."
    assert text_files.read(str(tmp_path / "template")) == "{{ x }}"
    (tmp_path / "kvchat").mkdir()
    (tmp_path / "kvchat" / "config.toml").write_text(f'{mark}[defaults]\nbudget = "10%"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config.load().defaults == {"budget": "10%"}
