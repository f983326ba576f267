"""Decoding and prefill speed on the CPU against transformers on the same weights, in the same run.

    python benchmarks/decode.py [--threads N] [--pairs 7] [--only NAME ...]

The 1B shape has random weights and a cache filled with random entries; the demo model is the
bundled one. A step is one token over a cache that is cut back after it.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from pairs import interleaved, report, save, summary
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from kvchat.engine.budget import Budget
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.engine import Engine
from kvchat.engine.events import drain
from kvchat.engine.loading import load_engine
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.simple import Full
from kvchat.engine.model.hugging_face import interpret
from kvchat.engine.model.read import load_config
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.weights.checkpoint import random_weights

DEMO = Path(__file__).parent.parent / "models" / "demo"
SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
}
CPU = torch.device("cpu")
Step = Callable[[], object]


def ours(weights: str, shape: dict = SHAPE, device: torch.device = CPU) -> Engine:
    """A shape with random weights, the same for every way of storing them."""
    config = interpret({**shape, "model_type": "llama", "dtype": "bfloat16"})
    return Engine(random_weights(config, torch.bfloat16, device, weights=weights))


def theirs(engine: Engine, shape: dict = SHAPE):
    """transformers over the very tensors of an engine."""
    config = LlamaConfig(**shape, attn_implementation="sdpa")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(engine.model.state_dict(), assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(engine.device)
    return model.eval()


def entries_of(engine: Engine, lengths: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random keys and values `[R, D]`."""
    generator = torch.Generator(engine.device).manual_seed(seed)
    shape = (sum(lengths), engine.config.head_dim)
    k, v = (
        torch.randn(shape, generator=generator, device=engine.device).to(engine.dtype)
        for _ in range(2)
    )
    return k, v


def cache_of(engine: Engine, tokens: int, share: float = 1.0) -> KVCache:
    """A cache of `tokens` tokens: all their entries, or a share that is uneven over the heads."""
    cache, heads = engine.empty_cache(), engine.config.num_kv_heads
    for number, layer in enumerate(cache.layers):
        lengths = [tokens] * heads
        if share < 1:
            uneven = torch.rand(heads, generator=torch.Generator().manual_seed(number)) + 0.2
            lengths = (uneven / uneven.sum() * tokens * heads * share).int().tolist()
        k, v = entries_of(engine, lengths, number)
        position = torch.cat([torch.arange(n, device=engine.device) for n in lengths])
        none = k.new_empty(heads, 0, k.shape[1])  # nothing stays in the tail
        layer.adopt(FlatSegment.of(k, v, lengths, position, (0, tokens)), none, none)
    cache.position = tokens
    return cache


def retrieving(engine: Engine, tokens: int, share: float) -> KVCache:
    """A cache that keeps the entries of `cache_of` in full and reads a share of them (PQCache)."""
    cache, heads = engine.empty_cache(), engine.config.num_kv_heads
    method = parse_method("pqcache", Budget(fraction=share))
    for number, layer in enumerate(cache.layers):
        k, v = (x.view(heads, tokens, -1) for x in entries_of(engine, [tokens] * heads, number))
        none = k.new_empty(0, heads, k.shape[2])
        given = Prefilled(
            k,
            v,
            queries=none,
            lse=none.new_empty(0, heads),
            seen=torch.empty(0, dtype=torch.long),
            scale=k.shape[2] ** -0.5,
            layer=number,
            num_layers=len(cache.layers),
        )
        segment = method.compress(given)
        after = segment.span[1]
        layer.adopt(segment, k[:, after:], v[:, after:])
    cache.position = tokens
    return cache


def dynamic_cache(engine: Engine, tokens: int) -> DynamicCache:
    """The entries of `cache_of` in full, as transformers keeps them."""
    cache, heads = DynamicCache(), engine.config.num_kv_heads
    for number in range(engine.config.num_layers):
        k, v = entries_of(engine, [tokens] * heads, number)
        cache.update(k.view(1, heads, tokens, -1), v.view(1, heads, tokens, -1), number)
    return cache


def our_step(engine: Engine, cache: KVCache) -> Step:
    """One token, and back."""

    def step() -> torch.Tensor:
        before = cache.position
        logits = drain(engine.extend(cache, [1]))
        int(logits.argmax())
        cache.truncate(before)
        return logits

    return step


