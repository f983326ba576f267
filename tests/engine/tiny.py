"""Tiny random checkpoints in Hugging Face form, and the two models that are made of one: ours and
the oracle's."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvchat.engine import loading
from kvchat.engine.attention import backend
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.low_rank import Answers, Asks, Features
from kvchat.engine.decode.loop import compile_beside
from kvchat.engine.engine import Engine
from kvchat.engine.events import drain
from kvchat.engine.gates import Gate
from kvchat.engine.methods.simple import Full
from kvchat.engine.model.read import load_config
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.sizes import RANK

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
}
PADDING = {"pad_token_id": None}  # some families' own is beyond so small a vocabulary


def save_model(
    folder: Path,
    family: str = "llama",
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    seed: int = 0,
    **changes,
) -> Path:
    """A random checkpoint whose logits are far from flat; `changes` are config keys."""
    given = {**SHAPE, **PADDING, **changes}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **given))
    generator = torch.Generator().manual_seed(seed)
    middle = 0.0 if family.startswith("gemma") else 1.0  # of norms: Gemma's files have them minus 1
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(middle + 0.2 * noise if name.endswith("norm.weight") else 0.2 * noise)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def random_gate(engine: Engine, seed: int = 5) -> Gate:
    """Maps that foretell anything."""
    config, generator = engine.config, torch.Generator().manual_seed(seed)
    layers, heads = len(config.full_layers), config.num_kv_heads
    weight = 0.3 * torch.randn(layers, heads, config.hidden_size + 1, generator=generator)
    return Gate(weight, torch.rand(layers, heads, 20, generator=generator))


def random_features(layers: int, heads: int, group: int, dim: int, seed: int = 6) -> list[Features]:
    """Maps that make anything of queries and keys."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * shape[-2] ** -0.5

    return [
        Features(
            Asks(
                random(heads * group, dim, 12),
                random(heads * group, 12, RANK),
                random(1, heads * group)[0],
            ),
            Answers(random(heads, dim, 12), random(heads, 12, RANK), random(heads, RANK, RANK)),
        )
        for _ in range(layers)
    ]


def load_engine(
    folder: Path, dtype: str = "f32", chunk: int = 2048, weights: str = "auto"
) -> Engine:
    """Our engine over a checkpoint, on the CPU."""
    engine = drain(loading.load_engine(folder, load_config(folder), dtype, "cpu", weights))
    engine.chunk = chunk
    vars(engine)["gate"] = random_gate(engine)
    config = engine.config
    group = config.num_heads // config.num_kv_heads
    shape = len(config.full_layers), config.num_kv_heads, group, config.head_dim
    vars(engine)["features"] = random_features(*shape)
    compile_beside(engine.dtype).join()  # or it would work beside what a test measures
    return engine


def load_oracle(folder: Path, attention: str = "sdpa"):
    """The same checkpoint in transformers, fp32; `eager` attention can show its weights."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    ).eval()


@torch.inference_mode()
def oracle_logits(oracle, ids: list[int]) -> torch.Tensor:
    """Logits `[T, vocab]` of transformers for every position of `ids`."""
    return oracle(torch.tensor([ids])).logits[0]


def random_ids(count: int, vocab: int = SHAPE["vocab_size"], seed: int = 1) -> list[int]:
    """A random document."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab, (count,), generator=generator).tolist()


def read(engine: Engine, ids: list[int], method=None) -> tuple[KVCache, torch.Tensor]:
    """The cache that one method leaves of a document, and the last logits."""
    reading = drain(engine.prefill(ids, [Compression(method or Full())]))
    return reading.caches[0], reading.logits


def torch_backend():
    """The backend under test on any machine."""
    return backend("torch")
