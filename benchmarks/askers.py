"""Several askers over one document: a step for all of them against one after the other.

    python benchmarks/askers.py MODEL [--tokens 2000] [--budget 25%] [--askers 4] [--write 64]

Interleaved rounds in one process; prints tokens per second of both ways, by round, and the ratio of
their medians.
"""

import argparse
import statistics
from pathlib import Path
from time import perf_counter

import torch

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.engine import Engine
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.model.read import load_config
from kvchat.engine.prefill.prefill import Compression


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--budget", default="25%")
    parser.add_argument("--askers", type=int, default=4)
    parser.add_argument("--write", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", default="auto")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    engine = drain(Engine.load(given.model, load_config(given.model), "auto", "cpu", given.weights))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, (given.tokens,), generator=generator).tolist()
    method = parse_method(
        "full" if given.budget == "100%" else f"streamingllm:budget={given.budget}"
    )
    document = drain(engine.prefill(ids, [Compression(method)])).caches[0]
    questions = [[5 + n, 6, 7, 8] for n in range(given.askers)]

    def begun() -> list:
        caches = [document.fork() for _ in questions]
        pairs = zip(caches, questions, strict=True)
        return [(own, drain(engine.extend(own, question))) for own, question in pairs]

    def one_after_another() -> tuple[float, list[list[int]]]:
        asked, begin, answers = begun(), perf_counter(), []
        for own, logits in asked:
            drawn = engine.decode(own, logits, Sampling())
            answers.append([next(drawn) for _ in range(given.write)])
            drawn.close()
        return perf_counter() - begin, answers

    def together() -> tuple[float, list[list[int]]]:
        asked, begin = begun(), perf_counter()
        answers = [[int(logits.argmax())] for _, logits in asked]
        while len(answers[0]) < given.write:
            logits = engine.step([own for own, _ in asked], [answer[-1] for answer in answers])
            for answer, row in zip(answers, logits, strict=True):
                answer.append(int(row.argmax()))
        return perf_counter() - begin, answers

    one_after_another(), together()  # compiled, and read from the disk
    speeds: dict[str, list[float]] = {"one after another": [], "together": []}
    total, same = given.askers * given.write, 0
    found: list[list[int]] = []
    for _ in range(given.rounds):
        for name, way in (("one after another", one_after_another), ("together", together)):
            took, answers = way()
            speeds[name].append(total / took)
            found = answers if name == "one after another" else found
        same += sum(a == b for a, b in zip(found, answers, strict=True))
    for name, each in speeds.items():
        print(f"{name:18} {' '.join(f'{speed:7.1f}' for speed in each)} tok/s")
    ratio = statistics.median(speeds["together"]) / statistics.median(speeds["one after another"])
    print(
        f"{given.model.name}, {given.tokens} tokens at {given.budget}, {given.askers} askers, "
        f"{given.threads} threads: {ratio:.2f} times; answers alike: "
        f"{same} of {given.rounds * given.askers}"
    )


if __name__ == "__main__":
    main()
