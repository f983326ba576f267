"""Exact answers of an exported checkpoint with the full cache, on documents never trained on.

python models/demo/recipe/evaluate.py [FOLDER] [--lengths 512 1024 ...] [--first N] [--json FILE]

The table of the model card has --first 0; checkpoints are compared on other documents.
"""

import argparse
import json
import time
from pathlib import Path
from random import Random

import torch
from transformers import DynamicCache, LlamaForCausalLM

from kvchat.eval import world

LENGTHS = [512, 1024, 2048, 4096, 8192, 16384]


@torch.no_grad()
def read(model: LlamaForCausalLM, ids: list[int]) -> DynamicCache:
    """The cache after a system message of these ids."""
    cache = DynamicCache(config=model.config)
    prompt = torch.tensor([[world.BOS, world.SYSTEM, *ids, world.END]])
    model(prompt, past_key_values=cache, logits_to_keep=1)
    return cache


@torch.no_grad()
def is_exact(
    model: LlamaForCausalLM, cache: DynamicCache, asked: list[int], answer: list[int]
) -> bool:
    """Whether greedy decoding gives the answer and ends there; the cache is left as it was.

    One forced pass tells: greedy text equals the answer if and only if every token of the answer
    is the most likely one after those before it.
    """
    length = cache.get_seq_length()
    expected = [*answer, world.END]
    prompt = [world.USER, *asked, world.ASSISTANT]
    ids = torch.tensor([prompt + answer])
    logits = model(ids, past_key_values=cache, logits_to_keep=len(expected)).logits[0]
    cache.crop(length - cache.get_seq_length())  # negative: tokens to drop
    return logits.argmax(-1).tolist() == expected


def measure(
    model: LlamaForCausalLM,
    length: int,
    answerable: int,
    unanswerable: int,
    first: int = 0,
    per_document: int = 25,
) -> dict:
    """Right and asked, answerable and unanswerable apart, on documents of at most `length`.

    The documents of a length are numbered; `first` is the number of the first one taken.
    """
    right, asked = [0, 0], [0, 0]
    wanted = [answerable, unanswerable]
    started, index = time.time(), 0
    while asked[0] < wanted[0] or asked[1] < wanted[1]:
        seed = world.HELD_OUT + length * 10**6 + first + index
        index += 1
        doc = world.document(seed, length)
        cache = read(model, doc.ids)
        rng = Random(seed)
        for kind, share in enumerate((0.8, 0.2)):
            for _ in range(round(per_document * share)):
                if asked[kind] < wanted[kind]:
                    question, answer, _ = world.ask(doc, rng, unknown=float(kind))
                    right[kind] += is_exact(model, cache, question, answer)
                    asked[kind] += 1
    return {
        "tokens": length,
        "documents": index,
        "answerable": asked[0],
        "answerable_right": right[0],
        "unanswerable": asked[1],
        "unanswerable_right": right[1],
        "seconds": round(time.time() - started, 1),
    }


def main() -> None:
    """Print one line per length."""
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("folder", type=Path, nargs="?", default=here)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--answerable", type=int, default=400)
    parser.add_argument("--unanswerable", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first document")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = LlamaForCausalLM.from_pretrained(args.folder, dtype=torch.float32).eval()
    rows = []
    for length in args.lengths:
        rows.append(measure(model, length, args.answerable, args.unanswerable, args.first))
        r = rows[-1]
        print(
            f"{length:6d} tokens: answerable {r['answerable_right']}/{r['answerable']}"
            f" = {100 * r['answerable_right'] / r['answerable']:.1f} %, unanswerable"
            f" {r['unanswerable_right']}/{r['unanswerable']}"
            f" = {100 * r['unanswerable_right'] / r['unanswerable']:.1f} %"
            f" ({r['documents']} documents, {r['seconds']} s)",
            flush=True,
        )
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
