"""How well PQCache's codes find the rows that matter, on the demo model.

    python benchmarks/pqcache_quality.py samples/valley.txt --budgets 20%,10%,5%
    python benchmarks/pqcache_quality.py --seed 7 --documents 2 --budgets 10%

Reads documents (a file with its questions beside it in `.jsonl`, or made from seeds), answers the
questions greedily, and at every written token and layer compares the rows that codes choose with
the exact top k of the same budget: recall@k, and the attention within the middle that the choice,
the exact top k, the newest k and k random rows have. Also right answers with codes and with the
exact top k. Prints JSON.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from kvchat.engine.budget import Budget
from kvchat.engine.cache.pq import PQSegment
from kvchat.engine.events import drain
from kvchat.engine.loading import load_engine
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.simple import Full
from kvchat.engine.model.read import load_config
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.session import Session
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.eval.case import Draw
from kvchat.eval.measure import generate
from kvchat.eval.tasks import TASKS
from kvchat.hub.find import find_model

by_codes = PQSegment.choose


def exact_worth(segment: PQSegment, q: Tensor, scale: float) -> Tensor:
    """The mean attention over the middle, `[H, M]`, of the group's queries."""
    keys = segment.pool[:, segment.reads.sinks :, : q.shape[1]]
    keys = torch.cat((keys, segment.late.keys), dim=1)
    logits = torch.einsum("hgd,hnd->hgn", q.view(len(keys), -1, q.shape[1]), keys) * scale
    return torch.softmax(logits, dim=-1).mean(dim=1)


def by_keys(segment: PQSegment, q: Tensor, scale: float) -> Tensor:
    """In place of `PQSegment.choose`: the exact top k."""
    return exact_worth(segment, q, scale).topk(segment.reads.count, dim=1).indices.sort().values


class Watcher:
    """In place of `PQSegment.choose`: the choice by codes, compared with others, by layer."""

    def __init__(self, layers: int):
        self.layers, self.calls = layers, 0
        self.sums: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in range(layers)])
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, segment: PQSegment, q: Tensor, scale: float) -> Tensor:
        chosen = by_codes(segment, q, scale)
        worth, count = exact_worth(segment, q, scale), chosen.shape[1]
        best = worth.topk(count, dim=1)
        marks = torch.zeros_like(worth).scatter_(1, best.indices, 1.0)
        random = torch.rand(worth.shape, generator=self.generator).topk(count, dim=1).indices
        found = {
            "recall": marks.gather(1, chosen.long()).mean(),
            "mass": worth.gather(1, chosen.long()).sum(dim=1).mean(),
            "mass_exact": best.values.sum(dim=1).mean(),
            "mass_newest": worth[:, -count:].sum(dim=1).mean(),
            "mass_random": worth.gather(1, random).sum(dim=1).mean(),
        }
        for name, value in found.items():
            self.sums[name][self.calls % self.layers].append(float(value))
        self.calls += 1  # layers follow each other
        return chosen

    def means(self) -> dict[str, list[float]]:
        """Of each layer."""
        return {
            name: [round(sum(layer) / max(len(layer), 1), 3) for layer in layers]
            for name, layers in self.sums.items()
        }


def cases(given: argparse.Namespace) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Documents with `(question, answer)` pairs."""
    if given.document:
        path = Path(given.document)
        lines = path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
        asked = [(pair["question"], pair["answer"]) for pair in map(json.loads, lines)]
        yield path.read_text(encoding="utf-8"), asked
    else:
        for number in range(given.documents):
            case = TASKS["world"](Draw(given.seed * 1000 + number, given.tokens, given.questions))
            yield case.document, [(q.text, q.answer) for q in case.questions]


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("document", nargs="?")
    parser.add_argument("--budgets", default="20%,10%")
    parser.add_argument("--method", default="pqcache")
    parser.add_argument("--documents", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--questions", type=int, default=25)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = find_model("demo").path
    config = load_config(folder)
    engine = drain(load_engine(folder, config, "auto", "cpu"))
    session = Session(engine, Dialogue(Tokenizer.load(folder)))
    methods = {
        budget: parse_method(given.method, Budget.parse(budget))
        for budget in given.budgets.split(",")
    }
    right: dict[str, int] = defaultdict(int)
    watchers = {budget: Watcher(config.num_layers) for budget in methods}
    tokens, asked = [], 0
    for document, pairs in cases(given):
        ids = session.dialogue.document(document)
        tokens.append(len(ids))
        compressions = [Compression(method) for method in (Full(), *methods.values())]
        full, *caches = drain(session.read(ids, compressions)).caches
        asked += len(pairs)
        for question, answer in pairs:
            prompt = session.dialogue.first(question)

            def is_right(cache, prompt=prompt, answer=answer) -> bool:
                text = session.dialogue.tokenizer.decode(generate(session, cache, prompt))
                return text.strip() == answer

            right["full"] += is_right(full)
            for budget, cache in zip(methods, caches, strict=True):
                for name, choose in (("codes", watchers[budget]), ("exact top k", by_keys)):
                    PQSegment.choose = lambda s, q, scale, choose=choose: choose(s, q, scale)
                    right[f"{name} {budget}"] += is_right(cache)
    print(
        json.dumps(
            {
                "method": given.method,
                "tokens": tokens,
                "questions": asked,
                "right": right,
                "by_layer": {budget: watcher.means() for budget, watcher in watchers.items()},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
