"""What README.md, CONTRIBUTING.md and the guide say is so: recipes and commands are run as they
stand there."""

import re
import sys
from types import ModuleType

import pytest
import torch
from closeness import assert_close
from engine.tiny import FAMILIES, load_engine, load_oracle, oracle_logits, random_ids, read
from engine.tiny import save_model as save
from transformers import Qwen2Config, Qwen2ForCausalLM

from app.forked import kvchat
from app.program import DEMO, ROOT
from kvchat.engine import attention, methods, model
from kvchat.engine.attention.choice import Choice, choose
from kvchat.engine.engine import Engine

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture
def recipe(monkeypatch):
    """Follow the recipe of a heading: its file becomes a module, its entry goes into the table."""
    tables = [methods.METHODS, model.MODELS, attention.BACKENDS]
    before = [dict(table) for table in tables]

    def follow(heading: str) -> None:
        section = CONTRIBUTING.split(f"## {heading}\n")[1].split("\n## ")[0]
        file, entry = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        path = file.splitlines()[0].removeprefix("# ")
        name = path.removesuffix(".py").replace("/", ".")
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(file, path, "exec"), module.__dict__)
        exec(entry, {**vars(methods), **vars(model), **vars(attention)})

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
    assert refused.returncode == 2 and b"power=0.5 is below 1" in refused.stdout
    assert b"vnorm" in kvchat("methods").stdout


def test_the_recipe_of_a_family(recipe, tmp_path, monkeypatch):
    """Its logits are those of transformers."""
    recipe("A new model family")
    monkeypatch.setitem(FAMILIES, "qwen2", (Qwen2Config, Qwen2ForCausalLM))
    folder, ids = save(tmp_path, "qwen2"), random_ids(40)
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
