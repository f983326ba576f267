"""What README.md, CONTRIBUTING.md and the guide say is so: recipes and commands are run as they
stand there."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import pytest
import torch
import typer

from kvchat import documents
from kvchat.cli import main as cli
from kvchat.engine import attention, methods, model
from kvchat.engine.attention.choice import Choice, choose
from kvchat.engine.engine import Engine
from kvchat.repl import commands as of_the_chat
from kvchat.settings.options import OPTIONS
from tests.engine.tiny import load_engine, load_oracle, oracle_logits, random_ids, read
from tests.engine.tiny import save_model as save
from tests.support import options_table, program
from tests.support.closeness import assert_close
from tests.support.forked import kvchat
from tests.support.hub import serving
from tests.support.program import DEMO, ROOT
from tests.support.terminal import DONE, PROMPT, Terminal

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()
FOLDER = [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture
def recipe(monkeypatch):
    """Follow the recipe of a heading: its file becomes a module, its entry goes into the table."""
    rooms = [methods, model, attention, documents, of_the_chat]
    tables = [methods.METHODS, model.MODELS, attention.BACKENDS, documents.FORMATS]
    tables.append(of_the_chat.COMMANDS)
    before = [dict(table) for table in tables]

    def follow(heading: str) -> None:
        section = CONTRIBUTING.split(f"## {heading}\n")[1].split("\n## ")[0]
        file, entry = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        path = file.splitlines()[0].removeprefix("# ")
        name = path.removesuffix(".py").replace("/", ".")
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(file, path, "exec"), module.__dict__)
        exec(entry, {name: value for room in rooms for name, value in vars(room).items()})

    yield follow
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


def test_the_recipe_of_a_method(recipe, tmp_path):
    """The program knows it: it compresses, it has options, it is listed."""
    recipe("A new method")
    document = tmp_path / "note.txt"
    document.write_text("The boat of Ada Ferry is Curlew. " * 30)
    told = ("-m", str(DEMO), "-f", str(document), "-p", "What is the boat of Ada Ferry?", "--json")
    done = kvchat(*told, "--method", "vnorm:power=1", "--budget", "50%")
    assert done.returncode == 0, done.stderr
    assert b'"vnorm"' in done.stdout and b'"power": 1' in done.stdout
    refused = kvchat(*told, "--method", "vnorm:power=0.5")
    assert refused.returncode == 2 and b"power=0.5" in refused.stdout
    assert b"vnorm" in kvchat("methods").stdout


def test_the_recipe_of_a_family(recipe, tmp_path):
    """Its logits are those of transformers."""
    recipe("A new model family")
    folder, ids = save(tmp_path, "seed_oss"), random_ids(40)
    _, logits = read(load_engine(folder), ids)
    assert_close("logits", logits, oracle_logits(load_oracle(folder), ids)[-1], 1e-5)


def test_the_recipe_of_a_backend(recipe, tmp_path):
    """A reading by it is the reading by torch."""
    recipe("A new attention backend")
    chosen = choose("plain", torch.device("cpu"))
    assert isinstance(chosen, Choice) and chosen.name == "plain"
    loaded, ids = load_engine(save(tmp_path)), random_ids(40)
    _, want = read(loaded, ids)
    _, got = read(Engine(loaded.model, "plain"), ids)
    assert_close("logits", got, want, 1e-5)


@pytest.mark.parametrize("ending", ["ipynb", "bin"])
def test_the_recipe_of_a_document(recipe, tmp_path, ending):
    """It is known by its name and by its first bytes."""
    recipe("A new kind of document")
    notebook = tmp_path / f"study.{ending}"
    cells = [{"source": ["# Fähre\n", "It leaves."]}, {"source": "at = 7", "outputs": ["7"]}]
    rest = {"nbformat": 4}
    whole = {"cells": cells} | rest if ending == "bin" else rest | {"cells": cells}
    notebook.write_text(json.dumps(whole))
    found = documents.read(str(notebook))
    assert (found.text, found.encoding) == ("# Fähre\nIt leaves.\n\nat = 7", "notebook")


def test_the_recipe_of_a_command(recipe, home):
    """It answers in a chat, and `/help` has it."""
    recipe("A new command of the chat")
    terminal = Terminal(["book.txt"], home, **surroundings(home))
    try:
        terminal.wait(PROMPT)
        terminal.send("/help words\r")
        terminal.wait("by the spaces")
        terminal.send("What is the boat of Thea Mallory?\r")
        terminal.wait(DONE)
        terminal.send("/words\r")
        terminal.wait(r"(?m)^\d+ words")
        terminal.send("\x04")
        assert terminal.close() == 0, terminal.text()
    finally:
        terminal.child.close(force=True)


@dataclass(frozen=True)
class Command:
    """A line of a code block, as a shell would take it."""

    file: str
    words: tuple[str, ...]
    piped: str = ""  # the file that is piped in

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.words)}"


def commands(file: str) -> Iterator[Command]:
    """Commands in the indented and fenced code blocks of a document."""
    text = (ROOT / file).read_text()
    blocks = [b for kind, b in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL) if kind == "sh"]
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    blocks += re.findall(r"(?m)(?:^    .*\n)+", text)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        piped = ""
        if words[:1] == ["cat"] and words[2:3] == ["|"]:
            piped, words = words[1], words[3:]
        words = words[: words.index("&&")] if "&&" in words else words
        if words and words[0] in ("kvchat", "make", "pip", "python"):
            yield Command(file, tuple(words), piped)


DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/guide.md", "docs/eval.md")
COMMANDS = list(dict.fromkeys(c for file in DOCUMENTS for c in commands(file)))
SMALL = {  # what takes minutes as it stands is asked for less
    "bench": ("-p", "64", "-n", "4", "-d", "64", "-r", "1"),
    "eval": ("--questions", "2", "--per-document", "2"),
}
SHORTER = {"4096": "600", "4k,8k": "400"}  # lengths
PULLED = "mistralai/Mistral-7B-Instruct-v0.3"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which `DIR`, `book.txt`, `mistral-7b` and the samples exist; chats are kept."""
    folder = tmp_path_factory.mktemp("reader")
    for name, target in (("DIR", DEMO), ("samples", ROOT / "samples"), ("models", ROOT / "models")):
        (folder / name).symlink_to(target)
    text = (ROOT / "samples" / "valley.txt").read_text()[:3000]
    (folder / "book.txt").write_text(text)
    (folder / "niah_single_2").mkdir()
    line = {"input": f"{text}\nWhich number?", "outputs": ["7421"], "answer_prefix": " It is"}
    (folder / "niah_single_2" / "validation.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "mine").mkdir()
    for number in range(3):
        (folder / "mine" / f"{number}.txt").write_text(text[number * 300 :][:900])
    config = folder / "config" / "kvchat"
    config.mkdir(parents=True)
    (config / "config.toml").write_text(f'[models.mistral-7b]\npath = "{DEMO}"\n')
    return folder


@pytest.fixture
def home(place, monkeypatch):
    """There, with everything that kvchat writes kept there too."""
    monkeypatch.chdir(place)
    for name, value in surroundings(place).items():
        monkeypatch.setenv(name, value)
    return place


def surroundings(place) -> dict[str, str]:
    folders = {"XDG_STATE_HOME": "state", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache",
               "XDG_DATA_HOME": "data"}  # fmt: skip
    return {name: str(place / folder) for name, folder in folders.items()} | {
        "HF_HOME": str(place / "hf"), "KVCHAT_PROMPT_CACHE": "on", "HF_HUB_DISABLE_TELEMETRY": "1"
    }  # fmt: skip


def test_there_are_commands():
    assert {"kvchat", "make"} <= {c.words[0] for c in COMMANDS}
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] != "kvchat"], ids=str)
def test_commands_of_the_project(command):
    """Targets exist and what they run exists; extras exist; scripts say what they take."""
    first, *rest = command.words
    if first == "pip":
        extra = re.fullmatch(r"kvchat\[(\w+)\]", rest[-1])
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert rest[0] == "install" and extra and extra[1] in project["optional-dependencies"]
        return
    asked = {"make": ["make", "--dry-run", *rest], "python": [sys.executable, rest[0], "--help"]}
    run = asked[first]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for script in re.findall(r"\S+\.py", done.stdout if first == "make" else ""):
        assert (ROOT / script).is_file(), script


