"""What weights in few bits cost in logits: the demo model on its sample, the 1B shape with random
weights on random tokens; relative RMS and KL against the same model in f32 or bf16.

    python benchmarks/low_bit.py
"""

from collections.abc import Callable
from pathlib import Path

import torch
from decode import DEMO, SHAPE, ours
from pairs import keep

from kvchat.engine.engine import Engine
from kvchat.engine.events import drain
from kvchat.engine.loading import load_engine
from kvchat.engine.model.read import load_config
from kvchat.engine.text.tokenizer import Tokenizer

SAMPLE = Path(__file__).parent.parent / "samples" / "valley.txt"


def errors(make: Callable[[str], Engine], ids: list[int], base: str) -> dict[str, dict]:
    """By format: size, and how far the logits after each of `ids` are from those of `base`."""
    found, want = {}, None
    for weights in (base, *(w for w in ("bf16", "int8", "int4") if w != base)):
        engine = make(weights)
        logits = engine.score(engine.empty_cache(), ids).float()
        want = logits if want is None else want
        p, q = want.log_softmax(-1), logits.log_softmax(-1)
        found[weights] = {
            "bytes": engine.weights_bytes,
            "relative_rms": round(float((logits - want).norm() / want.norm()), 5),
            "kl": round(float((p.exp() * (p - q)).sum(-1).mean()), 6),
            "same_first_choice": round(float((p.argmax(-1) == q.argmax(-1)).float().mean()), 4),
        }
        print(f"    {weights:<6}{found[weights]}", flush=True)
    return found


def demo(weights: str) -> Engine:
    """The demo model."""
    return drain(load_engine(DEMO, load_config(DEMO), "auto", "cpu", weights))


def main() -> None:
    """Both models."""
    torch.set_num_threads(1)
    ids = Tokenizer.load(DEMO).hf.encode(SAMPLE.read_text(encoding="utf-8"))[:1024]
    keep("low-bit weights, demo model, 1,024 tokens of its sample", errors(demo, ids, "auto"))
    random = torch.randint(SHAPE["vocab_size"], (96,), generator=torch.Generator().manual_seed(0))
    keep("low-bit weights, 1B shape, random", errors(ours, random.tolist(), "bf16"))


if __name__ == "__main__":
    main()