def their_step(model, cache: DynamicCache) -> Step:
    """One token, and back."""

    @torch.inference_mode()
    def step() -> torch.Tensor:
        ids = torch.tensor([[1]])
        logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        int(logits.argmax())
        cache.crop(-1)
        return logits

    return step


def error(step: Step, oracle: Step) -> float:
    """Relative RMS of the difference in logits."""
    got, want = step().float(), oracle().float()
    return float((got - want).norm() / want.norm())


def low_bit(pairs: int) -> dict:
    """bf16, int8 and int4 weights, nothing cached but 64 entries."""
    engines = {weights: ours(weights) for weights in ("auto", "int8", "int4")}
    ways = {
        ("bf16" if weights == "auto" else weights): our_step(engine, cache_of(engine, 64))
        for weights, engine in engines.items()
    }
    return summary(interleaved(ways, pairs), "bf16")


def full(pairs: int) -> dict:
    """The whole cache at 8k entries."""
    engine = ours("auto")
    model = theirs(engine)
    step, oracle = (
        our_step(engine, cache_of(engine, 8192)),
        their_step(model, dynamic_cache(engine, 8192)),
    )
    print(f"    logits differ by {error(step, oracle):.4f} (relative RMS)")
    return summary(interleaved({"kvchat": step, "transformers": oracle}, pairs), "transformers")


def tenth(entries: int, pairs: int) -> dict:
    """A tenth of the entries kept, uneven over the heads, or read; against all of them in
    transformers."""
    engine = ours("auto")
    model = theirs(engine)
    ways = {
        "kvchat, 10 % kept": our_step(engine, cache_of(engine, entries, 0.1)),
        "kvchat, 10 % read (pqcache)": our_step(engine, retrieving(engine, entries, 0.1)),
        "kvchat, all": our_step(engine, cache_of(engine, entries)),
        "transformers, all": their_step(model, dynamic_cache(engine, entries)),
    }
    return summary(interleaved(ways, pairs), "transformers, all")


def few_and_few(pairs: int) -> dict:
    """Weights and cache small: int4 over a tenth of 32k entries, against bf16 over all of them."""
    plain, small = ours("auto"), ours("int4")
    ways = {
        "int4, 10 %": our_step(small, cache_of(small, 32768, 0.1)),
        "bf16, 10 %": our_step(plain, cache_of(plain, 32768, 0.1)),
        "bf16, all": our_step(plain, cache_of(plain, 32768)),
    }
    return summary(interleaved(ways, pairs), "bf16, all")


def demo(pairs: int) -> dict:
    """The demo model at 8k: a step, and a whole prefill."""
    config = load_config(DEMO)
    engine = drain(load_engine(DEMO, config, "auto", "cpu"))
    model = AutoModelForCausalLM.from_pretrained(DEMO, attn_implementation="sdpa").eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (8192,), generator=generator).tolist()

    def read() -> KVCache:
        return drain(engine.prefill(ids, [Compression(Full())])).caches[0]

    @torch.inference_mode()
    def read_there() -> DynamicCache:
        cache = DynamicCache()
        model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    step, oracle = our_step(engine, read()), their_step(model, read_there())
    print(f"    logits differ by {error(step, oracle):.6f} (relative RMS)")
    decoding = interleaved({"kvchat": step, "transformers": oracle}, 5 * pairs)
    prefill = interleaved({"kvchat": read, "transformers": read_there}, pairs)
    return {
        f"{what}, {name}": clocks
        for what, times in (("decoding", decoding), ("prefill", prefill))
        for name, clocks in summary(times, "transformers").items()
    }


CELLS = {
    "demo model at 8k": demo,
    "1B shape, weights": low_bit,
    "1B shape, 8k entries": full,
    "1B shape, 4k entries": partial(tenth, 4096),
    "1B shape, 32k entries": partial(tenth, 32768),
    "1B shape, 128k entries": partial(tenth, 131072),
    "1B shape, both": few_and_few,
}


def main() -> None:
    """Measure the cells and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=list(CELLS), default=list(CELLS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.only:
        print(f"{name}, {options.threads} threads", flush=True)
        found = CELLS[name](options.pairs)
        report(found)
        save(name, found)


if __name__ == "__main__":
    main()
