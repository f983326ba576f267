"""What is really alive during prefill and while loading, counted from outside: storages through the
garbage collector, anonymous memory through the kernel. `memory()` is not asked."""

import gc
import json
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import save_file

from kvchat.engine.methods.build import parse_method
from kvchat.engine.model.decoder import empty_decoder
from kvchat.engine.model.read import load_config
from kvchat.engine.prefill.prefill import Compression
from tests.engine.tiny import SHAPE, load_engine, random_ids

HEADS, DIM, HIDDEN, LAYERS = 2, 16, SHAPE["hidden_size"], 6


def storages() -> dict[int, int]:
    """Bytes of every storage that a tensor in this process holds, by address."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # walking over everything touches deprecated modules
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
                storage = thing.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return found


@pytest.mark.parametrize("spec, share", [("adakv:budget=25%", 0.25), ("full", 1.0)])
@pytest.mark.parametrize("probe", [0, 12])
def test_one_layer_s_dense_entries_are_alive_at_a_time(checkpoint, request, spec, share, probe):
    """At every Progress: hidden states + one dense layer + what is kept; between layers not even
    the dense layer."""
    engine = load_engine(checkpoint(num_hidden_layers=LAYERS), chunk=250)
    tokens = 1000
    compression = Compression(parse_method(spec), probes=(0,) if probe else ())
    probes = [random_ids(probe)] if probe else []
    gc.collect()
    before = storages()
    gc.freeze()  # what was there before is not walked over again
    request.addfinalizer(gc.unfreeze)
    hidden = (tokens + probe) * HIDDEN * 4
    dense = 2 * HEADS * (tokens + probe) * DIM * 4
    per_layer = share * HEADS * tokens * (2 * DIM * 4 + 4) + 4 * (HEADS + 1) + 8 * HEADS
    # 32 observed queries of 4 heads with their lse, for the layer at hand and for the one before,
    # empty tails and the rotary table: small beside a dense layer, and independent of `tokens`
    preallocated = 2 * 32 * 4 * (DIM + 1) * 4 + LAYERS * 8 * HEADS + 1024
    assert preallocated < dense / 8 and per_layer * LAYERS < LAYERS * dense * 1.1
    done = 0
    for event in engine.prefill(random_ids(tokens), [compression], probes):
        alive = sum(size for place, size in storages().items() if place not in before)
        done += 1
        finished = event.done % tokens == 0  # this layer is compressed
        kept = per_layer * (event.layer + finished)
        assert alive <= hidden + kept + preallocated + (0 if finished else dense), event
        assert alive >= hidden + event.kv_bytes, "the counting sees what is there"
    assert done == 4 * LAYERS


SCRIPT = """
import sys
from pathlib import Path
from kvchat.engine.loading import load_engine
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.read import load_config

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

folder, dtype, weights = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
config = load_config(folder)
before = peak = anonymous()
for event in load_engine(folder, config, dtype, "cpu", weights, kernels="torch"):
    peak = max(peak, anonymous())
print(peak - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """120 MB of fp32 weights: `(folder, bytes, bytes of the largest tensor)`."""
    folder = tmp_path_factory.mktemp("large")
    raw = {
        **SHAPE, "model_type": "llama", "vocab_size": 6000, "hidden_size": 512,
        "intermediate_size": 1536, "num_hidden_layers": 8, "head_dim": 64, "dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw))
    model = empty_decoder(load_config(folder))
    tensors = {name: torch.full(p.shape, 0.5) for name, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors")
    sizes = [t.nbytes for t in tensors.values()]
    return folder, sum(sizes), max(sizes)


@pytest.mark.parametrize(
    "dtype, weights, share",
    [("bf16", "auto", 0.5), ("f32", "auto", 0.891), ("f32", "int8", 0.252), ("f32", "int4", 0.145)],
)
def test_loading_grows_by_the_weights_and_one_tensor_at_most(large, dtype, weights, share):
    """Of plain numbers that need no conversion the table that is looked up stays mapped to the
    file: it is not anonymous at all. What is stored in few bits is made from there, so plain
    numbers never stand beside it."""
    folder, total, largest = large
    command = [sys.executable, "-c", SCRIPT, str(folder), dtype, weights]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    growth = int(done.stdout.split()[-1])
    # an allocator's arena, the model's own objects and the end of a large page: nothing that grows
    # with the checkpoint
    preallocated = 10 * 2**20
    assert total > 100e6 and preallocated < total / 10
    assert growth <= share * total + largest + preallocated
    assert growth >= share * total - preallocated, "weights are in memory"
