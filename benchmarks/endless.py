"""A long text read as a conversation without end: how well the next token is foretold when a
cascade decides what stays, and when sinks and the newest entries do, in as many entries.

    python benchmarks/endless.py --texts FOLDER MODEL

FOLDER as for real_models.py. Writes docs/results/real-endless.json.
"""

import argparse
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from time import perf_counter

import torch
from real_models import STORE
from results import write
from torch import Tensor

from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.compaction import watch
from kvchat.engine.engine import Engine
from kvchat.engine.events import drain
from kvchat.engine.loading import load_engine
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.cascade import SINKS, Cascade
from kvchat.engine.methods.needs import Needs
from kvchat.engine.model.read import load_config
from kvchat.engine.prefill import walk
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.machine.resources import processor

TURN = 128  # tokens that come at a time
LEVELS = 4


@dataclass(frozen=True)
class Newest(Cascade):
    """StreamingLLM's choice: sinks and the newest entries, moved together."""

    @property
    def watches(self) -> Needs:
        return Needs()

    def extend(self, prefilled: Prefilled) -> FlatSegment:
        heads, entries = prefilled.shape
        room = (self.levels - 1) * self.size
        kept = torch.zeros(heads, entries, dtype=torch.bool)
        kept[:, :SINKS] = kept[:, max(0, entries - room) :] = True
        segment = prefilled.keep(kept)
        count = torch.ones(len(segment.k), dtype=torch.int32)
        return FlatSegment(**vars(segment) | {"count": count})


def losses(engine: Engine, ids: list[int], policy: Cascade) -> Tensor:
    """Of each token after the first turn, in nats."""
    cache, found = engine.empty_cache(), []
    watch(cache, policy, 0)
    for a in range(0, len(ids) - 1, TURN):
        part, goal = ids[a : a + TURN], torch.tensor(ids[a + 1 : a + TURN + 1])
        with torch.inference_mode():
            hidden = drain(walk.extend(engine.model, cache, part, engine.chunk))
            logits = engine.model.logits(hidden)[: len(goal)].float()
        if a:
            found.append(torch.nn.functional.cross_entropy(logits, goal, reduction="none"))
        if cache.position - cache.frozen > policy.size:
            engine.fold(cache, policy, 0, cache.position - policy.size)
    return torch.cat(found)


def main() -> None:
    """Measure and store."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("model", type=Path)
    options.add_argument("--texts", type=Path, required=True)
    options.add_argument("--tokens", type=int, default=6000)
    options.add_argument("--documents", type=int, default=3)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    engine = drain(load_engine(chosen.model, load_config(chosen.model), device="cpu"))
    tokenizer, rows = Tokenizer.load(chosen.model), []
    lines = (chosen.texts / "stories.jsonl").read_text("utf-8").splitlines()
    texts = (json.loads(line)["text"] for line in lines)
    coded = (tokenizer.encode([(text, False)])[: chosen.tokens + 1] for text in texts)
    long = (ids for ids in coded if len(ids) > chosen.tokens)
    for number, ids in enumerate(islice(long, chosen.documents)):
        for size in (128, 64):
            for policy in (Cascade(LEVELS, size), Newest(LEVELS, size)):
                begin = perf_counter()
                late = losses(engine, ids, policy)[len(ids) // 3 :]
                row = {"document": number, "policy": type(policy).__name__.lower()}
                row |= {"entries": LEVELS * size, "loss": float(late.mean())}
                rows.append(row | {"seconds": perf_counter() - begin})
                print(rows[-1], flush=True)
    means = {
        f"{policy} {entries}": mean(
            r["loss"] for r in rows if (r["policy"], r["entries"]) == (policy, entries)
        )
        for policy, entries in dict.fromkeys((r["policy"], r["entries"]) for r in rows)
    }
    about = {"model": chosen.model.name, "tokens": chosen.tokens, "machine": processor()}
    write(STORE / "real-endless.json", about | {"loss": means, "rows": rows})


if __name__ == "__main__":
    main()
