"""Several askers over one document: a step for all of them against one after the other.

    python benchmarks/askers.py MODEL [--tokens 2000] [--budget 25%] [--askers 4] [--write 64]

Interleaved rounds in one process; prints tokens per second and processor milliseconds per token of
both ways, by round, and the ratios of their medians. Questions are fed beforehand.
"""

import argparse
import statistics
from pathlib import Path
from time import perf_counter, process_time

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

    def one_after_another() -> tuple[float, float, list[list[int]]]:
        asked, answers = begun(), []
        begin, spent = perf_counter(), process_time()
        for own, logits in asked:
            drawn = engine.decode(own, logits, Sampling())
            answers.append([next(drawn) for _ in range(given.write)])
            drawn.close()
        return perf_counter() - begin, process_time() - spent, answers

    def together() -> tuple[float, float, list[list[int]]]:
        asked = begun()
        answers = [[int(logits.argmax())] for _, logits in asked]
        begin, spent = perf_counter(), process_time()
        while len(answers[0]) < given.write:
            logits = engine.step([own for own, _ in asked], [answer[-1] for answer in answers])
            for answer, row in zip(answers, logits, strict=True):
                answer.append(int(row.argmax()))
        return perf_counter() - begin, process_time() - spent, answers

    one_after_another(), together()  # compiled, and read from the disk
    ways = {"one after another": one_after_another, "together": together}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    costs: dict[str, list[float]] = {name: [] for name in ways}
    total, same = given.askers * given.write, 0
    for _ in range(given.rounds):
        found = []
        for name, way in ways.items():
            took, spent, answers = way()
            speeds[name].append(total / took)
            costs[name].append(1000 * spent / total)
            found.append(answers)
        same += sum(a == b for a, b in zip(*found, strict=True))
    for name in ways:
        each = zip(speeds[name], costs[name], strict=True)
        print(f"{name:18}", " · ".join(f"{speed:.1f} tok/s {cost:.1f} ms" for speed, cost in each))
    faster, cheaper = (
        statistics.median(table[one]) / statistics.median(table[other])
        for table, one, other in (
            (speeds, "together", "one after another"),
            (costs, "one after another", "together"),
        )
    )
    print(
        f"{given.model.name} {given.weights}, {given.tokens} tokens at {given.budget}, "
        f"{given.askers} askers, {given.threads} threads: {faster:.2f} times the tokens per "
        f"second, {cheaper:.2f} times those per processor second; answers alike: {same} of "
        f"{given.rounds * given.askers}"
    )


if __name__ == "__main__":
    main()