# what needs the download is run by the test of the download
OURS = [
    c for c in COMMANDS if c.words[0] == "kvchat" and ("pull" in c.words or PULLED not in c.words)
]


@pytest.mark.parametrize("command", OURS, ids=str)
def test_commands_of_kvchat(command, home, monkeypatch):
    """Each ends well: at once, or when the person leaves the chat."""
    words = command.words[1:]
    if PULLED in words and "pull" in words:
        return _pulled(words, home)
    if words[0] == "serve":
        return _served(words, monkeypatch)
    if words[0] == "eval":
        words = tuple(SHORTER.get(word, word) for word in words)
    words = (*words, *SMALL.get(words[0], ()))
    stdin = (home / command.piped).read_bytes() if command.piped else None
    if "--continue" in words:
        _talked(("book.txt",), home)
    if _talks(words):
        return _talked(words, home)
    done = kvchat(*words, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    assert done.stdout


def _served(words: tuple[str, ...], monkeypatch) -> None:
    """Its options are taken; tests/serve start it."""
    begun = []
    monkeypatch.setattr("kvchat.serve.run.run", lambda *given: begun.append(given) or 0)
    with typer.main.get_command(cli.app).make_context("kvchat", [*words]) as made:
        assert made.command.invoke(made) == 0
    [(_, options, _)] = begun
    assert list(options.files) == ["book.txt"]


def _talks(words: tuple[str, ...]) -> bool:
    """Whether a command line opens a chat."""
    beside = {"plan", "methods", "bench", "eval", "models", "doctor", "config", "cache"}
    beside |= {"sessions", "completion", "demo", "calibrate"}
    return words[:1] == () or (words[0] not in beside and not {"-p", "--prompt-file"} & {*words})


def _talked(words: tuple[str, ...], home) -> None:
    terminal = Terminal(list(words), home, **surroundings(home))
    try:
        terminal.wait(r"Ask about|ask anything")
        terminal.send("What is the boat of Thea Mallory?\r\x04")
        assert terminal.close() == 0, terminal.text()
        assert "tok/s · first" in terminal.text()
    finally:
        terminal.child.close(force=True)


def _pulled(words: tuple[str, ...], home) -> None:
    """A hub of our own serves the demo model; what was pulled is then read with."""
    asked = next(c for c in COMMANDS if PULLED in c.words and "pull" not in c.words)
    with serving(DEMO) as hub:
        there = surroundings(home) | {"HF_ENDPOINT": hub.address}
        got = program.kvchat(*_ours(words), "-y", **there)
        assert got.returncode == 0, got.stderr
    done = program.kvchat(*_ours(asked.words[1:]), "-p", "Who?", **there)
    assert done.returncode == 0, done.stderr


def _ours(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("org/tiny" if word == PULLED else word for word in words)


def test_the_python_of_the_guide(home, capsys):
    """The Python API, as it stands there."""
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.strip()


def test_the_table_of_options():
    """It is what the declarations say: `python -m tests.support.options_table` writes it anew."""
    _, inside, _ = options_table.parts()
    assert inside.splitlines() == options_table.table().splitlines()
    for option in OPTIONS.values():
        assert f"`{option.flags[-1]}" in inside, option.flags
        assert not option.table or f"`{option.variable}`" in inside, option.variable


def test_every_command_of_the_chat_is_in_the_guide():
    (section,) = re.findall(r"(?s)\n## In the chat\n(.*?)\n## ", GUIDE)
    told = set(re.findall(r"/([a-z]+)", section))
    assert set(of_the_chat.COMMANDS) <= told
    assert not told & set(of_the_chat.MOVED)


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", *FOLDER])
def test_links_lead_somewhere(file):
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / file).read_text()):
        assert (ROOT / file).parent.joinpath(target).exists(), target


