"""Fixtures that many tests share: tiny models and tokenizers, built once per run. No downloads."""

import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

# Triton looks when it is imported: kernels are interpreted, unless the run is for a card.
os.environ.setdefault("TRITON_INTERPRET", "1")
# OpenMP too: threads that wait for each other sleep, as in the program (`kvchat/__main__.py`).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Tensors here are tiny: threads would wait for each other longer than they work. And a child that
# is forked has none of its parent's: it would wait for them for ever.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from kvchat.engine import sizes
from tests.engine import texts, tiny
from tests.support.models import MODELS

torch.set_num_threads(1)
# A document that one test has read must be read by the next one too; `on` is asked for by name.
os.environ["KVCHAT_PROMPT_CACHE"] = "off"
# Documents of the tests are not the samples: without this each would look for a model that can read
# them. The tests of that choice take it away.
os.environ["KVCHAT_MODEL"] = "demo"
# Documents of the tests are short, and most are to be compressed: those of short ones say so.
sizes.SMALL = 0
# Chats that a test asks nothing about are not saved among those of whoever runs it.
_STATE = TemporaryDirectory(prefix="kvchat-state-")
os.environ["XDG_STATE_HOME"] = _STATE.name
# A run in the background of a shell ignores Ctrl-C, and so would every program that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Tests that need a card are skipped where there is none; so are those of real models."""
    if not MODELS.is_dir() or not any(MODELS.rglob("*.gguf")):
        for item in items:
            if item.get_closest_marker("model"):
                item.add_marker(pytest.mark.skip(reason=f"no GGUF files in {MODELS}"))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish(session):
    """Say at once that a run for a card has none, in place of every test."""
    only = session.items and all(item.get_closest_marker("gpu") for item in session.items)
    if only and not session.config.option.collectonly and not torch.cuda.is_available():
        pytest.exit(f"{len(session.items)} tests need a CUDA device and there is none here", 7)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """`checkpoint(**changes) -> Path` of a tiny random checkpoint; equal ones are built once."""
    built: dict[str, Path] = {}

    def build(**changes) -> Path:
        key = repr(sorted(changes.items(), key=lambda item: item[0]))
        if key not in built:
            built[key] = tiny.save_model(tmp_path_factory.mktemp("model"), **changes)
        return built[key]

    return build


@pytest.fixture(scope="session")
def engine(checkpoint):
    """A tiny Llama with two KV heads of two query heads each."""
    return tiny.load_engine(checkpoint())


@pytest.fixture(scope="session")
def oracle(checkpoint):
    """The same weights as `engine` in transformers."""
    return tiny.load_oracle(checkpoint())


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """`tokenizer_folder(kind, template) -> Path`; kinds and templates are those of `texts`."""
    built: dict[tuple[str, str | None], Path] = {}

    def build(kind: str, template: str | None = None) -> Path:
        if (kind, template) not in built:
            folder = tmp_path_factory.mktemp("tokenizer")
            texts.save_tokenizer(folder, kind, template)
            built[kind, template] = folder
        return built[kind, template]

    return build


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory):
    """`chat_folder(kind, template) -> Path` of a tiny model together with its tokenizer."""
    built: dict[tuple[str, str | None], Path] = {}

    def build(kind: str, template: str | None = None) -> Path:
        if (kind, template) not in built:
            folder = tmp_path_factory.mktemp("chat")
            size = texts.save_tokenizer(folder, kind, template)
            tiny.save_model(folder, vocab_size=size)
            built[kind, template] = folder
        return built[kind, template]

    return build
