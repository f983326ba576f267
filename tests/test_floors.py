"""The floors of the design: imports go downward only, and tables import nothing by being read."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import kvchat
from kvchat.engine.attention import BACKENDS
from kvchat.engine.cache import SEGMENTS
from kvchat.engine.methods import METHODS
from kvchat.engine.model import MODELS

ROOT = Path(kvchat.__file__).parent
# Longest prefix wins.
FLOORS = {
    "kvchat": 0,
    "kvchat.errors": 0,
    "kvchat.kernels": 0,
    "kvchat.engine.sizes": 0,
    "kvchat.engine.ops": 1,
    "kvchat.engine.lowbit": 1,
    "kvchat.engine.attention": 1,
    "kvchat.engine.cache": 2,
    "kvchat.engine.budget": 3,
    "kvchat.engine.methods": 3,
    "kvchat.engine.model": 4,
    "kvchat.engine.events": 5,
    "kvchat.engine.archiving": 5,
    "kvchat.engine.fold": 5,
    "kvchat.engine.observation": 5,
    "kvchat.engine.pooling": 5,
    "kvchat.engine.promise": 5,
    "kvchat.engine.replay": 5,
    "kvchat.engine.telling": 5,
    "kvchat.engine.prefill": 5,
    "kvchat.engine.sampler": 5,
    "kvchat.engine.sampling": 5,
    "kvchat.engine.graph": 5,
    "kvchat.engine.writing": 5,
    "kvchat.engine.selection": 5,
    "kvchat.engine.tokenizer": 5,
    "kvchat.engine.dialogue": 5,
    "kvchat.engine.answer": 5,
    "kvchat.engine.engine": 5,
    "kvchat.engine.turn": 5,
    "kvchat.engine.conversation": 5,
    "kvchat.engine.reader": 5,
    "kvchat.engine.session": 5,
    "kvchat.engine.store": 5,
    "kvchat.app": 6,
    "kvchat.__main__": 6,
}
PACKAGES = ("kvchat", "kvchat.engine")  # bare packages: they name no floor for what is inside


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(p): ast.parse(p.read_text("utf-8")) for p in sorted(ROOT.rglob("*.py"))}


def floor(module: str) -> int | None:
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


def test_only_the_app_prints_and_exits():
    noisy = [
        (m, node.lineno)
        for m, tree in TREES.items()
        if not m.startswith(("kvchat.app", "kvchat.__main__"))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "exit", "sys.exit")
    ]
    assert not noisy


@pytest.mark.parametrize(
    "module",
    [
        "kvchat.engine.methods",
        "kvchat.engine.model",
        "kvchat.engine.attention",
        "kvchat.engine.cache",
        "kvchat.engine.budget",
        "kvchat.engine.model.config",
        "kvchat.engine.model.bits",
    ],
)
def test_tables_and_configs_are_read_without_torch(module):
    code = f"import sys, {module}; print(*({{'torch', 'transformers'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("table", [METHODS, MODELS, BACKENDS, SEGMENTS])
def test_every_table_entry_resolves_to_a_class(table):
    assert table
    for entry in table.values():
        module, name = getattr(entry, "path", entry).split(":")
        assert isinstance(getattr(import_module(module), name), type)
