"""The command line of `kvchat bench`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvchat.cli.flags import takes
from kvchat.engine.methods import BY_QUESTION, DEFAULT
from kvchat.settings.kinds import PATH, SWITCH, number, whole
from kvchat.settings.lists import METHOD_SPECS, WORDS, counts
from kvchat.settings.option import option, read_all, shared
from kvchat.settings.options import CACHE, DUMMY, MACHINE, MOST_THREADS, SCREEN, Options

METHODS = ("full", BY_QUESTION, DEFAULT)
CURVE = [1024, 2048, 4096, 8192]  # depths of a picture
# tokens to read, to write, depth, repetitions: as usual, and in about ten seconds
USUAL, QUICK = (4096, 64, 4096, 3), (1024, 32, 2048, 3)
TESTS = "Tests"


@dataclass(frozen=True)
class BenchOptions:
    """Options of `kvchat bench`; None where another option decides."""

    model: str | None = shared(Options, "model")
    dummy: str | None = option("--dummy", TESTS, DUMMY)
    prompt: Sequence[int] | None = option(
        "-p", TESTS, f"Tokens to prefill ({USUAL[0]}): 512,4k or 1k-8k*2.", counts(0), many=True
    )
    generate: Sequence[int] | None = option(
        "-n", TESTS, f"Tokens to decode ({USUAL[1]}); 0: none.", counts(0), many=True
    )
    depth: Sequence[int] | None = option(
        "-d", TESTS, f"Tokens prefilled before decoding ({USUAL[2]}).", counts(0), many=True
    )
    repeat: int | None = option("-r", TESTS, f"Repetitions ({USUAL[3]}).", whole(1, 10**6))
    quick: bool = option(
        "--quick", TESTS, "About ten seconds with the bundled model.", SWITCH, default=False
    )
    seed: int = shared(Options, "seed", default=0, help="Seed of the random tokens.", panel=TESTS)
    from_file: str | None = option(
        "--from-file", TESTS, "Prefill this document's tokens, not random ones.", PATH
    )
    warmup: bool = option(
        "--warmup/--no-warmup", TESTS, "One run that is not counted.", SWITCH, default=True
    )
    delay: float = option(
        "--delay", TESTS, "Seconds of rest before each test (0).", number(0, 3600), default=0.0
    )
    method: Sequence[str] = option(
        "--method", CACHE, "Methods; a list.", METHOD_SPECS, many=True, default=METHODS
    )
    budget: Sequence[str] = option(
        "--budget", CACHE, "What is KEPT: 25%,10%; a list.", WORDS, many=True, default=()
    )
    prefill_chunk: int | None = shared(Options, "prefill_chunk")
    threads: Sequence[int] = option(
        "-t --threads", MACHINE, "CPU threads: 1,2.", counts(1, MOST_THREADS), many=True, default=()
    )
    device: str = shared(Options, "device")
    dtype: str = shared(Options, "dtype")
    weights: str = shared(Options, "weights")
    attention: str = shared(Options, "attention")
    mem_limit: int | None = shared(Options, "mem_limit")
    list_devices: bool = option(
        "--list-devices", MACHINE, "Say what --device can be, and stop.", SWITCH, default=False
    )
    output: str = option("-o --output", SCREEN, "md, csv, json, jsonl.", default="md")
    output_err: str | None = option("-oe --output-err", SCREEN, "The same, on stderr as well.")
    plot: str | None = option(
        "--plot", SCREEN, "Draw speed and KV against context: a PNG file.", PATH
    )


@takes(BenchOptions)
def bench(**given: Any) -> int:
    """Speed and memory of this machine, by method; options as in llama-bench.

    ppN prefills N tokens, tgN @ dM decodes N after M others; methods: full, adakv and kvzip. -p -n
    -d -t, methods and budgets are lists: a,b or the flag again, numbers also 512-8192*2 or
    1k-4k+1k. Exit code 6: memory was not enough for a test, and the others were run.
    """
    from kvchat.bench import run, settings

    asked = read_all(BenchOptions, given)
    if asked.list_devices:
        return run.list_devices()
    reads, writes, before, times = QUICK if asked.quick else USUAL
    return run.run(
        settings.Settings(
            model=asked.model,
            dummy=asked.dummy,
            prompts=[*(asked.prompt or [reads])],
            generates=[*(asked.generate or [writes])],
            depths=[*(asked.depth or (CURVE if asked.plot else [before]))],
            repeat=asked.repeat or times,
            methods=[*asked.method],
            budgets=[*asked.budget],
            threads=[*asked.threads],
            chunk=asked.prefill_chunk,
            seed=asked.seed,
            text=asked.from_file,
            warmup=asked.warmup,
            delay=asked.delay,
            device=asked.device,
            dtype=asked.dtype,
            weights=asked.weights,
            attention=asked.attention,
            mem_limit=asked.mem_limit,
            output=asked.output,
            errput=asked.output_err,
            plot=asked.plot,
        )
    )
