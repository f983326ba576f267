"""The floors of the design: imports go downward only, and tables import nothing by being read."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import kvchat
from kvchat.engine.attention import BACKENDS, installed
from kvchat.engine.cache import SEGMENTS
from kvchat.engine.methods import METHODS
from kvchat.engine.model import MODELS
from kvchat.engine.model.families import Family

ROOT = Path(kvchat.__file__).parent
# Longest prefix wins. A room stands on its floor; inside `engine` the sub-rooms have floors too.
FLOORS = {
    "kvchat": 0,
    "kvchat.errors": 0,
    "kvchat.files": 0,
    "kvchat.ram": 0,
    "kvchat.kernels": 1,
    "kvchat.engine.sizes": 0,
    "kvchat.engine.ops": 2.0,
    "kvchat.engine.peers": 2.0,
    "kvchat.engine.gguf": 2.0,
    "kvchat.engine.attention": 2.1,
    "kvchat.engine.cache": 2.2,
    "kvchat.engine.budget": 2.3,
    "kvchat.engine.methods": 2.3,
    "kvchat.engine.weights": 2.4,
    "kvchat.engine.model": 2.4,
    "kvchat.engine": 2.5,
    "kvchat.terminal": 3,
    "kvchat.plots": 3,
    "kvchat.process": 3,
    "kvchat.settings": 4,
    "kvchat.machine": 4,
    "kvchat.documents": 4,
    "kvchat.hub": 4,
    "kvchat.prompt_cache": 5,
    "kvchat.chat": 6,
    "kvchat.bench": 7,
    "kvchat.eval": 7,
    "kvchat.calibrate": 7,
    "kvchat.repl": 8,
    "kvchat.serve": 8,
    "kvchat.cli": 9,
    "kvchat.__main__": 9,
}
PACKAGES = ("kvchat",)  # names no floor for what is inside


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(p): ast.parse(p.read_text("utf-8")) for p in sorted(ROOT.rglob("*.py"))}


def floor(module: str) -> float | None:
    names = [n for n in FLOORS if module == n or (module.startswith(n + ".") and n not in PACKAGES)]
    return FLOORS[max(names, key=len)] if names else None


def imported(module: str) -> set[str]:
    """Modules of kvchat that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in TREES else str(node.module))
    return {name for name in found if name in TREES}


EDGES = [(a, b) for a in TREES for b in imported(a)]


def places(table: dict) -> set[str]:
    """Modules that the entries of a table name."""
    return {getattr(entry, "path", entry).split(":")[0] for entry in table.values()}


def test_every_file_stands_on_a_floor():
    homeless = [m for m in TREES if floor(m) is None and m not in PACKAGES]
    assert not homeless, f"add to FLOORS: {homeless}"
    assert len(EDGES) > 50, "the walk finds the imports"


def test_no_import_goes_upward():
    up = [(a, b) for a, b in EDGES if a not in PACKAGES and (floor(b) or 0) > (floor(a) or 0)]
    assert not up


@pytest.mark.parametrize(
    "table", [METHODS, MODELS, BACKENDS], ids=["methods", "model families", "backends"]
)
def test_entries_of_a_table_do_not_know_each_other(table):
    members = places(table)
    assert not [(a, b) for a, b in EDGES if a in members and b in members and a != b]


def test_models_and_methods_do_not_know_each_other():
    sides = ("kvchat.engine.model", "kvchat.engine.methods")
    pairs = [(a, b) for a, b in EDGES if a.startswith(sides) and b.startswith(sides)]
    assert pairs, "both import their own parts"
    assert not [(a, b) for a, b in pairs if a.split(".")[2] != b.split(".")[2]]


def test_imports_make_no_circle():
    left = {m: imported(m) - {m} for m in TREES}
    while free := [m for m, needs in left.items() if not needs & left.keys()]:
        for m in free:
            del left[m]
    assert not left, f"a circle among {sorted(left)}"


def test_nothing_hides_behind_type_checking():
    names = [
        m
        for m, tree in TREES.items()
        for node in ast.walk(tree)
        if getattr(node, "id", getattr(node, "attr", "")) == "TYPE_CHECKING"
    ]
    assert not names


def test_the_engine_neither_prints_nor_exits():
    noisy = [
        (m, node.lineno)
        for m, tree in TREES.items()
        if m.startswith(("kvchat.kernels", "kvchat.engine"))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "exit", "sys.exit")
    ]
    assert not noisy


def test_tables_and_configs_are_read_without_torch():
    names = ["methods", "model", "attention", "cache", "budget", "model.config", "weights.bits"]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module("kvchat.engine." + name)
    print(name, *({{"torch", "transformers"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == names


@pytest.mark.parametrize(
    "table", [METHODS, MODELS, {name: BACKENDS[name] for name in installed()}, SEGMENTS]
)
def test_every_table_entry_resolves(table):
    assert table
    for entry in table.values():
        module, name = getattr(entry, "path", entry).split(":")
        assert isinstance(getattr(import_module(module), name), Family if table is MODELS else type)