def test_what_fits_on_a_card():
    """The README's tokens are those of the plan."""
    rows = re.findall(r"(?m)^\| (\d+) GB \| (\w+), ([\d.]+) GiB \|(.*)\|$", README)
    assert len(rows) == 4
    for size, weights, gigabytes, cells in rows:
        told = ("--fit", f"{size}GiB", "--weights", weights, "--device", "cuda", "--json")
        specs = ("full", "kvzip:budget=25%", "kvzip:budget=10%")
        chosen = [word for spec in specs for word in ("--method", spec)]
        plan = json.loads(kvchat("plan", "--dummy", "llama-3.1-8b", *told, *chosen).stdout)
        tokens = [f"{each['tokens']:,}" for each in plan["plans"]]
        assert tokens == [cell.strip() for cell in cells.split("|")]
        assert f"{plan['plans'][0]['weights'] / 2**30:.1f}" == gigabytes


def test_figures_of_the_methods():
    """The README's table of methods has the figures of docs/results.md."""
    stored = json.loads((ROOT / "docs" / "results" / "real-qwen2.5-coder-0.5b.json").read_text())
    found = {each["experiment"]["name"]: each["table"] for each in stored["experiments"]}
    columns = [("facts", "25%"), ("facts", "10%"), ("facts-seen", "10%")]
    more = {"facts": ("facts-rest", "facts-systems"), "facts-seen": ("facts-systems-seen",)}
    rest = {  # of fewer documents, or of others
        (experiment, row["cell"], row["right"]["mean"])
        for experiment, others in more.items()
        for other in others
        for row in found.get(other, ())
        if row["cell"] != "full" and row["documents"] >= 3
    }
    rows = re.findall(r"(?m)^\| (`.*?)\|.*?\|(.*?)\|(.*?)\|(.*?)\|$", README)
    told = [name for names, *_ in rows for name in re.findall(r"`(.*?)`", names)]
    assert sorted(told) == sorted(methods.METHODS)
    for names, *cells in rows:
        for name in re.findall(r"`(.*?)`", names):
            for (experiment, budget), cell in zip(columns, cells, strict=True):
                label = name if name == "full" else f"{name} {budget}"
                rights = [row["right"]["mean"] for row in found[experiment] if row["cell"] == label]
                rights += [right for *where, right in rest if where == [experiment, label]]
                want = f"{100 * rights[0]:.0f}" if rights else "–"
                assert cell.strip() == want, f"{name}, {experiment}, {budget}"


UNMEASURED = {
    "real_models_page": "{right qwen2.5-coder-0.5b facts kvzip 77%}",
    "results_page": "{right unseen-4096 kvzip 77%}",
}


@pytest.mark.parametrize(
    ("made", "page"), [("real_models_page", "results.md"), ("results_page", "results-demo.md")]
)
def test_the_pages_of_results_are_what_their_figures_make(monkeypatch, made, page):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = import_module(made)
    assert module.page(module.PROSE.read_text()) == (ROOT / "docs" / page).read_text()
    with pytest.raises(KeyError, match="not measured"):
        module.page(UNMEASURED[made])
