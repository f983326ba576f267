"""Where weights lie on a CPU: copied into large pages, or mapped where memory is short."""

import gc
from pathlib import Path

import pytest
import torch

from kvchat import ram
from kvchat.engine.events import drain
from kvchat.engine.weights import pages as large
from kvchat.engine.weights.pages import Pages, large_pages
from tests.engine.tiny import load_engine, random_ids, save_model
from tests.support.closeness import assert_close

pytestmark = pytest.mark.skipif(not large_pages(), reason="the system has no such pages")


def test_tensors_lie_apart_and_outlive_what_gave_them(monkeypatch):
    monkeypatch.setattr(large, "CHUNK", 4096)
    pages, drawn = Pages(), torch.Generator().manual_seed(0)
    kinds = (torch.float32, torch.bfloat16, torch.int8)
    made = []
    for number in range(60):
        rows, columns = (int(torch.randint(1, 60, (1,), generator=drawn)) for _ in range(2))
        tensor = pages.empty((rows, columns), kinds[number % 3])
        assert tensor.data_ptr() % large.LINE == 0 and tensor.is_contiguous()
        made.append(tensor.fill_(number))
    del pages
    gc.collect()
    assert all(bool((tensor == number).all()) for number, tensor in enumerate(made))


@pytest.mark.parametrize("weights", ["auto", "int8", "int4"])
def test_the_file_is_mapped_only_where_memory_is_short(tmp_path, monkeypatch, weights):
    """But for a table of which rows are looked up; and the same logits come either way."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 256, "head_dim": 32}
    sizes["tie_word_embeddings"] = True
    folder = save_model(tmp_path, **sizes)

    def mapped() -> bool:
        gc.collect()
        return str(folder) in Path("/proc/self/maps").read_text()

    def logits(engine):
        return drain(engine.extend(engine.empty_cache(), random_ids(20)))

    copied = load_engine(folder, weights=weights)
    assert not mapped()
    want = logits(copied)
    monkeypatch.setattr(ram, "free", lambda: 0)
    short = load_engine(folder, weights=weights)
    assert mapped()
    assert_close("logits", logits(short), want)
