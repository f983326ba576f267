"""Real models: the GGUF file, and the same weights in a folder that transformers reads too."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch

from kvchat.engine.text.tokenizer import Tokenizer
from tests.engine.tiny import load_oracle
from tests.support.models import MODELS, as_folder, gguf_file
from tests.support.program import ROOT

TEXT = (ROOT / "samples" / "skerry.txt").read_text(encoding="utf-8")
PARITY = ("smollm2-135m", "qwen2.5-coder-0.5b")


@dataclass
class Real:
    """One model in both forms; `folder` is made where there is none."""

    file: Path
    space: Path

    @cached_property
    def folder(self) -> Path:
        there = MODELS / self.file.stem
        if (there / "model.safetensors").exists():
            return there
        return as_folder(self.file, self.space)

    @cached_property
    def oracle(self):
        """transformers' model over the folder, f32."""
        return load_oracle(self.folder)

    @cached_property
    def ids(self) -> list[int]:
        """400 tokens of prose."""
        return Tokenizer.load(self.file).encode([(TEXT, False)])[:400]


@pytest.fixture(autouse=True)
def threads():
    """These tensors are large enough to share."""
    torch.set_num_threads(min(os.cpu_count() or 1, 4))
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=PARITY)
def real(request, tmp_path_factory):
    """Each model that is here."""
    file = gguf_file(request.param)
    if file is None:
        pytest.skip(f"no {request.param}.gguf in {MODELS}")
    return Real(file, tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="session")
def smollm2():
    """The file that `make model` brings."""
    file = gguf_file(PARITY[0])
    if file is None:
        pytest.skip(f"no {PARITY[0]}.gguf in {MODELS}: make model")
    return file
