"""Several askers over one document: together against one after the other.

    python benchmarks/askers.py MODEL [--tokens 2000] [--budget 25%] [--askers 4] [--write 24]
    python benchmarks/askers.py MODEL --http     # the same by requests to `kvchat serve`

Interleaved rounds in one process (or against one server); prints tokens per second and processor
milliseconds per token of both ways, by round, and the ratios of their medians. Questions of
`--question` tokens are fed as part of it; 0: four tokens that are fed beforehand.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter, process_time, sleep

import torch

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import drain
from kvchat.engine.loading import load_engine
from kvchat.engine.methods.build import parse_method
from kvchat.engine.model.read import load_config
from kvchat.engine.prefill.prefill import Compression

Way = Callable[[], list]
Clock = Callable[[], float]


def in_process(given: argparse.Namespace) -> tuple[dict[str, Way], Clock]:
    """Both ways by an engine here. What a way gives are its answers."""
    engine = drain(load_engine(given.model, load_config(given.model), "auto", "cpu", given.weights))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, (given.tokens,), generator=generator).tolist()
    method = parse_method(
        "full" if given.budget == "100%" else f"streamingllm:budget={given.budget}"
    )
    document = drain(engine.prefill(ids, [Compression(method)])).caches[0]
    many = range(given.askers)
    asked = torch.randint(1000, (given.askers, given.question), generator=generator).tolist()
    before = [5 + n for n in many], [6] * given.askers

    def begun() -> list:
        caches = [document.fork() for _ in many]
        if not given.question:
            for own, *question in zip(caches, *before, strict=True):
                drain(engine.extend(own, question))
        return caches

    def one_after_another() -> list:
        answers = []
        for number, own in enumerate(begun()):
            [logits] = drain(engine.extend_all([own], [asked[number] or [7]]))
            drawn = engine.decode(own, logits, Sampling())
            answers.append([next(drawn) for _ in range(given.write)])
            drawn.close()
        return answers

    def together() -> list:
        caches = begun()
        logits = drain(engine.extend_all(caches, [question or [7] for question in asked]))
        answers = [[int(row.argmax())] for row in logits]
        while len(answers[0]) < given.write:
            logits = engine.step(caches, [answer[-1] for answer in answers])
            for answer, row in zip(answers, logits, strict=True):
                answer.append(int(row.argmax()))
        return answers

    return {"one after another": one_after_another, "together": together}, process_time


def by_http(given: argparse.Namespace, folder: Path) -> tuple[dict[str, Way], Clock]:
    """Both ways by requests to a server of its own."""
    book = folder / "book.txt"
    sample = Path(__file__).parents[1] / "samples" / "valley.txt"
    book.write_text(sample.read_text("utf-8")[: 4 * given.tokens], "utf-8")
    command = [sys.executable, "-m", "kvchat", "serve", "-m", str(given.model), str(book)]
    command += ["--port", "0", "--threads", str(given.threads), "--weights", given.weights]
    command += ["--askers", str(given.askers), "--prompt-cache", "off", "--ctx-size", "8192"]
    if given.budget != "100%":
        command += ["--method", "streamingllm", "--budget", given.budget]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    given.server = server
    assert server.stderr is not None
    port = None
    for line in server.stderr:
        print(line, end="")
        if found := re.search(r"http://127.0.0.1:(\d+)/", line):
            port = found[1]
        if port and "tokens read" in line:
            break

    def ask(number: int) -> str:
        question = (
            f"What is the stone of {'ABCDEFGH'[number % 8]}rvid Abbott, and what of {number}?"
        )
        body = {
            "model": "book",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": given.write,
            "ignore_eos": True,
            "temperature": 0,
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            found = json.load(answer)
        assert found["usage"]["completion_tokens"] == given.write, found
        text: str = found["choices"][0]["message"]["content"]
        return text

    def spent() -> float:
        fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    many, pool = range(given.askers), ThreadPoolExecutor(given.askers)
    ways: dict[str, Way] = {
        "one after another": lambda: [ask(number) for number in many],
        "together": lambda: list(pool.map(ask, many)),
    }
    return ways, spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--budget", default="25%")
    parser.add_argument("--askers", type=int, default=4)
    parser.add_argument("--question", type=int, default=17)
    parser.add_argument("--write", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--http", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        ways, spent = by_http(given, Path(folder)) if given.http else in_process(given)
        try:
            measure(given, ways, spent)
        finally:
            if given.http:
                given.server.terminate()
                given.server.wait()


def measure(given: argparse.Namespace, ways: dict[str, Way], spent: Clock) -> None:
    """Rounds of both ways in turn."""
    for way in ways.values():
        way()  # compiled, and read from the disk
    sleep(0.1)
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    costs: dict[str, list[float]] = {name: [] for name in ways}
    total, same = given.askers * given.write, 0
    for _ in range(given.rounds):
        found = []
        for name, way in ways.items():
            begin, before = perf_counter(), spent()
            answers = way()
            speeds[name].append(total / (perf_counter() - begin))
            costs[name].append(1000 * (spent() - before) / total)
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
        f"{given.askers} askers, {given.write} tokens written, {given.threads} threads"
        f"{', HTTP' if given.http else ''}: {faster:.2f} times the tokens per second, "
        f"{cheaper:.2f} times those per processor second; answers alike: {same} of "
        f"{given.rounds * given.askers}"
    )


if __name__ == "__main__":
    main()
